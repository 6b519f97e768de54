//! Tiny models of the families with hyper-connections, and parts of them to spoil.

use super::deepseek4::{MIXES, STREAMS, deepseek4, hyper};
use super::gguf::{GgufBuilder, ty};
use super::state_spaces::{EMBD, EXPERTS, FF, StateSpaces, of, random};

pub const HEADS: u64 = 4;
pub const LATENT: u64 = 16;
pub const NOPE: u64 = 8;
/// Rotated elements of Hunyuan 4's heads.
pub const ROPE: u64 = 4;
pub const VALUE: u64 = 8;
pub const Q_RANK: u64 = 12;
pub const INDEX_HEADS: u64 = 3;
pub const INDEX_LEN: u64 = 32;
/// Positions of a pooled key.
pub const POOL: u64 = 3;
/// Elements of a head of a delta net, and of all heads; taps of its convolution.
pub const LEN: u64 = 16;
pub const INNER: u64 = HEADS * LEN;
pub const TAPS: u64 = 4;

/// A name and a model for each of them.
pub fn all() -> [(&'static str, GgufBuilder); 3] {
    [("deepseek4", deepseek4()), ("hy_v4", hy_v4()), ("glm5-next", glm5_next())]
}

/// Three layers of Hunyuan 4: the first dense, the second without an indexer of its own.
pub fn hy_v4() -> GgufBuilder {
    let model = common("hy_v4", 3, ROPE)
        .key("attention.head_count_kv", 1u32)
        .key("rope.scaling.type", "yarn")
        .key("rope.scaling.factor", 4f32)
        .key("rope.scaling.original_context_length", 32u32)
        .key("attention.indexer.top_k", 7u32)
        .key("attention.indexer.types", vec![1u32, 0, 1])
        .key("hyper_connection.magnitude", 2f32)
        .weights("output_hc_fn.weight", &[STREAMS * EMBD, STREAMS])
        .weights("output_hc_base.weight", &[STREAMS])
        .weights("output_hc_scale.weight", &[1]);
    (0..3).fold(model, |model, il| {
        let name = |part: &str| format!("blk.{il}.{part}.weight");
        let model = latent(connected(model, il, [2 * STREAMS, 2]), il, ROPE)
            .weights(&name("attn_sinks"), &[HEADS])
            .weights(&name("attn_gate"), &[EMBD, HEADS * VALUE]);
        let model = if il == 1 { model } else { indexer(model, il) };
        network(model, il)
    })
}

/// Four layers of GLM 5.3: those with a head of keys have latent attention, the last without an indexer of
/// its own.
pub fn glm5_next() -> GgufBuilder {
    let model = common("glm5-next", 4, 0)
        .key("attention.head_count_kv", vec![0u32, 1, 0, 1])
        .key("attention.layer_norm_epsilon", 1e-5f32)
        .key("attention.indexer.top_k", 4 * POOL as u32)
        .key("attention.indexer.kpool", POOL as u32)
        .key("attention.indexer.types", vec![0u32, 1, 1, 0])
        .key("ssm.conv_kernel", TAPS as u32)
        .key("kda.head_dim", LEN as u32)
        .key("kda.gate_lower_bound", -5f32)
        .key("hyper_connection.sinkhorn_iterations", 3u32);
    (0..4).fold(model, |model, il| {
        let model = connected(model, il, [MIXES, 3]);
        let model = match il {
            0 | 2 => delta_net(model, il),
            1 => indexer(latent(model, il, 0), il)
                .weights("blk.1.indexer_compressor_gate.weight", &[EMBD, INDEX_LEN])
                .weights("blk.1.indexer_compressor_ape.weight", &[INDEX_LEN, POOL]),
            _ => latent(model, il, 0),
        };
        network(model, il)
    })
}

/// The keys that both have.
fn common(arch: &str, layers: u32, rope: u64) -> GgufBuilder {
    of(arch, layers)
        .key("attention.q_lora_rank", Q_RANK as u32)
        .key("attention.kv_lora_rank", LATENT as u32)
        .key("attention.key_length", (LATENT + rope) as u32)
        .key("attention.value_length", LATENT as u32)
        .key("attention.key_length_mla", (NOPE + rope) as u32)
        .key("attention.value_length_mla", VALUE as u32)
        .key("rope.dimension_count", rope as u32)
        .key("attention.indexer.head_count", INDEX_HEADS as u32)
        .key("attention.indexer.key_length", INDEX_LEN as u32)
        .key("hyper_connection.count", STREAMS as u32)
        .key("hyper_connection.epsilon", 1e-6f32)
        .key("leading_dense_block_count", 1u32)
        .key("expert_count", EXPERTS as u32)
        .key("expert_used_count", 2u32)
        .key("expert_feed_forward_length", FF as u32)
        .key("expert_shared_count", 1u32)
        .key("expert_gating_func", 2u32)
        .key("expert_weights_norm", true)
        .key("expert_weights_scale", 1.5f32)
        .key("swiglu_clamp_exp", 0.8f32)
}

/// The connections of a layer's blocks and the norms before these.
fn connected(model: GgufBuilder, il: usize, mixes: [u64; 2]) -> GgufBuilder {
    let model = hyper(model, &format!("blk.{il}.hc_attn"), mixes);
    hyper(model, &format!("blk.{il}.hc_ffn"), mixes)
        .norm(&format!("blk.{il}.attn_norm.weight"))
        .norm(&format!("blk.{il}.ffn_norm.weight"))
}

fn latent(model: GgufBuilder, il: usize, rope: u64) -> GgufBuilder {
    let name = |part: &str| format!("blk.{il}.{part}.weight");
    let norm = |part: &str, n| random(&name(part), &[n], 0.3, 1.0);
    model
        .weights(&name("attn_q_a"), &[EMBD, Q_RANK])
        .tensor(name("attn_q_a_norm"), ty::F32, &[Q_RANK], norm("attn_q_a_norm", Q_RANK))
        .weights(&name("attn_q_b"), &[Q_RANK, HEADS * (NOPE + rope)])
        .weights(&name("attn_kv_a_mqa"), &[EMBD, LATENT + rope])
        .tensor(name("attn_kv_a_norm"), ty::F32, &[LATENT], norm("attn_kv_a_norm", LATENT))
        .weights(&name("attn_k_b"), &[NOPE, LATENT, HEADS])
        .weights(&name("attn_v_b"), &[LATENT, VALUE, HEADS])
        .weights(&name("attn_output"), &[HEADS * VALUE, EMBD])
}

fn indexer(model: GgufBuilder, il: usize) -> GgufBuilder {
    let name = |part: &str| format!("blk.{il}.indexer.{part}");
    model
        .weights(&name("attn_k.weight"), &[EMBD, INDEX_LEN])
        .weights(&name("k_norm.weight"), &[INDEX_LEN])
        .weights(&name("k_norm.bias"), &[INDEX_LEN])
        .weights(&name("proj.weight"), &[EMBD, INDEX_HEADS])
        .weights(&name("attn_q_b.weight"), &[Q_RANK, INDEX_HEADS * INDEX_LEN])
}

fn delta_net(model: GgufBuilder, il: usize) -> GgufBuilder {
    let name = |part: &str| format!("blk.{il}.{part}");
    let model = model
        .weights(&name("ssm_f_a.weight"), &[EMBD, LEN])
        .weights(&name("ssm_f_b.weight"), &[LEN, INNER])
        .weights(&name("ssm_g_a.weight"), &[EMBD, LEN])
        .weights(&name("ssm_g_b.weight"), &[LEN, INNER])
        .weights(&name("ssm_beta.weight"), &[EMBD, HEADS])
        .tensor(name("ssm_dt.bias"), ty::F32, &[INNER], random("dt", &[INNER], 1.0, -1.0))
        .tensor(name("ssm_a"), ty::F32, &[HEADS], random("a", &[HEADS], 0.2, -1.0))
        .tensor(name("ssm_norm.weight"), ty::F32, &[LEN], random("norm", &[LEN], 0.3, 1.0))
        .weights(&name("attn_output.weight"), &[INNER, EMBD]);
    ["q", "k", "v"].into_iter().fold(model, |model, part| {
        model
            .weights(&name(&format!("attn_{part}.weight")), &[EMBD, INNER])
            .weights(&name(&format!("ssm_conv1d_{part}.weight")), &[TAPS, 1, INNER])
    })
}

/// A dense network in the first layer, experts in the others.
fn network(model: GgufBuilder, il: usize) -> GgufBuilder {
    let name = |part: &str| format!("blk.{il}.{part}.weight");
    if il == 0 {
        return model
            .weights(&name("ffn_gate"), &[EMBD, FF])
            .weights(&name("ffn_up"), &[EMBD, FF])
            .weights(&name("ffn_down"), &[FF, EMBD]);
    }
    model
        .experts(il, EMBD)
        .weights(&name("ffn_gate_exps"), &[EMBD, FF, EXPERTS])
        .weights(&name("ffn_gate_shexp"), &[EMBD, FF])
        .weights(&name("ffn_up_shexp"), &[EMBD, FF])
        .weights(&name("ffn_down_shexp"), &[FF, EMBD])
}
