//! Mistral 3, Phi 3, GLM 4, MiniMax M2, Llama 4, Qwen 3 VL, StarCoder 2 and Nemotron.

use crate::common::gguf::{Data, GgufBuilder, ty};
use crate::routers_and_scales::{EMBD, EXPERTS, FF, HEAD, Spoil, of};
use crate::{refused, sound};

/// Hidden length of the tiny model's network.
const HIDDEN: u64 = 64;

/// A model without tensors of its layer.
pub fn without(mut model: GgufBuilder, names: &[&str]) -> GgufBuilder {
    for name in names {
        model = model.without_tensor(&format!("blk.0.{name}.weight"));
    }
    model
}

fn mistral3() -> GgufBuilder {
    of("mistral3")
        .key("attention.temperature_scale", 0.1f32)
        .key("rope.scaling.type", "yarn")
        .key("rope.scaling.factor", 2.0f32)
        .key("rope.scaling.original_context_length", 32u32)
        .key("rope.scaling.yarn_beta_fast", 32.0f32)
        .key("rope.scaling.yarn_log_multiplier", 1.0f32)
}

fn phi3() -> GgufBuilder {
    without(of("phi3"), &["attn_q", "attn_k", "attn_v", "ffn_gate"])
        .key("attention.sliding_window", 4u32)
        .key("rope.scaling.original_context_length", 32u32)
        .values_of("blk.0.attn_qkv.weight", &[EMBD, 2 * EMBD])
        .of_shape("blk.0.ffn_up.weight", &[EMBD, 2 * HIDDEN])
        .values_of("rope_factors_long.weight", &[HEAD / 2])
        .values_of("rope_factors_short.weight", &[HEAD / 2])
}

fn phimoe() -> GgufBuilder {
    of("phimoe")
        .experts(0)
        .key("feed_forward_length", FF as u32)
        .values_of("blk.0.attn_norm.bias", &[EMBD])
        .values_of("output.bias", &[16])
}

fn glm4() -> GgufBuilder {
    without(of("glm4"), &["ffn_gate"])
        .key("rope.dimension_sections", vec![2i32, 1, 1, 0])
        .of_shape("blk.0.ffn_up.weight", &[EMBD, 2 * HIDDEN])
        .values_of("blk.0.post_attention_norm.weight", &[EMBD])
        .values_of("blk.0.post_ffw_norm.weight", &[EMBD])
}

fn glm4moe() -> GgufBuilder {
    without(of("glm4moe").experts(FF), &["ffn_norm"])
        .key("expert_feed_forward_length", FF as u32)
        .key("expert_shared_count", 1u32)
        .key("expert_gating_func", 2u32)
        .key("expert_weights_norm", true)
        .key("expert_weights_scale", 1.5f32)
        .key("leading_dense_block_count", 0u32)
        .key("expert_group_count", 2u32)
        .key("expert_group_used_count", 1u32)
        .values_of("blk.0.post_attention_norm.weight", &[EMBD])
        .values_of("blk.0.exp_probs_b.bias", &[EXPERTS])
}

fn minimax() -> GgufBuilder {
    of("minimax-m2")
        .experts(0)
        .key("feed_forward_length", FF as u32)
        .key("expert_feed_forward_length", FF as u32)
        .key("expert_gating_func", 2u32)
        .values_of("blk.0.attn_q_norm.weight", &[EMBD])
        .values_of("blk.0.attn_k_norm.weight", &[EMBD / 2])
        .values_of("blk.0.exp_probs_b.bias", &[EXPERTS])
}

fn llama4() -> GgufBuilder {
    of("llama4")
        .experts(FF)
        .key("expert_feed_forward_length", FF as u32)
        .key("interleave_moe_layer_step", 1u32)
        .key("attention.sliding_window", 8192u32)
}

fn qwen3vl() -> GgufBuilder {
    of("qwen3vl")
        .head_norms()
        .key("rope.dimension_sections", vec![2i32, 1, 1, 0])
        .key("n_deepstack_layers", 1u32)
}

