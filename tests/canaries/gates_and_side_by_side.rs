//! Faults in what OLMo 2 and OLMoE, Command R, Cohere 2, EXAONE 4 and K-EXAONE, Step 3.5, MiMo V2 and Arcee's
//! Trinity have: windows and who is rotated, norms of rows and behind blocks, blocks side by side, gates,
//! limits, sinks.

use wayinfer::model::{Node, NodeId};

use super::faults::{
    AfterExperts, Biased, Early, HEAD, LeftOut, OtherPairs, SUMS, Scaled, changed, filled, halves, left_out,
    sound, wrong, zeroed,
};
use super::{Fault, inverse, trips};

const OLMO2: &str = "olmo2/long";
const OLMOE: &str = "olmoe/long";
const COMMAND_R: &str = "command-r/long";
const COHERE2: &str = "cohere2/long";
const COHERE2_MOE: &str = "cohere2moe/long";
const EXAONE4: &str = "exaone4/long";
const EXAONE_MOE: &str = "exaone-moe/long";
const STEP35: &str = "step35/long";
const MIMO2: &str = "mimo2/long";
const AFMOE: &str = "afmoe/long";

/// Changes the rows of one node of a layer: as they were computed, or as they are taken.
struct InLayer {
    node: (&'static str, usize, usize),
    taken: bool,
    change: fn(usize, &mut [f32]),
}

impl InLayer {
    fn apply(&self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
        if (id.name, id.occurrence, id.layer) == (self.node.0, self.node.1, Some(self.node.2)) {
            let row = node.shape[1] * node.shape[2];
            values.chunks_exact_mut(row).enumerate().for_each(|(i, row)| (self.change)(i, row));
        }
    }
}

impl Fault for InLayer {
    fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
        if !self.taken {
            self.apply(id, node, values);
        }
    }

    fn taken(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
        if self.taken {
            self.apply(id, node, values);
        }
    }
}

/// A step left out the first time alone: rows that the reference does not have would grow from layer to layer.
struct Once {
    step: LeftOut,
    done: bool,
}

impl Fault for Once {
    fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
        if id.name == self.step.at && !self.done {
            self.done = true;
            self.step.computed(id, node, values);
        }
    }

    fn taken(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
        if !self.done {
            self.step.taken(id, node, values);
        }
    }
}

// ---- Windows and rotations --------------------------------------------------------------------------------

#[test]
fn a_window_of_one_position_more() {
    for (name, node) in [
        (OLMO2, "blk 0 kqv_out"),
        (COHERE2, "blk 0 kqv_out"),
        (COHERE2_MOE, "blk 1 kqv_out"),
        (EXAONE4, "blk 0 kqv_out"),
        (EXAONE_MOE, "blk 0 kqv_out"),
        (STEP35, "blk 1 attn_out"),
        (AFMOE, "blk 0 attn_out"),
    ] {
        changed(name, "attention.sliding_window", 16u32, 17u32).trips(&wrong(node, "attention"));
    }
    let words = &wrong("blk 1 kqv_out", "attention with sinks");
    changed(MIMO2, "attention.sliding_window", 16u32, 17u32).trips(words);
}

/// In OLMo 3, Step 3.5 and MiMo V2 both kinds of layers are rotated, each in its way.
#[test]
fn windows_on_the_wrong_layers() {
    let pattern = "attention.sliding_window_pattern";
    for (to, layer) in [(vec![false, true, true, false], 0), (vec![true; 4], 3)] {
        let words = &wrong(&format!("blk {layer} Qcur (2nd)"), "RoPE");
        changed(OLMO2, pattern, vec![true, true, true, false], to).trips(words);
    }
    let words = &wrong("blk 3 kqv_out", "attention");
    changed(COHERE2, pattern, vec![true, true, true, false], vec![true; 4]).trips(words);
    let (from, to) = (vec![false, true, true, false], vec![true, true, true, false]);
    changed(STEP35, pattern, from.clone(), to.clone()).trips(&wrong("blk 0 Qcur_pos", "RoPE"));
    changed(MIMO2, pattern, from, to).trips(&wrong("blk 0 Qcur", "RoPE"));
}

#[test]
fn base_of_the_other_layers() {
    let words = &wrong("blk 1 Qcur_pos", "RoPE");
    changed(STEP35, "rope.freq_base_swa", 20000f32, 5e6f32).trips(words);
}

/// Layers that see everything are not rotated.
#[test]
fn a_rotation_where_there_is_none() {
    /// By 90 degrees at odd positions.
    fn turn(position: usize, row: &mut [f32]) {
        if position % 2 == 1 {
            row.chunks_exact_mut(2).for_each(|pair| (pair[0], pair[1]) = (-pair[1], pair[0]));
        }
    }
    for (name, node, attended) in [
        (COHERE2, ("Qcur", 0, 3), "blk 3 kqv_out"),
        (EXAONE4, ("Qcur", 1, 3), "blk 3 kqv_out"),
        (EXAONE_MOE, ("Qcur", 1, 3), "blk 3 kqv_out"),
        (AFMOE, ("Qcur_normed", 0, 3), "blk 3 attn_out"),
    ] {
        let fault = InLayer { node, taken: true, change: turn };
        trips(&sound(name), fault, &wrong(attended, "attention"));
    }
}

