//! The kernel set of ARM64 CPUs with `sdot`, which multiplies and adds up four bytes a lane: those of ARMv8.4
//! and many before it (Cortex-A75 and later, Neoverse N1, all of Apple's M series).
//!
//! In panels a lane belongs to a row, and `sdot` takes a token's four bytes from a lane of its own.

use std::arch::aarch64::*;
use std::arch::asm;

use super::blocks::{self, BlockKernel};
use super::neon::{self, Dot, compiled_for, neon_set, transpose4};
use super::{Isa, Kernels, OutTile, Tile, TileKernel, block_kernel, missing_features, ops};
use crate::gguf::TensorType;

neon_set!(
    DotProduct,
    "neon,dotprod",
    missing_features!("neon", "dotprod"),
    NeonDotprod on &neon::KERNELS,
    []
);

/// One `sdot`, whose intrinsic is not stable; `$by` says which bytes of `x` are taken.
macro_rules! sdot {
    ($sum:expr, $w:expr, $x:expr, $by:literal) => {{
        let mut sum = $sum;
        // SAFETY: registers only, and this function is compiled for the feature, which the CPU has.
        unsafe {
            asm!(
                concat!("sdot {0:v}.4s, {1:v}.16b, {2:v}.", $by),
                inout(vreg) sum, in(vreg) $w, in(vreg) $x,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }};
}

/// Each lane with the products of its four bytes added.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn add_quads(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    sdot!(sum, w, x, "16b")
}

/// Adds to each lane its products with quad `K` of `x`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_quad<const K: usize>(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    match K {
        0 => sdot!(sum, w, x, "4b[0]"),
        1 => sdot!(sum, w, x, "4b[1]"),
        2 => sdot!(sum, w, x, "4b[2]"),
        _ => sdot!(sum, w, x, "4b[3]"),
    }
}

/// Adds quad `K` of eight rows and of some tokens.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_quads_of_rows<const K: usize, const T: usize>(
    sums: &mut [[int32x4_t; 2]; T],
    w: &[int8x16_t; 8],
    x: &[int8x16_t; T],
) {
    for t in 0..T {
        for h in 0..2 {
            sums[t][h] = add_quad::<K>(sums[t][h], w[4 * h + K], x[t]);
        }
    }
}

struct DotProduct;

impl Dot for DotProduct {
    const TOKENS: usize = 4;

    /// Lane `i` of register `h` is row `4 h + i`'s.
    type Sums<const T: usize> = [[int32x4_t; 2]; T];
    type Scales = [int32x4_t; 2];

    #[inline(always)]
    unsafe fn add(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the caller vouches for the CPU.
        unsafe { add_quads(sum, w, x) }
    }

    /// Quad `k` of rows `4 h` to `4 h + 3` in register `4 h + k`.
    #[inline(always)]
    unsafe fn arrange(rows: [int8x16_t; 8]) -> [int8x16_t; 8] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let halves = array!(2, |h| transpose4(array!(4, |k| vreinterpretq_s32_s8(rows[4 * h + k]))));
            array!(8, |i| vreinterpretq_s8_s32(halves[i / 4][i % 4]))
        }
    }

    #[inline(always)]
    unsafe fn scales(rows: [int32x4_t; 2]) -> [int32x4_t; 2] {
        rows
    }

    #[inline(always)]
    unsafe fn no_sums<const T: usize>() -> [[int32x4_t; 2]; T] {
        // SAFETY: the caller vouches for the CPU.
        unsafe { [[vdupq_n_s32(0); 2]; T] }
    }

    #[inline(always)]
    unsafe fn add_group<const T: usize>(
        sums: &mut [[int32x4_t; 2]; T],
        w: &[int8x16_t; 8],
        x: &[int8x16_t; T],
    ) {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            add_quads_of_rows::<0, T>(sums, w, x);
            add_quads_of_rows::<1, T>(sums, w, x);
            add_quads_of_rows::<2, T>(sums, w, x);
            add_quads_of_rows::<3, T>(sums, w, x);
        }
    }

    #[inline(always)]
    unsafe fn add_scaled<const T: usize>(
        sums: &mut [[int32x4_t; 2]; T],
        products: &[[int32x4_t; 2]; T],
        scales: &[int32x4_t; 2],
    ) {
        for t in 0..T {
            for h in 0..2 {
                // SAFETY: the caller vouches for the CPU.
                sums[t][h] = unsafe { vmlaq_s32(sums[t][h], products[t][h], scales[h]) };
            }
        }
    }

    #[inline(always)]
    unsafe fn by_row<const T: usize>(sums: &[[int32x4_t; 2]; T]) -> [[int32x4_t; 2]; T] {
        *sums
    }

    compiled_for!("neon,dotprod");
}
