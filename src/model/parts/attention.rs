//! Attention over a KV cache: projections, norms of queries and keys, rotation, the cache, scores, gate and output.

use super::super::load::Loader;
use super::super::observer::Watch;
use super::super::run::{Run, add_bias, check_finite, first_wrong, project};
use super::super::state::KvType;
use super::super::weights::Linear;
use super::super::{ForwardError, Label, Logits, ModelError, NodeId, NodeKind, NodeWeight, Work};
use super::norm::Norm;
use crate::kernels::ops::{AttentionShape, Ops, Window};
use crate::store::WeightId;

/// What a family says of the attention of a layer.
#[derive(Clone, Debug)]
pub(in crate::model) struct AttentionSpec {
    pub heads: usize,
    pub kv_heads: usize,
    pub key_len: usize,
    pub value_len: usize,
    /// The rotation, as an index into the decoder's; `None`: none.
    pub rope: Option<usize>,
    pub window: Option<Window>,
    /// Factor on every score.
    pub scale: f32,
    /// Factor on the queries before their dots, where the family scales these.
    pub query_scale: Option<f32>,
    pub soft_cap: Option<f32>,
    pub temperature: Option<Temperature>,
    /// Limit of projections: each is brought to within `-limit..=limit`.
    pub clamp: Option<f32>,
    pub qk_norm: Option<QkNorm>,
    /// Whether heads have sinks, `attn_sinks`.
    pub sinks: bool,
    pub gate: Option<Gate>,
    /// Factor on the output.
    pub output_scale: Option<f32>,
    pub names: AttentionNames,
}

impl AttentionSpec {
    /// Plain attention with the scale `1 / sqrt(key_len)`.
    pub fn new(heads: usize, kv_heads: usize, key_len: usize, value_len: usize) -> AttentionSpec {
        AttentionSpec {
            heads,
            kv_heads,
            key_len,
            value_len,
            rope: None,
            window: None,
            scale: 1.0 / (key_len as f32).sqrt(),
            query_scale: None,
            soft_cap: None,
            temperature: None,
            clamp: None,
            qk_norm: None,
            sinks: false,
            gate: None,
            output_scale: None,
            names: AttentionNames::default(),
        }
    }
}

/// Nodes whose names differ from family to family.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct AttentionNames {
    /// Queries and keys once they are rotated.
    pub rotated: (&'static str, &'static str),
    /// Queries times their temperature.
    pub temperature: &'static str,
    /// Queries times [`AttentionSpec::query_scale`].
    pub scaled_queries: &'static str,
    /// Whether queries, keys and values are flat rows before their norms: ggml then names sums with biases alone, and
    /// copies what it takes of one product.
    pub flat: bool,
    /// What attention gives.
    pub attended: &'static str,
    pub output: &'static str,
    /// The output times its factor.
    pub scaled: &'static str,
}

impl Default for AttentionNames {
    fn default() -> AttentionNames {
        AttentionNames {
            rotated: ("Qcur", "Kcur"),
            temperature: "Qcur_attn_temp_scaled",
            scaled_queries: "Qcur_scaled",
            flat: false,
            attended: "kqv_out",
            output: "attn_out",
            scaled: "attn_out_scaled",
        }
    }
}

/// A factor on queries that grows with the position:
/// `1 + scale * ln(floor((position + offset) / floor) + 1)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::model) struct Temperature {
    pub scale: f32,
    pub floor: f32,
    pub offset: f32,
}

impl Temperature {
    /// The number of steps in f32, all else in f64, rounded once: as llama.cpp fills this input.
    fn at(self, position: usize) -> f32 {
        let steps = ((position as f32 + self.offset) / self.floor).floor();
        (libm::log(f64::from(steps) + 1.0) * f64::from(self.scale) + 1.0) as f32
    }
}

/// Norms of queries and keys.
#[derive(Clone, Debug)]
pub(in crate::model) struct QkNorm {
    pub q: Norm,
    pub k: Norm,
    /// Whether they come after the rotation.
    pub after_rope: bool,
}

