//! The AVX-512 kernel set (F, BW, VL and VNNI). The driver in [`super::blocks`] takes the quantised formats,
//! whose files say how to unpack a block and how to multiply integers; `floats` has the unquantised ones.
//!
//! `vpdpbusd` adds four products of an unsigned and a signed byte to an i32, without saturation: exact.
//!
//! Every function here that is marked with target features relies on the same thing: a
//! `&'static Kernels` of this set exists, hence the CPU has them.

mod blocks32;
mod floats;
mod kquants;
mod super_blocks;
mod unpack;

use std::arch::x86_64::*;

use super::blocks::{self, BlockKernel};
use super::{
    Isa, Kernels, OutTile, Tile, TileKernel, avx2, avx512_256, block_kernel, kernel, layouts,
    missing_features, ops, scalar,
};
use crate::gguf::TensorType;
pub(super) use blocks32::Blocks32;
#[cfg(target_os = "linux")] // for the AMX set
pub(super) use blocks32::{Panel as Panel32, add_sum, offset};
pub(super) use kquants::KQuant as KQuantOf;
pub(super) use super_blocks::SuperBlocks;
#[cfg(target_os = "linux")]
pub(super) use super_blocks::{add_scaled, sums_of_mins};
#[cfg(target_os = "linux")]
pub(super) use unpack::Panel as SuperPanel;
pub(super) use unpack::SuperBlock;

pub(super) static KERNELS: Kernels = Kernels {
    isa: Isa::Avx512,
    slow: avx512_256::works_in_halves,
    missing: missing_features!("avx512f", "avx512bw", "avx512vl", "avx512vnni"),
    tiles: TILES,
    base: Some(&scalar::KERNELS),
    ops: || &ops::AVX512,
};

static TILES: &[TileKernel] = tiles_with_quantised!(
    KQuant,
    [
        kernel(TensorType::F32, floats::tile::<layouts::F32>),
        kernel(TensorType::F16, floats::tile::<layouts::F16>),
        kernel(TensorType::BF16, floats::tile::<layouts::Bf16>)
    ]
);

pub(super) type KQuant<B> = KQuantOf<B, false>;

/// # Safety
/// The CPU must have the features of this kernel set.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn quantised<K: BlockKernel<ROWS>, const ROWS: usize>(
    tile: &Tile<'_>,
    out: &mut OutTile<'_>,
) {
    // SAFETY: the caller vouches for the CPU.
    unsafe { blocks::tile::<K, ROWS>(tile, out) }
}

/// How far ahead of the weights in use memory is asked for, bytes, where rows follow one another: into L2, which
/// may have many more lines under way than L1, and from there into L1.
const TO_L2: usize = 6144;
const TO_L1: usize = 1024;
/// Rows of a panel of quantised weights.
const PANEL_ROWS: usize = 16;

/// Asks for the memory that rows which follow one another have next, as much as `at` is long.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn prefetch<T: ?Sized>(at: &T) {
    prefetch_by::<_MM_HINT_T1, T>(at, TO_L2);
    prefetch_by::<_MM_HINT_T0, T>(at, TO_L1);
}

/// Asks for the memory that the next panel has where this one has `at`, a part of `row`, as much as `at` is
/// long.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn prefetch_panel<T: ?Sized>(at: &T, row: &[u8]) {
    prefetch_by::<_MM_HINT_T1, T>(at, PANEL_ROWS * row.len());
}

/// Asks for the memory that rows of the next panel have there, a block of weights each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn prefetch_rows<B>(rows: &[*const i8]) {
    for row in rows {
        for line in 0..size_of::<B>().div_ceil(64) {
            _mm_prefetch::<_MM_HINT_T1>(row.wrapping_add(line * 64));
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn prefetch_by<const HINT: i32, T: ?Sized>(at: &T, ahead: usize) {
    let start = std::ptr::from_ref(at).cast::<i8>().wrapping_add(ahead);
    for line in 0..size_of_val(at).div_ceil(64) {
        _mm_prefetch::<HINT>(start.wrapping_add(line * 64));
    }
}

/// `vpdpbusd` with quad `QUAD` of token `TOKEN` of `x`, `[quad][T]`, spread over the lanes. The compiler
/// would put the products of each token one behind another, and each would wait for the one before it: asm
/// keeps the order that it is written in.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_quad<const QUAD: usize, const TOKEN: usize, const T: usize, const QUADS: usize>(
    sum: __m512i,
    q: __m512i,
    x: &[[[i8; 4]; T]; QUADS],
) -> __m512i {
    assert!(QUAD < QUADS && TOKEN < T); // known when it is compiled
    let mut out = sum;
    // SAFETY: it reads four bytes of `x`, and nothing else but registers.
    unsafe {
        std::arch::asm!(
            "vpdpbusd {sum}, {q}, dword ptr [{x} + {at}]{{1to16}}",
            sum = inout(zmm_reg) out,
            q = in(zmm_reg) q,
            x = in(reg) x,
            at = const 4 * (QUAD * T + TOKEN),
            options(readonly, nostack, preserves_flags)
        );
    }
    out
}

/// `vpdpwssd`: adds the products of pairs of i16 to each i32. The compiler makes two instructions of the
/// intrinsic, where it knows what one of the factors is.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_pairs(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    let mut out = sum;
    // SAFETY: it reads and writes registers alone, and the CPU has the instruction.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {sum}, {a}, {b}",
            sum = inout(zmm_reg) out,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    out
}

