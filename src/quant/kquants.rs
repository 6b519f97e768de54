//! The K-quants Q4_K, Q5_K and Q6_K: super-blocks of 256 with sub-block scales, and the rounding of
//! activations to Q8_K.

use half::f16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{ActivationRow, ActivationType, Q8KRow, Quant, assert_block_layout, largest_magnitude};
use crate::gguf::TensorType;

/// Elements in a super-block.
pub const QK_K: usize = 256;

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

assert_block_layout!(BlockQ4K, TensorType::Q4_K);
assert_block_layout!(BlockQ5K, TensorType::Q5_K);
assert_block_layout!(BlockQ6K, TensorType::Q6_K);

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

/// What the three formats differ in: the source for decoding and for the dot.
trait SuperBlock: FromBytes + Immutable + KnownLayout + Unaligned {
    const TYPE: TensorType;
    /// Weights as integers, the offset of Q6_K taken off.
    fn weights(&self) -> [i8; QK_K];
    /// Scales of the sixteen groups of 16, the same twice where sub-blocks have 32.
    fn scales(&self) -> [i32; QK_K / 16];
    /// Mins of the sixteen groups of 16, where the format has them.
    fn mins(&self) -> Option<[i32; QK_K / 16]>;
    /// `(d, dmin)`; `dmin` is 0 where the format has no mins.
    fn d(&self) -> (f32, f32);
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

        impl $block {
            /// The bytes as super-blocks.
            ///
            /// # Panics
            /// Where they are no whole number of super-blocks.
            pub fn slice(bytes: &[u8]) -> &[$block] {
                <[$block]>::ref_from_bytes(bytes).expect("a whole number of blocks")
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
    fn mins(&self) -> Option<[i32; QK_K / 16]> {
        None
    }

    #[inline(always)]
    fn d(&self) -> (f32, f32) {
        (f16::from_le_bytes(self.d).to_f32(), 0.0)
    }
}

impl BlockQ6K {
    /// The bytes as super-blocks.
    ///
    /// # Panics
    /// Where they are no whole number of super-blocks.
    pub fn slice(bytes: &[u8]) -> &[BlockQ6K] {
        <[BlockQ6K]>::ref_from_bytes(bytes).expect("a whole number of blocks")
    }
}

pub(super) struct KQuant<B>(std::marker::PhantomData<B>);
pub(super) type Q4K = KQuant<BlockQ4K>;
pub(super) type Q5K = KQuant<BlockQ5K>;
pub(super) type Q6K = KQuant<BlockQ6K>;

impl<B: SuperBlock> Quant for KQuant<B> {
    const TYPE: TensorType = B::TYPE;
    const ACTIVATION: ActivationType = ActivationType::Q8_K;

    /// ggml's `dequantize_row_q4_K` and its like: `(d * sc) * q`, then minus `dmin * m`.
    fn decode(bytes: &[u8], out: &mut [f32]) {
        let blocks = <[B]>::ref_from_bytes(bytes).expect("a whole number of blocks");
        let (outs, _) = out.as_chunks_mut::<QK_K>();
        assert_eq!(blocks.len(), outs.len(), "decode: bytes for as many elements as asked");
        for (block, out) in blocks.iter().zip(outs) {
            let ((d, dmin), scales, mins, weights) =
                (block.d(), block.scales(), block.mins(), block.weights());
            for (i, out) in out.iter_mut().enumerate() {
                *out = d * scales[i / 16] as f32 * f32::from(weights[i]);
                if let Some(mins) = mins {
                    *out -= dmin * mins[i / 16] as f32;
                }
            }
        }
    }

    /// One accumulator, super-blocks in rising order (see [`super`]).
    #[inline(always)]
    fn dot(weights: &[u8], x: ActivationRow<'_>) -> f32 {
        let blocks = <[B]>::ref_from_bytes(weights).expect("a whole number of blocks");
        let x = x.q8_k();
        assert_eq!(blocks.len() * QK_K, x.qs.len(), "dot: as many activations as weights");
        let mut acc = 0f32;
        for (b, block) in blocks.iter().enumerate() {
            let (d, dmin) = block.d();
            acc = (d * x.d[b]).mul_add(sum(block, x, b) as f32, acc);
            if let Some(mins) = block.mins() {
                let bsums = &x.bsums[b * (QK_K / 16)..][..QK_K / 16];
                let min_sum: i32 = mins.iter().zip(bsums).map(|(m, s)| m * i32::from(*s)).sum();
                acc = (-(dmin * x.d[b])).mul_add(min_sum as f32, acc);
            }
        }
        acc
    }
}

/// Sum over super-block `b` of scale times weight times activation. At most 256 * 128 * 32 * 127 in
/// magnitude: fits i32 easily.
#[inline(always)]
fn sum<B: SuperBlock>(block: &B, x: Q8KRow<'_>, b: usize) -> i32 {
    let (weights, scales) = (block.weights(), block.scales());
    let qs = &x.qs[b * QK_K..][..QK_K];
    let mut sum = 0;
    for (g, scale) in scales.iter().enumerate() {
        let mut group = 0;
        for i in g * 16..g * 16 + 16 {
            group += i32::from(weights[i]) * i32::from(qs[i]);
        }
        sum += scale * group;
    }
    sum
}

/// Rounds a super-block of activations to Q8_K as ggml's `quantize_row_q8_K_ref` does; returns the scale.
///
/// The scale is negative where the first value of the largest magnitude is positive. `bsums` are the
/// sums of 16 each; in a super-block of zeros they are 0 (ggml leaves them as they were).
pub(super) fn quantize_block(x: &[f32; QK_K], qs: &mut [i8; QK_K], bsums: &mut [i16; QK_K / 16]) -> f32 {
    let largest = largest_magnitude(x);
    if largest == 0.0 {
        (*qs, *bsums) = ([0; QK_K], [0; QK_K / 16]);
        return 0.0;
    }
    let first = x.iter().copied().find(|x| x.abs() == largest).unwrap_or(largest);
    let iscale = -127.0 / first;
    for (x, q) in x.iter().zip(&mut *qs) {
        *q = nearest_int(iscale * x).min(127) as i8;
    }
    let (groups, _) = qs.as_chunks::<16>();
    for (group, bsum) in groups.iter().zip(bsums) {
        *bsum = group.iter().map(|q| i16::from(*q)).sum();
    }
    1.0 / iscale
}

/// Nearest integer, halves to even, for magnitudes up to 2^22: adding 1.5 * 2^23 leaves the integer in the
/// low bits of the mantissa (ggml's `nearest_int`, which also says what comes of larger values).
#[inline(always)]
fn nearest_int(v: f32) -> i32 {
    ((v + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}
