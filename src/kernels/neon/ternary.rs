//! TQ1_0 and TQ2_0 in registers. All scales are one.

use std::arch::aarch64::*;

use super::kquants::two_bits;
use super::super_blocks::{SuperBlock, Unpacked};
use super::{load_at, signed};
use crate::quant::{BlockTQ1_0, BlockTQ2_0};

impl SuperBlock for BlockTQ2_0 {
    const GROUP: usize = 256;

    #[inline(always)]
    unsafe fn unpack(&self) -> Unpacked {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let (q, one) = (two_bits(&self.qs), vdupq_n_s8(1));
            Unpacked::of_32(array!(16, |i| vsubq_s8(signed(q[i]), one)), vdupq_n_s16(1))
        }
    }
}

impl SuperBlock for BlockTQ1_0 {
    const GROUP: usize = 256;

    #[inline(always)]
    unsafe fn unpack(&self) -> Unpacked {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let mut q = [vdupq_n_s8(0); 16];
            for i in 0..3 {
                // Two registers have weights 0 to 159, a digit of each after another; the third the next 80.
                let (first, step) = if i < 2 { (i, 2) } else { (10, 1) };
                let mut bytes = load_at(&self.qs, i);
                for n in 0..5 {
                    q[first + step * n] = weights(bytes);
                    bytes = vmulq_u8(bytes, vdupq_n_u8(3));
                }
            }
            let high = vreinterpretq_u8_u32(vdupq_n_u32(u32::from_le_bytes(self.qh)));
            let powers = vcombine_u8(vcreate_u8(0x0303_0303_0101_0101), vcreate_u8(0x1b1b_1b1b_0909_0909));
            q[15] = weights(vmulq_u8(high, powers));
            Unpacked::of_32(q, vdupq_n_s16(1))
        }
    }
}

/// The first digit of bytes, one taken off: 3/256 of a byte, rounded down, is 1 from 86 on and 2 from 171 on.
#[inline]
#[target_feature(enable = "neon")]
fn weights(bytes: uint8x16_t) -> int8x16_t {
    // All bits of a byte set are -1.
    let (one, two) = (vcgeq_u8(bytes, vdupq_n_u8(86)), vcgeq_u8(bytes, vdupq_n_u8(171)));
    vsubq_s8(vsubq_s8(vdupq_n_s8(-1), signed(one)), signed(two))
}
