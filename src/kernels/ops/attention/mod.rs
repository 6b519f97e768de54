//! Causal attention over a paged KV cache with grouped queries.
//!
//! # Definition
//!
//! A token at position `pos` sees the positions up to its own that its [`Window`] leaves. These are taken in
//! chunks at absolute positions 0, C, 2C, ..., each of one page of the cache ([`PAGE`]). In a chunk, over the
//! positions seen:
//!
//! - `s_j = dot(q, k_j) * scale`, the dot over sixteen lanes by index mod 16 and their tree; with a soft cap
//!   `s_j = tanh(dot(q, k_j) * (scale / cap)) * cap`, the quotient rounded once;
//! - `m = max s_j`, `p_j = exp(s_j - m)`, `s = sum p_j` over sixteen lanes by j mod 16 and their tree;
//! - `o[d] = fma(p_j, v_j[d], o[d])` from 0 in rising j, and `w = 1`. What is masked is skipped, never
//!   multiplied by 0.
//!
//! Chunks are merged from left to right, the first taken as it is: `M' = max(M, m)`, `a = exp(M - M')`,
//! `b = exp(m - M')`, `O[d] = fma(O[d], W * a, o[d] * (w * b))`, `S = fma(S, a, s * b)`, `W = 1`; the result
//! is `O[d] * (W / S)`.
//!
//! A head's sink is a score without a value, merged after the last chunk: `M' = max(M, sink)`,
//! `a = exp(M - M')`, `S = fma(S, a, exp(sink - M'))`, `W = W * a`.
//!
//! # With an f16 cache
//!
//! ggml (without flash attention) rounds to f16 whatever it multiplies with f16: the queries before their
//! dots with the keys, and the softmax's finished probabilities before their product with the values; it
//! accumulates in f32. So here, to nearest even and keeping denormals:
//!
//! - q is rounded to f16, once a token and head; a query beyond f16's range becomes infinite;
//! - each chunk is a softmax of its own: `p_j * (1 / s)` rounded to f16 takes the place of p_j in o, and
//!   `w = s`.
//!
//! Of one chunk this is ggml's formula, for `W / S` is then 1 and rounds nothing. ggml rounds the
//! probabilities of all positions together, which of several chunks would take a second pass: their total has
//! to be known first. Chunk by chunk the rounding is as fine, but not bit for bit the same; so is rounding
//! before the sink is counted.
//!
//! Nothing in all this depends on the batch or on the threads. A row without a finite score comes out as NaN.

pub(super) mod parts;
pub(super) mod tile;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::{KvPages, Ops, PAGE, run};
use parts::{Parts, part_len};
use tile::{Tile, Workspace};

/// Query rows (tokens times heads of one KV head) taken through the cache together.
const TILE_ROWS: usize = 64;
/// Multiply-adds of a call below which it stays on the calling thread.
const PARALLEL: usize = 1 << 18;
/// Floats that the parts of a call split by chunk may take.
const MAX_PARTS: usize = 1 << 23;

/// Which of the positions up to its own a token sees; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The last so many, its own included: `max(0, pos + 1 - w) ..= pos`.
    Sliding(usize),
    /// Those of its own stretch of so many: `pos / w * w ..= pos` (Llama 4).
    Chunked(usize),
}

impl Window {
    /// The first position that a token at `pos` sees.
    pub fn start(self, pos: usize) -> usize {
        match self {
            Self::Sliding(window) => (pos + 1).saturating_sub(window),
            Self::Chunked(window) => pos / window * window,
        }
    }

    /// Positions that it spans.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::Sliding(window) | Self::Chunked(window) => window,
        }
    }
}

/// The shape of a call: a batch of consecutive tokens against one layer's cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads, a multiple of `kv_heads`; head h reads KV head `h / (heads / kv_heads)`.
    pub heads: usize,
    pub kv_heads: usize,
    /// Elements of a query's or a key's head.
    pub key_len: usize,
    /// Elements of a value's head.
    pub value_len: usize,
    pub tokens: usize,
    /// Position of the batch's first token; its own keys and values are already stored.
    pub first_pos: usize,
    /// All positions up to its own where `None`.
    pub window: Option<Window>,
    /// What scores are multiplied by, usually `1 / sqrt(key_len)`.
    pub scale: f32,
    /// What scores are bounded by, with a tanh.
    pub soft_cap: Option<f32>,
}

impl AttentionShape {
    /// Query heads of one KV head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The positions that a token of the batch sees.
    fn seen(&self, token: usize) -> Range<usize> {
        let pos = self.first_pos + token;
        self.window.map_or(0, |window| window.start(pos))..pos + 1
    }

    /// The chunks that a run of tokens sees something of.
    fn chunks(&self, tokens: Range<usize>) -> Range<usize> {
        self.seen(tokens.start).start / PAGE..self.seen(tokens.end - 1).end.div_ceil(PAGE)
    }

    /// What a token sees of a chunk, counted from the chunk's start; may be empty.
    fn seen_in(&self, token: usize, chunk: usize) -> Range<usize> {
        let seen = self.seen(token);
        let within = |pos: usize| pos.saturating_sub(chunk * PAGE).min(PAGE);
        within(seen.start)..within(seen.end)
    }

    fn check(&self, q: &[f32], kv: &KvPages<'_>, sinks: Option<&[f32]>, out: &[f32]) {
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "attention: heads");
        assert!(self.key_len > 0 && self.value_len > 0, "attention: lengths of a head");
        assert!(self.window.is_none_or(|window| window.len() > 0), "attention: a window of nothing");
        assert_eq!(q.len(), self.tokens * self.heads * self.key_len, "attention: q");
        assert_eq!(out.len(), self.tokens * self.heads * self.value_len, "attention: out");
        assert!(sinks.is_none_or(|sinks| sinks.len() == self.heads), "attention: sinks");
        kv.check(self.kv_heads, self.key_len, self.value_len);
        if self.tokens > 0 {
            let needed = self.chunks(0..self.tokens);
            assert!(kv.first_page <= needed.start, "attention: pages that are gone");
            assert!(needed.end <= kv.first_page + kv.keys.len(), "attention: beyond the pages");
        }
    }
}

