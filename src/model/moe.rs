//! Mixture-of-experts feed-forward network: a router sends each token to a few of many small networks.
//!
//! Tokens are grouped by expert, so that an expert's weights are read once for all its tokens; what the experts
//! gave is kept apart and added in the order of rank, so that the result does not depend on the grouping.

use crate::kernels::{Kernels, ops};
use crate::store::{Role, Store, StoreError, WeightId, zeroed};

use super::config::{Config, Experts};
use super::run::{Product, Run, multiply};
use super::state::{Inputs, MoeState};
use super::weights::{Matrix, WeightLoader};
use super::{ForwardError, ModelError, Node, Observer};

/// The least that weights are divided by: the smallest normal f16, as in ggml's graph.
const MIN_WEIGHT_SUM: f32 = 6.103_515_6e-5;

/// Weights of the experts of a layer.
#[derive(Debug)]
pub(super) struct Moe {
    /// `[N, E]`
    router: Matrix,
    /// `[F, E]` an expert
    gate: Vec<Matrix>,
    /// `[F, E]` an expert
    up: Vec<Matrix>,
    /// `[E, F]` an expert
    down: Vec<Matrix>,
    experts: Experts,
}

impl Moe {
    /// Finds the weights of a layer; merged or one tensor an expert.
    pub fn load(
        weights: &mut WeightLoader,
        c: &Config,
        experts: Experts,
        il: usize,
    ) -> Result<Moe, ModelError> {
        Ok(Moe {
            router: weights.matrix(
                &format!("blk.{il}.ffn_gate_inp.weight"),
                c.embd,
                experts.count,
                Role::Always,
            )?,
            gate: weights.experts(il, "gate", (c.embd, c.ff), experts)?,
            up: weights.experts(il, "up", (c.embd, c.ff), experts)?,
            down: weights.experts(il, "down", (c.ff, c.embd), experts)?,
            experts,
        })
    }

    /// The router's weight, which every token touches.
    pub fn router_id(&self) -> WeightId {
        self.router.id
    }

    /// The network, `normed` to `normed`; `next` is that of the next layer, whose experts may be read ahead.
    pub fn forward(&self, run: &mut Run<'_>, il: usize, next: Option<&Moe>) -> Result<(), ForwardError> {
        self.route(run, il)?;
        group(&mut run.state.moe, run.tokens, self.experts);
        self.announce(run);
        if let Some(next) = next.filter(|_| run.guess_experts) {
            next.guess(run)?;
        }
        self.hidden(run, il)?;
        self.output(run, il)?;
        self.combine(run, il);
        Ok(())
    }

    /// Softmax over all experts, the best of them, their weights normalised: ggml's `build_moe_ffn`.
    fn route(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let (t, Experts { count, used }) = (run.tokens, self.experts);
        let state = &mut *run.state;
        let types = [&self.router].into_iter().chain(&self.gate).chain(&self.up).map(Matrix::activation);
        let x = &state.normed[..t * run.config.embd];
        state.inputs.prepare(x, run.config.embd, types).map_err(ForwardError::not_finite("ffn_norm", il))?;
        let moe = &mut state.moe;
        let probs = &mut moe.probs[..t * count];
        let product = Product { matrix: &self.router, inputs: &state.inputs, out: &mut *probs };
        multiply(run.kernels, run.store, vec![product])?;
        Run::show(run.observer, "ffn_moe_logits", Some(il), [t, count, 1], probs);
        run.kernels.ops().softmax(probs, count);
        Run::show(run.observer, "ffn_moe_probs", Some(il), [t, count, 1], probs);
        for (probs, chosen) in probs.chunks_exact(count).zip(moe.chosen.chunks_exact_mut(used)) {
            ops::top_k(probs, chosen);
        }
        let node = Node { name: "ffn_moe_topk", layer: Some(il), shape: [t, used, 1] };
        run.observer.computed(node);
        if run.observer.active() {
            run.observer.indices(node, &mut moe.chosen[..t * used]);
        }
        weigh(moe, run.observer, il, t, self.experts);
        Ok(())
    }

    fn announce(&self, run: &Run<'_>) {
        let tokens = &run.state.moe.tokens;
        let parts = [&self.gate, &self.up, &self.down].into_iter();
        let chosen = parts.flat_map(|part| part.iter().zip(tokens).filter(|(_, tokens)| !tokens.is_empty()));
        run.announce(chosen.map(|(matrix, _)| matrix.id));
    }

