//! The gated delta net on a device.

use crate::device::{DeviceActivations, DeviceSlice};

use super::super::super::parts::DeltaNet;
use super::super::super::parts::delta_net::{DeltaNetSpec, Projections, Strengths};
use super::super::super::weights::Linear;
use super::super::super::{Label, NodeId, NodeKind, Work};
use super::super::recurring::Recurring;
use super::super::states::States;
use super::super::step::{Placed, place, rounding};
use super::super::{Step, Stop, There};
use super::{DeltaCore, Ruled};

/// A gated delta net whose weights are there.
pub(in super::super) struct GatedNet<'m> {
    part: &'m DeltaNet,
    core: DeltaCore<'m>,
    /// Both or the one of each: [`Projections`] and [`Strengths`].
    projections: [Option<Placed<'m>>; 2],
    strengths: [Option<Placed<'m>>; 2],
}

/// Rows of strengths or of alphas, and their node.
type Of = (DeviceSlice, NodeId<'static>);

impl<'m> GatedNet<'m> {
    /// Where the device can do it and has the weights.
    pub fn find(there: There<'_>, part: &'m DeltaNet) -> Option<GatedNet<'m>> {
        let core = DeltaCore::find(there, &part.core)?;
        if !there.has_all(part.linears().map(|linear| rounding(linear.activation()))) {
            return None;
        }
        let projections = match &part.projections {
            Projections::Apart { qkv, z } => [Some(qkv), Some(z)],
            Projections::ByKeyHead(all) => [Some(all), None],
        };
        let strengths = match &part.strengths {
            Strengths::Apart { beta, alpha } => [Some(beta), Some(alpha)],
            Strengths::ByKeyHead(both) => [Some(both), None],
        };
        let [projections, strengths] = [place(there.store, projections)?, place(there.store, strengths)?];
        Some(GatedNet { part, core, projections, strengths })
    }
}

impl Recurring for GatedNet<'_> {
    fn slots(&self) -> Vec<usize> {
        self.core.slots()
    }

    fn enqueue(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
        states: &States,
        out: &DeviceSlice,
    ) -> Result<(), Stop> {
        let types = self.part.linears().map(Linear::activation);
        let rounded = step.round(cur, step.run.embd, types)?;
        let (qkv, gate, node) = self.project(step, &rounded)?;
        let (beta, alpha) = self.project_strengths(step, &rounded)?;
        let strengths = self.strengths_and_decays(step, &beta, &alpha)?;
        let mixed = step.rows("mixed", self.part.core.mixed())?;
        let inputs = self.core.convolve(step, states, [&qkv, &mixed], &[node])?;
        let mut inputs = self.core.normalise(step, &mixed, inputs)?;
        inputs.extend(strengths);
        let of = Ruled { mixed: &mixed, beta: &beta.0, decay: &alpha.0 };
        let attended = self.core.recur(step, states, &of, &inputs)?;
        self.output(step, [&attended, &gate], out)
    }
}

