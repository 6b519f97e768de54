//! Weighted sums of a chunk's values, generic over the instruction set and how values lie.

use std::ops::Range;

use super::PAGE;
use super::tile::{Chunk, Element, Tile};
use crate::kernels::ops::lanes::{Isa, Lanes16};

/// Values of a chunk, in units of sixteen.
pub(super) trait Values: Copy {
    /// U units of the value of row `at` of the chunk, one or two: from `unit` on, a multiple of U.
    fn units<I: Isa, const U: usize>(self, isa: I, at: usize, unit: usize) -> [I::F; U];
}

/// Floats of one head where they lie, a row behind the other.
#[derive(Clone, Copy)]
pub(super) struct InPlace<'a, E> {
    /// `[position][units]`
    pub v: &'a [[E; 16]],
    pub units: usize,
}

impl<E: Element> Values for InPlace<'_, E> {
    #[inline(always)]
    fn units<I: Isa, const U: usize>(self, isa: I, at: usize, unit: usize) -> [I::F; U] {
        let v = &self.v[at * self.units + unit..][..U];
        let mut units = [isa.splat(0.0); U];
        for i in 0..U {
            units[i] = E::load(isa, &v[i]);
        }
        units
    }
}

/// Rows at hand, widened: `[unit][row - start]`, each unit's of a page's length.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    pub v: &'a [[f32; 16]],
    pub start: usize,
}

impl Values for Packed<'_> {
    #[inline(always)]
    fn units<I: Isa, const U: usize>(self, isa: I, at: usize, unit: usize) -> [I::F; U] {
        let mut units = [isa.splat(0.0); U];
        for (i, to) in units.iter_mut().enumerate() {
            *to = isa.load(&self.v[(unit + i) * PAGE + at - self.start]);
        }
        units
    }
}

/// Adds all values that the tile's rows see of a chunk, weighted, to the rows' parts.
#[inline(always)]
pub(super) fn weigh_all<I: Isa, V: Values>(
    isa: I,
    tile: &Tile,
    chunk: &Chunk,
    values: V,
    p: &[[f32; PAGE]],
    parts: &mut [f32],
) {
    let (rows, units) = (tile.rows(), tile.value_units());
    let at_once = if I::MANY_REGISTERS { 2 } else { 1 };
    for unit in (0..units).step_by(at_once) {
        let units = unit..(unit + at_once).min(units);
        let mut first = 0;
        while first < rows {
            let n = match rows - first {
                8.. if I::MANY_REGISTERS => 8,
                4.. => 4,
                2.. => 2,
                _ => 1,
            };
            weigh_values(isa, tile, first..first + n, units.clone(), chunk, values, p, parts);
            first += n;
        }
    }
}

/// Adds the values of one or two units, weighted, to the parts of 1, 2, 4 or 8 rows: together over what all
/// of them see, each by itself before and after. Each call of `weigh` is a loop of its own in the machine
/// code: there are as few as speed allows.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // it is a part of `weigh_all`
fn weigh_values<I: Isa, V: Values>(
    isa: I,
    tile: &Tile,
    rows: Range<usize>,
    units: Range<usize>,
    chunk: &Chunk,
    values: V,
    p: &[[f32; PAGE]],
    parts: &mut [f32],
) {
    let first = tile.held(rows.start, chunk);
    // Both ends rise from row to row.
    let common = tile.held(rows.end - 1, chunk).start..first.end;
    let together = rows.len() > 1 && !common.is_empty();
    let (row, seen) = (rows.start, common.clone());
    // What each has before is added first.
    for after in [false, true] {
        if after && together {
            if rows.len() == 4 && units.len() == 2 {
                weigh::<I, V, 4, 2>(isa, tile, row, seen.clone(), units.start, values, p, parts);
            } else {
                for unit in units.clone() {
                    match rows.len() {
                        2 => weigh::<I, V, 2, 1>(isa, tile, row, seen.clone(), unit, values, p, parts),
                        8 if I::MANY_REGISTERS => {
                            weigh::<I, V, 8, 1>(isa, tile, row, seen.clone(), unit, values, p, parts);
                        }
                        _ => weigh::<I, V, 4, 1>(isa, tile, row, seen.clone(), unit, values, p, parts),
                    }
                }
            }
        }
        for row in rows.clone() {
            let held = tile.held(row, chunk);
            let seen = match (after, together) {
                (false, true) => held.start..common.start,
                (false, false) => held,
                (true, true) => common.end..held.end,
                (true, false) => 0..0,
            };
            for unit in units.clone() {
                weigh::<I, V, 1, 1>(isa, tile, row, seen.clone(), unit, values, p, parts);
            }
        }
    }
}

/// `o[unit] = fma(p_j, v_j[unit], o[unit])` in rising j, for U units and R rows that all see these positions.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // it is a part of `weigh_all`
fn weigh<I: Isa, V: Values, const R: usize, const U: usize>(
    isa: I,
    tile: &Tile,
    row: usize,
    seen: Range<usize>,
    unit: usize,
    values: V,
    p: &[[f32; PAGE]],
    parts: &mut [f32],
) {
    if seen.is_empty() {
        return;
    }
    let len = tile.value_units() * 16 + 16;
    let p: &[[f32; PAGE]; R] = p[row..].first_chunk().expect("a row of probabilities for each row");
    let mut acc = [[isa.splat(0.0); U]; R];
    for (i, acc) in acc.iter_mut().enumerate() {
        for (u, acc) in acc.iter_mut().enumerate() {
            *acc = isa.load(unit_of(parts, (row + i) * len, unit + u));
        }
    }
    for j in seen.start..seen.end.min(PAGE) {
        let v = values.units::<I, U>(isa, j, unit);
        for (acc, p) in acc.iter_mut().zip(p) {
            let weight = isa.splat(p[j]);
            for u in 0..U {
                acc[u] = weight.mul_add(v[u], acc[u]);
            }
        }
    }
    for (i, acc) in acc.into_iter().enumerate() {
        for (u, acc) in acc.into_iter().enumerate() {
            acc.store(unit_of(parts, (row + i) * len, unit + u));
        }
    }
}

/// One unit of the part that starts at `at`.
#[inline(always)]
fn unit_of(parts: &mut [f32], at: usize, unit: usize) -> &mut [f32; 16] {
    parts[at + unit * 16..].first_chunk_mut().expect("parts are whole units")
}