impl QkNorm {
    /// The same with other nodes.
    pub fn named(self, q: &'static str, k: &'static str) -> QkNorm {
        QkNorm { q: self.q.named(q), k: self.k.named(k), ..self }
    }
}

/// A gate on what attention gives: its sigmoid, one for each element or one for each head.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct Gate {
    pub per_head: bool,
    /// Nodes: the projection, its sigmoid, what passes.
    pub names: [&'static str; 3],
}

/// The projections of a block's input.
#[derive(Debug)]
struct Projections {
    q: Linear,
    k: Linear,
    v: Linear,
    /// Whether they are one tensor, `attn_qkv`.
    fused: bool,
    gate: Option<Linear>,
}

/// Attention of a layer.
#[derive(Debug)]
pub(in crate::model) struct Attention {
    pub spec: AttentionSpec,
    projections: Projections,
    sinks: Option<Vec<f32>>,
    output: Linear,
}

impl Attention {
    /// Finds the weights of a layer: `attn_qkv` or `attn_q`, `attn_k`, `attn_v`; `attn_gate`, `attn_sinks`,
    /// `attn_output`; biases wherever there are any.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        embd: usize,
        spec: AttentionSpec,
    ) -> Result<Attention, ModelError> {
        let name = |part: &str| format!("blk.{il}.{part}");
        let AttentionSpec { heads, kv_heads, key_len, value_len, .. } = spec;
        let rows = [heads * key_len, kv_heads * key_len, kv_heads * value_len];
        let fused = l.weights.contains(&name("attn_qkv.weight"));
        let [q, k, v] = if fused {
            l.weights.stacked_linear(&name("attn_qkv"), embd, rows)?
        } else {
            [
                l.weights.linear(&name("attn_q"), embd, rows[0])?,
                l.weights.linear(&name("attn_k"), embd, rows[1])?,
                l.weights.linear(&name("attn_v"), embd, rows[2])?,
            ]
        };
        let gate_rows = |gate: Gate| if gate.per_head { heads } else { heads * value_len };
        let gate = match spec.gate {
            Some(gate) => Some(l.weights.linear(&name("attn_gate"), embd, gate_rows(gate))?),
            None => None,
        };
        let sinks = match spec.sinks {
            true => Some(l.weights.vector(&name("attn_sinks.weight"), heads)?),
            false => None,
        };
        let output = l.weights.linear(&name("attn_output"), heads * value_len, embd)?;
        Ok(Attention { spec, projections: Projections { q, k, v, fused, gate }, sinks, output })
    }

    /// What every token touches, in the order of a pass.
    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        let Projections { q, k, v, gate, .. } = &self.projections;
        [Some(q), Some(k), Some(v), gate.as_ref(), Some(&self.output)].into_iter().flatten().map(Linear::id)
    }

    /// Values of a token in the gate.
    pub fn gate_len(&self) -> usize {
        self.projections.gate.as_ref().map_or(0, Linear::rows)
    }

    /// Elements of what attention gives a token.
    pub fn attended_dim(&self) -> usize {
        self.spec.heads * self.spec.value_len
    }

    /// Queries, keys and values of the block's input, normed and rotated; keys and values are remembered. Returns the
    /// nodes that attention reads.
    pub fn queries_keys_values(
        &self,
        run: &mut Run<'_>,
        il: usize,
    ) -> Result<[NodeId<'static>; 3], ForwardError> {
        let [mut q, mut k, v] = self.projections.project(run, il, &self.spec)?;
        let norm = self.spec.qk_norm.as_ref();
        if let Some(norm) = norm.filter(|norm| !norm.after_rope) {
            [q, k] = self.norm(run, norm, [q, k]);
        }
        if let Some(rope) = self.spec.rope {
            [q, k] = self.rotate(run, rope, [q, k]);
        }
        if let Some(norm) = norm.filter(|norm| norm.after_rope) {
            [q, k] = self.norm(run, norm, [q, k]);
        }
        q = self.scale_queries(run, q);
        self.remember(run, il)?;
        Ok([q, k, v])
    }

    fn norm(&self, run: &mut Run<'_>, norm: &QkNorm, [q, k]: [NodeId<'static>; 2]) -> [NodeId<'static>; 2] {
        let (ops, t) = (run.kernels.ops(), run.rows);
        let AttentionSpec { heads, kv_heads, key_len, .. } = self.spec;
        let [q_shape, k_shape] = [[t, heads, key_len], [t, kv_heads, key_len]];
        let qs = &mut run.buffers.q[..t * heads * key_len];
        norm.q.apply(ops, qs);
        let q = run.watch.show(norm.q.label(&[q]), q_shape, qs);
        let ks = &mut run.buffers.k[..t * kv_heads * key_len];
        norm.k.apply(ops, ks);
        [q, run.watch.show(norm.k.label(&[k]), k_shape, ks)]
    }

    fn rotate(&self, run: &mut Run<'_>, rope: usize, [q, k]: [NodeId<'static>; 2]) -> [NodeId<'static>; 2] {
        let (ops, t) = (run.kernels.ops(), run.rows);
        let AttentionSpec { heads, kv_heads, key_len, names, .. } = &self.spec;
        let (kind, table) = (run.rope_kinds[rope], &run.buffers.rope[rope]);
        let qs = &mut run.buffers.q[..t * heads * key_len];
        let ks = &mut run.buffers.k[..t * kv_heads * key_len];
        ops.rope(kind, table, qs, *heads, *key_len);
        ops.rope(kind, table, ks, *kv_heads, *key_len);
        let (q_name, k_name) = names.rotated;
        let label = Label::new(q_name, NodeKind::Rope, Work::Rope, std::slice::from_ref(&q));
        let q = run.watch.show(label, [t, *heads, *key_len], qs);
        let label = Label::new(k_name, NodeKind::Rope, Work::Rope, std::slice::from_ref(&k));
        [q, run.watch.show(label, [t, *kv_heads, *key_len], ks)]
    }

    fn scale_queries(&self, run: &mut Run<'_>, q: NodeId<'static>) -> NodeId<'static> {
        let AttentionSpec { heads, key_len, names, .. } = &self.spec;
        let (row, shape) = (heads * key_len, [run.rows, *heads, *key_len]);
        let ops = run.kernels.ops();
        let qs = run.rows * row;
        let mut node = q;
        if let Some(temperature) = self.spec.temperature {
            let factors: Vec<f32> = run.positions().map(|pos| temperature.at(pos)).collect();
            let qs = &mut run.buffers.q[..qs];
            for (q, factor) in qs.chunks_exact_mut(row).zip(factors) {
                ops.scale(q, factor);
            }
            let label = Label::elementwise(names.temperature, Work::Rope, std::slice::from_ref(&q));
            node = run.watch.show(label, shape, qs);
        }
        if let Some(scale) = self.spec.query_scale {
            let qs = &mut run.buffers.q[..qs];
            ops.scale(qs, scale);
            let inputs = [node];
            node = run.watch.show(Label::elementwise(names.scaled_queries, Work::Rope, &inputs), shape, qs);
        }
        node
    }

    /// Writes keys and values of every sequence to its cache.
    fn remember(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let ops = run.kernels.ops();
        let AttentionSpec { kv_heads, key_len, value_len, .. } = self.spec;
        let (k_row, v_row) = (kv_heads * key_len, kv_heads * value_len);
        let mut first = 0;
        for segment in &mut run.segments {
            let rows = first..first + segment.tokens.len();
            first = rows.end;
            let keys = &run.buffers.k[rows.start * k_row..rows.end * k_row];
            let values = &run.buffers.v[rows.start * v_row..rows.end * v_row];
            check_kept("Kcur", il, segment.state.ty(), keys, k_row)?;
            check_kept("Vcur", il, segment.state.ty(), values, v_row)?;
            segment.state.store(ops, il, segment.first_pos, keys, values)?;
        }
        Ok(())
    }

    /// Attention of the queries over all positions that they see. In the last layer sequences whose logits nobody wants
    /// are passed over: what is left in their rows is dropped.
    pub fn attend(&self, run: &mut Run<'_>, il: usize, last: bool, inputs: [NodeId<'static>; 3]) {
        let AttentionSpec { heads, kv_heads, key_len, value_len, window, scale, soft_cap, .. } = self.spec;
        let (q_row, out_row) = (heads * key_len, heads * value_len);
        let mut first = 0;
        for segment in &run.segments {
            let rows = first..first + segment.tokens.len();
            first = rows.end;
            if last && segment.logits == Logits::None {
                continue;
            }
            let shape = AttentionShape {
                heads,
                kv_heads,
                key_len,
                value_len,
                tokens: rows.len(),
                first_pos: segment.first_pos,
                window,
                scale,
                soft_cap,
            };
            let buffers = &mut *run.buffers;
            let q = &buffers.q[rows.start * q_row..rows.end * q_row];
            let out = &mut buffers.attn[rows.start * out_row..rows.end * out_row];
            segment.state.with_pages(il, |pages| {
                let sinks = self.sinks.as_deref();
                run.kernels.ops().attention(&shape, q, pages, sinks, out, &mut buffers.attention);
            });
        }
        let out = &mut run.buffers.attn[..run.rows * out_row];
        let kind = if self.sinks.is_some() { NodeKind::SinkAttention } else { NodeKind::Attention };
        let label = Label::new(self.spec.names.attended, kind, Work::Attention, &inputs);
        run.attended = run.watch.show(label, [run.rows, out_row, 1], out);
    }

    /// Gate and output projection: what attention gave, to [`Buffers::cur`](super::super::Buffers) or, where the
    /// feed-forward network has the same input, beside it.
    pub fn output(
        &self,
        run: &mut Run<'_>,
        il: usize,
        beside: bool,
    ) -> Result<NodeId<'static>, ForwardError> {
        self.apply_gate(run);
        let (t, cols, names) = (run.rows, self.attended_dim(), &self.spec.names);
        let buffers = &mut *run.buffers;
        buffers
            .inputs
            .prepare(&buffers.attn[..t * cols], cols, [self.output.activation()])
            .map_err(ForwardError::not_finite(names.attended, il))?;
        let out = if beside { &mut buffers.beside } else { &mut buffers.cur };
        let out = &mut out[..t * run.embd];
        project(run.kernels, run.store, &buffers.inputs, &mut [(&self.output, &mut *out)])?;
        let ops = run.kernels.ops();
        // ggml names the sum with the bias alone.
        add_bias(ops, &self.output, out);
        let weight = self.output.matrix.described();
        let inputs = [run.attended];
        let label = Label::product(names.output, Work::AttentionOutput, weight, &inputs);
        let mut node = run.watch.show(label, [t, run.embd, 1], out);
        if let Some(scale) = self.spec.output_scale {
            ops.scale(out, scale);
            let label = Label::elementwise(names.scaled, Work::AttentionOutput, std::slice::from_ref(&node));
            node = run.watch.show(label, [t, run.embd, 1], out);
        }
        Ok(node)
    }

    fn apply_gate(&self, run: &mut Run<'_>) {
        let Some(gate) = self.spec.gate else { return };
        let (t, heads, len) = (run.rows, self.spec.heads, self.spec.value_len);
        let ops = run.kernels.ops();
        let buffers = &mut *run.buffers;
        let attn = &mut buffers.attn[..t * heads * len];
        let gates = &mut buffers.attn_gate[..t * self.gate_len()];
        ops.sigmoid(gates);
        let [_, sigmoid, gated] = gate.names;
        let projected = run.gate;
        let label =
            Label::new(sigmoid, NodeKind::Sigmoid, Work::AttentionOutput, std::slice::from_ref(&projected));
        let sigmoid = run.watch.show(label, [t, self.gate_len(), 1], gates);
        if gate.per_head {
            for (head, &by) in attn.chunks_exact_mut(len).zip(&*gates) {
                ops.scale(head, by);
            }
        } else {
            ops.mul(attn, gates);
        }
        let inputs = [run.attended, sigmoid];
        let label = Label::elementwise(gated, Work::AttentionOutput, &inputs);
        run.attended = run.watch.show(label, [t, heads * len, 1], attn);
    }
}

