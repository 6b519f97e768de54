//! How far dots may be from ggml's: both add up floats, in different orders.

use crate::gguf::TensorType;

/// The bound of a format's dots, in units in the last place of the sum of magnitudes: the error over the
/// distance between neighbouring f32 at `sum |w * a|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DotBound {
    pub ty: TensorType,
    /// The worst over the goldens. The arithmetic is the same on every machine, hence so is this.
    pub measured: f64,
    /// What a dot may be off; at most ten times what was measured.
    pub bound: f64,
}

/// The bounds of all formats.
pub static DOT_BOUNDS: &[DotBound] = &[
    DotBound { ty: TensorType::F32, measured: 0.5, bound: 1.0 },
    DotBound { ty: TensorType::F16, measured: 0.25, bound: 0.5 },
    DotBound { ty: TensorType::BF16, measured: 0.75, bound: 1.5 },
    DotBound { ty: TensorType::Q4_0, measured: 0.3125, bound: 0.625 },
    DotBound { ty: TensorType::Q4_1, measured: 0.25, bound: 0.5 },
    DotBound { ty: TensorType::Q5_0, measured: 0.5, bound: 1.0 },
    DotBound { ty: TensorType::Q5_1, measured: 0.5, bound: 1.0 },
    DotBound { ty: TensorType::Q8_0, measured: 0.25, bound: 0.5 },
    DotBound { ty: TensorType::Q2_K, measured: 0.125, bound: 0.25 },
    DotBound { ty: TensorType::Q3_K, measured: 0.125, bound: 0.25 },
    DotBound { ty: TensorType::Q4_K, measured: 0.25, bound: 0.5 },
    DotBound { ty: TensorType::Q5_K, measured: 0.25, bound: 0.5 },
    DotBound { ty: TensorType::Q6_K, measured: 0.125, bound: 0.25 },
    DotBound { ty: TensorType::IQ2_XXS, measured: 0.125, bound: 0.25 },
    DotBound { ty: TensorType::IQ2_XS, measured: 0.0625, bound: 0.125 },
    DotBound { ty: TensorType::IQ2_S, measured: 0.03125, bound: 0.0625 },
    DotBound { ty: TensorType::IQ3_XXS, measured: 0.125, bound: 0.25 },
    DotBound { ty: TensorType::IQ3_S, measured: 0.0625, bound: 0.125 },
    DotBound { ty: TensorType::IQ1_S, measured: 0.0625, bound: 0.125 },
    DotBound { ty: TensorType::IQ1_M, measured: 0.125, bound: 0.25 },
    DotBound { ty: TensorType::IQ4_NL, measured: 1.0, bound: 2.0 },
    DotBound { ty: TensorType::IQ4_XS, measured: 0.5, bound: 1.0 },
    DotBound { ty: TensorType::TQ1_0, measured: 0.25, bound: 0.5 },
    DotBound { ty: TensorType::TQ2_0, measured: 0.0625, bound: 0.125 },
    DotBound { ty: TensorType::MXFP4, measured: 0.25, bound: 0.5 },
    DotBound { ty: TensorType::NVFP4, measured: 0.5, bound: 1.0 },
    DotBound { ty: TensorType::Q1_0, measured: 0.125, bound: 0.25 },
    DotBound { ty: TensorType::Q2_0, measured: 0.25, bound: 0.5 },
];

/// The bound of a format; `None` where nothing was measured for it yet.
pub fn dot_bound(ty: TensorType) -> Option<&'static DotBound> {
    DOT_BOUNDS.iter().find(|bound| bound.ty == ty)
}
