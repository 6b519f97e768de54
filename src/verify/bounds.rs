//! How far a node may be from ggml's on equal inputs.
//!
//! The measured figure is the worst NMSE over all fixtures, prompts and decode steps; the bound is at most
//! ten times that. Neither depends on the machine: one arithmetic is the same everywhere, and so are the
//! references.

use crate::gguf::TensorType;
use crate::model::{KvType, NodeKind};

/// What a bound is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Nodes of this kind.
    All,
    /// Products with weights of this type.
    Weight(TensorType),
    /// Attention over a cache of this type.
    Kv(KvType),
}

/// A row of [`ISOLATED`].
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    pub kind: NodeKind,
    pub of: Of,
    /// The worst NMSE measured.
    pub measured: f64,
    /// The NMSE allowed; 0 asks for the same bits.
    pub nmse: f64,
}

/// The bounds on equal inputs.
pub static ISOLATED: &[Bound] = &[
    bound(NodeKind::Lookup, Of::All, 0.0, 0.0),
    bound(NodeKind::Elementwise, Of::All, 0.0, 0.0),
    bound(NodeKind::TopK, Of::All, 0.0, 0.0),
    bound(NodeKind::RmsNorm, Of::All, 6.47e-14, 6e-13),
    bound(NodeKind::Rope, Of::All, 1.74e-15, 1.7e-14),
    bound(NodeKind::RowSum, Of::All, 8.16e-15, 8e-14),
    bound(NodeKind::LayerNorm, Of::All, 4.60e-15, 4e-14),
    bound(NodeKind::Gelu, Of::All, 0.0, 0.0),
    bound(NodeKind::Sigmoid, Of::All, 1.54e-14, 1e-13),
    bound(NodeKind::SoftCap, Of::All, 7.46e-15, 7e-14),
    bound(NodeKind::SwiGlu, Of::All, 9.43e-15, 9e-14),
    bound(NodeKind::Softmax, Of::All, 3.43e-14, 3e-13),
    bound(NodeKind::Attention, Of::Kv(KvType::F32), 7.14e-14, 7e-13),
    bound(NodeKind::Attention, Of::Kv(KvType::F16), 4.22e-15, 4e-14),
    bound(NodeKind::SinkAttention, Of::Kv(KvType::F32), 6.56e-14, 6e-13),
    bound(NodeKind::SinkAttention, Of::Kv(KvType::F16), 5.03e-8, 5e-7),
    bound(NodeKind::Product, Of::Weight(TensorType::F32), 3.38e-14, 3e-13),
    bound(NodeKind::Product, Of::Weight(TensorType::F16), 1.85e-14, 1e-13),
    bound(NodeKind::Product, Of::Weight(TensorType::BF16), 4.86e-15, 4e-14),
    bound(NodeKind::Product, Of::Weight(TensorType::Q8_0), 9.53e-15, 9e-14),
    bound(NodeKind::Product, Of::Weight(TensorType::Q4_K), 1.27e-13, 1e-12),
    bound(NodeKind::Product, Of::Weight(TensorType::Q5_K), 1.05e-13, 1e-12),
    bound(NodeKind::Product, Of::Weight(TensorType::Q6_K), 7.10e-15, 7e-14),
];

const fn bound(kind: NodeKind, of: Of, measured: f64, nmse: f64) -> Bound {
    Bound { kind, of, measured, nmse }
}

/// The row of [`ISOLATED`] for a node of this kind, with this weight, in a run with this cache.
pub fn find(kind: NodeKind, weight: Option<TensorType>, kv: KvType) -> Option<&'static Bound> {
    ISOLATED.iter().find(|row| {
        row.kind == kind
            && match row.of {
                Of::All => true,
                Of::Weight(ty) => weight == Some(ty),
                Of::Kv(ty) => kv == ty,
            }
    })
}

/// The NMSE allowed; 0, the same bits, where no row says otherwise.
pub fn isolated(kind: NodeKind, weight: Option<TensorType>, kv: KvType) -> f64 {
    match find(kind, weight, kv) {
        Some(row) => row.nmse,
        // A format that no captured model has: the widest of the others.
        None if kind == NodeKind::Product => {
            ISOLATED.iter().filter(|row| row.kind == kind).fold(0.0, |widest, row| row.nmse.max(widest))
        }
        None => 0.0,
    }
}
