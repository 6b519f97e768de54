//! What a run read from disk, held to what the disk can do.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::cli::output;
use crate::store::{ResidencyStats, disk_seconds};

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
    /// Of each disk, where several were read.
    #[serde(skip_serializing_if = "is_one_disk")]
    bytes_read_by_disk: Vec<u64>,
    bytes_read_per_token: f64,
    read_bytes_s: f64,
    /// Time in which the run stood still for want of weights.
    wait_s: f64,
    /// Tokens a second if nothing but the reads took time; and the share of it that was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    bound_tok_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fraction_of_bound: Option<f64>,
}

fn is_one_disk(bytes: &[u64]) -> bool {
    bytes.len() < 2
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
            bytes_read_by_disk: stats.bytes_by_disk.clone(),
            bytes_read_per_token: stats.bytes_read as f64 / tokens.max(1) as f64,
            read_bytes_s: stats.bytes_read as f64 / seconds,
            wait_s: stats.wait.as_secs_f64(),
            bound_tok_s: None,
            fraction_of_bound: None,
        }
    }

    /// Bytes a second that came from each disk.
    pub fn read_bytes_s_by_disk(&self) -> impl Iterator<Item = f64> + '_ {
        self.bytes_read_by_disk.iter().map(|&bytes| bytes as f64 / self.seconds)
    }

    /// Adds the bound that disks of these speeds (bytes a second) set; see [`disk_seconds`].
    pub fn bounded_by(mut self, speeds: &[Option<f64>]) -> Traffic {
        let bytes = self.bytes_read_by_disk.iter().map(|&bytes| bytes as f64);
        if let Some(seconds) = disk_seconds(bytes, speeds) {
            let bound = self.tokens as f64 / seconds;
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
            let disk = if is_one_disk(&self.bytes_read_by_disk) { "disk's" } else { "disks'" };
            let _ = write!(line, ", {:.0} % of the {disk} bound of {bound:.2} tok/s", fraction * 100.0);
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
            bytes_by_disk: vec![4_000],
            hits: 1,
            misses: 3,
            hit_bytes: 1,
            miss_bytes: 3,
            ..Default::default()
        };
        let traffic = Traffic::new(&stats, 4, Duration::from_secs(2)).bounded_by(&[Some(4_000.0)]);
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

    /// The slower disk for its bytes sets the bound; equal loads of equal disks halve the time.
    #[test]
    fn traffic_of_several_disks_is_held_to_the_slowest_for_its_bytes() {
        let bound = |bytes_by_disk: [u64; 2], speeds: [f64; 2]| {
            let bytes_read = bytes_by_disk.iter().sum();
            let stats =
                ResidencyStats { bytes_read, bytes_by_disk: bytes_by_disk.to_vec(), ..Default::default() };
            let traffic = Traffic::new(&stats, 4, Duration::from_secs(2)).bounded_by(&speeds.map(Some));
            (traffic.bound_tok_s, traffic.line().contains("of the disks' bound"))
        };
        assert_eq!(bound([4_000, 0], [4_000.0, 4_000.0]), (Some(4.0), true));
        assert_eq!(bound([2_000, 2_000], [4_000.0, 4_000.0]), (Some(8.0), true));
        assert_eq!(bound([3_000, 1_000], [3_000.0, 1_000.0]), (Some(4.0), true));
        assert_eq!(bound([1_000, 3_000], [3_000.0, 1_000.0]), (Some(4.0 / 3.0), true));
    }
}
