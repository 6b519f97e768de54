//! IQ4_NL, IQ4_XS, MXFP4, NVFP4 (nibbles that are places in a table) and Q1_0, Q2_0 in registers.

use std::arch::aarch64::*;

use super::blocks32::Block;
use super::legacy::{bytes_of_bits, nibbles};
use super::super_blocks::{SuperBlock, Unpacked};
use super::{load_at, load_f32, load_i8, load_u8, signed, small_words, widen_scales};
use crate::quant::{
    BlockIQ4NL, BlockIQ4XS, BlockMXFP4, BlockNVFP4, BlockQ1_0, BlockQ2_0, FP4_VALUES, IQ4_VALUES,
    half_of_e8m0, half_of_ue4m3,
};

/// The values of places below 16.
#[inline]
#[target_feature(enable = "neon")]
fn values(places: [int8x16_t; 2], table: &[i8; 16]) -> [int8x16_t; 2] {
    let table = load_i8(table);
    array!(2, |i| vqtbl1q_s8(table, vreinterpretq_u8_s8(places[i])))
}

/// Eight f32 values.
#[inline]
#[target_feature(enable = "neon")]
fn floats(values: [f32; 8]) -> [float32x4_t; 2] {
    let (halves, _) = values.as_chunks();
    [load_f32(&halves[0]), load_f32(&halves[1])]
}

/// A format from its weights and scales.
macro_rules! block {
    (
        $block:ident, offset: $offset:literal,
        |$self:ident, $p:ident| $weights:expr,
        |$blocks:ident| $scales:expr
    ) => {
        impl Block for $block {
            const OFFSET: i16 = $offset;

            #[inline(always)]
            unsafe fn part(&$self, $p: usize) -> [int8x16_t; 2] {
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    $weights
                }
            }

            #[inline(always)]
            unsafe fn scales($blocks: &[$block]) -> [[float32x4_t; 2]; 2] {
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    $scales
                }
            }
        }
    };
}

block!(
    BlockIQ4NL, offset: 0,
    |self, _p| values(nibbles(&self.qs), &IQ4_VALUES),
    |blocks| [widen_scales(array!(8, |b| blocks[b].d)), [vdupq_n_f32(0.0); 2]]
);
block!(
    BlockMXFP4, offset: 0,
    |self, _p| values(nibbles(&self.qs), &FP4_VALUES),
    |blocks| [floats(array!(8, |b| half_of_e8m0(blocks[b].e))), [vdupq_n_f32(0.0); 2]]
);
block!(
    BlockNVFP4, offset: 0,
    |self, p| {
        // Of 8 bytes the low nibbles, then the high ones.
        let [low, high] = nibbles(&self.qs.as_chunks().0[p]);
        let (low, high) = (vreinterpretq_s64_s8(low), vreinterpretq_s64_s8(high));
        let halves = [vtrn1q_s64(low, high), vtrn2q_s64(low, high)];
        values(array!(2, |i| vreinterpretq_s8_s64(halves[i])), &FP4_VALUES)
    },
    |blocks| array!(2, |half| floats(array!(8, |u| half_of_ue4m3(blocks[u / 2].d[u % 2 * 2 + half]))))
);
block!(
    BlockQ1_0, offset: 1,
    |self, p| {
        let set = bytes_of_bits(u32::from_le_bytes(self.qs.as_chunks().0[p]));
        array!(2, |i| signed(vandq_u8(set[i], vdupq_n_u8(2))))
    },
    |blocks| [widen_scales(array!(8, |u| blocks[u / 4].d)), [vdupq_n_f32(0.0); 2]]
);
block!(
    BlockQ2_0, offset: 1,
    |self, p| {
        const BYTE: [[u8; 16]; 2] = [
            [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3],
            [4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7],
        ];
        let bytes = vreinterpretq_u8_u64(vdupq_n_u64(u64::from_le_bytes(self.qs.as_chunks().0[p])));
        // Each byte four times, by 0, 2, 4 and 6 bits to the right.
        let right = vreinterpretq_s8_u32(vdupq_n_u32(0xfa_fc_fe_00));
        array!(2, |i| {
            let fields = vshlq_u8(vqtbl1q_u8(bytes, load_u8(&BYTE[i])), right);
            signed(vandq_u8(fields, vdupq_n_u8(3)))
        })
    },
    |blocks| [widen_scales(array!(8, |u| blocks[u / 2].d)), [vdupq_n_f32(0.0); 2]]
);

impl SuperBlock for BlockIQ4XS {
    const GROUP: usize = 32;

    #[inline(always)]
    unsafe fn unpack(&self) -> Unpacked {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let table = load_i8(&IQ4_VALUES);
            let mut q = [table; 16];
            for j in 0..8 {
                let both = load_at(&self.qs, j);
                q[2 * j] = vqtbl1q_s8(table, vandq_u8(both, vdupq_n_u8(15)));
                q[2 * j + 1] = vqtbl1q_s8(table, vshrq_n_u8::<4>(both));
            }
            let low = vcreate_u8(u64::from(u32::from_le_bytes(self.scales_l)));
            let low = vzip1_u8(vand_u8(low, vdup_n_u8(15)), vshr_n_u8::<4>(low));
            // Field `j` of two bits to the bottom of word `j`.
            let right = vcombine_s16(vcreate_s16(0xfffa_fffc_fffe_0000), vcreate_s16(0xfff2_fff4_fff6_fff8));
            let high = vshlq_u16(vdupq_n_u16(u16::from_le_bytes(self.scales_h)), right);
            let high = vshlq_n_s16::<4>(vreinterpretq_s16_u16(vandq_u16(high, vdupq_n_u16(3))));
            let scales = vsubq_s16(vorrq_s16(small_words(low), high), vdupq_n_s16(32));
            Unpacked::of_32(q, scales)
        }
    }
}
