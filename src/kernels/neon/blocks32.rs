//! Formats whose activations go in blocks of 32 (Q8_0, Q8_1): a block is one or several parts of 32 weights.

use std::arch::aarch64::*;
use std::marker::PhantomData;

use super::super::blocks::{BlockKernel, PanelKernel, rows_from, takes_rows};
use super::super::layouts::{Eight, PartLayout, ShortRows, Tail, activations, eight_parts};
use super::super::{OutTile, Tile};
use super::dot::sums_of_lanes;
use super::{Dot, load_f32, load_i8, load_i16, transpose4, tree8};
use crate::quant::{ActivationRow, PART, Q8_0Row};

pub(in super::super) struct Blocks32<B, M>(PhantomData<(B, M)>);

/// What the formats differ in.
///
/// All `unsafe` functions have one condition: the CPU has NEON. They are inlined always, whatever their
/// length, so that weights stay in registers.
pub(in super::super) trait Block: PartLayout {
    /// What is to be taken off the weights. Rows leave that to the sums of activations.
    const OFFSET: i16 = 0;

    /// Weights of part `p`, in order, `OFFSET` not taken off.
    unsafe fn part(&self, p: usize) -> [int8x16_t; 2];
    /// Of eight parts, which are whole blocks: their scales (of their first halves), and what else the format
    /// has: the scales of their second halves or their mins.
    unsafe fn scales(blocks: &[Self]) -> [[float32x4_t; 2]; 2];
}

/// Eight rows of up to eight parts.
#[derive(Clone, Copy)]
pub(in super::super) struct Panel {
    /// Parts there are.
    parts: usize,
    /// `[part][half]`, as the set's [`Dot`] takes them.
    q: [[[int8x16_t; 8]; 2]; 8],
    /// `[part]`: scales, and what else the format has; a lane a row, in two halves.
    scales: [[[float32x4_t; 2]; 8]; 2],
}

impl Panel {
    /// Takes unit `unit` of eight rows.
    #[inline(always)]
    unsafe fn unpack<B: Block, M: Dot>(&mut self, rows: &[&[u8]; 8], unit: usize) {
        let step = eight_parts::<B>();
        let rows: [&[B]; 8] = array!(8, |r| &B::slice(rows[r])[unit * step..]);
        let blocks = rows[0].len().min(step);
        self.parts = blocks * B::PARTS;
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let offset = vdupq_n_s8(B::OFFSET as i8);
            for b in 0..self.parts {
                let w = array!(8, |r| part(&rows[r][b / B::PARTS], b % B::PARTS));
                for half in 0..2 {
                    self.q[b][half] = M::arrange(array!(8, |r| vsubq_s8(w[r][half], offset)));
                }
            }
            let scales = array!(8, |r| {
                let mut eight = [B::new_zeroed(); 8];
                eight[..blocks].copy_from_slice(&rows[r][..blocks]);
                scales(&eight[..step])
            });
            for i in 0..2 {
                for (first, h) in [(0, 0), (0, 1), (4, 0), (4, 1)] {
                    let rows = array!(4, |r| vreinterpretq_s32_f32(scales[4 * h + r][i][first / 4]));
                    let columns = transpose4(rows);
                    for b in 0..4 {
                        self.scales[i][first + b][h] = vreinterpretq_f32_s32(columns[b]);
                    }
                }
            }
        }
    }
}

/// Of each token the lanes, which are parts by index as in [`crate::quant`], of eight rows in two halves.
pub(in super::super) type Lanes = [[float32x4_t; 2]; 8];

impl<B: Block, M: Dot> PanelKernel<8> for Blocks32<B, M> {
    const TOKENS: usize = M::TOKENS;

    takes_rows!(8);

    type Row<'a> = Q8_0Row<'a>;
    type Panel = Panel;
    type Lanes = Lanes;

    #[inline(always)]
    fn row(x: ActivationRow<'_>) -> Q8_0Row<'_> {
        activations::<B>(x)
    }

    #[inline(always)]
    fn units(row_bytes: usize) -> usize {
        row_bytes.div_ceil(eight_parts::<B>() * size_of::<B>())
    }

    #[inline(always)]
    unsafe fn no_lanes() -> Lanes {
        // SAFETY: the caller vouches for the CPU.
        unsafe { [[vdupq_n_f32(0.0); 2]; 8] }
    }

    #[inline(always)]
    unsafe fn no_panel() -> Panel {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            Panel { parts: 0, q: [[[vdupq_n_s8(0); 8]; 2]; 8], scales: [[[vdupq_n_f32(0.0); 2]; 8]; 2] }
        }
    }

