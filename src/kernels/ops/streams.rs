//! Several residual streams a token (AltUp), streams of earlier layers that a token attends to, magnitudes of
//! rows, and the cut of Gemma 3n's sparse networks.

use rayon::prelude::*;

use super::elementwise::PARALLEL;
use super::lanes::{Isa, Lanes16};
use super::recurrence::conv::{load, store};
use super::{Ops, run};

/// Residual streams of a token.
pub const STREAMS: usize = 4;

/// Residual streams as they were at earlier layers: of each token `count` rows of `n` values, one behind
/// another, in a row of `stride` values.
#[derive(Clone, Copy, Debug)]
pub struct Banked<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub count: usize,
    pub n: usize,
}

/// A token's stream as it is now, and the row of those banked.
type TokenRow<'a> = (&'a [f32], &'a [f32]);

impl Banked<'_> {
    /// Rows with their parts of `x`, `[tokens][n]`, and of what has one value a token more than there are
    /// rows.
    fn check(&self, x: &[f32], each: &[f32]) {
        let &Banked { data, stride, count, n } = self;
        assert!(n > 0 && count * n <= stride && x.len().is_multiple_of(n), "{count} rows of {n} in {stride}");
        let tokens = x.len() / n;
        assert!(data.len() >= tokens * stride && each.len() == tokens * (count + 1), "{tokens} tokens");
    }
}

impl Ops {
    /// What a token's streams score: `sum(rms_norm(stream) * weight)`, the sum in f64 over eight lanes by
    /// index mod 8 and rounded to f32; those banked first, then `x`, `[tokens][n]`, the stream as it is now.
    /// `scores`: `[tokens][count + 1]`.
    pub fn score_streams(
        &self,
        banked: &Banked<'_>,
        x: &[f32],
        weight: &[f32],
        eps: f32,
        scores: &mut [f32],
    ) {
        banked.check(x, scores);
        let &Banked { data, stride, count, n } = banked;
        let score = |normed: &mut Vec<f32>, ((x, all), scores): (TokenRow<'_>, &mut [f32])| {
            for (row, score) in all[..count * n].chunks_exact(n).chain([x]).zip(scores) {
                normed.clear();
                normed.extend_from_slice(row);
                run!(self, rms_norm(normed, weight, eps));
                *score = run!(self, sum(normed));
            }
        };
        if x.len() * (count + 1) < PARALLEL {
            let mut normed = Vec::with_capacity(n);
            let rows = x.chunks_exact(n).zip(data.chunks_exact(stride.max(1)));
            rows.zip(scores.chunks_exact_mut(count + 1)).for_each(|row| score(&mut normed, row));
        } else {
            let rows = x.par_chunks_exact(n).zip(data.par_chunks_exact(stride));
            rows.zip(scores.par_chunks_exact_mut(count + 1)).for_each_init(Vec::new, score);
        }
    }

