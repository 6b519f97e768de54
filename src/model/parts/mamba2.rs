//! Mamba 2's block: one projection, the short convolution, the selective scan, a gate, a norm by groups and
//! the output projection: ggml's `build_mamba2_layer`.

use std::ops::Range;

use super::super::load::Loader;
use super::super::products::project;
use super::super::run::{Run, add_bias, recur};
use super::super::weights::Linear;
use super::super::{
    Buffers, ForwardError, Label, MemorySpec, ModelError, NodeId, NodeKind, RowSizes, ScratchSizes, Work,
};
use super::delta_net::transposed;
use super::norm::{Norm, NormKind};
use super::{Mixer, Recurrence};
use crate::kernels::ops::{CausalConv, SelectiveScan};
use crate::store::WeightId;

/// Sizes of a model's blocks, and what a family says of them.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct Mamba2Spec {
    /// Rows of all heads.
    pub inner: usize,
    /// Divides `inner`.
    pub heads: usize,
    /// Groups of heads with the same B and C; divides the heads.
    pub groups: usize,
    /// Columns of the state.
    pub state_len: usize,
    /// Tokens that an output of the convolution depends on.
    pub taps: usize,
    pub eps: f32,
    /// Whether a file may have no norm.
    pub norm_optional: bool,
    /// The node that the input is once more, where ggml norms it for this block anew.
    pub input: Option<&'static str>,
    pub output: &'static str,
}

impl Mamba2Spec {
    /// Reads the keys `ssm.*`.
    pub fn read(l: &mut Loader<'_>, eps: f32) -> Result<Mamba2Spec, ModelError> {
        let keys = &mut l.keys;
        let spec = Mamba2Spec {
            inner: keys.required_size("ssm.inner_size")?,
            heads: keys.required_size("ssm.time_step_rank")?,
            groups: keys.required_size("ssm.group_count")?,
            state_len: keys.required_size("ssm.state_size")?,
            taps: keys.required_size("ssm.conv_kernel")?,
            eps,
            norm_optional: false,
            input: None,
            output: "mamba_out",
        };
        if !spec.inner.is_multiple_of(spec.heads) {
            let what = format!("is {}, which does not divide the inner size of {}", spec.heads, spec.inner);
            return Err(keys.problem("ssm.time_step_rank", what));
        }
        if !spec.heads.is_multiple_of(spec.groups) {
            let what = format!("is {}, which does not divide {} heads", spec.groups, spec.heads);
            return Err(keys.problem("ssm.group_count", what));
        }
        keys.check_state("ssm.state_size", spec.state_len, spec.inner)?;
        Ok(spec)
    }

    /// Channels of the convolution: x, and B and C of all groups.
    fn channels(&self) -> usize {
        self.inner + 2 * self.groups * self.state_len
    }
}

/// The block of a layer.
#[derive(Debug)]
pub(in crate::model) struct Mamba2 {
    pub spec: Mamba2Spec,
    pub slot: usize,
    /// z, x with B and C, dt: one tensor, `ssm_in`.
    pub projections: [Linear; 3],
    pub conv: ConvWeights,
    /// Added to dt, `[heads]`.
    pub dt_bias: Vec<f32>,
    /// `[heads]` each.
    pub a: Vec<f32>,
    pub d: Vec<f32>,
    pub norm: Option<Norm>,
    pub output: Linear,
}

/// The weights of a short convolution.
#[derive(Debug)]
pub(in crate::model) struct ConvWeights {
    channels: usize,
    /// `[taps][channels]`
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl ConvWeights {
    /// `TENSOR.weight` of `[taps, channels]` and, where it is there, `TENSOR.bias` of `[channels]`.
    pub fn load(
        l: &mut Loader<'_>,
        tensor: &str,
        taps: usize,
        channels: usize,
    ) -> Result<ConvWeights, ModelError> {
        let by_channel = l.weights.floats(&format!("{tensor}.weight"), &[taps, channels])?;
        let weight = transposed(&by_channel, taps);
        let bias = l.weights.optional_vector(&format!("{tensor}.bias"), channels)?;
        Ok(ConvWeights { channels, weight, bias })
    }

    /// How many values there are.
    pub fn values(&self) -> usize {
        self.weight.len() + self.bias.as_ref().map_or(0, Vec::len)
    }

    /// As the operation takes them.
    pub fn conv(&self, silu: bool) -> CausalConv<'_> {
        CausalConv { channels: self.channels, weight: &self.weight, bias: self.bias.as_deref(), silu }
    }
}

