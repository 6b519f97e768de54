//! Q4_K, Q5_K and Q6_K of eight rows at a time: packed as they are, rows are put side by side, and only then
//! their fields are taken apart. That is half of the work of doing it the other way round.

use std::arch::x86_64::*;

use zerocopy::{Immutable, IntoBytes};

use super::super_blocks::EightRows;
use super::{load_16_bytes, load_u8, widen_f16};
use crate::quant::{BlockQ4K, BlockQ5K, BlockQ6K};

/// 16 bytes of each of eight rows as four registers of 32-bit lanes: lane `r` of register `k` has row `r`'s
/// bytes `4 k .. 4 k + 4`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn columns(rows: [&[u8; 16]; 8]) -> [__m256i; 4] {
    // Rows i and i + 4 in halves of their own, as the unpacking below stays within halves.
    let [a, b, c, d] = array!(4, |i| {
        let low = _mm256_castsi128_si256(load_16_bytes(rows[i]));
        _mm256_inserti128_si256::<1>(low, load_16_bytes(rows[i + 4]))
    });
    let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab_low, cd_low),
        _mm256_unpackhi_epi64(ab_low, cd_low),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// [`columns`] of the rows' parts `c` of 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn columns_at(rows: &[&[[u8; 16]]; 8], c: usize) -> [__m256i; 4] {
    columns(array!(8, |r| &rows[r][c]))
}

/// Shuffles of each lane's bytes: words of byte `first[i]`, of which `at` tells whether it goes to the low or
/// to the high byte.
const fn words(first: [u8; 2], at: usize) -> [u8; 32] {
    let mut shuffle = [0x80; 32];
    let mut i = 0;
    while i < 16 {
        shuffle[2 * i + at] = (i / 2 % 4 * 4) as u8 + first[i % 2];
        i += 1;
    }
    shuffle
}

/// Byte `i` in both words of a lane.
static TWICE: [[u8; 32]; 4] = [words([0, 0], 0), words([1, 1], 0), words([2, 2], 0), words([3, 3], 0)];
/// Bytes `2 i` and `2 i + 1` as words.
static PAIR: [[u8; 32]; 2] = [words([0, 1], 0), words([2, 3], 0)];
/// The same as the words' high bytes.
static TWICE_HIGH: [[u8; 32]; 4] = [words([0, 0], 1), words([1, 1], 1), words([2, 2], 1), words([3, 3], 1)];
static PAIR_HIGH: [[u8; 32]; 2] = [words([0, 1], 1), words([2, 3], 1)];

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn shuffled(v: __m256i, shuffle: &[u8; 32]) -> __m256i {
    _mm256_shuffle_epi8(v, load_u8(shuffle))
}

/// The first 16 bytes of a block of Q4_K or Q5_K: `d`, `dmin`, scales and mins.
#[inline(always)]
fn head<B: IntoBytes + Immutable>(block: &B) -> &[u8; 16] {
    block.as_bytes().first_chunk().unwrap_or(&[0; 16])
}

/// The low words of all lanes, f16, as f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widened(words: __m256i) -> __m256 {
    let low = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
    let halves = _mm256_packus_epi32(low, low);
    _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b10_00>(halves)))
}

/// [`crate::quant::scales_and_mins`] of eight rows, each in a lane of its own: scales and mins 0..4 are in
/// the low 6 bits of `s` and `m`, of the others 4 bits in `rest` and 2 bits atop the first.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scales_and_mins(heads: [&[u8; 16]; 8], to: &mut EightRows) {
    let [d, s, m, rest] = columns(heads);
    let (four, two, six) = (_mm256_set1_epi8(0x0f), _mm256_set1_epi8(0x30), _mm256_set1_epi8(0x3f));
    let others = |rest, first| {
        let top = _mm256_and_si256(_mm256_srli_epi32::<2>(first), two);
        _mm256_or_si256(_mm256_and_si256(rest, four), top)
    };
    let scales = [_mm256_and_si256(s, six), others(rest, s)];
    let mins = [_mm256_and_si256(m, six), others(_mm256_srli_epi32::<4>(rest), m)];
    for i in 0..8 {
        let scale = shuffled(scales[i / 4], &TWICE[i % 4]);
        (to.scales[2 * i], to.scales[2 * i + 1]) = (scale, scale);
    }
    for p in 0..4 {
        to.mins[p] = shuffled(mins[p / 2], &PAIR[p % 2]);
    }
    to.d = widened(d);
    to.dmin = _mm256_xor_ps(widened(_mm256_srli_epi32::<16>(d)), _mm256_set1_ps(-0.0));
}

