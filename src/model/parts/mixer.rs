//! The mixing step of a layer: what a token takes from those before it.

use std::fmt::Debug;

use super::super::run::Run;
use super::super::{ForwardError, NodeId, RowSizes, ScratchSizes};
use super::{Attention, AttentionAndMamba2, DeltaNet, Kda, Lightning, Mamba, Mamba2, ShortConv};
use crate::store::WeightId;

/// Attention, a recurrence, or both. A pass calls its three steps one after another.
pub(in crate::model) trait Mixer: Debug + Send + Sync {
    /// What every token touches, in the order of a pass.
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_>;

    /// Values of a token in the buffers that the step uses.
    fn rows(&self) -> RowSizes;

    /// Values that the step needs beside those.
    fn scratch(&self) -> ScratchSizes {
        ScratchSizes::default()
    }

    /// Whether sequences remember anything of it: not where it looks into another layer's slot alone.
    fn remembers(&self) -> bool {
        true
    }

    /// Plain attention, where it is that.
    fn as_attention(&self) -> Option<&Attention> {
        None
    }

    /// A recurrence that devices know, where it is one.
    fn as_recurrence(&self) -> Option<Recurrence<'_>> {
        None
    }

    /// Attention and Mamba 2 side by side, where it is that.
    fn as_both(&self) -> Option<&AttentionAndMamba2> {
        None
    }

    /// All that changes what sequences remember: projections of [`Buffers::cur`](super::super::Buffers), the
    /// convolution and recurrence, or keys and values. Returns the nodes that [`Mixer::mix`] reads.
    fn remember(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 3], ForwardError>;

    /// What is left to fill [`Buffers::attn`](super::super::Buffers) and the gate, for all rows. In the
    /// `last` layer the rows of sequences whose logits nobody wants may hold anything: they are dropped.
    fn mix(
        &self,
        run: &mut Run<'_>,
        il: usize,
        last: bool,
        inputs: [NodeId<'static>; 3],
    ) -> Result<(), ForwardError>;

    /// Gate, norm and output projection of the rows that are left: to [`Buffers::cur`](super::super::Buffers)
    /// or, where the feed-forward network has the same input, `beside` it.
    fn output(&self, run: &mut Run<'_>, il: usize, beside: bool) -> Result<NodeId<'static>, ForwardError>;
}

/// The recurrences that devices know.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) enum Recurrence<'m> {
    ShortConv(&'m ShortConv),
    Mamba(&'m Mamba),
    Mamba2(&'m Mamba2),
    DeltaNet(&'m DeltaNet),
    Kda(&'m Kda),
    Lightning(&'m Lightning),
}
