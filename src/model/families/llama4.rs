//! `llama4` (Scout, Maverick): attention within chunks on most layers, the others without rotation; norms
//! without weights behind the rotation; experts that see their input times the weight, and a network beside
//! them.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, AttentionNames, DenseNames, DenseSpec, Embedding, ExpertsSpec, Norm, NormKind, QkNorm, Rope,
    Routing, Score, SharedSpec, Temperature,
};
use super::stack::{FfnPlan, LayerPlan, Norms, attention, decoder, rope, swiglu};
use crate::kernels::ops::{RopeKind, Window};

/// Positions of a chunk, and those from which queries grow: constants of the architecture in llama.cpp.
const CHUNK: usize = 8192;
const TEMPERATURE: Temperature = Temperature { scale: 0.1, floor: 8192.0, offset: 1.0 };
/// Every so manieth layer is not rotated.
const UNROTATED: usize = 4;
/// The number of experts by which llama.cpp knows Maverick, which has no norms of queries and keys.
const WITHOUT_QK_NORM: usize = 128;
/// The node of the experts' input. ggml gives its name, `ffn_norm`, to the output of attention.
const INPUT: &str = "ffn_inp_normed";

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    let experts = l.required_experts(&sizes)?;
    let ff = l.keys.required_size("expert_feed_forward_length")?;
    let step = l.keys.required_size("interleave_moe_layer_step")?;
    l.keys.neutral("expert_gating_func", &[0.0, 2.0])?;
    l.keys.neutral("expert_weights_norm", &[0.0])?;
    l.keys.neutral("attention.sliding_window", &[CHUNK as f64])?;
    let chunked = l.window_pattern(&sizes, UNROTATED)?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let full = rope(l, &sizes, RopeKind::Norm, true)?;
    let base = full.params.base;
    let ropes = vec![full.clone(), Rope::windowed(l, &full, sizes.key_len, base, true)?];
    let of = sizes.clone();
    let has_experts = |il: usize| (il + 1).is_multiple_of(step);
    let mut decoder = decoder(l, sizes, ropes, embedding, Norms::before(NormKind::Rms, eps), |l, il| {
        let mut spec = attention(&of, il);
        if chunked[il] {
            spec.window = Some(Window::Chunked(CHUNK));
            spec.rope = Some(1);
        }
        if (il + 1).is_multiple_of(UNROTATED) {
            spec.rope = None;
            spec.temperature = Some(TEMPERATURE);
        } else if experts.count != WITHOUT_QK_NORM {
            let norm = |name| Norm::unweighted(name, of.key_len, eps);
            let (q, k) = (norm("Qcur_normed"), norm("Kcur_normed"));
            spec.qk_norm = Some(QkNorm { q, k: Some(k), after_rope: true });
        }
        let renamed = has_experts(il) && il + 1 < of.layers;
        let output = if renamed { "ffn_norm" } else { "attn_out" };
        spec.names = AttentionNames { temperature: "Qcur", output, ..AttentionNames::default() };
        if !has_experts(il) {
            return Ok(LayerPlan::new(spec, swiglu(l, &of, il)?));
        }
        let names = DenseNames { suffix: "_shexp", input: INPUT, output: "ffn_moe_shexp" };
        let dense = DenseSpec { ff, activation: Activation::SwiGlu, names };
        let routing = Routing::new(experts.count, experts.used, Score::SigmoidOfChosen);
        let ffn = FfnPlan::Experts(ExpertsSpec {
            weighs_input: true,
            shared: Some(SharedSpec { dense, gate: None, sum: "ffn_moe_out_merged", scale: None }),
            input: INPUT,
            ..ExpertsSpec::new(ff, Activation::SwiGlu, routing)
        });
        Ok(LayerPlan::new(spec, ffn))
    })?;
    for (_, layer) in decoder.layers.iter_mut().enumerate().filter(|(il, _)| has_experts(*il)) {
        layer.ffn_norm = layer.ffn_norm.take().map(|norm| norm.named(INPUT));
    }
    Ok(decoder)
}
