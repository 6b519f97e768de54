//! Formats whose activations go in super-blocks of 256 (Q8_K).
//!
//! Sub-blocks of 16 or 32 have integer scales: scale times weight is an integer again, within 15 bits in
//! every format, which two signed bytes hold, `128 * high + low`. The tile products with both go over a whole
//! super-block; they are put together in 32 bits. Where `high` is zero throughout (few bits and small
//! scales), its product is left out.

use std::arch::x86_64::*;

use super::super::avx2::{self, FLOAT_OF_32, Mins};
use super::super::avx512::{self, KQuant, SuperBlocks, SuperPanel, add_scaled, sums_of_mins};
use super::super::blocks::BlockKernel;
use super::tiles::{Columns, Sums, TOKENS, sums_256, two_sums_256};
use super::{Group, TileKernels};
use crate::quant::{Q8KRow, QK_K};

/// What the formats differ in.
pub(super) trait SuperBlockPanels:
    for<'a> BlockKernel<16, Row<'a> = Q8KRow<'a>, Panel = SuperPanel, Lanes = __m512>
{
    /// Whether weights may be negative.
    const SIGNED: bool;
    const MINS: Mins;
    /// Mins are for 32 weights each, not 16.
    const MINS_OF_32: bool;
    /// Quads of weights that have a scale in common.
    const QUADS: usize;

    /// Asks for the next panel's weights, where it was not done before.
    ///
    /// # Safety
    /// The CPU must have the features of this kernel set.
    unsafe fn prefetch(_: &SuperPanel) {}
}

impl<B: avx512::SuperBlock> SuperBlockPanels for KQuant<B> {
    const SIGNED: bool = false;
    const MINS: Mins = if B::FLOAT_MINS { Mins::Float } else { Mins::Integer };
    const MINS_OF_32: bool = B::FLOAT_MINS;
    const QUADS: usize = B::QUADS;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn prefetch(panel: &SuperPanel) {
        avx512::prefetch_rows::<B>(&panel.next);
    }
}

impl<B: avx2::SuperBlock> SuperBlockPanels for SuperBlocks<B> {
    const SIGNED: bool = B::SIGNED;
    const MINS: Mins = B::MINS;
    const MINS_OF_32: bool = false;
    const QUADS: usize = 4;
}

/// Weights times their scales, as tiles, and the results.
pub(super) struct Buffers {
    /// 7 bits each, and what is above them.
    low_high: [[[__m512i; 16]; 4]; 2],
    /// There is something above them.
    wide: bool,
    /// Of low and high, of two groups.
    sums: [[Sums; 2]; 2],
}

