//! `chatglm` (GLM-4-9B of 2024 and its kin): Llama with a rotated half and gate and up in one tensor. `glm4`
//! (GLM-4-0414 and GLM-Z1): norms around both blocks. `glm4moe` (GLM-4.5 to 4.7): experts of which a bias
//! decides, and a network beside them, after some dense layers. Both also of models that see images.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{ExpertCounts, Loader, Sizes};
use super::super::parts::{
    Activation, AttentionSpec, DenseNames, DenseSpec, Embedding, ExpertsSpec, NormKind, Rope, Routing, Score,
    SharedSpec,
};
use super::stack::{
    EXP_PROBS_B, FfnPlan, HiddenRows, LayerPlan, Norms, attention, decoder, drafting_decoder, expert_sizes,
    head_norms, rope, swiglu,
};
use crate::kernels::ops::RopeKind;

pub(super) fn load_chat(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let norms = Norms::before(NormKind::Rms, l.rms_eps()?);
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rope(l, &sizes, RopeKind::Norm, false)?];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, norms, |l, il| {
        Ok(LayerPlan::new(attention(&of, il), swiglu(l, &of, il)?))
    })
}

pub(super) fn load_4(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let norms = Norms {
        attn_post: Some(("post_attention_norm", "post_attn_norm")),
        ffn_post: Some(("post_ffw_norm", "post_mlp_norm")),
        ..Norms::before(NormKind::Rms, l.rms_eps()?)
    };
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rotation(l, &sizes, RopeKind::Norm)?];
    let of = sizes.clone();
    decoder(l, sizes, ropes, embedding, norms, |l, il| {
        Ok(LayerPlan::new(attention(&of, il), swiglu(l, &of, il)?))
    })
}

/// A model that sees images turns halves, whatever the others turn.
fn rotation(l: &mut Loader<'_>, sizes: &Sizes, otherwise: RopeKind) -> Result<Rope, ModelError> {
    let sections = l.rope_sections()?;
    match sections.filter(|sections| sections[0] > 0 && sections[1] > 0) {
        Some(sections) => Ok(rope(l, sizes, RopeKind::NeoX, false)?.of_text(&sections, false)),
        None => rope(l, sizes, otherwise, false),
    }
}

/// The node of the networks' input.
const INPUT: &str = "post_attn_norm";

pub(super) fn load_4_moe(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let eps = l.rms_eps()?;
    // The norm that is called after attention is that before the network.
    let norms = Norms { ffn: Some(("post_attention_norm", INPUT)), ..Norms::before(NormKind::Rms, eps) };
    let experts = expert_sizes(l, &sizes)?;
    let counts = ExpertCounts { count: experts.count, used: experts.used };
    let routing = Routing::read(l, counts, Some(Score::Sigmoid))?;
    let shared = l.keys.required_size("expert_shared_count")?;
    let dense_layers = l.keys.count("leading_dense_block_count")?;
    let embedding = Embedding::plain(l.token_embd(&sizes)?);
    let ropes = vec![rotation(l, &sizes, RopeKind::NeoX)?];
    let of = sizes.clone();
    drafting_decoder(l, sizes, ropes, embedding, (norms, Some(HiddenRows::Normed)), |l, il| {
        let normed = ["attn_q_norm", "attn_k_norm"]
            .iter()
            .any(|norm| l.weights.contains(&format!("blk.{il}.{norm}.weight")));
        let qk_norm = if normed { Some(head_norms(l, il, of.key_len, eps)?) } else { None };
        let attention = AttentionSpec { qk_norm, ..attention(&of, il) };
        let names = DenseNames { input: INPUT, ..DenseNames::default() };
        if il < dense_layers {
            let dense = DenseSpec { ff: of.dense_ff(&l.keys, il)?, activation: Activation::SwiGlu, names };
            return Ok(LayerPlan::new(attention, FfnPlan::Dense(dense)));
        }
        let names = DenseNames { suffix: "_shexp", output: "ffn_shexp_out", ..names };
        let dense = DenseSpec { ff: experts.ff * shared, activation: Activation::SwiGlu, names };
        let spec = ExpertsSpec {
            shared: Some(SharedSpec { dense, gate: None, sum: "ffn_out", scale: None }),
            input: INPUT,
            ..ExpertsSpec::new(experts.ff, Activation::SwiGlu, routing.clone().with_bias(l, il, EXP_PROBS_B)?)
        };
        Ok(LayerPlan::new(attention, FfnPlan::Experts(spec)))
    })
}
