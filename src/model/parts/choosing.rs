//! The choice of positions for sparse attention.

use std::fmt::Debug;

use super::super::run::Run;
use super::super::{ForwardError, ScratchSizes};
use crate::store::WeightId;

/// What says which positions a layer's attention attends to, with queries and keys of its own.
pub(super) trait Choosing: Debug + Send + Sync {
    /// What every token touches.
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_>;

    /// Values that it needs.
    fn scratch(&self) -> ScratchSizes;

    /// Tokens at positions from here on do not attend to all that they see.
    fn first_choosing(&self) -> usize;

    /// Lists of positions of a token: as many as heads of keys, or one for all.
    fn lists(&self) -> usize;

    /// Queries and keys of the block's input, turned by a rotation of the decoder's; keys are remembered.
    fn remember(&self, run: &mut Run<'_>, il: usize, rope: usize) -> Result<(), ForwardError>;

    /// Chooses for every token that sees more than it may attend to, to the masks of
    /// [`IndexerBuffers`](super::super::state::IndexerBuffers): `[T][lists][pages]`. In the `last` layer
    /// nothing is chosen for sequences whose logits nobody wants.
    fn choose(&self, run: &mut Run<'_>, last: bool) -> Result<(), ForwardError>;
}
