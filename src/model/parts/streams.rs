//! Several residual streams a token: what a model does at both ends of a pass, and a layer around its blocks.

use std::fmt::Debug;

use super::super::ForwardError;
use super::super::observer::NodeName;
use super::super::run::Run;
use crate::store::WeightId;

/// A block of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum Block {
    /// The mixing step.
    Mixer,
    /// The feed-forward network.
    Network,
}

/// The streams of a model: what they begin as, and what they end in.
pub(in crate::model) trait Streams: Debug + Send + Sync {
    /// What the beginning of a pass touches.
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_>;

    /// What its end touches.
    fn end_weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_>;

    /// Values of a token in [`Buffers::gates`](super::super::Buffers).
    fn gates(&self) -> usize {
        0
    }

    /// Makes the streams of the residual stream.
    fn begin(&self, run: &mut Run<'_>) -> Result<(), ForwardError>;

    /// Makes the residual stream of them, behind so many layers.
    fn end(&self, run: &mut Run<'_>, layers: usize) -> Result<(), ForwardError>;
}

/// What a layer does around its blocks.
pub(in crate::model) trait LayerStreams: Debug + Send + Sync {
    /// What every token touches before the layer's blocks.
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_>;

    /// The same behind them.
    fn late_weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_>;

    /// Values of a token in the buffer of hidden rows.
    fn hidden(&self) -> usize;

    /// Makes the residual stream that a block sees.
    fn before(&self, run: &mut Run<'_>, il: usize, block: Block) -> Result<(), ForwardError>;

    /// What stands beside the mixing step, from the block's input.
    fn beside_mixer(&self, _: &mut Run<'_>, _: usize) -> Result<(), ForwardError> {
        Ok(())
    }

    /// Adds what a block gave, in [`Buffers::cur`](super::super::Buffers); `sum` is the node. Here a pass may
    /// be broken off.
    fn add(&self, run: &mut Run<'_>, il: usize, block: Block, sum: NodeName) -> Result<(), ForwardError>;
}
