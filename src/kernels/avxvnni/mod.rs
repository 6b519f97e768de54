//! The AVX-VNNI kernel set: the AVX2 set with `vpdpbusd` and `vpdpwssd`, which multiply and add up in one
//! instruction, where the formats' products of integers are.
//!
//! Panels, unpacking and float steps are the AVX2 set's.

mod super_blocks;

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::avx2::{self, Block, vnni};
use super::blocks::{self, BlockKernel, PanelKernel, panels_as_in};
use super::{Isa, Kernels, OutTile, Tile, TileKernel, block_kernel, missing_features, ops};
use crate::gguf::TensorType;
use crate::quant::Q8_0Row;
use crate::quant::arranged::{Arranged, Parts};

pub(super) static KERNELS: Kernels = Kernels {
    isa: Isa::AvxVnni,
    slow: || false,
    missing: missing_features!("avx2", "fma", "f16c", "avxvnni"),
    tiles: TILES,
    base: Some(&avx2::KERNELS),
    ops: || &ops::AVX2,
};

static TILES: &[TileKernel] = tiles_with_quantised!(SuperBlocks, []);

/// # Safety
/// The CPU must have the features of this kernel set.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn quantised<K: BlockKernel<ROWS>, const ROWS: usize>(tile: &Tile<'_>, out: &mut OutTile<'_>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { blocks::tile::<K, ROWS>(tile, out) }
}

vnni!(_mm256_dpbusd_avx_epi32, _mm256_dpwssd_avx_epi32);

/// An AVX2 kernel, its products computed with VNNI.
struct WithVnni<K>(PhantomData<K>);

type Blocks32<B> = WithVnni<avx2::Blocks32<B>>;
type SuperBlocks<B> = WithVnni<avx2::SuperBlocks<B>>;

impl<B: Block> PanelKernel<16> for Blocks32<B> {
    panels_as_in!(16, avx2::Blocks32<B>);

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn accumulate<const T: usize>(
        panel: &Self::Panel,
        x: &&Arranged,
        first: usize,
        unit: usize,
        lanes: &mut [Self::Lanes; T],
    ) {
        let x = x.parts(unit, first);
        match (B::SIGNED, B::HALVES, B::MINS) {
            (true, _, _) => add_panel::<true, false, false, T>(panel, x, 0, lanes),
            (_, true, _) => add_panel::<false, true, false, T>(panel, x, B::OFFSET, lanes),
            (_, _, true) => add_panel::<false, false, true, T>(panel, x, 0, lanes),
            _ => add_panel::<false, false, false, T>(panel, x, B::OFFSET, lanes),
        }
    }
}

impl<B: Block> BlockKernel<16> for Blocks32<B> {
    const PANEL_TOKENS: usize = <avx2::Blocks32<B> as BlockKernel<16>>::PANEL_TOKENS;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Q8_0Row<'_>; T]) -> [f32; T] {
        // SAFETY: the caller vouches for the CPU.
        unsafe { avx2::blocks32_dots::<B, Vnni, T>(weights, x) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn rows_together(tile: &Tile<'_>, x: &[Q8_0Row<'_>], out: &mut OutTile<'_>) -> usize {
        // SAFETY: the caller vouches for the CPU.
        unsafe { avx2::blocks32_rows_together::<B, Vnni>(tile, x, out) }
    }
}

/// The same for all formats of a kind, and compiled once for them.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn add_panel<const SIGNED: bool, const HALVES: bool, const MINS: bool, const T: usize>(
    panel: &[avx2::Panel32; 2],
    x: &Parts<T>,
    offset: i16,
    lanes: &mut [avx2::Lanes32; T],
) {
    // SAFETY: this function is compiled for the features that the CPU has.
    unsafe { avx2::add_panel32::<SIGNED, HALVES, MINS, Vnni, T>(panel, x, offset, lanes) }
}
