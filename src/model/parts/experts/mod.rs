//! A mixture of experts: a router sends each token to a few of many small networks.
//!
//! Tokens are grouped by expert, so that an expert's weights are read once for all its tokens; what the
//! experts gave is kept apart and added in the order of rank, so that the result does not depend on the
//! grouping.

mod part;
mod shared;
mod shown;
mod slots;

use super::super::load::Loader;
use super::super::products::{Product, multiply};
use super::super::run::Run;
use super::super::state::ExpertBuffers;
use super::super::weights::{ExpertSet, Matrix};
use super::super::{Buffers, ForwardError, Label, ModelError, NodeId, Work};
use super::activation::Activation;
use super::expert_latents::{Latent, LatentExperts};
use super::routing::{Router, Routing};
use crate::quant::ActivationType;
use crate::store::{Guesses, Store, WeightId, zeroed};
pub(in crate::model) use part::Part;
use shared::Shared;
pub(in crate::model) use shared::SharedSpec;
use shown::BySlot;
use slots::add_in_order;
pub(in crate::model) use slots::{gather, group, products, take_out};

/// What a family says of the experts of a layer.
#[derive(Clone, Debug)]
pub(in crate::model) struct ExpertsSpec {
    /// Hidden length of an expert.
    pub ff: usize,
    pub activation: Activation,
    pub routing: Routing,
    /// Whether an expert's input is weighted, rather than its output.
    pub weighs_input: bool,
    pub shared: Option<SharedSpec>,
    /// Where the experts' input is another than the layer's.
    pub latent: Option<LatentExperts>,
    /// The node of the networks' input, for errors.
    pub input: &'static str,
    /// The node of the experts' output, without the shared network's.
    pub output: &'static str,
}

impl ExpertsSpec {
    /// Experts without a shared network.
    pub fn new(ff: usize, activation: Activation, routing: Routing) -> ExpertsSpec {
        ExpertsSpec {
            ff,
            activation,
            routing,
            weighs_input: false,
            shared: None,
            latent: None,
            input: "ffn_norm",
            output: "ffn_moe_out",
        }
    }
}

/// Experts of a layer.
#[derive(Debug)]
pub(in crate::model) struct Experts {
    pub ff: usize,
    pub(in crate::model) activation: Activation,
    pub(in crate::model) weighs_input: bool,
    input: &'static str,
    pub(in crate::model) output: &'static str,
    pub(in crate::model) router: Router,
    /// Elements of an expert's input and output: W, the embedding length but for latent ones.
    pub(in crate::model) width: usize,
    pub(in crate::model) latent: Option<Latent>,
    /// `[F, W]` an expert; none where the activation has no gate.
    pub(in crate::model) gate: Option<Part>,
    /// `[F, W]` an expert
    pub(in crate::model) up: Part,
    /// `[W, F]` an expert
    pub(in crate::model) down: Part,
    /// Whether gate and up are one tensor.
    pub(in crate::model) fused: bool,
    pub(in crate::model) shared: Option<Shared>,
}

