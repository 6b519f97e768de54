//! LFM2, Granite 4 hybrid, Nemotron-H, Falcon-H1, Mamba 2 and MiniMax 01.

use crate::common::state_spaces::*;
use crate::{refused, sound};

#[test]
fn models_are_sound() {
    for (_, model) in all() {
        sound(&model);
    }
}

// ---- LFM2 ------------------------------------------------------------------------------------------------------------

refused! {
    window_unnamed: lfm2().no_key("shortconv.l_cache") => "lfm2.shortconv.l_cache is missing";
    window_none: lfm2().key("shortconv.l_cache", 0u32) => "lfm2.shortconv.l_cache is 0";
    window_of_one: lfm2().key("shortconv.l_cache", 1u32) => "lfm2.shortconv.l_cache is 1, where at least 2";
    window_huge: lfm2().key("shortconv.l_cache", 1u32 << 24) => "tensor blk.0.shortconv.conv.weight has the shape 3 x 32, where 16777216 x 32";
    window_beyond_all: lfm2().key("shortconv.l_cache", u64::MAX) => "lfm2.shortconv.l_cache is 18446744073709551615";
    taps_of_another_length: lfm2().of_shape("blk.0.shortconv.conv.weight", &[4, EMBD]) => "tensor blk.0.shortconv.conv.weight has the shape 4 x 32, where 3 x 32";
    taps_not_a_number: lfm2().replace("blk.0.shortconv.conv.weight", crate::common::gguf::ty::F32, &[3, EMBD], vec![f32::NAN; 96]) => "tensor blk.0.shortconv.conv.weight holds NaN at element 0";
    in_projection_missing: lfm2().without_tensor("blk.2.shortconv.in_proj.weight") => "tensor blk.2.shortconv.in_proj.weight is missing";
    in_projection_too_short: lfm2().of_shape("blk.0.shortconv.in_proj.weight", &[EMBD, 64]) => "tensor blk.0.shortconv.in_proj.weight has the shape 32 x 64, where 32 x 96";
    out_projection_of_another_shape: lfm2().of_shape("blk.0.shortconv.out_proj.weight", &[EMBD, 31]) => "tensor blk.0.shortconv.out_proj.weight has the shape 32 x 31, where 32 x 32";
    out_projection_with_a_bias: lfm2().weights("blk.0.shortconv.out_proj.bias", &[EMBD]) => "tensor blk.0.shortconv.out_proj.bias is not part of the architecture lfm2";
    convolutions_in_all_layers: lfm2().key("attention.head_count_kv", vec![0u32, 0, 0]) => "tensor blk.1.shortconv.in_proj.weight is missing";
    attention_in_all_layers: lfm2().key("attention.head_count_kv", 2u32) => "tensor blk.0.attn_q_norm.weight is missing";
    heads_of_too_few_layers: lfm2().key("attention.head_count_kv", vec![0u32, 2]) => "lfm2.attention.head_count_kv has 2 values, where 3 are needed";
    heads_that_do_not_divide: lfm2().key("attention.head_count_kv", vec![0u32, 3, 0]) => "lfm2.attention.head_count_kv is 3, which does not divide 4";
    query_heads_none: lfm2().key("attention.head_count", 0u32) => "lfm2.attention.head_count is 0 or missing, where layer 1 has attention";
    last_norm_of_another_name: lfm2().norm("output_norm.weight") => "tensor output_norm.weight is not part of the architecture lfm2";
    last_norm_missing: lfm2().without_tensor("token_embd_norm.weight") => "tensor token_embd_norm.weight is missing";
    head_norm_missing: lfm2().without_tensor("blk.1.attn_k_norm.weight") => "tensor blk.1.attn_k_norm.weight is missing";
    window_of_attention_a_text: lfm2().key("attention.sliding_window", "all") => "lfm2.attention.sliding_window is a string";
    window_of_attention_that_experts_lack: lfm2moe().key("attention.sliding_window", 8u32) => "lfm2moe.attention.sliding_window (8) asks for something";
    gating_unnamed: lfm2moe().no_key("expert_gating_func") => "lfm2moe.expert_gating_func is 0 or missing";
    gating_unknown: lfm2moe().key("expert_gating_func", 9u32) => "lfm2moe.expert_gating_func (9) asks for something";
    choice_bias_missing: lfm2moe().without_tensor("blk.1.exp_probs_b.bias") => "tensor blk.1.exp_probs_b.bias is missing";
    weights_that_are_not_normalised: lfm2moe().key("expert_weights_norm", false) => "lfm2moe.expert_weights_norm (0) asks for something";
    experts_of_no_length: lfm2moe().no_key("expert_feed_forward_length") => "lfm2moe.expert_feed_forward_length is missing";
    experts_in_all_layers: lfm2moe().key("leading_dense_block_count", 0u32) => "tensor blk.0.exp_probs_b.bias is missing";
}

