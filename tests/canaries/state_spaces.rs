//! Faults in what LFM2, Granite 4 hybrid, Nemotron-H, Falcon-H1 and Mamba 2 have: convolutions, scans, gates,
//! norms by groups, layers of one block, experts on a narrower input.

use wayinfer::model::{Node, NodeId};

use super::faults::{SUMS, Scaled, changed, left_out, sound, wrong, zeroed};
use super::{Fault, Spoilt, permute, trips};

const LFM2: &str = "lfm2/long";
const LFM2_MOE: &str = "lfm2moe/long";
const GRANITE: &str = "granitehybrid/long";
const NEMOTRON: &str = "nemotron_h/long";
const NEMOTRON_MOE: &str = "nemotron_h_moe/long";
const FALCON: &str = "falcon-h1/long";
const MAMBA: &str = "mamba2/long";
const ALL_MAMBA: [&str; 5] = [GRANITE, NEMOTRON, NEMOTRON_MOE, FALCON, MAMBA];

/// What is suspected of a scan, which ggml names together with its projection and convolution.
const SCAN: &str = "the selective scan";

/// A model whose F32 tensor has other values.
fn rewritten(name: &str, tensor: &str, change: impl FnOnce(&mut [f32])) -> Spoilt {
    Spoilt::new(name, |gguf, bytes| {
        let tensor = gguf.tensor(tensor).expect("the tensor");
        let bytes = &mut bytes[tensor.offset as usize..][..tensor.bytes as usize];
        let (chunks, _) = bytes.as_chunks_mut::<4>();
        let mut values: Vec<f32> = chunks.iter().map(|b| f32::from_le_bytes(*b)).collect();
        change(&mut values);
        chunks.iter_mut().zip(values).for_each(|(b, v)| *b = v.to_le_bytes());
    })
}

// ---- Mamba 2 ----------------------------------------------------------------------------------------------

#[test]
fn decay_left_out() {
    for name in ALL_MAMBA {
        zeroed(name, "blk.0.ssm_a").trips(&wrong("blk 0 mamba2_y_add_d", SCAN));
    }
}

#[test]
fn part_of_the_input_not_passed_on() {
    for name in ALL_MAMBA {
        zeroed(name, "blk.0.ssm_d").trips(&wrong("blk 0 mamba2_y_add_d", SCAN));
    }
}

#[test]
fn biases_left_out() {
    for name in ALL_MAMBA {
        for tensor in ["blk.0.ssm_dt.bias", "blk.0.ssm_conv1d.bias"] {
            zeroed(name, tensor).trips(&wrong("blk 0 mamba2_y_add_d", SCAN));
        }
    }
}

/// Every tap sees the token behind the one that it should.
#[test]
fn convolution_off_by_one() {
    let later = |taps: usize| {
        move |values: &mut [f32]| {
            values.chunks_exact_mut(taps).for_each(|channel| channel.rotate_left(1));
        }
    };
    for name in ALL_MAMBA {
        rewritten(name, "blk.0.ssm_conv1d.weight", later(4)).trips(&wrong("blk 0 mamba2_y_add_d", SCAN));
    }
    for name in [LFM2, LFM2_MOE] {
        let words = wrong("blk 0 model.layers.{}.conv.conv", "the convolution");
        rewritten(name, "blk.0.shortconv.conv.weight", later(3)).trips(&words);
    }
}

/// B and C of the other group: in the projection, where both have 16 rows of 32 inputs behind z and x of 64
/// rows each.
#[test]
fn groups_in_each_others_place() {
    for name in ALL_MAMBA {
        let fault = rewritten(name, "blk.0.ssm_in.weight", |values| {
            let (first, second) = values[128 * 32..160 * 32].split_at_mut(16 * 32);
            first.swap_with_slice(second);
        });
        fault.trips(&wrong("blk 0 mamba2_y_add_d", SCAN));
    }
}

#[test]
fn gate_left_out() {
    for (name, output) in mamba_outputs() {
        let fault = left_out("mamba2_y_add_d", 0, "mamba2_gated");
        trips(&sound(name), fault, &wrong(&format!("blk 0 {output}"), "the F32 kernel"));
    }
}

