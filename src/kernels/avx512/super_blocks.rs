//! Formats whose activations go in super-blocks of 256 (Q8_K), but for those in `kquants`; the AVX2 set
//! unpacks them.
//!
//! `vpdpbusd` adds four products of an unsigned and a signed byte to an i32; sums of quads are multiplied by
//! the scales.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::Tile;
use super::super::avx2::{EightRows, FLOAT_OF_32, Mins, Places, PlacesAhead, SuperBlock, d_pair};
use super::super::blocks::{BlockKernel, PanelKernel};
use super::blocks32::add_quads;
use super::unpack::Panel;
use super::{
    PANEL_ROWS, add_pair, add_pairs, join, join_ps, load_16_i16, load_64_i8, prefetch, prefetch_panel,
    to_array,
};
use crate::quant::arranged::{Arranged, Group};
use crate::quant::{ActivationRow, Q8KRow, QK_K};

pub(in super::super) struct SuperBlocks<B>(PhantomData<B>);

impl<B: SuperBlock> PanelKernel<16> for SuperBlocks<B> {
    const TOKENS: usize = 8;
    const TOKENS_A_PANEL: usize = 256;
    const ARRANGED: bool = true;

    type Row<'a> = Q8KRow<'a>;
    type Tokens<'a> = &'a Arranged;
    type Panel = Panel;
    type Lanes = __m512;

    #[inline(always)]
    fn row(x: ActivationRow<'_>) -> Q8KRow<'_> {
        x.q8_k()
    }

    #[inline(always)]
    fn tokens<'a>(tile: &Tile<'a>) -> &'a Arranged {
        tile.groups()
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
        Panel {
            q: [zero; 64],
            scales: [zero; 16],
            mins: [zero; 8],
            d: floats,
            dmin: floats,
            next: [std::ptr::null(); PANEL_ROWS],
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn unpack(rows: &[&[u8]; 16], unit: usize, panel: &mut Panel) {
        for row in rows {
            prefetch_panel(&B::slice(row)[unit], row);
        }
        let mut halves = [EightRows::zero(); 2];
        for (rows, half) in rows.as_chunks::<8>().0.iter().zip(&mut halves) {
            // SAFETY: the caller vouches for the CPU.
            unsafe { half.unpack::<B>(rows, unit) };
        }
        let [low, high] = halves;
        let offset = _mm512_set1_epi8(if B::SIGNED { i8::MIN } else { 0 });
        *panel = Panel {
            q: array!(QK_K / 4, |i| _mm512_xor_si512(join(low.q[i], high.q[i]), offset)),
            // Both words of a lane have the scale.
            scales: array!(QK_K / 16, |i| {
                let scales = join(low.scales[i], high.scales[i]);
                if B::SIXTEEN_FIT { _mm512_srli_epi32::<16>(scales) } else { _mm512_srai_epi32::<16>(scales) }
            }),
            mins: array!(QK_K / 32, |i| {
                if B::SIGNED {
                    // The scales' low words, and their high ones.
                    let scale = |g: usize| join(low.scales[g], high.scales[g]);
                    let pair = _mm512_mask_blend_epi16(0xaaaa_aaaa, scale(2 * i), scale(2 * i + 1));
                    _mm512_slli_epi16::<7>(pair)
                } else {
                    join(low.mins[i], high.mins[i])
                }
            }),
            d: join_ps(low.d, high.d),
            dmin: join_ps(low.dmin, high.dmin),
            next: panel.next,
        };
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn accumulate<const T: usize>(
        panel: &Panel,
        x: &&Arranged,
        first: usize,
        unit: usize,
        lanes: &mut [__m512; T],
    ) {
        let x = x.group(unit, first);
        match (B::MINS, B::SIXTEEN_FIT) {
            (Mins::Float, _) => add_panel::<FLOAT, true, T>(panel, x, lanes),
            (_, true) => add_panel::<INTEGER, true, T>(panel, x, lanes),
            (_, false) => add_panel::<INTEGER, false, T>(panel, x, lanes),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn finish(lanes: &__m512) -> [f32; 16] {
        to_array(*lanes)
    }
}

impl<B: SuperBlock> BlockKernel<16> for SuperBlocks<B> {
    const PANEL_TOKENS: usize = if B::NO_SCALES { 16 } else { 8 };

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

/// [`Mins`] as numbers, for generic functions.
pub(super) const INTEGER: u8 = Mins::Integer as u8;
const FLOAT: u8 = Mins::Float as u8;

/// Adds a panel's products with a group of tokens to their lanes: the same for all formats of a kind, and
/// compiled once for them. With `FIT`, products of 16 weights fit i16, and the high words of scales are zero.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_panel<const MINS: u8, const FIT: bool, const T: usize>(
    panel: &Panel,
    x: &Group<T>,
    lanes: &mut [__m512; T],
) {
    let zero = _mm512_setzero_si512();
    let mut sum = [zero; T];
    let quads = x.quads.as_chunks::<4>().0.iter();
    for ((q, scale), x) in panel.q.as_chunks::<4>().0.iter().zip(panel.scales).zip(quads) {
        let mut products = [zero; T];
        add_quads(&mut products, q, x);
        for t in 0..T {
            sum[t] = if FIT {
                add_pairs(sum[t], products[t], scale)
            } else {
                _mm512_add_epi32(sum[t], _mm512_mullo_epi32(products[t], scale))
            };
        }
    }
    add_sums::<MINS, T>(panel, x, &sum, lanes);
}

/// Adds the sums of a super-block's products, and its mins, to the lanes of some tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn add_sums<const MINS: u8, const T: usize>(
    panel: &Panel,
    x: &Group<T>,
    sum: &[__m512i; T],
    lanes: &mut [__m512; T],
) {
    let min_sums = match MINS {
        FLOAT_OF_32 => sums_of_mins(&panel.mins, &x.sums_of_32),
        _ => sums_of_mins(&panel.mins, &x.sums_of_16),
    };
    add_scaled::<MINS, T>(panel, &x.d, sum, &min_sums, lanes);
}

/// For each token the sums of the mins times the sums of activations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(in super::super) fn sums_of_mins<const T: usize, const PAIRS: usize>(
    mins: &[__m512i; QK_K / 32],
    sums: &[[[i16; 2]; T]; PAIRS],
) -> [__m512i; T] {
    let mut min_sums = [_mm512_setzero_si512(); T];
    for (mins, sums) in mins.iter().zip(sums) {
        for t in 0..T {
            min_sums[t] = add_pair(min_sums[t], *mins, &sums[t]);
        }
    }
    min_sums
}

/// Adds the sums of a super-block's products and of its mins to the lanes of some tokens, of scales `d`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(in super::super) fn add_scaled<const MINS: u8, const T: usize>(
    panel: &Panel,
    d: &[f32; T],
    sum: &[__m512i; T],
    min_sum: &[__m512i; T],
    lanes: &mut [__m512; T],
) {
    for t in 0..T {
        let d_a = _mm512_set1_ps(d[t]);
        let sum = if MINS == INTEGER { _mm512_sub_epi32(sum[t], min_sum[t]) } else { sum[t] };
        lanes[t] = _mm512_fmadd_ps(_mm512_mul_ps(panel.d, d_a), _mm512_cvtepi32_ps(sum), lanes[t]);
        if MINS == FLOAT || MINS == FLOAT_OF_32 {
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
