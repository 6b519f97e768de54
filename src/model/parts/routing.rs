//! Which experts a token is sent to, and with which weights: ggml's `build_moe_ffn`.

use super::super::load::{ExpertCounts, Loader};
use super::super::observer::Watch;
use super::super::products::{Product, multiply};
use super::super::run::{Run, add_bias};
use super::super::state::{ExpertBuffers, Inputs};
use super::super::weights::Linear;
use super::super::{Buffers, ForwardError, Label, ModelError, NodeId, NodeKind, Work};
use super::norm::Norm;
use crate::kernels::ops::{self, Ops};
use crate::store::Role;

/// The least that weights are divided by: the smallest normal f16, as in ggml's graph.
const MIN_WEIGHT_SUM: f32 = 6.103_515_6e-5;

/// What the router's logits become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum Score {
    /// Softmax over all experts.
    Softmax,
    Sigmoid,
    /// Experts are chosen by their logits; the weights are the softmax over the chosen ones.
    SoftmaxOfChosen,
    /// Experts are chosen by their logits; the weights are sigmoids.
    SigmoidOfChosen,
    /// The root of softplus.
    SqrtSoftplus,
}

/// Experts in groups, of which only some are chosen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) struct Groups {
    pub count: usize,
    pub used: usize,
}

/// What a family says of its router.
#[derive(Clone, Debug)]
pub(in crate::model) struct Routing {
    pub count: usize,
    pub used: usize,
    pub score: Score,
    /// What is added to the scores for the choice alone, `[count]`.
    pub choice_bias: Option<Vec<f32>>,
    pub groups: Option<Groups>,
    /// Experts of each token of the vocabulary, where nothing else decides, `[V][used]`.
    pub by_token: Option<Vec<u32>>,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub normalise: bool,
    /// Factor on the weights.
    pub scale: Option<f32>,
    /// Where the router does not have the experts' input, but the residual stream normed without weights,
    /// over the root of its length and times `ffn_gate_inp.scale`: the epsilon of that norm.
    pub of_stream: Option<f32>,
}

impl Routing {
    /// Scores, no bias, no groups, weights as they are.
    pub fn new(count: usize, used: usize, score: Score) -> Routing {
        Routing {
            count,
            used,
            score,
            choice_bias: None,
            groups: None,
            by_token: None,
            normalise: false,
            scale: None,
            of_stream: None,
        }
    }

    pub fn normalised(self) -> Routing {
        Routing { normalise: true, ..self }
    }

    /// What `expert_gating_func`, `expert_weights_norm`, `expert_weights_scale` and the keys of groups say;
    /// `score` is for files that name none, `None` where they must.
    pub fn read(
        l: &mut Loader<'_>,
        ExpertCounts { count, used }: ExpertCounts,
        score: Option<Score>,
    ) -> Result<Routing, ModelError> {
        let name = "expert_gating_func";
        let score = match score {
            Some(score) => score,
            None if l.keys.count(name)? == 0 => return Err(l.keys.problem(name, "is 0 or missing")),
            None => Score::Softmax,
        };
        Ok(Routing {
            score: Routing::score(l, score)?,
            groups: Routing::groups(l, count)?,
            normalise: l.keys.flag("expert_weights_norm")?.unwrap_or(false),
            scale: l.keys.factor("expert_weights_scale")?.filter(|&scale| scale != 1.0),
            ..Routing::new(count, used, score)
        })
    }

    /// The same where a family cannot do without.
    pub fn with_bias(self, l: &mut Loader<'_>, il: usize, tensor: &str) -> Result<Routing, ModelError> {
        let routing = self.biased(l, il, tensor)?;
        match routing.choice_bias {
            Some(_) => Ok(routing),
            None => Err(ModelError::MissingTensor { name: format!("blk.{il}.{tensor}") }),
        }
    }

    /// With a layer's bias on the choice, `exp_probs_b.bias` in most files, where it has one.
    pub fn biased(self, l: &mut Loader<'_>, il: usize, tensor: &str) -> Result<Routing, ModelError> {
        let choice_bias = l.weights.optional_vector(&format!("blk.{il}.{tensor}"), self.count)?;
        Ok(Routing { choice_bias, ..self })
    }

    /// The key `expert_gating_func`, where it is there.
    pub fn score(l: &mut Loader<'_>, default: Score) -> Result<Score, ModelError> {
        let name = "expert_gating_func";
        match l.keys.count(name)? {
            0 => Ok(default),
            1 => Ok(Score::Softmax),
            2 => Ok(Score::Sigmoid),
            3 => Ok(Score::SoftmaxOfChosen),
            4 => Ok(Score::SqrtSoftplus),
            other => Err(l.keys.unsupported(name, other)),
        }
    }

