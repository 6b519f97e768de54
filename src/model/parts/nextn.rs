//! What a block of multi-token prediction has before its layer: a token's embedding and the hidden row of the
//! position before it, each with a norm of its own, side by side through one projection.

use super::super::load::{Loader, Sizes};
use super::super::products::project;
use super::super::run::{Run, check_finite, look_up};
use super::super::weights::{Linear, Matrix};
use super::super::{ForwardError, Label, ModelError, NodeKind, Work};
use super::norm::{Norm, NormKind};
use crate::store::{Role, WeightId};

/// See the module.
#[derive(Debug)]
pub(in crate::model) struct NextnInput {
    /// The block's number in the file.
    il: usize,
    /// `[V, E]`: the block's own embedding, or the trunk's.
    embedding: Matrix,
    enorm: Norm,
    hnorm: Norm,
    /// `[E, 2E]`
    eh_proj: Linear,
}

impl NextnInput {
    /// Finds `nextn.eh_proj`, `nextn.enorm` and `nextn.hnorm` of block `il`, and `nextn.embed_tokens` where
    /// the file has it.
    pub fn load(
        l: &mut Loader<'_>,
        il: usize,
        sizes: &Sizes,
        embedding: Matrix,
        kind: NormKind,
        eps: f32,
    ) -> Result<NextnInput, ModelError> {
        let name = |part: &str| format!("blk.{il}.nextn.{part}");
        let own = name("embed_tokens.weight");
        let embedding = match l.weights.contains(&own) {
            true => l.weights.matrix(&own, sizes.embd, sizes.vocab, Role::Rows)?,
            false => embedding,
        };
        let mut norm = |part, node| Norm::load(l, &name(part), node, kind, sizes.embd, eps);
        let (enorm, hnorm) = (norm("enorm", "mtp_enorm")?, norm("hnorm", "mtp_hnorm")?);
        let eh_proj = l.weights.unbiased(&name("eh_proj"), 2 * sizes.embd, sizes.embd)?;
        Ok(NextnInput { il, embedding, enorm, hnorm, eh_proj })
    }

    /// The block's number in the file.
    pub fn il(&self) -> usize {
        self.il
    }

    /// What every token touches.
    pub fn weights(&self) -> impl Iterator<Item = WeightId> + use<> {
        std::iter::once(self.eh_proj.id())
    }

    /// The residual stream of the pass's tokens; `hidden`: `[T][E]`, the row of the position before each.
    pub fn forward(&self, run: &mut Run<'_>, hidden: &[f32]) -> Result<(), ForwardError> {
        let (t, embd) = (run.rows, run.embd);
        let shape = [t, embd, 1];
        run.watch.enter(Some(self.il));
        let ops = run.kernels.ops();
        let buffers = &mut *run.buffers;
        let (e, h) = (&mut buffers.x[..t * embd], &mut buffers.cur[..t * embd]);
        look_up(run.store, &self.embedding, run.segments.iter().flat_map(|segment| segment.tokens), e)?;
        let label = Label {
            weight: Some(self.embedding.described()),
            ..Label::new("mtp_tok_embd", NodeKind::Lookup, Work::Embedding, &[])
        };
        let embedded = run.watch.show(label, shape, e);
        h.copy_from_slice(hidden);
        self.hnorm.apply(ops, h);
        let h_node = run.watch.show(self.hnorm.label(&[]), shape, h);
        self.enorm.apply(ops, e);
        let e_node = run.watch.show(self.enorm.label(&[embedded]), shape, e);
        let pairs = &mut buffers.pairs[..2 * t * embd];
        for (pair, (e, h)) in
            pairs.chunks_exact_mut(2 * embd).zip(e.chunks_exact(embd).zip(h.chunks_exact(embd)))
        {
            pair[..embd].copy_from_slice(e);
            pair[embd..].copy_from_slice(h);
        }
        let inputs = [e_node, h_node];
        let label = Label::elementwise("mtp_concat", Work::Sums, &inputs);
        let pair = run.watch.show(label, [t, 2 * embd, 1], pairs);
        buffers
            .inputs
            .prepare(run.kernels.ops(), pairs, 2 * embd, [self.eh_proj.activation()])
            .map_err(ForwardError::not_finite("mtp_concat", self.il))?;
        project(run.kernels, run.store, &buffers.inputs, &mut [(&self.eh_proj, &mut *e)])?;
        let inputs = [pair];
        let weight = self.eh_proj.matrix.described();
        run.x = run.watch.show(Label::product("mtp_eh_proj", Work::Projections, weight, &inputs), shape, e);
        check_finite("mtp_eh_proj", self.il, e, embd)
    }
}
