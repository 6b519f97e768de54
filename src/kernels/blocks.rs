//! The driver of the quantised formats, shared by the vector sets; its panels are for floats as well.
//!
//! For few tokens, rows are dotted one after another, straight from the file's layout, which reads memory as
//! one stream. For many tokens, as many rows as a register has 32-bit lanes are unpacked at a time into a
//! panel where lane `r` belongs to row `r`: the panel's part of a row then needs no sum across lanes, and its
//! unpacking is paid by all tokens.
//!
//! Nothing here names an instruction set: a set's own function, compiled for its features, calls [`tile`],
//! which is inlined into it.

use std::ops::Range;

use super::{OutTile, Tile};
use crate::quant::ActivationRow;
use crate::quant::arranged::group_sizes;

/// What a format has to say on an instruction set for many tokens: panels of `ROWS` rows.
///
/// All `unsafe` functions have one condition: the CPU has the features of the kernel set.
pub(super) trait PanelKernel<const ROWS: usize> {
    /// Tokens that registers have room for while they go over a panel.
    const TOKENS: usize;
    /// Tokens that share a panel: their activations should stay in L2 while the rows pass by.
    const TOKENS_A_PANEL: usize = 64;

    /// Whether tiles for panels come with activations arranged in groups, of at most `TOKENS`.
    const ARRANGED: bool = false;

    /// A row of activations.
    type Row<'a>: Copy;
    /// All rows of activations, as panels take them.
    type Tokens<'a>;
    /// `ROWS` rows of weights, unpacked, for one unit of columns.
    type Panel;
    /// What is added up for `ROWS` rows and one token.
    type Lanes: Copy;

    fn row(x: ActivationRow<'_>) -> Self::Row<'_>;
    fn tokens<'a>(tile: &Tile<'a>) -> Self::Tokens<'a>;

    /// Units of columns in a row of this many bytes.
    fn units(row_bytes: usize) -> usize;
    unsafe fn no_lanes() -> Self::Lanes;
    /// A panel to unpack into.
    unsafe fn no_panel() -> Self::Panel;
    /// Unpacks unit `unit` of `ROWS` rows.
    unsafe fn unpack(rows: &[&[u8]; ROWS], unit: usize, panel: &mut Self::Panel);
    /// Adds unit `unit` of the `T` tokens from `first` on to their lanes.
    unsafe fn accumulate<const T: usize>(
        panel: &Self::Panel,
        x: &Self::Tokens<'_>,
        first: usize,
        unit: usize,
        lanes: &mut [Self::Lanes; T],
    );
    /// The results of `ROWS` rows.
    unsafe fn finish(lanes: &Self::Lanes) -> [f32; ROWS];
}

/// What of [`PanelKernel`] a kernel has that takes rows of activations as they are.
macro_rules! takes_rows {
    ($rows:literal) => {
        type Tokens<'a> = Vec<Self::Row<'a>>;

        #[inline(always)]
        fn tokens<'a>(tile: &$crate::kernels::Tile<'a>) -> Vec<Self::Row<'a>> {
            $crate::kernels::blocks::activations::<Self, $rows>(tile)
        }
    };
}
pub(super) use takes_rows;

/// What of [`PanelKernel`] is as in another kernel, but for `accumulate`.
#[cfg(target_arch = "x86_64")]
macro_rules! panels_as_in {
    ($rows:literal, $kernel:ty) => {
        const TOKENS_A_PANEL: usize = <$kernel as PanelKernel<$rows>>::TOKENS_A_PANEL;
        const TOKENS: usize = <$kernel as PanelKernel<$rows>>::TOKENS;

        const ARRANGED: bool = <$kernel as PanelKernel<$rows>>::ARRANGED;

        type Row<'a> = <$kernel as PanelKernel<$rows>>::Row<'a>;
        type Tokens<'a> = <$kernel as PanelKernel<$rows>>::Tokens<'a>;
        type Panel = <$kernel as PanelKernel<$rows>>::Panel;
        type Lanes = <$kernel as PanelKernel<$rows>>::Lanes;

        #[inline(always)]
        fn row(x: $crate::quant::ActivationRow<'_>) -> Self::Row<'_> {
            <$kernel as PanelKernel<$rows>>::row(x)
        }

        #[inline(always)]
        fn tokens<'a>(tile: &$crate::kernels::Tile<'a>) -> Self::Tokens<'a> {
            <$kernel as PanelKernel<$rows>>::tokens(tile)
        }

        #[inline(always)]
        fn units(row_bytes: usize) -> usize {
            <$kernel as PanelKernel<$rows>>::units(row_bytes)
        }

        #[inline(always)]
        unsafe fn no_lanes() -> Self::Lanes {
            // SAFETY: the caller vouches for the CPU.
            unsafe { <$kernel as PanelKernel<$rows>>::no_lanes() }
        }

        #[inline(always)]
        unsafe fn no_panel() -> Self::Panel {
            // SAFETY: the caller vouches for the CPU.
            unsafe { <$kernel as PanelKernel<$rows>>::no_panel() }
        }

        #[inline(always)]
        unsafe fn unpack(rows: &[&[u8]; $rows], unit: usize, panel: &mut Self::Panel) {
            // SAFETY: the caller vouches for the CPU.
            unsafe { <$kernel as PanelKernel<$rows>>::unpack(rows, unit, panel) }
        }

        #[inline(always)]
        unsafe fn finish(lanes: &Self::Lanes) -> [f32; $rows] {
            // SAFETY: the caller vouches for the CPU.
            unsafe { <$kernel as PanelKernel<$rows>>::finish(lanes) }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use panels_as_in;

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
            rows::<K, ROWS>(tile, out);
        } else {
            panels::<K, ROWS>(tile, out);
        }
    }
}