/// Layer norms and a network without a gate.
fn ungated(arch: &str) -> GgufBuilder {
    without(of(arch), &["ffn_gate"])
        .key("attention.layer_norm_epsilon", 1e-5f32)
        .values_of("blk.0.attn_norm.bias", &[EMBD])
        .values_of("blk.0.ffn_up.bias", &[HIDDEN])
}

fn starcoder2() -> GgufBuilder {
    ungated("starcoder2")
}

#[test]
fn the_models_are_sound_before_they_are_spoiled() {
    let made =
        [mistral3(), phi3(), phimoe(), glm4(), glm4moe(), minimax(), llama4(), qwen3vl(), starcoder2()];
    made.iter().for_each(sound);
    sound(&ungated("nemotron"));
    sound(&without(of("arcee"), &["ffn_gate"]));
    sound(&of("internlm2"));
    sound(&of("gemma"));
}

// ---- mistral3, phi3, phimoe ------------------------------------------------------------------------------------------

refused! {
    temperature_a_text: mistral3().key("attention.temperature_scale", "hot") => "mistral3.attention.temperature_scale is a string";
    temperature_not_a_number: mistral3().key("attention.temperature_scale", f32::NAN) => "mistral3.attention.temperature_scale is NaN, where a finite number";
    original_context_none: mistral3().key("rope.scaling.original_context_length", 0u32) => "mistral3.rope.scaling.original_context_length is 0";
    yarn_beta_infinite: mistral3().key("rope.scaling.yarn_beta_fast", f32::INFINITY) => "mistral3.rope.scaling.yarn_beta_fast is inf";
    yarn_multiplier_not_a_number: mistral3().key("rope.scaling.yarn_log_multiplier", f32::NAN) => "mistral3.rope.scaling.yarn_log_multiplier is NaN";
    yarn_factor_negative: mistral3().key("rope.scaling.factor", -2.0f32) => "mistral3.rope.scaling.factor is -2";
    queries_missing: without(phi3(), &["attn_qkv"]) => "tensor blk.0.attn_q.weight is missing";
    fused_of_another_shape: phi3().of_shape("blk.0.attn_qkv.weight", &[EMBD, 63]) => "tensor blk.0.attn_qkv.weight has the shape 32 x 63, where 32 x 64 is needed";
    gate_not_in_up: phi3().of_shape("blk.0.ffn_up.weight", &[EMBD, HIDDEN]) => "tensor blk.0.ffn_gate.weight is missing";
    short_factors_missing: phi3().without_tensor("rope_factors_short.weight") => "tensor rope_factors_short.weight is missing";
    long_factors_missing: phi3().without_tensor("rope_factors_long.weight") => "tensor rope_factors_long.weight is missing";
    factors_of_another_length: phi3().of_shape("rope_factors_long.weight", &[HEAD]) => "tensor rope_factors_long.weight has the shape 8, where 4 is needed";
    factors_of_zero: phi3().of_shape("rope_factors_short.weight", &[HEAD / 2]) => "tensor rope_factors_short.weight holds 0 at element 0";
    window_a_text: phi3().key("attention.sliding_window", "wide") => "phi3.attention.sliding_window is a string";
    rotated_more_than_a_head: phi3().key("rope.dimension_count", 10u32) => "phi3.rope.dimension_count is 10, where heads are 8";
    rotated_an_odd_part: phi3().key("rope.dimension_count", 5u32) => "phi3.rope.dimension_count is 5, where RoPE needs an even size";
    experts_missing: phimoe().no_key("expert_count") => "phimoe.expert_count is 0 or missing";
    experts_used_beyond: phimoe().key("expert_used_count", 5u32) => "phimoe.expert_used_count is 5, where there are 4 experts";
    experts_of_another_length: phimoe().key("feed_forward_length", 17u32) => "tensor blk.0.ffn_gate_exps.weight has the shape 32 x 16 x 4, where 32 x 17 x 4 is needed";
    norm_bias_of_another_length: phimoe().of_shape("blk.0.attn_norm.bias", &[EMBD - 1]) => "tensor blk.0.attn_norm.bias has the shape 31, where 32 is needed";
    output_bias_of_another_length: phimoe().of_shape("output.bias", &[15]) => "tensor output.bias has the shape 15, where 16 is needed";
}

// ---- glm4, glm4moe, minimax-m2 ---------------------------------------------------------------------------------------

