//! The choice of pools of positions for sparse attention (Qwen 4): one key stands for so many positions in
//! turn, the mean of theirs, normed and rotated to the first; a token attends to the positions of the best
//! pools and to those behind the last whole pool that it sees. Source: ggml's qwen4exp.

use std::ops::Range;

use super::super::load::Loader;
use super::super::products::project;
use super::super::run::{Run, check_finite, with_rows};
use super::super::state::{IndexerBuffers, grown};
use super::super::weights::Linear;
use super::super::{ChoiceSizes, ForwardError, Label, MemorySpec, ModelError, ScratchSizes, Work};
use super::attention::check_kept;
use super::choosing::Choosing;
use super::indexer::{Choice, choose, unfold};
use super::latent::plain;
use super::norm::{Norm, NormKind};
use crate::kernels::ops::{KvPages, KvView, Ops, PAGE, RopeKind, RopeParams, Window};
use crate::store::WeightId;

/// What a family says of a layer's choice.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct PoolsSpec {
    /// Heads of the indexer.
    pub heads: usize,
    /// Elements of a head, a multiple of 16, of which the first are rotated.
    pub len: usize,
    /// Positions of a pool.
    pub pool: usize,
    /// Pools that are chosen, at most.
    pub count: usize,
    /// The rotation of pools' first positions.
    pub rope: (RopeKind, RopeParams),
    pub eps: f32,
    /// The node of the block's input, for errors.
    pub input: &'static str,
}

/// The choice of a layer.
#[derive(Debug)]
pub(in crate::model) struct Pools {
    spec: PoolsSpec,
    /// Where the keys of positions whose pool is not whole are, and those of pools.
    pending: usize,
    slot: usize,
    q: Linear,
    k: Linear,
    q_norm: Norm,
    k_norm: Norm,
}

impl Pools {
    /// Finds the weights of a layer: `indexer.q_proj`, `indexer.k_proj` and their norms.
    pub fn load(l: &mut Loader<'_>, il: usize, embd: usize, spec: PoolsSpec) -> Result<Pools, ModelError> {
        let name = |part: &str| format!("blk.{il}.indexer.{part}");
        let PoolsSpec { heads, len, pool, eps, .. } = spec;
        let q = plain(l, &name("q_proj"), embd, heads * len)?;
        let k = plain(l, &name("k_proj"), embd, len)?;
        let mut norm = |part: &str, node| Norm::load(l, &name(part), node, NormKind::Rms, len, eps);
        let (q_norm, k_norm) = (norm("q_norm", "indexer_q")?, norm("k_norm", "indexer_pool_k_new")?);
        let window = Window::Chunked(pool);
        let pending = l.remember(MemorySpec::Compressing { len, scores: false, window });
        let slot = l.remember(MemorySpec::Compressed { len, ratio: pool });
        Ok(Pools { spec, pending, slot, q, k, q_norm, k_norm })
    }

    /// Keys of the pools that the pass makes whole.
    fn pool(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let PoolsSpec { len, pool, rope: (kind, params), .. } = self.spec;
        let ops = run.kernels.ops();
        let rows = &mut run.buffers.latent.compressed.rows;
        let starts = &mut run.buffers.latent.compressed.starts;
        for segment in &mut run.segments {
            let first_pos = segment.first_pos;
            let pools = first_pos / pool..(first_pos + segment.tokens.len()) / pool;
            if pools.is_empty() {
                continue;
            }
            let rows = grown(rows, pools.len() * len)?;
            segment.state.with_pages(self.pending, |pages| self.means(ops, pages, pools.clone(), rows));
            self.k_norm.apply(ops, rows);
            starts.fill(&params, pools.clone().map(|at| at * pool), None);
            ops.rope(kind, starts, rows, 1, len);
            check_kept("indexer_pool_k_new", il, segment.state.kept_as(self.slot).keys, rows, len)?;
            segment.state.store(ops, self.slot, pools.start, rows, &[])?;
        }
        Ok(())
    }

    /// The means of pools' keys, summed in the order of their positions; the pages hold these.
    fn means(&self, ops: &Ops, pages: &KvPages<'_>, pools: Range<usize>, rows: &mut [f32]) {
        let PoolsSpec { len, pool, .. } = self.spec;
        let key = |pos: usize| {
            let KvView::F32(keys) = pages.keys[pos / PAGE - pages.first_page] else {
                unreachable!("what is still to be pooled is f32")
            };
            &keys[pos % PAGE * len..][..len]
        };
        for (row, at) in rows.chunks_exact_mut(len).zip(pools) {
            row.copy_from_slice(key(at * pool));
            (at * pool + 1..(at + 1) * pool).for_each(|pos| ops.add(row, key(pos)));
        }
        ops.scale(rows, 1.0 / pool as f32);
    }
}

impl Choosing for Pools {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new([self.q.id(), self.k.id()].into_iter())
    }

    fn scratch(&self) -> ScratchSizes {
        // Masks of pools, and those of positions that are made of them.
        let choice = ChoiceSizes { masks: 2, ..Choice::sizes(1) };
        let row = self.spec.heads * (self.spec.len + 1) + 2 * self.spec.len;
        ScratchSizes { row, choice, ..ScratchSizes::default() }
    }

    fn first_choosing(&self) -> usize {
        self.spec.count.saturating_add(1).saturating_mul(self.spec.pool) - 1
    }

    fn lists(&self) -> usize {
        1
    }

    /// Queries, and keys as they are, which wait for their pool.
    fn remember(&self, run: &mut Run<'_>, il: usize, rope: usize) -> Result<(), ForwardError> {
        let PoolsSpec { heads, len, input, .. } = self.spec;
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
            .map_err(ForwardError::not_finite(input, il))?;
        let IndexerBuffers { q, k, weights, .. } = &mut buffers.latent.indexer;
        let (q, k) = (grown(q, t * heads * len)?, grown(k, t * len)?);
        project(run.kernels, run.store, &buffers.inputs, &mut [(&self.q, &mut *q), (&self.k, &mut *k)])?;
        let inputs = [run.cur];
        let product = |name, linear: &Linear| {
            Label::product(name, Work::Projections, linear.matrix.described(), &inputs)
        };
        run.watch.show(product("indexer_k_raw", &self.k), [t, len, 1], k);
        check_finite("indexer_k_raw", il, k, len)?;
        for (rows, segment) in with_rows(&mut run.segments) {
            let keys = &k[rows.start * len..rows.end * len];
            segment.state.store(ops, self.pending, segment.first_pos, keys, &[])?;
        }
        self.q_norm.apply(ops, q);
        ops.rope(run.rope_kinds[rope], &buffers.rope[rope], q, heads, len);
        // ggml names neither the product nor its norm.
        run.watch.show(product("indexer_q", &self.q), [t, heads, len], q);
        grown(weights, t * heads)?.fill(1.0 / (len as f32).sqrt());
        self.pool(run, il)
    }

    fn choose(&self, run: &mut Run<'_>, last: bool) -> Result<(), ForwardError> {
        let PoolsSpec { heads, len, pool, count, .. } = self.spec;
        choose(run, &Choice { heads, len, count, slot: self.slot, per_key: pool }, last)?;
        Ok(unfold(run, pool)?)
    }
}
