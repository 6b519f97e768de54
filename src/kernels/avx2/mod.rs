//! The AVX2 kernel set (with FMA and F16C). The driver in [`super::blocks`] takes the quantised formats, whose
//! files say how to unpack a block and how to multiply integers; `floats` has the unquantised ones.
//!
//! Every function here that is marked with target features relies on the same thing: a
//! `&'static Kernels` of this set exists, hence the CPU has them.

mod floats;
mod kquants;
mod q8_0;

use std::arch::x86_64::*;

use super::blocks::{self, BlockKernel};
use super::{Isa, Kernels, OutTile, Tile, TileKernel, missing_features, ops};
use crate::gguf::TensorType;
use crate::quant::{BlockQ4K, BlockQ5K, BlockQ6K};

pub(super) static KERNELS: Kernels = Kernels {
    isa: Isa::Avx2,
    missing: missing_features!("avx2", "fma", "f16c"),
    tiles: TILES,
    ops: || &ops::AVX2,
};

static TILES: &[TileKernel] = &[
    TileKernel { ty: TensorType::F32, name: "vec_dot_f32_f32", run: floats::tile::<floats::F32> },
    TileKernel { ty: TensorType::F16, name: "vec_dot_f16_f16", run: floats::tile::<floats::F16> },
    TileKernel { ty: TensorType::BF16, name: "vec_dot_bf16_bf16", run: floats::tile::<floats::Bf16> },
    TileKernel { ty: TensorType::Q8_0, name: "vec_dot_q8_0_q8_0", run: quantised::<q8_0::Q8_0> },
    TileKernel {
        ty: TensorType::Q4_K,
        name: "vec_dot_q4_k_q8_k",
        run: quantised::<kquants::KQuant<BlockQ4K>>,
    },
    TileKernel {
        ty: TensorType::Q5_K,
        name: "vec_dot_q5_k_q8_k",
        run: quantised::<kquants::KQuant<BlockQ5K>>,
    },
    TileKernel {
        ty: TensorType::Q6_K,
        name: "vec_dot_q6_k_q8_k",
        run: quantised::<kquants::KQuant<BlockQ6K>>,
    },
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
fn prefetch<T>(at: &T) {
    let start = std::ptr::from_ref(at).cast::<i8>().wrapping_add(PREFETCH);
    for line in 0..size_of::<T>().div_ceil(64) {
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
