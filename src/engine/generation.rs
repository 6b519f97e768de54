//! Decode as an iterator, with speculation or without.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::expert_use::Watcher;
use super::speculation::{DraftPlan, DraftSource, Drafter};
use super::{Candidate, Engine, EngineError, ExpertUse, Sampler, Sequence, Speculation, SpeculationStats};
use crate::model::{ForwardError, Logits};

impl<'m> Engine<'m> {
    /// Tokens drawn one after another; the prompt has been fed with [`Logits::Last`]. Ends where the context
    /// is full; end tokens and counts are the caller's.
    ///
    /// It may be dropped after any token and the sequence used on: the last token drawn has not been fed.
    pub fn generate<'s>(
        &'s mut self,
        sequence: &'s mut Sequence,
        sampler: &'s mut Sampler,
    ) -> Generation<'s, 'm> {
        Generation {
            engine: self,
            sequence,
            sampler,
            pending: None,
            wanted: usize::MAX,
            drafter: None,
            stats: SpeculationStats::default(),
            watcher: Watcher::default(),
            clock: wall_clock(),
        }
    }
}

/// Decode as an iterator: each item is a token drawn; it is fed when the next is asked for.
///
/// With speculation too: a draft that was run with an earlier token counts as fed when the token after it is
/// asked for. At every item the sequence (positions, tokens, logits) and the sampler are as they are without.
pub struct Generation<'s, 'm> {
    engine: &'s mut Engine<'m>,
    sequence: &'s mut Sequence,
    sampler: &'s mut Sampler,
    /// Drawn and not yet fed, and whether it is a draft that the last pass has run.
    pending: Option<(u32, bool)>,
    /// Tokens that the caller may still ask for.
    wanted: usize,
    drafter: Option<Drafter>,
    stats: SpeculationStats,
    watcher: Watcher<'s>,
    clock: Clock,
}

/// Tells the time, given what has been done so far.
type Clock = Box<dyn Fn(&SpeculationStats) -> Duration + Send>;

fn wall_clock() -> Clock {
    let start = Instant::now();
    Box::new(move |_| start.elapsed())
}

impl<'s> Generation<'s, '_> {
    /// With speculation: the same tokens in fewer passes. The caller will ask for `wanted` tokens at most
    /// (where it knows; else [`usize::MAX`]): no more are drafted.
    pub fn speculate(mut self, speculation: Speculation, wanted: usize) -> Self {
        let block = self.sequence.trail().is_some();
        self.drafter = Drafter::new(speculation, self.sequence.tokens(), block);
        self.wanted = wanted;
        self
    }

    /// Until this flag is set: a pass that is under way then is broken off, and the next item is
    /// [`EngineError::Interrupted`].
    pub fn until(mut self, interrupted: &'s AtomicBool) -> Self {
        self.watcher.interrupted = Some(interrupted);
        self
    }

    /// Counts the experts that the passes choose from now on, those for drafts that are not drawn included.
    pub fn count(mut self, experts: Option<&'s mut ExpertUse>) -> Self {
        self.watcher.experts = experts;
        self
    }

    /// What the last token was drawn from, most probable first.
    pub fn candidates(&self) -> &[Candidate] {
        self.sampler.candidates()
    }

    /// What speculation did so far.
    pub fn stats(&self) -> SpeculationStats {
        self.stats
    }

    fn step(&mut self) -> Result<Option<Candidate>, EngineError> {
        if let Some((id, run)) = self.pending {
            if self.sequence.past() == self.sequence.context() {
                return Ok(None);
            }
            match run {
                true => self.sequence.move_on(id),
                false => self.pass(id)?,
            }
            self.pending = None;
        }
        let logits = self.sequence.usable_logits()?;
        let chosen = self.sampler.sample(logits)?;
        self.sampler.accept(chosen.id)?;
        let run = self.drafter.as_mut().is_some_and(|drafter| drafter.drawn(chosen.id));
        self.stats.accepted += usize::from(run);
        self.wanted = self.wanted.saturating_sub(1);
        self.pending = Some((chosen.id, run));
        Ok(Some(chosen))
    }

    /// Feeds a token, with drafts behind it where that is worth its while.
    fn pass(&mut self, id: u32) -> Result<(), EngineError> {
        let Some(drafter) = &mut self.drafter else {
            let fed = self.feed(id);
            self.stats.passes += usize::from(fed.is_ok());
            return fed;
        };
        let room = self.engine.room(self.sequence).min(self.wanted);
        let plan = drafter.plan(room.saturating_sub(1));
        let began = (self.clock)(&self.stats);
        if let Some(DraftPlan { source: DraftSource::Block, drafts }) = plan {
            drafter.made(&self.engine.draft(self.sequence, id, drafts)?);
        }
        let drafts = drafter.drafts();
        self.stats.drafted += drafts.len();
        let made = (self.clock)(&self.stats);
        match self.engine.feed_drafted(self.sequence, id, drafts, &mut self.watcher) {
            Ok(()) => {
                self.stats.passes += 1;
                drafter.passed(made.saturating_sub(began), (self.clock)(&self.stats).saturating_sub(made));
            }
            // It may be a draft's doing that would never be drawn: the token alone shows it.
            Err(EngineError::Forward(ForwardError::NotFinite { .. } | ForwardError::BeyondKv { .. }))
                if !drafts.is_empty() =>
            {
                drafter.withdraw();
                self.stats.passes += 2;
                self.feed(id)?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn feed(&mut self, id: u32) -> Result<(), EngineError> {
        let go_on = |_| ControlFlow::Continue(());
        self.engine.feed_observed(self.sequence, &[id], Logits::Last, &mut self.watcher, go_on)
    }
}

impl Iterator for Generation<'_, '_> {
    type Item = Result<Candidate, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

#[cfg(test)]
mod tests;
