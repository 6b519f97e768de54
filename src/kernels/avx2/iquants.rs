//! The IQ formats of 1 to 3 bits in registers: points of grids, looked up eight weights at a time.

use std::arch::x86_64::*;

use super::legacy::bytes_of_bits;
use super::super_blocks::{Mins, Scales, SuperBlock, Unpacked};
use super::{load_16_bytes, load_u8};
use crate::quant::{
    BlockIQ1M, BlockIQ1S, BlockIQ2S, BlockIQ2XS, BlockIQ2XXS, BlockIQ3S, BlockIQ3XXS, GridBlock,
};

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn register([a, b, c, d]: [u64; 4]) -> __m256i {
    _mm256_setr_epi64x(a as i64, b as i64, c as i64, d as i64)
}

/// `2 s + 1`
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn odd_words(s: __m128i) -> __m128i {
    _mm_or_si128(_mm_slli_epi16::<1>(s), _mm_set1_epi16(1))
}

/// The scales in the nibbles of eight bytes, each of 16 weights.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scales_in_nibbles(scales: &[u8; 8]) -> Scales {
    let both = _mm_cvtsi64_si128(i64::from_le_bytes(*scales));
    let bytes = _mm_and_si128(_mm_unpacklo_epi8(both, _mm_srli_epi16::<4>(both)), _mm_set1_epi8(15));
    Scales::of_16_bytes(_mm_or_si128(_mm_add_epi8(bytes, bytes), _mm_set1_epi8(1)))
}

/// Signs from a bit each: 1 or -1.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn signs_of_bits(signs: &[u8; 32], j: usize) -> __m256i {
    let bits = array!(4, |l| signs[4 * j + l]);
    _mm256_or_si256(bytes_of_bits(bits), _mm256_set1_epi8(1))
}

/// A format of magnitudes and signs.
macro_rules! signed {
    ($block:ident, chain: $chain:literal, |$self:ident, $j:ident| $signs:expr, $scales:block) => {
        impl SuperBlock for $block {
            const SIGNED: bool = true;
            const CHAIN: usize = $chain;
            const UNIT: f32 = <$block as GridBlock>::UNIT;

            #[inline(always)]
            fn slice(bytes: &[u8]) -> &[$block] {
                $block::slice(bytes)
            }

            #[inline(always)]
            fn d(&self) -> [[u8; 2]; 2] {
                [self.d, [0; 2]]
            }

            #[inline(always)]
            unsafe fn unpack(&$self) -> Unpacked {
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    Unpacked {
                        q: array!(8, |j| register($self.points(j))),
                        signs: array!(8, |$j| $signs),
                        scales: $scales,
                        group_mins: _mm256_setzero_si256(),
                    }
                }
            }
        }
    };
}

// 2 * 2 * 43 * 127 = 21844
signed!(BlockIQ2XXS, chain: 2, |self, j| register(GridBlock::signs(self, j)), {
    let (first, last) = self.qs.as_flattened().split_at(32);
    let words = |bytes: &[u8]| _mm256_srli_epi64::<60>(load_u8(bytes.first_chunk().unwrap_or(&[0; 32])));
    // Scales 0, 1, 4, 5 in one half, 2, 3, 6, 7 in the other, as i32.
    let both = _mm256_packs_epi32(words(first), words(last));
    let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(both);
    let words = _mm_packs_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
    Scales::of_8_words(odd_words(words))
});
signed!(BlockIQ2XS, chain: 2, |self, j| register(GridBlock::signs(self, j)), {
    scales_in_nibbles(&self.scales)
});
signed!(BlockIQ2S, chain: 2, |self, j| signs_of_bits(&self.signs, j), { scales_in_nibbles(&self.scales) });
// 2 * 2 * 62 * 127 = 31496
signed!(BlockIQ3XXS, chain: 2, |self, j| register(GridBlock::signs(self, j)), {
    let words = load_u8(self.signs.as_flattened().first_chunk().unwrap_or(&[0; 32]));
    let scales = _mm256_srli_epi32::<28>(words);
    let words = _mm_packs_epi32(_mm256_castsi256_si128(scales), _mm256_extracti128_si256::<1>(scales));
    Scales::of_8_words(odd_words(words))
});
// 4 * 2 * 15 * 127 = 15240
signed!(BlockIQ3S, chain: 4, |self, j| signs_of_bits(&self.signs, j), {
    let both = _mm_cvtsi32_si128(i32::from_le_bytes(self.scales));
    let bytes = _mm_and_si128(_mm_unpacklo_epi8(both, _mm_srli_epi16::<4>(both)), _mm_set1_epi8(15));
    Scales::of_8_words(odd_words(_mm_cvtepu8_epi16(bytes)))
});

/// IQ1: nine is added to the weights, `8 t + e`; the grid has `8 t + 8`.
macro_rules! ternary {
    ($block:ident, |$self:ident, $j:ident| $signs:expr, $scales:block) => {
        impl SuperBlock for $block {
            const MINS: Mins = Mins::Integer;
            const CHAIN: usize = 4; // 4 * 2 * 18 * 127 = 18288
            const UNIT: f32 = <$block as GridBlock>::UNIT;

            #[inline(always)]
            fn slice(bytes: &[u8]) -> &[$block] {
                $block::slice(bytes)
            }

            #[inline(always)]
            fn d(&self) -> [[u8; 2]; 2] {
                [GridBlock::d(self), [0; 2]]
            }

            #[inline(always)]
            unsafe fn unpack(&$self) -> Unpacked {
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    let one = _mm256_set1_epi8(1);
                    let q = array!(8, |$j| {
                        _mm256_add_epi8(register($self.points($j)), _mm256_add_epi8($signs, one))
                    });
                    let scales: Scales = $scales;
                    let nine = _mm256_mullo_epi16(scales.groups, _mm256_set1_epi16(9));
                    Unpacked { q, signs: q, scales, group_mins: nine }
                }
            }
        }
    };
}

ternary!(BlockIQ1S, |self, j| _mm256_set1_epi8(1 - 2 * (self.qh[j][1] >> 7) as i8), {
    let words = load_16_bytes(self.qh.as_flattened().first_chunk().unwrap_or(&[0; 16]));
    Scales::of_8_words(odd_words(_mm_and_si128(_mm_srli_epi16::<12>(words), _mm_set1_epi16(7))))
});
ternary!(BlockIQ1M, |self, j| register(GridBlock::signs(self, j)), {
    // Each word four times; then each of its fields moved to the top.
    let words = _mm_cvtsi64_si128(i64::from_le_bytes(array!(8, |i| self.scales[i / 2][i % 2])));
    let words =
        _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(words), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
    let spread = _mm256_setr_epi8(
        0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3,
    );
    let up = _mm256_set1_epi64x(0x0010_0080_0400_2000);
    let fields = _mm256_mullo_epi16(_mm256_shuffle_epi8(words, spread), up);
    let s = _mm256_srli_epi16::<13>(fields);
    let odd = _mm256_or_si256(_mm256_add_epi16(s, s), _mm256_set1_epi16(1));
    let bytes = _mm_packs_epi16(_mm256_castsi256_si128(odd), _mm256_extracti128_si256::<1>(odd));
    Scales::of_16_bytes(bytes)
});
