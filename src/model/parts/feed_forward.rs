//! A dense feed-forward network; also the one that all tokens share beside experts.

use super::super::load::Loader;
use super::super::products::project;
use super::super::run::{Run, add_bias, show_side_by_side};
use super::super::weights::Linear;
use super::super::{ForwardError, Label, ModelError, NodeId, Work};
use super::activation::Activation;
use crate::store::WeightId;

/// What a family says of a dense network.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct DenseSpec {
    /// Hidden length.
    pub ff: usize,
    pub activation: Activation,
    pub names: DenseNames,
}

impl DenseSpec {
    pub fn new(ff: usize, activation: Activation) -> DenseSpec {
        DenseSpec { ff, activation, names: DenseNames::default() }
    }
}

/// Tensors and nodes whose names differ.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct DenseNames {
    /// What follows `ffn_gate`, `ffn_up` and `ffn_down` in the tensors' names.
    pub suffix: &'static str,
    /// The node of the network's input, for errors.
    pub input: &'static str,
    pub output: &'static str,
}

impl Default for DenseNames {
    fn default() -> DenseNames {
        DenseNames { suffix: "", input: "ffn_norm", output: "ffn_out" }
    }
}

/// Where a network's result goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum Destination {
    Cur,
    Shared,
}

/// A dense network.
#[derive(Debug)]
pub(in crate::model) struct Dense {
    pub spec: DenseSpec,
    pub(in crate::model) gate: Option<Linear>,
    pub(in crate::model) up: Linear,
    pub(in crate::model) down: Linear,
    /// Whether gate and up are one tensor, `ffn_up`.
    pub(in crate::model) fused: bool,
}

impl Dense {
    /// Finds the weights of a layer; biases wherever there are any. Where the activation has a gate and
    /// `ffn_gate` is absent, `ffn_up` holds gate and up.
    pub fn load(l: &mut Loader<'_>, il: usize, embd: usize, spec: DenseSpec) -> Result<Dense, ModelError> {
        let name = |part: &str| format!("blk.{il}.ffn_{part}{}", spec.names.suffix);
        let gated = spec.activation.is_gated();
        let rows = |name: &str, l: &Loader<'_>| l.weights.rows_of(&format!("{name}.weight")).unwrap_or(0);
        let fused = gated
            && !l.weights.contains(&format!("{}.weight", name("gate")))
            && rows(&name("up"), l) == 2 * spec.ff;
        let (gate, up) = if fused {
            let [gate, up] = l.weights.stacked_linear(&name("up"), embd, [spec.ff; 2])?;
            (Some(gate), up)
        } else if gated {
            (
                Some(l.weights.linear(&name("gate"), embd, spec.ff)?),
                l.weights.linear(&name("up"), embd, spec.ff)?,
            )
        } else {
            (None, l.weights.linear(&name("up"), embd, spec.ff)?)
        };
        let down = l.weights.linear(&name("down"), spec.ff, embd)?;
        Ok(Dense { spec, gate, up, down, fused })
    }

