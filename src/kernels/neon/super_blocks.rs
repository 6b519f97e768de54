//! Formats whose activations go in super-blocks of 256 (Q8_K).

use std::arch::aarch64::*;
use std::marker::PhantomData;

use super::super::blocks::{BlockKernel, PanelKernel, rows_from, takes_rows};
use super::super::layouts::SuperLayout;
use super::{Dot, lane, load_f32, load_i8, load_i16};
use crate::quant::{ActivationRow, Q8KRow, QK_K};

pub(in super::super) struct SuperBlocks<B, M>(PhantomData<(B, M)>);

/// A super-block in registers.
#[derive(Clone, Copy)]
pub(in super::super) struct Unpacked {
    /// Weights in order, offsets taken off.
    pub q: [int8x16_t; 16],
    /// A scale for each group of [`SuperBlock::GROUP`] weights, in order; what follows them is anything.
    pub scales: [int16x8_t; 2],
    /// The mins of the same groups, where there are any; otherwise anything.
    pub mins: [int16x8_t; 2],
}

impl Unpacked {
    /// Weights with scales of 32 each.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn of_32(q: [int8x16_t; 16], scales: int16x8_t) -> Unpacked {
        Unpacked { q, scales: [scales; 2], mins: [scales; 2] }
    }

    /// Weights with scales of 16 each, in signed bytes.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn of_16(q: [int8x16_t; 16], scales: int8x16_t) -> Unpacked {
        let scales = [vmovl_s8(vget_low_s8(scales)), vmovl_high_s8(scales)];
        Unpacked { q, scales, mins: scales }
    }
}

/// What the formats differ in.
pub(in super::super) trait SuperBlock: SuperLayout {
    /// There are mins, in units of their own (`dmin`).
    const MINS: bool = false;
    /// Weights that have a scale in common: 16, 32, or 256, whose scale is one.
    const GROUP: usize;

    /// Inlined always, whatever its length, so that weights stay in registers.
    ///
    /// # Safety
    /// The CPU must have NEON.
    unsafe fn unpack(&self) -> Unpacked;
}

/// Eight rows of a super-block.
#[derive(Clone, Copy)]
pub(in super::super) struct EightRows<M: Dot> {
    /// Sixteen weights each.
    q: [[int8x16_t; 8]; QK_K / 16],
    /// Of each group.
    scales: [M::Scales; 16],
    /// Of each group, a lane a row.
    mins: [int16x8_t; 16],
    /// A lane a row, in two halves.
    d: [float32x4_t; 2],
    /// Negative.
    dmin: [float32x4_t; 2],
}

impl<M: Dot> EightRows<M> {
    #[inline(always)]
    unsafe fn zero() -> EightRows<M> {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let (zero, floats) = (vdupq_n_s32(0), [vdupq_n_f32(0.0); 2]);
            EightRows {
                q: [[vdupq_n_s8(0); 8]; 16],
                scales: [M::scales([zero; 2]); 16],
                mins: [vdupq_n_s16(0); 16],
                d: floats,
                dmin: floats,
            }
        }
    }

    /// Takes a super-block of each of eight rows.
    #[inline(always)]
    unsafe fn unpack<B: SuperBlock>(&mut self, blocks: [&B; 8]) {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let w = array!(8, |r| unpacked(blocks[r]));
            for (g, q) in self.q.iter_mut().enumerate() {
                *q = M::arrange(array!(8, |r| w[r].q[g]));
            }
            for i in 0..2 {
                let columns = transpose8(array!(8, |r| w[r].scales[i]));
                for (to, rows) in self.scales[8 * i..].iter_mut().zip(columns) {
                    *to = M::scales([vmovl_s16(vget_low_s16(rows)), vmovl_high_s16(rows)]);
                }
                if B::MINS {
                    self.mins[8 * i..][..8].copy_from_slice(&transpose8(array!(8, |r| w[r].mins[i])));
                }
            }
            let d = array!(8, |r| d_pair(blocks[r]));
            self.d = array!(2, |h| load_f32(&array!(4, |i| d[4 * h + i][0])));
            self.dmin = array!(2, |h| load_f32(&array!(4, |i| -d[4 * h + i][1])));
        }
    }
}

/// Of each half of eight rows the lanes.
pub(in super::super) type Lanes = [float32x4_t; 2];

impl<B: SuperBlock, M: Dot> PanelKernel<8> for SuperBlocks<B, M> {
    const TOKENS: usize = M::TOKENS;
    const TOKENS_A_PANEL: usize = 128;

    takes_rows!(8);

    type Row<'a> = Q8KRow<'a>;
    type Panel = EightRows<M>;
    type Lanes = Lanes;

