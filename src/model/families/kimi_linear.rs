//! `kimi-linear` (Kimi Linear): Kimi Delta Attention in layers without heads of keys and values, latent
//! attention without any rotation in the others; experts with a network beside them, after some dense layers.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, DeltaNetSpec, Embedding, ExpertsSpec, Kda, KdaKind, Latent, LatentNames, LatentSpec,
    MAX_HEAD, NormKind, Rate, Routing, Score,
};
use super::stack::{EXP_PROBS_B, FfnPlan, LayerPlan, MixerPlan, Norms, decoder, shared, swiglu};
use crate::kernels::ops::HeadMap;

const KDA: KdaKind = KdaKind {
    decay: &["ssm_f_a", "ssm_f_b"],
    gate: &["ssm_g_a", "ssm_g_b"],
    names: ["g1 f_b(f_a(cur))", "g2 g_b(g_a(cur_2d))", "kda_g1"],
    strengths: ("kda_beta", None),
    flat: false,
    rate: Rate::Softplus,
};

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read_mixed(l)?;
    let eps = l.rms_eps()?;
    let delta_net = delta_net(l, &sizes, eps)?;
    let latent = latent(l, &sizes, eps)?;
    let leading = l.keys.count("leading_dense_block_count")?;
    let experts = experts(l, &sizes)?;
    let embedding = Embedding::scaled(l.token_embd(&sizes)?, None, "model.embed_tokens");
    let of = sizes.clone();
    decoder(l, sizes, Vec::new(), embedding, Norms::before(NormKind::Rms, eps), |l, il| {
        let mixer = mixer(l, il, &of, (delta_net, KDA), &latent)?;
        let ffn = match il < leading {
            true => swiglu(l, &of, il)?,
            false => {
                let bias = l.weights.vector(&format!("blk.{il}.{EXP_PROBS_B}"), experts.routing.count)?;
                let routing = Routing { choice_bias: Some(bias), ..experts.routing.clone() };
                FfnPlan::Experts(ExpertsSpec { routing, ..experts.clone() })
            }
        };
        Ok(LayerPlan { mixer, ffn, tail: None })
    })
}

/// A delta net where a layer has no head of keys, latent attention where it has one.
pub(super) fn mixer(
    l: &mut Loader<'_>,
    il: usize,
    sizes: &Sizes,
    (delta_net, kind): (DeltaNetSpec, KdaKind),
    latent: &LatentSpec,
) -> Result<MixerPlan, ModelError> {
    Ok(MixerPlan::Made(match sizes.kv_heads[il] {
        0 => Box::new(Kda::load(l, il, sizes.embd, delta_net, kind)?),
        1 => Box::new(Latent::load(l, il, sizes.embd, latent.clone())?),
        n => {
            let what = format!("is {n} in layer {il}, where 0 or 1 is needed");
            return Err(l.keys.problem("attention.head_count_kv", what));
        }
    }))
}

/// The sizes of delta nets.
pub(super) fn delta_net(l: &mut Loader<'_>, sizes: &Sizes, eps: f32) -> Result<DeltaNetSpec, ModelError> {
    let heads = sizes.heads[0];
    if heads == 0 || sizes.heads.iter().any(|&n| n != heads) {
        return Err(l.keys.problem("attention.head_count", "is 0 or differs from layer to layer"));
    }
    let taps = l.keys.required_size("ssm.conv_kernel")?;
    let len = l.keys.required_size("kda.head_dim")?;
    if taps < 2 {
        return Err(l.keys.problem("ssm.conv_kernel", format!("is {taps}, where at least 2 are needed")));
    }
    if len > MAX_HEAD {
        return Err(l.keys.problem("kda.head_dim", format!("is {len}, where at most {MAX_HEAD} make sense")));
    }
    Ok(DeltaNetSpec {
        heads,
        key_heads: heads,
        map: HeadMap::Tiled,
        len,
        taps,
        eps,
        l2_eps: eps,
        sigmoid: false,
    })
}

/// Latent attention with the weights of each head. What RoPE would rotate is only what heads share.
pub(super) fn latent(l: &mut Loader<'_>, sizes: &Sizes, eps: f32) -> Result<LatentSpec, ModelError> {
    let keys = &mut l.keys;
    keys.harmless(&["rope.freq_base"]);
    let latent = keys.required_size("attention.kv_lora_rank")?;
    let key_len = keys.required_size("attention.key_length_mla")?;
    let value_len = keys.required_size("attention.value_length_mla")?;
    let shared = keys.required_size("rope.dimension_count")?;
    if key_len <= shared {
        let what = format!("is {key_len}, of which {shared} are shared");
        return Err(keys.problem("attention.key_length_mla", what));
    }
    if sizes.key_len != latent + shared {
        let what = format!("is {}, where {latent} and {shared} are {}", sizes.key_len, latent + shared);
        return Err(keys.problem("attention.key_length", what));
    }
    Ok(LatentSpec {
        heads: sizes.heads[0],
        q_rank: None,
        latent,
        nope: key_len - shared,
        rope: shared,
        rotated: false,
        value_len,
        absorbed: true,
        scale: 1.0 / (key_len as f32).sqrt(),
        temperature: None,
        sinks: false,
        gate: None,
        eps,
        names: LatentNames { latent: "Vcur", output: "mla_out", ..LatentNames::default() },
        indexing: None,
    })
}

/// The experts of all layers but the first.
fn experts(l: &mut Loader<'_>, sizes: &Sizes) -> Result<ExpertsSpec, ModelError> {
    let counts = l.required_experts(sizes)?;
    let ff = l.keys.required_size("expert_feed_forward_length")?;
    let networks = l.keys.count("expert_shared_count")?.max(1);
    if l.keys.count("expert_gating_func")? == 0 {
        return Err(l.keys.problem("expert_gating_func", "is 0 or missing"));
    }
    l.keys.neutral("expert_weights_norm", &[1.0])?;
    let routing = Routing {
        score: Routing::score(l, Score::Sigmoid)?,
        groups: Routing::groups(l, counts.count)?,
        scale: l.keys.factor("expert_weights_scale")?.filter(|&scale| scale != 1.0),
        ..Routing::new(counts.count, counts.used, Score::Sigmoid).normalised()
    };
    let shared = Some(shared(ff * networks, "ffn_shexp"));
    Ok(ExpertsSpec { shared, ..ExpertsSpec::new(ff, Activation::SwiGlu, routing) })
}
