//! Mamba 2's block on a device.

use crate::device::{DeviceScan, DeviceSlice};

use super::super::parts::Mamba2;
use super::super::{Label, NodeId, NodeKind, Work};
use super::block::of_norm;
use super::recurring::{Recurring, conv_there};
use super::states::States;
use super::step::{Placed, place, rounding};
use super::{Step, Stop, There};

/// A block whose weights are there.
pub(super) struct Scanning<'m> {
    part: &'m Mamba2,
    /// z, x with B and C, dt.
    projections: [Placed<'m>; 3],
    output: Placed<'m>,
}

/// What all of it needs.
const OPS: [&str; 5] = ["causal_conv", "selective_scan", "softplus", "swiglu", "add_bias"];

impl<'m> Scanning<'m> {
    /// Where the device can do it and has the weights.
    pub fn find(there: There<'_>, part: &'m Mamba2) -> Option<Scanning<'m>> {
        let [z, xbc, dt] = &part.projections;
        let linears = [z, xbc, dt, &part.output];
        let rounded = linears.iter().map(|linear| rounding(linear.activation()));
        let ops = OPS.into_iter().chain(rounded).chain(part.norm.as_ref().map(of_norm));
        if !there.has_all(ops) || !there.ops.takes_scan(part.spec.state_len) {
            return None;
        }
        let [z, xbc, dt, output] = place(there.store, linears.map(Some))?;
        Some(Scanning { part, projections: [z?, xbc?, dt?], output: output? })
    }

    pub fn slot(&self) -> usize {
        self.part.slot
    }

    /// All of the block of `cur` up to the gate, whose node goes to [`Run::gate`](super::super::run::Run).
    pub fn gated(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
        states: &States,
    ) -> Result<DeviceSlice, Stop> {
        let (rows, spec) = (step.run.rows, &self.part.spec);
        let ([z, xbc, dt], nodes) = self.project(step, cur)?;
        let y = self.scan(step, [&xbc, &dt], states)?;
        let (inputs, shape) = ([nodes[1], nodes[2]], [rows, spec.heads, spec.inner / spec.heads]);
        let label = Label::new("mamba2_y_add_d", NodeKind::Scan, Work::Recurrence, &inputs);
        let inputs = [nodes[0], step.show(label, shape, &y)?];
        step.ops().swiglu(&z, &y)?;
        let label = Label::new("mamba2_gated", NodeKind::SwiGlu, Work::Recurrence, &inputs);
        step.run.gate = step.show(label, [rows, spec.inner, 1], &z)?;
        Ok(z)
    }

    /// Norm and output projection of what was gated.
    pub fn output(
        &self,
        step: &mut Step<'_, '_>,
        gated: &DeviceSlice,
        out: &DeviceSlice,
    ) -> Result<(), Stop> {
        let spec = &self.part.spec;
        let mut node = step.run.gate;
        if let Some(norm) = &self.part.norm {
            step.norm(norm, gated)?;
            let shape = [step.run.rows, spec.groups, spec.inner / spec.groups];
            node = step.show(norm.label(&[node]), shape, gated)?;
        }
        step.project_output((gated, node), &self.output, spec.output, out)
    }

    /// z, x with B and C, and dt with its bias and softplus.
    fn project(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
    ) -> Result<([DeviceSlice; 3], [NodeId<'static>; 3]), Stop> {
        let rows = step.run.rows;
        if let Some(name) = self.part.spec.input {
            // The same norm of the same input.
            let inputs = [step.run.x];
            let label = Label::new(name, NodeKind::RmsNorm, Work::Norms, &inputs);
            step.run.cur = step.show(label, [rows, step.run.embd, 1], cur)?;
        }
        let mut outputs = Vec::with_capacity(3);
        for (placed, name) in self.projections.iter().zip(["mamba_z", "mamba_xbc", "mamba_dt"]) {
            outputs.push(step.rows(name, placed.linear.rows())?);
        }
        let types = self.projections.iter().map(|placed| placed.linear.activation());
        let inputs = step.round(cur, step.run.embd, types)?;
        for (placed, out) in self.projections.iter().zip(&outputs) {
            step.project(&inputs, placed, out)?;
        }
        let (input, mut nodes) = ([step.run.cur], [step.run.cur; 3]);
        let names = ["mamba2_z", "mamba2_xbc", "mamba2_dt"];
        for (i, (placed, out)) in self.projections.iter().zip(&outputs).enumerate() {
            let linear = placed.linear;
            step.add_bias(linear, out)?;
            let label = Label::product(names[i], Work::Projections, linear.matrix.described(), &input);
            nodes[i] = step.show(label, [rows, linear.rows(), 1], out)?;
        }
        let outputs: [DeviceSlice; 3] = outputs.try_into().expect("three projections");
        let dt = &outputs[2];
        step.ops().add_bias(dt, &step.there.constant(&self.part.dt_bias)?)?;
        step.ops().softplus(dt)?;
        Ok((outputs, nodes))
    }

    /// Convolution and scan of every sequence.
    fn scan(
        &self,
        step: &mut Step<'_, '_>,
        [xbc, dt]: [&DeviceSlice; 2],
        states: &States,
    ) -> Result<DeviceSlice, Stop> {
        let Mamba2 { spec, conv, a, d, .. } = self.part;
        let (inner, heads, channels) = (spec.inner, spec.heads, xbc.len() / step.run.rows);
        let [convolved, y] = [step.rows("mamba_convolved", channels)?, step.rows("mamba_y", inner)?];
        let scan = DeviceScan {
            head_len: inner / heads,
            groups: spec.groups,
            state_len: spec.state_len,
            a: step.there.constant(a)?,
            d: step.there.constant(d)?,
        };
        let window_len = conv.conv(true).window_len();
        let conv = conv_there(step, conv)?;
        step.recur(states, self.part.slot, |ops, rows, state| {
            let part = |x: &DeviceSlice, row: usize| x.part(rows.start * row, rows.len() * row);
            let window = state.part(0, window_len);
            let state = state.part(window_len, state.len() - window_len);
            let (x, xbc) = (part(xbc, channels), part(&convolved, channels));
            ops.causal_conv(&conv, true, &x, &window, &xbc)?;
            ops.selective_scan(&scan, &xbc, &part(dt, heads), &state, &part(&y, inner))
        })?;
        Ok(y)
    }
}

impl Recurring for Scanning<'_> {
    fn slots(&self) -> Vec<usize> {
        vec![self.slot()]
    }

    fn enqueue(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
        states: &States,
        out: &DeviceSlice,
    ) -> Result<(), Stop> {
        let gated = self.gated(step, cur, states)?;
        self.output(step, &gated, out)
    }
}