impl<K: SuperBlockPanels> TileKernels for K {
    const STEP: usize = 64;
    const TOKENS_AT_ONCE: usize = 128;
    type Buffers = Buffers;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn no_buffers() -> Buffers {
        let zero = _mm512_setzero_si512();
        Buffers { low_high: [[[zero; 16]; 4]; 2], wide: false, sums: [[[zero; TOKENS]; 2]; 2] }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn prepare(panel: &SuperPanel, buffers: &mut Buffers) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { K::prefetch(panel) };
        scale::<K>(panel, buffers);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn add(
        panel: &SuperPanel,
        Buffers { low_high, wide, sums }: &mut Buffers,
        groups: [Group<'_, Q8KRow<'_>>; 2],
        unit: usize,
        lanes: [&mut [__m512]; 2],
    ) {
        let x = Columns {
            groups: groups.map(|group| group.qs[unit * QK_K..].as_ptr()),
            stride: groups[0].stride,
        };
        // SAFETY: the caller vouches for the CPU, and has configured tiles for steps of 64; a group has rows
        // of `stride`, of which this is a super-block.
        unsafe {
            if *wide {
                two_sums_256(x, low_high, sums);
            } else {
                sums_256(x, &low_high[0], &mut sums[0]);
            }
        }
        for (g, (group, lanes)) in groups.iter().zip(lanes).enumerate() {
            let own = |half: usize| &sums[half][g][group.first..];
            let sums = (own(0), wide.then(|| own(1)));
            match K::MINS {
                Mins::None => add_tokens::<{ Mins::None as u8 }>(panel, group.x, unit, sums, lanes),
                Mins::Integer => add_tokens::<{ Mins::Integer as u8 }>(panel, group.x, unit, sums, lanes),
                Mins::Float if K::MINS_OF_32 => {
                    add_tokens::<FLOAT_OF_32>(panel, group.x, unit, sums, lanes);
                }
                Mins::Float => add_tokens::<{ Mins::Float as u8 }>(panel, group.x, unit, sums, lanes),
            }
        }
    }
}

/// The float steps of some tokens, with the sums of low and high.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_tokens<const MINS: u8>(
    panel: &SuperPanel,
    x: &[Q8KRow<'_>],
    unit: usize,
    (low, high): (&[__m512i], Option<&[__m512i]>),
    lanes: &mut [__m512],
) {
    let sum = |t: usize| match high {
        Some(high) => _mm512_add_epi32(low[t], _mm512_slli_epi32::<7>(high[t])),
        None => low[t],
    };
    let (fours, rest) = x.as_chunks::<4>();
    let (lanes_of_fours, lanes_of_rest) = lanes[..x.len()].as_chunks_mut::<4>();
    for (i, (x, lanes)) in fours.iter().zip(lanes_of_fours).enumerate() {
        add_sums::<MINS, 4>(panel, x, unit, &array!(4, |t| sum(4 * i + t)), lanes);
    }
    for (i, (x, lane)) in rest.iter().zip(lanes_of_rest).enumerate() {
        let lane = std::slice::from_mut(lane);
        if let Some(lane) = lane.first_chunk_mut::<1>() {
            add_sums::<MINS, 1>(panel, &[*x], unit, &[sum(4 * fours.len() + i)], lane);
        }
    }
}

/// Adds the sums of a super-block's products, and its mins, to the lanes of some tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_sums<const MINS: u8, const T: usize>(
    panel: &SuperPanel,
    x: &[Q8KRow<'_>; T],
    unit: usize,
    sum: &[__m512i; T],
    lanes: &mut [__m512; T],
) {
    let pairs: [&[[i16; 2]]; T] = array!(T, |t| x[t].bsums.as_chunks::<16>().0[unit].as_chunks().0);
    let min_sums = if MINS == Mins::None as u8 {
        [_mm512_setzero_si512(); T]
    } else if MINS == FLOAT_OF_32 {
        let of_32 = |[a, b]: [i16; 2]| a + b;
        let sums = array!(4, |p| array!(T, |t| array!(2, |i| of_32(pairs[t][2 * p + i]))));
        sums_of_mins(&panel.mins, &sums)
    } else {
        sums_of_mins(&panel.mins, &array!(8, |p| array!(T, |t| pairs[t][p])))
    };
    add_scaled::<MINS, T>(panel, &array!(T, |t| x[t].d[unit]), sum, &min_sums, lanes);
}

/// Weights times their scales.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn scale<K: SuperBlockPanels>(panel: &SuperPanel, buffers: &mut Buffers) {
    let (first, low_bits) = (_mm512_set1_epi16(0xff), _mm512_set1_epi16(0x7f));
    let [low, high] = buffers.low_high.each_mut().map(|half| half.as_flattened_mut());
    let mut any = _mm512_setzero_si512();
    for (g, (quads, scale)) in panel.q.chunks_exact(K::QUADS).zip(panel.scales).enumerate() {
        let low_word = _mm512_and_si512(scale, _mm512_set1_epi32(0xffff));
        let scale = _mm512_or_si512(low_word, _mm512_slli_epi32::<16>(scale));
        for (i, q) in quads.iter().enumerate() {
            // The panel has them with an offset of 128.
            let q = &_mm512_xor_si512(*q, _mm512_set1_epi8(if K::SIGNED { i8::MIN } else { 0 }));
            // Even and odd bytes as words, |scale * q| < 2^14.
            let (even, odd) = if K::SIGNED {
                (_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(*q)), _mm512_srai_epi16::<8>(*q))
            } else {
                (_mm512_and_si512(*q, first), _mm512_srli_epi16::<8>(*q))
            };
            let (even, odd) = (_mm512_mullo_epi16(even, scale), _mm512_mullo_epi16(odd, scale));
            let at = g * K::QUADS + i;
            low[at] = _mm512_or_si512(
                _mm512_and_si512(even, low_bits),
                _mm512_slli_epi16::<8>(_mm512_and_si512(odd, low_bits)),
            );
            high[at] = _mm512_or_si512(
                _mm512_and_si512(_mm512_srli_epi16::<7>(even), first),
                _mm512_andnot_si512(first, _mm512_slli_epi16::<1>(odd)),
            );
            any = _mm512_or_si512(any, high[at]);
        }
    }
    buffers.wide = _mm512_test_epi32_mask(any, any) != 0;
}
