//! What a sequence keeps for its block of multi-token prediction: which positions the block remembers, and
//! what the trunk's last passes left of the positions that it does not.

/// Positions that may be left to the block before it remembers them: one reading of its weights for all.
pub(super) const MOST_BEHIND: usize = 32;

/// See the module. The block's row of a position is made of its token and of what the position before it
/// left.
#[derive(Clone, Debug)]
pub(super) struct Trail {
    embd: usize,
    /// The first positions, which the block remembers.
    filled: usize,
    /// `[positions from first on][E]`
    ends: Vec<f32>,
    first: usize,
    /// The block gave what is not finite: it drafts no more.
    pub broken: bool,
}

impl Trail {
    pub fn new(embd: usize) -> Trail {
        Trail { embd, filled: 0, ends: Vec::new(), first: 0, broken: false }
    }

    /// Positions that the block remembers.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// The trunk has run positions from `first_pos` on, which left these rows.
    pub fn passed(&mut self, first_pos: usize, ends: &[f32]) {
        if self.broken {
            return;
        }
        self.rewind(first_pos);
        // Only what follows is of use.
        if self.first + self.ends.len() / self.embd != first_pos {
            self.ends.clear();
        }
        if self.ends.is_empty() {
            self.first = first_pos;
        }
        self.ends.extend_from_slice(ends);
    }

    /// The block remembers the positions up to `past` now.
    pub fn fill(&mut self, past: usize) {
        self.filled = past;
        // The row of the next position needs what the last one left.
        let known = past.saturating_sub(1).saturating_sub(self.first) * self.embd;
        self.ends.drain(..known.min(self.ends.len()));
        self.first = self.first.max(past.saturating_sub(1));
    }

    /// The trunk stands after so many positions without having run them. The block drafts on where it
    /// remembers them; what the last of them left is not known.
    pub fn resume(&mut self, past: usize, filled: bool) {
        *self = Trail { filled: past, first: past, broken: !filled, ..Trail::new(self.embd) };
    }

    /// Forgets all from position `past` on.
    pub fn rewind(&mut self, past: usize) {
        self.filled = self.filled.min(past);
        self.ends.truncate(past.saturating_sub(self.first) * self.embd);
    }

    /// What the positions before some left, `[positions][E]`; zeros before the first position, and where it
    /// is not known any more.
    pub fn before(&self, positions: std::ops::Range<usize>) -> Vec<f32> {
        let mut rows = vec![0.0; positions.len() * self.embd];
        for (pos, row) in positions.zip(rows.chunks_exact_mut(self.embd)) {
            let known =
                pos.checked_sub(1 + self.first).and_then(|at| self.ends.chunks_exact(self.embd).nth(at));
            if let Some(known) = known {
                row.copy_from_slice(known);
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a position left of a text.
    fn end(text: usize, pos: usize) -> [f32; 2] {
        [(100 * text + pos) as f32, pos as f32 + 0.5]
    }

    fn ends(text: usize, positions: std::ops::Range<usize>) -> Vec<f32> {
        positions.flat_map(|pos| end(text, pos)).collect()
    }

    #[test]
    fn each_row_is_of_the_position_before() {
        let mut trail = Trail::new(2);
        trail.passed(0, &ends(1, 0..5));
        assert_eq!(trail.before(0..3), [&[0.0; 2][..], &ends(1, 0..2)].concat());
        trail.fill(5);
        assert_eq!((trail.filled(), trail.ends.len()), (5, 2), "the last row is kept for the next position");
        trail.passed(5, &ends(1, 5..8));
        assert_eq!(trail.before(5..9), ends(1, 4..8));
        trail.fill(6);
        assert_eq!(trail.before(6..9), ends(1, 5..8));
    }

    #[test]
    fn drafts_that_did_not_stand_are_written_over() {
        let mut trail = Trail::new(2);
        trail.passed(0, &ends(1, 0..4));
        trail.fill(3);
        // Position 4 with drafts behind it, of which one stands.
        trail.passed(4, &ends(1, 4..8));
        trail.passed(6, &ends(2, 6..7));
        assert_eq!(trail.before(3..8), [ends(1, 2..6), ends(2, 6..7)].concat());
    }

    #[test]
    fn what_is_taken_back_is_not_remembered() {
        let mut trail = Trail::new(2);
        trail.passed(0, &ends(1, 0..9));
        trail.fill(7);
        trail.rewind(8);
        assert_eq!((trail.filled(), trail.before(8..9)), (7, ends(1, 7..8)));
        // Before what is kept: zeros, as before the first.
        trail.rewind(4);
        assert_eq!((trail.filled(), trail.before(4..5)), (4, vec![0.0; 2]));
        trail.passed(4, &ends(3, 4..6));
        assert_eq!(trail.before(4..7), [&[0.0; 2][..], &ends(3, 4..6)].concat());
        trail.rewind(0);
        trail.passed(0, &ends(4, 0..2));
        assert_eq!((trail.filled(), trail.before(0..2)), (0, [&[0.0; 2][..], &ends(4, 0..1)].concat()));
    }
}
