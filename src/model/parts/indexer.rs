//! The indexer of sparse attention (DeepSeek V3.2, GLM 5, Hunyuan 4): a small attention of its own that says
//! which positions each token attends to, one by one or in blocks of which each has a pooled key (GLM 5.3).

use std::ops::Range;

use rayon::prelude::*;

use super::super::load::Loader;
use super::super::observer::Watch;
use super::super::run::{Run, with_rows};
use super::super::state::{Buffers, IndexerBuffers, LatentBuffers, cleared, grown};
use super::super::weights::Linear;
use super::super::{
    ChoiceSizes, ForwardError, Label, Logits, MemorySpec, ModelError, NodeId, NodeKind, ScoreSizes,
    ScratchSizes, Work,
};
use super::attention::keep;
use super::key_pool::KeyPool;
use super::latent::plain;
use super::norm::{Norm, NormKind};
use crate::kernels::ops::{self, IndexQueries, KvPages, PAGE, RopeKind};
use crate::store::{OutOfMemory, WeightId};

/// What a family says of a layer's indexer.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct IndexingSpec {
    pub heads: usize,
    /// Elements of a head, a multiple of 16.
    pub len: usize,
    /// Which elements make a pair, and how many stand before those that are rotated; `None`: none is.
    pub rotation: Option<(RopeKind, usize)>,
    /// Whether a Hadamard transform spreads outliers; then `len` is a power of two.
    pub spread: bool,
    /// Positions that a key stands for; of more than one their keys are pooled.
    pub pool: usize,
    /// Keys that are chosen, at most.
    pub count: usize,
    /// Of the keys' layer norm.
    pub eps: f32,
    /// Whether the layer takes the choice of the one before.
    pub shared: bool,
    pub names: IndexNames,
}

impl IndexingSpec {
    /// Positions up to which a token attends to all: those of as many keys as may be chosen, and those behind
    /// the last key.
    fn positions(&self) -> usize {
        self.count * self.pool + self.pool - 1
    }
}

/// Nodes whose names differ from family to family.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct IndexNames {
    /// Of queries: the product, and what is rotated.
    pub q: [&'static str; 2],
    /// Of keys: the product, its norm, and what is rotated.
    pub k: [&'static str; 3],
    /// Of weights: the product, and what is scaled.
    pub weights: [&'static str; 2],
}

impl Default for IndexNames {
    fn default() -> IndexNames {
        IndexNames { q: ["indexer_q"; 2], k: ["indexer_k"; 3], weights: ["indexer_weights"; 2] }
    }
}

/// Where a layer's choice comes from.
#[derive(Debug)]
pub(in crate::model) enum Indexing {
    Own(Box<Indexer>),
    /// Of the layer before, of which tokens attend to all of so many positions.
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
    pool: Option<KeyPool>,
}

/// A product and where it goes.
type Output<'a> = (&'a Linear, &'a mut [f32]);

/// Scores kept at once, in floats.
const MOST_SCORES: usize = 1 << 20;

impl Indexing {
    /// Finds the weights of a layer: `indexer.attn_k`, `indexer.proj`, `indexer.attn_q_b`, the norm
    /// `indexer.k_norm`, and `indexer_compressor_*` where keys are pooled. A layer that takes another's choice
    /// may have them and does not use them.
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
            if spec.pool > 1 {
                l.weights.leave_all_aside(&format!("blk.{il}.indexer_compressor_"));
            }
            l.takes_choice();
            return Ok(Indexing::Shared(spec.positions()));
        }
        l.chooses(il);
        let IndexingSpec { heads, len, eps, names, .. } = spec;
        let k = plain(l, &name("attn_k"), embd, len)?;
        let weights = plain(l, &name("proj"), embd, heads)?;
        let q = plain(l, &name("attn_q_b"), q_rank, heads * len)?;
        let k_norm = Norm::load(l, &name("k_norm"), names.k[1], NormKind::Layer, len, eps)?;
        let pool = if spec.pool > 1 { Some(KeyPool::load(l, il, embd, &spec)?) } else { None };
        let slot = pool.as_ref().map_or_else(|| l.remember(MemorySpec::Rows { len }), |pool| pool.rows);
        Ok(Indexing::Own(Box::new(Indexer { spec, slot, q, k, k_norm, weights, pool })))
    }

    /// Positions up to which a token attends to all.
    pub fn positions(&self) -> usize {
        match self {
            Indexing::Own(own) => own.spec.positions(),
            Indexing::Shared(positions) => *positions,
        }
    }

    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        let own = if let Indexing::Own(own) = self { Some(own) } else { None };
        own.into_iter().flat_map(|own| {
            let gate = own.pool.as_ref().map(KeyPool::weight);
            [own.k.id(), own.weights.id()].into_iter().chain(gate).chain([own.q.id()])
        })
    }

    pub fn scratch(&self) -> ScratchSizes {
        match self {
            Indexing::Own(own) => {
                let IndexingSpec { heads, len, pool, .. } = own.spec;
                let (pooled, masks) = if pool > 1 { (2 * len, 2) } else { (0, 1) };
                let choice = ChoiceSizes { masks, ..Choice::sizes(1) };
                ScratchSizes { row: heads * len + len + heads + pooled, choice, ..ScratchSizes::default() }
            }
            Indexing::Shared(_) => ScratchSizes::default(),
        }
    }
}

