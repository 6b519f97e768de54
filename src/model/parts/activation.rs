//! The activation of a feed-forward network, with a gate or without.

use super::super::NodeKind;
use crate::kernels::ops::Ops;

/// What becomes of the hidden values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::model) enum Activation {
    /// `silu(gate) * up`
    SwiGlu,
    /// SwiGLU of limited values: `min(silu(gate), limit) * clamp(up, -limit, limit)`.
    SwiGluClamped { limit: f32 },
    /// The same limits, the gate's before SiLU: `silu(min(gate, limit)) * clamp(up, -limit, limit)`.
    SwiGluLimited { limit: f32 },
    /// gpt-oss' SwiGLU: `g = min(gate, limit)`, `g / (1 + exp(-alpha g)) * (clamp(up, -limit, limit) + 1)`.
    SwiGluOai { alpha: f32, limit: f32 },
    /// Kimi K3's: `beta tanh(gate / beta) sigmoid(gate) * linear tanh(up / linear)`; `up` as it is where
    /// `linear` is 0.
    Situ { beta: f32, linear: f32 },
    /// `gelu(gate) * up`, by tanh
    GeGlu,
    /// `gelu(max(gate - cut, 0)) * up`, the cut of a row being its mean and so many standard deviations above
    /// it; without any, GeGLU. ggml names neither product.
    SparseGeGlu { deviations: Option<f32> },
    /// `gelu(up)`: without a gate
    Gelu,
    /// `max(up, 0)^2`: without a gate
    ReluSquared,
}

impl Activation {
    /// Whether there is a gate.
    pub fn is_gated(self) -> bool {
        !matches!(self, Activation::Gelu | Activation::ReluSquared)
    }

    /// The name that its node has in ggml's graph behind `ffn_` or `ffn_moe_`, the former for a dense
    /// network.
    pub fn node_name(self) -> (&'static str, &'static str) {
        match self {
            Activation::SwiGlu => ("ffn_swiglu", "ffn_moe_swiglu"),
            Activation::SwiGluClamped { .. } | Activation::SwiGluLimited { .. } => {
                ("ffn_swiglu_limited", "ffn_moe_swiglu_limited")
            }
            Activation::SwiGluOai { .. } => ("ffn_swiglu_oai", "ffn_moe_swiglu_oai"),
            Activation::Situ { .. } => ("ffn_situ", "ffn_moe_situ"),
            Activation::GeGlu | Activation::SparseGeGlu { .. } => ("ffn_geglu", "ffn_moe_geglu"),
            Activation::Gelu => ("ffn_gelu", "ffn_moe_gelu"),
            Activation::ReluSquared => ("ffn_sqr(relu)", "ffn_moe_relu_sqr"),
        }
    }

    pub fn kind(self) -> NodeKind {
        match self {
            Activation::GeGlu | Activation::Gelu => NodeKind::Gelu,
            Activation::SparseGeGlu { .. } => NodeKind::ProductGelu,
            Activation::ReluSquared => NodeKind::Elementwise,
            _ => NodeKind::SwiGlu,
        }
    }

    /// Takes `gate` and `up` (rows of the same length, `row`) to `gate`; without a gate `up` to `gate`.
    pub fn apply(self, ops: &Ops, gate: &mut [f32], up: &[f32], row: usize) {
        match self {
            Activation::SwiGlu => ops.swiglu(gate, up),
            Activation::SwiGluClamped { limit } => ops.swiglu_clamped(gate, up, limit),
            Activation::SwiGluLimited { limit } => ops.swiglu_limited(gate, up, limit),
            Activation::SwiGluOai { alpha, limit } => ops.swiglu_oai(gate, up, alpha, limit),
            Activation::Situ { beta, linear } => ops.situ(gate, up, beta, linear),
            Activation::GeGlu => ops.geglu(gate, up),
            Activation::SparseGeGlu { deviations } => {
                if let Some(deviations) = deviations {
                    ops.cut_below(gate, row, deviations);
                }
                ops.geglu(gate, up);
            }
            Activation::Gelu => {
                gate.copy_from_slice(up);
                ops.gelu(gate);
            }
            Activation::ReluSquared => {
                gate.copy_from_slice(up);
                ops.relu_squared(gate);
            }
        }
    }
}