    /// The keys `expert_group_count` and `expert_group_used_count`.
    pub fn groups(l: &mut Loader<'_>, experts: usize) -> Result<Option<Groups>, ModelError> {
        let (count, used) = (l.keys.count("expert_group_count")?, l.keys.count("expert_group_used_count")?);
        if count <= 1 {
            return Ok(None);
        }
        if !experts.is_multiple_of(count) {
            return Err(l.keys.problem(
                "expert_group_count",
                format!("is {count}, which does not divide {experts} experts"),
            ));
        }
        if used == 0 || used >= count {
            return Err(l
                .keys
                .problem("expert_group_used_count", format!("is {used}, where there are {count} groups")));
        }
        Ok(Some(Groups { count, used }))
    }
}

/// The router of a layer.
#[derive(Debug)]
pub(in crate::model) struct Router {
    pub spec: Routing,
    /// `[N, E]`
    pub linear: Linear,
    /// Where it is not the experts' input.
    input: Option<StreamInput>,
}

/// The residual stream as a router's input.
#[derive(Debug)]
struct StreamInput {
    norm: Norm,
    /// `[E]`
    factors: Vec<f32>,
}

impl StreamInput {
    /// Into [`Buffers::shared`](super::super::Buffers), and rounded into
    /// [`Buffers::hidden`](super::super::Buffers).
    fn fill(&self, run: &mut Run<'_>) {
        let (n, ops) = (run.rows * run.embd, run.kernels.ops());
        let buffers = &mut *run.buffers;
        let input = &mut buffers.shared[..n];
        input.copy_from_slice(&buffers.x[..n]);
        self.norm.apply(ops, input);
        ops.scale(input, 1.0 / (run.embd as f32).sqrt());
        input.chunks_exact_mut(run.embd).for_each(|row| ops.mul(row, &self.factors));
    }
}

impl Router {
    /// `ffn_gate_inp` of a layer.
    pub fn load(l: &mut Loader<'_>, il: usize, embd: usize, spec: Routing) -> Result<Router, ModelError> {
        let used_groups = spec.groups.map_or(spec.count, |groups| spec.count / groups.count * groups.used);
        if spec.used > used_groups {
            let what = format!("is {}, where the groups used have {used_groups} experts", spec.used);
            return Err(l.keys.problem("expert_used_count", what));
        }
        let name = format!("blk.{il}.ffn_gate_inp");
        let Some(eps) = spec.of_stream else {
            let linear = l.weights.linear(&name, embd, spec.count)?;
            return Ok(Router { spec, linear, input: None });
        };
        let matrix = l.weights.matrix(&format!("{name}.weight"), embd, spec.count, Role::Always)?;
        let factors = l.weights.vector(&format!("{name}.scale"), embd)?;
        let norm = Norm::unweighted("ffn_moe_input", embd, eps);
        Ok(Router { spec, linear: Linear::plain(matrix), input: Some(StreamInput { norm, factors }) })
    }

    /// Whether its input is there, rounded: that of experts as they have it, or what is made of the residual
    /// stream here.
    pub fn input<'r>(&self, run: &'r mut Run<'_>) -> Option<&'r Inputs> {
        let ty = self.linear.activation();
        let Some(input) = &self.input else {
            return Some(&run.buffers.inputs).filter(|inputs| inputs.has(ty));
        };
        input.fill(run);
        let Buffers { hidden, shared, .. } = &mut *run.buffers;
        hidden.prepare(run.kernels.ops(), &shared[..run.rows * run.embd], run.embd, [ty]).ok()?;
        Some(hidden)
    }

