//! Calls of tools in an answer's text, told apart from it while it comes.
//!
//! One machine reads every format from its [`Layout`]. It takes text only when it knows what it is: what it
//! makes of an answer does not depend on the pieces that the answer comes in.

mod arguments;

use arguments::{Dict, Value};

use super::formats::{Body, Head, Layout};
use super::object::{ObjectReader, Read, Reader};
use super::python::PythonReader;
use super::scan::{Scanner, push_escaped};
use super::types::{Kinds, Tools};
use super::{AnswerPart, overlap};

/// Bytes of the longest name of a tool or a parameter.
const MAX_NAME: usize = 256;
/// Bytes of the longest name with what some models write around it.
const MAX_WRITTEN: usize = 512;

/// Where the text stands.
#[derive(Clone, Debug)]
enum State {
    /// Nothing but white space has come, or a call has ended: an object may be a call.
    Start,
    Text,
    /// Within a section, where a call may begin or the section end.
    Section,
    Head,
    Name,
    /// Before an object of arguments, and what may stand before it.
    Before,
    Json(Scanner),
    /// Behind it: what was before it ends, then the call.
    Behind,
    Object(Box<ObjectReader>),
    Python(Box<PythonReader>),
    /// Behind an object in a list.
    List,
    /// Behind a list.
    Close,
    Parameters,
    /// The same, where they are elements.
    Elements,
    Key,
    Open(String, Kinds),
    Value(Value),
    Dict(Dict),
    /// The arguments are complete: the call's end may come.
    End,
}

/// What was found where something was expected.
enum Found {
    This(usize),
    /// More has to come before it can be told.
    Wait,
    Other,
}

/// Finds calls in a text.
#[derive(Clone, Debug)]
pub struct Calls {
    layout: &'static Layout,
    tools: Tools,
    /// Whether calls are given out when they have come to their end only.
    whole: bool,
    state: State,
    /// Text that is not taken yet.
    held: String,
    /// Text that was taken since something was given out: text after all, if it comes to no call.
    raw: String,
    /// Parts of a call that is to be given out whole.
    pending: Vec<AnswerPart>,
    /// Number of calls that came to their end, the index of the next.
    calls: usize,
    name: String,
    /// Whether the call under way has been given a name.
    is_named: bool,
    parameters: usize,
    in_list: bool,
    in_section: bool,
    /// Whether a section or a list has had a call.
    had_call: bool,
    /// Whether white space before text is left out.
    trims: bool,
}

impl Calls {
    pub fn new(layout: &'static Layout, tools: Tools) -> Calls {
        Calls {
            layout,
            tools,
            whole: false,
            state: State::Start,
            held: String::new(),
            raw: String::new(),
            pending: Vec::new(),
            calls: 0,
            name: String::new(),
            is_named: false,
            parameters: 0,
            in_list: false,
            in_section: false,
            had_call: false,
            trims: false,
        }
    }

    /// The same, with calls given out when they have come to their end.
    pub fn whole(self) -> Calls {
        Calls { whole: true, ..self }
    }

    /// The same behind some text.
    pub fn in_text(self) -> Calls {
        Calls { state: State::Text, ..self }
    }

    /// Calls that have been named so far.
    pub fn begun(&self) -> usize {
        self.calls + usize::from(self.is_named)
    }

    /// Whether calls begin with [`begin`](Self::begin).
    pub fn has_headers(&self) -> bool {
        matches!(self.layout.head, Head::Header)
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, piece: &str, out: &mut Vec<AnswerPart>) {
        self.held.push_str(piece);
        while self.step(out) {}
    }

    /// A call of this name begins, whose arguments come next: where the parts of an answer have headers.
    pub fn begin(&mut self, name: &str, out: &mut Vec<AnswerPart>) {
        self.finish(out);
        self.name = name.to_owned();
        self.state = State::Before;
    }

