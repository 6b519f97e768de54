//! The IQ formats of 1 to 3 bits: super-blocks of 256 weights, eight or four of which are one point of a
//! grid.
//!
//! Scales are odd integers here, `2 s + 1`; what is left over of ggml's `0.5 + s`, a power of two, is part of
//! `d`.

use half::f16;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::grids::{
    EVEN_SIGNS, IQ1_GRID, IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID, IQ3_S_GRID, IQ3_XXS_GRID, SIGNS,
};
use super::super_blocks::{QK_K, SuperBlock};
use super::{assert_block_layout, block_slice};
use crate::gguf::TensorType;

/// Eight sub-blocks of 32 weights `d / 8 * (2 s + 1) * point` (ggml's `block_iq2_xxs`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockIQ2XXS {
    /// Scale: f16, little-endian.
    pub d: [u8; 2],
    /// Of each sub-block four points, and a little-endian word: four times seven signs, then the scale.
    pub qs: [[u8; 8]; 8],
}

/// Sixteen sub-blocks of 16 weights `d / 8 * (2 s + 1) * point` (ggml's `block_iq2_xs`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockIQ2XS {
    pub d: [u8; 2],
    /// Little-endian words: nine bits of a point, seven signs.
    pub qs: [[u8; 2]; QK_K / 8],
    /// Scales, the even sub-blocks' in the low nibbles.
    pub scales: [u8; QK_K / 32],
}

/// As [`BlockIQ2XS`] with ten bits of a point and all signs (ggml's `block_iq2_s`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockIQ2S {
    pub d: [u8; 2],
    /// Low eight bits of the points.
    pub qs: [u8; QK_K / 8],
    pub signs: [u8; QK_K / 8],
    /// High two bits of four points each.
    pub qh: [u8; QK_K / 32],
    pub scales: [u8; QK_K / 32],
}

/// Eight sub-blocks of 32 weights `d / 4 * (2 s + 1) * point`, points of four weights (ggml's
/// `block_iq3_xxs`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockIQ3XXS {
    pub d: [u8; 2],
    pub qs: [u8; QK_K / 4],
    /// Of each sub-block a little-endian word: four times seven signs, then the scale.
    pub signs: [[u8; 4]; QK_K / 32],
}

/// Eight sub-blocks of 32 weights `d * (2 s + 1) * point`, points of four weights (ggml's `block_iq3_s`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockIQ3S {
    pub d: [u8; 2],
    /// Low eight bits of the points.
    pub qs: [u8; QK_K / 4],
    /// High bits of eight points each.
    pub qh: [u8; QK_K / 32],
    pub signs: [u8; QK_K / 8],
    /// Scales, the even sub-blocks' in the low nibbles.
    pub scales: [u8; QK_K / 64],
}

/// Eight sub-blocks of 32 weights `d / 8 * (2 s + 1) * (8 t + e)`, `t` of -1, 0, 1 and `e` of -1, 1 (ggml's
/// `block_iq1_s`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockIQ1S {
    pub d: [u8; 2],
    /// Low eight bits of the points.
    pub qs: [u8; QK_K / 8],
    /// Of each sub-block a little-endian word: high three bits of four points, the scale, whether `e` is -1.
    pub qh: [[u8; 2]; QK_K / 32],
}

/// As [`BlockIQ1S`], sub-blocks of 16 and `e` for 8 weights (ggml's `block_iq1_m`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockIQ1M {
    /// Low eight bits of the points.
    pub qs: [u8; QK_K / 8],
    /// A nibble a point: high three bits, whether `e` is -1.
    pub qh: [u8; QK_K / 16],
    /// Little-endian words: four scales of three bits, a nibble of `d` (the first word has the lowest).
    pub scales: [[u8; 2]; QK_K / 64],
}

assert_block_layout!(BlockIQ2XXS, TensorType::IQ2_XXS);
assert_block_layout!(BlockIQ2XS, TensorType::IQ2_XS);
assert_block_layout!(BlockIQ2S, TensorType::IQ2_S);
assert_block_layout!(BlockIQ3XXS, TensorType::IQ3_XXS);
assert_block_layout!(BlockIQ3S, TensorType::IQ3_S);
assert_block_layout!(BlockIQ1S, TensorType::IQ1_S);
assert_block_layout!(BlockIQ1M, TensorType::IQ1_M);
block_slice!(BlockIQ2XXS, BlockIQ2XS, BlockIQ2S, BlockIQ3XXS, BlockIQ3S, BlockIQ1S, BlockIQ1M);

