//! FORMATS: the tensor types that can be computed with: their blocks' layout, decoding to f32, the
//! rounding of activations that goes with each, and the dot product that defines the result.
//!
//! # One arithmetic
//!
//! The scalar dots here define the result to the last bit; a faster kernel computes the same bits.
//! All products are f32, `fma(a, b, c)` is `a * b + c` rounded once, and a product of scales is
//! rounded before it is used.
//!
//! * **Super-blocks** (K-, IQ- and ternary quants, with Q8_K): one accumulator that starts at +0. For every
//!   super-block in rising order: `acc = fma(d_w * d_a, sum as f32, acc)`, where `sum` is the integer
//!   sum over the super-block of scale times weight times activation, scales and weights as integers (what
//!   is left over, a power of two, is part of `d_w`); then, where the format has mins,
//!   `acc = fma(-(dmin_w * d_a), min_sum as f32, acc)`, where `min_sum` is the integer sum
//!   of sub-block min times the sub-block's sum of activations. `as f32` rounds half to even.
//! * **Blocks of 32** (Q8_0, Q4_0 and their like, with Q8_0; Q4_1 and Q5_1 with Q8_1): eight lanes, +0 at
//!   first; part `u` of 32 weights goes to lane `u % 8`: `lane = fma(d_w * d_a, sum as f32, lane)`; of NVFP4,
//!   whose scales are for 16 weights, this is done for the first half and then for the second; then, where
//!   the format has mins, `lane = fma(m_w, s_a, lane)`. Lanes that have no part at the tail stay as they are.
//!   The result is [`tree8`] of the lanes.
//! * **Floats** (F32, F16, BF16): sixteen lanes, +0 at first; element `i` goes to lane `i % 16`:
//!   `lane = fma(w, a, lane)`. The tail is filled up with zeros to a full step of sixteen. The result
//!   is [`tree16`] of the lanes. Weights are widened to f32, activations rounded to the weight's type
//!   first, as ggml does.

mod activations;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // no kernel of other CPUs takes them yet
pub(crate) mod arranged;
mod blocks32;
mod codebooks;
mod floats;
pub(crate) mod grids;
mod iquants;
mod kquants;
mod legacy;
mod low_bits;
mod numbers;
pub(crate) mod rounding;
mod super_blocks;
mod ternary;
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use activations::{
    ActivationArrays, ActivationRow, ActivationType, Activations, NonFinite, Q8_0Row, Q8KRow,
};
pub use blocks32::PART;
pub use codebooks::{
    BlockIQ4NL, BlockIQ4XS, BlockMXFP4, BlockNVFP4, FP4_VALUES, IQ4_VALUES, half_of_e8m0, half_of_ue4m3,
};
pub use iquants::{
    BlockIQ1M, BlockIQ1S, BlockIQ2S, BlockIQ2XS, BlockIQ2XXS, BlockIQ3S, BlockIQ3XXS, GridBlock,
};
pub use kquants::{BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K, scales_and_mins, six_bit_scales};
pub use legacy::{
    BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0, QK8_0, quantize_q4_0, quantize_q8_0,
};
pub use low_bits::{BlockQ1_0, BlockQ2_0};
pub use rounding::{Blocks, Rounding};
pub use super_blocks::QK_K;
pub use ternary::{BlockTQ1_0, BlockTQ2_0};

use crate::gguf::TensorType;
use blocks32::Blocks32;
use super_blocks::SuperBlocks;

