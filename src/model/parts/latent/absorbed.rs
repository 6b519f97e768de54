//! Attention in the latents' space: queries are brought into it and what heads get is brought back, a stretch
//! of rows at a time.

use std::ops::Range;

use rayon::prelude::*;

use super::heads::{PARALLEL, by_heads, by_tokens, each_row, show_by_head};
use super::{Latent, LatentSpec, scale_by_position};
use crate::kernels::ops::{Chosen, Ops};
use crate::model::parts::indexer::Indexing;
use crate::model::products::multiply_heads;
use crate::model::run::{Run, with_rows};
use crate::model::state::{Inputs, LatentBuffers, grown};
use crate::model::weights::HeadMatrices;
use crate::model::{ForwardError, Label, Logits, NodeId, Work};
use crate::quant::{ActivationType, NonFinite};

/// A stretch of a pass's rows.
pub(super) struct Stretch<'a> {
    pub il: usize,
    pub last: bool,
    pub rows: Range<usize>,
    /// The bytes of `attn_k_b` and `attn_v_b`, where they are held for all stretches.
    pub held: Option<[&'a [u8]; 2]>,
}

impl Latent {
    /// Queries of a stretch, brought into the latents' space, to [`LatentBuffers::q`].
    pub(super) fn absorb(
        &self,
        run: &mut Run<'_>,
        stretch: &Stretch<'_>,
        k_b: &HeadMatrices,
        [q, rotated]: [NodeId<'static>; 2],
    ) -> Result<NodeId<'static>, ForwardError> {
        let LatentSpec { heads, latent, nope, .. } = self.spec;
        let (n, len, row) = (stretch.rows.len(), self.spec.query_len(), self.spec.row());
        let buffers = &mut *run.buffers;
        let queries = &buffers.q[stretch.rows.start * heads * len..stretch.rows.end * heads * len];
        let LatentBuffers { narrow, wide, by_head, q: absorbed, .. } = &mut buffers.latent;
        let narrow = grown(narrow, heads * n * nope)?;
        by_heads(queries, len, narrow, nope, [n, heads]);
        let inputs = [q];
        let label = Label::elementwise("q_nope", Work::Projections, &inputs);
        let q = show_by_head(&mut run.watch, label, [n, heads, nope], narrow);
        stretch.round(run.kernels.ops(), by_head, narrow, [heads, nope], k_b.activation(), "q")?;
        let wide = grown(wide, heads * n * latent)?;
        let held = stretch.held.map(|held| held[0]);
        multiply_heads(run.kernels, run.store, k_b, held, by_head, wide)?;
        let inputs = [q];
        let label = Label::product(self.spec.names.absorbed, Work::Projections, k_b.described(), &inputs);
        let node = show_by_head(&mut run.watch, label, [n, heads, latent], wide);
        let absorbed = grown(absorbed, n * heads * row)?;
        by_tokens(wide, latent, absorbed, row, [n, heads]);
        each_row(absorbed, row, |i, absorbed| {
            absorbed[latent..].copy_from_slice(&queries[i * len..][nope..len]);
        });
        let inputs = [node, rotated];
        let label = Label::elementwise("Qcur", Work::Projections, &inputs);
        let node = run.watch.show(label, [n, heads, row], absorbed);
        Ok(scale_by_position(run, &self.spec, stretch.rows.clone(), node))
    }

