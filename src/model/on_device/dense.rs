//! A dense feed-forward network on a device.

use crate::device::{DeviceActivations, DeviceError, DeviceOps, DeviceSlice};

use super::super::parts::{Activation, Dense};
use super::super::{Label, NodeId, Work};
use super::step::{Placed, place, rounding};
use super::{Step, Stop, There};

/// A network whose weights are there.
pub(super) struct Network<'m> {
    dense: &'m Dense,
    gate: Option<Placed<'m>>,
    up: Placed<'m>,
    down: Placed<'m>,
}

/// The operation of an activation; `None` where a device has none.
pub(super) fn operation(activation: Activation) -> Option<&'static str> {
    Some(match activation {
        Activation::SwiGlu => "swiglu",
        Activation::SwiGluClamped { .. } => "swiglu_clamped",
        Activation::SwiGluLimited { .. } => "swiglu_limited",
        Activation::SwiGluOai { .. } => "swiglu_oai",
        Activation::GeGlu | Activation::SparseGeGlu { deviations: None } => "geglu",
        Activation::Gelu => "gelu",
        Activation::ReluSquared => "relu_squared",
        Activation::Situ { .. } | Activation::SparseGeGlu { .. } => return None,
    })
}

/// As [`Activation::apply`].
pub(super) fn activate(
    ops: &DeviceOps,
    activation: Activation,
    gate: &DeviceSlice,
    up: &DeviceSlice,
) -> Result<(), DeviceError> {
    match activation {
        Activation::SwiGlu => ops.swiglu(gate, up),
        Activation::SwiGluClamped { limit } => ops.swiglu_clamped(gate, up, limit),
        Activation::SwiGluLimited { limit } => ops.swiglu_limited(gate, up, limit),
        Activation::SwiGluOai { alpha, limit } => ops.swiglu_oai(gate, up, alpha, limit),
        Activation::GeGlu | Activation::SparseGeGlu { .. } => ops.geglu(gate, up),
        Activation::Gelu => ops.copy(gate, up).and_then(|()| ops.gelu(gate)),
        Activation::ReluSquared => ops.copy(gate, up).and_then(|()| ops.relu_squared(gate)),
        Activation::Situ { .. } => unreachable!("no device has it"),
    }
}

impl<'m> Network<'m> {
    /// Where the device can do it and has the weights.
    pub fn find(there: There<'_>, dense: &'m Dense) -> Option<Network<'m>> {
        let rounded = dense.input_types().chain([dense.down.activation()]);
        let ops = rounded.map(rounding).chain([operation(dense.spec.activation)?]);
        if !there.has_all(ops) {
            return None;
        }
        let [gate, up, down] = place(there.store, [dense.gate.as_ref(), Some(&dense.up), Some(&dense.down)])?;
        Some(Network { dense, gate, up: up?, down: down? })
    }

    /// The network of `cur`, in place: as [`Dense::forward`].
    pub fn enqueue(&self, step: &mut Step<'_, '_>, cur: &DeviceSlice) -> Result<(), Stop> {
        let inputs = step.round(cur, step.run.embd, self.dense.input_types())?;
        step.run.cur = self.of_rounded(step, &inputs, cur)?;
        Ok(())
    }

    /// The same from an input that is rounded already: as [`Dense::forward_rounded`].
    pub fn of_rounded(
        &self,
        step: &mut Step<'_, '_>,
        inputs: &[DeviceActivations],
        out: &DeviceSlice,
    ) -> Result<NodeId<'static>, Stop> {
        let (ff, shape) = (self.dense.spec.ff, [step.run.rows, step.run.embd, 1]);
        let [gates, ups] = [step.rows("gate", ff)?, step.rows("up", ff)?];
        if let Some(gate) = &self.gate {
            step.project(inputs, gate, &gates)?;
        }
        step.project(inputs, &self.up, &ups)?;
        let hidden = self.activate(step, &gates, &ups)?;
        let down = self.down.linear;
        let rounded = step.round(&gates, ff, [down.activation()])?;
        step.project(&rounded, &self.down, out)?;
        let (weight, inputs, name) = (down.matrix.described(), [hidden], self.dense.spec.names.output);
        let product = if down.bias.is_none() { name } else { "ffn_down" };
        let mut node = step.show(Label::product(product, Work::Down, weight, &inputs), shape, out)?;
        if step.add_bias(down, out)? {
            let inputs = [node];
            node = step.show(Label::elementwise(name, Work::Down, &inputs), shape, out)?;
        }
        Ok(node)
    }

    /// Biases and activation of the hidden values, into the gates' place.
    fn activate(
        &self,
        step: &mut Step<'_, '_>,
        gates: &DeviceSlice,
        ups: &DeviceSlice,
    ) -> Result<NodeId<'static>, Stop> {
        let (ff, activation) = (self.dense.spec.ff, self.dense.spec.activation);
        let (input, shape) = ([step.run.cur], [step.run.rows, ff, 1]);
        let mut inputs = Vec::with_capacity(2);
        match &self.gate {
            Some(gate) if self.dense.fused => {
                let (gate, up) = (gate.linear, self.up.linear);
                let (parts, shape) = ([gates.clone(), ups.clone()], [step.run.rows, 2 * ff, 1]);
                let weight = gate.matrix.described().and(up.matrix.described());
                let label = Label::product("ffn_up", Work::GateUp, weight, &input);
                inputs.push(step.show_side_by_side(label, shape, &parts)?);
                if step.add_bias(gate, gates)? | step.add_bias(up, ups)? {
                    let label = Label::elementwise("ffn_up_b", Work::GateUp, &inputs);
                    inputs = vec![step.show_side_by_side(label, shape, &parts)?];
                }
            }
            gate => {
                let up = (Some(&self.up), ups, ["ffn_up", "ffn_up_b"]);
                for (placed, out, [product, biased]) in
                    [up, (gate.as_ref(), gates, ["ffn_gate", "ffn_gate_b"])]
                {
                    let Some(Placed { linear, .. }) = placed else { continue };
                    let weight = linear.matrix.described();
                    let label = Label::product(product, Work::GateUp, weight, &input);
                    let mut node = step.show(label, shape, out)?;
                    if step.add_bias(linear, out)? {
                        let from = [node];
                        node = step.show(Label::elementwise(biased, Work::GateUp, &from), shape, out)?;
                    }
                    inputs.push(node);
                }
            }
        }
        activate(step.ops(), activation, gates, ups)?;
        let label = Label::new(activation.node_name().0, activation.kind(), Work::Activation, &inputs);
        Ok(step.show(label, shape, gates)?)
    }
}
