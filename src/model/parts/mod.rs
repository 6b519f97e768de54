//! What decoders are made of: each part owns its weights, the keys that it is read from, the names of its
//! nodes and its step of a pass.

mod activation;
mod altup;
mod attention;
mod blocks;
mod delta_net;
mod dense_and_experts;
mod embedding;
mod expert_latents;
mod experts;
mod feed_forward;
mod head;
mod indexer;
mod latent;
mod mamba2;
mod mixer;
mod norm;
mod per_layer;
mod rope;
mod routing;
mod short_conv;
mod side_by_side;

pub(super) use activation::Activation;
pub(super) use altup::{AltUp, Streams};
pub(super) use attention::{Attention, AttentionNames, AttentionSpec, Gate, QkNorm, Temperature};
pub(super) use blocks::BlocksSpec;
pub(super) use delta_net::{DeltaNet, DeltaNetSpec, Kda, MAX_HEAD, Merged};
pub(super) use dense_and_experts::{DenseAndExperts, DenseAndExpertsSpec};
pub(super) use embedding::Embedding;
pub(super) use experts::{Experts, ExpertsSpec, SharedSpec};
pub(super) use feed_forward::{Dense, DenseNames, DenseSpec};
pub(super) use head::Head;
pub(super) use indexer::IndexingSpec;
pub(super) use latent::{Latent, LatentNames, LatentSpec};
pub(super) use mamba2::{Mamba2, Mamba2Spec};
pub(super) use mixer::Mixer;
pub(super) use norm::{Norm, NormKind};
pub(super) use per_layer::{PerLayer, PerLayerInputs, PerLayerNames, Tail};
pub(super) use rope::{Rope, RopeSpec, ln, yarn_gain};
pub(super) use routing::{Routing, Score};
pub(super) use short_conv::{ShortConv, ShortConvSpec};
pub(super) use side_by_side::AttentionAndMamba2;
