//! DeepSeek V4: hyper-connections, compressed keys and their indexer, experts by token.

use crate::common::deepseek4::*;
use crate::common::gguf::{Data, GgufBuilder, ty};
use crate::common::state_spaces::{EMBD, EXPERTS, FF, StateSpaces};
use crate::{refused, sound};

/// With images' biases and a block of multi-token prediction, which nothing needs.
fn with_more() -> GgufBuilder {
    deepseek4()
        .weights("blk.1.exp_probs_b_vl.bias", &[EXPERTS])
        .key("block_count", 5u32)
        .key("nextn_predict_layers", 1u32)
        .key("attention.compress_ratios", vec![0u32, 4, 128, 4, 0, 0])
        .key("rope.scaling.yarn_log_multiplier", 0.1f32)
        .weights("blk.4.nextn.enorm.weight", &[EMBD])
}

#[test]
fn models_are_sound() {
    sound(&deepseek4());
    sound(&with_more());
    sound(&deepseek4().of_shape("blk.1.attn_output_a.weight", &[HEADS / GROUPS * LEN, OUT_RANK, GROUPS]));
    sound(&deepseek4().key("swiglu_clamp_shexp", vec![0f32, 1.0, 2.0, 3.0]));
    sound(&deepseek4().key("attention.indexer.top_k", 1u32 << 24));
}

refused! {
    streams_unnamed: deepseek4().no_key("hyper_connection.count") => "deepseek4.hyper_connection.count is missing";
    streams_two: deepseek4().key("hyper_connection.count", 2u32) => "deepseek4.hyper_connection.count (2) asks for something";
    rounds_none: deepseek4().key("hyper_connection.sinkhorn_iterations", 0u32) => "deepseek4.hyper_connection.sinkhorn_iterations is 0";
    rounds_without_end: deepseek4().key("hyper_connection.sinkhorn_iterations", 1u32 << 24) => "deepseek4.hyper_connection.sinkhorn_iterations is 16777216, where 1 to 1024 make sense";
    epsilon_of_gates_missing: deepseek4().no_key("hyper_connection.epsilon") => "deepseek4.hyper_connection.epsilon is missing";
    epsilon_of_gates_negative: deepseek4().key("hyper_connection.epsilon", -1f32) => "deepseek4.hyper_connection.epsilon is negative";
    epsilon_of_gates_not_a_number: deepseek4().key("hyper_connection.epsilon", f32::NAN) => "deepseek4.hyper_connection.epsilon is NaN";
    mixes_missing: deepseek4().without_tensor("blk.2.hc_ffn_fn.weight") => "tensor blk.2.hc_ffn_fn.weight is missing";
    mixes_of_one_stream: deepseek4().of_shape("blk.0.hc_attn_fn.weight", &[EMBD, MIXES]) => "tensor blk.0.hc_attn_fn.weight has the shape 32 x 24, where 128 x 24 is needed";
    base_too_short: deepseek4().of_shape("blk.0.hc_attn_base.weight", &[16]) => "tensor blk.0.hc_attn_base.weight has the shape 16, where 24 is needed";
    scale_of_one: deepseek4().of_shape("blk.0.hc_ffn_scale.weight", &[1]) => "tensor blk.0.hc_ffn_scale.weight has the shape 1, where 3 is needed";
    scale_not_a_number: deepseek4().replace("blk.0.hc_ffn_scale.weight", ty::F32, &[3], vec![1.0, f32::NAN, 1.0]) => "tensor blk.0.hc_ffn_scale.weight holds NaN at element 1";
    head_of_streams_missing: deepseek4().without_tensor("output_hc_base.weight") => "tensor output_hc_base.weight is missing";
    output_missing: deepseek4().without_tensor("output.weight") => "tensor output.weight is missing";
}

