//! What is asked of a scheduler, and what it tells of it.

use std::ops::{ControlFlow, Deref, DerefMut};
use std::sync::Arc;

use rayon::prelude::*;

use super::super::{Engine, EngineError, Feed, Logprobs, Sampler, Sequence, logprobs};
use super::kept::Loan;
use crate::model::Logits;

/// A text to continue.
pub struct Request {
    /// At least one token, and no more than the context holds.
    pub prompt: Vec<u32>,
    /// A text that it goes on with; the prompt is its tokens, and what is to be read behind them. The text
    /// gets the tokens that are drawn, and of those to be read as many as were run.
    pub text: Option<Loan>,
    /// New: it has been told of no token yet. One that goes on with a text has been told of it.
    pub sampler: Sampler,
    /// Tokens to make at most; with none the prompt is read and nothing else.
    pub max_tokens: usize,
    /// Tokens that end the text.
    pub ends: Arc<[u32]>,
    /// For each token, the log-probabilities of so many of the most probable ones.
    pub logprobs: Option<usize>,
    /// The same for each token of the prompt but the first. The whole prompt is run then.
    pub prompt_logprobs: Option<usize>,
    /// Is told how it goes.
    pub sink: Box<dyn Sink>,
}

/// Whoever has asked.
pub trait Sink: Send {
    /// Is told of an event; whether it wants more of them. The last one is [`Event::End`].
    fn send(&mut self, event: Event) -> ControlFlow<()>;

    /// Asked before each token is drawn, when all before it have been run: whether it is wanted now. Where it
    /// is not, the request is over as if nobody listened any more.
    fn wants_token(&mut self) -> bool {
        true
    }

    /// Nobody listens any more.
    fn is_gone(&self) -> bool;
}

/// How it goes with a request.
#[derive(Debug)]
pub enum Event {
    /// So many tokens of the prompt are done.
    Prefill { done: usize, of: usize },
    /// So probable were these tokens of the prompt, which follow those told of before.
    Read(Vec<Drawn>),
    /// A token was drawn. An end token is told of as well.
    Token(Drawn),
    /// It is over. A text that was lent to it is back. Whoever goes on needs the sampler.
    End { why: Result<End, EngineError>, usage: Usage, sampler: Box<Sampler> },
}

/// A token, and what it was drawn from or could have been.
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
    /// A text that was lent can go on once others are over: they have the memory.
    Waits,
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

/// Tokens of a prompt in a pass whose probabilities are wanted, at most: each has logits of its own.
pub(super) const ROWS: usize = 32;

/// The sequence of a job.
pub(super) enum Running {
    Own(Sequence),
    Lent(Loan),
}

impl Deref for Running {
    type Target = Sequence;

    fn deref(&self) -> &Sequence {
        match self {
            Running::Own(sequence) => sequence,
            Running::Lent(loan) => loan.sequence(),
        }
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Sequence {
        match self {
            Running::Own(sequence) => sequence,
            Running::Lent(loan) => loan.sequence_mut(),
        }
    }
}

impl Running {
    /// Bytes and pages of positions that are counted for it as a text that is kept.
    pub fn counted(&self) -> (u64, usize) {
        match self {
            Running::Own(_) => (0, 0),
            Running::Lent(loan) => loan.counted(),
        }
    }
}

/// Memory that is set aside for a sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reserve {
    pub bytes: u64,
    /// What it may come to need.
    pub most: u64,
    /// What its sequence has beside that.
    pub has: u64,
}

/// A request under way.
pub(super) struct Job {
    pub sequence: Running,
    /// The prompt, and what was drawn.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt that are a lent text's already.
    kept: usize,
    pub sampler: Sampler,
    pub max_tokens: usize,
    pub ends: Arc<[u32]>,
    pub logprobs: Option<usize>,
    pub prompt_logprobs: Option<usize>,
    pub sink: Box<dyn Sink>,
    pub usage: Usage,
    pub reserve: Reserve,
}

impl Job {
    /// A job whose sequence is `own`, unless a text was lent for it.
    pub fn new(request: Request, own: impl FnOnce(&[u32]) -> Sequence, reserve: Reserve) -> Job {
        let Request { prompt, text, mut sampler, max_tokens, ends, logprobs, prompt_logprobs, sink } =
            request;
        let kept = text.as_ref().map_or(0, |text| text.len());
        let sequence = match text {
            Some(loan) => Running::Lent(loan),
            None => {
                sampler.read(prompt.iter().copied());
                Running::Own(own(&prompt))
            }
        };
        let usage = Usage { prompt: prompt.len(), cached: sequence.past(), made: 0 };
        let tokens = prompt;
        Job {
            sequence,
            tokens,
            kept,
            sampler,
            max_tokens,
            ends,
            logprobs,
            prompt_logprobs,
            sink,
            usage,
            reserve,
        }
    }

