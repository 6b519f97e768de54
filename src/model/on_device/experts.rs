//! A mixture of experts on a device: the CPU chooses by the router's products, of which there are few, and
//! the device does the rest, but for experts that are not there. Those the CPU computes meanwhile ([`Rest`]),
//! step by step: what they gave goes up and is added there in the order of rank, with the others'.

use crate::device::{DeviceActivations, DeviceSlice};
use crate::quant::ActivationType;

use super::super::parts::{Experts, Part, group};
use super::super::weights::{Matrix, described};
use super::super::{Label, NodeId, NodeKind, Work};
use super::block::of_norm;
use super::choice::{BySlot, Choice, Of, show};
use super::dense::{Network, activate, operation};
use super::rest::Rest;
use super::step::{Placed, place, rounding};
use super::{Step, Stop, There};

/// Experts whose router is there, and the network beside them.
pub(super) struct Routed<'m> {
    experts: &'m Experts,
    router: Placed<'m>,
    shared: Option<(Network<'m>, Option<Placed<'m>>)>,
}

/// What all of it needs.
const OPS: [&str; 6] = ["sum_weighted", "scale_rows", "mul_rows", "add_bias", "scale", "sigmoid"];

impl<'m> Routed<'m> {
    /// Where the device can do it and has the weights.
    pub fn find(there: There<'_>, experts: &'m Experts) -> Option<Routed<'m>> {
        let router = &experts.router.linear;
        let own = experts.router.own_input();
        let has_one_input = own.is_none() || experts.shared.is_none();
        let is_plain = experts.latent.is_none() && router.scale.is_none() && has_one_input;
        if !is_plain {
            return None;
        }
        let mut types = vec![router.activation()];
        let of_experts = experts.parts().flat_map(|part| part.matrices.iter().map(Matrix::activation));
        of_experts.for_each(|ty| {
            if !types.contains(&ty) {
                types.push(ty)
            }
        });
        let ops = types.into_iter().map(rounding).chain([operation(experts.activation)?]);
        let ops = ops.chain(own.map(|(norm, _)| of_norm(norm)));
        if !there.has_all(OPS.into_iter().chain(ops)) {
            return None;
        }
        let shared = match &experts.shared {
            Some(shared) => {
                let gate = shared.gate.as_ref().map(|(gate, _)| gate);
                let is_plain = gate.is_none_or(|gate| there.has_all([rounding(gate.activation())]));
                let [gate] = place(there.store, [gate])?;
                Some((Network::find(there, &shared.dense).filter(|_| is_plain)?, gate))
            }
            None => None,
        };
        let [router] = place(there.store, [Some(router)])?;
        Some(Routed { experts, router: router?, shared })
    }

    /// The networks of `cur`, in place: as [`Experts::forward`].
    pub fn enqueue(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
        next: Option<&Experts>,
    ) -> Result<(), Stop> {
        let shared = self.experts.shared.as_ref();
        let types = [self.router.linear.activation()].into_iter();
        let types = types.chain(shared.into_iter().flat_map(|shared| shared.input_types()));
        let (input, node) = self.router_input(step, cur)?;
        let inputs = step.round(&input, step.run.embd, types)?;
        let [chosen, weights] = self.route(step, &inputs, node)?;
        let choice = Choice::bring(step, self.experts)?;
        let rest = Rest::begin(step, self.experts, &choice, (cur, next))?;
        let beside = self.beside(step, &inputs)?;
        let hidden = self.hidden(step, cur, (&choice, &rest), [chosen, weights])?;
        let (down, node) = self.output(step, (&choice, &rest), [hidden, chosen])?;
        self.combine(step, &choice, down, [node, weights], cur)?;
        if let (Some((out, node)), Some(shared)) = (beside, shared) {
            step.ops().add(cur, &out)?;
            if let Some(scale) = shared.scale {
                step.ops().scale(cur, scale)?;
            }
            let (inputs, shape) = ([step.run.cur, node], [step.run.rows, step.run.embd, 1]);
            step.run.cur = step.show(Label::elementwise(shared.sum, Work::Sums, &inputs), shape, cur)?;
        }
        Ok(())
    }

    /// What the router reads, and its node: what the experts read, or what is made of the residual stream.
    fn router_input(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
    ) -> Result<(DeviceSlice, NodeId<'static>), Stop> {
        let Some((norm, factors)) = self.experts.router.own_input() else {
            return Ok((cur.clone(), step.run.cur));
        };
        let (embd, x, ops) = (step.run.embd, step.chain.x(), step.ops());
        let input = step.rows("router_input", embd)?;
        ops.copy(&input, &x)?;
        step.norm(norm, &input)?;
        ops.scale(&input, 1.0 / (embd as f32).sqrt())?;
        ops.mul_rows(&input, &step.there.constant(factors)?)?;
        let inputs = [step.run.x];
        let node = step.show(norm.label(&inputs), [step.run.rows, embd, 1], &input)?;
        Ok((input, node))
    }

    /// Brings the router's products to the host, which chooses.
    fn route(
        &self,
        step: &mut Step<'_, '_>,
        inputs: &[DeviceActivations],
        input: NodeId<'static>,
    ) -> Result<[NodeId<'static>; 2], Stop> {
        let (count, used) = self.experts.sizes();
        let products = step.rows("router", count)?;
        step.project(inputs, &self.router, &products)?;
        let n = products.len();
        step.ops().read(&products, &mut step.run.buffers.experts.probs[..n])?;
        let nodes = self.experts.router.route_products(step.run, input);
        group(&mut step.run.buffers.experts, step.run.rows, used);
        Ok(nodes)
    }

    /// The network that all tokens go through.
    fn beside(
        &self,
        step: &mut Step<'_, '_>,
        inputs: &[DeviceActivations],
    ) -> Result<Option<(DeviceSlice, NodeId<'static>)>, Stop> {
        let Some((network, gate)) = &self.shared else { return Ok(None) };
        let out = step.rows("shared", step.run.embd)?;
        let mut node = network.of_rounded(step, inputs, &out)?;
        let names = self.experts.shared.as_ref().and_then(|shared| shared.gate.as_ref());
        if let (Some(gate), Some((_, [product, sigmoid, gated]))) = (gate, names) {
            let (by, rows) = (step.rows("shared_gate", 1)?, step.run.rows);
            step.project(inputs, gate, &by)?;
            let (input, weight) = ([step.run.cur], gate.linear.matrix.described());
            let logit =
                step.show(Label::product(product, Work::Router, weight, &input), [rows, 1, 1], &by)?;
            step.ops().sigmoid(&by)?;
            let label = Label::new(*sigmoid, NodeKind::Sigmoid, Work::Router, std::slice::from_ref(&logit));
            let sigmoid = step.show(label, [rows, 1, 1], &by)?;
            step.ops().scale_rows(&out, &by)?;
            let inputs = [node, sigmoid];
            let label = Label::elementwise(*gated, Work::Sums, &inputs);
            node = step.show(label, [rows, step.run.embd, 1], &out)?;
        }
        Ok(Some((out, node)))
    }

    /// Gate and up of all chosen experts, then the activation, in [`Of::Gate`].
    fn hidden(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
        (choice, rest): (&Choice, &Rest<'_>),
        [chosen, weights]: [NodeId<'static>; 2],
    ) -> Result<NodeId<'static>, Stop> {
        let (experts, width) = (self.experts, self.experts.width);
        let gathered = choice.room(step, Of::Input, width)?;
        let by = if experts.weighs_input { &choice.by_slot } else { &choice.ones };
        let [tokens, by] = [&choice.tokens, by].map(|all| all.part(0, choice.slots_there));
        step.ops().sum_weighted(cur, &tokens, &by, width, &gathered.there())?;
        let mut input = step.run.cur;
        if experts.weighs_input {
            let inputs = [input, weights];
            let label = Label::elementwise("ffn_moe_weighted", Work::Sums, &inputs);
            input = show(step, label, &[&gathered], choice)?;
        }
        let types = of_parts(experts.gate.iter().chain([&experts.up]));
        let rounded = step.round_in_room(&gathered.there(), width, choice.slots.len(), types)?;
        let [gates, ups] = [choice.room(step, Of::Gate, experts.ff)?, choice.room(step, Of::Up, experts.ff)?];
        let parts = [experts.gate.as_ref().map(|part| (part, &gates)), Some((&experts.up, &ups))];
        for (part, out) in parts.into_iter().flatten() {
            self.products(step, part, choice, &rounded, out)?;
        }
        rest.hidden(step)?;
        let inputs = [input, chosen];
        let hidden = match &experts.gate {
            Some(gate) if experts.fused => {
                let (both, used) = ([&gates, &ups], experts.sizes().1);
                let weight = described(&gate.matrices, used).and(described(&experts.up.matrices, used));
                let label = Label::product("ffn_moe_gate_up", Work::GateUp, weight, &inputs);
                let mut node = show(step, label, &both, choice)?;
                let biased = [(gate, &gates), (&experts.up, &ups)];
                if add_biases(step, biased[0], choice)? | add_biases(step, biased[1], choice)? {
                    let inputs = [node];
                    let label = Label::elementwise("ffn_moe_gate_up_biased", Work::GateUp, &inputs);
                    node = show(step, label, &both, choice)?;
                }
                vec![node]
            }
            gate => {
                let names = ["ffn_moe_up", "ffn_moe_up_scaled", "ffn_moe_up_biased"];
                let up = (&experts.up, &ups);
                let mut nodes = vec![finished(step, up, choice, (names, Work::GateUp), &inputs)?];
                if let Some(gate) = gate {
                    let names = ["ffn_moe_gate", "ffn_moe_gate_scaled", "ffn_moe_gate_biased"];
                    let gate = (gate, &gates);
                    nodes.insert(0, finished(step, gate, choice, (names, Work::GateUp), &inputs)?);
                }
                nodes
            }
        };
        activate(step.ops(), experts.activation, &gates.there(), &ups.there())?;
        rest.activate(step);
        let label = Label::new(
            experts.activation.node_name().1,
            experts.activation.kind(),
            Work::Activation,
            &hidden,
        );
        Ok(show(step, label, &[&gates], choice)?)
    }

    /// The experts' output, by slot, and its node.
    fn output(
        &self,
        step: &mut Step<'_, '_>,
        (choice, rest): (&Choice, &Rest<'_>),
        inputs: [NodeId<'static>; 2],
    ) -> Result<(BySlot, NodeId<'static>), Stop> {
        let (experts, n) = (self.experts, choice.slots.len());
        let gates = choice.room(step, Of::Gate, experts.ff)?;
        let rounded = step.round_in_room(&gates.there(), experts.ff, n, of_parts([&experts.down]))?;
        let down = choice.room(step, Of::Down, experts.width)?;
        self.products(step, &experts.down, choice, &rounded, &down)?;
        rest.output(step)?;
        let names = ["ffn_moe_down", "ffn_moe_down_scaled", "ffn_moe_down_biased"];
        let node = finished(step, (&experts.down, &down), choice, (names, Work::Down), &inputs)?;
        Ok((down, node))
    }

    /// The outputs, weighted unless the inputs were, added in the order of rank, to `out`.
    fn combine(
        &self,
        step: &mut Step<'_, '_>,
        choice: &Choice,
        mut down: BySlot,
        [mut node, weights]: [NodeId<'static>; 2],
        out: &DeviceSlice,
    ) -> Result<(), Stop> {
        let (experts, width) = (self.experts, self.experts.width);
        down.bring_rest(step)?;
        let mut by = &choice.by_pair;
        if experts.weighs_input {
            by = &choice.ones;
        } else {
            if step.run.watch.active() {
                step.ops().scale_rows(&down.there(), &choice.by_slot)?;
                by = &choice.ones;
            }
            let inputs = [node, weights];
            let label = Label::elementwise("ffn_moe_weighted", Work::Sums, &inputs);
            node = show(step, label, &[&down], choice)?;
        }
        step.ops().sum_weighted(&down.there(), &choice.pairs, by, width, out)?;
        let (inputs, shape) = ([node], [step.run.rows, width, 1]);
        step.run.cur = step.show(Label::elementwise(experts.output, Work::Sums, &inputs), shape, out)?;
        Ok(())
    }

    /// Products of each expert that is there with its slots.
    fn products(
        &self,
        step: &Step<'_, '_>,
        part: &Part,
        choice: &Choice,
        rounded: &[DeviceActivations],
        out: &BySlot,
    ) -> Result<(), Stop> {
        let nth = self.experts.parts().position(|other| std::ptr::eq(other, part));
        let nth = nth.expect("a part of these experts");
        for used in &choice.there {
            let x = rounded.iter().find(|x| x.ty() == part.matrices[used.expert].activation());
            let x = x.expect("rounded to every type that the weights want");
            let (matrix, out) = (&used.matrices[nth], out.part(&used.slots));
            step.there.device.multiply(matrix, x, used.slots.clone(), &out)?;
        }
        Ok(())
    }
}

/// What the input of some parts has to be rounded to.
fn of_parts<'m>(parts: impl IntoIterator<Item = &'m Part>) -> Vec<ActivationType> {
    let mut types = Vec::new();
    for matrix in parts.into_iter().flat_map(|part| &part.matrices) {
        if !types.contains(&matrix.activation()) {
            types.push(matrix.activation());
        }
    }
    types
}

/// Adds each expert's bias, where they have some; says whether they have.
fn add_biases(step: &mut Step<'_, '_>, (part, out): (&Part, &BySlot), choice: &Choice) -> Result<bool, Stop> {
    let Some(biases) = &part.biases else { return Ok(false) };
    let biases = step.there.constant(biases)?;
    for used in &choice.there {
        step.ops().add_bias(&out.part(&used.slots), &biases.part(used.expert * out.row, out.row))?;
    }
    let (here, tokens) = out.of.here(&mut step.run.buffers.experts);
    part.add_biases(step.run.kernels.ops(), here, tokens);
    Ok(true)
}

/// Products, scaled (ggml names them then), then biased, as nodes.
fn finished(
    step: &mut Step<'_, '_>,
    (part, out): (&Part, &BySlot),
    choice: &Choice,
    ([product, scaled, biased], work): ([&'static str; 3], Work),
    inputs: &[NodeId<'static>],
) -> Result<NodeId<'static>, Stop> {
    let mut product = product;
    if let Some(scales) = &part.scales {
        product = scaled;
        for used in &choice.there {
            step.ops().scale(&out.part(&used.slots), scales[used.expert])?;
        }
        let (here, tokens) = out.of.here(&mut step.run.buffers.experts);
        part.scale(step.run.kernels.ops(), here, tokens);
    }
    let used = choice.slots.len() / step.run.rows;
    let label = Label::product(product, work, described(&part.matrices, used), inputs);
    let node = show(step, label, &[out], choice)?;
    if !add_biases(step, (part, out), choice)? {
        return Ok(node);
    }
    let inputs = [node];
    Ok(show(step, Label::elementwise(biased, work, &inputs), &[out], choice)?)
}
