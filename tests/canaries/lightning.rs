//! Faults in MiniMax 01: decays, gates, norms and residual streams of lightning attention.

use wayinfer::model::{Node, NodeId};

use super::faults::{SUMS, Scaled, changed, left_out, sound, wrong, zeroed};
use super::{Fault, permute, trips};

const MINIMAX: &str = "minimax-01/long";
const RECURRENCE: &str = "lightning attention";
/// Elements of a head.
const HEAD: usize = 8;

/// What a head gives is that of another decay: a running mean of it.
#[test]
fn decay_of_another_rate() {
    struct Slower;
    impl Fault for Slower {
        fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "qkv_permuted" {
                let row = node.shape[1] * node.shape[2];
                for i in row..values.len() {
                    values[i] += 0.1 * values[i - row];
                }
            }
        }
    }
    trips(&sound(MINIMAX), Slower, &wrong("blk 0 qkv_permuted", RECURRENCE));
}

/// Decays are those of the neighbour: both heads give what the other should.
#[test]
fn heads_in_each_others_place() {
    struct Neighbours;
    impl Fault for Neighbours {
        fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "qkv_permuted" {
                permute(values, node.shape[1] * node.shape[2], node.shape[2], &[1, 0]);
            }
        }
    }
    trips(&sound(MINIMAX), Neighbours, &wrong("blk 0 qkv_permuted", RECURRENCE));
}

/// The recurrence takes keys for queries and queries for keys.
#[test]
fn keys_and_queries_in_each_others_place() {
    struct Exchanged;
    impl Fault for Exchanged {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "QKVcur_silu" {
                permute(values, 3 * HEAD, HEAD, &[1, 0, 2]);
            }
        }
    }
    trips(&sound(MINIMAX), Exchanged, &wrong("blk 0 qkv_permuted", RECURRENCE));
}

#[test]
fn silu_left_out() {
    trips(&sound(MINIMAX), left_out("QKVcur", 0, "QKVcur_silu"), &wrong("blk 0 QKVcur_silu", "SiLU"));
}

#[test]
fn norm_over_all_heads_left_out() {
    trips(&sound(MINIMAX), left_out("qkv_permuted", 0, "qkv_norm"), &wrong("blk 0 qkv_norm", "RMS norm"));
}

#[test]
fn gate_left_out() {
    zeroed(MINIMAX, "blk.0.attn_gate.weight").trips(&wrong("blk 0 g", "the F32 kernel"));
    trips(&sound(MINIMAX), left_out("g", 0, "g_sigm"), &wrong("blk 0 g_sigm", "sigmoid"));
}

#[test]
fn residual_not_scaled() {
    changed(MINIMAX, "residual_scale", 2.5f32, 1f32).trips(&wrong("blk 0 residual_scaled_attn", SUMS));
    trips(&sound(MINIMAX), Scaled("residual_scaled_ffn", 1.1), &wrong("blk 0 residual_scaled_ffn", SUMS));
}

/// Outputs are added to what was normed, as in other models.
#[test]
fn residual_of_the_stream() {
    struct Stream(Vec<f32>);
    impl Fault for Stream {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if ["embd", "inp_embd", "l_out"].contains(&id.name) {
                self.0 = values.iter().map(|v| 2.5 * v).collect();
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "residual_scaled_attn" && self.0.len() == values.len() {
                values.copy_from_slice(&self.0);
            }
        }
    }
    trips(&sound(MINIMAX), Stream(Vec::new()), &wrong("blk 0 residual_scaled_attn", SUMS));
}
