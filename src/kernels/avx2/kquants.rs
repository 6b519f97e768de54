//! Q4_K, Q5_K and Q6_K with Q8_K.
//!
//! Weights are taken as unsigned: Q6_K's offset of 32 is a "min" of `32 * scale`, an integer as well, which the sums
//! of activations (`bsums`) turn into one multiply-add. Products of unsigned weights and activations
//! (at most 127) are added in i16 as far as they cannot overflow (`CHAIN`), then multiplied by the
//! sub-block's scale into i32.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::blocks::BlockKernel;
use super::{load_16_bytes, load_i8, load_i16, load_u8, prefetch, to_array, transpose8};
use crate::quant::{ActivationRow, BlockQ4K, BlockQ5K, BlockQ6K, Q8KRow, QK_K, scales_and_mins};

pub(super) struct KQuant<B>(PhantomData<B>);

/// A super-block in registers.
#[derive(Clone, Copy)]
pub(super) struct Unpacked {
    /// Weights in order, unsigned.
    q: [__m256i; 8],
    /// i16, word `j` of each half: the scale of that half of `q[j]`.
    scales: __m256i,
    /// i16: scales of the sixteen groups of 16 weights, in order.
    group_scales: __m256i,
    /// i16: mins of the sixteen groups of 16 weights, in order.
    group_mins: __m256i,
}

/// What the formats differ in.
pub(super) trait SuperBlock: Sized {
    /// Mins are in units of their own (`dmin`); otherwise in the scales' and part of the integer sum.
    const FLOAT_MINS: bool;
    /// How many products of two pairs may be added in i16: `CHAIN * 2 * max(q) * 127 < 2^15`.
    const CHAIN: usize;
    fn slice(bytes: &[u8]) -> &[Self];
    /// `[d, dmin]` as f16 bytes.
    fn d(&self) -> [[u8; 2]; 2];
    /// # Safety
    /// The CPU must have the features of this kernel set.
    unsafe fn unpack(&self) -> Unpacked;
}

/// Q4_K's and Q5_K's scales and mins with given weights.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpacked_with_mins(q: [__m256i; 8], packed: &[u8; 12]) -> Unpacked {
    let (scales, mins) = scales_and_mins(packed);
    let scales = _mm_cvtsi64_si128(i64::from_le_bytes(scales));
    let mins = _mm_cvtsi64_si128(i64::from_le_bytes(mins));
    Unpacked {
        q,
        scales: _mm256_broadcastsi128_si256(_mm_cvtepu8_epi16(scales)),
        group_scales: _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(scales, scales)),
        group_mins: _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(mins, mins)),
    }
}

/// Low and high nibbles of 4 x 32 bytes, in the order of the weights.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles(qs: &[u8; QK_K / 2]) -> [__m256i; 8] {
    let (qs, _) = qs.as_chunks::<32>();
    let mask = _mm256_set1_epi8(15);
    let mut q = [_mm256_setzero_si256(); 8];
    for j in 0..4 {
        let both = load_u8(&qs[j]);
        q[2 * j] = _mm256_and_si256(both, mask);
        q[2 * j + 1] = _mm256_and_si256(_mm256_srli_epi16::<4>(both), mask);
    }
    q
}

impl SuperBlock for BlockQ4K {
    const FLOAT_MINS: bool = true;
    const CHAIN: usize = 8; // 8 * 2 * 15 * 127 = 30480

    #[inline(always)]
    fn slice(bytes: &[u8]) -> &[BlockQ4K] {
        BlockQ4K::slice(bytes)
    }

    #[inline(always)]
    fn d(&self) -> [[u8; 2]; 2] {
        [self.d, self.dmin]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn unpack(&self) -> Unpacked {
        unpacked_with_mins(nibbles(&self.qs), &self.scales)
    }
}

impl SuperBlock for BlockQ5K {
    const FLOAT_MINS: bool = true;
    const CHAIN: usize = 4; // 4 * 2 * 31 * 127 = 31496

    #[inline(always)]
    fn slice(bytes: &[u8]) -> &[BlockQ5K] {
        BlockQ5K::slice(bytes)
    }

    #[inline(always)]
    fn d(&self) -> [[u8; 2]; 2] {
        [self.d, self.dmin]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn unpack(&self) -> Unpacked {
        let mut q = nibbles(&self.qs);
        let mut bits = load_u8(&self.qh);
        let bit = _mm256_set1_epi8(1);
        for q in &mut q {
            let high = _mm256_slli_epi16::<4>(_mm256_and_si256(bits, bit));
            *q = _mm256_or_si256(*q, high);
            bits = _mm256_srli_epi16::<1>(bits);
        }
        unpacked_with_mins(q, &self.scales)
    }
}

impl SuperBlock for BlockQ6K {
    const FLOAT_MINS: bool = false;
    const CHAIN: usize = 2; // 2 * 2 * 63 * 127 = 32004

    #[inline(always)]
    fn slice(bytes: &[u8]) -> &[BlockQ6K] {
        BlockQ6K::slice(bytes)
    }

