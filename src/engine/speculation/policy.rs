//! How many tokens to draft: as many as are expected to give the most tokens a second, by what was measured.
//!
//! Knows no clock: durations are passed in.

use std::time::Duration;

use super::MAX_DRAFT;
use super::ngram::LONGEST;

/// Passes after which a measured time counts no more.
const FRESH: u64 = 64;
/// Weight of a new time in its running average.
const TIME_WEIGHT: f64 = 0.25;
/// Least weight of a new comparison in the running average of what is accepted.
const CHANCE_WEIGHT: f64 = 1.0 / 32.0;
/// Gain below which a draft is not worth its while.
const MARGIN: f64 = 1.02;
/// Share of the time that may be lost by measuring what a draft costs where none pays.
const PROBE_SHARE: f64 = 0.02;

/// The measured time of passes with one number of drafts.
#[derive(Clone, Copy, Debug)]
struct PassTime {
    seconds: f64,
    /// The number of the pass that gave it.
    at: u64,
}

/// How often a drafted token is the one that is drawn, those before it being right.
#[derive(Clone, Copy, Debug)]
struct Chance {
    average: f64,
    compared: u32,
}

impl Chance {
    fn update(&mut self, accepted: bool) {
        self.compared = self.compared.saturating_add(1);
        // The mean of all with a first guess that counts as one, later a running average.
        let weight = (1.0 / f64::from(self.compared.saturating_add(1))).max(CHANCE_WEIGHT);
        self.average += weight * (f64::from(u8::from(accepted)) - self.average);
    }

    /// Tokens that a pass with `drafts` drafts gives: `1 + p + p^2 + ...`.
    fn tokens(&self, drafts: usize) -> f64 {
        (0..drafts).rfold(1.0, |sum, _| 1.0 + self.average * sum)
    }
}

/// Chooses the length of drafts by measured times and measured acceptance.
///
/// Acceptance is measured without drafting too, since a draft can be compared with what is drawn whether it
/// was run or not. Times are measured by the passes that are run; where no draft pays, a pass with one draft
/// is run from time to time, so that a few per cent of the time is lost at most.
#[derive(Clone, Debug)]
pub struct DraftPolicy {
    passes: u64,
    /// By the number of drafts.
    times: [Option<PassTime>; MAX_DRAFT + 1],
    /// By the length of the n-gram that gave the draft.
    chances: [Chance; LONGEST + 1],
    /// Seconds that may be lost by measuring.
    allowance: f64,
}

impl Default for DraftPolicy {
    fn default() -> DraftPolicy {
        DraftPolicy {
            passes: 0,
            times: [None; MAX_DRAFT + 1],
            chances: [Chance { average: 0.5, compared: 0 }; LONGEST + 1],
            allowance: f64::INFINITY,
        }
    }
}

impl DraftPolicy {
    /// How many of at most `most` tokens to draft, which an n-gram of `matched` tokens gave.
    pub fn draft_length(&self, matched: usize, most: usize) -> usize {
        let most = most.min(MAX_DRAFT);
        let Some(base) = self.fresh(0).filter(|_| most > 0) else { return 0 };
        let Some(longest) = self.longest() else {
            // What one draft costs was last known so, or is feared to be another pass; no mishap rules it out
            // for good.
            let feared = self.times[1].map_or(base, |time| (time.seconds - base).min(base));
            return usize::from(self.allowance >= feared);
        };
        let chance = &self.chances[matched.min(LONGEST)];
        // Where passes begin to cost more is not known before it is tried: by small steps.
        let most = most.min(longest + longest / 4 + 1);
        let mut best = (0, MARGIN / base);
        for drafts in 1..=most {
            let rate = chance.tokens(drafts) / self.seconds(base, drafts);
            if rate > best.1 {
                best = (drafts, rate);
            }
        }
        best.0
    }

    /// Whether a drafted token was the one drawn, the drafted ones before it having been.
    pub fn compared(&mut self, matched: usize, accepted: bool) {
        self.chances[matched.min(LONGEST)].update(accepted);
    }

