//! `lfm2` and `lfm2moe` (Liquid's LFM2): short convolutions between gates in layers without heads of keys and
//! values, attention with norms of heads in the others.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, AttentionNames, AttentionSpec, DenseNames, DenseSpec, Embedding, ExpertsSpec, NormKind,
    Routing, Score, ShortConv, ShortConvSpec,
};
use super::stack::{
    EXP_PROBS_B, FfnPlan, LayerPlan, Norms, checked_attention, decoder, head_norms, rope, swiglu,
};
use crate::kernels::ops::{RopeKind, Window};

const INPUT: &str = "model.layers.{}.operator_norm";
/// The norm before the network: ggml gives it the network's name.
const FFN_INPUT: &str = "model.layers.{}.ffn_out";
const CONV: [&str; 3] =
    ["model.layers.{}.conv.in_proj", "model.layers.{}.conv.conv", "model.layers.{}.conv.out_proj"];

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read_mixed(l)?;
    let window = l.sliding_window()?;
    load_with(l, sizes, window, |l, sizes, il| match swiglu(l, sizes, il)? {
        FfnPlan::Dense(spec) => Ok(FfnPlan::Dense(named(spec))),
        other => Ok(other),
    })
}

pub(super) fn load_experts(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read_mixed(l)?;
    let dense_layers = l.keys.count("leading_dense_block_count")?;
    let ff = l.keys.required_size("expert_feed_forward_length")?;
    let counts = l.required_experts(&sizes)?;
    if l.keys.count("expert_gating_func")? == 0 {
        return Err(l.keys.problem("expert_gating_func", "is 0 or missing"));
    }
    l.keys.neutral("expert_weights_norm", &[1.0])?;
    let routing = Routing {
        groups: Routing::groups(l, counts.count)?,
        ..Routing::new(counts.count, counts.used, Routing::score(l, Score::Sigmoid)?).normalised()
    };
    load_with(l, sizes, None, |l, sizes, il| {
        if il < dense_layers {
            let spec = DenseSpec::new(sizes.dense_ff(&l.keys, il)?, Activation::SwiGlu);
            return Ok(FfnPlan::Dense(named(spec)));
        }
        let routing = routing.clone().with_bias(l, il, EXP_PROBS_B)?;
        let spec = ExpertsSpec::new(ff, Activation::SwiGlu, routing);
        Ok(FfnPlan::Experts(ExpertsSpec { input: FFN_INPUT, ..spec }))
    })
}

fn named(spec: DenseSpec) -> DenseSpec {
    DenseSpec { names: DenseNames { input: FFN_INPUT, ..spec.names }, ..spec }
}

fn load_with(
    l: &mut Loader<'_>,
    sizes: Sizes,
    window: Option<Window>,
    ffn: impl Fn(&mut Loader<'_>, &Sizes, usize) -> Result<FfnPlan, ModelError>,
) -> Result<Decoder, ModelError> {
    let eps = l.rms_eps()?;
    let norms = Norms {
        attn: Some(("attn_norm", INPUT)),
        ffn: Some(("ffn_norm", FFN_INPUT)),
        output: "token_embd_norm",
        ..Norms::before(NormKind::Rms, eps)
    };
    let taps = l.keys.required_size("shortconv.l_cache")?;
    if taps < 2 {
        return Err(l.keys.problem("shortconv.l_cache", "is 1, where at least 2 make sense"));
    }
    let conv = ShortConvSpec { taps, names: CONV, input: INPUT };
    let embedding = Embedding::scaled(l.token_embd(&sizes)?, None, "model.embed_tokens");
    let ropes = match sizes.key_len {
        0 => Vec::new(),
        _ => vec![rope(l, &sizes, RopeKind::NeoX, false)?],
    };
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, norms, |l, il| {
        let ffn = ffn(l, &of, il)?;
        Ok(match of.kv_heads[il] {
            0 => LayerPlan::with(ShortConv::load(l, il, of.embd, conv)?, ffn),
            _ => LayerPlan::new(attention(l, &of, il, window, eps)?, ffn),
        })
    })
}

fn attention(
    l: &mut Loader<'_>,
    sizes: &Sizes,
    il: usize,
    window: Option<Window>,
    eps: f32,
) -> Result<AttentionSpec, ModelError> {
    let spec = checked_attention(l, sizes, il)?;
    let norms = head_norms(l, il, sizes.key_len, eps)?;
    let [q, k] = ["model.layers.{}.self_attn.q_layernorm", "model.layers.{}.self_attn.k_layernorm"];
    let names = AttentionNames {
        rotated: ("Qcur_rope", "Kcur_rope"),
        output: "model.layers.{}.self_attn.out_proj",
        ..spec.names
    };
    Ok(AttentionSpec { window, qk_norm: Some(norms.named(q, k)), names, ..spec })
}
