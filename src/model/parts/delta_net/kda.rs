//! Kimi Delta Attention: a decay for each element of a key. Decays and gates come of the block's input, or of
//! a short vector made of it.

use super::super::super::load::Loader;
use super::super::super::products::project;
use super::super::super::run::Run;
use super::super::super::state::Buffers;
use super::super::super::weights::Linear;
use super::super::super::{ForwardError, Label, ModelError, NodeId, NodeKind, RowSizes, ScratchSizes, Work};
use super::super::{Mixer, Recurrence};
use super::{Core, DeltaNetSpec, Layout, Names};
use crate::kernels::ops::Ops;
use crate::store::WeightId;

/// Linear attention with a decay for each element of a key. As many heads of keys as of values.
#[derive(Debug)]
pub(in crate::model) struct Kda {
    pub core: Core,
    /// `attn_q`, `attn_k`, `attn_v`, or parts of `attn_qkv`.
    pub qkv: [Linear; 3],
    /// `ssm_beta`: `[heads, E]`
    pub beta: Linear,
    /// What decays come from, and the output's gate.
    pub decay: Path,
    pub gate: Path,
    /// Added to what decays come from: `ssm_dt`, `[heads * len]`.
    pub dt: Vec<f32>,
    /// Factor on it or on its softplus: `ssm_a`, one for each head, repeated: `[heads * len]`.
    pub a: Vec<f32>,
    pub kind: KdaKind,
}

/// What a family does in its own way.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct KdaKind {
    /// Tensors of the decays' path: two where it leads by way of a short vector; and of the gate's.
    pub decay: &'static [&'static str],
    pub gate: &'static [&'static str],
    /// Nodes of both, and of the logarithms of decays.
    pub names: [&'static str; 3],
    /// The node of the strengths' product, and that of its sigmoid where ggml names it.
    pub strengths: (&'static str, Option<&'static str>),
    /// Whether `ssm_a` is `[heads]` rather than `[1, heads]`.
    pub flat: bool,
    /// What becomes of `x`, what decays come from.
    pub rate: Rate,
}

/// The logarithms of decays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::model) enum Rate {
    /// `a softplus(x)`: a is negative.
    Softplus,
    /// `bound sigmoid(a x)`, the bound being negative.
    Bounded(f32),
    /// `bound sigmoid(-a x)`: a is negative too.
    BoundedByNegative(f32),
}

/// A product of the block's input, or two one after another.
#[derive(Debug)]
pub(in crate::model) struct Path {
    pub first: Linear,
    pub second: Option<Linear>,
}

impl Path {
    /// To so many values, by way of a head's where there are two tensors.
    fn load(
        l: &mut Loader<'_>,
        il: usize,
        tensors: &[&str],
        [embd, len, values]: [usize; 3],
    ) -> Result<Path, ModelError> {
        let mut linear = |part: &str, cols, rows| l.weights.unbiased(&format!("blk.{il}.{part}"), cols, rows);
        Ok(match tensors {
            [first, second] => {
                Path { first: linear(first, embd, len)?, second: Some(linear(second, len, values)?) }
            }
            all => Path { first: linear(all[0], embd, values)?, second: None },
        })
    }

    /// Where the first product goes: to its place among the results, or to that of the short vector.
    fn first<'b>(&self, result: &'b mut [f32], short: &'b mut [f32]) -> (&Linear, &'b mut [f32]) {
        (&self.first, if self.second.is_some() { short } else { result })
    }
}

const NAMES: Names = Names { convolved: None, normalised: None, output: "kda_out" };

