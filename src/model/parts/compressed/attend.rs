//! The indexer of compressed keys, and attention over those of the window and the compressed ones together.

use super::compressor::{CHOSEN, Compressor, INDEX, Output, Purpose, WHOLE};
use super::{Compressed, CompressedSpec, RowIndexing};
use crate::kernels::ops::{AttentionShape, Chosen, KvPages, KvView, PAGE};
use crate::model::load::Loader;
use crate::model::parts::indexer::{Choice, choose, ones};
use crate::model::parts::latent::plain;
use crate::model::parts::rope::Rope;
use crate::model::run::{Run, with_rows};
use crate::model::state::{IndexerBuffers, LatentBuffers, cleared, grown};
use crate::model::weights::Linear;
use crate::model::{ForwardError, Label, Logits, ModelError, NodeId, NodeKind, ScratchSizes, Work};
use crate::store::{OutOfMemory, WeightId};

/// An indexer of compressed keys.
#[derive(Debug)]
pub(super) struct RowIndexer {
    spec: RowIndexing,
    rotated: usize,
    /// Of the queries of low rank.
    q: Linear,
    /// Of the block's input: a weight for each head.
    weights: Linear,
    pub compressor: Compressor,
}

impl RowIndexer {
    /// Finds the weights of a layer: `indexer.proj`, `indexer.attn_q_b`, `indexer_compressor_*`.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        embd: usize,
        rope: &Rope,
        attention: &CompressedSpec,
        ratio: usize,
        spec: RowIndexing,
    ) -> Result<RowIndexer, ModelError> {
        let RowIndexing { heads, len, spread, .. } = spec;
        let CompressedSpec { q_rank, rotated, eps, .. } = *attention;
        let name = |part: &str| format!("blk.{il}.indexer.{part}");
        let purpose = Purpose {
            tensor: "indexer_compressor",
            names: INDEX,
            ratio,
            len,
            overlaps: true,
            rotated,
            spread,
            eps,
            buffer: 1,
        };
        let compressor = Compressor::load(l, il, embd, rope, purpose)?;
        let weights = plain(l, &name("proj"), embd, heads)?;
        let q = plain(l, &name("attn_q_b"), q_rank, heads * len)?;
        Ok(RowIndexer { spec, rotated, q, weights, compressor })
    }

    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        [self.weights.id(), self.q.id()].into_iter()
    }

    pub fn scratch(&self) -> ScratchSizes {
        let RowIndexing { heads, len, .. } = self.spec;
        let choice = Choice::sizes(self.compressor.ratio());
        ScratchSizes { row: heads * len + heads, choice, ..ScratchSizes::default() }
    }

    /// The product of the block's input beside those of the compressor.
    pub fn weights_output<'a>(
        &'a self,
        buffers: &'a mut IndexerBuffers,
        t: usize,
    ) -> Result<Output<'a>, OutOfMemory> {
        Ok((&self.weights, grown(&mut buffers.weights, t * self.spec.heads)?))
    }

    /// The product of the queries of low rank.
    pub fn queries_output<'a>(
        &'a self,
        buffers: &'a mut IndexerBuffers,
        t: usize,
    ) -> Result<Output<'a>, OutOfMemory> {
        Ok((&self.q, grown(&mut buffers.q, t * self.spec.heads * self.spec.len)?))
    }

    /// What follows the products of queries and weights.
    pub fn rotate(&self, run: &mut Run<'_>, low: NodeId<'static>, rope: usize) {
        let RowIndexing { heads, len, spread, .. } = self.spec;
        let (t, ops, watch) = (run.rows, run.kernels.ops(), &mut run.watch);
        let (buffers, table) = (&mut run.buffers.latent.indexer, &run.buffers.rope[rope]);
        let (q, weights) = (&mut buffers.q[..t * heads * len], &mut buffers.weights[..t * heads]);
        let inputs = [low];
        let label = Label::product("lid_q", Work::Projections, self.q.matrix.described(), &inputs);
        let node = [watch.show(label, [t, heads, len], q)];
        ops.rope_behind(run.rope_kinds[rope], table, q, heads, len, len - self.rotated);
        let label = Label::new("lid_q_rope", NodeKind::Rope, Work::Rope, &node);
        let node = [watch.show(label, [t, heads, len], q)];
        ops.hadamard(q, spread);
        let label = Label::new("lid_q_rot", NodeKind::Hadamard, Work::Rope, &node);
        watch.show(label, [t, heads, len], q);
        // ggml gives the product no name before it is scaled.
        ops.scale(weights, 1.0 / ((len * heads) as f32).sqrt());
        let inputs = [run.cur];
        let weight = self.weights.matrix.described();
        let label = Label::product("lid_weights", Work::Projections, weight, &inputs);
        watch.show(label, [t, heads, 1], weights);
    }

    /// Chooses for every token that sees more compressed keys than it may attend to.
    pub fn choose(&self, run: &mut Run<'_>, last: bool) -> Result<(), ForwardError> {
        let RowIndexing { heads, len, count, .. } = self.spec;
        let (slot, per_key) = (self.compressor.slot(), self.compressor.ratio());
        choose(run, &Choice { heads, len, count, slot, per_key }, last)
    }
}

/// Pages of compressed keys and, behind them, of those of the window.
struct Caches<'a> {
    views: Vec<KvView<'a>>,
    /// How many are of compressed keys.
    compressed: usize,
    /// The number of the first page of the window's.
    first_page: usize,
}

