//! Faults in what dots1, Ling 2, ERNIE 4.5, Hunyuan, Seed-OSS, SmolLM3, Granite and MiniCPM have: routers,
//! groups of experts, shared networks, norms of heads, layers without a rotation, factors.

use wayinfer::model::{Node, NodeId};

use super::faults::{
    AfterExperts, Biased, Early, HEAD, OtherPairs, SUMS, Scaled, Turned, changed, halves, left_out, sound,
    wrong, zeroed,
};
use super::{Fault, inverse, trips};

const DOTS1: &str = "dots1/long";
const LING: &str = "bailingmoe2/long";
const ERNIE_MOE: &str = "ernie4_5-moe/long";
const HUNYUAN: &str = "hunyuan-dense/long";
const HUNYUAN_MOE: &str = "hunyuan-moe/long";
const HY_V3: &str = "hy_v3/long";
const SMOLLM3: &str = "smollm3/long";
const GRANITE: &str = "granite/long";
const GRANITE_MOE: &str = "granitemoe/long";
const MINICPM: &str = "minicpm/long";

// ---- Norms of heads ---------------------------------------------------------------------------------------

#[test]
fn norm_of_queries_left_out() {
    let words = &wrong("blk 0 Qcur_normed", "RMS norm");
    trips(&sound(DOTS1), left_out("Qcur", 1, "Qcur_normed"), words);
    let words = &wrong("blk 0 Qcur_norm", "RMS norm");
    trips(&sound(HUNYUAN), left_out("Qcur", 1, "Qcur_norm"), words);
}

/// The norm that belongs behind the rotation comes before it.
#[test]
fn norm_of_queries_before_the_rotation() {
    let words = &wrong("blk 0 Qcur (2nd)", "RoPE");
    trips(&sound(HUNYUAN), Early, words);
    trips(&sound(HUNYUAN_MOE), Early, words);
}

// ---- Rotations --------------------------------------------------------------------------------------------

#[test]
fn halves_for_pairs_and_pairs_for_halves() {
    let normal = || OtherPairs { before: ("Qcur", 0), after: ("Qcur", 1), order: halves(HEAD) };
    let neox = || OtherPairs { order: inverse(&halves(HEAD)), ..normal() };
    let words = &wrong("blk 0 Qcur (2nd)", "RoPE");
    for name in ["ernie4_5/long", ERNIE_MOE, SMOLLM3, GRANITE, GRANITE_MOE, MINICPM] {
        trips(&sound(name), normal(), words);
    }
    for name in [HUNYUAN, HUNYUAN_MOE] {
        trips(&sound(name), neox(), words);
    }
    // Half of each head is rotated, and it is normed before.
    let partial =
        OtherPairs { before: ("Qcur_normed", 0), after: ("Qcur", 0), order: inverse(&halves(HEAD / 2)) };
    trips(&sound(LING), partial, &wrong("blk 0 Qcur", "RoPE"));
}

#[test]
fn base_not_stretched() {
    let words = &wrong("blk 0 Qcur (2nd)", "RoPE");
    changed(HUNYUAN, "rope.scaling.alpha", 1000f32, 0f32).trips(words);
    changed(HUNYUAN, "rope.scaling.alpha", 1000f32, 999f32).trips(words);
}

/// The fourth layer is rotated as well, if only by 90 degrees at odd positions.
#[test]
fn a_rotation_where_there_is_none() {
    let words = &wrong("blk 3 kqv_out", "attention");
    trips(&sound(SMOLLM3), Turned, words);
}

#[test]
fn no_rotation_where_there_is_one() {
    let words = &wrong("blk 0 kqv_out", "attention");
    changed(GRANITE, "rope.scaling.finetuned", true, false).trips(words);
}

// ---- Routers ----------------------------------------------------------------------------------------------

#[test]
fn bias_of_the_choice_ignored() {
    let words = &wrong("blk 1 ffn_moe_probs_biased", SUMS);
    for name in [DOTS1, LING, ERNIE_MOE] {
        zeroed(name, "blk.1.exp_probs_b.bias").trips(words);
    }
    zeroed(HY_V3, "blk.1.exp_probs_b").trips(words);
}

