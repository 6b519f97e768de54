//! Queries, keys and values: their projections, and the nodes that these become.

use super::AttentionSpec;
use crate::kernels::ops::Ops;
use crate::model::load::Loader;
use crate::model::observer::Watch;
use crate::model::products::project;
use crate::model::run::{Run, add_bias, show_side_by_side};
use crate::model::weights::Linear;
use crate::model::{ForwardError, Label, ModelError, NodeId, NodeKind, NodeWeight, Work};

/// The projections of a block's input.
#[derive(Debug)]
pub(in crate::model) struct Projections {
    pub q: Linear,
    /// `None` where the layer sees another's keys and values.
    pub k: Option<Linear>,
    /// `None` there, and where the products of the keys are the values too.
    pub v: Option<Linear>,
    /// Whether they are one tensor, `attn_qkv`.
    pub fused: bool,
    pub gate: Option<Linear>,
}

impl Projections {
    /// All of them in one parallel region, with their biases and limits.
    pub(super) fn project(
        &self,
        run: &mut Run<'_>,
        il: usize,
        spec: &AttentionSpec,
    ) -> Result<[NodeId<'static>; 3], ForwardError> {
        let (t, embd) = (run.rows, run.embd);
        let buffers = &mut *run.buffers;
        let linears = [Some(&self.q), self.k.as_ref(), self.v.as_ref(), self.gate.as_ref()];
        let types = linears.iter().flatten().map(|linear| linear.activation());
        buffers
            .inputs
            .prepare(run.kernels.ops(), &buffers.cur[..t * embd], embd, types)
            .map_err(ForwardError::not_finite("attn_norm", il))?;
        let outputs = [&mut buffers.q, &mut buffers.k, &mut buffers.v, &mut buffers.attn_gate];
        let mut outputs: Vec<(&Linear, &mut [f32])> = linears
            .into_iter()
            .zip(outputs)
            .filter_map(|(linear, out)| linear.map(|linear| (linear, &mut out[..t * linear.rows()])))
            .collect();
        project(run.kernels, run.store, &buffers.inputs, &mut outputs)?;
        // The gate of some families is part of the queries.
        let gate = spec.gate.filter(|_| self.gate.is_some());
        let gated = gate.and_then(|gate| Some((gate, outputs.pop()?)));
        if let Some((gate, (linear, out))) = gated {
            add_bias(run.kernels.ops(), linear, out);
            let label = Label::product(
                gate.names[0],
                Work::Projections,
                linear.matrix.described(),
                std::slice::from_ref(&run.cur),
            );
            run.gate = run.watch.show(label, [t, linear.rows(), 1], out);
        }
        let mut shown =
            Shown { watch: &mut run.watch, ops: run.kernels.ops(), input: run.cur, rows: t, spec };
        let nodes = match self.fused {
            true => shown.fused(&mut outputs),
            false => shown.separate(&mut outputs),
        };
        if let (Some(k), None) = (&self.k, &self.v) {
            let n = t * k.rows();
            run.buffers.v[..n].copy_from_slice(&run.buffers.k[..n]);
        }
        Ok(nodes)
    }
}

/// `attn_q`, or its rows of `attn_qkv`, of a layer that sees another's keys and values; its own are left
/// aside, where the file has any.
pub(super) fn load_queries(
    l: &mut Loader<'_>,
    il: usize,
    embd: usize,
    spec: &AttentionSpec,
) -> Result<Linear, ModelError> {
    let name = |part: &str| format!("blk.{il}.{part}");
    let AttentionSpec { kv_heads, key_len, value_len, .. } = *spec;
    let rows = spec.projected_queries();
    l.weights.leave_aside(["attn_k.weight", "attn_v.weight", "attn_k_norm.weight"].map(name));
    match l.weights.contains(&name("attn_qkv.weight")) {
        true => {
            l.weights.leading_linear(&name("attn_qkv"), embd, rows, rows + kv_heads * (key_len + value_len))
        }
        false => l.weights.linear(&name("attn_q"), embd, rows),
    }
}

