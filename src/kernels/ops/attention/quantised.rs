//! Quantised keys and values of one head and chunk, and queries rounded to be multiplied with such keys.

use std::ops::Range;

use rayon::prelude::*;

use super::PAGE;
use super::tile::{Chunk, Tile};
use super::values::Values;
use crate::kernels::ops::kv::KV_BLOCK;
use crate::kernels::ops::lanes::{Isa, Lanes16, QueryUnit};
use crate::kernels::ops::{KvPages, Ops};
use crate::quant::quantize_q8_0;

/// Elements of a query's unit: two blocks.
const UNIT: usize = 2 * KV_BLOCK;
/// Elements from which queries are rounded by all threads.
const PARALLEL: usize = 1 << 15;

/// Units of a row.
pub(super) fn units(len: usize) -> usize {
    len.div_ceil(UNIT)
}

/// Rotates queries as the keys were, and rounds them to Q8_0: `queries` is `[rows][units]`.
pub(super) fn round_queries(ops: &Ops, q: &[f32], len: usize, kv: &KvPages<'_>, queries: &mut [QueryUnit]) {
    let rotation = kv.key_rotation(len);
    let round = |(q, queries): (&[f32], &mut [QueryUnit])| {
        ops.rotated(q, rotation, |q| {
            for (q, unit) in q.chunks(UNIT).zip(queries) {
                let (mut quants, mut scales) = ([0; UNIT], [0.0; 2]);
                let blocks = q.as_chunks().0.iter().zip(quants.as_chunks_mut().0);
                for ((q, quants), scale) in blocks.zip(&mut scales) {
                    *scale = quantize_q8_0(q, quants).to_f32();
                }
                *unit = QueryUnit::new(&quants, scales);
            }
        });
    };
    if q.len() < PARALLEL {
        q.chunks_exact(len).zip(queries.chunks_exact_mut(units(len))).for_each(round);
    } else {
        q.par_chunks_exact(len).zip(queries.par_chunks_exact_mut(units(len))).for_each(round);
    }
}

/// How quants of a row lie.
pub(super) trait Quants: Copy {
    type Of: Copy;
    /// A unit of them.
    type Unit;

    /// Elements that one holds.
    const EACH: usize;

    /// The whole units of a row, and a last block alone.
    fn split(row: &[Self::Of]) -> (&[Self::Unit], &[Self::Of]);
    /// A unit of a key by a query's.
    fn dot<I: Isa>(isa: I, unit: &Self::Unit, q: &QueryUnit) -> I::F;
    /// As a unit whose other block is nothing.
    fn alone(block: &[Self::Of]) -> Self::Unit;
    /// Sixteen elements of a row, by their number.
    fn sixteen<I: Isa>(isa: I, row: &[Self::Of], unit: usize) -> I::F;
}

/// Those of Q8_0.
#[derive(Clone, Copy)]
pub(super) struct Bytes;

impl Quants for Bytes {
    type Of = i8;
    type Unit = [i8; UNIT];

    const EACH: usize = 1;

    #[inline(always)]
    fn split(row: &[i8]) -> (&[[i8; UNIT]], &[i8]) {
        row.as_chunks()
    }

    #[inline(always)]
    fn dot<I: Isa>(isa: I, unit: &[i8; UNIT], q: &QueryUnit) -> I::F {
        isa.dot_bytes(unit, q)
    }

    fn alone(block: &[i8]) -> [i8; UNIT] {
        let mut unit = [0; UNIT];
        unit[..KV_BLOCK].copy_from_slice(block);
        unit
    }

    #[inline(always)]
    fn sixteen<I: Isa>(isa: I, row: &[i8], unit: usize) -> I::F {
        isa.load_i8(row[unit * 16..].first_chunk().expect("rows are whole blocks"))
    }
}

/// Those of Q4_0.
#[derive(Clone, Copy)]
pub(super) struct Nibbles;

impl Quants for Nibbles {
    type Of = u8;
    type Unit = [u8; KV_BLOCK];

    const EACH: usize = 2;

