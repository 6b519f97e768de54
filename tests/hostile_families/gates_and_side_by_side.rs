//! OLMo 2 and OLMoE, Command R, Cohere 2, EXAONE 4 and K-EXAONE, Step 3.5, MiMo V2 and Arcee's Trinity.

use crate::common::gguf::{Data, GgufBuilder, ty};
use crate::common::tiny::layers;
use crate::routers_and_scales::{EMBD, EXPERTS, FF, HEAD, Spoil, of};
use crate::windows_and_images::without;
use crate::{refused, sound};

/// Heads of queries of the tiny model.
const HEADS: u64 = 4;
/// Elements of its keys.
const KEYS: u64 = EMBD / 2;
/// Layers from which Command R has norms of heads, and those of the EXAONE 4 that has windows.
const MANY: u32 = 64;

/// Norms behind both blocks instead of before them.
fn behind(arch: &str) -> GgufBuilder {
    without(of(arch), &["attn_norm", "ffn_norm"])
        .values_of("blk.0.post_attention_norm.weight", &[EMBD])
        .values_of("blk.0.post_ffw_norm.weight", &[EMBD])
}

fn olmo2() -> GgufBuilder {
    behind("olmo2")
        .values_of("blk.0.attn_q_norm.weight", &[EMBD])
        .values_of("blk.0.attn_k_norm.weight", &[KEYS])
        .key("attention.sliding_window", 4u32)
        .key("attention.sliding_window_pattern", vec![true])
        .key("rope.scaling.type", "yarn")
        .key("rope.scaling.factor", 8.0f32)
        .key("rope.scaling.original_context_length", 32u32)
        .key("rope.scaling.yarn_attn_factor", 1.207_944_2f32)
}

fn olmoe() -> GgufBuilder {
    of("olmoe")
        .experts(0)
        .key("feed_forward_length", FF as u32)
        .values_of("blk.0.attn_q_norm.weight", &[EMBD])
        .values_of("blk.0.attn_k_norm.weight", &[KEYS])
}

/// One norm for both blocks.
fn cohere(arch: &str) -> GgufBuilder {
    without(of(arch), &["ffn_norm"])
        .key("attention.layer_norm_epsilon", 1e-5f32)
        .key("logit_scale", 0.25f32)
        .no_key("attention.layer_norm_rms_epsilon")
}

/// Norms of each head, with weights of its own.
fn command_r_plus() -> GgufBuilder {
    let model = cohere("command-r")
        .values_of("blk.0.attn_q_norm.weight", &[HEAD, HEADS])
        .values_of("blk.0.attn_k_norm.weight", &[HEAD, HEADS / 2]);
    layers(model, MANY)
}

fn cohere2() -> GgufBuilder {
    cohere("cohere2").key("attention.sliding_window", 4u32)
}

/// Experts alone, beside two shared networks.
fn cohere2moe() -> GgufBuilder {
    without(of("cohere2moe").experts(2 * FF), &["ffn_norm"])
        .no_key("attention.layer_norm_rms_epsilon")
        .key("attention.layer_norm_epsilon", 1e-5f32)
        .key("logit_scale", 0.25f32)
        .key("attention.sliding_window", 4u32)
        .key("attention.sliding_window_pattern", vec![true])
        .key("leading_dense_block_count", 0u32)
        .key("expert_feed_forward_length", FF as u32)
        .key("expert_shared_count", 2u32)
        .key("expert_weights_norm", true)
}

fn exaone4() -> GgufBuilder {
    behind("exaone4").head_norms().values_of("rope_freqs.weight", &[HEAD / 2])
}

fn exaone_moe() -> GgufBuilder {
    of("exaone-moe")
        .experts(FF)
        .head_norms()
        .key("attention.sliding_window", 4u32)
        .key("expert_feed_forward_length", FF as u32)
        .key("expert_shared_count", 1u32)
        .key("expert_gating_func", 2u32)
        .values_of("blk.0.exp_probs_b.bias", &[EXPERTS])
}