/// What the formats have in common for kernels: 32 weights at a time.
pub trait GridBlock {
    /// What is left over of ggml's scales: a power of two.
    const UNIT: f32;
    /// Magnitudes of sub-block `j` of 32 weights, eight at a time; of IQ1 8 times 0, 1 or 2.
    fn points(&self, j: usize) -> [u64; 4];
    /// The weights' signs, of IQ1 `e`: bytes -1 and 1.
    fn signs(&self, j: usize) -> [u64; 4];
    /// Scales of 16 weights each.
    fn odd_scales(&self) -> [u8; QK_K / 16];
    /// f16, little-endian.
    fn d(&self) -> [u8; 2];
}

impl GridBlock for BlockIQ2XXS {
    const UNIT: f32 = 0.125;

    #[inline(always)]
    fn points(&self, j: usize) -> [u64; 4] {
        std::array::from_fn(|l| IQ2_XXS_GRID[usize::from(self.qs[j][l])])
    }

    #[inline(always)]
    fn signs(&self, j: usize) -> [u64; 4] {
        let [_, _, _, _, a, b, c, d] = self.qs[j];
        four_times_seven(u32::from_le_bytes([a, b, c, d]))
    }

    #[inline(always)]
    fn odd_scales(&self) -> [u8; QK_K / 16] {
        std::array::from_fn(|g| 2 * (self.qs[g / 2][7] >> 4) + 1)
    }

    #[inline(always)]
    fn d(&self) -> [u8; 2] {
        self.d
    }
}

impl GridBlock for BlockIQ2XS {
    const UNIT: f32 = 0.125;

    #[inline(always)]
    fn points(&self, j: usize) -> [u64; 4] {
        std::array::from_fn(|l| IQ2_XS_GRID[usize::from(u16::from_le_bytes(self.qs[4 * j + l]) & 511)])
    }

    #[inline(always)]
    fn signs(&self, j: usize) -> [u64; 4] {
        std::array::from_fn(|l| EVEN_SIGNS[usize::from(self.qs[4 * j + l][1] >> 1)])
    }

    #[inline(always)]
    fn odd_scales(&self) -> [u8; QK_K / 16] {
        scales_in_nibbles(&self.scales)
    }

    #[inline(always)]
    fn d(&self) -> [u8; 2] {
        self.d
    }
}

impl GridBlock for BlockIQ2S {
    const UNIT: f32 = 0.125;

    #[inline(always)]
    fn points(&self, j: usize) -> [u64; 4] {
        let high = usize::from(self.qh[j]) << 8;
        std::array::from_fn(|l| IQ2_S_GRID[usize::from(self.qs[4 * j + l]) | (high >> (2 * l)) & 0x300])
    }

    #[inline(always)]
    fn signs(&self, j: usize) -> [u64; 4] {
        std::array::from_fn(|l| expanded(self.signs[4 * j + l]))
    }

    #[inline(always)]
    fn odd_scales(&self) -> [u8; QK_K / 16] {
        scales_in_nibbles(&self.scales)
    }

    #[inline(always)]
    fn d(&self) -> [u8; 2] {
        self.d
    }
}

impl GridBlock for BlockIQ3XXS {
    const UNIT: f32 = 0.25;

    #[inline(always)]
    fn points(&self, j: usize) -> [u64; 4] {
        let point = |i: usize| IQ3_XXS_GRID[usize::from(self.qs[8 * j + i])];
        std::array::from_fn(|l| two_of_4(point(2 * l), point(2 * l + 1)))
    }

    #[inline(always)]
    fn signs(&self, j: usize) -> [u64; 4] {
        four_times_seven(u32::from_le_bytes(self.signs[j]))
    }

    #[inline(always)]
    fn odd_scales(&self) -> [u8; QK_K / 16] {
        std::array::from_fn(|g| 2 * (self.signs[g / 2][3] >> 4) + 1)
    }

    #[inline(always)]
    fn d(&self) -> [u8; 2] {
        self.d
    }
}

impl GridBlock for BlockIQ3S {
    const UNIT: f32 = 1.0;

    #[inline(always)]
    fn points(&self, j: usize) -> [u64; 4] {
        let high = usize::from(self.qh[j]) << 8;
        let point = |i: usize| IQ3_S_GRID[usize::from(self.qs[8 * j + i]) | (high >> i) & 0x100];
        std::array::from_fn(|l| two_of_4(point(2 * l), point(2 * l + 1)))
    }

    #[inline(always)]
    fn signs(&self, j: usize) -> [u64; 4] {
        std::array::from_fn(|l| expanded(self.signs[4 * j + l]))
    }

    #[inline(always)]
    fn odd_scales(&self) -> [u8; QK_K / 16] {
        let scales: [u8; 8] = scales_in_nibbles(&self.scales);
        std::array::from_fn(|g| scales[g / 2])
    }

    #[inline(always)]
    fn d(&self) -> [u8; 2] {
        self.d
    }
}

impl GridBlock for BlockIQ1S {
    const UNIT: f32 = 0.125;

