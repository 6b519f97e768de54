//! Formats whose activations go in blocks of 32: a block of weights is one or several parts of 32, each with
//! scales of its own. Their one dot and one decoding; `legacy`, `fp4` and `low_bits` have the formats.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{ActivationRow, ActivationType, Q8_0Row, Quant, tree8};
use crate::gguf::TensorType;

/// Elements in a part, and in a block of activations.
pub const PART: usize = 32;

/// What a format of this kind is made of.
pub(super) trait Block: FromBytes + Immutable + KnownLayout + Unaligned {
    const TYPE: TensorType;
    /// A part has a scale for each of its halves; otherwise one for both.
    const HALVES: bool = false;
    /// Weights have a min, which is added; activations are Q8_1 then.
    const MINS: bool = false;
    /// Weights of part `p` as integers, and the scales of its halves.
    fn part(&self, p: usize) -> ([i8; PART], [f32; 2]);
    /// The min of the weights, where the format has one.
    fn min(&self) -> f32 {
        0.0
    }
}

pub(super) struct Blocks32<B>(std::marker::PhantomData<B>);

impl<B: Block> Blocks32<B> {
    const PARTS: usize = B::TYPE.block_len() as usize / PART;
}

impl<B: Block> Quant for Blocks32<B> {
    const TYPE: TensorType = B::TYPE;
    const ACTIVATION: ActivationType = if B::MINS { ActivationType::Q8_1 } else { ActivationType::Q8_0 };

    /// ggml's `dequantize_row_q4_0` and its like: `q * d`, then plus the min.
    fn decode(bytes: &[u8], out: &mut [f32]) {
        let blocks = <[B]>::ref_from_bytes(bytes).expect("a whole number of blocks");
        let (outs, _) = out.as_chunks_mut::<PART>();
        assert_eq!(blocks.len() * Self::PARTS, outs.len(), "decode: bytes for as many elements as asked");
        for (u, out) in outs.iter_mut().enumerate() {
            let block = &blocks[u / Self::PARTS];
            let (weights, scales) = block.part(u % Self::PARTS);
            for (i, (out, w)) in out.iter_mut().zip(weights).enumerate() {
                *out = f32::from(w) * scales[2 * i / PART];
                if B::MINS {
                    *out += block.min();
                }
            }
        }
    }

    /// Eight lanes by index of the part (see [`super`]).
    #[inline(always)]
    fn dot(weights: &[u8], x: ActivationRow<'_>) -> f32 {
        let blocks = <[B]>::ref_from_bytes(weights).expect("a whole number of blocks");
        let Q8_0Row { qs, d, s, .. } = if B::MINS { x.q8_1() } else { x.q8_0() };
        let (qs, _) = qs.as_chunks::<PART>();
        let n = blocks.len() * Self::PARTS;
        assert!(n == qs.len() && n == d.len(), "dot: as many activations as weights");
        assert!(!B::MINS || n == s.len(), "dot: as many activations as weights");
        let mut lanes = [0f32; 8];
        for (u, (qs, &d)) in qs.iter().zip(d).enumerate() {
            let block = &blocks[u / Self::PARTS];
            let (weights, scales) = block.part(u % Self::PARTS);
            let (first, second) = (half_sum(&weights, qs, 0), half_sum(&weights, qs, 1));
            let lane = &mut lanes[u % 8];
            if B::HALVES {
                *lane = (scales[0] * d).mul_add(first as f32, *lane);
                *lane = (scales[1] * d).mul_add(second as f32, *lane);
            } else {
                *lane = (scales[0] * d).mul_add((first + second) as f32, *lane);
            }
            if B::MINS {
                *lane = block.min().mul_add(s[u], *lane);
            }
        }
        tree8(lanes)
    }
}

#[inline(always)]
fn half_sum(w: &[i8; PART], x: &[i8; PART], half: usize) -> i32 {
    let mut sum = 0;
    for i in half * PART / 2..(half + 1) * PART / 2 {
        sum += i32::from(w[i]) * i32::from(x[i]);
    }
    sum
}

/// Bytes with two weights each: the first of a half in the low nibbles, the others in the high ones.
#[inline(always)]
pub(super) fn nibbles<const N: usize, const M: usize>(qs: &[u8; N]) -> [u8; M] {
    const { assert!(M == 2 * N) };
    std::array::from_fn(|i| if i < N { qs[i] & 15 } else { qs[i - N] >> 4 })
}
