//! Gemma 3n and 4.

use crate::common::gguf::GgufBuilder;
use crate::common::tiny::layers;
use crate::routers_and_scales::{EMBD, EXPERTS, FF, HEAD, Spoil, of};
use crate::windows_and_images::without;
use crate::{refused, sound};

/// Tokens of the tiny model.
const TOKENS: u64 = 16;
/// Elements of a layer's own input: of the tiny Gemma 4, and of every Gemma 3n.
const SHORT: u64 = 4;
const LONG: u64 = 256;

fn around(arch: &str) -> GgufBuilder {
    of(arch)
        .head_norms()
        .key("attention.sliding_window", 4u32)
        .values_of("blk.0.post_attention_norm.weight", &[EMBD])
        .values_of("blk.0.post_ffw_norm.weight", &[EMBD])
}

/// Inputs of each layer of its own, of one layer.
fn per_layer(model: GgufBuilder, len: u64) -> GgufBuilder {
    model
        .values_of("per_layer_token_embd.weight", &[len, TOKENS])
        .values_of("per_layer_model_proj.weight", &[EMBD, len])
        .values_of("per_layer_proj_norm.weight", &[len])
        .values_of("blk.0.inp_gate.weight", &[EMBD, len])
        .values_of("blk.0.proj.weight", &[len, EMBD])
        .values_of("blk.0.post_norm.weight", &[EMBD])
}

fn plain() -> GgufBuilder {
    around("gemma4")
        .key("attention.key_length", HEAD as u32)
        .key("attention.value_length", HEAD as u32)
        .key("attention.key_length_swa", HEAD as u32)
        .key("attention.value_length_swa", HEAD as u32)
        .key("attention.sliding_window_pattern", vec![true])
        .values_of("blk.0.layer_output_scale.weight", &[1])
}

fn gemma4() -> GgufBuilder {
    per_layer(plain(), SHORT).key("embedding_length_per_layer_input", SHORT as u32)
}

/// Four layers, of which the last two see the keys and values of the first two.
fn sharing() -> GgufBuilder {
    layers(plain(), 4)
        .key("attention.sliding_window_pattern", vec![true, false, true, false])
        .key("attention.shared_kv_layers", 2u32)
        .values_of("rope_freqs.weight", &[HEAD / 2])
        .without_tensor("blk.2.attn_k.weight")
        .without_tensor("blk.2.attn_v.weight")
        .without_tensor("blk.2.attn_k_norm.weight")
}

fn moe() -> GgufBuilder {
    plain()
        .key("expert_count", EXPERTS as u32)
        .key("expert_used_count", 2u32)
        .key("expert_feed_forward_length", FF as u32)
        .values_of("blk.0.ffn_gate_inp.weight", &[EMBD, EXPERTS])
        .values_of("blk.0.ffn_gate_inp.scale", &[EMBD])
        .values_of("blk.0.ffn_gate_up_exps.weight", &[EMBD, 2 * FF, EXPERTS])
        .values_of("blk.0.ffn_down_exps.weight", &[FF, EMBD, EXPERTS])
        .values_of("blk.0.ffn_down_exps.scale", &[EXPERTS])
        .values_of("blk.0.pre_ffw_norm_2.weight", &[EMBD])
        .values_of("blk.0.post_ffw_norm_1.weight", &[EMBD])
        .values_of("blk.0.post_ffw_norm_2.weight", &[EMBD])
}

fn gemma3n() -> GgufBuilder {
    per_layer(around("gemma3n"), LONG)
        .values_of("altup_proj.weight", &[EMBD, EMBD, 3])
        .values_of("altup_unembd_proj.weight", &[EMBD, EMBD, 3])
        .values_of("blk.0.altup_correct_coef.weight", &[4, 4])
        .values_of("blk.0.altup_correct_scale.weight", &[EMBD])
        .values_of("blk.0.altup_predict_coef.weight", &[4, 16])
        .values_of("blk.0.altup_router.weight", &[EMBD, 4])
        .values_of("blk.0.altup_router_norm.weight", &[EMBD])
        .values_of("blk.0.laurel_l.weight", &[EMBD, 64])
        .values_of("blk.0.laurel_r.weight", &[64, EMBD])
        .values_of("blk.0.laurel_post_norm.weight", &[EMBD])
}