/// Buffers of [`Ops::attention`], kept from call to call; they grow to what the largest call needs.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    /// One for each thread of the pool; each locks only its own.
    workspaces: Vec<Mutex<Workspace>>,
    /// Parts of all items: `[tile][kv_head][chunk or 1][row][part_len]`.
    parts: Vec<f32>,
}

/// How a call is cut into items of work; changes no result.
struct Plan {
    tile_tokens: usize,
    tiles: usize,
    chunks: Range<usize>,
    /// Each item takes one chunk (all of them otherwise).
    by_chunk: bool,
    /// Floats of one item's parts.
    item_len: usize,
}

impl Plan {
    fn new(shape: &AttentionShape, threads: usize) -> Self {
        let tile_tokens = (TILE_ROWS / shape.group()).clamp(1, shape.tokens);
        let tiles = shape.tokens.div_ceil(tile_tokens);
        let chunks = shape.chunks(0..shape.tokens);
        let item_len = tile_tokens * shape.group() * part_len(shape.value_len);
        let items = tiles * shape.kv_heads;
        let by_chunk = threads > 1
            && items < 4 * threads
            && items * chunks.len() * item_len <= MAX_PARTS
            && chunks.len() > 1;
        Self { tile_tokens, tiles, chunks, by_chunk, item_len }
    }

    /// Items of one tile and KV head.
    fn splits(&self) -> usize {
        if self.by_chunk { self.chunks.len() } else { 1 }
    }

    fn tokens(&self, tile: usize, shape: &AttentionShape) -> Range<usize> {
        let start = tile * self.tile_tokens;
        start..(start + self.tile_tokens).min(shape.tokens)
    }
}

impl Ops {
    /// Attention of a batch of tokens over one layer's cache; see the module for the definition.
    ///
    /// `q`: `[tokens][heads][key_len]`; `out`: `[tokens][heads][value_len]`; `kv`: every page that a token of
    /// the batch sees something of, filled up to the batch's last position; what lies beyond is not looked
    /// at; `sinks`: a score for each head.
    pub fn attention(
        &self,
        shape: &AttentionShape,
        q: &[f32],
        kv: &KvPages<'_>,
        sinks: Option<&[f32]>,
        out: &mut [f32],
        scratch: &mut AttentionScratch,
    ) {
        shape.check(q, kv, sinks, out);
        if shape.tokens == 0 {
            return;
        }
        let head = shape.key_len.max(shape.value_len);
        let work = shape.tokens * shape.heads * head * shape.seen(shape.tokens - 1).len();
        let threads = if work < PARALLEL { 1 } else { rayon::current_num_threads() };
        let plan = Plan::new(shape, threads);
        if scratch.workspaces.len() < threads {
            scratch.workspaces.resize_with(threads, Mutex::default);
        }
        let parts_len = plan.tiles * shape.kv_heads * plan.splits() * plan.item_len;
        if scratch.parts.len() < parts_len {
            scratch.parts.resize(parts_len, 0.0);
        }
        let parts = &mut scratch.parts[..parts_len];
        let workspaces = &scratch.workspaces;

        let attend = |(item, parts): (usize, &mut [f32])| {
            let (rest, split) = (item / plan.splits(), item % plan.splits());
            let (tile, kv_head) = (rest / shape.kv_heads, rest % shape.kv_heads);
            let first = plan.chunks.start + split;
            let chunks = if plan.by_chunk { first..first + 1 } else { plan.chunks.clone() };
            let tokens = plan.tokens(tile, shape);
            let tile = Tile { shape, q, kv_head, kv, tokens, chunks };
            // Outside the pool everything runs on one thread.
            let thread = if threads == 1 { 0 } else { rayon::current_thread_index().unwrap_or(0) };
            let mut workspace = workspaces[thread].lock().unwrap_or_else(PoisonError::into_inner);
            run!(self, attend(&tile, &mut workspace, parts));
        };
        if threads == 1 {
            parts.chunks_exact_mut(plan.item_len).enumerate().for_each(attend);
        } else {
            parts.par_chunks_exact_mut(plan.item_len).enumerate().with_max_len(1).for_each(attend);
        }

        let parts = &*parts;
        let finish = |(row, out): (usize, &mut [f32])| {
            let (token, head) = (row / shape.heads, row % shape.heads);
            let (tile, kv_head) = (token / plan.tile_tokens, head / shape.group());
            let in_tile = (token - tile * plan.tile_tokens) * shape.group() + head % shape.group();
            let item = (tile * shape.kv_heads + kv_head) * plan.splits();
            // What another token of the tile sees and this one does not was left unwritten.
            let seen = if plan.by_chunk { shape.chunks(token..token + 1) } else { 0..1 };
            let skipped = if plan.by_chunk { seen.start - plan.chunks.start } else { 0 };
            let first = (item + skipped) * plan.item_len + in_tile * part_len(shape.value_len);
            let parts = Parts { all: parts, first, step: plan.item_len, count: seen.len() };
            run!(self, combine(parts, sinks.map(|sinks| sinks[head]), out));
        };
        if threads == 1 {
            out.chunks_exact_mut(shape.value_len).enumerate().for_each(finish);
        } else {
            let rows = out.par_chunks_exact_mut(shape.value_len).enumerate();
            rows.with_min_len(64).for_each(finish);
        }
    }
}