    /// What every token touches, in the order of a pass.
    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        [self.gate.as_ref(), Some(&self.up), Some(&self.down)].into_iter().flatten().map(Linear::id)
    }

    /// What the input has to be rounded to.
    pub fn input_types(&self) -> impl Iterator<Item = crate::quant::ActivationType> {
        [self.gate.as_ref(), Some(&self.up)].into_iter().flatten().map(Linear::activation)
    }

    /// The network, from [`Buffers::cur`](super::super::Buffers) in place.
    pub fn forward(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let buffers = &mut *run.buffers;
        buffers
            .inputs
            .prepare(run.kernels.ops(), &buffers.cur[..run.rows * run.embd], run.embd, self.input_types())
            .map_err(ForwardError::not_finite(self.spec.names.input, il))?;
        run.cur = self.forward_rounded(run, il, Destination::Cur)?;
        Ok(())
    }

    /// The same from an input that is rounded already.
    pub fn forward_rounded(
        &self,
        run: &mut Run<'_>,
        il: usize,
        into: Destination,
    ) -> Result<NodeId<'static>, ForwardError> {
        let (t, ff) = (run.rows, self.spec.ff);
        let buffers = &mut *run.buffers;
        let (gates, ups) = (&mut buffers.gate[..t * ff], &mut buffers.up[..t * ff]);
        let mut outputs: Vec<(&Linear, &mut [f32])> = Vec::with_capacity(2);
        if let Some(gate) = &self.gate {
            outputs.push((gate, &mut *gates));
        }
        outputs.push((&self.up, &mut *ups));
        project(run.kernels, run.store, &buffers.inputs, &mut outputs)?;
        let hidden = self.activate(run);
        let buffers = &mut *run.buffers;
        let (node_name, _) = self.spec.activation.node_name();
        buffers
            .hidden
            .prepare(run.kernels.ops(), &buffers.gate[..t * ff], ff, [self.down.activation()])
            .map_err(ForwardError::not_finite(node_name, il))?;
        let out = match into {
            Destination::Cur => &mut buffers.cur,
            Destination::Shared => &mut buffers.shared,
        };
        let out = &mut out[..t * run.embd];
        project(run.kernels, run.store, &buffers.hidden, &mut [(&self.down, &mut *out)])?;
        let (weight, shape, inputs) = (self.down.matrix.described(), [t, run.embd, 1], [hidden]);
        if self.down.bias.is_none() {
            return Ok(run.watch.show(
                Label::product(self.spec.names.output, Work::Down, weight, &inputs),
                shape,
                out,
            ));
        }
        let product = run.watch.show(Label::product("ffn_down", Work::Down, weight, &inputs), shape, out);
        add_bias(run.kernels.ops(), &self.down, out);
        Ok(run.watch.show(Label::elementwise(self.spec.names.output, Work::Down, &[product]), shape, out))
    }

    /// Biases and activation of the hidden values, into the buffer of the gate.
    fn activate(&self, run: &mut Run<'_>) -> NodeId<'static> {
        let (t, ff, ops) = (run.rows, self.spec.ff, run.kernels.ops());
        let (gates, ups) = (&mut run.buffers.gate[..t * ff], &mut run.buffers.up[..t * ff]);
        let input = run.cur;
        let mut inputs = Vec::with_capacity(2);
        if let (Some(gate), true) = (&self.gate, self.fused) {
            let weight = gate.matrix.described().and(self.up.matrix.described());
            let parts = &mut [(gate, &mut *gates), (&self.up, &mut *ups)];
            let label = Label::product("ffn_up", Work::GateUp, weight, std::slice::from_ref(&input));
            inputs.push(show_side_by_side(&mut run.watch, label, t, parts));
            let biased = add_bias(ops, gate, parts[0].1) | add_bias(ops, &self.up, parts[1].1);
            if biased {
                let label = Label::elementwise("ffn_up_b", Work::GateUp, &inputs);
                inputs = vec![show_side_by_side(&mut run.watch, label, t, parts)];
            }
        } else {
            let names = [("ffn_up", "ffn_up_b"), ("ffn_gate", "ffn_gate_b")];
            let parts = [(Some(&self.up), &mut *ups), (self.gate.as_ref(), &mut *gates)];
            for ((linear, out), (product, biased)) in parts.into_iter().zip(names) {
                let Some(linear) = linear else { continue };
                let label = Label::product(
                    product,
                    Work::GateUp,
                    linear.matrix.described(),
                    std::slice::from_ref(&input),
                );
                let mut node = run.watch.show(label, [t, ff, 1], out);
                if add_bias(ops, linear, out) {
                    let from = [node];
                    node = run.watch.show(Label::elementwise(biased, Work::GateUp, &from), [t, ff, 1], out);
                }
                inputs.push(node);
            }
        }
        let (gates, ups) = (&mut run.buffers.gate[..t * ff], &run.buffers.up[..t * ff]);
        self.spec.activation.apply(ops, gates, ups, ff);
        let (name, _) = self.spec.activation.node_name();
        let label = Label::new(name, self.spec.activation.kind(), Work::Activation, &inputs);
        run.watch.show(label, [t, ff, 1], gates)
    }
}