    #[inline(always)]
    unsafe fn unpack(rows: &[&[u8]; 8], unit: usize, panel: &mut Panel) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { panel.unpack::<B, M>(rows, unit) }
    }

    #[inline(always)]
    unsafe fn accumulate<const T: usize>(
        panel: &Panel,
        x: &Vec<Q8_0Row<'_>>,
        first: usize,
        unit: usize,
        lanes: &mut [Lanes; T],
    ) {
        let x = rows_from::<_, T>(x, first);
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            match (B::HALVES, B::MINS) {
                (true, _) => M::add_parts::<true, false, T>(panel, x, unit, lanes),
                (_, true) => M::add_parts::<false, true, T>(panel, x, unit, lanes),
                _ => M::add_parts::<false, false, T>(panel, x, unit, lanes),
            }
        }
    }

    /// The tree of [`crate::quant::tree8`], over lanes that hold four rows each.
    #[inline(always)]
    unsafe fn finish(lanes: &Lanes) -> [f32; 8] {
        let mut all = [0.0; 8];
        for (h, to) in all.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            // SAFETY: four values can be written; the caller vouches for the CPU.
            unsafe {
                let fours = array!(4, |b| vaddq_f32(lanes[b][h], lanes[b + 4][h]));
                let sum = vaddq_f32(vaddq_f32(fours[0], fours[2]), vaddq_f32(fours[1], fours[3]));
                vst1q_f32(to.as_mut_ptr(), sum);
            }
        }
        all
    }
}

impl<B: Block, M: Dot> BlockKernel<8> for Blocks32<B, M> {
    const PANEL_TOKENS: usize = 6;

    #[inline(always)]
    unsafe fn dots<const T: usize>(weights: &[u8], x: [Q8_0Row<'_>; T]) -> [f32; T] {
        let eights = B::slice(weights).chunks_exact(eight_parts::<B>());
        let tail = eights.remainder();
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let mut acc = [[vdupq_n_f32(0.0); 2]; T];
            let mut at = 0;
            for blocks in eights {
                let w = Weights::of(blocks);
                for t in 0..T {
                    let Some(x) = Eight::of::<B>(x[t], at) else {
                        unreachable!("as many activations as weights")
                    };
                    acc[t] = w.add::<B, M>(x, acc[t]);
                }
                at += 8;
            }
            let n = tail.len() * B::PARTS;
            if n > 0 {
                let mut tail = Tail::new(tail);
                let w = Weights::of(&tail.blocks[..eight_parts::<B>()]);
                let there = first_lanes(n);
                for t in 0..T {
                    let next = w.add::<B, M>(tail.x(x[t], at, n), acc[t]);
                    // Lanes without a part stay as they are.
                    acc[t] = array!(2, |h| vbslq_f32(there[h], next[h], acc[t][h]));
                }
            }
            array!(T, |t| tree8(acc[t][0], acc[t][1]))
        }
    }

    #[inline(always)]
    unsafe fn rows_together(tile: &Tile<'_>, x: &[Q8_0Row<'_>], out: &mut OutTile<'_>) -> usize {
        let Some(rows) = ShortRows::<B>::of(tile) else { return 0 };
        for (t, &x) in x.iter().enumerate() {
            let mut filled = Tail::<B>::new(&[]);
            let x = filled.x(x, 0, rows.parts());
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                let (zero, there) = (vdupq_n_f32(0.0), first_lanes(rows.parts()));
                for r in 0..rows.count {
                    let lanes = Weights::of(rows.eight(r)).add::<B, M>(x, [zero; 2]);
                    // What belongs to the next row does not count.
                    let [low, high] = array!(2, |h| vbslq_f32(there[h], lanes[h], zero));
                    out.set(t, r, tree8(low, high));
                }
            }
        }
        rows.count
    }
}

/// All bits of the first `n` of eight lanes.
#[inline]
#[target_feature(enable = "neon")]
fn first_lanes(n: usize) -> [uint32x4_t; 2] {
    let places = vcombine_u16(vcreate_u16(0x0003_0002_0001_0000), vcreate_u16(0x0007_0006_0005_0004));
    let n = vdupq_n_u32(n as u32);
    [vcltq_u32(vmovl_u16(vget_low_u16(places)), n), vcltq_u32(vmovl_high_u16(places), n)]
}

/// Eight parts of a row.
struct Weights {
    q: [[int8x16_t; 2]; 8],
    scales: [[float32x4_t; 2]; 2],
}

