//! DeepSeek, Mistral 4, GLM 5, MiniCPM 3 and PLM: latent attention and its indexer.

use crate::common::gguf::GgufBuilder;
use crate::routers_and_scales::{EMBD, EXPERTS, FF, Spoil, of};
use crate::windows_and_images::without;
use crate::{refused, sound};

const HEADS: u64 = 4;
const LATENT: u64 = 16;
const ROPE: u64 = 4;
const NOPE: u64 = 8;
const VALUE: u64 = 6;
const Q_RANK: u64 = 12;
/// Of the indexer.
const INDEX_HEADS: u64 = 2;
const INDEX_LEN: u64 = 64;

/// Queries of low rank and latents, of a file whose weights of keys and values are head by head or whole.
fn latent(arch: &str, absorbed: bool) -> GgufBuilder {
    let model = without(of(arch), &["attn_q", "attn_k", "attn_v"])
        .key("attention.q_lora_rank", Q_RANK as u32)
        .key("attention.kv_lora_rank", LATENT as u32)
        .key("attention.head_count_kv", if absorbed { 1 } else { HEADS as u32 })
        .key("attention.key_length", if absorbed { LATENT + ROPE } else { NOPE + ROPE } as u32)
        .key("attention.value_length", if absorbed { LATENT } else { VALUE } as u32)
        .key("rope.dimension_count", ROPE as u32)
        .values_of("blk.0.attn_q_a.weight", &[EMBD, Q_RANK])
        .values_of("blk.0.attn_q_a_norm.weight", &[Q_RANK])
        .values_of("blk.0.attn_q_b.weight", &[Q_RANK, HEADS * (NOPE + ROPE)])
        .values_of("blk.0.attn_kv_a_mqa.weight", &[EMBD, LATENT + ROPE])
        .values_of("blk.0.attn_kv_a_norm.weight", &[LATENT])
        .of_values("blk.0.attn_output.weight", &[HEADS * VALUE, EMBD]);
    match absorbed {
        true => model
            .key("attention.key_length_mla", (NOPE + ROPE) as u32)
            .key("attention.value_length_mla", VALUE as u32)
            .values_of("blk.0.attn_k_b.weight", &[NOPE, LATENT, HEADS])
            .values_of("blk.0.attn_v_b.weight", &[LATENT, VALUE, HEADS]),
        false => model.values_of("blk.0.attn_kv_b.weight", &[LATENT, HEADS * (NOPE + VALUE)]),
    }
}

/// What the replacement of a tensor needs beside [`Spoil`].
trait Replace {
    fn of_values(self, name: &str, dims: &[u64]) -> Self;
}

impl Replace for GgufBuilder {
    fn of_values(self, name: &str, dims: &[u64]) -> Self {
        self.without_tensor(name).values_of(name, dims)
    }
}

fn with_experts(model: GgufBuilder) -> GgufBuilder {
    model
        .experts(FF)
        .key("expert_feed_forward_length", FF as u32)
        .key("expert_shared_count", 1u32)
        .key("expert_gating_func", 2u32)
        .values_of("blk.0.exp_probs_b.bias", &[EXPERTS])
}

fn deepseek2() -> GgufBuilder {
    with_experts(latent("deepseek2", true))
        .key("rope.scaling.type", "yarn")
        .key("rope.scaling.factor", 4.0f32)
        .key("rope.scaling.yarn_log_multiplier", 0.1f32)
}

/// Of the older kind.
fn whole() -> GgufBuilder {
    with_experts(latent("deepseek2", false))
}

fn mistral4() -> GgufBuilder {
    with_experts(latent("mistral4", true))
        .key("attention.temperature_scale", 0.1f32)
        .key("attention.temperature_length", 8u32)
}

fn indexed(arch: &str) -> GgufBuilder {
    with_experts(latent(arch, true))
        .key("attention.indexer.head_count", INDEX_HEADS as u32)
        .key("attention.indexer.key_length", INDEX_LEN as u32)
        .key("attention.indexer.top_k", 2u32)
        .values_of("blk.0.indexer.attn_k.weight", &[EMBD, INDEX_LEN])
        .values_of("blk.0.indexer.k_norm.weight", &[INDEX_LEN])
        .values_of("blk.0.indexer.k_norm.bias", &[INDEX_LEN])
        .values_of("blk.0.indexer.proj.weight", &[EMBD, INDEX_HEADS])
        .values_of("blk.0.indexer.attn_q_b.weight", &[Q_RANK, INDEX_HEADS * INDEX_LEN])
}