    /// Reads ahead the experts that this layer's router would choose for the input of the layer before: the residual
    /// stream changes little from one to the next.
    fn guess(&self, run: &mut Run<'_>) -> Result<(), ForwardError> {
        let (t, Experts { count, used }) = (run.tokens, self.experts);
        let inputs = &run.state.inputs;
        let certain = self.expected(t).next().is_some();
        if certain || !run.store.is_resident(self.router.id) || !inputs.has(self.router.activation()) {
            return Ok(());
        }
        let mut logits = zeroed(&[t, count], "the guess of experts")?;
        let product = Product { matrix: &self.router, inputs, out: &mut logits };
        multiply(run.kernels, run.store, vec![product])?;
        let mut chosen = zeroed(&[t, used], "the guess of experts")?;
        for (logits, chosen) in logits.chunks_exact(count).zip(chosen.chunks_exact_mut(used)) {
            ops::top_k(logits, chosen);
        }
        let parts = [&self.gate, &self.up, &self.down].into_iter();
        run.store.may_need(parts.flat_map(|part| chosen.iter().map(|&e| part[e as usize].id)));
        Ok(())
    }

    /// The experts that a pass over so many tokens is as good as sure to use, before it is known which: all of
    /// them, or none.
    pub fn expected(&self, tokens: usize) -> impl Iterator<Item = WeightId> {
        let Experts { count, used } = self.experts;
        let all = if tokens * used >= 2 * count { count } else { 0 };
        let parts = [&self.gate, &self.up, &self.down].into_iter();
        parts.flat_map(move |part| part[..all].iter().map(|matrix| matrix.id))
    }

    /// Gate and up of all chosen experts in one parallel region, then SwiGLU: `ffn_moe_swiglu`, in `gate`.
    fn hidden(&self, run: &mut Run<'_>, il: usize) -> Result<(), StoreError> {
        let (t, used, ff) = (run.tokens, self.experts.used, run.config.ff);
        let MoeState { gate, up, tokens, gathered, slots, shown, .. } = &mut run.state.moe;
        let (gate, up) = (&mut gate[..t * used * ff], &mut up[..t * used * ff]);
        gather(gathered, &run.state.inputs, tokens);
        products(
            run.kernels,
            run.store,
            tokens,
            gathered,
            &mut [(&self.gate, &mut *gate), (&self.up, &mut *up)],
        )?;
        let mut show = Shown { observer: &mut *run.observer, il, slots, shown };
        show.node("ffn_moe_up", [t, used, ff], up);
        show.node("ffn_moe_gate", [t, used, ff], gate);
        run.kernels.ops().swiglu(gate, up);
        show.node("ffn_moe_swiglu", [t, used, ff], gate);
        Ok(())
    }

    /// The experts' output: `ffn_moe_down`, in `down`.
    fn output(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let (t, used, c) = (run.tokens, self.experts.used, run.config);
        let MoeState { gate, down, tokens, by_slot, gathered, slots, shown, .. } = &mut run.state.moe;
        let types = self.down.iter().map(Matrix::activation);
        let input = &mut run.state.inputs;
        input.prepare(&gate[..t * used * c.ff], c.ff, types).map_err(|at| {
            let token = slots.iter().position(|&slot| slot == at.row).unwrap_or(0) / used;
            ForwardError::NotFinite { node: "ffn_moe_swiglu", layer: il, token, index: at.index }
        })?;
        gather(gathered, input, by_slot);
        let down = &mut down[..t * used * c.embd];
        products(run.kernels, run.store, tokens, gathered, &mut [(&self.down, &mut *down)])?;
        Shown { observer: &mut *run.observer, il, slots, shown }.node(
            "ffn_moe_down",
            [t, used, c.embd],
            down,
        );
        Ok(())
    }

    /// The weighted outputs, added in the order of rank: `ffn_moe_out`, in `normed`.
    fn combine(&self, run: &mut Run<'_>, il: usize) {
        let (t, used, embd) = (run.tokens, self.experts.used, run.config.embd);
        let MoeState { down, weights, slots, shown, .. } = &mut run.state.moe;
        let down = &mut down[..t * used * embd];
        let ops = run.kernels.ops();
        for (&slot, &weight) in slots.iter().zip(&*weights) {
            ops.scale(&mut down[slot * embd..][..embd], weight);
        }
        Shown { observer: &mut *run.observer, il, slots, shown }.node(
            "ffn_moe_weighted",
            [t, used, embd],
            down,
        );
        let out = &mut run.state.normed[..t * embd];
        for (out, slots) in out.chunks_exact_mut(embd).zip(slots.chunks_exact(used)) {
            out.copy_from_slice(&down[slots[0] * embd..][..embd]);
            for slot in &slots[1..] {
                ops.add(out, &down[slot * embd..][..embd]);
            }
        }
        Run::show(run.observer, "ffn_moe_out", Some(il), [t, embd, 1], out);
    }
}

