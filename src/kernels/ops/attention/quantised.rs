//! Quantised keys and values of one head and chunk, and queries rounded to be multiplied with such keys.

use std::marker::PhantomData;
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
pub(super) trait Quants {
    type Of: Copy;

    /// Elements that one holds.
    const EACH: usize;

    /// A unit of a row, at most 64 elements of it, by a query's.
    fn dot<I: Isa>(isa: I, unit: &[Self::Of], q: &QueryUnit) -> I::F;
    /// Sixteen elements of a row, by their number.
    fn sixteen<I: Isa>(isa: I, row: &[Self::Of], unit: usize) -> I::F;
}

/// Those of Q8_0.
#[derive(Clone, Copy)]
pub(super) struct Bytes;

impl Quants for Bytes {
    type Of = i8;

    const EACH: usize = 1;

    #[inline(always)]
    fn dot<I: Isa>(isa: I, unit: &[i8], q: &QueryUnit) -> I::F {
        match unit.as_array() {
            Some(unit) => isa.dot_bytes(unit, q),
            None => {
                let mut whole = [0; UNIT];
                whole[..unit.len()].copy_from_slice(unit);
                isa.dot_bytes(&whole, q)
            }
        }
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

    const EACH: usize = 2;

    #[inline(always)]
    fn dot<I: Isa>(isa: I, unit: &[u8], q: &QueryUnit) -> I::F {
        match unit.as_array() {
            Some(unit) => isa.dot_nibbles(unit, q),
            None => {
                // The last block alone: its second half is where the second block's would be.
                let mut whole = [0; KV_BLOCK];
                let (low, high) = whole.split_at_mut(unit.len());
                for ((byte, low), high) in unit.iter().zip(low).zip(high) {
                    (*low, *high) = (byte & 15, byte >> 4);
                }
                isa.dot_nibbles(&whole, q)
            }
        }
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

/// Rows of a head and chunk.
#[derive(Clone, Copy)]
pub(super) struct Quantised<'a, Q: Quants> {
    quants: &'a [Q::Of],
    /// `[position][blocks]`
    scales: &'a [f32],
    /// Elements of a row.
    len: usize,
    kind: PhantomData<Q>,
}

impl<'a, Q: Quants> Quantised<'a, Q> {
    /// Blocks of a row of so many elements.
    pub fn blocks(len: usize) -> usize {
        len / KV_BLOCK
    }

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
        Self { quants, scales: wide, len, kind: PhantomData }
    }

    #[inline(always)]
    fn row(&self, position: usize) -> &'a [Q::Of] {
        let n = self.len / Q::EACH;
        &self.quants[position * n..][..n]
    }

    /// Scores of all rows of a tile: products of bytes, exact, of four neighbours each to one of sixteen lanes,
    /// by unit; each times the product of the two scales, added in the order of the units, then the lanes' tree.
    #[inline(always)]
    pub fn score<I: Isa>(&self, isa: I, tile: &Tile, chunk: &Chunk, p: &mut [[f32; PAGE]]) {
        let held = tile.held_by(0..tile.rows(), chunk);
        let (ahead, scale) = (tile.values_ahead(chunk), tile.dot_scale());
        let place = |at: usize| chunk.places.map_or(at, |places| usize::from(places[at]));
        let mut at = held.start;
        while at < held.end {
            let n = 4.min(held.end - at);
            ahead.ask_for(isa, at..at + n);
            if n == 4 {
                let places = [place(at), place(at + 1), place(at + 2), place(at + 3)];
                self.score_four(isa, tile, 0..tile.rows(), at, places, scale, p);
            } else {
                for at in at..at + n {
                    for (row, p) in p[..tile.rows()].iter_mut().enumerate() {
                        p[at] = self.dot(isa, place(at), tile, row).sum() * scale;
                    }
                }
            }
            at += n;
        }
    }

    /// The same of four positions.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // it is a part of `score`
    fn score_four<I: Isa>(
        &self,
        isa: I,
        tile: &Tile,
        rows: Range<usize>,
        at: usize,
        places: [usize; 4],
        scale: f32,
        p: &mut [[f32; PAGE]],
    ) {
        for row in rows {
            let sums = I::F::sum4([
                self.dot(isa, places[0], tile, row),
                self.dot(isa, places[1], tile, row),
                self.dot(isa, places[2], tile, row),
                self.dot(isa, places[3], tile, row),
            ]);
            for (p, sum) in p[row][at..at + 4].iter_mut().zip(sums) {
                *p = sum * scale;
            }
        }
    }

    /// The lanes of a position's dot with a row's query.
    #[inline(always)]
    fn dot<I: Isa>(&self, isa: I, position: usize, tile: &Tile, row: usize) -> I::F {
        let (key, blocks) = (self.row(position), Self::blocks(self.len));
        let scales = &self.scales[position * blocks..][..blocks];
        let mut acc = isa.splat(0.0);
        let keys = key.chunks(UNIT / Q::EACH).zip(scales.chunks(2));
        for ((key, scales), q) in keys.zip(tile.query(row, units(self.len))) {
            let both = isa.halves(scales[0], scales.get(1).copied().unwrap_or(0.0));
            acc = both.mul(isa.load(&q.scales)).mul_add(Q::dot(isa, key, q), acc);
        }
        acc
    }
}

impl<Q: Quants + Copy> Values for Quantised<'_, Q> {
    /// Scale times quant, which is exact.
    #[inline(always)]
    fn unit<I: Isa>(self, isa: I, at: usize, unit: usize) -> I::F {
        let scale = self.scales[at * Self::blocks(self.len) + unit * 16 / KV_BLOCK];
        Q::sixteen(isa, self.row(at), unit).mul(isa.splat(scale))
    }
}
