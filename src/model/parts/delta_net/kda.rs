//! Kimi Delta Attention: a decay for each element of a key, decays and gates by way of a short vector.

use super::super::super::load::Loader;
use super::super::super::run::{Run, project};
use super::super::super::state::Buffers;
use super::super::super::weights::Linear;
use super::super::super::{ForwardError, Label, ModelError, NodeId, NodeKind, RowSizes, Work};
use super::super::Mixer;
use super::{Core, DeltaNetSpec, Layout, Names};
use crate::store::WeightId;

/// Linear attention with a decay for each element of a key. As many heads of keys as of values.
#[derive(Debug)]
pub(in crate::model) struct Kda {
    core: Core,
    /// `attn_q`, `attn_k`, `attn_v`, or parts of `attn_qkv`.
    qkv: [Linear; 3],
    /// `ssm_beta`: `[heads, E]`
    beta: Linear,
    /// `ssm_f_a`, `ssm_f_b`: of the decays, by way of `len` values.
    decay: [Linear; 2],
    /// `ssm_g_a`, `ssm_g_b`: of the output's gate.
    gate: [Linear; 2],
    /// Added to what decays come from: `ssm_dt`, `[heads * len]`.
    dt: Vec<f32>,
    /// Factor on its softplus: `ssm_a`, a negative one for each head, repeated: `[heads * len]`.
    a: Vec<f32>,
}

const NAMES: Names = Names { convolved: None, normalised: None, output: "kda_out" };

impl Kda {
    /// Finds the weights of a layer.
    pub fn load(l: &mut Loader<'_>, il: usize, embd: usize, spec: DeltaNetSpec) -> Result<Kda, ModelError> {
        let name = |part: &str| format!("blk.{il}.{part}");
        let DeltaNetSpec { heads, len, taps, .. } = spec;
        let values = spec.values();
        let w = &mut l.weights;
        let qkv = if w.contains(&name("attn_qkv.weight")) {
            w.stacked(&name("attn_qkv.weight"), embd, [values; 3])?.map(Linear::plain)
        } else {
            let mut part = |part| w.unbiased(&name(part), embd, values);
            [part("attn_q")?, part("attn_k")?, part("attn_v")?]
        };
        let beta = w.unbiased(&name("ssm_beta"), embd, heads)?;
        let mut pair = |a, b| {
            Ok::<_, ModelError>([w.unbiased(&name(a), embd, len)?, w.unbiased(&name(b), len, values)?])
        };
        let (decay, gate) = (pair("ssm_f_a", "ssm_f_b")?, pair("ssm_g_a", "ssm_g_b")?);
        let dt = w.vector(&name("ssm_dt.bias"), values)?;
        let a = w.floats(&name("ssm_a"), &[1, heads])?;
        let a = a.into_iter().flat_map(|a| std::iter::repeat_n(a, len)).collect();
        let dims = &[taps, 1, values][..];
        let convolutions = [("ssm_conv1d_q", dims), ("ssm_conv1d_k", dims), ("ssm_conv1d_v", dims)];
        let how = (Layout::Apart, NAMES);
        let core = Core::load(l, il, embd, spec, how, &convolutions, ("kda_normed", "attn_output"))?;
        Ok(Kda { core, qkv, beta, decay, gate, dt, a })
    }

    fn inputs(&self) -> impl Iterator<Item = &Linear> {
        self.qkv.iter().chain([&self.beta, &self.decay[0], &self.gate[0]])
    }

