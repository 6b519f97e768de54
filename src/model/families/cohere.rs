//! `command-r` (Command R, Aya), `cohere2` (Command R7B, Command A) and `cohere2moe`: attention and network
//! side by side behind one norm, a factor on the logits. The first has norms of each head in its large
//! models; the others have windows and rotate in these layers alone.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, AttentionSpec, DenseNames, DenseSpec, Embedding, ExpertsSpec, NormKind, Routing, Score,
    SharedSpec,
};
use super::stack::{
    FfnPlan, HiddenRows, LayerPlan, Norms, attention, decoder, drafting_decoder, qk_norms, rope, shared,
};
use crate::kernels::ops::{RopeKind, Window};

/// Layers from which `command-r` has norms of queries and keys: those of Command R+.
const NORMED_FROM: usize = 64;

/// The node of the one norm of a layer.
const INPUT: &str = "attn_norm";

pub(super) fn load_r(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.layer_norm_eps()?;
    let scale = l.keys.factor("logit_scale")?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rope(l, &sizes, RopeKind::Norm, false)?];
    let of = sizes.clone();
    let decoder = decoder(l, sizes, ropes, embedding, Norms::shared(NormKind::Layer, eps), |l, il| {
        let spec = attention(&of, il);
        let (q, k) = ([spec.key_len, spec.heads], [spec.key_len, spec.kv_heads]);
        let qk_norm = match of.layers >= NORMED_FROM {
            true => Some(qk_norms(l, il, NormKind::Layer, [&q, &k], eps)?.named("Qcur", "Kcur")),
            false => None,
        };
        Ok(LayerPlan::new(AttentionSpec { qk_norm, ..spec }, dense(l, &of, il)?))
    })?;
    Ok(side_by_side(decoder, scale))
}

pub(super) fn load_2(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let norms = Norms::shared(NormKind::Layer, l.layer_norm_eps()?);
    let scale = logit_scale(l)?;
    let window = l.required_window()?;
    let windowed = l.window_pattern(&sizes, 4)?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let rotation = rope(l, &sizes, RopeKind::Norm, false)?;
    rotation.is_of_windows_too(l)?;
    let of = sizes.clone();
    let decoder = decoder(l, sizes, vec![rotation], embedding, norms, |l, il| {
        let attention = windowed_attention(&of, il, window, windowed[il], false);
        Ok(LayerPlan::new(attention, dense(l, &of, il)?))
    })?;
    Ok(side_by_side(decoder, scale))
}

pub(super) fn load_2_experts(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    // An epsilon of RMS norms, if there is one, says that norms are such.
    let norms = match l.keys.factor("attention.layer_norm_rms_epsilon")? {
        Some(_) => Norms::shared(NormKind::Rms, l.rms_eps()?),
        None => Norms::shared(NormKind::Layer, l.layer_norm_eps()?),
    };
    let scale = logit_scale(l)?;
    let window = l.required_window()?;
    let windowed = l.window_pattern_full_first(&sizes, 4)?;
    let leading = l.keys.count("leading_dense_block_count")?;
    let experts = experts(l, &sizes)?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let rotation = rope(l, &sizes, RopeKind::Norm, false)?;
    rotation.is_of_windows_too(l)?;
    let of = sizes.clone();
    let norms = (norms, Some(HiddenRows::Normed));
    let decoder = drafting_decoder(l, sizes, vec![rotation], embedding, norms, |l, il| {
        // The block of multi-token prediction is rotated whatever it sees.
        let rotated = il < leading || il >= of.layers;
        let attention = windowed_attention(&of, il, window, windowed[il], rotated);
        let ffn = if il < leading { dense(l, &of, il)? } else { FfnPlan::Experts(experts.clone()) };
        Ok(LayerPlan::new(attention, ffn))
    })?;
    Ok(side_by_side(decoder, scale))
}

/// What the file says of the experts and of the network beside them, whose outputs are averaged.
fn experts(l: &mut Loader<'_>, sizes: &Sizes) -> Result<ExpertsSpec, ModelError> {
    let counts = l.required_experts(sizes)?;
    let routing = Routing::read(l, counts, Some(Score::Sigmoid))?;
    let ff = match l.keys.size("expert_feed_forward_length")? {
        Some(ff) => ff,
        None => sizes.dense_ff(&l.keys, 0)?,
    };
    let networks = l.keys.count("expert_shared_count")?;
    let shared_ff = match l.keys.count("expert_shared_feed_forward_length")? {
        0 => ff * networks,
        shared => shared,
    };
    let shared = SharedSpec { scale: Some(0.5), ..shared(shared_ff, "ffn_shexp") };
    let spec = ExpertsSpec::new(ff, Activation::SwiGlu, routing);
    Ok(ExpertsSpec { shared: Some(shared).filter(|_| networks > 0), input: INPUT, ..spec })
}

/// Attention that is rotated where it has a window, or where that is asked for.
fn windowed_attention(
    sizes: &Sizes,
    il: usize,
    window: Window,
    windowed: bool,
    rotated: bool,
) -> AttentionSpec {
    let spec = attention(sizes, il);
    let rope = spec.rope.filter(|_| windowed || rotated);
    AttentionSpec { window: Some(window).filter(|_| windowed), rope, ..spec }
}

fn dense(l: &Loader<'_>, sizes: &Sizes, il: usize) -> Result<FfnPlan, ModelError> {
    let names = DenseNames { input: INPUT, ..DenseNames::default() };
    let spec = DenseSpec::new(sizes.dense_ff(&l.keys, il)?, Activation::SwiGlu);
    Ok(FfnPlan::Dense(DenseSpec { names, ..spec }))
}

/// The factor on the logits, which may be 0 for none and may not be absent.
fn logit_scale(l: &mut Loader<'_>) -> Result<Option<f32>, ModelError> {
    match l.keys.float("logit_scale")? {
        Some(scale) => Ok(Some(scale).filter(|&scale| scale != 0.0)),
        None => Err(l.keys.problem("logit_scale", "is missing")),
    }
}

fn side_by_side(mut decoder: Decoder, logit_scale: Option<f32>) -> Decoder {
    decoder.all_layers_mut().for_each(|layer| layer.parallel = true);
    decoder.head.scale = logit_scale;
    if let Some(nextn) = &mut decoder.nextn {
        nextn.head.scale = logit_scale;
    }
    decoder
}