#[test]
fn halves_for_pairs_and_pairs_for_halves() {
    let words = &wrong("blk 0 Qcur (2nd)", "RoPE");
    let pairs = |rotated| OtherPairs { before: ("Qcur", 0), after: ("Qcur", 1), order: halves(rotated) };
    trips(&sound(COHERE2), pairs(HEAD / 2), words);
    trips(&sound(COHERE2_MOE), pairs(HEAD), words);
    let neox =
        |after, rotated| OtherPairs { before: ("Qcur_normed", 0), after, order: inverse(&halves(rotated)) };
    trips(&sound(OLMO2), neox(("Qcur", 1), HEAD), words);
    trips(&sound(STEP35), neox(("Qcur_pos", 0), HEAD / 2), &wrong("blk 0 Qcur_pos", "RoPE"));
    trips(&sound(AFMOE), neox(("Qcur_rope", 0), HEAD), &wrong("blk 0 Qcur_rope", "RoPE"));
}

#[test]
fn factors_of_frequencies_left_out() {
    filled(EXAONE4, "rope_freqs.weight", 1.0).trips(&wrong("blk 0 Qcur (2nd)", "RoPE"));
    filled(STEP35, "rope_freqs.weight", 1.0).trips(&wrong("blk 0 Qcur_pos", "RoPE"));
}

// ---- Norms ------------------------------------------------------------------------------------------------

#[test]
fn norm_of_queries_left_out() {
    let words = &wrong("blk 0 Qcur_normed", "RMS norm");
    for name in [OLMO2, OLMOE, EXAONE4, EXAONE_MOE, STEP35, AFMOE] {
        trips(&sound(name), left_out("Qcur", 0, "Qcur_normed"), words);
    }
}

#[test]
fn norm_of_each_head_for_that_of_the_row() {
    for name in [OLMO2, OLMOE] {
        trips(&sound(name), Early, &wrong("blk 0 Qcur_normed", "RMS norm"));
    }
}

#[test]
fn norm_behind_a_block_left_out() {
    let once = |from, at| Once { step: left_out(from, 0, at), done: false };
    let words = &wrong("blk 0 attn_post_norm", "RMS norm");
    for (name, output) in [(OLMO2, "attn_out"), (EXAONE4, "attn_out"), (AFMOE, "attn_o_proj")] {
        trips(&sound(name), once(output, "attn_post_norm"), words);
    }
    let unnumbered = [(OLMO2, "ffn_post_norm"), (EXAONE4, "ffn_post_norm")];
    for (name, node) in unnumbered.into_iter().chain([(AFMOE, "blk 0 ffn_post_norm")]) {
        trips(&sound(name), once("ffn_out", "ffn_post_norm"), &wrong(node, "RMS norm"));
    }
}

/// The mean is left in.
#[test]
fn rms_norm_for_layer_norm() {
    #[derive(Default)]
    struct Uncentred(Vec<f32>);
    impl Fault for Uncentred {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "embd" {
                self.0 = values.to_vec();
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "attn_norm" && id.layer == Some(0) {
                let row = node.shape[1];
                for (row, x) in values.chunks_exact_mut(row).zip(self.0.chunks_exact(row)) {
                    let mean = x.iter().sum::<f32>() / row.len() as f32;
                    row.iter_mut().zip(x).for_each(|(v, x)| *v *= x / (x - mean));
                }
            }
        }
    }
    for name in [COMMAND_R, COHERE2, COHERE2_MOE] {
        trips(&sound(name), Uncentred::default(), &wrong("blk 0 attn_norm", "layer norm"));
    }
}

// ---- Blocks side by side, factors ----------------------------------------------------------------------

#[test]
fn attention_left_out_of_the_sum() {
    #[derive(Default)]
    struct Alone(Vec<f32>);
    impl Fault for Alone {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "attn_out" {
                self.0 = values.to_vec();
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "l_out" {
                values.iter_mut().zip(&self.0).for_each(|(v, a)| *v -= a);
            }
        }
    }
    for name in [COMMAND_R, COHERE2, COHERE2_MOE] {
        trips(&sound(name), Alone::default(), &wrong("blk 0 l_out", SUMS));
    }
}

#[test]
fn factors_left_out() {
    for (name, scale) in [(COMMAND_R, 0.0625f32), (COHERE2, 0.25), (COHERE2_MOE, 0.25)] {
        changed(name, "logit_scale", scale, 1f32).trips(&wrong("result_output", "the F32 kernel"));
    }
    let words = "first differs at inp_embd_scaled (prefill), suspect the decoding of the embedding";
    trips(&sound(AFMOE), Scaled("inp_embd_scaled", 48f32.sqrt().recip()), words);
    changed(MIMO2, "attention.value_scale", 0.707f32, 1f32).trips(&wrong("blk 0 ffn_inp", SUMS));
    changed(MIMO2, "attention.value_scale", 0.707f32, 0.7f32).trips(&wrong("blk 0 attn_out_scaled", SUMS));
}

