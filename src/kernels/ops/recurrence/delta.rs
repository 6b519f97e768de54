//! The gated delta rule: linear attention whose state forgets, and unlearns what it held under a key before
//! it learns.
//!
//! # Definition
//!
//! Each head of values has a state M of `[len][len]`, row j for element j of its values and column i for
//! element i of a key. A token with key k, query q, value v, decay d and strength beta does, in this order:
//!
//! - `M[j][i] = M[j][i] * d`, d being one for the head (gated delta net) or one for each i (Kimi Delta
//!   Attention);
//! - `e[j] = (v[j] - dot(M[j], k)) * beta`;
//! - `M[j][i] = fma(e[j], k[i], M[j][i])`;
//! - `out[j] = dot(M[j], q) * (1 / sqrt(len))`.
//!
//! Dots are over sixteen lanes by index mod 16 and their tree. Every step rounds: ggml's `gated_delta_net`,
//! token by token whatever the batch. Rows of M do not depend on one another, so that threads take some of
//! them each, through all tokens of a call, and a few rows at once stay in the cache.

use rayon::prelude::*;

use super::super::elementwise::PARALLEL;
use super::super::lanes::{Isa, Lanes16};
use super::super::{Ops, math, run};
use super::conv::{load, store};

/// Rows of a state that take a token together.
const TILE: usize = 4;
/// Rows of a state of an item of work, where a head has as many.
const ITEM: usize = 32;

/// Parts of the rows of a buffer: `[tokens][stride]`, from `offset` on in each row.
#[derive(Clone, Copy, Debug)]
pub struct StridedRows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub offset: usize,
}

impl<'a> StridedRows<'a> {
    /// `n` values of the row of token `t`, from `at` on.
    #[inline(always)]
    fn part(&self, t: usize, at: usize, n: usize) -> &'a [f32] {
        &self.data[t * self.stride + self.offset + at..][..n]
    }

    fn holds(&self, tokens: usize, width: usize) -> bool {
        self.offset + width <= self.stride && self.data.len() == tokens * self.stride
    }
}

/// Which head of keys and queries a head of values goes with, where there are fewer of the former.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadMap {
    /// Head h with `h % key_heads`: they take turns.
    Tiled,
    /// Head h with `h / (heads / key_heads)`: neighbours share.
    Grouped,
}

impl HeadMap {
    /// The head of keys and queries of head `head` of so many.
    pub fn key_head(self, head: usize, heads: usize, key_heads: usize) -> usize {
        match self {
            HeadMap::Tiled => head % key_heads,
            HeadMap::Grouped => head / (heads / key_heads),
        }
    }
}

/// What a state is multiplied by before a token, the exponential taken already.
#[derive(Clone, Copy, Debug)]
pub enum Decay<'a> {
    /// `[tokens][heads]`
    Head(&'a [f32]),
    /// `[tokens][heads][len]`: one for each element of a key.
    Channel(&'a [f32]),
}

/// The tokens of one sequence: keys, queries and values, decays and strengths.
#[derive(Clone, Copy, Debug)]
pub struct DeltaRule<'a> {
    pub tokens: usize,
    /// Heads of values.
    pub heads: usize,
    /// Heads of keys and queries; divides `heads`.
    pub key_heads: usize,
    pub map: HeadMap,
    /// Elements of a head of keys, queries and values.
    pub len: usize,
    /// `key_heads * len` values a token.
    pub q: StridedRows<'a>,
    pub k: StridedRows<'a>,
    /// `heads * len` values a token.
    pub v: StridedRows<'a>,
    pub decay: Decay<'a>,
    /// `[tokens][heads]`
    pub beta: &'a [f32],
}

impl DeltaRule<'_> {
    /// Floats of the state that a sequence remembers: `[heads][len][len]`.
    pub fn state_len(&self) -> usize {
        self.heads * self.len * self.len
    }

    fn check(&self, state: &[f32], out: &[f32], scratch: &[f32]) {
        let &DeltaRule { tokens, heads, key_heads, len, q, k, v, decay, beta, .. } = self;
        assert!(key_heads > 0 && heads.is_multiple_of(key_heads) && len > 0, "delta rule: heads");
        let keys = key_heads * len;
        assert!(q.holds(tokens, keys) && k.holds(tokens, keys), "delta rule: queries and keys");
        assert!(v.holds(tokens, heads * len), "delta rule: values");
        let decays = match decay {
            Decay::Head(decay) => decay.len() == tokens * heads,
            Decay::Channel(decay) => decay.len() == tokens * heads * len,
        };
        assert!(decays && beta.len() == tokens * heads, "delta rule: decays and strengths");
        assert_eq!(state.len(), self.state_len(), "delta rule: state");
        assert!(out.len() == tokens * heads * len && scratch.len() >= out.len(), "delta rule: output");
    }
}