impl Mamba2 {
    /// Finds the weights of a layer: `ssm_in`, `ssm_conv1d`, `ssm_dt.bias`, `ssm_a`, `ssm_d`, `ssm_norm`,
    /// `ssm_out`.
    pub fn load(l: &mut Loader<'_>, il: usize, embd: usize, spec: Mamba2Spec) -> Result<Mamba2, ModelError> {
        let name = |part: &str| format!("blk.{il}.{part}");
        let Mamba2Spec { inner, heads, groups, eps, .. } = spec;
        let projections = l.weights.stacked_linear(&name("ssm_in"), embd, [inner, spec.channels(), heads])?;
        let conv = ConvWeights::load(l, &name("ssm_conv1d"), spec.taps, spec.channels())?;
        let dt_bias = l.weights.vector(&name("ssm_dt.bias"), heads)?;
        let a = l.weights.floats(&name("ssm_a"), &[1, heads])?;
        let d = l.weights.floats(&name("ssm_d"), &[1, heads])?;
        let norm = match spec.norm_optional && !l.weights.contains(&name("ssm_norm.weight")) {
            true => None,
            false => {
                let dims = [inner / groups, groups];
                let (tensor, node) = (name("ssm_norm"), "mamba2_normed");
                Some(Norm::load_shaped(l, &tensor, node, NormKind::Rms, &dims, eps)?)
            }
        };
        let output = l.weights.unbiased(&name("ssm_out"), inner, embd)?;
        let floats = conv.conv(true).window_len() + inner * spec.state_len;
        let slot = l.remember(MemorySpec::Recurrent { floats });
        Ok(Mamba2 { spec, slot, projections, conv, dt_bias, a, d, norm, output })
    }

    /// z to the gate's buffer, x with B and C to that of queries, dt with its bias and softplus to that of
    /// values.
    fn project(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 3], ForwardError> {
        let t = run.rows;
        let buffers = &mut *run.buffers;
        if let Some(name) = self.spec.input {
            // The same norm of the same input.
            let cur = &mut buffers.cur[..t * run.embd];
            let label = Label::new(name, NodeKind::RmsNorm, Work::Norms, std::slice::from_ref(&run.x));
            run.cur = run.watch.show(label, [t, run.embd, 1], cur);
        }
        buffers
            .inputs
            .prepare(
                run.kernels.ops(),
                &buffers.cur[..t * run.embd],
                run.embd,
                self.projections.iter().map(Linear::activation),
            )
            .map_err(ForwardError::not_finite("attn_norm", il))?;
        let mut outputs = [&mut buffers.attn_gate, &mut buffers.q, &mut buffers.v];
        let mut outputs: Vec<(&Linear, &mut [f32])> = self
            .projections
            .iter()
            .zip(&mut outputs)
            .map(|(linear, out)| (linear, &mut out[..t * linear.rows()]))
            .collect();
        project(run.kernels, run.store, &buffers.inputs, &mut outputs)?;
        let ops = run.kernels.ops();
        let mut nodes = [run.cur; 3];
        let names = ["mamba2_z", "mamba2_xbc", "mamba2_dt"];
        for ((node, name), (linear, out)) in nodes.iter_mut().zip(names).zip(&mut outputs) {
            add_bias(ops, linear, out);
            let input = [run.cur];
            let label = Label::product(name, Work::Projections, linear.matrix.described(), &input);
            *node = run.watch.show(label, [t, linear.rows(), 1], out);
        }
        let (_, dt) = &mut outputs[2];
        ops.add_bias(dt, &self.dt_bias);
        ops.softplus(dt);
        Ok(nodes)
    }

