//! SESSION: a run of a model: its KV cache and buffers, prefill in batches, decode as an iterator, speculation.

mod awake;
mod generation;
mod sampler;
mod speculation;
mod stop;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;

use rayon::ThreadPoolBuilder;
use thiserror::Error;

use crate::kernels::{Isa, IsaError, Kernels};
use crate::model::{
    Config, ForwardError, KvCache, KvType, Logits, Model, NoObserver, Observer, Pass, RunState,
};
use crate::store::OutOfMemory;

use awake::AwakePool;
pub use generation::Generation;
pub use sampler::{Candidate, Sampler, SamplerConfig};
pub use speculation::{DraftPolicy, MAX_DRAFT, NgramIndex, Speculation, SpeculationStats};
pub use stop::StopMatcher;

/// Why a run cannot start or go on.
#[derive(Debug, Error)]
pub enum SessionError {
    #[error(transparent)]
    Isa(#[from] IsaError),
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[error("threads cannot be started: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    #[error("{tokens} tokens after {past} do not fit the context of {context}")]
    ContextFull { tokens: usize, past: usize, context: usize },
    #[error(
        "the logits at position {position} are not finite (first at token {id}): the model's weights or its arithmetic overflow"
    )]
    LogitsNotFinite { position: usize, id: usize },
    #[error(
        "the logits at position {position} are all the same ({value}): the model says nothing, its weights may be zeros"
    )]
    LogitsEqual { position: usize, value: f32 },
    #[error("there are no logits: no pass has left any")]
    NoLogits,
    #[error("interrupted")]
    Interrupted,
}

/// What a session is made with.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Positions of the KV cache.
    pub context: usize,
    /// Most tokens in one pass.
    pub batch: usize,
    pub kv: KvType,
    /// Worker threads; at least 1.
    pub threads: usize,
    /// The kernel set; the best that the CPU has where not given.
    pub isa: Option<Isa>,
    /// Whether to guess the experts of the next layer and read them ahead, where weights are streamed.
    pub guess_experts: bool,
}

/// Tokens in one pass, unless asked otherwise.
pub const DEFAULT_BATCH: usize = 512;

impl SessionOptions {
    /// Bytes that a session takes at most beside the weights: its KV cache, its buffers and
    /// the logits of so many tokens.
    pub fn memory_bytes(&self, config: &Config, logits: usize) -> u64 {
        let context = self.context.max(1);
        let batch = self.batch.clamp(1, context);
        // Stacks and panels of the threads.
        let threads = self.threads as u64 * THREAD_BYTES;
        KvCache::bytes(config, context, self.kv)
            .saturating_add(RunState::bytes(config, batch, logits.min(batch)))
            .saturating_add(threads)
    }
}

/// What a worker thread takes for itself.
const THREAD_BYTES: u64 = 2 << 20;

/// A model at work on one text.
pub struct Session<'m> {
    model: &'m Model,
    kernels: &'static Kernels,
    pool: AwakePool,
    state: RunState,
    kv: KvCache,
    context: usize,
    batch: usize,
    past: usize,
    /// The tokens of the positions filled.
    tokens: Vec<u32>,
    /// The row of the last pass's logits that belongs to the last position; `None`: the last row.
    row: Option<usize>,
    guess_experts: bool,
}

