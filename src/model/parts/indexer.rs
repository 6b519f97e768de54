//! The indexer of sparse attention (DeepSeek V3.2, GLM 5): a small attention of its own that says which
//! positions each token attends to.

use rayon::prelude::*;

use super::super::load::Loader;
use super::super::run::Run;
use super::super::state::{IndexerBuffers, grown};
use super::super::weights::Linear;
use super::super::{
    ForwardError, Label, Logits, MemorySpec, ModelError, NodeId, NodeKind, ScratchSizes, Work,
};
use super::attention::keep;
use super::latent::plain;
use super::norm::{Norm, NormKind};
use crate::kernels::ops::{self, IndexQueries, KvPages, PAGE, RopeKind};
use crate::store::{OutOfMemory, WeightId};

/// What a family says of a layer's indexer.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct IndexingSpec {
    pub heads: usize,
    /// Elements of a head, a power of two, of which the first are rotated.
    pub len: usize,
    pub rope: RopeKind,
    /// Positions that are chosen, at most.
    pub count: usize,
    /// Of the keys' layer norm.
    pub eps: f32,
    /// Whether the layer takes the choice of the one before.
    pub shared: bool,
}

/// Where a layer's choice comes from.
#[derive(Debug)]
pub(in crate::model) enum Indexing {
    Own(Box<Indexer>),
    /// Of the layer before, so many positions.
    Shared(usize),
}

/// An indexer of a layer.
#[derive(Debug)]
pub(in crate::model) struct Indexer {
    spec: IndexingSpec,
    slot: usize,
    /// Of the queries of low rank.
    q: Linear,
    /// Of the block's input.
    k: Linear,
    k_norm: Norm,
    /// Of the block's input: a weight for each head.
    weights: Linear,
}

/// A product and where it goes.
type Output<'a> = (&'a Linear, &'a mut [f32]);

/// Scores kept at once, in floats.
const MOST_SCORES: usize = 1 << 20;

impl Indexing {
    /// Finds the weights of a layer: `indexer.attn_k`, `indexer.proj`, `indexer.attn_q_b` and the norm
    /// `indexer.k_norm`. A layer that takes another's choice may have them and does not use them.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        embd: usize,
        q_rank: usize,
        spec: IndexingSpec,
    ) -> Result<Indexing, ModelError> {
        let name = |part: &str| format!("blk.{il}.indexer.{part}");
        if spec.shared {
            l.weights.leave_all_aside(&name(""));
            return Ok(Indexing::Shared(spec.count));
        }
        let IndexingSpec { heads, len, eps, .. } = spec;
        let k = plain(l, &name("attn_k"), embd, len)?;
        let weights = plain(l, &name("proj"), embd, heads)?;
        let q = plain(l, &name("attn_q_b"), q_rank, heads * len)?;
        let k_norm = Norm::load(l, &name("k_norm"), "indexer_k", NormKind::Layer, len, eps)?;
        let slot = l.remember(MemorySpec::Rows { len });
        Ok(Indexing::Own(Box::new(Indexer { spec, slot, q, k, k_norm, weights })))
    }

    /// Positions that are chosen, at most.
    pub fn count(&self) -> usize {
        match self {
            Indexing::Own(own) => own.spec.count,
            Indexing::Shared(count) => *count,
        }
    }

    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        let own = if let Indexing::Own(own) = self { Some(own) } else { None };
        own.into_iter().flat_map(|own| [own.k.id(), own.weights.id(), own.q.id()])
    }

    pub fn scratch(&self) -> ScratchSizes {
        match self {
            Indexing::Own(own) => {
                Choice::scratch(own.spec.heads * own.spec.len + own.spec.len + own.spec.heads)
            }
            Indexing::Shared(_) => ScratchSizes::default(),
        }
    }
}

