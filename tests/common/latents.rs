//! Latent attention of tiny models, and experts beside a shared network: keys and tensors that families
//! share.

use super::gguf::{GgufBuilder, ty};
use super::state_spaces::{EMBD, EXPERTS, FF, StateSpaces, random};

/// Elements of latents, of queries beside them, of those that heads share and that are rotated, of values.
pub const LATENT: u64 = 16;
pub const NOPE: u64 = 8;
pub const SHARED: u64 = 4;
pub const VALUE: u64 = 8;

/// Four heads; keys and values head by head.
pub trait Latents: Sized {
    /// The lengths, as metadata has them.
    fn latent_keys(self) -> Self;
    /// A layer's latents and what becomes of them; queries are left to the family.
    fn latents(self, il: usize) -> Self;
    /// A first layer without experts, and how two of them are chosen elsewhere.
    fn expert_keys(self) -> Self;
    /// A layer's experts beside a shared network.
    fn experts_and_one_for_all(self, il: usize) -> Self;
}

impl Latents for GgufBuilder {
    fn latent_keys(self) -> Self {
        self.key("attention.kv_lora_rank", LATENT as u32)
            .key("attention.key_length", (LATENT + SHARED) as u32)
            .key("attention.value_length", LATENT as u32)
            .key("attention.key_length_mla", (NOPE + SHARED) as u32)
            .key("attention.value_length_mla", VALUE as u32)
            .key("rope.dimension_count", SHARED as u32)
    }

    fn latents(self, il: usize) -> Self {
        let name = |part: &str| format!("blk.{il}.{part}.weight");
        let norm = random(&name("attn_kv_a_norm"), &[LATENT], 0.3, 1.0);
        self.norm(&name("attn_norm"))
            .weights(&name("attn_kv_a_mqa"), &[EMBD, LATENT + SHARED])
            .tensor(name("attn_kv_a_norm"), ty::F32, &[LATENT], norm)
            .weights(&name("attn_k_b"), &[NOPE, LATENT, 4])
            .weights(&name("attn_v_b"), &[LATENT, VALUE, 4])
            .weights(&name("attn_output"), &[4 * VALUE, EMBD])
    }

    fn expert_keys(self) -> Self {
        self.key("leading_dense_block_count", 1u32)
            .key("expert_count", EXPERTS as u32)
            .key("expert_used_count", 2u32)
            .key("expert_feed_forward_length", FF as u32)
            .key("expert_shared_count", 1u32)
            .key("expert_gating_func", 2u32)
    }

    fn experts_and_one_for_all(self, il: usize) -> Self {
        let name = |part: &str| format!("blk.{il}.{part}.weight");
        self.norm(&name("ffn_norm"))
            .weights(&name("ffn_gate_exps"), &[EMBD, FF, EXPERTS])
            .experts(il, EMBD)
            .weights(&name("ffn_gate_shexp"), &[EMBD, FF])
            .weights(&name("ffn_up_shexp"), &[EMBD, FF])
            .weights(&name("ffn_down_shexp"), &[FF, EMBD])
    }
}
