//! Mamba and Jamba.

use crate::common::gguf::ty;
use crate::common::mamba::*;
use crate::common::state_spaces::{EMBD, EXPERTS, FF, StateSpaces};
use crate::{refused, sound};

#[test]
fn models_are_sound() {
    sound(&mamba());
    sound(&jamba());
    sound(&mamba().key("ssm.dt_b_c_rms", true));
    sound(&mamba().key("ssm.dt_b_c_rms", false));
    sound(&mamba().without_tensor("output.weight"));
    // What nothing is rotated by.
    sound(&jamba().key("rope.freq_base", 500f32).key("rope.dimension_count", 4u32));
}

refused! {
    kernel_missing: mamba().no_key("ssm.conv_kernel") => "mamba.ssm.conv_kernel is missing";
    kernel_none: mamba().key("ssm.conv_kernel", 0u32) => "mamba.ssm.conv_kernel is 0";
    kernel_of_another_length: mamba().key("ssm.conv_kernel", 5u32) => "tensor blk.0.ssm_conv1d.weight has the shape 4 x 64, where 5 x 64 is needed";
    inner_size_missing: mamba().no_key("ssm.inner_size") => "mamba.ssm.inner_size is missing";
    inner_size_of_another_factor: mamba().key("ssm.inner_size", 32u32) => "mamba.ssm.inner_size is 32, where twice the embedding length of 32 is needed";
    state_missing: mamba().no_key("ssm.state_size") => "mamba.ssm.state_size is missing";
    state_none: mamba().key("ssm.state_size", 0u32) => "mamba.ssm.state_size is 0";
    state_huge: mamba().key("ssm.state_size", 1u32 << 24) => "mamba.ssm.state_size is 16777216, which makes a state of 1073741824 numbers";
    state_of_another_length: mamba().key("ssm.state_size", 8u32) => "tensor blk.0.ssm_x.weight has the shape 64 x 35, where 64 x 19 is needed";
    rank_missing: mamba().no_key("ssm.time_step_rank") => "mamba.ssm.time_step_rank is missing";
    rank_of_another_length: mamba().key("ssm.time_step_rank", 4u32) => "tensor blk.0.ssm_x.weight has the shape 64 x 35, where 64 x 36 is needed";
    norms_no_truth_value: mamba().key("ssm.dt_b_c_rms", 2u32) => "mamba.ssm.dt_b_c_rms is no truth value";
    groups_of_mamba_2: mamba().key("ssm.group_count", 1u32) => "mamba.ssm.group_count";
    projection_missing: mamba().without_tensor("blk.1.ssm_in.weight") => "tensor blk.1.ssm_in.weight is missing";
    projection_of_half_the_rows: mamba().of_shape("blk.0.ssm_in.weight", &[EMBD, INNER]) => "tensor blk.0.ssm_in.weight has the shape 32 x 64, where 32 x 128 is needed";
    selection_missing: mamba().without_tensor("blk.0.ssm_x.weight") => "tensor blk.0.ssm_x.weight is missing";
    steps_missing: mamba().without_tensor("blk.0.ssm_dt.weight") => "tensor blk.0.ssm_dt.weight is missing";
    bias_of_steps_missing: mamba().without_tensor("blk.0.ssm_dt.bias") => "tensor blk.0.ssm_dt.bias is missing";
    bias_of_channels_missing: mamba().without_tensor("blk.0.ssm_conv1d.bias") => "tensor blk.0.ssm_conv1d.bias is missing";
    rates_missing: mamba().without_tensor("blk.0.ssm_a") => "tensor blk.0.ssm_a is missing";
    rates_of_mamba_2: mamba().of_shape("blk.0.ssm_a", &[1, INNER]) => "tensor blk.0.ssm_a has the shape 1 x 64, where 16 x 64 is needed";
    rates_not_a_number: mamba().replace("blk.0.ssm_a", ty::F32, &[STATE, INNER], vec![f32::NAN; 1024]) => "tensor blk.0.ssm_a holds NaN at element 0";
    rates_that_grow: mamba().replace("blk.0.ssm_a", ty::F32, &[STATE, INNER], vec![1e30f32; 1024]) => "of layer 0 is not finite";
    skips_missing: mamba().without_tensor("blk.1.ssm_d") => "tensor blk.1.ssm_d is missing";
    output_of_another_shape: mamba().of_shape("blk.0.ssm_out.weight", &[INNER, 16]) => "tensor blk.0.ssm_out.weight has the shape 64 x 16, where 64 x 32 is needed";
    norms_of_jamba: mamba().weights("blk.0.ssm_dt_norm.weight", &[RANK]) => "tensor blk.0.ssm_dt_norm.weight is not part of the architecture mamba";
    network_that_the_family_lacks: mamba().network(0) => "tensor blk.0.ffn_norm.weight is not part of the architecture mamba";
}

refused! {
    norm_of_steps_missing: jamba().without_tensor("blk.0.ssm_dt_norm.weight") => "tensor blk.0.ssm_dt_norm.weight is missing";
    norm_of_b_of_zeros: jamba().of_shape("blk.0.ssm_b_norm.weight", &[STATE]) => "tensor blk.0.ssm_b_norm.weight holds zeros alone";
    norm_of_c_of_another_length: jamba().of_shape("blk.0.ssm_c_norm.weight", &[RANK]) => "tensor blk.0.ssm_c_norm.weight has the shape 3, where 16 is needed";
    attention_in_all_layers: jamba().key("attention.head_count_kv", 2u32) => "tensor blk.0.attn_q.weight is missing";
    attention_in_no_layer: jamba().key("attention.head_count_kv", vec![0u32, 0]) => "tensor blk.1.ssm_in.weight is missing";
    heads_that_make_no_embedding: jamba().key("attention.key_length", 16u32).key("attention.value_length", 16u32) => "jamba.attention.head_count is 4 in layer 1, where 4 of 16 are to make 32";
    heads_missing: jamba().no_key("attention.head_count") => "jamba.attention.head_count";
    network_missing: jamba().without_tensor("blk.0.ffn_down.weight") => "tensor blk.0.ffn_down.weight is missing";
    experts_unnamed: jamba().no_key("expert_count").no_key("expert_used_count") => "tensor blk.1.ffn_gate.weight is missing";
    experts_more: jamba().key("expert_count", 8u32) => "tensor blk.1.ffn_gate_inp.weight has the shape 32 x 4, where 32 x 8 is needed";
    router_missing: jamba().without_tensor("blk.1.ffn_gate_inp.weight") => "tensor blk.1.ffn_gate.weight is missing";
    experts_of_another_length: jamba().of_shape("blk.1.ffn_up_exps.weight", &[EMBD, 2 * FF, EXPERTS]) => "tensor blk.1.ffn_up_exps.weight has the shape 32 x 32 x 4, where 32 x 16 x 4 is needed";
    weights_that_are_normalised: jamba().key("expert_weights_norm", true) => "jamba.expert_weights_norm";
    gating_of_another_kind: jamba().key("expert_gating_func", 2u32) => "jamba.expert_gating_func";
}
