//! Rules and lexemes of a grammar of characters: the largest regular parts that are safe to be lexemes.

use std::collections::{HashMap, HashSet};

use super::lexemes;
use super::parse::Expr;
use super::regular::{Inlined, non_empty, nullable};

/// Most rules that are left, and most lexemes.
const MAX_RULES: usize = 1000;
const MAX_LEXEMES: usize = 4000;

/// How often unsafe lexemes are sought before all are taken apart.
const MAX_ROUNDS: usize = 24;

/// What stands at a place of a text, in lexemes.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    Lexeme(usize),
    Rule(usize),
    Seq(Vec<Node>),
    Alt(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

/// A grammar in lexemes.
#[derive(Debug, Default)]
pub struct Split {
    /// The rules that are needed, the first being the root (number 0).
    pub rules: Vec<(usize, Node)>,
    /// None of them matches the empty text.
    pub lexemes: Vec<Expr>,
    numbers: HashMap<Expr, usize>,
}

/// Splits a grammar whose first rule is the root.
///
/// # Errors
/// Rules that no text matches, and too many rules.
pub fn split(rules: &[Expr]) -> Result<Split, String> {
    check_ends(rules)?;
    let inlined = Inlined::new(rules);
    let mut apart = HashSet::new();
    for round in 0.. {
        let split = Splitter { rules, inlined: &inlined, apart: &apart, split: Split::default() }.run()?;
        // What is one expression as a whole is followed by nothing.
        if split.rules.len() == 1 && split.lexemes.len() == 1 && is_one(&split.rules[0].1) {
            return Ok(split);
        }
        let unsafe_ones = lexemes::unsafe_ones(&split, round >= MAX_ROUNDS);
        if unsafe_ones.is_empty() {
            return Ok(split);
        }
        apart.extend(unsafe_ones.into_iter().map(|number| split.lexemes[number].clone()));
    }
    unreachable!("what is taken apart ends with single characters")
}

fn is_one(node: &Node) -> bool {
    match node {
        Node::Lexeme(_) => true,
        Node::Repeat(inner, 0, Some(1)) => is_one(inner),
        _ => false,
    }
}

/// Refuses rules that go on for ever.
fn check_ends(rules: &[Expr]) -> Result<(), String> {
    let mut ends = vec![false; rules.len()];
    loop {
        let before = ends.clone();
        // Rules mostly name those that come after them.
        for rule in (0..rules.len()).rev() {
            ends[rule] = ends[rule] || can_end(&rules[rule], &ends);
        }
        if ends.iter().all(|&ends| ends) {
            return Ok(());
        }
        if ends == before {
            return Err("it has a rule that no text of an end matches".to_owned());
        }
    }
}

fn can_end(expr: &Expr, ends: &[bool]) -> bool {
    match expr {
        Expr::Chars(_) => true,
        Expr::Rule(rule) => ends[*rule],
        Expr::Seq(list) => list.iter().all(|e| can_end(e, ends)),
        Expr::Alt(list) => list.iter().any(|e| can_end(e, ends)),
        Expr::Repeat(inner, least, _) => *least == 0 || can_end(inner, ends),
    }
}

struct Splitter<'g> {
    rules: &'g [Expr],
    inlined: &'g Inlined<'g>,
    /// Lexemes that are not safe.
    apart: &'g HashSet<Expr>,
    split: Split,
}

