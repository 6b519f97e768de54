//! Multi-head latent attention (DeepSeek V2 and later): keys and values of all heads are made of one latent a
//! position, beside a rotated part of the keys that heads share.
//!
//! Where the file has its weights head by head (`attn_k_b`, `attn_v_b`), only latents are remembered: queries
//! are brought into their space, all heads attend to the same rows, of which the values are the beginning,
//! and what they get is brought back. Older files have one matrix (`attn_kv_b`) that makes keys and values of
//! each latent: ordinary attention.

mod absorbed;
mod heads;
mod spec;

use std::ops::Range;

use super::super::load::Loader;
use super::super::products::project;
use super::super::run::{Run, with_rows};
use super::super::state::{LatentBuffers, grown};
use super::super::weights::{HeadMatrices, Linear};
use super::super::{
    ForwardError, Label, Logits, MemorySpec, ModelError, NodeId, NodeKind, RowSizes, ScratchSizes, Work,
};
use super::Mixer;
use super::attention::{apply_gate, keep, project_output, rotate_back};
use super::indexer::Indexing;
use super::norm::{Norm, NormKind};
use crate::store::{Role, WeightId};
use absorbed::Stretch;
pub(super) use heads::{by_heads, by_tokens, show_by_head, show_columns};
pub(in crate::model) use spec::{LatentNames, LatentSpec};

/// Where queries come from.
#[derive(Debug)]
enum Queries {
    Direct(Linear),
    LowRank { a: Linear, norm: Norm, b: Linear },
}

/// What keys and values are made with.
#[derive(Debug)]
enum Form {
    Absorbed { k_b: HeadMatrices, v_b: HeadMatrices },
    Whole { kv_b: Linear },
}

/// Latent attention of a layer.
#[derive(Debug)]
pub(in crate::model) struct Latent {
    spec: LatentSpec,
    slot: usize,
    queries: Queries,
    kv_a: Linear,
    kv_norm: Norm,
    form: Form,
    sinks: Option<Vec<f32>>,
    gate: Option<Linear>,
    output: Linear,
    indexing: Option<Indexing>,
}

/// `NAME.weight` alone.
pub(super) fn plain(l: &mut Loader<'_>, name: &str, cols: usize, rows: usize) -> Result<Linear, ModelError> {
    Ok(Linear::plain(l.weights.matrix(&format!("{name}.weight"), cols, rows, Role::Always)?))
}

