//! Compressors: they make one key of those of several positions, by a softmax over their scores, element by
//! element.

use std::ops::Range;

use crate::kernels::ops::{KvPages, Ops, RopeKind, RopeParams, Window};
use crate::model::load::Loader;
use crate::model::parts::attention::check_kept;
use crate::model::parts::key_pool::{keep_pending, pending_row};
use crate::model::parts::latent::plain;
use crate::model::parts::norm::{Norm, NormKind};
use crate::model::parts::rope::Rope;
use crate::model::run::{Run, check_finite};
use crate::model::state::{CompressedBuffers, grown};
use crate::model::weights::Linear;
use crate::model::{ForwardError, Label, MemorySpec, ModelError, Work};
use crate::store::{OutOfMemory, WeightId};

/// Nodes of a compressor: the values, the scores, these with what depends on the place in a block; the
/// compressed rows, for errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    pub values: &'static str,
    pub scores: &'static str,
    pub placed: &'static str,
    pub rows: &'static str,
}

pub(super) const WHOLE: Names = Names {
    values: "hca_state_kv",
    scores: "hca_state_score",
    placed: "hca_state_score_ape",
    rows: "hca_state_compress",
};
pub(super) const CHOSEN: Names = Names {
    values: "csa_state_kv",
    scores: "csa_state_score",
    placed: "csa_state_score_ape",
    rows: "csa_state_compress",
};
pub(super) const INDEX: Names = Names {
    values: "lid_state_kv",
    scores: "lid_state_score",
    placed: "lid_state_score_ape",
    rows: "lid_state_compress",
};

/// A product and where it goes.
pub(super) type Output<'a> = (&'a Linear, &'a mut [f32]);

/// What a compressor is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Purpose {
    /// The beginning of its tensors' names behind the layer.
    pub tensor: &'static str,
    pub names: Names,
    /// Positions of a block.
    pub ratio: usize,
    /// Elements of a compressed row, of which the last `rotated` are rotated.
    pub len: usize,
    pub rotated: usize,
    /// Whether a row is made of the block before as well: of the first half of its values, and of the second
    /// half of its own block's.
    pub overlaps: bool,
    /// Elements that a Hadamard transform is over; 0 without one.
    pub spread: usize,
    pub eps: f32,
    /// Which of the buffers of compressors it has.
    pub buffer: usize,
}

impl Purpose {
    /// Values of a position.
    fn width(&self) -> usize {
        if self.overlaps { 2 * self.len } else { self.len }
    }
}

/// A compressor of a layer.
#[derive(Debug)]
pub(super) struct Compressor {
    purpose: Purpose,
    /// Of blocks' first positions.
    rope: (RopeKind, RopeParams),
    values: Linear,
    scores: Linear,
    /// Added to scores, `[ratio][width]`.
    places: Vec<f32>,
    norm: Norm,
    /// Where it keeps what it still needs, and compressed rows.
    pending: usize,
    rows: usize,
}

