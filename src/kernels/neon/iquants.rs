//! The IQ formats of 1 to 3 bits in registers: points of grids, looked up eight weights at a time.

use std::arch::aarch64::*;

use super::super_blocks::{SuperBlock, Unpacked};
use super::{load_at, load_u8};
use crate::quant::{
    BlockIQ1M, BlockIQ1S, BlockIQ2S, BlockIQ2XS, BlockIQ2XXS, BlockIQ3S, BlockIQ3XXS, GridBlock,
};

/// Weights `16 half` to `16 half + 15` of four times eight.
#[inline]
#[target_feature(enable = "neon")]
fn half_of(eights: [u64; 4], half: usize) -> int8x16_t {
    vcombine_s8(vcreate_s8(eights[2 * half]), vcreate_s8(eights[2 * half + 1]))
}

/// Magnitudes times signs.
#[inline]
#[target_feature(enable = "neon")]
fn signed_points<B: GridBlock>(block: &B) -> [int8x16_t; 16] {
    let mut q = [vdupq_n_s8(0); 16];
    for j in 0..8 {
        let (points, signs) = (block.points(j), block.signs(j));
        for half in 0..2 {
            q[2 * j + half] = vmulq_s8(half_of(points, half), half_of(signs, half));
        }
    }
    q
}

/// Weights `8 t + e`; the grid has `8 t + 8`, the signs are `e`.
#[inline]
#[target_feature(enable = "neon")]
fn ternary_points<B: GridBlock>(block: &B) -> [int8x16_t; 16] {
    let eight = vdupq_n_s8(8);
    let mut q = [eight; 16];
    for j in 0..8 {
        let (points, e) = (block.points(j), block.signs(j));
        for half in 0..2 {
            q[2 * j + half] = vaddq_s8(vsubq_s8(half_of(points, half), eight), half_of(e, half));
        }
    }
    q
}

/// `2 s + 1`
#[inline]
#[target_feature(enable = "neon")]
fn odd_words(s: uint16x8_t) -> int16x8_t {
    vreinterpretq_s16_u16(vorrq_u16(vaddq_u16(s, s), vdupq_n_u16(1)))
}

/// Scales of 32 weights in the highest four bits of words of 32 bits.
#[inline]
#[target_feature(enable = "neon")]
fn scales_on_top([a, b]: [uint32x4_t; 2]) -> int16x8_t {
    odd_words(vcombine_u16(vmovn_u32(vshrq_n_u32::<28>(a)), vmovn_u32(vshrq_n_u32::<28>(b))))
}

/// Sixteen bytes from `16 at` on, as words of 32 bits.
#[inline]
#[target_feature(enable = "neon")]
fn words_at(bytes: &[u8], at: usize) -> uint32x4_t {
    vreinterpretq_u32_u8(load_at(bytes, at))
}

/// The nibbles of eight bytes, low ones first.
#[inline]
#[target_feature(enable = "neon")]
fn nibbles(bytes: uint8x8_t) -> [uint16x8_t; 2] {
    let (low, high) = (vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8::<4>(bytes));
    [vmovl_u8(vzip1_u8(low, high)), vmovl_u8(vzip2_u8(low, high))]
}

/// A format from its weights and scales.
macro_rules! grid_block {
    ($block:ident, group: $group:literal, |$self:ident| $unpacked:expr) => {
        impl SuperBlock for $block {
            const GROUP: usize = $group;

            #[inline(always)]
            unsafe fn unpack(&$self) -> Unpacked {
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    $unpacked
                }
            }
        }
    };
}

/// Weights with the scales of 16 each that are in the nibbles of eight bytes.
#[inline]
#[target_feature(enable = "neon")]
fn of_nibbles(q: [int8x16_t; 16], scales: [u8; 8]) -> Unpacked {
    let [low, high] = nibbles(vcreate_u8(u64::from_le_bytes(scales)));
    let scales = [odd_words(low), odd_words(high)];
    Unpacked { q, scales, mins: scales }
}

grid_block!(BlockIQ2XXS, group: 32, |self| {
    // Of every two words the second.
    let bytes = self.qs.as_flattened();
    let words = array!(2, |i| vuzp2q_u32(words_at(bytes, 2 * i), words_at(bytes, 2 * i + 1)));
    Unpacked::of_32(signed_points(self), scales_on_top(words))
});
grid_block!(BlockIQ2XS, group: 16, |self| of_nibbles(signed_points(self), self.scales));
grid_block!(BlockIQ2S, group: 16, |self| of_nibbles(signed_points(self), self.scales));
grid_block!(BlockIQ3XXS, group: 32, |self| {
    let words = array!(2, |i| words_at(self.signs.as_flattened(), i));
    Unpacked::of_32(signed_points(self), scales_on_top(words))
});
grid_block!(BlockIQ3S, group: 32, |self| {
    let [scales, _] = nibbles(vcreate_u8(u64::from(u32::from_le_bytes(self.scales))));
    Unpacked::of_32(signed_points(self), odd_words(scales))
});
grid_block!(BlockIQ1S, group: 32, |self| {
    let words = vreinterpretq_u16_u8(load_at(self.qh.as_flattened(), 0));
    let scales = vandq_u16(vshrq_n_u16::<12>(words), vdupq_n_u16(7));
    Unpacked::of_32(ternary_points(self), odd_words(scales))
});
grid_block!(BlockIQ1M, group: 16, |self| {
    const WORD: [u8; 16] = [0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3];
    let words = self.scales.as_flattened().first_chunk().unwrap_or(&[0; 8]);
    let words = vreinterpretq_u8_u64(vdupq_n_u64(u64::from_le_bytes(*words)));
    // Each word four times, by 0, 3, 6 and 9 bits to the right.
    let right = vreinterpretq_s16_u64(vdupq_n_u64(0xfff7_fffa_fffd_0000));
    let scales = array!(2, |half| {
        let four_times = vqtbl1q_u8(words, vaddq_u8(load_u8(&WORD), vdupq_n_u8(4 * half as u8)));
        let fields = vshlq_u16(vreinterpretq_u16_u8(four_times), right);
        odd_words(vandq_u16(fields, vdupq_n_u16(7)))
    });
    Unpacked { q: ternary_points(self), scales, mins: scales }
});