// ---- Mamba 2 ---------------------------------------------------------------------------------------------------------

refused! {
    kernel_unnamed: mamba2().no_key("ssm.conv_kernel") => "mamba2.ssm.conv_kernel is missing";
    kernel_none: mamba2().key("ssm.conv_kernel", 0u32) => "mamba2.ssm.conv_kernel is 0";
    kernel_of_another_length: mamba2().key("ssm.conv_kernel", 5u32) => "tensor blk.0.ssm_conv1d.weight has the shape 4 x 128, where 5 x 128";
    inner_size_unnamed: mamba2().no_key("ssm.inner_size") => "mamba2.ssm.inner_size is missing";
    inner_size_none: mamba2().key("ssm.inner_size", 0u32) => "mamba2.ssm.inner_size is 0";
    inner_size_that_heads_do_not_divide: mamba2().key("ssm.inner_size", 66u32) => "mamba2.ssm.time_step_rank is 4, which does not divide the inner size of 66";
    inner_size_of_another_length: mamba2().key("ssm.inner_size", 128u32) => "tensor blk.0.ssm_in.weight has the shape 32 x 196, where 32 x 324";
    inner_size_negative: mamba2().key("ssm.inner_size", -64i32) => "mamba2.ssm.inner_size";
    heads_none: mamba2().key("ssm.time_step_rank", 0u32) => "mamba2.ssm.time_step_rank is 0";
    heads_that_do_not_divide_the_inner_size: mamba2().key("ssm.time_step_rank", 6u32) => "mamba2.ssm.time_step_rank is 6, which does not divide";
    groups_none: mamba2().key("ssm.group_count", 0u32) => "mamba2.ssm.group_count is 0";
    groups_that_do_not_divide: mamba2().key("ssm.group_count", 3u32) => "mamba2.ssm.group_count is 3, which does not divide 4 heads";
    groups_of_another_number: mamba2().key("ssm.group_count", 4u32) => "tensor blk.0.ssm_in.weight has the shape 32 x 196, where 32 x 260";
    state_none: mamba2().key("ssm.state_size", 0u32) => "mamba2.ssm.state_size is 0";
    state_huge: mamba2().key("ssm.state_size", 1u32 << 24) => "mamba2.ssm.state_size is 16777216, which makes a state of 1073741824 numbers";
    state_of_another_length: mamba2().key("ssm.state_size", 1u32 << 20) => "tensor blk.0.ssm_in.weight has the shape 32 x 196, where 32 x 4194436";
    state_beyond_all: mamba2().key("ssm.state_size", u64::MAX) => "mamba2.ssm.state_size is 18446744073709551615";
    step_biases_missing: mamba2().without_tensor("blk.0.ssm_dt.bias") => "tensor blk.0.ssm_dt.bias is missing";
    step_biases_too_few: mamba2().of_shape("blk.0.ssm_dt.bias", &[3]) => "tensor blk.0.ssm_dt.bias has the shape 3, where 4";
    decays_missing: mamba2().without_tensor("blk.1.ssm_a") => "tensor blk.1.ssm_a is missing";
    decays_of_mamba_1: mamba2().of_shape("blk.0.ssm_a", &[STATE, HEADS]) => "tensor blk.0.ssm_a has the shape 16 x 4, where 1 x 4";
    decays_not_a_number: mamba2().replace("blk.0.ssm_a", crate::common::gguf::ty::F32, &[1, HEADS], vec![f32::INFINITY; 4]) => "tensor blk.0.ssm_a holds inf at element 0";
    decays_that_grow: mamba2().replace("blk.0.ssm_a", crate::common::gguf::ty::F32, &[1, HEADS], vec![1e30f32; 4]) => "of layer 0 is not finite";
    skips_missing: mamba2().without_tensor("blk.0.ssm_d") => "tensor blk.0.ssm_d is missing";
    norm_missing: mamba2().without_tensor("blk.0.ssm_norm.weight") => "tensor blk.0.ssm_norm.weight is missing";
    norm_of_the_whole_row: mamba2().of_shape("blk.0.ssm_norm.weight", &[INNER]) => "tensor blk.0.ssm_norm.weight has the shape 64, where 32 x 2";
    norm_of_zeros: mamba2().of_shape("blk.0.ssm_norm.weight", &[INNER / GROUPS, GROUPS]) => "tensor blk.0.ssm_norm.weight holds zeros alone";
    biases_of_channels_too_few: mamba2().of_shape("blk.0.ssm_conv1d.bias", &[INNER]) => "tensor blk.0.ssm_conv1d.bias has the shape 64, where 128";
    output_of_another_shape: mamba2().of_shape("blk.0.ssm_out.weight", &[INNER, 16]) => "tensor blk.0.ssm_out.weight has the shape 64 x 16, where 64 x 32";
    steps_projected_as_in_mamba_1: mamba2().weights("blk.0.ssm_x.weight", &[INNER, 36]) => "tensor blk.0.ssm_x.weight is not part of the architecture mamba2";
    a_network_that_the_family_lacks: mamba2().network(0) => "tensor blk.0.ffn_norm.weight is not part of the architecture mamba2";
}

