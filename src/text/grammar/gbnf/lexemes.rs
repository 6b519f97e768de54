//! Which lexemes end where the grammar ends them.
//!
//! llguidance's lexer goes on with a lexeme as long as any that may stand at its place can take the next
//! character. That is what the grammar means where none of them could take a character that may also follow
//! the lexeme. Two lexemes may stand at one place where both follow the same lexeme, or two that match the
//! same text at one place; so some are called unsafe that are not, and never the other way round.

use std::collections::{HashMap, HashSet};

use super::chars::Chars;
use super::regular::Automaton;
use super::split::{Node, Split};

/// Characters of all lexemes together, and steps of the comparison, beyond which all are taken apart.
const MAX_PLACES: usize = 6000;
const MAX_STEPS: usize = 5_000_000;

/// The lexemes that have to be taken apart, all that can be or those that are not safe; those of one
/// character never are.
pub fn unsafe_ones(split: &Split, all_of_them: bool) -> HashSet<usize> {
    let automata: Vec<Option<Automaton>> =
        split.lexemes.iter().map(|lexeme| Automaton::of(lexeme, MAX_PLACES)).collect();
    let large = |a: &Option<Automaton>| a.as_ref().is_none_or(Automaton::is_longer);
    let all: HashSet<usize> = (0..automata.len()).filter(|&i| large(&automata[i])).collect();
    let places = automata.iter().try_fold(0, |sum, a| Some(sum + a.as_ref()?.chars.len()));
    // Of single characters there may be any number.
    if all_of_them || all.is_empty() || places.is_none_or(|places| places > MAX_PLACES) {
        return all;
    }
    let automata: Vec<Automaton> = automata.into_iter().flatten().collect();
    let context = Context::new(split);
    Comparison::new(&automata, &context).run(&context).unwrap_or(all)
}

/// Lexemes side by side.
struct Comparison<'a> {
    automata: &'a [Automaton],
    /// The characters that may follow each.
    follow: Vec<Chars>,
    steps: usize,
}

impl<'a> Comparison<'a> {
    fn new(automata: &'a [Automaton], context: &Context) -> Comparison<'a> {
        let begins = |set: &Set| {
            let mut begins = Chars::default();
            for lexeme in set.iter() {
                let automaton = &automata[lexeme];
                automaton.first.iter().for_each(|&place| {
                    begins.add(&automaton.chars[place]);
                });
            }
            begins
        };
        Comparison { automata, follow: context.follow.iter().map(begins).collect(), steps: 0 }
    }

    /// The unsafe ones of those that may stand at one place; `None` where it takes too long.
    fn run(mut self, context: &Context) -> Option<HashSet<usize>> {
        let (mut found, mut seen) = (HashSet::new(), HashSet::new());
        let start = &context.rules[&0].0;
        let mut left: Vec<(usize, usize)> =
            start.iter().flat_map(|a| start.iter().map(move |b| (a, b))).collect();
        seen.extend(left.iter().copied());
        while let Some((a, b)) = left.pop() {
            let (takes_more, same) = self.compare(a, b)?;
            if takes_more {
                found.extend([a, b].into_iter().filter(|&i| self.automata[i].is_longer()));
            }
            if same {
                let (after_a, after_b) = (&context.follow[a], &context.follow[b]);
                let pairs = after_a.iter().flat_map(|a| after_b.iter().map(move |b| (a, b)));
                for pair in pairs {
                    self.steps += 1;
                    if self.steps > MAX_STEPS {
                        return None;
                    }
                    if seen.insert(pair) {
                        left.push(pair);
                    }
                }
            }
        }
        Some(found)
    }

    /// Runs two lexemes over the texts that both begin with: whether the second could go on where the first
    /// ends and something follows it, and whether a text is both.
    fn compare(&mut self, a: usize, b: usize) -> Option<(bool, bool)> {
        let (one, other) = (&self.automata[a], &self.automata[b]);
        let (mut takes_more, mut same) = (false, false);
        let mut left = self.both(a, &one.first, b, &other.first)?;
        let mut seen: HashSet<(usize, usize)> = left.iter().copied().collect();
        while let Some((p, q)) = left.pop() {
            let next = &other.follow[q];
            if one.last.binary_search(&p).is_ok() {
                takes_more |= next.iter().any(|&q| other.chars[q].meets(&self.follow[a]));
                same |= other.last.binary_search(&q).is_ok();
            }
            let pairs = self.both(a, &one.follow[p], b, next)?;
            left.extend(pairs.into_iter().filter(|&pair| seen.insert(pair)));
        }
        Some((takes_more, same))
    }

    /// The pairs of places of two lexemes that one character may stand at.
    fn both(
        &mut self,
        a: usize,
        places: &[usize],
        b: usize,
        others: &[usize],
    ) -> Option<Vec<(usize, usize)>> {
        self.steps += 1 + places.len() * others.len();
        let (one, other) = (&self.automata[a].chars, &self.automata[b].chars);
        let pairs = places.iter().flat_map(|&p| others.iter().map(move |&q| (p, q)));
        let meeting = pairs.filter(|&(p, q)| one[p].meets(&other[q]));
        (self.steps <= MAX_STEPS).then(|| meeting.collect())
    }
}

/// A set of lexemes, a bit each.
#[derive(Clone, Debug, Default)]
struct Set(Vec<u64>);

impl Set {
    fn insert(&mut self, lexeme: usize) -> bool {
        if self.0.len() <= lexeme / 64 {
            self.0.resize(lexeme / 64 + 1, 0);
        }
        let before = self.0[lexeme / 64];
        self.0[lexeme / 64] |= 1 << (lexeme % 64);
        before != self.0[lexeme / 64]
    }

