//! The K-quants: super-blocks of 256 whose sub-blocks have integer scales, and mins in some formats.

use half::f16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super_blocks::{QK_K, SuperBlock};
use super::{assert_block_layout, block_slice};
use crate::gguf::TensorType;

/// Sixteen sub-blocks of 16 weights `d * sc * q - dmin * m`, `q` of 2 bits (ggml's `block_q2_K`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ2K {
    /// Scales in the low nibbles, mins in the high ones.
    pub scales: [u8; QK_K / 16],
    /// For each half of 128 weights 32 bytes, each with one weight of every 32.
    pub qs: [u8; QK_K / 4],
    /// Scale of the scales: f16, little-endian.
    pub d: [u8; 2],
    /// Scale of the mins: f16, little-endian.
    pub dmin: [u8; 2],
}

/// Sixteen sub-blocks of 16 weights `d * (sc - 32) * (q - 4)`, `q` of 3 bits (ggml's `block_q3_K`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ3K {
    /// Third bits: bit `j` of byte `i` belongs to weight `32 * j + i`.
    pub hmask: [u8; QK_K / 8],
    /// Low 2 bits, as in [`BlockQ2K`].
    pub qs: [u8; QK_K / 4],
    /// 6-bit scales, see [`six_bit_scales`].
    pub scales: [u8; 12],
    pub d: [u8; 2],
}

/// Eight sub-blocks of 32 weights `d * sc * q - dmin * m`, `q` of 4 bits (ggml's `block_q4_K`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ4K {
    /// Scale of the scales: f16, little-endian.
    pub d: [u8; 2],
    /// Scale of the mins: f16, little-endian.
    pub dmin: [u8; 2],
    /// 6-bit scales and mins, see [`scales_and_mins`].
    pub scales: [u8; 12],
    /// 32 bytes for every 64 weights: the first 32 in the low nibbles, the others in the high ones.
    pub qs: [u8; QK_K / 2],
}

/// As [`BlockQ4K`] with a fifth bit (ggml's `block_q5_K`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ5K {
    pub d: [u8; 2],
    pub dmin: [u8; 2],
    pub scales: [u8; 12],
    /// Fifth bits: bit `j` of byte `i` belongs to weight `32 * j + i`.
    pub qh: [u8; QK_K / 8],
    pub qs: [u8; QK_K / 2],
}

/// Sixteen sub-blocks of 16 weights `d * sc * (q - 32)`, `q` of 6 bits (ggml's `block_q6_K`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ6K {
    /// Low 4 bits: for each half of 128 weights 64 bytes, the first 64 weights in the low nibbles.
    pub ql: [u8; QK_K / 2],
    /// High 2 bits: for each half of 128 weights 32 bytes, each with one weight of every 32.
    pub qh: [u8; QK_K / 4],
    /// Sub-block scales.
    pub scales: [i8; QK_K / 16],
    /// Scale of the scales: f16, little-endian.
    pub d: [u8; 2],
}

assert_block_layout!(BlockQ2K, TensorType::Q2_K);
assert_block_layout!(BlockQ3K, TensorType::Q3_K);
assert_block_layout!(BlockQ4K, TensorType::Q4_K);
assert_block_layout!(BlockQ5K, TensorType::Q5_K);
assert_block_layout!(BlockQ6K, TensorType::Q6_K);
block_slice!(BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K);

/// The eight 6-bit scales and the eight 6-bit mins of a Q4_K or Q5_K super-block (ggml's `get_scale_min_k4`),
/// four at a time: bytes 0-3 hold scales 0-3, bytes 4-7 mins 0-3; bytes 8-11 hold the low 4 bits of
/// the others (scales in the low nibbles), whose high 2 bits are atop bytes 0-3 and 4-7.
#[inline(always)]
pub fn scales_and_mins(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let word = |i: usize| u32::from_le_bytes([packed[i], packed[i + 1], packed[i + 2], packed[i + 3]]);
    let (s, m, rest) = (word(0), word(4), word(8));
    let (low, top) = (0x3f3f_3f3f, 0x3030_3030);
    let scales = u64::from(s & low) | u64::from((rest & 0x0f0f_0f0f) | ((s >> 2) & top)) << 32;
    let mins = u64::from(m & low) | u64::from(((rest >> 4) & 0x0f0f_0f0f) | ((m >> 2) & top)) << 32;
    (scales.to_le_bytes(), mins.to_le_bytes())
}

/// The sixteen 6-bit scales of Q3_K, 32 not yet taken off, a byte each in little-endian words: the low 4 bits
/// of the first eight are in the low nibbles of bytes 0-7, of the others in the high nibbles; the high 2 bits
/// in bytes 8-11, four at a time.
#[inline(always)]
pub fn six_bit_scales(packed: &[u8; 12]) -> [u32; 4] {
    let word = |i: usize| u32::from_le_bytes([packed[i], packed[i + 1], packed[i + 2], packed[i + 3]]);
    let (low, top) = (0x0f0f_0f0f, 0x3030_3030);
    let (a, b, rest) = (word(0), word(4), word(8));
    [
        (a & low) | ((rest << 4) & top),
        (b & low) | ((rest << 2) & top),
        ((a >> 4) & low) | (rest & top),
        ((b >> 4) & low) | ((rest >> 2) & top),
    ]
}

