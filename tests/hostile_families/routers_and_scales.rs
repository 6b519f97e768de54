//! dots1, Ling 2, ERNIE 4.5, Hunyuan, Seed-OSS, SmolLM3, Granite and MiniCPM.

use crate::common::gguf::{Data, GgufBuilder, Kv, Ty, ty};
use crate::common::tiny::full;
pub use crate::common::tiny::of;
use crate::{refused, sound};

pub const EMBD: u64 = 32;
pub const HEAD: u64 = 8;
pub const EXPERTS: u64 = 4;
pub const FF: u64 = 16;

/// What these tests do with a model, keys without the architecture.
pub trait Spoil: Sized {
    fn key(self, key: &str, value: impl Into<Kv>) -> Self;
    fn no_key(self, key: &str) -> Self;
    fn values_of(self, name: &str, dims: &[u64]) -> Self;
    fn of_shape(self, name: &str, dims: &[u64]) -> Self;
    fn head_norms(self) -> Self;
    fn experts(self, shared: u64) -> Self;
}

impl Spoil for GgufBuilder {
    fn key(self, key: &str, value: impl Into<Kv>) -> Self {
        let key = full(&self, key);
        self.set(&key, value)
    }

    fn no_key(self, key: &str) -> Self {
        let key = full(&self, key);
        self.without(&key)
    }

    /// Adds a tensor of small values that differ.
    fn values_of(self, name: &str, dims: &[u64]) -> Self {
        let values: Vec<f32> = (0..dims.iter().product()).map(|i| 0.1 + (i % 7) as f32 / 20.0).collect();
        self.tensor(name, ty::F32, dims, Data::from(values))
    }

    /// A tensor that is there, of another shape.
    fn of_shape(self, name: &str, dims: &[u64]) -> Self {
        const F32: Ty = ty::F32;
        self.replace(name, F32, dims, Data::Zero)
    }

    fn head_norms(self) -> Self {
        self.values_of("blk.0.attn_q_norm.weight", &[HEAD]).values_of("blk.0.attn_k_norm.weight", &[HEAD])
    }

    /// Four experts of which two are used instead of the network, and a shared one of this length.
    fn experts(mut self, shared: u64) -> Self {
        self.tensors.retain(|t| {
            let name = String::from_utf8_lossy(&t.name);
            !["gate", "up", "down"].iter().any(|part| name == format!("blk.0.ffn_{part}.weight"))
        });
        let mut model = self
            .key("expert_count", EXPERTS as u32)
            .key("expert_used_count", 2u32)
            .values_of("blk.0.ffn_gate_inp.weight", &[EMBD, EXPERTS])
            .values_of("blk.0.ffn_gate_exps.weight", &[EMBD, FF, EXPERTS])
            .values_of("blk.0.ffn_up_exps.weight", &[EMBD, FF, EXPERTS])
            .values_of("blk.0.ffn_down_exps.weight", &[FF, EMBD, EXPERTS]);
        if shared > 0 {
            model = model
                .values_of("blk.0.ffn_gate_shexp.weight", &[EMBD, shared])
                .values_of("blk.0.ffn_up_shexp.weight", &[EMBD, shared])
                .values_of("blk.0.ffn_down_shexp.weight", &[shared, EMBD]);
        }
        model
    }
}

fn dots1() -> GgufBuilder {
    of("dots1")
        .head_norms()
        .experts(FF)
        .key("expert_feed_forward_length", FF as u32)
        .key("expert_shared_count", 1u32)
        .key("expert_gating_func", 2u32)
        .key("expert_weights_norm", true)
        .key("expert_weights_scale", 2.5f32)
        .key("leading_dense_block_count", 0u32)
        .key("expert_group_count", 2u32)
        .key("expert_group_used_count", 1u32)
        .values_of("blk.0.exp_probs_b.bias", &[EXPERTS])
}

/// Queries, keys and values in one tensor, an embedding of four heads, a block of multi-token prediction.
fn ling() -> GgufBuilder {
    let mut model = of("bailingmoe2")
        .head_norms()
        .experts(FF)
        .key("expert_feed_forward_length", FF as u32)
        .key("expert_shared_count", 1u32)
        .key("expert_gating_func", 2u32)
        .key("rope.dimension_count", 4u32)
        .key("block_count", 2u32)
        .key("nextn_predict_layers", 1u32)
        .values_of("blk.0.attn_qkv.weight", &[EMBD, 2 * EMBD])
        .values_of("blk.1.nextn.enorm.weight", &[EMBD]);
    model.tensors.retain(|t| {
        !["q", "k", "v"].iter().any(|part| t.name == format!("blk.0.attn_{part}.weight").as_bytes())
    });
    model
}