/// Queries, keys and, unless the keys' products are these, values; whether they are one tensor.
pub(super) fn load_all(
    l: &mut Loader<'_>,
    il: usize,
    embd: usize,
    spec: &AttentionSpec,
) -> Result<(Linear, Option<Linear>, Option<Linear>, bool), ModelError> {
    let name = |part: &str| format!("blk.{il}.{part}");
    let AttentionSpec { kv_heads, key_len, value_len, .. } = *spec;
    let rows = [spec.projected_queries(), kv_heads * key_len, kv_heads * value_len];
    if l.weights.contains(&name("attn_qkv.weight")) {
        let [q, k, v] = l.weights.stacked_linear(&name("attn_qkv"), embd, rows)?;
        return Ok((q, Some(k), Some(v), true));
    }
    let q = l.weights.linear(&name("attn_q"), embd, rows[0])?;
    let k = l.weights.linear(&name("attn_k"), embd, rows[1])?;
    let of_keys = spec.keys_as_values && !l.weights.contains(&name("attn_v.weight"));
    let v = if of_keys { None } else { Some(l.weights.linear(&name("attn_v"), embd, rows[2])?) };
    Ok((q, Some(k), v, false))
}

/// Products before their biases, where ggml names the sums alone.
pub(in crate::model) const UNBIASED: [&str; 3] = ["Qcur_no_bias", "Kcur_no_bias", "Vcur_no_bias"];

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
        let queries = (heads, self.spec.projected_queries() / heads);
        let shapes = [queries, (kv_heads, key_len), (kv_heads, value_len)];
        let queries = self.spec.names.queries;
        let names = [(queries, "Qcur_clamped"), ("Kcur", "Kcur_clamped"), ("Vcur", "Vcur_clamped")];
        // Values that are the keys' products give these their name.
        let of_keys = outputs.len() == 2;
        let mut nodes = [self.input; 3];
        for (i, (linear, out)) in outputs.iter_mut().enumerate() {
            let shape = [self.rows, shapes[i].0, shapes[i].1];
            let inputs = [self.input];
            let names = if of_keys && i == 1 { [names[0], names[2], names[2]] } else { names };
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
        if of_keys {
            nodes[2] = nodes[1];
        }
        nodes
    }

    /// One tensor: its nodes have queries, keys and values side by side.
    fn fused(&mut self, outputs: &mut [(&Linear, &mut [f32])]) -> [NodeId<'static>; 3] {
        let weight = outputs.iter().map(|(linear, _)| linear.matrix.described()).reduce(NodeWeight::and);
        let inputs = [self.input];
        let label = Label { weight, ..Label::new("wqkv", NodeKind::Product, Work::Projections, &inputs) };
        let mut node = show_side_by_side(self.watch, label, self.rows, outputs);
        let mut biased = false;
        for (linear, out) in outputs.iter_mut() {
            biased |= add_bias(self.ops, linear, out);
        }
        if biased {
            node = show_side_by_side(
                self.watch,
                Label::elementwise("wqkv_b", Work::Projections, &[node]),
                self.rows,
                outputs,
            );
        }
        if let Some(limit) = self.spec.clamp {
            outputs.iter_mut().for_each(|(_, out)| clamp_to(out, limit));
            node = show_side_by_side(
                self.watch,
                Label::elementwise("wqkv_clamped", Work::Projections, &[node]),
                self.rows,
                outputs,
            );
        }
        if !self.spec.names.flat {
            return [node; 3];
        }
        let mut parts = [node; 3];
        for (i, (linear, out)) in outputs.iter_mut().enumerate() {
            let inputs = [node];
            let label =
                Label::elementwise([self.spec.names.queries, "Kcur", "Vcur"][i], Work::Projections, &inputs);
            parts[i] = self.watch.show(label, [self.rows, linear.rows(), 1], out);
        }
        parts
    }
}

fn clamp_to(x: &mut [f32], limit: f32) {
    x.iter_mut().for_each(|x| *x = x.clamp(-limit, limit));
}
