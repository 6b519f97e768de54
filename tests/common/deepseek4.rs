//! A tiny model of DeepSeek V4, with each kind of its layers, and parts of it to spoil.

use super::gguf::{Data, GgufBuilder, ty};
use super::state_spaces::{EMBD, EXPERTS, FF, StateSpaces, of, random};
use super::tiny::TOKENS;

/// Positions of compressed keys, by layer.
pub const RATIOS: [u32; 4] = [0, 4, 128, 4];
pub const HEADS: u64 = 4;
pub const LEN: u64 = 16;
pub const ROTATED: u64 = 8;
pub const Q_RANK: u64 = 12;
pub const GROUPS: u64 = 2;
pub const OUT_RANK: u64 = 6;
pub const INDEX_HEADS: u64 = 3;
pub const INDEX_LEN: u64 = 64;
/// Mixes of the streams of a block.
pub const MIXES: u64 = 24;
pub const STREAMS: u64 = 4;
pub const USED: u64 = 2;

/// Layers with a window alone, with keys that are chosen, with keys that are all attended to; the first has
/// experts by token.
pub fn deepseek4() -> GgufBuilder {
    let model = of("deepseek4", RATIOS.len() as u32)
        .key("attention.head_count_kv", 1u32)
        .key("attention.key_length", LEN as u32)
        .key("attention.value_length", LEN as u32)
        .key("rope.dimension_count", ROTATED as u32)
        .key("rope.scaling.type", "yarn")
        .key("rope.scaling.factor", 4f32)
        .key("rope.scaling.original_context_length", 32u32)
        .key("attention.q_lora_rank", Q_RANK as u32)
        .key("attention.sliding_window", 16u32)
        .key("attention.output_group_count", GROUPS as u32)
        .key("attention.output_lora_rank", OUT_RANK as u32)
        .key("attention.compress_rope_freq_base", 40_000f32)
        .key("attention.compress_ratios", RATIOS.to_vec())
        .key("attention.indexer.head_count", INDEX_HEADS as u32)
        .key("attention.indexer.key_length", INDEX_LEN as u32)
        .key("attention.indexer.top_k", 3u32)
        .key("hyper_connection.count", STREAMS as u32)
        .key("hyper_connection.sinkhorn_iterations", 3u32)
        .key("hyper_connection.epsilon", 1e-6f32)
        .key("hash_layer_count", 1u32)
        .key("expert_count", EXPERTS as u32)
        .key("expert_used_count", USED as u32)
        .key("expert_feed_forward_length", FF as u32)
        .key("expert_shared_count", 1u32)
        .key("expert_gating_func", 4u32)
        .key("expert_weights_norm", true)
        .key("expert_weights_scale", 1.5f32)
        .key("swiglu_clamp_exp", 0.8f32)
        .weights("output_hc_fn.weight", &[STREAMS * EMBD, STREAMS])
        .weights("output_hc_base.weight", &[STREAMS])
        .weights("output_hc_scale.weight", &[1]);
    RATIOS.iter().enumerate().fold(model, |model, (il, &ratio)| layer(model, il, u64::from(ratio)))
}

fn layer(model: GgufBuilder, il: usize, ratio: u64) -> GgufBuilder {
    let name = |part: &str| format!("blk.{il}.{part}.weight");
    let cols = HEADS / GROUPS * LEN;
    let model = hyper(model, &format!("blk.{il}.hc_attn"), [MIXES, 3])
        .norm(&name("attn_norm"))
        .weights(&name("attn_sinks"), &[HEADS])
        .weights(&name("attn_q_a"), &[EMBD, Q_RANK])
        .weights(&name("attn_q_a_norm"), &[Q_RANK])
        .weights(&name("attn_q_b"), &[Q_RANK, HEADS * LEN])
        .weights(&name("attn_kv"), &[EMBD, LEN])
        .weights(&name("attn_kv_a_norm"), &[LEN])
        .weights(&name("attn_output_a"), &[cols, GROUPS * OUT_RANK])
        .weights(&name("attn_output_b"), &[GROUPS * OUT_RANK, EMBD]);
    let model = match ratio {
        0 => model,
        4 => compressor(compressor(model, il, "attn", LEN, 4), il, "indexer", INDEX_LEN, 4)
            .weights(&name("indexer.proj"), &[EMBD, INDEX_HEADS])
            .weights(&name("indexer.attn_q_b"), &[Q_RANK, INDEX_HEADS * INDEX_LEN]),
        ratio => compressor(model, il, "attn", LEN, ratio),
    };
    let model = hyper(model, &format!("blk.{il}.hc_ffn"), [MIXES, 3])
        .norm(&name("ffn_norm"))
        .experts(il, EMBD)
        .weights(&name("ffn_gate_exps"), &[EMBD, FF, EXPERTS])
        .weights(&name("ffn_gate_shexp"), &[EMBD, FF])
        .weights(&name("ffn_up_shexp"), &[EMBD, FF])
        .weights(&name("ffn_down_shexp"), &[FF, EMBD]);
    if il > 0 {
        return model;
    }
    let table = (0..TOKENS * USED).map(|i| (i * 5 / 3 % EXPERTS) as i32);
    model.without_tensor("blk.0.exp_probs_b.bias").table(table.collect())
}

/// The connection of a block: so many mixes, of so many kinds.
pub fn hyper(model: GgufBuilder, name: &str, [mixes, kinds]: [u64; 2]) -> GgufBuilder {
    let scale = random(name, &[kinds], 0.3, 1.0);
    model
        .weights(&format!("{name}_fn.weight"), &[STREAMS * EMBD, mixes])
        .weights(&format!("{name}_base.weight"), &[mixes])
        .tensor(format!("{name}_scale.weight"), ty::F32, &[kinds], scale)
}

fn compressor(model: GgufBuilder, il: usize, part: &str, len: u64, ratio: u64) -> GgufBuilder {
    let name = |tensor: &str| format!("blk.{il}.{part}_compressor_{tensor}.weight");
    let width = if ratio == 4 { 2 * len } else { len };
    model
        .weights(&name("kv"), &[EMBD, width])
        .weights(&name("gate"), &[EMBD, width])
        .weights(&name("ape"), &[width, ratio])
        .weights(&name("norm"), &[len])
}

/// What is particular to this family's tensors.
pub trait ByToken {
    /// The first layer's experts of every token.
    fn table(self, experts: Vec<i32>) -> Self;
}

impl ByToken for GgufBuilder {
    fn table(mut self, experts: Vec<i32>) -> Self {
        let name = "blk.0.ffn_gate_tid2eid.weight";
        self.tensors.retain(|tensor| tensor.name != name.as_bytes());
        let bytes = experts.iter().flat_map(|e| e.to_le_bytes()).collect();
        self.tensor(name, ty::I32, &[USED, experts.len() as u64 / USED], Data::Bytes(bytes))
    }
}
