//! Attention over a window and compressed keys (DeepSeek V4): one head of keys, which are values as well,
//! for all heads of queries; of the positions before the window, or of all, one key stands for several. Of
//! these a token attends to all that it sees, or to those that an indexer chooses. Source: ggml's deepseek4.

mod attend;
mod compressor;
mod spec;

use super::super::load::Loader;
use super::super::products::{multiply_heads, project};
use super::super::run::Run;
use super::super::state::{CompressedBuffers, Inputs, LatentBuffers, grown};
use super::super::weights::{HeadMatrices, Linear};
use super::super::{
    ChoiceSizes, ForwardError, Label, MemorySpec, ModelError, NodeId, NodeKind, RowSizes, ScratchSizes, Work,
};
use super::Mixer;
use super::attention::keep;
use super::latent::{by_heads, by_tokens, plain, show_by_head};
use super::norm::{Norm, NormKind};
use super::rope::Rope;
use crate::kernels::ops::PAGE;
use crate::store::WeightId;
use attend::RowIndexer;
use compressor::{CHOSEN, Compressor, Purpose, WHOLE};
pub(in crate::model) use spec::{CompressedSpec, Compression, RowIndexing};

/// The attention of a layer.
#[derive(Debug)]
pub(in crate::model) struct Compressed {
    spec: CompressedSpec,
    /// Keys of the window.
    slot: usize,
    q_a: Linear,
    q_a_norm: Norm,
    q_b: Linear,
    /// Of each head's queries.
    q_norm: Norm,
    kv: Linear,
    kv_norm: Norm,
    sinks: Vec<f32>,
    compressor: Option<Compressor>,
    indexer: Option<RowIndexer>,
    /// `[R, len * heads / groups]` a group
    output_a: HeadMatrices,
    output_b: Linear,
}