#[test]
fn the_models_are_sound_before_they_are_spoiled() {
    for model in [plain(), gemma4(), sharing(), moe(), gemma3n()] {
        sound(&model);
    }
    // Values that are the keys' products.
    sound(&without(plain(), &["attn_v"]));
    sound(&gemma3n().key("attention.shared_kv_layers", 0u32).key("altup.num_inputs", 4u32));
}

// ---- gemma4 ----------------------------------------------------------------------------------------------

refused! {
    windows_unknown: gemma4().no_key("attention.sliding_window_pattern") => "gemma4.attention.sliding_window_pattern is missing";
    windows_by_a_number: gemma4().key("attention.sliding_window_pattern", 6u32) => "gemma4.attention.sliding_window_pattern is no array";
    windows_of_another_count: gemma4().key("attention.sliding_window_pattern", vec![true, false]) => "gemma4.attention.sliding_window_pattern has 2 values, where 1 are needed";
    window_none: gemma4().key("attention.sliding_window", 0u32) => "gemma4.attention.sliding_window is 0";
    heads_of_windows_unknown: gemma4().no_key("attention.key_length_swa") => "gemma4.attention.key_length_swa";
    heads_of_windows_none: gemma4().key("attention.key_length_swa", 0u32) => "gemma4.attention.key_length_swa is 0";
    heads_of_windows_longer: gemma4().key("attention.key_length_swa", 16u32).key("attention.value_length_swa", 16u32) => "tensor blk.0.attn_q_norm.weight has the shape 8, where 16 is needed";
    values_shorter_than_keys: gemma4().key("attention.value_length", 4u32) => "gemma4.attention.value_length is 4, where keys have 8 elements";
    values_of_windows_longer: gemma4().key("attention.value_length_swa", 16u32) => "gemma4.attention.value_length_swa is 16, where keys have 8 elements";
    rotation_of_windows_longer: gemma4().key("rope.dimension_count_swa", 10u32) => "gemma4.rope.dimension_count_swa is 10, where heads are 8";
    rotation_of_windows_odd: gemma4().key("rope.dimension_count_swa", 3u32) => "gemma4.rope.dimension_count_swa is 3, where RoPE needs an even size";
    factors_missing: sharing().without_tensor("rope_freqs.weight") => "tensor rope_freqs.weight is missing";
    factors_of_another_length: sharing().of_shape("rope_freqs.weight", &[HEAD]) => "tensor rope_freqs.weight has the shape 8, where 4 is needed";
    factors_where_none_is_used: gemma4().values_of("rope_freqs.weight", &[HEAD / 2]) => "tensor rope_freqs.weight is not part of the architecture gemma4";
    all_layers_shared: sharing().key("attention.shared_kv_layers", 4u32) => "gemma4.attention.shared_kv_layers is 4, where there are 4 layers";
    more_layers_shared_than_there_are: sharing().key("attention.shared_kv_layers", u32::MAX) => "gemma4.attention.shared_kv_layers is 4294967295";
    keys_of_a_layer_of_another_kind: sharing().key("attention.sliding_window_pattern", vec![false, true, true, false]) => "gemma4.attention.shared_kv_layers is 2, but layer 2 is not like the one whose keys and values it would see";
    keys_of_no_layer: sharing().key("attention.shared_kv_layers", 3u32) => "gemma4.attention.shared_kv_layers is 3, but layer";
    keys_of_other_heads: sharing().key("attention.head_count_kv", vec![2u32, 2, 1, 2]) => "gemma4.attention.shared_kv_layers is 2, but layer 2 is not like";
    keys_missing: without(plain(), &["attn_k"]) => "tensor blk.0.attn_k.weight is missing";
    norm_of_queries_missing: sharing().without_tensor("blk.2.attn_q_norm.weight") => "tensor blk.2.attn_q_norm.weight is missing";
    inputs_of_layers_unasked: gemma4().no_key("embedding_length_per_layer_input") => "is not part of the architecture gemma4";
    inputs_of_layers_shorter: gemma4().key("embedding_length_per_layer_input", 2u32) => "tensor per_layer_token_embd.weight has the shape 4 x 16, where 2 x 16 is needed";
    inputs_of_layers_huge: gemma4().key("embedding_length_per_layer_input", 1u32 << 24) => "tensor per_layer_token_embd.weight has the shape 4 x 16, where 16777216 x 16 is needed";
    inputs_of_layers_beyond: gemma4().key("embedding_length_per_layer_input", u32::MAX) => "gemma4.embedding_length_per_layer_input is 4294967295";
    inputs_of_fewer_tokens: gemma4().of_shape("per_layer_token_embd.weight", &[SHORT, TOKENS - 1]) => "tensor per_layer_token_embd.weight has the shape 4 x 15, where 4 x 16 is needed";
    projection_of_inputs_missing: gemma4().without_tensor("per_layer_model_proj.weight") => "tensor per_layer_model_proj.weight is missing";
    norm_of_inputs_of_zeros: gemma4().of_shape("per_layer_proj_norm.weight", &[SHORT]) => "tensor per_layer_proj_norm.weight holds zeros alone";
    gate_of_inputs_missing: without(gemma4(), &["inp_gate"]) => "tensor blk.0.inp_gate.weight is missing";
    output_of_inputs_transposed: gemma4().of_shape("blk.0.proj.weight", &[EMBD, SHORT]) => "tensor blk.0.proj.weight has the shape 32 x 4, where 4 x 32 is needed";
    norm_behind_inputs_missing: without(gemma4(), &["post_norm"]) => "tensor blk.0.post_norm.weight is missing";
    factor_of_each_element: gemma4().of_shape("blk.0.layer_output_scale.weight", &[EMBD]) => "tensor blk.0.layer_output_scale.weight has the shape 32, where 1 is needed";
    cap_of_logits_infinite: gemma4().key("final_logit_softcapping", f32::INFINITY) => "gemma4.final_logit_softcapping is inf";
    lengths_of_experts_missing: moe().no_key("expert_feed_forward_length") => "gemma4.expert_feed_forward_length";
    experts_used_beyond: moe().key("expert_used_count", 5u32) => "gemma4.expert_used_count is 5, where there are 4 experts";
    experts_uncounted: moe().no_key("expert_count").no_key("expert_used_count").no_key("expert_feed_forward_length") => "is not part of the architecture gemma4";
    scale_of_the_router_missing: moe().without_tensor("blk.0.ffn_gate_inp.scale") => "tensor blk.0.ffn_gate_inp.scale is missing";
    scale_of_the_router_one: moe().of_shape("blk.0.ffn_gate_inp.scale", &[1]) => "tensor blk.0.ffn_gate_inp.scale has the shape 1, where 32 is needed";
    norm_before_experts_missing: without(moe(), &["pre_ffw_norm_2"]) => "tensor blk.0.pre_ffw_norm_2.weight is missing";
    norm_behind_experts_missing: without(moe(), &["post_ffw_norm_2"]) => "tensor blk.0.post_ffw_norm_2.weight is missing";
    norm_behind_the_dense_network_missing: without(moe(), &["post_ffw_norm_1"]) => "tensor blk.0.post_ffw_norm_1.weight is missing";
    dense_network_missing: without(moe(), &["ffn_up"]) => "tensor blk.0.ffn_up.weight";
    factors_of_fewer_experts: moe().of_shape("blk.0.ffn_down_exps.scale", &[EXPERTS - 1]) => "tensor blk.0.ffn_down_exps.scale has the shape 3, where 4 is needed";
    factors_of_gates_of_one_tensor: moe().values_of("blk.0.ffn_gate_exps.scale", &[EXPERTS]) => "tensor blk.0.ffn_gate_exps.scale is not part of the architecture gemma4";
}

