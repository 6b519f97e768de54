//! GBNF, the grammars of llama.cpp, as Lark.
//!
//! GBNF knows characters alone, where llguidance's Lark has lexemes, of which each takes all the characters
//! that it can: `[a-z]+ "end"` would never end. So a rule without recursion becomes one regular expression,
//! and elsewhere a lexeme stands only for what ends at the same place either way (`split`): none of the
//! characters that may follow it could be taken by it, or by another lexeme that begins alike. What does
//! not fulfil that is taken apart, down to single characters where need be. So the texts are the same.

mod chars;
mod lexemes;
mod parse;
mod regular;
mod split;
#[cfg(test)]
mod tests;

use std::fmt::Write;

use super::check_len;
use crate::text::TextError;
use split::Node;

const KIND: &str = "GBNF grammar";

/// Whether a text is GBNF rather than Lark: whether it has a rule `root ::=`.
pub fn looks_like(text: &str) -> bool {
    text.lines().any(|line| {
        line.trim_start().strip_prefix("root").is_some_and(|rest| rest.trim_start().starts_with("::="))
    })
}

/// The Lark grammar of the same texts.
///
/// # Errors
/// What is wrong, not supported, or too large, with its place.
pub fn to_lark(text: &str) -> Result<String, TextError> {
    check_len(KIND, text.len(), super::MAX_BYTES)?;
    let refused = |reason: String| TextError::Grammar { kind: KIND, reason };
    let rules = parse::parse(text).map_err(refused)?;
    let grammar = split::split(&rules).map_err(refused)?;
    let mut lark = Lark::default();
    for (number, body) in &grammar.rules {
        let name = if *number == 0 { "start".to_owned() } else { format!("r{number}") };
        let body = lark.body(body);
        lark.rule(&name, &body);
    }
    for (number, lexeme) in grammar.lexemes.iter().enumerate() {
        let mut expression = String::new();
        regular::write(lexeme, &mut expression);
        let _ = writeln!(lark.text, "L{number}: /{expression}/");
    }
    match lark.text.len() > MAX_LARK {
        true => Err(refused(format!("it becomes {} bytes of Lark, more than {MAX_LARK}", lark.text.len()))),
        false => Ok(lark.text),
    }
}

/// Bytes of the longest Lark grammar that comes of it.
const MAX_LARK: usize = 1 << 20;

/// A Lark grammar under way. Groups are rules of their own: Lark allows few brackets within brackets.
#[derive(Default)]
struct Lark {
    text: String,
    groups: usize,
}

impl Lark {
    fn rule(&mut self, name: &str, body: &str) {
        let _ = writeln!(self.text, "{name}: {body}");
    }

    /// A node as the body of a rule.
    fn body(&mut self, node: &Node) -> String {
        match node {
            Node::Alt(list) => list.iter().map(|node| self.sequence(node)).collect::<Vec<_>>().join(" | "),
            _ => self.sequence(node),
        }
    }

    fn sequence(&mut self, node: &Node) -> String {
        match node {
            Node::Seq(list) if list.is_empty() => "\"\"".to_owned(),
            Node::Seq(list) => list.iter().map(|node| self.item(node)).collect::<Vec<_>>().join(" "),
            _ => self.item(node),
        }
    }

    fn item(&mut self, node: &Node) -> String {
        match node {
            Node::Lexeme(lexeme) => format!("L{lexeme}"),
            Node::Rule(0) => "start".to_owned(),
            Node::Rule(rule) => format!("r{rule}"),
            Node::Repeat(inner, least, most) => {
                // One sign of repetition at a place.
                let again = matches!(**inner, Node::Repeat(..));
                let inner = if again { self.group(inner) } else { self.item(inner) };
                match (least, most) {
                    (0, Some(1)) => format!("{inner}?"),
                    (0, None) => format!("{inner}*"),
                    (1, None) => format!("{inner}+"),
                    (least, None) => format!("{inner}{{{least},}}"),
                    (least, Some(most)) => format!("{inner}{{{least},{most}}}"),
                }
            }
            Node::Seq(_) | Node::Alt(_) => self.group(node),
        }
    }

    /// A node as a rule of its own.
    fn group(&mut self, node: &Node) -> String {
        let body = self.body(node);
        self.groups += 1;
        let name = format!("g{}", self.groups);
        self.rule(&name, &body);
        name
    }
}
