//! Qwen3-Next and Qwen 3.5: gated delta nets, and attention whose queries come with gates; Kimi Linear, Ling 3 and
//! Kimi K3.

use crate::common::delta_nets::{
    CHANNELS, KEYS, LEN, NARROW, TAPS, VALUE_HEADS, VALUES, all, bailing_3, kimi_k3, kimi_linear, qwen3next,
    qwen3next_by_head, qwen35, qwen35moe,
};
use crate::common::gguf::GgufBuilder;
use crate::common::latents::{LATENT, SHARED, VALUE};
use crate::common::state_spaces::{EMBD, EXPERTS, FF, HEAD, StateSpaces};
use crate::{refused, sound};

#[test]
fn the_models_are_sound_before_they_are_spoiled() {
    all().iter().for_each(|(_, model)| sound(model));
    // The layers one by one, and how often there is attention, which then says nothing.
    sound(
        &qwen35().key("attention.recurrent_layers", vec![true, false]).key("full_attention_interval", 7u32),
    );
    sound(&predicting(qwen35()).key("attention.recurrent_layers", vec![true, false]));
    sound(&predicting(qwen35()).key("attention.recurrent_layers", vec![true, false, false]));
}

/// The same with a block of multi-token prediction.
fn predicting(model: GgufBuilder) -> GgufBuilder {
    model
        .key("block_count", 3u32)
        .key("nextn_predict_layers", 1u32)
        .weights("blk.2.nextn.eh_proj.weight", &[2 * EMBD, EMBD])
}

// ---- Keys ----------------------------------------------------------------------------------------------

refused! {
    taps_missing: qwen35().no_key("ssm.conv_kernel") => "qwen35.ssm.conv_kernel is missing";
    taps_none: qwen35().key("ssm.conv_kernel", 0u32) => "qwen35.ssm.conv_kernel is 0";
    taps_one: qwen35().key("ssm.conv_kernel", 1u32) => "qwen35.ssm.conv_kernel is 1, where at least 2 are needed";
    taps_more: qwen35().key("ssm.conv_kernel", 5u32) => "tensor blk.0.ssm_conv1d.weight has the shape 4 x 128, where 5 x 128 is needed";
    taps_most: qwen35().key("ssm.conv_kernel", u32::MAX) => "qwen35.ssm.conv_kernel is 4294967295";
    taps_a_text: qwen35().key("ssm.conv_kernel", "four") => "qwen35.ssm.conv_kernel is a string";
    inner_size_missing: qwen35().no_key("ssm.inner_size") => "qwen35.ssm.inner_size is missing";
    inner_size_of_other_heads: qwen35().key("ssm.inner_size", 128u32) => "qwen35.ssm.inner_size is 128, where 4 heads of 16 are 64";
    inner_size_most: qwen35().key("ssm.inner_size", 1u32 << 24) => "qwen35.ssm.inner_size is 16777216, where 4 heads of 16 are 64";
    state_size_missing: qwen35().no_key("ssm.state_size") => "qwen35.ssm.state_size is missing";
    state_size_none: qwen35().key("ssm.state_size", 0u32) => "qwen35.ssm.state_size is 0";
    state_size_most: qwen35().key("ssm.state_size", 1u32 << 24).key("ssm.inner_size", 1u32 << 24) => "qwen35.ssm.state_size is 16777216, where at most 1024 make sense";
    state_size_of_another_shape: qwen35().key("ssm.state_size", 1024u32).key("ssm.inner_size", 4096u32) => "tensor blk.0.attn_qkv.weight has the shape 32 x 128, where 32 x 8192 is needed";
    value_heads_missing: qwen35moe().no_key("ssm.time_step_rank") => "qwen35moe.ssm.time_step_rank is missing";
    value_heads_most: qwen35moe().key("ssm.time_step_rank", 1u32 << 24) => "qwen35moe.ssm.inner_size is 64, where 16777216 heads of 16 are 268435456";
    key_heads_missing: qwen35moe().no_key("ssm.group_count") => "qwen35moe.ssm.group_count is missing";
    key_heads_that_do_not_divide: qwen35moe().key("ssm.group_count", 3u32) => "qwen35moe.ssm.group_count is 3, which does not divide 4 heads";
    key_heads_more: qwen35moe().key("ssm.group_count", 8u32) => "qwen35moe.ssm.group_count is 8, which does not divide 4 heads";
    key_heads_none: qwen3next().key("ssm.group_count", 0u32) => "qwen3next.ssm.group_count is 0";
    key_heads_fewer: qwen3next().key("ssm.group_count", 1u32) => "tensor blk.0.attn_qkv.weight has the shape 32 x 128, where 32 x 96 is needed";
    attention_every_none: qwen35().key("full_attention_interval", 0u32) => "qwen35.full_attention_interval is 0";
    attention_everywhere: qwen35().key("full_attention_interval", 1u32) => "tensor blk.0.attn_q_norm.weight is missing";
    attention_nowhere: qwen35().key("full_attention_interval", 3u32) => "tensor blk.1.attn_qkv.weight is missing";
    recurrent_layers_of_another_count: qwen35().key("attention.recurrent_layers", vec![true]) => "qwen35.attention.recurrent_layers has 1 values, where 2 are needed";
    recurrent_layers_of_numbers: qwen35().key("attention.recurrent_layers", vec![2u32, 0]) => "qwen35.attention.recurrent_layers holds what is no truth value";
    recurrent_layers_a_number: qwen35().key("attention.recurrent_layers", 1u32) => "qwen35.attention.recurrent_layers is no array";
    recurrent_layers_the_other_way_round: qwen35().key("attention.recurrent_layers", vec![false, true]) => "tensor blk.0.attn_q_norm.weight is missing";
    sections_missing: qwen35().no_key("rope.dimension_sections") => "qwen35.rope.dimension_sections is missing";
    sections_fewer: qwen35().key("rope.dimension_sections", vec![2i32, 1, 1]) => "qwen35.rope.dimension_sections has 3 values, where 4 are needed";
    sections_of_zeros: qwen35moe().key("rope.dimension_sections", vec![0i32; 4]) => "qwen35moe.rope.dimension_sections holds zeros alone";
    sections_of_another_family: qwen3next().key("rope.dimension_sections", vec![2i32, 1, 1, 0]) => "qwen3next.rope.dimension_sections";
    values_of_another_length: qwen35().key("attention.key_length", HEAD as u32).key("attention.value_length", 4u32) => "qwen35.attention.value_length is 4, where keys and their gates have 8";
    experts_missing: qwen3next().no_key("expert_count") => "qwen3next.expert_count is 0 or missing";
    weights_scaled: qwen35moe().key("expert_weights_scale", 2.5f32) => "qwen35moe.expert_weights_scale (2.5) asks for something that is not supported";
    scored_by_sigmoid: qwen35moe().key("expert_gating_func", 2u32) => "qwen35moe.expert_gating_func (of type u32) asks for something that is not supported";
    shared_network_longer: qwen35moe().key("expert_shared_feed_forward_length", 24u32) => "tensor blk.0.ffn_gate_shexp.weight has the shape 32 x 16, where 32 x 24 is needed";
}