    #[inline(always)]
    fn split(row: &[u8]) -> (&[[u8; KV_BLOCK]], &[u8]) {
        row.as_chunks()
    }

    #[inline(always)]
    fn dot<I: Isa>(isa: I, unit: &[u8; KV_BLOCK], q: &QueryUnit) -> I::F {
        isa.dot_nibbles(unit, q)
    }

    /// Its second half is where the second block's would be.
    fn alone(block: &[u8]) -> [u8; KV_BLOCK] {
        let mut unit = [0; KV_BLOCK];
        let (low, high) = unit.split_at_mut(KV_BLOCK / 2);
        for ((byte, low), high) in block.iter().zip(low).zip(high) {
            (*low, *high) = (byte & 15, byte >> 4);
        }
        unit
    }

    #[inline(always)]
    fn sixteen<I: Isa>(isa: I, row: &[u8], unit: usize) -> I::F {
        let whole = row.len() / KV_BLOCK * KV_BLOCK;
        let (at, high) = match unit * 8 < whole {
            true => (unit / 4 * KV_BLOCK + unit % 2 * 16, unit % 4 > 1),
            false => (whole, unit % 2 > 0),
        };
        isa.load_nibbles(row[at..].first_chunk().expect("rows are whole blocks"), high)
    }
}

/// Buffers for the scales of a chunk.
#[derive(Debug, Default)]
pub(super) struct Scales {
    /// `[position][blocks]`
    wide: Vec<f32>,
    /// `[position][units]`: of a unit's two blocks, in eight lanes each.
    lanes: Vec<[f32; 16]>,
}

impl Scales {
    /// The scales of a chunk, f16.
    #[inline(always)]
    fn widen<I: Isa>(&mut self, isa: I, scales: &[u16]) -> &[f32] {
        self.wide.resize(scales.len(), 0.0);
        // A page's positions are a multiple of sixteen.
        for (from, to) in scales.as_chunks().0.iter().zip(self.wide.as_chunks_mut().0) {
            isa.load_f16(from).store(to);
        }
        &self.wide
    }

    /// The same in lanes.
    #[inline(always)]
    fn spread<I: Isa>(&mut self, isa: I, scales: &[u16], blocks: usize) -> &[[f32; 16]] {
        self.widen(isa, scales);
        let units = blocks.div_ceil(2);
        self.lanes.resize(PAGE * units, [0.0; 16]);
        let positions = self.wide.chunks_exact(blocks).zip(self.lanes.chunks_exact_mut(units));
        for (scales, lanes) in positions {
            let (pairs, last) = scales.as_chunks::<2>();
            for (pair, lanes) in pairs.iter().zip(&mut *lanes) {
                isa.halves(pair[0], pair[1]).store(lanes);
            }
            if let [scale] = last {
                isa.halves(*scale, 0.0).store(&mut lanes[pairs.len()]);
            }
        }
        &self.lanes
    }
}

/// Quantised keys of a head and chunk.
pub(super) struct QuantisedKeys<'a, Q: Quants> {
    quants: &'a [Q::Of],
    /// `[position][units]`
    scales: &'a [[f32; 16]],
    /// Elements of a row.
    len: usize,
    /// The last blocks of rows that are no whole units.
    alone: Vec<Q::Unit>,
}

impl<'a, Q: Quants> QuantisedKeys<'a, Q> {
    #[inline(always)]
    pub fn new<I: Isa>(
        isa: I,
        scales: &[u16],
        quants: &'a [Q::Of],
        len: usize,
        wide: &'a mut Scales,
    ) -> Self {
        let scales = wide.spread(isa, scales, len / KV_BLOCK);
        let mut alone = Vec::new();
        if !len.is_multiple_of(UNIT) {
            alone.extend(quants.chunks_exact(len / Q::EACH).map(|row| Q::alone(Q::split(row).1)));
        }
        Self { quants, scales, len, alone }
    }