impl Projections {
    /// All of them in one parallel region, with their biases and limits.
    fn project(
        &self,
        run: &mut Run<'_>,
        il: usize,
        spec: &AttentionSpec,
    ) -> Result<[NodeId<'static>; 3], ForwardError> {
        let (t, embd) = (run.rows, run.embd);
        let buffers = &mut *run.buffers;
        let linears = [Some(&self.q), Some(&self.k), Some(&self.v), self.gate.as_ref()];
        let types = linears.iter().flatten().map(|linear| linear.activation());
        buffers
            .inputs
            .prepare(&buffers.cur[..t * embd], embd, types)
            .map_err(ForwardError::not_finite("attn_norm", il))?;
        let outputs = [&mut buffers.q, &mut buffers.k, &mut buffers.v, &mut buffers.attn_gate];
        let mut outputs: Vec<(&Linear, &mut [f32])> = linears
            .into_iter()
            .zip(outputs)
            .filter_map(|(linear, out)| linear.map(|linear| (linear, &mut out[..t * linear.rows()])))
            .collect();
        project(run.kernels, run.store, &buffers.inputs, &mut outputs)?;
        if let (Some(gate), Some((linear, out))) = (spec.gate, outputs.get_mut(3)) {
            add_bias(run.kernels.ops(), linear, out);
            let label = Label::product(
                gate.names[0],
                Work::Projections,
                linear.matrix.described(),
                std::slice::from_ref(&run.cur),
            );
            run.gate = run.watch.show(label, [t, linear.rows(), 1], out);
        }
        outputs.truncate(3);
        let mut shown =
            Shown { watch: &mut run.watch, ops: run.kernels.ops(), input: run.cur, rows: t, spec };
        match self.fused {
            true => Ok(shown.fused(&mut outputs)),
            false => Ok(shown.separate(&mut outputs)),
        }
    }
}