refused! {
    ratios_missing: deepseek4().no_key("attention.compress_ratios") => "deepseek4.attention.compress_ratios is missing";
    ratios_too_few: deepseek4().key("attention.compress_ratios", vec![0u32, 4, 128]) => "deepseek4.attention.compress_ratios has 3 values, where 4 are needed";
    ratios_one_for_all: deepseek4().key("attention.compress_ratios", 4u32) => "deepseek4.attention.compress_ratios is no array with a count for each block";
    ratio_unknown: deepseek4().key("attention.compress_ratios", vec![0u32, 8, 128, 4]) => "deepseek4.attention.compress_ratios (8 in layer 1) asks for something";
    ratio_negative: deepseek4().key("attention.compress_ratios", vec![0i32, -4, 128, 4]) => "deepseek4.attention.compress_ratios holds what is no count";
    ratio_of_another_layer: deepseek4().key("attention.compress_ratios", vec![4u32, 4, 128, 4]) => "tensor blk.0.attn_compressor_kv.weight is missing";
    compressor_nobody_has: deepseek4().key("attention.compress_ratios", vec![0u32, 0, 128, 4]) => "tensor blk.1.attn_compressor_kv.weight is not part of the architecture deepseek4";
    compressor_of_half_the_width: deepseek4().of_shape("blk.1.attn_compressor_gate.weight", &[EMBD, LEN]) => "tensor blk.1.attn_compressor_gate.weight has the shape 32 x 16, where 32 x 32 is needed";
    places_of_another_ratio: deepseek4().of_shape("blk.2.attn_compressor_ape.weight", &[LEN, 4]) => "tensor blk.2.attn_compressor_ape.weight has the shape 16 x 4, where 16 x 128 is needed";
    places_not_numbers: deepseek4().replace("blk.1.indexer_compressor_ape.weight", ty::F32, &[2 * INDEX_LEN, 4], vec![f32::INFINITY; 512]) => "tensor blk.1.indexer_compressor_ape.weight holds inf at element 0";
    norm_of_compressed_keys_of_zeros: deepseek4().of_shape("blk.1.attn_compressor_norm.weight", &[LEN]) => "tensor blk.1.attn_compressor_norm.weight holds zeros alone";
    base_of_compressed_keys_missing: deepseek4().no_key("attention.compress_rope_freq_base") => "deepseek4.attention.compress_rope_freq_base is missing";
    base_of_compressed_keys_negative: deepseek4().key("attention.compress_rope_freq_base", -1f32) => "deepseek4.attention.compress_rope_freq_base is -1, where more than 0";
    indexer_heads_missing: deepseek4().no_key("attention.indexer.head_count") => "deepseek4.attention.indexer.head_count is missing";
    indexer_of_an_odd_length: deepseek4().key("attention.indexer.key_length", 96u32) => "deepseek4.attention.indexer.key_length is 96, where a multiple of 64";
    indexer_of_another_length: deepseek4().key("attention.indexer.key_length", 128u32) => "tensor blk.1.indexer_compressor_kv.weight has the shape 32 x 128, where 32 x 256 is needed";
    indexer_chooses_nothing: deepseek4().key("attention.indexer.top_k", 0u32) => "deepseek4.attention.indexer.top_k is 0";
    indexer_queries_missing: deepseek4().without_tensor("blk.3.indexer.attn_q_b.weight") => "tensor blk.3.indexer.attn_q_b.weight is missing";
    window_missing: deepseek4().no_key("attention.sliding_window") => "deepseek4.attention.sliding_window is missing";
    window_of_nothing: deepseek4().key("attention.sliding_window", 0u32) => "deepseek4.attention.sliding_window is 0";
    heads_of_keys_two: deepseek4().key("attention.head_count_kv", 2u32) => "deepseek4.attention.head_count_kv is 2 in layer 0, where 1 is needed";
    heads_that_differ: deepseek4().key("attention.head_count", vec![4u32, 4, 2, 4]) => "deepseek4.attention.head_count differs from layer to layer";
    values_of_another_length: deepseek4().key("attention.value_length", 8u32) => "deepseek4.attention.value_length is 8, where keys of 16 are values as well";
    groups_that_do_not_divide: deepseek4().key("attention.output_group_count", 3u32) => "deepseek4.attention.output_group_count is 3, which does not divide 4 heads";
    groups_of_another_shape: deepseek4().key("attention.output_group_count", 4u32) => "tensor blk.0.attn_output_a.weight has the shape 32 x 12, where 16 x 24 is needed";
    rank_of_output_missing: deepseek4().no_key("attention.output_lora_rank") => "deepseek4.attention.output_lora_rank is missing";
    rank_of_queries_none: deepseek4().key("attention.q_lora_rank", 0u32) => "deepseek4.attention.q_lora_rank is 0";
    rotated_an_odd_part: deepseek4().key("rope.dimension_count", 7u32) => "deepseek4.rope.dimension_count is 7, where RoPE needs an even size";
    gain_of_yarn: deepseek4().key("rope.scaling.attn_factor", 1.2f32) => "deepseek4.rope.scaling.attn_factor (1.2";
    sinks_missing: deepseek4().without_tensor("blk.0.attn_sinks.weight") => "tensor blk.0.attn_sinks.weight is missing";
    latents_of_another_family: deepseek4().key("attention.kv_lora_rank", 16u32) => "deepseek4.attention.kv_lora_rank (of type u32) asks for something";
}

