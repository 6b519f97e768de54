//! A call as Python writes it: `name(key='text', other=[1, True])`.

use super::object::{Read, Reader};
use super::scan::{Scanner, Step, push_escaped};

/// Bytes of the longest name and of the longest key.
const MAX_NAME: usize = 256;

#[derive(Clone, Debug)]
enum At {
    Name,
    /// A key or the end.
    Key,
    InKey(String),
    /// Behind a key.
    Equals(String),
    Value(Literal),
    /// Behind a value.
    After,
    Done,
}

/// Reads a call as it comes; its arguments, all by their names, are made into JSON.
#[derive(Clone, Debug)]
pub struct PythonReader {
    at: At,
    name: String,
    /// Whether the name is over.
    is_named: bool,
    arguments: usize,
}

impl PythonReader {
    pub fn new() -> PythonReader {
        PythonReader { at: At::Name, name: String::new(), is_named: false, arguments: 0 }
    }

    fn value(&mut self, mut value: Literal, c: char, arguments: &mut String) -> Read {
        match value.push(c, arguments) {
            Step::More => {
                self.at = At::Value(value);
                Read::More
            }
            Step::Done => {
                self.at = At::After;
                Read::More
            }
            Step::DoneBefore => {
                self.at = At::After;
                self.push(c, arguments)
            }
            Step::Bad => Read::Bad,
        }
    }
}

impl Reader for PythonReader {
    fn name(&self) -> Option<&str> {
        self.is_named.then_some(self.name.as_str())
    }

    fn push(&mut self, c: char, arguments: &mut String) -> Read {
        let is_blank = matches!(c, ' ' | '\t' | '\n' | '\r');
        self.at = match std::mem::replace(&mut self.at, At::Done) {
            At::Name if self.name.is_empty() && !(c.is_alphabetic() || c == '_') => return Read::Bad,
            At::Name if (is_part(c) || c == '.' || c == '-') && self.name.len() < MAX_NAME => {
                self.name.push(c);
                At::Name
            }
            At::Name if c == '(' => {
                self.is_named = true;
                At::Key
            }
            at @ (At::Key | At::Equals(_) | At::After) if is_blank => at,
            At::Key if c == ')' => {
                arguments.push_str(if self.arguments > 0 { "}" } else { "{}" });
                return Read::Done;
            }
            At::Key if is_part(c) => At::InKey(c.to_string()),
            At::InKey(mut key) if is_part(c) && key.len() < MAX_NAME => {
                key.push(c);
                At::InKey(key)
            }
            At::InKey(key) if is_blank => At::Equals(key),
            At::InKey(key) | At::Equals(key) if c == '=' => {
                arguments.push_str(if self.arguments > 0 { ",\"" } else { "{\"" });
                arguments.push_str(&key);
                arguments.push_str("\":");
                self.arguments += 1;
                At::Value(Literal::default())
            }
            At::Value(value) => return self.value(value, c, arguments),
            At::After if c == ',' => At::Key,
            At::After if c == ')' => {
                arguments.push('}');
                return Read::Done;
            }
            _ => return Read::Bad,
        };
        Read::More
    }
}