impl Indexer {
    /// The products of the block's input: keys, weights and gates.
    pub fn outputs<'a>(
        &'a self,
        buffers: &'a mut IndexerBuffers,
        t: usize,
    ) -> Result<Vec<Output<'a>>, OutOfMemory> {
        let IndexerBuffers { k, weights, gates, .. } = buffers;
        let n = t * self.spec.len;
        let mut outputs =
            vec![(&self.k, grown(k, n)?), (&self.weights, grown(weights, t * self.spec.heads)?)];
        if let Some(pool) = &self.pool {
            outputs.push(pool.output(gates, n)?);
        }
        Ok(outputs)
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
        let IndexingSpec { heads, len, rotation, spread, names, .. } = self.spec;
        let (t, ops, watch) = (run.rows, run.kernels.ops(), &mut run.watch);
        let Buffers { latent, rope, .. } = &mut *run.buffers;
        let IndexerBuffers { q, k, weights, .. } = &mut latent.indexer;
        let (q, k) = (&mut q[..t * heads * len], &mut k[..t * len]);
        let weights = &mut weights[..t * heads];

        let product = |name, linear: &Linear, inputs| {
            Label::product(name, Work::Projections, linear.matrix.described(), inputs)
        };
        let turn = |watch: &mut Watch<'_>, node, name, x: &mut [f32], heads| {
            let mut node = [node];
            if let Some((kind, offset)) = rotation {
                ops.rope_behind(kind, &rope[0], x, heads, len, offset);
                let label = Label::new(name, NodeKind::Rope, Work::Rope, &node);
                node = [watch.show(label, [t, heads, len], x)];
            }
            if spread {
                ops.hadamard(x, len);
                let label = Label::new(name, NodeKind::Hadamard, Work::Rope, &node);
                watch.show(label, [t, heads, len], x);
            }
        };
        let inputs = [low];
        let node = watch.show(product(names.q[0], &self.q, &inputs), [t, heads * len, 1], q);
        turn(watch, node, names.q[1], q, heads);
        let inputs = [run.cur];
        let node = [watch.show(product(names.k[0], &self.k, &inputs), [t, len, 1], k)];
        self.k_norm.apply(ops, k);
        let node = watch.show(self.k_norm.label(&node), [t, len, 1], k);
        turn(watch, node, names.k[2], k, 1);
        let node = [watch.show(product(names.weights[0], &self.weights, &inputs), [t, heads, 1], weights)];
        ops.scale(weights, 1.0 / ((len * heads) as f32).sqrt());
        let label = Label::elementwise(names.weights[1], Work::Projections, &node);
        watch.show(label, [t, heads, 1], weights);
        match &self.pool {
            Some(pool) => pool.remember(run, il, &self.spec),
            None => keep(ops, &mut run.segments, il, self.slot, [(names.k[2], k, len), ("", &[], 0)]),
        }
    }

    /// Chooses for every token that sees more positions than it may attend to.
    pub fn choose(&self, run: &mut Run<'_>, last: bool) -> Result<(), ForwardError> {
        let (IndexingSpec { heads, len, count, pool, .. }, slot) = (self.spec, self.slot);
        choose(run, &Choice { heads, len, count, slot, per_key: pool }, last)?;
        if pool > 1 {
            unfold(run, pool)?;
        }
        Ok(())
    }
}