impl Splitter<'_> {
    fn run(mut self) -> Result<Split, String> {
        let (mut needed, mut seen) = (vec![0], HashSet::from([0]));
        while let Some(rule) = needed.pop() {
            let node = self.node(&Expr::Rule(rule), true);
            let mut named = Vec::new();
            rules_of(&node, &mut named);
            needed.extend(named.into_iter().filter(|&other| seen.insert(other)));
            self.split.rules.push((rule, node));
            if self.split.rules.len() > MAX_RULES {
                return Err(format!("over {MAX_RULES} rules are not regular, or too large to be made so"));
            }
            if self.split.lexemes.len() > MAX_LEXEMES {
                return Err(format!("it becomes over {MAX_LEXEMES} lexemes"));
            }
        }
        Ok(self.split)
    }

    /// An expression in lexemes; a rule's body where it is that of the rule itself.
    fn node(&mut self, expr: &Expr, body: bool) -> Node {
        if let Some(regular) = self.inlined.without_rules(expr) {
            return self.regular(&regular);
        }
        match expr {
            Expr::Rule(rule) if body => {
                let rules = self.rules;
                self.node(&rules[*rule], false)
            }
            Expr::Rule(rule) => Node::Rule(*rule),
            Expr::Seq(list) => Node::Seq(self.parts(list, Expr::Seq)),
            Expr::Alt(list) => {
                // Alternatives have no order.
                let (regular, others): (Vec<Expr>, Vec<Expr>) =
                    list.iter().cloned().partition(|e| self.inlined.without_rules(e).is_some());
                Node::Alt(self.parts(&[regular, others].concat(), Expr::Alt))
            }
            Expr::Repeat(inner, least, most) => {
                Node::Repeat(Box::new(self.node(inner, false)), *least, *most)
            }
            Expr::Chars(_) => self.regular(expr),
        }
    }

    /// The parts of a list, regular ones side by side as one.
    fn parts(&mut self, list: &[Expr], joined: fn(Vec<Expr>) -> Expr) -> Vec<Node> {
        let is_regular = |e: &Expr| self.inlined.without_rules(e).is_some();
        let kinds: Vec<bool> = list.iter().map(is_regular).collect();
        let mut nodes = Vec::new();
        let mut at = 0;
        while at < list.len() {
            let run = kinds[at..].iter().take_while(|&&regular| regular).count();
            let together = joined(list[at..at + run].to_vec());
            match run {
                0 => {
                    nodes.push(self.node(&list[at], false));
                    at += 1;
                }
                // The parts together may be larger than is allowed.
                _ if self.inlined.without_rules(&together).is_some() => {
                    nodes.push(self.node(&together, false));
                    at += run;
                }
                _ => {
                    nodes.extend(list[at..at + run].iter().map(|e| self.node(e, false)));
                    at += run;
                }
            }
        }
        nodes
    }

    /// An expression without rules: a lexeme, or what it is taken apart into.
    fn regular(&mut self, expr: &Expr) -> Node {
        let Some(lexeme) = non_empty(expr) else { return Node::Seq(Vec::new()) };
        if !self.apart.contains(&lexeme) {
            let node = Node::Lexeme(self.split.number(lexeme));
            return if nullable(expr) { Node::Repeat(Box::new(node), 0, Some(1)) } else { node };
        }
        match expr {
            Expr::Seq(list) => Node::Seq(list.iter().map(|e| self.regular(e)).collect()),
            Expr::Alt(list) => Node::Alt(list.iter().map(|e| self.regular(e)).collect()),
            Expr::Repeat(inner, least, most) => Node::Repeat(Box::new(self.regular(inner)), *least, *most),
            // A single character is always safe.
            Expr::Chars(_) | Expr::Rule(_) => Node::Lexeme(self.split.number(expr.clone())),
        }
    }
}

impl Split {
    fn number(&mut self, lexeme: Expr) -> usize {
        let next = self.lexemes.len();
        let number = *self.numbers.entry(lexeme.clone()).or_insert(next);
        if number == next {
            self.lexemes.push(lexeme);
        }
        number
    }
}

fn rules_of(node: &Node, found: &mut Vec<usize>) {
    match node {
        Node::Lexeme(_) => {}
        Node::Rule(rule) => found.push(*rule),
        Node::Seq(list) | Node::Alt(list) => list.iter().for_each(|node| rules_of(node, found)),
        Node::Repeat(inner, ..) => rules_of(inner, found),
    }
}
