//! A pass under way: what all parts of a model work with.

use crate::kernels::Kernels;
use crate::kernels::ops::{Ops, RopeKind, RopeTable};
use crate::store::{Store, StoreError, WeightId};

use super::observer::{NodeName, Watch};
use super::parts::Rope;
use super::state::{Buffers, Inputs};
use super::weights::{Linear, Matrix};
use super::{ForwardError, Label, Logits, NodeId, Pass, Segment, Work};

/// See the module.
pub(super) struct Run<'a> {
    pub store: &'a Store,
    pub kernels: &'static Kernels,
    pub buffers: &'a mut Buffers,
    pub watch: Watch<'a>,
    pub segments: Vec<Segment<'a>>,
    pub guess_experts: bool,
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
    /// Which elements make a pair in each of [`Buffers::rope`].
    pub rope_kinds: Vec<RopeKind>,
}

impl<'a> Run<'a> {
    /// A pass of so many rows in all.
    ///
    /// # Panics
    /// Where they do not fit the buffers: the engine's mistake.
    pub fn new(store: &'a Store, embd: usize, pass: Pass<'a>) -> Run<'a> {
        let Pass { kernels, buffers, segments, guess_experts, observer } = pass;
        let rows = segments.iter().map(|segment| segment.tokens.len()).sum();
        assert!(rows <= buffers.batch(), "{rows} tokens in a batch of {}", buffers.batch());
        let nothing = NodeId { name: "", layer: None, occurrence: 0 };
        buffers.logits.clear();
        let watch = Watch::new(observer);
        Run {
            store,
            kernels,
            buffers,
            watch,
            segments,
            guess_experts,
            rows,
            embd,
            x: nothing,
            cur: nothing,
            attended: nothing,
            gate: nothing,
            rope_kinds: Vec::new(),
        }
    }

    /// Says which weights come next.
    pub fn announce(&self, weights: impl IntoIterator<Item = WeightId>) {
        if self.rows > 0 {
            self.store.will_need(weights);
        }
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

    /// Adds [`Buffers::cur`] to the residual stream, which whatever is not finite in a layer ends in. Here a pass may be
    /// broken off.
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

    /// Multiplies [`Buffers::cur`].
    pub fn scale_cur(&mut self, by: f32) {
        let n = self.rows * self.embd;
        self.kernels.ops().scale(&mut self.buffers.cur[..n], by);
    }

    /// Keeps the rows whose logits are wanted, of the buffers that the rest of the last layer reads.
    pub fn keep_wanted_rows(&mut self, attended: usize, gate: usize) {
        let (mut row, mut kept) = (0, 0);
        for segment in &self.segments {
            let tokens = segment.tokens.len();
            let wanted = match segment.logits {
                Logits::None => tokens..tokens,
                Logits::Last => tokens.saturating_sub(1)..tokens,
                Logits::All => 0..tokens,
            };
            let (from, to) = (row + wanted.start..row + wanted.end, kept);
            let Buffers { x, cur, attn, attn_gate, .. } = &mut *self.buffers;
            for (buffer, n) in [(x, self.embd), (cur, self.embd), (attn, attended), (attn_gate, gate)] {
                buffer.copy_within(from.start * n..from.end * n, to * n);
            }
            row += tokens;
            kept += wanted.len();
        }
        self.rows = kept;
    }
}

/// The first of some values (rows of `cols`) that is not right, by its row and its column. All are looked at in
/// stretches, which is fast, and one by one only where one of them is wrong.
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

/// A product of a pass: `[T][rows]` of `[T][cols]`.
pub(super) struct Product<'a> {
    pub matrix: &'a Matrix,
    pub inputs: &'a Inputs,
    pub out: &'a mut [f32],
}

/// Several products of one input, with their factors; biases are left to [`add_bias`], as they are nodes of their own.
pub(super) fn project(
    kernels: &'static Kernels,
    store: &Store,
    inputs: &Inputs,
    outputs: &mut [(&Linear, &mut [f32])],
) -> Result<(), StoreError> {
    let products = outputs.iter_mut().map(|(linear, out)| Product { matrix: &linear.matrix, inputs, out });
    multiply(kernels, store, products.collect())?;
    for (linear, out) in outputs {
        if let Some(scale) = linear.scale {
            kernels.ops().scale(out, scale);
        }
    }
    Ok(())
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

/// Computes products as their weights come: all that are in memory in one parallel region, then those that have come
/// meanwhile.
pub(super) fn multiply(
    kernels: &'static Kernels,
    store: &Store,
    mut products: Vec<Product<'_>>,
) -> Result<(), StoreError> {
    // A pass over no tokens describes the graph and reads nothing.
    products.retain(|product| !product.out.is_empty());
    while !products.is_empty() {
        let ids: Vec<WeightId> = products.iter().map(|product| product.matrix.id).collect();
        let mut here = store.acquire_some(&ids)?.into_iter().peekable();
        let (mut ready, mut rest) = (Vec::new(), Vec::new());
        for (i, product) in products.into_iter().enumerate() {
            match here.next_if(|(at, _)| *at == i) {
                Some((_, guard)) => ready.push((product, guard)),
                None => rest.push(product),
            }
        }
        let jobs =
            ready.iter_mut().map(|(product, guard)| product.matrix.job(guard, product.inputs, product.out));
        crate::kernels::matmul_batch(kernels, &mut jobs.collect::<Vec<_>>());
        products = rest;
    }
    Ok(())
}
