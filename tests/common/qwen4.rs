//! A tiny model of Qwen 4 (experimental): a delta net with n-grams, attention to pools of positions, experts,
//! gated streams around both; parts of it to spoil.

use super::delta_nets::{DeltaNets, KEY_HEADS, LEN, TAPS, VALUE_HEADS, VALUES};
use super::gguf::{GgufBuilder, ty};
use super::state_spaces::{EMBD, HEAD, StateSpaces, of, random};

pub const STREAMS: u64 = 3;
pub const RANK: u64 = 6;
pub const POOL: u32 = 3;
pub const INDEX_HEADS: u64 = 3;
pub const INDEX_LEN: u64 = 16;
/// Tokens of an n-gram, rows of the table that a token takes, and rows of the table.
pub const ORDER: u64 = 3;
pub const ROWS: u64 = 4;
pub const TABLE: u64 = 40;
/// Taps of the convolution over what n-grams give.
pub const NGRAM_TAPS: u64 = 2;

pub fn qwen4() -> GgufBuilder {
    let model = of("qwen4exp", 2)
        .without_tensor("output_norm.weight")
        .sections()
        .key("attention.head_count_kv", 2u32)
        .key("ssm.conv_kernel", TAPS as u32)
        .key("ssm.inner_size", VALUES as u32)
        .key("ssm.state_size", LEN as u32)
        .key("ssm.time_step_rank", VALUE_HEADS as u32)
        .key("ssm.group_count", KEY_HEADS as u32)
        .key("full_attention_interval", 2u32)
        .key("hyper_connection.count", STREAMS as u32)
        .key("hyper_connection.low_rank", RANK as u32)
        .key("attention.indexer.head_count", INDEX_HEADS as u32)
        .key("attention.indexer.key_length", INDEX_LEN as u32)
        .key("attention.indexer.top_k", 2 * POOL)
        .key("attention.compress_ratios", vec![0u32, POOL])
        .delta_net(0)
        .strengths(0)
        .attention(1)
        .head_norms(1)
        .without_tensor("blk.1.attn_q.weight")
        .weights("blk.1.attn_q.weight", &[EMBD, 2 * 4 * HEAD])
        .weights("blk.1.indexer.q_proj.weight", &[EMBD, INDEX_HEADS * INDEX_LEN])
        .weights("blk.1.indexer.k_proj.weight", &[EMBD, INDEX_LEN])
        .weights("blk.1.indexer.q_norm.weight", &[INDEX_LEN])
        .weights("blk.1.indexer.k_norm.weight", &[INDEX_LEN])
        .gated_experts()
        .ngrams(0);
    let model = connection(model, "output_hc");
    ["blk.0.hc_attn", "blk.0.hc_ffn", "blk.1.hc_attn", "blk.1.hc_ffn"].into_iter().fold(
        model,
        |model, name| {
            connection(model, name).weights(&format!("{name}_inject.weight"), &[STREAMS * EMBD, STREAMS])
        },
    )
}

fn turns(model: GgufBuilder, name: &str) -> GgufBuilder {
    let dims = [EMBD, STREAMS];
    model.tensor(name, ty::F32, &dims, random(name, &dims, 0.3, 1.0))
}

fn connection(model: GgufBuilder, name: &str) -> GgufBuilder {
    turns(model, &format!("{name}_norm.weight"))
        .weights(&format!("{name}_down.weight"), &[STREAMS * EMBD, RANK])
        .weights(&format!("{name}_up.weight"), &[RANK, STREAMS * EMBD])
}

/// What is particular to this family.
pub trait Qwen4: Sized {
    /// Embeddings of n-grams in a layer.
    fn ngrams(self, il: u32) -> Self;
}

impl Qwen4 for GgufBuilder {
    fn ngrams(self, il: u32) -> Self {
        let name = |part: &str| format!("blk.{il}.ple_{part}.weight");
        let model = self
            .key("ple.layers", vec![il])
            .key("ple.ngram_size", ORDER as u32)
            .key("ple.heads_per_ngram", 2u32)
            .key("ple.conv_kernel", NGRAM_TAPS as u32)
            .key("ple.eos_token_id", 3u32)
            .key(
                "ple.layer_multipliers",
                vec![2_654_435_761u64, 7_046_029_254_386_353_131, 0xdead_beef_feed_f00d],
            )
            .key("ple.head_offsets", vec![0u64, 10, 0, 29])
            .key("ple.head_vocab_sizes", vec![10u64, 19, 40, 11])
            .key("embedding_length_per_layer_input", (EMBD / ROWS) as u32)
            .weights("per_layer_token_embd.weight", &[EMBD / ROWS, TABLE])
            .weights(&name("key"), &[EMBD, STREAMS * EMBD])
            .weights(&name("value"), &[EMBD, EMBD])
            .weights(&name("conv1d"), &[NGRAM_TAPS, STREAMS * EMBD]);
        ["norm_key", "norm_query", "norm_conv"]
            .into_iter()
            .fold(model, |model, part| turns(model, &name(part)))
    }
}