    #[inline(always)]
    fn points(&self, j: usize) -> [u64; 4] {
        let high = usize::from(u16::from_le_bytes(self.qh[j])) << 8;
        std::array::from_fn(|l| IQ1_GRID[usize::from(self.qs[4 * j + l]) | (high >> (3 * l)) & 0x700])
    }

    #[inline(always)]
    fn signs(&self, j: usize) -> [u64; 4] {
        [expanded(if self.qh[j][1] >> 7 == 1 { 0xff } else { 0 }); 4]
    }

    #[inline(always)]
    fn odd_scales(&self) -> [u8; QK_K / 16] {
        std::array::from_fn(|g| 2 * (self.qh[g / 2][1] >> 4 & 7) + 1)
    }

    #[inline(always)]
    fn d(&self) -> [u8; 2] {
        self.d
    }
}

impl GridBlock for BlockIQ1M {
    const UNIT: f32 = 0.125;

    #[inline(always)]
    fn points(&self, j: usize) -> [u64; 4] {
        let high = usize::from(u16::from_le_bytes([self.qh[2 * j], self.qh[2 * j + 1]])) << 8;
        std::array::from_fn(|l| IQ1_GRID[usize::from(self.qs[4 * j + l]) | (high >> (4 * l)) & 0x700])
    }

    #[inline(always)]
    fn signs(&self, j: usize) -> [u64; 4] {
        let nibbles = u16::from_le_bytes([self.qh[2 * j], self.qh[2 * j + 1]]);
        std::array::from_fn(|l| expanded(if nibbles >> (4 * l + 3) & 1 == 1 { 0xff } else { 0 }))
    }

    #[inline(always)]
    fn odd_scales(&self) -> [u8; QK_K / 16] {
        std::array::from_fn(|g| 2 * (u16::from_le_bytes(self.scales[g / 4]) >> (3 * (g % 4)) & 7) as u8 + 1)
    }

    #[inline(always)]
    fn d(&self) -> [u8; 2] {
        // The highest nibble of each word, moved by the product so that they meet at the top and nothing else
        // does.
        let words = self.scales.as_flattened().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let nibbles = words >> 12 & 0x000f_000f_000f_000f;
        let [.., low, high] = nibbles.wrapping_mul(0x0001_0010_0100_1000).to_le_bytes();
        [low, high]
    }
}

/// A byte a sign.
#[inline(always)]
fn expanded(signs: u8) -> u64 {
    SIGNS[usize::from(signs)]
}

#[inline(always)]
fn four_times_seven(word: u32) -> [u64; 4] {
    std::array::from_fn(|l| EVEN_SIGNS[(word >> (7 * l)) as usize & 127])
}

#[inline(always)]
fn two_of_4(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

#[inline(always)]
fn scales_in_nibbles<const N: usize, const M: usize>(scales: &[u8; N]) -> [u8; M] {
    const { assert!(M == 2 * N) };
    std::array::from_fn(|i| 2 * (scales[i / 2] >> (4 * (i % 2)) & 15) + 1)
}

/// The source for decoding and for the dot.
macro_rules! super_block {
    ($block:ident, $ty:ident, |$point:ident, $sign:ident| $weight:expr) => {
        impl SuperBlock for $block {
            const TYPE: TensorType = TensorType::$ty;

            #[inline(always)]
            fn weights(&self) -> [i8; QK_K] {
                let mut w = [0; QK_K];
                for (j, w) in w.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    let eights = self.points(j).into_iter().zip(self.signs(j));
                    for ((points, signs), w) in eights.zip(w.as_chunks_mut::<8>().0) {
                        let bytes = points.to_le_bytes().into_iter().zip(signs.to_le_bytes());
                        for (($point, $sign), w) in bytes.zip(w) {
                            *w = $weight;
                        }
                    }
                }
                w
            }

            #[inline(always)]
            fn scales(&self) -> [i32; QK_K / 16] {
                self.odd_scales().map(i32::from)
            }

            #[inline(always)]
            fn d(&self) -> (f32, f32) {
                (f16::from_le_bytes(GridBlock::d(self)).to_f32() * Self::UNIT, 0.0)
            }
        }
    };
    (signed: $($block:ident, $ty:ident;)*) => {
        $(super_block!($block, $ty, |point, sign| point as i8 * sign as i8);)*
    };
}

super_block! { signed:
    BlockIQ2XXS, IQ2_XXS;
    BlockIQ2XS, IQ2_XS;
    BlockIQ2S, IQ2_S;
    BlockIQ3XXS, IQ3_XXS;
    BlockIQ3S, IQ3_S;
}
super_block!(BlockIQ1S, IQ1_S, |point, e| point as i8 - 8 + e as i8);
super_block!(BlockIQ1M, IQ1_M, |point, e| point as i8 - 8 + e as i8);
