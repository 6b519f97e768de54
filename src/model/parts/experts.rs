//! A mixture of experts: a router sends each token to a few of many small networks.
//!
//! Tokens are grouped by expert, so that an expert's weights are read once for all its tokens; what the experts
//! gave is kept apart and added in the order of rank, so that the result does not depend on the grouping.

use super::super::load::Loader;
use super::super::observer::Watch;
use super::super::run::{Product, Run, add_bias, multiply, project};
use super::super::state::{ExpertBuffers, Inputs};
use super::super::weights::{ExpertSet, Linear, Matrix, described};
use super::super::{ForwardError, Label, ModelError, NodeId, NodeKind, NodeWeight, Work};
use super::activation::Activation;
use super::feed_forward::{Dense, DenseSpec, Destination};
use super::routing::{Router, Routing};
use crate::kernels::Kernels;
use crate::kernels::ops::{self, Ops};
use crate::store::{Store, StoreError, WeightId, zeroed};

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
            input: "ffn_norm",
            output: "ffn_moe_out",
        }
    }
}

/// What a family says of the network that all tokens go through beside the experts.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct SharedSpec {
    pub dense: DenseSpec,
    /// Whether its output is weighted by the sigmoid of `ffn_gate_inp_shexp`.
    pub gated: bool,
    /// The node of its sum with the experts' output.
    pub sum: &'static str,
    /// Factor on that sum.
    pub scale: Option<f32>,
}

/// The shared network.
#[derive(Debug)]
pub(in crate::model) struct Shared {
    dense: Dense,
    /// `[1, E]`
    gate: Option<Linear>,
    sum: &'static str,
    scale: Option<f32>,
}

/// One of the matrices that each expert has, with what follows the product.
#[derive(Debug)]
struct Part {
    matrices: Vec<Matrix>,
    /// A factor for each expert.
    scales: Option<Vec<f32>>,
    /// `[N][rows]`
    biases: Option<Vec<f32>>,
}

/// Experts of a layer.
#[derive(Debug)]
pub(in crate::model) struct Experts {
    pub ff: usize,
    activation: Activation,
    weighs_input: bool,
    input: &'static str,
    output: &'static str,
    router: Router,
    /// `[F, E]` an expert
    gate: Part,
    /// `[F, E]` an expert
    up: Part,
    /// `[E, F]` an expert
    down: Part,
    /// Whether gate and up are one tensor.
    fused: bool,
    shared: Option<Shared>,
}

impl Part {
    fn load(
        l: &mut Loader<'_>,
        set: ExpertSet,
        part: &str,
        matrices: Vec<Matrix>,
        rows: usize,
    ) -> Result<Part, ModelError> {
        let name = |what: &str| format!("blk.{}.ffn_{part}_exps.{what}", set.layer);
        let scales = l.weights.optional_vector(&name("scale"), set.count)?;
        let biases = l.weights.optional_expert_vectors(&name("bias"), rows, set.count)?;
        Ok(Part { matrices, scales, biases })
    }

    /// Factors on the products; `slots` of an expert lie side by side.
    fn scale(&self, ops: &Ops, out: &mut [f32], tokens: &[Vec<usize>]) {
        let Some(scales) = &self.scales else { return };
        let rows = self.matrices[0].rows;
        each_expert(out, tokens, rows, |expert, out| ops.scale(out, scales[expert]));
    }

    fn add_biases(&self, ops: &Ops, out: &mut [f32], tokens: &[Vec<usize>]) -> bool {
        let Some(biases) = &self.biases else { return false };
        let rows = self.matrices[0].rows;
        each_expert(out, tokens, rows, |expert, out| ops.add_bias(out, &biases[expert * rows..][..rows]));
        true
    }
}

/// Calls `f` with the rows of each expert in use.
fn each_expert(out: &mut [f32], tokens: &[Vec<usize>], rows: usize, mut f: impl FnMut(usize, &mut [f32])) {
    let mut rest = out;
    for (expert, tokens) in tokens.iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
        let (own, others) = rest.split_at_mut(tokens.len() * rows);
        f(expert, own);
        rest = others;
    }
}

