//! Formats whose activations go in blocks of 32 (Q8_0, Q8_1); the AVX2 set unpacks them.
//!
//! `vpdpbusd` wants one side unsigned. For a row, weights go in as magnitudes (128 at most) and activations,
//! which are never -128, with the weights' signs: exact. Panels hold signed weights plus 128 instead, which
//! activations need not follow; 128 times the sum of the activations is what their sums start below zero
//! with. Weights that are unsigned but for an offset are treated in this way in rows as well.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::avx2::{self, Block, turned, weights_of};
use super::super::blocks::{BlockKernel, PanelKernel};
use super::super::layouts::{Eight, ShortRows, Tail, activations, eight_parts};
use super::super::{OutTile, Tile};
use super::{
    add_pair, add_quad, columns, join, load_8_f32, load_16_i16, load_64_i8, prefetch, prefetch_panel,
    sum_quarters, to_array,
};
use crate::quant::arranged::{Arranged, Parts};
use crate::quant::{ActivationRow, PART, Q8_0Row};

pub(in super::super) struct Blocks32<B>(PhantomData<B>);

/// Sixteen rows of up to eight parts; lane `r` belongs to row `r`.
pub(in super::super) struct Panel {
    /// Parts there are.
    pub parts: usize,
    /// `[part]`, four weights each, plus [`offset`].
    pub q: [[__m512i; PART / 4]; 8],
    /// `[part]`: scales, and what else the format has.
    scales: [[__m512; 8]; 2],
}

impl<B: Block> PanelKernel<16> for Blocks32<B> {
    const TOKENS: usize = 8;
    const TOKENS_A_PANEL: usize = 128;
    const ARRANGED: bool = true;

    type Row<'a> = Q8_0Row<'a>;
    type Tokens<'a> = &'a Arranged;
    type Panel = Panel;
    /// By index of the part, as in [`crate::quant`].
    type Lanes = [__m512; 8];

