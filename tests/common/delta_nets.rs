//! Tiny models of the families with delta nets: a recurrent layer, then one with attention; parts of them to
//! spoil.

use super::gguf::{GgufBuilder, ty};
use super::latents::{Latents, NOPE, SHARED, VALUE};
use super::state_spaces::{EMBD, EXPERTS, FF, HEAD, StateSpaces, of, random};

/// Heads of values, and of keys that they share; elements of each; taps of the convolution.
pub const VALUE_HEADS: u64 = 4;
pub const KEY_HEADS: u64 = 2;
pub const LEN: u64 = 16;
pub const TAPS: u64 = 4;
pub const KEYS: u64 = KEY_HEADS * LEN;
pub const VALUES: u64 = VALUE_HEADS * LEN;
/// Channels of the convolution.
pub const CHANNELS: u64 = 2 * KEYS + VALUES;

/// A name and a model for each of them.
pub fn all() -> Vec<(&'static str, GgufBuilder)> {
    vec![
        ("qwen35", qwen35()),
        ("qwen35moe", qwen35moe()),
        ("qwen3next", qwen3next()),
        ("qwen3next, by head", qwen3next_by_head()),
        ("kimi-linear", kimi_linear()),
        ("bailingmoe3", bailing_3()),
        ("kimi-k3", kimi_k3()),
    ]
}

pub fn qwen35() -> GgufBuilder {
    let model = qwen("qwen35").sections().delta_net(0).strengths(0);
    (0..2).fold(model, |model, il| {
        model
            .weights(&format!("blk.{il}.ffn_gate.weight"), &[EMBD, FF])
            .weights(&format!("blk.{il}.ffn_up.weight"), &[EMBD, FF])
            .weights(&format!("blk.{il}.ffn_down.weight"), &[FF, EMBD])
    })
}

pub fn qwen35moe() -> GgufBuilder {
    qwen("qwen35moe").sections().delta_net(0).strengths(0).gated_experts()
}

pub fn qwen3next() -> GgufBuilder {
    let model = qwen("qwen3next").delta_net(0).gated_experts();
    model.weights("blk.0.ssm_ba.weight", &[EMBD, 2 * VALUE_HEADS])
}

/// What belongs to a head of keys lies together.
pub fn qwen3next_by_head() -> GgufBuilder {
    qwen3next()
        .without_tensor("blk.0.attn_qkv.weight")
        .without_tensor("blk.0.attn_gate.weight")
        .weights("blk.0.ssm_in.weight", &[EMBD, CHANNELS + VALUES])
}

fn qwen(arch: &str) -> GgufBuilder {
    let model = of(arch, 2)
        .key("attention.head_count_kv", 2u32)
        .key("ssm.conv_kernel", TAPS as u32)
        .key("ssm.inner_size", VALUES as u32)
        .key("ssm.state_size", LEN as u32)
        .key("ssm.time_step_rank", VALUE_HEADS as u32)
        .key("ssm.group_count", KEY_HEADS as u32)
        .key("full_attention_interval", 2u32)
        .attention(1)
        .head_norms(1)
        .without_tensor("blk.1.attn_q.weight")
        .weights("blk.1.attn_q.weight", &[EMBD, 2 * 4 * HEAD]);
    (0..2).fold(model, |model, il| {
        model
            .norm(&format!("blk.{il}.attn_norm.weight"))
            .norm(&format!("blk.{il}.post_attention_norm.weight"))
    })
}

/// A layer of Kimi Delta Attention with a dense network, one of latent attention with experts.
pub fn kimi_linear() -> GgufBuilder {
    let inner = 4 * LEN;
    let name = |part: &str| format!("blk.0.{part}");
    let mut model = of("kimi-linear", 2)
        .key("attention.head_count_kv", vec![0u32, 1])
        .latent_keys()
        .key("ssm.conv_kernel", TAPS as u32)
        .key("kda.head_dim", LEN as u32)
        .expert_keys()
        .key("expert_weights_scale", 2.5f32)
        .norm("blk.0.attn_norm.weight")
        .weights(&name("ssm_f_a.weight"), &[EMBD, LEN])
        .weights(&name("ssm_f_b.weight"), &[LEN, inner])
        .weights(&name("ssm_g_a.weight"), &[EMBD, LEN])
        .weights(&name("ssm_g_b.weight"), &[LEN, inner])
        .weights(&name("ssm_beta.weight"), &[EMBD, 4])
        .tensor(name("ssm_dt.bias"), ty::F32, &[inner], random("dt", &[inner], 1.0, -1.0))
        .tensor(name("ssm_a"), ty::F32, &[1, 4], random("a", &[4], 0.2, -0.3))
        .tensor(name("ssm_norm.weight"), ty::F32, &[LEN], random("norm", &[LEN], 0.3, 1.0))
        .weights(&name("attn_output.weight"), &[inner, EMBD])
        .network(0);
    for part in ["q", "k", "v"] {
        model = model
            .weights(&name(&format!("attn_{part}.weight")), &[EMBD, inner])
            .weights(&name(&format!("ssm_conv1d_{part}.weight")), &[TAPS, 1, inner]);
    }
    model.weights("blk.1.attn_q.weight", &[EMBD, 4 * (NOPE + SHARED)]).latents(1).experts_and_one_for_all(1)
}