impl Latent {
    /// Finds the weights of a layer: `attn_q` or `attn_q_a` and `attn_q_b`; `attn_kv_a_mqa`; `attn_k_b` and
    /// `attn_v_b`, or `attn_kv_b`; `attn_sinks`; `attn_gate`; `attn_output`; norms of what is of low rank;
    /// those of the indexer.
    pub fn load(l: &mut Loader<'_>, il: usize, embd: usize, spec: LatentSpec) -> Result<Latent, ModelError> {
        let name = |part: &str| format!("blk.{il}.{part}");
        let LatentSpec { heads, latent, nope, value_len, eps, names, .. } = spec;
        let rms = |l: &mut Loader<'_>, part: &str, node, row| {
            Norm::load(l, &name(part), node, NormKind::Rms, row, eps)
        };
        // In the order of a pass.
        let q_rows = heads * spec.query_len();
        let of_input = match spec.q_rank {
            Some(rank) => plain(l, &name("attn_q_a"), embd, rank)?,
            None => plain(l, &name("attn_q"), embd, q_rows)?,
        };
        let kv_a = plain(l, &name("attn_kv_a_mqa"), embd, spec.row())?;
        let kv_norm = rms(l, "attn_kv_a_norm", names.latent, latent)?;
        let indexing = match spec.indexing {
            Some(indexing) => {
                let rank = spec.q_rank.expect("an indexer's queries are made of those of low rank");
                Some(Indexing::load(l, il, embd, rank, indexing)?)
            }
            None => None,
        };
        let queries = match spec.q_rank {
            Some(rank) => Queries::LowRank {
                norm: rms(l, "attn_q_a_norm", names.low_q_norm.unwrap_or(names.low_q), rank)?,
                b: plain(l, &name("attn_q_b"), rank, q_rows)?,
                a: of_input,
            },
            None => Queries::Direct(of_input),
        };
        let (form, memory) = if spec.absorbed {
            let k_b = l.weights.by_head(&name("attn_k_b.weight"), nope, latent, heads)?;
            let v_b = l.weights.by_head(&name("attn_v_b.weight"), latent, value_len, heads)?;
            (Form::Absorbed { k_b, v_b }, MemorySpec::Latents { len: spec.row() })
        } else {
            let kv_b = plain(l, &name("attn_kv_b"), latent, heads * (nope + value_len))?;
            let key_len = spec.query_len();
            let memory = MemorySpec::Pages { kv_heads: heads, key_len, value_len, window: None };
            (Form::Whole { kv_b }, memory)
        };
        let sinks = match spec.sinks {
            true => Some(l.weights.vector(&name("attn_sinks.weight"), heads)?),
            false => None,
        };
        let gate = match spec.gate {
            Some(gate) => Some(plain(l, &name("attn_gate"), embd, gate.rows(heads, value_len))?),
            None => None,
        };
        let output = l.weights.linear(&name("attn_output"), heads * value_len, embd)?;
        let slot = l.remember(memory);
        Ok(Latent { spec, slot, queries, kv_a, kv_norm, form, sinks, gate, output, indexing })
    }

    /// All products of the block's input, in one parallel region.
    fn project_input(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let (t, embd) = (run.rows, run.embd);
        let buffers = &mut *run.buffers;
        let LatentBuffers { low_q, low_kv, indexer, .. } = &mut buffers.latent;
        let (linear, rows) = match &self.queries {
            Queries::Direct(q) => (q, &mut buffers.q[..t * q.rows()]),
            Queries::LowRank { a, .. } => (a, grown(low_q, t * a.rows())?),
        };
        let mut outputs = vec![(linear, rows), (&self.kv_a, grown(low_kv, t * self.spec.row())?)];
        if let Some(Indexing::Own(own)) = &self.indexing {
            outputs.extend(own.outputs(indexer, t)?);
        }
        if let Some(gate) = &self.gate {
            outputs.push((gate, &mut buffers.attn_gate[..t * gate.rows()]));
        }
        let types = outputs.iter().map(|(linear, _)| linear.activation());
        buffers
            .inputs
            .prepare(run.kernels.ops(), &buffers.cur[..t * embd], embd, types)
            .map_err(ForwardError::not_finite("attn_norm", il))?;
        project(run.kernels, run.store, &buffers.inputs, &mut outputs)?;
        if let (Some(linear), Some(gate)) = (&self.gate, self.spec.gate) {
            let input = [run.cur];
            let weight = linear.matrix.described();
            let label = Label::product(gate.names[0], Work::Projections, weight, &input);
            let rows = linear.rows();
            run.gate = run.watch.show(label, [t, rows, 1], &mut run.buffers.attn_gate[..t * rows]);
        }
        Ok(())
    }

    /// Queries of all heads, before their rotation, and those of the indexer.
    fn queries(&self, run: &mut Run<'_>, il: usize) -> Result<NodeId<'static>, ForwardError> {
        let t = run.rows;
        let (mut node, mut linear) = (run.cur, None);
        let buffers = &mut *run.buffers;
        let last = match &self.queries {
            Queries::Direct(q) => q,
            Queries::LowRank { a, norm, b } => {
                let (name, rank) = (self.spec.names.low_q, a.rows());
                let low = &mut buffers.latent.low_q[..t * rank];
                let inputs = [node];
                let label = Label::product(name, Work::Projections, a.matrix.described(), &inputs);
                node = run.watch.show(label, [t, rank, 1], low);
                norm.apply(run.kernels.ops(), low);
                let inputs = [node];
                node = run.watch.show(norm.label(&inputs), [t, rank, 1], low);
                let mut outputs = vec![(b, &mut buffers.q[..t * b.rows()])];
                if let Some(Indexing::Own(own)) = &self.indexing {
                    outputs.push(own.queries(&mut buffers.latent.indexer, t)?);
                    linear = Some(node);
                }
                let types = outputs.iter().map(|(linear, _)| linear.activation());
                buffers
                    .hidden
                    .prepare(run.kernels.ops(), &buffers.latent.low_q[..t * rank], rank, types)
                    .map_err(ForwardError::not_finite(name, il))?;
                project(run.kernels, run.store, &buffers.hidden, &mut outputs)?;
                b
            }
        };
        let inputs = [node];
        let label = Label::product(self.spec.names.q, Work::Projections, last.matrix.described(), &inputs);
        let node = run.watch.show(label, [t, last.rows(), 1], &mut run.buffers.q[..t * last.rows()]);
        if let (Some(Indexing::Own(own)), Some(low)) = (&self.indexing, linear) {
            own.remember(run, il, low)?;
        }
        Ok(node)
    }

    /// The latents, normed, and the part of the keys beside them, rotated; returns the nodes of both.
    fn latents(&self, run: &mut Run<'_>) -> [NodeId<'static>; 2] {
        let LatentSpec { latent, rope, names, .. } = self.spec;
        let (t, row, ops) = (run.rows, self.spec.row(), run.kernels.ops());
        let buffers = &mut *run.buffers;
        let low = &mut buffers.latent.low_kv[..t * row];
        let inputs = [run.cur];
        let label = Label::product(names.low_kv, Work::Projections, self.kv_a.matrix.described(), &inputs);
        let both = [run.watch.show(label, [t, row, 1], low)];
        let mut shared = both[0];
        if self.spec.rotated {
            ops.rope_behind(run.rope_kinds[0], &buffers.rope[0], low, 1, row, latent);
            let label = Label::new("k_pe", NodeKind::Rope, Work::Rope, &both);
            shared = show_columns(&mut run.watch, label, [t, 1, rope], low, row, latent);
        }
        for row in low.chunks_exact_mut(row) {
            self.kv_norm.apply(ops, &mut row[..latent]);
        }
        let label = self.kv_norm.label(&both);
        [show_columns(&mut run.watch, label, [t, latent, 1], low, row, 0), shared]
    }

    /// Queries whose last elements are rotated, where there are any and they are.
    fn rotate(&self, run: &mut Run<'_>, q: NodeId<'static>) -> NodeId<'static> {
        let LatentSpec { heads, nope, rope, names, .. } = self.spec;
        let (t, len) = (run.rows, self.spec.query_len());
        if rope == 0 {
            return q;
        }
        let buffers = &mut *run.buffers;
        let queries = &mut buffers.q[..t * heads * len];
        let inputs = [q];
        let mut kind = NodeKind::Elementwise;
        if self.spec.rotated {
            kind = NodeKind::Rope;
            run.kernels.ops().rope_behind(run.rope_kinds[0], &buffers.rope[0], queries, heads, len, nope);
        }
        if self.spec.absorbed {
            let label = Label::new("q_pe", kind, Work::Rope, &inputs);
            return show_columns(&mut run.watch, label, [t, heads, rope], queries, len, nope);
        }
        let label = Label::new(names.whole[0], kind, Work::Rope, &inputs);
        let node = run.watch.show(label, [t, heads, len], queries);
        scale_by_position(run, &self.spec, 0..t, node)
    }

    /// Latents with the rotated part of the keys, which are what is remembered.
    fn latent_keys(&self, run: &mut Run<'_>, latents: &[NodeId<'static>]) -> NodeId<'static> {
        let (t, row) = (run.rows, self.spec.row());
        let keys = &mut run.buffers.k[..t * row];
        keys.copy_from_slice(&run.buffers.latent.low_kv[..t * row]);
        run.watch.show(Label::elementwise("Kcur", Work::Rope, latents), [t, 1, row], keys)
    }

    /// Keys and values of all heads.
    fn whole_keys_and_values(
        &self,
        run: &mut Run<'_>,
        il: usize,
        kv_b: &Linear,
        latents: &[NodeId<'static>],
    ) -> Result<[NodeId<'static>; 2], ForwardError> {
        let LatentSpec { heads, latent, nope, rope, value_len, names, .. } = self.spec;
        let (t, row, key_len) = (run.rows, self.spec.row(), self.spec.query_len());
        let buffers = &mut *run.buffers;
        let LatentBuffers { low_kv, kv, wide, .. } = &mut buffers.latent;
        let (low, latents_alone) = (&low_kv[..t * row], grown(wide, t * latent)?);
        for (from, to) in low.chunks_exact(row).zip(latents_alone.chunks_exact_mut(latent)) {
            to.copy_from_slice(&from[..latent]);
        }
        buffers
            .hidden
            .prepare(run.kernels.ops(), latents_alone, latent, [kv_b.activation()])
            .map_err(ForwardError::not_finite(names.latent, il))?;
        let each = nope + value_len;
        let kv = grown(kv, t * heads * each)?;
        project(run.kernels, run.store, &buffers.hidden, &mut [(kv_b, &mut *kv)])?;
        let label = Label::product("kv", Work::Projections, kv_b.matrix.described(), &latents[..1]);
        let made = run.watch.show(label, [t, heads * each, 1], kv);
        let values = &mut buffers.v[..t * heads * value_len];
        for (kv, value) in kv.chunks_exact(each).zip(values.chunks_exact_mut(value_len)) {
            value.copy_from_slice(&kv[nope..]);
        }
        let inputs = [made, latents[1]];
        let label = Label::elementwise(names.whole[2], Work::Projections, &inputs[..1]);
        let v = run.watch.show(label, [t, heads, value_len], values);
        let keys = &mut buffers.k[..t * heads * key_len];
        for (i, (kv, key)) in kv.chunks_exact(each).zip(keys.chunks_exact_mut(key_len)).enumerate() {
            key[..nope].copy_from_slice(&kv[..nope]);
            key[nope..].copy_from_slice(&low[i / heads * row + latent..][..rope]);
        }
        let label = Label::elementwise(names.whole[1], Work::Rope, &inputs);
        Ok([run.watch.show(label, [t, heads, key_len], keys), v])
    }

    /// Elements of a row of keys and of values that are remembered.
    fn kept(&self) -> [usize; 2] {
        match self.form {
            Form::Absorbed { .. } => [self.spec.row(), 0],
            Form::Whole { .. } => {
                [self.spec.heads * self.spec.query_len(), self.spec.heads * self.spec.value_len]
            }
        }
    }

    fn store(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let ([k_row, v_row], ops) = (self.kept(), run.kernels.ops());
        let kept = [("Kcur", &run.buffers.k[..], k_row), ("Vcur", &run.buffers.v[..], v_row)];
        keep(ops, &mut run.segments, il, self.slot, kept)
    }

    /// The attention of whole keys and values.
    fn attend_whole(&self, run: &mut Run<'_>, last: bool, inputs: [NodeId<'static>; 3]) {
        let LatentSpec { heads, value_len, .. } = self.spec;
        let (q_row, out_row) = (heads * self.spec.query_len(), heads * value_len);
        for (rows, segment) in with_rows(&run.segments) {
            if last && segment.logits == Logits::None {
                continue;
            }
            let shape = self.spec.shape(segment.first_pos, rows.len());
            let buffers = &mut *run.buffers;
            let q = &buffers.q[rows.start * q_row..rows.end * q_row];
            let out = &mut buffers.attn[rows.start * out_row..rows.end * out_row];
            segment.state.with_pages(self.slot, |pages| {
                run.kernels.ops().attention(&shape, q, pages, None, out, &mut buffers.attention);
            });
        }
        let out = &mut run.buffers.attn[..run.rows * out_row];
        let label = Label::new("kqv_out", NodeKind::Attention, Work::Attention, &inputs);
        run.attended = run.watch.show(label, [run.rows, out_row, 1], out);
        rotate_back(run, self.slot, out_row);
    }
}

