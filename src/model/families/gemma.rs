//! `gemma`, `gemma2` and `gemma3`: a scaled embedding, GELU. The latter two have norms around both blocks and
//! a window on most layers; Gemma 2 has soft caps, Gemma 3 norms of queries and keys and a base of its own
//! for the window.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{Activation, AttentionSpec, DenseSpec, Embedding, NormKind, Rope};
use super::stack::{FfnPlan, LayerPlan, Norms, attention, decoder, head_norms, rope};
use crate::kernels::ops::{RopeKind, Window};

/// What differs between Gemma 2 and 3.
struct Generation {
    /// The window, where the file names none.
    window: Option<usize>,
    /// Every so manieth layer sees everything.
    pattern: usize,
    /// Layers of the model whose queries are scaled by the embedding's share of a head.
    largest: usize,
    /// Base of the window's rotation, where it is not the other's.
    window_base: Option<f32>,
    qk_norm: bool,
    /// Whether ggml numbers the node of the last norm by its layer.
    ffn_post_numbered: bool,
    /// Caps of scores and logits, where the file names none.
    soft_caps: [Option<f32>; 2],
}

pub(super) fn load_1(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let norms = Norms::before(NormKind::Rms, l.rms_eps()?);
    let embedding = scaled_embedding(l, &sizes)?;
    let ropes = vec![rope(l, &sizes, RopeKind::NeoX, false)?];
    let of = sizes.clone();
    let mut decoder = decoder(l, sizes, ropes, embedding, norms, |l, il| {
        let spec = attention(&of, il);
        let attention = AttentionSpec { scale: 1.0, query_scale: Some(spec.scale), ..spec };
        let dense = DenseSpec::new(of.dense_ff(&l.keys, il)?, Activation::GeGlu);
        Ok(LayerPlan::new(attention, FfnPlan::Dense(dense)))
    })?;
    decoder.layers.iter_mut().for_each(|layer| layer.middle = "sa_out");
    Ok(decoder)
}

/// Rows times the root of their length.
pub(super) fn scaled_embedding(l: &mut Loader<'_>, sizes: &Sizes) -> Result<Embedding, ModelError> {
    Ok(Embedding::scaled(l.token_embd(sizes)?, Some((sizes.embd as f32).sqrt()), "inp_scaled"))
}

pub(super) fn load_2(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let soft_caps = [Some(50.0), Some(30.0)];
    load(
        l,
        &Generation {
            window: Some(4096),
            pattern: 2,
            largest: 46,
            window_base: None,
            qk_norm: false,
            ffn_post_numbered: false,
            soft_caps,
        },
    )
}

pub(super) fn load_3(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let (window_base, soft_caps) = (Some(10000.0), [None; 2]);
    load(
        l,
        &Generation {
            window: None,
            pattern: 6,
            largest: 62,
            window_base,
            qk_norm: true,
            ffn_post_numbered: true,
            soft_caps,
        },
    )
}

fn load(l: &mut Loader<'_>, generation: &Generation) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let window = match l.sliding_window()? {
        None => generation.window.map(Window::Sliding),
        window => window,
    };
    let windowed = l.window_pattern(&sizes, generation.pattern)?;
    let [of_scores, of_logits] = generation.soft_caps;
    let score_cap = match of_scores {
        Some(default) => l.keys.float("attn_logit_softcapping")?.or(Some(default)).filter(|&cap| cap != 0.0),
        None => None,
    };
    let logit_cap = l.keys.float("final_logit_softcapping")?.or(of_logits).filter(|&cap| cap != 0.0);
    let embedding = scaled_embedding(l, &sizes)?;
    let full = rope(l, &sizes, RopeKind::NeoX, false)?;
    let base = generation.window_base.unwrap_or(full.params.base);
    let local = Rope::windowed(l, &full, sizes.key_len, base, generation.window_base.is_none())?;
    let ropes = vec![full, local];
    let of = sizes.clone();
    let ffn_post_numbered = generation.ffn_post_numbered;
    let norms = Norms { ffn_post_numbered, ..Norms::around(NormKind::Rms, eps) };
    let mut decoder = decoder(l, sizes, ropes, embedding, norms, |l, il| {
        let share = if of.layers == generation.largest { of.embd / of.heads[0] } else { of.key_len };
        let qk_norm = if generation.qk_norm { Some(head_norms(l, il, of.key_len, eps)?) } else { None };
        let spec = AttentionSpec {
            scale: 1.0,
            query_scale: Some(1.0 / (share as f32).sqrt()),
            soft_cap: score_cap,
            qk_norm,
            ..attention(&of, il)
        };
        let attention = match (windowed[il], window) {
            (true, Some(_)) => AttentionSpec { window, rope: Some(1), ..spec },
            _ => spec,
        };
        let dense = DenseSpec::new(of.dense_ff(&l.keys, il)?, Activation::GeGlu);
        Ok(LayerPlan::new(attention, FfnPlan::Dense(dense)))
    })?;
    decoder.layers.iter_mut().for_each(|layer| layer.middle = "sa_out");
    decoder.head.soft_cap = logit_cap;
    Ok(decoder)
}