    /// The node of its input; one that is made of the residual stream is rounded here.
    fn prepare(&self, run: &mut Run<'_>, il: usize) -> Result<NodeId<'static>, ForwardError> {
        let Some(input) = &self.input else { return Ok(run.cur) };
        input.fill(run);
        let (t, embd) = (run.rows, run.embd);
        let Buffers { hidden, shared, .. } = &mut *run.buffers;
        let shared = &mut shared[..t * embd];
        let node = run.watch.show(input.norm.label(&[run.x]), [t, embd, 1], shared);
        hidden
            .prepare(run.kernels.ops(), shared, embd, [self.linear.activation()])
            .map_err(ForwardError::not_finite("ffn_moe_input", il))?;
        Ok(node)
    }

    /// Chooses experts for every row and weighs them; the experts' input has been rounded. Returns the nodes
    /// of the choice and of the weights.
    pub fn route(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 2], ForwardError> {
        let t = run.rows;
        let count = self.spec.count;
        let input = self.prepare(run, il)?;
        let buffers = &mut *run.buffers;
        let experts = &mut buffers.experts;
        let probs = &mut experts.probs[..t * count];
        let inputs = if self.input.is_some() { &buffers.hidden } else { &buffers.inputs };
        let product = Product { matrix: &self.linear.matrix, inputs, out: &mut *probs };
        multiply(run.kernels, run.store, vec![product])?;
        Ok(self.route_products(run, input))
    }

    /// Where its input is not the experts': how it is made of the residual stream, which is normed, divided
    /// by the root of its length and multiplied by factors, `[E]`.
    pub fn own_input(&self) -> Option<(&Norm, &[f32])> {
        self.input.as_ref().map(|input| (&input.norm, &input.factors[..]))
    }

    /// The same once the products with the rows of `input` are there.
    pub fn route_products(&self, run: &mut Run<'_>, input: NodeId<'static>) -> [NodeId<'static>; 2] {
        let (t, used) = (run.rows, self.spec.used);
        let experts = &mut run.buffers.experts;
        let ops = run.kernels.ops();
        let scored = self.score(ops, &mut run.watch, experts, t, input);
        let by = match &self.spec.by_token {
            Some(_) => None,
            None => Some(self.choose(ops, &mut run.watch, experts, t, scored)),
        };
        let tokens = run.segments.iter().flat_map(|segment| segment.tokens);
        self.look_up(tokens, &mut experts.chosen[..t * used]);
        let label = Label::new("ffn_moe_topk", NodeKind::TopK, Work::Router, by.as_slice());
        let chosen = run.watch.show_indices(label, [t, used, 1], &mut experts.chosen[..t * used]);
        let weights = self.weigh(ops, &mut run.watch, experts, t, [scored.probs, chosen]);
        [chosen, weights]
    }

    /// The experts of some tokens, where a table names them; says whether one does.
    pub fn look_up<'t>(&self, tokens: impl Iterator<Item = &'t u32>, chosen: &mut [u32]) -> bool {
        let Routing { used, ref by_token, .. } = self.spec;
        let Some(table) = by_token else { return false };
        for (&token, chosen) in tokens.zip(chosen.chunks_exact_mut(used)) {
            chosen.copy_from_slice(&table[token as usize * used..][..used]);
        }
        true
    }

    /// The logits with their bias, then what they become.
    fn score(
        &self,
        ops: &Ops,
        watch: &mut Watch<'_>,
        experts: &mut ExpertBuffers,
        t: usize,
        input: NodeId<'static>,
    ) -> Scored {
        let count = self.spec.count;
        let shape = [t, count, 1];
        let probs = &mut experts.probs[..t * count];
        // Where logits serve as they are, ggml calls them probabilities.
        let as_they_are = self.spec.score == Score::SoftmaxOfChosen;
        let biased = self.linear.bias.is_some();
        let name = if as_they_are && !biased { "ffn_moe_probs" } else { "ffn_moe_logits" };
        let weight = self.linear.matrix.described();
        let mut node = watch.show(Label::product(name, Work::Router, weight, &[input]), shape, probs);
        if add_bias(ops, &self.linear, probs) {
            let name = if as_they_are { "ffn_moe_probs" } else { "ffn_moe_logits_biased" };
            node = watch.show(Label::elementwise(name, Work::Router, &[node]), shape, probs);
        }
        let logits = node;
        let kind = match self.spec.score {
            Score::SoftmaxOfChosen => return Scored { logits, probs: node },
            Score::Softmax => {
                ops.softmax(probs, count);
                NodeKind::Softmax
            }
            Score::Sigmoid => {
                ops.sigmoid(probs);
                NodeKind::Sigmoid
            }
            Score::SqrtSoftplus => {
                ops.sqrt_softplus(probs);
                NodeKind::Softplus
            }
            Score::SigmoidOfChosen => {
                experts.choice[..t * count].copy_from_slice(probs);
                ops.sigmoid(probs);
                NodeKind::Sigmoid
            }
        };
        let inputs = [node];
        let label = Label::new("ffn_moe_probs", kind, Work::Router, &inputs);
        Scored { logits, probs: watch.show(label, shape, probs) }
    }

