//! The IQ formats of 1 to 3 bits in registers: points of grids, looked up eight weights at a time.

use std::arch::x86_64::*;

use super::legacy::{bytes_of_bits, bytes_of_dword};
use super::places::Places;
use super::super_blocks::{Mins, Scales, SuperBlock, Unpacked};
use super::{load_16_bytes, load_u8, opaque, word_of};
use crate::quant::grids::{IQ1_GRID, IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID, IQ3_S_GRID, IQ3_XXS_GRID};
use crate::quant::{BlockIQ1M, BlockIQ1S, BlockIQ2S, BlockIQ2XS, BlockIQ2XXS, BlockIQ3S, BlockIQ3XXS};

/// Four points of eight weights.
///
/// # Safety
/// All indices must be below `N`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn points_of_8<const N: usize>(grid: &[u64; N], [a, b, c, d]: [usize; 4]) -> __m256i {
    debug_assert!(a < N && b < N && c < N && d < N);
    // SAFETY: in bounds by the caller's promise.
    let two = |a, b| unsafe {
        let at = grid.as_ptr().cast::<f64>();
        _mm_loadh_pd(_mm_load_sd(at.add(a)), at.add(b))
    };
    _mm256_castpd_si256(_mm256_set_m128d(two(c, d), two(a, b)))
}

/// Eight points of four weights.
///
/// # Safety
/// All indices must be below `N`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn points_of_4<const N: usize>(grid: &[u32; N], at: [usize; 8]) -> __m256i {
    debug_assert!(at.iter().all(|at| *at < N));
    // SAFETY: in bounds by the caller's promise.
    let [a, b, c, d, e, f, g, h] = array!(8, |i| unsafe { *grid.get_unchecked(at[i]) } as i32);
    _mm256_setr_epi32(a, b, c, d, e, f, g, h)
}

/// A byte of 32 to a word of 16: those from `16 part` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn words_of(bytes: &[u8], part: usize) -> __m256i {
    _mm256_cvtepu8_epi16(load_16_bytes(bytes.as_chunks().0.get(part).unwrap_or(&[0; 16])))
}

/// Eight signs a byte from seven, which are in the words' bits from 0, 7, 14 and 21 on: the eighth makes
/// their number even.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn four_times_seven(words: __m256i) -> [__m256i; 2] {
    let field = |v, mask| _mm256_and_si256(v, _mm256_set1_epi32(mask));
    let (a, b) = (field(words, 0x7f), field(_mm256_slli_epi32::<1>(words), 0x7f00));
    let c = field(_mm256_slli_epi32::<2>(words), 0x7f_0000);
    let d = field(_mm256_slli_epi32::<3>(words), 0x7f00_0000);
    halves_twice(with_eighth(_mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d))))
}

/// Each half in both.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn halves_twice(v: __m256i) -> [__m256i; 2] {
    // Kept from being taken apart again: a dword costs one shuffle then.
    [opaque(_mm256_permute2x128_si256::<0x00>(v, v)), opaque(_mm256_permute2x128_si256::<0x11>(v, v))]
}

/// Sets the highest bit of each byte, which is clear, where the number of the others is odd.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn with_eighth(bytes: __m256i) -> __m256i {
    // Bits that come from the next byte do not reach the lowest one.
    let odd = _mm256_xor_si256(bytes, _mm256_srli_epi32::<4>(bytes));
    let odd = _mm256_xor_si256(odd, _mm256_srli_epi32::<2>(odd));
    let odd = _mm256_xor_si256(odd, _mm256_srli_epi32::<1>(odd));
    _mm256_or_si256(bytes, _mm256_and_si256(_mm256_slli_epi32::<7>(odd), _mm256_set1_epi8(-128)))
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

/// Scales of 32 weights in the highest four bits of words.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scales_on_top(words: __m256i) -> Scales {
    let scales = _mm256_srli_epi32::<28>(words);
    Scales::of_8_words(odd_words(_mm_packs_epi32(
        _mm256_castsi256_si128(scales),
        _mm256_extracti128_si256::<1>(scales),
    )))
}

/// Signs from a byte each, of zeros or ones: 1 or -1.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn signs_of(bytes: __m256i) -> __m256i {
    _mm256_or_si256(bytes, _mm256_set1_epi8(1))
}

/// The places of a block's points, in registers of sixteen words.
macro_rules! places {
    ($self:ident, $places:expr) => {
        #[inline(always)]
        unsafe fn places(&$self, to: &mut Places) {
            // SAFETY: the caller vouches for the CPU.
            unsafe { to.set($places) }
        }
    };
}

