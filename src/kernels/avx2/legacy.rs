//! Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 in registers.

use std::arch::x86_64::*;

use super::blocks32::Block;
use super::{load_16_bytes, load_i8, load_u8, widen_f16};
use crate::quant::{BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0, PART};

/// A format whose blocks are one part: what its weights are, and which other scale it has beside `d`.
macro_rules! block {
    ($block:ident, signed: $signed:literal, offset: $offset:literal, mins: $mins:ident, |$self:ident| $weights:expr) => {
        impl Block for $block {
            const SIGNED: bool = $signed;
            const OFFSET: i16 = $offset;

            #[inline(always)]
            unsafe fn part(&$self, _: usize) -> __m256i {
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    $weights
                }
            }

            #[inline(always)]
            unsafe fn scales(blocks: &[$block]) -> [__m256; 2] {
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    [widen_f16(array!(8, |b| blocks[b].d)), block!(@min $mins blocks)]
                }
            }
        }
    };
    (@min true $blocks:ident) => { widen_f16(array!(8, |b| $blocks[b].m)) };
    (@min false $blocks:ident) => { _mm256_setzero_ps() };
}

block!(BlockQ4_0, signed: false, offset: 8, mins: false, |self| nibbles(&self.qs));
block!(BlockQ4_1, signed: false, offset: 0, mins: true, |self| nibbles(&self.qs));
block!(BlockQ5_0, signed: false, offset: 16, mins: false, |self| five_bits(&self.qs, self.qh));
block!(BlockQ5_1, signed: false, offset: 0, mins: true, |self| five_bits(&self.qs, self.qh));
block!(BlockQ8_0, signed: true, offset: 0, mins: false, |self| load_i8(&self.qs));

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn five_bits(qs: &[u8; PART / 2], qh: [u8; 4]) -> __m256i {
    let high = _mm256_and_si256(bytes_of_bits(u32::from_le_bytes(qh)), _mm256_set1_epi8(16));
    _mm256_or_si256(nibbles(qs), high)
}

/// Low nibbles in the lower half, high nibbles in the upper one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn nibbles(qs: &[u8; PART / 2]) -> __m256i {
    let both = _mm256_broadcastsi128_si256(load_16_bytes(qs));
    let both = _mm256_srlv_epi32(both, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}

/// Bit `i` in all bits of byte `i`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn bytes_of_bits(bits: u32) -> __m256i {
    bytes_of_dword(_mm256_set1_epi32(bits.cast_signed()), 0)
}

/// Bit `i` of dword `at`, which both halves have, in all bits of byte `i`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn bytes_of_dword(halves: __m256i, at: usize) -> __m256i {
    let spread = _mm256_shuffle_epi8(halves, load_u8(&BYTE_OF_BIT[at]));
    // All other bits set: all bits set where that one is.
    let others = _mm256_set1_epi64x(0x7fbf_dfef_f7fb_fdfe);
    _mm256_cmpeq_epi8(_mm256_or_si256(spread, others), _mm256_set1_epi8(-1))
}

static BYTE_OF_BIT: [[u8; 32]; 4] = {
    let mut bytes = [[0; 32]; 4];
    let mut i = 0;
    while i < 128 {
        bytes[i / 32][i % 32] = (i / 8) as u8;
        i += 1;
    }
    bytes
};
