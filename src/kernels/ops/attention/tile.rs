//! One tile of query rows against chunks of one KV head, generic over the instruction set and, chunk by
//! chunk, over the types of keys and of values.

use std::ops::Range;

use super::parts::{State, merge, part_len};
use super::quantised::{Bytes, Nibbles, QuantisedKeys, QuantisedValues};
use super::scores::{Keys, score};
use super::values::{InPlace, Packed, Values, weigh_all};
use super::{AttentionShape, ChosenOf, PAGE};
use crate::kernels::ops::lanes::{Isa, Lanes16, QueryBlock};
use crate::kernels::ops::math::{exp_sum, soft_cap};
use crate::kernels::ops::{KV_BLOCK, KvPages, KvView};

/// Rows up to which keys and values are read where they lie; more rows pay for a widened, padded copy.
const DIRECT_ROWS: usize = 8;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Some rows of one KV head, and the chunks to take them through. Row r is that of token
/// `tokens.start + r / heads.len()` and of the group's head `heads.start + r % heads.len()`.
pub(in crate::kernels::ops) struct Tile<'a> {
    pub shape: &'a AttentionShape,
    /// The whole batch's queries.
    pub q: &'a [f32],
    /// The same, rotated and rounded, where keys are quantised: `[token][head][blocks]`.
    pub queries: &'a [QueryBlock],
    pub kv_head: usize,
    pub kv: &'a KvPages<'a>,
    pub tokens: Range<usize>,
    /// Heads of the KV head's group.
    pub heads: Range<usize>,
    pub chunks: Range<usize>,
    /// The positions that the tile's token, the only one, attends to; all that it sees where `None`.
    pub chosen: Option<ChosenOf<'a>>,
}

impl<'a> Tile<'a> {
    pub(super) fn rows(&self) -> usize {
        self.tokens.len() * self.heads.len()
    }

    fn token(&self, row: usize) -> usize {
        self.tokens.start + row / self.heads.len()
    }

    /// What a row sees of a chunk, counted from its start.
    fn seen(&self, row: usize, chunk: usize) -> Range<usize> {
        self.shape.seen_in(self.token(row), chunk)
    }

    /// The first chunk that this tile takes a row through.
    fn first_chunk(&self, row: usize) -> usize {
        self.chunks.start.max(self.shape.seen(self.token(row)).start / PAGE)
    }

    /// What any of these rows sees of a chunk: tokens stand in rising order, so their ranges overlap or
    /// adjoin.
    fn seen_by(&self, rows: Range<usize>, chunk: usize) -> Range<usize> {
        self.seen(rows.start, chunk).start..self.seen(rows.end - 1, chunk).end
    }

    /// The same in a chunk at hand, counted as its rows are.
    pub(super) fn held_by(&self, rows: Range<usize>, chunk: &Chunk) -> Range<usize> {
        match chunk.places {
            Some(places) => 0..places.len(),
            None => self.seen_by(rows, chunk.index),
        }
    }

    pub(super) fn held(&self, row: usize, chunk: &Chunk) -> Range<usize> {
        self.held_by(row..row + 1, chunk)
    }

    /// Units of a value.
    pub(super) fn value_units(&self) -> usize {
        self.shape.value_len.div_ceil(16)
    }

    /// What dots are multiplied by: a soft cap scales by itself.
    pub(super) fn dot_scale(&self) -> f32 {
        self.shape.soft_cap.map_or(self.shape.scale, |_| 1.0)
    }

