//! Blocks of 32 with one f16 scale, and a min where the name ends in 1: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0; and the
//! rounding of activations to Q8_0 and Q8_1.

use half::f16;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::blocks32::{Block, PART, nibbles};
use super::{assert_block_layout, block_slice, largest_magnitude};
use crate::gguf::TensorType;

/// Elements in a Q8_0 block.
pub const QK8_0: usize = PART;

/// 32 weights `d * (q - 8)`, `q` of 4 bits (ggml's `block_q4_0`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// Scale: f16, little-endian.
    pub d: [u8; 2],
    /// The first 16 weights in the low nibbles, the others in the high ones.
    pub qs: [u8; PART / 2],
}

/// 32 weights `d * q + m`, `q` of 4 bits (ggml's `block_q4_1`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ4_1 {
    pub d: [u8; 2],
    /// Min: f16, little-endian.
    pub m: [u8; 2],
    pub qs: [u8; PART / 2],
}

/// 32 weights `d * (q - 16)`, `q` of 5 bits (ggml's `block_q5_0`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ5_0 {
    pub d: [u8; 2],
    /// Fifth bits: bit `i` (little-endian) belongs to weight `i`.
    pub qh: [u8; PART / 8],
    pub qs: [u8; PART / 2],
}

/// 32 weights `d * q + m`, `q` of 5 bits (ggml's `block_q5_1`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ5_1 {
    pub d: [u8; 2],
    pub m: [u8; 2],
    pub qh: [u8; PART / 8],
    pub qs: [u8; PART / 2],
}

/// 32 weights `d * qs[i]` (ggml's `block_q8_0`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ8_0 {
    pub d: [u8; 2],
    /// -128 to 127.
    pub qs: [i8; PART],
}

assert_block_layout!(BlockQ4_0, TensorType::Q4_0);
assert_block_layout!(BlockQ4_1, TensorType::Q4_1);
assert_block_layout!(BlockQ5_0, TensorType::Q5_0);
assert_block_layout!(BlockQ5_1, TensorType::Q5_1);
assert_block_layout!(BlockQ8_0, TensorType::Q8_0);
block_slice!(BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0);

/// A format from what its weights are.
macro_rules! block {
    ($block:ident, $ty:ident, mins: $mins:ident, |$self:ident| $weights:expr) => {
        impl Block for $block {
            const TYPE: TensorType = TensorType::$ty;
            const MINS: bool = $mins;

            #[inline(always)]
            fn part(&$self, _: usize) -> ([i8; PART], [f32; 2]) {
                ($weights, [f16::from_le_bytes($self.d).to_f32(); 2])
            }

            block!(@min $mins);
        }
    };
    (@min true) => {
        #[inline(always)]
        fn min(&self) -> f32 {
            f16::from_le_bytes(self.m).to_f32()
        }
    };
    (@min false) => {};
}

block!(BlockQ4_0, Q4_0, mins: false, |self| nibbles(&self.qs).map(|q: u8| q as i8 - 8));
block!(BlockQ4_1, Q4_1, mins: true, |self| nibbles(&self.qs).map(|q: u8| q as i8));
block!(BlockQ5_0, Q5_0, mins: false, |self| five_bits(&self.qs, self.qh).map(|q| q - 16));
block!(BlockQ5_1, Q5_1, mins: true, |self| five_bits(&self.qs, self.qh));
block!(BlockQ8_0, Q8_0, mins: false, |self| self.qs);

#[inline(always)]
fn five_bits(qs: &[u8; PART / 2], qh: [u8; PART / 8]) -> [i8; PART] {
    let (low, high): ([u8; PART], u32) = (nibbles(qs), u32::from_le_bytes(qh));
    std::array::from_fn(|i| (low[i] | ((high >> i & 1) << 4) as u8) as i8)
}

/// Rounds a block of activations as ggml's `quantize_row_q8_0_ref` does; returns the scale, not yet rounded
/// to f16.
///
/// `d = max|x| / 127`, `q = round(x * (1/d))` with halves away from zero. Where `1/d` overflows (all values
/// below 3e-37), C leaves the result open; here all `q` are then 0 (and `d` as f16 is 0 anyway).
#[inline(always)]
fn round_block(x: &[f32; PART], qs: &mut [i8; PART], bsums: &mut [i16; 2]) -> f32 {
    let d = largest_magnitude(x) / 127.0;
    let id = if d != 0.0 { 1.0 / d } else { 0.0 };
    let id = if id.is_finite() { id } else { 0.0 };
    for (x, q) in x.iter().zip(&mut *qs) {
        *q = round_half_away(x * id) as i8;
    }
    for (half, bsum) in qs.as_chunks::<16>().0.iter().zip(bsums) {
        *bsum = half.iter().map(|q| i16::from(*q)).sum();
    }
    d
}

/// Rounds a block to Q8_0, with sums of 16; returns the scale.
#[inline(always)]
pub(super) fn quantize_with_sums(x: &[f32; PART], qs: &mut [i8; PART], bsums: &mut [i16; 2]) -> f32 {
    f16::from_f32(round_block(x, qs, bsums)).to_f32()
}

/// Rounds a block to Q8_0, as ggml's `quantize_row_q8_0_ref` does; returns the scale.
pub fn quantize_q8_0(x: &[f32; PART], quants: &mut [i8; PART]) -> f16 {
    f16::from_f32(round_block(x, quants, &mut [0; 2]))
}

/// Rounds a block to Q4_0, as ggml's `quantize_row_q4_0_ref` does, to quants of 0 to 15; returns the scale.
///
/// `d = m / -8` of the value m of the greatest magnitude, the first of equals; `q = trunc(x * (1/d) + 8.5)`, at
/// most 15. Where `1/d` overflows, C leaves the result open; here all `q` are then 8, zeros.
pub fn quantize_q4_0(x: &[f32; PART], quants: &mut [u8; PART]) -> f16 {
    let greatest = |m: f32, &x: &f32| if x.abs() > m.abs() { x } else { m };
    let d = x.iter().fold(0.0, greatest) / -8.0;
    let id = if d != 0.0 { 1.0 / d } else { 0.0 };
    let id = if id.is_finite() { id } else { 0.0 };
    for (x, q) in x.iter().zip(quants) {
        *q = ((x * id + 8.5) as i32).clamp(0, 15) as u8;
    }
    f16::from_f32(d)
}

/// Rounds a block to Q8_1, as ggml's `quantize_row_q8_1_ref` does, with sums of 16; returns the scale, and
/// the sum of the values times the scale before that was rounded.
#[inline(always)]
pub(super) fn quantize_q8_1(x: &[f32; PART], qs: &mut [i8; PART], bsums: &mut [i16; 2]) -> (f32, f32) {
    let d = round_block(x, qs, bsums);
    let sum = bsums[0] + bsums[1];
    (f16::from_f32(d).to_f32(), f16::from_f32(f32::from(sum) * d).to_f32())
}

/// C's `roundf` for values that fit i32, in operations that vectorise on any CPU. The difference is
/// exact, unlike `trunc(|v| + 0.5)`.
#[inline(always)]
fn round_half_away(v: f32) -> i32 {
    let whole = v as i32;
    let rest = v - whole as f32;
    whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)
}
