//! `qwen35` and `qwen35moe` (Qwen 3.5 and later): three layers of four are gated delta nets, the others have
//! attention whose queries come with gates; also what `qwen3next` has in common with them.

use super::super::ModelError;
use super::super::decoder::Decoder;
use super::super::load::{Loader, Sizes};
use super::super::parts::{
    Activation, AttentionNames, AttentionSpec, DeltaNet, DeltaNetSpec, DenseNames, DenseSpec, Embedding,
    ExpertsSpec, Gate, MAX_HEAD, Merged, NormKind, Rope, Routing, Score, SharedSpec,
};
use super::stack::{
    FfnPlan, HiddenRows, LayerPlan, Norms, attention, drafting_decoder, expert_sizes, head_norms, rope,
    shared,
};
use crate::kernels::ops::{HeadMap, RopeKind};

/// One layer in so many has attention, where the file does not say.
pub(super) const FULL_ATTENTION_INTERVAL: usize = 4;
/// The input of the networks.
const FFN_INPUT: &str = "attn_post_norm";

pub(super) fn load(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    load_with(l, |l, sizes, il| {
        let names = DenseNames { input: FFN_INPUT, ..DenseNames::default() };
        let spec = DenseSpec::new(sizes.dense_ff(&l.keys, il)?, Activation::SwiGlu);
        Ok(FfnPlan::Dense(DenseSpec { names, ..spec }))
    })
}

pub(super) fn load_experts(l: &mut Loader<'_>) -> Result<Decoder, ModelError> {
    load_with(l, experts())
}

