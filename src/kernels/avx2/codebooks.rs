//! IQ4_NL, IQ4_XS, MXFP4, NVFP4 (nibbles that are places in a table) and Q1_0, Q2_0 in registers.

use std::arch::x86_64::*;

use super::blocks32::Block;
use super::legacy::{bytes_of_bits, nibbles};
use super::places::Places;
use super::super_blocks::{Scales, SuperBlock, Unpacked};
use super::{load_16_bytes, load_f32, widen_f16, word_of};
use crate::quant::{
    BlockIQ4NL, BlockIQ4XS, BlockMXFP4, BlockNVFP4, BlockQ1_0, BlockQ2_0, FP4_VALUES, IQ4_VALUES,
    half_of_e8m0, half_of_ue4m3,
};

/// The values of places below 16.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn values(places: __m256i, table: &[i8; 16]) -> __m256i {
    let table = load_16_bytes(&array!(16, |i| table[i] as u8));
    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), places)
}

/// The values of floats of 4 bits, 12 added.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fp4_values(places: __m256i) -> __m256i {
    const TABLE: [i8; 16] = {
        let mut table = FP4_VALUES;
        let mut i = 0;
        while i < 16 {
            table[i] += 12;
            i += 1;
        }
        table
    };
    values(places, &TABLE)
}

/// A format from its weights and scales.
macro_rules! block {
    ($block:ident, offset: $offset:literal, |$self:ident, $p:ident| $weights:expr, |$blocks:ident| $scales:expr) => {
        impl Block for $block {
            const SIGNED: bool = $offset == 0;
            const OFFSET: i16 = $offset;

            #[inline(always)]
            unsafe fn part(&$self, $p: usize) -> __m256i {
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    $weights
                }
            }

            #[inline(always)]
            unsafe fn scales($blocks: &[$block]) -> [__m256; 2] {
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    $scales
                }
            }
        }
    };
}

block!(
    BlockIQ4NL, offset: 0,
    |self, _p| values(nibbles(&self.qs), &IQ4_VALUES),
    |blocks| [widen_f16(array!(8, |b| blocks[b].d)), _mm256_setzero_ps()]
);
block!(
    BlockMXFP4, offset: 12,
    |self, _p| fp4_values(nibbles(&self.qs)),
    |blocks| [load_f32(&array!(8, |b| half_of_e8m0(blocks[b].e))), _mm256_setzero_ps()]
);
block!(
    BlockNVFP4, offset: 12,
    |self, p| {
        let bytes = _mm256_cvtepu8_epi16(load_16_bytes(self.qs.as_chunks().0.get(p).unwrap_or(&[0; 16])));
        // Of 8 bytes the low nibbles, then the high ones.
        let both = _mm256_or_si256(bytes, _mm256_slli_epi16::<4>(bytes));
        let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
        let places = _mm256_and_si256(_mm256_shuffle_epi8(both, order), _mm256_set1_epi8(15));
        fp4_values(places)
    },
    |blocks| array!(2, |half| load_f32(&array!(8, |u| half_of_ue4m3(blocks[u / 2].d[u % 2 * 2 + half]))))
);
block!(
    BlockQ1_0, offset: 1,
    |self, p| {
        let set = bytes_of_bits(word_of(&self.qs, p));
        _mm256_and_si256(set, _mm256_set1_epi8(2))
    },
    |blocks| [widen_f16(array!(8, |u| blocks[u / 4].d)), _mm256_setzero_ps()]
);
block!(
    BlockQ2_0, offset: 1,
    |self, p| {
        let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(self.qs.as_chunks().0[p]));
        // Each byte four times, a field at a time at the bottom.
        let twice = _mm_unpacklo_epi8(bytes, bytes);
        let four = _mm256_set_m128i(_mm_unpackhi_epi16(twice, twice), _mm_unpacklo_epi16(twice, twice));
        let fields = _mm256_and_si256(four, _mm256_set1_epi32(0xc0_30_0c_03_u32 as i32));
        let table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 3, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0));
        // The upper fields come down to where the lower ones are.
        let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(fields), _mm256_set1_epi8(15));
        let lower = _mm256_and_si256(fields, _mm256_set1_epi8(15));
        _mm256_shuffle_epi8(table, _mm256_or_si256(upper, lower))
    },
    |blocks| [widen_f16(array!(8, |u| blocks[u / 2].d)), _mm256_setzero_ps()]
);

impl SuperBlock for BlockIQ4XS {
    const SIGNED: bool = true;
    const CHAIN: usize = 1; // 2 * 127 * 127 = 32258

    #[inline(always)]
    unsafe fn unpack(&self, _: &Places) -> Unpacked {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let (qs, _) = self.qs.as_chunks::<16>();
            let signs = array!(8, |j| values(nibbles(&qs[j]), &IQ4_VALUES));
            let low = _mm_cvtsi32_si128(i32::from_le_bytes(self.scales_l));
            let low = _mm_and_si128(_mm_unpacklo_epi8(low, _mm_srli_epi16::<4>(low)), _mm_set1_epi8(15));
            // Each field of two bits moved to the top of a word.
            let up = _mm_setr_epi16(1 << 14, 1 << 12, 1 << 10, 1 << 8, 1 << 6, 1 << 4, 1 << 2, 1);
            let high = _mm_mullo_epi16(_mm_set1_epi16(i16::from_le_bytes(self.scales_h)), up);
            let high = _mm_slli_epi16::<4>(_mm_srli_epi16::<14>(high));
            let words = _mm_or_si128(_mm_cvtepu8_epi16(low), high);
            Unpacked {
                q: array!(8, |j| _mm256_abs_epi8(signs[j])),
                signs,
                scales: Scales::of_8_words(_mm_sub_epi16(words, _mm_set1_epi16(32))),
                group_mins: _mm256_setzero_si256(),
            }
        }
    }
}