/// A format of magnitudes and signs: in one expression its 32 weights `j` (for which a block makes ready),
/// its signs, its scales.
macro_rules! signed {
    (
        $block:ident, chain: $chain:literal, $(places: |$own:ident| $places:expr,)?
        |$self:ident, $at:pat_param, $j:ident| { $($ready:stmt;)* } => $points:expr, $signs:expr, $scales:expr
    ) => {
        impl SuperBlock for $block {
            const SIGNED: bool = true;
            const CHAIN: usize = $chain;

            $(places!($own, $places);)?

            #[inline(always)]
            unsafe fn unpack(&$self, $at: &Places) -> Unpacked {
                // SAFETY: the caller vouches for the CPU and the places; those are bytes or masked to the
                // grid's size.
                unsafe {
                    $($ready)*
                    Unpacked {
                        q: array!(8, |$j| $points),
                        signs: array!(8, |$j| signs_of($signs)),
                        scales: $scales,
                        group_mins: _mm256_setzero_si256(),
                    }
                }
            }
        }
    };
}

// 2 * 2 * 43 * 127 = 21844
signed!(BlockIQ2XXS, chain: 2, |self, _, j| {
    let (first, last) = self.qs.as_flattened().split_at(32);
    let words = |bytes: &[u8]| _mm256_castsi256_ps(load_u8(bytes.first_chunk().unwrap_or(&[0; 32])));
    // Of every two words the second: of sub-blocks 0, 1, 4, 5 in one half, 2, 3, 6, 7 in the other.
    let words = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(words(first), words(last)));
    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
    let signs = four_times_seven(words);
} => points_of_8(&IQ2_XXS_GRID, array!(4, |l| usize::from(self.qs[j][l]))), bytes_of_dword(signs[j / 4], j % 4), scales_on_top(words));
signed!(BlockIQ2XS, chain: 2, places: |self| array!(2, |half| {
    let words = load_u8(self.qs.as_flattened().as_chunks().0.get(half).unwrap_or(&[0; 32]));
    _mm256_and_si256(words, _mm256_set1_epi16(511))
}), |self, at, j| {
    let words = array!(2, |half| load_u8(self.qs.as_flattened().as_chunks().0.get(half).unwrap_or(&[0; 32])));
    let seven = _mm256_packus_epi16(_mm256_srli_epi16::<9>(words[0]), _mm256_srli_epi16::<9>(words[1]));
    let signs = halves_twice(with_eighth(_mm256_permute4x64_epi64::<0b11_01_10_00>(seven)));
} => points_of_8(&IQ2_XS_GRID, at.four(j)), bytes_of_dword(signs[j / 4], j % 4), scales_in_nibbles(&self.scales));
signed!(BlockIQ2S, chain: 2, places: |self| {
    let bytes = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(i64::from_le_bytes(self.qh)));
    let up = _mm256_set1_epi64x(0x0004_0010_0040_0100);
    array!(2, |half| {
        let high = _mm256_mullo_epi16(four_times(bytes, half), up);
        _mm256_or_si256(words_of(&self.qs, half), _mm256_and_si256(high, _mm256_set1_epi16(0x300)))
    })
}, |self, at, j| {} => points_of_8(&IQ2_S_GRID, at.four(j)), bytes_of_bits(word_of(&self.signs, j)), scales_in_nibbles(&self.scales));
// 2 * 2 * 62 * 127 = 31496
signed!(BlockIQ3XXS, chain: 2, |self, _, j| {
    let words = load_u8(self.signs.as_flattened().first_chunk().unwrap_or(&[0; 32]));
    let signs = four_times_seven(words);
} => points_of_4(&IQ3_XXS_GRID, array!(8, |i| usize::from(self.qs[8 * j + i]))), bytes_of_dword(signs[j / 4], j % 4), scales_on_top(words));
// 4 * 2 * 15 * 127 = 15240
signed!(BlockIQ3S, chain: 4, places: |self| {
    let high = _mm256_set1_epi64x(i64::from_le_bytes(self.qh));
    // Byte `j` to the eight words of sub-block `j`, a bit of it to bit 8.
    let spread = _mm256_setr_epi8(
        0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1,
    );
    let up = _mm256_setr_epi16(256, 128, 64, 32, 16, 8, 4, 2, 256, 128, 64, 32, 16, 8, 4, 2);
    array!(4, |part| {
        let own = _mm256_add_epi8(spread, _mm256_set1_epi16(2 * part as i16));
        let own = _mm256_mullo_epi16(_mm256_shuffle_epi8(high, own), up);
        _mm256_or_si256(words_of(&self.qs, part), _mm256_and_si256(own, _mm256_set1_epi16(0x100)))
    })
}, |self, at, j| {
    let both = _mm_cvtsi32_si128(i32::from_le_bytes(self.scales));
    let nibbles = _mm_and_si128(_mm_unpacklo_epi8(both, _mm_srli_epi16::<4>(both)), _mm_set1_epi8(15));
} => points_of_4(&IQ3_S_GRID, at.eight(j)), bytes_of_bits(word_of(&self.signs, j)), Scales::of_8_words(odd_words(_mm_cvtepu8_epi16(nibbles))));

/// Places of IQ1's points: their low bits, and of words that are a sub-block's each, the first three moved up
/// by a product, the last as given, the three bits above.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn iq1_places(low: __m256i, words: __m256i, up: i64, last: __m256i) -> __m256i {
    let first = _mm256_mullo_epi16(words, _mm256_set1_epi64x(up));
    let first = _mm256_and_si256(first, _mm256_set1_epi64x(0x0000_0700_0700_0700));
    let last = _mm256_and_si256(last, _mm256_set1_epi64x(0x0700_0000_0000_0000));
    _mm256_or_si256(low, _mm256_or_si256(first, last))
}