impl Compressor {
    /// Finds the weights of a layer: `NAME_kv`, `NAME_gate`, `NAME_ape`, `NAME_norm`.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        embd: usize,
        rope: &Rope,
        purpose: Purpose,
    ) -> Result<Compressor, ModelError> {
        let Purpose { tensor, names, ratio, len, overlaps, eps, .. } = purpose;
        let (name, width) = (|part: &str| format!("blk.{il}.{tensor}_{part}"), purpose.width());
        let values = plain(l, &name("kv"), embd, width)?;
        let scores = plain(l, &name("gate"), embd, width)?;
        let places = l.weights.floats(&name("ape.weight"), &[width, ratio])?;
        let norm = Norm::load(l, &name("norm"), names.rows, NormKind::Rms, len, eps)?;
        let window = if overlaps { Window::Sliding(2 * ratio) } else { Window::Chunked(ratio) };
        let pending = l.remember(MemorySpec::Compressing { len: width, scores: true, window });
        let rows = l.remember(MemorySpec::Compressed { len, ratio });
        let rope = (rope.kind, rope.params);
        Ok(Compressor { purpose, rope, values, scores, places, norm, pending, rows })
    }

    /// The slot of compressed rows.
    pub fn slot(&self) -> usize {
        self.rows
    }

    /// Positions that a row stands for.
    pub fn ratio(&self) -> usize {
        self.purpose.ratio
    }

    /// Compressed rows that a token at some position sees.
    pub fn seen(&self, pos: usize) -> usize {
        (pos + 1) / self.purpose.ratio
    }

    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        [self.values.id(), self.scores.id()].into_iter()
    }

    /// Values of a token that it needs for a pass.
    pub fn scratch(&self) -> usize {
        2 * self.purpose.width() + self.purpose.len
    }

    /// The products of the block's input.
    pub fn outputs<'a>(
        &'a self,
        values: &'a mut Vec<f32>,
        scores: &'a mut Vec<f32>,
        t: usize,
    ) -> Result<[Output<'a>; 2], OutOfMemory> {
        let n = t * self.purpose.width();
        Ok([(&self.values, grown(values, n)?), (&self.scores, grown(scores, n)?)])
    }

    /// What follows the products: places are added to scores, both are kept, and the blocks that the pass
    /// completes are compressed.
    pub fn remember(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let Purpose { names, ratio, buffer, .. } = self.purpose;
        let (t, width, ops) = (run.rows, self.purpose.width(), run.kernels.ops());
        let positions: Vec<usize> = run.positions().collect();
        let inputs = [run.cur];
        let product = |name, linear: &Linear| {
            Label::product(name, Work::Projections, linear.matrix.described(), &inputs)
        };
        let CompressedBuffers { values, scores, .. } = &mut run.buffers.latent.compressed;
        let (values, scores) = (&mut values[buffer][..t * width], &mut scores[buffer][..t * width]);
        run.watch.show(product(names.values, &self.values), [t, width, 1], values);
        let node = [run.watch.show(product(names.scores, &self.scores), [t, width, 1], scores)];
        for (row, pos) in scores.chunks_exact_mut(width).zip(positions) {
            ops.add(row, &self.places[pos % ratio * width..][..width]);
        }
        let label = Label::elementwise(names.placed, Work::Projections, &node);
        run.watch.show(label, [t, width, 1], scores);
        check_finite(names.values, il, values, width)?;
        check_finite(names.placed, il, scores, width)?;
        keep_pending(ops, &mut run.segments, self.pending, [values, scores], width)?;
        self.compress(run, il)
    }

    /// Rows of all blocks that end in the pass.
    fn compress(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let Purpose { names, ratio, len, rotated, spread, .. } = self.purpose;
        let ((kind, params), ops) = (self.rope, run.kernels.ops());
        let CompressedBuffers { rows, starts, .. } = &mut run.buffers.latent.compressed;
        for segment in &mut run.segments {
            let first_pos = segment.first_pos;
            let blocks = first_pos / ratio..(first_pos + segment.tokens.len()) / ratio;
            if blocks.is_empty() {
                continue;
            }
            let rows = grown(rows, blocks.len() * len)?;
            segment.state.with_pages(self.pending, |pages| self.pool(ops, pages, blocks.clone(), rows));
            self.norm.apply(ops, rows);
            starts.fill(&params, blocks.clone().map(|block| block * ratio), None);
            ops.rope_behind(kind, starts, rows, 1, len, len - rotated);
            if spread > 0 {
                ops.hadamard(rows, spread);
            }
            check_kept(names.rows, il, segment.state.kept_as(self.rows).keys, rows, len)?;
            segment.state.store(ops, self.rows, blocks.start, rows, &[])?;
        }
        Ok(())
    }

    /// Rows of some blocks as they are pooled; the pages hold what these are made of.
    fn pool(&self, ops: &Ops, pages: &KvPages<'_>, blocks: Range<usize>, rows: &mut [f32]) {
        let Purpose { ratio, len, overlaps, .. } = self.purpose;
        let width = self.purpose.width();
        let row = |pos: usize, offset: usize| pending_row(pages, pos, [width, offset, len]);
        let of = if overlaps { 2 * ratio } else { ratio };
        ops.pool(rows, len, of, |i, rows| {
            let start = (blocks.start + i) * ratio;
            if overlaps {
                // Nothing stands before the first block.
                rows.extend((start.saturating_sub(ratio)..start).map(|pos| row(pos, 0)));
            }
            rows.extend((start..start + ratio).map(|pos| row(pos, width - len)));
        });
    }
}