    /// Scores of all rows of a tile: products of bytes, exact, of four neighbours each to one of sixteen lanes,
    /// by unit; each times the product of the two scales, added in the order of the units, then the lanes' tree.
    #[inline(always)]
    pub fn score<I: Isa>(&self, isa: I, tile: &Tile, chunk: &Chunk, p: &mut [[f32; PAGE]]) {
        let held = tile.held_by(0..tile.rows(), chunk);
        let ahead = tile.values_ahead(chunk);
        let place = |at: usize| chunk.places.map_or(at, |places| usize::from(places[at]));
        let mut at = held.start;
        while at < held.end {
            let n = 4.min(held.end - at);
            ahead.ask_for(isa, at..at + n);
            // Of fewer than four the last stands for the others.
            let places = [place(at), place(at + 1.min(n - 1)), place(at + 2.min(n - 1)), place(at + n - 1)];
            self.score_four(isa, tile, at..at + n, places, p);
            at += n;
        }
    }

    /// The same of up to four positions.
    #[inline(always)]
    fn score_four<I: Isa>(
        &self,
        isa: I,
        tile: &Tile,
        at: Range<usize>,
        places: [usize; 4],
        p: &mut [[f32; PAGE]],
    ) {
        let (n, count) = (self.len / Q::EACH, units(self.len));
        let [a, b, c, d] = places;
        let row = |place: usize| Q::split(&self.quants[place * n..][..n]).0;
        let (ka, kb, kc, kd) = (row(a), row(b), row(c), row(d));
        let whole = ka.len();
        let (kb, kc, kd) = (&kb[..whole], &kc[..whole], &kd[..whole]);
        let scales = |place: usize| &self.scales[place * count..][..count];
        let (sa, sb, sc, sd) = (scales(a), scales(b), scales(c), scales(d));
        let scale = tile.dot_scale();
        for (row, p) in p[..tile.rows()].iter_mut().enumerate() {
            let query = &tile.query(row, count)[..count];
            let mut acc = [isa.splat(0.0); 4];
            // No closures over registers: they would be compiled without the instruction set.
            for u in 0..whole {
                let q = &query[u];
                let by = isa.load(&q.scales);
                acc[0] = isa.load(&sa[u]).mul(by).mul_add(Q::dot(isa, &ka[u], q), acc[0]);
                acc[1] = isa.load(&sb[u]).mul(by).mul_add(Q::dot(isa, &kb[u], q), acc[1]);
                acc[2] = isa.load(&sc[u]).mul(by).mul_add(Q::dot(isa, &kc[u], q), acc[2]);
                acc[3] = isa.load(&sd[u]).mul(by).mul_add(Q::dot(isa, &kd[u], q), acc[3]);
            }
            if whole < count {
                let q = &query[whole];
                let by = isa.load(&q.scales);
                acc[0] = isa.load(&sa[whole]).mul(by).mul_add(Q::dot(isa, &self.alone[a], q), acc[0]);
                acc[1] = isa.load(&sb[whole]).mul(by).mul_add(Q::dot(isa, &self.alone[b], q), acc[1]);
                acc[2] = isa.load(&sc[whole]).mul(by).mul_add(Q::dot(isa, &self.alone[c], q), acc[2]);
                acc[3] = isa.load(&sd[whole]).mul(by).mul_add(Q::dot(isa, &self.alone[d], q), acc[3]);
            }
            for (p, sum) in p[at.clone()].iter_mut().zip(I::F::sum4(acc)) {
                *p = sum * scale;
            }
        }
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
    #[inline(always)]
    pub fn new<I: Isa>(
        isa: I,
        scales: &[u16],
        quants: &'a [Q::Of],
        len: usize,
        wide: &'a mut Scales,
    ) -> Self {
        Self { quants, scales: wide.widen(isa, scales), len }
    }
}

impl<Q: Quants> Values for QuantisedValues<'_, Q> {
    /// Scale times quant, which is exact.
    #[inline(always)]
    fn unit<I: Isa>(self, isa: I, at: usize, unit: usize) -> I::F {
        let n = self.len / Q::EACH;
        let scale = self.scales[at * (self.len / KV_BLOCK) + unit * 16 / KV_BLOCK];
        Q::sixteen(isa, &self.quants[at * n..][..n], unit).mul(isa.splat(scale))
    }
}