/// Products before their biases, where ggml names the sums alone.
const UNBIASED: [&str; 3] = ["Qcur_no_bias", "Kcur_no_bias", "Vcur_no_bias"];

/// What the projections become, node by node.
struct Shown<'s, 'a> {
    watch: &'s mut Watch<'a>,
    ops: &'s Ops,
    input: NodeId<'static>,
    rows: usize,
    spec: &'s AttentionSpec,
}

impl Shown<'_, '_> {
    fn separate(&mut self, outputs: &mut [(&Linear, &mut [f32])]) -> [NodeId<'static>; 3] {
        let AttentionSpec { heads, kv_heads, key_len, value_len, clamp, .. } = *self.spec;
        let shapes = [(heads, key_len), (kv_heads, key_len), (kv_heads, value_len)];
        let names = [("Qcur", "Qcur_clamped"), ("Kcur", "Kcur_clamped"), ("Vcur", "Vcur_clamped")];
        let mut nodes = [self.input; 3];
        for (i, (linear, out)) in outputs.iter_mut().enumerate() {
            let shape = [self.rows, shapes[i].0, shapes[i].1];
            let inputs = [self.input];
            let nameless = self.spec.names.flat && linear.bias.is_some();
            let product = if nameless { UNBIASED[i] } else { names[i].0 };
            let label = Label::product(product, Work::Projections, linear.matrix.described(), &inputs);
            nodes[i] = self.watch.show(label, shape, out);
            if add_bias(self.ops, linear, out) {
                let inputs = [nodes[i]];
                nodes[i] =
                    self.watch.show(Label::elementwise(names[i].0, Work::Projections, &inputs), shape, out);
            }
            if let Some(limit) = clamp {
                clamp_to(out, limit);
                let inputs = [nodes[i]];
                nodes[i] =
                    self.watch.show(Label::elementwise(names[i].1, Work::Projections, &inputs), shape, out);
            }
        }
        nodes
    }