fn glm() -> GgufBuilder {
    indexed("glm-dsa").key("attention.indexer.types", vec![1u32])
}

fn minicpm3() -> GgufBuilder {
    latent("minicpm3", false)
}

/// Queries of the input itself, a network without a gate, the embedding as output.
fn plm() -> GgufBuilder {
    without(latent("plm", false), &["attn_q_a", "attn_q_a_norm", "attn_q_b", "ffn_gate"])
        .no_key("attention.q_lora_rank")
        .without_tensor("output.weight")
        .values_of("blk.0.attn_q.weight", &[EMBD, HEADS * (NOPE + ROPE)])
}

#[test]
fn the_models_are_sound_before_they_are_spoiled() {
    for model in [deepseek2(), whole(), mistral4(), indexed("deepseek32"), glm(), minicpm3(), plm()] {
        sound(&model);
    }
}

refused! {
    latent_missing: deepseek2().no_key("attention.kv_lora_rank") => "deepseek2.attention.kv_lora_rank is missing";
    latent_none: deepseek2().key("attention.kv_lora_rank", 0u32) => "deepseek2.attention.kv_lora_rank is 0";
    latent_of_another_length: deepseek2().key("attention.kv_lora_rank", 17u32) => "deepseek2.attention.key_length is 20, where 21 are needed";
    latent_most: deepseek2().key("attention.kv_lora_rank", 1u32 << 24) => "deepseek2.attention.key_length is 20, where 16777220 are needed";
    rank_of_queries_missing: deepseek2().no_key("attention.q_lora_rank") => "deepseek2.attention.q_lora_rank is 0 or missing";
    rank_of_queries_another: deepseek2().key("attention.q_lora_rank", 13u32) => "tensor blk.0.attn_q_a.weight has the shape 32 x 12, where 32 x 13 is needed";
    length_of_values_missing: deepseek2().no_key("attention.value_length_mla") => "deepseek2.attention.value_length_mla is missing";
    length_of_keys_missing: deepseek2().no_key("attention.key_length_mla") => "deepseek2.attention.key_length_mla is missing";
    nothing_but_rotated: deepseek2().key("attention.key_length_mla", 4u32) => "deepseek2.attention.key_length_mla is 4, of which 4 are rotated";
    rotated_an_odd_part_of_latents: deepseek2().key("rope.dimension_count", 3u32) => "deepseek2.rope.dimension_count is 3, where RoPE needs an even size";
    several_heads_of_latents: deepseek2().key("attention.head_count_kv", 2u32) => "deepseek2.attention.head_count_kv is 2 in layer 0, where 1 is needed";
    absorbed_keys_missing: without(deepseek2(), &["attn_k_b"]) => "tensor blk.0.attn_k_b.weight is missing";
    absorbed_keys_of_another_shape: deepseek2().of_shape("blk.0.attn_k_b.weight", &[NOPE, LATENT, HEADS + 1]) => "tensor blk.0.attn_k_b.weight has the shape 8 x 16 x 5, where 8 x 16 x 4 is needed";
    absorbed_values_of_another_shape: deepseek2().of_shape("blk.0.attn_v_b.weight", &[LATENT, VALUE * HEADS]) => "tensor blk.0.attn_v_b.weight has the shape 16 x 24, where 16 x 6 x 4 is needed";
    norm_of_latents_missing: without(deepseek2(), &["attn_kv_a_norm"]) => "tensor blk.0.attn_kv_a_norm.weight is missing";
    norm_of_latents_of_zeros: deepseek2().of_shape("blk.0.attn_kv_a_norm.weight", &[LATENT]) => "tensor blk.0.attn_kv_a_norm.weight holds zeros alone";
    norm_of_queries_missing_too: without(deepseek2(), &["attn_q_a_norm"]) => "tensor blk.0.attn_q_a_norm.weight is missing";
    bias_that_nobody_adds: deepseek2().values_of("blk.0.attn_kv_a_mqa.bias", &[LATENT + ROPE]) => "tensor blk.0.attn_kv_a_mqa.bias is not part of the architecture deepseek2";
    whole_beside_absorbed: deepseek2().values_of("blk.0.attn_kv_b.weight", &[LATENT, HEADS * (NOPE + VALUE)]) => "tensor blk.0.attn_kv_b.weight is not part of the architecture deepseek2";
    multiplier_infinite: deepseek2().key("rope.scaling.yarn_log_multiplier", f32::INFINITY) => "deepseek2.rope.scaling.yarn_log_multiplier is inf";
    shared_experts_missing: deepseek2().no_key("expert_shared_count") => "deepseek2.expert_shared_count is missing";
    length_of_experts_missing: deepseek2().no_key("expert_feed_forward_length") => "deepseek2.expert_feed_forward_length is missing";
    experts_missing_from_deepseek: deepseek2().no_key("expert_count") => "deepseek2.expert_count is 0 or missing";
    indexer_of_another_family: deepseek2().key("attention.indexer.top_k", 2u32) => "deepseek2.attention.indexer.top_k (of type u32) asks for something";
    whole_of_one_head: whole().key("attention.head_count_kv", 1u32) => "deepseek2.attention.head_count_kv is 1 in layer 0, where 4 is needed";
    whole_of_another_shape: whole().of_shape("blk.0.attn_kv_b.weight", &[LATENT, 55]) => "tensor blk.0.attn_kv_b.weight has the shape 16 x 55, where 16 x 56 is needed";
    whole_all_rotated: whole().key("attention.key_length", 4u32) => "deepseek2.attention.key_length is 4, of which 4 are rotated";
    temperature_without_length: mistral4().no_key("attention.temperature_length") => "mistral4.attention.temperature_length is 0 or missing";
    temperature_length_a_text: mistral4().key("attention.temperature_length", "8") => "mistral4.attention.temperature_length is a string";
}

