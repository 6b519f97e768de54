//! How fast a kernel reads weights, beside a plain read of the same bytes.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use zerocopy::IntoBytes;

use crate::kernels::{Kernels, WeightMatrix, matmul};
use crate::quant::{Activations, Format};
use crate::store::{OutOfMemory, available_memory_bytes, zeroed};
use crate::verify::median;

/// Columns of the matrix: those of a model of 8 B parameters.
const COLS: usize = 4096;
/// Measured rounds; one more warms up.
const ROUNDS: usize = 5;
/// Bytes of weights: well beyond the caches.
const BYTES: u64 = 512 << 20;
const LEAST_BYTES: u64 = 16 << 20;

/// What was measured: medians.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Bytes of weights a second in a product with one token, in 10^9.
    pub gb_s: f64,
    /// The same bytes read plainly, between the products.
    pub read_gb_s: f64,
}

impl Speed {
    /// The share of the bandwidth.
    pub fn ratio(&self) -> f64 {
        self.gb_s / self.read_gb_s
    }
}

/// A buffer of weights that are fair for every format.
#[derive(Debug)]
pub struct SpeedTest {
    weights: Vec<u32>,
}

impl SpeedTest {
    /// Fills the buffer: 512 MiB, or a half of the memory that can be had where that is less.
    ///
    /// # Errors
    /// Where it cannot be had.
    pub fn new() -> Result<SpeedTest, OutOfMemory> {
        SpeedTest::of_at_most(BYTES)
    }

    /// A buffer with which a measurement by one thread takes about so long at the most, by a first one of a
    /// small buffer: slow kernels need none that is larger than all caches.
    ///
    /// # Errors
    /// Where it cannot be had.
    pub fn within(
        time: Duration,
        kernels: &'static Kernels,
        format: &Format,
    ) -> Result<SpeedTest, OutOfMemory> {
        let small = SpeedTest::of_at_most(LEAST_BYTES)?;
        let started = Instant::now();
        small.run(kernels, format);
        let times = time.as_secs_f64() / started.elapsed().as_secs_f64();
        SpeedTest::of_at_most((small.bytes() as f64 * times) as u64)
    }

    fn of_at_most(bytes: u64) -> Result<SpeedTest, OutOfMemory> {
        let room = available_memory_bytes().map_or(BYTES, |available| available / 2);
        SpeedTest::of(bytes.min(BYTES).min(room).max(LEAST_BYTES))
    }

    fn of(bytes: u64) -> Result<SpeedTest, OutOfMemory> {
        let mut weights: Vec<u32> = zeroed(&[bytes as usize / 4], "the buffer of weights")?;
        weights.par_chunks_mut(1 << 16).enumerate().for_each(|(i, chunk)| {
            let mut state = i as u32;
            for word in chunk {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // No infinite or NaN scales, whatever the format: no exponent is all ones.
                *word = (state >> 3) & 0x3b3b_3b3b;
            }
        });
        Ok(SpeedTest { weights })
    }

    /// Bytes of the buffer.
    pub fn bytes(&self) -> usize {
        self.weights.len() * 4
    }

    /// Bytes a second of plain reads in the current thread pool: the median.
    pub fn read_speed(&self) -> f64 {
        let bytes = self.weights.as_bytes();
        read(bytes);
        let times: Vec<f64> = (0..ROUNDS).map(|_| seconds(|| read(bytes))).collect();
        bytes.len() as f64 / median(times).unwrap_or(f64::INFINITY)
    }

    /// Multiplications with weights a second in products with so many tokens, in the current thread pool: the
    /// median.
    pub fn products(&self, kernels: &'static Kernels, format: &Format, tokens: usize) -> Option<f64> {
        /// Rows of the matrix: enough for all threads.
        const ROWS: usize = 2048;
        let row_bytes = format.row_bytes(COLS);
        let rows = ROWS.min(self.bytes() / row_bytes);
        let weights = WeightMatrix::new(format.ty, &self.weights.as_bytes()[..rows * row_bytes], rows, COLS)?;
        let mut x = Activations::new();
        x.quantize(format.activation, &activations(tokens), COLS).ok()?;
        let mut out = vec![0f32; rows * tokens];
        let mut run = || matmul(kernels, weights, black_box(&x), black_box(&mut out));
        run();
        let times: Vec<f64> = (0..ROUNDS).map(|_| seconds(&mut run)).collect();
        Some((rows * COLS * tokens) as f64 / median(times)?)
    }

    /// Measures a kernel set on one format, in the current thread pool.
    pub fn run(&self, kernels: &'static Kernels, format: &Format) -> Option<Speed> {
        let row_bytes = format.row_bytes(COLS);
        let rows = self.bytes() / row_bytes;
        let bytes = &self.weights.as_bytes()[..rows * row_bytes];
        let weights = WeightMatrix::new(format.ty, bytes, rows, COLS)?;
        let mut x = Activations::new();
        x.quantize(format.activation, &activations(1), COLS).ok()?;
        let mut out = vec![0f32; rows];
        let (mut dots, mut reads) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let times = (
                seconds(|| matmul(kernels, weights, black_box(&x), black_box(&mut out))),
                seconds(|| read(bytes)),
            );
            if round > 0 {
                dots.push(times.0);
                reads.push(times.1);
            }
        }
        let rate = |times: Vec<f64>| Some(bytes.len() as f64 / median(times)? / 1e9);
        Some(Speed { gb_s: rate(dots)?, read_gb_s: rate(reads)? })
    }
}

/// Of so many tokens.
fn activations(tokens: usize) -> Vec<f32> {
    (0..tokens * COLS).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect()
}

fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

/// Reads all bytes and does next to nothing with them.
fn read(bytes: &[u8]) {
    let sum = |chunk: &[u8]| {
        let mut sums = [0u64; 8];
        for line in chunk.as_chunks::<64>().0 {
            for (sum, eight) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                *sum ^= u64::from_le_bytes(*eight);
            }
        }
        sums.iter().fold(0, |all, sum| all ^ sum)
    };
    black_box(bytes.par_chunks(1 << 20).map(sum).reduce(|| 0, |a, b| a ^ b));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::FORMATS;

    #[test]
    fn every_format_has_a_speed() {
        let test = SpeedTest::of(1 << 20).expect("memory");
        assert_eq!(test.bytes(), 1 << 20);
        for format in FORMATS {
            let speed = test.run(Kernels::detect_best(), format).expect("a speed");
            let products = test.products(Kernels::detect_best(), format, 3).expect("a speed");
            assert!(products > 0.0 && products.is_finite(), "{}", format.ty);
            assert!(speed.gb_s > 0.0 && speed.read_gb_s > 0.0 && speed.ratio().is_finite(), "{}", format.ty);
            // The weights are fair: a product of a few of them is finite.
            let mut values = vec![0f32; 256];
            (format.decode)(&test.weights.as_bytes()[..format.row_bytes(256)], &mut values);
            assert!(values.iter().all(|v| v.is_finite()) && values.iter().any(|&v| v != values[0]));
        }
    }
}
