//! Calls of tools: how models write them, and how an answer is told apart into reasoning, text and calls.
//!
//! - `formats` is a table of the formats in use; [`Format::of_template`] finds a model's by its template.
//! - [`AnswerParser`] reads an answer while it comes. The arguments of a call are always JSON, whatever the
//!   format writes; what is not a call after all is text.
//! - `calls` is the machine that reads them, `scan`, `object` and `python` its readers of JSON and of
//!   Python's calls, `elements` makes values of tags; `types` says what a plain value is by the tool's
//!   schema, `numbers` reads numbers that no double holds.
//! - `grammar` writes a grammar for an answer that has to be a call.
//! - [`messages()`] makes messages as OpenAI's API has them into what templates expect.

mod answer;
mod calls;
mod elements;
mod formats;
mod grammar;
#[cfg(test)]
mod grammar_tests;
#[cfg(test)]
mod message_tests;
mod messages;
mod numbers;
mod object;
mod python;
mod scan;
#[cfg(test)]
mod tests;
mod types;

pub use answer::AnswerParser;
pub(super) use grammar::TextPart;
pub use grammar::{Choice, json_after_thought};
pub use messages::messages;
pub use numbers::read as read_json;

use std::sync::LazyLock;

use formats::{LAYOUTS, Layout, PROMPT_MARKS};

use super::chat::overlap;

/// A part of an answer. Parts of a kind that follow each other are one: the pieces differ with how the text
/// came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerPart {
    /// What the model thinks.
    Reasoning(String),
    /// What it says.
    Text(String),
    /// It calls a tool: the name as it wrote it, known or not.
    Call { index: usize, name: String },
    /// More of a call's arguments: put together they are JSON, unless the answer was cut off or the model
    /// lost the thread (see [`AnswerParser::whole`]).
    Arguments { index: usize, delta: String },
}

/// What a text of an answer without calls belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Reasoning,
    Answer,
}

impl AnswerPart {
    /// The text of a part that is no call's.
    pub fn text(self) -> Option<(Part, String)> {
        match self {
            AnswerPart::Reasoning(text) => Some((Part::Reasoning, text)),
            AnswerPart::Text(text) => Some((Part::Answer, text)),
            AnswerPart::Call { .. } | AnswerPart::Arguments { .. } => None,
        }
    }
}

/// A format of calls.
#[derive(Clone, Copy, Debug)]
pub struct Format(&'static Layout);

impl PartialEq for Format {
    fn eq(&self, other: &Format) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Format {}

impl Format {
    /// The format that a chat template of this source teaches; `None` where it knows no tools, or writes
    /// calls in a way that is not known.
    pub fn of_template(source: &str) -> Option<Format> {
        let fits = |layout: &&Layout| {
            layout.signs.iter().any(|signs| signs.iter().all(|sign| source.contains(sign)))
        };
        LAYOUTS.iter().find(fits).map(Format)
    }

    /// The format of this name.
    pub fn named(name: &str) -> Option<Format> {
        LAYOUTS.iter().find(|layout| layout.name == name).map(Format)
    }

    /// The names that there are.
    pub fn names() -> impl Iterator<Item = &'static str> {
        LAYOUTS.iter().map(|layout| layout.name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// What ends reasoning beside its own mark.
    fn ends_of_thought(self) -> Vec<&'static str> {
        let marks = [self.0.section[0], self.0.call[0]];
        marks.into_iter().filter(|mark| self.0.ends_thought && !mark.is_empty()).collect()
    }

    /// Whether a control token of this text is one of the format's marks, or part of one.
    fn has_mark(self, text: &str) -> bool {
        text.len() > 1 && self.0.marks().iter().any(|mark| mark.contains(text))
    }
}

/// All marks of all formats, and those of results.
pub(super) fn marks() -> &'static [&'static str] {
    static MARKS: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
        LAYOUTS.iter().flat_map(Layout::marks).chain(PROMPT_MARKS.iter().copied()).collect()
    });
    &MARKS
}
