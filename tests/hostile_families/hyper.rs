//! Hunyuan 4 and GLM 5.3: hyper-connections that leave streams apart or end in a mean, latent attention with
//! sinks or without any rotation, indexers that layers share and whose keys are pooled.

use crate::common::deepseek4::STREAMS;
use crate::common::gguf::{GgufBuilder, ty};
use crate::common::hyper::*;
use crate::common::state_spaces::{EMBD, EXPERTS, StateSpaces};
use crate::{refused, sound};

/// With a block of multi-token prediction, which nothing needs.
fn with_block(model: GgufBuilder, il: usize) -> GgufBuilder {
    model
        .key("block_count", il as u32 + 1)
        .key("nextn_predict_layers", 1u32)
        .weights(&format!("blk.{il}.nextn.enorm.weight"), &[EMBD])
        .weights(&format!("blk.{il}.indexer.proj.weight"), &[EMBD, INDEX_HEADS])
}

/// Without any indexer.
fn hy_v4_dense() -> GgufBuilder {
    let mut model = hy_v4().no_key("attention.indexer.top_k");
    model.tensors.retain(|tensor| !tensor.name.windows(8).any(|part| part == b".indexer"));
    model
}

#[test]
fn models_are_sound() {
    sound(&hy_v4());
    sound(&hy_v4_dense());
    sound(&hy_v4_dense().key("attention.indexer.top_k", 0u32));
    sound(&with_block(hy_v4(), 3));
    sound(&hy_v4().without_tensor("blk.1.exp_probs_b.bias").no_key("swiglu_clamp_exp"));
    sound(&hy_v4().key("swiglu_clamp_exp", vec![0f32, 0.5, 1.0]).key("attention.indexer.top_k", 1u32 << 24));
    sound(&hy_v4().key("hyper_connection.magnitude", 0f32));
    sound(&glm5_next());
    let kv = vec![0u32, 1, 0, 1, 1];
    sound(&with_block(glm5_next(), 4).key("attention.head_count_kv", kv));
    sound(&glm5_next().key("swiglu_clamp_shexp", vec![0f32, 0.5, 1.0, 2.0]).no_key("kda.gate_lower_bound"));
    sound(&glm5_next().key("attention.indexer.kpool_select_tail", true));
    let most = (1u32 << 24) / POOL as u32 * POOL as u32;
    sound(&glm5_next().key("attention.indexer.top_k", most));
}