    /// One tensor: its nodes have queries, keys and values side by side.
    fn fused(&mut self, outputs: &mut [(&Linear, &mut [f32])]) -> [NodeId<'static>; 3] {
        let weight = outputs.iter().map(|(linear, _)| linear.matrix.described()).reduce(|a, b| NodeWeight {
            ty: a.ty,
            bytes: a.bytes + b.bytes,
            touched: a.touched + b.touched,
        });
        let inputs = [self.input];
        let label = Label { weight, ..Label::new("wqkv", NodeKind::Product, Work::Projections, &inputs) };
        let mut node = self.side_by_side(label, outputs);
        let mut biased = false;
        for (linear, out) in outputs.iter_mut() {
            biased |= add_bias(self.ops, linear, out);
        }
        if biased {
            node = self.side_by_side(Label::elementwise("wqkv_b", Work::Projections, &[node]), outputs);
        }
        if let Some(limit) = self.spec.clamp {
            outputs.iter_mut().for_each(|(_, out)| clamp_to(out, limit));
            node = self.side_by_side(Label::elementwise("wqkv_clamped", Work::Projections, &[node]), outputs);
        }
        if !self.spec.names.flat {
            return [node; 3];
        }
        let mut parts = [node; 3];
        for (i, (linear, out)) in outputs.iter_mut().enumerate() {
            let inputs = [node];
            let label = Label::elementwise(["Qcur", "Kcur", "Vcur"][i], Work::Projections, &inputs);
            parts[i] = self.watch.show(label, [self.rows, linear.rows(), 1], out);
        }
        parts
    }