    /// A row's rounded query.
    pub(super) fn query(&self, row: usize, blocks: usize) -> &'a [QueryBlock] {
        let head = self.kv_head * self.shape.group() + self.heads.start + row % self.heads.len();
        &self.queries[(self.token(row) * self.shape.heads + head) * blocks..][..blocks]
    }

    /// Keys and values of a chunk, and the elements from a row of values to the next.
    fn page(&self, chunk: &Chunk) -> (KvView<'a>, KvView<'a>, usize) {
        let page = chunk.index - self.kv.first_page;
        let AttentionShape { key_len, value_len, .. } = *self.shape;
        let row = self.kv.value_row(key_len, value_len);
        (self.kv.keys[page], self.kv.values.unwrap_or(self.kv.keys)[page], row)
    }

    /// Whether rows of so many elements of a chunk are read where they lie.
    fn reads_in_place(&self, chunk: &Chunk, len: usize) -> bool {
        self.rows() <= DIRECT_ROWS && len.is_multiple_of(16) && chunk.places.is_none()
    }

    /// Of a page, what belongs to the tile's head; `row`: elements, bytes or scales of a position.
    fn of_head<T>(&self, page: &'a [T], row: usize) -> &'a [T] {
        &page[self.kv_head * PAGE * row..][..PAGE * row]
    }

    /// Where the chunk's values lie, if they will be read there for the first time.
    pub(super) fn values_ahead(&self, chunk: &Chunk) -> Ahead<'a> {
        let (_, values, row) = self.page(chunk);
        let bytes = values.bytes();
        let in_place = self.kv.values.is_some() && self.reads_in_place(chunk, row);
        let row = if in_place { bytes.len() / (self.shape.kv_heads * PAGE) } else { 0 };
        Ahead { bytes: self.of_head(bytes, row), row }
    }
}

/// The values of a chunk, row by row: they are read column by column, which the hardware does not foresee.
pub(super) struct Ahead<'a> {
    bytes: &'a [u8],
    row: usize,
}

impl Ahead<'_> {
    /// Asks for the values of some positions.
    #[inline(always)]
    pub fn ask_for<I: Isa>(&self, isa: I, positions: Range<usize>) {
        let bytes = &self.bytes[positions.start * self.row..positions.end * self.row];
        for line in bytes.iter().step_by(LINE) {
            isa.prefetch(line);
        }
    }
}

/// One thread's buffers.
#[derive(Debug, Default)]
pub(in crate::kernels::ops) struct Workspace {
    /// `[row][key_len / 16]`
    q: Vec<[f32; 16]>,
    /// `[position][key_len / 16]`
    k: Vec<[f32; 16]>,
    /// `[value_len / 16][position]`
    v: Vec<[f32; 16]>,
    /// `[row]`: scores, then probabilities, of a chunk
    p: Vec<[f32; PAGE]>,
    /// `[row][part_len]`: parts of a chunk
    parts: Vec<f32>,
    /// Positions of a chunk that are chosen, in rising order.
    places: Vec<u8>,
    /// `[position][blocks]`: scales of quantised values of a chunk.
    scales: Vec<f32>,
}

/// What a cache of floats holds.
pub(in crate::kernels::ops) trait Element: Copy {
    /// The elements of a page; the caller knows the kind.
    fn of(page: KvView<'_>) -> &[Self];
    fn load<I: Isa>(isa: I, x: &[Self; 16]) -> I::F;
    /// As `load`, of at most 16 values and zeros.
    fn load_head<I: Isa>(isa: I, x: &[Self]) -> I::F;
}

impl Element for f32 {
    #[inline(always)]
    fn of(page: KvView<'_>) -> &[f32] {
        match page {
            KvView::F32(x) => x,
            _ => unreachable!("pages of another kind"),
        }
    }

    #[inline(always)]
    fn load<I: Isa>(isa: I, x: &[f32; 16]) -> I::F {
        isa.load(x)
    }
    #[inline(always)]
    fn load_head<I: Isa>(isa: I, x: &[f32]) -> I::F {
        isa.load_head(x)
    }
}

impl Element for u16 {
    #[inline(always)]
    fn of(page: KvView<'_>) -> &[u16] {
        match page {
            KvView::F16(x) => x,
            _ => unreachable!("pages of another kind"),
        }
    }

    #[inline(always)]
    fn load<I: Isa>(isa: I, x: &[u16; 16]) -> I::F {
        isa.load_f16(x)
    }
    #[inline(always)]
    fn load_head<I: Isa>(isa: I, x: &[u16]) -> I::F {
        let mut lanes = [0; 16];
        lanes[..x.len()].copy_from_slice(x);
        isa.load_f16(&lanes)
    }
}

/// What is at hand of a chunk. Its rows are counted by position, or by place among those that are chosen.
pub(super) struct Chunk<'a> {
    pub index: usize,
    /// The positions that the tile sees of it, counted from its start.
    pub seen: Range<usize>,
    /// Which positions its rows are, where not all that are seen.
    pub places: Option<&'a [u8]>,
}

