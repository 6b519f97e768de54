//! Memory for sequences: what requests set aside before they start, and what kept texts hold.
//!
//! What is set aside suffices to a request's end, so that none that runs is thrown out for another. Where
//! there is too little for that, one that goes on with a kept text starts with what it needs first and gets
//! more as it goes; where nothing runs that could be waited for, any other does, too. One that can have no
//! more is over: for now, where others run and its text can go on later, and otherwise with an error.
//! Sequences that are only remembered make room for all.

use super::super::{Engine, EngineError};
use super::Scheduler;
use super::job::{End, ROWS, Request, Reserve};
use crate::model::SequenceState;

/// Whether a request may start.
pub(super) enum Room {
    /// With this set aside.
    There(Reserve),
    /// Once others are over.
    Later,
    Never(EngineError),
}

impl Scheduler<'_> {
    /// Bytes of a sequence of so many positions at most.
    pub(super) fn sequence_bytes(&self, positions: usize) -> u64 {
        let Engine { model, batch, kv, context, .. } = &self.engine;
        SequenceState::bytes(model.spec(), positions.min(*context), *batch, 0, *kv)
    }

    /// Bytes that are set aside for requests.
    fn set_aside(&self) -> u64 {
        self.running.iter().map(|job| job.reserve.bytes).sum()
    }

    /// Bytes that are set aside nowhere and held by no kept text; sequences that are only remembered may have
    /// them.
    fn free(&self) -> u64 {
        self.limits.sequence_bytes.saturating_sub(self.set_aside().saturating_add(self.accounts.bytes()))
    }

    /// Whether there are so many bytes, once sequences that are only remembered are gone if need be.
    fn make_room(&mut self, bytes: u64) -> bool {
        let Some(left) = self.free().checked_sub(bytes) else { return false };
        while self.idle.bytes() > left {
            self.idle.forget_oldest();
        }
        true
    }

    /// Whether there is room for a text of so many positions at most.
    pub fn make_room_for(&mut self, positions: usize) -> bool {
        self.make_room(self.sequence_bytes(positions))
    }

    /// Sets memory aside for a request that waits.
    pub(super) fn room_for(&mut self, at: usize) -> Room {
        let Request { prompt, text, max_tokens, prompt_logprobs, .. } = &self.waiting[at];
        let logits = match prompt_logprobs {
            Some(_) => 2 * ROWS * self.engine.model().spec().vocab * size_of::<f32>(),
            None => 0,
        };
        let (held, has) = text.as_ref().map_or((0, 0), |text| (text.counted().0, text.usable_bytes()));
        let bytes = |positions: usize| self.sequence_bytes(positions).saturating_add(logits as u64);
        let whole = bytes(prompt.len().saturating_add(*max_tokens));
        let least = bytes(prompt.len() + 1).saturating_sub(has);
        let most = whole.saturating_sub(has);
        let reserve = |bytes: u64| Room::There(Reserve { bytes, most, has });
        let (is_alone, is_lent) = (self.running.is_empty(), text.is_some());
        if is_alone && self.accounts.bytes() <= held && whole > self.limits.sequence_bytes {
            // It is larger than all there is, and runs alone.
            while self.idle.forget_oldest() {}
            return reserve(most);
        }
        if self.make_room(most) {
            return reserve(most);
        }
        if (is_alone || is_lent) && self.make_room(least) {
            return reserve(least);
        }
        if is_alone { Room::Never(self.no_room(least)) } else { Room::Later }
    }

    fn no_room(&self, bytes: u64) -> EngineError {
        EngineError::NoRoom { bytes, limit: self.limits.sequence_bytes, kept: self.accounts.bytes() }
    }

    /// Sets more aside for those that started with less than they may need, and ends those that cannot have
    /// it.
    pub(super) fn grow(&mut self) {
        for at in (0..self.running.len()).rev() {
            let (Reserve { bytes, most, has }, tokens) = {
                let job = &self.running[at];
                (job.reserve, job.tokens.len())
            };
            if bytes >= most {
                continue;
            }
            let needed = self.sequence_bytes(tokens).saturating_sub(has).min(most);
            let more = needed.saturating_sub(bytes);
            if more == 0 {
                continue;
            }
            if self.make_room(more) {
                self.running[at].reserve.bytes += more;
                continue;
            }
            let goes_on_later = self.running[at].is_lent() && self.running.len() > 1;
            let why = if goes_on_later { Ok(End::Waits) } else { Err(self.no_room(more)) };
            self.end(at, why);
        }
    }
}
