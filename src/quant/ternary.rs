//! The ternary formats TQ1_0 and TQ2_0: super-blocks of 256 weights -1, 0 or 1 with one scale.

use half::f16;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::kquants::two_bits;
use super::super_blocks::{QK_K, SuperBlock};
use super::{assert_block_layout, block_slice};
use crate::gguf::TensorType;

/// 256 weights `d * t`, five to a byte (ggml's `block_tq1_0`), see [`BlockTQ1_0::digit`].
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockTQ1_0 {
    /// Five digits a byte: 32 bytes have weights 0-159 (a digit of each after another), 16 bytes weights
    /// 160-239.
    pub qs: [u8; 48],
    /// Four digits a byte: weights 240-255.
    pub qh: [u8; 4],
    /// Scale: f16, little-endian.
    pub d: [u8; 2],
}

/// 256 weights `d * (q - 1)`, `q` of 2 bits (ggml's `block_tq2_0`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockTQ2_0 {
    /// For each half of 128 weights 32 bytes, each with one weight of every 32.
    pub qs: [u8; QK_K / 4],
    pub d: [u8; 2],
}

assert_block_layout!(BlockTQ1_0, TensorType::TQ1_0);
assert_block_layout!(BlockTQ2_0, TensorType::TQ2_0);
block_slice!(BlockTQ1_0, BlockTQ2_0);

impl BlockTQ1_0 {
    /// Digit `n` of a byte, 0 to 2: a byte is a fraction of base 3, in units of 1/256, rounded up.
    #[inline(always)]
    pub fn digit(byte: u8, n: u32) -> u8 {
        ((u16::from(byte.wrapping_mul(3u8.pow(n))) * 3) >> 8) as u8
    }
}

impl SuperBlock for BlockTQ1_0 {
    const TYPE: TensorType = TensorType::TQ1_0;

    #[inline(always)]
    fn weights(&self) -> [i8; QK_K] {
        let mut w = [0; QK_K];
        let parts: [(&[u8], u32); 3] = [(&self.qs[..32], 5), (&self.qs[32..], 5), (&self.qh, 4)];
        let mut at = 0;
        for (bytes, digits) in parts {
            for n in 0..digits {
                for &byte in bytes {
                    w[at] = BlockTQ1_0::digit(byte, n) as i8 - 1;
                    at += 1;
                }
            }
        }
        w
    }

    #[inline(always)]
    fn scales(&self) -> [i32; QK_K / 16] {
        [1; 16]
    }

    #[inline(always)]
    fn d(&self) -> (f32, f32) {
        (f16::from_le_bytes(self.d).to_f32(), 0.0)
    }
}

impl SuperBlock for BlockTQ2_0 {
    const TYPE: TensorType = TensorType::TQ2_0;

    #[inline(always)]
    fn weights(&self) -> [i8; QK_K] {
        two_bits(&self.qs).map(|q| q - 1)
    }

    #[inline(always)]
    fn scales(&self) -> [i32; QK_K / 16] {
        [1; 16]
    }

    #[inline(always)]
    fn d(&self) -> (f32, f32) {
        (f16::from_le_bytes(self.d).to_f32(), 0.0)
    }
}