refused! {
    sections_too_few: glm4().key("rope.dimension_sections", vec![2i32, 1, 1]) => "glm4.rope.dimension_sections has 3 values, where 4 are needed";
    sections_of_nothing: glm4().key("rope.dimension_sections", vec![0i32; 4]) => "glm4.rope.dimension_sections holds zeros alone";
    sections_of_texts: glm4().key("rope.dimension_sections", vec!["2", "1", "1", "0"]) => "glm4.rope.dimension_sections is an array of strings";
    sections_negative: glm4().key("rope.dimension_sections", vec![-2i32, 1, 1, 0]) => "glm4.rope.dimension_sections holds what is no count";
    norm_after_attention_missing: without(glm4(), &["post_attention_norm"]) => "tensor blk.0.post_attention_norm.weight is missing";
    norm_after_network_missing: without(glm4(), &["post_ffw_norm"]) => "tensor blk.0.post_ffw_norm.weight is missing";
    norm_after_network_of_another_length: glm4().of_shape("blk.0.post_ffw_norm.weight", &[EMBD, 2]) => "tensor blk.0.post_ffw_norm.weight has the shape 32 x 2, where 32 is needed";
    shared_missing: glm4moe().no_key("expert_shared_count") => "glm4moe.expert_shared_count is missing";
    shared_none: glm4moe().key("expert_shared_count", 0u32) => "glm4moe.expert_shared_count is 0";
    shared_more: glm4moe().key("expert_shared_count", 2u32) => "tensor blk.0.ffn_gate_shexp.weight has the shape 32 x 16, where 32 x 32 is needed";
    shared_most: glm4moe().key("expert_shared_count", 1u32 << 24) => "tensor blk.0.ffn_gate_shexp.weight has the shape 32 x 16";
    choice_bias_missing: glm4moe().without_tensor("blk.0.exp_probs_b.bias") => "tensor blk.0.exp_probs_b.bias is missing";
    choice_bias_of_another_length: glm4moe().of_shape("blk.0.exp_probs_b.bias", &[EXPERTS + 1]) => "tensor blk.0.exp_probs_b.bias has the shape 5, where 4 is needed";
    gating_unknown: glm4moe().key("expert_gating_func", 9u32) => "glm4moe.expert_gating_func (9) asks for something that is not supported";
    groups_that_do_not_divide: glm4moe().key("expert_group_count", 3u32) => "glm4moe.expert_group_count is 3, which does not divide 4 experts";
    groups_used_none: glm4moe().key("expert_group_used_count", 0u32) => "glm4moe.expert_group_used_count is 0, where there are 2 groups";
    groups_used_all: glm4moe().key("expert_group_used_count", 2u32) => "glm4moe.expert_group_used_count is 2, where there are 2 groups";
    groups_with_too_few: glm4moe().key("expert_used_count", 3u32) => "glm4moe.expert_used_count is 3, where the groups used have 2 experts";
    weights_norm_a_text: glm4moe().key("expert_weights_norm", "yes") => "glm4moe.expert_weights_norm is no truth value";
    weights_scale_infinite: glm4moe().key("expert_weights_scale", f32::INFINITY) => "glm4moe.expert_weights_scale is inf";
    dense_layer_missing: glm4moe().key("leading_dense_block_count", 1u32) => "tensor blk.0.ffn_gate.weight is missing";
    norm_of_keys_missing: glm4moe().values_of("blk.0.attn_q_norm.weight", &[HEAD]) => "tensor blk.0.attn_k_norm.weight is missing";
    predicted_layers_alone: glm4moe().key("nextn_predict_layers", 1u32) => "glm4moe.nextn_predict_layers is 1, where there are 1 blocks";
    gating_missing: minimax().no_key("expert_gating_func") => "minimax-m2.expert_gating_func is 0 or missing";
    norm_of_queries_missing: without(minimax(), &["attn_q_norm"]) => "tensor blk.0.attn_q_norm.weight is missing";
    norm_of_keys_of_one_head: minimax().of_shape("blk.0.attn_k_norm.weight", &[HEAD]) => "tensor blk.0.attn_k_norm.weight has the shape 8, where 16 is needed";
    norm_of_queries_of_zeros: minimax().of_shape("blk.0.attn_q_norm.weight", &[EMBD]) => "tensor blk.0.attn_q_norm.weight holds zeros alone";
}

