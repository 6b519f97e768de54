//! Faults in what Mistral 3, Phi 3, GLM 4, MiniMax M2, Llama 4, Qwen 3 VL, StarCoder 2, Nemotron and Gemma have:
//! temperatures, chunks, norms behind the rotation, weights on the experts' input, networks without a gate.

use wayinfer::model::{Node, NodeId};

use super::faults::{
    AfterExperts, Biased, Early, HEAD, OtherPairs, SUMS, Scaled, Turned, changed, halves, left_out, sound,
    wrong, zeroed,
};
use super::{Fault, inverse, trips};

const MISTRAL3: &str = "mistral3/long";
const PHI3: &str = "phi3/long";
const PHIMOE: &str = "phimoe/long";
const GLM4: &str = "glm4/long";
const GLM4_MOE: &str = "glm4moe/long";
const MINIMAX: &str = "minimax-m2/long";
const LLAMA4: &str = "llama4/long";
const QWEN3_VL: &str = "qwen3vl/long";
const STARCODER2: &str = "starcoder2/long";

/// Multiplies one of several nodes of a name.
struct ScaledOnce(&'static str, usize, f32);

impl Fault for ScaledOnce {
    fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if (id.name, id.occurrence) == (self.0, self.1) {
            values.iter_mut().for_each(|v| *v *= self.2);
        }
    }
}

// ---- Queries and keys -------------------------------------------------------------------------------------

#[test]
fn temperature_left_out() {
    changed(MISTRAL3, "attention.temperature_scale", 0.1f32, 0f32)
        .trips(&wrong("blk 0 kqv_out", "attention"));
}

#[test]
fn temperature_of_another_scale() {
    let words = &wrong("blk 0 Qcur_attn_temp_scaled", SUMS);
    changed(MISTRAL3, "attention.temperature_scale", 0.1f32, 0.11f32).trips(words);
}

#[test]
fn gain_of_yarn_left_out() {
    let words = &wrong("blk 0 Qcur (2nd)", "RoPE");
    changed(MISTRAL3, "rope.scaling.yarn_log_multiplier", 1f32, 0f32).trips(words);
}

#[test]
fn ramp_of_yarn_of_other_betas() {
    let words = &wrong("blk 0 Qcur (2nd)", "RoPE");
    changed(MISTRAL3, "rope.scaling.yarn_beta_slow", 1f32, 0.1f32).trips(words);
}

#[test]
fn short_factors_for_long_ones() {
    let words = &wrong("blk 0 Qcur", "RoPE");
    changed(PHI3, "rope.scaling.original_context_length", 32u32, 4096u32).trips(words);
    changed(PHI3, "rope.scaling.attn_factor", 1.19f32, 1f32).trips(words);
}

#[test]
fn scale_of_queries_left_out() {
    let root = (HEAD as f32).sqrt();
    trips(&sound(PHI3), ScaledOnce("Qcur", 1, root), &wrong("blk 0 Qcur (2nd)", SUMS));
    trips(&sound("gemma/long"), Scaled("Qcur_scaled", root), &wrong("blk 0 Qcur_scaled", SUMS));
}

#[test]
fn halves_for_pairs_and_pairs_for_halves() {
    let normal = || OtherPairs { before: ("Qcur", 0), after: ("Qcur", 1), order: halves(HEAD) };
    let words = &wrong("blk 0 Qcur (2nd)", "RoPE");
    for name in [MISTRAL3, LLAMA4, "internlm2/long", "arcee/long"] {
        trips(&sound(name), normal(), words);
    }
    // Biases come between, and half of each head is rotated.
    let glm4 = OtherPairs { before: ("Qcur", 1), after: ("Qcur", 2), order: halves(HEAD / 2) };
    trips(&sound(GLM4), glm4, &wrong("blk 0 Qcur (3rd)", "RoPE"));
    let neox = |before, after, rotated| OtherPairs { before, after, order: inverse(&halves(rotated)) };
    let minimax = neox(("Qcur_normed", 0), ("Qcur", 1), HEAD / 2);
    trips(&sound(MINIMAX), minimax, words);
    let starcoder2 = neox(("Qcur", 1), ("Qcur", 2), HEAD);
    trips(&sound(STARCODER2), starcoder2, &wrong("blk 0 Qcur (3rd)", "RoPE"));
}