impl Chunk<'_> {
    /// Each row and its position. To loop over, not to call `for_each` on: what a closure calls of an
    /// instruction set is compiled outside of the functions that have its features.
    #[inline(always)]
    pub fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        let rows = self.places.map_or(self.seen.clone(), |places| 0..places.len());
        rows.map(|at| (at, self.places.map_or(at, |places| usize::from(places[at]))))
    }

    /// The first row.
    pub fn start(&self) -> usize {
        if self.places.is_some() { 0 } else { self.seen.start }
    }
}

/// Takes a tile's rows through its chunks; `parts` is `[row][part_len]`, and rows that see nothing of any
/// chunk are left unwritten.
#[inline(always)]
pub(in crate::kernels::ops) fn attend<I: Isa>(
    isa: I,
    tile: &Tile,
    workspace: &mut Workspace,
    parts: &mut [f32],
) {
    let (rows, len) = (tile.rows(), part_len(tile.shape.value_len));
    workspace.prepare(tile);
    let Workspace { q, k, v, p, parts: fresh, places, scales } = workspace;
    pack_queries(isa, tile, q);
    let mut merged = false;
    for index in tile.chunks.clone() {
        let seen = tile.seen_by(0..rows, index);
        let places = tile.chosen.map(|chosen| chosen.places(index, &seen, places));
        if seen.is_empty() || places.is_some_and(|places| places.is_empty()) {
            continue;
        }
        let chunk = Chunk { index, seen, places };
        score_chunk(isa, tile, &chunk, q, k, p);
        weigh_scores(isa, tile, &chunk, p, fresh);
        weigh_chunk(isa, tile, &chunk, v, scales, p, fresh);

        for row in 0..rows {
            if tile.seen(row, index).is_empty() {
                continue;
            }
            let (part, fresh) = (&mut parts[row * len..][..len], &fresh[row * len..][..len]);
            let first = if places.is_some() { !merged } else { index == tile.first_chunk(row) };
            if first {
                part.copy_from_slice(fresh);
            } else {
                let state = State::of(part);
                merge(isa, &mut part[..len - 16], state, fresh).store(part);
            }
        }
        merged = true;
    }
    assert!(merged || tile.chosen.is_none(), "attention: a token that attends to nothing");
}

impl Workspace {
    fn prepare(&mut self, tile: &Tile) {
        let (rows, v_units) = (tile.rows(), tile.value_units());
        let k_units = tile.shape.key_len.div_ceil(16);
        grow(&mut self.q, rows * k_units, [0.0; 16]);
        grow(&mut self.p, rows, [0.0; PAGE]);
        grow(&mut self.parts, rows * (v_units * 16 + 16), 0.0);
        grow(&mut self.k, PAGE * k_units, [0.0; 16]);
        grow(&mut self.v, PAGE * v_units, [0.0; 16]);
    }
}

fn grow<T: Clone>(buffer: &mut Vec<T>, len: usize, value: T) {
    if buffer.len() < len {
        buffer.resize(len, value);
    }
}

/// The tile's queries, side by side and padded with zeros, rounded to f16 where keys are.
#[inline(always)]
fn pack_queries<I: Isa>(isa: I, tile: &Tile, packed: &mut [[f32; 16]]) {
    let AttentionShape { heads, key_len, .. } = *tile.shape;
    let (units, keys) = (key_len.div_ceil(16), &tile.kv.keys[0]);
    if keys.is_quantised() {
        return;
    }
    let first = tile.kv_head * tile.shape.group() + tile.heads.start;
    for row in 0..tile.rows() {
        let (token, head) = (tile.token(row), first + row % tile.heads.len());
        let q = &tile.q[(token * heads + head) * key_len..][..key_len];
        let packed = &mut packed[row * units..][..units];
        pack(isa, q, packed, 1);
        if matches!(keys, KvView::F16(_)) {
            for unit in packed.iter_mut() {
                isa.load(unit).round_f16().store(unit);
            }
        }
    }
}

