//! Lightning attention on a device.

use crate::device::{DeviceScan, DeviceSlice};

use super::super::parts::{Lightning, LightningSpec};
use super::super::weights::Linear;
use super::super::{Label, NodeId, NodeKind, Work};
use super::block::of_norm;
use super::recurring::Recurring;
use super::states::States;
use super::step::{Placed, place, rounding};
use super::{Step, Stop, There};

/// Lightning attention whose weights are there.
pub(super) struct LightningNet<'m> {
    part: &'m Lightning,
    qkv: Placed<'m>,
    gate: Placed<'m>,
    output: Placed<'m>,
}

/// What all of it needs.
const OPS: [&str; 5] = ["silu", "copy_heads", "selective_scan", "sigmoid", "mul"];

impl<'m> LightningNet<'m> {
    /// Where the device can do it and has the weights.
    pub fn find(there: There<'_>, part: &'m Lightning) -> Option<LightningNet<'m>> {
        let linears = [&part.qkv, &part.gate, &part.output];
        let rounded = linears.map(|linear| rounding(linear.activation()));
        let ops = OPS.into_iter().chain([of_norm(&part.norm)]).chain(rounded);
        if !there.has_all(ops) || !there.ops.takes_scan(part.spec.len) {
            return None;
        }
        let [qkv, gate, output] = place(there.store, linears.map(Some))?;
        Some(LightningNet { part, qkv: qkv?, gate: gate?, output: output? })
    }
}

impl Recurring for LightningNet<'_> {
    fn slots(&self) -> Vec<usize> {
        vec![self.part.slot]
    }

    fn enqueue(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
        states: &States,
        out: &DeviceSlice,
    ) -> Result<(), Stop> {
        let gate = step.rows("attention_gate", self.part.spec.values())?;
        let (sorted, node) = self.project(step, cur, &gate)?;
        let attended = self.recur(step, states, &sorted, node)?;
        self.output(step, [&attended, &gate], out)
    }
}

impl LightningNet<'_> {
    /// The products of the block's input. Returns rows of all values, all keys and all queries, and the node
    /// that they had before they were sorted.
    fn project(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
        gate: &DeviceSlice,
    ) -> Result<(DeviceSlice, NodeId<'static>), Stop> {
        let LightningSpec { len, .. } = self.part.spec;
        let (t, values, input, ops) = (step.run.rows, self.part.spec.values(), [step.run.cur], step.ops());
        let [qkv, sorted] = [step.rows("qkv", 3 * values)?, step.rows("mixed", 3 * values)?];
        let types = [&self.qkv, &self.gate].map(|placed| placed.linear.activation());
        let rounded = step.round(cur, step.run.embd, types)?;
        step.project(&rounded, &self.qkv, &qkv)?;
        step.project(&rounded, &self.gate, gate)?;
        let product = |linear: &Linear, name| {
            Label::product(name, Work::Projections, linear.matrix.described(), &input)
        };
        let node = step.show(product(self.qkv.linear, "QKVcur"), [t, 3 * values, 1], &qkv)?;
        step.run.gate = step.show(product(self.gate.linear, "g"), [t, values, 1], gate)?;
        ops.silu(&qkv)?;
        let label = Label::new("QKVcur_silu", NodeKind::Silu, Work::Recurrence, std::slice::from_ref(&node));
        let node = step.show(label, [t, 3 * values, 1], &qkv)?;
        for i in 0..3 {
            let from = qkv.part(i * len, qkv.len() - i * len);
            ops.copy_heads(&sorted, [3 * values, (2 - i) * values, values], &from, [len, 3 * len])?;
        }
        Ok((sorted, node))
    }

    /// The recurrence of all sequences.
    fn recur(
        &self,
        step: &mut Step<'_, '_>,
        states: &States,
        sorted: &DeviceSlice,
        node: NodeId<'static>,
    ) -> Result<DeviceSlice, Stop> {
        let LightningSpec { heads, len, .. } = self.part.spec;
        let (t, values, ops) = (step.run.rows, self.part.spec.values(), step.ops());
        let [attended, steps] = [step.rows("attended", values)?, step.rows("strengths", heads)?];
        ops.write(&steps, &vec![1.0f32; t * heads])?;
        let [a, d] = [&self.part.rates, &self.part.passed].map(|values| step.there.constant(values));
        let scan = DeviceScan { head_len: len, groups: heads, state_len: len, a: a?, d: d? };
        step.recur(states, self.part.slot, |ops, rows, state| {
            let part = |x: &DeviceSlice, row: usize| x.part(rows.start * row, rows.len() * row);
            let (inputs, steps) = (part(sorted, 3 * values), part(&steps, heads));
            ops.selective_scan(&scan, &inputs, &steps, state, &part(&attended, values))
        })?;
        let inputs = [node];
        let label = Label::new("qkv_permuted", NodeKind::LinearAttention, Work::Recurrence, &inputs);
        step.run.attended = step.show(label, [t, heads, len], &attended)?;
        Ok(attended)
    }

    /// The output's norm times the sigmoid of the gate, projected.
    fn output(
        &self,
        step: &mut Step<'_, '_>,
        [attended, gate]: [&DeviceSlice; 2],
        out: &DeviceSlice,
    ) -> Result<(), Stop> {
        let (t, values, ops) = (step.run.rows, self.part.spec.values(), step.ops());
        let (norm, linear, inputs) = (&self.part.norm, self.output.linear, [step.run.attended]);
        step.norm(norm, attended)?;
        let normed = step.show(norm.label(&inputs), [t, values, 1], attended)?;
        ops.sigmoid(gate)?;
        let inputs = [step.run.gate];
        let label = Label::new("g_sigm", NodeKind::Sigmoid, Work::AttentionOutput, &inputs);
        let sigmoid = step.show(label, [t, values, 1], gate)?;
        ops.mul(gate, attended)?;
        let rounded = step.round(gate, values, [linear.activation()])?;
        step.project(&rounded, &self.output, out)?;
        let inputs = [sigmoid, normed];
        let label = Label::product("attn_out", Work::AttentionOutput, linear.matrix.described(), &inputs);
        step.run.cur = step.show(label, [t, step.run.embd, 1], out)?;
        Ok(())
    }
}
