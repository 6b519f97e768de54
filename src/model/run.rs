//! A pass under way: what all parts of a model work with.

use std::borrow::Borrow;
use std::ops::Range;

use rayon::prelude::*;

use crate::kernels::Kernels;
use crate::kernels::ops::{Ops, RopeKind, RopeTable};
use crate::store::{AlignedBuffer, Guesses, OutOfMemory, Store, StoreError, WeightId};

use super::observer::{NodeName, Watch};
use super::on_device::Chain;
use super::parts::Rope;
use super::state::Buffers;
use super::weights::{Linear, Matrix};
use super::{ForwardError, Label, Logits, NodeId, Pass, RowSizes, Segment, Work};

/// See the module.
pub(super) struct Run<'a> {
    pub store: &'a Store,
    pub kernels: &'static Kernels,
    pub buffers: &'a mut Buffers,
    pub watch: Watch<'a>,
    pub segments: Vec<Segment<'a>>,
    pub guesses: Guesses,
    /// Rows in the buffers now: T.
    pub rows: usize,
    /// Embedding length: E.
    pub embd: usize,
    /// The node in the residual stream.
    pub x: NodeId<'static>,
    /// The node in [`Buffers::cur`].
    pub cur: NodeId<'static>,
    /// The nodes of what attention gave and of its gate.
    pub attended: NodeId<'static>,
    pub gate: NodeId<'static>,
    /// The nodes of keys and values, slot by slot.
    pub kept: Vec<[NodeId<'static>; 2]>,
    /// The nodes in [`Buffers::beside`], [`Buffers::per_layer`] and [`Buffers::streams`].
    pub beside: NodeId<'static>,
    pub per_layer: NodeId<'static>,
    pub streams: NodeId<'static>,
    /// Which elements make a pair in each of [`Buffers::rope`].
    pub rope_kinds: Vec<RopeKind>,
    /// Blocks that a device computes now: [`Buffers::x`] is what was before them.
    pub chain: Option<Chain>,
}