    #[inline(always)]
    fn d(&self) -> [[u8; 2]; 2] {
        [self.d, [0; 2]]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn unpack(&self) -> Unpacked {
        let (ql, _) = self.ql.as_chunks::<32>();
        let (qh, _) = self.qh.as_chunks::<32>();
        let (low, high) = (_mm256_set1_epi8(0x0f), _mm256_set1_epi8(0x30));
        let mut q = [_mm256_setzero_si256(); 8];
        for half in 0..2 {
            let (l0, l1, h) = (load_u8(&ql[2 * half]), load_u8(&ql[2 * half + 1]), load_u8(&qh[half]));
            let lows = [l0, l1, _mm256_srli_epi16::<4>(l0), _mm256_srli_epi16::<4>(l1)];
            let highs = [_mm256_slli_epi16::<4>(h), _mm256_slli_epi16::<2>(h), h, _mm256_srli_epi16::<2>(h)];
            for j in 0..4 {
                q[4 * half + j] =
                    _mm256_or_si256(_mm256_and_si256(lows[j], low), _mm256_and_si256(highs[j], high));
            }
        }
        let scales = load_16_bytes(&array!(16, |i| self.scales[i] as u8));
        let even_odd = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
        let group_scales = _mm256_cvtepi8_epi16(scales);
        Unpacked {
            q,
            scales: _mm256_cvtepi8_epi16(_mm_shuffle_epi8(scales, even_odd)),
            group_scales,
            group_mins: _mm256_slli_epi16::<5>(group_scales), // at most 4096
        }
    }
}

/// Masks for `_mm256_shuffle_epi8` that spread word `j` over a half.
static SPREAD: [[u8; 32]; 8] = {
    let mut masks = [[0; 32]; 8];
    let mut i = 0;
    while i < 256 {
        masks[i / 32][i % 32] = (i / 32 * 2 + i % 2) as u8;
        i += 1;
    }
    masks
};

/// Eight rows of a super-block; lane `r` (of 32 bits) belongs to row `r`.
pub(super) struct Panel {
    /// Four weights each.
    q: [__m256i; QK_K / 4],
    /// The scale of 16 weights each, in both words.
    scales: [__m256i; QK_K / 16],
    /// The mins of two groups of 16 weights each.
    mins: [__m256i; QK_K / 32],
    d: __m256,
    /// Negative.
    dmin: __m256,
}

impl<B: SuperBlock> BlockKernel<8> for KQuant<B> {
    const PANEL_TOKENS: usize = 6;
    const TOKENS: usize = 4;

    type Row<'a> = Q8KRow<'a>;
    type Panel = Panel;
    type Lanes = [__m256; 1];

