//! Arguments of a call, each format's made into JSON.

use serde_json::Value as Json;

use super::{Calls, Found, MAX_NAME, MAX_WRITTEN, State};
use crate::text::tools::formats::{Body, GEMMA_QUOTE, Parameters};
use crate::text::tools::scan::{Scanner, Step, push_escaped};
use crate::text::tools::types::{self, Kinds};
use crate::text::tools::{AnswerPart, elements, overlap};

/// A parameter's value under way.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) kinds: Kinds,
    /// Nothing of it has been taken.
    first: bool,
}

/// An object as Gemma writes it.
#[derive(Clone, Debug, Default)]
pub(super) struct Dict {
    scanner: Scanner,
    in_text: bool,
}

impl Calls {
    pub(super) fn json(&mut self, mut scanner: Scanner, out: &mut Vec<AnswerPart>) -> bool {
        if self.held.is_empty() {
            return self.wait(State::Json(scanner));
        }
        self.give_name(out);
        let (mut delta, mut taken, mut last) = (String::new(), 0, Step::More);
        for c in self.held.chars() {
            last = scanner.push(c, &mut delta);
            if matches!(last, Step::Bad | Step::DoneBefore) {
                break;
            }
            taken += c.len_utf8();
            if last == Step::Done {
                break;
            }
        }
        self.take(taken);
        self.give_arguments(&delta, out);
        match last {
            Step::More => self.wait(State::Json(scanner)),
            Step::Done => self.go(State::Behind),
            Step::Bad | Step::DoneBefore => self.fail(out),
        }
    }

    pub(super) fn behind(&mut self) -> bool {
        let Body::Json([_, close]) = self.layout.body else { return self.go(State::End) };
        if close.is_empty() {
            return self.go(State::End);
        }
        match self.expect(&[close]) {
            Found::Wait => self.wait(State::Behind),
            Found::This(_) | Found::Other => self.go(State::End),
        }
    }

    pub(super) fn parameters(&mut self, out: &mut Vec<AnswerPart>) -> bool {
        let Body::Parameters(Parameters { key, .. }) = self.layout.body else { return self.fail(out) };
        match self.expect(&[key, self.layout.call[1]]) {
            Found::This(0) => self.go(State::Key),
            Found::This(_) => {
                self.give_arguments(if self.parameters > 0 { "}" } else { "{}" }, out);
                self.commit(out);
                true
            }
            Found::Wait => self.wait(State::Parameters),
            Found::Other => self.fail(out),
        }
    }

    /// Takes elements, each once it has come whole.
    pub(super) fn elements(&mut self, out: &mut Vec<AnswerPart>) -> bool {
        let Body::Elements(mark) = self.layout.body else { return self.fail(out) };
        match self.expect(&[self.layout.call[1]]) {
            Found::This(_) => {
                self.give_arguments(if self.parameters > 0 { "}" } else { "{}" }, out);
                self.commit(out);
                return true;
            }
            Found::Wait => return self.wait(State::Elements),
            Found::Other => {}
        }
        let Some(tag) = self.held.strip_prefix(mark).and_then(|rest| rest.strip_prefix('<')) else {
            let begins = format!("{mark}<").starts_with(&self.held);
            return if begins { self.wait(State::Elements) } else { self.fail(out) };
        };
        let key = tag.split('>').next().unwrap_or_default();
        if key.len() > MAX_NAME || key.contains(['<', '/', '\n', '"']) || tag.starts_with('>') {
            return self.fail(out);
        }
        let Some((key, inner, behind)) = elements::first(&self.held, mark) else {
            return self.wait(State::Elements);
        };
        let value = match self.tools.schema(&self.name, key) {
            Some((schema, root)) => elements::value(inner, mark, schema, root),
            None => elements::value(inner, mark, &Json::Null, &Json::Null),
        };
        let open = if self.parameters > 0 { "," } else { "{" };
        let delta = format!("{open}{}:{value}", Json::from(key));
        let len = self.held.len() - behind.len();
        self.parameters += 1;
        self.take(len);
        self.give_arguments(&delta, out);
        self.go(State::Elements)
    }

    pub(super) fn key(&mut self, out: &mut Vec<AnswerPart>) -> bool {
        let Body::Parameters(Parameters { key_ends, .. }) = &self.layout.body else { return self.fail(out) };
        let ends: Vec<&str> = key_ends.iter().map(|(end, _)| *end).collect();
        let (at, which) = match self.find(&ends) {
            Some((at, which)) if at <= MAX_WRITTEN => (at, which),
            None if self.held.len() <= MAX_WRITTEN => return self.wait(State::Key),
            _ => return self.fail(out),
        };
        let key = self.held[..at].trim().to_owned();
        if key.is_empty() || key.len() > MAX_NAME || key.contains(['\n', '<', '>']) {
            return self.fail(out);
        }
        let kinds = key_ends[which].1.kinds(self.tools.kinds(&self.name, &key));
        self.take(at + ends[which].len());
        self.go(State::Open(key, kinds))
    }