/// The low and the high nibbles of all bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles(bytes: __m256i) -> [__m256i; 2] {
    let low = _mm256_set1_epi8(0x0f);
    [_mm256_and_si256(bytes, low), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low)]
}

/// Bits `at` and above of all bytes, as far as the mask goes, as bits 4 and above.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bits_at_4<const MASK: i8>(bytes: __m256i, at: usize) -> __m256i {
    let down = _mm256_srlv_epi32(bytes, _mm256_set1_epi32(at as i32));
    _mm256_slli_epi16::<4>(_mm256_and_si256(down, _mm256_set1_epi8(MASK)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn q4_k(blocks: [&BlockQ4K; 8], to: &mut EightRows) {
    scales_and_mins(array!(8, |r| head(blocks[r])), to);
    let qs = array!(8, |r| blocks[r].qs.as_chunks::<16>().0);
    for c in 0..8 {
        for (k, bytes) in columns_at(&qs, c).into_iter().enumerate() {
            let at = c / 2 * 16 + c % 2 * 4 + k;
            [to.q[at], to.q[at + 8]] = nibbles(bytes);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn q5_k(blocks: [&BlockQ5K; 8], to: &mut EightRows) {
    scales_and_mins(array!(8, |r| head(blocks[r])), to);
    let qs = array!(8, |r| blocks[r].qs.as_chunks::<16>().0);
    let qh = array!(8, |r| blocks[r].qh.as_chunks::<16>().0);
    let bits = array!(2, |half| columns_at(&qh, half));
    for c in 0..8 {
        for (k, bytes) in columns_at(&qs, c).into_iter().enumerate() {
            let (j, at, bits) = (c / 2, c / 2 * 16 + c % 2 * 4 + k, bits[c % 2][k]);
            let [low, high] = nibbles(bytes);
            to.q[at] = _mm256_or_si256(low, bits_at_4::<1>(bits, 2 * j));
            to.q[at + 8] = _mm256_or_si256(high, bits_at_4::<1>(bits, 2 * j + 1));
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn q6_k(blocks: [&BlockQ6K; 8], to: &mut EightRows) {
    let ql = array!(8, |r| blocks[r].ql.as_chunks::<16>().0);
    let qh = array!(8, |r| blocks[r].qh.as_chunks::<16>().0);
    for half in 0..2 {
        let bits = array!(2, |i| columns_at(&qh, 2 * half + i));
        for c in 0..4 {
            for (k, bytes) in columns_at(&ql, 4 * half + c).into_iter().enumerate() {
                // Sub-blocks 0 and 1 of 32 in the low nibbles, 2 and 3 in the high ones.
                let (j, bits) = (c / 2, bits[c % 2][k]);
                let at = 32 * half + 8 * j + c % 2 * 4 + k;
                let [low, high] = nibbles(bytes);
                to.q[at] = _mm256_or_si256(low, bits_at_4::<3>(bits, 2 * j));
                to.q[at + 16] = _mm256_or_si256(high, bits_at_4::<3>(bits, 2 * j + 4));
            }
        }
    }
    let scales = columns(array!(8, |r| blocks[r].scales.as_bytes().first_chunk().unwrap_or(&[0; 16])));
    for g in 0..16 {
        to.scales[g] = _mm256_srai_epi16::<8>(shuffled(scales[g / 4], &TWICE_HIGH[g % 4]));
    }
    for p in 0..8 {
        // 32 times the scales.
        to.mins[p] = _mm256_srai_epi16::<3>(shuffled(scales[p / 2], &PAIR_HIGH[p % 2]));
    }
    to.d = widen_f16(array!(8, |r| blocks[r].d));
}
