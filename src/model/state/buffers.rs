//! Every buffer of a forward pass, with its shape, reused from pass to pass.
//!
//! T is the number of rows (tokens of all sequences of the pass), at most the batch; E the embedding length;
//! H heads, G of them for keys and values; D elements of a key, DV of a value; F the hidden length; N experts
//! of which U are used; V the vocabulary; S residual streams; L layers, each with P elements of an input of
//! its own. Where layers differ, a buffer has room for the largest.

use crate::kernels::ops::{AttentionScratch, RopeTable};
use crate::quant::arranged;
use crate::store::{OutOfMemory, zeroed};

use super::super::on_device::Room;
use super::super::{FeedForwardSpec, LayerSpec, ModelSpec, SideSizes};
use super::{Inputs, KvType};

/// Buffers of the experts of a layer. A slot is a (token, expert) pair; slots are grouped by expert and lie
/// within an expert in rising order of tokens.
#[derive(Debug, Default)]
pub(in crate::model) struct ExpertBuffers {
    /// Router `[T][N]`: logits, then probabilities.
    pub probs: Vec<f32>,
    /// What experts are chosen by, where it is not the probabilities `[T][N]`.
    pub choice: Vec<f32>,
    /// Experts chosen `[T][U]`, the best first.
    pub chosen: Vec<u32>,
    /// Their weights `[T][U]`.
    pub weights: Vec<f32>,
    /// Sums of the weights `[T]`.
    pub sums: Vec<f32>,
    /// Inputs of each pair, where they differ from the token's `[T*U][E]`.
    pub weighted: Vec<f32>,
    /// Hidden `[T*U][F]`, by slot.
    pub gate: Vec<f32>,
    /// Hidden `[T*U][F]`, by slot.
    pub up: Vec<f32>,
    /// What the experts gave `[T*U][E]`, by slot.
    pub down: Vec<f32>,
    /// Input of each expert `[N]`, for those in use.
    pub gathered: Vec<Inputs>,
    /// Tokens of each expert `[N]`.
    pub tokens: Vec<Vec<usize>>,
    /// Pairs (token times U, plus rank) of each expert `[N]`.
    pub pairs: Vec<Vec<usize>>,
    /// Slots of each expert `[N]`.
    pub by_slot: Vec<Vec<usize>>,
    /// Slot of each (token, rank) `[T][U]`.
    pub slots: Vec<usize>,
}

/// What the experts of the widest layer need.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::model) struct ExpertSizes {
    pub count: usize,
    pub used: usize,
    /// Floats of a token's hidden values, all its experts together.
    pub hidden: usize,
    weighted: usize,
}

impl ExpertSizes {
    pub fn of(spec: &ModelSpec) -> ExpertSizes {
        let sizes = |layer: &LayerSpec| match layer.ff {
            FeedForwardSpec::Experts { count, used, ff, weighs_input, .. } => {
                ExpertSizes { count, used, hidden: used * ff, weighted: if weighs_input { used } else { 0 } }
            }
            FeedForwardSpec::Dense { .. } | FeedForwardSpec::Nothing => ExpertSizes::default(),
        };
        spec.all_layers().map(sizes).fold(ExpertSizes::default(), |a, b| ExpertSizes {
            count: a.count.max(b.count),
            used: a.used.max(b.used),
            hidden: a.hidden.max(b.hidden),
            weighted: a.weighted.max(b.weighted),
        })
    }
}

impl ExpertBuffers {
    fn new(sizes: ExpertSizes, embd: usize, batch: usize) -> Result<ExpertBuffers, OutOfMemory> {
        let ExpertSizes { count, used, hidden, weighted } = sizes;
        let buffer = |n: usize| zeroed::<f32>(&[batch, n], "the buffers of the experts");
        let mut buffers = ExpertBuffers {
            probs: buffer(count)?,
            choice: buffer(count)?,
            chosen: zeroed(&[batch, used], "the buffers of the experts")?,
            weights: buffer(used)?,
            sums: buffer(usize::from(used > 0))?,
            weighted: buffer(weighted * embd)?,
            gate: buffer(hidden)?,
            up: buffer(hidden)?,
            down: buffer(used * embd)?,
            ..ExpertBuffers::default()
        };
        buffers.gathered.resize_with(count, Inputs::default);
        for lists in [&mut buffers.tokens, &mut buffers.pairs, &mut buffers.by_slot] {
            lists.resize(count, Vec::new());
        }
        Ok(buffers)
    }
}

