//! Formats whose activations go in super-blocks of 256 (Q8_K): their one dot and one decoding, and the
//! rounding of activations to Q8_K. `kquants`, `iquants` and `ternary` have the formats.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{ActivationRow, ActivationType, Q8KRow, Quant, largest_magnitude};
use crate::gguf::TensorType;

/// Elements in a super-block.
pub const QK_K: usize = 256;

/// What the formats differ in: the source for decoding and for the dot.
pub(super) trait SuperBlock: FromBytes + Immutable + KnownLayout + Unaligned {
    const TYPE: TensorType;
    /// Weights as integers, offsets taken off.
    fn weights(&self) -> [i8; QK_K];
    /// Scales of the sixteen groups of 16, the same twice where sub-blocks have 32.
    fn scales(&self) -> [i32; QK_K / 16];
    /// Mins of the sixteen groups of 16, where the format has them.
    fn mins(&self) -> Option<[i32; QK_K / 16]> {
        None
    }
    /// `(d, dmin)`; `dmin` is 0 where the format has no mins.
    fn d(&self) -> (f32, f32);
}

pub(super) struct SuperBlocks<B>(std::marker::PhantomData<B>);

impl<B: SuperBlock> Quant for SuperBlocks<B> {
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
#[inline(always)]
pub(super) fn quantize_block(x: &[f32; QK_K], qs: &mut [i8; QK_K], bsums: &mut [i16; QK_K / 16]) -> f32 {
    let largest = largest_magnitude(x);
    if largest == 0.0 {
        (*qs, *bsums) = ([0; QK_K], [0; QK_K / 16]);
        return 0.0;
    }
    let first = first_of_magnitude(x, largest).unwrap_or(largest);
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

/// The first value of this magnitude.
#[inline(always)]
fn first_of_magnitude(x: &[f32; QK_K], magnitude: f32) -> Option<f32> {
    // Sixteen at a time, without a branch for each.
    let has = |x: &&[f32; 16]| x.iter().fold(false, |has, x| has | (x.abs() == magnitude));
    x.as_chunks::<16>().0.iter().find(has)?.iter().copied().find(|x| x.abs() == magnitude)
}

/// Nearest integer, halves to even, for magnitudes up to 2^22: adding 1.5 * 2^23 leaves the integer in the
/// low bits of the mantissa (ggml's `nearest_int`, which also says what comes of larger values).
#[inline(always)]
fn nearest_int(v: f32) -> i32 {
    ((v + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}
