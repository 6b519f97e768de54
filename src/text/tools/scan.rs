//! JSON as it comes: each character is checked and passed on at once.

/// Brackets within brackets, fewer than `serde_json` reads.
const MAX_DEPTH: usize = 100;

/// What a character did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    More,
    /// The value ends with it.
    Done,
    /// The value, a number, ended before it.
    DoneBefore,
    /// It cannot stand here; it was not taken.
    Bad,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Value,
    /// A value or the end of the list.
    FirstItem,
    /// A key or the end of the object.
    FirstKey,
    Key,
    Colon,
    /// Behind a value.
    After,
    Text,
    Escape,
    /// So many digits of a `\u` are to come, and what they are so far.
    Hex(u8, u16),
    /// Behind the first half of a surrogate pair.
    Half,
    HalfEscape,
    Number(Number),
    /// The rest of `true`, `false` or `null`.
    Word(&'static str),
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Sign,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

impl Number {
    /// Whether the number may end here.
    fn is_whole(self) -> bool {
        matches!(self, Number::Zero | Number::Whole | Number::Fraction | Number::ExponentDigits)
    }

    fn next(self, c: char) -> Option<Number> {
        use Number::*;
        Some(match (self, c) {
            (Sign, '0') => Zero,
            (Sign, '1'..='9') | (Whole, '0'..='9') => Whole,
            (Zero | Whole, '.') => Point,
            (Point | Fraction, '0'..='9') => Fraction,
            (Zero | Whole | Fraction, 'e' | 'E') => Exponent,
            (Exponent, '+' | '-') => ExponentSign,
            (Exponent | ExponentSign | ExponentDigits, '0'..='9') => ExponentDigits,
            _ => return None,
        })
    }
}

/// Checks one JSON value as it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanner {
    state: State,
    /// Whether each bracket that is open is an object's.
    open: Vec<bool>,
    /// Whether the text under way is a key.
    is_key: bool,
    /// Whether the next `\u` has to be the second half of a pair.
    half: bool,
}

impl Default for Scanner {
    fn default() -> Scanner {
        Scanner::new()
    }
}

impl Scanner {
    /// Before a value.
    pub fn new() -> Scanner {
        Scanner { state: State::Value, open: Vec::new(), is_key: false, half: false }
    }

    /// Whether a number is under way.
    pub fn in_number(&self) -> bool {
        matches!(self.state, State::Number(_))
    }

    /// Whether a key is expected.
    pub fn wants_key(&self) -> bool {
        matches!(self.state, State::Key | State::FirstKey)
    }

    /// Whether what came is a value, or a number that may end.
    #[cfg(test)]
    fn may_end(&self) -> bool {
        match self.state {
            State::Done => true,
            State::Number(number) => self.open.is_empty() && number.is_whole(),
            _ => false,
        }
    }

    /// Takes a character and writes it; a control character within a text, which JSON does not allow, as an
    /// escape.
    pub fn push(&mut self, c: char, out: &mut String) -> Step {
        match self.next(c) {
            Step::Bad => Step::Bad,
            Step::DoneBefore => Step::DoneBefore,
            step => {
                match c {
                    c if self.state == State::Text && c < ' ' => push_escaped(c, out),
                    c => out.push(c),
                }
                step
            }
        }
    }

    fn next(&mut self, c: char) -> Step {
        if let State::Number(number) = self.state {
            if let Some(number) = number.next(c) {
                self.state = State::Number(number);
                return Step::More;
            }
            if !number.is_whole() {
                return Step::Bad;
            }
            self.state = State::After;
            if self.open.is_empty() {
                self.state = State::Done;
                return Step::DoneBefore;
            }
        }
        let is_blank = matches!(c, ' ' | '\t' | '\n' | '\r');
        match self.state {
            State::Done => return Step::Bad,
            State::Text => return self.text(c),
            State::Escape => match c {
                '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => self.state = State::Text,
                'u' => self.state = State::Hex(4, 0),
                _ => return Step::Bad,
            },
            State::Half if c == '\\' => self.state = State::HalfEscape,
            State::HalfEscape if c == 'u' => self.state = State::Hex(4, 0),
            State::Half | State::HalfEscape => return Step::Bad,
            State::Hex(left, value) => return self.hex(c, left, value),
            State::Word(rest) => match rest.strip_prefix(c) {
                Some("") => return self.ended(),
                Some(rest) => self.state = State::Word(rest),
                None => return Step::Bad,
            },
            _ if is_blank => {}
            State::Colon if c == ':' => self.state = State::Value,
            State::FirstKey | State::Key if c == '"' => {
                self.is_key = true;
                self.state = State::Text;
            }
            State::FirstKey if c == '}' => return self.close(true),
            State::FirstItem if c == ']' => return self.close(false),
            State::After => match (c, self.open.last()) {
                (',', Some(true)) => self.state = State::Key,
                (',', Some(false)) => self.state = State::Value,
                ('}', Some(true)) => return self.close(true),
                (']', Some(false)) => return self.close(false),
                _ => return Step::Bad,
            },
            State::Value | State::FirstItem => return self.value(c),
            _ => return Step::Bad,
        }
        Step::More
    }