refused! {
    indexer_heads_missing: indexed("deepseek32").no_key("attention.indexer.head_count") => "deepseek32.attention.indexer.head_count is missing";
    indexer_heads_another: indexed("deepseek32").key("attention.indexer.head_count", 3u32) => "tensor blk.0.indexer.proj.weight has the shape 32 x 2, where 32 x 3 is needed";
    indexer_heads_most: indexed("deepseek32").key("attention.indexer.head_count", 1u32 << 24) => "tensor blk.0.indexer.proj.weight has the shape 32 x 2";
    indexer_length_odd: indexed("deepseek32").key("attention.indexer.key_length", 96u32) => "deepseek32.attention.indexer.key_length is 96, where a power of two from 64 on";
    indexer_length_short: indexed("deepseek32").key("attention.indexer.key_length", 32u32) => "deepseek32.attention.indexer.key_length is 32, where a power of two from 64 on";
    indexer_length_most: indexed("deepseek32").key("attention.indexer.key_length", 1u32 << 24) => "tensor blk.0.indexer.attn_k.weight has the shape 32 x 64";
    indexer_choice_missing: indexed("deepseek32").no_key("attention.indexer.top_k") => "deepseek32.attention.indexer.top_k is missing";
    indexer_choice_none: indexed("deepseek32").key("attention.indexer.top_k", 0u32) => "deepseek32.attention.indexer.top_k is 0";
    indexer_gating_missing: indexed("deepseek32").no_key("expert_gating_func") => "deepseek32.expert_gating_func is 0 or missing";
    indexer_norm_missing: indexed("deepseek32").without_tensor("blk.0.indexer.k_norm.weight") => "tensor blk.0.indexer.k_norm.weight is missing";
    indexer_queries_of_another_shape: indexed("deepseek32").of_shape("blk.0.indexer.attn_q_b.weight", &[EMBD, 128]) => "tensor blk.0.indexer.attn_q_b.weight has the shape 32 x 128, where 12 x 128 is needed";
    indexer_types_of_deepseek: indexed("deepseek32").key("attention.indexer.types", vec![1u32]) => "deepseek32.attention.indexer.types (of type arr";
    indexer_types_too_many: glm().key("attention.indexer.types", vec![1u32, 1]) => "glm-dsa.attention.indexer.types has 2 values, where 1 are needed";
    indexer_types_no_truth: glm().key("attention.indexer.types", vec![2u32]) => "glm-dsa.attention.indexer.types holds what is no truth value";
    indexer_of_no_layer: glm().key("attention.indexer.types", vec![0u32]) => "glm-dsa.attention.indexer.types says that layer 0 has no indexer of its own";
    multiplier_of_glm: glm().key("rope.scaling.yarn_log_multiplier", 0.1f32) => "glm-dsa.rope.scaling.yarn_log_multiplier (of type f32) asks for something";
    indexer_needs_latents: indexed("glm-dsa").no_key("attention.key_length_mla").no_key("attention.value_length_mla").key("attention.head_count_kv", 4u32).key("attention.key_length", 12u32) => "glm-dsa.attention.key_length_mla is missing";
}

