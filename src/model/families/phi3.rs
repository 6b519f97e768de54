//! `phi3` (Phi 3 and 4) and `phimoe` (Phi 3.5 MoE): queries, keys and values of one tensor, gate and up of
//! another, LongRoPE.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, AttentionNames, AttentionSpec, Embedding, ExpertsSpec, NormKind, Routing, Score,
};
use super::stack::{FfnPlan, LayerPlan, Norms, attention, decoder, rope, swiglu};
use crate::kernels::ops::RopeKind;

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    load_with(l, |l, sizes, il| swiglu(l, sizes, il))
}

/// The norms have biases, and so has the output; an expert is as long as a dense network would be.
pub(super) fn load_experts(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    load_with(l, |l, sizes, il| {
        let experts = l.required_experts(sizes)?;
        let routing = Routing::new(experts.count, experts.used, Score::Softmax).normalised();
        let ff = sizes.dense_ff(&l.keys, il)?;
        Ok(FfnPlan::Experts(ExpertsSpec::new(ff, Activation::SwiGlu, routing)))
    })
}

fn load_with(
    l: &mut Loader<'_>,
    ffn: impl Fn(&mut Loader<'_>, &Sizes, usize) -> Result<FfnPlan, ModelError>,
) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let norms = Norms::before(NormKind::Rms, l.rms_eps()?);
    // Files name the window that the first of these models had; llama.cpp has it switched off, for later
    // files name one that is not there.
    l.keys.count("attention.sliding_window")?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rope(l, &sizes, RopeKind::NeoX, true)?];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, norms, |l, il| {
        let spec = attention(&of, il);
        let names = AttentionNames { scaled_queries: "Qcur", ..AttentionNames::default() };
        let attention = AttentionSpec { scale: 1.0, query_scale: Some(spec.scale), names, ..spec };
        Ok(LayerPlan::new(attention, ffn(l, &of, il)?))
    })
}
