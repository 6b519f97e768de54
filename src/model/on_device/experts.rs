//! A mixture of experts on a device, where all of a layer's are there: the CPU chooses by the router's
//! products, of which there are few, and the device does the rest.

use std::ops::Range;
use std::sync::Arc;

use crate::device::{DeviceActivations, DeviceMatrix, DeviceSlice};
use crate::quant::ActivationType;

use super::super::parts::{Experts, Part, group};
use super::super::state::ExpertBuffers;
use super::super::weights::{Matrix, described};
use super::super::{Label, NodeId, NodeKind, Work};
use super::dense::{Network, activate, operation};
use super::step::{Placed, place, rounding};
use super::{Step, Stop, There};

/// Experts whose weights are all there, and those of the network beside them.
pub(super) struct Routed<'m> {
    experts: &'m Experts,
    router: Placed<'m>,
    shared: Option<(Network<'m>, Option<Placed<'m>>)>,
}

/// What all of it needs.
const OPS: [&str; 5] = ["sum_weighted", "scale_rows", "add_bias", "scale", "sigmoid"];

/// The choice for the rows of a pass: pairs of a token and an expert, which lie by expert in slots.
struct Choice {
    /// Experts in use, and their slots.
    in_use: Vec<(usize, Range<usize>)>,
    /// The slot of each pair.
    slots: Vec<usize>,
    /// On the device, by slot: tokens and weights; by pair: slots and weights; ones.
    tokens: DeviceSlice,
    by_slot: DeviceSlice,
    pairs: DeviceSlice,
    by_pair: DeviceSlice,
    ones: DeviceSlice,
}