refused! {
    minicpm3_rank_missing: minicpm3().no_key("attention.q_lora_rank") => "minicpm3.attention.q_lora_rank is missing";
    minicpm3_all_rotated: minicpm3().key("attention.key_length", 4u32) => "minicpm3.attention.key_length is 4, of which 4 are rotated";
    minicpm3_of_one_head: minicpm3().key("attention.head_count_kv", 1u32) => "minicpm3.attention.head_count_kv is 1 in layer 0, where 4 is needed";
    minicpm3_short_factors_missing: minicpm3().values_of("rope_factors_long.weight", &[ROPE / 2]) => "tensor rope_factors_short.weight is missing";
    minicpm3_experts: minicpm3().key("expert_count", 4u32) => "minicpm3.expert_count (4) asks for something";
    plm_queries_missing: without(plm(), &["attn_q"]) => "tensor blk.0.attn_q.weight is missing";
    plm_gate: plm().values_of("blk.0.ffn_gate.weight", &[EMBD, 64]) => "tensor blk.0.ffn_gate.weight is not part of the architecture plm";
}

/// Attention to blocks that an indexer chooses, in the only layer.
fn minimax_m3() -> GgufBuilder {
    with_experts(of("minimax-m3").head_norms())
        .key("attention.indexer.head_count", 2u32)
        .key("attention.indexer.key_length", 16u32)
        .key("attention.indexer.top_k", 2u32)
        .key("attention.indexer.block_size", 4u32)
        .key("attention.indexer.local_blocks", 1u32)
        .values_of("blk.0.indexer.q_proj.weight", &[EMBD, 32])
        .values_of("blk.0.indexer.k_proj.weight", &[EMBD, 16])
        .values_of("blk.0.indexer.q_norm.weight", &[16])
        .values_of("blk.0.indexer.k_norm.weight", &[16])
}

#[test]
fn blocks_are_sound_before_they_are_spoiled() {
    sound(&minimax_m3());
    sound(&minimax_m3().key("attention.indexer.block_size", 1u32 << 24));
    sound(
        &minimax_m3().key("attention.indexer.local_blocks", 0u32).key("attention.indexer.block_size", 1u32),
    );
}

refused! {
    blocks_of_no_positions: minimax_m3().key("attention.indexer.block_size", 0u32) => "minimax-m3.attention.indexer.block_size is 0";
    blocks_none: minimax_m3().key("attention.indexer.top_k", 0u32) => "minimax-m3.attention.indexer.top_k is 0";
    blocks_all_local: minimax_m3().key("attention.indexer.local_blocks", 3u32) => "minimax-m3.attention.indexer.local_blocks is 3, where 2 are chosen";
    blocks_size_missing: minimax_m3().no_key("attention.indexer.block_size") => "minimax-m3.attention.indexer.block_size is missing";
    blocks_of_other_heads: minimax_m3().key("attention.indexer.head_count", 4u32) => "minimax-m3.attention.indexer.head_count is 4, where 2 choose blocks in layer 0";
    blocks_of_an_odd_length: minimax_m3().key("attention.indexer.key_length", 24u32) => "minimax-m3.attention.indexer.key_length is 24, where a multiple of 16";
    blocks_of_another_length: minimax_m3().key("attention.indexer.key_length", 32u32) => "tensor blk.0.indexer.q_proj.weight has the shape 32 x 32, where 32 x 64 is needed";
    blocks_norm_missing: minimax_m3().without_tensor("blk.0.indexer.k_norm.weight") => "tensor blk.0.indexer.k_norm.weight is missing";
    blocks_keys_missing: minimax_m3().without_tensor("blk.0.indexer.k_proj.weight") => "tensor blk.0.indexer.k_proj.weight is missing";
    blocks_choice_bias_missing: minimax_m3().without_tensor("blk.0.exp_probs_b.bias") => "tensor blk.0.exp_probs_b.bias is missing";
}