    fn side_by_side(&mut self, label: Label<'_>, outputs: &mut [(&Linear, &mut [f32])]) -> NodeId<'static> {
        let widths: Vec<usize> = outputs.iter().map(|(linear, _)| linear.rows()).collect();
        let all: usize = widths.iter().sum();
        let rows = self.rows;
        let outputs = std::cell::RefCell::new(outputs);
        self.watch.show_scattered(
            label,
            [rows, all, 1],
            |values| {
                let outputs = outputs.borrow();
                for row in 0..rows {
                    for ((_, out), n) in outputs.iter().zip(&widths) {
                        values.extend_from_slice(&out[row * n..(row + 1) * n]);
                    }
                }
            },
            |values| {
                let mut at = 0;
                for row in 0..rows {
                    for ((_, out), n) in outputs.borrow_mut().iter_mut().zip(&widths) {
                        out[row * n..(row + 1) * n].copy_from_slice(&values[at..at + n]);
                        at += n;
                    }
                }
            },
        )
    }
}

fn clamp_to(x: &mut [f32], limit: f32) {
    x.iter_mut().for_each(|x| *x = x.clamp(-limit, limit));
}

/// The least that is rounded to infinity as f16.
const F16_OVERFLOW: f32 = 65520.0;

/// Keys and values are kept: an infinite key takes its position out of the attention without a trace.
fn check_kept(
    node: &'static str,
    layer: usize,
    ty: KvType,
    x: &[f32],
    cols: usize,
) -> Result<(), ForwardError> {
    check_finite(node, layer, x, cols)?;
    match first_wrong(x, cols, |v| ty == KvType::F32 || v.abs() < F16_OVERFLOW) {
        Some((token, index)) => {
            Err(ForwardError::BeyondF16 { node, layer, token, index, value: x[token * cols + index] })
        }
        None => Ok(()),
    }
}