    #[inline(always)]
    fn row(x: ActivationRow<'_>) -> Q8KRow<'_> {
        x.q8_k()
    }

    #[inline(always)]
    fn units(row_bytes: usize) -> usize {
        row_bytes / size_of::<B>()
    }

    #[inline(always)]
    unsafe fn no_lanes() -> Lanes {
        // SAFETY: the caller vouches for the CPU.
        unsafe { [vdupq_n_f32(0.0); 2] }
    }

    #[inline(always)]
    unsafe fn no_panel() -> EightRows<M> {
        // SAFETY: the caller vouches for the CPU.
        unsafe { EightRows::zero() }
    }

    #[inline(always)]
    unsafe fn unpack(rows: &[&[u8]; 8], unit: usize, panel: &mut EightRows<M>) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { panel.unpack::<B>(array!(8, |r| &B::slice(rows[r])[unit])) }
    }

    #[inline(always)]
    unsafe fn accumulate<const T: usize>(
        panel: &EightRows<M>,
        x: &Vec<Q8KRow<'_>>,
        first: usize,
        unit: usize,
        lanes: &mut [Lanes; T],
    ) {
        let x = rows_from::<_, T>(x, first);
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            match (B::MINS, B::GROUP) {
                (true, 16) => M::add_super_blocks::<true, 16, T>(panel, x, unit, lanes),
                (true, _) => M::add_super_blocks::<true, 32, T>(panel, x, unit, lanes),
                (false, 16) => M::add_super_blocks::<false, 16, T>(panel, x, unit, lanes),
                (false, 32) => M::add_super_blocks::<false, 32, T>(panel, x, unit, lanes),
                (false, _) => M::add_super_blocks::<false, 256, T>(panel, x, unit, lanes),
            }
        }
    }

    #[inline(always)]
    unsafe fn finish(lanes: &Lanes) -> [f32; 8] {
        let mut all = [0.0; 8];
        for (to, lanes) in all.as_chunks_mut::<4>().0.iter_mut().zip(lanes) {
            // SAFETY: four values can be written; the caller vouches for the CPU.
            unsafe { vst1q_f32(to.as_mut_ptr(), *lanes) };
        }
        all
    }
}

impl<B: SuperBlock, M: Dot> BlockKernel<8> for SuperBlocks<B, M> {
    const PANEL_TOKENS: usize = 6;

    #[inline(always)]
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Q8KRow<'_>; T]) -> [f32; T] {
        let blocks = B::slice(weights);
        let n = blocks.len();
        let x = array!(T, |t| {
            let (qs, bsums) = (x[t].qs.as_chunks::<QK_K>().0, x[t].bsums.as_chunks::<16>().0);
            (&qs[..n], &bsums[..n], &x[t].d[..n])
        });
        let mut acc = [0f32; T];
        for (b, block) in blocks.iter().enumerate() {
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                let w = block.unpack();
                let [d, dmin] = d_pair(block);
                let scales = array!(4, |i| {
                    let words = w.scales[i / 2];
                    if i % 2 == 0 { vmovl_s16(vget_low_s16(words)) } else { vmovl_high_s16(words) }
                });
                for (acc, (qs, bsums, d_a)) in acc.iter_mut().zip(x) {
                    let sum = sum_of::<B, M>(&w.q, &scales, &qs[b]);
                    if B::MINS {
                        let mins = sum_of_mins::<B>(&w.mins, &bsums[b]);
                        let pairs = vpaddq_s32(sum, mins);
                        let sums = vcvtq_f32_s32(vpaddq_s32(pairs, pairs));
                        *acc = (d * d_a[b]).mul_add(vgetq_lane_f32::<0>(sums), *acc);
                        *acc = (-(dmin * d_a[b])).mul_add(vgetq_lane_f32::<1>(sums), *acc);
                    } else {
                        *acc = (d * d_a[b]).mul_add(vaddvq_s32(sum) as f32, *acc);
                    }
                }
            }
        }
        acc
    }
}

/// Weights times activations times scales; the sum of the lanes is what is asked for.
///
/// # Safety
/// The CPU must have the features of `M`, and the caller be compiled for them.
#[inline(always)]
unsafe fn sum_of<B: SuperBlock, M: Dot>(
    q: &[int8x16_t; 16],
    scales: &[int32x4_t; 4],
    qs: &[i8; QK_K],
) -> int32x4_t {
    let (x, _) = qs.as_chunks::<16>();
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let zero = vdupq_n_s32(0);
        // Two, so that one's addition need not wait for the other's.
        let mut sums = [zero; 2];
        // Eight steps are unrolled; sixteen would not be, and lanes of scales be sought at run time.
        for j in 0..QK_K / 32 {
            let (w, x) = ([q[2 * j], q[2 * j + 1]], [load_i8(&x[2 * j]), load_i8(&x[2 * j + 1])]);
            match B::GROUP {
                16 => {
                    sums[0] = vmlaq_s32(sums[0], M::add(zero, w[0], x[0]), lane(scales, 2 * j));
                    sums[1] = vmlaq_s32(sums[1], M::add(zero, w[1], x[1]), lane(scales, 2 * j + 1));
                }
                32 => {
                    let products = M::add(M::add(zero, w[0], x[0]), w[1], x[1]);
                    sums[j % 2] = vmlaq_s32(sums[j % 2], products, lane(scales, j));
                }
                // The one scale is one.
                _ => {
                    sums[0] = M::add(sums[0], w[0], x[0]);
                    sums[1] = M::add(sums[1], w[1], x[1]);
                }
            }
        }
        vaddq_s32(sums[0], sums[1])
    }
}

