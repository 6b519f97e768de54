//! The AVX2 kernel set (with FMA and F16C). The driver in [`super::blocks`] takes the quantised formats,
//! whose files say how to unpack a block and how to multiply integers; `floats` has the unquantised ones.
//!
//! Every function here that is marked with target features relies on the same thing: a
//! `&'static Kernels` of this set exists, hence the CPU has them.

mod blocks32;
mod codebooks;
mod floats;
mod iquants;
mod kquants;
mod legacy;
mod panels;
mod places;
mod super_blocks;
mod ternary;

use std::arch::asm;
use std::arch::x86_64::*;

use super::blocks::{self, BlockKernel};
use super::{
    Isa, Kernels, OutTile, Tile, TileKernel, block_kernel, kernel, layouts, missing_features, ops, scalar,
};
use crate::gguf::TensorType;
pub(super) use blocks32::{
    Block, Blocks32, Lanes as Lanes32, Panel as Panel32, add_panel_with as add_panel32,
    dots as blocks32_dots, rows_together as blocks32_rows_together, turned, weights_of,
};
pub(super) use places::{Places, PlacesAhead};
pub(super) use super_blocks::{
    EightRows, FLOAT_OF_32, Mins, SuperBlock, SuperBlocks, add_sums, d_pair, dots as super_block_dots,
};

pub(super) static KERNELS: Kernels = Kernels {
    isa: Isa::Avx2,
    slow: || false,
    missing: missing_features!("avx2", "fma", "f16c"),
    tiles: TILES,
    base: Some(&scalar::KERNELS),
    ops: || &ops::AVX2,
};

static TILES: &[TileKernel] = tiles_with_quantised!(
    SuperBlocks,
    [
        kernel(TensorType::F32, floats::tile::<layouts::F32>),
        kernel(TensorType::F16, floats::tile::<layouts::F16>),
        kernel(TensorType::BF16, floats::tile::<layouts::Bf16>)
    ]
);

/// # Safety
/// The CPU must have the features of this kernel set.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn quantised<K: BlockKernel<ROWS>, const ROWS: usize>(tile: &Tile<'_>, out: &mut OutTile<'_>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { blocks::tile::<K, ROWS>(tile, out) }
}

/// How products of integers are added up; AVX-VNNI has instructions for both.
///
/// All `unsafe` functions have one condition: the CPU has the features of the kernel set. They are inlined
/// always, so that they are compiled for the features of their caller.
pub(super) trait Multiply {
    /// Each lane with the products of its four unsigned and four signed bytes added, of which two neighbours
    /// must fit i16 together.
    unsafe fn add_quads(acc: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i;
    /// The same four times, of unsigned bytes that are at most 31.
    unsafe fn add_small_quads(acc: __m256i, unsigned: [__m256i; 4], signed: [__m256i; 4]) -> __m256i;
    /// Each lane with the products of its two words added.
    unsafe fn add_pairs(acc: __m256i, a: __m256i, b: __m256i) -> __m256i;
}

/// [`Multiply`] with AVX2.
pub(super) struct Maddubs;

impl Multiply for Maddubs {
    #[inline(always)]
    unsafe fn add_quads(acc: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let pairs = _mm256_maddubs_epi16(unsigned, signed);
            Maddubs::add_pairs(acc, pairs, _mm256_set1_epi16(1))
        }
    }

    #[inline(always)]
    unsafe fn add_small_quads(acc: __m256i, unsigned: [__m256i; 4], signed: [__m256i; 4]) -> __m256i {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            // 4 * 2 * 31 * 127 = 31496
            let mut pairs = _mm256_maddubs_epi16(unsigned[0], signed[0]);
            for i in 1..4 {
                pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(unsigned[i], signed[i]));
            }
            Maddubs::add_pairs(acc, pairs, _mm256_set1_epi16(1))
        }
    }

    #[inline(always)]
    unsafe fn add_pairs(acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the caller vouches for the CPU.
        unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)) }
    }
}

/// `vnni!(dpbusd, dpwssd)`: a [`Multiply`] of the name `Vnni`, by the instructions of these names, which
/// multiply and add up at once.
macro_rules! vnni {
    ($dpbusd:ident, $dpwssd:ident) => {
        /// [`Multiply`]($crate::kernels::avx2::Multiply) with VNNI.
        struct Vnni;

        impl $crate::kernels::avx2::Multiply for Vnni {
            #[inline(always)]
            unsafe fn add_quads(acc: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
                // SAFETY: the caller vouches for the CPU.
                unsafe { $dpbusd(acc, unsigned, signed) }
            }

            #[inline(always)]
            unsafe fn add_small_quads(acc: __m256i, unsigned: [__m256i; 4], signed: [__m256i; 4]) -> __m256i {
                let mut acc = acc;
                for i in 0..4 {
                    // SAFETY: the caller vouches for the CPU.
                    acc = unsafe { $dpbusd(acc, unsigned[i], signed[i]) };
                }
                acc
            }

            #[inline(always)]
            unsafe fn add_pairs(acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: the caller vouches for the CPU.
                unsafe { $dpwssd(acc, a, b) }
            }
        }
    };
}
pub(super) use vnni;