fn step35() -> GgufBuilder {
    of("step35")
        .experts(FF)
        .head_norms()
        .key("attention.head_count", vec![HEADS as u32])
        .key("attention.head_count_kv", vec![HEADS as u32 / 2])
        .key("attention.key_length", HEAD as u32)
        .key("attention.sliding_window", 4u32)
        .key("attention.sliding_window_pattern", vec![false])
        .key("expert_feed_forward_length", FF as u32)
        .key("expert_shared_feed_forward_length", FF as u32)
        .key("swiglu_clamp_exp", vec![0.5f32])
        .key("swiglu_clamp_shexp", vec![0.0f32])
        .values_of("blk.0.attn_gate.weight", &[EMBD, HEADS])
        .values_of("blk.0.exp_probs_b.bias", &[EXPERTS])
        .values_of("rope_freqs.weight", &[HEAD / 4])
}

/// Values of half a key's length.
fn mimo2() -> GgufBuilder {
    of("mimo2")
        .experts(0)
        .key("attention.key_length", HEAD as u32)
        .key("attention.value_length", HEAD as u32 / 2)
        .key("attention.value_scale", 0.7f32)
        .key("attention.sliding_window", 4u32)
        .key("attention.sliding_window_pattern", vec![1i32])
        .key("expert_feed_forward_length", FF as u32)
        .of_shape("blk.0.attn_v.weight", &[EMBD, KEYS / 2])
        .of_shape("blk.0.attn_output.weight", &[EMBD / 2, EMBD])
        .values_of("blk.0.attn_sinks.weight", &[HEADS])
}

fn afmoe() -> GgufBuilder {
    of("afmoe")
        .experts(FF)
        .head_norms()
        .key("attention.sliding_window", 4u32)
        .key("expert_feed_forward_length", FF as u32)
        .key("expert_shared_count", 1u32)
        .values_of("blk.0.attn_gate.weight", &[EMBD, EMBD])
        .values_of("blk.0.exp_probs_b.bias", &[EXPERTS])
        .values_of("blk.0.post_attention_norm.weight", &[EMBD])
        .values_of("blk.0.post_ffw_norm.weight", &[EMBD])
}

#[test]
fn the_models_are_sound_before_they_are_spoiled() {
    for model in [
        olmo2(),
        olmoe(),
        cohere("command-r"),
        command_r_plus(),
        cohere2(),
        cohere2moe(),
        exaone4(),
        exaone_moe(),
        step35(),
        mimo2(),
        afmoe(),
    ] {
        sound(&model);
    }
    sound(&cohere2moe().key("attention.layer_norm_rms_epsilon", 1e-5f32));
    sound(&layers(exaone4(), MANY).key("attention.sliding_window", 4u32));
}

// ---- olmo2, olmoe --------------------------------------------------------------------------------------

