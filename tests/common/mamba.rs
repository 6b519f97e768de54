//! Tiny models of Mamba and Jamba, and parts of them to spoil.

use super::gguf::{GgufBuilder, ty};
use super::state_spaces::{EMBD, EXPERTS, FF, StateSpaces, of, random};

/// Channels, elements of a channel's state, the rank of steps, taps.
pub const INNER: u64 = 2 * EMBD;
pub const STATE: u64 = 16;
pub const RANK: u64 = 3;
pub const TAPS: u64 = 4;

/// As files say it: no heads of attention.
pub fn mamba() -> GgufBuilder {
    let model = of("mamba", 2)
        .set("mamba.attention.head_count", 0u32)
        .set("mamba.feed_forward_length", 0u32)
        .without("mamba.rope.freq_base");
    (0..2).fold(sizes(model), |model, il| model.norm(&format!("blk.{il}.attn_norm.weight")).block(il))
}

/// Mamba with a network, then attention with experts.
pub fn jamba() -> GgufBuilder {
    sizes(of("jamba", 2))
        .key("attention.head_count_kv", vec![0u32, 2])
        .key("expert_count", EXPERTS as u32)
        .key("expert_used_count", 2u32)
        .norm("blk.0.attn_norm.weight")
        .block(0)
        .weights("blk.0.ssm_dt_norm.weight", &[RANK])
        .weights("blk.0.ssm_b_norm.weight", &[STATE])
        .weights("blk.0.ssm_c_norm.weight", &[STATE])
        .network(0)
        .norm("blk.1.attn_norm.weight")
        .attention(1)
        .norm("blk.1.ffn_norm.weight")
        .experts(1, EMBD)
        .without_tensor("blk.1.exp_probs_b.bias")
        .weights("blk.1.ffn_gate_exps.weight", &[EMBD, FF, EXPERTS])
}

fn sizes(model: GgufBuilder) -> GgufBuilder {
    model
        .key("ssm.conv_kernel", TAPS as u32)
        .key("ssm.inner_size", INNER as u32)
        .key("ssm.state_size", STATE as u32)
        .key("ssm.time_step_rank", RANK as u32)
}

/// What these models are made of.
trait Blocks: Sized {
    fn block(self, il: usize) -> Self;
}

impl Blocks for GgufBuilder {
    fn block(self, il: usize) -> Self {
        let name = |part: &str| format!("blk.{il}.{part}");
        let of = |part: &str, dims: &[u64], scale, mean| random(&name(part), dims, scale, mean);
        let (bias, rates) = (of("ssm_dt.bias", &[INNER], 1.0, -1.0), of("ssm_a", &[STATE, INNER], 0.5, -0.6));
        self.weights(&name("ssm_in.weight"), &[EMBD, 2 * INNER])
            .weights(&name("ssm_conv1d.weight"), &[TAPS, INNER])
            .weights(&name("ssm_conv1d.bias"), &[INNER])
            .weights(&name("ssm_x.weight"), &[INNER, RANK + 2 * STATE])
            .weights(&name("ssm_dt.weight"), &[RANK, INNER])
            .tensor(name("ssm_dt.bias"), ty::F32, &[INNER], bias)
            .tensor(name("ssm_a"), ty::F32, &[STATE, INNER], rates)
            .tensor(name("ssm_d"), ty::F32, &[INNER], of("ssm_d", &[INNER], 0.5, 1.0))
            .weights(&name("ssm_out.weight"), &[INNER, EMBD])
    }
}