// ---- gemma3n ---------------------------------------------------------------------------------------------

refused! {
    streams_of_another_number: gemma3n().key("altup.num_inputs", 2u32) => "gemma3n.altup.num_inputs (2) asks for something that is not supported";
    another_stream_active: gemma3n().key("altup.active_idx", 1u32) => "gemma3n.altup.active_idx (1) asks for something that is not supported";
    keys_shared_otherwise: gemma3n().key("attention.shared_kv_layers", 1u32) => "gemma3n.attention.shared_kv_layers (1) asks for something that is not supported";
    inputs_of_another_length: gemma3n().key("embedding_length_per_layer_input", 4u32) => "gemma3n.embedding_length_per_layer_input (4) asks for something that is not supported";
    cap_of_another_height: gemma3n().key("final_logit_softcapping", 50.0f32) => "gemma3n.final_logit_softcapping (50) asks for something that is not supported";
    layers_sparse_otherwise: gemma3n().key("activation_sparsity_scale", vec![0.0f32]) => "gemma3n.activation_sparsity_scale (0 in layer 0) asks for something that is not supported";
    sparsity_of_more_layers: gemma3n().key("activation_sparsity_scale", vec![1.644_853_5f32; 2]) => "gemma3n.activation_sparsity_scale has 2 values, where 1 are needed";
    sparsity_not_a_number: gemma3n().key("activation_sparsity_scale", vec![f32::NAN]) => "gemma3n.activation_sparsity_scale holds what is no finite number";
    window_of_3n_missing: gemma3n().no_key("attention.sliding_window") => "gemma3n.attention.sliding_window is missing";
    streams_of_two_planes: gemma3n().of_shape("altup_proj.weight", &[EMBD, EMBD, 2]) => "tensor altup_proj.weight has the shape 32 x 32 x 2, where 32 x 32 x 3 is needed";
    streams_without_an_end: gemma3n().without_tensor("altup_unembd_proj.weight") => "tensor altup_unembd_proj.weight is missing";
    router_of_streams_missing: without(gemma3n(), &["altup_router"]) => "tensor blk.0.altup_router.weight is missing";
    norm_of_the_router_missing: without(gemma3n(), &["altup_router_norm"]) => "tensor blk.0.altup_router_norm.weight is missing";
    coefficients_fewer: gemma3n().of_shape("blk.0.altup_predict_coef.weight", &[4, 4]) => "tensor blk.0.altup_predict_coef.weight has the shape 4 x 4, where 4 x 16 is needed";
    corrections_more: gemma3n().of_shape("blk.0.altup_correct_coef.weight", &[4, 16]) => "tensor blk.0.altup_correct_coef.weight has the shape 4 x 16, where 4 x 4 is needed";
    scale_of_corrections_missing: without(gemma3n(), &["altup_correct_scale"]) => "tensor blk.0.altup_correct_scale.weight is missing";
    rank_of_another_size: gemma3n().of_shape("blk.0.laurel_l.weight", &[EMBD, 32]) => "tensor blk.0.laurel_l.weight has the shape 32 x 32, where 32 x 64 is needed";
    path_beside_attention_missing: without(gemma3n(), &["laurel_r"]) => "tensor blk.0.laurel_r.weight is missing";
    norm_of_that_path_missing: without(gemma3n(), &["laurel_post_norm"]) => "tensor blk.0.laurel_post_norm.weight is missing";
    wide_embedding_missing: gemma3n().without_tensor("per_layer_token_embd.weight") => "tensor per_layer_token_embd.weight is missing";
    input_gate_missing: without(gemma3n(), &["inp_gate"]) => "tensor blk.0.inp_gate.weight is missing";
    network_of_no_length: gemma3n().key("feed_forward_length", 0u32) => "gemma3n.feed_forward_length is 0 or missing for layer 0";
}