refused! {
    windows_of_another_count: olmo2().key("attention.sliding_window_pattern", vec![true, false]) => "olmo2.attention.sliding_window_pattern has 2 values, where 1 are needed";
    windows_of_numbers: olmo2().key("attention.sliding_window_pattern", vec![2u32]) => "olmo2.attention.sliding_window_pattern holds what is no truth value";
    windows_of_texts: olmo2().key("attention.sliding_window_pattern", vec!["yes"]) => "olmo2.attention.sliding_window_pattern is an array of strings";
    windows_every_none: olmo2().key("attention.sliding_window_pattern", 0u32) => "olmo2.attention.sliding_window_pattern is 0";
    window_a_text: olmo2().key("attention.sliding_window", "wide") => "olmo2.attention.sliding_window is a string";
    window_huge: olmo2().key("attention.sliding_window", u32::MAX) => "olmo2.attention.sliding_window is 4294967295";
    base_of_windows: olmo2().key("rope.freq_base_swa", 5000.0f32) => "olmo2.rope.freq_base_swa (5000) asks for something that is not supported";
    part_of_windows_rotated: olmo2().key("rope.dimension_count_swa", 4u32) => "olmo2.rope.dimension_count_swa (4) asks for something that is not supported";
    yarn_with_another_gain: olmo2().key("rope.scaling.yarn_attn_factor", 1.5f32) => "olmo2.rope.scaling.yarn_attn_factor (1.5) asks for something that is not supported";
    norm_of_one_head: olmo2().of_shape("blk.0.attn_q_norm.weight", &[HEAD]) => "tensor blk.0.attn_q_norm.weight has the shape 8, where 32 is needed";
    norm_of_keys_missing: without(olmo2(), &["attn_k_norm"]) => "tensor blk.0.attn_k_norm.weight is missing";
    norm_after_attention_missing: without(olmo2(), &["post_attention_norm"]) => "tensor blk.0.post_attention_norm.weight is missing";
    norm_after_network_of_zeros: olmo2().of_shape("blk.0.post_ffw_norm.weight", &[EMBD]) => "tensor blk.0.post_ffw_norm.weight holds zeros alone";
    norm_before_attention_too_much: olmo2().values_of("blk.0.attn_norm.weight", &[EMBD]) => "tensor blk.0.attn_norm.weight is not part of the architecture olmo2";
    experts_missing: olmoe().no_key("expert_count") => "olmoe.expert_count is 0 or missing";
    experts_used_beyond: olmoe().key("expert_used_count", 5u32) => "olmoe.expert_used_count is 5, where there are 4 experts";
    experts_of_another_length: olmoe().key("expert_feed_forward_length", 8u32) => "olmoe.expert_feed_forward_length (8) asks for something that is not supported";
    weights_normalised: olmoe().key("expert_weights_norm", true) => "olmoe.expert_weights_norm (1) asks for something that is not supported";
    scored_by_sigmoid: olmoe().key("expert_gating_func", 2u32) => "olmoe.expert_gating_func (2) asks for something that is not supported";
    weights_scaled: olmoe().key("expert_weights_scale", 2.5f32) => "olmoe.expert_weights_scale (2.5) asks for something that is not supported";
}

// ---- command-r, cohere2, cohere2moe --------------------------------------------------------------------

refused! {
    factor_on_logits_infinite: cohere("command-r").key("logit_scale", f32::INFINITY) => "command-r.logit_scale is inf";
    epsilon_of_another_norm: cohere("command-r").no_key("attention.layer_norm_epsilon").key("attention.layer_norm_rms_epsilon", 1e-5f32) => "command-r.attention.layer_norm_epsilon is missing";
    norms_of_heads_too_early: cohere("command-r").values_of("blk.0.attn_q_norm.weight", &[HEAD, HEADS]) => "tensor blk.0.attn_q_norm.weight is not part of the architecture command-r";
    norm_of_heads_missing: command_r_plus().without_tensor("blk.7.attn_k_norm.weight") => "tensor blk.7.attn_k_norm.weight is missing";
    norm_of_heads_of_one: command_r_plus().of_shape("blk.7.attn_q_norm.weight", &[HEAD]) => "tensor blk.7.attn_q_norm.weight has the shape 8, where 8 x 4 is needed";
    norm_before_network_too_much: cohere2().values_of("blk.0.ffn_norm.weight", &[EMBD]) => "tensor blk.0.ffn_norm.weight is not part of the architecture cohere2";
    window_missing: cohere2().no_key("attention.sliding_window") => "cohere2.attention.sliding_window is missing";
    window_none: cohere2().key("attention.sliding_window", 0u32) => "cohere2.attention.sliding_window is 0";
    factor_on_logits_missing: cohere2().no_key("logit_scale") => "cohere2.logit_scale is missing";
    base_of_windows_alone: cohere2().key("rope.freq_base_swa", 5000.0f32) => "cohere2.rope.freq_base_swa (5000) asks for something that is not supported";
    shared_networks_fewer: cohere2moe().key("expert_shared_count", 1u32) => "tensor blk.0.ffn_gate_shexp.weight has the shape 32 x 32, where 32 x 16 is needed";
    shared_networks_none: cohere2moe().key("expert_shared_count", 0u32) => "is not part of the architecture cohere2moe";
    shared_networks_most: cohere2moe().key("expert_shared_count", 1u32 << 24) => "tensor blk.0.ffn_gate_shexp.weight has the shape 32 x 32";
    both_epsilons_missing: cohere2moe().no_key("attention.layer_norm_epsilon") => "cohere2moe.attention.layer_norm_epsilon is missing";
    epsilon_of_rms_negative: cohere2moe().key("attention.layer_norm_rms_epsilon", -1.0f32) => "cohere2moe.attention.layer_norm_rms_epsilon is negative";
    dense_layer_missing: cohere2moe().key("leading_dense_block_count", 1u32) => "tensor blk.0.ffn_gate.weight is missing";
    gating_unknown: cohere2moe().key("expert_gating_func", 9u32) => "cohere2moe.expert_gating_func (9) asks for something that is not supported";
    predicted_alone: cohere2moe().key("nextn_predict_layers", 1u32) => "cohere2moe.nextn_predict_layers is 1, where there are 1 blocks";
}

