//! What a comparison is asked for and what it says of each node.

use std::ops::RangeInclusive;

use globset::GlobMatcher;

use crate::model::{KvType, NodeId};

use super::Difference;
use super::bounds;
use super::nodes::NodeGraph;

/// How far a node may be from its reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Not at all: every bit the same.
    SameBits,
    /// Up to this NMSE.
    Nmse(f64),
    /// Up to what [`bounds`] allows this node on equal inputs.
    Bounds,
}

impl Tolerance {
    pub(super) fn of(self, id: &NodeId<'_>, graph: &NodeGraph<'_>, kv: KvType, positions: usize) -> f64 {
        match self {
            Tolerance::SameBits => 0.0,
            Tolerance::Nmse(nmse) => nmse,
            Tolerance::Bounds => {
                let weight = graph.weight_type(id);
                graph.kind(id).map_or(0.0, |kind| bounds::isolated(kind, weight, kv, positions))
            }
        }
    }
}

/// Which nodes are reported.
#[derive(Clone, Debug, Default)]
pub struct NodeFilter {
    pub layers: Option<RangeInclusive<usize>>,
    /// Of names without layer and occurrence.
    pub names: Option<GlobMatcher>,
}

impl NodeFilter {
    /// Whether a node is wanted. Nodes outside of layers are, unless layers are named.
    pub fn wants(&self, id: &NodeId<'_>) -> bool {
        let layer = self.layers.as_ref().is_none_or(|layers| id.layer.is_some_and(|l| layers.contains(&l)));
        layer && self.names.as_ref().is_none_or(|names| names.is_match(id.name))
    }
}

/// Where the reference's values take the place of the run's own once they are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Substitute {
    Nowhere,
    /// In rows of which a rounding came out otherwise, and where other experts were chosen: the differences
    /// that are left are those of the arithmetic.
    Roundings,
    /// Everywhere: all nodes are computed from equal inputs.
    Everywhere,
}

/// How to compare.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    pub substitute: Substitute,
    pub tolerance: Tolerance,
    /// Of the run, for [`Tolerance::Bounds`].
    pub kv: KvType,
    /// Positions of the run, for the same.
    pub positions: usize,
    pub filter: NodeFilter,
    /// Counts roundings to 8 bits that come out otherwise.
    pub flips: bool,
}

/// Chosen experts against those of the reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// Tokens compared.
    pub tokens: usize,
    /// Tokens that other experts were chosen for.
    pub sets_differ: usize,
    /// Tokens of the same experts in another order.
    pub orders_differ: usize,
}

/// 8-bit roundings of a product's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flips {
    pub values: u64,
    pub flipped: u64,
}

/// The nodes that a node was computed from, as they stood against their reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InputState {
    /// The same bits (or the reference's own values were put there).
    Equal,
    /// Different, within tolerance.
    Within,
    /// Different beyond tolerance.
    Beyond,
}

/// A node compared. Its name lives as long as that of the run's node.
#[derive(Clone, Debug)]
pub struct NodeReport<'n> {
    /// `prefill`, `decode.0`, ..
    pub pass: String,
    pub id: NodeId<'n>,
    /// As in [`Node`](crate::model::Node).
    pub shape: [usize; 3],
    /// Differences of floats, or of indices as floats.
    pub difference: Difference,
    /// Where the largest difference is: token of the pass, value of the token.
    pub largest_at: Option<(usize, usize)>,
    pub choices: Option<Choices>,
    pub flips: Option<Flips>,
    /// Rows in whose place the reference was put.
    pub substituted: usize,
    /// The worst of the inputs; `None` where none was compared.
    pub inputs: Option<InputState>,
    /// The NMSE allowed; 0 is the same bits.
    pub tolerance: f64,
    /// Whether the difference is more than that.
    pub beyond: bool,
}
