//! Hyper-connections: what a block takes of several residual streams, and how its output and the streams are
//! mixed into those behind it. Source: arXiv 2409.19606 and ggml's `dsv4_hc_pre`, `dsv4_hc_comb` and
//! `dsv4_hc_post`.
//!
//! # Definition
//!
//! A block has [`HYPER_GATES`] gates a token, made of as many mixes `m` with scales and bases:
//!
//! - `pre[j] = sigmoid(m s[0] + b) + eps`, what it takes of stream j;
//! - `post[j] = 2 sigmoid(m s[1] + b)`, what stream j gets of its output;
//! - `comb[i][j]`, what stream j gets of stream i: a softmax of `m s[2] + b` over j, plus eps, then divided
//!   by sums over i and over j in turn (Sinkhorn). A sum begins with eps and goes on in rising order; a
//!   division is a product with the reciprocal. The softmax sums in rising order.
//!
//! Products and sums of streams are rounded apart and added in rising order of streams: those that a block
//! takes to 0, those behind it to its output's part.

use rayon::prelude::*;

use super::elementwise::PARALLEL;
use super::lanes::{Isa, Lanes16};
use super::math::{exp16, sigmoid16};
use super::streams::STREAMS;
use super::{Ops, run};

/// Gates of a block and token: pre, post, comb.
pub const HYPER_GATES: usize = (2 + STREAMS) * STREAMS;
/// Those before comb.
const OWN: usize = 2 * STREAMS;

// Gates of pairs of streams fill the lanes.
const _: () = assert!(STREAMS * STREAMS == 16);

/// What gates are made with.
#[derive(Clone, Copy, Debug)]
pub struct HyperGates<'a> {
    /// Of pre, post and comb.
    pub scale: [f32; 3],
    /// `[HYPER_GATES]`
    pub base: &'a [f32],
    pub eps: f32,
    /// Rounds of Sinkhorn's divisions, at least 1; the first divides by sums over i alone.
    pub iterations: usize,
}

impl Ops {
    /// Makes gates of mixes, `[tokens][HYPER_GATES]` in place.
    pub fn hyper_gates(&self, mixes: &mut [f32], gates: &HyperGates<'_>) {
        assert_eq!(gates.base.len(), HYPER_GATES, "hyper_gates: base");
        assert!(gates.iterations > 0 && mixes.len().is_multiple_of(HYPER_GATES), "hyper_gates: mixes");
        let of = |mixes: &mut [f32]| run!(self, hyper_gates(mixes, gates));
        if mixes.len() * gates.iterations < PARALLEL {
            mixes.chunks_exact_mut(HYPER_GATES).for_each(of);
        } else {
            mixes.par_chunks_exact_mut(HYPER_GATES).for_each(of);
        }
    }

    /// The sum of all streams, each times its weight.
    ///
    /// `x`: `[tokens][STREAMS][n]`; `weights`: the first STREAMS of each token's `row`; `out`: `[tokens][n]`.
    pub fn join_streams(&self, x: &[f32], weights: &[f32], row: usize, out: &mut [f32], n: usize) {
        assert!(row >= STREAMS && x.len() == out.len() * STREAMS, "join_streams: streams");
        assert_eq!(weights.len() * n, out.len() * row, "join_streams: weights");
        let join = |((x, weights), out): ((&[f32], &[f32]), &mut [f32])| {
            run!(self, join_streams(x, &weights[..STREAMS], out));
        };
        if x.len() < PARALLEL {
            let rows = x.chunks_exact((n * STREAMS).max(1)).zip(weights.chunks_exact(row));
            rows.zip(out.chunks_exact_mut(n.max(1))).for_each(join);
        } else {
            let rows = x.par_chunks_exact(n * STREAMS).zip(weights.par_chunks_exact(row));
            rows.zip(out.par_chunks_exact_mut(n)).for_each(join);
        }
    }

    /// Stream j becomes `post[j] change + sum over i of comb[i][j] x_i`.
    ///
    /// `x`: `[tokens][STREAMS][n]`, in place; `change`: `[tokens][n]`; `gates`: `[tokens][HYPER_GATES]`.
    pub fn share_among_streams(&self, x: &mut [f32], change: &[f32], gates: &[f32], n: usize) {
        assert_eq!(x.len(), change.len() * STREAMS, "share_among_streams: changes");
        assert_eq!(gates.len() * n, change.len() * HYPER_GATES, "share_among_streams: gates");
        let share = |((x, change), gates): ((&mut [f32], &[f32]), &[f32])| {
            run!(self, share_among_streams(x, change, gates));
        };
        if x.len() < PARALLEL {
            let rows = x.chunks_exact_mut((n * STREAMS).max(1)).zip(change.chunks_exact(n.max(1)));
            rows.zip(gates.chunks_exact(HYPER_GATES)).for_each(share);
        } else {
            let rows = x.par_chunks_exact_mut(n * STREAMS).zip(change.par_chunks_exact(n));
            rows.zip(gates.par_chunks_exact(HYPER_GATES)).for_each(share);
        }
    }
}