/// Word `4 half + i / 4` of eight to each of four words `i`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn four_times(words: __m128i, half: usize) -> __m256i {
    let spread = _mm256_setr_epi8(
        0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 4, 5, 4, 5, 4, 5, 4, 5, 6, 7, 6, 7, 6, 7, 6, 7,
    );
    let spread = _mm256_add_epi8(spread, _mm256_set1_epi8(8 * half as i8));
    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(words), spread)
}

/// Masks for `_mm256_shuffle_epi8` that spread each of words 0 to 3, or 4 to 7, over eight bytes.
static EIGHTS: [[u8; 32]; 2] = {
    let mut masks = [[0; 32]; 2];
    let mut i = 0;
    while i < 64 {
        masks[i / 32][i % 32] = (i / 8 * 2) as u8;
        i += 1;
    }
    masks
};

/// IQ1: weights are `8 t + e`; the grid has `8 t + 8`. Weights and mins in one expression each.
macro_rules! ternary {
    (
        $block:ident, places: |$own:ident| $places:expr,
        |$self:ident, $at:ident, $j:ident| { $($ready:stmt;)* } => $weights:expr, $scales:expr, $mins:expr
    ) => {
        impl SuperBlock for $block {
            const MINS: Mins = Mins::Integer;
            const CHAIN: usize = 4; // 4 * 2 * 18 * 127 = 18288

            places!($own, $places);

            #[inline(always)]
            unsafe fn unpack(&$self, $at: &Places) -> Unpacked {
                // SAFETY: the caller vouches for the CPU and the places, which have eleven bits.
                unsafe {
                    $($ready)*
                    let q = array!(8, |$j| $weights);
                    let scales: Scales = $scales;
                    let group_mins = _mm256_mullo_epi16(scales.groups, $mins);
                    Unpacked { q, signs: q, scales, group_mins }
                }
            }
        }
    };
}

// `e` belongs to a whole sub-block, hence to the mins: `8 - e` is 7, or 9 where a sub-block's highest bit is
// set.
ternary!(BlockIQ1S, places: |self| array!(2, |half| {
    let words = four_times(load_16_bytes(self.qh.as_flattened().first_chunk().unwrap_or(&[0; 16])), half);
    iq1_places(words_of(&self.qs, half), words, 0x0004_0020_0100, _mm256_srli_epi16::<1>(words))
}), |self, at, j| {
    let words = load_16_bytes(self.qh.as_flattened().first_chunk().unwrap_or(&[0; 16]));
    let scales = _mm_and_si128(_mm_srli_epi16::<12>(words), _mm_set1_epi16(7));
    let set = _mm_srai_epi16::<15>(words);
    let mins = Scales::of_8_words(_mm_sub_epi16(_mm_set1_epi16(7), _mm_add_epi16(set, set)));
} => points_of_8(&IQ1_GRID, at.four(j)), Scales::of_8_words(odd_words(scales)), mins.groups);
// `e` belongs to eight weights: `e + 1` is added to them, nine is the min.
ternary!(BlockIQ1M, places: |self| array!(2, |half| {
    let words = four_times(load_16_bytes(&self.qh), half);
    iq1_places(words_of(&self.qs, half), words, 0x0001_0010_0100, _mm256_srli_epi16::<4>(words))
}), |self, at, j| {
    // Where the highest bit of a nibble is set 0, elsewhere 2, for eight weights each; a half in both.
    let more = array!(2, |half| {
        let words = four_times(load_16_bytes(&self.qh), half);
        let top = _mm256_mullo_epi16(words, _mm256_set1_epi64x(0x0001_0010_0100_1000));
        let set = _mm256_srai_epi16::<15>(top);
        halves_twice(_mm256_add_epi16(_mm256_add_epi16(set, set), _mm256_set1_epi16(2)))
    });
    // Each word of scales four times; then each of its fields moved to the top.
    let scales = _mm_cvtsi64_si128(i64::from_le_bytes(*self.scales.as_flattened().first_chunk().unwrap_or(&[0; 8])));
    let fields = _mm256_mullo_epi16(four_times(scales, 0), _mm256_set1_epi64x(0x0010_0080_0400_2000));
    let s = _mm256_srli_epi16::<13>(fields);
    let odd = _mm256_or_si256(_mm256_add_epi16(s, s), _mm256_set1_epi16(1));
    let bytes = _mm_packs_epi16(_mm256_castsi256_si128(odd), _mm256_extracti128_si256::<1>(odd));
} => {
    let points = points_of_8(&IQ1_GRID, at.four(j));
    _mm256_add_epi8(points, _mm256_shuffle_epi8(more[j / 4][j / 2 % 2], load_u8(&EIGHTS[j % 2])))
}, Scales::of_16_bytes(bytes), _mm256_set1_epi16(9));
