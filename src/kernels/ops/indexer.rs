//! The indexer of sparse attention: scores of all positions for each token, and the choice of the best.
//!
//! # Definition
//!
//! The score of a position for a token is `sum_h max(dot(q_h, k), 0) * w_h` over the indexer's heads in
//! rising order from 0, the dot over sixteen lanes by index mod 16 and their tree, product and sum rounded
//! apart; a dot that is NaN counts as 0: ggml's `lightning_indexer`. Keys kept as f16 are widened; queries
//! are not rounded.
//!
//! Of an indexer that chooses blocks of positions, each head chooses for itself: a block's score is the
//! greatest `dot(q_h, k)` of the positions that the token sees of it (MiniMax M3's in llama.cpp).
//!
//! The best so many positions of those that a token sees are chosen: among equals the lower one (-0 equals
//! 0), NaN counts as less than every number. Nothing depends on the batch or on the threads.

use rayon::prelude::*;

use super::attention::tile::Element;
use super::attention::{dot, dots2x2};
use super::lanes::Isa;
use super::math::scale;
use super::{KvPages, KvView, Ops, PAGE, run};

/// Positions times heads times elements of a call below which it stays on the calling thread.
const PARALLEL: usize = 1 << 16;

/// Queries of consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct IndexQueries<'a> {
    /// Heads of the indexer.
    pub heads: usize,
    /// Elements of a head, a multiple of 16.
    pub len: usize,
    /// `[tokens][heads][len]`
    pub q: &'a [f32],
    /// The heads' weights, `[tokens][heads]`; none of an indexer of blocks.
    pub weights: &'a [f32],
    /// Position of the first token.
    pub first_pos: usize,
    /// Positions that a key stands for; a token sees the keys all of whose positions it sees.
    pub per_key: usize,
}

impl IndexQueries<'_> {
    /// How many keys a token sees.
    fn seen(&self, token: usize) -> usize {
        (self.first_pos + token + 1) / self.per_key
    }

    /// How many tokens there are.
    fn tokens(&self) -> usize {
        self.q.len() / (self.heads * self.len)
    }

    fn of(&self, token: usize) -> IndexQuery<'_> {
        let row = self.heads * self.len;
        IndexQuery {
            len: self.len,
            q: &self.q[token * row..][..row],
            weights: if self.weights.is_empty() {
                &[]
            } else {
                &self.weights[token * self.heads..][..self.heads]
            },
        }
    }
}

/// The query of one token.
#[derive(Clone, Copy)]
pub(super) struct IndexQuery<'a> {
    len: usize,
    q: &'a [f32],
    weights: &'a [f32],
}

impl Ops {
    /// Multiplies each row of `x`, `[rows][n]`, by the orthonormal Hadamard matrix in Sylvester's order, in
    /// place: `log2(n)` rounds of sums and differences, then the factor `1 / sqrt(n)`. `n` is a power of two.
    pub fn hadamard(&self, x: &mut [f32], n: usize) {
        assert!(
            n.is_power_of_two() && x.len().is_multiple_of(n),
            "hadamard: {} values in rows of {n}",
            x.len()
        );
        if x.len() < PARALLEL {
            x.chunks_exact_mut(n).for_each(|x| run!(self, hadamard(x)));
        } else {
            x.par_chunks_exact_mut(n).for_each(|x| run!(self, hadamard(x)));
        }
    }