    /// The first character of a value.
    fn value(&mut self, c: char) -> Step {
        self.state = match c {
            '{' | '[' if self.open.len() == MAX_DEPTH => return Step::Bad,
            '{' => {
                self.open.push(true);
                State::FirstKey
            }
            '[' => {
                self.open.push(false);
                State::FirstItem
            }
            '"' => {
                self.is_key = false;
                State::Text
            }
            '-' => State::Number(Number::Sign),
            '0' => State::Number(Number::Zero),
            '1'..='9' => State::Number(Number::Whole),
            't' => State::Word("rue"),
            'f' => State::Word("alse"),
            'n' => State::Word("ull"),
            _ => return Step::Bad,
        };
        Step::More
    }

    fn text(&mut self, c: char) -> Step {
        match c {
            '\\' => self.state = State::Escape,
            '"' if self.is_key => self.state = State::Colon,
            '"' => return self.ended(),
            _ => {}
        }
        Step::More
    }

    fn hex(&mut self, c: char, left: u8, value: u16) -> Step {
        let Some(digit) = c.to_digit(16).and_then(|digit| u16::try_from(digit).ok()) else {
            return Step::Bad;
        };
        let value = value << 4 | digit;
        if left > 1 {
            self.state = State::Hex(left - 1, value);
            return Step::More;
        }
        let (first, second) = ((0xD800..0xDC00).contains(&value), (0xDC00..0xE000).contains(&value));
        if second != self.half {
            return Step::Bad;
        }
        self.half = first;
        self.state = if first { State::Half } else { State::Text };
        Step::More
    }

    fn close(&mut self, object: bool) -> Step {
        match self.open.pop() {
            Some(open) if open == object => self.ended(),
            _ => Step::Bad,
        }
    }

    fn ended(&mut self) -> Step {
        let done = self.open.is_empty();
        self.state = if done { State::Done } else { State::After };
        if done { Step::Done } else { Step::More }
    }
}

/// A character within a JSON text.
pub fn push_escaped(c: char, out: &mut String) {
    match c {
        '"' | '\\' | ..' ' => {
            let quoted = serde_json::Value::from(c.to_string()).to_string();
            out.push_str(&quoted[1..quoted.len() - 1]);
        }
        c => out.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was written, and whether it is a value.
    fn scan(text: &str) -> (String, bool) {
        let (mut scanner, mut out) = (Scanner::new(), String::new());
        for c in text.chars() {
            if matches!(scanner.push(c, &mut out), Step::Bad | Step::DoneBefore) {
                return (out, false);
            }
        }
        (out, scanner.may_end())
    }

    #[test]
    fn what_serde_json_reads_is_a_value_and_nothing_else() {
        let values = [
            "{}",
            "[]",
            " { \"a\" : [ 1 , -0.5e+3, \"x\\u00e9\\n\\\"\", null, true, false, {} ] } ",
            "\"\\ud83d\\ude42\"",
            "0",
            "-0",
            "1.0E-7",
            "{\"a\":{\"b\":[[],[[]]]}}",
        ];
        for value in values {
            serde_json::from_str::<serde_json::Value>(value).expect(value);
            assert_eq!(scan(value.trim_end()), (value.trim_end().to_owned(), true), "{value}");
        }
        let others = [
            "{\"a\":1,}",
            "[1,]",
            "{a:1}",
            "{'a':1}",
            "[1 2]",
            "{\"a\" 1}",
            "01",
            "1.",
            ".5",
            "+1",
            "1e",
            "-",
            "tru",
            "trux",
            "nul",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\\ud83d\"",
            "\"\\ude42\"",
            "\"\\ud83d\\u0041\"",
            "[",
            "{",
            "\"",
            "]",
            "}",
            "[}",
            "{]",
            "{\"a\"}",
            "{\"a\":}",
            "{,}",
            "[,]",
            "{}{}",
            "1 2",
            "",
        ];
        for other in others {
            assert!(serde_json::from_str::<serde_json::Value>(other).is_err(), "{other}");
            assert!(!scan(other).1, "{other}");
        }
        assert!(!scan(&"[".repeat(100_000)).1);
        assert_eq!(scan("\"a\nb\u{1}\""), ("\"a\\nb\\u0001\"".to_owned(), true), "line ends are escaped");
    }

    /// Random texts of JSON's characters: both readers agree on each. Numbers may be beyond a double's.
    #[test]
    fn random_texts_are_values_where_serde_json_says_so() {
        let parts = [
            "{", "}", "[", "]", "\"", ":", ",", "a", "\\", "u", "12", "0", "-", ".", "e", "true", "null", " ",
        ];
        let mut state = 5u64;
        let mut below = |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        let mut values = 0;
        for _ in 0..200_000 {
            let text: String = (0..1 + below(6)).map(|_| parts[below(parts.len())]).collect();
            let trimmed = text.trim_end();
            let is_value = crate::text::tools::read_json(trimmed).is_ok();
            assert_eq!(scan(trimmed).1, is_value, "{trimmed:?}");
            values += usize::from(is_value);
        }
        assert!(values > 2000, "{values}");
    }
}
