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
    let units = tile.value_units();
    let mut unit = 0;
    while unit < units {
        if I::MANY_REGISTERS && units - unit > 1 {
            weigh_units::<I, V, 2>(isa, tile, chunk, unit, values, p, parts);
            unit += 2;
        } else {
            weigh_units::<I, V, 1>(isa, tile, chunk, unit, values, p, parts);
            unit += 1;
        }
    }
}

/// The same of some units.
#[inline(always)]
fn weigh_units<I: Isa, V: Values, const U: usize>(
    isa: I,
    tile: &Tile,
    chunk: &Chunk,
    unit: usize,
    values: V,
    p: &[[f32; PAGE]],
    parts: &mut [f32],
) {
    let rows = tile.rows();
    let mut first = 0;
    while first < rows {
        let n = if I::MANY_REGISTERS && rows - first >= 8 { 8 } else { 4.min(rows - first) };
        weigh_values::<I, V, U>(isa, tile, first..first + n, unit, chunk, values, p, parts);
        first += n;
    }
}

/// Adds the values of some units, weighted, to the parts of up to four rows, or eight: together over what all
/// of them see, each by itself before and after.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // it is a part of `weigh_all`
fn weigh_values<I: Isa, V: Values, const U: usize>(
    isa: I,
    tile: &Tile,
    rows: Range<usize>,
    unit: usize,
    chunk: &Chunk,
    values: V,
    p: &[[f32; PAGE]],
    parts: &mut [f32],
) {
    let first = tile.held(rows.start, chunk);
    // Both ends rise from row to row.
    let common = tile.held(rows.end - 1, chunk).start..first.end;
    if rows.len() == 1 || common.is_empty() {
        for row in rows {
            weigh::<I, V, 1, U>(isa, tile, row, tile.held(row, chunk), unit, values, p, parts);
        }
        return;
    }
    for row in rows.clone() {
        weigh::<I, V, 1, U>(
            isa,
            tile,
            row,
            tile.held(row, chunk).start..common.start,
            unit,
            values,
            p,
            parts,
        );
    }
    match rows.len() {
        2 => weigh::<I, V, 2, U>(isa, tile, rows.start, common.clone(), unit, values, p, parts),
        3 => weigh::<I, V, 3, U>(isa, tile, rows.start, common.clone(), unit, values, p, parts),
        8 if I::MANY_REGISTERS => {
            weigh::<I, V, 8, U>(isa, tile, rows.start, common.clone(), unit, values, p, parts)
        }
        _ => weigh::<I, V, 4, U>(isa, tile, rows.start, common.clone(), unit, values, p, parts),
    }
    for row in rows {
        weigh::<I, V, 1, U>(isa, tile, row, common.end..tile.held(row, chunk).end, unit, values, p, parts);
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
