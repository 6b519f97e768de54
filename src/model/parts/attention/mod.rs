//! Attention over a KV cache: projections, norms of queries and keys, rotation, the cache, scores, gate and
//! output.

mod projections;
mod spec;

use super::super::load::Loader;
use super::super::products::project;
use super::super::run::{Run, add_bias, check_finite, first_wrong, with_rows};
use super::super::state::{KvElement, KvType};
use super::super::weights::Linear;
use super::super::{
    ForwardError, Label, Logits, MemorySpec, ModelError, NodeId, NodeKind, RowSizes, ScratchSizes, Segment,
    Work,
};
use super::Mixer;
use super::blocks::Blocks;
use super::choosing::Choosing;
use super::pools::Pools;
use crate::kernels::ops::{AttentionShape, Chosen, Ops};
use crate::store::WeightId;
pub(in crate::model) use projections::{Projections, UNBIASED};
use projections::{load_all, load_queries};
pub(in crate::model) use spec::{AttentionNames, AttentionSpec, ChoiceSpec, Gate, QkNorm, Temperature};

/// Attention of a layer.
#[derive(Debug)]
pub(in crate::model) struct Attention {
    pub(in crate::model) spec: AttentionSpec,
    /// Where keys and values are.
    pub(in crate::model) slot: usize,
    pub(in crate::model) projections: Projections,
    pub(in crate::model) sinks: Option<Vec<f32>>,
    pub(in crate::model) output: Linear,
    choosing: Option<Box<dyn Choosing>>,
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
        let (q, k, v, fused) = match spec.shares {
            Some(_) => (load_queries(l, il, embd, &spec)?, None, None, false),
            None => load_all(l, il, embd, &spec)?,
        };
        let gate = match spec.gate.filter(|_| !spec.gate_in_queries) {
            Some(gate) => Some(l.weights.linear(&name("attn_gate"), embd, gate.rows(heads, value_len))?),
            None => None,
        };
        let sinks = match spec.sinks {
            true => Some(l.weights.vector(&name("attn_sinks.weight"), heads)?),
            false => None,
        };
        let choosing: Option<Box<dyn Choosing>> = match spec.choice {
            Some(ChoiceSpec::Blocks(blocks)) => Some(Box::new(Blocks::load(l, il, embd, blocks)?)),
            Some(ChoiceSpec::Pools(pools)) => Some(Box::new(Pools::load(l, il, embd, pools)?)),
            None => None,
        };
        let output = l.weights.linear(&name("attn_output"), heads * value_len, embd)?;
        let window = spec.window;
        let projections = Projections { q, k, v, fused, gate };
        let slot = match spec.shares {
            Some(slot) => l.shared_slot(slot),
            None => l.remember(MemorySpec::Pages { kv_heads, key_len, value_len, window }),
        };
        Ok(Attention { spec, slot, projections, sinks, output, choosing })
    }

    /// Whether it chooses the positions that it sees.
    pub fn chooses(&self) -> bool {
        self.choosing.is_some()
    }

    /// Values of a token in the gate.
    fn gate_len(&self) -> usize {
        match self.spec.gate_in_queries {
            true => self.attended_dim(),
            false => self.projections.gate.as_ref().map_or(0, Linear::rows),
        }
    }

    /// Elements of what attention gives a token.
    fn attended_dim(&self) -> usize {
        self.spec.heads * self.spec.value_len
    }

    fn norm(&self, run: &mut Run<'_>, norm: &QkNorm, [q, k]: [NodeId<'static>; 2]) -> [NodeId<'static>; 2] {
        let (ops, t) = (run.kernels.ops(), run.rows);
        let AttentionSpec { heads, kv_heads, key_len, .. } = self.spec;
        let [q_shape, k_shape] = [[t, heads, key_len], [t, kv_heads, key_len]];
        let qs = &mut run.buffers.q[..t * heads * key_len];
        norm.q.apply(ops, qs);
        let q = run.watch.show(norm.q.label(&[q]), q_shape, qs);
        let Some(norm) = norm.k.as_ref().filter(|_| self.remembers()) else { return [q, k] };
        let ks = &mut run.buffers.k[..t * kv_heads * key_len];
        norm.apply(ops, ks);
        [q, run.watch.show(norm.label(&[k]), k_shape, ks)]
    }

    fn norm_values(&self, run: &mut Run<'_>, v: NodeId<'static>) -> NodeId<'static> {
        let Some(norm) = &self.spec.value_norm else { return v };
        let (t, AttentionSpec { kv_heads, value_len, .. }) = (run.rows, &self.spec);
        let (kv_heads, value_len) = (*kv_heads, *value_len);
        let vs = &mut run.buffers.v[..t * kv_heads * value_len];
        norm.apply(run.kernels.ops(), vs);
        run.watch.show(norm.label(&[v]), [t, kv_heads, value_len], vs)
    }

    fn rotate(&self, run: &mut Run<'_>, rope: usize, [q, k]: [NodeId<'static>; 2]) -> [NodeId<'static>; 2] {
        let (ops, t) = (run.kernels.ops(), run.rows);
        let AttentionSpec { heads, kv_heads, key_len, names, .. } = &self.spec;
        let (kind, table) = (run.rope_kinds[rope], &run.buffers.rope[rope]);
        let qs = &mut run.buffers.q[..t * heads * key_len];
        ops.rope(kind, table, qs, *heads, *key_len);
        let (q_name, k_name) = names.rotated;
        let label = Label::new(q_name, NodeKind::Rope, Work::Rope, std::slice::from_ref(&q));
        let q = run.watch.show(label, [t, *heads, *key_len], qs);
        if !self.remembers() {
            return [q, k];
        }
        let ks = &mut run.buffers.k[..t * kv_heads * key_len];
        ops.rope(kind, table, ks, *kv_heads, *key_len);
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

    /// A call of attention.
    pub(in crate::model) fn shape(&self, first_pos: usize, tokens: usize) -> AttentionShape {
        let AttentionSpec { heads, kv_heads, key_len, value_len, window, scale, soft_cap, .. } = self.spec;
        AttentionShape { heads, kv_heads, key_len, value_len, tokens, first_pos, window, scale, soft_cap }
    }

    /// Writes keys and values of every sequence to its cache.
    fn store(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let ops = run.kernels.ops();
        let AttentionSpec { kv_heads, key_len, value_len, .. } = self.spec;
        let (k_row, v_row) = (kv_heads * key_len, kv_heads * value_len);
        let kept = [("Kcur", &run.buffers.k[..], k_row), ("Vcur", &run.buffers.v[..], v_row)];
        keep(ops, &mut run.segments, il, self.slot, kept)
    }

    /// Takes the gates from what the queries' projection gave, in the buffer of queries.
    fn split_gate(&self, run: &mut Run<'_>, projected: NodeId<'static>) {
        let AttentionSpec { heads, key_len, gate, .. } = self.spec;
        let Some(gate) = gate else { return };
        let (t, len) = (run.rows, key_len);
        let (q, gates) = (&mut run.buffers.q, &mut run.buffers.attn_gate[..t * heads * len]);
        for (head, gate) in gates.chunks_exact_mut(len).enumerate() {
            gate.copy_from_slice(&q[(2 * head + 1) * len..][..len]);
            q.copy_within(2 * head * len..(2 * head + 1) * len, head * len);
        }
        let label = Label::elementwise(gate.names[0], Work::Projections, std::slice::from_ref(&projected));
        run.gate = run.watch.show(label, [t, heads * len, 1], gates);
    }
}

