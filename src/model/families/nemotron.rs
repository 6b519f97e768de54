//! `nemotron` (Nemotron 3 and 4, Minitron), `jais2` and `arcee`: networks without a gate, with the square of
//! ReLU.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{Activation, AttentionNames, AttentionSpec, DenseSpec, Embedding, NormKind, Rope};
use super::stack::{FfnPlan, LayerPlan, Norms, attention, decoder, rope};
use crate::kernels::ops::RopeKind;

/// Layer norms with biases; halves are turned.
pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let norms = Norms::before(NormKind::Layer, l.layer_norm_eps()?);
    let rope = rope(l, &sizes, RopeKind::NeoX, false)?;
    load_with(l, sizes, norms, rope, AttentionNames::default())
}

/// The same, with other nodes.
pub(super) fn load_jais2(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let norms = Norms::before(NormKind::Layer, l.layer_norm_eps()?);
    let rope = rope(l, &sizes, RopeKind::NeoX, false)?;
    let names = AttentionNames { rotated: ("Qcur_rope", "Kcur_rope"), ..AttentionNames::default() };
    load_with(l, sizes, norms, rope, names)
}

/// Llama otherwise.
pub(super) fn load_arcee(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let norms = Norms::before(NormKind::Rms, l.rms_eps()?);
    let rope = rope(l, &sizes, RopeKind::Norm, true)?;
    load_with(l, sizes, norms, rope, AttentionNames::default())
}

fn load_with(
    l: &mut Loader<'_>,
    sizes: Sizes,
    norms: Norms,
    rope: Rope,
    names: AttentionNames,
) -> Result<Decoder, ModelError> {
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let of = sizes.clone();
    decoder(l, sizes, vec![rope], embedding, norms, |l, il| {
        let dense = DenseSpec::new(of.dense_ff(&l.keys, il)?, Activation::ReluSquared);
        let attention = AttentionSpec { names, ..attention(&of, il) };
        Ok(LayerPlan::new(attention, FfnPlan::Dense(dense)))
    })
}
