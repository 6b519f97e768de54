//! ENGINE: a model at work on sequences: passes, prefill in batches, decode as an iterator, speculation.
//!
//! An [`Engine`] has what exists once: threads, buffers, the kernel set. A [`Sequence`] is a value: its
//! tokens, what the model remembers of them, its last logits. Tokens of several sequences may share a pass;
//! each gets the bits that it gets alone.

mod awake;
mod drafts;
mod expert_use;
mod generation;
mod prefixes;
mod sampler;
mod scheduler;
mod sequence;
mod speculation;
mod stage;
mod stop;
#[cfg(test)]
mod tests;
mod threads;
mod trail;

use std::ops::ControlFlow;

use thiserror::Error;

use crate::kernels::{Isa, IsaError, Kernels};
use crate::model::{
    Buffers, ForwardError, KvError, KvType, Logits, Model, ModelSpec, NoObserver, Observer, Pass, Segment,
    SequenceState,
};
use crate::store::{Guesses, OutOfMemory};
use crate::text::TextError;

pub use expert_use::ExpertUse;
pub use generation::Generation;
pub use prefixes::{ModelId, PrefixCache, PrefixFolder, RecordedId, Restored};
pub use sampler::{Candidate, LogSoftmax, Logprobs, Sampler, SamplerConfig, SamplerError, logprobs};
pub use scheduler::{
    Drawn, End, Event, Keeper, KeptText, Loan, Request, Scheduler, SchedulerLimits, SchedulerStats, Sink,
    Usage, Wanted,
};
pub use sequence::Sequence;
pub use speculation::{
    DraftOffer, DraftPlan, DraftPolicy, DraftSource, MAX_DRAFT, NgramIndex, Speculation, SpeculationStats,
};
pub use stage::StageId;
pub use stop::StopMatcher;
use threads::Pools;
pub use threads::Threads;

/// Why a run cannot start or go on.
#[derive(Debug, Error)]
pub enum EngineError {
    #[error(transparent)]
    Isa(#[from] IsaError),
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    #[error(transparent)]
    Kv(#[from] KvError),
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[error("threads cannot be started: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    #[error("{tokens} tokens after {past} do not fit the context of {context}")]
    ContextFull { tokens: usize, past: usize, context: usize },
    #[error(
        "the logits at position {position} are not finite (first at token {id}): the model's weights or its \
         arithmetic overflow"
    )]
    LogitsNotFinite { position: usize, id: usize },
    #[error(
        "the logits at position {position} are all the same ({value}): the model says nothing, its weights \
         may be zeros"
    )]
    LogitsEqual { position: usize, value: f32 },
    #[error("there are no logits: no pass has left any")]
    NoLogits,
    #[error("no token can be chosen: all are banned or against the grammar")]
    NoToken,
    #[error(transparent)]
    Constraint(#[from] TextError),
    #[error("{found} values came from the stage before, where {wanted} are needed")]
    Rows { found: usize, wanted: usize },
    #[error("{tokens} tokens do not fit a pass of {batch}")]
    PassFull { tokens: usize, batch: usize },
    #[error(
        "there is no room for {bytes} bytes more of keys and values: of {limit} for all texts, sessions keep \
         {kept}"
    )]
    NoRoom { bytes: u64, limit: u64, kept: u64 },
    #[error("interrupted")]
    Interrupted,
}

/// What an engine is made with.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Positions that a sequence may have.
    pub context: usize,
    /// Most tokens in one pass.
    pub batch: usize,
    pub kv: KvType,
    /// Worker threads.
    pub threads: Threads,
    /// The kernel set; the best that the CPU has where not given.
    pub isa: Option<Isa>,
    /// Most drafts that a pass runs behind a token.
    pub drafts: usize,
    /// Whether to guess the experts of the next layer and read them ahead, where weights are streamed.
    pub guesses: Guesses,
}

/// Tokens in one pass, unless asked otherwise.
pub const DEFAULT_BATCH: usize = 512;

impl EngineOptions {
    /// Bytes of a full sequence.
    pub fn sequence_bytes(&self, spec: &ModelSpec) -> u64 {
        let context = self.context.max(1);
        SequenceState::bytes(spec, context, self.batch.clamp(1, context), self.drafts, self.kv)
    }

