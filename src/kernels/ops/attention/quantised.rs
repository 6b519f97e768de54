//! Quantised keys and values of one head and chunk, and queries rounded to be multiplied with such keys.

use half::f16;
use rayon::prelude::*;

use super::PAGE;
use super::tile::{Chunk, Tile};
use super::values::Values;
use crate::kernels::ops::lanes::{BytePanel, Isa, Lanes16, NibblePanel, QueryBlock};
use crate::kernels::ops::{KV_BLOCK, KvPages, Ops};
use crate::quant::quantize_q8_0;

/// Positions of a panel.
const LANES: usize = 16;
/// Elements from which queries are rounded by all threads.
const PARALLEL: usize = 1 << 15;

/// Rotates queries as the keys were, and rounds them to Q8_0: `queries` is `[rows][blocks]`.
pub(super) fn round_queries(ops: &Ops, q: &[f32], len: usize, kv: &KvPages<'_>, queries: &mut [QueryBlock]) {
    let (rotation, blocks) = (kv.key_rotation(len), len / KV_BLOCK);
    let round = |(q, queries): (&[f32], &mut [QueryBlock])| {
        ops.rotated(q, rotation, |q| {
            for (q, block) in q.as_chunks().0.iter().zip(queries) {
                let mut quants = [0; KV_BLOCK];
                let scale = quantize_q8_0(q, &mut quants).to_f32();
                *block = QueryBlock::new(&quants, scale);
            }
        });
    };
    if q.len() < PARALLEL {
        q.chunks_exact(len).zip(queries.chunks_exact_mut(blocks)).for_each(round);
    } else {
        q.par_chunks_exact(len).zip(queries.par_chunks_exact_mut(blocks)).for_each(round);
    }
}

/// How quants lie.
pub(super) trait Quants: Copy {
    type Of: Copy;
    /// A block of the keys of sixteen positions.
    type Panel: Copy;

    /// Elements that one holds.
    const EACH: usize;

    fn panels(quants: &[Self::Of]) -> &[Self::Panel];
    /// Products of sixteen positions' keys with queries.
    fn dot<I: Isa, const R: usize>(isa: I, panel: &Self::Panel, q: [&QueryBlock; R]) -> [I::F; R];
    /// U times sixteen elements of a block, by their number, of a row that begins at `start` and has so many.
    fn sixteens<I: Isa, const U: usize>(
        isa: I,
        quants: &[Self::Of],
        start: usize,
        len: usize,
        unit: usize,
    ) -> [I::F; U];
    /// The first or the last sixteen elements of a position of a panel.
    fn of_panel<I: Isa>(isa: I, panel: &Self::Panel, position: usize, last: bool) -> I::F;
}

/// Those of Q8_0.
#[derive(Clone, Copy)]
pub(super) struct Bytes;

impl Quants for Bytes {
    type Of = i8;
    type Panel = BytePanel;

    const EACH: usize = 1;

    #[inline(always)]
    fn panels(quants: &[i8]) -> &[BytePanel] {
        quants.as_chunks().0.as_chunks().0.as_chunks().0
    }

    #[inline(always)]
    fn dot<I: Isa, const R: usize>(isa: I, panel: &BytePanel, q: [&QueryBlock; R]) -> [I::F; R] {
        isa.dot_bytes(panel, q)
    }

    #[inline(always)]
    fn sixteens<I: Isa, const U: usize>(
        isa: I,
        quants: &[i8],
        start: usize,
        _: usize,
        unit: usize,
    ) -> [I::F; U] {
        let quants = quants[start + unit * 16..][..U * 16].as_chunks().0;
        let mut units = [isa.splat(0.0); U];
        for i in 0..U {
            units[i] = isa.load_i8(&quants[i]);
        }
        units
    }

