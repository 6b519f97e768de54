//! Formats whose nibbles are places in a table of sixteen values: IQ4_NL and IQ4_XS, and the floats of 4
//! bits, MXFP4 and NVFP4.

use half::f16;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::blocks32::{Block, PART, nibbles};
use super::super_blocks::{QK_K, SuperBlock};
use super::{assert_block_layout, block_slice};
use crate::gguf::TensorType;

/// IQ4_NL's and IQ4_XS's values (ggml's `kvalues_iq4nl`).
pub const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of a float with 1 bit of sign, 2 of exponent, 1 of mantissa (E2M1 of the OCP Microscaling
/// formats).
pub const FP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 32 weights `d * value` (ggml's `block_iq4_nl`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockIQ4NL {
    /// Scale: f16, little-endian.
    pub d: [u8; 2],
    /// The first 16 weights in the low nibbles, the others in the high ones.
    pub qs: [u8; PART / 2],
}

/// Eight sub-blocks of 32 weights `d * (sc - 32) * value` (ggml's `block_iq4_xs`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockIQ4XS {
    /// Scale of the scales: f16, little-endian.
    pub d: [u8; 2],
    /// High 2 bits of the scales, a little-endian word.
    pub scales_h: [u8; 2],
    /// Low 4 bits of the scales.
    pub scales_l: [u8; QK_K / 64],
    /// A sub-block's 16 bytes as in [`BlockIQ4NL`].
    pub qs: [u8; QK_K / 2],
}

/// 32 weights `2^(e - 128) * value` (ggml's `block_mxfp4`, MXFP4 of the OCP Microscaling formats).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockMXFP4 {
    pub e: u8,
    /// As in [`BlockIQ4NL`].
    pub qs: [u8; PART / 2],
}

/// Four sub-blocks of 16 weights `d / 2 * value` (ggml's `block_nvfp4`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockNVFP4 {
    /// Scales, see [`half_of_ue4m3`].
    pub d: [u8; 4],
    /// Of each sub-block 8 bytes: the first 8 weights in the low nibbles, the others in the high ones.
    pub qs: [u8; 32],
}

assert_block_layout!(BlockIQ4NL, TensorType::IQ4_NL);
assert_block_layout!(BlockIQ4XS, TensorType::IQ4_XS);
assert_block_layout!(BlockMXFP4, TensorType::MXFP4);
assert_block_layout!(BlockNVFP4, TensorType::NVFP4);
block_slice!(BlockIQ4NL, BlockIQ4XS, BlockMXFP4, BlockNVFP4);

/// `2^(e - 128)`, subnormal where `e` is 0 or 1 (ggml's `GGML_E8M0_TO_FP32_HALF`, which knows no NaN).
#[inline(always)]
pub fn half_of_e8m0(e: u8) -> f32 {
    let e = u32::from(e);
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 })
}

/// Half the value of a float without a sign, with 4 bits of exponent (biased by 7) and 3 of mantissa. The
/// highest bit means nothing; all others set is 0 unless that one is set too (ggml's `ggml_ue4m3_to_fp32`).
#[inline(always)]
pub fn half_of_ue4m3(bits: u8) -> f32 {
    UE4M3_HALVES[usize::from(bits)]
}

static UE4M3_HALVES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut bits = 0;
    while bits < 256 {
        let (exponent, mantissa) = (bits as u32 >> 3 & 15, bits as u32 & 7);
        // In f32: mantissas from bit 20 up; a subnormal is a number of units of 2^-10.
        values[bits] = match exponent {
            _ if bits == 0x7f => 0.0,
            0 => mantissa as f32 / 1024.0,
            _ => f32::from_bits((exponent + 127 - 8) << 23 | mantissa << 20),
        };
        bits += 1;
    }
    values
};

/// What nibbles stand for.
#[inline(always)]
fn values<const N: usize, const M: usize>(qs: &[u8; N], table: &[i8; 16]) -> [i8; M] {
    nibbles::<N, M>(qs).map(|q| table[usize::from(q)])
}

impl Block for BlockIQ4NL {
    const TYPE: TensorType = TensorType::IQ4_NL;

    #[inline(always)]
    fn part(&self, _: usize) -> ([i8; PART], [f32; 2]) {
        (values(&self.qs, &IQ4_VALUES), [f16::from_le_bytes(self.d).to_f32(); 2])
    }
}

impl Block for BlockMXFP4 {
    const TYPE: TensorType = TensorType::MXFP4;

    #[inline(always)]
    fn part(&self, _: usize) -> ([i8; PART], [f32; 2]) {
        (values(&self.qs, &FP4_VALUES), [half_of_e8m0(self.e); 2])
    }
}

impl Block for BlockNVFP4 {
    const TYPE: TensorType = TensorType::NVFP4;
    const HALVES: bool = true;

    #[inline(always)]
    fn part(&self, p: usize) -> ([i8; PART], [f32; 2]) {
        let mut w = [0; PART];
        let halves = self.qs.as_chunks::<8>().0[2 * p..].iter().zip(w.as_chunks_mut::<16>().0);
        halves.for_each(|(qs, w)| *w = values(qs, &FP4_VALUES));
        (w, [half_of_ue4m3(self.d[2 * p]), half_of_ue4m3(self.d[2 * p + 1])])
    }
}

impl BlockIQ4XS {
    /// The scales of the sub-blocks, 32 taken off.
    #[inline(always)]
    pub fn scales(&self) -> [i8; 8] {
        let (low, high) = (u32::from_le_bytes(self.scales_l), u16::from_le_bytes(self.scales_h));
        std::array::from_fn(|i| ((low >> (4 * i) & 15) as i8 | ((high >> (2 * i) & 3) << 4) as i8) - 32)
    }
}

impl SuperBlock for BlockIQ4XS {
    const TYPE: TensorType = TensorType::IQ4_XS;

    #[inline(always)]
    fn weights(&self) -> [i8; QK_K] {
        let mut w = [0; QK_K];
        let parts = self.qs.as_chunks::<16>().0.iter().zip(w.as_chunks_mut::<PART>().0);
        parts.for_each(|(qs, w)| *w = values(qs, &IQ4_VALUES));
        w
    }

    #[inline(always)]
    fn scales(&self) -> [i32; QK_K / 16] {
        let scales = BlockIQ4XS::scales(self);
        std::array::from_fn(|i| i32::from(scales[i / 2]))
    }

    #[inline(always)]
    fn d(&self) -> (f32, f32) {
        (f16::from_le_bytes(self.d).to_f32(), 0.0)
    }
}