    pub(super) fn open(&mut self, key: String, kinds: Kinds, out: &mut Vec<AnswerPart>) -> bool {
        let Body::Parameters(Parameters { open, .. }) = self.layout.body else { return self.fail(out) };
        if !open.is_empty() {
            match self.expect(&[open]) {
                Found::This(_) => {}
                Found::Wait => return self.wait(State::Open(key, kinds)),
                Found::Other => return self.fail(out),
            }
        }
        let mut prefix = if self.parameters > 0 { ",\"" } else { "{\"" }.to_owned();
        key.chars().for_each(|c| push_escaped(c, &mut prefix));
        prefix.push_str(if kinds.is_text() { "\":\"" } else { "\":" });
        self.parameters += 1;
        self.give_arguments(&prefix, out);
        self.go(State::Value(Value { kinds, first: true }))
    }

    pub(super) fn value(&mut self, mut value: Value, out: &mut Vec<AnswerPart>) -> bool {
        let Body::Parameters(Parameters { end, lines, .. }) = self.layout.body else { return self.fail(out) };
        let Some(first) = self.held.chars().next() else { return self.wait(State::Value(value)) };
        if value.first && lines && first == '\n' {
            self.take(1);
        }
        value.first = false;
        let found = self.held.find(end);
        if !value.kinds.is_text() && found.is_none() {
            return self.wait(State::Value(value));
        }
        let certain = found.unwrap_or_else(|| self.held.len() - overlap(&self.held, end));
        let text = &self.held[..certain];
        let text = if lines { text.strip_suffix('\n').unwrap_or(text) } else { text }.to_owned();
        if value.kinds.is_text() {
            // The line end before the mark is not the value's, and may be the last that has come.
            self.take(if found.is_some() { certain + end.len() } else { text.len() });
            self.give_escaped(&text, out);
            if found.is_none() {
                return self.wait(State::Value(value));
            }
            self.give_arguments("\"", out);
        } else {
            self.take(certain + end.len());
            self.give_arguments(&types::value(&text, value.kinds), out);
        }
        self.go(State::Parameters)
    }

    pub(super) fn dict(&mut self, mut dict: Dict, out: &mut Vec<AnswerPart>) -> bool {
        let (mut delta, mut last) = (String::new(), Step::More);
        while last == Step::More {
            if dict.in_text {
                let mark = self.held.find(GEMMA_QUOTE);
                let certain = mark.unwrap_or_else(|| self.held.len() - overlap(&self.held, GEMMA_QUOTE));
                let mut text = String::new();
                self.held[..certain].chars().for_each(|c| push_escaped(c, &mut text));
                text.chars().for_each(|c| last = dict.scanner.push(c, &mut delta));
                self.take(certain);
                if mark.is_none() {
                    break;
                }
            }
            if GEMMA_QUOTE.starts_with(&self.held) && self.held.len() < GEMMA_QUOTE.len() {
                break;
            }
            let len = if self.held.starts_with(GEMMA_QUOTE) {
                dict.in_text = !dict.in_text;
                last = dict.scanner.push('"', &mut delta);
                GEMMA_QUOTE.len()
            } else if dict.scanner.wants_key() && !self.held.starts_with([' ', '\n', '}', ',', '"']) {
                let Some(at) = self.held.find([':', '{', '}', '\n']).filter(|at| *at <= MAX_NAME) else {
                    last = if self.held.len() > MAX_NAME { Step::Bad } else { Step::More };
                    break;
                };
                if !self.held[at..].starts_with(':') {
                    last = Step::Bad;
                    break;
                }
                let mut key = "\"".to_owned();
                self.held[..at].trim().chars().for_each(|c| push_escaped(c, &mut key));
                key.push('"');
                key.chars().for_each(|c| last = dict.scanner.push(c, &mut delta));
                at
            } else {
                let c = self.held.chars().next().unwrap_or_default();
                last = dict.scanner.push(c, &mut delta);
                c.len_utf8()
            };
            self.take(if last == Step::Bad { 0 } else { len });
        }
        if !delta.is_empty() {
            self.give_name(out);
            self.give_arguments(&delta, out);
        }
        match last {
            Step::More => self.wait(State::Dict(dict)),
            Step::Done => self.go(State::End),
            Step::Bad | Step::DoneBefore => self.fail(out),
        }
    }
}