    #[inline(always)]
    fn of_panel<I: Isa>(isa: I, panel: &BytePanel, position: usize, last: bool) -> I::F {
        let mut sixteen = [0; 16];
        let half = if last { &panel[4..] } else { &panel[..4] };
        for (to, fours) in sixteen.as_chunks_mut().0.iter_mut().zip(half) {
            *to = fours[position];
        }
        isa.load_i8(&sixteen)
    }
}

/// Those of Q4_0.
#[derive(Clone, Copy)]
pub(super) struct Nibbles;

impl Quants for Nibbles {
    type Of = u8;
    type Panel = NibblePanel;

    const EACH: usize = 2;

    #[inline(always)]
    fn panels(quants: &[u8]) -> &[NibblePanel] {
        quants.as_chunks().0.as_chunks().0.as_chunks().0
    }

    #[inline(always)]
    fn dot<I: Isa, const R: usize>(isa: I, panel: &NibblePanel, q: [&QueryBlock; R]) -> [I::F; R] {
        isa.dot_nibbles(panel, q)
    }

    #[inline(always)]
    fn sixteens<I: Isa, const U: usize>(
        isa: I,
        quants: &[u8],
        start: usize,
        len: usize,
        unit: usize,
    ) -> [I::F; U] {
        let whole = len / (2 * KV_BLOCK) * KV_BLOCK;
        let mut units = [isa.splat(0.0); U];
        if unit * 8 < whole {
            let at = start + unit / 4 * KV_BLOCK + unit % 2 * 16;
            let (quants, high) = (quants[at..][..U * 16].as_chunks().0, unit % 4 > 1);
            for i in 0..U {
                units[i] = isa.load_nibbles(&quants[i], high);
            }
        } else {
            // The last block alone.
            let quants = quants[start + whole..].first_chunk().expect("rows are whole blocks");
            for (i, to) in units.iter_mut().enumerate() {
                *to = isa.load_nibbles(quants, (unit + i) % 2 == 1);
            }
        }
        units
    }

    #[inline(always)]
    fn of_panel<I: Isa>(isa: I, panel: &NibblePanel, position: usize, last: bool) -> I::F {
        let mut sixteen = [0; 16];
        for (to, fours) in sixteen.as_chunks_mut().0.iter_mut().zip(panel) {
            *to = fours[position];
        }
        isa.load_nibbles(&sixteen, last)
    }
}

/// Quantised keys of a head and chunk.
#[derive(Clone, Copy)]
pub(super) struct QuantisedKeys<'a, Q: Quants> {
    /// `[position / 16][blocks]`
    panels: &'a [Q::Panel],
    /// As many.
    scales: &'a [[u16; LANES]],
    blocks: usize,
}

impl<'a, Q: Quants> QuantisedKeys<'a, Q> {
    /// Of keys of so many elements.
    #[inline(always)]
    pub fn new(scales: &'a [u16], quants: &'a [Q::Of], len: usize) -> Self {
        Self { panels: Q::panels(quants), scales: scales.as_chunks().0, blocks: len / KV_BLOCK }
    }

    /// Scores of all rows of a tile: `acc = fma(d_k * d_q, products, acc)` from 0, block by block.
    #[inline(always)]
    pub fn score<I: Isa>(&self, isa: I, tile: &Tile, chunk: &Chunk, p: &mut [[f32; PAGE]]) {
        let ahead = tile.values_ahead(chunk);
        let panels = chunk.seen.start / LANES..chunk.seen.end.div_ceil(LANES);
        let rows = tile.rows();
        for panel in panels {
            ahead.ask_for(isa, panel * LANES..(panel + 1) * LANES);
            let mut row = 0;
            while row < rows {
                row += match rows - row {
                    4.. => self.score_rows::<I, 4>(isa, tile, panel, row, p),
                    2.. => self.score_rows::<I, 2>(isa, tile, panel, row, p),
                    _ => self.score_rows::<I, 1>(isa, tile, panel, row, p),
                };
            }
        }
        if let Some(places) = chunk.places {
            for p in &mut p[..rows] {
                places.iter().enumerate().for_each(|(at, &j)| p[at] = p[usize::from(j)]);
            }
        }
    }

