//! The kernel set of ARM64 CPUs with `smmla`, which multiplies two rows of eight bytes with two others
//! (ARMv8.6: Cortex-A710 and later, Neoverse V1 and N2, Apple's M2 and later).
//!
//! In panels a register of weights has eight of each of two rows, one of activations eight of each of two
//! tokens, and a sum is a tile of 2 x 2. Few tokens take the rows of `neon-dotprod`.

use std::arch::aarch64::*;
use std::arch::asm;

use super::blocks::{self, BlockKernel};
use super::neon::{Dot, compiled_for, neon_set};
use super::neon_dotprod::{self, add_quads};
use super::{Isa, Kernels, OutTile, Tile, TileKernel, block_kernel, missing_features, ops};
use crate::gguf::TensorType;

neon_set!(
    MatrixProduct,
    "neon,dotprod,i8mm",
    missing_features!("neon", "dotprod", "i8mm"),
    NeonI8mm on &neon_dotprod::KERNELS,
    []
);

/// One `smmla`, whose intrinsic is not stable: lane `2 i + j` with the products of half `i` of `w` and half
/// `j` of `x` added.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn add_tile(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: registers only, and this function is compiled for the feature, which the CPU has.
    unsafe {
        asm!(
            "smmla {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sum, in(vreg) w, in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// The lower and the upper halves of two registers.
#[inline]
#[target_feature(enable = "neon")]
fn halves_of(a: int8x16_t, b: int8x16_t) -> [int8x16_t; 2] {
    let (a, b) = (vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b));
    [vreinterpretq_s8_s64(vtrn1q_s64(a, b)), vreinterpretq_s8_s64(vtrn2q_s64(a, b))]
}

struct MatrixProduct;

impl Dot for MatrixProduct {
    const TOKENS: usize = 4;

    /// Register `p` of entry `u`: rows `2 p` and `2 p + 1` with tokens `2 u` and `2 u + 1`. Entries from half
    /// of `T` on are nothing. Of an odd number of tokens the last is there twice.
    type Sums<const T: usize> = [[int32x4_t; 4]; T];
    type Scales = [int32x4_t; 4];

    #[inline(always)]
    unsafe fn add(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the caller vouches for the CPU.
        unsafe { add_quads(sum, w, x) }
    }

    /// Halves of rows `2 p` and `2 p + 1` in registers `2 p` and `2 p + 1`.
    #[inline(always)]
    unsafe fn arrange(rows: [int8x16_t; 8]) -> [int8x16_t; 8] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let pairs = array!(4, |p| halves_of(rows[2 * p], rows[2 * p + 1]));
            array!(8, |i| pairs[i / 2][i % 2])
        }
    }

    #[inline(always)]
    unsafe fn scales([low, high]: [int32x4_t; 2]) -> [int32x4_t; 4] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            [vzip1q_s32(low, low), vzip2q_s32(low, low), vzip1q_s32(high, high), vzip2q_s32(high, high)]
        }
    }

    #[inline(always)]
    unsafe fn no_sums<const T: usize>() -> [[int32x4_t; 4]; T] {
        // SAFETY: the caller vouches for the CPU.
        unsafe { [[vdupq_n_s32(0); 4]; T] }
    }

    #[inline(always)]
    unsafe fn add_group<const T: usize>(
        sums: &mut [[int32x4_t; 4]; T],
        w: &[int8x16_t; 8],
        x: &[int8x16_t; T],
    ) {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let pairs = array!(T, |u| halves_of(x[2 * u % T], x[(2 * u + 1).min(T - 1)]));
            for half in 0..2 {
                for u in 0..T.div_ceil(2) {
                    for p in 0..4 {
                        sums[u][p] = add_tile(sums[u][p], w[2 * p + half], pairs[u][half]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn add_scaled<const T: usize>(
        sums: &mut [[int32x4_t; 4]; T],
        products: &[[int32x4_t; 4]; T],
        scales: &[int32x4_t; 4],
    ) {
        for u in 0..T.div_ceil(2) {
            for p in 0..4 {
                // SAFETY: the caller vouches for the CPU.
                sums[u][p] = unsafe { vmlaq_s32(sums[u][p], products[u][p], scales[p]) };
            }
        }
    }

    #[inline(always)]
    unsafe fn by_row<const T: usize>(sums: &[[int32x4_t; 4]; T]) -> [[int32x4_t; 2]; T] {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            array!(T, |t| {
                let [a, b, c, d] = sums[t / 2];
                if t % 2 == 0 {
                    [vuzp1q_s32(a, b), vuzp1q_s32(c, d)]
                } else {
                    [vuzp2q_s32(a, b), vuzp2q_s32(c, d)]
                }
            })
        }
    }

    compiled_for!("neon,dotprod,i8mm");
}