/// The gates of a token.
#[inline(always)]
pub(super) fn gates<I: Isa>(isa: I, mixes: &mut [f32], gates: &HyperGates) {
    let HyperGates { scale, base, eps, iterations } = *gates;
    let (own, pairs) = mixes.split_at_mut(OWN);
    let (own_base, pairs_base) = base.split_at(OWN);
    let mut scales = [scale[1]; OWN];
    scales[..STREAMS].fill(scale[0]);
    let x = isa.load_head(own).mul(isa.load_head(&scales)).add(isa.load_head(own_base));
    sigmoid16(isa, x).store_head(own);
    let (pre, post) = own.split_at_mut(STREAMS);
    pre.iter_mut().for_each(|g| *g += eps);
    post.iter_mut().for_each(|g| *g *= 2.0);

    let x = isa.load_head(pairs).mul(isa.splat(scale[2])).add(isa.load_head(pairs_base));
    let mut comb = [0.0; STREAMS * STREAMS];
    x.store(&mut comb);
    for row in comb.chunks_exact_mut(STREAMS) {
        let most = row.iter().fold(f32::NEG_INFINITY, |most, &x| if x > most { x } else { most });
        row.iter_mut().for_each(|x| *x -= most);
    }
    let x = exp16(isa, isa.load(&comb));
    x.store(&mut comb);
    for row in comb.chunks_exact_mut(STREAMS) {
        let by = 1.0 / row.iter().fold(0.0, |sum, x| sum + x);
        row.iter_mut().for_each(|x| *x = *x * by + eps);
    }
    divide_columns(&mut comb, eps);
    for _ in 1..iterations {
        for row in comb.chunks_exact_mut(STREAMS) {
            let by = 1.0 / row.iter().fold(eps, |sum, x| sum + x);
            row.iter_mut().for_each(|x| *x *= by);
        }
        divide_columns(&mut comb, eps);
    }
    pairs.copy_from_slice(&comb);
}

/// Divides by the sums over the first index.
#[inline(always)]
fn divide_columns(comb: &mut [f32; STREAMS * STREAMS], eps: f32) {
    let mut sums = [eps; STREAMS];
    for row in comb.chunks_exact(STREAMS) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    let by = [1.0 / sums[0], 1.0 / sums[1], 1.0 / sums[2], 1.0 / sums[3]];
    for row in comb.chunks_exact_mut(STREAMS) {
        row.iter_mut().zip(&by).for_each(|(x, by)| *x *= by);
    }
}

/// One token of [`Ops::join_streams`].
#[inline(always)]
pub(super) fn join<I: Isa>(isa: I, x: &[f32], weights: &[f32], out: &mut [f32]) {
    let n = out.len();
    let done = n / 16 * 16;
    for (at, out) in (0..done).step_by(16).zip(out.as_chunks_mut::<16>().0) {
        joined(isa, x, weights, n, at, 16).store(out);
    }
    if done < n {
        joined(isa, x, weights, n, done, n - done).store_head(&mut out[done..]);
    }
}

/// The first `len` of sixteen lanes from `at` on.
#[inline(always)]
fn joined<I: Isa>(isa: I, x: &[f32], weights: &[f32], n: usize, at: usize, len: usize) -> I::F {
    let mut sum = isa.splat(0.0);
    for (stream, &weight) in weights.iter().enumerate() {
        let x = isa.load_first(&x[stream * n + at..], len);
        sum = sum.add(x.mul(isa.splat(weight)));
    }
    sum
}

/// One token of [`Ops::share_among_streams`].
#[inline(always)]
pub(super) fn share<I: Isa>(isa: I, x: &mut [f32], change: &[f32], gates: &[f32]) {
    let n = change.len();
    let (post, comb) = gates[STREAMS..].split_at(STREAMS);
    let mut at = 0;
    while at < n {
        let len = (n - at).min(16);
        let new = isa.load_first(&change[at..], len);
        let x0 = isa.load_first(&x[at..], len);
        let x1 = isa.load_first(&x[n + at..], len);
        let x2 = isa.load_first(&x[2 * n + at..], len);
        let x3 = isa.load_first(&x[3 * n + at..], len);
        for j in 0..STREAMS {
            let sum = new.mul(isa.splat(post[j])).add(x0.mul(isa.splat(comb[j])));
            let sum = sum.add(x1.mul(isa.splat(comb[STREAMS + j])));
            let sum = sum.add(x2.mul(isa.splat(comb[2 * STREAMS + j])));
            let sum = sum.add(x3.mul(isa.splat(comb[3 * STREAMS + j])));
            let to = &mut x[j * n + at..][..len];
            match to.first_chunk_mut::<16>() {
                Some(to) => sum.store(to),
                None => sum.store_head(to),
            }
        }
        at += len;
    }
}
