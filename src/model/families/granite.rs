//! `granite`, `granitemoe`, `granitehybrid` and `minicpm`: factors on the embedding, on what is added to the
//! residual stream, on scores and on logits. The hybrid has Mamba 2 in layers without heads of keys and
//! values.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, AttentionSpec, Embedding, ExpertsSpec, Mamba2, Mamba2Spec, NormKind, Routing, Score,
};
use super::stack::{FfnPlan, LayerPlan, Norms, checked_attention, decoder, rope, shared, swiglu};
use crate::kernels::ops::RopeKind;

const SSM: &[&str] =
    &["ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.inner_size", "ssm.time_step_rank"];

/// The factors; `None` leaves values as they are.
struct Scales {
    embedding: Option<f32>,
    /// On the outputs of attention and network.
    residual: Option<f32>,
    /// On scores, instead of `1 / sqrt(key_len)`.
    attention: Option<f32>,
    /// What logits are divided by.
    logits: Option<f32>,
}

/// What else differs.
struct Variant {
    scales: Scales,
    /// Whether positions are rotated.
    rotated: bool,
    /// Hidden length of the network beside the experts; 0: none.
    shared_ff: usize,
    /// The blocks of layers without heads of keys and values.
    mamba: Option<Mamba2Spec>,
}

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let rotated = rotated(l)?;
    // Where images enter, which a text does not have.
    l.keys.harmless(&["deepstack_mapping"]);
    load_granite(l, rotated)
}

pub(super) fn load_experts(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    l.keys.neutral("rope.scaling.finetuned", &[1.0])?;
    load_granite(l, true)
}

/// The family's switch for the rotation.
fn rotated(l: &mut Loader<'_>) -> Result<bool, ModelError> {
    Ok(l.keys.flag("rope.scaling.finetuned")?.unwrap_or(true))
}

fn load_granite(l: &mut Loader<'_>, rotated: bool) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    // Granite 4 without recurrent layers: what these would be is written all the same.
    l.keys.harmless(SSM);
    let scales = scales(l)?;
    if scales.logits.is_none() {
        return Err(l.keys.problem("logit_scale", "is 0 or missing"));
    }
    let shared_ff = l.keys.count("expert_shared_feed_forward_length")?;
    load_with(l, sizes, &Variant { scales, rotated, shared_ff, mamba: None })
}

pub(super) fn load_hybrid(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let rotated = rotated(l)?;
    let sizes = Sizes::read_mixed(l)?;
    let eps = l.rms_eps()?;
    let mamba = Some(Mamba2Spec::read(l, eps)?);
    let scales = scales(l)?;
    let shared_ff = l.keys.count("expert_shared_feed_forward_length")?;
    load_with(l, sizes, &Variant { scales, rotated, shared_ff, mamba })
}

fn scales(l: &mut Loader<'_>) -> Result<Scales, ModelError> {
    Ok(Scales {
        embedding: l.keys.factor("embedding_scale")?,
        residual: l.keys.factor("residual_scale")?,
        attention: l.keys.factor("attention.scale")?,
        logits: l.keys.factor("logit_scale")?,
    })
}

/// Older files of MiniCPM name no factors.
pub(super) fn load_minicpm(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let mut scale = |name: &str, default: f32| Ok::<_, ModelError>(l.keys.float(name)?.unwrap_or(default));
    let scales = Scales {
        embedding: Some(scale("embedding_scale", 12.0)?).filter(|&scale| scale != 0.0),
        residual: Some(scale("residual_scale", 1.4 / (sizes.layers as f32).sqrt())?)
            .filter(|&scale| scale != 0.0),
        attention: None,
        logits: Some(scale("logit_scale", 256.0 / sizes.embd as f32)?),
    };
    if scales.logits == Some(0.0) {
        return Err(l.keys.problem("logit_scale", "is 0 or missing"));
    }
    load_with(l, sizes, &Variant { scales, rotated: true, shared_ff: 0, mamba: None })
}

fn load_with(l: &mut Loader<'_>, sizes: Sizes, variant: &Variant) -> Result<Decoder, ModelError> {
    let Variant { scales, rotated, shared_ff, mamba } = variant;
    let norms = Norms::before(NormKind::Rms, l.rms_eps()?);
    let experts = l.experts(&sizes)?;
    l.keys.neutral("expert_gating_func", &[0.0, 1.0])?;
    l.keys.neutral("expert_weights_norm", &[1.0])?;
    let embedding = Embedding::scaled(l.token_embd(&sizes)?, scales.embedding, "embd");
    let ropes = match sizes.key_len {
        0 => Vec::new(),
        _ => vec![rope(l, &sizes, RopeKind::Norm, true)?],
    };
    let of = sizes.clone();
    let mut decoder = decoder(l, sizes, ropes, embedding, norms, |l, il| {
        let ffn = match experts {
            None => swiglu(l, &of, il)?,
            Some(experts) => {
                let routing = Routing::new(experts.count, experts.used, Score::Softmax).normalised();
                let spec = ExpertsSpec::new(of.dense_ff(&l.keys, il)?, Activation::SwiGlu, routing);
                let shared = (*shared_ff > 0).then(|| shared(*shared_ff, "ffn_shexp"));
                FfnPlan::Experts(ExpertsSpec { shared, ..spec })
            }
        };
        if let Some(mamba) = mamba.filter(|_| of.kv_heads[il] == 0) {
            return Ok(LayerPlan::with(Mamba2::load(l, il, of.embd, mamba)?, ffn));
        }
        let spec = checked_attention(l, &of, il)?;
        let scale = scales.attention.unwrap_or(spec.scale);
        Ok(LayerPlan::new(AttentionSpec { scale, rope: Some(0).filter(|_| *rotated), ..spec }, ffn))
    })?;
    decoder.layers.iter_mut().for_each(|layer| layer.residual_scale = scales.residual);
    decoder.head.scale = scales.logits.map(|scale| 1.0 / scale);
    Ok(decoder)
}