/// The same with a pair that is spread over the lanes, as [`add_quad`] does it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_pair(sum: __m512i, a: __m512i, pair: &[i16; 2]) -> __m512i {
    let mut out = sum;
    // SAFETY: it reads the pair, and nothing else but registers.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {sum}, {a}, dword ptr [{pair}]{{1to16}}",
            sum = inout(zmm_reg) out,
            a = in(zmm_reg) a,
            pair = in(reg) pair,
            options(readonly, nostack, preserves_flags)
        );
    }
    out
}

/// Loads from references to arrays of the full width.
macro_rules! loads {
    ($($name:ident: $from:ty => $to:ty, $intrinsic:ident;)*) => {$(
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
        fn $name(from: &$from) -> $to {
            const { assert!(size_of::<$from>() == size_of::<$to>()) };
            // SAFETY: as many bytes can be read as are loaded, and no alignment is asked for.
            unsafe { $intrinsic(from.as_ptr().cast()) }
        }
    )*};
}

loads! {
    load_16_bytes: [u8; 16] => __m128i, _mm_loadu_si128;
    load_32_bytes: [u8; 32] => __m256i, _mm256_loadu_si256;
    load_16_i16: [i16; 16] => __m256i, _mm256_loadu_si256;
    load_64_bytes: [u8; 64] => __m512i, _mm512_loadu_si512;
    load_64_i8: [i8; 64] => __m512i, _mm512_loadu_si512;
    load_32_i16: [[i16; 16]; 2] => __m512i, _mm512_loadu_si512;
    load_4_f32: [f32; 4] => __m128, _mm_loadu_ps;
    load_8_f32: [f32; 8] => __m256, _mm256_loadu_ps;
    load_16_f32: [f32; 16] => __m512, _mm512_loadu_ps;
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn to_array(v: __m512) -> [f32; 16] {
    let mut out = [0f32; 16];
    // SAFETY: 64 bytes can be written, and no alignment is asked for.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) };
    out
}

/// Lanes 0..8 from `low`, 8..16 from `high`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn join(low: __m256i, high: __m256i) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// Lanes 0..8 from `low`, 8..16 from `high`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn join_ps(low: __m256, high: __m256) -> __m512 {
    _mm512_castsi512_ps(join(_mm256_castps_si256(low), _mm256_castps_si256(high)))
}

/// 16 bytes of each of sixteen rows as four registers of 32-bit lanes: lane `r` of register `k` has row `r`'s
/// bytes `4 k .. 4 k + 4`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn columns(rows: [&[u8; 16]; 16]) -> [__m512i; 4] {
    // Rows i, i + 4, i + 8, i + 12 in quarters of their own, as the unpacking below stays within quarters.
    let [a, b, c, d] = array!(4, |i| {
        let v = _mm512_castsi128_si512(load_16_bytes(rows[i]));
        let v = _mm512_inserti32x4::<1>(v, load_16_bytes(rows[i + 4]));
        let v = _mm512_inserti32x4::<2>(v, load_16_bytes(rows[i + 8]));
        _mm512_inserti32x4::<3>(v, load_16_bytes(rows[i + 12]))
    });
    let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab_low, cd_low),
        _mm512_unpackhi_epi64(ab_low, cd_low),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// Sixteen f16 values as f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn widen_f16(values: [[u8; 2]; 16]) -> __m512 {
    _mm512_cvtph_ps(load_32_bytes(values.as_flattened().first_chunk().unwrap_or(&[0; 32])))
}

/// The sums over four registers' quarters: in quarter `q` the sums of `a`'s, `b`'s, `c`'s and `d`'s lanes `4
/// q .. 4 q + 4`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn sum_quarters([a, b, c, d]: [__m512i; 4]) -> __m512i {
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
}

/// [`crate::quant::tree16`] of the lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn tree16(l: __m512) -> f32 {
    let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(l)));
    avx2::tree8(_mm256_add_ps(_mm512_castps512_ps256(l), high))
}