impl Experts {
    /// Finds the weights of a layer: `ffn_gate_up_exps`, or `ffn_gate_exps` and `ffn_up_exps`; `ffn_down_exps`; merged or one
    /// tensor an expert.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        embd: usize,
        spec: ExpertsSpec,
    ) -> Result<Experts, ModelError> {
        let ExpertsSpec { ff, activation, routing, weighs_input, shared, input, output } = spec;
        let set = ExpertSet { layer: il, count: routing.count, used: routing.used };
        let router = Router::load(l, il, embd, routing)?;
        let merged = format!("blk.{il}.ffn_gate_up_exps.weight");
        let fused = l.weights.contains(&merged);
        let (gate, up) = if fused {
            let [gate, up] = l.weights.stacked_experts(set, &merged, embd, [ff; 2])?;
            (gate, up)
        } else {
            (l.weights.experts(set, "gate", embd, ff)?, l.weights.experts(set, "up", embd, ff)?)
        };
        let down = l.weights.experts(set, "down", ff, embd)?;
        let gate = Part::load(l, set, "gate", gate, ff)?;
        let up = Part::load(l, set, "up", up, ff)?;
        let down = Part::load(l, set, "down", down, embd)?;
        let shared = shared.map(|spec| Shared::load(l, il, embd, spec)).transpose()?;
        Ok(Experts { ff, activation, weighs_input, input, output, router, gate, up, down, fused, shared })
    }

    /// Experts and how many a token is sent to.
    pub fn sizes(&self) -> (usize, usize) {
        (self.router.spec.count, self.router.spec.used)
    }

    /// Hidden length of the shared network; 0 without one.
    pub fn shared_ff(&self) -> usize {
        self.shared.as_ref().map_or(0, |shared| shared.dense.spec.ff)
    }

    pub fn weighs_input(&self) -> bool {
        self.weighs_input
    }

    /// What every token touches.
    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        let shared = self.shared.iter();
        let shared = shared.flat_map(|s| s.dense.weights().chain(s.gate.as_ref().map(Linear::id)));
        std::iter::once(self.router.linear.id()).chain(shared)
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        [&self.gate, &self.up, &self.down].into_iter()
    }

    /// The experts that a pass over so many tokens is as good as sure to use, before it is known which: all of
    /// them, or none.
    pub fn expected(&self, tokens: usize) -> impl Iterator<Item = WeightId> {
        let (count, used) = self.sizes();
        let all = if tokens * used >= 2 * count { count } else { 0 };
        self.parts().flat_map(move |part| part.matrices[..all].iter().map(|matrix| matrix.id))
    }

    /// The networks, from [`Buffers::cur`](super::super::Buffers) in place; `next` are those of the next layer, whose experts
    /// may be read ahead.
    pub fn forward(&self, run: &mut Run<'_>, il: usize, next: Option<&Experts>) -> Result<(), ForwardError> {
        self.round_input(run, il)?;
        let [chosen, weights] = self.router.route(run)?;
        group(&mut run.buffers.experts, run.rows, self.sizes().1);
        self.announce(run);
        if let Some(next) = next.filter(|_| run.guess_experts) {
            next.guess(run)?;
        }
        let shared = self.shared.as_ref().map(|shared| shared.forward(run, il)).transpose()?;
        let hidden = self.hidden(run, il, chosen, weights)?;
        let down = self.output(run, il, [hidden, chosen])?;
        self.combine(run, down, weights);
        if let (Some(node), Some(shared)) = (shared, &self.shared) {
            shared.add(run, node);
        }
        Ok(())
    }

    fn round_input(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let of_experts = self.gate.matrices.iter().chain(&self.up.matrices);
        let shared = self.shared.iter();
        let types = std::iter::once(self.router.linear.activation())
            .chain(of_experts.map(Matrix::activation))
            .chain(shared.flat_map(|s| s.dense.input_types().chain(s.gate.as_ref().map(Linear::activation))));
        let x = &run.buffers.cur[..run.rows * run.embd];
        run.buffers.inputs.prepare(x, run.embd, types).map_err(ForwardError::not_finite(self.input, il))
    }

    fn announce(&self, run: &Run<'_>) {
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

    /// Reads ahead the experts that this layer's router would choose for the input of the layer before: the residual
    /// stream changes little from one to the next.
    fn guess(&self, run: &mut Run<'_>) -> Result<(), ForwardError> {
        let (t, (count, used)) = (run.rows, self.sizes());
        let inputs = &run.buffers.inputs;
        let router = &self.router.linear;
        let certain = self.expected(t).next().is_some();
        if certain || !run.store.is_resident(router.id()) || !inputs.has(router.activation()) {
            return Ok(());
        }
        let mut logits = zeroed(&[t, count], "the guess of experts")?;
        let product = Product { matrix: &router.matrix, inputs, out: &mut logits };
        multiply(run.kernels, run.store, vec![product])?;
        add_bias(run.kernels.ops(), router, &mut logits);
        let mut chosen = zeroed(&[t, used], "the guess of experts")?;
        for (logits, chosen) in logits.chunks_exact(count).zip(chosen.chunks_exact_mut(used)) {
            ops::top_k(logits, chosen);
        }
        let parts = self.parts();
        run.store.may_need(parts.flat_map(|part| chosen.iter().map(|&e| part.matrices[e as usize].id)));
        Ok(())
    }

    /// Each pair's own input, the token's times the pair's weight, rounded.
    fn weigh_inputs(
        &self,
        run: &mut Run<'_>,
        il: usize,
        weights: NodeId<'static>,
    ) -> Result<NodeId<'static>, ForwardError> {
        let (t, used, embd) = (run.rows, self.sizes().1, run.embd);
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
        let types = self.gate.matrices.iter().chain(&self.up.matrices).map(Matrix::activation);
        buffers.hidden.prepare(weighted, embd, types).map_err(|at| ForwardError::NotFinite {
            node: "ffn_moe_weighted",
            layer: il,
            token: at.row / used,
            index: at.index,
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
        let outputs = &mut [(&self.gate.matrices, &mut *gate), (&self.up.matrices, &mut *up)];
        products(run.kernels, run.store, tokens, gathered, outputs)?;
        let ops = run.kernels.ops();
        let mut shown = BySlot { watch: &mut run.watch, slots, shape: [t, used, ff] };
        let inputs = [input, chosen];
        let hidden = if self.fused {
            let parts = [&self.gate, &self.up];
            shown.fused(ops, parts, [&mut *gate, &mut *up], tokens, &inputs, used)
        } else {
            let up_node = shown.part(
                ops,
                &self.up,
                ["ffn_moe_up", "ffn_moe_up_biased"],
                Work::GateUp,
                up,
                tokens,
                &inputs,
            );
            let names = ["ffn_moe_gate", "ffn_moe_gate_biased"];
            vec![shown.part(ops, &self.gate, names, Work::GateUp, gate, tokens, &inputs), up_node]
        };
        self.activation.apply(ops, gate, up);
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
        let (t, (_, used), embd, ff) = (run.rows, self.sizes(), run.embd, self.ff);
        let buffers = &mut *run.buffers;
        let ExpertBuffers { gate, down, tokens, by_slot, gathered, slots, .. } = &mut buffers.experts;
        let types = self.down.matrices.iter().map(Matrix::activation);
        let (_, node) = self.activation.node_name();
        buffers.hidden.prepare(&gate[..t * used * ff], ff, types).map_err(|at| {
            let token = slots.iter().position(|&slot| slot == at.row).unwrap_or(0) / used;
            ForwardError::NotFinite { node, layer: il, token, index: at.index }
        })?;
        gather(gathered, &buffers.hidden, by_slot);
        let down = &mut down[..t * used * embd];
        products(run.kernels, run.store, tokens, gathered, &mut [(&self.down.matrices, &mut *down)])?;
        let mut shown = BySlot { watch: &mut run.watch, slots, shape: [t, used, embd] };
        let names = ["ffn_moe_down", "ffn_moe_down_biased"];
        Ok(shown.part(run.kernels.ops(), &self.down, names, Work::Down, down, tokens, &inputs))
    }

    /// The outputs, weighted unless the inputs were, added in the order of rank.
    fn combine(&self, run: &mut Run<'_>, mut node: NodeId<'static>, weights: NodeId<'static>) {
        let (t, used, embd) = (run.rows, self.sizes().1, run.embd);
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

/// Each token's rows of `x`, added in the order of rank.
fn add_in_order(ops: &Ops, x: &[f32], slots: &[usize], used: usize, out: &mut [f32]) {
    let n = out.len() / (slots.len() / used).max(1);
    for (out, slots) in out.chunks_exact_mut(n.max(1)).zip(slots.chunks_exact(used)) {
        out.copy_from_slice(&x[slots[0] * n..][..n]);
        for slot in &slots[1..] {
            ops.add(out, &x[slot * n..][..n]);
        }
    }
}

impl Shared {
    fn load(l: &mut Loader<'_>, il: usize, embd: usize, spec: SharedSpec) -> Result<Shared, ModelError> {
        let dense = Dense::load(l, il, embd, spec.dense)?;
        let gate = match spec.gated {
            true => Some(l.weights.linear(&format!("blk.{il}.ffn_gate_inp_shexp"), embd, 1)?),
            false => None,
        };
        Ok(Shared { dense, gate, sum: spec.sum, scale: spec.scale })
    }

    /// The network from the rounded input, to the buffer of its own.
    fn forward(&self, run: &mut Run<'_>, il: usize) -> Result<NodeId<'static>, ForwardError> {
        let mut node = self.dense.forward_rounded(run, il, Destination::Shared)?;
        let Some(gate) = &self.gate else { return Ok(node) };
        let t = run.rows;
        let input = run.cur;
        let buffers = &mut *run.buffers;
        let sums = &mut buffers.experts.sums[..t];
        project(run.kernels, run.store, &buffers.inputs, &mut [(gate, &mut *sums)])?;
        let weight = gate.matrix.described();
        let label = Label::product("ffn_shexp_gate_inp", Work::Router, weight, std::slice::from_ref(&input));
        let logit = run.watch.show(label, [t, 1, 1], sums);
        run.kernels.ops().sigmoid(sums);
        let label =
            Label::new("ffn_shexp_gate", NodeKind::Sigmoid, Work::Router, std::slice::from_ref(&logit));
        let by = run.watch.show(label, [t, 1, 1], sums);
        let out = &mut buffers.shared[..t * run.embd];
        for (row, &by) in out.chunks_exact_mut(run.embd).zip(&*sums) {
            run.kernels.ops().scale(row, by);
        }
        let inputs = [node, by];
        let label = Label::elementwise("ffn_shexp_out", Work::Sums, &inputs);
        node = run.watch.show(label, [t, run.embd, 1], out);
        Ok(node)
    }

    /// Adds its output to the experts'.
    fn add(&self, run: &mut Run<'_>, node: NodeId<'static>) {
        let n = run.rows * run.embd;
        let cur = &mut run.buffers.cur[..n];
        run.kernels.ops().add(cur, &run.buffers.shared[..n]);
        if let Some(scale) = self.scale {
            run.kernels.ops().scale(cur, scale);
        }
        let inputs = [run.cur, node];
        let label = Label::elementwise(self.sum, Work::Sums, &inputs);
        run.cur = run.watch.show(label, [run.rows, run.embd, 1], cur);
    }
}

/// Groups the chosen (token, expert) pairs by expert: tokens, pairs and slots of each expert, the slot of each pair.
fn group(experts: &mut ExpertBuffers, t: usize, used: usize) {
    let ExpertBuffers { chosen, tokens, pairs, by_slot, slots, .. } = experts;
    let chosen = &chosen[..t * used];
    for lists in [&mut *tokens, &mut *pairs, &mut *by_slot] {
        lists.iter_mut().for_each(Vec::clear);
    }
    for (pair, &expert) in chosen.iter().enumerate() {
        tokens[expert as usize].push(pair / used);
        pairs[expert as usize].push(pair);
    }
    let mut first = 0;
    for (tokens, by_slot) in tokens.iter().zip(&mut *by_slot) {
        by_slot.extend(first..first + tokens.len());
        first += tokens.len();
    }
    let mut next: Vec<usize> = by_slot.iter().map(|s| s.first().copied().unwrap_or(0)).collect();
    slots.clear();
    slots.extend(chosen.iter().map(|&expert| {
        next[expert as usize] += 1;
        next[expert as usize] - 1
    }));
}

/// Each expert's rows of an input.
fn gather(gathered: &mut [Inputs], from: &Inputs, rows: &[Vec<usize>]) {
    for (to, rows) in gathered.iter_mut().zip(rows).filter(|(_, rows)| !rows.is_empty()) {
        to.gather(from, rows);
    }
}

/// Products of each expert in use with its rows. Outputs are by slot.
fn products(
    kernels: &'static Kernels,
    store: &Store,
    tokens: &[Vec<usize>],
    gathered: &[Inputs],
    outputs: &mut [(&Vec<Matrix>, &mut [f32])],
) -> Result<(), StoreError> {
    let mut products = Vec::new();
    for (part, out) in outputs {
        let mut rest = &mut **out;
        for e in (0..part.len()).filter(|&e| !tokens[e].is_empty()) {
            let (out, others) = rest.split_at_mut(tokens[e].len() * part[e].rows);
            rest = others;
            products.push(Product { matrix: &part[e], inputs: &gathered[e], out });
        }
    }
    multiply(kernels, store, products)
}

/// Shows values that lie by slot in the order (token, rank), which ggml has.
struct BySlot<'s, 'a> {
    watch: &'s mut Watch<'a>,
    slots: &'s [usize],
    /// `[T, U, n]`
    shape: [usize; 3],
}

impl BySlot<'_, '_> {
    fn node(&mut self, label: Label<'_>, values: &mut [f32]) -> NodeId<'static> {
        self.several(label, &mut [values])
    }

    /// Values of several buffers side by side.
    fn several(&mut self, label: Label<'_>, buffers: &mut [&mut [f32]]) -> NodeId<'static> {
        let [t, used, n] = self.shape;
        let slots = self.slots;
        let shape = [t, used, n * buffers.len()];
        let buffers = std::cell::RefCell::new(buffers);
        self.watch.show_scattered(
            label,
            shape,
            |shown| {
                for slot in slots {
                    buffers
                        .borrow()
                        .iter()
                        .for_each(|buffer| shown.extend_from_slice(&buffer[slot * n..][..n]));
                }
            },
            |shown| {
                let mut rows = shown.chunks_exact(n);
                for slot in slots {
                    for buffer in buffers.borrow_mut().iter_mut() {
                        buffer[slot * n..][..n].copy_from_slice(rows.next().expect("a row for each slot"));
                    }
                }
            },
        )
    }

    /// A product of the experts, scaled, then biased.
    #[allow(clippy::too_many_arguments)] // a step over buffers that are borrowed one by one
    fn part(
        &mut self,
        ops: &Ops,
        part: &Part,
        [product, biased]: [&'static str; 2],
        work: Work,
        out: &mut [f32],
        tokens: &[Vec<usize>],
        inputs: &[NodeId<'static>],
    ) -> NodeId<'static> {
        part.scale(ops, out, tokens);
        let weight = described(&part.matrices, self.shape[1]);
        let node = self.node(Label::product(product, work, weight, inputs), out);
        if !part.add_biases(ops, out, tokens) {
            return node;
        }
        self.node(Label::elementwise(biased, work, &[node]), out)
    }

    /// Gate and up of one tensor: their nodes have both side by side.
    fn fused(
        &mut self,
        ops: &Ops,
        parts: [&Part; 2],
        [gate, up]: [&mut [f32]; 2],
        tokens: &[Vec<usize>],
        inputs: &[NodeId<'static>],
        used: usize,
    ) -> Vec<NodeId<'static>> {
        let [a, b] = parts.map(|part| described(&part.matrices, used));
        let weight = NodeWeight { ty: a.ty, bytes: a.bytes + b.bytes, touched: a.touched + b.touched };
        let label = Label::product("ffn_moe_gate_up", Work::GateUp, weight, inputs);
        let mut node = self.several(label, &mut [&mut *gate, &mut *up]);
        let biased = [(parts[0], &mut *gate), (parts[1], &mut *up)]
            .into_iter()
            .fold(false, |any, (part, out)| part.add_biases(ops, out, tokens) || any);
        if biased {
            let inputs = [node];
            let label = Label::elementwise("ffn_moe_gate_up_biased", Work::GateUp, &inputs);
            node = self.several(label, &mut [gate, up]);
        }
        vec![node]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_grouped_by_expert_and_found_by_rank() {
        let mut experts = ExpertBuffers {
            chosen: vec![2, 0, 1, 2, 2, 0],
            tokens: vec![Vec::new(); 4],
            pairs: vec![Vec::new(); 4],
            by_slot: vec![Vec::new(); 4],
            ..ExpertBuffers::default()
        };
        group(&mut experts, 3, 2);
        assert_eq!(experts.tokens, [vec![0, 2], vec![1], vec![0, 1, 2], vec![]]);
        assert_eq!(experts.pairs, [vec![1, 5], vec![2], vec![0, 3, 4], vec![]]);
        assert_eq!(experts.by_slot, [vec![0, 1], vec![2], vec![3, 4, 5], vec![]]);
        assert_eq!(experts.slots, [3, 0, 2, 4, 5, 1]);
    }
}