impl Kda {
    /// Finds the weights of a layer.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        embd: usize,
        spec: DeltaNetSpec,
        kind: KdaKind,
    ) -> Result<Kda, ModelError> {
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
        let sizes = [embd, len, values];
        let (decay, gate) = (Path::load(l, il, kind.decay, sizes)?, Path::load(l, il, kind.gate, sizes)?);
        let dt = l.weights.vector(&name("ssm_dt.bias"), values)?;
        let a = l.weights.floats(&name("ssm_a"), &[1, heads][usize::from(kind.flat)..])?;
        let a = a.into_iter().flat_map(|a| std::iter::repeat_n(a, len)).collect();
        let dims = &[taps, 1, values][..];
        let convolutions = [("ssm_conv1d_q", dims), ("ssm_conv1d_k", dims), ("ssm_conv1d_v", dims)];
        let how = (Layout::Apart, NAMES);
        let core = Core::load(l, il, embd, spec, how, &convolutions, ("kda_normed", "attn_output"))?;
        Ok(Kda { core, qkv, beta, decay, gate, dt, a, kind })
    }

    /// The products of the block's input.
    pub fn inputs(&self) -> impl Iterator<Item = &Linear> {
        self.qkv.iter().chain([&self.beta, &self.decay.first, &self.gate.first])
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

    /// Computes them.
    fn project(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let (t, embd, values) = (run.rows, run.embd, self.core.spec.values());
        let Buffers { inputs, cur, q, k, attn_gate, .. } = &mut *run.buffers;
        inputs
            .prepare(run.kernels.ops(), &cur[..t * embd], embd, self.inputs().map(Linear::activation))
            .map_err(ForwardError::not_finite("attn_norm", il))?;
        let [beta, decay, of_decay, of_gate] = self.parts(k, t);
        let mut outputs: Vec<(&Linear, &mut [f32])> = Vec::with_capacity(6);
        outputs.push((&self.beta, beta));
        outputs.push(self.decay.first(decay, of_decay));
        outputs.push(self.gate.first(&mut attn_gate[..t * values], of_gate));
        if t > 0 {
            outputs.extend(self.qkv.iter().zip(q[..3 * t * values].chunks_exact_mut(t * values)));
        }
        project(run.kernels, run.store, inputs, &mut outputs)?;
        Ok(())
    }

    /// What decays come from, and gates: from their short vectors, where these are between.
    fn expand(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 2], ForwardError> {
        let (t, values) = (run.rows, self.core.spec.values());
        let input = [run.cur];
        let Buffers { hidden, k, attn_gate, .. } = &mut *run.buffers;
        let [_, decay, of_decay, of_gate] = self.parts(k, t);
        let [of_decays, of_gates, _] = self.kind.names;
        let steps = [
            (&self.decay, decay, of_decay, of_decays),
            (&self.gate, &mut attn_gate[..t * values], of_gate, of_gates),
        ];
        let mut nodes = [run.cur; 2];
        for (node, (path, out, short, name)) in nodes.iter_mut().zip(steps) {
            if let Some(linear) = &path.second {
                hidden
                    .prepare(run.kernels.ops(), short, self.core.spec.len, [linear.activation()])
                    .map_err(ForwardError::not_finite(name, il))?;
                project(run.kernels, run.store, hidden, &mut [(linear, &mut *out)])?;
            }
            let linear = path.second.as_ref().unwrap_or(&path.first);
            let label = Label::product(name, Work::Projections, linear.matrix.described(), &input);
            *node = run.watch.show(label, [t, values, 1], out);
        }
        Ok(nodes)
    }

    /// Strengths and decays. Returns their nodes, both before their last step.
    fn strengths_and_decays(&self, run: &mut Run<'_>, g: NodeId<'static>) -> [NodeId<'static>; 2] {
        let DeltaNetSpec { heads, len, .. } = self.core.spec;
        let (t, ops) = (run.rows, run.kernels.ops());
        let input = [run.cur];
        let [betas, decays, ..] = self.parts(&mut run.buffers.k, t);
        let (product, sigmoid) = self.kind.strengths;
        let label = Label::product(product, Work::Projections, self.beta.matrix.described(), &input);
        let mut beta = run.watch.show(label, [t, heads, 1], betas);
        ops.sigmoid(betas);
        if let Some(sigmoid) = sigmoid {
            let inputs = [beta];
            let label = Label::new(sigmoid, NodeKind::Sigmoid, Work::Recurrence, &inputs);
            beta = run.watch.show(label, [t, heads, 1], betas);
        }
        ops.add_bias(decays, &self.dt);
        let kind = self.kind.rate.apply(ops, decays, &self.a);
        let label = Label::new(self.kind.names[2], kind, Work::Recurrence, std::slice::from_ref(&g));
        let decay = run.watch.show(label, [t, heads, len], decays);
        ops.exp(decays);
        [beta, decay]
    }
}

impl Rate {
    /// Takes what decays come from to their logarithms; `a` is as long as a row.
    fn apply(self, ops: &Ops, x: &mut [f32], a: &[f32]) -> NodeKind {
        let weigh = |x: &mut [f32]| x.chunks_exact_mut(a.len()).for_each(|row| ops.mul(row, a));
        let bounded = |x: &mut [f32], bound| {
            ops.sigmoid(x);
            ops.scale(x, bound);
            NodeKind::Sigmoid
        };
        match self {
            Rate::Softplus => {
                ops.softplus(x);
                weigh(x);
                NodeKind::Softplus
            }
            Rate::Bounded(bound) => {
                weigh(x);
                bounded(x, bound)
            }
            Rate::BoundedByNegative(bound) => {
                weigh(x);
                ops.scale(x, -1.0);
                bounded(x, bound)
            }
        }
    }
}

impl Mixer for Kda {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        let later = [self.decay.second.as_ref(), self.gate.second.as_ref(), Some(&self.core.output)];
        Box::new(self.inputs().chain(later.into_iter().flatten()).map(Linear::id))
    }

    fn rows(&self) -> RowSizes {
        let DeltaNetSpec { heads, len, .. } = self.core.spec;
        let (mixed, values) = (self.core.mixed(), self.core.spec.values());
        RowSizes { q: mixed, k: heads + values + 2 * len, v: mixed, gate: values, attended: values }
    }

    fn scratch(&self) -> ScratchSizes {
        ScratchSizes {
            constants: self.core.constants() + self.dt.len() + self.a.len(),
            ..ScratchSizes::default()
        }
    }

    fn as_recurrence(&self) -> Option<Recurrence<'_>> {
        Some(Recurrence::Kda(self))
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