impl Weights {
    /// # Safety
    /// The CPU must have NEON.
    #[inline(always)]
    unsafe fn of<B: Block>(blocks: &[B]) -> Weights {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let q = array!(8, |b| blocks[b / B::PARTS].part(b % B::PARTS));
            Weights { q, scales: B::scales(blocks) }
        }
    }

    /// Adds their products with eight parts of activations to the lanes.
    ///
    /// # Safety
    /// The CPU must have the features of `M`, and the caller be compiled for them.
    #[inline(always)]
    unsafe fn add<B: Block, M: Dot>(&self, x: Eight<'_>, lanes: [float32x4_t; 2]) -> [float32x4_t; 2] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let mut offsets = [vdupq_n_s32(0); 2];
            if B::OFFSET != 0 {
                let sums = array!(2, |i| load_i16(&x.bsums.as_chunks().0[i]));
                let sums = vpaddq_s16(sums[0], sums[1]);
                offsets[0] = vmull_n_s16(vget_low_s16(sums), B::OFFSET);
                offsets[1] = vmull_high_n_s16(sums, B::OFFSET);
            }
            array!(2, |h| {
                let d_a = load_f32(&x.d.as_chunks().0[h]);
                let scale = vmulq_f32(self.scales[0][h], d_a);
                if B::HALVES {
                    let first = vcvtq_f32_s32(sums_of_lanes(array!(4, |i| self.half::<M>(x, 4 * h + i, 0))));
                    let second = vcvtq_f32_s32(sums_of_lanes(array!(4, |i| self.half::<M>(x, 4 * h + i, 1))));
                    let sum = vfmaq_f32(lanes[h], scale, first);
                    vfmaq_f32(sum, vmulq_f32(self.scales[1][h], d_a), second)
                } else {
                    let products = sums_of_lanes(array!(4, |i| self.whole::<M>(x, 4 * h + i)));
                    let products = vsubq_s32(products, offsets[h]);
                    let sum = vfmaq_f32(lanes[h], scale, vcvtq_f32_s32(products));
                    let s = load_f32(&x.s.as_chunks().0[h]);
                    if B::MINS { vfmaq_f32(sum, self.scales[1][h], s) } else { sum }
                }
            })
        }
    }

    /// # Safety
    /// As `add`.
    #[inline(always)]
    unsafe fn half<M: Dot>(&self, x: Eight<'_>, b: usize, half: usize) -> int32x4_t {
        // SAFETY: the caller vouches for the CPU.
        unsafe { M::add(vdupq_n_s32(0), self.q[b][half], load_i8(&x.qs[b].as_chunks().0[half])) }
    }

    /// # Safety
    /// As `add`.
    #[inline(always)]
    unsafe fn whole<M: Dot>(&self, x: Eight<'_>, b: usize) -> int32x4_t {
        // SAFETY: the caller vouches for the CPU.
        unsafe { M::add(self.half::<M>(x, b, 0), self.q[b][1], load_i8(&x.qs[b].as_chunks().0[1])) }
    }
}

/// Not inlined: panels are unpacked seldom.
///
/// # Safety
/// The CPU must have NEON.
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn part<B: Block>(block: &B, p: usize) -> [int8x16_t; 2] {
    // SAFETY: the caller vouches for the CPU.
    unsafe { block.part(p) }
}

/// # Safety
/// The CPU must have NEON.
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn scales<B: Block>(blocks: &[B]) -> [[float32x4_t; 2]; 2] {
    // SAFETY: the caller vouches for the CPU.
    unsafe { B::scales(blocks) }
}

/// Adds a panel's products with some tokens to their lanes.
///
/// # Safety
/// The CPU must have the features of `M`, and the caller be compiled for them.
#[inline(always)]
pub(in super::super) unsafe fn add_panel<M: Dot, const HALVES: bool, const MINS: bool, const T: usize>(
    panel: &Panel,
    x: &[Q8_0Row<'_>; T],
    unit: usize,
    lanes: &mut [Lanes; T],
) {
    let parts = panel.parts.min(8);
    let here = 8 * unit..8 * unit + parts;
    let qs = array!(T, |t| &x[t].qs.as_chunks::<PART>().0[here.clone()]);
    let d = array!(T, |t| &x[t].d[here.clone()]);
    let s = array!(T, |t| if MINS { &x[t].s[here.clone()] } else { d[t] });
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        for b in 0..parts {
            let halves = array!(2, |half| array!(T, |t| load_i8(&qs[t][b].as_chunks().0[half])));
            let mut first = M::no_sums::<T>();
            M::add_group::<T>(&mut first, &panel.q[b][0], &halves[0]);
            let mut second = if HALVES { M::no_sums::<T>() } else { first };
            M::add_group::<T>(&mut second, &panel.q[b][1], &halves[1]);
            let (first, second) = (M::by_row::<T>(&first), M::by_row::<T>(&second));
            for t in 0..T {
                for h in 0..2 {
                    let (scale, more) = (panel.scales[0][b][h], panel.scales[1][b][h]);
                    let lane = &mut lanes[t][b][h];
                    let scale = vmulq_n_f32(scale, d[t][b]);
                    if HALVES {
                        *lane = vfmaq_f32(*lane, scale, vcvtq_f32_s32(first[t][h]));
                        let scale = vmulq_n_f32(more, d[t][b]);
                        *lane = vfmaq_f32(*lane, scale, vcvtq_f32_s32(second[t][h]));
                    } else {
                        *lane = vfmaq_f32(*lane, scale, vcvtq_f32_s32(second[t][h]));
                    }
                    if MINS {
                        *lane = vfmaq_n_f32(*lane, more, s[t][b]);
                    }
                }
            }
        }
    }
}
