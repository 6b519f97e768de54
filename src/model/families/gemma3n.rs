//! `gemma3n`: four residual streams, a low-rank path beside attention, inputs of each layer of its own,
//! networks that are sparse in the first layers, layers that see another's keys and values.

use super::super::ModelError;
use super::super::cut::Place;
use super::super::decoder::{Decoder, FeedForward, Layer};
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, AltUp, AltUpStreams, Attention, AttentionNames, AttentionSpec, Dense, DenseSpec, Norm,
    NormKind, PerLayerInputs, Rope, Streams,
};
use super::gemma::scaled_embedding;
use super::stack::{attention, head_norms, rope};
use crate::kernels::ops::{RopeKind, STREAMS, Window};

// Constants of the architecture in llama.cpp, which reads none of the keys that name them.
/// Layers with keys and values of their own, and those whose networks are sparse: the first so many.
const OWN_KEYS: usize = 20;
const SPARSE: usize = 10;
/// How many standard deviations above the mean a gate must be to count there: one in twenty is.
const DEVIATIONS: f32 = 1.644_853_5;
/// Elements of a layer's own input, and of the low rank.
const PER_LAYER: usize = 256;
const RANK: usize = 64;
const SOFT_CAP: f32 = 30.0;

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    check_constants(l, &sizes)?;
    let window = l.required_window()?;
    let windowed = l.window_pattern(&sizes, 5)?;
    let embedding = scaled_embedding(l, &sizes)?;
    let per_layer = Some(PerLayerInputs::load(l, &sizes, PER_LAYER, eps)?);
    let mut streams = AltUpStreams::load(l, &sizes)?;
    let full = rope(l, &sizes, RopeKind::NeoX, false)?;
    let ropes = vec![full.clone(), Rope::windowed(l, &full, sizes.key_len, 10000.0, false)?];
    let mut layers = Vec::with_capacity(sizes.layers);
    for il in 0..sizes.layers {
        l.enter(Place::Layer(il));
        let window = Some(window).filter(|_| windowed[il]);
        let spec = attention_spec(l, &sizes, il, eps, window)?;
        let sharing = spec.shares.filter(|&slot| windowed[slot] != windowed[il]);
        if sharing.is_some() {
            let what = format!("has layer {il} see the keys and values of one with another window");
            return Err(l.keys.problem("attention.sliding_window_pattern", what));
        }
        layers.push(layer(l, &sizes, il, eps, spec)?);
    }
    l.enter(Place::End);
    streams.load_end(l, &sizes)?;
    let mut head = l.head(&sizes, &embedding, "output_norm", NormKind::Rms, eps)?;
    head.soft_cap = Some(SOFT_CAP);
    let memories = std::mem::take(&mut l.memories);
    let streams: Option<Box<dyn Streams>> = Some(Box::new(streams));
    Ok(Decoder {
        sizes,
        ropes,
        embedding,
        per_layer,
        streams,
        layers,
        mixture: None,
        head,
        nextn: None,
        memories,
    })
}

/// Refuses files that name other values.
fn check_constants(l: &mut Loader<'_>, sizes: &Sizes) -> Result<(), ModelError> {
    let shared = sizes.layers.saturating_sub(OWN_KEYS);
    l.keys.neutral("attention.shared_kv_layers", &[shared as f64])?;
    l.keys.neutral("embedding_length_per_layer_input", &[PER_LAYER as f64])?;
    l.keys.neutral("altup.num_inputs", &[STREAMS as f64])?;
    l.keys.neutral("altup.active_idx", &[0.0])?;
    l.keys.neutral("final_logit_softcapping", &[f64::from(SOFT_CAP)])?;
    let name = "activation_sparsity_scale";
    for (il, found) in l.keys.floats(name, sizes.blocks)?.into_iter().flatten().enumerate() {
        let wanted = if il < SPARSE { DEVIATIONS } else { 0.0 };
        if (found - wanted).abs() > 1e-5 {
            return Err(l.keys.unsupported(name, format!("{found} in layer {il}")));
        }
    }
    Ok(())
}

fn attention_spec(
    l: &mut Loader<'_>,
    sizes: &Sizes,
    il: usize,
    eps: f32,
    window: Option<Window>,
) -> Result<AttentionSpec, ModelError> {
    let names = AttentionNames { rotated: ("Qcur_pos", "Kcur_pos"), ..AttentionNames::default() };
    // Layers take their slots in turn: a layer's number is its slot's.
    let source = OWN_KEYS - if window.is_some() { 2 } else { 1 };
    Ok(AttentionSpec {
        scale: 1.0,
        rope: Some(usize::from(window.is_some())),
        window,
        qk_norm: Some(head_norms(l, il, sizes.key_len, eps)?),
        value_norm: Some(Norm::unweighted("Vcur_normed", sizes.value_len, eps)),
        shares: Some(source).filter(|_| il >= OWN_KEYS),
        names,
        ..attention(sizes, il)
    })
}

fn layer(
    l: &mut Loader<'_>,
    sizes: &Sizes,
    il: usize,
    eps: f32,
    attention: AttentionSpec,
) -> Result<Layer, ModelError> {
    let norm =
        |l: &mut Loader<'_>, tensor, name| l.norm(il, tensor, name, NormKind::Rms, sizes, eps).map(Some);
    let sparsity = Some(DEVIATIONS).filter(|_| il < SPARSE);
    let dense =
        DenseSpec::new(sizes.dense_ff(&l.keys, il)?, Activation::SparseGeGlu { deviations: sparsity });
    // In the order of a pass.
    let mut altup = AltUp::load(l, il, sizes, RANK, eps)?;
    let mixer = Attention::load(l, il, sizes.embd, attention)?;
    let dense = Dense::load(l, il, sizes.embd, dense)?;
    altup.load_correction(l, il, sizes, PER_LAYER, eps)?;
    Ok(Layer {
        attn_norm: norm(l, "attn_norm", "attn_norm")?,
        mixer: Some(Box::new(mixer)),
        attn_post_norm: norm(l, "post_attention_norm", "attn_post_norm")?,
        ffn_norm: norm(l, "ffn_norm", "ffn_norm")?,
        ffn: Some(FeedForward::Dense(Box::new(dense))),
        ffn_post_norm: norm(l, "post_ffw_norm", "ffn_post_norm")?,
        residual_scale: None,
        normed_residual: None,
        parallel: false,
        middle: "attn_gated",
        out: "attn_ffw_laurel_gated".into(),
        tail: None,
        streams: Some(Box::new(altup)),
        earlier: None,
    })
}