    /// Attention of a stretch's queries, to [`LatentBuffers::attended`].
    pub(super) fn attend(&self, run: &mut Run<'_>, stretch: &Stretch<'_>) -> Result<(), ForwardError> {
        let LatentSpec { heads, latent, .. } = self.spec;
        let (key_len, rows) = (self.spec.row(), stretch.rows.clone());
        let buffers = &mut *run.buffers;
        let LatentBuffers { q, attended, indexer, .. } = &mut buffers.latent;
        let attended = grown(attended, rows.len() * heads * latent)?;
        for (own, segment) in with_rows(&run.segments) {
            let here = own.start.max(rows.start)..own.end.min(rows.end);
            if here.is_empty() {
                continue;
            }
            let (from, tokens) = (here.start - rows.start, here.len());
            let out = &mut attended[from * heads * latent..][..tokens * heads * latent];
            if stretch.last && segment.logits == Logits::None {
                out.fill(0.0);
                continue;
            }
            let q = &q[from * heads * key_len..][..tokens * heads * key_len];
            let first_pos = segment.first_pos + here.start - own.start;
            // The first tokens see no more positions than are chosen.
            let most = self.indexing.as_ref().map_or(usize::MAX, Indexing::positions);
            let all = most.saturating_sub(first_pos).min(tokens);
            let (q_all, q_chosen) = q.split_at(all * heads * key_len);
            let (out_all, out_chosen) = out.split_at_mut(all * heads * latent);
            let (ops, scratch) = (run.kernels.ops(), &mut buffers.attention);
            segment.state.with_pages(self.slot, |pages| {
                let sinks = self.sinks.as_deref();
                ops.attention(&self.spec.shape(first_pos, all), q_all, pages, sinks, out_all, scratch);
                if all < tokens {
                    let shape = self.spec.shape(first_pos + all, tokens - all);
                    let masks = &indexer.masks[(here.start + all) * indexer.pages..here.end * indexer.pages];
                    let chosen = Chosen { masks, lists: 1, pages: indexer.pages };
                    ops.attention_over(&shape, q_chosen, pages, chosen, sinks, out_chosen, scratch);
                }
            });
        }
        Ok(())
    }

    /// What a stretch's heads got, brought back from the latents' space.
    pub(super) fn expand(
        &self,
        run: &mut Run<'_>,
        stretch: &Stretch<'_>,
        v_b: &HeadMatrices,
        attended: NodeId<'static>,
    ) -> Result<(), ForwardError> {
        let LatentSpec { heads, latent, value_len, .. } = self.spec;
        let n = stretch.rows.len();
        let buffers = &mut *run.buffers;
        let LatentBuffers { narrow, wide, by_head, attended: from, .. } = &mut buffers.latent;
        let wide = grown(wide, heads * n * latent)?;
        by_heads(&from[..n * heads * latent], latent, wide, latent, [n, heads]);
        stretch.round(run.kernels.ops(), by_head, wide, [heads, latent], v_b.activation(), "kqv")?;
        let narrow = grown(narrow, heads * n * value_len)?;
        let held = stretch.held.map(|held| held[1]);
        multiply_heads(run.kernels, run.store, v_b, held, by_head, narrow)?;
        let row = heads * value_len;
        let out = &mut buffers.attn[stretch.rows.start * row..stretch.rows.end * row];
        by_tokens(narrow, value_len, out, value_len, [n, heads]);
        let inputs = [attended];
        let label = Label::product(self.spec.names.attended, Work::Attention, v_b.described(), &inputs);
        run.attended = run.watch.show(label, [n, row, 1], out);
        Ok(())
    }
}

impl Stretch<'_> {
    /// Rounds the input of each head's product, `[heads][rows][cols]`.
    fn round(
        &self,
        ops: &Ops,
        by_head: &mut Vec<Inputs>,
        x: &[f32],
        [heads, cols]: [usize; 2],
        ty: ActivationType,
        node: &'static str,
    ) -> Result<(), ForwardError> {
        if by_head.len() < heads {
            by_head.resize_with(heads, Inputs::default);
        }
        if x.is_empty() {
            return Ok(());
        }
        let each = x.len() / heads;
        let of = |(inputs, x): (&mut Inputs, &[f32])| inputs.prepare(ops, x, cols, [ty]);
        let rounded: Result<Vec<()>, NonFinite> = if x.len() < PARALLEL {
            by_head.iter_mut().zip(x.chunks_exact(each)).map(of).collect()
        } else {
            let all: Vec<_> = by_head[..heads].par_iter_mut().zip(x.par_chunks_exact(each)).map(of).collect();
            all.into_iter().collect()
        };
        rounded.map(|_| ()).map_err(|at| ForwardError::NotFinite {
            node,
            layer: self.il,
            token: self.rows.start + at.row,
            index: at.index,
        })
    }
}
