//! Blocks of one or two bits a weight with one f16 scale: Q1_0 and Q2_0.

use half::f16;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::blocks32::{Block, PART};
use super::{assert_block_layout, block_slice};
use crate::gguf::TensorType;

/// 128 weights `d` where the bit is set, `-d` elsewhere (ggml's `block_q1_0`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ1_0 {
    /// Scale: f16, little-endian.
    pub d: [u8; 2],
    /// Bit `i % 8` of byte `i / 8` belongs to weight `i`.
    pub qs: [u8; 16],
}

/// 64 weights `d * (q - 1)`, `q` of 2 bits (ggml's `block_q2_0`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ2_0 {
    pub d: [u8; 2],
    /// Four weights a byte, the first lowest.
    pub qs: [u8; 16],
}

assert_block_layout!(BlockQ1_0, TensorType::Q1_0);
assert_block_layout!(BlockQ2_0, TensorType::Q2_0);
block_slice!(BlockQ1_0, BlockQ2_0);

impl Block for BlockQ1_0 {
    const TYPE: TensorType = TensorType::Q1_0;

    #[inline(always)]
    fn part(&self, p: usize) -> ([i8; PART], [f32; 2]) {
        let bit = |i: usize| self.qs[4 * p + i / 8] >> (i % 8) & 1;
        (std::array::from_fn(|i| 2 * bit(i) as i8 - 1), [f16::from_le_bytes(self.d).to_f32(); 2])
    }
}

impl Block for BlockQ2_0 {
    const TYPE: TensorType = TensorType::Q2_0;

    #[inline(always)]
    fn part(&self, p: usize) -> ([i8; PART], [f32; 2]) {
        let bits = |i: usize| self.qs[8 * p + i / 4] >> (2 * (i % 4)) & 3;
        (std::array::from_fn(|i| bits(i) as i8 - 1), [f16::from_le_bytes(self.d).to_f32(); 2])
    }
}