// ---- Tensors -------------------------------------------------------------------------------------------

refused! {
    projection_missing: qwen35().without_tensor("blk.0.attn_qkv.weight") => "tensor blk.0.attn_qkv.weight is missing";
    projection_of_values_alone: qwen35().of_shape("blk.0.attn_qkv.weight", &[EMBD, VALUES]) => "tensor blk.0.attn_qkv.weight has the shape 32 x 64, where 32 x 128 is needed";
    projection_with_a_bias: qwen35().weights("blk.0.attn_qkv.bias", &[CHANNELS]) => "tensor blk.0.attn_qkv.bias is not part of the architecture qwen35";
    gate_missing: qwen35().without_tensor("blk.0.attn_gate.weight") => "tensor blk.0.attn_gate.weight is missing";
    gate_of_heads: qwen35().of_shape("blk.0.attn_gate.weight", &[EMBD, VALUE_HEADS]) => "tensor blk.0.attn_gate.weight has the shape 32 x 4, where 32 x 64 is needed";
    convolution_missing: qwen35().without_tensor("blk.0.ssm_conv1d.weight") => "tensor blk.0.ssm_conv1d.weight is missing";
    convolution_of_keys: qwen35().of_shape("blk.0.ssm_conv1d.weight", &[TAPS, KEYS]) => "tensor blk.0.ssm_conv1d.weight has the shape 4 x 32, where 4 x 128 is needed";
    convolution_the_other_way_round: qwen35().of_shape("blk.0.ssm_conv1d.weight", &[CHANNELS, TAPS]) => "tensor blk.0.ssm_conv1d.weight has the shape 128 x 4, where 4 x 128 is needed";
    convolution_not_finite: qwen35().values("blk.0.ssm_conv1d.weight", |w| w[9] = f32::NAN) => "tensor blk.0.ssm_conv1d.weight holds NaN at element 9";
    convolution_with_a_bias: qwen35().weights("blk.0.ssm_conv1d.bias", &[CHANNELS]) => "tensor blk.0.ssm_conv1d.bias is not part of the architecture qwen35";
    time_steps_missing: qwen35().without_tensor("blk.0.ssm_dt.bias") => "tensor blk.0.ssm_dt.bias is missing";
    time_steps_of_elements: qwen35().of_shape("blk.0.ssm_dt.bias", &[VALUES]) => "tensor blk.0.ssm_dt.bias has the shape 64, where 4 is needed";
    decays_missing: qwen35().without_tensor("blk.0.ssm_a") => "tensor blk.0.ssm_a is missing";
    decays_infinite: qwen35().values("blk.0.ssm_a", |a| a[1] = f32::NEG_INFINITY) => "tensor blk.0.ssm_a holds -inf at element 1";
    strengths_missing: qwen35().without_tensor("blk.0.ssm_beta.weight") => "tensor blk.0.ssm_beta.weight is missing";
    alphas_missing: qwen35().without_tensor("blk.0.ssm_alpha.weight") => "tensor blk.0.ssm_alpha.weight is missing";
    alphas_of_elements: qwen35().of_shape("blk.0.ssm_alpha.weight", &[EMBD, VALUES]) => "tensor blk.0.ssm_alpha.weight has the shape 32 x 64, where 32 x 4 is needed";
    strengths_of_another_family: qwen35().weights("blk.0.ssm_ba.weight", &[EMBD, 8]) => "tensor blk.0.ssm_ba.weight is not part of the architecture qwen35";
    norm_missing: qwen35().without_tensor("blk.0.ssm_norm.weight") => "tensor blk.0.ssm_norm.weight is missing";
    norm_of_zeros: qwen35().of_shape("blk.0.ssm_norm.weight", &[LEN]) => "tensor blk.0.ssm_norm.weight holds zeros alone";
    norm_of_all_heads: qwen35().of_shape("blk.0.ssm_norm.weight", &[VALUES]) => "tensor blk.0.ssm_norm.weight has the shape 64, where 16 is needed";
    output_missing: qwen35().without_tensor("blk.0.ssm_out.weight") => "tensor blk.0.ssm_out.weight is missing";
    output_of_keys: qwen35().of_shape("blk.0.ssm_out.weight", &[KEYS, EMBD]) => "tensor blk.0.ssm_out.weight has the shape 32 x 32, where 64 x 32 is needed";
    queries_without_gates: qwen35().of_shape("blk.1.attn_q.weight", &[EMBD, 4 * HEAD]) => "tensor blk.1.attn_q.weight has the shape 32 x 32, where 32 x 64 is needed";
    gate_of_its_own: qwen35().weights("blk.1.attn_gate.weight", &[EMBD, 4 * HEAD]) => "tensor blk.1.attn_gate.weight is not part of the architecture qwen35";
    norm_of_queries_missing: qwen35().without_tensor("blk.1.attn_q_norm.weight") => "tensor blk.1.attn_q_norm.weight is missing";
    norm_before_the_network_missing: qwen35().without_tensor("blk.0.post_attention_norm.weight") => "tensor blk.0.post_attention_norm.weight is missing";
    gate_of_the_shared_network_missing: qwen35moe().without_tensor("blk.1.ffn_gate_inp_shexp.weight") => "tensor blk.1.ffn_gate_inp_shexp.weight is missing";
    gate_of_the_shared_network_of_experts: qwen35moe().of_shape("blk.1.ffn_gate_inp_shexp.weight", &[EMBD, EXPERTS]) => "tensor blk.1.ffn_gate_inp_shexp.weight has the shape 32 x 4, where 32 x 1 is needed";
    shared_network_missing: qwen35moe().without_tensor("blk.1.ffn_up_shexp.weight") => "tensor blk.1.ffn_up_shexp.weight is missing";
    network_beside_experts: qwen35moe().weights("blk.0.ffn_up.weight", &[EMBD, FF]) => "tensor blk.0.ffn_up.weight is not part of the architecture qwen35moe";
    both_strengths_missing: qwen3next().without_tensor("blk.0.ssm_ba.weight") => "tensor blk.0.ssm_ba.weight is missing";
    strengths_apart: qwen3next().weights("blk.0.ssm_beta.weight", &[EMBD, VALUE_HEADS]) => "tensor blk.0.ssm_beta.weight is not part of the architecture qwen3next";
    both_projections: qwen3next().weights("blk.0.ssm_in.weight", &[EMBD, CHANNELS + VALUES]) => "tensor blk.0.ssm_in.weight is not part of the architecture qwen3next";
    no_projection: qwen3next_by_head().without_tensor("blk.0.ssm_in.weight") => "tensor blk.0.ssm_in.weight is missing";
    projection_without_gates: qwen3next_by_head().of_shape("blk.0.ssm_in.weight", &[EMBD, CHANNELS]) => "tensor blk.0.ssm_in.weight has the shape 32 x 128, where 32 x 192 is needed";
    gate_beside_the_projection: qwen3next_by_head().weights("blk.0.attn_gate.weight", &[EMBD, VALUES]) => "tensor blk.0.attn_gate.weight is not part of the architecture qwen3next";
}