impl GatedNet<'_> {
    /// Queries, keys and values, and z, whose node is that of the gate.
    fn project(
        &self,
        step: &mut Step<'_, '_>,
        rounded: &[DeviceActivations],
    ) -> Result<(DeviceSlice, DeviceSlice, NodeId<'static>), Stop> {
        let core = &self.part.core;
        let (t, mixed, values) = (step.run.rows, core.mixed(), core.spec.values());
        let [q, z] = [step.rows("qkv", mixed)?, step.rows("attention_gate", values)?];
        let input = [step.run.cur];
        let node = match &self.projections {
            [Some(qkv), Some(of_z)] => {
                step.project(rounded, qkv, &q)?;
                step.project(rounded, of_z, &z)?;
                let weight = qkv.linear.matrix.described();
                let label = Label::product("linear_attn_qkv_mixed", Work::Projections, weight, &input);
                let node = step.show(label, [t, mixed, 1], &q)?;
                let weight = of_z.linear.matrix.described();
                let label = Label::product("z", Work::Projections, weight, &input);
                step.run.gate = step.show(label, [t, values, 1], &z)?;
                node
            }
            [all, _] => {
                // The place of what the convolution gives later.
                let Some(linear) = all else { unreachable!("one tensor or two") };
                let all = step.rows("mixed", mixed + values)?;
                step.project(rounded, linear, &all)?;
                let weight = linear.linear.matrix.described();
                let label = Label::product("linear_attn_mixed_qkvz", Work::Projections, weight, &input);
                let node = [step.show(label, [t, mixed + values, 1], &all)?];
                self.take_apart(step, &all, [&q, &z])?;
                let label = Label::elementwise("z", Work::Projections, &node);
                step.run.gate = step.show(label, [t, values, 1], &z)?;
                step.show(Label::elementwise("qkv_mixed", Work::Projections, &node), [t, mixed, 1], &q)?
            }
        };
        Ok((q, z, node))
    }

    /// Rows of `ssm_in` as queries, keys and values, and as gates.
    fn take_apart(
        &self,
        step: &Step<'_, '_>,
        all: &DeviceSlice,
        [mixed, z]: [&DeviceSlice; 2],
    ) -> Result<(), Stop> {
        let core = &self.part.core;
        let DeltaNetSpec { heads, key_heads, len, .. } = core.spec;
        let (row, keys, values) = (core.mixed(), core.spec.keys(), core.spec.values());
        let (each, ops) = (heads / key_heads * len, step.ops());
        let stride = 2 * (len + each);
        let behind = |at: usize| all.part(at, all.len() - at);
        ops.copy_heads(mixed, [row, 0, keys], all, [len, stride])?;
        ops.copy_heads(mixed, [row, keys, keys], &behind(len), [len, stride])?;
        ops.copy_heads(mixed, [row, 2 * keys, values], &behind(2 * len), [each, stride])?;
        Ok(ops.copy_parts(z, &behind(2 * len + each), each, stride)?)
    }

    /// Strengths and alphas, before what is made of them.
    fn project_strengths(
        &self,
        step: &mut Step<'_, '_>,
        rounded: &[DeviceActivations],
    ) -> Result<(Of, Of), Stop> {
        let DeltaNetSpec { heads, key_heads, .. } = self.part.core.spec;
        let [beta, alpha] = [step.rows("strengths", heads)?, step.rows("decays", heads)?];
        let (t, input) = (step.run.rows, [step.run.cur]);
        match &self.strengths {
            [Some(of_beta), Some(of_alpha)] => {
                step.project(rounded, of_beta, &beta)?;
                step.project(rounded, of_alpha, &alpha)?;
                let mut show = |name, placed: &Placed<'_>, out: &DeviceSlice| {
                    let weight = placed.linear.matrix.described();
                    step.show(Label::product(name, Work::Projections, weight, &input), [t, heads, 1], out)
                };
                let nodes = [show("beta", of_beta, &beta)?, show("alpha", of_alpha, &alpha)?];
                Ok(((beta, nodes[0]), (alpha, nodes[1])))
            }
            [both, _] => {
                let Some(linear) = both else { unreachable!("one tensor or two") };
                let both = step.rows("strengths_and_alphas", 2 * heads)?;
                step.project(rounded, linear, &both)?;
                let weight = linear.linear.matrix.described();
                let label = Label::product("linear_attn_mixed_ba", Work::Projections, weight, &input);
                let node = step.show(label, [t, 2 * heads, 1], &both)?;
                let each = heads / key_heads;
                step.ops().copy_parts(&beta, &both, each, 2 * each)?;
                step.ops().copy_parts(&alpha, &both.part(each, both.len() - each), each, 2 * each)?;
                Ok(((beta, node), (alpha, node)))
            }
        }
    }

    /// Strengths, and decays from alphas, in their places. Returns their nodes, that of the decays before the
    /// exponential.
    fn strengths_and_decays(
        &self,
        step: &mut Step<'_, '_>,
        (betas, beta): &Of,
        (decays, alpha): &Of,
    ) -> Result<[NodeId<'static>; 2], Stop> {
        let (ops, shape) = (step.ops(), [step.run.rows, self.part.core.spec.heads, 1]);
        ops.sigmoid(betas)?;
        let label =
            Label::new("beta_sigmoid", NodeKind::Sigmoid, Work::Recurrence, std::slice::from_ref(beta));
        let beta = step.show(label, shape, betas)?;
        ops.add_bias(decays, &step.there.constant(&self.part.dt)?)?;
        ops.softplus(decays)?;
        let label =
            Label::new("a_softplus", NodeKind::Softplus, Work::Recurrence, std::slice::from_ref(alpha));
        let inputs = [step.show(label, shape, decays)?];
        ops.mul_rows(decays, &step.there.constant(&self.part.a)?)?;
        let decay = step.show(Label::elementwise("gate", Work::Recurrence, &inputs), shape, decays)?;
        ops.exp(decays)?;
        Ok([beta, decay])
    }

    /// The output's norm times the SiLU or the sigmoid of z, projected.
    fn output(
        &self,
        step: &mut Step<'_, '_>,
        [attended, gate]: [&DeviceSlice; 2],
        out: &DeviceSlice,
    ) -> Result<(), Stop> {
        let (core, ops) = (&self.part.core, step.ops());
        step.norm(&core.norm, attended)?;
        if core.spec.sigmoid {
            ops.sigmoid(gate)?;
            ops.mul(gate, attended)?;
        } else {
            ops.swiglu(gate, attended)?;
        }
        let inputs = [step.run.attended, step.run.gate];
        let label = Label::new("final_output", NodeKind::GatedNorm, Work::AttentionOutput, &inputs);
        let node = step.show(label, [step.run.rows, core.spec.values(), 1], gate)?;
        self.core.project_output(step, gate, node, out)
    }
}
