//! `starcoder2`: layer norms, biases everywhere, GELU without a gate.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{Activation, DenseSpec, Embedding, NormKind};
use super::stack::{FfnPlan, LayerPlan, Norms, attention, decoder, rope};
use crate::kernels::ops::RopeKind;

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let norms = Norms::before(NormKind::Layer, l.layer_norm_eps()?);
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rope(l, &sizes, RopeKind::NeoX, false)?];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, norms, |l, il| {
        let dense = DenseSpec::new(of.dense_ff(&l.keys, il)?, Activation::Gelu);
        Ok(LayerPlan::new(attention(&of, il), FfnPlan::Dense(dense)))
    })
}
