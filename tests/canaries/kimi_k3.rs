//! Faults in Kimi K3: streams of earlier layers, bounded decays, SiTU, gates, experts on a narrower input.

use wayinfer::model::{Node, NodeId};

use super::faults::{SUMS, Scaled, changed, left_out, sound, wrong, zeroed};
use super::{Fault, trips};

const K3: &str = "kimi-k3/long";

/// The first layer's stream has no part in what the second one attends to.
#[test]
fn shares_of_earlier_streams_left_out() {
    struct Alone;
    impl Fault for Alone {
        fn taken(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "res_probs" {
                for row in values.chunks_exact_mut(node.shape[1]) {
                    row.fill(0.0);
                    row[node.shape[1] - 1] = 1.0;
                }
            }
        }
    }
    trips(&sound(K3), Alone, &wrong("blk 0 ffn_norm", "RMS norm"));
}

#[test]
fn shares_in_each_others_place() {
    struct Exchanged;
    impl Fault for Exchanged {
        fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "res_probs" {
                values.chunks_exact_mut(node.shape[1]).for_each(|row| row.reverse());
            }
        }
    }
    trips(&sound(K3), Exchanged, &wrong("blk 0 res_probs", "softmax"));
}

/// The scores of each place are those of another.
#[test]
fn scores_left_out() {
    let words = |node| wrong(node, "softmax");
    zeroed(K3, "blk.0.ffn_res_score.weight").trips(&words("blk 0 res_probs"));
    zeroed(K3, "blk.1.attn_res_score.weight").trips(&words("blk 1 res_probs"));
    zeroed(K3, "output_res_score.weight").trips(&words("res_probs"));
}

/// Outputs are added to the stream that was put aside.
#[test]
fn stream_not_begun_anew() {
    struct Kept(Vec<f32>);
    impl Fault for Kept {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "inp_embd" {
                self.0 = values.to_vec();
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "prefix_sum_attn" && id.layer == Some(0) && self.0.len() == values.len() {
                values.iter_mut().zip(&self.0).for_each(|(v, old)| *v += old);
            }
        }
    }
    trips(&sound(K3), Kept(Vec::new()), &wrong("blk 0 prefix_sum_attn", SUMS));
}

#[test]
fn decays_of_another_bound() {
    let words =
        "first differs at blk 0 kda_g1 (prefill), inputs not compared: suspect sigmoid, or what went before";
    changed(K3, "kda.gate_lower_bound", -5f32, -4f32).trips(words);
}

#[test]
fn gate_of_latent_attention_left_out() {
    trips(&sound(K3), left_out("kqv_out", 0, "mla_gated"), &wrong("blk 1 mla_gated", SUMS));
}

#[test]
fn bounds_of_values_left_out() {
    let words = wrong("blk 1 ffn_moe_situ", "SwiGLU");
    changed(K3, "activation.situ_beta", 4f32, 8f32).trips(&wrong("blk 0 ffn_out", "the F32 kernel"));
    trips(&sound(K3), Scaled("ffn_moe_situ", 1.01), &words);
}

#[test]
fn norm_of_narrow_outputs_left_out() {
    let fault = left_out("ffn_moe_out", 0, "ffn_routed_norm");
    trips(&sound(K3), fault, &wrong("blk 1 ffn_out", SUMS));
}