    /// Bytes of a full sequence's keys and values, and of its recurrent states, that copies on a device take.
    pub fn copies_bytes(&self, spec: &ModelSpec) -> u64 {
        let context = self.context.max(1);
        let batch = self.batch.clamp(1, context);
        let [pages, states] = SequenceState::copies_bytes(&spec.memories, context, batch, self.kv);
        pages.saturating_add(states)
    }

    /// Bytes of a device that an engine takes there at most beside weights, keys and values, the logits of so
    /// many tokens included.
    pub fn device_bytes(&self, spec: &ModelSpec, logits: usize) -> u64 {
        let context = self.context.max(1);
        let batch = self.batch.clamp(1, context);
        Buffers::device_bytes(spec, [batch, context], logits.min(batch))
    }

    /// Bytes that an engine with one full sequence takes at most beside the weights: keys and values, buffers
    /// and the logits of so many tokens.
    pub fn memory_bytes(&self, spec: &ModelSpec, logits: usize) -> u64 {
        let context = self.context.max(1);
        let batch = self.batch.clamp(1, context);
        // Stacks and panels of the threads.
        let threads = self.threads.started() as u64 * THREAD_BYTES;
        let most = self.threads.most();
        self.sequence_bytes(spec)
            .saturating_add(Buffers::bytes(spec, [batch, context], logits.min(batch), most, self.kv))
            .saturating_add(threads)
    }
}

/// What a worker thread takes for itself.
const THREAD_BYTES: u64 = 2 << 20;

/// Tokens to run for a sequence.
#[derive(Debug)]
pub struct Feed<'s> {
    pub sequence: &'s mut Sequence,
    pub tokens: &'s [u32],
    pub logits: Logits,
}

/// A model at work.
pub struct Engine<'m> {
    model: &'m Model,
    kernels: &'static Kernels,
    pools: Pools,
    buffers: Buffers,
    context: usize,
    batch: usize,
    kv: KvType,
    drafts: usize,
    guesses: Guesses,
}

impl<'m> Engine<'m> {
    /// An engine without sequences.
    ///
    /// # Errors
    /// A kernel set that the CPU lacks, a KV cache that the model cannot have, no memory, no threads.
    pub fn new(model: &'m Model, options: &EngineOptions) -> Result<Engine<'m>, EngineError> {
        SequenceState::check(model.spec(), options.kv)?;
        let kernels = match options.isa {
            Some(isa) => Kernels::by_isa(isa)?,
            None => Kernels::detect_best(),
        };
        let context = options.context.max(1);
        let batch = options.batch.clamp(1, context);
        Ok(Engine {
            model,
            kernels,
            pools: Pools::new(&options.threads, batch)?,
            buffers: Buffers::new(model.spec(), batch, context)?,
            context,
            batch,
            kv: options.kv,
            drafts: options.drafts,
            guesses: options.guesses,
        })
    }

    /// A new sequence, empty.
    pub fn sequence(&self) -> Sequence {
        Sequence::new(self.model.spec(), self.context, self.kv)
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// The kernel set in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa()
    }

    /// Worker threads that a pass of one token runs on now.
    pub fn threads(&self) -> usize {
        self.pools.threads()
    }

    /// Positions that a sequence may have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Most tokens in one pass.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Runs something on the engine's threads: what is to be done with the logits of many rows.
    pub fn on_threads<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pools.beside(work)
    }