// ---- exaone4, exaone-moe -------------------------------------------------------------------------------

refused! {
    window_in_a_small_model: exaone4().key("attention.sliding_window", 4u32) => "exaone4.attention.sliding_window (4) asks for something that is not supported";
    windows_fewer_than_layers: layers(exaone4(), MANY).key("attention.sliding_window_pattern", vec![true; 63]) => "exaone4.attention.sliding_window_pattern has 63 values, where 64 are needed";
    window_of_nothing: layers(exaone4(), MANY).key("attention.sliding_window", 0u32) => "exaone4.attention.sliding_window is 0";
    factors_of_another_length: exaone4().of_shape("rope_freqs.weight", &[HEAD]) => "tensor rope_freqs.weight has the shape 8, where 4 is needed";
    factors_of_zero: exaone4().of_shape("rope_freqs.weight", &[HEAD / 2]) => "tensor rope_freqs.weight holds 0 at element 0";
    norms_of_heads_missing: without(exaone4(), &["attn_q_norm"]) => "tensor blk.0.attn_q_norm.weight is missing";
    scores_missing: exaone_moe().no_key("expert_gating_func") => "exaone-moe.expert_gating_func is 0 or missing";
    lengths_of_experts_missing: exaone_moe().no_key("expert_feed_forward_length") => "exaone-moe.expert_feed_forward_length is missing";
    choice_bias_of_another_length: exaone_moe().of_shape("blk.0.exp_probs_b.bias", &[EXPERTS + 1]) => "tensor blk.0.exp_probs_b.bias has the shape 5, where 4 is needed";
    shared_network_missing: without(exaone_moe(), &["ffn_up_shexp"]) => "tensor blk.0.ffn_up_shexp.weight is missing";
    shared_network_longer: exaone_moe().key("expert_shared_feed_forward_length", 24u32) => "tensor blk.0.ffn_gate_shexp.weight has the shape 32 x 16, where 32 x 24 is needed";
    groups_that_do_not_divide: exaone_moe().key("expert_group_count", 3u32).key("expert_group_used_count", 1u32) => "exaone-moe.expert_group_count is 3, which does not divide 4 experts";
    windows_missing: exaone_moe().no_key("attention.sliding_window") => "exaone-moe.attention.sliding_window is missing";
}

// ---- step35, mimo2, afmoe ------------------------------------------------------------------------------

