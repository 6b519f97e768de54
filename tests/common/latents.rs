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
    fn latent_keys(self) -> Self {
        self.latent_keys_of([LATENT, SHARED])
    }
    /// The same for latents and rotated elements of other lengths.
    fn latent_keys_of(self, lengths: [u64; 2]) -> Self;
    /// A layer's latents and what becomes of them; queries are left to the family.
    fn latents(self, il: usize) -> Self {
        self.latents_of(il, [LATENT, SHARED])
    }
    fn latents_of(self, il: usize, lengths: [u64; 2]) -> Self;
    /// A first layer without experts, and how two of them are chosen elsewhere.
    fn expert_keys(self) -> Self;
    /// A layer's experts beside a shared network.
    fn experts_and_one_for_all(self, il: usize) -> Self;
}

impl Latents for GgufBuilder {
    fn latent_keys_of(self, [latent, shared]: [u64; 2]) -> Self {
        self.key("attention.kv_lora_rank", latent as u32)
            .key("attention.key_length", (latent + shared) as u32)
            .key("attention.value_length", latent as u32)
            .key("attention.key_length_mla", (NOPE + shared) as u32)
            .key("attention.value_length_mla", VALUE as u32)
            .key("rope.dimension_count", shared as u32)
    }

    fn latents_of(self, il: usize, [latent, shared]: [u64; 2]) -> Self {
        let name = |part: &str| format!("blk.{il}.{part}.weight");
        let norm = random(&name("attn_kv_a_norm"), &[latent], 0.3, 1.0);
        self.norm(&name("attn_norm"))
            .weights(&name("attn_kv_a_mqa"), &[EMBD, latent + shared])
            .tensor(name("attn_kv_a_norm"), ty::F32, &[latent], norm)
            .weights(&name("attn_k_b"), &[NOPE, latent, 4])
            .weights(&name("attn_v_b"), &[latent, VALUE, 4])
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
