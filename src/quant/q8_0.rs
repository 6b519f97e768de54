//! Q8_0: blocks of 32 signed bytes with one f16 scale, as weights and as activations.

use half::f16;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{ActivationRow, ActivationType, Quant, assert_block_layout, largest_magnitude, tree8};
use crate::gguf::TensorType;

/// Elements in a Q8_0 block.
pub const QK8_0: usize = 32;

/// 32 weights `d * qs[i]` (ggml's `block_q8_0`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// Scale: f16, little-endian.
    pub d: [u8; 2],
    /// -128 to 127.
    pub qs: [i8; QK8_0],
}

assert_block_layout!(BlockQ8_0, TensorType::Q8_0);

impl BlockQ8_0 {
    /// The bytes as blocks.
    ///
    /// # Panics
    /// Where they are no whole number of blocks.
    pub fn slice(bytes: &[u8]) -> &[BlockQ8_0] {
        <[BlockQ8_0]>::ref_from_bytes(bytes).expect("a whole number of blocks")
    }
}

pub(super) struct Q8_0;

impl Quant for Q8_0 {
    const TYPE: TensorType = TensorType::Q8_0;
    const ACTIVATION: ActivationType = ActivationType::Q8_0;

    /// ggml's `dequantize_row_q8_0`.
    fn decode(bytes: &[u8], out: &mut [f32]) {
        let blocks = BlockQ8_0::slice(bytes);
        let (outs, _) = out.as_chunks_mut::<QK8_0>();
        assert_eq!(blocks.len(), outs.len(), "decode: bytes for as many elements as asked");
        for (block, out) in blocks.iter().zip(outs) {
            let d = f16::from_le_bytes(block.d).to_f32();
            for (q, out) in block.qs.iter().zip(out) {
                *out = f32::from(*q) * d;
            }
        }
    }

    /// Eight lanes by block index (see [`super`]).
    #[inline(always)]
    fn dot(weights: &[u8], x: ActivationRow<'_>) -> f32 {
        let blocks = BlockQ8_0::slice(weights);
        let x = x.q8_0();
        let (qs, _) = x.qs.as_chunks::<QK8_0>();
        assert!(blocks.len() == qs.len() && blocks.len() == x.d.len(), "dot: as many activations as weights");
        let mut lanes = [0f32; 8];
        for (b, ((block, qs), d)) in blocks.iter().zip(qs).zip(x.d).enumerate() {
            let sum: i32 = block.qs.iter().zip(qs).map(|(w, a)| i32::from(*w) * i32::from(*a)).sum();
            let scale = f16::from_le_bytes(block.d).to_f32() * d;
            lanes[b % 8] = scale.mul_add(sum as f32, lanes[b % 8]);
        }
        tree8(lanes)
    }
}

/// Rounds a block of activations as ggml's `quantize_row_q8_0_ref` does; returns the scale, rounded to f16.
///
/// `d = max|x| / 127`, `q = round(x * (1/d))` with halves away from zero. Where `1/d` overflows (all values
/// below 3e-37), C leaves the result open; here all `q` are then 0 (and `d` as f16 is 0 anyway).
pub(super) fn quantize_block(x: &[f32; QK8_0], qs: &mut [i8; QK8_0]) -> f32 {
    let d = largest_magnitude(x) / 127.0;
    let id = if d != 0.0 { 1.0 / d } else { 0.0 };
    let id = if id.is_finite() { id } else { 0.0 };
    for (x, q) in x.iter().zip(qs) {
        *q = round_half_away(x * id) as i8;
    }
    f16::from_f32(d).to_f32()
}

/// C's `roundf` for values that fit i32, in operations that vectorise on any CPU. The difference is
/// exact, unlike `trunc(|v| + 0.5)`.
#[inline(always)]
fn round_half_away(v: f32) -> i32 {
    let whole = v as i32;
    let rest = v - whole as f32;
    whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)
}
