//! The public face of norms, activations, softmax and elementwise operations: batches of rows over threads.

use rayon::prelude::*;

use super::{Ops, run};

/// Elements from which a batch is spread over threads: below, waking them costs more than the work.
const PARALLEL: usize = 1 << 16;
/// Elements of one piece of an elementwise operation; a multiple of 16, so that lanes fall alike.
const PIECE: usize = 1 << 14;

impl Ops {
    /// `x = exp(x)`, within 1 ULP.
    pub fn exp(&self, x: &mut [f32]) {
        pieces(x, |x| run!(self, exp(x)));
    }

    /// `x = x / (1 + exp(-x))`.
    pub fn silu(&self, x: &mut [f32]) {
        pieces(x, |x| run!(self, silu(x)));
    }

    /// `gate = silu(gate) * up`, both of the same length.
    pub fn swiglu(&self, gate: &mut [f32], up: &[f32]) {
        pieces2(gate, up, |gate, up| run!(self, swiglu(gate, up)));
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

    /// `acc += weight * x`, product and sum rounded apart, as ggml's graph of a mixture of experts does; both of
    /// the same length. To be called in the experts' rank order.
    pub fn add_scaled(&self, acc: &mut [f32], weight: f32, x: &[f32]) {
        pieces2(acc, x, |acc, x| run!(self, add_scaled(acc, weight, x)));
    }

    /// `x[row] += bias` for each row of `x`: `[rows][bias.len()]`.
    pub fn add_bias(&self, x: &mut [f32], bias: &[f32]) {
        rows(x, bias.len(), |row| run!(self, add(row, bias)));
    }

    /// `x[row] *= weight` for each row of `x`: `[rows][weight.len()]`.
    pub fn mul_rows(&self, x: &mut [f32], weight: &[f32]) {
        rows(x, weight.len(), |row| run!(self, mul(row, weight)));
    }

    /// The dot product of two rows of the same length: sixteen lanes by index mod 16, fused multiply-adds, the
    /// tail padded with zeros, then 16 to 8 lanes by `l[i] + l[i+8]` and
    /// `((l0+l4)+(l2+l6)) + ((l1+l5)+(l3+l7))`.
    pub fn dot_f32(&self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len(), "dot of rows of different lengths");
        run!(self, dot(a, b))
    }

    /// RMS norm of each row: `out = x * (1 / sqrt(mean(x^2) + eps)) * weight`, from left to right.
    ///
    /// `x` and `out`: `[rows][weight.len()]`. The squares are summed in f64 over eight lanes by index mod 8, the
    /// mean rounded to f32; the rest is f32 as in ggml's `rms_norm` and `mul`.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        self.rms_norm_rows(x, weight.len(), weight, eps, out);
    }

    /// The same without the weight, rows of `n`: the node `norm`. [`Ops::mul_rows`] makes of it exactly what
    /// [`Ops::rms_norm`] gives.
    pub fn rms_norm_unweighted(&self, x: &[f32], n: usize, eps: f32, out: &mut [f32]) {
        self.rms_norm_rows(x, n, &[], eps, out);
    }

    fn rms_norm_rows(&self, x: &[f32], n: usize, weight: &[f32], eps: f32, out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "norm: input and output differ in length");
        if x.is_empty() {
            return;
        }
        assert!(n > 0 && x.len().is_multiple_of(n), "norm: {} values in rows of {n}", x.len());
        if x.len() < PARALLEL {
            x.chunks_exact(n)
                .zip(out.chunks_exact_mut(n))
                .for_each(|(x, out)| run!(self, rms_norm(x, weight, eps, out)));
        } else {
            x.par_chunks_exact(n)
                .zip(out.par_chunks_exact_mut(n))
                .for_each(|(x, out)| run!(self, rms_norm(x, weight, eps, out)));
        }
    }

    /// Softmax of each row of `x`: `[rows][n]`, in place.
    ///
    /// `exp(x - max)` summed over sixteen lanes by index mod 16, then multiplied by the f32 reciprocal of the sum:
    /// ggml's order, except that it sums in f64. A row that is -inf throughout gives NaN.
    pub fn softmax(&self, x: &mut [f32], n: usize) {
        rows(x, n, |row| run!(self, softmax(row)));
    }

    /// Replaces `x` by `exp(x - max)` and returns `(max, sum of the results)`: a softmax not yet divided, and
    /// `max + ln(sum)` is the log-sum-exp. Summed as in [`Ops::softmax`]; NaN does not count as a maximum.
    pub fn exp_sum(&self, x: &mut [f32]) -> (f32, f32) {
        run!(self, exp_sum(x))
    }

    /// The largest value, NaN passed over; -inf where there is none.
    pub fn max(&self, x: &[f32]) -> f32 {
        run!(self, max(x))
    }

    /// The index of the largest value, NaN passed over, the lowest index among equals; `None` where there is no
    /// number at all.
    pub fn argmax(&self, x: &[f32]) -> Option<usize> {
        let max = self.max(x);
        x.iter().position(|&x| x == max)
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

fn rows(x: &mut [f32], n: usize, f: impl Fn(&mut [f32]) + Send + Sync) {
    if x.is_empty() {
        return;
    }
    assert!(n > 0 && x.len().is_multiple_of(n), "{} values in rows of {n}", x.len());
    if x.len() < PARALLEL {
        x.chunks_exact_mut(n).for_each(f);
    } else {
        x.par_chunks_exact_mut(n).for_each(f);
    }
}