    /// The end of the text, or of a part of it.
    pub fn finish(&mut self, out: &mut Vec<AnswerPart>) {
        while self.step(out) {}
        match &self.state {
            // What is held then is a part of the mark that ends it.
            State::Behind | State::End => {
                self.commit(out);
                self.held.clear();
            }
            State::Section | State::Close if self.had_call => {
                self.raw.clear();
                self.held.clear();
            }
            // The text goes on to its end.
            State::Value(value) if value.kinds.is_text() && !self.whole => {
                let rest = std::mem::take(&mut self.held);
                self.give_escaped(&rest, out);
                self.raw.clear();
            }
            _ => {}
        }
        let rest = std::mem::take(&mut self.raw) + &std::mem::take(&mut self.held);
        self.drop_call();
        self.give_text(&rest, out);
        self.state = State::Text;
        self.in_section = false;
        self.in_list = false;
    }

    /// Goes on by as much as is certain: whether there may be more to do.
    fn step(&mut self, out: &mut Vec<AnswerPart>) -> bool {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Start => self.start(),
            State::Text => self.text(out),
            State::Section => self.section(out),
            State::Head => self.head(out),
            State::Name => self.name(out),
            State::Before => self.before(out),
            State::Json(scanner) => self.json(scanner, out),
            State::Behind => self.behind(),
            State::Object(reader) => self.read(reader, State::Object, out),
            State::Python(reader) => self.read(reader, State::Python, out),
            State::List => self.list(out),
            State::Close => self.close(),
            State::Parameters => self.parameters(out),
            State::Elements => self.elements(out),
            State::Key => self.key(out),
            State::Open(key, kinds) => self.open(key, kinds, out),
            State::Value(value) => self.value(value, out),
            State::Dict(dict) => self.dict(dict, out),
            State::End => self.end(out),
        }
    }

    /// Another state; there is more to do.
    fn go(&mut self, state: State) -> bool {
        self.state = state;
        true
    }

    /// The same state until more comes.
    fn wait(&mut self, state: State) -> bool {
        self.state = state;
        false
    }

    fn start(&mut self) -> bool {
        if !matches!(self.layout.head, Head::Object { bare: true, .. } | Head::Python) {
            return self.go(State::Text);
        }
        let is_python = matches!(self.layout.head, Head::Python);
        let rest = self.held.trim_start();
        // Between objects one after the other.
        let rest = if self.calls > 0 { rest.trim_start_matches([';', ',']).trim_start() } else { rest };
        let blank = self.held.len() - rest.len();
        match rest.chars().next() {
            None => self.wait(State::Start),
            Some('[') if is_python => {
                self.take(blank);
                self.had_call = false;
                self.go(State::Head)
            }
            Some('{') if !is_python => {
                self.take(blank);
                self.go(State::Object(Box::new(ObjectReader::new(true))))
            }
            Some(_) => self.go(State::Text),
        }
    }

    fn text(&mut self, out: &mut Vec<AnswerPart>) -> bool {
        let opens = [self.layout.section[0], self.layout.call[0]];
        let opens = opens.iter().filter(|open| !open.is_empty());
        let found = opens.clone().filter_map(|open| Some((self.held.find(open)?, *open))).min();
        let (certain, open) = match found {
            Some((at, open)) => (at, Some(open)),
            None => {
                let keep = opens.map(|open| overlap(&self.held, open)).max().unwrap_or(0);
                (self.held.len() - keep, None)
            }
        };
        // White space before a call is no text.
        let len = self.held[..certain].trim_end().len();
        let text: String = self.held.drain(..len).collect();
        self.give_text(&text, out);
        let Some(open) = open else { return self.wait(State::Text) };
        self.take(certain - len + open.len());
        self.in_section = open == self.layout.section[0];
        self.had_call = false;
        self.go(if self.in_section { State::Section } else { State::Head })
    }

    fn section(&mut self, out: &mut Vec<AnswerPart>) -> bool {
        match self.expect(&[self.layout.call[0], self.layout.section[1]]) {
            Found::This(0) => self.go(State::Head),
            Found::This(_) if self.had_call => {
                self.raw.clear();
                self.in_section = false;
                self.go(State::Start)
            }
            Found::Wait => self.wait(State::Section),
            Found::This(_) | Found::Other => self.fail(out),
        }
    }

    fn head(&mut self, out: &mut Vec<AnswerPart>) -> bool {
        self.take_blanks();
        let takes_object = matches!(self.layout.head, Head::Object { .. } | Head::Either { .. });
        let is_python = matches!(self.layout.head, Head::Python);
        match self.held.chars().next() {
            None => self.wait(State::Head),
            Some('[') if (takes_object || is_python) && !self.in_list => {
                self.take(1);
                self.in_list = true;
                self.go(State::Head)
            }
            Some(_) if is_python => self.go(State::Python(Box::new(PythonReader::new()))),
            Some('{') if takes_object => self.go(State::Object(Box::new(ObjectReader::new(false)))),
            Some(_) => match self.layout.head {
                Head::Name { .. } | Head::Either { .. } if !self.in_list => self.go(State::Name),
                _ => self.fail(out),
            },
        }
    }

    fn name(&mut self, out: &mut Vec<AnswerPart>) -> bool {
        let (prefixes, ends, stops) = match self.layout.head {
            Head::Name { prefixes, ends, stops } => (prefixes, ends, stops),
            Head::Either { ends, stops } => (&[] as &[&str], ends, stops),
            Head::Object { .. } | Head::Header | Head::Python => return self.fail(out),
        };
        let all: Vec<&str> = ends.iter().chain(stops).copied().collect();
        let (at, which) = match self.find(&all) {
            Some((at, which)) if at <= MAX_WRITTEN => (at, which),
            None if self.held.len() <= MAX_WRITTEN => return self.wait(State::Name),
            _ => return self.fail(out),
        };
        let written = &self.held[..at];
        let name = prefixes.iter().find_map(|prefix| written.strip_prefix(prefix)).unwrap_or(written);
        let name = plain_name(name).to_owned();
        let is_name = |c: char| !c.is_whitespace() && !c.is_control() && !"<>{}\"".contains(c);
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_name) {
            return self.fail(out);
        }
        self.name = name;
        self.take(at + if which < ends.len() { all[which].len() } else { 0 });
        match &self.layout.body {
            Body::Json(_) => self.go(State::Before),
            Body::Dict => self.go(State::Dict(Dict::default())),
            Body::Parameters(_) => {
                self.give_name(out);
                self.go(State::Parameters)
            }
            Body::Elements(_) => {
                self.give_name(out);
                self.go(State::Elements)
            }
            Body::None => self.fail(out),
        }
    }

    fn before(&mut self, out: &mut Vec<AnswerPart>) -> bool {
        let Body::Json([open, _]) = self.layout.body else { return self.fail(out) };
        match self.expect(&[open, "{"]) {
            Found::This(place) => {
                if place == 1 {
                    // The object's own.
                    self.raw.pop();
                    self.held.insert(0, '{');
                    return self.go(State::Json(Scanner::new()));
                }
                self.go(State::Before)
            }
            Found::Wait => self.wait(State::Before),
            Found::Other => self.fail(out),
        }
    }

    /// Goes on within a call that a reader takes whole.
    fn read<R: Reader>(
        &mut self,
        mut reader: Box<R>,
        goes_on: fn(Box<R>) -> State,
        out: &mut Vec<AnswerPart>,
    ) -> bool {
        let mut delta = String::new();
        // `told`: of what is taken, up to the end of the arguments so far.
        let (mut taken, mut told, mut last) = (0, 0, Read::More);
        for c in self.held.chars() {
            let before = delta.len();
            last = reader.push(c, &mut delta);
            if last == Read::Bad {
                break;
            }
            taken += c.len_utf8();
            if delta.len() > before {
                told = taken;
            }
            if last == Read::Done {
                break;
            }
        }
        if let Some(name) = reader.name() {
            self.name = name.to_owned();
        }
        self.take(told);
        if !delta.is_empty() {
            self.give_name(out);
            self.give_arguments(&delta, out);
        }
        self.take(taken - told);
        match last {
            Read::More => self.wait(goes_on(reader)),
            Read::Bad => self.fail(out),
            Read::Done => self.go(State::End),
        }
    }

    fn list(&mut self, out: &mut Vec<AnswerPart>) -> bool {
        match self.expect(&[",", "]"]) {
            Found::This(0) => self.go(State::Head),
            Found::This(_) => {
                self.in_list = false;
                self.go(State::Close)
            }
            Found::Wait => self.wait(State::List),
            Found::Other => self.fail(out),
        }
    }

    fn close(&mut self) -> bool {
        match self.expect(&[self.layout.call[1]]) {
            Found::Wait if !self.layout.call[1].is_empty() => self.wait(State::Close),
            _ => {
                self.raw.clear();
                self.go(State::Start)
            }
        }
    }

    fn end(&mut self, out: &mut Vec<AnswerPart>) -> bool {
        let close = self.layout.call[1];
        if !close.is_empty() && !self.in_list && matches!(self.expect(&[close]), Found::Wait) {
            return self.wait(State::End);
        }
        self.commit(out);
        true
    }

    /// The call has come to its end.
    fn commit(&mut self, out: &mut Vec<AnswerPart>) {
        self.give_name(out);
        out.append(&mut self.pending);
        self.raw.clear();
        self.calls += 1;
        self.is_named = false;
        self.parameters = 0;
        self.had_call = true;
        self.trims = true;
        self.state = match (self.in_list, self.in_section) {
            (true, _) => State::List,
            (_, true) => State::Section,
            _ => State::Start,
        };
    }

    /// It is no call, or none any more: what was taken is text.
    fn fail(&mut self, out: &mut Vec<AnswerPart>) -> bool {
        self.drop_call();
        self.in_section = false;
        self.in_list = false;
        let raw = std::mem::take(&mut self.raw);
        self.give_text(&raw, out);
        self.go(State::Text)
    }

    fn drop_call(&mut self) {
        self.pending.clear();
        // The index of a call that was given out is not another's.
        self.calls += usize::from(self.is_named && !self.whole);
        self.is_named = false;
        self.parameters = 0;
    }

    /// Takes so many bytes.
    fn take(&mut self, len: usize) {
        self.raw.extend(self.held.drain(..len));
    }

    fn take_blanks(&mut self) {
        self.take(self.held.len() - self.held.trim_start().len());
    }

    /// Takes the text that comes next behind white space.
    fn expect(&mut self, texts: &[&str]) -> Found {
        self.take_blanks();
        let is_next = |text: &&str| !text.is_empty() && self.held.starts_with(*text);
        if let Some(place) = texts.iter().position(is_next) {
            self.take(texts[place].len());
            return Found::This(place);
        }
        let may_be = texts.iter().any(|text| text.starts_with(&self.held) && !text.is_empty());
        if may_be { Found::Wait } else { Found::Other }
    }

    /// The first of these texts in what is held.
    fn find(&self, texts: &[&str]) -> Option<(usize, usize)> {
        texts.iter().enumerate().filter_map(|(which, text)| Some((self.held.find(text)?, which))).min()
    }

    fn give_text(&mut self, text: &str, out: &mut Vec<AnswerPart>) {
        let text = if self.trims { text.trim_start() } else { text };
        if !text.is_empty() {
            self.trims = false;
            out.push(AnswerPart::Text(text.to_owned()));
        }
    }

    fn give_name(&mut self, out: &mut Vec<AnswerPart>) {
        if !self.is_named {
            self.is_named = true;
            self.give(AnswerPart::Call { index: self.calls, name: self.name.clone() }, out);
        }
    }

    fn give_arguments(&mut self, delta: &str, out: &mut Vec<AnswerPart>) {
        if !delta.is_empty() {
            self.give(AnswerPart::Arguments { index: self.calls, delta: delta.to_owned() }, out);
        }
    }

    fn give_escaped(&mut self, text: &str, out: &mut Vec<AnswerPart>) {
        let mut delta = String::new();
        text.chars().for_each(|c| push_escaped(c, &mut delta));
        self.give_arguments(&delta, out);
    }

    /// Gives out a part of a call, or keeps it until the call has come to its end.
    fn give(&mut self, part: AnswerPart, out: &mut Vec<AnswerPart>) {
        if self.whole {
            return self.pending.push(part);
        }
        out.push(part);
        self.raw.clear();
    }
}

/// A name without what some models write around it: `functions.name:0`, `name[CALL_ID]id`.
fn plain_name(name: &str) -> &str {
    let name = name.split("[CALL_ID]").next().unwrap_or_default().trim();
    match name.rsplit_once(':') {
        Some((before, digits)) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => before,
        _ => name,
    }
}