// ---- Gates, sinks and limits ---------------------------------------------------------------------------

#[test]
fn gate_left_out() {
    trips(&sound(STEP35), left_out("attn_out", 0, "attn_gated_3d"), &wrong("blk 0 attn_gated_3d", SUMS));
    trips(&sound(AFMOE), left_out("attn_out", 0, "attn_gated"), &wrong("blk 0 attn_gated", SUMS));
}

#[test]
fn gate_without_its_sigmoid() {
    let words = &wrong("blk 0 attn_gate_sigmoid", "sigmoid");
    trips(&sound(STEP35), left_out("attn_gate", 0, "attn_gate_sigmoid"), words);
    let words = &wrong("blk 0 attn_gate_sig", "sigmoid");
    trips(&sound(AFMOE), left_out("attn_gate_proj", 0, "attn_gate_sig"), words);
}

#[test]
fn sinks_dropped() {
    filled(MIMO2, "blk.1.attn_sinks.weight", -1e9).trips(&wrong("blk 1 kqv_out", "attention with sinks"));
}

#[test]
fn limits_of_values_left_out() {
    let words = &wrong("blk 2 ffn_moe_down", "the F32 kernel");
    changed(STEP35, "swiglu_clamp_exp", vec![0f32, 0.0, 0.5, 0.5], vec![0f32; 4]).trips(words);
    let words = &wrong("blk 2 ffn_moe_swiglu_limited", "SwiGLU");
    changed(STEP35, "swiglu_clamp_exp", vec![0f32, 0.0, 0.5, 0.5], vec![0f32, 0.0, 0.6, 0.5]).trips(words);
    let words = &wrong("blk 3 ffn_swiglu_limited", "SwiGLU");
    changed(STEP35, "swiglu_clamp_shexp", vec![0f32, 0.0, 0.0, 0.7], vec![0f32, 0.0, 0.0, 0.6]).trips(words);
}

// ---- Experts -------------------------------------------------------------------------------------------

/// Those with a bias of the choice: all from the second layer on.
const BIASED: [&str; 4] = [EXAONE_MOE, STEP35, MIMO2, AFMOE];

#[test]
fn bias_of_the_choice_ignored() {
    for name in BIASED {
        zeroed(name, "blk.1.exp_probs_b.bias").trips(&wrong("blk 1 ffn_moe_probs_biased", SUMS));
    }
}

#[test]
fn bias_of_the_choice_in_the_weights() {
    for name in BIASED {
        trips(&sound(name), Biased::default(), &wrong("blk 1 ffn_moe_weights", SUMS));
    }
}

#[test]
fn weights_of_experts_not_normalised() {
    for (name, node) in [
        (COHERE2_MOE, "blk 1 ffn_moe_weighted"),
        (EXAONE_MOE, "blk 1 ffn_moe_weights_scaled"),
        (STEP35, "blk 1 ffn_moe_weights_scaled"),
        (AFMOE, "blk 1 ffn_moe_weights_scaled"),
    ] {
        changed(name, "expert_weights_norm", true, false).trips(&wrong(node, SUMS));
    }
    let fault = left_out("ffn_moe_weights", 0, "ffn_moe_weights_norm");
    trips(&sound(MIMO2), fault, &wrong("blk 1 ffn_moe_weights_norm", SUMS));
}

#[test]
fn weights_of_experts_normalised() {
    fn normalise(_: usize, row: &mut [f32]) {
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|weight| *weight /= sum);
    }
    let fault = InLayer { node: ("ffn_moe_weights", 0, 0), taken: false, change: normalise };
    trips(&sound(OLMOE), fault, &wrong("blk 0 ffn_moe_weights", SUMS));
}

#[test]
fn weights_of_experts_not_scaled() {
    for (name, scale) in [(EXAONE_MOE, 2.5f32), (STEP35, 3.0), (AFMOE, 2.826)] {
        let words = &wrong("blk 1 ffn_moe_weighted", SUMS);
        changed(name, "expert_weights_scale", scale, 1f32).trips(words);
    }
}

#[test]
fn softmax_for_sigmoid() {
    for name in [COHERE2_MOE, EXAONE_MOE, STEP35, AFMOE] {
        changed(name, "expert_gating_func", 2u32, 1u32).trips(&wrong("blk 1 ffn_moe_probs", "softmax"));
    }
}

#[test]
fn shared_network_left_out() {
    for name in [COHERE2_MOE, EXAONE_MOE, STEP35, AFMOE] {
        let fault = AfterExperts(left_out("ffn_moe_out", 0, "ffn_out"));
        trips(&sound(name), fault, &wrong("blk 1 ffn_out", SUMS));
    }
}

#[test]
fn sum_with_the_shared_network_not_halved() {
    fn double(_: usize, row: &mut [f32]) {
        row.iter_mut().for_each(|v| *v *= 2.0);
    }
    let fault = InLayer { node: ("ffn_out", 0, 1), taken: false, change: double };
    trips(&sound(COHERE2_MOE), fault, &wrong("blk 1 ffn_out", SUMS));
}
