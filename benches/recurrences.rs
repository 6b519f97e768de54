//! What the recurrent steps of a layer take beside its products, by kernel set and threads: the convolution
//! and the delta rule of Qwen3.6-35B-A3B over a prefill and in a decode step, next to the layer's products
//! with weights in Q4_K.
//!
//! `cargo bench --bench recurrences [-- TOKENS]` (512 by default).

use std::hint::black_box;
use std::time::Instant;

use wayinfer::gguf::TensorType;
use wayinfer::kernels::ops::{CausalConv, Decay, DeltaRule, HeadMap, StridedRows};
use wayinfer::kernels::{Isa, Kernels, WeightMatrix, matmul};
use wayinfer::quant::{self, Activations};

const EMBD: usize = 2048;
const HEADS: usize = 32;
const KEY_HEADS: usize = 16;
const LEN: usize = 128;
const TAPS: usize = 4;
const KEYS: usize = KEY_HEADS * LEN;
const VALUES: usize = HEADS * LEN;
const CHANNELS: usize = 2 * KEYS + VALUES;
const REPEATS: usize = 5;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let prefill = args.first().and_then(|arg| arg.parse().ok()).unwrap_or(512);
    println!(
        "{:>7} {:>8} {:>7} {:>14} {:>14} {:>12}",
        "threads", "kernels", "tokens", "convolution ms", "delta rule ms", "products ms"
    );
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        pool.install(|| {
            // The scalar kernels would take minutes.
            for kernels in Kernels::available().filter(|kernels| kernels.isa() != Isa::Scalar) {
                for tokens in [prefill, 1] {
                    let [conv, rule, products] =
                        [convolution, delta_rule, products].map(|f| f(kernels, tokens));
                    let isa = kernels.isa();
                    println!("{threads:>7} {isa:>8} {tokens:>7} {conv:>14.3} {rule:>14.3} {products:>12.3}");
                }
            }
        });
    }
}

/// Values around 0.
fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect()
}

fn convolution(kernels: &'static Kernels, tokens: usize) -> f64 {
    let (x, weight) = (values(tokens * CHANNELS), values(TAPS * CHANNELS));
    let conv = CausalConv { channels: CHANNELS, weight: &weight, bias: None, silu: true };
    let (mut window, mut out) = (vec![0.0; conv.window_len()], vec![0.0; x.len()]);
    best(|| kernels.ops().causal_conv(&conv, black_box(&x), &mut window, &mut out))
}

fn delta_rule(kernels: &'static Kernels, tokens: usize) -> f64 {
    let mut mixed = values(tokens * CHANNELS);
    kernels.ops().l2_norm(&mut mixed, CHANNELS, 2 * KEYS, LEN, 1e-6);
    let (decay, beta) = (vec![0.9; tokens * HEADS], vec![0.5; tokens * HEADS]);
    let rows = |offset| StridedRows { data: &mixed, stride: CHANNELS, offset };
    let rule = DeltaRule {
        tokens,
        heads: HEADS,
        key_heads: KEY_HEADS,
        map: HeadMap::Tiled,
        len: LEN,
        q: rows(0),
        k: rows(KEYS),
        v: rows(2 * KEYS),
        decay: Decay::Head(&decay),
        beta: &beta,
    };
    let mut state = vec![0.0; rule.state_len()];
    let (mut out, mut scratch) = (vec![0.0; tokens * VALUES], vec![0.0; tokens * VALUES]);
    best(|| kernels.ops().delta_rule(black_box(&rule), &mut state, &mut out, &mut scratch))
}

/// Those of `attn_qkv`, `attn_gate` and `ssm_out`.
fn products(kernels: &'static Kernels, tokens: usize) -> f64 {
    let product = |rows: usize, cols: usize| {
        let format = quant::format(TensorType::Q4_K).expect("a format");
        let bytes = vec![0x11u8; rows * format.row_bytes(cols)];
        let mut x = Activations::new();
        x.quantize(format.activation, &values(tokens * cols), cols).expect("finite");
        let mut out = vec![0.0; tokens * rows];
        let weights = || WeightMatrix::new(TensorType::Q4_K, &bytes, rows, cols).expect("a format");
        best(|| matmul(kernels, weights(), black_box(&x), &mut out))
    };
    product(CHANNELS + VALUES, EMBD) + product(EMBD, VALUES)
}

/// The shortest of some runs, milliseconds.
fn best(mut run: impl FnMut()) -> f64 {
    (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64() * 1e3
        })
        .fold(f64::INFINITY, f64::min)
}
