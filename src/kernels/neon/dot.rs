//! How products of bytes are added up: what the NEON sets differ in.

use std::arch::aarch64::*;

use super::{EightRows, Lanes32, Panel32, SuperLanes, compiled_for};
use crate::quant::{Q8_0Row, Q8KRow};

/// How a set multiplies and adds up groups of sixteen weights, of one row or of eight.
///
/// All `unsafe` functions have one condition: the CPU has the features of the kernel set. Those without
/// features of their own are inlined always, so that they are compiled for the features of their caller.
pub(in super::super) trait Dot: Sized {
    /// Tokens that registers have room for while they go over a panel of eight rows.
    const TOKENS: usize;
    /// Sums of eight rows and `T` tokens, as they lie while products are added.
    type Sums<const T: usize>: Copy;
    /// A factor for each of eight rows, as it lies beside such sums.
    type Scales: Copy;

    /// Adds sixteen products to the lanes; which goes to which is open.
    unsafe fn add(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t;
    /// Sixteen weights of eight rows as `add_group` takes them.
    unsafe fn arrange(rows: [int8x16_t; 8]) -> [int8x16_t; 8];
    unsafe fn scales(rows: [int32x4_t; 2]) -> Self::Scales;
    unsafe fn no_sums<const T: usize>() -> Self::Sums<T>;
    /// Adds the products of sixteen weights of eight rows with `T` tokens.
    unsafe fn add_group<const T: usize>(sums: &mut Self::Sums<T>, w: &[int8x16_t; 8], x: &[int8x16_t; T]);
    /// Adds products times scales.
    unsafe fn add_scaled<const T: usize>(
        sums: &mut Self::Sums<T>,
        products: &Self::Sums<T>,
        scales: &Self::Scales,
    );
    /// Of each token the sums of eight rows, in order.
    unsafe fn by_row<const T: usize>(sums: &Self::Sums<T>) -> [[int32x4_t; 2]; T];

    /// [`super::add_panel32`], compiled for the set's features.
    unsafe fn add_parts<const HALVES: bool, const MINS: bool, const T: usize>(
        panel: &Panel32,
        x: &[Q8_0Row<'_>; T],
        unit: usize,
        lanes: &mut [Lanes32; T],
    );
    /// [`super::add_super_panel`], compiled for the set's features.
    unsafe fn add_super_blocks<const MINS: bool, const GROUP: usize, const T: usize>(
        panel: &EightRows<Self>,
        x: &[Q8KRow<'_>; T],
        unit: usize,
        lanes: &mut [SuperLanes; T],
    );
}

/// [`Dot`] with what every ARM64 CPU has: products of 16 bits, added in pairs. A row's sums keep four lanes
/// until they are asked for.
pub(in super::super) struct Plain;

impl Dot for Plain {
    const TOKENS: usize = 1;

    type Sums<const T: usize> = [[int32x4_t; 8]; T];
    type Scales = [int32x4_t; 2];

    #[inline(always)]
    unsafe fn add(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            // 2 * 128 * 127 = 32512
            let pairs = vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), w, x);
            vpadalq_s16(sum, pairs)
        }
    }

    #[inline(always)]
    unsafe fn arrange(rows: [int8x16_t; 8]) -> [int8x16_t; 8] {
        rows
    }

    #[inline(always)]
    unsafe fn scales(rows: [int32x4_t; 2]) -> [int32x4_t; 2] {
        rows
    }

    #[inline(always)]
    unsafe fn no_sums<const T: usize>() -> [[int32x4_t; 8]; T] {
        // SAFETY: the caller vouches for the CPU.
        unsafe { [[vdupq_n_s32(0); 8]; T] }
    }

    #[inline(always)]
    unsafe fn add_group<const T: usize>(
        sums: &mut [[int32x4_t; 8]; T],
        w: &[int8x16_t; 8],
        x: &[int8x16_t; T],
    ) {
        for t in 0..T {
            for r in 0..8 {
                // SAFETY: the caller vouches for the CPU.
                sums[t][r] = unsafe { Plain::add(sums[t][r], w[r], x[t]) };
            }
        }
    }

    #[inline(always)]
    unsafe fn add_scaled<const T: usize>(
        sums: &mut [[int32x4_t; 8]; T],
        products: &[[int32x4_t; 8]; T],
        scales: &[int32x4_t; 2],
    ) {
        for t in 0..T {
            for r in 0..8 {
                // SAFETY: the caller vouches for the CPU.
                sums[t][r] = unsafe { vmlaq_s32(sums[t][r], products[t][r], lane(scales, r)) };
            }
        }
    }

    #[inline(always)]
    unsafe fn by_row<const T: usize>(sums: &[[int32x4_t; 8]; T]) -> [[int32x4_t; 2]; T] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            array!(T, |t| {
                let [a, b, c, d, e, f, g, h] = sums[t];
                [sums_of_lanes([a, b, c, d]), sums_of_lanes([e, f, g, h])]
            })
        }
    }

    compiled_for!("neon");
}

/// The sum of each register's lanes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn sums_of_lanes([a, b, c, d]: [int32x4_t; 4]) -> int32x4_t {
    vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d))
}

/// Lane `at` of several registers, in all lanes.
#[inline]
#[target_feature(enable = "neon")]
pub(in super::super) fn lane(v: &[int32x4_t], at: usize) -> int32x4_t {
    let v = v[at / 4];
    match at % 4 {
        0 => vdupq_laneq_s32::<0>(v),
        1 => vdupq_laneq_s32::<1>(v),
        2 => vdupq_laneq_s32::<2>(v),
        _ => vdupq_laneq_s32::<3>(v),
    }
}

/// Transposes 4 x 4 values of 32 bits.
#[inline]
#[target_feature(enable = "neon")]
pub(in super::super) fn transpose4([a, b, c, d]: [int32x4_t; 4]) -> [int32x4_t; 4] {
    let (ab, cd) = ([vtrn1q_s32(a, b), vtrn2q_s32(a, b)], [vtrn1q_s32(c, d), vtrn2q_s32(c, d)]);
    let wide = vreinterpretq_s64_s32;
    let low = array!(2, |i| vreinterpretq_s32_s64(vtrn1q_s64(wide(ab[i]), wide(cd[i]))));
    let high = array!(2, |i| vreinterpretq_s32_s64(vtrn2q_s64(wide(ab[i]), wide(cd[i]))));
    [low[0], low[1], high[0], high[1]]
}