    #[inline(always)]
    fn row(x: ActivationRow<'_>) -> Q8_0Row<'_> {
        activations::<B>(x)
    }

    #[inline(always)]
    fn tokens<'a>(tile: &Tile<'a>) -> &'a Arranged {
        tile.groups()
    }

    #[inline(always)]
    fn units(row_bytes: usize) -> usize {
        row_bytes.div_ceil(eight_parts::<B>() * size_of::<B>())
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn no_lanes() -> [__m512; 8] {
        [_mm512_setzero_ps(); 8]
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn no_panel() -> Panel {
        let (zero, floats) = (_mm512_setzero_si512(), _mm512_setzero_ps());
        Panel { parts: 0, q: [[zero; PART / 4]; 8], scales: [[floats; 8]; 2] }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn unpack(rows: &[&[u8]; 16], unit: usize, panel: &mut Panel) {
        let step = eight_parts::<B>();
        // The parts of each row, and their scales, next to each other; where a row ends before, whatever.
        let mut weights = [[[0u8; PART]; 16]; 8];
        let mut scales = [[[0u8; 32]; 16]; 2];
        for (r, row) in rows.iter().enumerate() {
            let blocks = &B::slice(row)[unit * step..];
            let there = blocks.len().min(step);
            prefetch_panel(&blocks[..there], row);
            panel.parts = there * B::PARTS;
            for b in 0..panel.parts {
                // SAFETY: the caller vouches for the CPU.
                store_32(&mut weights[b][r], unsafe { blocks[b / B::PARTS].part(b % B::PARTS) });
            }
            let mut eight = [B::new_zeroed(); 8];
            eight[..there].copy_from_slice(&blocks[..there]);
            // SAFETY: as above.
            let own = unsafe { B::scales(&eight[..step]) };
            for (to, own) in scales.iter_mut().zip(own) {
                store_32(&mut to[r], _mm256_castps_si256(own));
            }
        }
        let sign = _mm512_set1_epi8(if B::SIGNED { -128 } else { 0 });
        for (to, rows) in panel.q.iter_mut().zip(&weights) {
            let columns = columns_of_32(rows);
            *to = array!(8, |k| _mm512_xor_si512(columns[k], sign));
        }
        for (to, rows) in panel.scales.iter_mut().zip(&scales) {
            let columns = columns_of_32(rows);
            *to = array!(8, |b| _mm512_castsi512_ps(columns[b]));
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn accumulate<const T: usize>(
        panel: &Panel,
        x: &&Arranged,
        first: usize,
        unit: usize,
        lanes: &mut [[__m512; 8]; T],
    ) {
        let x = x.parts(unit, first);
        match (B::HALVES, B::MINS) {
            (true, _) => add_panel::<true, false, T>(panel, x, offset::<B>(), lanes),
            (_, true) => add_panel::<false, true, T>(panel, x, offset::<B>(), lanes),
            _ => add_panel::<false, false, T>(panel, x, offset::<B>(), lanes),
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

impl<B: Block> BlockKernel<16> for Blocks32<B> {
    const PANEL_TOKENS: usize = 6;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Q8_0Row<'_>; T]) -> [f32; T] {
        let all = B::slice(weights);
        let eights = all.chunks_exact(eight_parts::<B>());
        let tail = eights.remainder();
        let mut acc = [_mm256_setzero_ps(); T];
        let mut at = 0;
        for blocks in eights {
            prefetch(blocks);
            // SAFETY: the caller vouches for the CPU.
            let w = unsafe { Weights::of(blocks) };
            for t in 0..T {
                let Some(x) = Eight::of::<B>(x[t], at) else {
                    unreachable!("as many activations as weights")
                };
                acc[t] = w.add::<B>(x, acc[t], 0xff);
            }
            at += 8;
        }
        let n = tail.len() * B::PARTS;
        if n > 0 && at > 0 {
            // The last eight parts, of which the last `n` are new; the lanes turn until they lie as these do.
            // SAFETY: the caller vouches for the CPU.
            let w = unsafe { Weights::of(&all[all.len() - eight_parts::<B>()..]) };
            let (there, back) = (turned(n), turned(8 - n));
            for t in 0..T {
                let Some(x) = Eight::of::<B>(x[t], at + n - 8) else {
                    unreachable!("as many activations as weights")
                };
                let lanes = w.add::<B>(x, _mm256_permutexvar_ps(there, acc[t]), 0xff << (8 - n));
                acc[t] = _mm256_permutexvar_ps(back, lanes);
            }
        } else if n > 0 {
            let mut tail = Tail::new(tail);
            // SAFETY: the caller vouches for the CPU.
            let w = unsafe { Weights::of(&tail.blocks[..eight_parts::<B>()]) };
            for t in 0..T {
                // Lanes without a part stay as they are.
                acc[t] = w.add::<B>(tail.x(x[t], at, n), acc[t], 0xff >> (8 - n));
            }
        }
        array!(T, |t| avx2::tree8(acc[t]))
    }

    /// Rows of less than eight parts: eight are read, of which those that are the next row's do not count.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn rows_together(tile: &Tile<'_>, x: &[Q8_0Row<'_>], out: &mut OutTile<'_>) -> usize {
        let Some(rows) = ShortRows::<B>::of(tile) else { return 0 };
        let there = 0xff >> (8 - rows.parts());
        for (t, &x) in x.iter().enumerate() {
            let mut filled = Tail::<B>::new(&[]);
            let x = filled.x(x, 0, rows.parts());
            for r in 0..rows.count {
                let blocks = rows.eight(r);
                prefetch(&blocks[..rows.blocks]);
                // SAFETY: the caller vouches for the CPU.
                let w = unsafe { Weights::of(blocks) };
                out.set(t, r, avx2::tree8(w.add::<B>(x, _mm256_setzero_ps(), there)));
            }
        }
        rows.count
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn store_32(to: &mut [u8; 32], v: __m256i) {
    // SAFETY: 32 bytes can be written, and no alignment is asked for.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), v) };
}

/// 32 bytes of each of sixteen rows as eight registers of 32-bit lanes: see [`columns`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn columns_of_32(rows: &[[u8; 32]; 16]) -> [__m512i; 8] {
    let [low, high] = array!(2, |half| columns(array!(16, |r| &rows[r].as_chunks().0[half])));
    array!(8, |k| if k < 4 { low[k] } else { high[k - 4] })
}

/// What a panel's weights are too large by.
pub(in super::super) const fn offset<B: Block>() -> i32 {
    if B::SIGNED { 128 } else { B::OFFSET as i32 }
}

/// Adds a panel's products with a group of tokens to their lanes: the same for all formats of a kind, and
/// compiled once for them.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_panel<const HALVES: bool, const MINS: bool, const T: usize>(
    panel: &Panel,
    x: &Parts<T>,
    offset: i32,
    lanes: &mut [[__m512; 8]; T],
) {
    // What the sums of the first and of the second half are multiplied by.
    let (first, second) = (_mm512_set1_epi32(-offset & 0xffff), _mm512_set1_epi32(-offset << 16));
    let both = _mm512_or_si512(first, second);
    for (b, (q, quads)) in panel.q[..panel.parts].iter().zip(&x.quads).enumerate() {
        let before = |offset| {
            let zero = _mm512_setzero_si512();
            array!(T, |t| add_pair(zero, offset, &x.sums[b][t]))
        };
        let (q, quads) = (q.as_chunks::<4>().0, quads.as_chunks::<4>().0);
        if HALVES {
            for (half, offset) in [first, second].into_iter().enumerate() {
                let mut sum = before(offset);
                add_quads(&mut sum, &q[half], &quads[half]);
                for t in 0..T {
                    lanes[t][b] =
                        add_sum::<MINS>(panel, [half, b], [x.d[b][t], x.s[b][t]], sum[t], lanes[t][b]);
                }
            }
            continue;
        }
        let mut sum = before(both);
        add_quads(&mut sum, &q[0], &quads[0]);
        add_quads(&mut sum, &q[1], &quads[1]);
        for t in 0..T {
            lanes[t][b] = add_sum::<MINS>(panel, [0, b], [x.d[b][t], x.s[b][t]], sum[t], lanes[t][b]);
        }
    }
}

/// A lane with a sum of products added: of part `b` of the panel, or of one of its halves; and the part's
/// min. `d` and `s` are the activations'.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(in super::super) fn add_sum<const MINS: bool>(
    panel: &Panel,
    [half, b]: [usize; 2],
    [d, s]: [f32; 2],
    sum: __m512i,
    lane: __m512,
) -> __m512 {
    let scale = _mm512_mul_ps(panel.scales[half][b], _mm512_set1_ps(d));
    let lane = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sum), lane);
    if MINS { _mm512_fmadd_ps(panel.scales[1][b], _mm512_set1_ps(s), lane) } else { lane }
}

/// Adds the products of sixteen weights of each row with a group of tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn add_quads<const T: usize>(sum: &mut [__m512i; T], q: &[__m512i; 4], x: &[[[i8; 4]; T]; 4]) {
    unrolled!(@0 1 2 3; 4, |K| {
        unrolled!(T, |I| { sum[I] = add_quad::<K, I, T, 4>(sum[I], q[K], x) });
    });
}

/// The weights of eight parts: magnitudes and where they are negative, of two parts each, and the scales.
struct Weights {
    magnitudes: [__m512i; 4],
    negative: [__mmask64; 4],
    scales: [__m256; 2],
}

impl Weights {
    /// # Safety
    /// The CPU must have the features of this kernel set.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn of<B: Block>(blocks: &[B]) -> Weights {
        // SAFETY: the caller vouches for the CPU.
        let (w, scales) = unsafe { (weights_of(blocks), B::scales(blocks)) };
        let w = array!(4, |i| join(w[2 * i], w[2 * i + 1]));
        Weights {
            magnitudes: array!(4, |i| if B::SIGNED { _mm512_abs_epi8(w[i]) } else { w[i] }),
            negative: array!(4, |i| if B::SIGNED { _mm512_movepi8_mask(w[i]) } else { 0 }),
            scales,
        }
    }

    /// Adds the dots with eight parts of activations to the lanes of the mask.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn add<B: Block>(&self, x: Eight<'_>, lanes: __m256, mask: __mmask8) -> __m256 {
        let zero = _mm512_setzero_si512();
        let [first, second] = half_sums(array!(4, |i| {
            let x = pair(x.qs, i);
            let signed = if B::SIGNED { _mm512_mask_sub_epi8(x, self.negative[i], zero, x) } else { x };
            _mm512_dpbusd_epi32(zero, self.magnitudes[i], signed)
        }));
        let bsums = load_16_i16(x.bsums);
        let (mut first, mut second) = (first, second);
        if B::OFFSET != 0 {
            // In each lane the sums over the first and the second half.
            let offset = i32::from(B::OFFSET);
            first = _mm256_sub_epi32(first, _mm256_madd_epi16(bsums, _mm256_set1_epi32(offset)));
            second = _mm256_sub_epi32(second, _mm256_madd_epi16(bsums, _mm256_set1_epi32(offset << 16)));
        }
        let ([d, more], d_a) = (self.scales, load_8_f32(x.d));
        let scale = _mm256_mul_ps(d, d_a);
        if B::HALVES {
            let lanes = _mm256_mask3_fmadd_ps(scale, _mm256_cvtepi32_ps(first), lanes, mask);
            let scale = _mm256_mul_ps(more, d_a);
            return _mm256_mask3_fmadd_ps(scale, _mm256_cvtepi32_ps(second), lanes, mask);
        }
        let sum = _mm256_cvtepi32_ps(_mm256_add_epi32(first, second));
        let lanes = _mm256_mask3_fmadd_ps(scale, sum, lanes, mask);
        if B::MINS { _mm256_mask3_fmadd_ps(more, load_8_f32(x.s), lanes, mask) } else { lanes }
    }
}

/// Parts `2 i` and `2 i + 1`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn pair(x: &[[i8; PART]; 8], i: usize) -> __m512i {
    load_64_i8(x.as_flattened().as_chunks().0.get(i).unwrap_or(&[0; 64]))
}

/// The sums over the halves of eight parts in order, of which register `i` has part `2 i` in its lower half
/// and `2 i + 1` in its upper one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn half_sums(sums: [__m512i; 4]) -> [__m256i; 2] {
    // Quarters 0 and 1 of parts 0, 2, 4, 6, quarters 2 and 3 of parts 1, 3, 5, 7.
    let quarters = sum_quarters(sums);
    let order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    let sums = _mm512_permutexvar_epi32(order, quarters);
    [_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64::<1>(sums)]
}
