//! The driver of the quantised formats, shared by the vector sets; its panels are for floats as well.
//!
//! For few tokens, rows are dotted one after another, straight from the file's layout, which reads memory as
//! one stream. For many tokens, as many rows as a register has 32-bit lanes are unpacked at a time into a
//! panel where lane `r` belongs to row `r`: the panel's part of a row then needs no sum across lanes, and its
//! unpacking is paid by all tokens.
//!
//! Nothing here names an instruction set: a set's own function, compiled for its features, calls [`tile`],
//! which is inlined into it.

use super::{OutTile, Tile};
use crate::quant::ActivationRow;

/// What a format has to say on an instruction set for many tokens: panels of `ROWS` rows.
///
/// All `unsafe` functions have one condition: the CPU has the features of the kernel set.
pub(super) trait PanelKernel<const ROWS: usize> {
    /// Tokens that registers have room for while they go over a panel.
    const TOKENS: usize;
    /// Tokens that share a panel: their activations should stay in L2 while the rows pass by.
    const TOKENS_A_PANEL: usize = 64;

    /// A row of activations.
    type Row<'a>: Copy;
    /// `ROWS` rows of weights, unpacked, for one unit of columns.
    type Panel;
    /// What is added up for `ROWS` rows and one token.
    type Lanes: Copy;

    fn row(x: ActivationRow<'_>) -> Self::Row<'_>;

    /// Units of columns in a row of this many bytes.
    fn units(row_bytes: usize) -> usize;
    unsafe fn no_lanes() -> Self::Lanes;
    /// A panel to unpack into.
    unsafe fn no_panel() -> Self::Panel;
    /// Unpacks unit `unit` of `ROWS` rows.
    unsafe fn unpack(rows: &[&[u8]; ROWS], unit: usize, panel: &mut Self::Panel);
    /// Adds unit `unit` of `T` tokens to their lanes.
    unsafe fn accumulate<const T: usize>(
        panel: &Self::Panel,
        x: &[Self::Row<'_>; T],
        unit: usize,
        lanes: &mut [Self::Lanes; T],
    );
    /// The results of `ROWS` rows.
    unsafe fn finish(lanes: &Self::Lanes) -> [f32; ROWS];
}

/// What a quantised format has to say on an instruction set: panels, and dots for few tokens.
///
/// All `unsafe` functions have one condition: the CPU has the features of the kernel set.
pub(super) trait BlockKernel<const ROWS: usize>: PanelKernel<ROWS> {
    /// Tokens from which on panels pay.
    const PANEL_TOKENS: usize;
    /// Tokens that a row is dotted with at a time.
    const ROW_TOKENS: usize = 4;

    /// The dots of a row of weights with `T` rows of activations.
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Self::Row<'_>; T]) -> [f32; T];

    /// Computes the first rows of a tile several together, where rows are of a length that
    /// [`BlockKernel::dots`] is not quick with; returns how many it has computed.
    #[inline(always)]
    unsafe fn rows_together(_: &Tile<'_>, _: &[Self::Row<'_>], _: &mut OutTile<'_>) -> usize {
        0
    }
}

/// Calls a function generic over a number of tokens for `count` tokens, as many of the given numbers at a
/// time as are allowed.
macro_rules! several_at_a_time {
    ($count:expr, $most:expr, [$($n:literal)*], |$at:ident| $call:ident $args:tt) => {{
        let (mut $at, end) = (0, $count);
        while $at < end {
            let left = end - $at;
            $(if $n <= $most && left >= $n {
                $call::<K, ROWS, $n> $args;
                $at += $n;
                continue;
            })*
        }
    }};
}

/// Computes a tile.
///
/// # Safety
/// The CPU must have the features of the kernel set, and the caller be compiled for them.
#[inline(always)]
pub(super) unsafe fn tile<K: BlockKernel<ROWS>, const ROWS: usize>(tile: &Tile<'_>, out: &mut OutTile<'_>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        if tile.x.rows() < K::PANEL_TOKENS {
            let x = activations::<K, ROWS>(tile);
            let done = K::rows_together(tile, &x, out);
            for r in done..tile.rows {
                several_at_a_time!(x.len(), K::ROW_TOKENS, [4 3 2 1], |t| row_dots(tile, r, &x[t..], t, out));
            }
        } else {
            panels::<K, ROWS>(tile, out);
        }
    }
}