#[test]
fn bias_of_the_choice_in_the_weights() {
    for name in [DOTS1, LING, ERNIE_MOE, HY_V3] {
        let words = &wrong("blk 1 ffn_moe_weights", SUMS);
        trips(&sound(name), Biased::default(), words);
    }
}

#[test]
fn weights_of_experts_not_normalised() {
    let words = &wrong("blk 1 ffn_moe_weights_scaled", SUMS);
    for name in [DOTS1, LING, HY_V3] {
        changed(name, "expert_weights_norm", true, false).trips(words);
    }
    let fault = || left_out("ffn_moe_weights", 0, "ffn_moe_weights_norm");
    for (name, layer) in [(ERNIE_MOE, 1), (HUNYUAN_MOE, 0), (GRANITE_MOE, 0)] {
        let words = wrong(&format!("blk {layer} ffn_moe_weights_norm"), SUMS);
        trips(&sound(name), fault(), &words);
    }
}

#[test]
fn weights_of_experts_not_scaled() {
    let words = &wrong("blk 1 ffn_moe_weighted", SUMS);
    for name in [DOTS1, LING, HY_V3] {
        changed(name, "expert_weights_scale", 2.5f32, 1f32).trips(words);
    }
}

#[test]
fn softmax_for_sigmoid() {
    let words = &wrong("blk 1 ffn_moe_probs", "softmax");
    for name in [DOTS1, LING, HY_V3] {
        changed(name, "expert_gating_func", 2u32, 1u32).trips(words);
    }
}

#[test]
fn an_expert_of_a_group_that_is_not_used() {
    let words = &wrong("blk 1 ffn_moe_topk", "the choice of experts");
    changed(LING, "expert_group_used_count", 2u32, 3u32).trips(words);
}

#[test]
fn shared_network_left_out() {
    for (name, layer) in
        [(DOTS1, 1), (LING, 1), (ERNIE_MOE, 1), (HUNYUAN_MOE, 0), (HY_V3, 1), (GRANITE_MOE, 0)]
    {
        let words = wrong(&format!("blk {layer} ffn_out"), SUMS);
        // Dense layers have a node of this name as well.
        let fault = AfterExperts(left_out("ffn_moe_out", 0, "ffn_out"));
        trips(&sound(name), fault, &words);
    }
}

// ---- Norms and factors ------------------------------------------------------------------------------------

#[test]
fn norm_before_the_network_left_out() {
    let words = &wrong("blk 0 attn_post_norm", "RMS norm");
    trips(&sound("seed_oss/long"), left_out("ffn_inp", 0, "attn_post_norm"), words);
}

#[test]
fn factors_left_out() {
    const EMBD: &str = "first differs at embd (prefill), suspect the decoding of the embedding";
    for name in [GRANITE, GRANITE_MOE] {
        changed(name, "embedding_scale", 12f32, 1f32).trips(EMBD);
        changed(name, "residual_scale", 0.22f32, 1f32).trips(&wrong("blk 0 ffn_inp", SUMS));
        changed(name, "attention.scale", 0.0625f32, 0.25f32).trips(&wrong("blk 0 kqv_out", "attention"));
        changed(name, "logit_scale", 8f32, 1f32).trips(&wrong("result_output", "the F32 kernel"));
    }
}

/// MiniCPM's are there where the file names none.
#[test]
fn factors_that_the_file_does_not_name_left_out() {
    let words = "first differs at embd (prefill), suspect the decoding of the embedding";
    trips(&sound(MINICPM), Scaled("embd", 1.0 / 12.0), words);
    let words = &wrong("result_output", "the F32 kernel");
    trips(&sound(MINICPM), Scaled("result_output", 256.0 / 48.0), words);

    /// Adds the whole of attention's output.
    #[derive(Default)]
    struct Whole {
        stream: Vec<f32>,
        added: Vec<f32>,
    }
    impl Fault for Whole {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            match id.name {
                "embd" => self.stream = values.to_vec(),
                "attn_out" => self.added = values.to_vec(),
                _ => {}
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "ffn_inp" && id.layer == Some(0) {
                for ((value, a), b) in values.iter_mut().zip(&self.stream).zip(&self.added) {
                    *value = a + b;
                }
            }
        }
    }
    let words = &wrong("blk 0 ffn_inp", SUMS);
    trips(&sound(MINICPM), Whole::default(), words);
}