impl Compressed {
    /// The node of what attention gives.
    pub(super) fn attended_name(&self) -> &'static str {
        match (&self.compressor, &self.indexer) {
            (None, _) => "attn_raw",
            (Some(_), None) => "attn_hca",
            (Some(_), Some(_)) => "attn_csa_lid",
        }
    }

    /// The nodes that attention is computed from, beside queries and keys.
    pub(super) fn compressed_inputs(&self) -> &'static [&'static str] {
        match (&self.compressor, &self.indexer) {
            (None, _) => &[],
            (Some(_), None) => &[WHOLE.values, WHOLE.placed],
            (Some(_), Some(_)) => {
                const { &[CHOSEN.values, CHOSEN.placed, INDEX.values, INDEX.placed, "lid_q_rot", "lid_weights"] }
            }
        }
    }

    pub(super) fn shape(&self, first_pos: usize, tokens: usize) -> AttentionShape {
        let CompressedSpec { heads, len, window, .. } = self.spec;
        AttentionShape {
            heads,
            kv_heads: 1,
            key_len: len,
            value_len: len,
            tokens,
            first_pos,
            window: Some(window),
            scale: 1.0 / (len as f32).sqrt(),
            soft_cap: None,
        }
    }

    /// Attention of all sequences' queries.
    ///
    /// # Errors
    /// Where there is no memory for what tokens attend to.
    pub(super) fn attend(&self, run: &mut Run<'_>, last: bool) -> Result<(), OutOfMemory> {
        let CompressedSpec { heads, len, .. } = self.spec;
        let (row, ops) = (heads * len, run.kernels.ops());
        for (rows, segment) in with_rows(&run.segments) {
            if rows.is_empty() || last && segment.logits == Logits::None {
                continue;
            }
            let shape = self.shape(segment.first_pos, rows.len());
            let buffers = &mut *run.buffers;
            let q = &buffers.q[rows.start * row..rows.end * row];
            let out = &mut buffers.attn[rows.start * row..rows.end * row];
            let (sinks, scratch) = (Some(&self.sinks[..]), &mut buffers.attention);
            segment.state.with_pages(self.slot, |keys| {
                let Some(compressor) = &self.compressor else {
                    ops.attention(&shape, q, keys, sinks, out, scratch);
                    return Ok(());
                };
                segment.state.with_pages(compressor.slot(), |compressed| {
                    let seen = compressor.seen(shape.first_pos + shape.tokens - 1);
                    let caches = Caches::new(compressed, seen, keys);
                    let LatentBuffers { indexer, compressed, .. } = &mut buffers.latent;
                    let masks = &mut compressed.masks;
                    self.fill_masks(compressor, indexer, &shape, rows.start, &caches, masks)?;
                    let pages = KvPages { first_page: 0, keys: &caches.views, values: None };
                    let chosen = Chosen { masks, lists: 1, pages: caches.views.len() };
                    ops.attention_among(&shape, q, &pages, chosen, sinks, out, scratch);
                    Ok(())
                })
            })?;
        }
        Ok(())
    }

    /// What each token of a sequence attends to, its first token being a row of the pass: `[tokens][pages]`.
    fn fill_masks(
        &self,
        compressor: &Compressor,
        indexer: &IndexerBuffers,
        shape: &AttentionShape,
        first_row: usize,
        caches: &Caches<'_>,
        masks: &mut Vec<u128>,
    ) -> Result<(), OutOfMemory> {
        let pages = caches.views.len();
        cleared(masks, shape.tokens * pages)?;
        let most = self.indexer.as_ref().map_or(usize::MAX, |indexer| indexer.spec.count);
        for (token, masks) in masks.chunks_exact_mut(pages).enumerate() {
            let pos = shape.first_pos + token;
            let (compressed, window) = masks.split_at_mut(caches.compressed);
            let seen = compressor.seen(pos);
            if seen > most {
                let chosen = &indexer.masks[(first_row + token) * indexer.pages..];
                compressed.copy_from_slice(&chosen[..caches.compressed]);
            } else {
                compressed.iter_mut().enumerate().for_each(|(page, mask)| *mask = ones(&(0..seen), page));
            }
            let in_window = self.spec.window.start(pos)..pos + 1;
            for (page, mask) in (caches.first_page..).zip(window) {
                *mask = ones(&in_window, page);
            }
        }
        Ok(())
    }
}

impl<'a> Caches<'a> {
    /// Of so many compressed keys.
    fn new(compressed: &KvPages<'a>, seen: usize, keys: &KvPages<'a>) -> Caches<'a> {
        let pages = seen.div_ceil(PAGE);
        let views = compressed.keys[..pages].iter().chain(keys.keys).copied().collect();
        Caches { views, compressed: pages, first_page: keys.first_page }
    }
}

#[cfg(test)]
mod tests {
    use super::ones;

    #[test]
    fn places_of_a_page_are_those_of_the_range() {
        for (rows, page, wanted) in [
            (0..0, 0, 0),
            (0..128, 0, u128::MAX),
            (0..129, 1, 1),
            (3..5, 0, 0b11000),
            (127..130, 0, 1 << 127),
            (127..130, 1, 0b11),
            (0..128, 1, 0),
            (300..310, 1, 0),
        ] {
            assert_eq!(ones(&rows, page), wanted, "{rows:?} of page {page}");
        }
    }
}
