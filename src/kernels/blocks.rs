//! The driver of the quantised formats, shared by the vector sets.
//!
//! For few tokens, rows are dotted one after another, straight from the file's layout, which reads memory as one
//! stream. For many tokens, as many rows as a register has 32-bit lanes are unpacked at a time into a panel where
//! lane `r` belongs to row `r`: the panel's part of a row then needs no sum across lanes, and its unpacking is
//! paid by all tokens.
//!
//! Nothing here names an instruction set: a set's own function, compiled for its features, calls [`tile`], which
//! is inlined into it.

use super::{OutTile, Tile};
use crate::quant::ActivationRow;

/// What a quantised format has to say on an instruction set whose panels have `ROWS` rows.
///
/// All `unsafe` functions have one condition: the CPU has the features of the kernel set.
pub(super) trait BlockKernel<const ROWS: usize> {
    /// Tokens from which on panels pay.
    const PANEL_TOKENS: usize;
    /// Tokens that registers have room for while they go over a panel.
    const TOKENS: usize;

    /// A row of activations.
    type Row<'a>: Copy;
    /// `ROWS` rows of weights, unpacked, for one unit of columns.
    type Panel;
    /// What is added up for `ROWS` rows and one token.
    type Lanes: Copy;

    fn row(x: ActivationRow<'_>) -> Self::Row<'_>;

    /// The dots of a row of weights with `T` rows of activations.
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Self::Row<'_>; T]) -> [f32; T];

    /// Units of columns in a row of this many bytes.
    fn units(row_bytes: usize) -> usize;
    unsafe fn no_lanes() -> Self::Lanes;
    /// Unpacks unit `unit` of `ROWS` rows.
    unsafe fn unpack(rows: &[&[u8]; ROWS], unit: usize) -> Self::Panel;
    /// Adds unit `unit` of `T` tokens to their lanes.
    unsafe fn accumulate<const T: usize>(
        panel: &Self::Panel,
        x: [Self::Row<'_>; T],
        unit: usize,
        lanes: &mut [Self::Lanes; T],
    );
    /// The results of `ROWS` rows.
    unsafe fn finish(lanes: &Self::Lanes) -> [f32; ROWS];
}

/// Tokens that share a panel: their activations should stay in L2 while the rows pass by.
const TOKENS_AT_ONCE: usize = 64;

/// Computes a tile.
///
/// # Safety
/// The CPU must have the features of the kernel set, and the caller be compiled for them.
#[inline(always)]
pub(super) unsafe fn tile<K: BlockKernel<ROWS>, const ROWS: usize>(tile: &Tile<'_>, out: &mut OutTile<'_>) {
    let tokens = tile.x.rows();
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        if tokens < K::PANEL_TOKENS {
            for r in 0..tile.rows {
                row::<K, ROWS>(tile, r, out);
            }
        } else {
            for start in (0..tokens).step_by(TOKENS_AT_ONCE) {
                let count = TOKENS_AT_ONCE.min(tokens - start);
                for r in (0..tile.rows).step_by(ROWS) {
                    panel::<K, ROWS>(tile, r, start, count, out);
                }
            }
        }
    }
}

/// Calls a function generic over a number of tokens for `count` tokens from `start` on, as many of the given
/// numbers at a time as `K` allows.
macro_rules! several_at_a_time {
    ($start:expr, $count:expr, [$($n:literal)*], |$at:ident| $call:ident $args:tt) => {{
        let (mut $at, end) = ($start, $start + $count);
        while $at < end {
            let left = end - $at;
            $(if $n <= K::TOKENS && left >= $n {
                $call::<K, ROWS, $n> $args;
                $at += $n;
                continue;
            })*
        }
    }};
}

/// Row `r` for all tokens.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn row<K: BlockKernel<ROWS>, const ROWS: usize>(tile: &Tile<'_>, r: usize, out: &mut OutTile<'_>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { several_at_a_time!(0, tile.x.rows(), [4 3 2 1], |t| row_dots(tile, r, t, out)) }
}

/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn row_dots<K: BlockKernel<ROWS>, const ROWS: usize, const T: usize>(
    tile: &Tile<'_>,
    r: usize,
    start: usize,
    out: &mut OutTile<'_>,
) {
    let x = array!(T, |i| K::row(tile.x.row(start + i)));
    // SAFETY: the caller vouches for the CPU.
    let dots = unsafe { K::dots::<T>(tile.row(r), x) };
    for (i, dot) in dots.into_iter().enumerate() {
        out.set(start + i, r, dot);
    }
}

/// Rows `first..first + ROWS` for tokens `start..start + count`.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn panel<K: BlockKernel<ROWS>, const ROWS: usize>(
    tile: &Tile<'_>,
    first: usize,
    start: usize,
    count: usize,
    out: &mut OutTile<'_>,
) {
    // Where fewer rows are left, the last stands in for those that are not there.
    let rows = array!(ROWS, |i| tile.row((first + i).min(tile.rows - 1)));
    // SAFETY: the caller vouches for the CPU, here and below.
    let mut lanes = unsafe { [K::no_lanes(); TOKENS_AT_ONCE] };
    for unit in 0..K::units(tile.row_bytes) {
        // SAFETY: as above.
        let panel = unsafe { K::unpack(&rows, unit) };
        // SAFETY: as above.
        unsafe {
            several_at_a_time!(0, count, [8 4 3 2 1], |t| accumulate(
                tile,
                &panel,
                unit,
                start + t,
                &mut lanes[t..]
            ))
        }
    }
    for (t, lanes) in lanes[..count].iter().enumerate() {
        // SAFETY: as above.
        let dots = unsafe { K::finish(lanes) };
        for (i, dot) in dots.into_iter().enumerate().take(tile.rows - first) {
            out.set(start + t, first + i, dot);
        }
    }
}

/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn accumulate<K: BlockKernel<ROWS>, const ROWS: usize, const T: usize>(
    tile: &Tile<'_>,
    panel: &K::Panel,
    unit: usize,
    start: usize,
    lanes: &mut [K::Lanes],
) {
    let x = array!(T, |i| K::row(tile.x.row(start + i)));
    if let Some(lanes) = lanes.first_chunk_mut::<T>() {
        // SAFETY: the caller vouches for the CPU.
        unsafe { K::accumulate::<T>(panel, x, unit, lanes) }
    }
}
