//! The AVX2 kernel set (with FMA and F16C). The driver in [`super::blocks`] takes the quantised formats, whose
//! files say how to unpack a block and how to multiply integers; `floats` has the unquantised ones.
//!
//! Every function here that is marked with target features relies on the same thing: a
//! `&'static Kernels` of this set exists, hence the CPU has them.

mod blocks32;
mod codebooks;
mod floats;
mod iquants;
mod kquants;
mod legacy;
mod super_blocks;
mod ternary;

use std::arch::x86_64::*;

use super::blocks::{self, BlockKernel};
use super::{Isa, Kernels, OutTile, Tile, TileKernel, kernel, missing_features, ops};
use crate::gguf::TensorType;
use crate::quant::{
    BlockIQ1M, BlockIQ1S, BlockIQ2S, BlockIQ2XS, BlockIQ2XXS, BlockIQ3S, BlockIQ3XXS, BlockIQ4NL, BlockIQ4XS,
    BlockMXFP4, BlockNVFP4, BlockQ1_0, BlockQ2_0, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K,
    BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, BlockTQ1_0, BlockTQ2_0,
};
pub(super) use blocks32::{Block, Blocks32, Eight, Tail, activations, eight_parts, weights_of};
pub(super) use super_blocks::{Mins, SuperBlock, SuperBlocks, d_pair};

pub(super) static KERNELS: Kernels = Kernels {
    isa: Isa::Avx2,
    missing: missing_features!("avx2", "fma", "f16c"),
    tiles: TILES,
    ops: || &ops::AVX2,
};

static TILES: &[TileKernel] = &[
    kernel(TensorType::F32, "vec_dot_f32_f32", floats::tile::<floats::F32>),
    kernel(TensorType::F16, "vec_dot_f16_f16", floats::tile::<floats::F16>),
    kernel(TensorType::BF16, "vec_dot_bf16_bf16", floats::tile::<floats::Bf16>),
    kernel(TensorType::Q4_0, "vec_dot_q4_0_q8_0", quantised::<Blocks32<BlockQ4_0>>),
    kernel(TensorType::Q4_1, "vec_dot_q4_1_q8_1", quantised::<Blocks32<BlockQ4_1>>),
    kernel(TensorType::Q5_0, "vec_dot_q5_0_q8_0", quantised::<Blocks32<BlockQ5_0>>),
    kernel(TensorType::Q5_1, "vec_dot_q5_1_q8_1", quantised::<Blocks32<BlockQ5_1>>),
    kernel(TensorType::Q8_0, "vec_dot_q8_0_q8_0", quantised::<Blocks32<BlockQ8_0>>),
    kernel(TensorType::Q2_K, "vec_dot_q2_k_q8_k", quantised::<SuperBlocks<BlockQ2K>>),
    kernel(TensorType::Q3_K, "vec_dot_q3_k_q8_k", quantised::<SuperBlocks<BlockQ3K>>),
    kernel(TensorType::Q4_K, "vec_dot_q4_k_q8_k", quantised::<SuperBlocks<BlockQ4K>>),
    kernel(TensorType::Q5_K, "vec_dot_q5_k_q8_k", quantised::<SuperBlocks<BlockQ5K>>),
    kernel(TensorType::Q6_K, "vec_dot_q6_k_q8_k", quantised::<SuperBlocks<BlockQ6K>>),
    kernel(TensorType::IQ2_XXS, "vec_dot_iq2_xxs_q8_k", quantised::<SuperBlocks<BlockIQ2XXS>>),
    kernel(TensorType::IQ2_XS, "vec_dot_iq2_xs_q8_k", quantised::<SuperBlocks<BlockIQ2XS>>),
    kernel(TensorType::IQ2_S, "vec_dot_iq2_s_q8_k", quantised::<SuperBlocks<BlockIQ2S>>),
    kernel(TensorType::IQ3_XXS, "vec_dot_iq3_xxs_q8_k", quantised::<SuperBlocks<BlockIQ3XXS>>),
    kernel(TensorType::IQ3_S, "vec_dot_iq3_s_q8_k", quantised::<SuperBlocks<BlockIQ3S>>),
    kernel(TensorType::IQ1_S, "vec_dot_iq1_s_q8_k", quantised::<SuperBlocks<BlockIQ1S>>),
    kernel(TensorType::IQ1_M, "vec_dot_iq1_m_q8_k", quantised::<SuperBlocks<BlockIQ1M>>),
    kernel(TensorType::IQ4_NL, "vec_dot_iq4_nl_q8_0", quantised::<Blocks32<BlockIQ4NL>>),
    kernel(TensorType::IQ4_XS, "vec_dot_iq4_xs_q8_k", quantised::<SuperBlocks<BlockIQ4XS>>),
    kernel(TensorType::TQ1_0, "vec_dot_tq1_0_q8_k", quantised::<SuperBlocks<BlockTQ1_0>>),
    kernel(TensorType::TQ2_0, "vec_dot_tq2_0_q8_k", quantised::<SuperBlocks<BlockTQ2_0>>),
    kernel(TensorType::MXFP4, "vec_dot_mxfp4_q8_0", quantised::<Blocks32<BlockMXFP4>>),
    kernel(TensorType::NVFP4, "vec_dot_nvfp4_q8_0", quantised::<Blocks32<BlockNVFP4>>),
    kernel(TensorType::Q1_0, "vec_dot_q1_0_q8_0", quantised::<Blocks32<BlockQ1_0>>),
    kernel(TensorType::Q2_0, "vec_dot_q2_0_q8_0", quantised::<Blocks32<BlockQ2_0>>),
];

/// # Safety
/// The CPU must have the features of this kernel set.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn quantised<K: BlockKernel<8>>(tile: &Tile<'_>, out: &mut OutTile<'_>) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { blocks::tile::<K, 8>(tile, out) }
}

/// How far ahead of the weights in use memory is asked for, bytes.
const PREFETCH: usize = 3072;

/// Asks for the memory `PREFETCH` bytes after `at`'s start, as much as `at` is long.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn prefetch<T: ?Sized>(at: &T) {
    let start = std::ptr::from_ref(at).cast::<i8>().wrapping_add(PREFETCH);
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

/// The bytes of a register as words, to be looked up.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn to_words(v: __m256i) -> [u16; 16] {
    let mut out = [0; 16];
    // SAFETY: 32 bytes can be written, and no alignment is asked for.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), v) };
    out
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
fn spread_quad(quad: [i8; 4]) -> __m256i {
    _mm256_set1_epi32(i32::from_ne_bytes(array!(4, |i| quad[i] as u8)))
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