/// The gate's SiLU is taken of what it should weigh.
#[test]
fn gate_and_input_in_each_others_place() {
    #[derive(Default)]
    struct Exchanged {
        z: Vec<f32>,
        y: Vec<f32>,
    }
    impl Fault for Exchanged {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            match id.name {
                "mamba2_z" => self.z = values.to_vec(),
                "mamba2_y_add_d" => self.y = values.to_vec(),
                _ => {}
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "mamba2_gated" {
                for ((value, z), y) in values.iter_mut().zip(&self.z).zip(&self.y) {
                    *value = z * y / (1.0 + (-y).exp());
                }
            }
        }
    }
    for (name, output) in mamba_outputs() {
        trips(&sound(name), Exchanged::default(), &wrong(&format!("blk 0 {output}"), "the F32 kernel"));
    }
}

fn mamba_outputs() -> [(&'static str, &'static str); 5] {
    [
        (GRANITE, "mamba_out"),
        (NEMOTRON, "mamba_out"),
        (NEMOTRON_MOE, "mamba_out"),
        (FALCON, "ssm_out"),
        (MAMBA, "mamba_out"),
    ]
}

#[test]
fn norm_by_groups_left_out() {
    for (name, output) in mamba_outputs() {
        let fault = left_out("mamba2_gated", 0, "mamba2_normed");
        trips(&sound(name), fault, &wrong(&format!("blk 0 {output}"), "the F32 kernel"));
    }
}

/// The norm is of all rows together, as without groups.
#[test]
fn norm_of_all_groups_together() {
    #[derive(Default)]
    struct Together {
        gated: Vec<f32>,
    }
    impl Fault for Together {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "mamba2_gated" {
                self.gated = values.to_vec();
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name != "mamba2_normed" {
                return;
            }
            let (row, group) = (node.shape[1] * node.shape[2], node.shape[2]);
            let root =
                |values: &[f32]| (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
            for (values, gated) in values.chunks_exact_mut(row).zip(self.gated.chunks_exact(row)) {
                let all = root(gated);
                for (values, gated) in values.chunks_exact_mut(group).zip(gated.chunks_exact(group)) {
                    let by = root(gated) / all;
                    values.iter_mut().for_each(|value| *value *= by);
                }
            }
        }
    }
    for (name, output) in mamba_outputs() {
        trips(&sound(name), Together::default(), &wrong(&format!("blk 0 {output}"), "the F32 kernel"));
    }
}

/// The weights of one group's norm are the other's.
#[test]
fn norm_weights_of_the_other_group() {
    for (name, output) in mamba_outputs() {
        let fault = rewritten(name, "blk.0.ssm_norm.weight", |values| values.rotate_left(32));
        fault.trips(&wrong(&format!("blk 0 {output}"), "the F32 kernel"));
    }
}

/// Heads of a scan take x of their neighbours.
#[test]
fn heads_in_each_others_place() {
    struct Neighbours;
    impl Fault for Neighbours {
        fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "mamba2_y_add_d" {
                permute(values, node.shape[1] * node.shape[2], node.shape[2], &[1, 0, 3, 2]);
            }
        }
    }
    for name in ALL_MAMBA {
        trips(&sound(name), Neighbours, &wrong("blk 0 mamba2_y_add_d", SCAN));
    }
}

// ---- LFM2 -------------------------------------------------------------------------------------------------

