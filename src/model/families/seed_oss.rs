//! `seed_oss`: the norm that is called after attention is that before the network.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{Activation, DenseNames, DenseSpec, Embedding, NormKind};
use super::stack::{FfnPlan, LayerPlan, Norms, attention, decoder, rope};
use crate::kernels::ops::RopeKind;

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let ffn = Some(("post_attention_norm", "attn_post_norm"));
    let norms = Norms { ffn, ..Norms::before(NormKind::Rms, l.rms_eps()?) };
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rope(l, &sizes, RopeKind::NeoX, false)?];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, norms, |l, il| {
        let names = DenseNames { input: "attn_post_norm", ..DenseNames::default() };
        let dense = DenseSpec { names, ..DenseSpec::new(of.dense_ff(&l.keys, il)?, Activation::SwiGlu) };
        Ok(LayerPlan::new(attention(&of, il), FfnPlan::Dense(dense)))
    })
}
