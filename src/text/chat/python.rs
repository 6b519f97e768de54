//! What transformers' Jinja has from Python, beyond what `minijinja` and its `pycompat` know.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, Output, State, escape_formatter, filters};
use minijinja_contrib::{globals, pycompat};

use super::json;

/// Lists within lists that are written.
pub const MAX_DEPTH: usize = 64;
/// Bytes of the longest text that a value is written as: more than a conversation has.
pub const MAX_LEN: usize = 16 << 20;

/// Teaches an environment what transformers' has: functions, `tojson`, Python's methods and texts of values.
/// `now` is the clock of `strftime_now`.
pub fn extend(environment: &mut Environment<'static>, now: fn() -> Timestamp) {
    environment.set_formatter(format_value);
    environment.set_unknown_method_callback(method);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", move |format: &str| strftime(now(), format));
    environment.add_function("cycler", cycler);
    environment.add_function("joiner", globals::joiner);
    environment.add_test("sequence", |value: &Value| {
        use ValueKind::*;
        matches!(value.kind(), Undefined | String | Bytes | Seq | Map)
    });
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_filter("tojson", json::to_json);
    environment.add_filter("int", int);
    environment.add_filter("string", |value: &Value| -> Result<Value, Error> {
        if value.kind() == ValueKind::String { Ok(value.clone()) } else { text(value).map(Value::from) }
    });
}

/// How templates refuse a conversation.
fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// A date and time, UTC, in the format given.
fn strftime(time: Timestamp, format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &time.to_zoned(TimeZone::UTC))
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// `value | int(default, base)`: the default, 0, of what is no number.
fn int(
    state: &State,
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let default = match default {
        Some(default) => default,
        None => kwargs.get::<Option<Value>>("default")?.unwrap_or_else(|| Value::from(0)),
    };
    // Python strips white space, and of floats takes those alone that are finite.
    let value = value.as_str().map_or_else(|| value.clone(), |text| Value::from(text.trim()));
    let text_as_float = value.as_str().and_then(|text| text.parse().ok());
    match float(&value).or(text_as_float) {
        Some(number) if !number.is_finite() => {
            let _: Option<u32> = kwargs.get("base")?;
            kwargs.assert_all_used()?;
            Ok(default)
        }
        _ => filters::int(state, &value, Some(default), base, kwargs),
    }
}

/// `cycler(..)`: its values in turn, without end.
fn cycler(items: Rest<Value>) -> Result<Value, Error> {
    match items.is_empty() {
        true => Err(Error::new(ErrorKind::InvalidOperation, "a cycler needs at least one value")),
        false => Ok(Value::from_object(Cycler { items: items.to_vec(), position: AtomicUsize::new(0) })),
    }
}

#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    position: AtomicUsize,
}

impl Cycler {
    fn current(&self) -> Value {
        self.items[self.position.load(Relaxed)].clone()
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str()? == "current").then(|| self.current())
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        let () = from_args(args)?;
        match method {
            "next" => {
                let current = self.current();
                self.position.store((self.position.load(Relaxed) + 1) % self.items.len(), Relaxed);
                Ok(current)
            }
            "reset" => {
                self.position.store(0, Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

/// Writes a value as `str` does.
fn format_value(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            out.write_str(&text(value)?).map_err(Error::from)
        }
        _ => escape_formatter(out, state, value),
    }
}

/// The text of a value, as Python's `str` gives it.
fn text(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    match value.kind() {
        ValueKind::String | ValueKind::Undefined => out.push_str(&value.to_string()),
        _ => write_repr(value, 0, &mut out)?,
    }
    Ok(out)
}

/// A value as Python's `repr` gives it.
fn write_repr(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH || out.len() > MAX_LEN {
        let message = "the value is nested too deeply, or too long, to be written";
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    match value.kind() {
        ValueKind::String => write!(out, "{value:?}").map_err(Error::from),
        ValueKind::Number => {
            out.push_str(&float(value).map_or_else(|| value.to_string(), float_text));
            Ok(())
        }
        ValueKind::Seq => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(open);
            let mut items = 0;
            for item in value.try_iter()? {
                out.push_str(if items > 0 { ", " } else { "" });
                write_repr(&item, depth + 1, out)?;
                items += 1;
            }
            if items == 1 && value.is_tuple() {
                out.push(',');
            }
            out.push(close);
            Ok(())
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(&key, depth + 1, out)?;
                out.push_str(": ");
                write_repr(&value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
            Ok(())
        }
        _ => write!(out, "{value}").map_err(Error::from),
    }
}

/// A number that is no integer.
pub fn float(value: &Value) -> Option<f64> {
    if value.is_number() && !value.is_integer() { f64::try_from(value.clone()).ok() } else { None }
}

/// A float as Python writes it: the shortest digits that give it back, an exponent of at least two.
pub fn float_text(float: f64) -> String {
    let text = format!("{float:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text.to_lowercase(),
    }
}

/// Python's methods that `pycompat` lacks; the others are its own.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => match name {
            "rsplit" => return rsplit(state, text, value, args),
            "partition" | "rpartition" => return partition(text, name == "rpartition", args),
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                return Ok(text.strip_prefix(prefix).unwrap_or(text).into());
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                return Ok(text.strip_suffix(suffix).unwrap_or(text).into());
            }
            _ => {}
        },
        // Values never change, so a copy is the value.
        None if name == "copy" && matches!(value.kind(), ValueKind::Map | ValueKind::Seq) => {
            let () = from_args(args)?;
            return Ok(value.clone());
        }
        None => {}
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

/// `text.rsplit(separator, maxsplit)`: as `split`, from the right.
fn rsplit(state: &mut State, text: &str, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
    let Some(most) = most.and_then(|most| usize::try_from(most).ok()) else {
        return pycompat::unknown_method_callback(state, value, "split", &args[..args.len().min(1)]);
    };
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "rsplit: empty separator")),
        Some(separator) => text.rsplitn(most + 1, separator).collect(),
        None => {
            let mut parts = Vec::new();
            let mut rest = text.trim_end();
            while !rest.is_empty() {
                let start = rest.rfind(char::is_whitespace).filter(|_| parts.len() < most);
                let cut = start.map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
                parts.push(if start.is_some() { &rest[cut..] } else { rest.trim_start() });
                rest = if start.is_some() { rest[..cut].trim_end() } else { "" };
            }
            parts
        }
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect::<Vec<_>>().into())
}

/// `text.partition(separator)`: what is before it, itself, what is after it.
fn partition(text: &str, last: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "partition: empty separator"));
    }
    let found = if last { text.rsplit_once(separator) } else { text.split_once(separator) };
    let parts = match (found, last) {
        (Some((before, after)), _) => [before, separator, after],
        (None, false) => [text, "", ""],
        (None, true) => ["", "", text],
    };
    Ok(Value::from_object(minijinja::value::Tuple::new(parts.map(Value::from).into())))
}
