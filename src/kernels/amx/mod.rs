//! The AMX-INT8 kernel set: the AVX-512 set, but for many tokens, whose products with sixteen rows of weights
//! are computed in tiles of 16 tokens x 16 rows.
//!
//! The AVX-512 set's panels lie in memory as the weights' side of a tile product wants them: a line has four
//! weights of each of sixteen rows. Activations are the other side as they are, a line a token. The result
//! has a line of sixteen rows for each token, which is a register of the AVX-512 set, whose own float steps
//! follow. Integers are exact in any order, and the float steps come in the order of the scalar definition:
//! the bits are the same.

mod blocks32;
mod super_blocks;
mod tiles;

use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

use super::avx512::{self, Blocks32, KQuant, SuperBlocks};
use super::blocks::{self, BlockKernel};
use super::{Groups, Isa, Kernels, OutTile, Tile, TileFunction, TileKernel, ops};
use crate::gguf::TensorType;
use crate::store::os::{Os, System};
use tiles::{Configured, TOKENS};

pub(super) static KERNELS: Kernels = Kernels {
    isa: Isa::Amx,
    missing,
    slow: || false,
    tiles: TILES,
    base: Some(&avx512::KERNELS),
    ops: || &ops::AVX512,
};

static TILES: &[TileKernel] = tiles_with_quantised!(KQuant, []);

/// As in other sets, but that tiles take rows of activations as they are.
const fn block_kernel<K: BlockKernel<ROWS>, const ROWS: usize>(
    ty: TensorType,
    run: TileFunction,
) -> TileKernel {
    let kernel = super::block_kernel::<K, ROWS>(ty, run);
    let arranged = match kernel.arranged {
        Some(groups) => Some(Groups { below: TOKENS, ..groups }),
        None => None,
    };
    TileKernel { arranged, ..kernel }
}

/// What this CPU, its operating system included, lacks for this set.
fn missing() -> Vec<&'static str> {
    static AMX: OnceLock<Vec<&str>> = OnceLock::new();
    let mut missing = (avx512::KERNELS.missing)();
    missing.extend(AMX.get_or_init(missing_for_tiles));
    missing
}

fn missing_for_tiles() -> Vec<&'static str> {
    let edx = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 };
    let mut missing: Vec<&str> = [(24, "amx-tile"), (25, "amx-int8")]
        .into_iter()
        .filter(|(bit, _)| edx >> bit & 1 == 0)
        .map(|(_, name)| name)
        .collect();
    if missing.is_empty() && !(tiles_are_enabled() && Os::allow_amx_tiles()) {
        missing.push("amx-tile (which the operating system does not allow)");
    }
    missing
}

/// Whether the operating system saves tiles and their configuration.
fn tiles_are_enabled() -> bool {
    const TILES: u64 = 1 << 17 | 1 << 18;
    let osxsave = __cpuid(1).ecx >> 27 & 1 == 1;
    // SAFETY: `xgetbv` is there where the operating system has enabled it.
    osxsave && unsafe { _xgetbv(0) } & TILES == TILES
}

/// A kernel of the AVX-512 set whose panels can be multiplied in tiles.
///
/// All `unsafe` functions have one condition: the CPU has the features of this kernel set.
trait TileKernels: BlockKernel<16> {
    /// Columns that a step of a tile product goes over.
    const STEP: usize;
    /// Tokens that share a panel: their activations should stay in L2 while the rows pass by.
    const TOKENS_AT_ONCE: usize;
    /// What tile products need beside a panel: room for their results, the weights in another form.
    type Buffers;

    unsafe fn no_buffers() -> Self::Buffers;
    /// Prepares the weights' side of the tile products with a panel.
    unsafe fn prepare(panel: &Self::Panel, buffers: &mut Self::Buffers);
    /// Adds unit `unit` of two groups of tokens to the tokens' lanes.
    unsafe fn add(
        panel: &Self::Panel,
        buffers: &mut Self::Buffers,
        groups: [Group<'_, Self::Row<'_>>; 2],
        unit: usize,
        lanes: [&mut [Self::Lanes]; 2],
    );
}

/// Some of [`TOKENS`] tokens that follow one another.
#[derive(Clone, Copy)]
struct Group<'a, R> {
    /// `[TOKENS][stride]` activations.
    qs: &'a [i8],
    stride: usize,
    /// The first of the tokens that are wanted.
    first: usize,
    /// The tokens that are wanted.
    x: &'a [R],
}

/// # Safety
/// The CPU must have the features of this kernel set.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn quantised<K: BlockKernel<ROWS> + TileKernels, const ROWS: usize>(
    tile: &Tile<'_>,
    out: &mut OutTile<'_>,
) {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        if tile.x.rows() < TOKENS {
            blocks::tile::<K, ROWS>(tile, out);
        } else {
            in_tiles::<K>(tile, out);
        }
    }
}

/// # Safety
/// The CPU must have the features of this kernel set, and there must be at least [`TOKENS`] tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn in_tiles<K: TileKernels>(tile: &Tile<'_>, out: &mut OutTile<'_>) {
    // SAFETY: the caller vouches for the CPU, here and below.
    let _configured = unsafe { Configured::for_steps_of(K::STEP) };
    // SAFETY: as above.
    let (mut panel, mut buffers, none) = unsafe { (K::no_panel(), K::no_buffers(), K::no_lanes()) };
    let x: Vec<K::Row<'_>> = (0..tile.x.rows()).map(|t| K::row(tile.x.row(t))).collect();
    let mut lanes = vec![none; x.len().min(K::TOKENS_AT_ONCE)];
    for start in (0..x.len()).step_by(K::TOKENS_AT_ONCE) {
        let end = x.len().min(start + K::TOKENS_AT_ONCE);
        for first in (0..tile.rows).step_by(16) {
            // Where fewer rows are left, the last stands in for those that are not there.
            let rows = array!(16, |r| tile.row((first + r).min(tile.rows - 1)));
            lanes.fill(none);
            for unit in 0..K::units(tile.row_bytes) {
                // SAFETY: as above.
                unsafe {
                    K::unpack(&rows, unit, &mut panel);
                    K::prepare(&panel, &mut buffers);
                    for at in (start..end).step_by(2 * TOKENS) {
                        let middle = end.min(at + TOKENS);
                        let (left, right) = lanes[at - start..].split_at_mut(middle - at);
                        let groups =
                            [group(tile, &x, at..middle), group(tile, &x, middle..end.min(middle + TOKENS))];
                        K::add(&panel, &mut buffers, groups, unit, [left, right]);
                    }
                }
            }
            for (t, lanes) in lanes[..end - start].iter().enumerate() {
                // SAFETY: as above.
                let dots = unsafe { K::finish(lanes) };
                for (r, dot) in dots.into_iter().enumerate().take(tile.rows - first) {
                    out.set(start + t, first + r, dot);
                }
            }
        }
    }
}

/// The group that ends with these tokens: where they are fewer, it begins with some of those before them.
#[inline(always)]
fn group<'a, R>(tile: &Tile<'a>, x: &'a [R], wanted: std::ops::Range<usize>) -> Group<'a, R> {
    let (start, stride) = (wanted.start.min(x.len() - TOKENS), tile.x.cols());
    Group {
        qs: &tile.x.qs()[start * stride..][..TOKENS * stride],
        stride,
        first: wanted.start - start,
        x: &x[wanted],
    }
}