    /// Scores of the blocks of `block` positions that each token sees: `out`, `[tokens][heads][blocks]`, as
    /// many blocks as the last token sees something of; of what a token does not see they are -inf. `keys`:
    /// one head of keys, from page 0 on.
    pub fn block_scores(
        &self,
        queries: &IndexQueries<'_>,
        keys: &KvPages<'_>,
        block: usize,
        out: &mut [f32],
    ) {
        let IndexQueries { heads, len, q, first_pos, .. } = *queries;
        let tokens = queries.tokens();
        assert!(heads > 0 && len > 0 && len.is_multiple_of(16), "block_scores: {heads} heads of {len}");
        assert!(block > 0 && q.len() == tokens * heads * len, "block_scores: queries");
        assert_eq!(queries.per_key, 1, "block_scores: keys of several positions");
        assert!(keys.first_page == 0 && first_pos + tokens <= keys.keys.len() * PAGE, "block_scores: pages");
        let blocks = (first_pos + tokens).div_ceil(block);
        assert_eq!(out.len(), tokens * heads * blocks, "block_scores: out");
        keys.check(1, len, 0);
        out.fill(f32::NEG_INFINITY);
        let score = |(token, out): (usize, &mut [f32])| {
            let (query, seen) = (queries.of(token), first_pos + token + 1);
            let mut dots = vec![0.0; heads * PAGE];
            for (page, keys) in keys.keys.iter().enumerate().take(seen.div_ceil(PAGE)) {
                let start = page * PAGE;
                let seen = (seen - start).min(PAGE);
                run!(self, index_dots(&query, *keys, seen, &mut dots));
                for (out, dots) in out.chunks_exact_mut(blocks).zip(dots.chunks_exact(PAGE)) {
                    for (j, &dot) in dots[..seen].iter().enumerate() {
                        let best = &mut out[(start + j) / block];
                        *best = if dot > *best { dot } else { *best };
                    }
                }
            }
        };
        let each = heads * blocks;
        if tokens * heads * len * (first_pos + tokens) < PARALLEL {
            out.chunks_exact_mut(each).enumerate().for_each(score);
        } else {
            out.par_chunks_exact_mut(each).enumerate().for_each(score);
        }
    }

    /// Scores of the keys of all pages: `out`, `[tokens][pages * PAGE]`. Those of keys that a token does not
    /// see are left open. `keys`: one head of keys, from page 0 on.
    pub fn index_scores(&self, queries: &IndexQueries<'_>, keys: &KvPages<'_>, out: &mut [f32]) {
        let IndexQueries { heads, len, q, weights, first_pos, per_key } = *queries;
        let (tokens, pages) = (queries.tokens(), keys.keys.len());
        assert!(heads > 0 && len > 0 && len.is_multiple_of(16), "index_scores: {heads} heads of {len}");
        assert!(weights.len() == tokens * heads && q.len() == tokens * heads * len, "index_scores: queries");
        let most = (first_pos + tokens) / per_key;
        assert!(keys.first_page == 0 && most <= pages * PAGE, "index_scores: pages");
        assert_eq!(out.len(), tokens * pages * PAGE, "index_scores: out");
        keys.check(1, len, 0);
        let score = |(at, out): (usize, &mut [f32])| {
            let (token, page) = (at / pages, at % pages);
            let seen = queries.seen(token).saturating_sub(page * PAGE).min(PAGE);
            run!(self, index_scores(&queries.of(token), keys.keys[page], &mut out[..seen]));
        };
        if out.len() * heads * len < PARALLEL {
            out.chunks_exact_mut(PAGE).enumerate().for_each(score);
        } else {
            out.par_chunks_exact_mut(PAGE).enumerate().for_each(score);
        }
    }
}