fn is_part(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[derive(Clone, Debug, Default)]
enum Within {
    #[default]
    Plain,
    /// `True`, `None`, ..
    Word(String),
    /// A text, until this quotation mark.
    Text(char),
    /// Behind a backslash of it.
    Escape(char),
}

/// A literal of Python's, made into JSON: texts, numbers, lists, tuples and dictionaries of texts.
#[derive(Clone, Debug, Default)]
struct Literal {
    scanner: Scanner,
    within: Within,
    /// Whether each bracket that is open is a tuple's.
    tuples: Vec<bool>,
}

impl Literal {
    fn push(&mut self, c: char, out: &mut String) -> Step {
        match std::mem::take(&mut self.within) {
            Within::Plain => self.plain(c, out),
            Within::Word(mut word) if is_part(c) && word.len() < MAX_NAME => {
                word.push(c);
                self.within = Within::Word(word);
                Step::More
            }
            Within::Word(word) => {
                let json = match word.as_str() {
                    "True" | "true" => "true",
                    "False" | "false" => "false",
                    "None" | "null" => "null",
                    _ => return Step::Bad,
                };
                match self.feed(json, out) {
                    Step::Done => Step::DoneBefore,
                    Step::More => self.plain(c, out),
                    other => other,
                }
            }
            Within::Text(quote) if c == '\\' => {
                self.within = Within::Escape(quote);
                Step::More
            }
            Within::Text(quote) if c == quote => self.feed("\"", out),
            Within::Text(quote) => {
                self.within = Within::Text(quote);
                let mut escaped = String::new();
                push_escaped(c, &mut escaped);
                self.feed(&escaped, out)
            }
            Within::Escape(quote) => {
                self.within = Within::Text(quote);
                self.escape(c, out)
            }
        }
    }

    fn plain(&mut self, c: char, out: &mut String) -> Step {
        match c {
            '\'' | '"' => {
                self.within = Within::Text(c);
                self.feed("\"", out)
            }
            '(' => {
                self.tuples.push(true);
                self.feed("[", out)
            }
            '[' | '{' => {
                self.tuples.push(false);
                self.scanner.push(c, out)
            }
            ')' if self.tuples.last() == Some(&true) => {
                self.tuples.pop();
                self.feed("]", out)
            }
            ']' | '}' if self.tuples.pop() != Some(false) => Step::Bad,
            c if is_part(c) && !c.is_ascii_digit() && !self.scanner.in_number() => {
                self.within = Within::Word(c.to_string());
                Step::More
            }
            c => self.scanner.push(c, out),
        }
    }

    /// A character behind a backslash. What is no escape of Python's has a backslash.
    fn escape(&mut self, c: char, out: &mut String) -> Step {
        match c {
            'n' | 't' | 'r' | 'b' | 'f' | '\\' | '"' | '/' => self.feed(&format!("\\{c}"), out),
            '\'' => self.feed("'", out),
            // Their digits follow, and are checked with them.
            'u' => self.feed("\\u", out),
            'x' => self.feed("\\u00", out),
            // The text goes on on the next line.
            '\n' => Step::More,
            c => {
                let mut escaped = "\\\\".to_owned();
                push_escaped(c, &mut escaped);
                self.feed(&escaped, out)
            }
        }
    }

    fn feed(&mut self, json: &str, out: &mut String) -> Step {
        let mut last = Step::More;
        for c in json.chars() {
            last = self.scanner.push(c, out);
            if last != Step::More {
                break;
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name and the arguments of a call, where it is one and all of the text.
    fn read(text: &str) -> Option<(String, String)> {
        let (mut reader, mut arguments) = (PythonReader::new(), String::new());
        let last = text.char_indices().last()?.0;
        for (at, c) in text.char_indices() {
            match reader.push(c, &mut arguments) {
                Read::More => {}
                Read::Done if at == last => return Some((reader.name()?.to_owned(), arguments)),
                _ => return None,
            }
        }
        None
    }

    #[test]
    fn literals_are_made_into_json() {
        for (python, json) in [
            ("'a'", "\"a\""),
            ("\"it's\"", "\"it's\""),
            (r#"'say "x"\n\t\\ \' \q'"#, r#""say \"x\"\n\t\\ ' \\q""#),
            (r"'\u00e9\ud83d\ude42\x41 é'", r#""\u00e9\ud83d\ude42\u0041 é""#),
            ("'two\nlines'", r#""two\nlines""#),
            ("5", "5"),
            ("-1.5e-3", "-1.5e-3"),
            ("True", "true"),
            ("None", "null"),
            ("[True,None, 1, 'x']", "[true,null, 1, \"x\"]"),
            ("(1, ('a', False))", "[1, [\"a\", false]]"),
            ("{'a': {'b': []}, \"c\": true}", "{\"a\": {\"b\": []}, \"c\": true}"),
        ] {
            let (name, arguments) = read(&format!("f.g(key={python})")).unwrap_or_else(|| panic!("{python}"));
            assert_eq!((name.as_str(), arguments.as_str()), ("f.g", &*format!("{{\"key\":{json}}}")));
            serde_json::from_str::<serde_json::Value>(&arguments).expect("JSON");
        }
        let arguments = |text: &str| read(text).map(|(_, arguments)| arguments);
        assert_eq!(arguments("f()").as_deref(), Some("{}"));
        assert_eq!(arguments("f( a = 1 ,\n b='c', )").as_deref(), Some("{\"a\": 1,\"b\":\"c\"}"));
        for other in [
            "f('a')",
            "f(a)",
            "f(a=)",
            "f(a=x)",
            "f(a=1 2)",
            "f(a=[1)",
            "f(a=(1])",
            "f(a='b)",
            "f(a=1}",
            "f(,)",
            "1(a=2)",
            "(a=2)",
            "f a()",
            "f(a={1: 2})",
            "f(a=r'x')",
            "f(a=01)",
            "f(a='\\u12')",
            "f(a='\\ud83d')",
            "f(a='b' 'c')",
            "f(a=g(b=1))",
            "f(a=1)x",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
