//! Read bandwidth of the decode kernels and speed of the prefill kernels, by kernel set, type and threads.
//!
//! `cargo bench --bench kernels [-- MEGABYTES [TYPE..]]`: weights of that size (512 by default) for each
//! type. Decode is given in GB/s of weights next to a plain read of the same bytes; prefill in 10^9
//! multiply-adds a second. Then multiply-adds a cycle of one thread by number of tokens, beside the most that
//! a set's instructions for products of bytes give in registers.

mod limits;

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;
use wayinfer::kernels::{Isa, Kernels, WeightMatrix, matmul};
use wayinfer::quant::{Activations, FORMATS, Format};

/// Columns of the matrices: those of a model of 8 B parameters.
const COLS: usize = 4096;
const PREFILL_TOKENS: usize = 256;
const REPEATS: usize = 5;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let megabytes = args.first().and_then(|arg| arg.parse().ok()).unwrap_or(512);
    let types = args.get(1..).unwrap_or(&[]);
    let mut bytes = vec![0u8; megabytes << 20];
    fill(&mut bytes);
    for why in Kernels::unavailable() {
        println!("skipped: {why}");
    }
    println!(
        "{:>7} {:>8} {:>6} {:>10} {:>10} {:>14}",
        "threads", "kernels", "type", "read GB/s", "dot GB/s", "prefill GMAC/s"
    );
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        pool.install(|| {
            for kernels in Kernels::available() {
                for format in chosen(types) {
                    measure(kernels, format, threads, &bytes);
                }
            }
        });
    }
    by_tokens(types, &bytes);
}

/// Tokens of drafts or of sequences that share a pass, of an expert, of a prompt.
const TOKENS: [usize; 11] = [1, 2, 3, 4, 6, 8, 16, 32, 64, 128, 512];

/// Multiply-adds a cycle of one thread.
fn by_tokens(types: &[String], bytes: &[u8]) {
    let hertz = limits::hertz();
    println!("\nmultiply-adds a cycle by number of tokens, one thread at {:.2} GHz", hertz / 1e9);
    let tokens: String = TOKENS.iter().map(|tokens| format!("{tokens:>7}")).collect();
    println!("{:>8} {:>6} {tokens} {:>7}", "kernels", "type", "limit");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread pool");
    for kernels in Kernels::available().filter(|kernels| kernels.isa() != Isa::Scalar) {
        let limit = limits::macs_a_second(kernels.isa()).map(|macs| format!("{:.1}", macs / hertz));
        for format in chosen(types) {
            let speeds = TOKENS.map(|tokens| pool.install(|| prefill(kernels, format, bytes, tokens, 1024)));
            let speeds: String = speeds.iter().map(|speed| format!("{:>7.1}", speed / hertz)).collect();
            let (isa, ty) = (kernels.isa(), format.ty);
            println!("{isa:>8} {ty:>6} {speeds} {:>7}", limit.as_deref().unwrap_or("-"));
        }
    }
}

/// The formats of these names, or all.
fn chosen(types: &[String]) -> impl Iterator<Item = &'static Format> {
    FORMATS.iter().filter(move |f| types.is_empty() || types.iter().any(|t| t == f.ty.name()))
}

/// Activations of so many tokens.
fn activations(format: &Format, tokens: usize) -> Activations {
    let values: Vec<f32> = (0..tokens * COLS).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    let mut x = Activations::new();
    x.quantize(format.activation, &values, COLS).expect("finite");
    x
}

/// The first rows of weights.
fn weights<'a>(format: &Format, bytes: &'a [u8], rows: usize) -> WeightMatrix<'a> {
    let bytes = &bytes[..rows * format.row_bytes(COLS)];
    WeightMatrix::new(format.ty, bytes, rows, COLS).expect("a format")
}

/// Multiply-adds a second of up to so many rows.
fn prefill(kernels: &'static Kernels, format: &Format, bytes: &[u8], tokens: usize, rows: usize) -> f64 {
    let rows = rows.min(bytes.len() / format.row_bytes(COLS));
    let (x, mut out) = (activations(format, tokens), vec![0f32; rows * tokens]);
    let seconds = best(|| matmul(kernels, weights(format, bytes, rows), black_box(&x), &mut out));
    (rows * COLS * tokens) as f64 / seconds
}

fn measure(kernels: &'static Kernels, format: &Format, threads: usize, bytes: &[u8]) {
    let row_bytes = format.row_bytes(COLS);
    // The scalar kernels would take minutes for all.
    let scalar = kernels.isa() == Isa::Scalar;
    let rows = if scalar { 2048.min(bytes.len() / row_bytes) } else { bytes.len() / row_bytes };
    let gigabytes = (rows * row_bytes) as f64 / 1e9;
    let read = gigabytes / best(|| read(&bytes[..rows * row_bytes]));
    let (one, mut out) = (activations(format, 1), vec![0f32; rows]);
    let dot = gigabytes / best(|| matmul(kernels, weights(format, bytes, rows), black_box(&one), &mut out));
    let (tokens, rows) = if scalar { (8, 64) } else { (PREFILL_TOKENS, 1024) };
    let prefill = prefill(kernels, format, bytes, tokens, rows) / 1e9;
    let (isa, ty) = (kernels.isa(), format.ty);
    println!("{threads:>7} {isa:>8} {ty:>6} {read:>10.1} {dot:>10.1} {prefill:>14.1}");
}

/// The shortest of some runs, seconds: what the machine can do when nothing else disturbs it.
fn best(mut run: impl FnMut()) -> f64 {
    (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

/// Reads all bytes and does next to nothing with them.
fn read(bytes: &[u8]) {
    let sum = |chunk: &[u8]| {
        let (words, _) = chunk.as_chunks::<64>();
        let mut sums = [0u64; 8];
        for word in words {
            for (sum, eight) in sums.iter_mut().zip(word.as_chunks::<8>().0) {
                *sum ^= u64::from_le_bytes(*eight);
            }
        }
        sums.iter().fold(0, |all, sum| all ^ sum)
    };
    black_box(bytes.par_chunks(1 << 20).map(sum).reduce(|| 0, |a, b| a ^ b));
}

/// Bytes that are fair weights of every type: no scales that are infinite, NaN or so small that products are
/// subnormal.
fn fill(bytes: &mut [u8]) {
    let mut state = 1u32;
    for byte in bytes {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8 & 0x3b | 0x40;
    }
}
