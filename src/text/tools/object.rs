//! A call as one object: `{"name": "f", "arguments": {..}}`.

use serde_json::Value as Json;

use super::numbers::read;
use super::scan::{Scanner, Step};

/// Keys of the name and of the arguments, by family.
const NAMES: &[&str] = &["name", "tool_name", "function"];
const ARGUMENTS: &[&str] = &["arguments", "parameters"];
/// What else a call may have.
const OTHERS: &[&str] = &["type", "id", "tool_call_id"];

/// Bytes of the longest name or key.
const MAX_NAME: usize = 256;

/// Reads a call as it comes.
pub trait Reader {
    /// The name, once it is known.
    fn name(&self) -> Option<&str>;

    /// Takes a character; writes what is certain of the arguments. None are written before the name is known.
    fn push(&mut self, c: char, arguments: &mut String) -> Read;
}

/// What a character did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    More,
    /// The call ends with it.
    Done,
    /// It is no call; the character was not taken.
    Bad,
}

#[derive(Clone, Debug)]
enum At {
    Open,
    /// A key, or the end where the object is empty.
    FirstKey,
    NextKey,
    /// A key or a value under way: its key, where it is a value.
    Scan(Option<String>, Scanner, String),
    Colon(String),
    Value(String),
    /// The arguments, given out as they come.
    Arguments(Scanner),
    Comma,
    Done,
}

/// Reads a call that is one object.
#[derive(Clone, Debug)]
pub struct ObjectReader {
    at: At,
    /// Whether keys of other things make it no call.
    strict: bool,
    name: Option<String>,
    /// Arguments that came before the name.
    early: Option<String>,
    /// Whether the arguments have been given out.
    told: bool,
}

impl Reader for ObjectReader {
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn push(&mut self, c: char, arguments: &mut String) -> Read {
        let is_blank = matches!(c, ' ' | '\t' | '\n' | '\r');
        let next = match std::mem::replace(&mut self.at, At::Done) {
            At::Arguments(mut scanner) => match scanner.push(c, arguments) {
                Step::More => Some(At::Arguments(scanner)),
                Step::Done => Some(At::Comma),
                Step::DoneBefore | Step::Bad => None,
            },
            At::Scan(key, scanner, text) => return self.scan(key, scanner, text, c, arguments),
            At::Done => None,
            at if is_blank => Some(at),
            At::Open if c == '{' => Some(At::FirstKey),
            At::FirstKey | At::NextKey if c == '"' => return self.begin(None, c),
            At::Colon(key) if c == ':' => Some(At::Value(key)),
            At::Value(key) => {
                let streams = ARGUMENTS.contains(&key.as_str()) && c == '{' && !self.told;
                if streams && self.name.is_some() && self.early.is_none() {
                    self.told = true;
                    let mut scanner = Scanner::new();
                    scanner.push(c, arguments);
                    Some(At::Arguments(scanner))
                } else {
                    return self.begin(Some(key), c);
                }
            }
            At::Comma if c == ',' => Some(At::NextKey),
            At::Comma if c == '}' => return self.end(arguments),
            _ => None,
        };
        match next {
            Some(at) => {
                self.at = at;
                Read::More
            }
            None => Read::Bad,
        }
    }
}

impl ObjectReader {
    /// `strict`: what does not look like a call is none.
    pub fn new(strict: bool) -> ObjectReader {
        ObjectReader { at: At::Open, strict, name: None, early: None, told: false }
    }

    /// A key or a value begins.
    fn begin(&mut self, key: Option<String>, c: char) -> Read {
        let (mut scanner, mut text) = (Scanner::new(), String::new());
        match scanner.push(c, &mut text) {
            Step::More => {
                self.at = At::Scan(key, scanner, text);
                Read::More
            }
            _ => Read::Bad,
        }
    }

    fn scan(
        &mut self,
        key: Option<String>,
        mut scanner: Scanner,
        mut text: String,
        c: char,
        arguments: &mut String,
    ) -> Read {
        match scanner.push(c, &mut text) {
            Step::Bad => return Read::Bad,
            Step::More if key.is_none() && text.len() > MAX_NAME => return Read::Bad,
            Step::More => {
                self.at = At::Scan(key, scanner, text);
                return Read::More;
            }
            step => {
                let known = match key {
                    None => self.take_key(&text),
                    Some(key) => self.take_value(&key, &text),
                };
                if !known {
                    return Read::Bad;
                }
                // A number's end is known by what follows it.
                if step == Step::DoneBefore {
                    return self.push(c, arguments);
                }
            }
        }
        Read::More
    }

    fn take_key(&mut self, text: &str) -> bool {
        let Ok(key) = serde_json::from_str::<String>(text) else { return false };
        let known = [NAMES, ARGUMENTS, OTHERS].iter().any(|keys| keys.contains(&key.as_str()));
        self.at = At::Colon(key);
        known || !self.strict
    }

    fn take_value(&mut self, key: &str, text: &str) -> bool {
        let Ok(value) = read(text) else { return false };
        self.at = At::Comma;
        match value {
            Json::String(name) if NAMES.contains(&key) && self.name.is_none() => {
                let fits = !name.trim().is_empty() && name.len() <= MAX_NAME;
                self.name = Some(name);
                fits
            }
            _ if NAMES.contains(&key) => !self.strict,
            _ if !ARGUMENTS.contains(&key) => true,
            _ if self.told || self.early.is_some() => false,
            Json::Object(_) => {
                self.early = Some(text.to_owned());
                true
            }
            Json::Null => {
                self.early = Some("{}".to_owned());
                true
            }
            // Written as a text that is an object.
            Json::String(inner) => {
                let is_object = read(&inner).is_ok_and(|value| value.is_object());
                self.early = Some(inner);
                is_object
            }
            _ => false,
        }
    }

    fn end(&mut self, arguments: &mut String) -> Read {
        let has_arguments = self.told || self.early.is_some();
        if self.name.is_none() || self.strict && !has_arguments {
            return Read::Bad;
        }
        if !self.told {
            arguments.push_str(self.early.as_deref().unwrap_or("{}"));
        }
        Read::Done
    }
}
