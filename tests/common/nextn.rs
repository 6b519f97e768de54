//! Tiny models with a block of multi-token prediction behind their layers.

use super::delta_nets;
use super::gguf::{Data, GgufBuilder, ty};
use super::latents::{LATENT, Latents, NOPE, SHARED};
use super::state_spaces::{EMBD, StateSpaces, of, random};
use super::tiny::TOKENS;

/// A name and a model for each kind of block.
pub fn all() -> Vec<(&'static str, GgufBuilder)> {
    vec![
        ("qwen35", with_block(delta_nets::qwen35())),
        ("qwen35moe", with_block(delta_nets::qwen35moe())),
        ("qwen3next", with_block(delta_nets::qwen3next())),
        ("deepseek2", with_block(deepseek2())),
    ]
}

/// A model of two layers with a block that is like the second.
pub fn with_block(mut model: GgufBuilder) -> GgufBuilder {
    let second: Vec<_> = model.tensors.iter().filter(|t| t.name.starts_with(b"blk.1.")).cloned().collect();
    for mut tensor in second {
        tensor.name[4] = b'2';
        let name = String::from_utf8(tensor.name.clone()).expect("text");
        // Other weights, around the same mean.
        if !name.contains("norm") {
            let scale = 1.7 / (tensor.dims[0] as f32).sqrt();
            tensor.data = random(&name, &tensor.dims, scale, 0.0).into();
        }
        model.tensors.push(tensor);
    }
    model
        .key("block_count", 3u32)
        .key("nextn_predict_layers", 1u32)
        .weights("blk.2.nextn.eh_proj.weight", &[2 * EMBD, EMBD])
        .norm("blk.2.nextn.enorm.weight")
        .norm("blk.2.nextn.hnorm.weight")
}

const Q_RANK: u64 = 12;

/// A dense layer and one with experts.
pub fn deepseek2() -> GgufBuilder {
    deepseek2_of([LATENT, SHARED])
}

/// The same with latents and rotated elements of other lengths.
pub fn deepseek2_of([latent, shared]: [u64; 2]) -> GgufBuilder {
    let model = of("deepseek2", 2)
        .key("attention.head_count_kv", 1u32)
        .key("attention.q_lora_rank", Q_RANK as u32)
        .latent_keys_of([latent, shared])
        .expert_keys();
    let model = (0..2).fold(model, |model, il| {
        let name = |part: &str| format!("blk.{il}.{part}.weight");
        let norm = random(&name("attn_q_a_norm"), &[Q_RANK], 0.3, 1.0);
        model
            .weights(&name("attn_q_a"), &[EMBD, Q_RANK])
            .tensor(name("attn_q_a_norm"), ty::F32, &[Q_RANK], norm)
            .weights(&name("attn_q_b"), &[Q_RANK, 4 * (NOPE + shared)])
            .latents_of(il, [latent, shared])
    });
    model.network(0).experts_and_one_for_all(1)
}

/// The token that follows in [`parrot`], whatever came before: all tokens in turn.
pub fn next(token: u64) -> u64 {
    (5 * token + 3) % TOKENS
}

/// What the block of [`parrot`] makes of its input.
#[derive(Clone, Copy)]
pub struct Says {
    /// The token that it takes the hidden row's token for.
    pub of_hidden: fn(u64) -> u64,
    /// The token that it takes the token itself for.
    pub of_token: fn(u64) -> u64,
    /// Weights of the norms of both.
    pub hnorm: f32,
    pub enorm: f32,
}

impl Says {
    /// The hidden row of the position before says which token is here, so that the next one follows; what is
    /// said of the token itself is wrong and of no weight.
    pub const RIGHT: Says =
        Says { of_hidden: next, of_token: |token| next(next(token)), hnorm: 1.0, enorm: 0.01 };
}

/// A model whose every token decides the next, and whose block knows it by the hidden row of the position
/// before.
pub fn parrot(model: GgufBuilder, says: Says) -> GgufBuilder {
    let mut model = with_block(model);
    // Layers hand on what they are given: an embedding.
    for tensor in &mut model.tensors {
        let name = String::from_utf8(tensor.name.clone()).expect("text");
        if ["attn_output", "ssm_out", "ffn_down"].iter().any(|part| name.contains(part)) {
            tensor.data = Data::Zero;
        }
    }
    let embedding = |v: &mut [f32]| {
        v.fill(0.0);
        (0..TOKENS).for_each(|token| v[(token * EMBD + token) as usize] = 4.0);
    };
    let output = |v: &mut [f32]| {
        (0..TOKENS).for_each(|token| v[(next(token) * EMBD + token) as usize] = 5.0);
    };
    let mapped = |v: &mut [f32]| {
        v.fill(0.0);
        for token in 0..TOKENS {
            v[((says.of_token)(token) * 2 * EMBD + token) as usize] = 1.0;
            v[((says.of_hidden)(token) * 2 * EMBD + EMBD + token) as usize] += 1.0;
        }
    };
    model
        .values("token_embd.weight", embedding)
        .values("output.weight", output)
        .values("blk.2.nextn.eh_proj.weight", mapped)
        .values("blk.2.nextn.enorm.weight", |v| v.fill(says.enorm))
        .values("blk.2.nextn.hnorm.weight", |v| v.fill(says.hnorm))
}