impl<'a> Run<'a> {
    /// A pass of so many rows in all.
    ///
    /// # Panics
    /// Where they do not fit the buffers: the engine's mistake.
    pub fn new(store: &'a Store, embd: usize, pass: Pass<'a>) -> Run<'a> {
        let Pass { kernels, buffers, segments, guesses, rows: _, ends: _, observer } = pass;
        let rows = segments.iter().map(|segment| segment.tokens.len()).sum();
        assert!(rows <= buffers.batch(), "{rows} tokens in a batch of {}", buffers.batch());
        let nothing = NodeId { name: "", layer: None, occurrence: 0 };
        buffers.logits.clear();
        buffers.on_device.begin_pass();
        let watch = Watch::new(observer);
        Run {
            store,
            kernels,
            buffers,
            watch,
            segments,
            guesses,
            rows,
            embd,
            x: nothing,
            cur: nothing,
            attended: nothing,
            gate: nothing,
            kept: Vec::new(),
            beside: nothing,
            per_layer: nothing,
            streams: nothing,
            rope_kinds: Vec::new(),
            chain: None,
        }
    }

    /// Says which weights come next.
    pub fn announce(&self, weights: impl IntoIterator<Item = WeightId>) {
        if self.rows > 0 {
            self.store.will_need(weights);
        }
    }

    /// Whether to guess which experts the next layer will choose.
    pub fn makes_guesses(&self) -> bool {
        self.rows > 0 && self.store.makes_guesses(self.guesses)
    }

    /// The position of every row.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.segments.iter().flat_map(|segment| segment.first_pos..segment.first_pos + segment.tokens.len())
    }

    /// Fills the tables of rotations for the pass's positions.
    pub fn rotate_positions(&mut self, ropes: &[Rope]) {
        let mut tables = std::mem::take(&mut self.buffers.rope);
        tables.resize_with(ropes.len(), RopeTable::default);
        for (table, rope) in tables.iter_mut().zip(ropes) {
            table.fill(&rope.params, self.positions(), rope.factors.of_context(self.buffers.context));
        }
        self.buffers.rope = tables;
        self.rope_kinds = ropes.iter().map(|rope| rope.kind).collect();
    }

    /// The residual stream as the input of a block.
    pub fn copy_stream(&mut self) {
        let n = self.rows * self.embd;
        self.buffers.cur[..n].copy_from_slice(&self.buffers.x[..n]);
        self.cur = self.x;
    }

    /// Adds [`Buffers::cur`] to the residual stream, which whatever is not finite in a layer ends in. Here a
    /// pass may be broken off.
    pub fn add_to_stream(&mut self, name: impl Into<NodeName>, il: usize) -> Result<(), ForwardError> {
        let name = name.into();
        let n = self.rows * self.embd;
        let x = &mut self.buffers.x[..n];
        self.kernels.ops().add(x, &self.buffers.cur[..n]);
        let inputs = [self.x, self.cur];
        let label = Label::elementwise(name, Work::Sums, &inputs);
        self.x = self.watch.show(label, [self.rows, self.embd, 1], x);
        if self.watch.observer.interrupted() {
            return Err(ForwardError::Interrupted);
        }
        check_finite(name.name, il, x, self.embd)
    }

    /// Multiplies the residual stream.
    pub fn scale_stream(
        &mut self,
        by: f32,
        name: impl Into<NodeName>,
        il: usize,
    ) -> Result<(), ForwardError> {
        let name = name.into();
        let x = &mut self.buffers.x[..self.rows * self.embd];
        self.kernels.ops().scale(x, by);
        let inputs = [self.x];
        self.x = self.watch.show(Label::elementwise(name, Work::Sums, &inputs), [self.rows, self.embd, 1], x);
        check_finite(name.name, il, x, self.embd)
    }

    /// Multiplies [`Buffers::cur`].
    pub fn scale_cur(&mut self, by: f32) {
        let n = self.rows * self.embd;
        self.kernels.ops().scale(&mut self.buffers.cur[..n], by);
    }

    /// Keeps what the residual stream ended in, or its norm in [`Buffers::cur`], for drafts.
    pub fn keep_ends(&mut self, normed: bool) {
        let n = self.rows * self.embd;
        let Buffers { x, cur, ends, .. } = &mut *self.buffers;
        ends[..n].copy_from_slice(if normed { &cur[..n] } else { &x[..n] });
    }

    /// Whether the logits of all rows are wanted.
    pub fn wants_all_rows(&self) -> bool {
        self.segments.iter().all(|segment| match segment.logits {
            Logits::None => segment.tokens.is_empty(),
            Logits::Last => segment.tokens.len() <= 1,
            Logits::All | Logits::Drafts => true,
        })
    }

    /// Keeps the rows whose logits are wanted, of the buffers that the rest of this layer and those behind it
    /// read: nothing is remembered any more.
    pub fn keep_wanted_rows(&mut self, rows: RowSizes) {
        let (mut row, mut kept) = (0, 0);
        let (embd, side) = (self.embd, self.buffers.side);
        for segment in &mut self.segments {
            let tokens = segment.tokens.len();
            let wanted = match segment.logits {
                Logits::None => tokens..tokens,
                Logits::Last => tokens.saturating_sub(1)..tokens,
                Logits::All | Logits::Drafts => 0..tokens,
            };
            let (from, to) = (row + wanted.start..row + wanted.end, kept);
            let Buffers { x, cur, beside, attn, attn_gate, streams, gates, per_layer, .. } =
                &mut *self.buffers;
            let buffers =
                [(x, embd), (cur, embd), (beside, embd), (attn, rows.attended), (attn_gate, rows.gate)];
            for (buffer, n) in buffers.into_iter().chain([
                (streams, side.streams),
                (gates, side.gates),
                (per_layer, side.per_layer),
            ]) {
                buffer.copy_within(from.start * n..from.end * n, to * n);
            }
            segment.first_pos += wanted.start;
            segment.tokens = &segment.tokens[wanted.clone()];
            row += tokens;
            kept += wanted.len();
        }
        self.rows = kept;
    }
}

/// Each sequence with its rows of the pass.
pub(super) fn with_rows<'a, S: Borrow<Segment<'a>>>(
    segments: impl IntoIterator<Item = S>,
) -> impl Iterator<Item = (Range<usize>, S)> {
    segments.into_iter().scan(0, |first, segment| {
        let rows = *first..*first + segment.borrow().tokens.len();
        *first = rows.end;
        Some((rows, segment))
    })
}

