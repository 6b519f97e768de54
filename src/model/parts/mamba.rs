//! Mamba's block: a projection, the short convolution, from its output the steps and what the state takes in
//! and gives, the selective scan of each channel, a gate, and the output projection: ggml's
//! `build_mamba_layer`.

use std::ops::Range;

use super::super::load::Loader;
use super::super::products::project;
use super::super::run::{Run, add_bias, recur};
use super::super::weights::Linear;
use super::super::{
    Buffers, ForwardError, Label, MemorySpec, ModelError, NodeId, NodeKind, RowSizes, ScratchSizes, Work,
};
use super::mamba2::ConvWeights;
use super::norm::{Norm, NormKind};
use super::{Mixer, Recurrence};
use crate::kernels::ops::{ChannelRows, ChannelScan};
use crate::store::WeightId;

/// Norms of the steps, of B and of C, before the steps' projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum StepNorms {
    None,
    /// Without weights: Falcon's.
    Plain,
    /// `ssm_dt_norm`, `ssm_b_norm`, `ssm_c_norm`: Jamba's.
    Weighted,
}

/// Sizes of a model's blocks, and what a family says of them.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct MambaSpec {
    /// Channels.
    pub inner: usize,
    /// Elements of a channel's state.
    pub state_len: usize,
    /// The rank that steps pass through.
    pub rank: usize,
    /// Tokens that an output of the convolution depends on.
    taps: usize,
    eps: f32,
    norms: StepNorms,
    /// The node of the output.
    pub output: &'static str,
}

impl MambaSpec {
    /// Reads the keys `ssm.*`, for blocks of twice as many channels as the embedding has.
    pub fn read(
        l: &mut Loader<'_>,
        embd: usize,
        eps: f32,
        (norms, output): (StepNorms, &'static str),
    ) -> Result<MambaSpec, ModelError> {
        let keys = &mut l.keys;
        let spec = MambaSpec {
            inner: keys.required_size("ssm.inner_size")?,
            state_len: keys.required_size("ssm.state_size")?,
            rank: keys.required_size("ssm.time_step_rank")?,
            taps: keys.required_size("ssm.conv_kernel")?,
            eps,
            norms,
            output,
        };
        if spec.inner != 2 * embd {
            let what = format!("is {}, where twice the embedding length of {embd} is needed", spec.inner);
            return Err(keys.problem("ssm.inner_size", what));
        }
        keys.check_state("ssm.state_size", spec.state_len, spec.inner)?;
        Ok(spec)
    }

    /// Values of a token from the convolution's output: the steps' rank, B and C.
    fn selected(&self) -> [usize; 3] {
        [self.rank, self.state_len, self.state_len]
    }
}

/// The block of a layer.
#[derive(Debug)]
pub(in crate::model) struct Mamba {
    pub spec: MambaSpec,
    /// Slots of the convolution's window and of the state.
    pub window: usize,
    pub state: usize,
    /// x and z: one tensor, `ssm_in`.
    pub projections: [Linear; 2],
    pub conv: ConvWeights,
    /// The steps at their rank, B and C: one tensor, `ssm_x`.
    pub selections: [Linear; 3],
    pub norms: [Option<Norm>; 3],
    /// `[inner, rank]`, with a bias.
    pub dt: Linear,
    /// `[inner][state_len]`
    pub a: Vec<f32>,
    /// `[inner]`
    pub d: Vec<f32>,
    pub output: Linear,
}

impl Mamba {
    /// Finds the weights of a layer: `ssm_in`, `ssm_conv1d`, `ssm_x`, `ssm_dt`, `ssm_a`, `ssm_d`, `ssm_out`.
    pub fn load(l: &mut Loader<'_>, il: usize, embd: usize, spec: MambaSpec) -> Result<Mamba, ModelError> {
        let name = |part: &str| format!("blk.{il}.{part}");
        let MambaSpec { inner, state_len, rank, taps, eps, .. } = spec;
        let projections = l.weights.stacked_linear(&name("ssm_in"), embd, [inner; 2])?;
        let conv = ConvWeights::load(l, &name("ssm_conv1d"), taps, inner)?;
        let selections = l.weights.stacked_linear(&name("ssm_x"), inner, spec.selected())?;
        let mut norm = |tensor: &str, node, len| {
            Ok::<_, ModelError>(match spec.norms {
                StepNorms::None => None,
                StepNorms::Plain => Some(Norm::unweighted(node, len, eps)),
                StepNorms::Weighted => Some(Norm::load(l, &name(tensor), node, NormKind::Rms, len, eps)?),
            })
        };
        let norms = [
            norm("ssm_dt_norm", "mamba_dt_normed", rank)?,
            norm("ssm_b_norm", "mamba_b_normed", state_len)?,
            norm("ssm_c_norm", "mamba_c_normed", state_len)?,
        ];
        let dt = l.weights.linear(&name("ssm_dt"), rank, inner)?;
        for bias in ["ssm_conv1d.bias", "ssm_dt.bias"] {
            if !l.weights.contains(&name(bias)) {
                return Err(ModelError::MissingTensor { name: name(bias) });
            }
        }
        let a = l.weights.floats(&name("ssm_a"), &[state_len, inner])?;
        let d = l.weights.vector(&name("ssm_d"), inner)?;
        let output = l.weights.unbiased(&name("ssm_out"), inner, embd)?;
        let window = l.remember(MemorySpec::Recurrent { floats: conv.conv(true).window_len() });
        let state = l.remember(MemorySpec::Recurrent { floats: inner * state_len });
        Ok(Mamba { spec, window, state, projections, conv, selections, norms, dt, a, d, output })
    }

    fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.projections.iter().chain(&self.selections).chain([&self.dt, &self.output])
    }

    /// x to the buffer of queries, z to that of the gate.
    fn project(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 2], ForwardError> {
        let n = run.rows * self.spec.inner;
        let Buffers { inputs, cur, q, attn_gate, .. } = &mut *run.buffers;
        inputs
            .prepare(
                run.kernels.ops(),
                &cur[..run.rows * run.embd],
                run.embd,
                self.projections.iter().map(Linear::activation),
            )
            .map_err(ForwardError::not_finite("attn_norm", il))?;
        let [x, z] = &self.projections;
        let mut outputs = [(x, &mut q[..n]), (z, &mut attn_gate[..n])];
        project(run.kernels, run.store, inputs, &mut outputs)?;
        let input = [run.cur];
        let mut nodes = [run.cur; 2];
        for ((node, name), (linear, out)) in nodes.iter_mut().zip(["mamba_x", "mamba_z"]).zip(&mut outputs) {
            let label = Label::product(name, Work::Projections, linear.matrix.described(), &input);
            *node = run.watch.show(label, [run.rows, self.spec.inner, 1], out);
        }
        Ok(nodes)
    }

    /// The convolution with SiLU, to the buffer of keys.
    fn convolve(&self, run: &mut Run<'_>, x: NodeId<'static>) -> Result<NodeId<'static>, ForwardError> {
        let (ops, inner, conv) = (run.kernels.ops(), self.spec.inner, self.conv.conv(true));
        let Buffers { q, k, .. } = &mut *run.buffers;
        recur(&mut run.segments, self.window, |rows, window| {
            let at = rows.start * inner..rows.end * inner;
            ops.causal_conv(&conv, &q[at.clone()], window, &mut k[at]);
        })?;
        let inputs = [x];
        let label = Label::new("mamba_conv", NodeKind::Convolution, Work::Recurrence, &inputs);
        Ok(run.watch.show(label, [run.rows, inner, 1], &mut run.buffers.k[..run.rows * inner]))
    }

    /// Steps, to the buffer of queries, and B and C behind their rank in that of values: `[T][..]` each.
    fn select(
        &self,
        run: &mut Run<'_>,
        il: usize,
        convolved: NodeId<'static>,
    ) -> Result<[NodeId<'static>; 3], ForwardError> {
        let (t, ops) = (run.rows, run.kernels.ops());
        let MambaSpec { inner, rank, state_len, .. } = self.spec;
        let Buffers { inputs, hidden, q, k, v, .. } = &mut *run.buffers;
        inputs
            .prepare(
                run.kernels.ops(),
                &k[..t * inner],
                inner,
                self.selections.iter().map(Linear::activation),
            )
            .map_err(ForwardError::not_finite("mamba_conv", il))?;
        let (low, rest) = v.split_at_mut(t * rank);
        let (b, c) = rest.split_at_mut(t * state_len);
        let [of_dt, of_b, of_c] = &self.selections;
        let mut outputs = [(of_dt, low), (of_b, b), (of_c, &mut c[..t * state_len])];
        project(run.kernels, run.store, inputs, &mut outputs)?;
        let input = [convolved];
        let mut nodes = [convolved; 3];
        let names = ["mamba_dt_low", "mamba_b", "mamba_c"];
        for (i, (linear, out)) in outputs.iter_mut().enumerate() {
            let shape = [t, linear.rows(), 1];
            let label = Label::product(names[i], Work::Projections, linear.matrix.described(), &input);
            nodes[i] = run.watch.show(label, shape, out);
            if let Some(norm) = &self.norms[i] {
                norm.apply(ops, out);
                nodes[i] = run.watch.show(norm.label(&[nodes[i]]), shape, out);
            }
        }
        let [(_, low), ..] = &outputs;
        let types = [self.dt.activation()];
        hidden
            .prepare(run.kernels.ops(), low, rank, types)
            .map_err(ForwardError::not_finite("mamba_dt_low", il))?;
        let dt = &mut q[..t * inner];
        project(run.kernels, run.store, hidden, &mut [(&self.dt, &mut *dt)])?;
        add_bias(ops, &self.dt, dt);
        let input = [nodes[0]];
        let label = Label::product("mamba_dt", Work::Projections, self.dt.matrix.described(), &input);
        nodes[0] = run.watch.show(label, [t, inner, 1], dt);
        ops.softplus(dt);
        Ok(nodes)
    }

    /// The scan of every sequence, to what attention gives elsewhere.
    fn scan(&self, run: &mut Run<'_>, inputs: &[NodeId<'static>]) -> Result<(), ForwardError> {
        let (t, ops) = (run.rows, run.kernels.ops());
        let MambaSpec { inner, rank, state_len: n, .. } = self.spec;
        let scan = ChannelScan { state_len: n, a: &self.a, d: &self.d };
        let Buffers { q, k, v, attn, .. } = &mut *run.buffers;
        let (x, scratch) = k.split_at_mut(t * inner);
        let (b, c) = v[t * rank..].split_at(t * n);
        recur(&mut run.segments, self.state, |rows, state| {
            let Range { start, end } = rows;
            let (wide, narrow) = (start * inner..end * inner, start * n..end * n);
            let rows = ChannelRows {
                x: &x[wide.clone()],
                dt: &q[wide.clone()],
                b: &b[narrow.clone()],
                c: &c[narrow],
            };
            ops.channel_scan(&scan, &rows, state, &mut scratch[..wide.len()], &mut attn[wide]);
        })?;
        let label = Label::new("mamba_y", NodeKind::Scan, Work::Recurrence, inputs);
        run.attended = run.watch.show(label, [t, inner, 1], &mut run.buffers.attn[..t * inner]);
        Ok(())
    }
}

