//! `exaone` (3 and 3.5): Llama of other pairs. `exaone4`: norms behind both blocks alone, norms of each
//! head's queries and keys; the model of 64 layers has windows and rotates in these layers alone.
//! `exaone-moe` (K-EXAONE): norms before both blocks, experts beside a shared network.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, AttentionSpec, DenseNames, DenseSpec, Embedding, ExpertsSpec, NormKind, Routing,
};
use super::stack::{
    EXP_PROBS_B, FfnPlan, LayerPlan, Norms, attention, decoder, head_norms, rope, shared, swiglu,
};
use crate::kernels::ops::{RopeKind, Window};

/// Layers of the model of `exaone4` that has windows, and how many positions they see.
const WINDOWED_LAYERS: usize = 64;
const WINDOW: usize = 4096;

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let norms = Norms::before(NormKind::Rms, l.rms_eps()?);
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rope(l, &sizes, RopeKind::NeoX, true)?];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, norms, |l, il| {
        Ok(LayerPlan::new(attention(&of, il), swiglu(l, &of, il)?))
    })
}

pub(super) fn load_4(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let windows = match sizes.layers == WINDOWED_LAYERS {
        true => {
            let window = l.keys.size("attention.sliding_window")?.unwrap_or(WINDOW);
            Some((Window::Sliding(window), l.window_pattern(&sizes, 4)?))
        }
        false => None,
    };
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let rotation = rope(l, &sizes, RopeKind::NeoX, true)?;
    rotation.is_of_windows_too(l)?;
    let of = sizes.clone();
    decoder(l, sizes, vec![rotation], embedding, Norms::behind(NormKind::Rms, eps), |l, il| {
        let window = windows.as_ref().map(|(window, windowed)| Some(*window).filter(|_| windowed[il]));
        let names = DenseNames { input: "ffn_inp", ..DenseNames::default() };
        let dense = DenseSpec { names, ..DenseSpec::new(of.dense_ff(&l.keys, il)?, Activation::SwiGlu) };
        Ok(LayerPlan::new(normed(l, &of, il, eps, window)?, FfnPlan::Dense(dense)))
    })
}

pub(super) fn load_experts(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let window = l.required_window()?;
    let windowed = l.window_pattern(&sizes, 4)?;
    let leading = l.keys.count("leading_dense_block_count")?;
    let experts = experts(l, &sizes)?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let rotation = rope(l, &sizes, RopeKind::NeoX, true)?;
    rotation.is_of_windows_too(l)?;
    let of = sizes.clone();
    decoder(l, sizes, vec![rotation], embedding, Norms::before(NormKind::Rms, eps), |l, il| {
        let attention = normed(l, &of, il, eps, Some(Some(window).filter(|_| windowed[il])))?;
        let ffn = match il < leading {
            true => swiglu(l, &of, il)?,
            false => {
                let routing = experts.routing.clone().biased(l, il, EXP_PROBS_B)?;
                FfnPlan::Experts(ExpertsSpec { routing, ..experts.clone() })
            }
        };
        Ok(LayerPlan::new(attention, ffn))
    })
}

fn experts(l: &mut Loader<'_>, sizes: &Sizes) -> Result<ExpertsSpec, ModelError> {
    let counts = l.required_experts(sizes)?;
    let routing = Routing::read(l, counts, None)?;
    let ff = l.keys.required_size("expert_feed_forward_length")?;
    // The shared networks are one, whose length the other key has.
    l.keys.harmless(&["expert_shared_count"]);
    let shared_ff = l.keys.size("expert_shared_feed_forward_length")?.unwrap_or(ff);
    Ok(ExpertsSpec {
        shared: Some(shared(shared_ff, "ffn_shexp")),
        ..ExpertsSpec::new(ff, Activation::SwiGlu, routing)
    })
}

/// Attention with norms of each head. `window`: `Some` in models with windows, whose other layers are not
/// rotated.
fn normed(
    l: &mut Loader<'_>,
    sizes: &Sizes,
    il: usize,
    eps: f32,
    window: Option<Option<Window>>,
) -> Result<AttentionSpec, ModelError> {
    let spec = AttentionSpec { window: window.flatten(), ..attention(sizes, il) };
    let norm = head_norms(l, il, sizes.key_len, eps)?;
    Ok(match window {
        // ggml names what would have been rotated.
        Some(None) => AttentionSpec { rope: None, qk_norm: Some(norm.named("Qcur", "Kcur")), ..spec },
        _ => AttentionSpec { qk_norm: Some(norm), ..spec },
    })
}
