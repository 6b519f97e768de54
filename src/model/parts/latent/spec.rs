//! What a family says of latent attention.

use super::super::attention::{Gate, Temperature};
use super::super::indexer::IndexingSpec;
use crate::kernels::ops::AttentionShape;

/// What a family says of the latent attention of a layer.
#[derive(Clone, Debug)]
pub(in crate::model) struct LatentSpec {
    pub heads: usize,
    /// The rank that queries pass through; `None`: they come of the input itself.
    pub q_rank: Option<usize>,
    /// Elements of a latent.
    pub latent: usize,
    /// Elements of a head's queries and keys that are not rotated, and of those that are, behind them: by the
    /// decoder's first kind of rotation.
    pub nope: usize,
    pub rope: usize,
    /// Whether the latter are; in some models they are only what heads share.
    pub rotated: bool,
    /// Elements of a head's values.
    pub value_len: usize,
    /// Whether the weights are head by head.
    pub absorbed: bool,
    /// Factor on every score.
    pub scale: f32,
    pub temperature: Option<Temperature>,
    /// Whether heads have sinks, `attn_sinks`; not of whole weights.
    pub sinks: bool,
    /// On what heads give, from the block's input.
    pub gate: Option<Gate>,
    pub eps: f32,
    pub names: LatentNames,
    /// Which positions are attended to; all where `None`.
    pub indexing: Option<IndexingSpec>,
}

impl LatentSpec {
    /// Elements of a head's queries as they are projected.
    pub(super) fn query_len(&self) -> usize {
        self.nope + self.rope
    }

    /// Elements of a latent and the rotated part of its keys.
    pub(super) fn row(&self) -> usize {
        self.latent + self.rope
    }

    /// A call of attention: of latents, or of keys and values made of them.
    pub(super) fn shape(&self, first_pos: usize, tokens: usize) -> AttentionShape {
        let (kv_heads, key_len, value_len) = match self.absorbed {
            true => (1, self.row(), self.latent),
            false => (self.heads, self.query_len(), self.value_len),
        };
        AttentionShape {
            heads: self.heads,
            kv_heads,
            key_len,
            value_len,
            tokens,
            first_pos,
            window: None,
            scale: self.scale,
            soft_cap: None,
        }
    }
}

/// Nodes whose names differ from family to family.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct LatentNames {
    /// Queries of low rank, and their norm, where that has another name; all queries.
    pub low_q: &'static str,
    pub low_q_norm: Option<&'static str>,
    pub q: &'static str,
    /// Latents with the part of the keys that is to be rotated.
    pub low_kv: &'static str,
    pub latent: &'static str,
    /// Of whole weights: queries, keys and values.
    pub whole: [&'static str; 3],
    /// Queries in the latents' space.
    pub absorbed: &'static str,
    /// What heads give; their output projection.
    pub attended: &'static str,
    pub output: &'static str,
}

impl Default for LatentNames {
    fn default() -> LatentNames {
        LatentNames {
            low_q: "q",
            low_q_norm: None,
            q: "q",
            low_kv: "kv_cmpr_pe",
            latent: "kv_cmpr",
            whole: ["Qcur", "Kcur", "Vcur_cont"],
            absorbed: "q_nope_absorbed",
            attended: "kqv_out",
            output: "attn_out",
        }
    }
}
