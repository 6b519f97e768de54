//! Threads and memory.

use std::collections::BTreeSet;
use std::time::Duration;

use rayon::ThreadPoolBuilder;
use serde::Serialize;

use crate::cli::{CliError, engine_args};
use crate::gguf::TensorType;
use crate::kernels::{Isa, Kernels};
use crate::quant::{self, Format};
use crate::store::{available_memory_bytes, large_pages, memory_limits, total_memory_bytes};
use crate::verify::formats::SpeedTest;

/// What the measurement of one thread may take; those of more take less.
const TIME: Duration = Duration::from_secs(1);
/// Times that each is measured.
const ROUNDS: usize = 2;
/// Tokens of a product as prefill has them.
const TOKENS: usize = 64;

/// What was measured of the cores.
#[derive(Debug, Serialize)]
pub struct Speeds {
    /// The type of weights that it was measured with.
    #[serde(rename = "weights", serialize_with = "name")]
    pub ty: TensorType,
    /// By number of threads, in rising order.
    pub threads: Vec<ThreadSpeed>,
    /// What runs begin with by default.
    pub default: usize,
    /// Kernel sets by default threads, the chosen one first.
    pub sets: Vec<SetSpeed>,
    /// Multiplications with weights a second in a product with 64 tokens, by default threads.
    pub products_s: f64,
}

fn name<S: serde::Serializer>(ty: &TensorType, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(ty.name())
}

/// Bytes a second that so many threads read.
#[derive(Clone, Debug, Serialize)]
pub struct ThreadSpeed {
    pub threads: usize,
    /// Plainly.
    pub read_bytes_s: f64,
    /// As weights of a product with one token.
    pub weights_bytes_s: f64,
}

/// Bytes of weights a second by a kernel set.
#[derive(Clone, Debug, Serialize)]
pub struct SetSpeed {
    #[serde(serialize_with = "set_name")]
    pub isa: Isa,
    pub weights_bytes_s: f64,
}

fn set_name<S: serde::Serializer>(isa: &Isa, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(isa.name())
}

impl Speeds {
    /// What runs begin with by default.
    pub fn default_threads(&self) -> &ThreadSpeed {
        at(&self.threads, self.default).expect("it was measured")
    }

    /// The fewest threads that read weights nearly as fast as any number does.
    pub fn enough_threads(&self) -> &ThreadSpeed {
        /// What a measurement may be off by.
        const NEARLY: f64 = 0.95;
        let best = self.threads.iter().map(|speed| speed.weights_bytes_s).fold(0.0, f64::max);
        let enough = self.threads.iter().find(|speed| speed.weights_bytes_s >= NEARLY * best);
        enough.unwrap_or(self.default_threads())
    }
}

fn at(speeds: &[ThreadSpeed], threads: usize) -> Option<&ThreadSpeed> {
    speeds.iter().find(|speed| speed.threads == threads)
}

/// Measures with weights of a type that can be computed with.
pub fn measure(ty: TensorType) -> Result<Speeds, CliError> {
    let format = quant::format(ty).ok_or_else(|| CliError::new(format!("{ty} cannot be computed with")))?;
    let best = Kernels::detect_best();
    let test = on(1, || SpeedTest::within(TIME, best, format))??;
    let choices = engine_args::threads(None);
    let (default, most) = (choices.numbers()[0], choices.most());
    let powers = std::iter::successors(Some(1usize), |n| n.checked_mul(2)).take_while(|&n| n < most);
    let counts: BTreeSet<usize> = powers.chain(choices.numbers()).collect();
    let none = |threads| ThreadSpeed { threads, read_bytes_s: 0.0, weights_bytes_s: 0.0 };
    let mut threads: Vec<_> = counts.into_iter().map(none).collect();
    // The scalar set is there for its bits, and is never the fastest.
    let others = Kernels::available().filter(|set| set.isa() != best.isa() && set.isa() != Isa::Scalar);
    let mut others: Vec<_> = others.map(|set| (set, 0f64)).collect();
    // In turns, the best of each: what else the machine does would look like a difference.
    for _ in 0..ROUNDS {
        for speed in &mut threads {
            let (weights, read) = on(speed.threads, || run(&test, best, format))??;
            speed.weights_bytes_s = speed.weights_bytes_s.max(weights);
            speed.read_bytes_s = speed.read_bytes_s.max(read);
        }
        for (set, weights_bytes_s) in &mut others {
            let (weights, _) = on(default, || run(&test, set, format))??;
            *weights_bytes_s = weights_bytes_s.max(weights);
        }
    }
    let chosen = at(&threads, default).map_or(0.0, |speed| speed.weights_bytes_s);
    let sets = [(best, chosen)].into_iter().chain(others);
    let sets = sets.map(|(set, weights_bytes_s)| SetSpeed { isa: set.isa(), weights_bytes_s }).collect();
    let products = on(default, || test.products(best, format, TOKENS))?;
    let products_s = products.ok_or_else(|| CliError::new("nothing can be measured"))?;
    Ok(Speeds { ty, threads, default, sets, products_s })
}

/// Runs something on so many threads.
fn on<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> Result<T, CliError> {
    Ok(ThreadPoolBuilder::new().num_threads(threads).build()?.install(run))
}

/// Bytes a second of weights and of plain reads.
fn run(test: &SpeedTest, set: &'static Kernels, format: &'static Format) -> Result<(f64, f64), CliError> {
    let speed = test.run(set, format).ok_or_else(|| CliError::new("nothing can be measured"))?;
    Ok((speed.gb_s * 1e9, speed.read_gb_s * 1e9))
}

/// What memory there is.
#[derive(Debug, Serialize)]
pub struct Memory {
    pub total_bytes: Option<u64>,
    pub available_bytes: Option<u64>,
    /// Below the machine's, the tightest first.
    pub limits: Vec<Limit>,
    /// In the system's word.
    pub large_pages: Option<String>,
}

/// A limit and who sets it.
#[derive(Debug, Serialize)]
pub struct Limit {
    pub by: String,
    pub bytes: u64,
}

impl Memory {
    pub fn now() -> Memory {
        let limits = memory_limits().into_iter();
        let mut limits: Vec<_> = limits.map(|limit| Limit { by: limit.by, bytes: limit.bytes }).collect();
        limits.sort_by_key(|limit| limit.bytes);
        Memory {
            total_bytes: total_memory_bytes(),
            available_bytes: available_memory_bytes(),
            limits,
            large_pages: large_pages(),
        }
    }
}