/// Mins times sums of activations, likewise.
///
/// # Safety
/// The CPU must have NEON.
#[inline(always)]
unsafe fn sum_of_mins<B: SuperBlock>(mins: &[int16x8_t; 2], bsums: &[i16; 16]) -> int32x4_t {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let sums = array!(2, |i| load_i16(&bsums.as_chunks().0[i]));
        let add = |sum, a, b| vmlal_high_s16(vmlal_s16(sum, vget_low_s16(a), vget_low_s16(b)), a, b);
        let zero = vdupq_n_s32(0);
        if B::GROUP == 32 {
            return add(zero, mins[0], vpaddq_s16(sums[0], sums[1]));
        }
        add(add(zero, mins[0], sums[0]), mins[1], sums[1])
    }
}

/// Adds a panel's products with some tokens to their lanes.
///
/// # Safety
/// As [`sum_of`].
#[inline(always)]
pub(in super::super) unsafe fn add_panel<M: Dot, const MINS: bool, const GROUP: usize, const T: usize>(
    panel: &EightRows<M>,
    x: &[Q8KRow<'_>; T],
    unit: usize,
    lanes: &mut [Lanes; T],
) {
    let qs: [&[[i8; 16]]; T] = array!(T, |t| x[t].qs.as_chunks::<QK_K>().0[unit].as_chunks().0);
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let mut sums = M::no_sums::<T>();
        for c in 0..QK_K / GROUP {
            let mut products = M::no_sums::<T>();
            for i in 0..GROUP / 16 {
                let g = c * GROUP / 16 + i;
                M::add_group::<T>(&mut products, &panel.q[g], &array!(T, |t| load_i8(&qs[t][g])));
            }
            M::add_scaled::<T>(&mut sums, &products, &panel.scales[c]);
        }
        let sums = M::by_row::<T>(&sums);
        for t in 0..T {
            let d_a = x[t].d[unit];
            for h in 0..2 {
                let scale = vmulq_n_f32(panel.d[h], d_a);
                lanes[t][h] = vfmaq_f32(lanes[t][h], scale, vcvtq_f32_s32(sums[t][h]));
            }
            if MINS {
                let mins = sums_of_mins::<GROUP, M>(panel, &x[t].bsums.as_chunks::<16>().0[unit]);
                for h in 0..2 {
                    let scale = vmulq_n_f32(panel.dmin[h], d_a);
                    lanes[t][h] = vfmaq_f32(lanes[t][h], scale, vcvtq_f32_s32(mins[h]));
                }
            }
        }
    }
}

/// Of eight rows the mins times the sums of activations.
///
/// # Safety
/// The CPU must have NEON.
#[inline(always)]
unsafe fn sums_of_mins<const GROUP: usize, M: Dot>(
    panel: &EightRows<M>,
    bsums: &[i16; 16],
) -> [int32x4_t; 2] {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let mut sums = [vdupq_n_s32(0); 2];
        for c in 0..QK_K / GROUP {
            // Of 32 activations at most 32 * 127.
            let bsum = if GROUP == 32 { bsums[2 * c] + bsums[2 * c + 1] } else { bsums[c] };
            let mins = panel.mins[c];
            sums[0] = vmlal_n_s16(sums[0], vget_low_s16(mins), bsum);
            sums[1] = vmlal_high_n_s16(sums[1], mins, bsum);
        }
        sums
    }
}

/// Not inlined: panels are unpacked seldom.
///
/// # Safety
/// The CPU must have NEON.
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn unpacked<B: SuperBlock>(block: &B) -> Unpacked {
    // SAFETY: the caller vouches for the CPU.
    unsafe { block.unpack() }
}

/// `[d, dmin]`
#[inline]
#[target_feature(enable = "neon")]
fn d_pair<B: SuperBlock>(block: &B) -> [f32; 2] {
    let [d, dmin] = block.d().map(u16::from_le_bytes);
    let pair = vcreate_u16(u64::from(d) | u64::from(dmin) << 16);
    let pair = vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(pair)), B::UNIT);
    [vgetq_lane_f32::<0>(pair), vgetq_lane_f32::<1>(pair)]
}

/// Transposes 8 x 8 words.
#[inline]
#[target_feature(enable = "neon")]
fn transpose8(r: [int16x8_t; 8]) -> [int16x8_t; 8] {
    let wide = vreinterpretq_s32_s16;
    // Of two rows the even and the odd columns, of four every fourth, of eight every eighth.
    let even = array!(4, |i| wide(vtrn1q_s16(r[2 * i], r[2 * i + 1])));
    let odd = array!(4, |i| wide(vtrn2q_s16(r[2 * i], r[2 * i + 1])));
    let (even, odd) = (super::transpose4(even), super::transpose4(odd));
    array!(8, |c| vreinterpretq_s16_s32(if c % 2 == 0 { even[c / 2] } else { odd[c / 2] }))
}
