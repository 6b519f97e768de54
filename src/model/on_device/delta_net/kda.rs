//! Kimi Delta Attention on a device.

use crate::device::{DeviceError, DeviceOps, DeviceSlice};

use super::super::super::parts::delta_net::{DeltaNetSpec, Path};
use super::super::super::parts::{Kda, Rate};
use super::super::super::weights::Linear;
use super::super::super::{Label, NodeId, NodeKind, Work};
use super::super::recurring::Recurring;
use super::super::states::States;
use super::super::step::{Placed, place, rounding};
use super::super::{Step, Stop, There};
use super::{DeltaCore, Ruled};

/// Kimi Delta Attention whose weights are there.
pub(in super::super) struct KdaNet<'m> {
    part: &'m Kda,
    core: DeltaCore<'m>,
    qkv: [Placed<'m>; 3],
    beta: Placed<'m>,
    decay: PlacedPath<'m>,
    gate: PlacedPath<'m>,
}

/// A [`Path`] whose weights are there.
struct PlacedPath<'m> {
    first: Placed<'m>,
    second: Option<Placed<'m>>,
}

impl<'m> PlacedPath<'m> {
    fn find(there: There<'_>, path: &'m Path) -> Option<PlacedPath<'m>> {
        let [first, second] = place(there.store, [Some(&path.first), path.second.as_ref()])?;
        Some(PlacedPath { first: first?, second })
    }

    /// The matrix that gives its result.
    fn last(&self) -> &Placed<'m> {
        self.second.as_ref().unwrap_or(&self.first)
    }
}

impl<'m> KdaNet<'m> {
    /// Where the device can do it and has the weights.
    pub fn find(there: There<'_>, part: &'m Kda) -> Option<KdaNet<'m>> {
        let core = DeltaCore::find(there, &part.core)?;
        let later = [&part.decay.second, &part.gate.second].into_iter().flatten();
        if !there.has_all(part.inputs().chain(later).map(|linear| rounding(linear.activation()))) {
            return None;
        }
        let [q, k, v] = place(there.store, part.qkv.each_ref().map(Some))?;
        let [beta] = place(there.store, [Some(&part.beta)])?;
        let (decay, gate) = (PlacedPath::find(there, &part.decay)?, PlacedPath::find(there, &part.gate)?);
        Some(KdaNet { part, core, qkv: [q?, k?, v?], beta: beta?, decay, gate })
    }
}

impl Recurring for KdaNet<'_> {
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
        let core = &self.part.core;
        let (t, values, input) = (step.run.rows, core.spec.values(), step.run.cur);
        let DeltaNetSpec { heads, len, .. } = core.spec;
        let rounded = step.round(cur, step.run.embd, self.part.inputs().map(Linear::activation))?;
        let [qkv, mixed] = [step.rows("qkv", core.mixed())?, step.rows("mixed", core.mixed())?];
        let [beta, decay] = [step.rows("strengths", heads)?, step.rows("decays", values)?];
        let gate = step.rows("attention_gate", values)?;
        step.project(&rounded, &self.beta, &beta)?;
        for (i, placed) in self.qkv.iter().enumerate() {
            step.project(&rounded, placed, &qkv.part(i * t * values, t * values))?;
        }
        let [of_decays, of_gates, _] = self.part.kind.names;
        // Both short vectors before the rows that they are made from are rounded over.
        let [short_decay, short_gate] = [step.rows("short_decay", len)?, step.rows("short_gate", len)?];
        let paths =
            [(&self.decay, [&short_decay, &decay], of_decays), (&self.gate, [&short_gate, &gate], of_gates)];
        for (path, [short, out], _) in paths {
            step.project(&rounded, &path.first, if path.second.is_some() { short } else { out })?;
        }
        let [g, of_gate] = paths.map(|(path, places, name)| self.follow(step, path, places, name));
        let (g, of_gate) = (g?, of_gate?);
        let strengths = self.strengths_and_decays(step, [&beta, &decay], g)?;
        let inputs = self.core.convolve(step, states, [&qkv, &mixed], &[input])?;
        let mut inputs = self.core.normalise(step, &mixed, inputs)?;
        inputs.extend(strengths);
        let of = Ruled { mixed: &mixed, beta: &beta, decay: &decay };
        let attended = self.core.recur(step, states, &of, &inputs)?;
        step.run.gate = of_gate;
        self.output(step, [&attended, &gate], out)
    }
}

