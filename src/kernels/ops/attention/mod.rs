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
//! # With quantised keys or values
//!
//! Keys and values are each of their own type, and what is said of an f16 cache holds of keys (queries) and
//! of values (probabilities) by themselves.
//!
//! - Keys as Q8_0 or Q4_0: queries are rotated as the keys were ([`key_rotation`](super::key_rotation)) and
//!   rounded to Q8_0. A dot is `acc = fma(d_k * d_q, sum, acc)` from 0, block by block, `sum` that of the
//!   products of the blocks' quants, exact, the product of the scales rounded first: as ggml's.
//! - Values as Q8_0 or Q4_0: `v_j[d]` is scale times quant, which is exact. What comes out is rotated as the
//!   values are: the caller rotates it back.
//!
//! # Over chosen positions
//!
//! Of what a token sees, only the positions that were chosen for it are taken; the others are masked, and
//! chunks of which nothing is chosen are left out. Where all are chosen, the bits are those of attention over
//! all.
//!
//! The rows may as well be no positions at all, but chosen from several caches whose pages stand one behind
//! another.
//!
//! Nothing in all this depends on the batch or on the threads. A row without a finite score comes out as NaN.

pub(super) mod parts;
mod quantised;
mod scores;
pub(super) mod tile;
mod values;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

pub(super) use scores::{dot, dots2x2};

use super::lanes::QueryBlock;
use super::{KV_BLOCK, KvPages, KvView, Ops, PAGE, run};
use parts::{Parts, part_len};
use tile::{Tile, Workspace};

/// Query rows (tokens times heads of one KV head) taken through the cache together.
const TILE_ROWS: usize = 64;
/// Rows of a tile that are worth the reading of its keys.
const LEAST_ROWS: usize = 16;
/// Multiply-adds of a call below which it stays on the calling thread.
const PARALLEL: usize = 1 << 18;
/// Items for each thread below which a call is split by chunk.
const LEAST_ITEMS: usize = 4;
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
    }

    /// Every page that a token sees something of is there.
    fn check_pages(&self, kv: &KvPages<'_>) {
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
    /// Parts of all items: `[tile of tokens][kv_head][tile of heads][chunk or 1][row][part_len]`.
    parts: Vec<f32>,
    /// Queries, rounded where keys are quantised: `[token][head][blocks]`.
    queries: Vec<QueryBlock>,
}

impl AttentionScratch {
    /// Bytes of the rounded queries of calls of this shape, where keys are quantised.
    pub fn query_bytes(shape: &AttentionShape) -> u64 {
        let blocks = (shape.heads * shape.key_len / KV_BLOCK) as u64;
        (blocks * size_of::<QueryBlock>() as u64).saturating_mul(shape.tokens as u64)
    }

    /// Floats of the parts of calls of this shape at most: of up to so many tokens, in a context of so many
    /// positions. Each thread has a workspace besides.
    pub fn most_floats(shape: &AttentionShape, context: usize, threads: usize) -> usize {
        // None are longer, and products with their sizes stay numbers.
        let [context, tokens] = [context, shape.tokens].map(|n| n.min(1 << 32));
        let most = |tokens: usize| {
            let shape = AttentionShape { tokens, first_pos: context.saturating_sub(tokens), ..*shape };
            let floats = |chosen, threads| {
                let plan = Plan::new(&shape, chosen, threads);
                plan.item([plan.token_tiles, 0, 0], &shape) * plan.item_len
            };
            floats(false, 1).max(floats(false, threads)).max(floats(true, threads))
        };
        // With more tokens there are items enough without a split by chunk: the more, the more parts.
        let split = tokens.min(TILE_ROWS * LEAST_ITEMS * threads);
        (1..=split).chain([tokens]).map(most).max().unwrap_or(0)
    }
}

/// What a call reads.
#[derive(Clone, Copy)]
struct Call<'a> {
    shape: &'a AttentionShape,
    q: &'a [f32],
    kv: &'a KvPages<'a>,
    sinks: Option<&'a [f32]>,
    chosen: Option<Chosen<'a>>,
}

/// Positions that tokens attend to, of those that they see; at least one for each token.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'a> {
    /// `[tokens][lists][pages]`: bit j of a page's mask stands for its position j. What a token does not see
    /// makes no difference.
    pub masks: &'a [u128],
    /// As many as KV heads, or 1 where all of these have the same.
    pub lists: usize,
    /// From page 0 on.
    pub pages: usize,
}