impl<'m> Session<'m> {
    /// An empty session.
    ///
    /// # Errors
    /// A kernel set that the CPU lacks, no memory, no threads.
    pub fn new(model: &'m Model, options: &SessionOptions) -> Result<Session<'m>, SessionError> {
        let kernels = match options.isa {
            Some(isa) => Kernels::by_isa(isa)?,
            None => Kernels::detect_best(),
        };
        let context = options.context.max(1);
        let batch = options.batch.clamp(1, context);
        Ok(Session {
            model,
            kernels,
            pool: AwakePool::new(ThreadPoolBuilder::new().num_threads(options.threads.max(1)).build()?),
            state: RunState::new(model.config(), batch)?,
            kv: KvCache::new(model.config(), context, options.kv)?,
            context,
            batch,
            past: 0,
            guess_experts: options.guess_experts,
            tokens: Vec::new(),
            row: None,
        })
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// The kernel set in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa()
    }

    /// Worker threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Positions of the KV cache.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Most tokens in one pass.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Positions filled.
    pub fn past(&self) -> usize {
        self.past
    }

    /// The tokens of the positions filled.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Forgets all positions from `past` on.
    pub fn rewind(&mut self, past: usize) {
        self.past = self.past.min(past);
        self.tokens.truncate(self.past);
    }

    /// Runs tokens through the model after those that it has seen, in batches, under an observer.
    ///
    /// `progress` is told how many tokens are done after every batch and may break off; so may the observer, within a batch. That
    /// leaves the session after the last whole batch. [`Logits::Last`] means the last of all the tokens.
    ///
    /// # Errors
    /// Tokens that do not fit the context (none is run), or what the forward pass refuses.
    pub fn feed_observed(
        &mut self,
        tokens: &[u32],
        logits: Logits,
        observer: &mut dyn Observer,
        mut progress: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<(), SessionError> {
        if tokens.len() > self.context - self.past {
            return Err(SessionError::ContextFull {
                tokens: tokens.len(),
                past: self.past,
                context: self.context,
            });
        }
        let mut done = 0;
        for chunk in tokens.chunks(self.batch) {
            let last = done + chunk.len() == tokens.len();
            let wanted = if last || logits == Logits::All { logits } else { Logits::None };
            let pass = Pass {
                kernels: self.kernels,
                state: &mut self.state,
                kv: &mut self.kv,
                tokens: chunk,
                first_pos: self.past,
                logits: wanted,
                guess_experts: self.guess_experts,
                observer: &mut *observer,
            };
            let model = self.model;
            let passed = self.pool.run(|| model.forward(pass));
            self.row = None;
            if let Err(error) = passed {
                self.state.clear_logits();
                return Err(match error {
                    ForwardError::Interrupted => SessionError::Interrupted,
                    error => error.into(),
                });
            }
            self.past += chunk.len();
            self.tokens.extend_from_slice(chunk);
            done += chunk.len();
            if progress(done).is_break() && !last {
                return Err(SessionError::Interrupted);
            }
        }
        Ok(())
    }

    /// The same with nobody watching.
    ///
    /// # Errors
    /// As [`Session::feed_observed`].
    pub fn feed(&mut self, tokens: &[u32], logits: Logits) -> Result<(), SessionError> {
        self.feed_observed(tokens, logits, &mut NoObserver, |_| ControlFlow::Continue(()))
    }

    /// Runs a token and drafts behind it in one pass of at most a batch. The session stands at the token then, and
    /// goes on over the drafts by [`Session::move_on`].
    fn feed_drafted(&mut self, id: u32, drafts: &[u32]) -> Result<(), SessionError> {
        if drafts.is_empty() {
            return self.feed(&[id], Logits::Last);
        }
        debug_assert!(drafts.len() < self.batch);
        let past = self.past;
        self.feed(&[&[id], drafts].concat(), Logits::All)?;
        self.rewind(past + 1);
        self.row = Some(0);
        Ok(())
    }

    /// Takes the next draft of the last pass for fed.
    fn move_on(&mut self, id: u32) {
        self.past += 1;
        self.tokens.push(id);
        self.row = self.row.map(|row| row + 1);
    }

    /// The logits of the last pass: `[tokens asked for][vocabulary]`. Under [`Logits::All`] those of the last
    /// batch alone; after a generation those that its last token was drawn from.
    pub fn logits(&self) -> &[f32] {
        let (all, vocab) = (self.state.logits(), self.model.config().vocab);
        // A pass that failed has left none.
        self.row.and_then(|row| all.get(row * vocab..(row + 1) * vocab)).unwrap_or(all)
    }

    /// The most probable next token; the lower id of equals.
    ///
    /// # Errors
    /// Where a logit is not finite, all are the same, or no pass has left any.
    pub fn argmax(&self) -> Result<u32, SessionError> {
        let logits = self.usable_logits()?;
        let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        Ok(best as u32)
    }

    /// The logits of the last position, of which some differ.
    fn usable_logits(&self) -> Result<&[f32], SessionError> {
        let last = self.logits().rchunks(self.model.config().vocab).next().ok_or(SessionError::NoLogits)?;
        let position = self.past.saturating_sub(1);
        if let Some(id) = last.iter().position(|l| !l.is_finite()) {
            return Err(SessionError::LogitsNotFinite { position, id });
        }
        match last {
            [value, others @ ..] if !others.is_empty() && others.iter().all(|l| l == value) => {
                Err(SessionError::LogitsEqual { position, value: *value })
            }
            _ => Ok(last),
        }
    }
}