/// Fields of two bits in the order of the weights: of each 32 bytes the lowest first.
#[inline(always)]
pub(super) fn two_bits(qs: &[u8; QK_K / 4]) -> [i8; QK_K] {
    let mut w = [0; QK_K];
    for (qs, w) in qs.as_chunks::<32>().0.iter().zip(w.as_chunks_mut::<128>().0) {
        for (j, w) in w.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (q, w) in qs.iter().zip(w) {
                *w = (q >> (2 * j) & 3) as i8;
            }
        }
    }
    w
}

impl SuperBlock for BlockQ2K {
    const TYPE: TensorType = TensorType::Q2_K;

    #[inline(always)]
    fn weights(&self) -> [i8; QK_K] {
        two_bits(&self.qs)
    }

    #[inline(always)]
    fn scales(&self) -> [i32; QK_K / 16] {
        self.scales.map(|s| i32::from(s & 15))
    }

    #[inline(always)]
    fn mins(&self) -> Option<[i32; QK_K / 16]> {
        Some(self.scales.map(|s| i32::from(s >> 4)))
    }

    #[inline(always)]
    fn d(&self) -> (f32, f32) {
        (f16::from_le_bytes(self.d).to_f32(), f16::from_le_bytes(self.dmin).to_f32())
    }
}

impl SuperBlock for BlockQ3K {
    const TYPE: TensorType = TensorType::Q3_K;

    #[inline(always)]
    fn weights(&self) -> [i8; QK_K] {
        let mut w = two_bits(&self.qs);
        for (j, w) in w.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (w, bits) in w.iter_mut().zip(self.hmask) {
                *w += ((bits >> j & 1) << 2) as i8 - 4;
            }
        }
        w
    }

    #[inline(always)]
    fn scales(&self) -> [i32; QK_K / 16] {
        let words = six_bit_scales(&self.scales).map(u32::to_le_bytes);
        std::array::from_fn(|i| i32::from(words[i / 4][i % 4]) - 32)
    }

    #[inline(always)]
    fn d(&self) -> (f32, f32) {
        (f16::from_le_bytes(self.d).to_f32(), 0.0)
    }
}

macro_rules! blocks_with_mins {
    ($block:ident, $ty:ident, |$self:ident| $weights:block) => {
        impl SuperBlock for $block {
            const TYPE: TensorType = TensorType::$ty;

            #[inline(always)]
            fn weights(&$self) -> [i8; QK_K] $weights

            #[inline(always)]
            fn scales(&self) -> [i32; QK_K / 16] {
                let (scales, _) = scales_and_mins(&self.scales);
                std::array::from_fn(|i| i32::from(scales[i / 2]))
            }

            #[inline(always)]
            fn mins(&self) -> Option<[i32; QK_K / 16]> {
                let (_, mins) = scales_and_mins(&self.scales);
                Some(std::array::from_fn(|i| i32::from(mins[i / 2])))
            }

            #[inline(always)]
            fn d(&self) -> (f32, f32) {
                (f16::from_le_bytes(self.d).to_f32(), f16::from_le_bytes(self.dmin).to_f32())
            }
        }
    };
}

blocks_with_mins!(BlockQ4K, Q4_K, |self| { nibbles(&self.qs) });
blocks_with_mins!(BlockQ5K, Q5_K, |self| {
    let mut w = nibbles(&self.qs);
    for (j, w) in w.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (w, bits) in w.iter_mut().zip(self.qh) {
            *w |= ((bits >> j & 1) << 4) as i8;
        }
    }
    w
});

/// Q4_K's nibbles in the order of the weights.
#[inline(always)]
fn nibbles(qs: &[u8; QK_K / 2]) -> [i8; QK_K] {
    let mut w = [0; QK_K];
    for (qs, w) in qs.as_chunks::<32>().0.iter().zip(w.as_chunks_mut::<64>().0) {
        for i in 0..32 {
            (w[i], w[i + 32]) = ((qs[i] & 15) as i8, (qs[i] >> 4) as i8);
        }
    }
    w
}

impl SuperBlock for BlockQ6K {
    const TYPE: TensorType = TensorType::Q6_K;

    #[inline(always)]
    fn weights(&self) -> [i8; QK_K] {
        let mut w = [0; QK_K];
        let halves = self.ql.as_chunks::<64>().0.iter().zip(self.qh.as_chunks::<32>().0);
        for ((ql, qh), w) in halves.zip(w.as_chunks_mut::<128>().0) {
            for (j, w) in w.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                for i in 0..32 {
                    let low = (ql[j % 2 * 32 + i] >> (j / 2 * 4)) & 15;
                    let high = (qh[i] >> (j * 2)) & 3;
                    w[i] = (low | (high << 4)) as i8 - 32;
                }
            }
        }
        w
    }

    #[inline(always)]
    fn scales(&self) -> [i32; QK_K / 16] {
        self.scales.map(i32::from)
    }

    #[inline(always)]
    fn d(&self) -> (f32, f32) {
        (f16::from_le_bytes(self.d).to_f32(), 0.0)
    }
}