/// What latent attention needs: buffers that grow to what the largest pass needs. A stretch is a run of its
/// rows.
#[derive(Debug, Default)]
pub(in crate::model) struct LatentBuffers {
    /// Queries of low rank `[T][Q]`.
    pub low_q: Vec<f32>,
    /// Latents with the rotated part of the keys `[T][L+R]`.
    pub low_kv: Vec<f32>,
    /// Keys and values of all heads side by side `[T][H][..]`, where the weights are whole.
    pub kv: Vec<f32>,
    /// Parts of queries or values by head, `[H][stretch][..]`.
    pub narrow: Vec<f32>,
    /// Latents by head, `[H][stretch][L]`.
    pub wide: Vec<f32>,
    /// Queries `[stretch][H][L+R]`.
    pub q: Vec<f32>,
    /// What attention gave `[stretch][H][L]`.
    pub attended: Vec<f32>,
    /// The input of each head's product, rounded `[H]`.
    pub by_head: Vec<Inputs>,
    pub indexer: IndexerBuffers,
    pub compressed: CompressedBuffers,
}

/// What attention over compressed keys needs.
#[derive(Debug, Default)]
pub(in crate::model) struct CompressedBuffers {
    /// Values and scores of the keys' compressor and of the indexer's `[T][..]`.
    pub values: [Vec<f32>; 2],
    pub scores: [Vec<f32>; 2],
    /// Compressed rows of a sequence's pass `[blocks][D]`.
    pub rows: Vec<f32>,
    /// Rotations of blocks' first positions, and backwards.
    pub starts: RopeTable,
    pub back: RopeTable,
    /// What tokens of a sequence attend to `[T][pages]`.
    pub masks: Vec<u128>,
}

/// What an indexer needs, and its choice.
#[derive(Debug, Default)]
pub(in crate::model) struct IndexerBuffers {
    /// Queries `[T][H][D]`, keys `[T][D]` and weights `[T][H]`.
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub weights: Vec<f32>,
    /// Gates of keys that are pooled `[T][D]`, and pooled keys of a sequence's pass `[blocks][D]`.
    pub gates: Vec<f32>,
    pub pooled: Vec<f32>,
    /// Scores `[stretch][positions]`.
    pub scores: Vec<f32>,
    /// Positions chosen `[T][pages]`, kept for layers that take the choice of the one before.
    pub masks: Vec<u128>,
    pub pages: usize,
}

/// The first `len` of a buffer that grows.
pub(in crate::model) fn grown(buffer: &mut Vec<f32>, len: usize) -> Result<&mut [f32], OutOfMemory> {
    if buffer.len() < len {
        // The former goes first.
        *buffer = Vec::new();
        *buffer = zeroed(&[len], "the buffers of a batch")?;
    }
    Ok(&mut buffer[..len])
}

/// Makes a buffer of masks so many zeros, in memory that grows to what is needed and no further.
pub(in crate::model) fn cleared(masks: &mut Vec<u128>, len: usize) -> Result<(), OutOfMemory> {
    if masks.capacity() < len {
        *masks = Vec::new();
        *masks = zeroed(&[len], "the positions that are chosen")?;
    } else {
        masks.clear();
        masks.resize(len, 0);
    }
    Ok(())
}

