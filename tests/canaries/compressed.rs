//! Faults in DeepSeek V4: gates between streams, compressed keys and their choice, the rotation of what
//! attention gives, experts by token, limits of networks.

use wayinfer::model::{Node, NodeId};

use super::faults::{SUMS, Scaled, changed, filled, left_out, sound, wrong, zeroed};
use super::{Fault, Spoilt, permute, trips};

const NAME: &str = "deepseek4/long";
const STREAMS: usize = 4;
const EMBD: usize = 16;
/// Values of a position that keys, and the indexer's, are made of.
const KEYS: usize = 32;
const INDEX_KEYS: usize = 128;

/// Changes what a node hands on.
struct Handed<F>(&'static str, F);

impl<F: FnMut(&mut [f32]) + Send> Fault for Handed<F> {
    fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if id.name == self.0 {
            (self.1)(values);
        }
    }
}

/// Takes the first half of each row away.
fn without_first_half(row: usize) -> impl FnMut(&mut [f32]) + Send {
    move |values| values.chunks_exact_mut(row).for_each(|values| values[..row / 2].fill(0.0))
}

#[test]
fn gates_of_pairs_of_streams_turned_around() {
    let turned: Vec<usize> = (0..STREAMS * STREAMS).map(|i| i % STREAMS * STREAMS + i / STREAMS).collect();
    let fault = Handed("hc_comb", |values: &mut [f32]| permute(values, 16, 1, &turned));
    trips(&sound(NAME), fault, &wrong("blk 0 hc_attn_post", SUMS));
}

#[test]
fn gates_made_otherwise() {
    let rounds = &wrong("blk 0 hc_comb", "softmax");
    changed(NAME, "hyper_connection.sinkhorn_iterations", 3u32, 2u32).trips(rounds);
    let words = &wrong("blk 0 hc_pre", "sigmoid");
    changed(NAME, "hyper_connection.epsilon", 1e-6f32, 1e-4f32).trips(words);
    zeroed(NAME, "blk.0.hc_attn_base.weight").trips(words);
    trips(&sound(NAME), Scaled("hc_post", 0.5), &wrong("blk 0 hc_post", "sigmoid"));
}

#[test]
fn streams_that_change_places() {
    let order = [1, 0, 2, 3];
    let fault = Handed("hc_init", |values: &mut [f32]| {
        values.chunks_exact_mut(STREAMS * EMBD).for_each(|row| row[..EMBD].fill(0.0));
    });
    trips(&sound(NAME), fault, &wrong("blk 0 hc_mixes", "the F32 kernel"));
    let fault = Handed("hc_pre", move |values: &mut [f32]| permute(values, STREAMS, 1, &order));
    // Before the first block all streams are the same.
    trips(&sound(NAME), fault, &wrong("blk 0 hc_ffn_pre", SUMS));
    let fault = Handed("hc_head_pre", move |values: &mut [f32]| permute(values, STREAMS, 1, &order));
    trips(
        &sound(NAME),
        fault,
        "first differs at hc_head (prefill), inputs equal: suspect element-wise arithmetic",
    );
}

#[test]
fn the_block_before_left_out_of_compressed_keys() {
    let words = &wrong("blk 1 attn_csa_lid", "attention with sinks");
    trips(&sound(NAME), Handed("csa_state_kv", without_first_half(KEYS)), words);
    trips(&sound(NAME), Handed("lid_state_kv", without_first_half(INDEX_KEYS)), words);
}

#[test]
fn places_in_a_block_left_out() {
    let words = |node| wrong(node, SUMS);
    zeroed(NAME, "blk.1.attn_compressor_ape.weight").trips(&words("blk 1 csa_state_score_ape"));
    zeroed(NAME, "blk.1.indexer_compressor_ape.weight").trips(&words("blk 1 lid_state_score_ape"));
    zeroed(NAME, "blk.2.attn_compressor_ape.weight").trips(&words("blk 2 hca_state_score_ape"));
}

#[test]
fn compressed_keys_without_their_norm() {
    filled(NAME, "blk.1.attn_compressor_norm.weight", 1.0)
        .trips(&wrong("blk 1 attn_csa_lid", "attention with sinks"));
}

#[test]
fn one_compressed_key_more_or_less_is_chosen() {
    let words = &wrong("blk 1 attn_csa_lid", "attention with sinks");
    changed(NAME, "attention.indexer.top_k", 4u32, 5u32).trips(words);
    changed(NAME, "attention.indexer.top_k", 4u32, 3u32).trips(words);
    let negated = |values: &mut [f32]| values.iter_mut().for_each(|v| *v = -*v);
    trips(&sound(NAME), Handed("lid_weights", negated), words);
    trips(
        &sound(NAME),
        left_out("lid_q_rope", 0, "lid_q_rot"),
        &wrong("blk 1 lid_q_rot", "the Hadamard transform"),
    );
}

#[test]
fn rotations_off() {
    // The first layer's is not scaled.
    changed(NAME, "rope.freq_base", 10_000f32, 10_100f32).trips(&wrong("blk 0 q", "RoPE"));
    changed(NAME, "rope.scaling.factor", 8f32, 4f32).trips(&wrong("blk 1 q", "RoPE"));
    changed(NAME, "attention.compress_rope_freq_base", 160_000f32, 160_100f32)
        .trips(&wrong("blk 1 q", "RoPE"));
    trips(&sound(NAME), left_out("attn_raw", 0, "attn_derope"), &wrong("blk 0 attn_derope", "RoPE"));
}

#[test]
fn windows_and_sinks_off() {
    let words = &wrong("blk 0 attn_raw", "attention with sinks");
    changed(NAME, "attention.sliding_window", 16u32, 17u32).trips(words);
    filled(NAME, "blk.0.attn_sinks.weight", -30.0).trips(words);
}

#[test]
fn groups_of_heads_in_each_others_place() {
    let spoilt = Spoilt::new(NAME, |gguf, bytes| {
        let tensor = gguf.tensor("blk.0.attn_output_a.weight").expect("the tensor");
        let half = tensor.bytes as usize / 2;
        bytes[tensor.offset as usize..][..2 * half].rotate_left(half);
    });
    spoilt.trips(&wrong("blk 0 attn_out", "the F32 kernel"));
}

#[test]
fn experts_of_the_next_token() {
    let spoilt = Spoilt::new(NAME, |gguf, bytes| {
        let tensor = gguf.tensor("blk.0.ffn_gate_tid2eid.weight").expect("the tensor");
        bytes[tensor.offset as usize..][..tensor.bytes as usize].rotate_left(8);
    });
    spoilt.trips("first differs at blk 0 ffn_moe_topk (prefill), suspect the choice of experts");
}

#[test]
fn networks_of_other_limits() {
    changed(NAME, "swiglu_clamp_exp", 0.8f32, 0.9f32).trips(&wrong("blk 0 ffn_swiglu_limited", "SwiGLU"));
    let root = |values: &mut [f32]| values.iter_mut().for_each(|v| *v *= *v);
    struct Squared<F>(F);
    impl<F: FnMut(&mut [f32]) + Send> Fault for Squared<F> {
        fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "ffn_moe_probs" {
                (self.0)(values);
            }
        }
    }
    trips(&sound(NAME), Squared(root), &wrong("blk 0 ffn_moe_probs", "softplus"));
}