fn load_with(
    l: &mut Loader<'_>,
    ffn: impl FnMut(&mut Loader<'_>, &Sizes, usize) -> Result<FfnPlan, ModelError>,
) -> Result<Decoder, ModelError> {
    let sizes = Sizes::read(l)?;
    let sections = l.rope_sections()?;
    let sections = sections.ok_or_else(|| l.keys.problem("rope.dimension_sections", "is missing"))?;
    let rope = rope(l, &sizes, RopeKind::NeoX, false)?.of_text(&sections, true);
    let merged = |_: &Loader<'_>, _| Merged { projections: false, strengths: false };
    hybrid(l, sizes, rope, "model.input_embed", HeadMap::Tiled, merged, ffn)
}

/// The experts of every layer, beside a shared network with a gate.
pub(super) fn experts() -> impl FnMut(&mut Loader<'_>, &Sizes, usize) -> Result<FfnPlan, ModelError> {
    let mut found = None;
    move |l, sizes, _| {
        let (experts, shared_ff) = match found {
            Some(found) => found,
            None => {
                let experts = expert_sizes(l, sizes)?;
                let shared_ff = match l.keys.count("expert_shared_feed_forward_length")? {
                    0 => sizes.dense_ff(&l.keys, 0)?,
                    ff => ff,
                };
                *found.insert((experts, shared_ff))
            }
        };
        let routing = Routing::new(experts.count, experts.used, Score::Softmax).normalised();
        let gate = Some(["shared_expert_gate", "shared_expert_gate_sigmoid", "ffn_shexp_gated"]);
        let shared = Some(SharedSpec { gate, ..shared(shared_ff, "ffn_shexp") });
        let spec = ExpertsSpec::new(experts.ff, Activation::SwiGlu, routing);
        Ok(FfnPlan::Experts(ExpertsSpec { shared, input: FFN_INPUT, ..spec }))
    }
}

/// A decoder of both kinds of layers.
pub(super) fn hybrid(
    l: &mut Loader<'_>,
    sizes: Sizes,
    rope: Rope,
    embedding: &'static str,
    map: HeadMap,
    merged: impl Fn(&Loader<'_>, usize) -> Merged,
    mut ffn: impl FnMut(&mut Loader<'_>, &Sizes, usize) -> Result<FfnPlan, ModelError>,
) -> Result<Decoder, ModelError> {
    let eps = l.rms_eps()?;
    let recurrent = recurrent_layers(l, &sizes, FULL_ATTENTION_INTERVAL)?;
    let delta_net = delta_net(l, eps, map)?;
    if sizes.value_len != sizes.key_len {
        let what = format!("is {}, where keys and their gates have {}", sizes.value_len, sizes.key_len);
        return Err(l.keys.problem("attention.value_length", what));
    }
    let embedding = Embedding::scaled(l.token_embd(&sizes)?, None, embedding);
    let of = sizes.clone();
    let norms =
        Norms { ffn: Some(("post_attention_norm", "attn_post_norm")), ..Norms::before(NormKind::Rms, eps) };
    let norms = (norms, Some(HiddenRows::Normed));
    let mut decoder = drafting_decoder(l, sizes, vec![rope], embedding, norms, |l, il| {
        // The block of multi-token prediction has attention whatever the file says of it.
        Ok(match recurrent[il] && il < of.layers {
            true => {
                let merged = merged(l, il);
                LayerPlan::with(DeltaNet::load(l, il, of.embd, delta_net, merged)?, ffn(l, &of, il)?)
            }
            false => LayerPlan::new(normed_and_gated(l, &of, il, eps)?, ffn(l, &of, il)?),
        })
    })?;
    decoder.all_layers_mut().for_each(|layer| layer.middle = "attn_residual");
    Ok(decoder)
}

/// Which layers are recurrent: as the file says of each, or all but every so manieth, by default every
/// `interval`th.
pub(super) fn recurrent_layers(
    l: &mut Loader<'_>,
    sizes: &Sizes,
    interval: usize,
) -> Result<Vec<bool>, ModelError> {
    let interval = l.keys.size("full_attention_interval")?.unwrap_or(interval);
    let flags = l.keys.layer_flags("attention.recurrent_layers", sizes.layers, sizes.blocks)?;
    Ok(flags.unwrap_or_else(|| (1..=sizes.blocks).map(|n| !n.is_multiple_of(interval)).collect()))
}

/// The sizes of delta nets, from the keys of state spaces.
pub(super) fn delta_net(l: &mut Loader<'_>, eps: f32, map: HeadMap) -> Result<DeltaNetSpec, ModelError> {
    let keys = &mut l.keys;
    let taps = keys.required_size("ssm.conv_kernel")?;
    let inner = keys.required_size("ssm.inner_size")?;
    let len = keys.required_size("ssm.state_size")?;
    let heads = keys.required_size("ssm.time_step_rank")?;
    let key_heads = keys.required_size("ssm.group_count")?;
    if taps < 2 {
        return Err(keys.problem("ssm.conv_kernel", format!("is {taps}, where at least 2 are needed")));
    }
    if len > MAX_HEAD {
        return Err(keys.problem("ssm.state_size", format!("is {len}, where at most {MAX_HEAD} make sense")));
    }
    if !heads.is_multiple_of(key_heads) {
        return Err(
            keys.problem("ssm.group_count", format!("is {key_heads}, which does not divide {heads} heads"))
        );
    }
    if inner != heads * len {
        let what = format!("is {inner}, where {heads} heads of {len} are {}", heads * len);
        return Err(keys.problem("ssm.inner_size", what));
    }
    Ok(DeltaNetSpec { heads, key_heads, map, len, taps, eps, l2_eps: eps, sigmoid: false })
}

/// Attention with norms of heads, and gates within the projection of queries.
pub(super) fn normed_and_gated(
    l: &mut Loader<'_>,
    sizes: &Sizes,
    il: usize,
    eps: f32,
) -> Result<AttentionSpec, ModelError> {
    let names = AttentionNames {
        queries: "Qcur_full",
        flat: true,
        attended: "attn_pregate",
        output: "attn_output",
        ..AttentionNames::default()
    };
    let gate = Gate { per_head: false, names: ["gate_reshaped", "gate_sigmoid", "attn_gated"] };
    let qk_norm = Some(head_norms(l, il, sizes.key_len, eps)?);
    Ok(AttentionSpec { qk_norm, gate: Some(gate), gate_in_queries: true, names, ..attention(sizes, il) })
}
