//! The gated delta net: Qwen3-Next, Qwen 3.5 and later.

use super::super::super::load::Loader;
use super::super::super::products::project;
use super::super::super::run::Run;
use super::super::super::state::Buffers;
use super::super::super::weights::Linear;
use super::super::super::{ForwardError, Label, ModelError, NodeId, NodeKind, RowSizes, ScratchSizes, Work};
use super::super::{Mixer, Recurrence};
use super::{Core, DeltaNetSpec, Layout, Names};
use crate::store::WeightId;

/// Queries, keys and values, and the gate z.
#[derive(Debug)]
pub(in crate::model) enum Projections {
    /// `attn_qkv` and `attn_gate`.
    Apart { qkv: Linear, z: Linear },
    /// `ssm_in`: of each head of keys its query and key, then its heads of values and their gates.
    ByKeyHead(Linear),
}

/// Strengths beta, and alpha of the decays.
#[derive(Debug)]
pub(in crate::model) enum Strengths {
    /// `ssm_beta` and `ssm_alpha`.
    Apart { beta: Linear, alpha: Linear },
    /// `ssm_ba`: of each head of keys the strengths of its heads of values, then their alphas.
    ByKeyHead(Linear),
}

/// Which tensors a layer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) struct Merged {
    /// Whether `ssm_in` stands for `attn_qkv` and `attn_gate`.
    pub projections: bool,
    /// Whether `ssm_ba` stands for `ssm_beta` and `ssm_alpha`.
    pub strengths: bool,
}

/// Linear attention with one decay a head.
#[derive(Debug)]
pub(in crate::model) struct DeltaNet {
    pub core: Core,
    pub projections: Projections,
    pub strengths: Strengths,
    /// Added to alpha: `ssm_dt`, `[heads]`.
    pub dt: Vec<f32>,
    /// Factor on the softplus of alpha: `ssm_a`, `[heads]`, negative.
    pub a: Vec<f32>,
}

const NAMES: Names = Names {
    convolved: Some(["conv_output_raw", "conv_output_silu"]),
    normalised: Some(["q_conv_predelta", "k_conv_predelta"]),
    output: "linear_attn_out",
};

