//! The driver of the quantised formats.
//!
//! For few tokens, rows are dotted one after another, straight from the file's layout, which reads memory as one
//! stream. For many tokens, eight rows are unpacked at a time into a panel where 32-bit lane `r`
//! belongs to row `r`: the panel's part of a row then needs no sum across lanes, and its unpacking is paid by all tokens.

use std::arch::x86_64::*;

use super::super::{OutTile, Tile};
use super::to_array;
use crate::quant::ActivationRow;

/// What a quantised format has to say.
///
/// All `unsafe` functions have one condition: the CPU has the features of this kernel set.
pub(super) trait BlockKernel {
    /// A row of activations.
    type Row<'a>: Copy;
    /// Eight rows of weights, unpacked, for one unit of columns.
    type Panel;
    /// Lanes of the result that are added as by `tree8` at the end (8), or the one accumulator (1).
    type Lanes: AsRef<[__m256]> + Copy;

    fn row(x: ActivationRow<'_>) -> Self::Row<'_>;

    /// The dots of a row of weights with `T` rows of activations.
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Self::Row<'_>; T]) -> [f32; T];

    /// Units of columns in a row of this many bytes.
    fn units(row_bytes: usize) -> usize;
    unsafe fn no_lanes() -> Self::Lanes;
    /// Unpacks unit `unit` of eight rows.
    unsafe fn unpack(rows: &[&[u8]; 8], unit: usize) -> Self::Panel;
    /// Adds unit `unit` of `T` tokens to their lanes.
    unsafe fn accumulate<const T: usize>(
        panel: &Self::Panel,
        x: [Self::Row<'_>; T],
        unit: usize,
        lanes: &mut [Self::Lanes; T],
    );
}

/// Tokens from which on panels pay.
const PANEL_TOKENS: usize = 6;
/// Tokens that share a panel: their activations should stay in L2 while the rows pass by.
const TOKENS_AT_ONCE: usize = 64;

/// # Safety
/// The CPU must have the features of this kernel set.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile<K: BlockKernel>(tile: &Tile<'_>, out: &mut OutTile<'_>) {
    let tokens = tile.x.rows();
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        if tokens < PANEL_TOKENS {
            for r in 0..tile.rows {
                row::<K>(tile, r, out);
            }
        } else {
            for start in (0..tokens).step_by(TOKENS_AT_ONCE) {
                let count = TOKENS_AT_ONCE.min(tokens - start);
                for r in (0..tile.rows).step_by(8) {
                    panel::<K>(tile, r, start, count, out);
                }
            }
        }
    }
}

/// Calls a function generic over a number of tokens for `count` tokens from `start` on, up to four at a time.
macro_rules! four_at_a_time {
    ($start:expr, $count:expr, |$at:ident| $call:ident::<$($generic:ident,)? T>($($arg:expr),*)) => {{
        let (mut $at, end) = ($start, $start + $count);
        while $at < end {
            match end - $at {
                1 => $call::<$($generic,)? 1>($($arg),*),
                2 => $call::<$($generic,)? 2>($($arg),*),
                3 => $call::<$($generic,)? 3>($($arg),*),
                _ => $call::<$($generic,)? 4>($($arg),*),
            }
            $at += 4;
        }
    }};
}

/// Row `r` for all tokens.
///
/// # Safety
/// The CPU must have the features of this kernel set.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn row<K: BlockKernel>(tile: &Tile<'_>, r: usize, out: &mut OutTile<'_>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { four_at_a_time!(0, tile.x.rows(), |t| row_dots::<K, T>(tile, r, t, out)) }
}

/// # Safety
/// The CPU must have the features of this kernel set.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn row_dots<K: BlockKernel, const T: usize>(
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

/// Rows `first..first + 8` for tokens `start..start + count`.
///
/// # Safety
/// The CPU must have the features of this kernel set.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn panel<K: BlockKernel>(
    tile: &Tile<'_>,
    first: usize,
    start: usize,
    count: usize,
    out: &mut OutTile<'_>,
) {
    // Where fewer than eight rows are left, the last stands in for those that are not there.
    let rows = array!(8, |i| tile.row((first + i).min(tile.rows - 1)));
    // SAFETY: the caller vouches for the CPU, here and below.
    let mut lanes = unsafe { [K::no_lanes(); TOKENS_AT_ONCE] };
    for unit in 0..K::units(tile.row_bytes) {
        // SAFETY: as above.
        let panel = unsafe { K::unpack(&rows, unit) };
        // SAFETY: as above.
        unsafe {
            four_at_a_time!(0, count, |t| accumulate::<K, T>(tile, &panel, unit, start + t, &mut lanes[t..]))
        }
    }
    for (t, lanes) in lanes[..count].iter().enumerate() {
        for (i, dot) in finish(lanes.as_ref()).into_iter().enumerate().take(tile.rows - first) {
            out.set(start + t, first + i, dot);
        }
    }
}

/// # Safety
/// The CPU must have the features of this kernel set.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn accumulate<K: BlockKernel, const T: usize>(
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

/// The results of eight rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn finish(lanes: &[__m256]) -> [f32; 8] {
    match lanes {
        [acc] => to_array(*acc),
        // The tree of `tree8`, over lanes that hold eight rows each.
        [a, b, c, d, e, f, g, h] => {
            let (even, odd) = (
                _mm256_add_ps(_mm256_add_ps(*a, *e), _mm256_add_ps(*c, *g)),
                _mm256_add_ps(_mm256_add_ps(*b, *f), _mm256_add_ps(*d, *h)),
            );
            to_array(_mm256_add_ps(even, odd))
        }
        _ => unreachable!("one lane or eight"),
    }
}