    /// Convolution and scan of every sequence: y, to the buffer of keys, behind what the convolution gives.
    fn advance(&self, run: &mut Run<'_>) -> Result<(), ForwardError> {
        let &Mamba2Spec { inner, heads, groups, state_len, .. } = &self.spec;
        let (ops, channels, all) = (run.kernels.ops(), self.spec.channels(), run.rows);
        let conv = self.conv.conv(true);
        let scan = SelectiveScan { head_len: inner / heads, groups, state_len, a: &self.a, d: &self.d };
        let Buffers { q, k, v, .. } = &mut *run.buffers;
        let (xbc, y) = k.split_at_mut(all * channels);
        recur(&mut run.segments, self.slot, |Range { start, end }, state| {
            let (window, state) = state.split_at_mut(conv.window_len());
            let x = &mut q[start * channels..end * channels];
            let xbc = &mut xbc[start * channels..end * channels];
            ops.causal_conv(&conv, x, window, xbc);
            let y = &mut y[start * inner..end * inner];
            // The convolution's input is needed no more.
            let scratch = &mut x[..y.len()];
            ops.selective_scan(&scan, xbc, &v[start * heads..end * heads], state, scratch, y);
        })?;
        Ok(())
    }

    /// y times SiLU of z, in the gate's buffer, where it waits for [`Mixer::output`].
    pub fn gate(&self, run: &mut Run<'_>, [z, y, _]: [NodeId<'static>; 3]) {
        let (t, inner) = (run.rows, self.spec.inner);
        let gate = &mut run.buffers.attn_gate[..t * inner];
        run.kernels.ops().swiglu(gate, &run.buffers.k[t * self.spec.channels()..][..t * inner]);
        let inputs = [z, y];
        let label = Label::new("mamba2_gated", NodeKind::SwiGlu, Work::Recurrence, &inputs);
        run.gate = run.watch.show(label, [t, inner, 1], gate);
    }
}

impl Mixer for Mamba2 {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(self.projections.iter().chain([&self.output]).map(Linear::id))
    }

    fn rows(&self) -> RowSizes {
        let (channels, inner) = (self.spec.channels(), self.spec.inner);
        RowSizes { q: channels, k: channels + inner, v: self.spec.heads, gate: inner, attended: 0 }
    }

    fn scratch(&self) -> ScratchSizes {
        let of_norm = self.norm.as_ref().map_or(0, |_| self.spec.inner);
        let constants = self.conv.values() + 3 * self.spec.heads + of_norm;
        ScratchSizes { constants, ..ScratchSizes::default() }
    }

    fn as_recurrence(&self) -> Option<Recurrence<'_>> {
        Some(Recurrence::Mamba2(self))
    }

    /// Projections, convolution and scan. Returns the nodes z and y.
    fn remember(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 3], ForwardError> {
        let [z, xbc, dt] = self.project(run, il)?;
        self.advance(run)?;
        let Mamba2Spec { inner, heads, .. } = self.spec;
        let inputs = [xbc, dt];
        let label = Label::new("mamba2_y_add_d", NodeKind::Scan, Work::Recurrence, &inputs);
        let y = &mut run.buffers.k[run.rows * self.spec.channels()..][..run.rows * inner];
        let y = run.watch.show(label, [run.rows, heads, inner / heads], y);
        Ok([z, y, y])
    }

    fn mix(
        &self,
        run: &mut Run<'_>,
        _: usize,
        _: bool,
        inputs: [NodeId<'static>; 3],
    ) -> Result<(), ForwardError> {
        self.gate(run, inputs);
        Ok(())
    }

    fn output(&self, run: &mut Run<'_>, il: usize, beside: bool) -> Result<NodeId<'static>, ForwardError> {
        let (t, ops) = (run.rows, run.kernels.ops());
        let Mamba2Spec { inner, groups, output, .. } = self.spec;
        let buffers = &mut *run.buffers;
        let gated = &mut buffers.attn_gate[..t * inner];
        let mut node = run.gate;
        if let Some(norm) = &self.norm {
            norm.apply(ops, gated);
            node = run.watch.show(norm.label(&[node]), [t, groups, inner / groups], gated);
        }
        buffers
            .inputs
            .prepare(run.kernels.ops(), gated, inner, [self.output.activation()])
            .map_err(ForwardError::not_finite("mamba2_gated", il))?;
        let out = if beside { &mut buffers.beside } else { &mut buffers.cur };
        let out = &mut out[..t * run.embd];
        project(run.kernels, run.store, &buffers.inputs, &mut [(&self.output, &mut *out)])?;
        let inputs = [node];
        let label = Label::product(output, Work::AttentionOutput, self.output.matrix.described(), &inputs);
        Ok(run.watch.show(label, [t, run.embd, 1], out))
    }
}
