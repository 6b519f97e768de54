//! `olmo2` (OLMo 2 and 3): norms behind both blocks alone, norms of whole rows of queries and keys; in OLMo 3
//! a window on most layers. `olmoe`: the same norms of queries and keys, experts.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, AttentionNames, AttentionSpec, DenseNames, DenseSpec, Embedding, ExpertsSpec, NormKind,
    Routing, Score,
};
use super::stack::{FfnPlan, LayerPlan, Norms, attention, decoder, qk_norms, rope};
use crate::kernels::ops::RopeKind;

pub(super) fn load_2(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let window = l.sliding_window()?;
    let windowed = l.window_pattern(&sizes, 4)?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let full = rope(l, &sizes, RopeKind::NeoX, false)?;
    full.is_of_windows_too(l)?;
    // Layers with a window were not stretched: YaRN is not theirs.
    let ropes = vec![full.clone(), full.unscaled()];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, Norms::behind(NormKind::Rms, eps), |l, il| {
        let spec = normed_rows(l, &of, il, eps)?;
        let attention = match (window, windowed[il]) {
            (Some(_), true) => AttentionSpec { window, rope: Some(1), ..spec },
            _ => spec,
        };
        let names = DenseNames { input: "ffn_inp", ..DenseNames::default() };
        let dense = DenseSpec { names, ..DenseSpec::new(of.dense_ff(&l.keys, il)?, Activation::SwiGlu) };
        Ok(LayerPlan::new(attention, FfnPlan::Dense(dense)))
    })
}

pub(super) fn load_experts(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let experts = l.required_experts(&sizes)?;
    let ff = sizes.dense_ff(&l.keys, 0)?;
    l.keys.neutral("expert_feed_forward_length", &[ff as f64])?;
    l.keys.neutral("expert_gating_func", &[0.0, 1.0])?;
    l.keys.neutral("expert_weights_norm", &[0.0])?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rope(l, &sizes, RopeKind::NeoX, false)?];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, Norms::before(NormKind::Rms, eps), |l, il| {
        let routing = Routing::new(experts.count, experts.used, Score::Softmax);
        let spec = ExpertsSpec::new(ff, Activation::SwiGlu, routing);
        Ok(LayerPlan::new(normed_rows(l, &of, il, eps)?, FfnPlan::Experts(spec)))
    })
}

/// Attention with norms of all heads' queries and keys together.
fn normed_rows(l: &mut Loader<'_>, sizes: &Sizes, il: usize, eps: f32) -> Result<AttentionSpec, ModelError> {
    let spec = attention(sizes, il);
    let [q, k] = [spec.heads, spec.kv_heads].map(|heads| heads * spec.key_len);
    let qk_norm = Some(qk_norms(l, il, NormKind::Rms, [&[q], &[k]], eps)?);
    Ok(AttentionSpec { qk_norm, names: AttentionNames { flat: true, ..spec.names }, ..spec })
}
