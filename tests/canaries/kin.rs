//! Faults in Qwen 1, GLM-4-9B, EXAONE 3.5, Jais 2, DeepSeekMoE, the first Ling and Mellum 2.

use super::faults::{AfterExperts, HEAD, OtherPairs, SUMS, changed, filled, halves, left_out, sound, wrong};
use super::{inverse, trips};

const QWEN: &str = "qwen/long";
const CHATGLM: &str = "chatglm/long";
const EXAONE: &str = "exaone/long";
const JAIS2: &str = "jais2/long";
const DEEPSEEK: &str = "deepseek/long";
const BAILING: &str = "bailingmoe/long";
const MELLUM: &str = "mellum/long";

#[test]
fn a_window_of_one_position_more() {
    let spoilt = changed(MELLUM, "attention.sliding_window", 16u32, 17u32);
    spoilt.trips(&wrong("blk 0 kqv_out", "attention"));
}

/// Layers with a window are not stretched.
#[test]
fn windows_on_the_wrong_layers() {
    let spoilt = changed(MELLUM, "attention.sliding_window_pattern", 2u32, 1u32);
    spoilt.trips(&wrong("blk 0 Qcur (2nd)", "RoPE"));
}

#[test]
fn norm_of_queries_left_out() {
    let fault = left_out("Qcur", 0, "Qcur_normed");
    trips(&sound(MELLUM), fault, &wrong("blk 0 Qcur_normed", "RMS norm"));
}

#[test]
fn halves_for_pairs_and_pairs_for_halves() {
    let words = &wrong("blk 0 Qcur (2nd)", "RoPE");
    let pairs = |rotated| OtherPairs { before: ("Qcur", 0), after: ("Qcur", 1), order: halves(rotated) };
    trips(&sound(DEEPSEEK), pairs(HEAD), words);
    trips(&sound(BAILING), pairs(HEAD), words);
    let order = inverse(&halves(HEAD));
    let neox = |before, after| OtherPairs { before, after, order: order.clone() };
    trips(&sound(EXAONE), neox(("Qcur", 0), ("Qcur", 1)), words);
    // Here the sums with the biases have the name once more.
    let fault = neox(("Qcur", 1), ("Qcur_rope", 0));
    trips(&sound(JAIS2), fault, &wrong("blk 0 Qcur_rope", "RoPE"));
}

#[test]
fn whole_heads_rotated() {
    changed(CHATGLM, "rope.dimension_count", 8u32, 16u32).trips(&wrong("blk 0 Qcur", "RoPE"));
}

#[test]
fn base_of_frequencies_off() {
    changed(QWEN, "rope.freq_base", 10000f32, 10100f32).trips(&wrong("blk 0 Qcur", "RoPE"));
}

#[test]
fn factors_of_frequencies_left_out() {
    filled(EXAONE, "rope_freqs.weight", 1.0).trips(&wrong("blk 0 Qcur (2nd)", "RoPE"));
}

#[test]
fn biases_of_queries_left_out() {
    filled(QWEN, "blk.0.attn_qkv.bias", 0.0).trips(&wrong("blk 0 wqkv_b", SUMS));
    filled(CHATGLM, "blk.0.attn_qkv.bias", 0.0).trips(&wrong("blk 0 wqkv_b", SUMS));
    filled(JAIS2, "blk.0.ffn_up.bias", 0.0).trips(&wrong("blk 0 ffn_up_b", SUMS));
}

#[test]
fn weights_of_experts_not_scaled() {
    let spoilt = changed(DEEPSEEK, "expert_weights_scale", 2.5f32, 1f32);
    spoilt.trips(&wrong("blk 1 ffn_moe_weighted", SUMS));
}

#[test]
fn weights_of_experts_not_normalised() {
    let spoilt = changed(BAILING, "expert_weights_norm", true, false);
    spoilt.trips(&wrong("blk 0 ffn_moe_weighted", SUMS));
    let fault = left_out("ffn_moe_weights", 0, "ffn_moe_weights_norm");
    trips(&sound(MELLUM), fault, &wrong("blk 0 ffn_moe_weights_norm", SUMS));
}

#[test]
fn shared_network_left_out() {
    for (name, node) in [(DEEPSEEK, "blk 1 ffn_out"), (BAILING, "blk 0 ffn_out")] {
        let fault = AfterExperts(left_out("ffn_moe_out", 0, "ffn_out"));
        trips(&sound(name), fault, &wrong(node, SUMS));
    }
}
