//! Mamba's block on a device.

use crate::device::{DeviceScan, DeviceSlice};

use super::super::parts::Mamba;
use super::super::{Label, NodeId, NodeKind, Work};
use super::block::of_norm;
use super::recurring::{Recurring, conv_there};
use super::states::States;
use super::step::{Placed, place, rounding};
use super::{Step, Stop, There};

/// A block whose weights are there.
pub(super) struct ChannelScanning<'m> {
    part: &'m Mamba,
    /// x and z.
    projections: [Placed<'m>; 2],
    /// The steps at their rank, B and C.
    selections: [Placed<'m>; 3],
    dt: Placed<'m>,
    output: Placed<'m>,
}

/// What a token takes in and gives: steps, B and C.
struct Selected {
    dt: DeviceSlice,
    b: DeviceSlice,
    c: DeviceSlice,
    nodes: [NodeId<'static>; 3],
}

/// What all of it needs.
const OPS: [&str; 5] = ["causal_conv", "channel_scan", "softplus", "swiglu", "add_bias"];

impl<'m> ChannelScanning<'m> {
    /// Where the device can do it and has the weights.
    pub fn find(there: There<'_>, part: &'m Mamba) -> Option<ChannelScanning<'m>> {
        let ([x, z], [low, b, c]) = (&part.projections, &part.selections);
        let linears = [x, z, low, b, c, &part.dt, &part.output];
        let rounded = linears.iter().map(|linear| rounding(linear.activation()));
        let ops = OPS.into_iter().chain(rounded).chain(part.norms.iter().flatten().map(of_norm));
        if !there.has_all(ops) || !there.ops.takes_scan(part.spec.state_len) {
            return None;
        }
        let [x, z, low, b, c, dt, output] = place(there.store, linears.map(Some))?;
        let (projections, selections) = ([x?, z?], [low?, b?, c?]);
        Some(ChannelScanning { part, projections, selections, dt: dt?, output: output? })
    }

    /// x and z.
    fn project(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
    ) -> Result<([DeviceSlice; 2], [NodeId<'static>; 2]), Stop> {
        let inner = self.part.spec.inner;
        let outputs = [step.rows("mamba_x", inner)?, step.rows("mamba_z", inner)?];
        let types = self.projections.iter().map(|placed| placed.linear.activation());
        let inputs = step.round(cur, step.run.embd, types)?;
        for (placed, out) in self.projections.iter().zip(&outputs) {
            step.project(&inputs, placed, out)?;
        }
        let (input, mut nodes) = ([step.run.cur], [step.run.cur; 2]);
        for (i, (placed, name)) in self.projections.iter().zip(["mamba_x", "mamba_z"]).enumerate() {
            let weight = placed.linear.matrix.described();
            let label = Label::product(name, Work::Projections, weight, &input);
            nodes[i] = step.show(label, [step.run.rows, inner, 1], &outputs[i])?;
        }
        Ok((outputs, nodes))
    }

    /// The convolution with SiLU.
    fn convolve(
        &self,
        step: &mut Step<'_, '_>,
        (x, node): (&DeviceSlice, NodeId<'static>),
        states: &States,
    ) -> Result<(DeviceSlice, NodeId<'static>), Stop> {
        let inner = self.part.spec.inner;
        let convolved = step.rows("mamba_convolved", inner)?;
        let conv = conv_there(step, &self.part.conv)?;
        step.recur(states, self.part.window, |ops, rows, window| {
            let part = |x: &DeviceSlice| x.part(rows.start * inner, rows.len() * inner);
            ops.causal_conv(&conv, true, &part(x), window, &part(&convolved))
        })?;
        let inputs = [node];
        let label = Label::new("mamba_conv", NodeKind::Convolution, Work::Recurrence, &inputs);
        let node = step.show(label, [step.run.rows, inner, 1], &convolved)?;
        Ok((convolved, node))
    }

    /// Steps, B and C from what was convolved.
    fn select(
        &self,
        step: &mut Step<'_, '_>,
        (convolved, node): (&DeviceSlice, NodeId<'static>),
    ) -> Result<Selected, Stop> {
        let (rows, inner, rank) = (step.run.rows, self.part.spec.inner, self.part.spec.rank);
        let types = self.selections.iter().map(|placed| placed.linear.activation());
        let inputs = step.round(convolved, inner, types)?;
        let mut outputs = Vec::with_capacity(3);
        for (placed, name) in self.selections.iter().zip(["mamba_dt_low", "mamba_b", "mamba_c"]) {
            let out = step.rows(name, placed.linear.rows())?;
            step.project(&inputs, placed, &out)?;
            outputs.push((placed.linear, name, out));
        }
        let (input, mut nodes) = ([node], [node; 3]);
        for (i, &(linear, name, ref out)) in outputs.iter().enumerate() {
            let shape = [rows, linear.rows(), 1];
            let label = Label::product(name, Work::Projections, linear.matrix.described(), &input);
            nodes[i] = step.show(label, shape, out)?;
            if let Some(norm) = &self.part.norms[i] {
                step.norm(norm, out)?;
                nodes[i] = step.show(norm.label(&[nodes[i]]), shape, out)?;
            }
        }
        let linear = self.dt.linear;
        let [(.., low), (.., b), (.., c)] = &outputs[..] else { unreachable!("three selections") };
        let rounded = step.round(low, rank, [linear.activation()])?;
        let dt = step.rows("mamba_dt", inner)?;
        step.project(&rounded, &self.dt, &dt)?;
        step.add_bias(linear, &dt)?;
        let input = [nodes[0]];
        let label = Label::product("mamba_dt", Work::Projections, linear.matrix.described(), &input);
        nodes[0] = step.show(label, [rows, inner, 1], &dt)?;
        step.ops().softplus(&dt)?;
        Ok(Selected { dt, b: b.clone(), c: c.clone(), nodes })
    }

    /// The scan of every sequence.
    fn scan(
        &self,
        step: &mut Step<'_, '_>,
        (convolved, node): (&DeviceSlice, NodeId<'static>),
        selected: &Selected,
        states: &States,
    ) -> Result<(DeviceSlice, NodeId<'static>), Stop> {
        let (inner, n) = (self.part.spec.inner, self.part.spec.state_len);
        let y = step.rows("mamba_y", inner)?;
        let a = step.there.constant(&self.part.a)?;
        let d = step.there.constant(&self.part.d)?;
        let scan = DeviceScan { head_len: 1, groups: 1, state_len: n, a, d };
        let Selected { dt, b, c, nodes } = selected;
        step.recur(states, self.part.state, |ops, rows, state| {
            let part = |x: &DeviceSlice, row: usize| x.part(rows.start * row, rows.len() * row);
            let (wide, narrow) = ([convolved, dt].map(|x| part(x, inner)), [b, c].map(|x| part(x, n)));
            ops.channel_scan(&scan, wide.each_ref(), narrow.each_ref(), state, &part(&y, inner))
        })?;
        let inputs = [node, nodes[0], nodes[1], nodes[2]];
        let label = Label::new("mamba_y", NodeKind::Scan, Work::Recurrence, &inputs);
        let node = step.show(label, [step.run.rows, inner, 1], &y)?;
        Ok((y, node))
    }
}

impl Recurring for ChannelScanning<'_> {
    fn slots(&self) -> Vec<usize> {
        vec![self.part.window, self.part.state]
    }

    fn enqueue(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
        states: &States,
        out: &DeviceSlice,
    ) -> Result<(), Stop> {
        let ([x, z], [x_node, z_node]) = self.project(step, cur)?;
        let (convolved, node) = self.convolve(step, (&x, x_node), states)?;
        let selected = self.select(step, (&convolved, node))?;
        let (y, y_node) = self.scan(step, (&convolved, node), &selected, states)?;
        step.run.attended = y_node;
        step.ops().swiglu(&z, &y)?;
        let inputs = [z_node, y_node];
        let label = Label::new("mamba_gated", NodeKind::SwiGlu, Work::Recurrence, &inputs);
        step.run.gate = step.show(label, [step.run.rows, self.part.spec.inner, 1], &z)?;
        step.project_output((&z, step.run.gate), &self.output, self.part.spec.output, out)
    }
}