/// Every buffer of a forward pass.
#[derive(Debug)]
pub struct Buffers {
    batch: usize,
    /// Positions that a sequence may have: some frequencies of RoPE depend on it.
    pub(in crate::model) context: usize,
    pub(in crate::model) side: SideSizes,
    /// The residual stream `[T][E]`.
    pub(in crate::model) x: Vec<f32>,
    /// The input of a block, then its output `[T][E]`.
    pub(in crate::model) cur: Vec<f32>,
    /// What attention gave where the feed-forward network has the same input `[T][E]`.
    pub(in crate::model) beside: Vec<f32>,
    /// What the shared network beside the experts gave `[T][E]`.
    pub(in crate::model) shared: Vec<f32>,
    /// Queries `[T][H][D]`.
    pub(in crate::model) q: Vec<f32>,
    /// Keys `[T][G][D]`.
    pub(in crate::model) k: Vec<f32>,
    /// Values `[T][G][DV]`.
    pub(in crate::model) v: Vec<f32>,
    /// The gate of what attention gives `[T][H][DV]` or `[T][H]`.
    pub(in crate::model) attn_gate: Vec<f32>,
    /// What attention gave `[T][H][DV]`.
    pub(in crate::model) attn: Vec<f32>,
    /// Hidden `[T][F]`, of a dense or shared network; `[T][P]`.
    pub(in crate::model) gate: Vec<f32>,
    /// Hidden `[T][F]`.
    pub(in crate::model) up: Vec<f32>,
    pub(in crate::model) experts: ExpertBuffers,
    /// Residual streams, where there are several `[T][S][E]`.
    pub(in crate::model) streams: Vec<f32>,
    /// The gates of a block between the streams.
    pub(in crate::model) gates: Vec<f32>,
    /// Inputs of all layers `[T][L][P]`.
    pub(in crate::model) per_layer: Vec<f32>,
    /// What they are made of `[T][L][P]`.
    pub(in crate::model) per_layer_rows: Vec<f32>,
    /// What the residual stream ended in, where drafts are to follow: of all rows of a pass of the trunk, of
    /// the wanted rows of a pass of the block for multi-token prediction `[T][E]`.
    pub(in crate::model) ends: Vec<f32>,
    /// Embeddings and hidden rows side by side, the input of that block `[T][2E]`.
    pub(in crate::model) pairs: Vec<f32>,
    /// The input of a block, rounded.
    pub(in crate::model) inputs: Inputs,
    /// Hidden values, rounded.
    pub(in crate::model) hidden: Inputs,
    /// Cosines and sines of the pass's positions, one table for each kind of rotation of the model.
    pub(in crate::model) rope: Vec<RopeTable>,
    pub(in crate::model) attention: AttentionScratch,
    pub(in crate::model) latent: LatentBuffers,
    /// What the next stage goes on from `[T][B]`, where there is one.
    pub(in crate::model) border: Vec<f32>,
    pub(in crate::model) on_device: Room,
    /// `[rows asked for][V]`.
    pub(in crate::model) logits: Vec<f32>,
}

/// The hidden length of a layer's dense or shared network.
pub(in crate::model) fn dense_ff(layer: &LayerSpec) -> usize {
    match layer.ff {
        FeedForwardSpec::Dense { ff } => ff,
        FeedForwardSpec::Experts { shared, .. } => shared,
        FeedForwardSpec::Nothing => 0,
    }
}

impl Buffers {
    /// Buffers for passes of up to `batch` rows of sequences of up to `context` positions.
    ///
    /// # Errors
    /// Where there is no memory for them.
    pub fn new(spec: &ModelSpec, batch: usize, context: usize) -> Result<Buffers, OutOfMemory> {
        let buffer = |n: usize| zeroed::<f32>(&[batch, n], "the buffers of a batch");
        let dense = spec.widest(dense_ff).max(spec.side.hidden);
        let drafting = usize::from(spec.nextn.is_some());
        Ok(Buffers {
            batch,
            context,
            side: spec.side,
            x: buffer(spec.embd)?,
            cur: buffer(spec.embd)?,
            beside: buffer(spec.embd)?,
            shared: buffer(spec.embd)?,
            q: buffer(spec.widest(|layer| layer.rows.q))?,
            k: buffer(spec.widest(|layer| layer.rows.k))?,
            v: buffer(spec.widest(|layer| layer.rows.v))?,
            attn_gate: buffer(spec.widest(|layer| layer.rows.gate))?,
            attn: buffer(spec.widest(|layer| layer.rows.attended))?,
            gate: buffer(dense)?,
            up: buffer(dense)?,
            experts: ExpertBuffers::new(ExpertSizes::of(spec), spec.embd, batch)?,
            streams: buffer(spec.side.streams)?,
            gates: buffer(spec.side.gates)?,
            per_layer: buffer(spec.side.per_layer)?,
            per_layer_rows: buffer(spec.side.per_layer)?,
            ends: buffer(drafting * spec.embd)?,
            pairs: buffer(2 * drafting * spec.embd)?,
            inputs: Inputs::default(),
            hidden: Inputs::default(),
            rope: Vec::new(),
            attention: AttentionScratch::default(),
            latent: LatentBuffers::default(),
            border: Vec::new(),
            on_device: Room::new(spec, [batch, context]),
            logits: Vec::new(),
        })
    }

