//! What a family says of attention over compressed keys.

use crate::kernels::ops::Window;

/// What a family says of the attention of a layer.
#[derive(Clone, Debug)]
pub(in crate::model) struct CompressedSpec {
    pub heads: usize,
    /// Elements of a head, of queries, keys and values alike; the last `rotated` are rotated.
    pub len: usize,
    pub rotated: usize,
    /// The rank that queries pass through.
    pub q_rank: usize,
    /// Groups of heads whose outputs are projected apart, each to `out_rank` elements.
    pub groups: usize,
    pub out_rank: usize,
    /// What a token sees of keys that are not compressed.
    pub window: Window,
    /// Which of the decoder's rotations are the layer's.
    pub rope: usize,
    pub eps: f32,
    /// Compressed keys beside those of the window.
    pub compression: Option<Compression>,
}

/// How keys are compressed.
#[derive(Clone, Debug)]
pub(in crate::model) struct Compression {
    /// Positions that make one key.
    pub ratio: usize,
    /// Which compressed keys a token attends to; then each is made of so many positions before its own as
    /// well. All that it sees where `None`.
    pub indexing: Option<RowIndexing>,
}

/// An indexer of compressed keys.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct RowIndexing {
    pub heads: usize,
    /// Elements of a head, of which the last `rotated` are rotated.
    pub len: usize,
    /// Keys that are chosen, at most.
    pub count: usize,
    /// Elements that the Hadamard transform spreads outliers over, a power of two that divides `len`.
    pub spread: usize,
}