impl KdaNet<'_> {
    /// What decays or gates come of: from their short vector, where that is between.
    fn follow(
        &self,
        step: &mut Step<'_, '_>,
        path: &PlacedPath<'_>,
        [short, out]: [&DeviceSlice; 2],
        name: &'static str,
    ) -> Result<NodeId<'static>, Stop> {
        if let Some(second) = &path.second {
            let rounded = step.round(short, self.part.core.spec.len, [second.linear.activation()])?;
            step.project(&rounded, second, out)?;
        }
        let (input, weight) = ([step.run.cur], path.last().linear.matrix.described());
        let label = Label::product(name, Work::Projections, weight, &input);
        Ok(step.show(label, [step.run.rows, self.part.core.spec.values(), 1], out)?)
    }

    /// Strengths and decays, in place. Returns their nodes, both before their last step.
    fn strengths_and_decays(
        &self,
        step: &mut Step<'_, '_>,
        [betas, decays]: [&DeviceSlice; 2],
        g: NodeId<'static>,
    ) -> Result<[NodeId<'static>; 2], Stop> {
        let DeltaNetSpec { heads, len, .. } = self.part.core.spec;
        let (t, ops, kind) = (step.run.rows, step.ops(), &self.part.kind);
        let input = [step.run.cur];
        let (product, sigmoid) = kind.strengths;
        let weight = self.beta.linear.matrix.described();
        let label = Label::product(product, Work::Projections, weight, &input);
        let mut beta = step.show(label, [t, heads, 1], betas)?;
        ops.sigmoid(betas)?;
        if let Some(sigmoid) = sigmoid {
            let inputs = [beta];
            let label = Label::new(sigmoid, NodeKind::Sigmoid, Work::Recurrence, &inputs);
            beta = step.show(label, [t, heads, 1], betas)?;
        }
        ops.add_bias(decays, &step.there.constant(&self.part.dt)?)?;
        let of_rate = rate(ops, kind.rate, decays, &step.there.constant(&self.part.a)?)?;
        let label = Label::new(kind.names[2], of_rate, Work::Recurrence, std::slice::from_ref(&g));
        let decay = step.show(label, [t, heads, len], decays)?;
        ops.exp(decays)?;
        Ok([beta, decay])
    }

    /// The output's norm times the sigmoid of the gate, projected.
    fn output(
        &self,
        step: &mut Step<'_, '_>,
        [attended, gate]: [&DeviceSlice; 2],
        out: &DeviceSlice,
    ) -> Result<(), Stop> {
        let DeltaNetSpec { heads, len, .. } = self.part.core.spec;
        let norm = &self.part.core.norm;
        step.norm(norm, attended)?;
        let inputs = [step.run.attended];
        let normed = step.show(norm.label(&inputs), [step.run.rows, heads, len], attended)?;
        step.ops().sigmoid(gate)?;
        step.ops().mul(gate, attended)?;
        self.core.project_output(step, gate, normed, out)
    }
}

/// As [`Rate::apply`].
fn rate(ops: &DeviceOps, rate: Rate, x: &DeviceSlice, a: &DeviceSlice) -> Result<NodeKind, DeviceError> {
    let bounded = |bound: f32| {
        ops.sigmoid(x)?;
        ops.scale(x, bound)?;
        Ok(NodeKind::Sigmoid)
    };
    match rate {
        Rate::Softplus => {
            ops.softplus(x)?;
            ops.mul_rows(x, a)?;
            Ok(NodeKind::Softplus)
        }
        Rate::Bounded(bound) => {
            ops.mul_rows(x, a)?;
            bounded(bound)
        }
        Rate::BoundedByNegative(bound) => {
            ops.mul_rows(x, a)?;
            ops.scale(x, -1.0)?;
            bounded(bound)
        }
    }
}
