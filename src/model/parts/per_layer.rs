//! Inputs of each layer of its own: a part of a row that each token has in a second, wide embedding, mixed
//! with a projection of the first. Gemma 3n and the small models of Gemma 4.

use super::super::load::{Loader, Sizes};
use super::super::observer::NodeName;
use super::super::products::project;
use super::super::run::{Run, look_up};
use super::super::weights::{Linear, Matrix};
use super::super::{ForwardError, Label, ModelError, NodeKind, Work};
use super::norm::{Norm, NormKind};
use crate::store::{Role, WeightId};

/// The inputs of all layers, made once a pass.
#[derive(Debug)]
pub(in crate::model) struct PerLayerInputs {
    /// `[V, L*P]`; a row a token is read.
    embedding: Matrix,
    /// `[L*P, E]`
    projection: Linear,
    /// Of each layer's part of the projection.
    norm: Norm,
    layers: usize,
    /// Elements of a layer's input: P.
    len: usize,
}

impl PerLayerInputs {
    /// `per_layer_token_embd`, `per_layer_model_proj` and `per_layer_proj_norm`, of so many elements for each
    /// layer.
    pub fn load(
        l: &mut Loader<'_>,
        sizes: &Sizes,
        len: usize,
        eps: f32,
    ) -> Result<PerLayerInputs, ModelError> {
        let all = len * sizes.layers;
        let embedding = l.weights.matrix("per_layer_token_embd.weight", all, sizes.vocab, Role::Rows)?;
        let projection = l.weights.linear("per_layer_model_proj", sizes.embd, all)?;
        let norm = Norm::load(l, "per_layer_proj_norm", "per_layer_proj", NormKind::Rms, len, eps)?;
        Ok(PerLayerInputs { embedding, projection, norm, layers: sizes.layers, len })
    }

    /// Elements of a token's inputs of all layers.
    pub fn row(&self) -> usize {
        self.layers * self.len
    }

    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        std::iter::once(self.projection.id())
    }

    /// `(norm(projection(x) / sqrt(E)) + row * sqrt(P)) / sqrt(2)` of the residual stream x, into
    /// [`Buffers::per_layer`](super::super::Buffers).
    pub fn forward(&self, run: &mut Run<'_>) -> Result<(), ForwardError> {
        let (t, n, ops) = (run.rows, self.row(), run.kernels.ops());
        let shape = [t, self.layers, self.len];
        let buffers = &mut *run.buffers;
        let (inputs, rows) = (&mut buffers.per_layer[..t * n], &mut buffers.per_layer_rows[..t * n]);
        let ids = run.segments.iter().flat_map(|segment| segment.tokens);
        look_up(run.store, &self.embedding, ids, rows)?;
        ops.scale(rows, (self.len as f32).sqrt());
        let weight = Some(self.embedding.described());
        let label =
            Label { weight, ..Label::new("inp_per_layer_selected", NodeKind::Lookup, Work::Embedding, &[]) };
        let selected = run.watch.show(label, shape, rows);
        let x = &buffers.x[..t * run.embd];
        buffers
            .inputs
            .prepare(run.kernels.ops(), x, run.embd, [self.projection.activation()])
            .map_err(ForwardError::not_finite("inp_scaled", 0))?;
        project(run.kernels, run.store, &buffers.inputs, &mut [(&self.projection, &mut *inputs)])?;
        ops.scale(inputs, 1.0 / (run.embd as f32).sqrt());
        let label = Label::product(
            "per_layer_product",
            Work::Embedding,
            self.projection.matrix.described(),
            std::slice::from_ref(&run.x),
        );
        let product = run.watch.show(label, shape, inputs);
        self.norm.apply(ops, inputs);
        let projected = run.watch.show(self.norm.label(&[product]), shape, inputs);
        ops.add(inputs, rows);
        ops.scale(inputs, 1.0 / 2f32.sqrt());
        let sources = [projected, selected];
        run.per_layer =
            run.watch.show(Label::elementwise("inp_per_layer", Work::Embedding, &sources), shape, inputs);
        Ok(())
    }
}

/// Nodes of a layer's step, the product in front and the one behind, which ggml does not name, included.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct PerLayerNames {
    pub gate: &'static str,
    pub gelu: &'static str,
    pub gated: &'static str,
    pub product: &'static str,
    pub normed: &'static str,
}

/// What a layer does with its input: `norm(proj(gelu(gate(x)) * input))`.
#[derive(Debug)]
pub(in crate::model) struct PerLayer {
    /// `[P, E]`
    gate: Linear,
    /// `[E, P]`
    output: Linear,
    norm: Norm,
    names: PerLayerNames,
    /// Elements of a token's inputs of all layers.
    row: usize,
}