refused! {
    heads_of_a_layer_none: step35().key("attention.head_count", vec![0u32]) => "step35.attention.head_count is 0 in layer 0";
    heads_of_too_many_layers: step35().key("attention.head_count", vec![4u32, 4]) => "step35.attention.head_count has 2 values, where 1 are needed";
    heads_of_keys_that_do_not_divide: step35().key("attention.head_count_kv", vec![3u32]) => "step35.attention.head_count_kv is 3, which does not divide 4";
    windows_by_a_number: step35().key("attention.sliding_window_pattern", 4u32) => "step35.attention.sliding_window_pattern is no array";
    windows_unknown: step35().no_key("attention.sliding_window_pattern") => "step35.attention.sliding_window_pattern is missing";
    half_an_odd_part: step35().key("rope.dimension_count", 2u32) => "step35.rope.dimension_count is 2, half of which RoPE cannot pair";
    half_the_factors: step35().of_shape("rope_freqs.weight", &[HEAD / 2]) => "tensor rope_freqs.weight has the shape 4, where 2 is needed";
    limits_of_too_many_layers: step35().key("swiglu_clamp_exp", vec![0.5f32, 0.5]) => "step35.swiglu_clamp_exp has 2 values, where 1 are needed";
    limits_not_a_number: step35().key("swiglu_clamp_shexp", vec![f32::NAN]) => "step35.swiglu_clamp_shexp holds what is no finite number";
    limits_of_texts: step35().key("swiglu_clamp_exp", vec!["7"]) => "step35.swiglu_clamp_exp is an array of strings";
    gate_of_elements: step35().of_shape("blk.0.attn_gate.weight", &[EMBD, EMBD]) => "tensor blk.0.attn_gate.weight has the shape 32 x 32, where 32 x 4 is needed";
    norm_of_queries_alone: without(step35(), &["attn_k_norm"]) => "tensor blk.0.attn_k_norm.weight is missing";
    shared_length_missing: step35().no_key("expert_shared_feed_forward_length") => "step35.expert_shared_feed_forward_length is 0 or missing";
    expert_length_missing: step35().no_key("expert_feed_forward_length") => "step35.expert_feed_forward_length is 0 or missing";
    values_of_the_embedding: mimo2().no_key("attention.value_length") => "tensor blk.0.attn_v.weight has the shape 32 x 8, where 32 x 16 is needed";
    biases_that_ggml_leaves_out: mimo2().values_of("blk.0.attn_k.bias", &[KEYS]) => "tensor blk.0.attn_k.bias is not part of the architecture mimo2";
    value_length_none: mimo2().key("attention.value_length", 0u32) => "mimo2.attention.value_length is 0";
    value_scale_not_a_number: mimo2().key("attention.value_scale", f32::NAN) => "mimo2.attention.value_scale is NaN";
    sinks_of_keys: mimo2().of_shape("blk.0.attn_sinks.weight", &[HEADS / 2]) => "tensor blk.0.attn_sinks.weight has the shape 2, where 4 is needed";
    windows_rotated_otherwise: mimo2().key("rope.dimension_count_swa", 4u32) => "mimo2.rope.dimension_count_swa (4) asks for something that is not supported";
    experts_by_softmax: mimo2().key("expert_gating_func", 1u32) => "mimo2.expert_gating_func (1) asks for something that is not supported";
    weights_as_they_are: mimo2().key("expert_weights_norm", false) => "mimo2.expert_weights_norm (0) asks for something that is not supported";
    experts_uncounted: mimo2().no_key("expert_count") => "mimo2.expert_count is 0 or missing";
    gate_missing: without(afmoe(), &["attn_gate"]) => "tensor blk.0.attn_gate.weight is missing";
    gate_of_heads: afmoe().of_shape("blk.0.attn_gate.weight", &[EMBD, HEADS]) => "tensor blk.0.attn_gate.weight has the shape 32 x 4, where 32 x 32 is needed";
    choice_bias_missing: afmoe().without_tensor("blk.0.exp_probs_b.bias") => "tensor blk.0.exp_probs_b.bias is missing";
    norm_after_network_missing: without(afmoe(), &["post_ffw_norm"]) => "tensor blk.0.post_ffw_norm.weight is missing";
    window_of_afmoe_missing: afmoe().no_key("attention.sliding_window") => "afmoe.attention.sliding_window is missing";
    base_of_windows_none: afmoe().key("rope.freq_base_swa", 0.0f32) => "afmoe.rope.freq_base_swa is 0, where more than 0 is needed";
    shared_of_afmoe_more: afmoe().key("expert_shared_count", 2u32) => "tensor blk.0.ffn_gate_shexp.weight has the shape 32 x 16, where 32 x 32 is needed";
    gate_of_strings: afmoe().tensor("blk.0.attn_gate.bias", ty::F32, &[EMBD + 1], Data::Zero) => "tensor blk.0.attn_gate.bias has the shape 33, where 32 is needed";
}
