//! Which lexemes end where the grammar ends them.
//!
//! llguidance's lexer goes on with a lexeme as long as any that it may be can take the next character. That is
//! what the grammar means where no lexeme, or another that begins alike, could take a character that may
//! also follow it. All lexemes count as possible everywhere, so that some are called unsafe that are not.

use std::collections::{HashMap, HashSet};

use super::chars::Chars;
use super::regular::Automaton;
use super::split::{Node, Split};

/// Characters of all lexemes together, and steps of the comparison, beyond which the largest is taken apart.
const MAX_PLACES: usize = 6000;
const MAX_STEPS: usize = 20_000_000;

/// The lexemes that have to be taken apart; those of one character never are.
pub fn unsafe_ones(split: &Split) -> HashSet<usize> {
    let automata: Vec<Option<Automaton>> =
        split.lexemes.iter().map(|lexeme| Automaton::of(lexeme, MAX_PLACES)).collect();
    let too_large: HashSet<usize> = (0..automata.len()).filter(|&i| automata[i].is_none()).collect();
    if !too_large.is_empty() {
        return too_large;
    }
    let automata: Vec<Automaton> = automata.into_iter().flatten().collect();
    let places: usize = automata.iter().map(|a| a.chars.len()).sum();
    let largest = (0..automata.len()).max_by_key(|&i| automata[i].chars.len()).into_iter();
    let largest: HashSet<usize> = largest.filter(|&i| automata[i].chars.len() > 1).collect();
    // Of single characters there may be any number.
    if places > MAX_PLACES || largest.is_empty() {
        return largest;
    }
    let follow = Context::new(split, &automata).follow;
    compare(&automata, &follow).unwrap_or(largest)
}

/// Runs every pair of lexemes over the texts that both begin with; `None` where that takes too long.
fn compare(automata: &[Automaton], follow: &[Chars]) -> Option<HashSet<usize>> {
    let mut found = HashSet::new();
    let mut steps = 0;
    for (a, one) in automata.iter().enumerate() {
        for (b, other) in automata.iter().enumerate() {
            let is_last: HashSet<usize> = one.last.iter().copied().collect();
            let mut left = both(&one.chars, &one.first, &other.chars, &other.first, &mut steps)?;
            let mut seen: HashSet<(usize, usize)> = left.iter().copied().collect();
            while let Some((p, q)) = left.pop() {
                let next = &other.follow[q];
                if is_last.contains(&p) && next.iter().any(|&q| other.chars[q].meets(&follow[a])) {
                    found.extend([a, b].into_iter().filter(|&i| automata[i].chars.len() > 1));
                    break;
                }
                let pairs = both(&one.chars, &one.follow[p], &other.chars, next, &mut steps)?;
                left.extend(pairs.into_iter().filter(|&pair| seen.insert(pair)));
            }
        }
    }
    Some(found)
}

/// The pairs of places that one character may stand at.
fn both(
    chars: &[Chars],
    places: &[usize],
    other_chars: &[Chars],
    others: &[usize],
    steps: &mut usize,
) -> Option<Vec<(usize, usize)>> {
    *steps += 1 + places.len() * others.len();
    let pairs = places.iter().flat_map(|&p| others.iter().map(move |&q| (p, q)));
    let meeting = pairs.filter(|&(p, q)| chars[p].meets(&other_chars[q]));
    (*steps <= MAX_STEPS).then(|| meeting.collect())
}

/// What rules begin with and what follows lexemes, as sets of characters.
struct Context {
    /// Of each lexeme.
    begins: Vec<Chars>,
    follow: Vec<Chars>,
    /// Of each rule: what it begins with, whether it may be empty, what follows it.
    rules: HashMap<usize, (Chars, bool, Chars)>,
    grown: bool,
}

impl Context {
    fn new(split: &Split, automata: &[Automaton]) -> Context {
        let begins = automata.iter().map(|automaton| {
            let mut begins = Chars::default();
            automaton.first.iter().for_each(|&place| {
                begins.add(&automaton.chars[place]);
            });
            begins
        });
        let rules = split.rules.iter().map(|&(rule, _)| (rule, Default::default())).collect();
        let follow = vec![Chars::default(); automata.len()];
        let mut context = Context { begins: begins.collect(), follow, rules, grown: true };
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
    fn begin(&self, node: &Node) -> (Chars, bool) {
        match node {
            Node::Lexeme(lexeme) => (self.begins[*lexeme].clone(), false),
            Node::Rule(rule) => (self.rules[rule].0.clone(), self.rules[rule].1),
            Node::Seq(list) => self.begin_of(list),
            Node::Alt(list) => {
                let mut whole = (Chars::default(), false);
                for node in list {
                    let (begins, empty) = self.begin(node);
                    whole.0.add(&begins);
                    whole.1 |= empty;
                }
                whole
            }
            Node::Repeat(inner, least, _) => {
                let (begins, empty) = self.begin(inner);
                (begins, empty || *least == 0)
            }
        }
    }

    fn begin_of(&self, list: &[Node]) -> (Chars, bool) {
        let mut begins = Chars::default();
        for node in list {
            let (own, empty) = self.begin(node);
            begins.add(&own);
            if !empty {
                return (begins, false);
            }
        }
        (begins, true)
    }

    /// Takes note of what follows the parts of a node that is followed by this.
    fn walk(&mut self, node: &Node, after: &Chars) {
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
                        after = Chars::default();
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