refused! {
    apart_streams_unnamed: hy_v4().no_key("hyper_connection.count") => "hy_v4.hyper_connection.count is missing";
    apart_streams_eight: hy_v4().key("hyper_connection.count", 8u32) => "hy_v4.hyper_connection.count (8) asks for something";
    apart_epsilon_missing: hy_v4().no_key("hyper_connection.epsilon") => "hy_v4.hyper_connection.epsilon is missing";
    magnitude_missing: hy_v4().no_key("hyper_connection.magnitude") => "hy_v4.hyper_connection.magnitude is missing";
    magnitude_not_a_number: hy_v4().key("hyper_connection.magnitude", f32::NAN) => "hy_v4.hyper_connection.magnitude is NaN";
    rounds_of_streams_apart: hy_v4().key("hyper_connection.sinkhorn_iterations", 3u32) => "hy_v4.hyper_connection.sinkhorn_iterations (of type u32) asks for something";
    apart_mixes_of_pairs: hy_v4().of_shape("blk.0.hc_attn_fn.weight", &[STREAMS * EMBD, 24]) => "tensor blk.0.hc_attn_fn.weight has the shape 128 x 24, where 128 x 8 is needed";
    apart_base_missing: hy_v4().without_tensor("blk.2.hc_ffn_base.weight") => "tensor blk.2.hc_ffn_base.weight is missing";
    apart_scale_of_three: hy_v4().of_shape("blk.1.hc_ffn_scale.weight", &[3]) => "tensor blk.1.hc_ffn_scale.weight has the shape 3, where 2 is needed";
    apart_head_missing: hy_v4().without_tensor("output_hc_fn.weight") => "tensor output_hc_fn.weight is missing";
    apart_output_missing: hy_v4().without_tensor("output.weight") => "tensor output.weight is missing";
    sinks_of_latents_missing: hy_v4().without_tensor("blk.1.attn_sinks.weight") => "tensor blk.1.attn_sinks.weight is missing";
    sinks_of_two_heads: hy_v4().of_shape("blk.1.attn_sinks.weight", &[2]) => "tensor blk.1.attn_sinks.weight has the shape 2, where 4 is needed";
    sinks_not_numbers: hy_v4().replace("blk.0.attn_sinks.weight", ty::F32, &[HEADS], vec![f32::NAN; 4]) => "tensor blk.0.attn_sinks.weight holds NaN at element 0";
    gate_of_latents_missing: hy_v4().without_tensor("blk.0.attn_gate.weight") => "tensor blk.0.attn_gate.weight is missing";
    gate_one_a_head: hy_v4().of_shape("blk.0.attn_gate.weight", &[EMBD, HEADS]) => "tensor blk.0.attn_gate.weight has the shape 32 x 4, where 32 x 32 is needed";
    rank_of_queries_missing: hy_v4().no_key("attention.q_lora_rank") => "hy_v4.attention.q_lora_rank is 0 or missing";
    latents_missing: hy_v4().no_key("attention.kv_lora_rank") => "hy_v4.attention.kv_lora_rank is missing";
    length_of_heads_missing: hy_v4().no_key("attention.key_length_mla") => "hy_v4.attention.key_length_mla is missing";
    lengths_of_heads_missing: hy_v4().no_key("attention.key_length_mla").no_key("attention.value_length_mla") => "hy_v4.attention.key_length_mla is missing";
    heads_of_keys_two: hy_v4().key("attention.head_count_kv", 2u32) => "hy_v4.attention.head_count_kv is 2 in layer 0, where 1 is needed";
    indexer_of_the_first_layer_missing: hy_v4().key("attention.indexer.types", vec![0u32, 1, 1]) => "hy_v4.attention.indexer.types says that layer 0 has no indexer of its own";
    indexers_not_said: hy_v4().no_key("attention.indexer.types") => "hy_v4.attention.indexer.types is missing";
    indexers_of_two_layers: hy_v4().key("attention.indexer.types", vec![1u32, 0]) => "hy_v4.attention.indexer.types has 2 values, where 3 are needed";
    indexer_where_none_is: hy_v4().key("attention.indexer.types", 1u32) => "tensor blk.1.indexer.attn_k.weight is missing";
    indexer_nobody_has: hy_v4().no_key("attention.indexer.top_k") => "tensor blk.0.indexer.attn_k.weight is not part of the architecture hy_v4";
    indexer_heads_missing: hy_v4().no_key("attention.indexer.head_count") => "hy_v4.attention.indexer.head_count is missing";
    indexer_of_rotated_alone: hy_v4().key("attention.indexer.key_length", 4u32) => "hy_v4.attention.indexer.key_length is 4, where a multiple of 16 above 4 is needed";
    indexer_bias_of_another_length: hy_v4().of_shape("blk.0.indexer.k_norm.bias", &[16]) => "tensor blk.0.indexer.k_norm.bias has the shape 16, where 32 is needed";
    limits_of_two_blocks: hy_v4().key("swiglu_clamp_exp", vec![1f32, 1.0]) => "hy_v4.swiglu_clamp_exp has 2 values, where 3 are needed";
    limits_of_the_network_beside: hy_v4().key("swiglu_clamp_shexp", 1f32) => "hy_v4.swiglu_clamp_shexp (of type f32) asks for something";
    gating_unnamed: hy_v4().no_key("expert_gating_func") => "hy_v4.expert_gating_func is 0 or missing";
    experts_none: hy_v4().no_key("expert_count") => "hy_v4.expert_count is 0 or missing";
    network_beside_unnamed: hy_v4().no_key("expert_shared_count") => "hy_v4.expert_shared_count is missing";
}