fn ernie() -> GgufBuilder {
    of("ernie4_5-moe")
        .experts(24)
        .key("expert_feed_forward_length", FF as u32)
        .key("expert_shared_feed_forward_length", 24u32)
        .key("interleave_moe_layer_step", 1u32)
        .values_of("blk.0.exp_probs_b.bias", &[EXPERTS])
}

fn hunyuan() -> GgufBuilder {
    of("hunyuan-dense").head_norms()
}

fn hunyuan_moe() -> GgufBuilder {
    of("hunyuan-moe")
        .head_norms()
        .experts(24)
        .key("feed_forward_length", FF as u32)
        .key("expert_shared_feed_forward_length", 24u32)
}

fn hy_v3() -> GgufBuilder {
    of("hy_v3")
        .head_norms()
        .experts(FF)
        .key("expert_feed_forward_length", FF as u32)
        .values_of("blk.0.exp_probs_b", &[EXPERTS])
}

fn seed_oss() -> GgufBuilder {
    let mut model = of("seed_oss").values_of("blk.0.post_attention_norm.weight", &[EMBD]);
    model.tensors.retain(|t| t.name != b"blk.0.ffn_norm.weight");
    model
}

fn granite() -> GgufBuilder {
    of("granite")
        .key("embedding_scale", 12.0f32)
        .key("residual_scale", 0.2f32)
        .key("attention.scale", 0.1f32)
        .key("logit_scale", 8.0f32)
}

fn granite_moe() -> GgufBuilder {
    of("granitemoe")
        .experts(24)
        .key("feed_forward_length", FF as u32)
        .key("expert_shared_feed_forward_length", 24u32)
        .key("logit_scale", 8.0f32)
}

#[test]
fn the_models_are_sound_before_they_are_spoiled() {
    for model in [
        dots1(),
        ling(),
        of("ernie4_5"),
        ernie(),
        hunyuan(),
        hunyuan_moe(),
        hy_v3(),
        seed_oss(),
        of("smollm3"),
        granite(),
        granite_moe(),
        of("minicpm"),
    ] {
        sound(&model);
    }
}

// ---- dots1 and Ling 2 ------------------------------------------------------------------------------------------------