const _: () = assert!(PAGE == u128::BITS as usize);

impl<'a> Chosen<'a> {
    fn of(&self, token: usize, kv_head: usize) -> ChosenOf<'a> {
        let list = token * self.lists + if self.lists == 1 { 0 } else { kv_head };
        ChosenOf(&self.masks[list * self.pages..][..self.pages])
    }
}

/// What one token attends to with one KV head, page by page.
#[derive(Clone, Copy)]
pub(in crate::kernels::ops) struct ChosenOf<'a>(&'a [u128]);

impl ChosenOf<'_> {
    /// The positions of a chunk that are chosen and seen, in rising order.
    fn places<'p>(&self, chunk: usize, seen: &Range<usize>, places: &'p mut Vec<u8>) -> &'p [u8] {
        places.clear();
        let mut left = self.0[chunk];
        while left != 0 {
            let place = left.trailing_zeros();
            left &= left - 1;
            if seen.contains(&(place as usize)) {
                places.push(place as u8);
            }
        }
        places
    }
}

/// How a call is cut into items of work; changes no result.
struct Plan {
    tile_tokens: usize,
    token_tiles: usize,
    /// Heads of a group that a tile takes.
    tile_heads: usize,
    head_tiles: usize,
    chunks: Range<usize>,
    /// Each item takes one chunk (all of them otherwise).
    by_chunk: bool,
    /// Floats of one item's parts.
    item_len: usize,
}

impl Plan {
    fn new(shape: &AttentionShape, chosen: bool, threads: usize) -> Self {
        let group = shape.group();
        // Tokens attend to other positions each where these are chosen.
        let most = if chosen { 1 } else { shape.tokens };
        let tile_tokens = (TILE_ROWS / group).clamp(1, most);
        let token_tiles = shape.tokens.div_ceil(tile_tokens);
        let chunks = shape.chunks(0..shape.tokens);
        // Many heads of one group are several tiles; the fewer there are, the more they are cut for the
        // threads.
        let others = token_tiles * shape.kv_heads * if chosen { 1 } else { chunks.len() };
        let wanted = if threads > 1 { (2 * threads).div_ceil(others) } else { 1 };
        let wanted = wanted.min(group.div_ceil(LEAST_ROWS)).max(group.div_ceil(TILE_ROWS));
        let tile_heads = group.div_ceil(wanted);
        let head_tiles = group.div_ceil(tile_heads);
        let item_len = tile_tokens * tile_heads * part_len(shape.value_len);
        let items = token_tiles * head_tiles * shape.kv_heads;
        let by_chunk = threads > 1
            && !chosen
            && items < LEAST_ITEMS * threads
            && items * chunks.len() * item_len <= MAX_PARTS
            && chunks.len() > 1;
        Self { tile_tokens, token_tiles, tile_heads, head_tiles, chunks, by_chunk, item_len }
    }

    /// Items of one tile and KV head.
    fn splits(&self) -> usize {
        if self.by_chunk { self.chunks.len() } else { 1 }
    }

    fn tokens(&self, tile: usize, shape: &AttentionShape) -> Range<usize> {
        let start = tile * self.tile_tokens;
        start..(start + self.tile_tokens).min(shape.tokens)
    }

    fn heads(&self, tile: usize, shape: &AttentionShape) -> Range<usize> {
        let start = tile * self.tile_heads;
        start..(start + self.tile_heads).min(shape.group())
    }

    /// The first item of a tile of tokens, a KV head and a tile of its heads.
    fn item(&self, [token_tile, kv_head, head_tile]: [usize; 3], shape: &AttentionShape) -> usize {
        ((token_tile * shape.kv_heads + kv_head) * self.head_tiles + head_tile) * self.splits()
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
        shape.check_pages(kv);
        self.attend_all(&Call { shape, q, kv, sinks, chosen: None }, out, scratch);
    }

    /// The same over chosen positions alone; `kv` begins with page 0.
    #[allow(clippy::too_many_arguments)] // those of attention, and what is chosen
    pub fn attention_over(
        &self,
        shape: &AttentionShape,
        q: &[f32],
        kv: &KvPages<'_>,
        chosen: Chosen<'_>,
        sinks: Option<&[f32]>,
        out: &mut [f32],
        scratch: &mut AttentionScratch,
    ) {
        assert!(kv.first_page == 0 && [1, shape.kv_heads].contains(&chosen.lists), "attention: lists");
        assert_eq!(chosen.masks.len(), shape.tokens * chosen.lists * chosen.pages, "attention: masks");
        assert!((shape.first_pos + shape.tokens).div_ceil(PAGE) <= chosen.pages, "attention: pages of masks");
        shape.check_pages(kv);
        self.attend_all(&Call { shape, q, kv, sinks, chosen: Some(chosen) }, out, scratch);
    }