    #[inline(always)]
    fn row(x: ActivationRow<'_>) -> Q8KRow<'_> {
        x.q8_k()
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Q8KRow<'_>; T]) -> [f32; T] {
        let blocks = B::slice(weights);
        let n = blocks.len();
        let x = array!(T, |t| {
            let (qs, bsums) = (x[t].qs.as_chunks::<QK_K>().0, x[t].bsums.as_chunks::<16>().0);
            (&qs[..n], &bsums[..n], &x[t].d[..n])
        });
        let mut acc = [_mm_setzero_ps(); T];
        for (b, block) in blocks.iter().enumerate() {
            prefetch(block);
            // SAFETY: the caller vouches for the CPU.
            let w = unsafe { block.unpack() };
            let d = d_pair(block.d());
            for (acc, (qs, bsums, d_a)) in acc.iter_mut().zip(x) {
                *acc = block_dot::<B>(&w, d, &qs[b], &bsums[b], d_a[b], *acc);
            }
        }
        array!(T, |t| _mm_cvtss_f32(acc[t]))
    }

    #[inline(always)]
    fn units(row_bytes: usize) -> usize {
        row_bytes / size_of::<B>()
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn no_lanes() -> [__m256; 1] {
        [_mm256_setzero_ps()]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn unpack(rows: &[&[u8]; 8], unit: usize) -> Panel {
        let blocks: [&B; 8] = array!(8, |r| &B::slice(rows[r])[unit]);
        // SAFETY: the caller vouches for the CPU.
        let w: [Unpacked; 8] = array!(8, |r| unsafe { blocks[r].unpack() });
        let mut q = [_mm256_setzero_si256(); QK_K / 4];
        for (j, q) in q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *q = transpose8(array!(8, |r| w[r].q[j]));
        }
        let pairs = transpose8(array!(8, |r| w[r].group_scales));
        let both_low = _mm256_setr_epi8(
            0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13, 0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13,
            12, 13,
        );
        let both_high = _mm256_or_si256(both_low, _mm256_set1_epi8(2));
        let scales = array!(16, |g| {
            _mm256_shuffle_epi8(pairs[g / 2], if g % 2 == 0 { both_low } else { both_high })
        });
        let mins = transpose8(array!(8, |r| w[r].group_mins));
        let d = widen_f16(array!(8, |r| blocks[r].d()[0]));
        let dmin = widen_f16(array!(8, |r| blocks[r].d()[1]));
        Panel { q, scales, mins, d, dmin: _mm256_xor_ps(dmin, _mm256_set1_ps(-0.0)) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn accumulate<const T: usize>(
        panel: &Panel,
        x: [Q8KRow<'_>; T],
        unit: usize,
        lanes: &mut [[__m256; 1]; T],
    ) {
        let quads: [&[[i8; 4]]; T] = array!(T, |t| x[t].qs.as_chunks::<QK_K>().0[unit].as_chunks().0);
        let pairs: [&[[i16; 2]]; T] = array!(T, |t| x[t].bsums.as_chunks::<16>().0[unit].as_chunks().0);
        let mut sum = [_mm256_setzero_si256(); T];
        for (c, chain) in panel.q.chunks_exact(B::CHAIN).enumerate() {
            let mut products = [_mm256_setzero_si256(); T];
            for (k, q) in chain.iter().enumerate() {
                for t in 0..T {
                    let product = _mm256_maddubs_epi16(*q, spread_quad(quads[t][c * B::CHAIN + k]));
                    products[t] = _mm256_add_epi16(products[t], product);
                }
            }
            let scale = panel.scales[c * B::CHAIN / 4];
            for t in 0..T {
                sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(products[t], scale));
            }
        }
        let mut min_sum = [_mm256_setzero_si256(); T];
        for (p, mins) in panel.mins.iter().enumerate() {
            for t in 0..T {
                let product = _mm256_madd_epi16(*mins, spread_pair(pairs[t][p]));
                min_sum[t] = _mm256_add_epi32(min_sum[t], product);
            }
        }
        for t in 0..T {
            let d_a = _mm256_set1_ps(x[t].d[unit]);
            let scale = _mm256_mul_ps(panel.d, d_a);
            lanes[t][0] = if B::FLOAT_MINS {
                let acc = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sum[t]), lanes[t][0]);
                let min_scale = _mm256_mul_ps(panel.dmin, d_a);
                _mm256_fmadd_ps(min_scale, _mm256_cvtepi32_ps(min_sum[t]), acc)
            } else {
                _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(_mm256_sub_epi32(sum[t], min_sum[t])), lanes[t][0])
            };
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn finish([acc]: &[__m256; 1]) -> [f32; 8] {
        to_array(*acc)
    }
}

/// Adds one super-block's dot to the lowest lane of `acc`; `d` is `[d, -dmin, ..]`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn block_dot<B: SuperBlock>(
    w: &Unpacked,
    d: __m128,
    qs: &[i8; QK_K],
    bsums: &[i16; 16],
    d_a: f32,
    acc: __m128,
) -> __m128 {
    let (qs, _) = qs.as_chunks::<32>();
    let mut sum = _mm256_setzero_si256();
    for j in 0..8 {
        let products = _mm256_maddubs_epi16(w.q[j], load_i8(&qs[j]));
        let scale = _mm256_shuffle_epi8(w.scales, load_u8(&SPREAD[j]));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(products, scale));
    }
    let min_sum = _mm256_madd_epi16(w.group_mins, load_i16(bsums));
    let halves = |v| _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let scale = _mm_mul_ps(d, _mm_set1_ps(d_a));
    if B::FLOAT_MINS {
        let (s, m) = (halves(sum), halves(min_sum));
        let twos = _mm_add_epi32(_mm_unpacklo_epi64(s, m), _mm_unpackhi_epi64(s, m));
        // [sum, sum, min_sum, min_sum]
        let sums = _mm_cvtepi32_ps(_mm_add_epi32(twos, _mm_shuffle_epi32::<0b10_11_00_01>(twos)));
        let acc = _mm_fmadd_ss(scale, sums, acc);
        _mm_fmadd_ss(_mm_movehdup_ps(scale), _mm_movehl_ps(sums, sums), acc)
    } else {
        let fours = halves(_mm256_sub_epi32(sum, min_sum));
        let twos = _mm_add_epi32(fours, _mm_shuffle_epi32::<0b00_00_11_10>(fours));
        let one = _mm_add_epi32(twos, _mm_shuffle_epi32::<0b00_00_00_01>(twos));
        _mm_fmadd_ss(scale, _mm_cvtepi32_ps(one), acc)
    }
}

/// `[d, -dmin, ..]`
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn d_pair(d: [[u8; 2]; 2]) -> __m128 {
    let pair = i32::from_le_bytes([d[0][0], d[0][1], d[1][0], d[1][1]]);
    _mm_xor_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(pair)), _mm_setr_ps(0.0, -0.0, 0.0, 0.0))
}

/// Eight f16 values as f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn widen_f16(values: [[u8; 2]; 8]) -> __m256 {
    _mm256_cvtph_ps(load_16_bytes(values.as_flattened().first_chunk().unwrap_or(&[0; 16])))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn spread_quad(quad: [i8; 4]) -> __m256i {
    _mm256_set1_epi32(i32::from_ne_bytes(array!(4, |i| quad[i] as u8)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn spread_pair(pair: [i16; 2]) -> __m256i {
    let ([a, b], [c, d]) = (pair[0].to_ne_bytes(), pair[1].to_ne_bytes());
    _mm256_set1_epi32(i32::from_ne_bytes([a, b, c, d]))
}
