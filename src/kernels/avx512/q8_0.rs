//! Q8_0 with Q8_0.
//!
//! `vpdpbusd` wants one side unsigned. For a row, weights go in as magnitudes (128 at most) and activations, which are
//! never -128, with the weights' signs: exact. Panels hold weights plus 128 instead, which activations need not follow;
//! 128 times the sum of a block's activations is what their sums start below zero with.

use std::arch::x86_64::*;

use super::super::avx2;
use super::super::blocks::BlockKernel;
use super::{
    PREFETCH, PREFETCH_ROWS, columns, join, load_8_f32, load_16_bytes, load_32_i8, load_64_i8, prefetch,
    spread_quad, sum_quarters, to_array, widen_f16,
};
use crate::quant::{ActivationRow, BlockQ8_0, Q8_0Row, QK8_0};

pub(super) struct Q8_0;

/// Sixteen rows of up to eight blocks; lane `r` belongs to row `r`.
pub(super) struct Panel {
    /// Blocks there are.
    blocks: usize,
    /// `[block]`, four weights each, plus 128.
    q: [[__m512i; QK8_0 / 4]; 8],
    /// `[block]`
    d: [__m512; 8],
}

impl BlockKernel<16> for Q8_0 {
    const PANEL_TOKENS: usize = 4;
    const TOKENS: usize = 8;

    type Row<'a> = Q8_0Row<'a>;
    type Panel = Panel;
    /// By block index, as in [`crate::quant`].
    type Lanes = [__m512; 8];

    #[inline(always)]
    fn row(x: ActivationRow<'_>) -> Q8_0Row<'_> {
        x.q8_0()
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Q8_0Row<'_>; T]) -> [f32; T] {
        let (eights, tail) = BlockQ8_0::slice(weights).as_chunks::<8>();
        let qs = array!(T, |t| x[t].qs.as_chunks::<QK8_0>().0.as_chunks::<8>());
        let d_a = array!(T, |t| x[t].d.as_chunks::<8>());
        let mut acc = [_mm256_setzero_ps(); T];
        for (i, blocks) in eights.iter().enumerate() {
            prefetch(blocks, PREFETCH);
            let (w, d) = (Eight::of(blocks), scales(blocks));
            for t in 0..T {
                let scale = _mm256_mul_ps(d, load_8_f32(&d_a[t].0[i]));
                acc[t] = _mm256_fmadd_ps(scale, w.sums(&qs[t].0[i]), acc[t]);
            }
        }
        if !tail.is_empty() {
            let n = tail.len();
            let mut blocks = [BlockQ8_0 { d: [0; 2], qs: [0; QK8_0] }; 8];
            blocks[..n].copy_from_slice(tail);
            let (w, d) = (Eight::of(&blocks), scales(&blocks));
            for t in 0..T {
                let (mut qs_t, mut d_t) = ([[0; QK8_0]; 8], [0.0; 8]);
                qs_t[..n].copy_from_slice(qs[t].1);
                d_t[..n].copy_from_slice(d_a[t].1);
                let scale = _mm256_mul_ps(d, load_8_f32(&d_t));
                // Lanes without a block stay as they are.
                acc[t] = _mm256_mask3_fmadd_ps(scale, w.sums(&qs_t), acc[t], 0xff >> (8 - n));
            }
        }
        array!(T, |t| avx2::tree8(acc[t]))
    }

    #[inline(always)]
    fn units(row_bytes: usize) -> usize {
        row_bytes.div_ceil(8 * size_of::<BlockQ8_0>())
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn no_lanes() -> [__m512; 8] {
        [_mm512_setzero_ps(); 8]
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn unpack(rows: &[&[u8]; 16], unit: usize) -> Panel {
        let rows: [&[BlockQ8_0]; 16] = array!(16, |r| &BlockQ8_0::slice(rows[r])[8 * unit..]);
        let mut panel = Panel {
            blocks: rows[0].len().min(8),
            q: [[_mm512_setzero_si512(); 8]; 8],
            d: [_mm512_setzero_ps(); 8],
        };
        let sign = _mm512_set1_epi8(-128);
        for (b, (q, d)) in panel.q.iter_mut().zip(&mut panel.d).enumerate().take(panel.blocks) {
            let blocks = array!(16, |r| &rows[r][b]);
            for block in blocks {
                prefetch(block, PREFETCH_ROWS);
            }
            for (half, q) in q.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let bytes = columns(array!(16, |r| half_block(&blocks[r].qs, half)));
                *q = array!(4, |k| _mm512_xor_si512(bytes[k], sign));
            }
            *d = widen_f16(array!(16, |r| blocks[r].d));
        }
        panel
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn accumulate<const T: usize>(
        panel: &Panel,
        x: [Q8_0Row<'_>; T],
        unit: usize,
        lanes: &mut [[__m512; 8]; T],
    ) {
        let qs = array!(T, |t| &x[t].qs.as_chunks::<QK8_0>().0[8 * unit..]);
        let offsets = array!(T, |t| offsets(&qs[t][..panel.blocks]));
        // Without a bound that it does not know, the compiler unrolls the inner loop into the stores below, and then keeps
        // the activations of all tokens on the stack.
        let steps = std::hint::black_box(QK8_0 / 8);
        for (b, q) in panel.q[..panel.blocks].iter().enumerate() {
            let quads: [&[[[i8; 4]; 2]]; T] = array!(T, |t| qs[t][b].as_chunks().0.as_chunks().0);
            let mut sum = array!(T, |t| _mm512_set1_epi32(offsets[t][b]));
            for (k, [q, next]) in q.as_chunks().0[..steps].iter().enumerate() {
                for t in 0..T {
                    sum[t] = _mm512_dpbusd_epi32(sum[t], *q, spread_quad(quads[t][k][0]));
                }
                for t in 0..T {
                    sum[t] = _mm512_dpbusd_epi32(sum[t], *next, spread_quad(quads[t][k][1]));
                }
            }
            for t in 0..T {
                let scale = _mm512_mul_ps(panel.d[b], _mm512_set1_ps(x[t].d[8 * unit + b]));
                lanes[t][b] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sum[t]), lanes[t][b]);
            }
        }
    }

    /// The tree of [`crate::quant::tree8`], over lanes that hold sixteen rows each.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn finish([a, b, c, d, e, f, g, h]: &[__m512; 8]) -> [f32; 16] {
        let even = _mm512_add_ps(_mm512_add_ps(*a, *e), _mm512_add_ps(*c, *g));
        let odd = _mm512_add_ps(_mm512_add_ps(*b, *f), _mm512_add_ps(*d, *h));
        to_array(_mm512_add_ps(even, odd))
    }
}

/// The weights of eight blocks: magnitudes and where they are negative, of two blocks each.
struct Eight {
    magnitudes: [__m512i; 4],
    negative: [__mmask64; 4],
}

impl Eight {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn of(blocks: &[BlockQ8_0; 8]) -> Eight {
        let w = array!(4, |i| join(load_32_i8(&blocks[2 * i].qs), load_32_i8(&blocks[2 * i + 1].qs)));
        Eight {
            magnitudes: array!(4, |i| _mm512_abs_epi8(w[i])),
            negative: array!(4, |i| _mm512_movepi8_mask(w[i])),
        }
    }