/// Widens a row and pads it with zeros, to every `step`th unit.
#[inline(always)]
fn pack<I: Isa, E: Element>(isa: I, from: &[E], to: &mut [[f32; 16]], step: usize) {
    let (blocks, tail) = from.as_chunks::<16>();
    for (i, block) in blocks.iter().enumerate() {
        E::load(isa, block).store(&mut to[i * step]);
    }
    if !tail.is_empty() {
        E::load_head(isa, tail).store(&mut to[blocks.len() * step]);
    }
}

/// Scores of all rows against a chunk's keys.
#[inline(always)]
fn score_chunk<I: Isa>(
    isa: I,
    tile: &Tile,
    chunk: &Chunk,
    q: &[[f32; 16]],
    packed: &mut [[f32; 16]],
    p: &mut [[f32; PAGE]],
) {
    let (len, start) = (tile.shape.key_len, chunk.start());
    let (units, in_place) = (len.div_ceil(16), tile.reads_in_place(chunk, len));
    match tile.page(chunk).0 {
        KvView::F16(keys) => {
            let keys = tile.of_head(keys, len);
            if in_place {
                return score(isa, tile, q, chunk, &Keys { start: 0, units, k: keys.as_chunks().0 }, p);
            }
            for (at, j) in chunk.rows() {
                pack(isa, &keys[j * len..][..len], &mut packed[(at - start) * units..], 1);
            }
        }
        KvView::F32(keys) => {
            let keys = tile.of_head(keys, len);
            if in_place {
                return score(isa, tile, q, chunk, &Keys { start: 0, units, k: keys.as_chunks().0 }, p);
            }
            for (at, j) in chunk.rows() {
                pack(isa, &keys[j * len..][..len], &mut packed[(at - start) * units..], 1);
            }
        }
        KvView::Q8_0(d, keys) => {
            let (d, keys) = (tile.of_head(d, len / KV_BLOCK), tile.of_head(keys, len));
            return QuantisedKeys::<Bytes>::new(d, keys, len).score(isa, tile, chunk, p);
        }
        KvView::Q4_0(d, keys) => {
            let (d, keys) = (tile.of_head(d, len / KV_BLOCK), tile.of_head(keys, len / 2));
            return QuantisedKeys::<Nibbles>::new(d, keys, len).score(isa, tile, chunk, p);
        }
    }
    score(isa, tile, q, chunk, &Keys { start, units, k: &*packed }, p);
}

/// Makes probabilities of the scores of all rows, and begins the rows' parts.
#[inline(always)]
fn weigh_scores<I: Isa>(isa: I, tile: &Tile, chunk: &Chunk, p: &mut [[f32; PAGE]], parts: &mut [f32]) {
    let len = part_len(tile.shape.value_len);
    let rounds = matches!(tile.page(chunk).1, KvView::F16(_));
    for (row, p) in p[..tile.rows()].iter_mut().enumerate() {
        let seen = tile.held(row, chunk);
        let part = &mut parts[row * len..][..len];
        part.fill(0.0);
        if seen.is_empty() {
            continue;
        }
        if let Some(cap) = tile.shape.soft_cap {
            soft_cap(isa, &mut p[seen.clone()], tile.shape.scale / cap, cap);
        }
        let state = match chunk.places {
            Some(places) => {
                spread(p, places);
                let state = probabilities(isa, p, 0..PAGE, rounds);
                places.iter().enumerate().for_each(|(at, &j)| p[at] = p[usize::from(j)]);
                state
            }
            None => probabilities(isa, p, seen, rounds),
        };
        state.store(part);
    }
}