/// Kimi Linear's layers with what Ling 3 has of its own.
pub fn bailing_3() -> GgufBuilder {
    let inner = 4 * LEN;
    renamed(kimi_linear(), "bailingmoe3")
        .without_tensor("blk.0.ssm_f_a.weight")
        .without_tensor("blk.0.ssm_f_b.weight")
        .without_tensor("blk.0.ssm_g_a.weight")
        .without_tensor("blk.0.ssm_g_b.weight")
        .without_tensor("blk.0.ssm_a")
        .key("kda.gate_lower_bound", -5f32)
        .weights("blk.0.ssm_f_a.weight", &[EMBD, inner])
        .weights("blk.0.ssm_g_a.weight", &[EMBD, inner])
        .tensor("blk.0.ssm_a", ty::F32, &[1, 4], random("a", &[4], 0.2, 1.0))
        .weights("blk.1.attn_gate.weight", &[EMBD, 4])
}

/// Elements of the input of Kimi K3's experts.
pub const NARROW: u64 = 16;

/// Kimi Linear's layers with what Kimi K3 has of its own.
pub fn kimi_k3() -> GgufBuilder {
    let inner = 4 * LEN;
    let mut model = renamed(kimi_linear(), "kimi-k3")
        .without_tensor("blk.0.ssm_g_a.weight")
        .without_tensor("blk.0.ssm_g_b.weight")
        .without_tensor("blk.0.ssm_a")
        .key("kda.gate_lower_bound", -5f32)
        .key("attn_res.block_size", 1u32)
        .key("activation.situ_beta", 4f32)
        .key("activation.situ_linear_beta", 20f32)
        .key("expert_latent_length", NARROW as u32)
        .weights("blk.0.ssm_g.weight", &[EMBD, inner])
        .tensor("blk.0.ssm_a", ty::F32, &[4], random("a", &[4], 0.2, -1.0))
        .weights("blk.1.attn_gate.weight", &[EMBD, 4 * VALUE])
        .weights("blk.1.ffn_routed_down.weight", &[EMBD, NARROW])
        .weights("blk.1.ffn_routed_up.weight", &[NARROW, EMBD])
        .weights("blk.1.ffn_routed_norm.weight", &[NARROW])
        .norm("output_res_score.weight");
    for (part, dims) in [("gate", [NARROW, FF]), ("up", [NARROW, FF]), ("down", [FF, NARROW])] {
        let name = format!("blk.1.ffn_{part}_exps.weight");
        model = model.without_tensor(&name).weights(&name, &[dims[0], dims[1], EXPERTS]);
    }
    (0..2).fold(model, |model, il| {
        model.norm(&format!("blk.{il}.attn_res_score.weight")).norm(&format!("blk.{il}.ffn_res_score.weight"))
    })
}

/// The same model under another architecture's name.
fn renamed(mut model: GgufBuilder, arch: &str) -> GgufBuilder {
    for pair in &mut model.pairs {
        if let Some(name) = pair.key.strip_prefix(b"kimi-linear.") {
            pair.key = [arch.as_bytes(), b".", name].concat();
        }
    }
    model.set("general.architecture", arch)
}

/// What these models are made of.
pub trait DeltaNets: Sized {
    fn sections(self) -> Self;
    /// All but strengths and alphas.
    fn delta_net(self, il: usize) -> Self;
    fn strengths(self, il: usize) -> Self;
    /// Experts in both layers, beside a shared network with a gate.
    fn gated_experts(self) -> Self;
}

impl DeltaNets for GgufBuilder {
    fn sections(self) -> Self {
        self.key("rope.dimension_sections", vec![2i32, 1, 1, 0])
    }

    fn delta_net(self, il: usize) -> Self {
        let name = |part: &str| format!("blk.{il}.{part}");
        let vector = |part: &str, n, scale, mean| random(&name(part), &[n], scale, mean);
        self.weights(&name("attn_qkv.weight"), &[EMBD, CHANNELS])
            .weights(&name("attn_gate.weight"), &[EMBD, VALUES])
            .weights(&name("ssm_conv1d.weight"), &[TAPS, CHANNELS])
            .tensor(
                name("ssm_dt.bias"),
                ty::F32,
                &[VALUE_HEADS],
                vector("ssm_dt.bias", VALUE_HEADS, 1.0, -1.0),
            )
            .tensor(name("ssm_a"), ty::F32, &[VALUE_HEADS], vector("ssm_a", VALUE_HEADS, 0.2, -0.3))
            .tensor(name("ssm_norm.weight"), ty::F32, &[LEN], vector("ssm_norm.weight", LEN, 0.3, 1.0))
            .weights(&name("ssm_out.weight"), &[VALUES, EMBD])
    }

    fn strengths(self, il: usize) -> Self {
        self.weights(&format!("blk.{il}.ssm_beta.weight"), &[EMBD, VALUE_HEADS])
            .weights(&format!("blk.{il}.ssm_alpha.weight"), &[EMBD, VALUE_HEADS])
    }

    fn gated_experts(self) -> Self {
        let model = self
            .key("expert_count", EXPERTS as u32)
            .key("expert_used_count", 2u32)
            .key("expert_feed_forward_length", FF as u32);
        (0..2).fold(model, |model, il| {
            let name = |part: &str| format!("blk.{il}.{part}.weight");
            model
                .weights(&name("ffn_gate_inp"), &[EMBD, EXPERTS])
                .weights(&name("ffn_gate_exps"), &[EMBD, FF, EXPERTS])
                .weights(&name("ffn_up_exps"), &[EMBD, FF, EXPERTS])
                .weights(&name("ffn_down_exps"), &[FF, EMBD, EXPERTS])
                .weights(&name("ffn_gate_inp_shexp"), &[EMBD])
                .weights(&name("ffn_gate_shexp"), &[EMBD, FF])
                .weights(&name("ffn_up_shexp"), &[EMBD, FF])
                .weights(&name("ffn_down_shexp"), &[FF, EMBD])
        })
    }
}