impl Indexer {
    /// The products of the block's input: keys and weights.
    pub fn outputs<'a>(
        &'a self,
        buffers: &'a mut IndexerBuffers,
        t: usize,
    ) -> Result<[Output<'a>; 2], OutOfMemory> {
        let k = grown(&mut buffers.k, t * self.spec.len)?;
        Ok([(&self.k, k), (&self.weights, grown(&mut buffers.weights, t * self.spec.heads)?)])
    }

    /// The product of the queries of low rank.
    pub fn queries<'a>(
        &'a self,
        buffers: &'a mut IndexerBuffers,
        t: usize,
    ) -> Result<Output<'a>, OutOfMemory> {
        Ok((&self.q, grown(&mut buffers.q, t * self.spec.heads * self.spec.len)?))
    }

    /// What follows the products: norm and rotation, then the transform that spreads outliers. Keys are
    /// remembered.
    pub fn remember(&self, run: &mut Run<'_>, il: usize, low: NodeId<'static>) -> Result<(), ForwardError> {
        let IndexingSpec { heads, len, rope, .. } = self.spec;
        let (t, ops, watch) = (run.rows, run.kernels.ops(), &mut run.watch);
        let (buffers, table) = (&mut run.buffers.latent.indexer, &run.buffers.rope[0]);
        let (q, k) = (&mut buffers.q[..t * heads * len], &mut buffers.k[..t * len]);
        let weights = &mut buffers.weights[..t * heads];

        let product = |name, linear: &Linear, inputs| {
            Label::product(name, Work::Projections, linear.matrix.described(), inputs)
        };
        let inputs = [low];
        let q_node = [watch.show(product("indexer_q", &self.q, &inputs), [t, heads * len, 1], q)];
        ops.rope(rope, table, q, heads, len);
        let label = Label::new("indexer_q", NodeKind::Rope, Work::Rope, &q_node);
        let q_node = [watch.show(label, [t, heads, len], q)];
        let inputs = [run.cur];
        let k_node = [watch.show(product("indexer_k", &self.k, &inputs), [t, len, 1], k)];
        self.k_norm.apply(ops, k);
        let k_node = [watch.show(self.k_norm.label(&k_node), [t, len, 1], k)];
        ops.rope(rope, table, k, 1, len);
        let label = Label::new("indexer_k", NodeKind::Rope, Work::Rope, &k_node);
        let k_node = [watch.show(label, [t, 1, len], k)];
        ops.hadamard(q, len);
        let label = Label::new("indexer_q", NodeKind::Hadamard, Work::Rope, &q_node);
        watch.show(label, [t, heads, len], q);
        ops.hadamard(k, len);
        let label = Label::new("indexer_k", NodeKind::Hadamard, Work::Rope, &k_node);
        watch.show(label, [t, 1, len], k);
        let node = [watch.show(product("indexer_weights", &self.weights, &inputs), [t, heads, 1], weights)];
        ops.scale(weights, 1.0 / ((len * heads) as f32).sqrt());
        let label = Label::elementwise("indexer_weights", Work::Projections, &node);
        watch.show(label, [t, heads, 1], weights);

        keep(ops, &mut run.segments, il, self.slot, [("indexer_k", k, len), ("", &[], 0)])
    }

    /// Chooses for every token that sees more positions than it may attend to.
    pub fn choose(&self, run: &mut Run<'_>, last: bool) -> Result<(), ForwardError> {
        let (IndexingSpec { heads, len, count, .. }, slot) = (self.spec, self.slot);
        choose(run, &Choice { heads, len, count, slot, per_key: 1 }, last)
    }
}

/// What is chosen from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    /// Of the indexer.
    pub heads: usize,
    pub len: usize,
    /// Keys that are chosen, at most.
    pub count: usize,
    /// Where the indexer's keys are.
    pub slot: usize,
    /// Positions that a key stands for.
    pub per_key: usize,
}

impl Choice {
    /// What an indexer needs with so many values of a token.
    pub fn scratch(row: usize) -> ScratchSizes {
        ScratchSizes { row, stretch_row: MOST_SCORES / ScratchSizes::STRETCH }
    }

    /// Keys up to a position.
    fn seen(&self, positions: usize) -> usize {
        positions / self.per_key
    }
}

/// Chooses for every token that sees more keys than it may attend to.
pub(super) fn choose(run: &mut Run<'_>, choice: &Choice, last: bool) -> Result<(), ForwardError> {
    let Choice { heads, len, count, slot, per_key } = *choice;
    let IndexerBuffers { q, weights, scores, masks, pages, .. } = &mut run.buffers.latent.indexer;
    let ends = run.segments.iter().map(|segment| segment.first_pos + segment.tokens.len());
    let most = choice.seen(ends.max().unwrap_or(0));
    *pages = most.div_ceil(PAGE);
    masks.clear();
    if most <= count {
        return Ok(());
    }
    masks.resize(run.rows * *pages, 0);
    let mut first = 0;
    for segment in &run.segments {
        let (first_pos, tokens) = (segment.first_pos, segment.tokens.len());
        let start = first;
        first += tokens;
        if last && segment.logits == Logits::None {
            continue;
        }
        // The first token that sees a key more.
        let mut token = ((count + 1) * per_key - 1).saturating_sub(first_pos).min(tokens);
        while token < tokens {
            let held = choice.seen(first_pos + tokens).div_ceil(PAGE);
            let most = (MOST_SCORES / (held * PAGE)).clamp(1, ScratchSizes::STRETCH);
            let n = (tokens - token).min(most);
            let rows = start + token..start + token + n;
            let queries = IndexQueries {
                heads,
                len,
                q: &q[rows.start * heads * len..rows.end * heads * len],
                weights: &weights[rows.start * heads..rows.end * heads],
                first_pos: first_pos + token,
                per_key,
            };
            let scores = grown(scores, n * held * PAGE)?;
            segment.state.with_pages(slot, |keys| {
                let keys = KvPages { keys: &keys.keys[..held], ..*keys };
                run.kernels.ops().index_scores(&queries, &keys, scores);
            });
            let masks = &mut masks[rows.start * *pages..rows.end * *pages];
            masks
                .par_chunks_exact_mut(*pages)
                .zip(scores.par_chunks_exact(held * PAGE))
                .enumerate()
                .for_each_init(Vec::new, |keys, (i, (masks, scores))| {
                    let seen = choice.seen(queries.first_pos + i + 1);
                    ops::choose(&scores[..seen], count, masks, keys);
                });
            token += n;
        }
    }
    Ok(())
}