    /// The same over rows that need not be positions, such as those of several caches one behind another:
    /// each token attends to the rows chosen for it of all pages, at least one; the shape's `first_pos` and
    /// `window` say nothing. Pages are taken in their order.
    #[allow(clippy::too_many_arguments)] // those of attention, and what is chosen
    pub fn attention_among(
        &self,
        shape: &AttentionShape,
        q: &[f32],
        kv: &KvPages<'_>,
        chosen: Chosen<'_>,
        sinks: Option<&[f32]>,
        out: &mut [f32],
        scratch: &mut AttentionScratch,
    ) {
        assert!(kv.first_page == 0 && kv.keys.len() == chosen.pages, "attention: pages");
        assert_eq!(chosen.masks.len(), shape.tokens * chosen.lists * chosen.pages, "attention: masks");
        // Behind all rows, everything is seen.
        let shape = AttentionShape { first_pos: chosen.pages * PAGE, window: None, ..*shape };
        self.attend_all(&Call { shape: &shape, q, kv, sinks, chosen: Some(chosen) }, out, scratch);
    }

    fn attend_all(&self, call: &Call<'_>, out: &mut [f32], scratch: &mut AttentionScratch) {
        let Call { shape, q, kv, sinks, chosen } = *call;
        shape.check(q, kv, sinks, out);
        if shape.tokens == 0 {
            return;
        }
        let head = shape.key_len.max(shape.value_len);
        let work = shape.tokens * shape.heads * head * shape.seen(shape.tokens - 1).len();
        let threads = if work < PARALLEL { 1 } else { rayon::current_num_threads() };
        let plan = Plan::new(shape, chosen.is_some(), threads);
        if scratch.workspaces.len() < threads {
            scratch.workspaces.resize_with(threads, Mutex::default);
        }
        let items = plan.item([plan.token_tiles, 0, 0], shape);
        let parts_len = items * plan.item_len;
        if scratch.parts.len() < parts_len {
            // The former ones go first, and there are no more than are needed.
            scratch.parts = Vec::new();
            scratch.parts = vec![0.0; parts_len];
        }
        let AttentionScratch { workspaces, parts, queries } = scratch;
        let (parts, workspaces) = (&mut parts[..parts_len], &*workspaces);
        let mut rounded: &[QueryBlock] = &[];
        if kv.keys.first().is_some_and(KvView::is_quantised) {
            let n = shape.tokens * shape.heads * (shape.key_len / KV_BLOCK);
            if queries.len() < n {
                *queries = vec![QueryBlock::default(); n];
            }
            quantised::round_queries(self, q, shape.key_len, kv, &mut queries[..n]);
            rounded = queries;
        }

        let attend = |(item, parts): (usize, &mut [f32])| {
            let (rest, split) = (item / plan.splits(), item % plan.splits());
            let (rest, head_tile) = (rest / plan.head_tiles, rest % plan.head_tiles);
            let (token_tile, kv_head) = (rest / shape.kv_heads, rest % shape.kv_heads);
            let first = plan.chunks.start + split;
            let tokens = plan.tokens(token_tile, shape);
            let seen = shape.chunks(tokens.clone());
            let held = seen.start..seen.end.min(kv.first_page + kv.keys.len());
            let chunks = if plan.by_chunk { first..first + 1 } else { held };
            let heads = plan.heads(head_tile, shape);
            let chosen = chosen.map(|chosen| chosen.of(tokens.start, kv_head));
            let queries = rounded;
            let tile = Tile { shape, q, queries, kv_head, kv, tokens, heads, chunks, chosen };
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
            let (token_tile, kv_head) = (token / plan.tile_tokens, head / shape.group());
            let head_tile = head % shape.group() / plan.tile_heads;
            let heads = plan.heads(head_tile, shape);
            let in_tile =
                (token - token_tile * plan.tile_tokens) * heads.len() + head % shape.group() - heads.start;
            let item = plan.item([token_tile, kv_head, head_tile], shape);
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
