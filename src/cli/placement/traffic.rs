//! What a run read from disk, held to what the disk can do.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::cli::output;
use crate::store::ResidencyStats;

/// What a run read from disk and waited for.
#[derive(Clone, Debug, Serialize)]
pub struct Traffic {
    tokens: usize,
    seconds: f64,
    /// Experts (gate, up and down together) found in memory and not, counted once a pass.
    hits: u64,
    misses: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    hit_rate: Option<f64>,
    /// Experts read on a guess, and those of them that were chosen.
    #[serde(skip_serializing_if = "is_zero")]
    guesses: u64,
    #[serde(skip_serializing_if = "is_zero")]
    right_guesses: u64,
    bytes_read: u64,
    bytes_read_per_token: f64,
    pub read_bytes_s: f64,
    /// Time in which the run stood still for want of weights.
    wait_s: f64,
    /// Tokens a second if nothing but the reads took time; and the share of it that was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    bound_tok_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fraction_of_bound: Option<f64>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Traffic {
    /// Of so many tokens in a time.
    pub fn new(stats: &ResidencyStats, tokens: usize, time: Duration) -> Traffic {
        let seconds = time.as_secs_f64();
        let lookups = stats.hits + stats.misses;
        let (hit_bytes, bytes) = (stats.hit_bytes as f64, (stats.hit_bytes + stats.miss_bytes) as f64);
        Traffic {
            tokens,
            seconds,
            hits: stats.hits,
            misses: stats.misses,
            hit_rate: (lookups > 0).then_some(hit_bytes / bytes),
            guesses: stats.guesses,
            right_guesses: stats.right_guesses,
            bytes_read: stats.bytes_read,
            bytes_read_per_token: stats.bytes_read as f64 / tokens.max(1) as f64,
            read_bytes_s: stats.bytes_read as f64 / seconds,
            wait_s: stats.wait.as_secs_f64(),
            bound_tok_s: None,
            fraction_of_bound: None,
        }
    }

    /// Adds the bound that a disk of this speed (bytes a second) sets.
    pub fn bounded_by(mut self, disk: Option<f64>) -> Traffic {
        if let Some(disk) = disk.filter(|_| self.bytes_read > 0) {
            let bound = disk / self.bytes_read_per_token;
            self.bound_tok_s = Some(bound);
            self.fraction_of_bound = Some(self.tokens as f64 / self.seconds / bound);
        }
        self
    }

    /// In words.
    pub fn line(&self) -> String {
        let mut line = String::new();
        if let Some(rate) = self.hit_rate {
            let _ = write!(line, "hits {:.1} %, ", rate * 100.0);
        }
        let _ = write!(
            line,
            "{} a token from disk at {}/s, waited {:.1} of {:.1} s",
            output::bytes(self.bytes_read_per_token as u64),
            output::bytes(self.read_bytes_s as u64),
            self.wait_s,
            self.seconds,
        );
        if let Some((bound, fraction)) = self.bound_tok_s.zip(self.fraction_of_bound) {
            let _ = write!(line, ", {:.0} % of the disk's bound of {bound:.2} tok/s", fraction * 100.0);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_held_to_the_disk() {
        let stats = ResidencyStats {
            bytes_read: 4_000,
            hits: 1,
            misses: 3,
            hit_bytes: 1,
            miss_bytes: 3,
            ..Default::default()
        };
        let traffic = Traffic::new(&stats, 4, Duration::from_secs(2)).bounded_by(Some(4_000.0));
        assert_eq!((traffic.bytes_read_per_token, traffic.read_bytes_s), (1_000.0, 2_000.0));
        assert_eq!(
            (traffic.hit_rate, traffic.bound_tok_s, traffic.fraction_of_bound),
            (Some(0.25), Some(4.0), Some(0.5))
        );
        assert_eq!(
            traffic.line(),
            "hits 25.0 %, 1.00 kB a token from disk at 2.00 kB/s, waited 0.0 of 2.0 s, 50 % of the disk's \
             bound of 4.00 tok/s"
        );
    }
}