    /// What a pass with this many drafts took.
    pub fn passed(&mut self, drafts: usize, time: Duration) {
        let (drafts, seconds) = (drafts.min(MAX_DRAFT), time.as_secs_f64());
        let probe = drafts > 0 && self.longest().is_none();
        let average = self.fresh(drafts).map_or(seconds, |old| old + TIME_WEIGHT * (seconds - old));
        self.passes += 1;
        self.times[drafts] = Some(PassTime { seconds: average, at: self.passes });
        let Some(base) = self.fresh(0) else { return };
        self.allowance += PROBE_SHARE * seconds;
        if probe {
            self.allowance -= (seconds - base).max(0.0);
        }
        self.allowance = self.allowance.clamp(-base, 2.0 * base);
    }

    /// The time of a pass with this many drafts, where it was measured lately.
    fn fresh(&self, drafts: usize) -> Option<f64> {
        self.times[drafts].filter(|time| self.passes - time.at < FRESH).map(|time| time.seconds)
    }

    /// The longest draft whose time was measured lately.
    fn longest(&self) -> Option<usize> {
        (1..=MAX_DRAFT).rev().find(|&drafts| self.fresh(drafts).is_some())
    }

    /// The time of a pass with this many drafts: measured, between its measured neighbours, or on the line
    /// from no draft through the longest measured. Never less than a pass without drafts.
    fn seconds(&self, base: f64, drafts: usize) -> f64 {
        let time = |drafts: usize| Some((drafts as f64, self.fresh(drafts)?));
        let below = (0..=drafts).rev().find_map(time);
        let above = (drafts + 1..=MAX_DRAFT).find_map(time);
        let line = |a: (f64, f64), b: (f64, f64)| a.1 + (b.1 - a.1) * (drafts as f64 - a.0) / (b.0 - a.0);
        let seconds = match (below, above) {
            (Some(below), _) if below.0 == drafts as f64 => below.1,
            (Some(below), Some(above)) => line(below, above),
            (Some(below), None) if below.0 > 0.0 => line((0.0, base), below),
            _ => base,
        };
        seconds.max(base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A simulated run: tokens made and seconds they took.
    struct Run {
        tokens: usize,
        seconds: f64,
        /// Drafts of the last pass.
        last: usize,
    }

    /// Runs passes of `seconds(drafts)`; a drafted token is right with the probability `p`.
    fn run(
        policy: &mut DraftPolicy,
        passes: usize,
        proposed: usize,
        p: f64,
        seconds: impl Fn(usize) -> f64,
    ) -> Run {
        let mut random = 1u64;
        let mut draw = || {
            // Knuth's linear congruential generator.
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 11) as f64 / (1u64 << 53) as f64
        };
        let mut run = Run { tokens: 0, seconds: 0.0, last: 0 };
        for _ in 0..passes {
            let drafts = policy.draft_length(3, proposed);
            assert!(drafts <= proposed.min(MAX_DRAFT));
            run.seconds += seconds(drafts);
            policy.passed(drafts, Duration::from_secs_f64(seconds(drafts)));
            run.tokens += 1;
            // As a generation compares: the drafts that were run, then one that was not.
            for compared in 0..=drafts.min(proposed.saturating_sub(1)) {
                let accepted = draw() < p;
                policy.compared(3, accepted);
                if !accepted {
                    break;
                }
                run.tokens += usize::from(compared < drafts);
            }
            run.last = drafts;
        }
        run
    }

    #[test]
    fn free_drafts_are_as_long_as_can_be() {
        let mut policy = DraftPolicy::default();
        let run = run(&mut policy, 200, 15, 0.9, |_| 0.5);
        assert_eq!(run.last, 15);
        // 1 + 0.9 + ... + 0.9^15 = 8.1 tokens a pass; the first passes try shorter ones.
        assert!(run.tokens as f64 > 0.9 * 8.1 * 200.0, "{} tokens", run.tokens);
        assert_eq!(policy.draft_length(3, 4), 4);
        assert_eq!(policy.draft_length(3, 0), 0);
    }

    #[test]
    fn nothing_is_drafted_before_a_pass_was_measured_and_long_drafts_are_come_to_by_degrees() {
        let mut policy = DraftPolicy::default();
        let lengths: Vec<_> = (0..10)
            .map(|_| {
                let drafts = policy.draft_length(4, 15);
                policy.passed(drafts, Duration::from_millis(100));
                policy.compared(4, true);
                drafts
            })
            .collect();
        assert_eq!(lengths, [0, 1, 2, 3, 4, 6, 8, 11, 14, 15]);
    }

    #[test]
    fn a_few_per_cent_are_lost_at_most_where_drafts_do_not_pay() {
        // Compute bound (each token costs a pass) or in between, with drafts that are always or mostly wrong.
        for (p, slope, passes) in
            [(0.0, 1.0, 500), (0.5, 1.0, 2000), (0.1, 0.3, 500), (0.9, 1.0, 2000), (0.0, 0.1, 500)]
        {
            let mut policy = DraftPolicy::default();
            let run = run(&mut policy, passes, 15, p, |drafts| 0.1 * (1.0 + slope * drafts as f64));
            let plain = run.tokens as f64 * 0.1;
            assert!(run.seconds < 1.04 * plain, "p {p}, slope {slope}: {} s for {plain}", run.seconds);
        }
    }

    #[test]
    fn the_length_follows_from_acceptance_and_cost() {
        // Free up to 7 drafts, then as dear as a pass each.
        let knee = |drafts: usize| 0.5 * (1.0 + drafts.saturating_sub(7) as f64);
        let knee_run = run(&mut DraftPolicy::default(), 300, 15, 0.8, knee);
        // 1 + 0.8 + ... + 0.8^7 = 4.16 tokens in 0.5 s.
        assert!(
            knee_run.tokens as f64 / knee_run.seconds > 0.85 * 4.16 / 0.5,
            "{} in {}",
            knee_run.tokens,
            knee_run.seconds
        );
        // A tenth of a pass for each draft: the more are right, the longer they are.
        let slope = |drafts: usize| 0.5 + 0.05 * drafts as f64;
        let lengths = [0.3, 0.5, 0.9].map(|p| {
            let mut policy = DraftPolicy::default();
            run(&mut policy, 300, 15, p, slope);
            policy.draft_length(3, 15)
        });
        assert!(lengths.is_sorted() && lengths[0] >= 1 && lengths[2] > lengths[0], "{lengths:?}");
    }

    #[test]
    fn a_change_is_noticed() {
        let mut policy = DraftPolicy::default();
        assert_eq!(run(&mut policy, 100, 15, 0.9, |_| 0.5).last, 15);
        // The weights have found room in memory: a pass takes what its tokens take.
        let dear = run(&mut policy, 600, 15, 0.9, |drafts| 0.05 * (1 + drafts) as f64);
        assert_eq!(dear.last, 0);
        let cheap = run(&mut policy, 200, 15, 0.9, |_| 0.5);
        assert!(cheap.tokens > 3 * 200, "{} tokens", cheap.tokens);
        // The text has changed: what is drafted is wrong. It is compared all the same, and comes back.
        let slope = |drafts: usize| 0.5 + 0.1 * drafts as f64;
        assert_eq!(run(&mut policy, 200, 15, 0.0, slope).last, 0);
        assert!(run(&mut policy, 200, 15, 1.0, slope).last > 7);
    }

    #[test]
    fn a_mishap_is_forgotten() {
        let mut policy = DraftPolicy::default();
        policy.passed(0, Duration::from_millis(100));
        assert_eq!(policy.draft_length(3, 15), 1);
        policy.passed(1, Duration::from_secs(20));
        assert_eq!(policy.draft_length(3, 15), 0);
        assert!(run(&mut policy, 300, 15, 0.9, |_| 0.1).last > 10);
    }

    #[test]
    fn ngrams_of_each_length_have_their_own_chance() {
        let mut policy = DraftPolicy::default();
        policy.passed(0, Duration::from_millis(100));
        policy.passed(1, Duration::from_millis(150));
        for _ in 0..20 {
            policy.compared(2, false);
            policy.compared(4, true);
        }
        assert_eq!(policy.draft_length(2, 3), 0);
        assert_eq!(policy.draft_length(4, 3), 2);
    }
}