    pub fn is_lent(&self) -> bool {
        matches!(self.sequence, Running::Lent(_))
    }

    /// Tokens that have not been run.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.sequence.past()
    }

    /// Tokens to run in a pass at most.
    pub fn wanted(&self) -> usize {
        self.pending().min(if self.weighs() { ROWS } else { usize::MAX })
    }

    /// Whether the tokens of its prompt are told of by their probabilities, and are still to be read.
    pub fn weighs(&self) -> bool {
        self.prompt_logprobs.is_some() && self.reads()
    }

    /// What brings its sequence to this position; none where it stands there. And its sampler, for what can
    /// be made ready meanwhile.
    pub fn feed(&mut self, end: usize) -> (Option<Feed<'_>>, &mut Sampler) {
        let past = self.sequence.past();
        let logits = match end == self.tokens.len() {
            _ if self.weighs() => Logits::All,
            true => Logits::Last,
            false => Logits::None,
        };
        let tokens = self.tokens.get(past..end).filter(|tokens| !tokens.is_empty());
        let feed = tokens.map(|tokens| Feed { sequence: &mut self.sequence, tokens, logits });
        (feed, &mut self.sampler)
    }

    /// Whether its prompt has not been read whole.
    pub fn reads(&self) -> bool {
        self.usage.made == 0
    }

    /// Goes on after a pass that ran so many of its tokens: tells of progress, draws a token where all have
    /// been run. Why it is over, where it is.
    pub fn go_on(&mut self, ran: usize, engine: &Engine<'_>) -> Option<Result<End, EngineError>> {
        let told = self.weigh(ran, engine).and_then(|told| match (told, self.pending()) {
            (ControlFlow::Break(()), _) => Ok(told),
            (_, 0) if self.usage.made == self.max_tokens => Ok(told),
            (_, 0) if !self.sink.wants_token() => Ok(ControlFlow::Break(())),
            (_, 0) => self.draw(),
            _ => Ok(self.sink.send(Event::Prefill { done: self.sequence.past(), of: self.usage.prompt })),
        });
        self.note_text();
        match told {
            Ok(told) if told.is_break() => Some(Ok(End::Left)),
            Ok(_) => self.end().map(Ok),
            Err(error) => Some(Err(error)),
        }
    }

    /// Tells how probable the tokens are that follow those that a pass has run, where that is asked for.
    fn weigh(&mut self, ran: usize, engine: &Engine<'_>) -> Result<ControlFlow<()>, EngineError> {
        let Some(top) = self.prompt_logprobs.filter(|_| self.weighs()) else {
            return Ok(ControlFlow::Continue(()));
        };
        let past = self.sequence.past();
        let next = &self.tokens[past - ran + 1..self.tokens.len().min(past + 1)];
        if next.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let rows = self.sequence.usable_rows(ran)?;
        let weighed = |(&id, row): (&u32, &[f32])| Drawn { id, logprobs: Some(logprobs(row, id, top)) };
        let vocab = rows.len() / ran;
        let told = engine.on_threads(|| {
            next.par_iter().zip(rows.par_chunks_exact(vocab)).map(weighed).collect::<Vec<_>>()
        });
        Ok(self.sink.send(Event::Read(told)))
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
        if self.max_tokens == 0 {
            return (self.pending() == 0).then_some(End::MaxTokens);
        }
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

    /// Has a text that was lent read what it has come to.
    fn note_text(&mut self) {
        if let Running::Lent(loan) = &mut self.sequence {
            let drawn = self.usage.made > 0;
            loan.set_text(if drawn { &self.tokens } else { &self.tokens[..self.kept] });
        }
    }

    /// Gives back what was lent and tells that it is over. Leaves its own sequence.
    pub fn finish(mut self, why: Result<End, EngineError>) -> Option<Sequence> {
        self.note_text();
        if self.prompt_logprobs.is_some() {
            // Those of a whole pass: nobody asks for them again.
            self.sequence.drop_logits();
        }
        let own = match self.sequence {
            Running::Own(sequence) => Some(sequence),
            Running::Lent(loan) => {
                drop(loan);
                None
            }
        };
        let _ = self.sink.send(Event::End { why, usage: self.usage, sampler: Box::new(self.sampler) });
        own
    }
}