/// Computes a tile, row after row.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
pub(super) unsafe fn rows<K: BlockKernel<ROWS>, const ROWS: usize>(tile: &Tile<'_>, out: &mut OutTile<'_>) {
    let x = activations::<K, ROWS>(tile);
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let done = K::rows_together(tile, &x, out);
        for r in done..tile.rows {
            several_at_a_time!(x.len(), K::ROW_TOKENS, [4 3 2 1], |t| row_dots(tile, r, &x[t..], t, out));
        }
    }
}

/// All rows of activations, looked up once for all rows of weights.
#[inline(always)]
pub(super) fn activations<'a, K: PanelKernel<ROWS>, const ROWS: usize>(tile: &Tile<'a>) -> Vec<K::Row<'a>> {
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
    const { assert!(K::TOKENS_A_PANEL % K::TOKENS == 0, "groups begin where panels do") };
    let (x, tokens) = (K::tokens(tile), tile.x.rows());
    // SAFETY: the caller vouches for the CPU, here and below.
    let (none, mut panel) = unsafe { (K::no_lanes(), K::no_panel()) };
    let mut lanes = vec![none; tokens.min(K::TOKENS_A_PANEL)];
    for start in (0..tokens).step_by(K::TOKENS_A_PANEL) {
        let here = start..tokens.min(start + K::TOKENS_A_PANEL);
        for first in (0..tile.rows).step_by(ROWS) {
            // Where fewer rows are left, the last stands in for those that are not there.
            let rows = array!(ROWS, |r| tile.row((first + r).min(tile.rows - 1)));
            let units = K::units(tile.row_bytes);
            for unit in 0..units {
                // SAFETY: as above.
                unsafe {
                    K::unpack(&rows, unit, &mut panel);
                    if unit + 1 < units {
                        add_tokens::<K, ROWS>(&panel, &x, here.clone(), unit, &mut lanes, |_, _| {});
                        continue;
                    }
                    // Results are written while the next tokens' are computed: one after another they would
                    // wait for memory.
                    add_tokens::<K, ROWS>(&panel, &x, here.clone(), unit, &mut lanes, |t, lanes| {
                        out.set_rows(t, first, &K::finish(lanes));
                        *lanes = none;
                    });
                }
            }
        }
    }
}

macro_rules! add_tokens {
    ($($size:literal)*) => {
        /// Adds unit `unit` of some tokens to their lanes, and hands out each token with its lanes.
        ///
        /// # Safety
        /// As [`tile`].
        #[inline(always)]
        unsafe fn add_tokens<K: PanelKernel<ROWS>, const ROWS: usize>(
            panel: &K::Panel,
            x: &K::Tokens<'_>,
            tokens: Range<usize>,
            unit: usize,
            lanes: &mut [K::Lanes],
            mut then: impl FnMut(usize, &mut K::Lanes),
        ) {
            // As [`crate::quant::arranged::groups`] has them.
            let mut left = tokens.len();
            $(while $size <= K::TOKENS && $size <= left {
                let at = tokens.len() - left;
                let first = tokens.start + at;
                if let Some(lanes) = lanes[at..].first_chunk_mut::<$size>() {
                    // SAFETY: the caller vouches for the CPU.
                    unsafe { K::accumulate(panel, x, first, unit, lanes) }
                    lanes.iter_mut().enumerate().for_each(|(i, lanes)| then(first + i, lanes));
                }
                left -= $size;
            })*
        }
    };
}
group_sizes!(add_tokens);

/// The rows of activations of `T` tokens from `first` on.
#[inline(always)]
pub(super) fn rows_from<R, const T: usize>(x: &[R], first: usize) -> &[R; T] {
    match x[first..].first_chunk() {
        Some(rows) => rows,
        None => unreachable!("as many tokens as are asked for"),
    }
}