refused! {
    scores_unnamed: dots1().no_key("expert_gating_func") => "dots1.expert_gating_func is 0 or missing";
    scores_unknown: dots1().key("expert_gating_func", 9u32) => "dots1.expert_gating_func (9) asks for something";
    scores_a_text: dots1().key("expert_gating_func", "sigmoid") => "dots1.expert_gating_func is a string";
    experts_unnamed: dots1().no_key("expert_count").no_key("expert_used_count") => "dots1.expert_count is 0 or missing";
    experts_used_none: dots1().key("expert_used_count", 0u32) => "dots1.expert_used_count is 0, where there are 4 experts";
    experts_used_beyond: dots1().key("expert_used_count", 5u32) => "dots1.expert_used_count is 5, where there are 4 experts";
    experts_of_no_length: dots1().no_key("expert_feed_forward_length") => "dots1.expert_feed_forward_length is missing";
    experts_of_another_length: dots1().key("expert_feed_forward_length", 8u32) => "tensor blk.0.ffn_gate_exps.weight has the shape 32 x 16 x 4, where 32 x 8 x 4";
    experts_of_two_lengths: dots1().key("expert_feed_forward_length", vec![16u32, 8]) => "dots1.expert_feed_forward_length differs from layer to layer";
    experts_too_few: dots1().of_shape("blk.0.ffn_up_exps.weight", &[EMBD, FF, 3]) => "tensor blk.0.ffn_up_exps.weight has the shape 32 x 16 x 3, where 32 x 16 x 4";
    experts_without_a_router: dots1().without_tensor("blk.0.ffn_gate_inp.weight") => "tensor blk.0.ffn_gate_inp.weight is missing";
    shared_experts_unnamed: dots1().no_key("expert_shared_count") => "dots1.expert_shared_count is missing";
    shared_experts_none: dots1().key("expert_shared_count", 0u32) => "dots1.expert_shared_count is 0";
    shared_experts_huge: dots1().key("expert_shared_count", 1u32 << 24) => "tensor blk.0.ffn_gate_shexp.weight has the shape 32 x 16, where 32 x 268435456";
    shared_experts_missing: dots1().without_tensor("blk.0.ffn_down_shexp.weight") => "tensor blk.0.ffn_down_shexp.weight is missing";
    groups_that_do_not_divide: dots1().key("expert_group_count", 3u32) => "dots1.expert_group_count is 3, which does not divide 4 experts";
    groups_used_none: dots1().key("expert_group_used_count", 0u32) => "dots1.expert_group_used_count is 0, where there are 2 groups";
    groups_used_all: dots1().key("expert_group_used_count", 2u32) => "dots1.expert_group_used_count is 2, where there are 2 groups";
    groups_used_too_small: dots1().key("expert_used_count", 3u32) => "dots1.expert_used_count is 3, where the groups used have 2 experts";
    groups_huge: dots1().key("expert_group_count", 1u32 << 31) => "dots1.expert_group_count is 2147483648";
    choice_bias_too_short: dots1().of_shape("blk.0.exp_probs_b.bias", &[3]) => "tensor blk.0.exp_probs_b.bias has the shape 3, where 4";
    choice_bias_not_a_number: dots1().values("blk.0.exp_probs_b.bias", |v| v[1] = f32::NAN) => "tensor blk.0.exp_probs_b.bias holds NaN at element 1";
    weights_scale_infinite: dots1().key("expert_weights_scale", f32::INFINITY) => "dots1.expert_weights_scale is inf";
    weights_norm_a_number: dots1().key("expert_weights_norm", 2u32) => "dots1.expert_weights_norm is no truth value";
    dense_layers_all: dots1().key("leading_dense_block_count", 1u32) => "tensor blk.0.ffn_gate.weight is missing";
    dense_layers_huge: dots1().key("leading_dense_block_count", u64::MAX) => "dots1.leading_dense_block_count is 18446744073709551615";
    head_norm_missing: dots1().without_tensor("blk.0.attn_q_norm.weight") => "tensor blk.0.attn_q_norm.weight is missing";
    head_norm_of_all_heads: dots1().of_shape("blk.0.attn_k_norm.weight", &[2 * HEAD]) => "tensor blk.0.attn_k_norm.weight has the shape 16, where 8";
    head_norm_of_zeros: dots1().values("blk.0.attn_k_norm.weight", |v| v.fill(0.0)) => "tensor blk.0.attn_k_norm.weight holds zeros alone";
    blocks_all_of_prediction: ling().key("nextn_predict_layers", 2u32) => "bailingmoe2.nextn_predict_layers is 2, where there are 2 blocks";
    blocks_of_prediction_unnamed: ling().no_key("nextn_predict_layers") => "tensor blk.1.attn_q_norm.weight is missing";
    projections_of_another_shape: ling().of_shape("blk.0.attn_qkv.weight", &[EMBD, 48]) => "tensor blk.0.attn_qkv.weight has the shape 32 x 48, where 32 x 64";
    shared_expert_of_no_length: ling().key("expert_shared_feed_forward_length", 0u32) => "bailingmoe2.expert_shared_feed_forward_length is 0";
    rotation_of_an_odd_length: ling().key("rope.dimension_count", 3u32) => "bailingmoe2.rope.dimension_count is 3";
    rotation_beyond_the_head: ling().key("rope.dimension_count", 10u32) => "bailingmoe2.rope.dimension_count is 10, where heads are 8";
}

// ---- ERNIE 4.5 and Hunyuan -------------------------------------------------------------------------------------------

