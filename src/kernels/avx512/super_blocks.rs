//! Formats whose activations go in super-blocks of 256 (Q8_K), but for those in `kquants`; the AVX2 set
//! unpacks them.
//!
//! `vpdpbusd` adds four products of an unsigned and a signed byte to an i32; sums of quads are multiplied by
//! the scales.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::avx2::{EightRows, Mins, Places, PlacesAhead, SuperBlock, d_pair};
use super::super::blocks::{BlockKernel, PanelKernel};
use super::unpack::Panel;
use super::{
    add_pair_at, join, join_ps, load_16_i16, load_64_i8, prefetch, prefetch_rows, spread_quad, to_array,
};
use crate::quant::{ActivationRow, Q8KRow, QK_K};

pub(in super::super) struct SuperBlocks<B>(PhantomData<B>);

impl<B: SuperBlock> PanelKernel<16> for SuperBlocks<B> {
    const TOKENS: usize = 8;

    type Row<'a> = Q8KRow<'a>;
    type Panel = Panel;
    type Lanes = __m512;

    #[inline(always)]
    fn row(x: ActivationRow<'_>) -> Q8KRow<'_> {
        x.q8_k()
    }

    #[inline(always)]
    fn units(row_bytes: usize) -> usize {
        row_bytes / size_of::<B>()
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn no_lanes() -> __m512 {
        _mm512_setzero_ps()
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn no_panel() -> Panel {
        let (zero, floats) = (_mm512_setzero_si512(), _mm512_setzero_ps());
        Panel { q: [zero; 64], scales: [zero; 16], mins: [zero; 8], d: floats, dmin: floats }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn unpack(rows: &[&[u8]; 16], unit: usize, panel: &mut Panel) {
        for row in rows {
            prefetch_rows(&B::slice(row)[unit]);
        }
        let mut halves = [EightRows::zero(); 2];
        for (rows, half) in rows.as_chunks::<8>().0.iter().zip(&mut halves) {
            // SAFETY: the caller vouches for the CPU.
            unsafe { half.unpack::<B>(rows, unit) };
        }
        let [low, high] = halves;
        *panel = Panel {
            q: array!(QK_K / 4, |i| join(low.q[i], high.q[i])),
            // Both words of a lane have the scale.
            scales: array!(QK_K / 16, |i| _mm512_srai_epi32::<16>(join(low.scales[i], high.scales[i]))),
            mins: array!(QK_K / 32, |i| join(low.mins[i], high.mins[i])),
            d: join_ps(low.d, high.d),
            dmin: join_ps(low.dmin, high.dmin),
        };
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn accumulate<const T: usize>(
        panel: &Panel,
        x: &[Q8KRow<'_>; T],
        unit: usize,
        lanes: &mut [__m512; T],
    ) {
        match (B::SIGNED, B::MINS) {
            (true, _) => add_panel::<true, { Mins::None as u8 }, T>(panel, x, unit, lanes),
            (_, Mins::Float) => add_panel::<false, { Mins::Float as u8 }, T>(panel, x, unit, lanes),
            _ => add_panel::<false, { Mins::Integer as u8 }, T>(panel, x, unit, lanes),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn finish(lanes: &__m512) -> [f32; 16] {
        to_array(*lanes)
    }
}

impl<B: SuperBlock> BlockKernel<16> for SuperBlocks<B> {
    const PANEL_TOKENS: usize = 4;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Q8KRow<'_>; T]) -> [f32; T] {
        let blocks = B::slice(weights);
        let mut acc = [0f32; T];
        // SAFETY: the caller vouches for the CPU.
        let mut places = unsafe { PlacesAhead::new(blocks) };
        for (b, block) in blocks.iter().enumerate() {
            prefetch(block);
            // SAFETY: the caller vouches for the CPU.
            let w = unsafe { Weights::of(block, places.of(blocks, b)) };
            for t in 0..T {
                let (qs, bsums) = (&x[t].qs.as_chunks::<QK_K>().0[b], &x[t].bsums.as_chunks::<16>().0[b]);
                acc[t] = w.add::<B>(qs, bsums, x[t].d[b], acc[t]);
            }
        }
        acc
    }
}

/// Adds a panel's products with some tokens to their lanes: the same for all formats of a kind, and compiled
/// once for them.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_panel<const SIGNED: bool, const MINS: u8, const T: usize>(
    panel: &Panel,
    x: &[Q8KRow<'_>; T],
    unit: usize,
    lanes: &mut [__m512; T],
) {
    let zero = _mm512_setzero_si512();
    let quads: [&[[i8; 4]]; T] = array!(T, |t| x[t].qs.as_chunks::<QK_K>().0[unit].as_chunks().0);
    let mut sum = [zero; T];
    for (g, (group, scale)) in panel.q.as_chunks::<4>().0.iter().zip(panel.scales).enumerate() {
        let mut products = [zero; T];
        for (k, q) in group.iter().enumerate() {
            let (magnitude, negative) =
                if SIGNED { (_mm512_abs_epi8(*q), _mm512_movepi8_mask(*q)) } else { (*q, 0) };
            for t in 0..T {
                let x = spread_quad(quads[t][4 * g + k]);
                let x = if SIGNED { _mm512_mask_sub_epi8(x, negative, zero, x) } else { x };
                products[t] = _mm512_dpbusd_epi32(products[t], magnitude, x);
            }
        }
        for t in 0..T {
            sum[t] = _mm512_add_epi32(sum[t], _mm512_mullo_epi32(products[t], scale));
        }
    }
    add_sums::<MINS, T>(panel, x, unit, &sum, lanes);
}

/// Adds the sums of a super-block's products, and its mins, to the lanes of some tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(in super::super) fn add_sums<const MINS: u8, const T: usize>(
    panel: &Panel,
    x: &[Q8KRow<'_>; T],
    unit: usize,
    sum: &[__m512i; T],
    lanes: &mut [__m512; T],
) {
    let pairs: [&[i16; 16]; T] = array!(T, |t| &x[t].bsums.as_chunks::<16>().0[unit]);
    let mut min_sum = [_mm512_setzero_si512(); T];
    if MINS != Mins::None as u8 {
        for (i, mins) in panel.mins.as_chunks::<4>().0.iter().enumerate() {
            let x = array!(T, |t| pairs[t].as_chunks::<2>().0.as_chunks::<4>().0[i].as_ptr());
            // SAFETY: four pairs can be read, and the CPU has the features.
            unsafe {
                for t in 0..T {
                    min_sum[t] = add_pair_at::<0>(min_sum[t], mins[0], x[t]);
                }
                for t in 0..T {
                    min_sum[t] = add_pair_at::<1>(min_sum[t], mins[1], x[t]);
                }
                for t in 0..T {
                    min_sum[t] = add_pair_at::<2>(min_sum[t], mins[2], x[t]);
                }
                for t in 0..T {
                    min_sum[t] = add_pair_at::<3>(min_sum[t], mins[3], x[t]);
                }
            }
        }
    }
    for t in 0..T {
        let d_a = _mm512_set1_ps(x[t].d[unit]);
        let sum = if MINS == Mins::Integer as u8 { _mm512_sub_epi32(sum[t], min_sum[t]) } else { sum[t] };
        lanes[t] = _mm512_fmadd_ps(_mm512_mul_ps(panel.d, d_a), _mm512_cvtepi32_ps(sum), lanes[t]);
        if MINS == Mins::Float as u8 {
            let scale = _mm512_mul_ps(panel.dmin, d_a);
            lanes[t] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(min_sum[t]), lanes[t]);
        }
    }
}

/// A super-block in registers of 64 weights.
struct Weights {
    magnitudes: [__m512i; 4],
    negative: [__mmask64; 4],
    /// Of each four weights.
    scales: [__m512i; 4],
    group_mins: __m256i,
    d: f32,
    /// Negative.
    dmin: f32,
}

impl Weights {
    /// # Safety
    /// The CPU must have the features of this kernel set, and `places` be this block's.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn of<B: SuperBlock>(block: &B, places: &Places) -> Weights {
        // SAFETY: the caller vouches for the CPU and the places.
        let w = unsafe { block.unpack(places) };
        let scales = _mm512_cvtepi16_epi32(w.scales.groups);
        let lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        let d = d_pair(block);
        Weights {
            magnitudes: array!(4, |j| join(w.q[2 * j], w.q[2 * j + 1])),
            negative: array!(4, |j| {
                if B::SIGNED { _mm512_movepi8_mask(join(w.signs[2 * j], w.signs[2 * j + 1])) } else { 0 }
            }),
            scales: array!(4, |j| {
                let lanes = _mm512_add_epi32(lanes, _mm512_set1_epi32(4 * j as i32));
                _mm512_permutexvar_epi32(lanes, scales)
            }),
            group_mins: w.group_mins,
            d: _mm_cvtss_f32(d),
            dmin: _mm_cvtss_f32(_mm_movehdup_ps(d)),
        }
    }

    /// The accumulator with the dot with a super-block of activations added.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn add<B: SuperBlock>(&self, qs: &[i8; QK_K], bsums: &[i16; 16], d_a: f32, acc: f32) -> f32 {
        let zero = _mm512_setzero_si512();
        let (qs, _) = qs.as_chunks::<64>();
        let mut sum = zero;
        for (j, qs) in qs.iter().enumerate() {
            let x = load_64_i8(qs);
            let x = if B::SIGNED { _mm512_mask_sub_epi8(x, self.negative[j], zero, x) } else { x };
            let products = _mm512_dpbusd_epi32(zero, self.magnitudes[j], x);
            sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(products, self.scales[j]));
        }
        let mins = _mm512_zextsi256_si512(_mm256_madd_epi16(self.group_mins, load_16_i16(bsums)));
        let scale = self.d * d_a;
        match B::MINS {
            Mins::None => scale.mul_add(_mm512_reduce_add_epi32(sum) as f32, acc),
            Mins::Integer => {
                let sum = _mm512_sub_epi32(sum, mins);
                scale.mul_add(_mm512_reduce_add_epi32(sum) as f32, acc)
            }
            Mins::Float => {
                let acc = scale.mul_add(_mm512_reduce_add_epi32(sum) as f32, acc);
                (self.dmin * d_a).mul_add(_mm512_reduce_add_epi32(mins) as f32, acc)
            }
        }
    }
}
