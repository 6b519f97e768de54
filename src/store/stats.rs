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
    /// Bytes that came from disk, for any reason.
    pub bytes_read: u64,
    /// The same by disk, in the order of [`Store::disk_loads`](super::Store::disk_loads).
    pub bytes_by_disk: Vec<u64>,
    /// Time in which a pass stood still for want of weights.
    pub wait: Duration,
}

impl ResidencyStats {
    /// The part of the experts' bytes that was in memory; none where no pass has asked for experts.
    pub fn hit_rate(&self) -> Option<f64> {
        let bytes = self.hit_bytes + self.miss_bytes;
        (self.hits + self.misses > 0).then(|| self.hit_bytes as f64 / bytes as f64)
    }

    /// Notes a read.
    pub(super) fn note_read(&mut self, disk: usize, bytes: u64) {
        self.bytes_read += bytes;
        self.bytes_by_disk.resize(self.bytes_by_disk.len().max(disk + 1), 0);
        self.bytes_by_disk[disk] += bytes;
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
        self.bytes_by_disk.resize(self.bytes_by_disk.len().max(other.bytes_by_disk.len()), 0);
        self.bytes_by_disk.iter_mut().zip(&other.bytes_by_disk).for_each(|(sum, bytes)| *sum += bytes);
        self.wait += other.wait;
    }

    /// What was added since an earlier reading.
    pub fn since(&self, earlier: &ResidencyStats) -> ResidencyStats {
        // A disk that had not been read has no entry.
        let before = earlier.bytes_by_disk.iter().chain(std::iter::repeat(&0));
        ResidencyStats {
            hits: self.hits - earlier.hits,
            misses: self.misses - earlier.misses,
            hit_bytes: self.hit_bytes - earlier.hit_bytes,
            miss_bytes: self.miss_bytes - earlier.miss_bytes,
            guesses: self.guesses - earlier.guesses,
            right_guesses: self.right_guesses - earlier.right_guesses,
            bytes_read: self.bytes_read - earlier.bytes_read,
            bytes_by_disk: (self.bytes_by_disk.iter().zip(before))
                .map(|(now, before)| now - before)
                .collect(),
            wait: self.wait.saturating_sub(earlier.wait),
        }
    }
}
