//! `llama`: Llama 2 and 3, Mistral, and Mixtral with its experts; InternLM 2 differs from it in the name
//! alone. `mistral3`: Ministral 3 and Devstral 2.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, AttentionSpec, DenseSpec, Embedding, ExpertsSpec, NormKind, Routing, Score, Temperature,
};
use super::stack::{FfnPlan, LayerPlan, Norms, attention, decoder, rope};
use crate::kernels::ops::RopeKind;

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    load_with(l, |_, _| Ok(None))
}

pub(super) fn load_mistral3(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    load_with(l, temperature)
}

/// Queries that grow from the original context on.
fn temperature(l: &mut Loader<'_>, sizes: &Sizes) -> Result<Option<Temperature>, ModelError> {
    let Some(scale) = l.keys.factor("attention.temperature_scale")? else { return Ok(None) };
    let original = l.keys.size("rope.scaling.original_context_length")?.unwrap_or(sizes.context);
    Ok(Some(Temperature { scale, floor: original as f32, offset: 0.0 }))
}

fn load_with(
    l: &mut Loader<'_>,
    temperature: impl Fn(&mut Loader<'_>, &Sizes) -> Result<Option<Temperature>, ModelError>,
) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let norms = Norms::before(NormKind::Rms, l.rms_eps()?);
    let experts = l.experts(&sizes)?;
    let expert_ff = l.keys.size("expert_feed_forward_length")?;
    let window = l.sliding_window()?;
    let scale = l.keys.factor("attention.scale")?;
    let temperature = temperature(l, &sizes)?;
    l.keys.neutral("expert_gating_func", &[0.0, 1.0])?;
    l.keys.neutral("expert_weights_norm", &[1.0])?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rope(l, &sizes, RopeKind::Norm, true)?];
    let plan = sizes.clone();
    decoder(l, sizes, ropes, embedding, norms, |l, il| {
        let spec = attention(&plan, il);
        let attention = AttentionSpec { window, temperature, scale: scale.unwrap_or(spec.scale), ..spec };
        let ffn = match experts {
            Some(experts) => {
                let ff = expert_ff.map_or_else(|| plan.dense_ff(&l.keys, il), Ok)?;
                let routing = Routing::new(experts.count, experts.used, Score::Softmax).normalised();
                FfnPlan::Experts(ExpertsSpec::new(ff, Activation::SwiGlu, routing))
            }
            None => FfnPlan::Dense(DenseSpec::new(plan.dense_ff(&l.keys, il)?, Activation::SwiGlu)),
        };
        Ok(LayerPlan::new(attention, ffn))
    })
}
