//! `tojson` as transformers has it: Python's `json.dumps`, which escapes nothing for HTML.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind};

use super::disguise::is_disguise;
use super::python::{self, MAX_DEPTH, MAX_LEN};

/// How `json.dumps` writes.
struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    between_items: String,
    after_key: String,
    sort_keys: bool,
}

/// `value | tojson(ensure_ascii, indent, separators, sort_keys)`, all by position or by name.
pub fn to_json(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (positional, named): (&[Value], Kwargs) = from_args(&args)?;
    let option = |position: usize, name: &str| -> Result<Option<Value>, Error> {
        let value = match positional.get(position) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<Value>>(name)?,
        };
        Ok(value.filter(|value| !value.is_none()))
    };
    let indent = option(1, "indent")?.map(|value| indentation(&value)).transpose()?;
    let (between_items, after_key) = match option(2, "separators")? {
        Some(pair) => {
            let part = |index| pair.get_item_by_index(index).map(|part| part.to_string());
            (part(0)?, part(1)?)
        }
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let is_set = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let style = Style {
        ensure_ascii: is_set(option(0, "ensure_ascii")?),
        indent,
        between_items,
        after_key,
        sort_keys: is_set(option(3, "sort_keys")?),
    };
    named.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(Value::from_safe_string(out))
}

/// A number of spaces, or the text itself.
fn indentation(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    match value.as_i64() {
        Some(width @ ..=16) => Ok(" ".repeat(usize::try_from(width).unwrap_or(0))),
        Some(width) => Err(failed(format!("an indent of {width} is more than 16"))),
        None => Err(failed(format!("an indent cannot be a {}", value.kind()))),
    }
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(failed("the value is nested too deeply".to_owned()));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default(), out),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_items(&keys, ['{', '}'], depth, out, |key, out| {
                    self.write_string(&key_text(key)?, out);
                    out.push_str(&self.after_key);
                    self.write(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_items(&items, ['[', ']'], depth, out, |item, out| {
                    self.write(item, depth + 1, out)
                })?;
            }
            kind => return Err(failed(format!("a value of the kind {kind} is not JSON"))),
        }
        if out.len() > MAX_LEN {
            return Err(failed(format!("the text is longer than {MAX_LEN} bytes")));
        }
        Ok(())
    }

    /// What stands between two brackets.
    fn write_items(
        &self,
        items: &[Value],
        [open, close]: [char; 2],
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.between_items);
            }
            self.break_line(depth + 1, out);
            write(item, out)?;
        }
        if !items.is_empty() {
            self.break_line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn break_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn write_string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{C}' => out.push_str("\\f"),
                c if c < ' ' || self.ensure_ascii && !(' '..='~').contains(&c) && !is_disguise(c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn number(value: &Value) -> String {
    match python::float(value) {
        Some(f) if f.is_nan() => "NaN".to_owned(),
        Some(f) if f.is_infinite() => if f > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        Some(f) => python::float_text(f),
        None => value.to_string(),
    }
}

/// A key of an object: Python takes texts, numbers, truth values and none.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(number(key)),
        kind => Err(failed(format!("a {kind} cannot be a key"))),
    }
}

fn failed(message: String) -> Error {
    Error::new(ErrorKind::BadSerialization, format!("tojson: {message}"))
}
