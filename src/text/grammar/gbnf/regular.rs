//! Rules that are regular expressions: those that do not come back to themselves but at their ends.

use std::cell::Cell;

use super::chars::Chars;
use super::parse::Expr;

/// Characters of the largest expression that a rule is put into others as, and levels of the deepest.
const MAX_POSITIONS: usize = 4000;
const MAX_DEPTH: usize = 60;

/// Characters of all rules together that are put into others.
const MAX_COPIED: usize = 500_000;

/// The rules of a grammar, and what each is as an expression without rules.
pub struct Inlined<'r> {
    rules: &'r [Expr],
    done: Vec<State>,
    copied: Cell<usize>,
}

#[derive(Clone)]
enum State {
    New,
    Begun,
    Done(Option<Expr>),
}

impl<'r> Inlined<'r> {
    pub fn new(rules: &'r [Expr]) -> Inlined<'r> {
        let mut inlined = Inlined { rules, done: vec![State::New; rules.len()], copied: Cell::new(0) };
        (0..rules.len()).for_each(|rule| inlined.visit(rule));
        inlined
    }

    /// Visits what a rule refers to first, without recursion: chains may be long.
    fn visit(&mut self, rule: usize) {
        let mut path = vec![rule];
        while let Some(&rule) = path.last() {
            if matches!(self.done[rule], State::Done(_)) {
                path.pop();
                continue;
            }
            let first = matches!(self.done[rule], State::New);
            self.done[rule] = State::Begun;
            let mut named = Vec::new();
            names(&self.rules[rule], &mut named);
            let new = named.iter().filter(|&&other| matches!(self.done[other], State::New));
            let before = path.len();
            path.extend(new.copied().collect::<Vec<_>>());
            if path.len() == before || !first {
                path.truncate(before - 1);
                let own = self.without_rules(&self.rules[rule]);
                let own = own.or_else(|| self.right_linear(rule));
                let fits = |expr: &Expr| measure(expr, MAX_DEPTH).is_some_and(|size| size <= MAX_POSITIONS);
                self.done[rule] = State::Done(own.filter(fits));
            }
        }
    }

    /// An expression with the rules that it names put in their places, where all of them are regular and the
    /// whole has a size that is allowed.
    pub fn without_rules(&self, expr: &Expr) -> Option<Expr> {
        let all = |list: &[Expr]| list.iter().map(|e| self.without_rules(e)).collect::<Option<Vec<_>>>();
        let whole = match expr {
            Expr::Chars(_) => expr.clone(),
            Expr::Rule(rule) => match &self.done[*rule] {
                State::Done(Some(inlined)) if self.copied.get() < MAX_COPIED => {
                    self.copied.set(self.copied.get() + measure(inlined, MAX_DEPTH)?);
                    inlined.clone()
                }
                _ => return None,
            },
            Expr::Seq(list) => Expr::Seq(all(list)?),
            Expr::Alt(list) => Expr::Alt(all(list)?),
            Expr::Repeat(inner, least, most) => {
                Expr::Repeat(Box::new(self.without_rules(inner)?), *least, *most)
            }
        };
        // Rules twice in each other grow fast.
        measure(&whole, MAX_DEPTH).filter(|&size| size <= MAX_POSITIONS).map(|_| whole)
    }

    /// A rule that names itself at the ends of its alternatives alone, as `ws ::= (" " ws)?` does: what comes
    /// before repeats.
    fn right_linear(&self, rule: usize) -> Option<Expr> {
        let (mut again, mut last) = (Vec::new(), Vec::new());
        let mut left = vec![&self.rules[rule]];
        while let Some(expr) = left.pop() {
            match expr {
                Expr::Alt(list) => left.extend(list),
                Expr::Repeat(inner, 0, Some(1)) => {
                    last.push(Expr::empty());
                    left.push(inner);
                }
                Expr::Seq(list) if list.last() == Some(&Expr::Rule(rule)) => {
                    again.push(self.without_rules(&Expr::Seq(list[..list.len() - 1].to_vec()))?);
                }
                other => last.push(self.without_rules(other)?),
            }
        }
        if last.is_empty() {
            return None; // it has no end
        }
        let again = Expr::Repeat(Box::new(Expr::Alt(again)), 0, None);
        Some(Expr::Seq(vec![again, Expr::Alt(last)]))
    }
}

/// The rules that an expression names.
fn names(expr: &Expr, found: &mut Vec<usize>) {
    match expr {
        Expr::Chars(_) => {}
        Expr::Rule(rule) => found.push(*rule),
        Expr::Seq(list) | Expr::Alt(list) => list.iter().for_each(|e| names(e, found)),
        Expr::Repeat(inner, ..) => names(inner, found),
    }
}

/// How many characters an expression is written with when its repetitions are written out; `None` where it is
/// deeper than allowed.
fn measure(expr: &Expr, depth: usize) -> Option<usize> {
    let depth = depth.checked_sub(1)?;
    let sum =
        |list: &[Expr]| list.iter().try_fold(0usize, |sum, e| Some(sum.saturating_add(measure(e, depth)?)));
    match expr {
        Expr::Chars(_) | Expr::Rule(_) => Some(1),
        Expr::Seq(list) | Expr::Alt(list) => sum(list),
        Expr::Repeat(inner, least, most) => {
            Some(measure(inner, depth)?.saturating_mul(most.unwrap_or(*least).max(1) as usize))
        }
    }
}

/// Whether an expression without rules matches the empty text.
pub fn nullable(expr: &Expr) -> bool {
    match expr {
        Expr::Chars(_) | Expr::Rule(_) => false,
        Expr::Seq(list) => list.iter().all(nullable),
        Expr::Alt(list) => list.iter().any(nullable),
        Expr::Repeat(inner, least, most) => *least == 0 || *most == Some(0) || nullable(inner),
    }
}

/// What an expression without rules matches but for the empty text; `None` where that is nothing.
pub fn non_empty(expr: &Expr) -> Option<Expr> {
    if !nullable(expr) {
        return Some(expr.clone());
    }
    match expr {
        Expr::Chars(_) | Expr::Rule(_) => Some(expr.clone()),
        // The first part that is not empty, and the rest as it is.
        Expr::Seq(list) => {
            let from = |i: usize| {
                let first = non_empty(&list[i])?;
                Some(Expr::Seq([&[first], &list[i + 1..]].concat()))
            };
            alternatives((0..list.len()).filter_map(from).collect())
        }
        Expr::Alt(list) => alternatives(list.iter().filter_map(non_empty).collect()),
        Expr::Repeat(_, _, Some(0)) => None,
        Expr::Repeat(inner, _, most) => {
            let first = non_empty(inner)?;
            // As what is repeated may be empty, or need not be there, the least number does not count.
            let rest = Expr::Repeat(Box::new(first.clone()), 0, most.map(|most| most - 1));
            Some(Expr::Seq(vec![first, rest]))
        }
    }
}

fn alternatives(mut list: Vec<Expr>) -> Option<Expr> {
    if list.len() > 1 { Some(Expr::Alt(list)) } else { list.pop() }
}

/// Writes an expression without rules as a regular expression.
pub fn write(expr: &Expr, out: &mut String) {
    match expr {
        Expr::Chars(set) => set.write(out),
        Expr::Rule(_) => unreachable!("rules have been put in"),
        Expr::Seq(list) => list.iter().for_each(|e| write(e, out)),
        Expr::Alt(list) => {
            out.push_str("(?:");
            for (i, e) in list.iter().enumerate() {
                out.push_str(if i > 0 { "|" } else { "" });
                write(e, out);
            }
            out.push(')');
        }
        Expr::Repeat(inner, least, most) => {
            out.push_str("(?:");
            write(inner, out);
            match most {
                Some(most) => out.push_str(&format!("){{{least},{most}}}")),
                None => out.push_str(&format!("){{{least},}}")),
            }
        }
    }
}

/// An expression without rules as an automaton: the places of its characters, and what follows each
/// (Glushkov's construction).
#[derive(Debug, Default)]
pub struct Automaton {
    pub chars: Vec<Chars>,
    pub first: Vec<usize>,
    /// In rising order.
    pub last: Vec<usize>,
    pub follow: Vec<Vec<usize>>,
}

impl Automaton {
    /// `None` where it would have more places or more ways between them than allowed.
    pub fn of(expr: &Expr, max: usize) -> Option<Automaton> {
        let mut automaton = Automaton::default();
        let (first, mut last, _) = automaton.add(expr, max)?;
        last.sort_unstable();
        for follow in &mut automaton.follow {
            follow.sort_unstable();
            follow.dedup();
        }
        (automaton.first, automaton.last) = (first, last);
        Some(automaton)
    }