/// How far ahead of the weights in use memory is asked for, bytes: of one row, and of each of a panel's rows.
const PREFETCH: usize = 3072;
const PREFETCH_ROWS: usize = 512;

/// Asks for the memory that the next panel has where this one has `at`, a part of `row`, as much as `at` is
/// long.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn prefetch_panel<T: ?Sized>(at: &T, row: &[u8]) {
    prefetch(at, PANEL_ROWS * row.len());
}

/// Rows of a panel of quantised weights.
const PANEL_ROWS: usize = 16;

/// Asks for the memory `ahead` bytes after `at`'s start, as much as `at` is long.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn prefetch<T: ?Sized>(at: &T, ahead: usize) {
    let start = std::ptr::from_ref(at).cast::<i8>().wrapping_add(ahead);
    for line in 0..size_of_val(at).div_ceil(64) {
        _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line * 64));
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_u8(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: 32 bytes can be read, and no alignment is asked for.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_i8(bytes: &[i8; 32]) -> __m256i {
    // SAFETY: 32 bytes can be read, and no alignment is asked for.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_i16(values: &[i16; 16]) -> __m256i {
    // SAFETY: 32 bytes can be read, and no alignment is asked for.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_f32(values: &[f32; 8]) -> __m256 {
    // SAFETY: 32 bytes can be read, and no alignment is asked for.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_16_bytes(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: 16 bytes can be read, and no alignment is asked for.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// The same value, of which the compiler does not know where it comes from, and which it therefore does not
/// take apart for shuffles that cost more than the one asked for.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn opaque(mut v: __m256i) -> __m256i {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0} */", inout(ymm_reg) v, options(pure, nomem, nostack, preserves_flags)) };
    v
}

/// Keeps a value in memory, where the compiler would keep it in registers that others need, and put away what
/// does not fit on a stack that is not aligned for it.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn in_memory<T>(value: &mut T) {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0} */", in(reg) value, options(nostack, preserves_flags)) };
}

/// The bits of bytes `4 at` to `4 at + 3`: one load (bytes put together one by one are not made one).
#[inline(always)]
fn word_of<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes(bytes.as_chunks().0[at])
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn to_array(v: __m256) -> [f32; 8] {
    let mut out = [0f32; 8];
    // SAFETY: 32 bytes can be written, and no alignment is asked for.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) };
    out
}

/// [`crate::quant::tree8`] of the lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn tree8(l: __m256) -> f32 {
    let fours = _mm_add_ps(_mm256_castps256_ps128(l), _mm256_extractf128_ps::<1>(l));
    let twos = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
    _mm_cvtss_f32(_mm_add_ss(twos, _mm_movehdup_ps(twos)))
}

/// Eight f16 values as f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen_f16(values: [[u8; 2]; 8]) -> __m256 {
    _mm256_cvtph_ps(load_16_bytes(values.as_flattened().first_chunk().unwrap_or(&[0; 16])))
}

/// Four bytes in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn spread_quad(quad: [i8; 4]) -> __m256i {
    _mm256_set1_epi32(i32::from_ne_bytes(array!(4, |i| quad[i] as u8)))
}

/// A pair of words in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn spread_pair(pair: [i16; 2]) -> __m256i {
    let ([a, b], [c, d]) = (pair[0].to_ne_bytes(), pair[1].to_ne_bytes());
    _mm256_set1_epi32(i32::from_ne_bytes([a, b, c, d]))
}

/// Transposes 8 x 8 values of 32 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn transpose8(r: [__m256i; 8]) -> [__m256i; 8] {
    let lo32 = |i: usize| _mm256_unpacklo_epi32(r[i], r[i + 1]);
    let hi32 = |i: usize| _mm256_unpackhi_epi32(r[i], r[i + 1]);
    let (a, b) = ([lo32(0), lo32(2), lo32(4), lo32(6)], [hi32(0), hi32(2), hi32(4), hi32(6)]);
    // Columns 0 to 3 in the low halves and 4 to 7 in the high ones, of rows 0-3 and of rows 4-7.
    let columns = |i: usize| {
        [
            _mm256_unpacklo_epi64(a[i], a[i + 1]),
            _mm256_unpackhi_epi64(a[i], a[i + 1]),
            _mm256_unpacklo_epi64(b[i], b[i + 1]),
            _mm256_unpackhi_epi64(b[i], b[i + 1]),
        ]
    };
    let (top, bottom) = (columns(0), columns(2));
    let low = |i: usize| _mm256_permute2x128_si256::<0x20>(top[i], bottom[i]);
    let high = |i: usize| _mm256_permute2x128_si256::<0x31>(top[i], bottom[i]);
    [low(0), low(1), low(2), low(3), high(0), high(1), high(2), high(3)]
}
