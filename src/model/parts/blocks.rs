//! The choice of blocks of positions for sparse attention (MiniMax M3): each KV head has a query of its own,
//! which says of which blocks it attends to the positions; the last blocks are always among them.

use super::super::load::Loader;
use super::super::products::project;
use super::super::run::{Run, with_rows};
use super::super::state::{IndexerBuffers, cleared, grown};
use super::super::weights::Linear;
use super::super::{ChoiceSizes, ForwardError, Logits, MemorySpec, ModelError, ScoreSizes, ScratchSizes};
use super::attention::keep;
use super::choosing::Choosing;
use super::latent::plain;
use super::norm::{Norm, NormKind};
use crate::kernels::ops::{self, IndexQueries, PAGE};
use crate::store::WeightId;

/// What a family says of a layer's choice.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct BlocksSpec {
    /// Heads, as many as attention has for keys.
    pub heads: usize,
    /// Elements of a head, a multiple of 16, of which the first are rotated.
    pub len: usize,
    /// Positions of a block.
    pub block: usize,
    /// Blocks that are chosen, at most; so many of them are the last ones.
    pub count: usize,
    pub local: usize,
    pub eps: f32,
}

/// The choice of a layer.
#[derive(Debug)]
pub(in crate::model) struct Blocks {
    spec: BlocksSpec,
    slot: usize,
    q: Linear,
    k: Linear,
    q_norm: Norm,
    k_norm: Norm,
}

impl Blocks {
    /// Finds the weights of a layer: `indexer.q_proj`, `indexer.k_proj` and their norms.
    pub fn load(l: &mut Loader<'_>, il: usize, embd: usize, spec: BlocksSpec) -> Result<Blocks, ModelError> {
        let name = |part: &str| format!("blk.{il}.indexer.{part}");
        let BlocksSpec { heads, len, eps, .. } = spec;
        let q = plain(l, &name("q_proj"), embd, heads * len)?;
        let k = plain(l, &name("k_proj"), embd, len)?;
        let mut norm = |part: &str, node| Norm::load(l, &name(part), node, NormKind::Rms, len, eps);
        let (q_norm, k_norm) = (norm("q_norm", "indexer_q")?, norm("k_norm", "indexer_k")?);
        let slot = l.remember(MemorySpec::Rows { len });
        Ok(Blocks { spec, slot, q, k, q_norm, k_norm })
    }
}

impl Choosing for Blocks {
    fn first_choosing(&self) -> usize {
        self.spec.count * self.spec.block
    }

    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new([self.q.id(), self.k.id()].into_iter())
    }

    fn lists(&self) -> usize {
        self.spec.heads
    }

    fn scratch(&self) -> ScratchSizes {
        let BlocksSpec { heads, len, block, .. } = self.spec;
        let scores = ScoreSizes::Blocks { times: heads, len: block };
        let choice = ChoiceSizes { masks: heads, per_key: 1, others: 0, scores };
        ScratchSizes { row: (heads + 1) * len, choice, ..ScratchSizes::default() }
    }

    /// ggml gives queries and keys no names.
    fn remember(&self, run: &mut Run<'_>, il: usize, rope: usize) -> Result<(), ForwardError> {
        let BlocksSpec { heads, len, .. } = self.spec;
        let (t, embd, ops) = (run.rows, run.embd, run.kernels.ops());
        let buffers = &mut *run.buffers;
        buffers
            .inputs
            .prepare(
                run.kernels.ops(),
                &buffers.cur[..t * embd],
                embd,
                [self.q.activation(), self.k.activation()],
            )
            .map_err(ForwardError::not_finite("attn_norm", il))?;
        let IndexerBuffers { q, k, .. } = &mut buffers.latent.indexer;
        let (q, k) = (grown(q, t * heads * len)?, grown(k, t * len)?);
        project(run.kernels, run.store, &buffers.inputs, &mut [(&self.q, &mut *q), (&self.k, &mut *k)])?;
        self.q_norm.apply(ops, q);
        self.k_norm.apply(ops, k);
        let (kind, table) = (run.rope_kinds[rope], &buffers.rope[rope]);
        ops.rope(kind, table, q, heads, len);
        ops.rope(kind, table, k, 1, len);
        keep(ops, &mut run.segments, il, self.slot, [("indexer_k", k, len), ("", &[], 0)])
    }

    /// Head by head.
    fn choose(&self, run: &mut Run<'_>, last: bool) -> Result<(), ForwardError> {
        let BlocksSpec { heads, len, block, count, local, .. } = self.spec;
        let from = self.first_choosing();
        let ends = run.segments.iter().map(|segment| segment.first_pos + segment.tokens.len());
        let most = ends.max().unwrap_or(0);
        let IndexerBuffers { q, scores, masks, pages, .. } = &mut run.buffers.latent.indexer;
        *pages = most.div_ceil(PAGE);
        if most <= from {
            masks.clear();
            return Ok(());
        }
        cleared(masks, run.rows * heads * *pages)?;
        for (rows, segment) in with_rows(&run.segments) {
            let (first_pos, tokens) = (segment.first_pos, rows.len());
            let skipped = from.saturating_sub(first_pos).min(tokens);
            if skipped == tokens || last && segment.logits == Logits::None {
                continue;
            }
            let rows = rows.start + skipped..rows.end;
            let queries = IndexQueries {
                heads,
                len,
                q: &q[rows.start * heads * len..rows.end * heads * len],
                weights: &[],
                first_pos: first_pos + skipped,
                per_key: 1,
            };
            let blocks = (first_pos + tokens).div_ceil(block);
            let scores = grown(scores, rows.len() * heads * blocks)?;
            segment.state.with_pages(self.slot, |keys| {
                run.kernels.ops().block_scores(&queries, keys, block, scores);
            });
            let (mut chosen, mut keys) = (vec![0; blocks.div_ceil(PAGE)], Vec::new());
            let masks = &mut masks[rows.start * heads * *pages..rows.end * heads * *pages];
            for (i, (scores, masks)) in
                scores.chunks_exact_mut(blocks).zip(masks.chunks_exact_mut(*pages)).enumerate()
            {
                let own = (queries.first_pos + i / heads) / block;
                scores[(own + 1).saturating_sub(local)..=own].fill(f32::INFINITY);
                ops::choose(&scores[..=own], count, &mut chosen, &mut keys);
                for at in (0..=own).filter(|at| chosen[at / PAGE] >> (at % PAGE) & 1 == 1) {
                    for j in at * block..((at + 1) * block).min(*pages * PAGE) {
                        masks[j / PAGE] |= 1 << (j % PAGE);
                    }
                }
            }
        }
        Ok(())
    }
}
