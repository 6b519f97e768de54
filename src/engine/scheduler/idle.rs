//! Sequences of requests that are over: another one that begins alike goes on from them.

use super::super::Sequence;

/// Most sequences that are remembered, whatever their memory.
const MOST: usize = 256;

/// See the module; those used last come last.
#[derive(Debug, Default)]
pub(super) struct Idle {
    sequences: Vec<Sequence>,
}

/// Tokens at the beginning that two texts share.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Idle {
    pub fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.sequences.iter()
    }

    /// Bytes held; what sequences share is counted for each.
    pub fn bytes(&self) -> u64 {
        self.sequences.iter().map(Sequence::held_bytes).sum()
    }

    /// Remembers a sequence, in place of those that it only goes on from.
    pub fn keep(&mut self, sequence: Sequence) {
        if sequence.past() == 0 {
            return;
        }
        self.sequences.retain(|old| !sequence.tokens().starts_with(old.tokens()));
        self.sequences.push(sequence);
        let over = self.sequences.len().saturating_sub(MOST);
        self.sequences.drain(..over);
    }

    /// Forgets what was used longest ago; `false` where nothing is remembered.
    pub fn forget_oldest(&mut self) -> bool {
        if self.sequences.is_empty() {
            return false;
        }
        self.sequences.remove(0);
        true
    }

    /// The sequence that a text has most of its beginning in common with.
    pub fn longest(&self, tokens: &[u32]) -> Option<(usize, &Sequence)> {
        let all = self.sequences.iter().map(|sequence| (common(sequence.tokens(), tokens), sequence));
        all.filter(|(same, _)| *same > 0).max_by_key(|(same, _)| *same)
    }

    /// A sequence that stands within a text, as far into it as can be: one that the text only goes on from is
    /// taken, of another one the beginning is forked.
    pub fn take(&mut self, tokens: &[u32]) -> Option<Sequence> {
        let (same, at) = (0..self.sequences.len())
            .map(|at| (common(self.sequences[at].tokens(), tokens), at))
            .filter(|(same, _)| *same > 0)
            .max()?;
        let whole = same == self.sequences[at].past();
        if whole {
            return Some(self.sequences.remove(at));
        }
        let mut fork = self.sequences[at].fork();
        // A recurrence may have to go back further.
        (fork.rewind(same) > 0).then_some(fork)
    }
}
