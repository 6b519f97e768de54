//! One tile of query rows against chunks of one KV head, generic over the instruction set and the cache's
//! type.

use std::ops::Range;

use super::parts::{State, merge, part_len};
use super::{AttentionShape, ChosenOf, PAGE};
use crate::kernels::ops::lanes::{Isa, Lanes16};
use crate::kernels::ops::math::{exp_sum, soft_cap};
use crate::kernels::ops::{KvPages, KvView};

/// Rows up to which keys and values are read where they lie; more rows pay for a widened, padded copy.
const DIRECT_ROWS: usize = 8;
/// Query rows whose scores are taken together, at most, and floats of them: they stay in the first-level
/// cache.
const SCORE_ROWS: usize = 16;
const SCORE_FLOATS: usize = 5 << 10;

/// Some rows of one KV head, and the chunks to take them through. Row r is that of token
/// `tokens.start + r / heads.len()` and of the group's head `heads.start + r % heads.len()`.
pub(in crate::kernels::ops) struct Tile<'a> {
    pub shape: &'a AttentionShape,
    /// The whole batch's queries.
    pub q: &'a [f32],
    pub kv_head: usize,
    pub kv: &'a KvPages<'a>,
    pub tokens: Range<usize>,
    /// Heads of the KV head's group.
    pub heads: Range<usize>,
    pub chunks: Range<usize>,
    /// The positions that the tile's token, the only one, attends to; all that it sees where `None`.
    pub chosen: Option<ChosenOf<'a>>,
}