impl DeltaNet {
    /// Finds the weights of a layer.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        embd: usize,
        spec: DeltaNetSpec,
        merged: Merged,
    ) -> Result<DeltaNet, ModelError> {
        let name = |part: &str| format!("blk.{il}.{part}");
        let (heads, keys, values) = (spec.heads, spec.keys(), spec.values());
        let channels = 2 * keys + values;
        let projections = match merged.projections {
            true => Projections::ByKeyHead(l.weights.unbiased(&name("ssm_in"), embd, channels + values)?),
            false => Projections::Apart {
                qkv: l.weights.unbiased(&name("attn_qkv"), embd, channels)?,
                z: l.weights.unbiased(&name("attn_gate"), embd, values)?,
            },
        };
        let strengths = match merged.strengths {
            true => Strengths::ByKeyHead(l.weights.unbiased(&name("ssm_ba"), embd, 2 * heads)?),
            false => Strengths::Apart {
                beta: l.weights.unbiased(&name("ssm_beta"), embd, heads)?,
                alpha: l.weights.unbiased(&name("ssm_alpha"), embd, heads)?,
            },
        };
        let dt = l.weights.vector(&name("ssm_dt.bias"), heads)?;
        let a = l.weights.vector(&name("ssm_a"), heads)?;
        let convolution = ("ssm_conv1d", &[spec.taps, channels][..]);
        let how = (Layout::SideBySide, NAMES);
        let core = Core::load(l, il, embd, spec, how, &[convolution], ("final_output", "ssm_out"))?;
        Ok(DeltaNet { core, projections, strengths, dt, a })
    }

    /// All products of the block's input.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let projections = match &self.projections {
            Projections::Apart { qkv, z } => [Some(qkv), Some(z)],
            Projections::ByKeyHead(all) => [Some(all), None],
        };
        let strengths = match &self.strengths {
            Strengths::Apart { beta, alpha } => [Some(beta), Some(alpha)],
            Strengths::ByKeyHead(both) => [Some(both), None],
        };
        projections.into_iter().chain(strengths).flatten()
    }

    /// Computes them. Queries, keys and values go to the buffer of queries, z to that of
    /// the gate, strengths and alphas to that of keys, `[T][heads]` each.
    fn project(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 3], ForwardError> {
        let (t, embd, heads) = (run.rows, run.embd, self.core.spec.heads);
        let (mixed, values) = (self.core.mixed(), self.core.spec.values());
        let Buffers { inputs, cur, q, k, v, attn_gate, .. } = &mut *run.buffers;
        inputs
            .prepare(run.kernels.ops(), &cur[..t * embd], embd, self.linears().map(Linear::activation))
            .map_err(ForwardError::not_finite("attn_norm", il))?;
        let (beta, rest) = k.split_at_mut(t * heads);
        let (alpha, merged) = rest.split_at_mut(t * heads);
        let mut outputs: Vec<(&Linear, &mut [f32])> = Vec::with_capacity(4);
        match &self.projections {
            Projections::Apart { qkv, z } => {
                outputs.push((qkv, &mut q[..t * mixed]));
                outputs.push((z, &mut attn_gate[..t * values]));
            }
            Projections::ByKeyHead(all) => outputs.push((all, &mut v[..t * all.rows()])),
        }
        match &self.strengths {
            Strengths::Apart { beta: of_beta, alpha: of_alpha } => {
                outputs.push((of_beta, beta));
                outputs.push((of_alpha, alpha));
            }
            Strengths::ByKeyHead(both) => outputs.push((both, &mut merged[..t * both.rows()])),
        }
        project(run.kernels, run.store, inputs, &mut outputs)?;
        let qkv = self.show_projections(run);
        let [beta, alpha] = self.show_strengths(run);
        Ok([qkv, beta, alpha])
    }

    /// Shows queries, keys and values, and z; where they are one tensor, takes them apart first.
    fn show_projections(&self, run: &mut Run<'_>) -> NodeId<'static> {
        let (t, mixed, values) = (run.rows, self.core.mixed(), self.core.spec.values());
        let input = [run.cur];
        let Buffers { q, v, attn_gate, .. } = &mut *run.buffers;
        let (q, z) = (&mut q[..t * mixed], &mut attn_gate[..t * values]);
        match &self.projections {
            Projections::Apart { qkv, z: of_z } => {
                let weight = qkv.matrix.described();
                let label = Label::product("linear_attn_qkv_mixed", Work::Projections, weight, &input);
                let qkv = run.watch.show(label, [t, mixed, 1], q);
                let label = Label::product("z", Work::Projections, of_z.matrix.described(), &input);
                run.gate = run.watch.show(label, [t, values, 1], z);
                qkv
            }
            Projections::ByKeyHead(all) => {
                let (weight, all) = (all.matrix.described(), &mut v[..t * all.rows()]);
                let label = Label::product("linear_attn_mixed_qkvz", Work::Projections, weight, &input);
                let node = [run.watch.show(label, [t, mixed + values, 1], all)];
                self.take_apart(all, q, z);
                run.gate =
                    run.watch.show(Label::elementwise("z", Work::Projections, &node), [t, values, 1], z);
                run.watch.show(Label::elementwise("qkv_mixed", Work::Projections, &node), [t, mixed, 1], q)
            }
        }
    }

    /// Rows of `ssm_in` as queries, keys and values, and as gates.
    fn take_apart(&self, all: &[f32], mixed: &mut [f32], z: &mut [f32]) {
        let DeltaNetSpec { heads, key_heads, len, .. } = self.core.spec;
        let (keys, values) = (self.core.spec.keys(), self.core.spec.values());
        let each = heads / key_heads * len;
        let rows = mixed.chunks_exact_mut(2 * keys + values).zip(z.chunks_exact_mut(values));
        for ((mixed, z), all) in rows.zip(all.chunks_exact(2 * (keys + values))) {
            for (head, all) in all.chunks_exact(2 * (len + each)).enumerate() {
                let (query, all) = all.split_at(len);
                let (key, all) = all.split_at(len);
                let (value, gate) = all.split_at(each);
                mixed[head * len..][..len].copy_from_slice(query);
                mixed[keys + head * len..][..len].copy_from_slice(key);
                mixed[2 * keys + head * each..][..each].copy_from_slice(value);
                z[head * each..][..each].copy_from_slice(gate);
            }
        }
    }

    fn show_strengths(&self, run: &mut Run<'_>) -> [NodeId<'static>; 2] {
        let DeltaNetSpec { heads, key_heads, .. } = self.core.spec;
        let (t, input) = (run.rows, [run.cur]);
        let (beta, rest) = run.buffers.k.split_at_mut(t * heads);
        let (alpha, merged) = rest.split_at_mut(t * heads);
        match &self.strengths {
            Strengths::Apart { beta: of_beta, alpha: of_alpha } => {
                let mut show = |name, linear: &Linear, values: &mut [f32]| {
                    let label = Label::product(name, Work::Projections, linear.matrix.described(), &input);
                    run.watch.show(label, [t, heads, 1], values)
                };
                [show("beta", of_beta, beta), show("alpha", of_alpha, alpha)]
            }
            Strengths::ByKeyHead(both) => {
                let (weight, both) = (both.matrix.described(), &mut merged[..t * 2 * heads]);
                let label = Label::product("linear_attn_mixed_ba", Work::Projections, weight, &input);
                let node = run.watch.show(label, [t, 2 * heads, 1], both);
                let each = heads / key_heads;
                let parts = beta.chunks_exact_mut(each).zip(alpha.chunks_exact_mut(each));
                for ((beta, alpha), both) in parts.zip(both.chunks_exact(2 * each)) {
                    beta.copy_from_slice(&both[..each]);
                    alpha.copy_from_slice(&both[each..]);
                }
                [node; 2]
            }
        }
    }

    /// Strengths, and decays from alphas: `exp(a * softplus(alpha + dt))`. Returns their nodes, that of the
    /// decays before the exponential.
    fn strengths_and_decays(
        &self,
        run: &mut Run<'_>,
        [beta, alpha]: [NodeId<'static>; 2],
    ) -> [NodeId<'static>; 2] {
        let (t, heads, ops) = (run.rows, self.core.spec.heads, run.kernels.ops());
        let shape = [t, heads, 1];
        let (betas, rest) = run.buffers.k.split_at_mut(t * heads);
        let decays = &mut rest[..t * heads];
        ops.sigmoid(betas);
        let label =
            Label::new("beta_sigmoid", NodeKind::Sigmoid, Work::Recurrence, std::slice::from_ref(&beta));
        let beta = run.watch.show(label, shape, betas);
        ops.add_bias(decays, &self.dt);
        ops.softplus(decays);
        let inputs = [alpha];
        let label = Label::new("a_softplus", NodeKind::Softplus, Work::Recurrence, &inputs);
        let inputs = [run.watch.show(label, shape, decays)];
        decays.chunks_exact_mut(heads).for_each(|row| ops.mul(row, &self.a));
        let label = Label::elementwise("gate", Work::Recurrence, &inputs);
        let decay = run.watch.show(label, shape, decays);
        ops.exp(decays);
        [beta, decay]
    }
}

impl Mixer for DeltaNet {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        Box::new(self.linears().chain([&self.core.output]).map(Linear::id))
    }

    fn rows(&self) -> RowSizes {
        let (heads, values) = (self.core.spec.heads, self.core.spec.values());
        let mixed = self.core.mixed();
        // Tensors that are taken apart lie in the buffers of what comes later, or behind what they become.
        let v = if matches!(self.projections, Projections::ByKeyHead(_)) { mixed + values } else { mixed };
        let k = if matches!(self.strengths, Strengths::ByKeyHead(_)) { 4 * heads } else { 2 * heads };
        RowSizes { q: mixed, k, v, gate: values, attended: values }
    }

    fn scratch(&self) -> ScratchSizes {
        ScratchSizes {
            constants: self.core.constants() + self.dt.len() + self.a.len(),
            ..ScratchSizes::default()
        }
    }

    fn as_recurrence(&self) -> Option<Recurrence<'_>> {
        Some(Recurrence::DeltaNet(self))
    }

    fn remember(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 3], ForwardError> {
        let [qkv, beta, alpha] = self.project(run, il)?;
        let strengths = self.strengths_and_decays(run, [beta, alpha]);
        let mixed = self.core.convolve(run, &[qkv])?;
        let mut inputs = self.core.normalise(run, mixed);
        inputs.extend(strengths);
        self.core.recur(run, self.core.spec.heads, &inputs)?;
        Ok([run.attended; 3])
    }

    /// Nothing is left: the recurrence has mixed.
    fn mix(&self, _: &mut Run<'_>, _: usize, _: bool, _: [NodeId<'static>; 3]) -> Result<(), ForwardError> {
        Ok(())
    }

    /// The output's norm times the SiLU or the sigmoid of z, projected.
    fn output(&self, run: &mut Run<'_>, il: usize, beside: bool) -> Result<NodeId<'static>, ForwardError> {
        let (t, values, ops) = (run.rows, self.core.spec.values(), run.kernels.ops());
        let Buffers { attn, attn_gate, .. } = &mut *run.buffers;
        let (attn, gate) = (&mut attn[..t * values], &mut attn_gate[..t * values]);
        self.core.norm.apply(ops, attn);
        if self.core.spec.sigmoid {
            ops.sigmoid(gate);
            ops.mul(gate, attn);
        } else {
            ops.swiglu(gate, attn);
        }
        let inputs = [run.attended, run.gate];
        let label = Label::new("final_output", NodeKind::GatedNorm, Work::AttentionOutput, &inputs);
        let node = run.watch.show(label, [t, values, 1], gate);
        self.core.project_output(run, il, beside, node)
    }
}
