//! The AVX-VNNI kernel set: the AVX2 set with `vpdpbusd` and `vpdpwssd`, which multiply and add up in one
//! instruction, where the formats' products of integers are.
//!
//! Panels, unpacking and float steps are the AVX2 set's.

mod super_blocks;

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::avx2::{self, Block, Multiply};
use super::blocks::{self, BlockKernel, PanelKernel};
use super::{Isa, Kernels, OutTile, Tile, TileKernel, block_kernel, missing_features, ops};
use crate::gguf::TensorType;
use crate::quant::arranged::{Arranged, Parts};
use crate::quant::{ActivationRow, Q8_0Row};

pub(super) static KERNELS: Kernels = Kernels {
    isa: Isa::AvxVnni,
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

/// [`Multiply`] with VNNI.
struct Vnni;

impl Multiply for Vnni {
    #[inline(always)]
    unsafe fn add_quads(acc: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
        // SAFETY: the caller vouches for the CPU.
        unsafe { _mm256_dpbusd_avx_epi32(acc, unsigned, signed) }
    }

    #[inline(always)]
    unsafe fn add_small_quads(acc: __m256i, unsigned: [__m256i; 4], signed: [__m256i; 4]) -> __m256i {
        let mut acc = acc;
        for i in 0..4 {
            // SAFETY: the caller vouches for the CPU.
            acc = unsafe { Vnni::add_quads(acc, unsigned[i], signed[i]) };
        }
        acc
    }

    #[inline(always)]
    unsafe fn add_pairs(acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the caller vouches for the CPU.
        unsafe { _mm256_dpwssd_avx_epi32(acc, a, b) }
    }
}

/// An AVX2 kernel, its products computed with VNNI.
struct WithVnni<K>(PhantomData<K>);

type Blocks32<B> = WithVnni<avx2::Blocks32<B>>;
type SuperBlocks<B> = WithVnni<avx2::SuperBlocks<B>>;

/// What of [`PanelKernel`] is as in the AVX2 kernel.
macro_rules! as_in_avx2 {
    ($row:ident, $rows:literal, $kernel:ty) => {
        const TOKENS_A_PANEL: usize = <$kernel as PanelKernel<$rows>>::TOKENS_A_PANEL;
        const TOKENS: usize = <$kernel as PanelKernel<$rows>>::TOKENS;

        const ARRANGED: bool = <$kernel as PanelKernel<$rows>>::ARRANGED;

        type Row<'a> = $row<'a>;
        type Tokens<'a> = <$kernel as PanelKernel<$rows>>::Tokens<'a>;
        type Panel = <$kernel as PanelKernel<$rows>>::Panel;
        type Lanes = <$kernel as PanelKernel<$rows>>::Lanes;

        #[inline(always)]
        fn row(x: ActivationRow<'_>) -> $row<'_> {
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
use as_in_avx2;

impl<B: Block> PanelKernel<16> for Blocks32<B> {
    as_in_avx2!(Q8_0Row, 16, avx2::Blocks32<B>);

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