/// The weights of the chosen experts: their probabilities over the sum of these.
fn weigh(moe: &mut MoeState, observer: &mut dyn Observer, il: usize, t: usize, experts: Experts) {
    let Experts { count, used } = experts;
    let MoeState { probs, chosen, weights, sums, .. } = moe;
    let (weights, sums) = (&mut weights[..t * used], &mut sums[..t]);
    let rows = probs.chunks_exact(count).zip(chosen.chunks_exact(used));
    for ((probs, chosen), weights) in rows.zip(weights.chunks_exact_mut(used)) {
        for (weight, &expert) in weights.iter_mut().zip(chosen) {
            *weight = probs[expert as usize];
        }
    }
    Run::show(observer, "ffn_moe_weights", Some(il), [t, used, 1], weights);
    for (sum, weights) in sums.iter_mut().zip(weights.chunks_exact(used)) {
        *sum = weights.iter().sum();
    }
    Run::show(observer, "ffn_moe_weights_sum", Some(il), [t, 1, 1], sums);
    for sum in sums.iter_mut() {
        // Not f32::max: a NaN stays one.
        *sum = if *sum < MIN_WEIGHT_SUM { MIN_WEIGHT_SUM } else { *sum };
    }
    Run::show(observer, "ffn_moe_weights_sum_clamped", Some(il), [t, 1, 1], sums);
    for (sum, weights) in sums.iter().zip(weights.chunks_exact_mut(used)) {
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    Run::show(observer, "ffn_moe_weights_norm", Some(il), [t, used, 1], weights);
}

/// Groups the chosen (token, expert) pairs by expert: tokens and slots of each expert, the slot of each pair.
fn group(moe: &mut MoeState, t: usize, experts: Experts) {
    let MoeState { chosen, tokens, by_slot, slots, .. } = moe;
    let chosen = &chosen[..t * experts.used];
    tokens.iter_mut().for_each(Vec::clear);
    by_slot.iter_mut().for_each(Vec::clear);
    for (pair, &expert) in chosen.iter().enumerate() {
        tokens[expert as usize].push(pair / experts.used);
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
        for e in (0..tokens.len()).filter(|&e| !tokens[e].is_empty()) {
            let (out, others) = rest.split_at_mut(tokens[e].len() * part[e].rows);
            rest = others;
            products.push(Product { matrix: &part[e], inputs: &gathered[e], out });
        }
    }
    multiply(kernels, store, products)
}

/// Shows values that lie by slot in the order (token, rank), which ggml has.
struct Shown<'a> {
    observer: &'a mut dyn Observer,
    il: usize,
    slots: &'a [usize],
    shown: &'a mut Vec<f32>,
}

impl Shown<'_> {
    /// `shape` is `[T, U, n]`.
    fn node(&mut self, name: &'static str, shape: [usize; 3], values: &mut [f32]) {
        let node = Node { name, layer: Some(self.il), shape };
        self.observer.computed(node);
        if !self.observer.active() {
            return;
        }
        let n = shape[2];
        self.shown.clear();
        for slot in self.slots {
            self.shown.extend_from_slice(&values[slot * n..][..n]);
        }
        self.observer.node(node, self.shown);
        for (slot, shown) in self.slots.iter().zip(self.shown.chunks_exact(n)) {
            values[slot * n..][..n].copy_from_slice(shown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_grouped_by_expert_and_found_by_rank() {
        let mut moe = MoeState {
            chosen: vec![2, 0, 1, 2, 2, 0],
            tokens: vec![Vec::new(); 4],
            by_slot: vec![Vec::new(); 4],
            ..MoeState::default()
        };
        group(&mut moe, 3, Experts { count: 4, used: 2 });
        assert_eq!(moe.tokens, [vec![0, 2], vec![1], vec![0, 1, 2], vec![]]);
        assert_eq!(moe.by_slot, [vec![0, 1], vec![2], vec![3, 4, 5], vec![]]);
        assert_eq!(moe.slots, [3, 0, 2, 4, 5, 1]);
    }
}
