//! The public face of norms and softmax: batches of rows over threads.

use rayon::prelude::*;

use super::elementwise::PARALLEL;
use super::{Ops, run};

impl Ops {
    /// RMS norm of each row, in place: `x * (1 / sqrt(mean(x^2) + eps)) * weight`, from left to right.
    ///
    /// `x`: `[rows][row]`; `weight`: `[n][row]` where there is one, row i taking weight `i % n`: one for all
    /// rows, or one for each head. The squares are summed in f64 over eight lanes by index mod 8, the mean
    /// rounded to f32; the rest is f32 as in ggml's `rms_norm` and `mul`.
    pub fn rms_norm(&self, x: &mut [f32], row: usize, weight: Option<&[f32]>, eps: f32) {
        let weight = Cycle::new(weight, row);
        rows(x, row, |i, x| run!(self, rms_norm(x, weight.of(i), eps)));
    }

    /// LayerNorm of each row, in place: `(x - mean) * (1 / sqrt(variance + eps)) * weight + bias`, from left
    /// to right, each step rounded: ggml's `norm`, `mul` and `add`.
    ///
    /// `x`, `weight` and `bias` as in [`Ops::rms_norm`]. The values, and the squares of the centred ones, are
    /// summed in f64 over eight lanes by index mod 8; mean and variance are rounded to f32.
    pub fn layer_norm(
        &self,
        x: &mut [f32],
        row: usize,
        weight: Option<&[f32]>,
        bias: Option<&[f32]>,
        eps: f32,
    ) {
        let (weight, bias) = (Cycle::new(weight, row), Cycle::new(bias, row));
        rows(x, row, |i, x| run!(self, layer_norm(x, weight.of(i), bias.of(i), eps)));
    }

    /// Softmax of each row of `x`: `[rows][n]`, in place.
    ///
    /// `exp(x - max)` summed over sixteen lanes by index mod 16, then multiplied by the f32 reciprocal of the
    /// sum: ggml's order, except that it sums in f64. A row that is -inf throughout gives NaN.
    pub fn softmax(&self, x: &mut [f32], n: usize) {
        rows(x, n, |_, x| run!(self, softmax(x)));
    }
}

/// Rows of weights that the rows of a batch take in turn; empty where there are none.
struct Cycle<'a> {
    weights: &'a [f32],
    row: usize,
}

impl<'a> Cycle<'a> {
    fn new(weights: Option<&'a [f32]>, row: usize) -> Self {
        let whole = |weights: &[f32]| row > 0 && !weights.is_empty() && weights.len().is_multiple_of(row);
        assert!(weights.is_none_or(whole), "weights of another length than rows of {row}");
        Self { weights: weights.unwrap_or_default(), row }
    }

    fn of(&self, index: usize) -> &'a [f32] {
        match self.weights.len() {
            0 => &[],
            all => &self.weights[index * self.row % all..][..self.row],
        }
    }
}

/// Each row and its index.
fn rows(x: &mut [f32], n: usize, f: impl Fn(usize, &mut [f32]) + Send + Sync) {
    if x.is_empty() {
        return;
    }
    assert!(n > 0 && x.len().is_multiple_of(n), "{} values in rows of {n}", x.len());
    if x.len() < PARALLEL {
        x.chunks_exact_mut(n).enumerate().for_each(|(i, x)| f(i, x));
    } else {
        x.par_chunks_exact_mut(n).enumerate().for_each(|(i, x)| f(i, x));
    }
}