impl Experts {
    /// Finds the weights of a layer: `ffn_gate_up_exps`, or `ffn_gate_exps` and `ffn_up_exps`, or the latter
    /// alone where there is no gate; `ffn_down_exps`; merged or one tensor an expert.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        embd: usize,
        spec: ExpertsSpec,
    ) -> Result<Experts, ModelError> {
        let ExpertsSpec { ff, activation, routing, weighs_input, shared, latent, input, output } = spec;
        let set = ExpertSet { layer: il, count: routing.count, used: routing.used };
        let router = Router::load(l, il, embd, routing)?;
        let latent = latent.map(|latent| Latent::load(l, il, embd, latent)).transpose()?;
        let width = latent.as_ref().map_or(embd, Latent::width);
        let merged = format!("blk.{il}.ffn_gate_up_exps.weight");
        let fused = activation.is_gated() && l.weights.contains(&merged);
        let (gate, up) = if fused {
            let [gate, up] = l.weights.stacked_experts(set, &merged, width, [ff; 2])?;
            (Some(gate), up)
        } else {
            let gated = activation.is_gated();
            let gate = gated.then(|| l.weights.experts(set, "gate", width, ff)).transpose()?;
            (gate, l.weights.experts(set, "up", width, ff)?)
        };
        let down = l.weights.experts(set, "down", ff, width)?;
        let gate = gate.map(|gate| Part::load(l, set, "gate", gate, ff, !fused)).transpose()?;
        let up = Part::load(l, set, "up", up, ff, !fused)?;
        let down = Part::load(l, set, "down", down, width, true)?;
        let shared = shared.map(|spec| Shared::load(l, il, embd, spec)).transpose()?;
        Ok(Experts {
            ff,
            activation,
            weighs_input,
            input,
            output,
            router,
            width,
            latent,
            gate,
            up,
            down,
            fused,
            shared,
        })
    }

    /// Experts and how many a token is sent to.
    pub fn sizes(&self) -> (usize, usize) {
        (self.router.spec.count, self.router.spec.used)
    }

    /// Hidden length of the shared network; 0 without one.
    pub fn shared_ff(&self) -> usize {
        self.shared.as_ref().map_or(0, Shared::ff)
    }

    pub fn weighs_input(&self) -> bool {
        self.weighs_input
    }

    /// What every token touches.
    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        let shared = self.shared.iter().flat_map(Shared::weights);
        let latent = self.latent.iter().flat_map(Latent::weights);
        std::iter::once(self.router.linear.id()).chain(shared).chain(latent)
    }

    pub(in crate::model) fn parts(&self) -> impl Iterator<Item = &Part> {
        self.gate.iter().chain([&self.up, &self.down])
    }

    /// What the experts' input has to be rounded to.
    pub(in crate::model) fn input_types(&self) -> impl Iterator<Item = ActivationType> {
        self.gate.iter().chain([&self.up]).flat_map(|part| &part.matrices).map(Matrix::activation)
    }

    /// The experts that a pass over so many tokens is as good as sure to use, before it is known which: all
    /// of them, or none.
    pub fn expected(&self, tokens: usize) -> impl Iterator<Item = WeightId> {
        let (count, used) = self.sizes();
        let all = if tokens * used >= 2 * count { count } else { 0 };
        self.parts().flat_map(move |part| part.matrices[..all].iter().map(|matrix| matrix.id))
    }

    /// The networks, from [`Buffers::cur`](super::super::Buffers) in place; `next` are those of the next
    /// layer, whose experts may be read ahead.
    pub fn forward(&self, run: &mut Run<'_>, il: usize, next: Option<&Experts>) -> Result<(), ForwardError> {
        self.round_input(run, il)?;
        let [chosen, weights] = self.router.route(run, il)?;
        group(&mut run.buffers.experts, run.rows, self.sizes().1);
        self.announce(run);
        if let Some(next) = next.filter(|_| run.makes_guesses()) {
            next.guess(run)?;
        }
        let shared = self.shared.as_ref().map(|shared| shared.forward(run, il)).transpose()?;
        if let Some(latent) = &self.latent {
            latent.enter(run, il, self.input_types())?;
        }
        let hidden = self.hidden(run, il, chosen, weights)?;
        let down = self.output(run, il, [hidden, chosen])?;
        self.combine(run, down, weights);
        if let Some(latent) = &self.latent {
            latent.leave(run, il, self.output)?;
        }
        if let (Some(node), Some(shared)) = (shared, &self.shared) {
            shared.add(run, node);
        }
        Ok(())
    }

    fn round_input(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let of_experts = self.input_types().filter(|_| self.latent.is_none());
        let types = std::iter::once(self.router.linear.activation())
            .chain(of_experts)
            .chain(self.latent.iter().map(Latent::activation))
            .chain(self.shared.iter().flat_map(Shared::input_types));
        let x = &run.buffers.cur[..run.rows * run.embd];
        run.buffers
            .inputs
            .prepare(run.kernels.ops(), x, run.embd, types)
            .map_err(ForwardError::not_finite(self.input, il))
    }

    /// Says that experts that have tokens come next.
    pub fn announce(&self, run: &Run<'_>) {
        let tokens = &run.buffers.experts.tokens;
        let chosen = self.parts().flat_map(|part| {
            part.matrices
                .iter()
                .zip(tokens)
                .filter(|(_, tokens)| !tokens.is_empty())
                .map(|(matrix, _)| matrix.id)
        });
        run.announce(chosen);
    }

    /// Reads ahead the experts that this layer's router would choose for the input of the layer before: the
    /// residual stream changes little from one to the next.
    fn guess(&self, run: &mut Run<'_>) -> Result<(), ForwardError> {
        let (t, (count, used)) = (run.rows, self.sizes());
        let router = &self.router.linear;
        let certain = self.expected(t).next().is_some();
        if certain {
            return Ok(());
        }
        let (kernels, store) = (run.kernels, run.store);
        let mut chosen = zeroed(&[t, used], "the guess of experts")?;
        let tokens = run.segments.iter().flat_map(|segment| segment.tokens);
        if self.router.look_up(tokens, &mut chosen) {
            self.announce_guess(store, &chosen, run.guesses);
            return Ok(());
        }
        if !store.is_resident(router.id()) {
            return Ok(());
        }
        let Some(inputs) = self.router.input(run) else { return Ok(()) };
        let mut logits = zeroed(&[t, count], "the guess of experts")?;
        let product = Product { matrix: &router.matrix, inputs, out: &mut logits };
        multiply(kernels, store, vec![product])?;
        self.router.guess(kernels.ops(), &mut logits, &mut chosen);
        self.announce_guess(store, &chosen, run.guesses);
        Ok(())
    }

    /// The same where the input of the layer before is not rounded for a router yet: there are no experts in
    /// it, or a device has them.
    pub fn guess_unrounded(&self, run: &mut Run<'_>) -> Result<(), ForwardError> {
        let Buffers { inputs, cur, .. } = &mut *run.buffers;
        let x = &cur[..run.rows * run.embd];
        // What is not finite is found by the network, whose input it is.
        match inputs.prepare(run.kernels.ops(), x, run.embd, [self.router.linear.activation()]) {
            Ok(()) => self.guess(run),
            Err(_) => Ok(()),
        }
    }

    fn announce_guess(&self, store: &Store, chosen: &[u32], guesses: Guesses) {
        let parts = self.parts();
        store.may_need(parts.flat_map(|part| chosen.iter().map(|&e| part.matrices[e as usize].id)), guesses);
    }

    /// Each pair's own input, the token's times the pair's weight, rounded.
    fn weigh_inputs(
        &self,
        run: &mut Run<'_>,
        il: usize,
        weights: NodeId<'static>,
    ) -> Result<NodeId<'static>, ForwardError> {
        let (t, used, embd) = (run.rows, self.sizes().1, self.width);
        let buffers = &mut *run.buffers;
        let ExpertBuffers { weighted, weights: by, .. } = &mut buffers.experts;
        let weighted = &mut weighted[..t * used * embd];
        for (pair, row) in weighted.chunks_exact_mut(embd).enumerate() {
            row.copy_from_slice(&buffers.cur[pair / used * embd..][..embd]);
            run.kernels.ops().scale(row, by[pair]);
        }
        let inputs = [run.cur, weights];
        let label = Label::elementwise("ffn_moe_weighted", Work::Sums, &inputs);
        let node = run.watch.show(label, [t, used, embd], weighted);
        buffers.hidden.prepare(run.kernels.ops(), weighted, embd, self.input_types()).map_err(|at| {
            ForwardError::NotFinite {
                node: "ffn_moe_weighted",
                layer: il,
                token: at.row / used,
                index: at.index,
            }
        })?;
        Ok(node)
    }

    /// Gate and up of all chosen experts in one parallel region, then the activation, in `gate`.
    fn hidden(
        &self,
        run: &mut Run<'_>,
        il: usize,
        chosen: NodeId<'static>,
        weights: NodeId<'static>,
    ) -> Result<NodeId<'static>, ForwardError> {
        let (t, (_, used), ff) = (run.rows, self.sizes(), self.ff);
        let input = if self.weighs_input { self.weigh_inputs(run, il, weights)? } else { run.cur };
        let buffers = &mut *run.buffers;
        let ExpertBuffers { gate, up, tokens, pairs, gathered, slots, .. } = &mut buffers.experts;
        let (gate, up) = (&mut gate[..t * used * ff], &mut up[..t * used * ff]);
        match self.weighs_input {
            true => gather(gathered, &buffers.hidden, pairs),
            false => gather(gathered, &buffers.inputs, tokens),
        }
        let mut outputs = vec![(&self.up.matrices, &mut *up)];
        if let Some(part) = &self.gate {
            outputs.insert(0, (&part.matrices, &mut *gate));
        }
        multiply(run.kernels, run.store, products(tokens, gathered, outputs))?;
        let ops = run.kernels.ops();
        let mut shown = BySlot { watch: &mut run.watch, slots, shape: [t, used, ff] };
        let inputs = [input, chosen];
        let hidden = match &self.gate {
            Some(part) if self.fused => {
                shown.fused(ops, [part, &self.up], [&mut *gate, &mut *up], tokens, &inputs, used)
            }
            part => {
                let names = ["ffn_moe_up", "ffn_moe_up_scaled", "ffn_moe_up_biased"];
                let mut nodes = vec![shown.part(ops, &self.up, names, Work::GateUp, up, tokens, &inputs)];
                if let Some(part) = part {
                    let names = ["ffn_moe_gate", "ffn_moe_gate_scaled", "ffn_moe_gate_biased"];
                    nodes.insert(0, shown.part(ops, part, names, Work::GateUp, gate, tokens, &inputs));
                }
                nodes
            }
        };
        self.activation.apply(ops, gate, up, ff);
        let (_, name) = self.activation.node_name();
        Ok(shown.node(Label::new(name, self.activation.kind(), Work::Activation, &hidden), gate))
    }

    /// The experts' output: `ffn_moe_down`, in `down`.
    fn output(
        &self,
        run: &mut Run<'_>,
        il: usize,
        inputs: [NodeId<'static>; 2],
    ) -> Result<NodeId<'static>, ForwardError> {
        let (t, (_, used), embd, ff) = (run.rows, self.sizes(), self.width, self.ff);
        let buffers = &mut *run.buffers;
        let ExpertBuffers { gate, down, tokens, by_slot, gathered, slots, .. } = &mut buffers.experts;
        let types = self.down.matrices.iter().map(Matrix::activation);
        let (_, node) = self.activation.node_name();
        buffers.hidden.prepare(run.kernels.ops(), &gate[..t * used * ff], ff, types).map_err(|at| {
            let token = slots.iter().position(|&slot| slot == at.row).unwrap_or(0) / used;
            ForwardError::NotFinite { node, layer: il, token, index: at.index }
        })?;
        gather(gathered, &buffers.hidden, by_slot);
        let down = &mut down[..t * used * embd];
        let outputs = vec![(&self.down.matrices, &mut *down)];
        multiply(run.kernels, run.store, products(tokens, gathered, outputs))?;
        let mut shown = BySlot { watch: &mut run.watch, slots, shape: [t, used, embd] };
        let names = ["ffn_moe_down", "ffn_moe_down_scaled", "ffn_moe_down_biased"];
        Ok(shown.part(run.kernels.ops(), &self.down, names, Work::Down, down, tokens, &inputs))
    }

    /// The outputs, weighted unless the inputs were, added in the order of rank.
    fn combine(&self, run: &mut Run<'_>, mut node: NodeId<'static>, weights: NodeId<'static>) {
        let (t, used, embd) = (run.rows, self.sizes().1, self.width);
        let ops = run.kernels.ops();
        let buffers = &mut *run.buffers;
        let ExpertBuffers { down, weights: by, slots, .. } = &mut buffers.experts;
        let (down, out) = (&mut down[..t * used * embd], &mut buffers.cur[..t * embd]);
        let inputs = [node, weights];
        let label = Label::elementwise("ffn_moe_weighted", Work::Sums, &inputs);
        let mut shown = BySlot { watch: &mut run.watch, slots, shape: [t, used, embd] };
        if self.weighs_input {
            add_in_order(ops, down, slots, used, out);
        } else if shown.watch.active() {
            for (&slot, &weight) in slots.iter().zip(&*by) {
                ops.scale(&mut down[slot * embd..][..embd], weight);
            }
            node = shown.node(label, down);
            add_in_order(ops, down, slots, used, out);
        } else {
            // The same bits in one reading.
            node = shown.node(label, down);
            ops.sum_weighted(down, slots, &by[..t * used], embd, out);
        }
        let inputs = [node];
        let label = Label::elementwise(self.output, Work::Sums, &inputs);
        run.cur = run.watch.show(label, [t, embd, 1], out);
    }
}