/// A tensor type that can be computed with.
#[derive(Debug)]
pub struct Format {
    pub ty: TensorType,
    /// What activations are rounded to before a dot with this type.
    pub activation: ActivationType,
    /// Decodes whole blocks to f32, bit for bit as ggml's `dequantize_row_*` in plain C.
    ///
    /// # Panics
    /// Where the bytes are not those of `out.len()` elements.
    pub decode: fn(&[u8], &mut [f32]),
    /// The dot of a row of weights with a row of activations: the definition (see the module).
    ///
    /// # Panics
    /// Where the row is not of this format's activation type or not as long as the weights.
    pub dot: fn(&[u8], ActivationRow<'_>) -> f32,
    /// The same source as `dot`, compiled for a CPU that has fused multiply-add (without it, `mul_add` is a
    /// slow library call with the same result).
    pub(crate) dot_fma: unsafe fn(&[u8], ActivationRow<'_>) -> f32,
}

impl Format {
    const fn of<Q: Quant>() -> Format {
        Format {
            ty: Q::TYPE,
            activation: Q::ACTIVATION,
            decode: Q::decode,
            dot: Q::dot,
            dot_fma: dot_fma::<Q>,
        }
    }

    /// Bytes of a row of `cols` elements.
    ///
    /// # Panics
    /// Where `cols` is no whole number of blocks.
    pub fn row_bytes(&self, cols: usize) -> usize {
        let (len, bytes) = (self.ty.block_len() as usize, self.ty.block_bytes() as usize);
        assert!(
            cols.is_multiple_of(len),
            "a row of {cols} elements is no whole number of {} blocks",
            self.ty
        );
        cols / len * bytes
    }
}

/// What a format is made of: the source of a row of [`FORMATS`].
trait Quant {
    const TYPE: TensorType;
    const ACTIVATION: ActivationType;
    fn decode(bytes: &[u8], out: &mut [f32]);
    /// `#[inline(always)]` in every implementation, so that [`dot_fma`] compiles it anew.
    fn dot(weights: &[u8], x: ActivationRow<'_>) -> f32;
}

/// # Safety
/// On x86-64 the CPU must have FMA.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "fma"))]
unsafe fn dot_fma<Q: Quant>(weights: &[u8], x: ActivationRow<'_>) -> f32 {
    Q::dot(weights, x)
}

/// Every tensor type that can be computed with.
pub static FORMATS: &[Format] = &[
    Format::of::<floats::F32>(),
    Format::of::<floats::F16>(),
    Format::of::<floats::Bf16>(),
    Format::of::<Blocks32<BlockQ4_0>>(),
    Format::of::<Blocks32<BlockQ4_1>>(),
    Format::of::<Blocks32<BlockQ5_0>>(),
    Format::of::<Blocks32<BlockQ5_1>>(),
    Format::of::<Blocks32<BlockQ8_0>>(),
    Format::of::<SuperBlocks<BlockQ2K>>(),
    Format::of::<SuperBlocks<BlockQ3K>>(),
    Format::of::<SuperBlocks<BlockQ4K>>(),
    Format::of::<SuperBlocks<BlockQ5K>>(),
    Format::of::<SuperBlocks<BlockQ6K>>(),
    Format::of::<SuperBlocks<BlockIQ2XXS>>(),
    Format::of::<SuperBlocks<BlockIQ2XS>>(),
    Format::of::<SuperBlocks<BlockIQ2S>>(),
    Format::of::<SuperBlocks<BlockIQ3XXS>>(),
    Format::of::<SuperBlocks<BlockIQ3S>>(),
    Format::of::<SuperBlocks<BlockIQ1S>>(),
    Format::of::<SuperBlocks<BlockIQ1M>>(),
    Format::of::<Blocks32<BlockIQ4NL>>(),
    Format::of::<SuperBlocks<BlockIQ4XS>>(),
    Format::of::<SuperBlocks<BlockTQ1_0>>(),
    Format::of::<SuperBlocks<BlockTQ2_0>>(),
    Format::of::<Blocks32<BlockMXFP4>>(),
    Format::of::<Blocks32<BlockNVFP4>>(),
    Format::of::<Blocks32<BlockQ1_0>>(),
    Format::of::<Blocks32<BlockQ2_0>>(),
];

/// A tensor type whose values are known: one of [`FORMATS`], or plain numbers that nothing is computed with.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    pub ty: TensorType,
    /// As [`Format::decode`].
    pub decode: fn(&[u8], &mut [f32]),
}

/// The decoder of a tensor type; `None` where its values mean nothing by themselves (Q8_1, Q8_K).
pub fn decoder(ty: TensorType) -> Option<Decoder> {
    let number = || numbers::NUMBERS.iter().find(|decoder| decoder.ty == ty).copied();
    format(ty).map(|format| Decoder { ty, decode: format.decode }).or_else(number)
}

/// The format of a tensor type; `None` where it cannot be computed with.
pub fn format(ty: TensorType) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.ty == ty)
}

/// The largest magnitude of finite values, which are ordered as their bits are (and integers vectorise).
#[inline(always)]
fn largest_magnitude(x: &[f32]) -> f32 {
    f32::from_bits(x.iter().fold(0, |max, x| max.max((x.to_bits() & 0x7fff_ffff) as i32)) as u32)
}

/// The fixed order in which eight lanes are added: `((0+4)+(2+6)) + ((1+5)+(3+7))`.
#[inline(always)]
pub fn tree8(l: [f32; 8]) -> f32 {
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

/// The fixed order in which sixteen lanes are added: `i + (i + 8)`, then [`tree8`].
#[inline(always)]
pub fn tree16(l: [f32; 16]) -> f32 {
    tree8(std::array::from_fn(|i| l[i] + l[i + 8]))
}

/// Asserts at compile time that a block struct is as long as its type's blocks in a file, and has no
/// alignment to mind.
macro_rules! assert_block_layout {
    ($block:ty, $ty:expr) => {
        const _: () = {
            assert!(size_of::<$block>() as u64 == $ty.block_bytes());
            assert!(align_of::<$block>() == 1);
        };
    };
}
use assert_block_layout;

/// A method for each of these block structs: bytes as blocks.
macro_rules! block_slice {
    ($($block:ty),*) => {$(
        impl $block {
            /// The bytes as blocks.
            ///
            /// # Panics
            /// Where they are no whole number of blocks.
            pub fn slice(bytes: &[u8]) -> &[$block] {
                zerocopy::FromBytes::ref_from_bytes(bytes).expect("a whole number of blocks")
            }
        }
    )*};
}
use block_slice;
