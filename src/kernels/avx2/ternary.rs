//! TQ1_0 and TQ2_0 in registers: one is added to the weights.

use std::arch::x86_64::*;

use super::kquants::two_bits;
use super::places::Places;
use super::super_blocks::{Mins, Scales, SuperBlock, Unpacked};
use super::{load_16_bytes, load_u8, opaque};
use crate::quant::{BlockTQ1_0, BlockTQ2_0};

/// A format whose scales are all one.
macro_rules! ternary {
    ($block:ident, |$self:ident| $weights:expr) => {
        impl SuperBlock for $block {
            const MINS: Mins = Mins::Integer;
            const CHAIN: usize = 4;
            const NO_SCALES: bool = true; // 8 * 2 * 2 * 127 = 4064

            #[inline(always)]
            unsafe fn unpack(&$self, _: &Places) -> Unpacked {
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    let q = $weights;
                    let one = _mm256_set1_epi16(1);
                    Unpacked { q, signs: q, scales: Scales { spread: one, groups: one }, group_mins: one }
                }
            }
        }
    };
}

ternary!(BlockTQ2_0, |self| two_bits(&self.qs));
ternary!(BlockTQ1_0, |self| {
    let (first, last) = self.qs.split_at(32);
    let first = digits(load_u8(first.first_chunk().unwrap_or(&[0; 32])));
    // The middle bytes have two digits a register; the fifth shares one with the high bytes' four.
    let middle = load_16_bytes(last.first_chunk().unwrap_or(&[0; 16]));
    let thrice = _mm_add_epi8(middle, _mm_add_epi8(middle, middle));
    let middle = _mm256_set_m128i(thrice, middle);
    let powers = _mm256_setr_epi16(1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27);
    let high = _mm256_cvtepu8_epi16(_mm_set1_epi32(i32::from_le_bytes(self.qh)));
    let high = _mm256_and_si256(_mm256_mullo_epi16(high, powers), _mm256_set1_epi16(0xff));
    let high = _mm_packus_epi16(_mm256_castsi256_si128(high), _mm256_extracti128_si256::<1>(high));
    let nine = |v| times_3_each(times_3_each(v));
    let [a, b, c] = [middle, nine(middle), nine(nine(middle))];
    let end = _mm256_inserti128_si256::<1>(c, high);
    [first[0], first[1], first[2], first[3], first[4], digit(biased(a)), digit(biased(b)), digit(biased(end))]
});

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn times_3_each(bytes: __m256i) -> __m256i {
    // Kept from being made one multiplication with the next, which bytes do not have.
    opaque(_mm256_add_epi8(bytes, _mm256_add_epi8(bytes, bytes)))
}

/// 128 less, so that unsigned bytes compare as signed ones. Multiplied by 3 they are still 128 less.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn biased(bytes: __m256i) -> __m256i {
    _mm256_xor_si256(bytes, _mm256_set1_epi8(-128))
}

/// The first digit of biased bytes: 3/256 of a byte, rounded down, is 1 from 86 on and 2 from 171 on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn digit(bytes: __m256i) -> __m256i {
    let one = _mm256_cmpgt_epi8(bytes, _mm256_set1_epi8((85 - 128) as i8));
    let two = _mm256_cmpgt_epi8(bytes, _mm256_set1_epi8((170 - 128) as i8));
    _mm256_abs_epi8(_mm256_add_epi8(one, two))
}

/// The five digits of each byte.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn digits(bytes: __m256i) -> [__m256i; 5] {
    let mut bytes = biased(bytes);
    let mut all = [_mm256_setzero_si256(); 5];
    for digit_of in &mut all {
        *digit_of = digit(bytes);
        bytes = times_3_each(bytes);
    }
    all
}
