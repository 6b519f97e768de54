//! An answer told apart while it comes.

use serde_json::Value as Json;

use super::calls::Calls;
use super::types::Tools;
use super::{AnswerPart, Format};
use crate::text::chat::{Kind, Splitter, is_mark};

/// Tells an answer apart into reasoning, text and calls of tools.
///
/// Its parts do not depend on the pieces that the text comes in, except for where they are cut. Control
/// tokens are no text: those that it needs are told by [`wants`](Self::wants), and their texts go to
/// [`push`](Self::push) as if the model had written them out.
#[derive(Clone, Debug)]
pub struct AnswerParser {
    splitter: Splitter,
    format: Option<Format>,
    calls: Option<Calls>,
    /// Whether a part for a tool is under way.
    in_message: bool,
}

impl AnswerParser {
    /// For the answer to this prompt: its end tells whether reasoning is under way. Without a format there
    /// are no calls. `tools`, as OpenAI's API has them, tell which values are texts where a format does
    /// not.
    pub fn new(format: Option<Format>, prompt: &str, tools: &[Json]) -> AnswerParser {
        let calls = format.map(|format| Calls::new(format.0, Tools::new(tools)));
        let ends = format.map_or_else(Vec::new, Format::ends_of_thought);
        AnswerParser { splitter: Splitter::after(prompt).ending_at(ends), format, calls, in_message: false }
    }

    /// The same, with calls given out when they have come to their end: their arguments are JSON without
    /// exception, and a call that does not come to its end is text from its beginning.
    pub fn whole(mut self) -> AnswerParser {
        self.calls = self.calls.map(Calls::whole);
        self
    }

    /// The same within the text of the answer, some of which has come already.
    pub fn in_text(mut self) -> AnswerParser {
        self.splitter = self.splitter.in_answer();
        self.calls = self.calls.map(Calls::in_text);
        self
    }

    /// Calls that have begun so far, those that are not given out yet among them.
    pub fn begun(&self) -> usize {
        self.calls.as_ref().map_or(0, Calls::begun)
    }

    /// Whether the parser has to see a control token of this text.
    pub fn wants(&self, text: &str) -> bool {
        is_mark(text) || self.format.is_some_and(|format| format.has_mark(text))
    }

    /// Whether reasoning is under way.
    pub fn in_reasoning(&self) -> bool {
        self.splitter.in_reasoning()
    }

    /// Takes the next piece of the answer; returns what is certain of it.
    pub fn push(&mut self, piece: &str) -> Vec<AnswerPart> {
        let parts = self.splitter.push(piece);
        self.sort(parts)
    }

    /// The rest, at the end of the answer.
    pub fn finish(&mut self) -> Vec<AnswerPart> {
        let parts = self.splitter.finish();
        let mut out = self.sort(parts);
        if let Some(calls) = &mut self.calls {
            calls.finish(&mut out);
        }
        out
    }

    fn sort(&mut self, parts: Vec<(Kind, String)>) -> Vec<AnswerPart> {
        let mut out = Vec::new();
        for (part, text) in parts {
            let Some(calls) = &mut self.calls else {
                out.extend(match part {
                    Kind::Answer => Some(AnswerPart::Text(text)),
                    Kind::Reasoning | Kind::Message => Some(AnswerPart::Reasoning(text)),
                    Kind::Recipient => None,
                });
                continue;
            };
            if self.in_message && part != Kind::Message {
                self.in_message = false;
                calls.finish(&mut out);
            }
            match part {
                Kind::Answer => calls.push(&text, &mut out),
                Kind::Reasoning => out.push(AnswerPart::Reasoning(text)),
                Kind::Recipient if calls.has_headers() => {
                    self.in_message = true;
                    calls.begin(&text, &mut out);
                }
                Kind::Message if self.in_message => calls.push(&text, &mut out),
                Kind::Recipient => {}
                Kind::Message => out.push(AnswerPart::Reasoning(text)),
            }
        }
        out
    }
}
