//! `mimo2` (MiMo V2): values shorter than keys, sinks in layers with a window, a factor on what attention
//! gives.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, AttentionSpec, Embedding, ExpertsSpec, NormKind, Rope, Routing, Score,
};
use super::stack::{
    EXP_PROBS_B, FfnPlan, HiddenRows, LayerPlan, Norms, attention, drafting_decoder, has_router, rope, swiglu,
};
use crate::kernels::ops::RopeKind;

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let norms = (Norms::before(NormKind::Rms, l.rms_eps()?), Some(HiddenRows::Plain));
    let window = Some(l.required_window()?);
    let windowed = l.required_window_pattern(&sizes)?;
    let output_scale = l.keys.factor("attention.value_scale")?.filter(|&scale| scale != 1.0);
    let experts = experts(l, &sizes)?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let full = rope(l, &sizes, RopeKind::NeoX, false)?;
    l.keys.neutral("rope.dimension_count_swa", &[full.params.n_dims as f64])?;
    let ropes = vec![full.clone(), Rope::windowed(l, &full, sizes.key_len, 10000.0, false)?];
    let of = sizes.clone();
    drafting_decoder(l, sizes, ropes, embedding, norms, |l, il| {
        l.refuse(il, &["attn_qkv.bias", "attn_q.bias", "attn_k.bias", "attn_v.bias"])?;
        let sinks = l.weights.contains(&format!("blk.{il}.attn_sinks.weight"));
        let spec = AttentionSpec { sinks, output_scale, ..attention(&of, il) };
        let attention = match windowed[il] {
            true => AttentionSpec { window, rope: Some(1), ..spec },
            false => spec,
        };
        let ffn = match &experts {
            _ if !has_router(l, il) => swiglu(l, &of, il)?,
            Some(experts) => {
                let routing = experts.routing.clone().biased(l, il, EXP_PROBS_B)?;
                FfnPlan::Experts(ExpertsSpec { routing, ..experts.clone() })
            }
            None => return Err(l.keys.problem("expert_count", "is 0 or missing")),
        };
        Ok(LayerPlan::new(attention, ffn))
    })
}

/// What the file says of experts, wherever there are some.
fn experts(l: &mut Loader<'_>, sizes: &Sizes) -> Result<Option<ExpertsSpec>, ModelError> {
    // The tensors say which layers have experts.
    l.keys.harmless(&["leading_dense_block_count"]);
    l.keys.neutral("expert_gating_func", &[0.0, 2.0])?;
    l.keys.neutral("expert_weights_norm", &[1.0])?;
    let ff = l.keys.required_size("expert_feed_forward_length")?;
    let Some(counts) = l.experts(sizes)? else { return Ok(None) };
    let routing = Routing {
        groups: Routing::groups(l, counts.count)?,
        ..Routing::new(counts.count, counts.used, Score::Sigmoid).normalised()
    };
    Ok(Some(ExpertsSpec::new(ff, Activation::SwiGlu, routing)))
}