/// Takes the choice of keys of so many positions each to these, and adds those behind the last key that a
/// token sees.
pub(super) fn unfold(run: &mut Run<'_>, pool: usize) -> Result<(), OutOfMemory> {
    let positions: Vec<usize> = run.positions().collect();
    let LatentBuffers { indexer, compressed, .. } = &mut run.buffers.latent;
    let IndexerBuffers { masks, pages, .. } = indexer;
    if masks.is_empty() {
        return Ok(()); // every token attends to all
    }
    let keys = &mut compressed.masks;
    std::mem::swap(masks, keys);
    let of_keys = std::mem::replace(pages, positions.iter().max().map_or(0, |pos| pos / PAGE + 1));
    cleared(masks, positions.len() * *pages)?;
    let rows = masks.par_chunks_exact_mut(*pages).zip(keys.par_chunks_exact(of_keys)).zip(positions);
    rows.for_each(|((masks, keys), pos)| {
        for (page, &keys) in keys.iter().enumerate() {
            let mut left = keys;
            while left != 0 {
                let key = page * PAGE + left.trailing_zeros() as usize;
                left &= left - 1;
                mark(masks, &(key * pool..(key + 1) * pool));
            }
        }
        mark(masks, &((pos + 1) / pool * pool..pos + 1));
    });
    Ok(())
}

/// Sets the bits of a range of positions.
fn mark(masks: &mut [u128], positions: &Range<usize>) {
    let pages = positions.start / PAGE..positions.end.div_ceil(PAGE);
    for (page, mask) in pages.clone().zip(&mut masks[pages]) {
        *mask |= ones(positions, page);
    }
}

/// The places of a page that lie in a range of rows.
pub(super) fn ones(rows: &Range<usize>, page: usize) -> u128 {
    let within = |row: usize| row.saturating_sub(page * PAGE).min(PAGE) as u32;
    let below = |n: u32| if n == u128::BITS { u128::MAX } else { (1 << n) - 1 };
    below(within(rows.end)) & !below(within(rows.start))
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
    /// What it needs where a key stands for so many positions.
    pub fn sizes(per_key: usize) -> ChoiceSizes {
        ChoiceSizes { masks: 1, per_key, others: 0, scores: ScoreSizes::SomeRows(MOST_SCORES) }
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
    if most <= count {
        masks.clear();
        return Ok(());
    }
    cleared(masks, run.rows * *pages)?;
    for (all, segment) in with_rows(&run.segments) {
        let (first_pos, tokens) = (segment.first_pos, all.len());
        if last && segment.logits == Logits::None {
            continue;
        }
        // The first token that sees a key more.
        let mut token = ((count + 1) * per_key - 1).saturating_sub(first_pos).min(tokens);
        while token < tokens {
            let held = choice.seen(first_pos + tokens).div_ceil(PAGE);
            let most = (MOST_SCORES / (held * PAGE)).clamp(1, ScratchSizes::STRETCH);
            let n = (tokens - token).min(most);
            let rows = all.start + token..all.start + token + n;
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

#[cfg(test)]
mod tests {
    use super::mark;

    #[test]
    fn a_range_is_marked_over_the_ends_of_pages() {
        let mut masks = [0; 3];
        mark(&mut masks, &(126..259));
        assert_eq!(masks, [0b11 << 126, u128::MAX, 0b111]);
        mark(&mut masks, &(0..1));
        mark(&mut masks, &(40..40));
        assert_eq!(masks[0], 0b11 << 126 | 1);
    }
}