refused! {
    mean_rounds_missing: glm5_next().no_key("hyper_connection.sinkhorn_iterations") => "glm5-next.hyper_connection.sinkhorn_iterations is missing";
    mean_streams_two: glm5_next().key("hyper_connection.count", 2u32) => "glm5-next.hyper_connection.count (2) asks for something";
    mean_magnitude: glm5_next().key("hyper_connection.magnitude", 2f32) => "glm5-next.hyper_connection.magnitude (of type f32) asks for something";
    mean_with_a_head: glm5_next().weights("output_hc_base.weight", &[STREAMS]) => "tensor output_hc_base.weight is not part of the architecture glm5-next";
    mean_output_missing: glm5_next().without_tensor("output.weight") => "tensor output.weight is missing";
    rotated_four: glm5_next().key("rope.dimension_count", 4u32) => "glm5-next.rope.dimension_count (4) asks for something";
    rotated_unnamed: glm5_next().no_key("rope.dimension_count") => "glm5-next.rope.dimension_count is missing, where 0 is needed";
    latents_with_more: glm5_next().key("attention.key_length", 20u32) => "glm5-next.attention.key_length is 20, where 16 are needed";
    mixed_heads_of_keys_two: glm5_next().key("attention.head_count_kv", vec![0u32, 2, 0, 1]) => "glm5-next.attention.head_count_kv is 2 in layer 1, where 1 is needed";
    mixed_heads_that_differ: glm5_next().key("attention.head_count", vec![4u32, 4, 2, 4]) => "glm5-next.attention.head_count is 0 or differs from layer to layer";
    taps_one: glm5_next().key("ssm.conv_kernel", 1u32) => "glm5-next.ssm.conv_kernel is 1, where at least 2 are needed";
    heads_of_delta_nets_missing: glm5_next().no_key("kda.head_dim") => "glm5-next.kda.head_dim is missing";
    decay_that_grows: glm5_next().key("kda.gate_lower_bound", 1f32) => "glm5-next.kda.gate_lower_bound is 1, which is no decay";
    gate_of_delta_nets_missing: glm5_next().without_tensor("blk.2.ssm_g_b.weight") => "tensor blk.2.ssm_g_b.weight is missing";
    factors_of_decays_of_two_sizes: glm5_next().of_shape("blk.0.ssm_a", &[1, HEADS]) => "tensor blk.0.ssm_a has the shape 1 x 4, where 4 is needed";
    pool_missing: glm5_next().no_key("attention.indexer.kpool") => "glm5-next.attention.indexer.kpool is missing";
    pool_of_one: glm5_next().key("attention.indexer.kpool", 1u32) => "glm5-next.attention.indexer.kpool is 1, where at least 2 are needed that divide 12";
    pool_that_does_not_divide: glm5_next().key("attention.indexer.kpool", 5u32) => "glm5-next.attention.indexer.kpool is 5, where at least 2 are needed that divide 12";
    pool_of_another_shape: glm5_next().key("attention.indexer.kpool", 4u32) => "tensor blk.1.indexer_compressor_ape.weight has the shape 32 x 3, where 32 x 4 is needed";
    tail_left_out: glm5_next().key("attention.indexer.kpool_select_tail", false) => "glm5-next.attention.indexer.kpool_select_tail (0) asks for something";
    pooled_choice_of_nothing: glm5_next().key("attention.indexer.top_k", 0u32) => "glm5-next.attention.indexer.top_k is 0";
    pooled_choice_unnamed: glm5_next().no_key("attention.indexer.top_k") => "glm5-next.attention.indexer.top_k is missing";
    pooled_gate_missing: glm5_next().without_tensor("blk.1.indexer_compressor_gate.weight") => "tensor blk.1.indexer_compressor_gate.weight is missing";
    pooled_places_not_numbers: glm5_next().replace("blk.1.indexer_compressor_ape.weight", ty::F32, &[INDEX_LEN, POOL], vec![f32::INFINITY; 96]) => "tensor blk.1.indexer_compressor_ape.weight holds inf at element 0";
    pooled_first_without: glm5_next().key("attention.indexer.types", vec![1u32, 0, 1, 1]) => "glm5-next.attention.indexer.types says that layer 1 has no indexer of its own";
    pooled_last_without: glm5_next().no_key("attention.indexer.types") => "tensor blk.3.indexer.attn_k.weight is missing";
    pooled_odd_length: glm5_next().key("attention.indexer.key_length", 24u32) => "glm5-next.attention.indexer.key_length is 24, where a multiple of 16 is needed";
    epsilon_of_the_indexer_missing: glm5_next().no_key("attention.layer_norm_epsilon") => "glm5-next.attention.layer_norm_epsilon is missing";
    bias_of_experts_missing: glm5_next().without_tensor("blk.2.exp_probs_b.bias") => "tensor blk.2.exp_probs_b.bias is missing";
    bias_of_other_experts: glm5_next().of_shape("blk.2.exp_probs_b.bias", &[EXPERTS - 1]) => "tensor blk.2.exp_probs_b.bias has the shape 3, where 4 is needed";
    limits_of_five_blocks: glm5_next().key("swiglu_clamp_shexp", vec![1f32; 5]) => "glm5-next.swiglu_clamp_shexp has 5 values, where 4 are needed";
}