/// Adds a chunk's values, weighted, to the parts of all rows.
#[inline(always)]
fn weigh_chunk<I: Isa>(
    isa: I,
    tile: &Tile,
    chunk: &Chunk,
    packed: &mut [[f32; 16]],
    scales: &mut Vec<f32>,
    p: &[[f32; PAGE]],
    parts: &mut [f32],
) {
    let (_, values, row) = tile.page(chunk);
    let len = tile.shape.value_len;
    let in_place = tile.reads_in_place(chunk, row) && len.is_multiple_of(16);
    let beside_keys = tile.kv.values.is_some();
    let start = chunk.start();
    // Where values are not read where they lie, a widened copy is, in one place for all their types.
    match values {
        KvView::F16(values) => {
            let values = tile.of_head(values, row);
            if in_place {
                let values = InPlace { v: values.as_chunks().0, units: row / 16 };
                return weigh_all(isa, tile, chunk, values, p, parts);
            }
            for (at, j) in chunk.rows() {
                pack(isa, &values[j * row..][..len], &mut packed[at - start..], PAGE);
            }
        }
        KvView::F32(values) => {
            let values = tile.of_head(values, row);
            if in_place {
                let values = InPlace { v: values.as_chunks().0, units: row / 16 };
                return weigh_all(isa, tile, chunk, values, p, parts);
            }
            for (at, j) in chunk.rows() {
                pack(isa, &values[j * row..][..len], &mut packed[at - start..], PAGE);
            }
        }
        KvView::Q8_0(d, values) => {
            let (d, values) = (tile.of_head(d, row / KV_BLOCK), tile.of_head(values, row));
            if beside_keys {
                let values = QuantisedValues::<Bytes>::new(isa, d, values, row, scales);
                if in_place {
                    return weigh_all(isa, tile, chunk, values, p, parts);
                }
                widen(isa, tile, chunk, values, packed);
            } else {
                widen(isa, tile, chunk, QuantisedKeys::<Bytes>::new(d, values, row), packed);
            }
        }
        KvView::Q4_0(d, values) => {
            let (d, values) = (tile.of_head(d, row / KV_BLOCK), tile.of_head(values, row / 2));
            if beside_keys {
                let values = QuantisedValues::<Nibbles>::new(isa, d, values, row, scales);
                if in_place {
                    return weigh_all(isa, tile, chunk, values, p, parts);
                }
                widen(isa, tile, chunk, values, packed);
            } else {
                widen(isa, tile, chunk, QuantisedKeys::<Nibbles>::new(d, values, row), packed);
            }
        }
    }
    weigh_all(isa, tile, chunk, Packed { v: packed, start }, p, parts);
}

/// Widens the values of a chunk.
#[inline(always)]
fn widen<I: Isa, V: Values>(isa: I, tile: &Tile, chunk: &Chunk, values: V, packed: &mut [[f32; 16]]) {
    let (start, units) = (chunk.start(), tile.value_units());
    for (at, j) in chunk.rows() {
        for unit in 0..units {
            let [value] = values.units::<I, 1>(isa, j, unit);
            value.store(&mut packed[unit * PAGE + at - start]);
        }
    }
}

/// Brings the scores of chosen positions to their places, where their lanes are; what is not chosen is
/// masked.
fn spread(p: &mut [f32; PAGE], places: &[u8]) {
    let mut end = PAGE;
    for (at, &j) in places.iter().enumerate().rev() {
        let score = p[at];
        p[usize::from(j)] = score;
        p[usize::from(j) + 1..end].fill(f32::NEG_INFINITY);
        end = usize::from(j);
    }
    p[..end].fill(f32::NEG_INFINITY);
}

/// Replaces the scores seen by `exp(score - max)`, or by that over the sum, rounded to f16.
#[inline(always)]
fn probabilities<I: Isa>(isa: I, p: &mut [f32; PAGE], seen: Range<usize>, rounds: bool) -> State {
    // Chunks start at multiples of 16, so a position keeps its lane; what is masked in the first and last
    // sixteen adds exp(-inf) = 0 to its lane, which changes no bit.
    let blocks = seen.start / 16 * 16..seen.end.next_multiple_of(16);
    p[blocks.start..seen.start].fill(f32::NEG_INFINITY);
    p[seen.end..blocks.end].fill(f32::NEG_INFINITY);
    let p = &mut p[blocks];
    let (max, sum) = exp_sum(isa, p);
    if !rounds {
        return State { max, sum, weight: 1.0 };
    }
    let by = isa.splat(1.0 / sum);
    for p in p.as_chunks_mut::<16>().0 {
        isa.load(p).mul(by).round_f16().store(p);
    }
    State { max, sum, weight: sum }
}
