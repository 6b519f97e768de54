//! The K-quants in registers.

use std::arch::aarch64::*;

use super::super_blocks::{SuperBlock, Unpacked};
use super::{load_at, load_u8, signed, small_words};
use crate::quant::{BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K, QK_K, scales_and_mins, six_bit_scales};

/// Q4_K's and Q5_K's scales and mins with given weights.
#[inline]
#[target_feature(enable = "neon")]
fn unpacked_with_mins(q: [uint8x16_t; 16], packed: &[u8; 12]) -> Unpacked {
    let (scales, mins) = scales_and_mins(packed);
    let scales = small_words(vcreate_u8(u64::from_le_bytes(scales)));
    let mins = small_words(vcreate_u8(u64::from_le_bytes(mins)));
    Unpacked { mins: [mins; 2], ..Unpacked::of_32(array!(16, |i| signed(q[i])), scales) }
}

/// Low and high nibbles of 4 x 32 bytes, in the order of the weights.
#[inline]
#[target_feature(enable = "neon")]
fn nibbles(qs: &[u8; QK_K / 2]) -> [uint8x16_t; 16] {
    let mask = vdupq_n_u8(15);
    let mut q = [mask; 16];
    for i in 0..8 {
        let both = load_at(qs, i);
        let at = i / 2 * 4 + i % 2;
        q[at] = vandq_u8(both, mask);
        q[at + 2] = vshrq_n_u8::<4>(both);
    }
    q
}

/// Fields of two bits of 2 x 32 bytes, in the order of the weights.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn two_bits(qs: &[u8; QK_K / 4]) -> [uint8x16_t; 16] {
    let mask = vdupq_n_u8(3);
    let mut q = [mask; 16];
    for i in 0..4 {
        let all = load_at(qs, i);
        let at = i / 2 * 8 + i % 2;
        q[at] = vandq_u8(all, mask);
        q[at + 2] = vandq_u8(vshrq_n_u8::<2>(all), mask);
        q[at + 4] = vandq_u8(vshrq_n_u8::<4>(all), mask);
        q[at + 6] = vshrq_n_u8::<6>(all);
    }
    q
}

/// The bits of 32 bytes, those of each of eight places after another, above `BITS` bits of weights.
#[inline]
#[target_feature(enable = "neon")]
fn with_bit_above<const BITS: i32>(mut q: [uint8x16_t; 16], bits: &[u8; QK_K / 8]) -> [uint8x16_t; 16] {
    let one = vdupq_n_u8(1);
    for i in 0..2 {
        let mut bits = load_at(bits, i);
        for j in 0..8 {
            q[2 * j + i] = vsliq_n_u8::<BITS>(q[2 * j + i], vandq_u8(bits, one));
            bits = vshrq_n_u8::<1>(bits);
        }
    }
    q
}

impl SuperBlock for BlockQ2K {
    const MINS: bool = true;
    const GROUP: usize = 16;

    #[inline(always)]
    unsafe fn unpack(&self) -> Unpacked {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let (both, q) = (load_u8(&self.scales), two_bits(&self.qs));
            let mins = vshrq_n_u8::<4>(both);
            Unpacked {
                mins: [small_words(vget_low_u8(mins)), small_words(vget_high_u8(mins))],
                ..Unpacked::of_16(array!(16, |i| signed(q[i])), signed(vandq_u8(both, vdupq_n_u8(15))))
            }
        }
    }
}

impl SuperBlock for BlockQ3K {
    const GROUP: usize = 16;

    #[inline(always)]
    unsafe fn unpack(&self) -> Unpacked {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let q = with_bit_above::<2>(two_bits(&self.qs), &self.hmask);
            let [a, b, c, d] = six_bit_scales(&self.scales).map(u64::from);
            let scales = vcombine_s8(vcreate_s8(a | b << 32), vcreate_s8(c | d << 32));
            let four = vdupq_n_s8(4);
            Unpacked::of_16(array!(16, |i| vsubq_s8(signed(q[i]), four)), vsubq_s8(scales, vdupq_n_s8(32)))
        }
    }
}

impl SuperBlock for BlockQ4K {
    const MINS: bool = true;
    const GROUP: usize = 32;

    #[inline(always)]
    unsafe fn unpack(&self) -> Unpacked {
        // SAFETY: the caller vouches for the CPU.
        unsafe { unpacked_with_mins(nibbles(&self.qs), &self.scales) }
    }
}

impl SuperBlock for BlockQ5K {
    const MINS: bool = true;
    const GROUP: usize = 32;

    #[inline(always)]
    unsafe fn unpack(&self) -> Unpacked {
        // SAFETY: the caller vouches for the CPU.
        unsafe { unpacked_with_mins(with_bit_above::<4>(nibbles(&self.qs), &self.qh), &self.scales) }
    }
}

impl SuperBlock for BlockQ6K {
    const GROUP: usize = 16;

    #[inline(always)]
    unsafe fn unpack(&self) -> Unpacked {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let (offset, high) = (vdupq_n_s8(32), two_bits(&self.qh));
            let mut q = [offset; 16];
            for i in 0..8 {
                // Of each half 64 bytes: their low nibbles, then their high ones.
                let (both, at) = (load_at(&self.ql, i), i / 4 * 8 + i % 4);
                let low = vsliq_n_u8::<4>(both, high[at]);
                q[at] = vsubq_s8(signed(low), offset);
                q[at + 4] = vsubq_s8(signed(vsliq_n_u8::<4>(vshrq_n_u8::<4>(both), high[at + 4])), offset);
            }
            let scales = array!(2, |i| vld1_s8(self.scales.as_chunks::<8>().0[i].as_ptr()));
            Unpacked::of_16(q, vcombine_s8(scales[0], scales[1]))
        }
    }
}