/// All rows of activations, looked up once for all rows of weights.
#[inline(always)]
fn activations<'a, K: PanelKernel<ROWS>, const ROWS: usize>(tile: &Tile<'a>) -> Vec<K::Row<'a>> {
    (0..tile.x.rows()).map(|t| K::row(tile.x.row(t))).collect()
}

/// Row `r` for the first `T` of these tokens, which come at `start` in the output.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn row_dots<K: BlockKernel<ROWS>, const ROWS: usize, const T: usize>(
    tile: &Tile<'_>,
    r: usize,
    x: &[K::Row<'_>],
    start: usize,
    out: &mut OutTile<'_>,
) {
    let Some(x) = x.first_chunk::<T>() else { return };
    // SAFETY: the caller vouches for the CPU.
    let dots = unsafe { K::dots::<T>(tile.row(r), *x) };
    for (i, dot) in dots.into_iter().enumerate() {
        out.set(start + i, r, dot);
    }
}

/// Computes a tile, a panel of its rows at a time.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
pub(super) unsafe fn panels<K: PanelKernel<ROWS>, const ROWS: usize>(tile: &Tile<'_>, out: &mut OutTile<'_>) {
    let x = activations::<K, ROWS>(tile);
    // SAFETY: the caller vouches for the CPU, here and below.
    let (none, mut panel) = unsafe { (K::no_lanes(), K::no_panel()) };
    let mut lanes = vec![none; x.len().min(K::TOKENS_A_PANEL)];
    for (i, x) in x.chunks(K::TOKENS_A_PANEL).enumerate() {
        for first in (0..tile.rows).step_by(ROWS) {
            lanes.fill(none);
            // Where fewer rows are left, the last stands in for those that are not there.
            let rows = array!(ROWS, |r| tile.row((first + r).min(tile.rows - 1)));
            // SAFETY: as above.
            unsafe { add_rows::<K, ROWS>(&rows, K::units(tile.row_bytes), x, &mut panel, &mut lanes) };
            for (t, lanes) in lanes[..x.len()].iter().enumerate() {
                // SAFETY: as above.
                let dots = unsafe { K::finish(lanes) };
                for (r, dot) in dots.into_iter().enumerate().take(tile.rows - first) {
                    out.set(i * K::TOKENS_A_PANEL + t, first + r, dot);
                }
            }
        }
    }
}

/// Adds the products of `ROWS` rows of weights with some tokens to the tokens' lanes.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn add_rows<K: PanelKernel<ROWS>, const ROWS: usize>(
    rows: &[&[u8]; ROWS],
    units: usize,
    x: &[K::Row<'_>],
    panel: &mut K::Panel,
    lanes: &mut [K::Lanes],
) {
    for unit in 0..units {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            K::unpack(rows, unit, panel);
            several_at_a_time!(x.len(), K::TOKENS, [8 4 3 2 1], |t| accumulate(
                panel,
                &x[t..],
                unit,
                &mut lanes[t..]
            ));
        }
    }
}

/// Unit `unit` of a panel for the first `T` of these tokens.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn accumulate<K: PanelKernel<ROWS>, const ROWS: usize, const T: usize>(
    panel: &K::Panel,
    x: &[K::Row<'_>],
    unit: usize,
    lanes: &mut [K::Lanes],
) {
    if let (Some(x), Some(lanes)) = (x.first_chunk::<T>(), lanes.first_chunk_mut::<T>()) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { K::accumulate::<T>(panel, x, unit, lanes) }
    }
}