    /// Parts of the buffer of keys: strengths `[T][heads]`, decays `[T][heads * len]`, and the short vectors
    /// `[T][len]` of decays and gates.
    fn parts<'b>(&self, k: &'b mut [f32], t: usize) -> [&'b mut [f32]; 4] {
        let DeltaNetSpec { heads, len, .. } = self.core.spec;
        let (beta, rest) = k.split_at_mut(t * heads);
        let (decay, rest) = rest.split_at_mut(t * heads * len);
        let (of_decay, rest) = rest.split_at_mut(t * len);
        [beta, decay, of_decay, &mut rest[..t * len]]
    }

    /// The products of the block's input.
    fn project(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let (t, embd, values) = (run.rows, run.embd, self.core.spec.values());
        let Buffers { inputs, cur, q, k, .. } = &mut *run.buffers;
        inputs
            .prepare(&cur[..t * embd], embd, self.inputs().map(Linear::activation))
            .map_err(ForwardError::not_finite("attn_norm", il))?;
        let [beta, _, of_decay, of_gate] = self.parts(k, t);
        let mut outputs: Vec<(&Linear, &mut [f32])> = Vec::with_capacity(6);
        outputs.push((&self.beta, beta));
        outputs.push((&self.decay[0], of_decay));
        outputs.push((&self.gate[0], of_gate));
        if t > 0 {
            outputs.extend(self.qkv.iter().zip(q[..3 * t * values].chunks_exact_mut(t * values)));
        }
        project(run.kernels, run.store, inputs, &mut outputs)?;
        Ok(())
    }

    /// Decays and gates from their short vectors.
    fn expand(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 2], ForwardError> {
        let (t, values) = (run.rows, self.core.spec.values());
        let input = [run.cur];
        let Buffers { hidden, k, attn_gate, .. } = &mut *run.buffers;
        let [_, decay, of_decay, of_gate] = self.parts(k, t);
        let steps = [
            (&self.decay, decay, of_decay, "g1 f_b(f_a(cur))"),
            (&self.gate, &mut attn_gate[..t * values], of_gate, "g2 g_b(g_a(cur_2d))"),
        ];
        let mut nodes = [run.cur; 2];
        for (node, ([_, linear], out, short, name)) in nodes.iter_mut().zip(steps) {
            hidden
                .prepare(short, self.core.spec.len, [linear.activation()])
                .map_err(ForwardError::not_finite(name, il))?;
            project(run.kernels, run.store, hidden, &mut [(linear, &mut *out)])?;
            let label = Label::product(name, Work::Projections, linear.matrix.described(), &input);
            *node = run.watch.show(label, [t, values, 1], out);
        }
        Ok(nodes)
    }

    /// Strengths, and decays `exp(a * softplus(g + dt))`. Returns their nodes, both before their last step.
    fn strengths_and_decays(&self, run: &mut Run<'_>, g: NodeId<'static>) -> [NodeId<'static>; 2] {
        let DeltaNetSpec { heads, len, .. } = self.core.spec;
        let (t, ops) = (run.rows, run.kernels.ops());
        let input = [run.cur];
        let [betas, decays, ..] = self.parts(&mut run.buffers.k, t);
        let label = Label::product("kda_beta", Work::Projections, self.beta.matrix.described(), &input);
        let beta = run.watch.show(label, [t, heads, 1], betas);
        ops.sigmoid(betas);
        ops.add_bias(decays, &self.dt);
        ops.softplus(decays);
        decays.chunks_exact_mut(heads * len).for_each(|row| ops.mul(row, &self.a));
        let label = Label::new("kda_g1", NodeKind::Softplus, Work::Recurrence, std::slice::from_ref(&g));
        let decay = run.watch.show(label, [t, heads, len], decays);
        ops.exp(decays);
        [beta, decay]
    }
}

impl Mixer for Kda {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        let later = [&self.decay[1], &self.gate[1], &self.core.output];
        Box::new(self.inputs().chain(later).map(Linear::id))
    }

    fn rows(&self) -> RowSizes {
        let DeltaNetSpec { heads, len, .. } = self.core.spec;
        let (mixed, values) = (self.core.mixed(), self.core.spec.values());
        RowSizes { q: mixed, k: heads + values + 2 * len, v: mixed, gate: values, attended: values }
    }

    fn remember(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 3], ForwardError> {
        self.project(run, il)?;
        let [g, gate] = self.expand(run, il)?;
        let strengths = self.strengths_and_decays(run, g);
        let input = run.cur;
        let mixed = self.core.convolve(run, &[input])?;
        let mut inputs = self.core.normalise(run, mixed);
        inputs.extend(strengths);
        self.core.recur(run, self.core.spec.values(), &inputs)?;
        run.gate = gate;
        Ok([run.attended; 3])
    }

    /// Nothing is left: the recurrence has mixed.
    fn mix(&self, _: &mut Run<'_>, _: usize, _: bool, _: [NodeId<'static>; 3]) -> Result<(), ForwardError> {
        Ok(())
    }

    /// The output's norm times the sigmoid of the gate, projected.
    fn output(&self, run: &mut Run<'_>, il: usize, beside: bool) -> Result<NodeId<'static>, ForwardError> {
        let DeltaNetSpec { heads, len, .. } = self.core.spec;
        let (t, values, ops) = (run.rows, self.core.spec.values(), run.kernels.ops());
        let Buffers { attn, attn_gate, .. } = &mut *run.buffers;
        let (attn, gate) = (&mut attn[..t * values], &mut attn_gate[..t * values]);
        self.core.norm.apply(ops, attn);
        let label = self.core.norm.label(std::slice::from_ref(&run.attended));
        let normed = run.watch.show(label, [t, heads, len], attn);
        ops.sigmoid(gate);
        ops.mul(gate, attn);
        self.core.project_output(run, il, beside, normed)
    }
}