/// Some rows of one head's state.
pub(in crate::kernels) struct Rows {
    head: usize,
    /// The first of them.
    first: usize,
}

/// Takes some rows of a head through all tokens. `state`: `[rows][len]`; `out`: `[tokens][rows]`.
#[inline(always)]
pub(in crate::kernels::ops) fn delta_rule<I: Isa>(
    isa: I,
    rule: &DeltaRule<'_>,
    rows: &Rows,
    state: &mut [f32],
    out: &mut [f32],
) {
    let n = state.len() / rule.len;
    let mut at = 0;
    for state in state.chunks_mut(TILE * rule.len) {
        let tile = Tile { head: rows.head, first: rows.first + at, at, n };
        if state.len() == TILE * rule.len {
            tile.take::<I, TILE>(isa, rule, state, out);
        } else {
            for (i, state) in state.chunks_exact_mut(rule.len).enumerate() {
                let tile = Tile { first: tile.first + i, at: at + i, ..tile };
                tile.take::<I, 1>(isa, rule, state, out);
            }
        }
        at += TILE;
    }
}

/// Rows of a state that go through the tokens together.
#[derive(Clone, Copy)]
struct Tile {
    head: usize,
    /// The first row in the head's state.
    first: usize,
    /// Its place among the rows of an item, and their number.
    at: usize,
    n: usize,
}

impl Tile {
    #[inline(always)]
    fn take<I: Isa, const R: usize>(self, isa: I, rule: &DeltaRule<'_>, state: &mut [f32], out: &mut [f32]) {
        let &DeltaRule { heads, len, .. } = rule;
        let scale = 1.0 / (len as f32).sqrt();
        let key_head = rule.map.key_head(self.head, heads, rule.key_heads);
        let mut rows = state.chunks_exact_mut(len);
        let mut rows: [&mut [f32]; R] = std::array::from_fn(|_| rows.next().expect("as many rows"));
        for t in 0..rule.tokens {
            let (k, q) = (rule.k.part(t, key_head * len, len), rule.q.part(t, key_head * len, len));
            let v = rule.v.part(t, self.head * len + self.first, R);
            let of_head = t * heads + self.head;
            let held = match rule.decay {
                Decay::Head(decay) => {
                    let by = isa.splat(decay[of_head]);
                    recall(isa, &mut rows, k, |_| by)
                }
                Decay::Channel(decay) => {
                    let by = &decay[of_head * len..][..len];
                    recall(isa, &mut rows, k, |at| load(isa, by, at))
                }
            };
            let beta = rule.beta[of_head];
            let learned = std::array::from_fn(|r| (v[r] - held[r]) * beta);
            let given = learn(isa, &mut rows, [k, q], learned);
            let out = &mut out[t * self.n + self.at..][..R];
            out.iter_mut().zip(given).for_each(|(out, given)| *out = given * scale);
        }
    }
}

/// Multiplies rows of a state by their decays; returns their dots with a key.
#[inline(always)]
fn recall<I: Isa, const R: usize>(
    isa: I,
    rows: &mut [&mut [f32]; R],
    k: &[f32],
    decay: impl Fn(usize) -> I::F,
) -> [f32; R] {
    let mut dots = [isa.splat(0.0); R];
    for at in (0..k.len()).step_by(16) {
        let (key, decay) = (load(isa, k, at), decay(at));
        for (row, dot) in rows.iter_mut().zip(&mut dots) {
            let kept = load(isa, row, at).mul(decay);
            store(kept, row, at);
            *dot = kept.mul_add(key, *dot);
        }
    }
    sums(dots)
}

