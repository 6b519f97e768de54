//! F32, F16 and BF16: little-endian values without blocks.

use half::{bf16, f16};

use super::{ActivationRow, ActivationType, Quant, tree16};
use crate::gguf::TensorType;

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

macro_rules! float_format {
    ($name:ident, $ty:ident, $bytes:literal, $widen:expr) => {
        impl Quant for $name {
            const TYPE: TensorType = TensorType::$ty;
            const ACTIVATION: ActivationType = ActivationType::$ty;

            fn decode(bytes: &[u8], out: &mut [f32]) {
                let values = values(bytes);
                assert_eq!(values.len(), out.len(), "decode: bytes for as many elements as asked");
                for (value, out) in values.iter().zip(out) {
                    *out = $widen(*value);
                }
            }

            #[inline(always)]
            fn dot(weights: &[u8], x: ActivationRow<'_>) -> f32 {
                dot::<$bytes>(values(weights), x.floats(ActivationType::$ty), $widen)
            }
        }
    };
}

float_format!(F32, F32, 4, f32::from_le_bytes);
float_format!(F16, F16, 2, |b| f16::from_le_bytes(b).to_f32());
float_format!(Bf16, BF16, 2, |b| bf16::from_le_bytes(b).to_f32());

/// The bytes as elements of `N` bytes.
#[inline(always)]
fn values<const N: usize>(bytes: &[u8]) -> &[[u8; N]] {
    let (values, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "a whole number of elements");
    values
}

/// Sixteen lanes by index, the tail filled up with zeros (see [`super`]).
#[inline(always)]
fn dot<const N: usize>(w: &[[u8; N]], x: &[f32], widen: impl Fn([u8; N]) -> f32) -> f32 {
    assert_eq!(w.len(), x.len(), "dot: as many activations as weights");
    let mut lanes = [0f32; 16];
    let (w_steps, w_tail) = w.as_chunks::<16>();
    let (x_steps, x_tail) = x.as_chunks::<16>();
    for (w, x) in w_steps.iter().zip(x_steps) {
        for i in 0..16 {
            lanes[i] = widen(w[i]).mul_add(x[i], lanes[i]);
        }
    }
    if !w_tail.is_empty() {
        for (i, lane) in lanes.iter_mut().enumerate() {
            let (w, x) = if i < w_tail.len() { (widen(w_tail[i]), x_tail[i]) } else { (0.0, 0.0) };
            *lane = w.mul_add(x, *lane);
        }
    }
    tree16(lanes)
}
