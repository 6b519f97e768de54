//! Keys of an indexer of which each stands for several positions (GLM 5.3): the keys of these, weighted by a
//! softmax over their gates, element by element. Source: ggml's glm5-next.

use std::ops::Range;

use half::f16;

use super::super::load::Loader;
use super::super::run::{Run, check_finite, with_rows};
use super::super::state::{IndexerBuffers, KvElement, grown};
use super::super::weights::Linear;
use super::super::{ForwardError, Label, MemorySpec, ModelError, Segment, Work};
use super::attention::check_kept;
use super::indexer::IndexingSpec;
use super::latent::plain;
use crate::kernels::ops::{KvPages, KvView, Ops, PAGE, PooledRow, Window};
use crate::store::{OutOfMemory, WeightId};

const GATES: &str = "indexer_gate";
const POOLED: &str = "indexer_pool_k";

/// How an indexer's keys are pooled.
#[derive(Debug)]
pub(super) struct KeyPool {
    /// Of the block's input.
    gate: Linear,
    /// Added to gates by the place in a block, `[pool][len]`.
    places: Vec<f32>,
    /// Where keys and gates of the last positions are.
    pending: usize,
    /// Where pooled keys are.
    pub rows: usize,
}

impl KeyPool {
    /// Finds the weights of a layer: `indexer_compressor_gate`, `indexer_compressor_ape`.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        embd: usize,
        spec: &IndexingSpec,
    ) -> Result<KeyPool, ModelError> {
        let IndexingSpec { len, pool, .. } = *spec;
        let name = |part: &str| format!("blk.{il}.indexer_compressor_{part}");
        let gate = plain(l, &name("gate"), embd, len)?;
        let places = l.weights.floats(&name("ape.weight"), &[len, pool])?;
        let pending =
            l.remember(MemorySpec::Compressing { len, scores: true, window: Window::Chunked(pool) });
        let rows = l.remember(MemorySpec::Compressed { len, ratio: pool });
        Ok(KeyPool { gate, places, pending, rows })
    }

    pub fn weight(&self) -> WeightId {
        self.gate.id()
    }

    /// The product of the block's input.
    pub fn output<'a>(
        &'a self,
        gates: &'a mut Vec<f32>,
        n: usize,
    ) -> Result<(&'a Linear, &'a mut [f32]), OutOfMemory> {
        Ok((&self.gate, grown(gates, n)?))
    }

    /// What follows the products: keys and gates are kept, and the blocks that the pass completes are pooled.
    pub fn remember(&self, run: &mut Run<'_>, il: usize, spec: &IndexingSpec) -> Result<(), ForwardError> {
        let IndexingSpec { len, pool, names, .. } = *spec;
        let (t, ops) = (run.rows, run.kernels.ops());
        let positions: Vec<usize> = run.positions().collect();
        let IndexerBuffers { k, gates, pooled, .. } = &mut run.buffers.latent.indexer;
        let (keys, gates) = (&mut k[..t * len], &mut gates[..t * len]);
        let inputs = [run.cur];
        let label = Label::product(GATES, Work::Projections, self.gate.matrix.described(), &inputs);
        run.watch.show(label, [t, len, 1], gates);
        for (rows, segment) in with_rows(&run.segments) {
            let rows = rows.start * len..rows.end * len;
            if segment.state.kept_as(self.rows).keys == KvElement::F16 {
                // ggml pools what its cache holds of them.
                keys[rows.clone()].iter_mut().chain(&mut gates[rows]).for_each(round);
            }
        }
        for (row, pos) in gates.chunks_exact_mut(len).zip(positions) {
            ops.add(row, &self.places[pos % pool * len..][..len]);
        }
        check_finite(names.k[1], il, keys, len)?;
        check_finite(GATES, il, gates, len)?;
        keep_pending(ops, &mut run.segments, self.pending, [keys, gates], len)?;
        for segment in &mut run.segments {
            let first_pos = segment.first_pos;
            let blocks = first_pos / pool..(first_pos + segment.tokens.len()) / pool;
            if blocks.is_empty() {
                continue;
            }
            let rows = grown(pooled, blocks.len() * len)?;
            segment.state.with_pages(self.pending, |pages| pool_blocks(ops, pages, pool, &blocks, rows, len));
            check_kept(POOLED, il, segment.state.kept_as(self.rows).keys, rows, len)?;
            segment.state.store(ops, self.rows, blocks.start, rows, &[])?;
        }
        Ok(())
    }
}

/// To the nearest f16.
fn round(x: &mut f32) {
    *x = f16::from_f32(*x).to_f32();
}

/// Pools the keys of whole blocks of so many positions.
fn pool_blocks(
    ops: &Ops,
    pages: &KvPages<'_>,
    pool: usize,
    blocks: &Range<usize>,
    rows: &mut [f32],
    len: usize,
) {
    ops.pool(rows, len, pool, |i, rows| {
        let start = (blocks.start + i) * pool;
        rows.extend((start..start + pool).map(|pos| pending_row(pages, pos, [len, 0, len])));
    });
}

/// Keeps what rows of several positions are pooled of, until these are all there: values and scores of so many
/// elements a token.
pub(super) fn keep_pending(
    ops: &Ops,
    segments: &mut [Segment<'_>],
    slot: usize,
    [values, scores]: [&[f32]; 2],
    width: usize,
) -> Result<(), OutOfMemory> {
    for (rows, segment) in with_rows(segments) {
        let rows = rows.start * width..rows.end * width;
        segment.state.store(ops, slot, segment.first_pos, &values[rows.clone()], &scores[rows])?;
    }
    Ok(())
}

/// `len` of the `width` elements of a position that are kept, from `offset` on.
pub(super) fn pending_row<'a>(
    pages: &KvPages<'a>,
    pos: usize,
    [width, offset, len]: [usize; 3],
) -> PooledRow<'a> {
    let scores = pages.values.expect("values have scores");
    let (page, from) = (pos / PAGE - pages.first_page, pos % PAGE * width + offset);
    let (KvView::F32(values), KvView::F32(scores)) = (pages.keys[page], scores[page]) else {
        unreachable!("what is pending is f32")
    };
    PooledRow { values: &values[from..from + len], scores: &scores[from..from + len] }
}