// ---- llama4, qwen3vl, starcoder2, nemotron ---------------------------------------------------------------------------

refused! {
    interleave_missing: llama4().no_key("interleave_moe_layer_step") => "llama4.interleave_moe_layer_step is missing";
    interleave_none: llama4().key("interleave_moe_layer_step", 0u32) => "llama4.interleave_moe_layer_step is 0";
    interleave_beyond: llama4().key("interleave_moe_layer_step", 2u32) => "tensor blk.0.ffn_gate.weight is missing";
    chunk_another: llama4().key("attention.sliding_window", 16u32) => "llama4.attention.sliding_window (16) asks for something that is not supported";
    chunk_none: llama4().key("attention.sliding_window", 0u32) => "llama4.attention.sliding_window (0) asks for something that is not supported";
    pattern_of_another_length: llama4().key("attention.sliding_window_pattern", vec![true, false]) => "llama4.attention.sliding_window_pattern has 2 values, where 1 are needed";
    pattern_of_numbers: llama4().key("attention.sliding_window_pattern", vec![2u32]) => "llama4.attention.sliding_window_pattern holds what is no truth value";
    pattern_none: llama4().key("attention.sliding_window_pattern", 0u32) => "llama4.attention.sliding_window_pattern is 0";
    experts_none: llama4().key("expert_count", 0u32) => "llama4.expert_count is 0 or missing";
    experts_of_softmax: llama4().key("expert_gating_func", 1u32) => "llama4.expert_gating_func (1) asks for something that is not supported";
    expert_length_missing: llama4().no_key("expert_feed_forward_length") => "llama4.expert_feed_forward_length is missing";
    shared_network_missing: without(llama4(), &["ffn_up_shexp"]) => "tensor blk.0.ffn_up_shexp.weight is missing";
    shared_network_of_another_length: llama4().of_shape("blk.0.ffn_down_shexp.weight", &[FF + 1, EMBD]) => "tensor blk.0.ffn_down_shexp.weight has the shape 17 x 32, where 16 x 32 is needed";
    sections_missing: qwen3vl().no_key("rope.dimension_sections") => "qwen3vl.rope.dimension_sections is missing";
    sections_too_many: qwen3vl().key("rope.dimension_sections", vec![1i32; 5]) => "qwen3vl.rope.dimension_sections has 5 values, where 4 are needed";
    deepstack_a_text: qwen3vl().key("n_deepstack_layers", "deep") => "qwen3vl.n_deepstack_layers is a string";
    norm_of_heads_missing: without(qwen3vl(), &["attn_k_norm"]) => "tensor blk.0.attn_k_norm.weight is missing";
    layer_norm_epsilon_missing: starcoder2().no_key("attention.layer_norm_epsilon") => "starcoder2.attention.layer_norm_epsilon is missing";
    layer_norm_epsilon_negative: starcoder2().key("attention.layer_norm_epsilon", -1.0f32) => "starcoder2.attention.layer_norm_epsilon is negative";
    layer_norm_missing: without(starcoder2(), &["ffn_norm"]) => "tensor blk.0.ffn_norm.weight is missing";
    layer_norm_bias_of_another_length: starcoder2().of_shape("blk.0.attn_norm.bias", &[1]) => "tensor blk.0.attn_norm.bias has the shape 1, where 32 is needed";
    up_bias_of_another_length: starcoder2().of_shape("blk.0.ffn_up.bias", &[HIDDEN + 1]) => "tensor blk.0.ffn_up.bias has the shape 65, where 64 is needed";
    gate_too_much: starcoder2().values_of("blk.0.ffn_gate.weight", &[EMBD, HIDDEN]) => "tensor blk.0.ffn_gate.weight is not part of the architecture starcoder2";
    gate_of_nemotron: ungated("nemotron").tensor("blk.0.ffn_gate.weight", ty::F32, &[EMBD, HIDDEN], Data::Zero) => "tensor blk.0.ffn_gate.weight is not part of the architecture nemotron";
}