// ---- kimi-linear ---------------------------------------------------------------------------------------

refused! {
    heads_of_kimi_none: kimi_linear().key("attention.head_count", 0u32) => "kimi-linear.attention.head_count is 0 or differs from layer to layer";
    heads_of_kimi_differ: kimi_linear().key("attention.head_count", vec![4u32, 8]) => "kimi-linear.attention.head_count is 0 or differs from layer to layer";
    kinds_of_layers_missing: kimi_linear().no_key("attention.head_count_kv") => "kimi-linear.attention.head_count_kv is 4 in layer 0, where 0 or 1 is needed";
    kinds_of_layers_fewer: kimi_linear().key("attention.head_count_kv", vec![0u32]) => "kimi-linear.attention.head_count_kv has 1 values, where 2 are needed";
    kinds_of_layers_the_other_way_round: kimi_linear().key("attention.head_count_kv", vec![1u32, 0]) => "tensor blk.0.attn_q.weight has the shape 32 x 64, where 32 x 48 is needed";
    taps_of_kimi_missing: kimi_linear().no_key("ssm.conv_kernel") => "kimi-linear.ssm.conv_kernel is missing";
    taps_of_kimi_one: kimi_linear().key("ssm.conv_kernel", 1u32) => "kimi-linear.ssm.conv_kernel is 1, where at least 2 are needed";
    taps_of_kimi_more: kimi_linear().key("ssm.conv_kernel", 5u32) => "tensor blk.0.ssm_conv1d_q.weight has the shape 4 x 1 x 64, where 5 x 1 x 64 is needed";
    head_of_kimi_missing: kimi_linear().no_key("kda.head_dim") => "kimi-linear.kda.head_dim is missing";
    head_of_kimi_longer: kimi_linear().key("kda.head_dim", 32u32) => "tensor blk.0.attn_q.weight has the shape 32 x 64, where 32 x 128 is needed";
    head_of_kimi_most: kimi_linear().key("kda.head_dim", 1u32 << 24) => "kimi-linear.kda.head_dim is 16777216, where at most 1024 make sense";
    latents_missing: kimi_linear().no_key("attention.kv_lora_rank") => "kimi-linear.attention.kv_lora_rank is missing";
    keys_of_latents_missing: kimi_linear().no_key("attention.key_length_mla") => "kimi-linear.attention.key_length_mla is missing";
    keys_of_latents_shorter_than_what_is_shared: kimi_linear().key("attention.key_length_mla", SHARED as u32) => "kimi-linear.attention.key_length_mla is 4, of which 4 are shared";
    keys_of_another_length: kimi_linear().key("attention.key_length", LATENT as u32) => "kimi-linear.attention.key_length is 16, where 16 and 4 are 20";
    what_is_shared_missing: kimi_linear().no_key("rope.dimension_count") => "kimi-linear.rope.dimension_count is missing";
    rotation_stretched: kimi_linear().key("rope.scaling.type", "yarn") => "kimi-linear.rope.scaling.type";
    queries_of_low_rank: kimi_linear().key("attention.q_lora_rank", 8u32) => "kimi-linear.attention.q_lora_rank";
    short_decays_missing: kimi_linear().without_tensor("blk.0.ssm_f_a.weight") => "tensor blk.0.ssm_f_a.weight is missing";
    long_decays_of_heads: kimi_linear().of_shape("blk.0.ssm_f_b.weight", &[LEN, 4]) => "tensor blk.0.ssm_f_b.weight has the shape 16 x 4, where 16 x 64 is needed";
    short_gates_missing: kimi_linear().without_tensor("blk.0.ssm_g_a.weight") => "tensor blk.0.ssm_g_a.weight is missing";
    long_gates_of_another_shape: kimi_linear().of_shape("blk.0.ssm_g_b.weight", &[4 * LEN, LEN]) => "tensor blk.0.ssm_g_b.weight has the shape 64 x 16, where 16 x 64 is needed";
    factors_of_kimi_of_elements: kimi_linear().of_shape("blk.0.ssm_a", &[1, 4 * LEN]) => "tensor blk.0.ssm_a has the shape 1 x 64, where 1 x 4 is needed";
    factors_of_kimi_not_finite: kimi_linear().values("blk.0.ssm_a", |a| a[3] = f32::NAN) => "tensor blk.0.ssm_a holds NaN at element 3";
    biases_of_kimi_of_heads: kimi_linear().of_shape("blk.0.ssm_dt.bias", &[4]) => "tensor blk.0.ssm_dt.bias has the shape 4, where 64 is needed";
    convolution_of_values_missing: kimi_linear().without_tensor("blk.0.ssm_conv1d_v.weight") => "tensor blk.0.ssm_conv1d_v.weight is missing";
    queries_of_kimi_with_a_bias: kimi_linear().weights("blk.0.attn_q.bias", &[4 * LEN]) => "tensor blk.0.attn_q.bias is not part of the architecture kimi-linear";
    whole_weights_of_latents: kimi_linear().weights("blk.1.attn_kv_b.weight", &[LATENT, 64]) => "tensor blk.1.attn_kv_b.weight is not part of the architecture kimi-linear";
    scores_of_kimi_missing: kimi_linear().no_key("expert_gating_func") => "kimi-linear.expert_gating_func is 0 or missing";
    weights_as_they_are: kimi_linear().key("expert_weights_norm", false) => "kimi-linear.expert_weights_norm (0) asks for something that is not supported";
    choice_bias_of_kimi_missing: kimi_linear().without_tensor("blk.1.exp_probs_b.bias") => "tensor blk.1.exp_probs_b.bias is missing";
    dense_layers_none: kimi_linear().key("leading_dense_block_count", 0u32) => "tensor blk.0.exp_probs_b.bias is missing";
}

