//! Decode as an iterator, with speculation or without.

use std::time::Instant;

use super::speculation::Drafter;
use super::{Candidate, Engine, EngineError, Sampler, Sequence, Speculation, SpeculationStats};
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
}

impl Generation<'_, '_> {
    /// With speculation: the same tokens in fewer passes. The caller will ask for `wanted` tokens at most
    /// (where it knows; else [`usize::MAX`]): no more are drafted.
    pub fn speculate(mut self, speculation: Speculation, wanted: usize) -> Self {
        let (model, text) = (self.engine.model, self.sequence.tokens());
        self.drafter = match speculation {
            Speculation::Fixed(_) if speculation.most() > 0 => Some(Drafter::fixed(text, speculation.most())),
            Speculation::Auto if !model.spec().has_experts() && model.store().streams_every_pass() => {
                Some(Drafter::adaptive(text))
            }
            _ => None,
        };
        self.wanted = wanted;
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
        let Some(chosen) = self.sampler.sample(logits) else { return Ok(None) };
        self.sampler.accept(chosen.id);
        let run = self.drafter.as_mut().is_some_and(|drafter| drafter.drawn(chosen.id));
        self.stats.accepted += usize::from(run);
        self.wanted = self.wanted.saturating_sub(1);
        self.pending = Some((chosen.id, run));
        Ok(Some(chosen))
    }

    /// Feeds a token, with drafts behind it where that is worth its while.
    fn pass(&mut self, id: u32) -> Result<(), EngineError> {
        self.stats.passes += 1;
        let Some(drafter) = &mut self.drafter else {
            return self.engine.feed(self.sequence, &[id], Logits::Last);
        };
        let room = (self.sequence.context() - self.sequence.past()).min(self.engine.batch).min(self.wanted);
        let drafts = drafter.draft(room.saturating_sub(1));
        self.stats.drafted += drafts.len();
        let started = Instant::now();
        match self.engine.feed_drafted(self.sequence, id, drafts) {
            Ok(()) => drafter.passed(started.elapsed()),
            // It may be a draft's doing that would never be drawn: the token alone shows it.
            Err(EngineError::Forward(ForwardError::NotFinite { .. } | ForwardError::BeyondF16 { .. }))
                if !drafts.is_empty() =>
            {
                drafter.withdraw();
                self.stats.passes += 1;
                self.engine.feed(self.sequence, &[id], Logits::Last)?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
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