impl Compressed {
    /// Finds the weights of a layer: `attn_q_a` and `attn_q_b` with the norm between them, `attn_kv` and its
    /// norm, `attn_sinks`, `attn_compressor_*`, `indexer*`, `attn_output_a`, `attn_output_b`. `rope` is the
    /// rotation of the layer.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        embd: usize,
        rope: &Rope,
        spec: CompressedSpec,
    ) -> Result<Compressed, ModelError> {
        let name = |part: &str| format!("blk.{il}.{part}");
        let CompressedSpec { heads, len, rotated, q_rank, groups, out_rank, eps, .. } = spec;
        let q_a = plain(l, &name("attn_q_a"), embd, q_rank)?;
        let kv = plain(l, &name("attn_kv"), embd, len)?;
        let purpose = |compression: &Compression| Purpose {
            tensor: "attn_compressor",
            names: if compression.indexing.is_some() { CHOSEN } else { WHOLE },
            ratio: compression.ratio,
            len,
            overlaps: compression.indexing.is_some(),
            rotated,
            spread: 0,
            eps,
            buffer: 0,
        };
        let compressor = match &spec.compression {
            Some(compression) => Some(Compressor::load(l, il, embd, rope, purpose(compression))?),
            None => None,
        };
        let indexing = spec.compression.as_ref().and_then(|c| Some((c.ratio, c.indexing?)));
        let indexer = match indexing {
            Some((ratio, indexing)) => Some(RowIndexer::load(l, il, embd, rope, &spec, ratio, indexing)?),
            None => None,
        };
        let q_a_norm = Norm::load(l, &name("attn_q_a_norm"), "qr_norm", NormKind::Rms, q_rank, eps)?;
        let q_b = plain(l, &name("attn_q_b"), q_rank, heads * len)?;
        let q_norm = Norm::unweighted("q_norm", len, eps);
        let kv_norm = Norm::load(l, &name("attn_kv_a_norm"), "kv_norm", NormKind::Rms, len, eps)?;
        let sinks = l.weights.vector(&name("attn_sinks.weight"), heads)?;
        let cols = heads / groups * len;
        let output_a = l.weights.grouped(&name("attn_output_a.weight"), cols, out_rank, groups)?;
        let output_b = plain(l, &name("attn_output_b"), groups * out_rank, embd)?;
        let window = Some(spec.window);
        let slot = l.remember(MemorySpec::Pages { kv_heads: 1, key_len: len, value_len: 0, window });
        Ok(Compressed {
            spec,
            slot,
            q_a,
            q_a_norm,
            q_b,
            q_norm,
            kv,
            kv_norm,
            sinks,
            compressor,
            indexer,
            output_a,
            output_b,
        })
    }

    fn compressors(&self) -> impl Iterator<Item = &Compressor> {
        self.compressor.iter().chain(self.indexer.iter().map(|indexer| &indexer.compressor))
    }

    /// All products of the block's input, in one parallel region.
    fn project_input(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let (t, embd) = (run.rows, run.embd);
        let buffers = &mut *run.buffers;
        let LatentBuffers { low_q, indexer, compressed, .. } = &mut buffers.latent;
        let CompressedBuffers { values, scores, .. } = compressed;
        let mut outputs = vec![
            (&self.q_a, grown(low_q, t * self.spec.q_rank)?),
            (&self.kv, &mut buffers.k[..t * self.spec.len]),
        ];
        for ((compressor, values), scores) in self.compressors().zip(values).zip(scores) {
            outputs.extend(compressor.outputs(values, scores, t)?);
        }
        if let Some(own) = &self.indexer {
            outputs.push(own.weights_output(indexer, t)?);
        }
        let types = outputs.iter().map(|(linear, _)| linear.activation());
        buffers
            .inputs
            .prepare(run.kernels.ops(), &buffers.cur[..t * embd], embd, types)
            .map_err(ForwardError::not_finite("attn_norm", il))?;
        project(run.kernels, run.store, &buffers.inputs, &mut outputs)?;
        Ok(())
    }

    /// Queries of all heads, normed and rotated, and those of the indexer.
    fn queries(&self, run: &mut Run<'_>, il: usize) -> Result<NodeId<'static>, ForwardError> {
        let CompressedSpec { heads, len, rotated, q_rank, rope, .. } = self.spec;
        let (t, ops) = (run.rows, run.kernels.ops());
        let buffers = &mut *run.buffers;
        let low = &mut buffers.latent.low_q[..t * q_rank];
        let inputs = [run.cur];
        let label = Label::product("qr", Work::Projections, self.q_a.matrix.described(), &inputs);
        let node = run.watch.show(label, [t, q_rank, 1], low);
        self.q_a_norm.apply(ops, low);
        let inputs = [node];
        let low_node = run.watch.show(self.q_a_norm.label(&inputs), [t, q_rank, 1], low);
        let q = &mut buffers.q[..t * heads * len];
        let mut outputs = vec![(&self.q_b, &mut *q)];
        if let Some(own) = &self.indexer {
            outputs.push(own.queries_output(&mut buffers.latent.indexer, t)?);
        }
        let types = outputs.iter().map(|(linear, _)| linear.activation());
        buffers
            .hidden
            .prepare(run.kernels.ops(), low, q_rank, types)
            .map_err(ForwardError::not_finite("qr_norm", il))?;
        project(run.kernels, run.store, &buffers.hidden, &mut outputs)?;
        // ggml gives the product no name.
        self.q_norm.apply(ops, q);
        let inputs = [low_node];
        let node = run.watch.show(self.q_norm.label(&inputs), [t, heads, len], q);
        ops.rope_behind(run.rope_kinds[rope], &buffers.rope[rope], q, heads, len, len - rotated);
        let inputs = [node];
        let node = run.watch.show(Label::new("q", NodeKind::Rope, Work::Rope, &inputs), [t, heads, len], q);
        if let Some(own) = &self.indexer {
            own.rotate(run, low_node, rope);
        }
        Ok(node)
    }

    /// Keys, normed and rotated.
    fn keys(&self, run: &mut Run<'_>) -> NodeId<'static> {
        let CompressedSpec { len, rotated, rope, .. } = self.spec;
        let (t, ops) = (run.rows, run.kernels.ops());
        let buffers = &mut *run.buffers;
        let k = &mut buffers.k[..t * len];
        self.kv_norm.apply(ops, k);
        let inputs = [run.cur];
        let node = run.watch.show(self.kv_norm.label(&inputs), [t, 1, len], k);
        ops.rope_behind(run.rope_kinds[rope], &buffers.rope[rope], k, 1, len, len - rotated);
        let inputs = [node];
        run.watch.show(Label::new("kv", NodeKind::Rope, Work::Rope, &inputs), [t, 1, len], k)
    }

    /// Turns what attention gave back by each token's position: values were rotated as keys.
    fn turn_back(&self, run: &mut Run<'_>) {
        let CompressedSpec { heads, len, rotated, rope, .. } = self.spec;
        let (t, ops) = (run.rows, run.kernels.ops());
        let buffers = &mut *run.buffers;
        let out = &mut buffers.attn[..t * heads * len];
        let back = &mut buffers.latent.compressed.back;
        back.reverse(&buffers.rope[rope]);
        ops.rope_behind(run.rope_kinds[rope], back, out, heads, len, len - rotated);
        let inputs = [run.attended];
        let label = Label::new("attn_derope", NodeKind::Rope, Work::Rope, &inputs);
        run.attended = run.watch.show(label, [t, heads, len], out);
    }

    /// The projection of each group of heads, to the buffer of queries: `[T][groups][R]`.
    fn project_groups(&self, run: &mut Run<'_>, il: usize) -> Result<NodeId<'static>, ForwardError> {
        let CompressedSpec { heads, len, groups, out_rank, .. } = self.spec;
        let (t, cols) = (run.rows, heads / groups * len);
        let buffers = &mut *run.buffers;
        let LatentBuffers { narrow, wide, by_head, .. } = &mut buffers.latent;
        let narrow = grown(narrow, groups * t * cols)?;
        by_heads(&buffers.attn[..t * groups * cols], cols, narrow, cols, [t, groups]);
        if by_head.len() < groups {
            by_head.resize_with(groups, Inputs::default);
        }
        for (inputs, x) in by_head.iter_mut().zip(narrow.chunks_exact((t * cols).max(1))) {
            inputs.prepare(run.kernels.ops(), x, cols, [self.output_a.activation()]).map_err(|at| {
                ForwardError::NotFinite { node: "attn_derope", layer: il, token: at.row, index: at.index }
            })?;
        }
        let wide = grown(wide, groups * t * out_rank)?;
        multiply_heads(run.kernels, run.store, &self.output_a, None, by_head, wide)?;
        let inputs = [run.attended];
        let weight = self.output_a.described();
        let label = Label::product("attn_wo_a", Work::AttentionOutput, weight, &inputs);
        let node = show_by_head(&mut run.watch, label, [t, groups, out_rank], wide);
        by_tokens(wide, out_rank, &mut buffers.q[..t * groups * out_rank], out_rank, [t, groups]);
        Ok(node)
    }
}

impl Mixer for Compressed {
    fn weights(&self) -> Box<dyn Iterator<Item = WeightId> + '_> {
        let compressors = self.compressors().flat_map(Compressor::weights);
        let indexer = self.indexer.iter().flat_map(RowIndexer::weights);
        let first = [self.q_a.id(), self.kv.id()].into_iter().chain(compressors).chain(indexer);
        Box::new(first.chain([self.q_b.id(), self.output_a.id(), self.output_b.id()]))
    }

    fn rows(&self) -> RowSizes {
        let CompressedSpec { heads, len, groups, out_rank, .. } = self.spec;
        RowSizes { q: (heads * len).max(groups * out_rank), k: len, v: 0, gate: 0, attended: heads * len }
    }

    fn scratch(&self) -> ScratchSizes {
        let CompressedSpec { heads, len, q_rank, groups, out_rank, .. } = self.spec;
        let indexer = self.indexer.as_ref().map_or_else(ScratchSizes::default, RowIndexer::scratch);
        let compressors: usize = self.compressors().map(Compressor::scratch).sum();
        // What each group has, once more for its rounding.
        let output = 2 * heads * len + groups * out_rank;
        // Masks over compressed keys and the window's together, and the choice of an indexer.
        let choice = self.compressor.as_ref().map_or_else(ChoiceSizes::default, |compressor| ChoiceSizes {
            masks: 1 + indexer.choice.masks,
            per_key: compressor.ratio(),
            others: self.spec.window.len().div_ceil(PAGE) + 2,
            scores: indexer.choice.scores,
        });
        let row = q_rank + compressors + output + indexer.row;
        ScratchSizes { row, attention: Some(self.shape(0, usize::MAX)), choice, ..ScratchSizes::default() }
    }

    fn remember(&self, run: &mut Run<'_>, il: usize) -> Result<[NodeId<'static>; 3], ForwardError> {
        self.project_input(run, il)?;
        let q = self.queries(run, il)?;
        let k = self.keys(run);
        keep(
            run.kernels.ops(),
            &mut run.segments,
            il,
            self.slot,
            [("kv", &run.buffers.k[..], self.spec.len), ("", &[], 0)],
        )?;
        for compressor in self.compressors() {
            compressor.remember(run, il)?;
        }
        Ok([q, k, k])
    }

    fn mix(
        &self,
        run: &mut Run<'_>,
        il: usize,
        last: bool,
        inputs: [NodeId<'static>; 3],
    ) -> Result<(), ForwardError> {
        if let Some(indexer) = &self.indexer {
            indexer.choose(run, last)?;
        }
        self.attend(run, last)?;
        let (t, row) = (run.rows, self.spec.heads * self.spec.len);
        let others = self.compressed_inputs().iter();
        let others = others.map(|&name| NodeId { name, layer: Some(il), occurrence: 0 });
        let inputs: Vec<NodeId<'static>> = inputs[..2].iter().copied().chain(others).collect();
        let label = Label::new(self.attended_name(), NodeKind::SinkAttention, Work::Attention, &inputs);
        run.attended = run.watch.show(label, [t, row, 1], &mut run.buffers.attn[..t * row]);
        Ok(())
    }

    fn output(&self, run: &mut Run<'_>, il: usize, beside: bool) -> Result<NodeId<'static>, ForwardError> {
        self.turn_back(run);
        let node = self.project_groups(run, il)?;
        let (t, cols) = (run.rows, self.output_b.matrix.cols);
        let buffers = &mut *run.buffers;
        buffers
            .inputs
            .prepare(run.kernels.ops(), &buffers.q[..t * cols], cols, [self.output_b.activation()])
            .map_err(ForwardError::not_finite("attn_wo_a", il))?;
        let out = if beside { &mut buffers.beside } else { &mut buffers.cur };
        let out = &mut out[..t * run.embd];
        project(run.kernels, run.store, &buffers.inputs, &mut [(&self.output_b, &mut *out)])?;
        let inputs = [node];
        let weight = self.output_b.matrix.described();
        let label = Label::product("attn_out", Work::AttentionOutput, weight, &inputs);
        Ok(run.watch.show(label, [t, run.embd, 1], out))
    }
}