// ---- Granite 4 hybrid, Nemotron-H and Falcon-H1 ----------------------------------------------------------------------

refused! {
    mamba_in_all_layers: granite_hybrid().key("attention.head_count_kv", 0u32) => "tensor blk.1.ssm_in.weight is missing";
    attention_everywhere: granite_hybrid().key("attention.head_count_kv", 2u32) => "tensor blk.0.attn_q.weight is missing";
    sizes_of_mamba_unnamed: granite_hybrid().no_key("ssm.state_size") => "granitehybrid.ssm.state_size is missing";
    scale_of_logits_infinite: granite_hybrid().key("logit_scale", f32::INFINITY) => "granitehybrid.logit_scale is inf";
    network_unnamed: granite_hybrid().key("feed_forward_length", 0u32) => "granitehybrid.feed_forward_length is 0 or missing for layer 0";
    kinds_of_too_few_layers: nemotron_h().key("feed_forward_length", vec![0u32, 0]) => "nemotron_h.feed_forward_length has 2 values, where 3 are needed";
    networks_in_all_layers: nemotron_h().key("feed_forward_length", FF as u32) => "tensor blk.0.ffn_up.weight is missing";
    network_of_another_length: nemotron_h().key("feed_forward_length", vec![0u32, 0, 8]) => "tensor blk.2.ffn_up.weight has the shape 32 x 16, where 32 x 8";
    network_with_a_gate: nemotron_h().weights("blk.2.ffn_gate.weight", &[EMBD, FF]) => "tensor blk.2.ffn_gate.weight is not part of the architecture nemotron_h";
    norm_of_a_second_block: nemotron_h().norm("blk.2.ffn_norm.weight") => "tensor blk.2.ffn_norm.weight is not part of the architecture nemotron_h";
    epsilon_unnamed: nemotron_h().no_key("attention.layer_norm_epsilon") => "nemotron_h.attention.layer_norm_epsilon is missing";
    epsilon_negative: nemotron_h().key("attention.layer_norm_rms_epsilon", -1f32) => "nemotron_h.attention.layer_norm_rms_epsilon is negative";
    experts_used_in_no_layer: nemotron_h_moe().key("expert_used_count", vec![0u32; 3]) => "nemotron_h_moe.expert_used_count is 0 in layer 2, which has experts";
    experts_used_of_too_few_layers: nemotron_h_moe().key("expert_used_count", vec![2u32; 2]) => "nemotron_h_moe.expert_used_count has 2 values, where 3 are needed";
    experts_used_beyond: nemotron_h_moe().key("expert_used_count", vec![0u32, 0, 5]) => "nemotron_h_moe.expert_used_count is 5, where there are 4 experts";
    experts_too_many: nemotron_h_moe().key("expert_count", 1u32 << 20) => "nemotron_h_moe.expert_count makes 3145728 experts";
    experts_of_another_length: nemotron_h_moe().key("expert_feed_forward_length", vec![0u32, 0, 8]) => "tensor blk.2.ffn_up_exps.weight has the shape 16 x 16 x 4, where 16 x 8 x 4";
    experts_shorter_than_their_number: nemotron_h_moe().no_key("expert_feed_forward_length").key("feed_forward_length", vec![0u32, 0, 1]) => "nemotron_h_moe.feed_forward_length is less than the experts used";
    experts_without_a_bias: nemotron_h_moe().without_tensor("blk.2.exp_probs_b.bias") => "tensor blk.2.exp_probs_b.bias is missing";
    experts_with_a_gate: nemotron_h_moe().weights("blk.2.ffn_gate_exps.weight", &[16, FF, EXPERTS]) => "tensor blk.2.ffn_gate_exps.weight is not part of the architecture nemotron_h_moe";
    shared_network_unnamed: nemotron_h_moe().no_key("expert_shared_feed_forward_length") => "nemotron_h_moe.expert_shared_feed_forward_length is missing";
    scores_by_softmax: nemotron_h_moe().key("expert_gating_func", 1u32) => "nemotron_h_moe.expert_gating_func (1) asks for something";
    latent_unnamed: nemotron_h_moe().no_key("moe_latent_size") => "tensor blk.2.ffn_up_exps.weight has the shape 16 x 16 x 4, where 32 x 16 x 4";
    latent_of_another_length: nemotron_h_moe().key("moe_latent_size", 8u32) => "tensor blk.2.ffn_latent_down.weight has the shape 32 x 16, where 32 x 8";
    latent_wider_than_the_embedding: nemotron_h_moe().key("moe_latent_size", 33u32) => "nemotron_h_moe.moe_latent_size is 33, more than the embedding length of 32";
    latent_projection_missing: nemotron_h_moe().without_tensor("blk.2.ffn_latent_up.weight") => "tensor blk.2.ffn_latent_up.weight is missing";
    norm_of_the_usual_name: falcon_h1().norm("blk.0.ffn_norm.weight") => "tensor blk.0.ffn_norm.weight is not part of the architecture falcon-h1";
    norm_of_the_network_missing: falcon_h1().without_tensor("blk.1.ffn_norm") => "tensor blk.1.ffn_norm is missing";
    attention_missing: falcon_h1().without_tensor("blk.0.attn_v.weight") => "tensor blk.0.attn_v.weight is missing";
    layer_without_attention: falcon_h1().key("attention.head_count_kv", vec![2u32, 0]) => "falcon-h1.attention.head_count_kv is 0 in layer 1";
    groups_beside_attention: falcon_h1().key("ssm.group_count", 3u32) => "falcon-h1.ssm.group_count is 3, which does not divide 4 heads";
}

