//! The public face of activations and elementwise operations: batches over threads.

use rayon::prelude::*;

use super::{Ops, run};

/// Elements from which a batch is spread over threads: below, waking them costs more than the work.
pub(super) const PARALLEL: usize = 1 << 16;
/// Elements of one piece of an elementwise operation; a multiple of 16, so that lanes fall alike.
const PIECE: usize = 1 << 14;

impl Ops {
    /// `x = x / (1 + exp(-x))`.
    pub fn silu(&self, x: &mut [f32]) {
        pieces(x, |x| run!(self, silu(x)));
    }

    /// `x = 1 / (1 + exp(-x))`.
    pub fn sigmoid(&self, x: &mut [f32]) {
        pieces(x, |x| run!(self, sigmoid(x)));
    }

    /// `x = exp(x)`.
    pub fn exp(&self, x: &mut [f32]) {
        pieces(x, |x| run!(self, exp(x)));
    }

    /// `x = ln(1 + exp(x))`.
    pub fn softplus(&self, x: &mut [f32]) {
        pieces(x, |x| run!(self, softplus(x)));
    }

    /// `x = sqrt(ln(1 + exp(x)))`, rounded twice.
    pub fn sqrt_softplus(&self, x: &mut [f32]) {
        pieces(x, |x| run!(self, sqrt_softplus(x)));
    }

    /// The tanh approximation of GELU with the values of ggml's CPU path: 0 up to -10, x itself from 10 on,
    /// between them a table of F16 by x rounded to F16.
    pub fn gelu(&self, x: &mut [f32]) {
        pieces(x, |x| run!(self, gelu(x)));
    }

    /// `x = max(x, 0)^2`.
    pub fn relu_squared(&self, x: &mut [f32]) {
        pieces(x, |x| run!(self, relu_squared(x)));
    }

    /// `x = tanh(x * (1 / cap)) * cap`, in ggml's order: the bound on final logits.
    pub fn soft_cap(&self, x: &mut [f32], cap: f32) {
        pieces(x, |x| run!(self, soft_cap(x, 1.0 / cap, cap)));
    }

    /// `gate = silu(gate) * up`, both of the same length.
    pub fn swiglu(&self, gate: &mut [f32], up: &[f32]) {
        pieces2(gate, up, |gate, up| run!(self, swiglu(gate, up)));
    }

    /// `gate = gelu(gate) * up`, both of the same length; GELU as in [`Ops::gelu`].
    pub fn geglu(&self, gate: &mut [f32], up: &[f32]) {
        pieces2(gate, up, |gate, up| run!(self, geglu(gate, up)));
    }

    /// `gate = g / (1 + exp(alpha * -g)) * (u + 1)` with `g = min(gate, limit)` and `u` = `up` within
    /// ±`limit`, both of the same length: ggml's `swiglu_oai`.
    pub fn swiglu_oai(&self, gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
        pieces2(gate, up, |gate, up| run!(self, swiglu_oai(gate, up, alpha, limit)));
    }

    /// `gate = min(silu(gate), limit) * u` with `u` = `up` within ±`limit`, both of the same length: Step
    /// 3.5's order in ggml's `build_moe_ffn`; [`Ops::swiglu_limited`] has the other.
    pub fn swiglu_clamped(&self, gate: &mut [f32], up: &[f32], limit: f32) {
        pieces2(gate, up, |gate, up| run!(self, swiglu_clamped(gate, up, limit)));
    }

    /// `gate = silu(min(gate, limit)) * u` with `u` = `up` within ±`limit`, both of the same length: ggml's
    /// operator `swiglu_clamp`.
    pub fn swiglu_limited(&self, gate: &mut [f32], up: &[f32], limit: f32) {
        pieces2(gate, up, |gate, up| run!(self, swiglu_limited(gate, up, limit)));
    }

    /// `gate = beta tanh(gate / beta) sigmoid(gate) * linear tanh(up / linear)`, from left to right,
    /// divisions as products with rounded reciprocals: Kimi K3's SiTU. `up` as it is where `linear` is 0.
    pub fn situ(&self, gate: &mut [f32], up: &[f32], beta: f32, linear: f32) {
        pieces2(gate, up, |gate, up| run!(self, situ(gate, up, beta, linear)));
    }

    /// `acc += x`, both of the same length.
    pub fn add(&self, acc: &mut [f32], x: &[f32]) {
        pieces2(acc, x, |acc, x| run!(self, add(acc, x)));
    }

    /// `acc *= x`, both of the same length.
    pub fn mul(&self, acc: &mut [f32], x: &[f32]) {
        pieces2(acc, x, |acc, x| run!(self, mul(acc, x)));
    }

    /// `x *= by`.
    pub fn scale(&self, x: &mut [f32], by: f32) {
        pieces(x, |x| run!(self, scale(x, by)));
    }

    /// Each row of `out` is the sum of some rows of `x`, each times its weight: product and sum rounded
    /// apart, added in the given order. `out`: `[rows][n]`; `x`: `[any][n]`; `chosen`: which rows of `x`,
    /// with `weights` as many for each row of `out`.
    pub fn sum_weighted(&self, x: &[f32], chosen: &[usize], weights: &[f32], n: usize, out: &mut [f32]) {
        assert_eq!(chosen.len(), weights.len(), "rows and their weights");
        if out.is_empty() {
            return;
        }
        assert!(n > 0 && out.len().is_multiple_of(n), "{} values in rows of {n}", out.len());
        let each = chosen.len() / (out.len() / n);
        assert!(each > 0 && chosen.len() * n == each * out.len(), "{} rows to choose", chosen.len());
        let sum = |((out, chosen), weights): ((&mut [f32], &[usize]), &[f32])| {
            for (i, (&row, &weight)) in chosen.iter().zip(weights).enumerate() {
                let x = &x[row * n..(row + 1) * n];
                if i == 0 {
                    out.copy_from_slice(x);
                    run!(self, scale(out, weight));
                } else {
                    run!(self, add_scaled(out, weight, x));
                }
            }
        };
        if chosen.len() * n < PARALLEL {
            out.chunks_exact_mut(n)
                .zip(chosen.chunks_exact(each))
                .zip(weights.chunks_exact(each))
                .for_each(sum);
        } else {
            let rows = out.par_chunks_exact_mut(n).zip(chosen.par_chunks_exact(each));
            rows.zip(weights.par_chunks_exact(each)).for_each(sum);
        }
    }

    /// `x[row] += bias` for each row of `x`: `[rows][bias.len()]`.
    pub fn add_bias(&self, x: &mut [f32], bias: &[f32]) {
        let n = bias.len();
        assert!(x.is_empty() || n > 0 && x.len().is_multiple_of(n), "{} values in rows of {n}", x.len());
        if x.len() < PARALLEL {
            x.chunks_exact_mut(n.max(1)).for_each(|row| run!(self, add(row, bias)));
        } else {
            x.par_chunks_exact_mut(n).for_each(|row| run!(self, add(row, bias)));
        }
    }
}

fn pieces(x: &mut [f32], f: impl Fn(&mut [f32]) + Send + Sync) {
    if x.len() < PARALLEL { f(x) } else { x.par_chunks_mut(PIECE).for_each(f) }
}

fn pieces2(x: &mut [f32], y: &[f32], f: impl Fn(&mut [f32], &[f32]) + Sync) {
    assert_eq!(x.len(), y.len(), "operands differ in length");
    if x.len() < PARALLEL {
        f(x, y);
    } else {
        x.par_chunks_mut(PIECE).zip(y.par_chunks(PIECE)).for_each(|(x, y)| f(x, y));
    }
}