impl Tile<'_> {
    fn rows(&self) -> usize {
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
    fn held_by<E>(&self, rows: Range<usize>, chunk: &Chunk<E>) -> Range<usize> {
        match chunk.places {
            Some(places) => 0..places.len(),
            None => self.seen_by(rows, chunk.index),
        }
    }

    fn held<E>(&self, row: usize, chunk: &Chunk<E>) -> Range<usize> {
        self.held_by(row..row + 1, chunk)
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
}

/// What a cache holds.
pub(in crate::kernels::ops) trait Element: Copy {
    /// What is multiplied with it is rounded to f16 first.
    const ROUNDS: bool;

    /// The elements of a page; the caller knows the kind.
    fn of(page: KvView<'_>) -> &[Self];
    fn load<I: Isa>(isa: I, x: &[Self; 16]) -> I::F;
    /// As `load`, of at most 16 values and zeros.
    fn load_head<I: Isa>(isa: I, x: &[Self]) -> I::F;
}

impl Element for f32 {
    const ROUNDS: bool = false;

    #[inline(always)]
    fn of(page: KvView<'_>) -> &[f32] {
        match page {
            KvView::F32(x) => x,
            KvView::F16(_) => unreachable!("pages of different kinds"),
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
    const ROUNDS: bool = true;

    #[inline(always)]
    fn of(page: KvView<'_>) -> &[u16] {
        match page {
            KvView::F16(x) => x,
            KvView::F32(_) => unreachable!("pages of different kinds"),
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

/// Keys and values of a chunk from position `start` of it, in units of sixteen.
struct Chunk<'a, E> {
    index: usize,
    /// The cache's [`Element::ROUNDS`], whatever these copies are of.
    rounds: bool,
    start: usize,
    /// Units of a key and of a value.
    k_units: usize,
    v_units: usize,
    /// `[position][k_units]`
    k: &'a [[E; 16]],
    v: &'a [[E; 16]],
    /// From one position to the next and from one unit to the next in `v`.
    v_position: usize,
    v_unit: usize,
    /// Which positions of the chunk the rows of `k` and `v` are, where not all that are seen.
    places: Option<&'a [u8]>,
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
    match tile.kv.keys[0] {
        KvView::F16(_) => attend_in::<I, u16>(isa, tile, workspace, parts),
        KvView::F32(_) => attend_in::<I, f32>(isa, tile, workspace, parts),
    }
}

#[inline(always)]
fn attend_in<I: Isa, E: Element>(isa: I, tile: &Tile, workspace: &mut Workspace, parts: &mut [f32]) {
    let AttentionShape { key_len, value_len, .. } = *tile.shape;
    let value_row = tile.kv.value_row(key_len, value_len);
    let (rows, len) = (tile.rows(), part_len(value_len));
    let (k_units, v_units) = (key_len.div_ceil(16), value_len.div_ceil(16));
    let whole = [key_len, value_len, value_row].iter().all(|len| len.is_multiple_of(16));
    let direct = rows <= DIRECT_ROWS && whole && tile.chosen.is_none();
    workspace.prepare(rows, k_units, v_units, !direct);
    let Workspace { q, k: packed_k, v: packed_v, p, parts: fresh, places } = workspace;
    pack_queries::<I, E>(isa, tile, k_units, q);

    let mut merged = false;
    for index in tile.chunks.clone() {
        let seen = tile.seen_by(0..rows, index);
        let chosen = tile.chosen.map(|chosen| chosen.places(index, &seen, places));
        if seen.is_empty() || chosen.is_some_and(|places| places.is_empty()) {
            continue;
        }
        let page = index - tile.kv.first_page;
        let first = tile.kv_head * PAGE;
        let (k, v) = (E::of(tile.kv.keys[page]), E::of(tile.kv.values.unwrap_or(tile.kv.keys)[page]));
        let key = |j: usize| &k[(first + j) * key_len..][..key_len];
        let value = |j: usize| &v[(first + j) * value_row..][..value_len];
        let rounds = E::ROUNDS;
        if direct {
            let start = seen.start;
            let k = k[(first + start) * key_len..(first + seen.end) * key_len].as_chunks().0;
            let v = v[(first + start) * value_row..(first + seen.end) * value_row].as_chunks().0;
            let (v_position, v_unit, places) = (value_row / 16, 1, None);
            let chunk = Chunk { index, rounds, start, k_units, v_units, k, v, v_position, v_unit, places };
            attend_chunk(isa, tile, q, &chunk, p, fresh);
        } else {
            let mut put = |at: usize, j: usize| {
                pack(isa, key(j), &mut packed_k[at * k_units..], 1);
                pack(isa, value(j), &mut packed_v[at..], PAGE);
            };
            match chosen {
                Some(places) => places.iter().enumerate().for_each(|(at, &j)| put(at, usize::from(j))),
                None => seen.clone().enumerate().for_each(|(at, j)| put(at, j)),
            }
            let (k, v, places) = (&packed_k[..], &packed_v[..], chosen);
            let start = if chosen.is_some() { 0 } else { seen.start };
            let (v_position, v_unit) = (1, PAGE);
            let chunk = Chunk { index, rounds, start, k_units, v_units, k, v, v_position, v_unit, places };
            attend_chunk(isa, tile, q, &chunk, p, fresh);
        }

        for row in 0..rows {
            if tile.seen(row, index).is_empty() {
                continue;
            }
            let (part, fresh) = (&mut parts[row * len..][..len], &fresh[row * len..][..len]);
            let first = if chosen.is_some() { !merged } else { index == tile.first_chunk(row) };
            if first {
                part.copy_from_slice(fresh);
            } else {
                let state = State::of(part);
                merge(isa, &mut part[..v_units * 16], state, fresh).store(part);
            }
        }
        merged = true;
    }
    assert!(merged || tile.chosen.is_none(), "attention: a token that attends to nothing");
}

impl Workspace {
    fn prepare(&mut self, rows: usize, k_units: usize, v_units: usize, packed: bool) {
        grow(&mut self.q, rows * k_units, [0.0; 16]);
        grow(&mut self.p, rows, [0.0; PAGE]);
        grow(&mut self.parts, rows * (v_units * 16 + 16), 0.0);
        if packed {
            grow(&mut self.k, PAGE * k_units, [0.0; 16]);
            grow(&mut self.v, PAGE * v_units, [0.0; 16]);
        }
    }
}

fn grow<T: Clone>(buffer: &mut Vec<T>, len: usize, value: T) {
    if buffer.len() < len {
        buffer.resize(len, value);
    }
}

/// The tile's queries, side by side and padded with zeros, rounded to f16 where the cache asks for it.
#[inline(always)]
fn pack_queries<I: Isa, E: Element>(isa: I, tile: &Tile, units: usize, packed: &mut [[f32; 16]]) {
    let AttentionShape { heads, key_len, .. } = *tile.shape;
    let first = tile.kv_head * tile.shape.group() + tile.heads.start;
    for row in 0..tile.rows() {
        let (token, head) = (tile.token(row), first + row % tile.heads.len());
        let q = &tile.q[(token * heads + head) * key_len..][..key_len];
        let packed = &mut packed[row * units..][..units];
        pack(isa, q, packed, 1);
        if E::ROUNDS {
            packed.iter_mut().for_each(|unit| isa.load(unit).round_f16().store(unit));
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

/// The parts of all rows for one chunk.
#[inline(always)]
fn attend_chunk<I: Isa, E: Element>(
    isa: I,
    tile: &Tile,
    q: &[[f32; 16]],
    chunk: &Chunk<E>,
    p: &mut [[f32; PAGE]],
    parts: &mut [f32],
) {
    let rows = tile.rows();
    let len = chunk.v_units * 16 + 16;
    let at_once = (SCORE_FLOATS / (16 * chunk.k_units)).clamp(2, SCORE_ROWS) / 2 * 2;
    for first in (0..rows).step_by(at_once) {
        scores(isa, tile, first..(first + at_once).min(rows), q, chunk, p);
    }
    for row in 0..rows {
        let seen = tile.held(row, chunk);
        let part = &mut parts[row * len..][..len];
        part.fill(0.0);
        if !seen.is_empty() {
            let p = &mut p[row];
            if let Some(cap) = tile.shape.soft_cap {
                soft_cap(isa, &mut p[seen.clone()], tile.shape.scale / cap, cap);
            }
            let state = match chunk.places {
                Some(places) => {
                    spread(p, places);
                    let state = probabilities(isa, p, 0..PAGE, chunk.rounds);
                    places.iter().enumerate().for_each(|(at, &j)| p[at] = p[usize::from(j)]);
                    state
                }
                None => probabilities(isa, p, seen, chunk.rounds),
            };
            state.store(part);
        }
    }
    for unit in 0..chunk.v_units {
        let mut first = 0;
        while first < rows {
            let n = if I::MANY_REGISTERS && rows - first >= 8 { 8 } else { 4.min(rows - first) };
            weigh_values(isa, tile, first..first + n, unit, chunk, p, parts);
            first += n;
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

/// Scores of some rows against what any of them sees, two rows by two positions at a time, or four by four.
#[inline(always)]
fn scores<I: Isa, E: Element>(
    isa: I,
    tile: &Tile,
    rows: Range<usize>,
    q: &[[f32; 16]],
    chunk: &Chunk<E>,
    p: &mut [[f32; PAGE]],
) {
    let units = chunk.k_units;
    let seen = tile.held_by(rows.clone(), chunk);
    // A soft cap scales by itself.
    let scale = tile.shape.soft_cap.map_or(tile.shape.scale, |_| 1.0);
    let query = |row: usize| &q[row * units..][..units];
    let key = |j: usize| &chunk.k[(j - chunk.start) * units..][..units];
    let step = if I::MANY_REGISTERS { 4 } else { 2 };
    for j in seen.clone().step_by(step) {
        let end = seen.end.min(j + step);
        if chunk.v_unit == 1 && chunk.v_position == chunk.v_units {
            // Values are read where they lie, column by column, which the hardware does not foresee.
            let values = &chunk.v[(j - chunk.start) * chunk.v_units..];
            for v in values.iter().take(step * chunk.v_units).step_by(2) {
                isa.prefetch(v);
            }
        }
        let mut left = rows.clone();
        while step == 4 && end - j == 4 && left.len() >= 4 {
            let row = left.start;
            let q = [query(row), query(row + 1), query(row + 2), query(row + 3)];
            let dots = dots4x4(isa, q, [key(j), key(j + 1), key(j + 2), key(j + 3)]);
            for (p, dots) in p[row..row + 4].iter_mut().zip(dots) {
                p[j..j + 4].copy_from_slice(&dots.map(|dot| dot * scale));
            }
            left.start += 4;
        }
        for j in (j..end).step_by(2) {
            for row in left.clone().step_by(2) {
                match (row + 1 < rows.end, j + 1 < end) {
                    (true, true) => {
                        let [a, b, c, d] = dots2x2(isa, [query(row), query(row + 1)], [key(j), key(j + 1)]);
                        (p[row][j], p[row][j + 1]) = (a * scale, b * scale);
                        (p[row + 1][j], p[row + 1][j + 1]) = (c * scale, d * scale);
                    }
                    (false, true) => {
                        p[row][j] = dot(isa, query(row), key(j)) * scale;
                        p[row][j + 1] = dot(isa, query(row), key(j + 1)) * scale;
                    }
                    (two, false) => {
                        p[row][j] = dot(isa, query(row), key(j)) * scale;
                        if two {
                            p[row + 1][j] = dot(isa, query(row + 1), key(j)) * scale;
                        }
                    }
                }
            }
        }
    }
}

/// Four queries by four keys: for each query its dots.
#[inline(always)]
fn dots4x4<I: Isa, E: Element>(isa: I, q: [&[[f32; 16]]; 4], k: [&[[E; 16]]; 4]) -> [[f32; 4]; 4] {
    let n = q[0].len();
    let ([q0, q1, q2, q3], [k0, k1, k2, k3]) = (q, k);
    let (q0, q1, q2, q3) = (&q0[..n], &q1[..n], &q2[..n], &q3[..n]);
    let (k0, k1, k2, k3) = (&k0[..n], &k1[..n], &k2[..n], &k3[..n]);
    let mut acc = [[isa.splat(0.0); 4]; 4];
    // No closures over registers: they would be compiled without the instruction set.
    for i in 0..n {
        let keys = [E::load(isa, &k0[i]), E::load(isa, &k1[i]), E::load(isa, &k2[i]), E::load(isa, &k3[i])];
        let queries = [isa.load(&q0[i]), isa.load(&q1[i]), isa.load(&q2[i]), isa.load(&q3[i])];
        for row in 0..4 {
            for j in 0..4 {
                acc[row][j] = queries[row].mul_add(keys[j], acc[row][j]);
            }
        }
    }
    [I::F::sum4(acc[0]), I::F::sum4(acc[1]), I::F::sum4(acc[2]), I::F::sum4(acc[3])]
}

/// Two queries by two keys: `[q0 k0, q0 k1, q1 k0, q1 k1]`.
#[inline(always)]
pub(in crate::kernels::ops) fn dots2x2<I: Isa, E: Element>(
    isa: I,
    q: [&[[f32; 16]]; 2],
    k: [&[[E; 16]]; 2],
) -> [f32; 4] {
    let n = q[0].len();
    let (q0, q1, k0, k1) = (&q[0][..n], &q[1][..n], &k[0][..n], &k[1][..n]);
    let mut acc = [isa.splat(0.0); 4];
    for i in 0..n {
        let (k0, k1) = (E::load(isa, &k0[i]), E::load(isa, &k1[i]));
        let q0 = isa.load(&q0[i]);
        acc[0] = q0.mul_add(k0, acc[0]);
        acc[1] = q0.mul_add(k1, acc[1]);
        let q1 = isa.load(&q1[i]);
        acc[2] = q1.mul_add(k0, acc[2]);
        acc[3] = q1.mul_add(k1, acc[3]);
    }
    I::F::sum4(acc)
}

#[inline(always)]
pub(in crate::kernels::ops) fn dot<I: Isa, E: Element>(isa: I, q: &[[f32; 16]], k: &[[E; 16]]) -> f32 {
    let mut acc = isa.splat(0.0);
    for (q, k) in q.iter().zip(k) {
        acc = isa.load(q).mul_add(E::load(isa, k), acc);
    }
    acc.sum()
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

/// Adds the values of one unit, weighted, to the parts of up to four rows, or eight: together over what all
/// of them see, each by itself before and after.
#[inline(always)]
fn weigh_values<I: Isa, E: Element>(
    isa: I,
    tile: &Tile,
    rows: Range<usize>,
    unit: usize,
    chunk: &Chunk<E>,
    p: &[[f32; PAGE]],
    parts: &mut [f32],
) {
    let first = tile.held(rows.start, chunk);
    // Both ends rise from row to row.
    let common = tile.held(rows.end - 1, chunk).start..first.end;
    if rows.len() == 1 || common.is_empty() {
        for row in rows {
            weigh::<I, E, 1>(isa, row, tile.held(row, chunk), unit, chunk, p, parts);
        }
        return;
    }
    for row in rows.clone() {
        weigh::<I, E, 1>(isa, row, tile.held(row, chunk).start..common.start, unit, chunk, p, parts);
    }
    match rows.len() {
        2 => weigh::<I, E, 2>(isa, rows.start, common.clone(), unit, chunk, p, parts),
        3 => weigh::<I, E, 3>(isa, rows.start, common.clone(), unit, chunk, p, parts),
        8 if I::MANY_REGISTERS => weigh::<I, E, 8>(isa, rows.start, common.clone(), unit, chunk, p, parts),
        _ => weigh::<I, E, 4>(isa, rows.start, common.clone(), unit, chunk, p, parts),
    }
    for row in rows {
        weigh::<I, E, 1>(isa, row, common.end..tile.held(row, chunk).end, unit, chunk, p, parts);
    }
}

/// `o[unit] = fma(p_j, v_j[unit], o[unit])` in rising j, for R rows that all see these positions.
#[inline(always)]
fn weigh<I: Isa, E: Element, const R: usize>(
    isa: I,
    row: usize,
    seen: Range<usize>,
    unit: usize,
    chunk: &Chunk<E>,
    p: &[[f32; PAGE]],
    parts: &mut [f32],
) {
    if seen.is_empty() {
        return;
    }
    let len = chunk.v_units * 16 + 16;
    let p: &[[f32; PAGE]; R] = p[row..].first_chunk().expect("a row of probabilities for each row");
    let mut acc = [isa.splat(0.0); R];
    for (i, acc) in acc.iter_mut().enumerate() {
        *acc = isa.load(unit_of(parts, (row + i) * len, unit));
    }
    let v = &chunk.v[unit * chunk.v_unit..];
    for j in seen.start..seen.end.min(PAGE) {
        let v = E::load(isa, &v[(j - chunk.start) * chunk.v_position]);
        for (acc, p) in acc.iter_mut().zip(p) {
            *acc = isa.splat(p[j]).mul_add(v, *acc);
        }
    }
    for (i, acc) in acc.into_iter().enumerate() {
        acc.store(unit_of(parts, (row + i) * len, unit));
    }
}

/// One unit of the part that starts at `at`.
#[inline(always)]
fn unit_of(parts: &mut [f32], at: usize, unit: usize) -> &mut [f32; 16] {
    parts[at + unit * 16..].first_chunk_mut().expect("parts are whole units")
}