#[test]
fn rotation_of_the_whole_head() {
    let words = &wrong("blk 0 Qcur (2nd)", "RoPE");
    changed(MINIMAX, "rope.dimension_count", 8u32, 16u32).trips(words);
}

/// One pair of eight belongs to the fourth position, which a text does not have.
#[test]
fn sections_of_positions_ignored() {
    let words = &wrong("blk 0 Qcur (2nd)", "RoPE");
    changed(QWEN3_VL, "rope.dimension_sections", vec![4i32, 2, 2, 0], vec![8i32, 8, 8, 0]).trips(words);
}

#[test]
fn a_rotation_where_there_is_none() {
    trips(&sound(LLAMA4), Turned, &wrong("blk 3 Qcur (2nd)", SUMS));
}

// ---- Norms ------------------------------------------------------------------------------------------------

#[test]
fn norm_of_queries_left_out() {
    let words = &wrong("blk 0 Qcur_normed", "RMS norm");
    trips(&sound(QWEN3_VL), left_out("Qcur", 0, "Qcur_normed"), words);
    trips(&sound(GLM4_MOE), left_out("Qcur", 1, "Qcur_normed"), words);
    trips(&sound(MINIMAX), left_out("Qcur", 0, "Qcur_normed"), words);
    trips(&sound(LLAMA4), left_out("Qcur", 1, "Qcur_normed"), words);
}

#[test]
fn norm_of_queries_before_the_rotation() {
    trips(&sound(LLAMA4), Early, &wrong("blk 0 Qcur (2nd)", "RoPE"));
}

#[test]
fn norm_of_each_head_for_that_of_all() {
    trips(&sound(MINIMAX), Early, &wrong("blk 0 Qcur_normed", "RMS norm"));
}

#[test]
fn norm_behind_a_block_left_out() {
    let words = &wrong("blk 0 post_attn_norm", "RMS norm");
    trips(&sound(GLM4), left_out("attn_out", 0, "post_attn_norm"), words);
    let words = &wrong("blk 0 post_mlp_norm", "RMS norm");
    trips(&sound(GLM4), left_out("ffn_out", 0, "post_mlp_norm"), words);
}

#[test]
fn norm_before_the_experts_left_out() {
    let words = &wrong("blk 0 post_attn_norm", "RMS norm");
    trips(&sound(GLM4_MOE), left_out("ffn_inp", 0, "post_attn_norm"), words);
}

#[test]
fn biases_of_norms_left_out() {
    zeroed(PHIMOE, "blk.0.attn_norm.bias").trips(&wrong("blk 0 attn_norm", "RMS norm"));
    zeroed(STARCODER2, "blk.0.attn_norm.bias").trips(&wrong("blk 0 attn_norm", "layer norm"));
    zeroed("nemotron/long", "output_norm.bias").trips(&wrong("result_norm", "layer norm"));
}

/// The mean is left in.
#[test]
fn rms_norm_for_layer_norm() {
    struct Shifted;
    impl Fault for Shifted {
        fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "attn_norm" {
                values.iter_mut().for_each(|v| *v += 1e-3);
            }
        }
    }
    trips(&sound(STARCODER2), Shifted, &wrong("blk 0 attn_norm", "layer norm"));
}

// ---- Experts ----------------------------------------------------------------------------------------------

#[test]
fn bias_of_the_choice_ignored() {
    for (name, layer) in [(GLM4_MOE, 1), (MINIMAX, 0)] {
        let words = &wrong(&format!("blk {layer} ffn_moe_probs_biased"), SUMS);
        zeroed(name, &format!("blk.{layer}.exp_probs_b.bias")).trips(words);
    }
}