refused! {
    hashed_unnamed: deepseek4().no_key("hash_layer_count") => "deepseek4.hash_layer_count is missing";
    hashed_one_more: deepseek4().key("hash_layer_count", 2u32) => "tensor blk.1.ffn_gate_tid2eid.weight is missing";
    hashed_none: deepseek4().key("hash_layer_count", 0u32) => "tensor blk.0.exp_probs_b.bias is missing";
    table_of_floats: deepseek4().of_shape("blk.0.ffn_gate_tid2eid.weight", &[USED, 16]) => "tensor blk.0.ffn_gate_tid2eid.weight is of type F32, which is not supported yet (supported: I32)";
    table_of_fewer_tokens: deepseek4().table(vec![0; 30]) => "tensor blk.0.ffn_gate_tid2eid.weight has the shape 2 x 15, where 2 x 16 is needed";
    table_beyond_the_experts: deepseek4().table([vec![0; 31], vec![4]].concat()) => "tensor blk.0.ffn_gate_tid2eid.weight holds 4 at element 31, where 0 to 3 make sense";
    table_below_the_experts: deepseek4().table([vec![-1], vec![0; 31]].concat()) => "tensor blk.0.ffn_gate_tid2eid.weight holds -1 at element 0, where 0 to 3 make sense";
    whole_numbers_elsewhere: deepseek4().replace("blk.1.attn_kv.weight", ty::I32, &[EMBD, LEN], Data::Zero) => "tensor blk.1.attn_kv.weight is of type I32, which is not supported yet";
    gating_unnamed: deepseek4().no_key("expert_gating_func") => "deepseek4.expert_gating_func is 0 or missing";
    gating_of_another_family: deepseek4().key("expert_gating_func", 2u32) => "deepseek4.expert_gating_func (2) asks for something";
    weights_norm_unnamed: deepseek4().no_key("expert_weights_norm") => "deepseek4.expert_weights_norm is missing";
    weights_scale_unnamed: deepseek4().no_key("expert_weights_scale") => "deepseek4.expert_weights_scale is missing";
    limits_unnamed: deepseek4().no_key("swiglu_clamp_exp") => "deepseek4.swiglu_clamp_exp is missing";
    limits_too_few: deepseek4().key("swiglu_clamp_exp", vec![1f32, 1.0]) => "deepseek4.swiglu_clamp_exp has 2 values, where 4 are needed";
    limits_not_numbers: deepseek4().key("swiglu_clamp_shexp", f32::NAN) => "deepseek4.swiglu_clamp_shexp is NaN";
    shared_experts_none: deepseek4().key("expert_shared_count", 0u32) => "deepseek4.expert_shared_count is 0";
    shared_network_of_another_length: deepseek4().of_shape("blk.0.ffn_up_shexp.weight", &[EMBD, 2 * FF]) => "tensor blk.0.ffn_up_shexp.weight has the shape 32 x 32, where 32 x 16 is needed";
}