    /// Runs the tokens of several sequences, each after what its sequence has seen, as many in a pass as a
    /// batch holds; their rows share each reading of the weights.
    ///
    /// # Errors
    /// Tokens that do not fit a context (none is run), or what the forward pass refuses; then the sequences
    /// stand after the last whole pass, or where a recurrence can go on that was broken off within a single
    /// token.
    pub fn feed_all(&mut self, feeds: &mut [Feed<'_>]) -> Result<(), EngineError> {
        self.feed_all_watched(feeds, &mut NoObserver)
    }

    /// The same under an observer.
    fn feed_all_watched(
        &mut self,
        feeds: &mut [Feed<'_>],
        observer: &mut dyn Observer,
    ) -> Result<(), EngineError> {
        for feed in &*feeds {
            feed.sequence.check_room(feed.tokens.len())?;
        }
        let mut done = vec![0; feeds.len()];
        loop {
            let mut room = self.batch;
            let mut parts = Vec::new();
            for (feed, done) in feeds.iter_mut().zip(&mut done) {
                let n = room.min(feed.tokens.len() - *done);
                if n > 0 {
                    let last = *done + n == feed.tokens.len();
                    let logits = if last || feed.logits == Logits::All { feed.logits } else { Logits::None };
                    parts.push(Feed {
                        sequence: &mut *feed.sequence,
                        tokens: &feed.tokens[*done..*done + n],
                        logits,
                    });
                    *done += n;
                    room -= n;
                }
            }
            if parts.is_empty() {
                return Ok(());
            }
            self.pass(&mut parts, &[], observer)?;
        }
    }

    /// Runs tokens of one sequence in batches, under an observer.
    ///
    /// `progress` is told how many tokens are done after every batch and may break off; so may the observer,
    /// within a batch. That leaves the sequence after the last whole batch. [`Logits::Last`] means the last
    /// of all the tokens.
    ///
    /// # Errors
    /// Tokens that do not fit the context (none is run), or what the forward pass refuses.
    pub fn feed_observed(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        logits: Logits,
        observer: &mut dyn Observer,
        mut progress: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        sequence.check_room(tokens.len())?;
        let mut done = 0;
        for tokens_now in tokens.chunks(self.batch) {
            let last = done + tokens_now.len() == tokens.len();
            let wanted = if last || logits == Logits::All { logits } else { Logits::None };
            self.pass(&mut [Feed { sequence, tokens: tokens_now, logits: wanted }], &[], observer)?;
            done += tokens_now.len();
            if progress(done).is_break() && !last {
                return Err(EngineError::Interrupted);
            }
        }
        Ok(())
    }

    /// The same with nobody watching.
    ///
    /// # Errors
    /// As [`Engine::feed_observed`].
    pub fn feed(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        logits: Logits,
    ) -> Result<(), EngineError> {
        self.feed_observed(sequence, tokens, logits, &mut NoObserver, |_| ControlFlow::Continue(()))
    }

    /// One pass over the tokens of some sequences, which fit a batch and their contexts, and of a stage over
    /// the rows that the one before gave.
    fn pass(
        &mut self,
        feeds: &mut [Feed<'_>],
        rows: &[f32],
        observer: &mut dyn Observer,
    ) -> Result<(), EngineError> {
        let tokens: usize = feeds.iter().map(|feed| feed.tokens.len()).sum();
        let (found, wanted) = (rows.len(), tokens * self.model.row_in());
        if found != wanted {
            return Err(EngineError::Rows { found, wanted });
        }
        let ends = feeds.iter_mut().any(|feed| feed.sequence.trail().is_some());
        let segments = feeds.iter_mut().map(|feed| {
            let first_pos = feed.sequence.past();
            Segment { state: feed.sequence.state_mut(), tokens: feed.tokens, first_pos, logits: feed.logits }
        });
        let pass = Pass {
            kernels: self.kernels,
            buffers: &mut self.buffers,
            segments: segments.collect(),
            guesses: self.guesses,
            rows,
            ends,
            observer,
        };
        let model = self.model;
        let passed = self.pools.run(tokens, || model.forward(pass));
        if let Err(error) = passed {
            self.buffers.clear_logits();
            for feed in feeds {
                let past = feed.sequence.past();
                feed.sequence.rewind(past);
            }
            return Err(match error {
                ForwardError::Interrupted => EngineError::Interrupted,
                error => error.into(),
            });
        }
        if ends {
            self.leave_trails(feeds);
        }
        self.hand_out(feeds);
        feeds.iter_mut().try_for_each(|feed| self.catch_up(feed))
    }

    /// Gives each sequence its tokens and logits.
    fn hand_out(&mut self, feeds: &mut [Feed<'_>]) {
        // Of a stage before the last there are none.
        let vocab = if self.model.is_last() { self.model.spec().vocab } else { 0 };
        if let [feed] = feeds {
            feed.sequence.passed(feed.tokens, self.buffers.logits_mut());
            return;
        }
        let mut rest = self.buffers.logits();
        for feed in feeds {
            let rows = match feed.logits {
                Logits::None => 0,
                Logits::Last => 1,
                Logits::All | Logits::Drafts => feed.tokens.len(),
            };
            let (own, others) = rest.split_at(rows * vocab);
            rest = others;
            feed.sequence.passed(feed.tokens, &mut own.to_vec());
        }
    }
}