#[test]
fn bias_of_the_choice_in_the_weights() {
    for (name, layer) in [(GLM4_MOE, 1), (MINIMAX, 0)] {
        let words = &wrong(&format!("blk {layer} ffn_moe_weights"), SUMS);
        trips(&sound(name), Biased::default(), words);
    }
}

#[test]
fn weights_of_experts_not_normalised() {
    let words = &wrong("blk 1 ffn_moe_weights_scaled", SUMS);
    changed(GLM4_MOE, "expert_weights_norm", true, false).trips(words);
    for name in [PHIMOE, MINIMAX] {
        let fault = left_out("ffn_moe_weights", 0, "ffn_moe_weights_norm");
        trips(&sound(name), fault, &wrong("blk 0 ffn_moe_weights_norm", SUMS));
    }
}

#[test]
fn weights_of_experts_not_scaled() {
    let words = &wrong("blk 1 ffn_moe_weighted", SUMS);
    changed(GLM4_MOE, "expert_weights_scale", 1.5f32, 1f32).trips(words);
}

#[test]
fn softmax_for_sigmoid() {
    for (name, layer) in [(GLM4_MOE, 1), (MINIMAX, 0)] {
        let words = &wrong(&format!("blk {layer} ffn_moe_probs"), "softmax");
        changed(name, "expert_gating_func", 2u32, 1u32).trips(words);
    }
}

#[test]
fn logits_for_their_sigmoid() {
    let words = &wrong("blk 1 ffn_moe_probs", "sigmoid");
    trips(&sound(LLAMA4), left_out("ffn_moe_logits", 0, "ffn_moe_probs"), words);
}

#[test]
fn input_of_experts_not_weighted() {
    let words = &wrong("blk 1 ffn_moe_weighted", SUMS);
    trips(&sound(LLAMA4), left_out("ffn_inp_normed", 0, "ffn_moe_weighted"), words);
}

#[test]
fn shared_network_left_out() {
    let fault = || AfterExperts(left_out("ffn_moe_out", 0, "ffn_out"));
    trips(&sound(GLM4_MOE), fault(), &wrong("blk 1 ffn_out", SUMS));
    let fault = left_out("ffn_moe_out", 0, "ffn_moe_out_merged");
    trips(&sound(LLAMA4), fault, &wrong("blk 1 ffn_moe_out_merged", SUMS));
}

// ---- Networks, embedding, output --------------------------------------------------------------------------

#[test]
fn silu_for_gelu() {
    #[derive(Default)]
    struct Silu(Vec<f32>);
    impl Fault for Silu {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "ffn_up_b" {
                self.0 = values.to_vec();
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "ffn_gelu" {
                values.iter_mut().zip(&self.0).for_each(|(v, x)| *v = x / (1.0 + (-x).exp()));
            }
        }
    }
    trips(&sound(STARCODER2), Silu::default(), &wrong("blk 0 ffn_gelu", "GELU"));
}

#[test]
fn biases_of_a_network_left_out() {
    zeroed(STARCODER2, "blk.0.ffn_up.bias").trips(&wrong("blk 0 ffn_up_b", SUMS));
    zeroed(STARCODER2, "blk.0.ffn_down.bias").trips(&wrong("blk 0 ffn_out", SUMS));
}

#[test]
fn relu_without_its_square() {
    struct Plain;
    impl Fault for Plain {
        fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "ffn_sqr(relu)" {
                values.iter_mut().for_each(|v| *v = v.sqrt());
            }
        }
    }
    for name in ["nemotron/long", "arcee/long"] {
        trips(&sound(name), Plain, &wrong("blk 0 ffn_sqr(relu)", SUMS));
    }
}

#[test]
fn bias_of_the_output_left_out() {
    zeroed(PHIMOE, "output.bias").trips(&wrong("result_output", SUMS));
}

#[test]
fn embedding_not_scaled() {
    let words = "first differs at inp_scaled (prefill), suspect the decoding of the embedding";
    trips(&sound("gemma/long"), Scaled("inp_scaled", 48f32.sqrt().recip()), words);
}
