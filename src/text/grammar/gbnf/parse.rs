//! GBNF as llama.cpp reads it (its `grammars/README.md` and `llama-grammar.cpp`).

use std::collections::HashMap;

use super::chars::Chars;

/// Brackets within brackets at most.
const MAX_NESTING: usize = 64;

/// Most repetitions of an item, as in llama.cpp.
const MAX_REPEAT: u32 = 2000;

/// What may stand at a place of a text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// One character of a set.
    Chars(Chars),
    /// The rule of this number.
    Rule(usize),
    Seq(Vec<Expr>),
    Alt(Vec<Expr>),
    /// At least so often, and at most.
    Repeat(Box<Expr>, u32, Option<u32>),
}

impl Expr {
    pub fn empty() -> Expr {
        Expr::Seq(Vec::new())
    }
}

/// The rules of a grammar, the first one being `root`.
///
/// # Errors
/// What is wrong or not supported, with line and column.
pub fn parse(text: &str) -> Result<Vec<Expr>, String> {
    let mut parser = Parser { text, at: 0, names: HashMap::new(), rules: Vec::new() };
    parser.rule_named("root");
    parser.space(true);
    while parser.peek().is_some() {
        parser.rule()?;
    }
    let undefined = parser.rules.iter().position(Option::is_none);
    match undefined.and_then(|i| parser.names.iter().find(|(_, number)| **number == i)) {
        Some((name, _)) => Err(format!("the rule \"{name}\" is not defined")),
        None => Ok(parser.rules.into_iter().flatten().collect()),
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    names: HashMap<&'t str, usize>,
    rules: Vec<Option<Expr>>,
}

impl<'t> Parser<'t> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Result<char, String> {
        let c = self.peek().ok_or_else(|| self.wrong("the text ends too early"))?;
        self.at += c.len_utf8();
        Ok(c)
    }

    fn take(&mut self, text: &str) -> bool {
        let there = self.text[self.at..].starts_with(text);
        self.at += if there { text.len() } else { 0 };
        there
    }

    fn expect(&mut self, text: &str) -> Result<(), String> {
        if self.take(text) { Ok(()) } else { Err(self.wrong(&format!("\"{text}\" is expected"))) }
    }

    fn wrong(&self, what: &str) -> String {
        let before = &self.text[..self.at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        format!("{what} (line {line}, column {column})")
    }

    /// Goes over white space and comments.
    fn space(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.at += 1,
                '\r' | '\n' if lines => self.at += 1,
                '#' => {
                    self.at += self.text[self.at..].find(['\r', '\n']).unwrap_or(self.text.len() - self.at)
                }
                _ => return,
            }
        }
    }

    fn name(&mut self) -> Result<&'t str, String> {
        let rest = &self.text[self.at..];
        // Underscores as well: many grammars have them, and nothing else can be meant.
        let len = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"-_".contains(c)).unwrap_or(rest.len());
        if len == 0 {
            return Err(self.wrong("a name is expected"));
        }
        self.at += len;
        Ok(&rest[..len])
    }

    /// The number of a rule.
    fn rule_named(&mut self, name: &'t str) -> usize {
        let number = *self.names.entry(name).or_insert(self.rules.len());
        if number == self.rules.len() {
            self.rules.push(None);
        }
        number
    }

    fn rule(&mut self) -> Result<(), String> {
        let name = self.name()?;
        self.space(false);
        self.expect("::=")?;
        self.space(true);
        let number = self.rule_named(name);
        let body = self.alternatives(0)?;
        if self.peek().is_some_and(|c| !"\r\n".contains(c)) {
            return Err(self.wrong("the rule goes on with what is not of GBNF"));
        }
        self.space(true);
        // The last one counts, as in llama.cpp.
        self.rules[number] = Some(body);
        Ok(())
    }

    fn alternatives(&mut self, nesting: usize) -> Result<Expr, String> {
        if nesting > MAX_NESTING {
            return Err(
                self.wrong(&format!("over {MAX_NESTING} brackets within each other are not supported"))
            );
        }
        let mut alternatives = vec![self.sequence(nesting)?];
        while self.take("|") {
            self.space(true);
            alternatives.push(self.sequence(nesting)?);
        }
        Ok(if alternatives.len() == 1 { alternatives.remove(0) } else { Expr::Alt(alternatives) })
    }

    fn sequence(&mut self, nesting: usize) -> Result<Expr, String> {
        let mut items = Vec::new();
        while let Some(c) = self.peek() {
            let item = match c {
                '"' => self.literal()?,
                '[' => Expr::Chars(self.class()?),
                '(' => {
                    self.at += 1;
                    self.space(true);
                    let group = self.alternatives(nesting + 1)?;
                    self.expect(")")?;
                    group
                }
                '.' => {
                    self.at += 1;
                    Expr::Chars(Chars::all())
                }
                '<' | '!' => return Err(self.wrong("tokens (<name>, <[id]>, !<..>) are not supported")),
                '*' | '+' | '?' | '{' => {
                    let (least, most) = self.repetition(c)?;
                    let item = items.pop().ok_or_else(|| self.wrong("there is nothing to repeat"))?;
                    Expr::Repeat(Box::new(item), least, most)
                }
                c if c.is_ascii_alphanumeric() || c == '-' || c == '_' => {
                    let name = self.name()?;
                    Expr::Rule(self.rule_named(name))
                }
                _ => break,
            };
            items.push(item);
            self.space(nesting > 0);
        }
        Ok(if items.len() == 1 { items.remove(0) } else { Expr::Seq(items) })
    }

    fn literal(&mut self) -> Result<Expr, String> {
        self.at += 1;
        let mut chars = Vec::new();
        while !self.take("\"") {
            let c = self.character()?;
            let c = char::from_u32(c).ok_or_else(|| self.wrong("a surrogate is no character"))?;
            chars.push(Expr::Chars(Chars::one(c)));
        }
        Ok(Expr::Seq(chars))
    }

    fn class(&mut self) -> Result<Chars, String> {
        self.at += 1;
        let negated = self.take("^");
        let mut ranges = Vec::new();
        while !self.take("]") {
            let low = self.character()?;
            let rest = &self.text[self.at..];
            let mut high = low;
            if rest.starts_with('-') && !rest.starts_with("-]") {
                self.at += 1;
                high = self.character()?;
            }
            if high < low {
                return Err(self.wrong("a range of characters ends before it begins"));
            }
            ranges.push((low, high));
        }
        let set = Chars::of(ranges);
        let set = if negated { set.not() } else { set };
        if set.is_empty() { Err(self.wrong("a class that no character is of")) } else { Ok(set) }
    }

    /// A character, perhaps escaped.
    fn character(&mut self) -> Result<u32, String> {
        let c = self.next()?;
        if c != '\\' {
            return Ok(c.into());
        }
        let digits = match self.next()? {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            't' => return Ok(9),
            'r' => return Ok(13),
            'n' => return Ok(10),
            c @ ('\\' | '"' | '[' | ']') => return Ok(c.into()),
            c => return Err(self.wrong(&format!("the escape \\{c} is not known"))),
        };
        let hex = self.text[self.at..].get(..digits).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let code = hex.and_then(|hex| u32::from_str_radix(hex, 16).ok()).filter(|&code| code <= 0x10_FFFF);
        let code = code.ok_or_else(|| self.wrong(&format!("{digits} hexadecimal digits are expected")))?;
        self.at += digits;
        Ok(code)
    }

    fn repetition(&mut self, sign: char) -> Result<(u32, Option<u32>), String> {
        self.at += 1;
        match sign {
            '*' => return Ok((0, None)),
            '+' => return Ok((1, None)),
            '?' => return Ok((0, Some(1))),
            _ => self.space(false),
        }
        let least = self.number()?;
        self.space(false);
        let mut most = Some(least);
        if self.take(",") {
            self.space(false);
            most = if self.peek() == Some('}') { None } else { Some(self.number()?) };
            self.space(false);
        }
        self.expect("}")?;
        match most {
            Some(most) if most < least => Err(self.wrong("a repetition ends before it begins")),
            _ => Ok((least, most)),
        }
    }

    fn number(&mut self) -> Result<u32, String> {
        let rest = &self.text[self.at..];
        let len = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number = rest[..len].parse().ok().filter(|&number| number <= MAX_REPEAT);
        let number = number.ok_or_else(|| self.wrong(&format!("a number up to {MAX_REPEAT} is expected")))?;
        self.at += len;
        Ok(number)
    }
}
