//! `qwen3` and `qwen3moe`: norms of each head's queries and keys; the text parts of `qwen3vl` and
//! `qwen3vlmoe`.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{Activation, AttentionSpec, Embedding, ExpertsSpec, NormKind, Routing, Score};
use super::stack::{FfnPlan, LayerPlan, Norms, attention, decoder, expert_sizes, head_norms, rope, swiglu};
use crate::kernels::ops::RopeKind;

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    load_with(l, None, swiglu_of)
}

pub(super) fn load_experts(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    load_with(l, None, experts())
}

pub(super) fn load_vl(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sections = images(l)?;
    load_with(l, Some(sections), swiglu_of)
}

pub(super) fn load_vl_experts(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sections = images(l)?;
    load_with(l, Some(sections), experts())
}

fn swiglu_of(l: &mut Loader<'_>, sizes: &Sizes, il: usize) -> Result<FfnPlan, ModelError> {
    swiglu(l, sizes, il)
}

/// The experts of every layer.
fn experts() -> impl FnMut(&mut Loader<'_>, &Sizes, usize) -> Result<FfnPlan, ModelError> {
    let mut found = None;
    move |l, sizes, _| {
        let experts = match found {
            Some(experts) => experts,
            None => *found.insert(expert_sizes(l, sizes)?),
        };
        let routing = Routing::new(experts.count, experts.used, Score::Softmax).normalised();
        Ok(FfnPlan::Experts(ExpertsSpec::new(experts.ff, Activation::SwiGlu, routing)))
    }
}

/// How pairs are shared among positions. How many layers add a part of an image's embedding matters to images
/// alone: it is 0 for text.
fn images(l: &mut Loader<'_>) -> Result<Vec<usize>, ModelError> {
    l.keys.count("n_deepstack_layers")?;
    let sections = l.rope_sections()?;
    sections.ok_or_else(|| l.keys.problem("rope.dimension_sections", "is missing"))
}

fn load_with(
    l: &mut Loader<'_>,
    sections: Option<Vec<usize>>,
    mut ffn: impl FnMut(&mut Loader<'_>, &Sizes, usize) -> Result<FfnPlan, ModelError>,
) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let rope = rope(l, &sizes, RopeKind::NeoX, false)?;
    let ropes = vec![match sections {
        Some(sections) => rope.of_text(&sections, true),
        None => rope,
    }];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, Norms::before(NormKind::Rms, eps), |l, il| {
        let qk_norm = Some(head_norms(l, il, of.key_len, eps)?);
        let attention = AttentionSpec { qk_norm, ..attention(&of, il) };
        Ok(LayerPlan::new(attention, ffn(l, &of, il)?))
    })
}
