//! What residency cost.

use std::time::Duration;

/// What has been read from disk since the run (or the measurement) began. An expert is counted once a pass,
/// not once for each of its matrices: it is a hit where all of them were in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResidencyStats {
    /// Experts that were in memory when a pass asked for them, and those that were not.
    pub hits: u64,
    pub misses: u64,
    /// Bytes of them.
    pub hit_bytes: u64,
    pub miss_bytes: u64,
    /// Experts read on a guess, and those of them that were chosen then.
    pub guesses: u64,
    pub right_guesses: u64,
    /// Bytes that came from the disk, for any reason.
    pub bytes_read: u64,
    /// Time in which a pass stood still for want of weights.
    pub wait: Duration,
}

impl ResidencyStats {
    /// The part of the experts' bytes that was in memory; none where no pass has asked for experts.
    pub fn hit_rate(&self) -> Option<f64> {
        let bytes = self.hit_bytes + self.miss_bytes;
        (self.hits + self.misses > 0).then(|| self.hit_bytes as f64 / bytes as f64)
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &ResidencyStats) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.hit_bytes += other.hit_bytes;
        self.miss_bytes += other.miss_bytes;
        self.guesses += other.guesses;
        self.right_guesses += other.right_guesses;
        self.bytes_read += other.bytes_read;
        self.wait += other.wait;
    }

    /// What was added since an earlier reading.
    pub fn since(&self, earlier: &ResidencyStats) -> ResidencyStats {
        ResidencyStats {
            hits: self.hits - earlier.hits,
            misses: self.misses - earlier.misses,
            hit_bytes: self.hit_bytes - earlier.hit_bytes,
            miss_bytes: self.miss_bytes - earlier.miss_bytes,
            guesses: self.guesses - earlier.guesses,
            right_guesses: self.right_guesses - earlier.right_guesses,
            bytes_read: self.bytes_read - earlier.bytes_read,
            wait: self.wait.saturating_sub(earlier.wait),
        }
    }
}