    /// Whether it matches more than single characters.
    pub fn is_longer(&self) -> bool {
        self.chars.len() > 1 || self.follow.iter().any(|follow| !follow.is_empty())
    }

    /// Adds the places of an expression: its first ones, its last ones, and whether it may be empty.
    fn add(&mut self, expr: &Expr, max: usize) -> Option<(Vec<usize>, Vec<usize>, bool)> {
        match expr {
            Expr::Chars(set) => {
                self.chars.push(set.clone());
                self.follow.push(Vec::new());
                let place = self.chars.len() - 1;
                (place < max).then(|| (vec![place], vec![place], false))
            }
            Expr::Rule(_) => None,
            Expr::Seq(list) => {
                let mut whole = (Vec::new(), Vec::new(), true);
                for e in list {
                    let next = self.add(e, max)?;
                    whole = self.joined(whole, next, max)?;
                }
                Some(whole)
            }
            Expr::Alt(list) => {
                let mut whole = (Vec::new(), Vec::new(), false);
                for e in list {
                    let (first, last, empty) = self.add(e, max)?;
                    whole.0.extend(first);
                    whole.1.extend(last);
                    whole.2 |= empty;
                }
                Some(whole)
            }
            Expr::Repeat(inner, least, most) => match nullable(inner) {
                // What may be empty may be left out as well.
                true => match non_empty(inner) {
                    Some(inner) => self.repeat(&inner, 0, *most, max),
                    None => Some((Vec::new(), Vec::new(), true)),
                },
                false => self.repeat(inner, *least, *most, max),
            },
        }
    }