    /// The integer dots with eight blocks of activations, as f32.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn sums(&self, x: &[[i8; QK8_0]; 8]) -> __m256 {
        let zero = _mm512_setzero_si512();
        let sums = array!(4, |i| {
            let x = pair(x, i);
            let signed = _mm512_mask_sub_epi8(x, self.negative[i], zero, x);
            _mm512_dpbusd_epi32(zero, self.magnitudes[i], signed)
        });
        _mm256_cvtepi32_ps(block_sums(sums))
    }
}

/// Blocks `2 i` and `2 i + 1`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn pair(x: &[[i8; QK8_0]; 8], i: usize) -> __m512i {
    load_64_i8(x.as_flattened().as_chunks().0.get(i).unwrap_or(&[0; 64]))
}

/// The sums of eight blocks in order, of which register `i` has block `2 i` in its lower half and `2 i + 1` in its
/// upper one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn block_sums(sums: [__m512i; 4]) -> __m256i {
    // Quarters 0 and 1 of blocks 0, 2, 4, 6, quarters 2 and 3 of blocks 1, 3, 5, 7.
    let quarters = sum_quarters(sums);
    let sums = _mm512_add_epi32(quarters, _mm512_shuffle_i64x2::<0b10_11_00_01>(quarters, quarters));
    let order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, sums))
}

/// -128 times the sum of each block of activations, of which there are at most eight.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn offsets(blocks: &[[i8; QK8_0]]) -> [i32; 8] {
    let mut padded = [[0; QK8_0]; 8];
    let x = match blocks.first_chunk() {
        Some(eight) => eight,
        None => {
            padded[..blocks.len()].copy_from_slice(blocks);
            &padded
        }
    };
    let (zero, by) = (_mm512_setzero_si512(), _mm512_set1_epi8(-128));
    // -128 is 128 to an instruction that takes it as unsigned.
    let sums = block_sums(array!(4, |i| _mm512_dpbusd_epi32(zero, by, pair(x, i))));
    let mut out = [0i32; 8];
    // SAFETY: 32 bytes can be written, and no alignment is asked for.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_sub_epi32(_mm256_setzero_si256(), sums)) };
    out
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn scales(blocks: &[BlockQ8_0; 8]) -> __m256 {
    let d: [[u8; 2]; 8] = array!(8, |b| blocks[b].d);
    _mm256_cvtph_ps(load_16_bytes(d.as_flattened().first_chunk().unwrap_or(&[0; 16])))
}

/// Half a block, 16 bytes.
#[inline(always)]
fn half_block(qs: &[i8; QK8_0], half: usize) -> &[u8; 16] {
    use zerocopy::IntoBytes;
    qs.as_bytes().as_chunks().0.get(half).unwrap_or(&[0; 16])
}
