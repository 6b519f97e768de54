//! LFM2's short convolution between two gates: `out_proj(c * conv(b * x))`, b, c and x from one projection.

use super::super::load::Loader;
use super::super::products::project;
use super::super::run::{Run, add_bias, recur, show_side_by_side};
use super::super::weights::Linear;
use super::super::{
    ForwardError, Label, MemorySpec, ModelError, NodeId, NodeKind, NodeWeight, RowSizes, ScratchSizes, Work,
};
use super::mamba2::ConvWeights;
use super::{Mixer, Recurrence};
use crate::store::WeightId;

/// What a family says of the block.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct ShortConvSpec {
    /// Tokens that an output depends on.
    pub taps: usize,
    /// Nodes: the projection, the convolution, the output.
    pub names: [&'static str; 3],
    /// The node of the block's input, for errors.
    pub input: &'static str,
}

/// The block of a layer.
#[derive(Debug)]
pub(in crate::model) struct ShortConv {
    pub spec: ShortConvSpec,
    embd: usize,
    pub slot: usize,
    /// b, c and x: one tensor, `shortconv.in_proj`.
    pub projections: [Linear; 3],
    pub conv: ConvWeights,
    pub output: Linear,
}

impl ShortConv {
    /// Finds the weights of a layer: `shortconv.in_proj`, `shortconv.conv`, `shortconv.out_proj`.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        embd: usize,
        spec: ShortConvSpec,
    ) -> Result<ShortConv, ModelError> {
        let name = |part: &str| format!("blk.{il}.shortconv.{part}");
        let projections = l.weights.stacked_linear(&name("in_proj"), embd, [embd; 3])?;
        let conv = ConvWeights::load(l, &name("conv"), spec.taps, embd)?;
        let output = l.weights.unbiased(&name("out_proj"), embd, embd)?;
        let slot = l.remember(MemorySpec::Recurrent { floats: conv.conv(false).window_len() });
        Ok(ShortConv { spec, embd, slot, projections, conv, output })
    }

    /// b to the buffer of queries, c to that of the gate, x to that of keys.
    fn project(&self, run: &mut Run<'_>, il: usize) -> Result<NodeId<'static>, ForwardError> {
        let n = run.rows * self.embd;
        let buffers = &mut *run.buffers;
        let types = self.projections.iter().map(Linear::activation);
        buffers
            .inputs
            .prepare(run.kernels.ops(), &buffers.cur[..n], self.embd, types)
            .map_err(ForwardError::not_finite(self.spec.input, il))?;
        let mut outputs = [&mut buffers.q, &mut buffers.attn_gate, &mut buffers.k];
        let mut outputs: Vec<(&Linear, &mut [f32])> =
            self.projections.iter().zip(&mut outputs).map(|(linear, out)| (linear, &mut out[..n])).collect();
        project(run.kernels, run.store, &buffers.inputs, &mut outputs)?;
        for (linear, out) in &mut outputs {
            add_bias(run.kernels.ops(), linear, out);
        }
        let weights = self.projections.iter().map(|linear| linear.matrix.described());
        let weight = weights.reduce(NodeWeight::and);
        let inputs = [run.cur];
        let [name, ..] = self.spec.names;
        let label = Label { weight, ..Label::new(name, NodeKind::Product, Work::Projections, &inputs) };
        Ok(show_side_by_side(&mut run.watch, label, run.rows, &mut outputs))
    }
}

impl Mixer for ShortConv {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(self.projections.iter().chain([&self.output]).map(Linear::id))
    }

    fn rows(&self) -> RowSizes {
        let n = self.embd;
        RowSizes { q: n, k: n, v: 0, gate: n, attended: n }
    }

    fn scratch(&self) -> ScratchSizes {
        ScratchSizes { constants: self.conv.values(), ..ScratchSizes::default() }
    }

    fn as_recurrence(&self) -> Option<Recurrence<'_>> {
        Some(Recurrence::ShortConv(self))
    }

    /// Projections and convolution. Returns the nodes of c and of the convolution.
    fn remember(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 3], ForwardError> {
        let projected = self.project(run, il)?;
        let (n, ops, conv) = (self.embd, run.kernels.ops(), self.conv.conv(false));
        let bx = &mut run.buffers.q[..run.rows * n];
        ops.mul(bx, &run.buffers.k[..run.rows * n]);
        let inputs = [projected];
        let label = Label::elementwise("conv_bx", Work::Recurrence, &inputs);
        let bx = run.watch.show(label, [run.rows, n, 1], bx);
        let buffers = &mut *run.buffers;
        recur(&mut run.segments, self.slot, |rows, window| {
            let at = rows.start * n..rows.end * n;
            ops.causal_conv(&conv, &buffers.q[at.clone()], window, &mut buffers.attn[at]);
        })?;
        let inputs = [bx];
        let [_, name, _] = self.spec.names;
        let label = Label::new(name, NodeKind::Convolution, Work::Recurrence, &inputs);
        let out = &mut run.buffers.attn[..run.rows * n];
        let out = run.watch.show(label, [run.rows, n, 1], out);
        Ok([projected, out, out])
    }

    /// The second gate.
    fn mix(
        &self,
        run: &mut Run<'_>,
        _: usize,
        _: bool,
        [c, out, _]: [NodeId<'static>; 3],
    ) -> Result<(), ForwardError> {
        let n = run.rows * self.embd;
        let gated = &mut run.buffers.attn[..n];
        run.kernels.ops().mul(gated, &run.buffers.attn_gate[..n]);
        let inputs = [c, out];
        let label = Label::elementwise("conv_gated", Work::Recurrence, &inputs);
        run.attended = run.watch.show(label, [run.rows, self.embd, 1], gated);
        Ok(())
    }

    fn output(&self, run: &mut Run<'_>, il: usize, beside: bool) -> Result<NodeId<'static>, ForwardError> {
        let n = run.rows * self.embd;
        let buffers = &mut *run.buffers;
        buffers
            .inputs
            .prepare(run.kernels.ops(), &buffers.attn[..n], self.embd, [self.output.activation()])
            .map_err(ForwardError::not_finite("conv_gated", il))?;
        let out = if beside { &mut buffers.beside } else { &mut buffers.cur };
        let out = &mut out[..n];
        project(run.kernels, run.store, &buffers.inputs, &mut [(&self.output, &mut *out)])?;
        let inputs = [run.attended];
        let [_, _, name] = self.spec.names;
        let label = Label::product(name, Work::AttentionOutput, self.output.matrix.described(), &inputs);
        Ok(run.watch.show(label, [run.rows, self.embd, 1], out))
    }
}
