//! What a family says of attention.

use super::super::blocks::BlocksSpec;
use super::super::norm::Norm;
use super::super::pools::PoolsSpec;
use crate::kernels::ops::Window;

/// What a family says of the attention of a layer.
#[derive(Clone, Debug)]
pub(in crate::model) struct AttentionSpec {
    pub heads: usize,
    pub kv_heads: usize,
    pub key_len: usize,
    pub value_len: usize,
    /// The rotation, as an index into the decoder's; `None`: none.
    pub rope: Option<usize>,
    pub window: Option<Window>,
    /// Factor on every score.
    pub scale: f32,
    /// Factor on the queries before their dots, where the family scales these.
    pub query_scale: Option<f32>,
    pub soft_cap: Option<f32>,
    pub temperature: Option<Temperature>,
    /// Limit of projections: each is brought to within `-limit..=limit`.
    pub clamp: Option<f32>,
    pub qk_norm: Option<QkNorm>,
    /// Of each head's values.
    pub value_norm: Option<Norm>,
    /// Whether values are the products of the keys where there is no `attn_v`.
    pub keys_as_values: bool,
    /// The slot of the layer whose keys and values this one sees in the place of its own.
    pub shares: Option<usize>,
    /// Whether heads have sinks, `attn_sinks`.
    pub sinks: bool,
    pub gate: Option<Gate>,
    /// Whether the gate is part of `attn_q`, each head's queries followed by their gate, which is as long.
    pub gate_in_queries: bool,
    /// Which positions are attended to; all where `None`.
    pub choice: Option<ChoiceSpec>,
    /// Factor on the output.
    pub output_scale: Option<f32>,
    pub names: AttentionNames,
}

/// How positions are chosen.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) enum ChoiceSpec {
    /// Blocks, by each head of keys.
    Blocks(BlocksSpec),
    /// Pools, by all heads together.
    Pools(PoolsSpec),
}

impl AttentionSpec {
    /// Plain attention with the scale `1 / sqrt(key_len)`.
    pub fn new(heads: usize, kv_heads: usize, key_len: usize, value_len: usize) -> AttentionSpec {
        AttentionSpec {
            heads,
            kv_heads,
            key_len,
            value_len,
            rope: None,
            window: None,
            scale: 1.0 / (key_len as f32).sqrt(),
            query_scale: None,
            soft_cap: None,
            temperature: None,
            clamp: None,
            qk_norm: None,
            value_norm: None,
            keys_as_values: false,
            shares: None,
            sinks: false,
            gate: None,
            gate_in_queries: false,
            choice: None,
            output_scale: None,
            names: AttentionNames::default(),
        }
    }

    /// Values of a token in what `attn_q` gives.
    pub(in crate::model) fn projected_queries(&self) -> usize {
        (1 + usize::from(self.gate_in_queries)) * self.heads * self.key_len
    }
}

/// Nodes whose names differ from family to family.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct AttentionNames {
    /// The projection of queries.
    pub queries: &'static str,
    /// Queries and keys once they are rotated.
    pub rotated: (&'static str, &'static str),
    /// Queries times their temperature.
    pub temperature: &'static str,
    /// Queries times [`AttentionSpec::query_scale`].
    pub scaled_queries: &'static str,
    /// Whether queries, keys and values are flat rows before their norms: ggml then names sums with biases
    /// alone, and copies what it takes of one product.
    pub flat: bool,
    /// What attention gives.
    pub attended: &'static str,
    pub output: &'static str,
    /// The output times its factor.
    pub scaled: &'static str,
}

impl Default for AttentionNames {
    fn default() -> AttentionNames {
        AttentionNames {
            queries: "Qcur",
            rotated: ("Qcur", "Kcur"),
            temperature: "Qcur_attn_temp_scaled",
            scaled_queries: "Qcur_scaled",
            flat: false,
            attended: "kqv_out",
            output: "attn_out",
            scaled: "attn_out_scaled",
        }
    }
}

/// A factor on queries that grows with the position:
/// `1 + scale * ln(floor((position + offset) / floor) + 1)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::model) struct Temperature {
    pub scale: f32,
    pub floor: f32,
    pub offset: f32,
}

impl Temperature {
    /// The number of steps in f32, all else in f64, rounded once: as llama.cpp fills this input.
    pub(in crate::model) fn at(self, position: usize) -> f32 {
        let steps = ((position as f32 + self.offset) / self.floor).floor();
        (libm::log(f64::from(steps) + 1.0) * f64::from(self.scale) + 1.0) as f32
    }
}

/// Norms of queries and keys.
#[derive(Clone, Debug)]
pub(in crate::model) struct QkNorm {
    pub q: Norm,
    /// `None` where the layer has no keys of its own.
    pub k: Option<Norm>,
    /// Whether they come after the rotation.
    pub after_rope: bool,
}

impl QkNorm {
    /// The same with other nodes.
    pub fn named(self, q: &'static str, k: &'static str) -> QkNorm {
        QkNorm { q: self.q.named(q), k: self.k.map(|norm| norm.named(k)), ..self }
    }
}

/// A gate on what attention gives: its sigmoid, one for each element or one for each head.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct Gate {
    pub per_head: bool,
    /// Nodes: the projection, its sigmoid, what passes.
    pub names: [&'static str; 3],
}

impl Gate {
    /// Values of a token, where heads give so many values each.
    pub fn rows(self, heads: usize, value_len: usize) -> usize {
        if self.per_head { heads } else { heads * value_len }
    }
}