    /// Takes others in; whether there was one that it did not have.
    fn add(&mut self, other: &Set) -> bool {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        let grown = self.0.iter().zip(&other.0).any(|(own, new)| new & !own != 0);
        self.0.iter_mut().zip(&other.0).for_each(|(own, new)| *own |= new);
        grown
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        let bits = |(i, word): (usize, &u64)| {
            let word = *word;
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| i * 64 + bit)
        };
        self.0.iter().enumerate().flat_map(bits)
    }
}

/// What rules begin with and what follows lexemes.
struct Context {
    /// What may follow each lexeme.
    follow: Vec<Set>,
    /// Of each rule: what it begins with, whether it may be empty, what follows it.
    rules: HashMap<usize, (Set, bool, Set)>,
    grown: bool,
}

impl Context {
    fn new(split: &Split) -> Context {
        let rules = split.rules.iter().map(|&(rule, _)| (rule, Default::default())).collect();
        let mut context = Context { follow: vec![Set::default(); split.lexemes.len()], rules, grown: true };
        while std::mem::take(&mut context.grown) {
            for (rule, node) in split.rules.iter().rev() {
                let (begins, empty) = context.begin(node);
                let known = context.rules.entry(*rule).or_default();
                context.grown |= known.0.add(&begins) | (empty && !known.1);
                known.1 |= empty;
            }
        }
        context.grown = true;
        while std::mem::take(&mut context.grown) {
            for (rule, node) in &split.rules {
                let after = context.rules[rule].2.clone();
                context.walk(node, &after);
            }
        }
        context
    }

    /// What a node begins with, and whether it may be empty.
    fn begin(&self, node: &Node) -> (Set, bool) {
        let mut whole = Set::default();
        match node {
            Node::Lexeme(lexeme) => {
                whole.insert(*lexeme);
                (whole, false)
            }
            Node::Rule(rule) => (self.rules[rule].0.clone(), self.rules[rule].1),
            Node::Seq(list) => {
                for node in list {
                    let (begins, empty) = self.begin(node);
                    whole.add(&begins);
                    if !empty {
                        return (whole, false);
                    }
                }
                (whole, true)
            }
            Node::Alt(list) => {
                let mut any_empty = false;
                for node in list {
                    let (begins, empty) = self.begin(node);
                    whole.add(&begins);
                    any_empty |= empty;
                }
                (whole, any_empty)
            }
            Node::Repeat(inner, least, _) => {
                let (begins, empty) = self.begin(inner);
                (begins, empty || *least == 0)
            }
        }
    }

    /// Takes note of what follows the parts of a node that is followed by this.
    fn walk(&mut self, node: &Node, after: &Set) {
        match node {
            Node::Lexeme(lexeme) => self.grown |= self.follow[*lexeme].add(after),
            Node::Rule(rule) => {
                let known = self.rules.entry(*rule).or_default();
                self.grown |= known.2.add(after);
            }
            Node::Seq(list) => {
                let mut after = after.clone();
                for node in list.iter().rev() {
                    self.walk(node, &after);
                    let (begins, empty) = self.begin(node);
                    if !empty {
                        after = Set::default();
                    }
                    after.add(&begins);
                }
            }
            Node::Alt(list) => list.iter().for_each(|node| self.walk(node, after)),
            Node::Repeat(inner, _, most) => {
                let mut after = after.clone();
                if *most != Some(1) {
                    after.add(&self.begin(inner).0);
                }
                self.walk(inner, &after);
            }
        }
    }
}