impl<'m> Routed<'m> {
    /// Where the device can do it and has the weights.
    pub fn find(there: There<'_>, experts: &'m Experts) -> Option<Routed<'m>> {
        let router = &experts.router.linear;
        let is_plain = experts.latent.is_none() && !experts.router.has_own_input() && router.scale.is_none();
        let ids = || experts.parts().flat_map(|part| part.matrices.iter().map(|matrix| matrix.id));
        if !is_plain || !there.store.are_on_device(ids()) {
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
    pub fn enqueue(&self, step: &mut Step<'_, '_>, cur: &DeviceSlice) -> Result<(), Stop> {
        let shared = self.experts.shared.as_ref();
        let types = [self.router.linear.activation()].into_iter();
        let types = types.chain(shared.into_iter().flat_map(|shared| shared.input_types()));
        let inputs = step.round(cur, step.run.embd, types)?;
        let [chosen, weights] = self.route(step, &inputs)?;
        let choice = self.choice(step)?;
        let beside = self.beside(step, &inputs)?;
        let hidden = self.hidden(step, cur, &choice, [chosen, weights])?;
        let down = self.output(step, &choice, [hidden, chosen])?;
        self.combine(step, &choice, [down, weights], cur)?;
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

    /// Brings the router's products to the host, which chooses.
    fn route(
        &self,
        step: &mut Step<'_, '_>,
        inputs: &[DeviceActivations],
    ) -> Result<[NodeId<'static>; 2], Stop> {
        let (count, used) = self.experts.sizes();
        let products = step.rows("router", count)?;
        step.project(inputs, &self.router, &products)?;
        let n = products.len();
        step.ops().read(&products, &mut step.run.buffers.experts.probs[..n])?;
        let input = step.run.cur;
        let nodes = self.experts.router.route_products(step.run, input);
        group(&mut step.run.buffers.experts, step.run.rows, used);
        Ok(nodes)
    }

    /// Brings the choice to the device.
    fn choice(&self, step: &mut Step<'_, '_>) -> Result<Choice, Stop> {
        let n = step.run.rows * self.experts.sizes().1;
        let ExpertBuffers { tokens, slots, weights, .. } = &step.run.buffers.experts;
        let (mut in_use, mut first) = (Vec::new(), 0);
        for (expert, tokens) in tokens.iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
            in_use.push((expert, first..first + tokens.len()));
            first += tokens.len();
        }
        let mut words: Vec<u32> = tokens.iter().flatten().map(|&token| token as u32).collect();
        let mut by_slot = vec![0; n];
        slots.iter().zip(weights).for_each(|(&slot, weight)| by_slot[slot] = weight.to_bits());
        words.extend(by_slot);
        words.extend(slots.iter().map(|&slot| slot as u32));
        words.extend(weights[..n].iter().map(|weight| weight.to_bits()));
        words.extend(vec![1f32.to_bits(); n]);
        let slots = slots.clone();
        let all = step.slice("choice", 5 * n)?;
        step.ops().write(&all, &words)?;
        let [tokens, by_slot, pairs, by_pair, ones] = [0, 1, 2, 3, 4].map(|i| all.part(i * n, n));
        Ok(Choice { in_use, slots, tokens, by_slot, pairs, by_pair, ones })
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

    /// Gate and up of all chosen experts, then the activation, in the slice `expert_gate`.
    fn hidden(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
        choice: &Choice,
        [chosen, weights]: [NodeId<'static>; 2],
    ) -> Result<NodeId<'static>, Stop> {
        let (experts, ff, width, n) = (self.experts, self.experts.ff, self.experts.width, choice.slots.len());
        let shape = [step.run.rows, experts.sizes().1];
        let gathered = step.slice("gathered", n * width)?;
        let by = if experts.weighs_input { &choice.by_slot } else { &choice.ones };
        step.ops().sum_weighted(cur, &choice.tokens, by, width, &gathered)?;
        let mut input = step.run.cur;
        if experts.weighs_input {
            let inputs = [input, weights];
            let label = Label::elementwise("ffn_moe_weighted", Work::Sums, &inputs);
            input = show(step, label, shape, std::slice::from_ref(&gathered), choice)?;
        }
        let rounded = step.round(&gathered, width, of_parts(experts.gate.iter().chain([&experts.up])))?;
        let [gates, ups] = [step.slice("expert_gate", n * ff)?, step.slice("expert_up", n * ff)?];
        let parts = [experts.gate.as_ref().map(|part| (part, &gates)), Some((&experts.up, &ups))];
        for (part, out) in parts.into_iter().flatten() {
            products(step, part, choice, &rounded, out)?;
        }
        let inputs = [input, chosen];
        let hidden = match &experts.gate {
            Some(gate) if experts.fused => {
                let used = shape[1];
                let weight = described(&gate.matrices, used).and(described(&experts.up.matrices, used));
                let both = [gates.clone(), ups.clone()];
                let label = Label::product("ffn_moe_gate_up", Work::GateUp, weight, &inputs);
                let mut node = show(step, label, shape, &both, choice)?;
                let biased = [(gate, &gates), (&experts.up, &ups)];
                if add_biases(step, biased[0], choice)? | add_biases(step, biased[1], choice)? {
                    let inputs = [node];
                    let label = Label::elementwise("ffn_moe_gate_up_biased", Work::GateUp, &inputs);
                    node = show(step, label, shape, &both, choice)?;
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
        activate(step.ops(), experts.activation, &gates, &ups)?;
        let label = Label::new(
            experts.activation.node_name().1,
            experts.activation.kind(),
            Work::Activation,
            &hidden,
        );
        show(step, label, shape, &[gates], choice)
    }

    /// The experts' output, by slot, in the slice `expert_down`.
    fn output(
        &self,
        step: &mut Step<'_, '_>,
        choice: &Choice,
        inputs: [NodeId<'static>; 2],
    ) -> Result<NodeId<'static>, Stop> {
        let (experts, n) = (self.experts, choice.slots.len());
        let gates = step.slice("expert_gate", n * experts.ff)?;
        let rounded = step.round(&gates, experts.ff, of_parts([&experts.down]))?;
        let down = step.slice("expert_down", n * experts.width)?;
        products(step, &experts.down, choice, &rounded, &down)?;
        let names = ["ffn_moe_down", "ffn_moe_down_scaled", "ffn_moe_down_biased"];
        finished(step, (&experts.down, &down), choice, (names, Work::Down), &inputs)
    }

    /// The outputs, weighted unless the inputs were, added in the order of rank, to `out`.
    fn combine(
        &self,
        step: &mut Step<'_, '_>,
        choice: &Choice,
        [mut node, weights]: [NodeId<'static>; 2],
        out: &DeviceSlice,
    ) -> Result<(), Stop> {
        let (experts, width) = (self.experts, self.experts.width);
        let down = step.slice("expert_down", choice.slots.len() * width)?;
        let mut by = &choice.by_pair;
        if experts.weighs_input {
            by = &choice.ones;
        } else {
            if step.run.watch.active() {
                step.ops().scale_rows(&down, &choice.by_slot)?;
                by = &choice.ones;
            }
            let inputs = [node, weights];
            let label = Label::elementwise("ffn_moe_weighted", Work::Sums, &inputs);
            let shape = [step.run.rows, experts.sizes().1];
            node = show(step, label, shape, std::slice::from_ref(&down), choice)?;
        }
        step.ops().sum_weighted(&down, &choice.pairs, by, width, out)?;
        let (inputs, shape) = ([node], [step.run.rows, width, 1]);
        step.run.cur = step.show(Label::elementwise(experts.output, Work::Sums, &inputs), shape, out)?;
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

/// Products of each expert in use with its slots.
fn products(
    step: &Step<'_, '_>,
    part: &Part,
    choice: &Choice,
    rounded: &[DeviceActivations],
    out: &DeviceSlice,
) -> Result<(), Stop> {
    let ids: Vec<_> = choice.in_use.iter().map(|(expert, _)| part.matrices[*expert].id).collect();
    let found: Option<Vec<Arc<DeviceMatrix>>> =
        step.there.store.find_on_device(ids.into_iter()).into_iter().collect();
    // One that has just given way to another.
    let found = found.ok_or(Stop::Wrong)?;
    for ((expert, slots), there) in choice.in_use.iter().zip(&found) {
        let matrix = &part.matrices[*expert];
        let x = rounded.iter().find(|x| x.ty() == matrix.activation());
        let x = x.expect("rounded to every type that the weights want");
        let out = rows_of(out, matrix.rows, slots);
        step.there.device.multiply(there, x, slots.clone(), &out)?;
    }
    Ok(())
}

/// Rows of some slots.
fn rows_of(x: &DeviceSlice, row: usize, slots: &Range<usize>) -> DeviceSlice {
    x.part(slots.start * row, slots.len() * row)
}

/// Adds each expert's bias, where they have some; says whether they have.
fn add_biases(
    step: &Step<'_, '_>,
    (part, out): (&Part, &DeviceSlice),
    choice: &Choice,
) -> Result<bool, Stop> {
    let Some(biases) = &part.biases else { return Ok(false) };
    let (biases, row) = (step.there.constant(biases)?, part.matrices[0].rows);
    for (expert, slots) in &choice.in_use {
        step.ops().add_bias(&rows_of(out, row, slots), &biases.part(expert * row, row))?;
    }
    Ok(true)
}

/// Products, scaled (ggml names them then), then biased, as nodes.
fn finished(
    step: &mut Step<'_, '_>,
    (part, out): (&Part, &DeviceSlice),
    choice: &Choice,
    ([product, scaled, biased], work): ([&'static str; 3], Work),
    inputs: &[NodeId<'static>],
) -> Result<NodeId<'static>, Stop> {
    let shape = [step.run.rows, choice.slots.len() / step.run.rows];
    let mut product = product;
    if let Some(scales) = &part.scales {
        product = scaled;
        for (expert, slots) in &choice.in_use {
            step.ops().scale(&rows_of(out, part.matrices[0].rows, slots), scales[*expert])?;
        }
    }
    let label = Label::product(product, work, described(&part.matrices, shape[1]), inputs);
    let node = show(step, label, shape, std::slice::from_ref(out), choice)?;
    if !add_biases(step, (part, out), choice)? {
        return Ok(node);
    }
    let inputs = [node];
    show(step, Label::elementwise(biased, work, &inputs), shape, std::slice::from_ref(out), choice)
}

/// Shows values that lie by slot in the order (token, rank), which ggml has, several side by side.
fn show(
    step: &mut Step<'_, '_>,
    label: Label<'_>,
    [rows, used]: [usize; 2],
    parts: &[DeviceSlice],
    choice: &Choice,
) -> Result<NodeId<'static>, Stop> {
    let values = parts.iter().map(|part| part.len() / (rows * used)).sum();
    Ok(step.show_in_order(label, [rows, used, values], parts, &choice.slots)?)
}