#[test]
fn first_gate_left_out() {
    struct Ungated(Vec<f32>);
    impl Fault for Ungated {
        fn taken(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name.ends_with("conv.in_proj") {
                let n = node.shape[1] / 3;
                self.0 = values.chunks_exact(3 * n).flat_map(|row| row[2 * n..].to_vec()).collect();
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "conv_bx" {
                values.copy_from_slice(&self.0);
            }
        }
    }
    for name in [LFM2, LFM2_MOE] {
        let words = wrong("blk 0 model.layers.{}.conv.conv", "the convolution");
        trips(&sound(name), Ungated(Vec::new()), &words);
    }
}

#[test]
fn second_gate_left_out() {
    for name in [LFM2, LFM2_MOE] {
        let fault = left_out("model.layers.{}.conv.conv", 0, "conv_gated");
        let words = wrong("blk 0 model.layers.{}.conv.out_proj", "the F32 kernel");
        trips(&sound(name), fault, &words);
    }
}

#[test]
fn norms_of_heads_left_out() {
    for name in [LFM2, LFM2_MOE] {
        let fault = left_out("Qcur", 0, "model.layers.{}.self_attn.q_layernorm");
        trips(&sound(name), fault, &wrong("blk 1 model.layers.{}.self_attn.q_layernorm", "RMS norm"));
    }
}

#[test]
fn bias_of_the_choice_ignored() {
    zeroed(LFM2_MOE, "blk.1.exp_probs_b.bias").trips(&wrong("blk 1 ffn_moe_probs_biased", SUMS));
    zeroed(NEMOTRON_MOE, "blk.2.exp_probs_b.bias").trips(&wrong("blk 2 ffn_moe_probs_biased", SUMS));
}

// ---- Granite, Nemotron-H and Falcon-H1 --------------------------------------------------------------------

#[test]
fn factors_left_out() {
    const EMBD: &str = "first differs at embd (prefill), suspect the decoding of the embedding";
    changed(GRANITE, "embedding_scale", 12f32, 1f32).trips(EMBD);
    changed(GRANITE, "residual_scale", 0.22f32, 1f32).trips(&wrong("blk 0 ffn_inp", SUMS));
    changed(GRANITE, "attention.scale", 0.0625f32, 0.25f32).trips(&wrong("blk 1 kqv_out", "attention"));
    changed(GRANITE, "logit_scale", 8f32, 1f32).trips(&wrong("result_output", "the F32 kernel"));
}

#[test]
fn no_rotation_where_there_is_one() {
    changed(GRANITE, "rope.scaling.finetuned", true, false).trips(&wrong("blk 1 kqv_out", "attention"));
}

/// Keys are turned by 90 degrees at odd positions.
#[test]
fn a_rotation_where_there_is_none() {
    struct Turned;
    impl Fault for Turned {
        fn taken(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "Qcur" {
                let row = node.shape[1] * node.shape[2];
                for odd in values.chunks_exact_mut(row).skip(1).step_by(2) {
                    odd.chunks_exact_mut(2).for_each(|pair| (pair[0], pair[1]) = (-pair[1], pair[0]));
                }
            }
        }
    }
    for name in [NEMOTRON, NEMOTRON_MOE] {
        trips(&sound(name), Turned, &wrong("blk 1 kqv_out", "attention"));
    }
}

#[test]
fn relu_not_squared() {
    struct Plain;
    impl Fault for Plain {
        fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if ["ffn_sqr(relu)", "ffn_moe_relu_sqr"].contains(&id.name) {
                values.iter_mut().for_each(|v| *v = v.sqrt());
            }
        }
    }
    trips(&sound(NEMOTRON), Plain, &wrong("blk 2 ffn_sqr(relu)", SUMS));
    trips(&sound(NEMOTRON_MOE), Plain, &wrong("blk 2 ffn_sqr(relu)", SUMS));
}

#[test]
fn shared_network_left_out() {
    trips(&sound(NEMOTRON_MOE), left_out("ffn_latent_up", 0, "l_out"), &wrong("blk 2 l_out", SUMS));
}

/// The experts' output is scaled twice.
#[test]
fn latents_of_another_size() {
    let words = wrong("blk 2 l_out", SUMS);
    trips(&sound(NEMOTRON_MOE), Scaled("ffn_latent_up", 2.5), &words);
    let words = wrong("blk 2 ffn_moe_up", "the F32 kernel");
    trips(&sound(NEMOTRON_MOE), Scaled("ffn_latent_down", 2.5), &words);
}

#[test]
fn mamba_left_out_beside_attention() {
    trips(&sound(FALCON), left_out("attn_out", 0, "layer_out"), &wrong("blk 0 layer_out", SUMS));
}