impl Mixer for Attention {
    fn as_attention(&self) -> Option<&Attention> {
        Some(self)
    }

    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        let Projections { q, k, v, gate, .. } = &self.projections;
        let projections =
            [Some(q), k.as_ref(), v.as_ref(), gate.as_ref()].into_iter().flatten().map(Linear::id);
        let choosing = self.choosing.iter().flat_map(|choosing| choosing.weights());
        Box::new(projections.chain(choosing).chain([self.output.id()]))
    }

    fn rows(&self) -> RowSizes {
        let AttentionSpec { kv_heads, key_len, value_len, .. } = self.spec;
        let own = |n: usize| if self.remembers() { n } else { 0 };
        RowSizes {
            q: self.spec.projected_queries(),
            k: own(kv_heads * key_len),
            v: own(kv_heads * value_len),
            gate: self.gate_len(),
            attended: self.attended_dim(),
        }
    }

    fn scratch(&self) -> ScratchSizes {
        let choosing =
            self.choosing.as_ref().map_or_else(ScratchSizes::default, |choosing| choosing.scratch());
        ScratchSizes { attention: Some(self.shape(0, usize::MAX)), ..choosing }
    }

    fn remembers(&self) -> bool {
        self.spec.shares.is_none()
    }

    /// Queries, keys and values, normed and rotated; keys and values go to the cache.
    fn remember(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 3], ForwardError> {
        let [mut q, mut k, mut v] = self.projections.project(run, il, &self.spec)?;
        if self.spec.gate_in_queries {
            self.split_gate(run, q);
        }
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
        if !self.remembers() {
            let [k, v] = run.kept[self.slot];
            return Ok([q, k, v]);
        }
        v = self.norm_values(run, v);
        self.store(run, il)?;
        if let (Some(choosing), Some(rope)) = (&self.choosing, self.spec.rope) {
            choosing.remember(run, il, rope)?;
        }
        run.kept.resize(run.kept.len().max(self.slot + 1), [q; 2]);
        run.kept[self.slot] = [k, v];
        Ok([q, k, v])
    }

    /// Attention of the queries over all positions that they see.
    fn mix(
        &self,
        run: &mut Run<'_>,
        _: usize,
        last: bool,
        inputs: [NodeId<'static>; 3],
    ) -> Result<(), ForwardError> {
        let AttentionSpec { heads, key_len, value_len, .. } = self.spec;
        let (q_row, out_row) = (heads * key_len, heads * value_len);
        if let Some(choosing) = &self.choosing {
            choosing.choose(run, last)?;
        }
        for (rows, segment) in with_rows(&run.segments) {
            if rows.is_empty() || last && segment.logits == Logits::None {
                continue;
            }
            let shape = self.shape(segment.first_pos, rows.len());
            let buffers = &mut *run.buffers;
            let q = &buffers.q[rows.start * q_row..rows.end * q_row];
            let out = &mut buffers.attn[rows.start * out_row..rows.end * out_row];
            // The first tokens see no more positions than may be chosen.
            let most = self.choosing.as_ref().map_or(usize::MAX, |choosing| choosing.first_choosing());
            let all = most.saturating_sub(segment.first_pos).min(rows.len());
            let (q_all, q_chosen) = q.split_at(all * q_row);
            let (out_all, out_chosen) = out.split_at_mut(all * out_row);
            let (ops, indexer, scratch) =
                (run.kernels.ops(), &buffers.latent.indexer, &mut buffers.attention);
            segment.state.with_pages(self.slot, |pages| {
                let sinks = self.sinks.as_deref();
                let first = AttentionShape { tokens: all, ..shape };
                ops.attention(&first, q_all, pages, sinks, out_all, scratch);
                if all < rows.len() {
                    let first_pos = shape.first_pos + all;
                    let shape = AttentionShape { tokens: rows.len() - all, first_pos, ..shape };
                    let lists = self.choosing.as_ref().map_or(1, |choosing| choosing.lists());
                    let pages_held = indexer.pages;
                    let row = lists * pages_held;
                    let masks = &indexer.masks[(rows.start + all) * row..rows.end * row];
                    let chosen = Chosen { masks, lists, pages: pages_held };
                    ops.attention_over(&shape, q_chosen, pages, chosen, sinks, out_chosen, scratch);
                }
            });
        }
        let out = &mut run.buffers.attn[..run.rows * out_row];
        let kind = if self.sinks.is_some() { NodeKind::SinkAttention } else { NodeKind::Attention };
        let label = Label::new(self.spec.names.attended, kind, Work::Attention, &inputs);
        run.attended = run.watch.show(label, [run.rows, out_row, 1], out);
        rotate_back(run, self.slot, out_row);
        Ok(())
    }

    fn output(&self, run: &mut Run<'_>, il: usize, beside: bool) -> Result<NodeId<'static>, ForwardError> {
        if let Some(gate) = self.spec.gate {
            apply_gate(run, gate, self.spec.heads, self.spec.value_len);
        }
        let names = &self.spec.names;
        let node = project_output(run, il, beside, &self.output, [names.attended, names.output])?;
        let Some(scale) = self.spec.output_scale else { return Ok(node) };
        let n = run.rows * run.embd;
        let out = if beside { &mut run.buffers.beside[..n] } else { &mut run.buffers.cur[..n] };
        run.kernels.ops().scale(out, scale);
        let label = Label::elementwise(names.scaled, Work::AttentionOutput, std::slice::from_ref(&node));
        Ok(run.watch.show(label, [run.rows, run.embd, 1], out))
    }
}

/// Rotates what attention gave, rows of so many values, back to where values were before they were kept. ggml
/// names it before.
pub(super) fn rotate_back(run: &mut Run<'_>, slot: usize, row: usize) {
    let rotation = run.segments.first().map_or(1, |segment| segment.state.value_rotation(slot));
    if rotation > 1 {
        run.kernels.ops().hadamard(&mut run.buffers.attn[..run.rows * row], rotation);
    }
}

/// Multiplies what attention gave, heads of so many values, by the sigmoid of its gate, whose product lies in
/// [`Buffers::attn_gate`](super::super::Buffers).
pub(super) fn apply_gate(run: &mut Run<'_>, gate: Gate, heads: usize, len: usize) {
    let (t, rows, ops) = (run.rows, gate.rows(heads, len), run.kernels.ops());
    let buffers = &mut *run.buffers;
    let attn = &mut buffers.attn[..t * heads * len];
    let gates = &mut buffers.attn_gate[..t * rows];
    ops.sigmoid(gates);
    let [_, sigmoid, gated] = gate.names;
    let projected = run.gate;
    let label =
        Label::new(sigmoid, NodeKind::Sigmoid, Work::AttentionOutput, std::slice::from_ref(&projected));
    let sigmoid = run.watch.show(label, [t, rows, 1], gates);
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

/// The output projection of what attention gave, `attended`, to [`Buffers::cur`](super::super::Buffers) or
/// `beside` it.
pub(super) fn project_output(
    run: &mut Run<'_>,
    il: usize,
    beside: bool,
    linear: &Linear,
    [attended, output]: [&'static str; 2],
) -> Result<NodeId<'static>, ForwardError> {
    let (t, cols) = (run.rows, linear.matrix.cols);
    let buffers = &mut *run.buffers;
    buffers
        .inputs
        .prepare(run.kernels.ops(), &buffers.attn[..t * cols], cols, [linear.activation()])
        .map_err(ForwardError::not_finite(attended, il))?;
    let out = if beside { &mut buffers.beside } else { &mut buffers.cur };
    let out = &mut out[..t * run.embd];
    project(run.kernels, run.store, &buffers.inputs, &mut [(linear, &mut *out)])?;
    // ggml names the sum with the bias alone.
    add_bias(run.kernels.ops(), linear, out);
    let inputs = [run.attended];
    let label = Label::product(output, Work::AttentionOutput, linear.matrix.described(), &inputs);
    Ok(run.watch.show(label, [t, run.embd, 1], out))
}

/// Writes rows of keys and of values to a slot of every sequence, each with its node's name and its values a
/// token; there are no values where a row of keys is all that is kept.
pub(super) fn keep(
    ops: &Ops,
    segments: &mut [Segment<'_>],
    il: usize,
    slot: usize,
    [(k_node, keys, k_row), (v_node, values, v_row)]: [(&'static str, &[f32], usize); 2],
) -> Result<(), ForwardError> {
    for (rows, segment) in with_rows(segments) {
        let keys = &keys[rows.start * k_row..rows.end * k_row];
        let values = &values[rows.start * v_row..rows.end * v_row];
        let KvType { keys: key_type, values: value_type } = segment.state.kept_as(slot);
        check_kept(k_node, il, key_type, keys, k_row)?;
        check_kept(v_node, il, value_type, values, v_row)?;
        segment.state.store(ops, slot, segment.first_pos, keys, values)?;
    }
    Ok(())
}

/// Keys and values are kept: an infinite key takes its position out of the attention without a trace.
pub(in crate::model) fn check_kept(
    node: &'static str,
    layer: usize,
    ty: KvElement,
    x: &[f32],
    cols: usize,
) -> Result<(), ForwardError> {
    check_finite(node, layer, x, cols)?;
    match first_wrong(x, cols, |v| v.abs() < ty.overflow()) {
        Some((token, index)) => {
            Err(ForwardError::BeyondKv { node, layer, token, index, value: x[token * cols + index], ty })
        }
        None => Ok(()),
    }
}