impl PerLayer {
    /// `inp_gate`, `proj` and `post_norm` of a layer.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        sizes: &Sizes,
        len: usize,
        eps: f32,
        names: PerLayerNames,
    ) -> Result<PerLayer, ModelError> {
        let name = |part: &str| format!("blk.{il}.{part}");
        let gate = l.weights.linear(&name("inp_gate"), sizes.embd, len)?;
        let output = l.weights.linear(&name("proj"), len, sizes.embd)?;
        let norm = Norm::load(l, &name("post_norm"), names.normed, NormKind::Rms, sizes.embd, eps)?;
        Ok(PerLayer { gate, output, norm, names, row: len * sizes.layers })
    }

    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        [&self.gate, &self.output].into_iter().map(Linear::id)
    }

    /// Elements of its input.
    pub fn len(&self) -> usize {
        self.gate.rows()
    }

    /// From [`Buffers::cur`](super::super::Buffers) in place.
    pub fn forward(&self, run: &mut Run<'_>, il: usize) -> Result<(), ForwardError> {
        let (t, len, ops) = (run.rows, self.len(), run.kernels.ops());
        let names = self.names;
        let buffers = &mut *run.buffers;
        let (cur, gates) = (&mut buffers.cur[..t * run.embd], &mut buffers.gate[..t * len]);
        buffers
            .inputs
            .prepare(run.kernels.ops(), cur, run.embd, [self.gate.activation()])
            .map_err(ForwardError::not_finite(names.gate, il))?;
        project(run.kernels, run.store, &buffers.inputs, &mut [(&self.gate, &mut *gates)])?;
        let weight = self.gate.matrix.described();
        let label = Label::product(names.gate, Work::PerLayer, weight, std::slice::from_ref(&run.cur));
        let gate = run.watch.show(label, [t, len, 1], gates);
        ops.gelu(gates);
        let label =
            Label::new(names.gelu, NodeKind::ProductGelu, Work::PerLayer, std::slice::from_ref(&gate));
        let gelu = run.watch.show(label, [t, len, 1], gates);
        let all = buffers.per_layer.chunks_exact(self.row);
        for (gates, inputs) in gates.chunks_exact_mut(len).zip(all) {
            ops.mul(gates, &inputs[il * len..][..len]);
        }
        let inputs = [gelu, run.per_layer];
        let label = Label::elementwise(names.gated, Work::PerLayer, &inputs);
        let gated = run.watch.show(label, [t, len, 1], gates);
        buffers
            .hidden
            .prepare(run.kernels.ops(), gates, len, [self.output.activation()])
            .map_err(ForwardError::not_finite(names.gated, il))?;
        project(run.kernels, run.store, &buffers.hidden, &mut [(&self.output, &mut *cur)])?;
        let weight = self.output.matrix.described();
        let label = Label::product(names.product, Work::PerLayer, weight, std::slice::from_ref(&gated));
        run.cur = run.watch.show(label, [t, run.embd, 1], cur);
        self.norm.of_cur(run);
        Ok(())
    }
}

/// What a layer of Gemma 4 ends with behind its blocks: its input of its own, and a factor on the residual
/// stream.
#[derive(Debug, Default)]
pub(in crate::model) struct Tail {
    pub per_layer: Option<PerLayer>,
    /// `layer_output_scale`
    pub scale: Option<f32>,
}

impl Tail {
    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        self.per_layer.iter().flat_map(PerLayer::weights)
    }

    /// Values of a token in the buffer of hidden rows.
    pub fn hidden(&self) -> usize {
        self.per_layer.as_ref().map_or(0, PerLayer::len)
    }

    /// Adds [`Buffers::cur`](super::super::Buffers), the output of the layer's last block, to the residual
    /// stream, then what the layer's own input gives; the sum times the factor is the node `out`.
    pub fn finish(&self, run: &mut Run<'_>, il: usize, out: NodeName) -> Result<(), ForwardError> {
        let before_scale = |named: NodeName| if self.scale.is_some() { "unscaled_out".into() } else { named };
        match &self.per_layer {
            Some(per_layer) => {
                run.add_to_stream("pe_in", il)?;
                run.copy_stream();
                per_layer.forward(run, il)?;
                run.add_to_stream(before_scale(out), il)?;
            }
            None => run.add_to_stream(before_scale(out), il)?,
        }
        match self.scale {
            Some(scale) => run.scale_stream(scale, out, il),
            None => Ok(()),
        }
    }
}
