//! Q8_0 with Q8_0.
//!
//! `maddubs` wants one side unsigned: weights go in as magnitudes (128 at most, which fits), activations with the
//! weights' signs. Activations are never -128, so turning their sign is exact, and 2 * 128 * 127 fits i16.

use std::arch::x86_64::*;

use super::super::blocks::BlockKernel;
use super::kquants::{spread_quad, widen_f16};
use super::{load_f32, load_i8, prefetch, to_array, transpose8, tree8};
use crate::quant::{ActivationRow, BlockQ8_0, Q8_0Row, QK8_0};

pub(super) struct Q8_0;

/// Eight rows of up to eight blocks; lane `r` belongs to row `r`.
pub(super) struct Panel {
    /// Blocks there are.
    blocks: usize,
    /// `[block]`, four weights each.
    q: [[__m256i; QK8_0 / 4]; 8],
    /// `[block]`
    d: [__m256; 8],
}

impl BlockKernel<8> for Q8_0 {
    const PANEL_TOKENS: usize = 6;
    const TOKENS: usize = 4;

    type Row<'a> = Q8_0Row<'a>;
    type Panel = Panel;
    type Lanes = [__m256; 8];

    #[inline(always)]
    fn row(x: ActivationRow<'_>) -> Q8_0Row<'_> {
        x.q8_0()
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Q8_0Row<'_>; T]) -> [f32; T] {
        let (eights, tail) = BlockQ8_0::slice(weights).as_chunks::<8>();
        let qs = array!(T, |t| x[t].qs.as_chunks::<QK8_0>().0);
        let mut acc = [_mm256_setzero_ps(); T];
        for (i, blocks) in eights.iter().enumerate() {
            prefetch(blocks);
            let d = widen_f16(array!(8, |b| blocks[b].d));
            for t in 0..T {
                let (Some(qs), Some(d_a)) = (qs[t][8 * i..].first_chunk(), x[t].d[8 * i..].first_chunk())
                else {
                    unreachable!("as many activations as weights");
                };
                acc[t] = _mm256_fmadd_ps(_mm256_mul_ps(d, load_f32(d_a)), block_sums(blocks, qs), acc[t]);
            }
        }
        if !tail.is_empty() {
            let (at, n) = (8 * eights.len(), tail.len());
            let mut blocks = [BlockQ8_0 { d: [0; 2], qs: [0; QK8_0] }; 8];
            blocks[..n].copy_from_slice(tail);
            let d = widen_f16(array!(8, |b| blocks[b].d));
            let there = array!(8, |b| if b < n { -1 } else { 0 });
            for t in 0..T {
                let (mut qs_t, mut d_a) = ([[0; QK8_0]; 8], [0.0; 8]);
                qs_t[..n].copy_from_slice(&qs[t][at..at + n]);
                d_a[..n].copy_from_slice(&x[t].d[at..at + n]);
                let next =
                    _mm256_fmadd_ps(_mm256_mul_ps(d, load_f32(&d_a)), block_sums(&blocks, &qs_t), acc[t]);
                acc[t] = _mm256_blendv_ps(acc[t], next, mask(there));
            }
        }
        array!(T, |t| tree8(acc[t]))
    }

    #[inline(always)]
    fn units(row_bytes: usize) -> usize {
        row_bytes.div_ceil(8 * size_of::<BlockQ8_0>())
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn no_lanes() -> [__m256; 8] {
        [_mm256_setzero_ps(); 8]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn unpack(rows: &[&[u8]; 8], unit: usize) -> Panel {
        let rows: [&[BlockQ8_0]; 8] = array!(8, |r| BlockQ8_0::slice(rows[r]));
        let mut panel = Panel {
            blocks: (rows[0].len() - 8 * unit).min(8),
            q: [[_mm256_setzero_si256(); 8]; 8],
            d: [_mm256_setzero_ps(); 8],
        };
        for b in 0..panel.blocks {
            panel.q[b] = transpose8(array!(8, |r| load_i8(&rows[r][8 * unit + b].qs)));
            panel.d[b] = widen_f16(array!(8, |r| rows[r][8 * unit + b].d));
        }
        panel
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn accumulate<const T: usize>(
        panel: &Panel,
        x: [Q8_0Row<'_>; T],
        unit: usize,
        lanes: &mut [[__m256; 8]; T],
    ) {
        let qs = array!(T, |t| x[t].qs.as_chunks::<QK8_0>().0);
        let ones = _mm256_set1_epi16(1);
        for (b, q) in panel.q[..panel.blocks].iter().enumerate() {
            let at = 8 * unit + b;
            let quads: [&[[i8; 4]]; T] = array!(T, |t| qs[t][at].as_chunks().0);
            let mut sum = [_mm256_setzero_si256(); T];
            for (k, q) in q.iter().enumerate() {
                let magnitude = _mm256_abs_epi8(*q);
                for t in 0..T {
                    let signed = _mm256_sign_epi8(spread_quad(quads[t][k]), *q);
                    let products = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed), ones);
                    sum[t] = _mm256_add_epi32(sum[t], products);
                }
            }
            for t in 0..T {
                let scale = _mm256_mul_ps(panel.d[b], _mm256_set1_ps(x[t].d[at]));
                lanes[t][b] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sum[t]), lanes[t][b]);
            }
        }
    }

    /// The tree of [`crate::quant::tree8`], over lanes that hold eight rows each.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn finish([a, b, c, d, e, f, g, h]: &[__m256; 8]) -> [f32; 8] {
        let even = _mm256_add_ps(_mm256_add_ps(*a, *e), _mm256_add_ps(*c, *g));
        let odd = _mm256_add_ps(_mm256_add_ps(*b, *f), _mm256_add_ps(*d, *h));
        to_array(_mm256_add_ps(even, odd))
    }
}

/// The integer dots of eight blocks, as f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn block_sums(w: &[BlockQ8_0; 8], x: &[[i8; QK8_0]; 8]) -> __m256 {
    let ones = _mm256_set1_epi16(1);
    let s: [__m256i; 8] = array!(8, |b| {
        let w = load_i8(&w[b].qs);
        let products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(load_i8(&x[b]), w));
        _mm256_madd_epi16(products, ones)
    });
    let four = |i: usize| {
        _mm256_hadd_epi32(_mm256_hadd_epi32(s[i], s[i + 1]), _mm256_hadd_epi32(s[i + 2], s[i + 3]))
    };
    let (a, b) = (four(0), four(4));
    let sums =
        _mm256_add_epi32(_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b));
    _mm256_cvtepi32_ps(sums)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn mask(lanes: [i32; 8]) -> __m256 {
    let [a, b, c, d, e, f, g, h] = lanes;
    _mm256_castsi256_ps(_mm256_setr_epi32(a, b, c, d, e, f, g, h))
}
