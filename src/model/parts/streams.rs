//! Several residual streams a token: what a model does at both ends of a pass, and a layer around its blocks.

use std::fmt::Debug;

use super::super::observer::NodeName;
use super::super::run::Run;
use super::super::{ForwardError, Label, Work};
use crate::kernels::ops::STREAMS;
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

    /// Streams of a token.
    fn count(&self) -> usize {
        STREAMS
    }

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

    /// Values of a token, whose embedding has `embd`, in the buffer of hidden rows.
    fn hidden(&self, embd: usize) -> usize;

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

/// Makes so many streams of the residual stream, which are all the same.
pub(super) fn copies(run: &mut Run<'_>, count: usize) {
    let (t, embd) = (run.rows, run.embd);
    let (streams, x) = (&mut run.buffers.streams[..t * count * embd], &run.buffers.x);
    for (streams, x) in streams.chunks_exact_mut(count * embd).zip(x.chunks_exact(embd)) {
        streams.chunks_exact_mut(embd).for_each(|stream| stream.copy_from_slice(x));
    }
    let label = Label::elementwise("hc_init", Work::Streams, std::slice::from_ref(&run.x));
    run.streams = run.watch.show(label, [t, count, embd], streams);
}
