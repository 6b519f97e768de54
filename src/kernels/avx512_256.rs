//! The AVX-512 set, but with registers of 256 bits where rows are dotted with few tokens: for CPUs whose units
//! are that wide, which work on 512 bits in halves. A row's dot is more shuffles than products, and shuffles
//! have fewer units there; panels are products nearly alone, and stay as they are.
//!
//! Unpacking and float steps of the dots are the AVX2 set's, their products those of AVX-VNNI in another
//! encoding.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::avx2::{self, Block, SuperBlock, vnni};
use super::blocks::{self, BlockKernel, PanelKernel, panels_as_in};
use super::{Isa, Kernels, OutTile, Tile, TileKernel, avx512, block_kernel, ops};
use crate::gguf::TensorType;
use crate::quant::{Q8_0Row, Q8KRow};

pub(super) static KERNELS: Kernels = Kernels {
    isa: Isa::Avx512In256,
    missing: avx512::KERNELS.missing,
    slow: || !works_in_halves(),
    tiles: TILES,
    base: Some(&avx512::KERNELS),
    ops: || &ops::AVX512,
};

static TILES: &[TileKernel] = tiles_with_quantised!(KQuant, []);

/// Whether the CPU has AVX-512 and units of 256 bits: AMD's say so (function 8000_001Ah, FP512).
pub(super) fn works_in_halves() -> bool {
    const IDENTIFIERS: u32 = 0x8000_001a;
    const FP512: u32 = 1 << 3;
    __cpuid(0x8000_0000).eax >= IDENTIFIERS && __cpuid(IDENTIFIERS).eax & FP512 == 0
}

/// # Safety
/// The CPU must have the features of this kernel set.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn quantised<K: BlockKernel<ROWS> + Narrow, const ROWS: usize>(
    tile: &Tile<'_>,
    out: &mut OutTile<'_>,
) {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        if tile.x.rows() < K::PANEL_TOKENS {
            blocks::rows::<K, ROWS>(tile, out);
        } else {
            avx512::quantised::<K::Wide, 16>(tile, out);
        }
    }
}

/// A kernel of the AVX-512 set with dots in registers of 256 bits.
struct In256<K>(PhantomData<K>);

/// What [`In256`] is made of.
trait Narrow {
    type Wide: BlockKernel<16>;
}

impl<K: BlockKernel<16>> Narrow for In256<K> {
    type Wide = K;
}

type Blocks32<B> = In256<avx512::Blocks32<B>>;
type SuperBlocks<B> = In256<avx512::SuperBlocks<B>>;
type KQuant<B> = In256<avx512::KQuantOf<B, true>>;

impl<K: PanelKernel<16>> PanelKernel<16> for In256<K> {
    panels_as_in!(16, K);

    #[inline(always)]
    unsafe fn accumulate<const T: usize>(
        panel: &Self::Panel,
        x: &Self::Tokens<'_>,
        first: usize,
        unit: usize,
        lanes: &mut [Self::Lanes; T],
    ) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { K::accumulate(panel, x, first, unit, lanes) }
    }
}

impl<B: Block> BlockKernel<16> for Blocks32<B> {
    const PANEL_TOKENS: usize = <<Self as Narrow>::Wide as BlockKernel<16>>::PANEL_TOKENS;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Q8_0Row<'_>; T]) -> [f32; T] {
        // SAFETY: the caller vouches for the CPU.
        unsafe { avx2::blocks32_dots::<B, Vnni, T>(weights, x) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn rows_together(tile: &Tile<'_>, x: &[Q8_0Row<'_>], out: &mut OutTile<'_>) -> usize {
        // SAFETY: the caller vouches for the CPU.
        unsafe { avx2::blocks32_rows_together::<B, Vnni>(tile, x, out) }
    }
}

/// The dots of formats whose activations go in super-blocks.
macro_rules! super_block_dots {
    ($name:ident: $($bound:tt)+) => {
        impl<B: SuperBlock + $($bound)+> BlockKernel<16> for $name<B> {
            const PANEL_TOKENS: usize = <<Self as Narrow>::Wide as BlockKernel<16>>::PANEL_TOKENS;

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
            unsafe fn dots<const T: usize>(weights: &[u8], x: [Q8KRow<'_>; T]) -> [f32; T] {
                // SAFETY: the caller vouches for the CPU.
                unsafe { avx2::super_block_dots::<B, Vnni, T>(weights, x) }
            }
        }
    };
}

super_block_dots!(SuperBlocks: Sized);
super_block_dots!(KQuant: avx512::SuperBlock);

vnni!(_mm256_dpbusd_epi32, _mm256_dpwssd_epi32);
