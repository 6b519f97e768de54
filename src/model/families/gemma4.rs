//! `gemma4`: layers with a window whose heads are shorter than those of the others, norms of values, layers
//! that see another's keys and values, inputs of each layer of its own, experts beside the dense network, a
//! factor on each layer's output.

use super::super::ModelError;
use super::super::decoder::{Decoder, FeedForward};
use super::super::load::{ExpertCounts, Loader, Sizes};
use super::super::parts::{
    Activation, AttentionNames, AttentionSpec, DenseAndExpertsSpec, DenseSpec, Norm, NormKind,
    PerLayerInputs, PerLayerNames, Rope, Routing, Score,
};
use super::gemma::scaled_embedding;
use super::stack::{
    FfnPlan, LayerPlan, Norms, TailPlan, attention, decoder, has_router, head_norms, query_norm, rope,
};
use crate::kernels::ops::{RopeKind, Window};

const SHARED: &str = "attention.shared_kv_layers";

/// Nodes of what a layer does with its own input; ggml names the last.
const NAMES: PerLayerNames = PerLayerNames {
    gate: "per_layer_gate",
    gelu: "per_layer_gelu",
    gated: "per_layer_gated",
    product: "per_layer_output",
    normed: "per_layer_embd_out",
};

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let heads = Heads::read(l, &sizes)?;
    let soft_cap = l.keys.float("final_logit_softcapping")?.or(Some(30.0)).filter(|&cap| cap != 0.0);
    let per_layer = l.keys.count("embedding_length_per_layer_input")?;
    let experts = match l.experts(&sizes)? {
        Some(counts) => Some((counts, l.keys.required_size("expert_feed_forward_length")?)),
        None => None,
    };
    let embedding = scaled_embedding(l, &sizes)?;
    let inputs = match per_layer {
        0 => None,
        len => Some(PerLayerInputs::load(l, &sizes, len, eps)?),
    };
    let ropes = heads.ropes(l, &sizes)?;
    let of = sizes.clone();
    let mut decoder = decoder(l, sizes, ropes, embedding, Norms::around(NormKind::Rms, eps), |l, il| {
        let attention = heads.attention(l, &of, il, eps)?;
        let dense_ff = of.dense_ff(&l.keys, il)?;
        let ffn = match experts {
            Some((counts, ff)) if has_router(l, il) => FfnPlan::Both(both(counts, dense_ff, ff, eps)),
            _ => FfnPlan::Dense(DenseSpec::new(dense_ff, Activation::GeGlu)),
        };
        let tail = Some(TailPlan { per_layer, eps, names: NAMES });
        Ok(LayerPlan { tail, ..LayerPlan::new(attention, ffn) })
    })?;
    decoder.per_layer = inputs;
    decoder.head.soft_cap = soft_cap;
    for layer in &mut decoder.layers {
        layer.middle = "attn_out";
        if let Some(FeedForward::Both(_)) = &layer.ffn {
            layer.ffn_norm = layer.ffn_norm.take().map(|norm| norm.named("ffn_norm_1"));
        }
    }
    Ok(decoder)
}

fn both(
    ExpertCounts { count, used }: ExpertCounts,
    dense_ff: usize,
    expert_ff: usize,
    eps: f32,
) -> DenseAndExpertsSpec {
    let routing = Routing::new(count, used, Score::Softmax).normalised();
    let routing = Routing { of_stream: Some(eps), ..routing };
    DenseAndExpertsSpec { dense_ff, expert_ff, activation: Activation::GeGlu, routing, eps }
}

/// What the file says of the heads of both kinds of layers.
struct Heads {
    window: Window,
    windowed: Vec<bool>,
    /// Elements of a head of layers with a window.
    windowed_len: usize,
    /// Layers with keys and values of their own: the first so many.
    own: usize,
}

impl Heads {
    fn read(l: &mut Loader<'_>, sizes: &Sizes) -> Result<Heads, ModelError> {
        let window = l.required_window()?;
        let windowed = l.required_window_pattern(sizes)?;
        let windowed_len = l.keys.required_size("attention.key_length_swa")?;
        let values = [("attention.value_length", sizes.value_len, sizes.key_len), {
            let name = "attention.value_length_swa";
            (name, l.keys.required_size(name)?, windowed_len)
        }];
        for (name, values, keys) in values {
            if values != keys {
                return Err(l.keys.problem(name, format!("is {values}, where keys have {keys} elements")));
            }
        }
        let shared = l.keys.count(SHARED)?;
        if shared >= sizes.layers {
            return Err(l
                .keys
                .problem(SHARED, format!("is {shared}, where there are {} layers", sizes.layers)));
        }
        Ok(Heads { window, windowed, windowed_len, own: sizes.layers - shared })
    }

    /// The rotation of layers that see everything, with factors, and that of the others.
    fn ropes(&self, l: &mut Loader<'_>, sizes: &Sizes) -> Result<Vec<Rope>, ModelError> {
        let mut full = rope(l, sizes, RopeKind::NeoX, false)?;
        let local = Rope::windowed(l, &full, self.windowed_len, 10000.0, false)?;
        if self.windowed[..sizes.layers].iter().any(|windowed| !windowed) {
            let name = "rope_freqs.weight";
            if !l.weights.contains(name) {
                return Err(ModelError::MissingTensor { name: name.to_owned() });
            }
            full.load_factors(l, sizes.key_len / 2, sizes.context)?;
        }
        Ok(vec![full, local])
    }

    fn attention(
        &self,
        l: &mut Loader<'_>,
        sizes: &Sizes,
        il: usize,
        eps: f32,
    ) -> Result<AttentionSpec, ModelError> {
        let windowed = self.windowed[il];
        let len = if windowed { self.windowed_len } else { sizes.key_len };
        let shares = if il < self.own { None } else { Some(self.source(l, sizes, il)?) };
        let qk_norm = match shares {
            // A layer without keys may be without their norm.
            Some(_) => query_norm(l, il, len, eps)?,
            None => head_norms(l, il, len, eps)?,
        };
        let names = AttentionNames {
            flat: true,
            rotated: ("Qcur_pos", "Kcur_pos"),
            output: "attn_output",
            ..AttentionNames::default()
        };
        Ok(AttentionSpec {
            key_len: len,
            value_len: len,
            scale: 1.0,
            rope: Some(usize::from(windowed)),
            window: Some(self.window).filter(|_| windowed),
            qk_norm: Some(qk_norm),
            value_norm: Some(Norm::unweighted("Vcur_normed", len, eps)),
            keys_as_values: true,
            shares,
            names,
            ..attention(sizes, il)
        })
    }

    /// The layer whose keys and values a later one sees: the last of its own kind that has any. Layers take
    /// their slots in turn, so that its number is its slot's.
    fn source(&self, l: &Loader<'_>, sizes: &Sizes, il: usize) -> Result<usize, ModelError> {
        let back = if self.windowed[il] { 2 } else { 1 };
        let fits = |source: &usize| {
            self.windowed[*source] == self.windowed[il] && sizes.kv_heads[*source] == sizes.kv_heads[il]
        };
        self.own.checked_sub(back).filter(fits).ok_or_else(|| {
            let shared = sizes.layers - self.own;
            let what =
                format!("is {shared}, but layer {il} is not like the one whose keys and values it would see");
            l.keys.problem(SHARED, what)
        })
    }
}
