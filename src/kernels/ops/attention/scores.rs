//! Scores of a tile's rows against a chunk's float keys, generic over the instruction set and the keys' type.

use std::ops::Range;

use super::PAGE;
use super::tile::{Ahead, Chunk, Element, Tile};
use crate::kernels::ops::lanes::{Isa, Lanes16};

/// Query rows whose scores are taken together, at most, and floats of them: they stay in the first-level
/// cache.
const SCORE_ROWS: usize = 16;
const SCORE_FLOATS: usize = 5 << 10;

/// Keys of a chunk: row `at` is at `(at - start) * units`.
pub(super) struct Keys<'a, E> {
    pub start: usize,
    pub units: usize,
    pub k: &'a [[E; 16]],
}

/// Scores of all rows of a tile.
#[inline(always)]
pub(super) fn score<I: Isa, E: Element>(
    isa: I,
    tile: &Tile,
    q: &[[f32; 16]],
    chunk: &Chunk,
    keys: &Keys<E>,
    p: &mut [[f32; PAGE]],
) {
    let rows = tile.rows();
    let at_once = (SCORE_FLOATS / (16 * keys.units)).clamp(2, SCORE_ROWS) / 2 * 2;
    let ahead = tile.values_ahead(chunk);
    for first in (0..rows).step_by(at_once) {
        scores(isa, tile, first..(first + at_once).min(rows), q, chunk, keys, &ahead, p);
    }
}

/// Scores of some rows against what any of them sees, two rows by two positions at a time, or four by four.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // it is a part of `score`
fn scores<I: Isa, E: Element>(
    isa: I,
    tile: &Tile,
    rows: Range<usize>,
    q: &[[f32; 16]],
    chunk: &Chunk,
    keys: &Keys<E>,
    ahead: &Ahead,
    p: &mut [[f32; PAGE]],
) {
    let units = keys.units;
    let seen = tile.held_by(rows.clone(), chunk);
    let scale = tile.dot_scale();
    let query = |row: usize| &q[row * units..][..units];
    let key = |j: usize| &keys.k[(j - keys.start) * units..][..units];
    let step = if I::MANY_REGISTERS { 4 } else { 2 };
    for j in seen.clone().step_by(step) {
        let end = seen.end.min(j + step);
        ahead.ask_for(isa, j..end);
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
