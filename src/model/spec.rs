//! The shape of a model, layer by layer, as the memory of a run and its faces need it. It is derived from the
//! loaded parts, not kept beside them.

use crate::kernels::ops::{AttentionScratch, AttentionShape, PAGE, Window};

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
    /// The block of multi-token prediction, where it is loaded.
    pub nextn: Option<LayerSpec>,
    /// What a sequence remembers, slot by slot.
    pub memories: Vec<MemorySpec>,
    /// How many of them are the trunk's; those behind are the block's of multi-token prediction.
    pub trunk_memories: usize,
    /// Contexts beyond which a rotation has other frequencies, as LongRoPE's has.
    pub rope_steps: Vec<usize>,
    pub side: SideSizes,
}

/// Values of a token in buffers that few families have; 0 in all others.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SideSizes {
    /// All residual streams, where a token has several.
    pub streams: usize,
    /// The gates of these streams, where they outlive a block's beginning.
    pub gates: usize,
    /// Inputs of all layers.
    pub per_layer: usize,
    /// The widest hidden row that is none of a feed-forward network.
    pub hidden: usize,
    /// What a stage hands over to the next one.
    pub border: usize,
}

/// What a part of a model remembers of a sequence: the shape of one of its slots.
#[derive(Clone, Debug, PartialEq)]
pub enum MemorySpec {
    /// Keys and values of every position.
    Pages {
        kv_heads: usize,
        /// Elements of a head of keys.
        key_len: usize,
        /// Elements of a head of values.
        value_len: usize,
        /// What a query sees, where that is limited.
        window: Option<Window>,
    },
    /// A row of so many elements of every position: a latent, which is a key and, its beginning, a value.
    Latents { len: usize },
    /// An indexer's key of so many elements of every position; floats, whatever keys are kept as.
    Rows { len: usize },
    /// What a compressor still needs of the last positions: values of so many elements and, where it has
    /// them, as many scores, in f32 whatever the cache's type.
    Compressing { len: usize, scores: bool, window: Window },
    /// A row of so many elements for every `ratio` positions, once all of them are there; floats, whatever
    /// keys are kept as.
    Compressed { len: usize, ratio: usize },
    /// The state of a recurrence, which does not grow: so many f32.
    Recurrent { floats: usize },
}

/// Values of a token in the buffers of a layer's mixing step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowSizes {
    pub q: usize,
    pub k: usize,
    pub v: usize,
    /// In the output gate; 0 without one.
    pub gate: usize,
    /// In what the step gives its output projection.
    pub attended: usize,
}

/// What a mixing step needs beside those.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScratchSizes {
    /// Values of every row of a pass.
    pub row: usize,
    /// Values of every row of a stretch of [`ScratchSizes::STRETCH`] at most, which a step goes through one
    /// after another.
    pub stretch_row: usize,
    /// Its attention, where it has one: of so many tokens at once at most.
    pub attention: Option<AttentionShape>,
    pub choice: ChoiceSizes,
    /// Values of the model, beside matrices, that a device has a copy of where it does the step and it is a
    /// recurrence.
    pub constants: usize,
}

/// What the choice of the keys that a token attends to needs, which grows with the context.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ChoiceSizes {
    /// Masks of a row over all keys; 0 where all are attended to.
    pub masks: usize,
    /// Positions that a key stands for.
    pub per_key: usize,
    /// Pages of other keys that one of the masks is over as well.
    pub others: usize,
    pub scores: ScoreSizes,
}

/// The scores of keys.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum ScoreSizes {
    #[default]
    Nothing,
    /// Of some rows at a time: a stretch at most, and as many as give about so many scores.
    SomeRows(usize),
    /// Of all rows of a pass, so many times: of blocks of so many keys.
    Blocks { times: usize, len: usize },
}

impl ScratchSizes {
    /// Rows of a stretch.
    pub const STRETCH: usize = 64;

    /// Bytes of passes of up to so many rows, of sequences of up to `context` positions, buffer by buffer: of
    /// each the layers share one. `rounds`: whether queries are rounded, since keys are quantised.
    pub fn bytes(&self, rows: usize, context: usize, threads: usize, rounds: bool) -> [u64; 6] {
        let floats = |rows: usize, floats: usize| (rows as u64).saturating_mul((4 * floats) as u64);
        let attention =
            self.attention.map(|shape| AttentionShape { tokens: shape.tokens.min(rows), ..shape });
        let parts = attention.map_or(0, |shape| AttentionScratch::most_floats(&shape, context, threads));
        let queries = attention.filter(|_| rounds).map_or(0, |shape| AttentionScratch::query_bytes(&shape));
        let [masks, scores] = self.choice.bytes(rows as u64, context as u64, threads as u64);
        let stretch = floats(rows.min(ScratchSizes::STRETCH), self.stretch_row);
        [floats(rows, self.row), stretch, floats(1, parts), masks, scores, queries]
    }
}

impl ChoiceSizes {
    /// Bytes of masks, and of scores and what sorts them.
    fn bytes(&self, rows: u64, context: u64, threads: u64) -> [u64; 2] {
        if self.masks == 0 {
            return [0; 2];
        }
        let keys = context / self.per_key as u64;
        let pages = keys.div_ceil(PAGE as u64);
        let masks = (self.masks as u64).saturating_mul(pages).saturating_add(self.others as u64);
        let (scores, sorted) = match self.scores {
            ScoreSizes::Nothing => (0, 0),
            ScoreSizes::SomeRows(most) => {
                let row = pages.saturating_mul(PAGE as u64);
                let stretch = rows.min(ScratchSizes::STRETCH as u64).saturating_mul(row);
                (stretch.min(row.max(most as u64)), threads.saturating_mul(keys))
            }
            ScoreSizes::Blocks { times, len } => {
                let blocks = keys.div_ceil(len as u64);
                (rows.saturating_mul(times as u64).saturating_mul(blocks), blocks)
            }
        };
        let masks = rows.saturating_mul(masks).saturating_mul(size_of::<u128>() as u64);
        // Each thread sorts the scores of a row.
        [masks, scores.saturating_mul(4).saturating_add(sorted.saturating_mul(8))]
    }
}

/// Shape of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    pub rows: RowSizes,
    pub scratch: ScratchSizes,
    pub ff: FeedForwardSpec,
}

/// Shape of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FeedForwardSpec {
    /// None in this layer.
    Nothing,
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
    /// Experts of the layer and how many a token is sent to.
    pub fn experts(&self) -> Option<(usize, usize)> {
        match self.ff {
            FeedForwardSpec::Experts { count, used, .. } => Some((count, used)),
            FeedForwardSpec::Dense { .. } | FeedForwardSpec::Nothing => None,
        }
    }
}

impl ModelSpec {
    /// Whether any layer has experts.
    pub fn has_experts(&self) -> bool {
        self.layers.iter().any(|layer| layer.experts().is_some())
    }

    /// Whether a sequence remembers states of recurrences, of which one more is kept for every draft.
    pub fn is_recurrent(&self) -> bool {
        self.memories.iter().any(|memory| matches!(memory, MemorySpec::Recurrent { .. }))
    }

    /// All layers, the block of multi-token prediction included.
    pub fn all_layers(&self) -> impl Iterator<Item = &LayerSpec> {
        self.layers.iter().chain(&self.nextn)
    }

    /// The largest of some size over all layers.
    pub fn widest(&self, of: impl Fn(&LayerSpec) -> usize) -> usize {
        self.all_layers().map(of).max().unwrap_or(0)
    }
}