    /// Of some rows, for a panel's positions, whether they are seen or not; returns how many rows these are.
    #[inline(always)]
    fn score_rows<I: Isa, const R: usize>(
        &self,
        isa: I,
        tile: &Tile,
        panel: usize,
        row: usize,
        p: &mut [[f32; PAGE]],
    ) -> usize {
        let blocks = panel * self.blocks..(panel + 1) * self.blocks;
        let (panels, scales) = (&self.panels[blocks.clone()], &self.scales[blocks]);
        let mut queries: [&[QueryBlock]; R] = [&[]; R];
        for (i, query) in queries.iter_mut().enumerate() {
            *query = &tile.query(row + i, self.blocks)[..panels.len()];
        }
        let mut acc = [isa.splat(0.0); R];
        for (block, (panel, scales)) in panels.iter().zip(scales).enumerate() {
            let mut q = [&queries[0][block]; R];
            for (q, query) in q.iter_mut().zip(queries) {
                *q = &query[block];
            }
            let (scales, products) = (isa.load_f16(scales), Q::dot(isa, panel, q));
            for i in 0..R {
                acc[i] = scales.mul(isa.splat(q[i].scale)).mul_add(products[i], acc[i]);
            }
        }
        let scale = isa.splat(tile.dot_scale());
        for (acc, p) in acc.into_iter().zip(&mut p[row..row + R]) {
            acc.mul(scale).store(&mut p.as_chunks_mut().0[panel]);
        }
        R
    }
}

impl<Q: Quants> Values for QuantisedKeys<'_, Q> {
    /// Of a value that is the beginning of a key.
    #[inline(always)]
    fn units<I: Isa, const U: usize>(self, isa: I, at: usize, unit: usize) -> [I::F; U] {
        let panel = at / LANES * self.blocks + unit / 2;
        let scale = isa.splat(f16::from_bits(self.scales[panel][at % LANES]).to_f32_const());
        let mut units = [scale; U];
        for (i, to) in units.iter_mut().enumerate() {
            *to = Q::of_panel(isa, &self.panels[panel], at % LANES, (unit + i) % 2 == 1).mul(scale);
        }
        units
    }
}

/// Quantised values of a head and chunk.
#[derive(Clone, Copy)]
pub(super) struct QuantisedValues<'a, Q: Quants> {
    quants: &'a [Q::Of],
    /// `[position][blocks]`
    scales: &'a [f32],
    /// Elements of a row.
    len: usize,
}

impl<'a, Q: Quants> QuantisedValues<'a, Q> {
    /// A head's chunk of rows of so many elements; its scales, f16, are widened to `wide`.
    #[inline(always)]
    pub fn new<I: Isa>(
        isa: I,
        scales: &[u16],
        quants: &'a [Q::Of],
        len: usize,
        wide: &'a mut Vec<f32>,
    ) -> Self {
        wide.resize(scales.len(), 0.0);
        // A page's positions are a multiple of sixteen.
        for (from, to) in scales.as_chunks().0.iter().zip(wide.as_chunks_mut().0) {
            isa.load_f16(from).store(to);
        }
        Self { quants, scales: wide, len }
    }
}

impl<Q: Quants> Values for QuantisedValues<'_, Q> {
    /// Scale times quant, which is exact.
    #[inline(always)]
    fn units<I: Isa, const U: usize>(self, isa: I, at: usize, unit: usize) -> [I::F; U] {
        let scale = isa.splat(self.scales[at * (self.len / KV_BLOCK) + unit / 2]);
        let quants = Q::sixteens::<I, U>(isa, self.quants, at * (self.len / Q::EACH), self.len, unit);
        let mut units = [scale; U];
        for (to, quants) in units.iter_mut().zip(quants) {
            *to = quants.mul(scale);
        }
        units
    }
}