/// Runs the recurrence of a slot in every sequence: calls `step` with stretches of the pass's rows, one after
/// another, and the state to change.
///
/// # Errors
/// Where there is no memory for a state.
pub(super) fn recur(
    segments: &mut [Segment<'_>],
    slot: usize,
    mut step: impl FnMut(Range<usize>, &mut [f32]),
) -> Result<(), OutOfMemory> {
    for (rows, segment) in with_rows(segments) {
        let drafts = segment.logits == Logits::Drafts;
        segment.state.recurrent(slot, segment.first_pos, rows.len(), drafts, |part, state| {
            step(rows.start + part.start..rows.start + part.end, state);
        })?;
    }
    Ok(())
}

/// The first of some values (rows of `cols`) that is not right, by its row and its column. All are looked at
/// in stretches, which is fast, and one by one only where one of them is wrong.
pub(super) fn first_wrong(
    values: &[f32],
    cols: usize,
    right: impl Fn(f32) -> bool,
) -> Option<(usize, usize)> {
    let all_right = |values: &[f32]| values.iter().fold(true, |all, &v| all & right(v));
    let (i, stretch) = values.chunks(4096).enumerate().find(|(_, stretch)| !all_right(stretch))?;
    let at = i * 4096 + stretch.iter().position(|&v| !right(v))?;
    Some((at / cols, at % cols))
}

pub(super) fn check_finite(
    node: &'static str,
    layer: usize,
    x: &[f32],
    cols: usize,
) -> Result<(), ForwardError> {
    match first_wrong(x, cols, f32::is_finite) {
        Some((token, index)) => Err(ForwardError::NotFinite { node, layer, token, index }),
        None => Ok(()),
    }
}

/// Rows of a matrix by their numbers, decoded: `[ids][cols]`.
pub(super) fn look_up<'i>(
    store: &Store,
    matrix: &Matrix,
    ids: impl Iterator<Item = &'i u32>,
    out: &mut [f32],
) -> Result<(), StoreError> {
    let format = matrix.format();
    let row = format.row_bytes(matrix.cols);
    let read = |scratch: &mut AlignedBuffer, (&id, out): (&u32, &mut [f32])| {
        let start = id as usize * row;
        (format.decode)(store.read_part(matrix.id, start..start + row, scratch)?, out);
        Ok(())
    };
    let ids: Vec<&u32> = ids.collect();
    // Several at a time: those of a model that is not in memory are waited for.
    let rows = ids.into_par_iter().zip(out.par_chunks_exact_mut(matrix.cols));
    rows.try_for_each_init(AlignedBuffer::default, read)
}

/// Adds the bias of a linear map, where it has one; says whether it has.
pub(super) fn add_bias(ops: &Ops, linear: &Linear, out: &mut [f32]) -> bool {
    match &linear.bias {
        Some(bias) => {
            ops.add_bias(out, bias);
            true
        }
        None => false,
    }
}

/// Shows outputs of one tensor, which lie in buffers of their own, side by side.
pub(super) fn show_side_by_side(
    watch: &mut Watch<'_>,
    label: Label<'_>,
    rows: usize,
    outputs: &mut [(&Linear, &mut [f32])],
) -> NodeId<'static> {
    let widths: Vec<usize> = outputs.iter().map(|(linear, _)| linear.rows()).collect();
    let all: usize = widths.iter().sum();
    let outputs = std::cell::RefCell::new(outputs);
    watch.show_scattered(
        label,
        [rows, all, 1],
        |values| {
            let outputs = outputs.borrow();
            for row in 0..rows {
                for ((_, out), n) in outputs.iter().zip(&widths) {
                    values.extend_from_slice(&out[row * n..(row + 1) * n]);
                }
            }
        },
        |values| {
            let mut at = 0;
            for row in 0..rows {
                for ((_, out), n) in outputs.borrow_mut().iter_mut().zip(&widths) {
                    out[row * n..(row + 1) * n].copy_from_slice(&values[at..at + n]);
                    at += n;
                }
            }
        },
    )
}