    /// Bytes that passes of up to `batch` rows, of sequences of up to `context` positions, touch at most, the
    /// rounded inputs of products and so many rows of logits included: those of the pass and those that a
    /// sequence keeps of the one before; keys and values are kept as `kv`.
    pub fn bytes(
        spec: &ModelSpec,
        [batch, context]: [usize; 2],
        logits: usize,
        threads: usize,
        kv: KvType,
    ) -> u64 {
        let ExpertSizes { count, used, hidden, weighted } = ExpertSizes::of(spec);
        let dense = spec.widest(dense_ff).max(spec.side.hidden);
        let attended = spec.widest(|layer| layer.rows.attended);
        let floats = [
            4 * spec.embd,
            spec.widest(|layer| layer.rows.q)
                + spec.widest(|layer| layer.rows.k)
                + spec.widest(|layer| layer.rows.v),
            spec.widest(|layer| layer.rows.gate) + attended,
            2 * dense,
            spec.side.streams + spec.side.gates + 2 * spec.side.per_layer + spec.side.border,
            // Ends and pairs, the ends that a sequence keeps of the last pass, and those that the block
            // reads.
            if spec.nextn.is_some() { 5 * spec.embd } else { 0 },
            2 * count + 2 * hidden + (used + weighted) * spec.embd,
            // What is chosen, its weights and the lists of it, of which some grow by doubling.
            16 * used,
        ];
        // Bytes of a row of an input that is rounded to eight bits, and arranged for panels.
        let rounded = |values: usize| values + values / 4 + arranged::bytes_of_row(values);
        // An input is kept as f32 at most, one of several products as f32 and in a shorter type, or in two of
        // these, which may be arranged; rows of experts are kept again by expert. The input of an output
        // projection may wait in the gate.
        let one = |values: usize| (values * size_of::<f32>()).max(rounded(values));
        let several =
            |values: usize| (values + values / 2) * size_of::<f32>() + 2 * arranged::bytes_of_row(values);
        let output = attended.max(spec.widest(|layer| layer.rows.gate));
        let hidden = used * one(hidden.div_ceil(used.max(1)));
        let inputs = several(spec.embd.max(output))
            + hidden.max(one(dense)).max(weighted * several(spec.embd))
            + (used * several(spec.embd)).max(hidden);
        let token = floats.iter().sum::<usize>() * size_of::<f32>() + inputs;
        let logits = (2 * logits as u64).saturating_mul((spec.vocab * size_of::<f32>()) as u64);
        let mut scratches: Vec<_> = spec.all_layers().map(|layer| layer.scratch).collect();
        scratches.dedup();
        let rounds = kv.keys.is_quantised();
        let scratches = scratches.iter().map(|scratch| scratch.bytes(batch, context, threads, rounds));
        let scratch = scratches.fold([0; 6], |most, bytes| std::array::from_fn(|i| most[i].max(bytes[i])));
        let scratch = scratch.into_iter().fold(0, u64::saturating_add);
        (batch as u64).saturating_mul(token as u64).saturating_add(logits).saturating_add(scratch)
    }

    /// The same of a device that runs the blocks of these passes, beside weights and copies of keys and
    /// values.
    pub fn device_bytes(spec: &ModelSpec, [batch, context]: [usize; 2], logits: usize) -> u64 {
        Room::bytes(spec, [batch, context], logits)
    }

    /// Most rows of a pass.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Forgets the logits: those of a pass that failed are nobody's.
    pub fn clear_logits(&mut self) {
        self.logits.clear();
    }

    /// The logits that the last pass was asked for: `[rows][vocabulary]`, in the order of its segments.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The ends that the last pass left: see [`Pass::ends`](super::super::Pass).
    pub fn ends(&self) -> &[f32] {
        &self.ends
    }

    /// What the last pass of a stage left for the next one, to be taken: `[rows][values]`, in the order of
    /// its segments.
    pub fn take_border(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.border)
    }

    /// The [logits](Buffers::logits), to be taken without a copy.
    pub fn logits_mut(&mut self) -> &mut Vec<f32> {
        &mut self.logits
    }
}
