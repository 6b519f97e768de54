//! What decoders are made of: each part owns its weights, the keys that it is read from, the names of its nodes and its
//! step of a pass.

mod activation;
mod attention;
mod embedding;
mod experts;
mod feed_forward;
mod head;
mod norm;
mod rope;
mod routing;

pub(super) use activation::Activation;
pub(super) use attention::{Attention, AttentionNames, AttentionSpec, Gate, QkNorm, Temperature};
pub(super) use embedding::Embedding;
pub(super) use experts::{Experts, ExpertsSpec, SharedSpec};
pub(super) use feed_forward::{Dense, DenseNames, DenseSpec};
pub(super) use head::Head;
pub(super) use norm::{Norm, NormKind};
pub(super) use rope::{Rope, RopeSpec};
pub(super) use routing::{Routing, Score};
