//! The shape of a model, layer by layer, as the memory of a run and its faces need it. It is derived from the loaded
//! parts, not kept beside them.

use crate::kernels::ops::Window;

/// Immutable shape of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    pub architecture: String,
    /// Embedding length.
    pub embd: usize,
    /// Rows of the embedding; the number of logits.
    pub vocab: usize,
    /// Context that the model was trained for, tokens.
    pub context: usize,
    pub layers: Vec<LayerSpec>,
}

/// Shape of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head of queries and keys.
    pub key_len: usize,
    /// Elements of a head of values.
    pub value_len: usize,
    /// What a query sees, where that is limited.
    pub window: Option<Window>,
    /// Values of a token in the output gate of attention; 0 without one.
    pub gate_len: usize,
    pub ff: FeedForwardSpec,
}

/// Shape of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FeedForwardSpec {
    Dense {
        /// Hidden length.
        ff: usize,
    },
    Experts {
        /// Experts of the layer.
        count: usize,
        /// Experts that a token is sent to.
        used: usize,
        /// Hidden length of an expert.
        ff: usize,
        /// Hidden length of the network that every token goes through as well; 0 without one.
        shared: usize,
        /// Whether each expert has an input of its own, the token's times its weight.
        weighs_input: bool,
    },
}

impl LayerSpec {
    /// Elements of a token's queries.
    pub fn q_dim(&self) -> usize {
        self.heads * self.key_len
    }

    /// Elements of a token's keys.
    pub fn k_dim(&self) -> usize {
        self.kv_heads * self.key_len
    }

    /// Elements of a token's values.
    pub fn v_dim(&self) -> usize {
        self.kv_heads * self.value_len
    }

    /// Elements of what attention gives a token.
    pub fn attended_dim(&self) -> usize {
        self.heads * self.value_len
    }

    /// Experts of the layer and how many a token is sent to.
    pub fn experts(&self) -> Option<(usize, usize)> {
        match self.ff {
            FeedForwardSpec::Experts { count, used, .. } => Some((count, used)),
            FeedForwardSpec::Dense { .. } => None,
        }
    }
}

impl ModelSpec {
    /// Whether any layer has experts.
    pub fn has_experts(&self) -> bool {
        self.layers.iter().any(|layer| layer.experts().is_some())
    }

    /// The largest of some size over all layers.
    pub fn widest(&self, of: impl Fn(&LayerSpec) -> usize) -> usize {
        self.layers.iter().map(of).max().unwrap_or(0)
    }
}
