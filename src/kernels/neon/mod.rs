//! The NEON kernel sets of ARM64: `neon` for every CPU, `neon-dotprod` and `neon-i8mm` for those with
//! instructions for products of bytes. All code here is generic over [`Dot`], which is what the sets differ
//! in; the driver in [`super::blocks`] takes the quantised formats.
//!
//! NEON multiplies signed bytes by signed bytes: weights lose their offset when they are unpacked, and every
//! format comes down to signed weights, integer scales and, in some, mins.
//!
//! Every function here that is marked with target features relies on the same thing: a
//! `&'static Kernels` of a NEON set exists, hence the CPU has them.

mod blocks32;
mod codebooks;
mod dot;
mod floats;
mod iquants;
mod kquants;
mod legacy;
mod super_blocks;
mod ternary;

use std::arch::aarch64::*;

use super::blocks::{self, BlockKernel};
use super::{
    Isa, Kernels, OutTile, Tile, TileKernel, block_kernel, kernel, layouts, missing_features, ops, scalar,
};
use crate::gguf::TensorType;
pub(super) use blocks32::{
    Blocks32 as Blocks32With, Lanes as Lanes32, Panel as Panel32, add_panel as add_panel32,
};
use dot::Plain;
pub(super) use dot::{Dot, lane, transpose4};
pub(super) use super_blocks::{
    EightRows, Lanes as SuperLanes, SuperBlocks as SuperBlocksWith, add_panel as add_super_panel,
};

/// A kernel set from its [`Dot`] and the features that go with it, its [`Isa`], its base, and the kernels
/// that it has beside those of the quantised formats.
macro_rules! neon_set {
    ($dot:ident, $features:tt, $missing:expr, $isa:ident on $base:expr, [$($kernel:expr),*]) => {
        pub(super) static KERNELS: Kernels = Kernels {
            isa: Isa::$isa,
            missing: $missing,
            slow: || false,
            tiles: TILES,
            base: Some($base),
            ops: || &ops::NEON,
        };

        static TILES: &[TileKernel] = tiles_with_quantised!(SuperBlocks, [$($kernel),*]);

        type Blocks32<B> = $crate::kernels::neon::Blocks32With<B, $dot>;
        type SuperBlocks<B> = $crate::kernels::neon::SuperBlocksWith<B, $dot>;

        /// # Safety
        /// The CPU must have the features of this kernel set.
        #[target_feature(enable = $features)]
        unsafe fn quantised<K: BlockKernel<ROWS>, const ROWS: usize>(tile: &Tile<'_>, out: &mut OutTile<'_>) {
            // SAFETY: the caller vouches for the CPU.
            unsafe { blocks::tile::<K, ROWS>(tile, out) }
        }
    };
}
pub(super) use neon_set;

/// The parts of [`Dot`] that are compiled for a set's features, once for all formats of a kind.
macro_rules! compiled_for {
    ($features:tt) => {
        #[inline(never)]
        #[target_feature(enable = $features)]
        unsafe fn add_parts<const HALVES: bool, const MINS: bool, const T: usize>(
            panel: &$crate::kernels::neon::Panel32,
            x: &[$crate::quant::Q8_0Row<'_>; T],
            unit: usize,
            lanes: &mut [$crate::kernels::neon::Lanes32; T],
        ) {
            // SAFETY: the caller vouches for the CPU.
            unsafe { $crate::kernels::neon::add_panel32::<Self, HALVES, MINS, T>(panel, x, unit, lanes) }
        }

        #[inline(never)]
        #[target_feature(enable = $features)]
        unsafe fn add_super_blocks<const MINS: bool, const GROUP: usize, const T: usize>(
            panel: &$crate::kernels::neon::EightRows<Self>,
            x: &[$crate::quant::Q8KRow<'_>; T],
            unit: usize,
            lanes: &mut [$crate::kernels::neon::SuperLanes; T],
        ) {
            // SAFETY: the caller vouches for the CPU.
            unsafe { $crate::kernels::neon::add_super_panel::<Self, MINS, GROUP, T>(panel, x, unit, lanes) }
        }
    };
}
pub(super) use compiled_for;

neon_set!(Plain, "neon", missing_features!("neon"), Neon on &scalar::KERNELS, [
    kernel(TensorType::F32, floats::tile::<layouts::F32>),
    kernel(TensorType::F16, floats::tile::<layouts::F16>),
    kernel(TensorType::BF16, floats::tile::<layouts::Bf16>)
]);

#[inline]
#[target_feature(enable = "neon")]
fn load_u8(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: 16 bytes can be read, and no alignment is asked for.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_i8(bytes: &[i8; 16]) -> int8x16_t {
    // SAFETY: 16 bytes can be read, and no alignment is asked for.
    unsafe { vld1q_s8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_i16(values: &[i16; 8]) -> int16x8_t {
    // SAFETY: 16 bytes can be read, and no alignment is asked for.
    unsafe { vld1q_s16(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_f32(values: &[f32; 4]) -> float32x4_t {
    // SAFETY: 16 bytes can be read, and no alignment is asked for.
    unsafe { vld1q_f32(values.as_ptr()) }
}

/// Sixteen bytes from `16 at` on: one load (bytes put together one by one are not made one).
#[inline]
#[target_feature(enable = "neon")]
fn load_at(bytes: &[u8], at: usize) -> uint8x16_t {
    load_u8(&bytes.as_chunks().0[at])
}

#[inline]
#[target_feature(enable = "neon")]
fn signed(bytes: uint8x16_t) -> int8x16_t {
    vreinterpretq_s8_u8(bytes)
}

/// Eight bytes, none above 127.
#[inline]
#[target_feature(enable = "neon")]
fn small_words(bytes: uint8x8_t) -> int16x8_t {
    vreinterpretq_s16_u16(vmovl_u8(bytes))
}

/// Eight f16 values, sixteen bytes, as f32.
#[inline]
#[target_feature(enable = "neon")]
fn widen_f16(bytes: uint8x16_t) -> [float32x4_t; 2] {
    let halves = vreinterpretq_f16_u8(bytes);
    [vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)]
}

/// Eight scales as f32.
#[inline]
#[target_feature(enable = "neon")]
fn widen_scales(scales: [[u8; 2]; 8]) -> [float32x4_t; 2] {
    widen_f16(load_at(scales.as_flattened(), 0))
}

/// [`crate::quant::tree8`] of the lanes.
#[inline]
#[target_feature(enable = "neon")]
fn tree8(low: float32x4_t, high: float32x4_t) -> f32 {
    let fours = vaddq_f32(low, high);
    let twos = vadd_f32(vget_low_f32(fours), vget_high_f32(fours));
    vget_lane_f32::<0>(twos) + vget_lane_f32::<1>(twos)
}
