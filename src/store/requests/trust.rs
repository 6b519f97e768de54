//! Whether guesses of experts are worth reading: how often the last ones were right.

/// What is done with guesses of the experts that a layer will choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guesses {
    /// None are made.
    Off,
    /// They are read ahead while they are mostly right, which is watched.
    #[default]
    Auto,
    /// They are read ahead.
    On,
}

/// The share of right guesses over the last ones, some of which may not have been read.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    share: f64,
    seen: u32,
    trusted: bool,
}

/// Guesses before there is a judgement.
const FIRST: u32 = 64;
/// Guesses that the share is taken over, about.
const MEMORY: u32 = 256;
/// The share from which on guesses are read, and below which they are not any more. Wrong ones take time from
/// an idle disk for the most part, but room in the cache as well. Measured: at 0.87 decode became 1.2 times as
/// fast, at 0.40 no faster.
const EARNED: f64 = 0.65;
const LOST: f64 = 0.55;
/// While guesses are not read, every so manieth pass makes some to be watched.
const WATCHED_PASSES: u64 = 8;

impl Trust {
    /// Takes note of a guess that came out right or wrong.
    pub fn note(&mut self, right: bool) {
        self.seen = (self.seen + 1).min(MEMORY);
        self.share += (f64::from(right) - self.share) / f64::from(self.seen);
        self.trusted = self.seen >= FIRST && self.share >= if self.trusted { LOST } else { EARNED };
    }

    /// Whether guesses are to be made in a pass.
    pub fn makes(&self, guesses: Guesses, pass: u64) -> bool {
        match guesses {
            Guesses::Off => false,
            Guesses::Auto => self.trusted || self.seen < FIRST || pass.is_multiple_of(WATCHED_PASSES),
            Guesses::On => true,
        }
    }

    /// Whether they are to be read.
    pub fn reads(&self, guesses: Guesses) -> bool {
        guesses == Guesses::On || guesses == Guesses::Auto && self.trusted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(trust: &mut Trust, guesses: u32, right_of_20: u32) {
        (0..guesses).for_each(|i| trust.note(i * 7 % 20 < right_of_20));
    }

    #[test]
    fn trust_is_earned_lost_and_earned_again() {
        let mut trust = Trust::default();
        let reads = |trust: &Trust| trust.reads(Guesses::Auto);
        after(&mut trust, FIRST - 1, 20);
        assert!(!reads(&trust) && trust.makes(Guesses::Auto, 1), "too few to judge by, so more are made");
        after(&mut trust, 1, 20);
        assert!(reads(&trust));
        after(&mut trust, 2 * MEMORY, 12);
        assert!(reads(&trust), "{}: between the two it stays", trust.share);
        after(&mut trust, 2 * MEMORY, 8);
        assert!(!reads(&trust));
        assert!(trust.makes(Guesses::Auto, WATCHED_PASSES) && !trust.makes(Guesses::Auto, 1));
        after(&mut trust, 2 * MEMORY, 12);
        assert!(!reads(&trust), "{}: between the two it stays", trust.share);
        after(&mut trust, 2 * MEMORY, 17);
        assert!(reads(&trust));
    }

    #[test]
    fn what_is_asked_for_needs_no_trust() {
        let mut trust = Trust::default();
        for _ in 0..2 {
            assert!(trust.makes(Guesses::On, 1) && trust.reads(Guesses::On));
            assert!(!trust.makes(Guesses::Off, WATCHED_PASSES) && !trust.reads(Guesses::Off));
            after(&mut trust, MEMORY, 20);
        }
    }
}