// ---- MiniMax 01 ------------------------------------------------------------------------------------------------------

refused! {
    residual_unscaled: minimax_01().no_key("residual_scale") => "minimax-01.residual_scale is missing";
    residual_not_finite: minimax_01().key("residual_scale", f32::NAN) => "minimax-01.residual_scale is NaN";
    residual_a_text: minimax_01().key("residual_scale", "half") => "minimax-01.residual_scale is a string";
    attention_every_none: minimax_01().key("full_attention_interval", 0u32) => "minimax-01.full_attention_interval is 0";
    attention_nowhere: minimax_01().no_key("full_attention_interval") => "tensor blk.1.attn_qkv.weight is missing";
    attention_in_each_layer: minimax_01().key("full_attention_interval", 1u32) => "tensor blk.0.attn_qkv.weight has the shape 32 x 96, where 32 x 64 is needed";
    lightning_elsewhere: minimax_01().key("attention.recurrent_layers", vec![false, true, false]) => "tensor blk.0.attn_qkv.weight has the shape 32 x 96, where 32 x 64 is needed";
    lightning_of_too_few_layers: minimax_01().key("attention.recurrent_layers", vec![true, false]) => "minimax-01.attention.recurrent_layers has 2 values, where 3 are needed";
    one_layer: minimax_01().key("block_count", 1u32) => "minimax-01.block_count is 1, where decays depend on the depth of a layer";
    heads_that_differ: minimax_01().key("attention.head_count", vec![4u32, 2, 4]) => "minimax-01.attention.head_count differs from layer to layer";
    values_of_another_length: minimax_01().key("attention.key_length", 8u32).key("attention.value_length", 16u32) => "minimax-01.attention.value_length is 16, where keys have 8";
    state_of_many_numbers: minimax_01().key("attention.key_length", 1u32 << 20).key("attention.value_length", 1u32 << 20) => "minimax-01.attention.key_length is 1048576, which makes a state of 4398046511104 numbers";
    projection_missing: minimax_01().without_tensor("blk.2.attn_qkv.weight") => "tensor blk.2.attn_qkv.weight is missing";
    projection_of_queries_alone: minimax_01().of_shape("blk.0.attn_qkv.weight", &[EMBD, 32]) => "tensor blk.0.attn_qkv.weight has the shape 32 x 32, where 32 x 96 is needed";
    projection_with_a_bias: minimax_01().weights("blk.0.attn_qkv.bias", &[96]) => "tensor blk.0.attn_qkv.bias is not part of the architecture minimax-01";
    gate_missing: minimax_01().without_tensor("blk.0.attn_gate.weight") => "tensor blk.0.attn_gate.weight is missing";
    gate_of_heads: minimax_01().of_shape("blk.0.attn_gate.weight", &[EMBD, 4]) => "tensor blk.0.attn_gate.weight has the shape 32 x 4, where 32 x 32 is needed";
    norm_of_a_head: minimax_01().of_shape("blk.0.attn_norm_2.weight", &[HEAD]) => "tensor blk.0.attn_norm_2.weight has the shape 8, where 32 is needed";
    norm_of_lightning_missing: minimax_01().without_tensor("blk.0.attn_norm_2.weight") => "tensor blk.0.attn_norm_2.weight is missing";
    experts_none: minimax_01().key("expert_count", 0u32) => "minimax-01.expert_count is 0 or missing";
    router_missing_beside_lightning: minimax_01().without_tensor("blk.0.ffn_gate_inp.weight") => "tensor blk.0.ffn_gate_inp.weight is missing";
    bias_of_the_choice: minimax_01().weights("blk.0.exp_probs_b.bias", &[EXPERTS]) => "tensor blk.0.exp_probs_b.bias is not part of the architecture minimax-01";
    weights_scaled: minimax_01().key("expert_weights_scale", 2f32) => "minimax-01.expert_weights_scale (2) asks for something";
}
