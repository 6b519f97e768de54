//! Faults in Hunyuan 4 and GLM 5.3: streams that stay apart or end in a mean, sinks and gates of latent
//! attention, indexers that rotate the ends of heads, and whose keys are pooled.

use wayinfer::model::{Node, NodeId};

use super::faults::{SUMS, Scaled, changed, filled, left_out, sound, wrong, zeroed};
use super::{Fault, inverse, permute, trips};

const HY: &str = "hy_v4/long";
const GLM: &str = "glm5-next/long";
const STREAMS: usize = 4;
const INDEX_LEN: usize = 16;
/// Rotated elements of Hunyuan 4's heads.
const ROPE: usize = 8;
const PRODUCT: &str = "the F32 kernel";

/// The elements of each row of a node change places, as it is handed on.
struct Handed(&'static str, Vec<usize>);

impl Fault for Handed {
    fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if id.name == self.0 {
            permute(values, self.1.len(), 1, &self.1);
        }
    }
}

#[test]
fn gates_of_streams_apart_made_otherwise() {
    let words = &wrong("blk 0 hc_post_gate", "sigmoid");
    changed(HY, "hyper_connection.magnitude", 2f32, 1.9f32).trips(words);
    trips(&sound(HY), Scaled("hc_post_gate", 0.5), words);
    let words = &wrong("blk 0 hc_pre", "sigmoid");
    changed(HY, "hyper_connection.epsilon", 1e-6f32, 1e-4f32).trips(words);
    zeroed(HY, "blk.0.hc_attn_base.weight").trips(words);
}

#[test]
fn streams_apart_in_each_others_place() {
    let order = || vec![1, 0, 2, 3];
    trips(&sound(HY), Handed("hc_post_gate", order()), &wrong("blk 0 hc_attn_out", SUMS));
    // Before the first block all streams are the same.
    trips(&sound(HY), Handed("hc_pre", order()), &wrong("blk 0 ffn_norm", "RMS norm"));
    let words = "first differs at hc_head (prefill), inputs equal: suspect element-wise arithmetic";
    trips(&sound(HY), Handed("hc_head_pre", order()), words);
}

/// A block's norm takes no notice of what is larger throughout: the streams behind it are made of it.
#[test]
fn streams_apart_go_on_from_others() {
    struct Larger;
    impl Fault for Larger {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "hc_attn_out" {
                values.iter_mut().for_each(|v| *v *= 1.001);
            }
        }
    }
    trips(&sound(HY), Larger, &wrong("blk 0 l_out", SUMS));
}

#[test]
fn sinks_of_latents_left_out() {
    filled(HY, "blk.0.attn_sinks.weight", -30.0).trips(&wrong("blk 0 attn_kqv", PRODUCT));
}

#[test]
fn gate_of_latents_left_out() {
    trips(&sound(HY), left_out("attn_kqv", 0, "attn_gated"), &wrong("blk 0 attn_gated", SUMS));
}

#[test]
fn one_position_more_or_less_is_chosen() {
    let words = &wrong("blk 0 attn_kqv", PRODUCT);
    changed(HY, "attention.indexer.top_k", 12u32, 13u32).trips(words);
    changed(HY, "attention.indexer.top_k", 12u32, 11u32).trips(words);
}

/// The beginnings of an indexer's heads are rotated in the place of their ends.
#[test]
fn rotations_of_the_other_end() {
    struct Beginnings {
        before: &'static str,
        after: &'static str,
        order: Vec<usize>,
    }
    impl Fault for Beginnings {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == self.before {
                permute(values, self.order.len(), 1, &self.order);
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == self.after {
                permute(values, self.order.len(), 1, &inverse(&self.order));
            }
        }
    }
    let order: Vec<usize> = (ROPE..INDEX_LEN).chain(0..ROPE).collect();
    for (before, after) in [("indexer_q_b", "indexer_q"), ("indexer_k_norm", "indexer_k")] {
        let fault = Beginnings { before, after, order: order.clone() };
        trips(&sound(HY), fault, &wrong(&format!("blk 0 {after}"), "RoPE"));
    }
}

#[test]
fn limits_of_experts_and_of_all_networks() {
    changed(HY, "swiglu_clamp_exp", 0.8f32, 0.9f32).trips(&wrong("blk 1 ffn_moe_swiglu_limited", "SwiGLU"));
    changed(GLM, "swiglu_clamp_exp", 0.8f32, 0.9f32).trips(&wrong("blk 1 ffn_moe_swiglu_limited", "SwiGLU"));
    changed(GLM, "swiglu_clamp_shexp", 0.6f32, 0.7f32).trips(&wrong("blk 0 ffn_swiglu_limited", "SwiGLU"));
}

#[test]
fn a_sum_of_streams_for_their_mean() {
    let words = "first differs at hc_head (prefill), inputs equal: suspect element-wise arithmetic";
    trips(&sound(GLM), Scaled("hc_head", STREAMS as f32), words);
}

#[test]
fn one_pool_more_or_less_is_chosen() {
    let words = &wrong("blk 1 kqv_out", PRODUCT);
    changed(GLM, "attention.indexer.top_k", 12u32, 16u32).trips(words);
    changed(GLM, "attention.indexer.top_k", 12u32, 8u32).trips(words);
}

#[test]
fn pools_made_otherwise() {
    zeroed(GLM, "blk.1.indexer_compressor_ape.weight").trips(&wrong("blk 1 kqv_out", PRODUCT));
    zeroed(GLM, "blk.1.indexer_compressor_gate.weight").trips(&wrong("blk 1 indexer_gate", PRODUCT));
    let words = &wrong("blk 1 indexer_k", "layer norm");
    trips(&sound(GLM), left_out("indexer_k_a", 0, "indexer_k"), words);
    changed(GLM, "attention.layer_norm_epsilon", 1e-5f32, 1e-2f32).trips(words);
}

#[test]
fn the_worst_pools_are_chosen() {
    struct Turned;
    impl Fault for Turned {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "indexer_weights" {
                values.iter_mut().for_each(|v| *v = -*v);
            }
        }
    }
    trips(&sound(GLM), Turned, &wrong("blk 1 kqv_out", PRODUCT));
}

#[test]
fn decays_of_another_bound() {
    changed(GLM, "kda.gate_lower_bound", -5f32, -4f32).trips(&wrong("blk 0 kda_g1", "sigmoid"));
}
