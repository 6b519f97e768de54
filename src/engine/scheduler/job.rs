//! What is asked of a scheduler, and what it tells of it.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::super::{EngineError, Feed, Logprobs, Sampler, Sequence, logprobs};
use crate::model::Logits;

/// A text to continue.
pub struct Request {
    /// At least one token, and no more than the context holds.
    pub prompt: Vec<u32>,
    /// New: it has been told of no token yet.
    pub sampler: Sampler,
    /// Tokens to make at most; at least 1.
    pub max_tokens: usize,
    /// Tokens that end the text.
    pub ends: Arc<[u32]>,
    /// For each token, the log-probabilities of so many of the most probable ones.
    pub logprobs: Option<usize>,
    /// Is told how it goes.
    pub sink: Box<dyn Sink>,
}

/// Whoever has asked.
pub trait Sink: Send {
    /// Is told of an event; whether it wants more of them. The last one is [`Event::End`].
    fn send(&mut self, event: Event) -> ControlFlow<()>;

    /// Nobody listens any more.
    fn is_gone(&self) -> bool;
}

/// How it goes with a request.
#[derive(Debug)]
pub enum Event {
    /// So many tokens of the prompt are done.
    Prefill { done: usize, of: usize },
    /// A token was drawn. An end token is told of as well.
    Token(Drawn),
    /// It is over.
    End { why: Result<End, EngineError>, usage: Usage },
}

/// A token, and what it was drawn from.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    pub id: u32,
    /// Of the plain logits; where asked for.
    pub logprobs: Option<Logprobs>,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The model chose an end token.
    EndOfText,
    MaxTokens,
    ContextFull,
    /// Nobody listens any more.
    Left,
    /// The scheduler is stopped.
    Stopped,
}

/// What a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt: usize,
    /// Tokens of the prompt that were remembered from earlier texts.
    pub cached: usize,
    pub made: usize,
}

/// A request under way.
pub(super) struct Job {
    pub sequence: Sequence,
    /// The prompt, and what was drawn.
    pub tokens: Vec<u32>,
    pub sampler: Sampler,
    pub max_tokens: usize,
    pub ends: Arc<[u32]>,
    pub logprobs: Option<usize>,
    pub sink: Box<dyn Sink>,
    pub usage: Usage,
    /// Memory that is set aside for its sequence.
    pub bytes: u64,
}

impl Job {
    pub fn new(request: Request, sequence: Sequence, bytes: u64) -> Job {
        let Request { prompt, mut sampler, max_tokens, ends, logprobs, sink } = request;
        sampler.read(prompt.iter().copied());
        let usage = Usage { prompt: prompt.len(), cached: sequence.past(), made: 0 };
        Job { sequence, tokens: prompt, sampler, max_tokens, ends, logprobs, sink, usage, bytes }
    }

    /// Tokens that have not been run.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.sequence.past()
    }

    /// What brings its sequence to this position; none where it stands there. And its sampler, for what can be
    /// made ready meanwhile.
    pub fn feed(&mut self, end: usize) -> (Option<Feed<'_>>, &mut Sampler) {
        let past = self.sequence.past();
        let logits = if end == self.tokens.len() { Logits::Last } else { Logits::None };
        let tokens = self.tokens.get(past..end).filter(|tokens| !tokens.is_empty());
        let feed = tokens.map(|tokens| Feed { sequence: &mut self.sequence, tokens, logits });
        (feed, &mut self.sampler)
    }

    /// Whether its prompt has not been read whole.
    pub fn reads(&self) -> bool {
        self.usage.made == 0
    }

    /// Goes on after a pass that ran some of its tokens: tells of progress, draws a token where all have been
    /// run. Why it is over, where it is.
    pub fn go_on(&mut self) -> Option<Result<End, EngineError>> {
        let told = match self.pending() {
            0 => match self.draw() {
                Ok(told) => told,
                Err(error) => return Some(Err(error)),
            },
            _ => self.sink.send(Event::Prefill { done: self.sequence.past(), of: self.usage.prompt }),
        };
        let end = if told.is_break() { Some(End::Left) } else { self.end() };
        end.map(Ok)
    }

    /// Draws a token and tells of it.
    fn draw(&mut self) -> Result<ControlFlow<()>, EngineError> {
        let logits = self.sequence.usable_logits()?;
        let id = self.sampler.sample(logits)?.id;
        let logprobs = self.logprobs.map(|top| logprobs(logits, id, top));
        self.sampler.accept(id)?;
        self.tokens.push(id);
        self.usage.made += 1;
        Ok(self.sink.send(Event::Token(Drawn { id, logprobs })))
    }

    fn end(&self) -> Option<End> {
        let &last = self.tokens.last().filter(|_| self.usage.made > 0)?;
        if self.ends.contains(&last) {
            Some(End::EndOfText)
        } else if self.usage.made == self.max_tokens {
            Some(End::MaxTokens)
        } else if self.sequence.past() == self.sequence.context() {
            Some(End::ContextFull)
        } else {
            None
        }
    }

    /// Tells that it is over, and leaves its sequence.
    pub fn finish(mut self, why: Result<End, EngineError>) -> Sequence {
        let _ = self.sink.send(Event::End { why, usage: self.usage });
        self.sequence
    }
}
