//! Qwen 1, GLM-4-9B, EXAONE 3.5, Jais 2, DeepSeekMoE, the first Ling and Mellum 2.

use crate::common::gguf::GgufBuilder;
use crate::routers_and_scales::{EMBD, EXPERTS, FF, HEAD, Spoil, of};
use crate::windows_and_images::without;
use crate::{refused, sound};

/// Hidden length of the tiny model's network.
const HIDDEN: u64 = 64;

/// Queries, keys and values of one tensor, with biases, as many heads of each; the key counts gate and up.
fn qwen() -> GgufBuilder {
    without(of("qwen"), &["attn_q", "attn_k", "attn_v"])
        .key("attention.head_count_kv", 4u32)
        .key("feed_forward_length", 2 * HIDDEN as u32)
        .values_of("blk.0.attn_qkv.weight", &[EMBD, 3 * EMBD])
        .values_of("blk.0.attn_qkv.bias", &[3 * EMBD])
}

/// Half of a head is rotated; gate and up are one tensor.
fn chatglm() -> GgufBuilder {
    without(of("chatglm"), &["ffn_gate"])
        .key("rope.dimension_count", HEAD as u32 / 2)
        .of_shape("blk.0.ffn_up.weight", &[EMBD, 2 * HIDDEN])
}

fn exaone() -> GgufBuilder {
    of("exaone").values_of("rope_freqs.weight", &[HEAD / 2])
}

fn jais2() -> GgufBuilder {
    without(of("jais2"), &["ffn_gate"])
        .no_key("attention.layer_norm_rms_epsilon")
        .key("attention.layer_norm_epsilon", 1e-5f32)
        .values_of("blk.0.attn_norm.bias", &[EMBD])
        .values_of("blk.0.ffn_up.bias", &[HIDDEN])
}

fn experts(arch: &str) -> GgufBuilder {
    of(arch).experts(2 * FF).key("expert_feed_forward_length", FF as u32).key("expert_shared_count", 2u32)
}

fn mellum() -> GgufBuilder {
    of("mellum")
        .experts(0)
        .head_norms()
        .key("expert_feed_forward_length", FF as u32)
        .key("attention.sliding_window", 4u32)
        .key("attention.sliding_window_pattern", vec![true])
}

#[test]
fn the_models_are_sound_before_they_are_spoiled() {
    for model in [
        qwen(),
        chatglm(),
        exaone(),
        jais2(),
        experts("deepseek").key("leading_dense_block_count", 0u32),
        experts("bailingmoe").key("expert_weights_norm", true),
        mellum(),
        mellum().no_key("attention.sliding_window").no_key("attention.sliding_window_pattern"),
    ] {
        sound(&model);
    }
}

refused! {
    gate_and_up_of_one: qwen().key("feed_forward_length", 1u32) => "qwen.feed_forward_length is less than a gate and an up";
    gate_and_up_of_none: qwen().key("feed_forward_length", 0u32) => "qwen.feed_forward_length is 0 or missing for layer 0";
    gate_counted_once: qwen().key("feed_forward_length", HIDDEN as u32) => "tensor blk.0.ffn_gate.weight has the shape 32 x 64, where 32 x 32 is needed";
    biases_of_queries_alone: qwen().of_shape("blk.0.attn_qkv.bias", &[EMBD]) => "tensor blk.0.attn_qkv.bias has the shape 32, where 96 is needed";
    up_without_its_gate: chatglm().of_shape("blk.0.ffn_up.weight", &[EMBD, HIDDEN]) => "tensor blk.0.ffn_gate.weight is missing";
    odd_part_rotated: chatglm().key("rope.dimension_count", 3u32) => "chatglm.rope.dimension_count is 3, where RoPE needs an even size";
    factors_of_another_length: exaone().of_shape("rope_freqs.weight", &[HEAD]) => "tensor rope_freqs.weight has the shape 8, where 4 is needed";
    window_where_there_is_none: exaone().key("attention.sliding_window", 4u32) => "exaone.attention.sliding_window (4) asks for something that is not supported";
    epsilon_of_another_norm: jais2().no_key("attention.layer_norm_epsilon") => "jais2.attention.layer_norm_epsilon is missing";
    bias_of_another_length: jais2().of_shape("blk.0.ffn_up.bias", &[HIDDEN + 1]) => "tensor blk.0.ffn_up.bias has the shape 65, where 64 is needed";
    shared_networks_uncounted: experts("deepseek").no_key("expert_shared_count") => "deepseek.expert_shared_count is missing";
    shared_networks_fewer: experts("deepseek").key("expert_shared_count", 1u32) => "tensor blk.0.ffn_gate_shexp.weight has the shape 32 x 32, where 32 x 16 is needed";
    experts_of_unknown_length: experts("deepseek").no_key("expert_feed_forward_length") => "deepseek.expert_feed_forward_length is missing";
    experts_by_sigmoid: experts("deepseek").key("expert_gating_func", 2u32) => "deepseek.expert_gating_func (2) asks for something that is not supported";
    weights_normalised: experts("deepseek").key("expert_weights_norm", true) => "deepseek.expert_weights_norm (1) asks for something that is not supported";
    dense_layer_missing: experts("deepseek").key("leading_dense_block_count", 1u32) => "tensor blk.0.ffn_gate.weight is missing";
    dense_layers_of_ling: experts("bailingmoe").key("leading_dense_block_count", 1u32) => "bailingmoe.leading_dense_block_count (1) asks for something that is not supported";
    part_of_a_head_rotated: experts("bailingmoe").key("rope.dimension_count", 4u32) => "bailingmoe.rope.dimension_count is 4, where heads are 8";
    experts_used_beyond: experts("bailingmoe").key("expert_used_count", 5u32) => "bailingmoe.expert_used_count is 5, where there are 4 experts";
    base_of_windows: mellum().key("rope.freq_base_swa", 5000.0f32) => "mellum.rope.freq_base_swa (5000) asks for something that is not supported";
    windows_of_another_count: mellum().key("attention.sliding_window_pattern", vec![true, true]) => "mellum.attention.sliding_window_pattern has 2 values, where 1 are needed";
    norm_of_keys_missing: without(mellum(), &["attn_k_norm"]) => "tensor blk.0.attn_k_norm.weight is missing";
    experts_uncounted: mellum().no_key("expert_count") => "mellum.expert_count is 0 or missing";
    router_of_fewer: mellum().of_shape("blk.0.ffn_gate_inp.weight", &[EMBD, EXPERTS - 1]) => "tensor blk.0.ffn_gate_inp.weight has the shape 32 x 3, where 32 x 4 is needed";
}