// ---- Ling 3 --------------------------------------------------------------------------------------------

refused! {
    bound_missing: bailing_3().no_key("kda.gate_lower_bound") => "bailingmoe3.kda.gate_lower_bound is missing";
    bound_none: bailing_3().key("kda.gate_lower_bound", 0f32) => "bailingmoe3.kda.gate_lower_bound is 0, which is no decay";
    bound_above: bailing_3().key("kda.gate_lower_bound", 5f32) => "bailingmoe3.kda.gate_lower_bound is 5, which is no decay";
    bound_infinite: bailing_3().key("kda.gate_lower_bound", f32::NEG_INFINITY) => "bailingmoe3.kda.gate_lower_bound is -inf";
    gate_unsafe: bailing_3().key("kda.safe_gate", false) => "bailingmoe3.kda.safe_gate (0) asks for something";
    path_of_a_head: bailing_3().of_shape("blk.0.ssm_f_a.weight", &[EMBD, LEN]) => "tensor blk.0.ssm_f_a.weight has the shape 32 x 16, where 32 x 64 is needed";
    path_of_two: bailing_3().weights("blk.0.ssm_f_b.weight", &[LEN, 4 * LEN]) => "tensor blk.0.ssm_f_b.weight is not part of the architecture bailingmoe3";
    latent_gate_missing: bailing_3().without_tensor("blk.1.attn_gate.weight") => "tensor blk.1.attn_gate.weight is missing";
    latent_gate_of_elements: bailing_3().of_shape("blk.1.attn_gate.weight", &[EMBD, 4 * VALUE]) => "tensor blk.1.attn_gate.weight has the shape 32 x 32, where 32 x 4 is needed";
    limits_of_other_layers: bailing_3().key("swiglu_clamp_exp", vec![1f32]) => "bailingmoe3.swiglu_clamp_exp has 1 values, where 2 are needed";
    limits_not_finite: bailing_3().key("swiglu_clamp_shexp", f32::NAN) => "bailingmoe3.swiglu_clamp_shexp is NaN";
    sections_of_three: bailing_3().key("rope.dimension_sections", vec![1u32, 1, 0]) => "bailingmoe3.rope.dimension_sections has 3 values, where 4 are needed";
    queries_of_low_rank_without_tensors: bailing_3().key("attention.q_lora_rank", 8u32) => "tensor blk.1.attn_q_a.weight is missing";
    choice_without_a_bias: bailing_3().without_tensor("blk.1.exp_probs_b.bias") => "tensor blk.1.exp_probs_b.bias is missing";
    way_of_scoring_missing: bailing_3().no_key("expert_gating_func") => "bailingmoe3.expert_gating_func is 0 or missing";
}