/// Adds multiples of a key to rows of a state; returns their dots with a query.
#[inline(always)]
fn learn<I: Isa, const R: usize>(
    isa: I,
    rows: &mut [&mut [f32]; R],
    [k, q]: [&[f32]; 2],
    learned: [f32; R],
) -> [f32; R] {
    let mut dots = [isa.splat(0.0); R];
    let mut lanes = dots;
    for (lanes, learned) in lanes.iter_mut().zip(learned) {
        *lanes = isa.splat(learned);
    }
    for at in (0..k.len()).step_by(16) {
        let (key, query) = (load(isa, k, at), load(isa, q, at));
        for ((row, dot), learned) in rows.iter_mut().zip(&mut dots).zip(lanes) {
            let new = learned.mul_add(key, load(isa, row, at));
            store(new, row, at);
            *dot = new.mul_add(query, *dot);
        }
    }
    sums(dots)
}

/// The sum of the lanes of each.
#[inline(always)]
fn sums<F: Lanes16, const R: usize>(lanes: [F; R]) -> [f32; R] {
    let mut out = [0.0; R];
    if let (Some(&four), 4) = (lanes.first_chunk(), R) {
        out.copy_from_slice(&F::sum4(four));
        return out;
    }
    for (out, lanes) in out.iter_mut().zip(lanes) {
        *out = lanes.sum();
    }
    out
}

/// A row divided by its Euclidean norm, as ggml composes it: an RMS norm with `eps / n`, times `1 / sqrt(n)`.
#[inline(always)]
pub(in crate::kernels::ops) fn l2_norm<I: Isa>(isa: I, x: &mut [f32], eps: f32) {
    let n = x.len() as f32;
    math::rms_norm(isa, x, &[], eps / n);
    math::scale(isa, x, 1.0 / n.sqrt());
}

impl Ops {
    /// The delta rule of the tokens of one sequence; see the module.
    ///
    /// `state`: `[heads][len][len]`, changed in place; `out`: `[tokens][heads][len]`; `scratch`: as long.
    pub fn delta_rule(&self, rule: &DeltaRule<'_>, state: &mut [f32], out: &mut [f32], scratch: &mut [f32]) {
        rule.check(state, out, scratch);
        let &DeltaRule { tokens, heads, len, .. } = rule;
        if tokens == 0 {
            return;
        }
        let rows = if len.is_multiple_of(ITEM) { ITEM } else { len };
        let take = |(item, (state, out)): (usize, (&mut [f32], &mut [f32]))| {
            let rows = Rows { head: item * rows / len, first: item * rows % len };
            run!(self, delta_rule(rule, &rows, state, out));
        };
        let parallel = tokens * state.len() >= PARALLEL;
        // Of one token the outputs of the items already lie as they should.
        let by_item = if tokens == 1 { &mut *out } else { &mut scratch[..tokens * heads * len] };
        if parallel {
            let items =
                state.par_chunks_exact_mut(rows * len).zip(by_item.par_chunks_exact_mut(tokens * rows));
            items.enumerate().with_max_len(1).for_each(take);
        } else {
            let items = state.chunks_exact_mut(rows * len).zip(by_item.chunks_exact_mut(tokens * rows));
            items.enumerate().for_each(take);
        }
        if tokens == 1 {
            return;
        }
        let gather = |(t, out): (usize, &mut [f32])| {
            for (out, item) in out.chunks_exact_mut(rows).zip(scratch.chunks_exact(tokens * rows)) {
                out.copy_from_slice(&item[t * rows..][..rows]);
            }
        };
        match parallel {
            true => out.par_chunks_exact_mut(heads * len).enumerate().with_min_len(4).for_each(gather),
            false => out.chunks_exact_mut(heads * len).enumerate().for_each(gather),
        }
    }

    /// Divides the heads at the beginning of each row by their Euclidean norms: `width` of the `stride`
    /// values of a row, `len` a head. ggml's `rms_norm` with `eps / len` and `scale` by `1 / sqrt(len)`, each
    /// rounded.
    pub fn l2_norm(&self, x: &mut [f32], stride: usize, width: usize, len: usize, eps: f32) {
        if x.is_empty() {
            return;
        }
        assert!(
            len > 0 && width.is_multiple_of(len) && width <= stride,
            "norm: {width} of {stride} in heads of {len}"
        );
        assert!(x.len().is_multiple_of(stride), "norm: {} values in rows of {stride}", x.len());
        let row = |row: &mut [f32]| {
            row[..width].chunks_exact_mut(len).for_each(|head| run!(self, l2_norm(head, eps)));
        };
        if x.len() < PARALLEL {
            x.chunks_exact_mut(stride).for_each(row);
        } else {
            x.par_chunks_exact_mut(stride).for_each(row);
        }
    }
}