    /// The best experts of every row; returns what they were chosen by.
    fn choose(
        &self,
        ops: &Ops,
        watch: &mut Watch<'_>,
        experts: &mut ExpertBuffers,
        t: usize,
        scored: Scored,
    ) -> NodeId<'static> {
        let Routing { count, used, score, ref choice_bias, .. } = self.spec;
        let ExpertBuffers { probs, choice, chosen, .. } = experts;
        let chosen = &mut chosen[..t * used];
        let (probs, choice) = (&probs[..t * count], &mut choice[..t * count]);
        let (mut by, mut values) = (scored.probs, probs);
        if let Some(bias) = choice_bias {
            choice.copy_from_slice(probs);
            ops.add_bias(choice, bias);
            let inputs = [by];
            let label = Label::elementwise("ffn_moe_probs_biased", Work::Router, &inputs);
            (by, values) = (watch.show(label, [t, count, 1], choice), &*choice);
        } else if score == Score::SigmoidOfChosen {
            (by, values) = (scored.logits, &*choice);
        }
        self.take_best(values, chosen);
        by
    }

    /// The greatest values of each row, of the best groups where there are some.
    fn take_best(&self, values: &[f32], chosen: &mut [u32]) {
        let Routing { count, used, groups, .. } = self.spec;
        for (row, chosen) in values.chunks_exact(count).zip(chosen.chunks_exact_mut(used)) {
            match groups {
                Some(groups) => ops::top_k_grouped(row, groups.count, groups.used, chosen),
                None => ops::top_k(row, chosen),
            }
        }
    }

    /// The experts, `[T][used]`, that rows with these products of the router would be sent to; the products
    /// are changed.
    pub fn guess(&self, ops: &Ops, logits: &mut [f32], chosen: &mut [u32]) {
        let Routing { count, score, ref choice_bias, groups, .. } = self.spec;
        add_bias(ops, &self.linear, logits);
        // Scores are in the order of the logits: they matter to biases and to sums over groups alone.
        if choice_bias.is_some() || groups.is_some() {
            match score {
                Score::Softmax => ops.softmax(logits, count),
                Score::Sigmoid => ops.sigmoid(logits),
                Score::SqrtSoftplus => ops.sqrt_softplus(logits),
                Score::SoftmaxOfChosen | Score::SigmoidOfChosen => {}
            }
        }
        if let Some(bias) = choice_bias {
            ops.add_bias(logits, bias);
        }
        self.take_best(logits, chosen);
    }

    /// The weights of the chosen experts.
    fn weigh(
        &self,
        ops: &Ops,
        watch: &mut Watch<'_>,
        experts: &mut ExpertBuffers,
        t: usize,
        [probs_node, chosen_node]: [NodeId<'static>; 2],
    ) -> NodeId<'static> {
        let Routing { count, used, score, normalise, scale, .. } = self.spec;
        let ExpertBuffers { probs, chosen, weights, sums, .. } = experts;
        let (weights, sums) = (&mut weights[..t * used], &mut sums[..t]);
        let rows = probs.chunks_exact(count).zip(chosen.chunks_exact(used));
        for ((probs, chosen), weights) in rows.zip(weights.chunks_exact_mut(used)) {
            for (weight, &expert) in weights.iter_mut().zip(chosen) {
                *weight = probs[expert as usize];
            }
        }
        let shape = [t, used, 1];
        let inputs = [probs_node, chosen_node];
        let mut node =
            watch.show(Label::elementwise("ffn_moe_weights", Work::Router, &inputs), shape, weights);
        if score == Score::SoftmaxOfChosen {
            ops.softmax(weights, used);
            let inputs = [node];
            let label = Label::new("ffn_moe_weights_softmax", NodeKind::Softmax, Work::Router, &inputs);
            node = watch.show(label, shape, weights);
        }
        if normalise {
            node = normalise_weights(watch, weights, sums, used, node);
        }
        if let Some(scale) = scale {
            ops.scale(weights, scale);
            let inputs = [node];
            node = watch.show(
                Label::elementwise("ffn_moe_weights_scaled", Work::Router, &inputs),
                shape,
                weights,
            );
        }
        node
    }
}

/// The nodes of logits and scores.
#[derive(Clone, Copy)]
struct Scored {
    logits: NodeId<'static>,
    probs: NodeId<'static>,
}

/// Divides the weights of every row by their sum.
fn normalise_weights(
    watch: &mut Watch<'_>,
    weights: &mut [f32],
    sums: &mut [f32],
    used: usize,
    node: NodeId<'static>,
) -> NodeId<'static> {
    let t = sums.len();
    for (sum, weights) in sums.iter_mut().zip(weights.chunks_exact(used)) {
        *sum = weights.iter().sum();
    }
    let label =
        Label::new("ffn_moe_weights_sum", NodeKind::RowSum, Work::Router, std::slice::from_ref(&node));
    let sum_node = watch.show(label, [t, 1, 1], sums);
    for sum in sums.iter_mut() {
        // Not f32::max: a NaN stays one.
        *sum = if *sum < MIN_WEIGHT_SUM { MIN_WEIGHT_SUM } else { *sum };
    }
    let label =
        Label::elementwise("ffn_moe_weights_sum_clamped", Work::Router, std::slice::from_ref(&sum_node));
    let sum_node = watch.show(label, [t, 1, 1], sums);
    for (sum, weights) in sums.iter().zip(weights.chunks_exact_mut(used)) {
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    let inputs = [node, sum_node];
    watch.show(Label::elementwise("ffn_moe_weights_norm", Work::Router, &inputs), [t, used, 1], weights)
}