impl Mixer for Mamba {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(self.linears().map(Linear::id))
    }

    fn rows(&self) -> RowSizes {
        let inner = self.spec.inner;
        let v = self.spec.selected().iter().sum();
        RowSizes { q: inner, k: 2 * inner, v, gate: inner, attended: inner }
    }

    fn scratch(&self) -> ScratchSizes {
        let norms = self.norms.iter().flatten().filter_map(|norm| norm.weight.as_ref()).map(Vec::len);
        let vectors = self.conv.values() + self.a.len() + self.d.len() + self.dt.rows();
        ScratchSizes { constants: vectors + norms.sum::<usize>(), ..ScratchSizes::default() }
    }

    fn as_recurrence(&self) -> Option<Recurrence<'_>> {
        Some(Recurrence::Mamba(self))
    }

    fn remember(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 3], ForwardError> {
        let [x, z] = self.project(run, il)?;
        let convolved = self.convolve(run, x)?;
        let [dt, b, c] = self.select(run, il, convolved)?;
        self.scan(run, &[convolved, dt, b, c])?;
        Ok([z, run.attended, run.attended])
    }

    /// y times SiLU of z, to the gate's buffer.
    fn mix(
        &self,
        run: &mut Run<'_>,
        _: usize,
        _: bool,
        [z, y, _]: [NodeId<'static>; 3],
    ) -> Result<(), ForwardError> {
        let n = run.rows * self.spec.inner;
        let Buffers { attn, attn_gate, .. } = &mut *run.buffers;
        let gated = &mut attn_gate[..n];
        run.kernels.ops().swiglu(gated, &attn[..n]);
        let inputs = [z, y];
        let label = Label::new("mamba_gated", NodeKind::SwiGlu, Work::Recurrence, &inputs);
        run.gate = run.watch.show(label, [run.rows, self.spec.inner, 1], gated);
        Ok(())
    }

    fn output(&self, run: &mut Run<'_>, il: usize, beside: bool) -> Result<NodeId<'static>, ForwardError> {
        let (t, inner) = (run.rows, self.spec.inner);
        let Buffers { inputs, attn_gate, cur, beside: other, .. } = &mut *run.buffers;
        inputs
            .prepare(run.kernels.ops(), &attn_gate[..t * inner], inner, [self.output.activation()])
            .map_err(ForwardError::not_finite("mamba_gated", il))?;
        let out = if beside { other } else { cur };
        let out = &mut out[..t * run.embd];
        project(run.kernels, run.store, inputs, &mut [(&self.output, &mut *out)])?;
        let input = [run.gate];
        let weight = self.output.matrix.described();
        let label = Label::product(self.spec.output, Work::AttentionOutput, weight, &input);
        Ok(run.watch.show(label, [t, run.embd, 1], out))
    }
}