refused! {
    bias_that_ggml_leaves_out: ernie().values_of("blk.0.attn_output.bias", &[EMBD]) => "tensor blk.0.attn_output.bias is not part of the architecture ernie4_5-moe";
    experts_on_every_other_layer: ernie().key("interleave_moe_layer_step", 2u32) => "ernie4_5-moe.interleave_moe_layer_step (2) asks for something";
    scores_of_another_kind: ernie().key("expert_gating_func", 2u32) => "ernie4_5-moe.expert_gating_func (2) asks for something";
    shared_network_unnamed: ernie().no_key("expert_shared_feed_forward_length") => "tensor blk.0.ffn_gate_shexp.weight is not part of the architecture";
    shared_network_of_another_length: ernie().key("expert_shared_feed_forward_length", 16u32) => "tensor blk.0.ffn_gate_shexp.weight has the shape 32 x 24, where 32 x 16";
    hidden_lengths_too_many: of("ernie4_5").key("feed_forward_length", vec![64u32, 64]) => "ernie4_5.feed_forward_length has 2 values, where 1 are needed";
    hidden_length_none: of("ernie4_5").key("feed_forward_length", vec![0u32]) => "ernie4_5.feed_forward_length is 0 or missing for layer 0";
    heads_none_in_a_layer: of("ernie4_5").key("attention.head_count", vec![0u32]) => "ernie4_5.attention.head_count is 0 in layer 0";
    heads_an_array_too_long: of("ernie4_5").key("attention.head_count", vec![4u32, 4]) => "ernie4_5.attention.head_count has 2 values, where 1 are needed";
    window_that_the_family_lacks: of("ernie4_5").key("attention.sliding_window", 8u32) => "ernie4_5.attention.sliding_window (8) asks for something";
    experts_of_a_dense_model: hunyuan().key("expert_count", 2u32) => "hunyuan-dense.expert_count (2) asks for something";
    base_factor_not_a_number: hunyuan().key("rope.scaling.alpha", f32::NAN) => "hunyuan-dense.rope.scaling.alpha is NaN";
    base_factor_negative: hunyuan().key("rope.scaling.alpha", -1000.0f32) => "hunyuan-dense.rope.scaling.alpha is -1000";
    base_factor_huge: hunyuan().key("rope.scaling.alpha", 1e38f32) => "hunyuan-dense.rope.scaling.alpha is ";
    rotated_norm_missing: hunyuan().without_tensor("blk.0.attn_k_norm.weight") => "tensor blk.0.attn_k_norm.weight is missing";
    sections_of_images: hunyuan().key("rope.dimension_sections", vec![2u32, 1, 1, 0]) => "hunyuan-dense.rope.dimension_sections (of type ";
    shared_mlp_missing: hunyuan_moe().without_tensor("blk.0.ffn_up_shexp.weight") => "tensor blk.0.ffn_up_shexp.weight is missing";
    experts_as_long_as_networks: hunyuan_moe().key("feed_forward_length", 64u32) => "tensor blk.0.ffn_gate_exps.weight has the shape 32 x 16 x 4, where 32 x 64 x 4";
    router_missing: hy_v3().without_tensor("blk.0.ffn_gate_inp.weight") => "tensor blk.0.ffn_gate.weight is missing";
    bias_of_the_choice_too_long: hy_v3().of_shape("blk.0.exp_probs_b", &[5]) => "tensor blk.0.exp_probs_b has the shape 5, where 4";
    bias_of_another_name: hy_v3().values_of("blk.0.exp_probs_b.bias", &[EXPERTS]) => "tensor blk.0.exp_probs_b.bias is not part of the architecture hy_v3";
    hidden_length_below_the_experts: hy_v3().no_key("expert_feed_forward_length").key("feed_forward_length", 1u32) => "hy_v3.feed_forward_length is less than the experts used";
}

// ---- Seed-OSS, SmolLM3, Granite and MiniCPM --------------------------------------------------------------------------

refused! {
    post_norm_missing: seed_oss().without_tensor("blk.0.post_attention_norm.weight") => "tensor blk.0.post_attention_norm.weight is missing";
    post_norm_too_short: seed_oss().of_shape("blk.0.post_attention_norm.weight", &[31]) => "tensor blk.0.post_attention_norm.weight has the shape 31, where 32";
    norm_of_another_name: seed_oss().values_of("blk.0.ffn_norm.weight", &[EMBD]) => "tensor blk.0.ffn_norm.weight is not part of the architecture seed_oss";
    scale_that_the_family_lacks: of("smollm3").key("attention.scale", 0.5f32) => "smollm3.attention.scale (of type f32) asks for something";
    logit_scale_unnamed: granite().no_key("logit_scale") => "granite.logit_scale is 0 or missing";
    logit_scale_none: granite().key("logit_scale", 0.0f32) => "granite.logit_scale is 0 or missing";
    logit_scale_not_a_number: granite().key("logit_scale", f32::NAN) => "granite.logit_scale is NaN";
    embedding_scale_infinite: granite().key("embedding_scale", f32::INFINITY) => "granite.embedding_scale is inf";
    residual_scale_a_text: granite().key("residual_scale", "0.2") => "granite.residual_scale is a string";
    attention_scale_not_a_number: granite().key("attention.scale", f32::NAN) => "granite.attention.scale is NaN";
    rotation_switch_a_text: granite().key("rope.scaling.finetuned", "yes") => "granite.rope.scaling.finetuned is no truth value";
    rotation_switched_off: granite_moe().key("rope.scaling.finetuned", false) => "granitemoe.rope.scaling.finetuned (0) asks for something";
    shared_network_missing: granite_moe().without_tensor("blk.0.ffn_gate_shexp.weight") => "tensor blk.0.ffn_gate_shexp.weight is missing";
    shared_network_that_the_family_lacks: of("minicpm").key("expert_shared_feed_forward_length", 8u32) => "minicpm.expert_shared_feed_forward_length (8) asks for something";
    logit_scale_of_nothing: of("minicpm").key("logit_scale", 0.0f32) => "minicpm.logit_scale is 0 or missing";
    one_kind_of_factors: of("minicpm").values_of("rope_factors_long.weight", &[4]) => "tensor rope_factors_short.weight is missing";
    factors_too_few: of("minicpm").values_of("rope_factors_long.weight", &[3]).values_of("rope_factors_short.weight", &[4]) => "tensor rope_factors_long.weight has the shape 3, where 4";
}
