//! How far a node may be from ggml's on equal inputs.
//!
//! The measured figure is the worst NMSE over all fixtures, prompts and decode steps; the bound is at most
//! ten times that. Neither depends on the machine: one arithmetic is the same everywhere, and so are the
//! references.

use crate::gguf::TensorType;
use crate::kernels::ops::PAGE;
use crate::model::{KvElement, KvType, NodeKind};

/// What a bound is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Nodes of this kind.
    All,
    /// Products with weights of this type.
    Weight(TensorType),
    /// Attention over a cache of this type.
    Kv(KvType),
    /// Attention over values of this type.
    Values(KvElement),
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
    bound(NodeKind::RmsNorm, Of::All, 5.70e-14, 5.7e-13),
    bound(NodeKind::Rope, Of::All, 4.29e-15, 4.2e-14),
    bound(NodeKind::Hadamard, Of::All, 6.15e-15, 6.1e-14),
    bound(NodeKind::RowSum, Of::All, 9.37e-15, 9.3e-14),
    bound(NodeKind::LayerNorm, Of::All, 1.88e-14, 1.8e-13),
    bound(NodeKind::Gelu, Of::All, 0.0, 0.0),
    bound(NodeKind::ProductGelu, Of::All, 7.60e-11, 7.6e-10),
    bound(NodeKind::Sigmoid, Of::All, 9.53e-15, 9.5e-14),
    bound(NodeKind::SoftCap, Of::All, 1.52e-14, 1.5e-13),
    bound(NodeKind::SwiGlu, Of::All, 2.51e-14, 2.5e-13),
    bound(NodeKind::Silu, Of::All, 1.94e-15, 1.9e-14),
    bound(NodeKind::Softplus, Of::All, 7.70e-14, 1e-13),
    bound(NodeKind::Convolution, Of::All, 5.30e-15, 5.3e-14),
    bound(NodeKind::L2Norm, Of::All, 1.05e-14, 1e-13),
    bound(NodeKind::Recurrence, Of::All, 1.29e-13, 6.4e-13),
    bound(NodeKind::LinearAttention, Of::All, 1.59e-14, 1.5e-13),
    bound(NodeKind::GatedNorm, Of::All, 3.39e-15, 3.3e-14),
    bound(NodeKind::Scan, Of::All, 1.69e-13, 1.6e-12),
    bound(NodeKind::Softmax, Of::All, 3.38e-14, 3.3e-13),
    bound(NodeKind::Attention, Of::Kv(KvType::F32), 7.14e-14, 7e-13),
    bound(NodeKind::Attention, Of::Kv(KvType::F16), 4.22e-15, 4e-14),
    bound(NodeKind::Attention, Of::Kv(EIGHT_AND_FOUR), 6.72e-15, 6.7e-14),
    bound(NodeKind::SinkAttention, Of::Kv(KvType::F32), 5.52e-14, 5.5e-13),
    bound(NodeKind::SinkAttention, Of::Kv(KvType::F16), 9.55e-8, 9.5e-7),
    bound(NodeKind::Product, Of::Weight(TensorType::F32), 6.76e-13, 9.7e-13),
    bound(NodeKind::Product, Of::Weight(TensorType::F16), 7.79e-15, 7.7e-14),
    bound(NodeKind::Product, Of::Weight(TensorType::BF16), 4.86e-15, 4.8e-14),
    bound(NodeKind::Product, Of::Weight(TensorType::Q8_0), 9.53e-15, 9e-14),
    bound(NodeKind::Product, Of::Weight(TensorType::Q4_K), 1.27e-13, 1e-12),
    bound(NodeKind::Product, Of::Weight(TensorType::Q5_K), 1.05e-13, 1e-12),
    bound(NodeKind::Product, Of::Weight(TensorType::Q6_K), 7.10e-15, 7e-14),
];

/// Those of attention in runs of more than a page, and of types that no captured model has. Measured with
/// prompts of 200 and 2,000 tokens (`scripts/long-caches.py`), whose nodes would take too much room here.
///
/// ggml rounds the probabilities of all positions to f16 together; over f16 values ours are rounded page by
/// page: as finely, but not the same.
pub static LONG: &[Bound] = &[
    bound(NodeKind::Attention, Of::Values(KvElement::F16), 1.18e-7, 1.1e-6),
    bound(NodeKind::Attention, Of::Values(KvElement::Q8_0), 1.71e-12, 1.7e-11),
    bound(NodeKind::Attention, Of::Values(KvElement::Q4_0), 1.39e-12, 1.3e-11),
];

/// The pair of types that is captured.
const EIGHT_AND_FOUR: KvType = KvType { keys: KvElement::Q8_0, values: KvElement::Q4_0 };

const fn bound(kind: NodeKind, of: Of, measured: f64, nmse: f64) -> Bound {
    Bound { kind, of, measured, nmse }
}

/// The row for a node of this kind, with this weight, in a run of so many positions with this cache.
pub fn find(
    kind: NodeKind,
    weight: Option<TensorType>,
    kv: KvType,
    positions: usize,
) -> Option<&'static Bound> {
    let fits = |row: &&Bound| {
        row.kind == kind
            && match row.of {
                Of::All => true,
                Of::Weight(ty) => weight == Some(ty),
                Of::Kv(ty) => kv == ty,
                Of::Values(ty) => kv.values == ty,
            }
    };
    let long = LONG.iter().find(fits);
    long.filter(|_| positions > PAGE).or_else(|| ISOLATED.iter().find(fits)).or(long)
}

/// The NMSE allowed; 0, the same bits, where no row says otherwise.
pub fn isolated(kind: NodeKind, weight: Option<TensorType>, kv: KvType, positions: usize) -> f64 {
    match find(kind, weight, kv, positions) {
        Some(row) => row.nmse,
        // A format that no captured model has, or a cache: the widest of the others.
        None if matches!(kind, NodeKind::Product | NodeKind::Attention | NodeKind::SinkAttention) => {
            ISOLATED.iter().filter(|row| row.kind == kind).fold(0.0, |widest, row| row.nmse.max(widest))
        }
        None => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_has_a_bound_for_every_cache_and_length() {
        let bound = |kv, positions| isolated(NodeKind::Attention, None, kv, positions);
        assert_eq!(bound(KvType::F16, PAGE), 4e-14);
        assert_eq!(bound(KvType::F16, PAGE + 1), 1.1e-6);
        assert_eq!(bound(KvType::F32, 2000), bound(KvType::F32, 1));
        assert_eq!(bound(EIGHT_AND_FOUR, 1), 6.7e-14);
        assert_eq!(bound(KvType::Q8_0, 1), 1.7e-11, "of a type that is not captured");
        for row in LONG {
            assert!(row.nmse <= 10.0 * row.measured, "{row:?}");
        }
    }
}