    /// Adds what is not empty several times over: each time goes on from the one before it alone.
    fn repeat(
        &mut self,
        inner: &Expr,
        least: u32,
        most: Option<u32>,
        max: usize,
    ) -> Option<(Vec<usize>, Vec<usize>, bool)> {
        let (mut first, mut last, mut before) = (Vec::new(), Vec::new(), Vec::new());
        let times = most.unwrap_or(least.max(1));
        for time in 1..=times {
            let (begins, ends, _) = self.add(inner, max)?;
            self.link(&before, &begins, max)?;
            if time == times && most.is_none() {
                self.link(&ends, &begins, max)?;
            }
            if time >= least {
                last.extend(&ends);
            }
            if time == 1 {
                first = begins;
            }
            before = ends;
        }
        Some((first, last, least == 0))
    }

    fn joined(
        &mut self,
        a: (Vec<usize>, Vec<usize>, bool),
        b: (Vec<usize>, Vec<usize>, bool),
        max: usize,
    ) -> Option<(Vec<usize>, Vec<usize>, bool)> {
        self.link(&a.1, &b.0, max)?;
        let first = if a.2 { [a.0, b.0.clone()].concat() } else { a.0 };
        let last = if b.2 { [a.1, b.1].concat() } else { b.1 };
        Some((first, last, a.2 && b.2))
    }

    fn link(&mut self, from: &[usize], to: &[usize], max: usize) -> Option<()> {
        for &place in from {
            self.follow[place].extend(to);
            if self.follow[place].len() > 8 * max {
                return None;
            }
        }
        Some(())
    }
}