/// Sums and differences at distance 1, 2, 4, ..
#[inline(always)]
pub(super) fn hadamard<I: Isa>(isa: I, x: &mut [f32]) {
    let mut step = 1;
    while step < x.len() {
        for pair in x.chunks_exact_mut(2 * step) {
            let (low, high) = pair.split_at_mut(step);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        step *= 2;
    }
    scale(isa, x, (1.0 / f64::from((x.len() as f32).sqrt())) as f32);
}

/// Scores of the first `out.len()` positions of a page.
#[inline(always)]
pub(super) fn scores<I: Isa>(isa: I, query: &IndexQuery, keys: KvView, out: &mut [f32]) {
    match keys {
        KvView::F16(_) => scores_in::<I, u16>(isa, query, keys, out),
        KvView::F32(_) => scores_in::<I, f32>(isa, query, keys, out),
        KvView::Q8_0(..) | KvView::Q4_0(..) => unreachable!("an indexer's keys are floats"),
    }
}

#[inline(always)]
fn scores_in<I: Isa, E: Element>(isa: I, query: &IndexQuery, keys: KvView, out: &mut [f32]) {
    let IndexQuery { len, q, weights } = *query;
    let keys = E::of(keys);
    let key = |j: usize| keys[j * len..][..len].as_chunks::<16>().0;
    let head = |h: usize| q[h * len..][..len].as_chunks::<16>().0;
    for (i, out) in out.chunks_mut(2).enumerate() {
        let j = 2 * i;
        out.fill(0.0);
        if let [a, b] = out {
            let keys = [key(j), key(j + 1)];
            let mut h = 0;
            while h + 1 < weights.len() {
                let [a0, b0, a1, b1] = dots2x2(isa, [head(h), head(h + 1)], keys);
                *a = *a + positive(a0) * weights[h] + positive(a1) * weights[h + 1];
                *b = *b + positive(b0) * weights[h] + positive(b1) * weights[h + 1];
                h += 2;
            }
            if h < weights.len() {
                *a += positive(dot(isa, head(h), keys[0])) * weights[h];
                *b += positive(dot(isa, head(h), keys[1])) * weights[h];
            }
        } else {
            for (h, weight) in weights.iter().enumerate() {
                out[0] += positive(dot(isa, head(h), key(j))) * weight;
            }
        }
    }
}

/// Dots of all heads with the first `seen` positions of a page: `out`, `[heads][PAGE]`.
#[inline(always)]
pub(super) fn dots<I: Isa>(isa: I, query: &IndexQuery, keys: KvView, seen: usize, out: &mut [f32]) {
    match keys {
        KvView::F16(_) => dots_in::<I, u16>(isa, query, keys, seen, out),
        KvView::F32(_) => dots_in::<I, f32>(isa, query, keys, seen, out),
        KvView::Q8_0(..) | KvView::Q4_0(..) => unreachable!("an indexer's keys are floats"),
    }
}

#[inline(always)]
fn dots_in<I: Isa, E: Element>(isa: I, query: &IndexQuery, keys: KvView, seen: usize, out: &mut [f32]) {
    let len = query.len;
    let keys = E::of(keys);
    let key = |j: usize| keys[j * len..][..len].as_chunks::<16>().0;
    let head = |h: usize| query.q[h * len..][..len].as_chunks::<16>().0;
    let heads = query.q.len() / len;
    for j in (0..seen).step_by(2) {
        for h in (0..heads).step_by(2) {
            if j + 1 < seen && h + 1 < heads {
                let dots = dots2x2(isa, [head(h), head(h + 1)], [key(j), key(j + 1)]);
                out[h * PAGE + j..][..2].copy_from_slice(&dots[..2]);
                out[(h + 1) * PAGE + j..][..2].copy_from_slice(&dots[2..]);
                continue;
            }
            for h in h..heads.min(h + 2) {
                for j in j..seen.min(j + 2) {
                    out[h * PAGE + j] = dot(isa, head(h), key(j));
                }
            }
        }
    }
}

#[inline(always)]
fn positive(x: f32) -> f32 {
    if x > 0.0 { x } else { 0.0 }
}

/// Marks the `count` best of some scores (see the module): bit j of `masks[i]` stands for position `i * PAGE
/// + j`. `keys` is scratch.
pub fn choose(scores: &[f32], count: usize, masks: &mut [u128], keys: &mut Vec<u64>) {
    masks.fill(0);
    // Falling scores are rising numbers; the position decides among equals.
    keys.clear();
    keys.extend(scores.iter().enumerate().map(|(j, &score)| u64::from(falling(score)) << 32 | j as u64));
    if count > 0 && count < keys.len() {
        keys.select_nth_unstable(count - 1);
        keys.truncate(count);
    }
    for key in keys.iter().take(count) {
        let j = (key & u64::from(u32::MAX)) as usize;
        masks[j / PAGE] |= 1 << (j % PAGE);
    }
}

/// A number that falls as `x` rises, the same for -0 and 0 and the greatest for NaN.
fn falling(x: f32) -> u32 {
    if x.is_nan() {
        return u32::MAX;
    }
    let bits = (x + 0.0).to_bits();
    let rising = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !rising
}
