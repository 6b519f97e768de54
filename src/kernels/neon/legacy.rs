//! Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 in registers.

use std::arch::aarch64::*;

use super::blocks32::Block;
use super::{load_i8, load_u8, signed, widen_scales};
use crate::quant::{BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0, PART};

/// A format whose blocks are one part: what its weights are, and which other scale it has beside `d`.
macro_rules! block {
    ($block:ident, offset: $offset:literal, mins: $mins:ident, |$self:ident| $weights:expr) => {
        impl Block for $block {
            const OFFSET: i16 = $offset;

            #[inline(always)]
            unsafe fn part(&$self, _: usize) -> [int8x16_t; 2] {
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    $weights
                }
            }

            #[inline(always)]
            unsafe fn scales(blocks: &[$block]) -> [[float32x4_t; 2]; 2] {
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    [widen_scales(array!(8, |b| blocks[b].d)), block!(@min $mins blocks)]
                }
            }
        }
    };
    (@min true $blocks:ident) => { widen_scales(array!(8, |b| $blocks[b].m)) };
    (@min false $blocks:ident) => { [vdupq_n_f32(0.0); 2] };
}

block!(BlockQ4_0, offset: 8, mins: false, |self| nibbles(&self.qs));
block!(BlockQ4_1, offset: 0, mins: true, |self| nibbles(&self.qs));
block!(BlockQ5_0, offset: 16, mins: false, |self| five_bits(&self.qs, self.qh));
block!(BlockQ5_1, offset: 0, mins: true, |self| five_bits(&self.qs, self.qh));
block!(BlockQ8_0, offset: 0, mins: false, |self| array!(2, |half| load_i8(&self.qs.as_chunks().0[half])));

#[inline]
#[target_feature(enable = "neon")]
fn five_bits(qs: &[u8; PART / 2], qh: [u8; 4]) -> [int8x16_t; 2] {
    let (low, set) = (nibbles(qs), bytes_of_bits(u32::from_le_bytes(qh)));
    array!(2, |i| vorrq_s8(low[i], signed(vandq_u8(set[i], vdupq_n_u8(16)))))
}

/// Low nibbles in the first register, high nibbles in the second.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn nibbles(qs: &[u8; PART / 2]) -> [int8x16_t; 2] {
    let both = load_u8(qs);
    [signed(vandq_u8(both, vdupq_n_u8(15))), signed(vshrq_n_u8::<4>(both))]
}

/// Bit `i` in all bits of byte `i`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn bytes_of_bits(bits: u32) -> [uint8x16_t; 2] {
    const BYTE: [[u8; 16]; 2] =
        [[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3]];
    let bytes = vreinterpretq_u8_u32(vdupq_n_u32(bits));
    let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
    array!(2, |i| vtstq_u8(vqtbl1q_u8(bytes, load_u8(&BYTE[i])), bit))
}