    /// The sum of a token's streams, each times its share: those banked in their order, from 0 on, then `x`;
    /// products and sums rounded apart. `shares`: `[tokens][count + 1]`; `out`: as `x`.
    pub fn sum_streams(&self, banked: &Banked<'_>, x: &[f32], shares: &[f32], out: &mut [f32]) {
        banked.check(x, shares);
        assert_eq!(x.len(), out.len(), "operands differ in length");
        let &Banked { data, stride, count, n } = banked;
        let sum = |((row, shares), out): ((TokenRow<'_>, &[f32]), &mut [f32])| {
            let (x, all) = row;
            out.fill(0.0);
            for (row, &share) in all[..count * n].chunks_exact(n).chain([x]).zip(shares) {
                run!(self, add_scaled(out, share, row));
            }
        };
        if x.len() * (count + 1) < PARALLEL {
            let rows = x.chunks_exact(n).zip(data.chunks_exact(stride.max(1)));
            rows.zip(shares.chunks_exact(count + 1)).zip(out.chunks_exact_mut(n)).for_each(sum);
        } else {
            let rows = x.par_chunks_exact(n).zip(data.par_chunks_exact(stride));
            rows.zip(shares.par_chunks_exact(count + 1)).zip(out.par_chunks_exact_mut(n)).for_each(sum);
        }
    }

    /// Streams from those before: stream j of a token becomes `x_j + sum of c[j][i] x_i` over all streams i.
    ///
    /// `x`: `[tokens][STREAMS][n]`, in place; `coefs`: `[tokens][STREAMS][STREAMS]`. The products, each
    /// rounded, are added as `(p0 + p2) + (p1 + p3)`: a dot product of four over the lanes. Source:
    /// `altup_predict` of ggml's gemma3n.
    pub fn mix_streams(&self, x: &mut [f32], coefs: &[f32], n: usize) {
        assert_eq!(x.len() * STREAMS, coefs.len() * n, "coefficients of another number of tokens");
        tokens(x, coefs, n * STREAMS, STREAMS * STREAMS, |x, coefs| run!(self, mix_streams(x, coefs)));
    }

    /// What a layer has changed in one stream, taken over by all: stream j of a token becomes `x_j + c[j]
    /// change`, product and sum rounded apart.
    ///
    /// `x`: `[tokens][streams][n]`, in place; `change`: `[tokens][n]`; `coefs`: `[tokens][streams]`.
    pub fn correct_streams(&self, x: &mut [f32], change: &[f32], coefs: &[f32], n: usize) {
        let streams = (x.len() / change.len().max(1)).max(1);
        assert_eq!(x.len(), change.len() * streams, "changes of another number of tokens");
        assert_eq!(x.len(), coefs.len() * n, "coefficients of another number of tokens");
        let correct = |((x, change), coefs): ((&mut [f32], &[f32]), &[f32])| {
            for (x, &by) in x.chunks_exact_mut(n).zip(coefs) {
                run!(self, add_scaled(x, by, change));
            }
        };
        if x.len() < PARALLEL {
            let rows = x.chunks_exact_mut((n * streams).max(1)).zip(change.chunks_exact(n.max(1)));
            rows.zip(coefs.chunks_exact(streams)).for_each(correct);
        } else {
            let rows = x.par_chunks_exact_mut(n * streams).zip(change.par_chunks_exact(n));
            rows.zip(coefs.par_chunks_exact(streams)).for_each(correct);
        }
    }

    /// The mean of each token's streams: their sum in rising order, times `1 / streams`.
    ///
    /// `x`: `[tokens][streams][n]`; `out`: `[tokens][n]`.
    pub fn mean_of_streams(&self, x: &[f32], out: &mut [f32], n: usize) {
        let streams = (x.len() / out.len().max(1)).max(1);
        assert!(n > 0 && x.len() == out.len() * streams && out.len().is_multiple_of(n), "mean of streams");
        let mean = |(x, out): (&[f32], &mut [f32])| run!(self, mean_of_streams(x, out));
        if x.len() < PARALLEL {
            x.chunks_exact(n * streams).zip(out.chunks_exact_mut(n)).for_each(mean);
        } else {
            x.par_chunks_exact(n * streams).zip(out.par_chunks_exact_mut(n)).for_each(mean);
        }
    }

    /// Scales each row of `x` to the magnitude of the row of `like`: `x * |like| / |x|`, from left to right.
    /// A magnitude is the root of the sum of squares, which is summed as in [`Ops::rms_norm`] and rounded to
    /// f32.
    ///
    /// `x`, `like`: `[rows][n]`.
    pub fn rescale(&self, x: &mut [f32], like: &[f32], n: usize) {
        assert_eq!(x.len(), like.len(), "operands differ in length");
        tokens(x, like, n, n, |x, like| run!(self, rescale(x, like)));
    }

    /// `max(x - cut, 0)` of each row, `cut` being the row's mean and so many of its standard deviations above
    /// it.
    ///
    /// `x`: `[rows][n]`, in place; the deviation is that of a sample, `sqrt(sum((x - mean)^2) / (n - 1))`.
    /// Sums as in [`Ops::layer_norm`]. Source: `gaussian_topk` of ggml's gemma3n.
    pub fn cut_below(&self, x: &mut [f32], n: usize, deviations: f32) {
        let cut = |x: &mut [f32]| run!(self, cut_below(x, deviations));
        if x.len() < PARALLEL {
            x.chunks_exact_mut(n.max(1)).for_each(cut);
        } else {
            x.par_chunks_exact_mut(n).for_each(cut);
        }
    }
}

/// Rows of `x` with their rows of `y`.
fn tokens(
    x: &mut [f32],
    y: &[f32],
    x_row: usize,
    y_row: usize,
    f: impl Fn(&mut [f32], &[f32]) + Send + Sync,
) {
    if x.len() < PARALLEL {
        x.chunks_exact_mut(x_row.max(1)).zip(y.chunks_exact(y_row.max(1))).for_each(|(x, y)| f(x, y));
    } else {
        x.par_chunks_exact_mut(x_row).zip(y.par_chunks_exact(y_row)).for_each(|(x, y)| f(x, y));
    }
}

/// One token of [`Ops::mean_of_streams`].
#[inline(always)]
pub(super) fn mean_of_streams<I: Isa>(isa: I, x: &[f32], out: &mut [f32]) {
    let n = out.len();
    let by = isa.splat(1.0 / (x.len() / n) as f32);
    for at in (0..n).step_by(16) {
        let mut sum = load(isa, &x[..n], at);
        for stream in x[n..].chunks_exact(n) {
            sum = sum.add(load(isa, stream, at));
        }
        store(sum.mul(by), out, at);
    }
}

/// One token of [`Ops::mix_streams`].
#[inline(always)]
pub(super) fn mix_streams<I: Isa>(isa: I, x: &mut [f32], coefs: &[f32]) {
    let n = x.len() / STREAMS;
    let (a, rest) = x.split_at_mut(n);
    let (b, rest) = rest.split_at_mut(n);
    let (c, d) = rest.split_at_mut(n);
    let blocks = a.as_chunks_mut::<16>().0.iter_mut().zip(b.as_chunks_mut::<16>().0);
    let blocks = blocks.zip(c.as_chunks_mut::<16>().0).zip(d.as_chunks_mut::<16>().0);
    for (((a, b), c), d) in blocks {
        let old = [isa.load(a), isa.load(b), isa.load(c), isa.load(d)];
        mixed(isa, old, coefs, 0).store(a);
        mixed(isa, old, coefs, 1).store(b);
        mixed(isa, old, coefs, 2).store(c);
        mixed(isa, old, coefs, 3).store(d);
    }
    let done = n / 16 * 16;
    if done < n {
        let (a, b, c, d) = (&mut a[done..], &mut b[done..], &mut c[done..], &mut d[done..]);
        let old = [isa.load_head(a), isa.load_head(b), isa.load_head(c), isa.load_head(d)];
        mixed(isa, old, coefs, 0).store_head(a);
        mixed(isa, old, coefs, 1).store_head(b);
        mixed(isa, old, coefs, 2).store_head(c);
        mixed(isa, old, coefs, 3).store_head(d);
    }
}

/// Sixteen lanes of stream `j`.
#[inline(always)]
fn mixed<I: Isa>(isa: I, old: [I::F; STREAMS], coefs: &[f32], j: usize) -> I::F {
    let [x0, x1, x2, x3] = old;
    let coefs = &coefs[j * STREAMS..][..STREAMS];
    let (p0, p1) = (x0.mul(isa.splat(coefs[0])), x1.mul(isa.splat(coefs[1])));
    let (p2, p3) = (x2.mul(isa.splat(coefs[2])), x3.mul(isa.splat(coefs[3])));
    p0.add(p2).add(p1.add(p3)).add(old[j])
}