// ---- Kimi K3 -------------------------------------------------------------------------------------------

refused! {
    blocks_of_layers_missing: kimi_k3().no_key("attn_res.block_size") => "kimi-k3.attn_res.block_size is missing";
    blocks_of_layers_most: kimi_k3().key("attn_res.block_size", u32::MAX) => "kimi-k3.attn_res.block_size is 4294967295";
    blocks_of_none: kimi_k3().key("attn_res.block_size", 0u32) => "tensor output_res_score.weight is not part of the architecture kimi-k3";
    scores_missing: kimi_k3().without_tensor("blk.1.attn_res_score.weight") => "tensor blk.1.attn_res_score.weight is missing";
    scores_of_networks_missing: kimi_k3().without_tensor("blk.0.ffn_res_score.weight") => "tensor blk.0.ffn_res_score.weight is missing";
    last_scores_of_another_length: kimi_k3().of_shape("output_res_score.weight", &[16]) => "tensor output_res_score.weight has the shape 16, where 32 is needed";
    scores_not_finite: kimi_k3().values("blk.0.attn_res_score.weight", |w| w[3] = f32::NAN) => "tensor blk.0.attn_res_score.weight holds NaN at element 3";
    beta_missing: kimi_k3().no_key("activation.situ_beta") => "kimi-k3.activation.situ_beta is missing";
    beta_none: kimi_k3().key("activation.situ_beta", 0f32) => "kimi-k3.activation.situ_beta is 0, which divides";
    linear_beta_not_finite: kimi_k3().key("activation.situ_linear_beta", f32::INFINITY) => "kimi-k3.activation.situ_linear_beta is inf";
    bound_of_k3_above: kimi_k3().key("kda.gate_lower_bound", 1f32) => "kimi-k3.kda.gate_lower_bound is 1, which is no decay";
    narrow_input_wider: kimi_k3().key("expert_latent_length", 33u32) => "kimi-k3.expert_latent_length is 33, more than the embedding length of 32";
    narrow_input_unsaid: kimi_k3().no_key("expert_latent_length") => "tensor blk.1.ffn_gate_exps.weight has the shape 16 x 16 x 4, where 32 x 16 x 4 is needed";
    narrow_projection_missing: kimi_k3().without_tensor("blk.1.ffn_routed_up.weight") => "tensor blk.1.ffn_routed_up.weight is missing";
    narrow_norm_of_the_layer: kimi_k3().of_shape("blk.1.ffn_routed_norm.weight", &[EMBD]) => "tensor blk.1.ffn_routed_norm.weight has the shape 32, where 16 is needed";
    decays_of_two_sizes: kimi_k3().of_shape("blk.0.ssm_a", &[2, 2]) => "tensor blk.0.ssm_a has the shape 2 x 2, where 4 is needed";
    gate_of_heads_alone: kimi_k3().of_shape("blk.1.attn_gate.weight", &[EMBD, 4]) => "tensor blk.1.attn_gate.weight has the shape 32 x 4, where 32 x 32 is needed";
    gate_in_full_missing: kimi_k3().without_tensor("blk.0.ssm_g.weight") => "tensor blk.0.ssm_g.weight is missing";
    low_rank_unsaid: kimi_k3().weights("blk.1.attn_q_a_norm.weight", &[NARROW]) => "kimi-k3.attention.q_lora_rank is 0 or missing";
    whole_weights: kimi_k3().without_tensor("blk.1.attn_k_b.weight").without_tensor("blk.1.attn_v_b.weight").weights("blk.1.attn_kv_b.weight", &[LATENT, 64]) => "tensor blk.1.attn_k_b.weight is missing";
}
