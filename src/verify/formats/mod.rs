//! Checks of the formats' arithmetic. `dot-check` prints what they find, the tests demand that they find
//! nothing.
//!
//! - Against ggml, on what it computed once ([`FormatGoldens`]): decoded values and quantised activations bit
//!   for bit; dots bit for bit where float rounding cannot enter, elsewhere within [`DOT_BOUNDS`].
//! - Every kernel set against the scalar dots, bit for bit, at sizes around the edges ([`check_kernels`]).
//!
//! The checks take what they check as functions ([`FormatUnderTest`], [`Matmul`]), so that a test of the
//! checks can hand in faulty ones.

mod activation_blocks;
mod against_ggml;
mod against_scalar;
mod bounds;
mod goldens;
mod speed;

pub use against_ggml::{
    Closeness, GgmlReport, Mismatch, Tally, check_against_ggml, check_kernels_against_ggml,
};
pub use against_scalar::{
    DotDifference, Matmul, SetReport, check_kernels, compare_with_scalar, each_format, thread_pools,
};
pub use bounds::{DOT_BOUNDS, DotBound, dot_bound};
pub use goldens::{DotSet, FormatGoldens, GoldenError};
pub use speed::{Speed, SpeedTest};

use crate::gguf::TensorType;
use crate::quant::{ActivationRow, ActivationType, Activations, Format, NonFinite};

/// A format's functions as the checks call them: the real ones ([`FormatUnderTest::of`]), or faulty ones in a
/// test of the checks.
#[derive(Clone, Copy, Debug)]
pub struct FormatUnderTest {
    pub ty: TensorType,
    pub activation: ActivationType,
    /// As [`Format::decode`].
    pub decode: fn(&[u8], &mut [f32]),
    /// Rounds a row of activations; the result in ggml's blocks of that type (Q8_0: f16 scale, 32 bytes;
    /// Q8_1: f16 scale, f16 sum, 32 bytes; Q8_K: f32 scale, 256 bytes, 16 sums of i16), little-endian.
    pub quantise: fn(ActivationType, &[f32]) -> Result<Vec<u8>, NonFinite>,
    /// As [`Format::dot`].
    pub dot: fn(&[u8], ActivationRow<'_>) -> f32,
}

impl FormatUnderTest {
    /// What the program itself computes with.
    pub fn of(format: &Format) -> FormatUnderTest {
        FormatUnderTest {
            ty: format.ty,
            activation: format.activation,
            decode: format.decode,
            quantise,
            dot: format.dot,
        }
    }
}

/// [`Activations::quantize`] of one row, as ggml's blocks.
fn quantise(ty: ActivationType, x: &[f32]) -> Result<Vec<u8>, NonFinite> {
    let mut rows = Activations::new();
    rows.quantize(ty, x, x.len())?;
    Ok(activation_blocks::to_bytes(rows.row(0)))
}

/// Whether two values have the same bits; any NaN is any NaN.
pub(crate) fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}