/// Multiplies the queries of some rows by their temperatures, where there are any: those brought into the
/// latents' space or whole ones.
fn scale_by_position(
    run: &mut Run<'_>,
    spec: &LatentSpec,
    rows: Range<usize>,
    node: NodeId<'static>,
) -> NodeId<'static> {
    let Some(temperature) = spec.temperature else { return node };
    let len = if spec.absorbed { spec.row() } else { spec.query_len() };
    let row = spec.heads * len;
    let factors: Vec<f32> =
        run.positions().skip(rows.start).take(rows.len()).map(|pos| temperature.at(pos)).collect();
    let buffers = &mut *run.buffers;
    let queries = if spec.absorbed { &mut buffers.latent.q } else { &mut buffers.q };
    let queries = &mut queries[..rows.len() * row];
    for (q, factor) in queries.chunks_exact_mut(row).zip(factors) {
        run.kernels.ops().scale(q, factor);
    }
    let inputs = [node];
    let label = Label::elementwise("Qcur_attn_temp_scaled", Work::Rope, &inputs);
    run.watch.show(label, [rows.len(), spec.heads, len], queries)
}

impl Mixer for Latent {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        let (of_input, of_low) = match &self.queries {
            Queries::Direct(q) => (q.id(), None),
            Queries::LowRank { a, b, .. } => (a.id(), Some(b.id())),
        };
        let made = match &self.form {
            Form::Absorbed { k_b, v_b } => [Some(k_b.id()), Some(v_b.id())],
            Form::Whole { kv_b } => [Some(kv_b.id()), None],
        };
        let indexing = self.indexing.iter().flat_map(Indexing::weights);
        let gate = self.gate.as_ref().map(Linear::id);
        let first = [of_input, self.kv_a.id()].into_iter().chain(indexing).chain(gate).chain(of_low);
        Box::new(first.chain(made.into_iter().flatten()).chain([self.output.id()]))
    }

    fn rows(&self) -> RowSizes {
        let LatentSpec { heads, value_len, .. } = self.spec;
        let [k, v] = self.kept();
        let gate = self.gate.as_ref().map_or(0, Linear::rows);
        RowSizes { q: heads * self.spec.query_len(), k, v, gate, attended: heads * value_len }
    }

    fn scratch(&self) -> ScratchSizes {
        let LatentSpec { heads, q_rank, latent, nope, value_len, .. } = self.spec;
        let low = q_rank.unwrap_or(0) + self.spec.row();
        let indexer = self.indexing.as_ref().map_or_else(ScratchSizes::default, Indexing::scratch);
        match self.form {
            Form::Absorbed { .. } => ScratchSizes {
                row: low + indexer.row,
                // What each head has, twice for its rounding, with its queries and what attention gives it.
                stretch_row: heads * (2 * nope.max(value_len) + 2 * latent + self.spec.row() + latent),
                attention: Some(self.spec.shape(0, ScratchSizes::STRETCH)),
                choice: indexer.choice,
                ..ScratchSizes::default()
            },
            Form::Whole { .. } => ScratchSizes {
                row: low + 2 * latent + heads * (nope + value_len),
                attention: Some(self.spec.shape(0, usize::MAX)),
                ..ScratchSizes::default()
            },
        }
    }

    fn remember(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 3], ForwardError> {
        self.project_input(run, il)?;
        let q = self.queries(run, il)?;
        let rotated = self.rotate(run, q);
        let latents = self.latents(run);
        let nodes = match &self.form {
            Form::Absorbed { .. } => [q, rotated, self.latent_keys(run, &latents)],
            Form::Whole { kv_b } => {
                let [k, v] = self.whole_keys_and_values(run, il, kv_b, &latents)?;
                [rotated, k, v]
            }
        };
        self.store(run, il)?;
        Ok(nodes)
    }

    fn mix(
        &self,
        run: &mut Run<'_>,
        il: usize,
        last: bool,
        inputs: [NodeId<'static>; 3],
    ) -> Result<(), ForwardError> {
        let Form::Absorbed { k_b, v_b } = &self.form else {
            self.attend_whole(run, last, inputs);
            return Ok(());
        };
        if let Some(Indexing::Own(own)) = &self.indexing {
            own.choose(run, last)?;
        }
        let [q, rotated, k] = inputs;
        let t = run.rows;
        // Who watches sees whole nodes.
        let most = if run.watch.active() { t.max(1) } else { ScratchSizes::STRETCH };
        // Several stretches would read streamed weights again and again.
        let ids = [k_b.id(), v_b.id()];
        let mut guards = match t > most && ids.iter().all(|&id| run.store.is_resident(id)) {
            true => run.store.acquire_some(&ids)?,
            false => Vec::new(),
        };
        // Where one has gone meanwhile, the other is not held while it is waited for.
        guards.truncate(if guards.len() == ids.len() { ids.len() } else { 0 });
        let held = if let [(_, k), (_, v)] = &guards[..] { Some([&**k, &**v]) } else { None };
        let mut from = 0;
        loop {
            let rows = from..(from + most).min(t);
            from = rows.end;
            let stretch = Stretch { il, last, rows, held };
            let absorbed = self.absorb(run, &stretch, k_b, [q, rotated])?;
            self.attend(run, &stretch)?;
            let LatentSpec { heads, latent, .. } = self.spec;
            let n = stretch.rows.len();
            let inputs = [absorbed, k];
            let kind = if self.sinks.is_some() { NodeKind::SinkAttention } else { NodeKind::Attention };
            let label = Label::new("kqv", kind, Work::Attention, &inputs);
            let out = &mut run.buffers.latent.attended[..n * heads * latent];
            let attended = run.watch.show(label, [n, heads, latent], out);
            self.expand(run, &stretch, v_b, attended)?;
            if from == t {
                return Ok(());
            }
        }
    }

    fn output(&self, run: &mut Run<'_>, il: usize, beside: bool) -> Result<NodeId<'static>, ForwardError> {
        if let Some(gate) = self.spec.gate {
            apply_gate(run, gate, self.spec.heads, self.spec.value_len);
        }
        let names = self.spec.names;
        project_output(run, il, beside, &self.output, [names.attended, names.output])
    }
}
