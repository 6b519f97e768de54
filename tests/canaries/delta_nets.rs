//! Faults in what Qwen3-Next, Qwen 3.5 and Kimi Linear have: convolutions, states, decays, norms and gates of
//! delta nets; gates that come with queries.

use std::fs;

use wayinfer::gguf::Gguf;
use wayinfer::model::{Node, NodeId};

use super::common::goldens::case;
use super::faults::{HEAD, SUMS, changed, left_out, sound, wrong, zeroed};
use super::{Fault, Spoilt, permute, trips};

const QWEN35: &str = "qwen35/long";
const QWEN35_MOE: &str = "qwen35moe/long";
const QWEN3_NEXT: &str = "qwen3next/long";
const BY_HEAD: &str = "qwen3next-by-head/long";
const KIMI: &str = "kimi-linear/long";
/// Those with one decay a head.
const ALL: [&str; 4] = [QWEN35, QWEN35_MOE, QWEN3_NEXT, BY_HEAD];

/// What is suspected of the delta rule.
const RULE: &str = "the recurrence";
/// Elements of a head of the fixtures' delta nets; its four heads of values share two of keys.
const LEN: usize = 8;
const KEYS: usize = 2 * LEN;
const TAPS: usize = 4;

/// The values of an F32 tensor of a case's model.
pub fn values_of(name: &str, tensor: &str) -> Vec<f32> {
    let path = case(name).fixture;
    let gguf = Gguf::open(&path).expect("a fixture");
    let tensor = gguf.tensor(tensor).expect("the tensor");
    let bytes = fs::read(&path).expect("a fixture");
    let bytes = &bytes[tensor.offset as usize..][..tensor.bytes as usize];
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// Gives a node one value throughout, as it is taken.
struct Taken(&'static str, f32);

impl Fault for Taken {
    fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if id.name == self.0 {
            values.fill(self.1);
        }
    }
}

// ---- States --------------------------------------------------------------------------------------------

#[test]
fn decay_left_out() {
    for name in ALL {
        trips(&sound(name), Taken("gate", 0.0), &wrong("blk 0 attn_output", RULE));
    }
}

#[test]
fn factors_of_decays_left_out() {
    for name in ALL {
        zeroed(name, "blk.0.ssm_a").trips(&wrong("blk 0 gate", SUMS));
        zeroed(name, "blk.0.ssm_dt.bias").trips(&wrong("blk 0 a_softplus", "softplus"));
    }
}

#[test]
fn strength_left_out() {
    for name in [QWEN35, QWEN35_MOE] {
        trips(&sound(name), left_out("beta", 0, "beta_sigmoid"), &wrong("blk 0 beta_sigmoid", "sigmoid"));
    }
    for name in ALL {
        trips(&sound(name), Taken("beta_sigmoid", 1.0), &wrong("blk 0 attn_output", RULE));
    }
}

/// A decode step finds a state of zeros.
#[test]
fn state_not_carried_over_the_end_of_a_batch() {
    #[derive(Default)]
    struct Forgetful {
        q: Vec<f32>,
        k: Vec<f32>,
        v: Vec<f32>,
        beta: Vec<f32>,
    }
    impl Fault for Forgetful {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            match id.name {
                "q_conv_predelta" => self.q = values.to_vec(),
                "k_conv_predelta" => self.k = values.to_vec(),
                "conv_output_silu" => self.v = values[2 * KEYS..].to_vec(),
                "beta_sigmoid" => self.beta = values.to_vec(),
                _ => {}
            }
        }

        /// Of one token: `v * beta * dot(k, q) / sqrt(len)`.
        fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name != "attn_output" || id.layer != Some(0) || node.shape[0] > 1 {
                return;
            }
            let key_heads = self.k.len() / LEN;
            for (head, values) in values.chunks_exact_mut(LEN).enumerate() {
                let key = head % key_heads * LEN..(head % key_heads + 1) * LEN;
                let dot: f32 = self.q[key.clone()].iter().zip(&self.k[key]).map(|(q, k)| q * k).sum();
                let by = dot * self.beta[head] / (LEN as f32).sqrt();
                values.iter_mut().zip(&self.v[head * LEN..]).for_each(|(value, v)| *value = v * by);
            }
        }
    }
    for name in ALL {
        let words = wrong("blk 0 attn_output", RULE).replace("prefill", "decode.0");
        trips(&sound(name), Forgetful::default(), &words);
    }
}

/// A decode step finds a window of zeros.
#[test]
fn window_not_carried_over_the_end_of_a_batch() {
    struct Forgetful {
        weights: Vec<f32>,
        x: Vec<f32>,
    }
    impl Fault for Forgetful {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if ["linear_attn_qkv_mixed", "qkv_mixed"].contains(&id.name) {
                self.x = values.to_vec();
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "conv_output_raw" && node.shape[0] == 1 {
                let last = self.weights.chunks_exact(TAPS).map(|taps| taps[TAPS - 1]);
                values.iter_mut().zip(self.x.iter().zip(last)).for_each(|(v, (x, w))| *v = x * w);
            }
        }
    }
    for name in ALL {
        let fault = Forgetful { weights: values_of(name, "blk.0.ssm_conv1d.weight"), x: Vec::new() };
        let words = wrong("blk 0 conv_output_raw", "the convolution").replace("prefill", "decode.0");
        trips(&sound(name), fault, &words);
    }
}

/// Heads of values take the key of `h % 2` where it should be that of `h / 2`, or the other way round: of
/// four heads the two in the middle change places.
#[test]
fn heads_of_keys_mapped_wrong() {
    struct OtherMap;
    const ORDER: [usize; 4] = [0, 2, 1, 3];
    impl Fault for OtherMap {
        fn taken(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            match id.name {
                "gate" | "beta_sigmoid" => permute(values, 4, 1, &ORDER),
                "conv_output_silu" => values
                    .chunks_exact_mut(node.shape[1])
                    .for_each(|row| permute(&mut row[2 * KEYS..], 4 * LEN, LEN, &ORDER)),
                _ => {}
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "attn_output" && id.layer == Some(0) {
                permute(values, 4 * LEN, LEN, &ORDER);
            }
        }
    }
    for name in ALL {
        trips(&sound(name), OtherMap, &wrong("blk 0 attn_output", RULE));
    }
}

// ---- Convolutions and norms ----------------------------------------------------------------------------

/// Every tap sees the token behind the one that it should.
fn taps_off_by_one(name: &str, tensor: &str) -> Spoilt {
    Spoilt::new(name, |gguf, bytes| {
        let tensor = gguf.tensor(tensor).expect("the tensor");
        let bytes = &mut bytes[tensor.offset as usize..][..tensor.bytes as usize];
        bytes.chunks_exact_mut(4 * TAPS).for_each(|channel| channel.rotate_left(4));
    })
}

#[test]
fn convolution_off_by_one() {
    for name in ALL {
        let words = wrong("blk 0 conv_output_raw", "the convolution");
        taps_off_by_one(name, "blk.0.ssm_conv1d.weight").trips(&words);
    }
    for part in ["q", "k", "v"] {
        let words = wrong("blk 0 attn_output", RULE);
        taps_off_by_one(KIMI, &format!("blk.0.ssm_conv1d_{part}.weight")).trips(&words);
    }
}

#[test]
fn activation_of_the_convolution_left_out() {
    for name in ALL {
        let fault = left_out("conv_output_raw", 0, "conv_output_silu");
        trips(&sound(name), fault, &wrong("blk 0 conv_output_silu", "SiLU"));
    }
}

#[test]
fn norm_of_keys_left_out() {
    #[derive(Default)]
    struct Unnormed(Vec<f32>, usize);
    impl Fault for Unnormed {
        fn taken(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "conv_output_silu" {
                (self.0, self.1) = (values.to_vec(), node.shape[1]);
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "k_conv_predelta" {
                for (values, row) in values.chunks_exact_mut(KEYS).zip(self.0.chunks_exact(self.1)) {
                    values.copy_from_slice(&row[KEYS..2 * KEYS]);
                }
            }
        }
    }
    for name in [QWEN35, QWEN35_MOE] {
        trips(&sound(name), Unnormed::default(), &wrong("blk 0 k_conv_predelta", "the Euclidean norm"));
    }
}

// ---- Gates ---------------------------------------------------------------------------------------------

#[test]
fn gate_left_out() {
    // SiLU of this is 1.
    const ONE: f32 = 1.278_464_5;
    for name in ALL {
        trips(&sound(name), Taken("z", ONE), &wrong("blk 0 final_output", "the gated norm"));
        let fault = left_out("attn_pregate", 0, "attn_gated");
        trips(&sound(name), fault, &wrong("blk 1 attn_gated", SUMS));
    }
    for name in [QWEN35_MOE, QWEN3_NEXT, BY_HEAD] {
        let fault = left_out("ffn_shexp", 0, "ffn_shexp_gated");
        trips(&sound(name), fault, &wrong("blk 0 ffn_shexp_gated", SUMS));
    }
}

#[test]
fn queries_and_their_gates_in_each_others_place() {
    struct Exchanged;
    impl Fault for Exchanged {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "Qcur_full" {
                permute(values, 2 * HEAD, HEAD, &[1, 0]);
            }
        }
    }
    for name in [QWEN35, QWEN35_MOE] {
        trips(&sound(name), Exchanged, &wrong("blk 1 gate_reshaped", SUMS));
    }
    for name in [QWEN3_NEXT, BY_HEAD] {
        trips(&sound(name), Exchanged, &wrong("blk 1 Qcur_normed", "RMS norm"));
    }
}

/// What belongs to a head of keys is taken apart in another order.
#[test]
fn queries_and_keys_in_each_others_place() {
    struct Exchanged;
    impl Fault for Exchanged {
        fn taken(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "linear_attn_mixed_qkvz" {
                // Of each of two heads: its query, its key, two values, two gates.
                let each = node.shape[1] / 2;
                permute(values, each, LEN, &[1, 0, 2, 3, 4, 5]);
            }
        }
    }
    trips(&sound(BY_HEAD), Exchanged, &wrong("blk 0 qkv_mixed", SUMS));
}

// ---- Rotation ------------------------------------------------------------------------------------------

#[test]
fn all_of_a_head_rotated() {
    for name in [QWEN35, QWEN35_MOE, QWEN3_NEXT] {
        changed(name, "rope.dimension_count", 8u32, 16u32).trips(&wrong("blk 1 Qcur", "RoPE"));
    }
}

/// Pairs that turn with the fourth position, which a text does not have, stay as they are.
#[test]
fn sections_of_another_order() {
    for name in [QWEN35, QWEN35_MOE] {
        let fault = changed(name, "rope.dimension_sections", vec![2i32, 1, 1, 0], vec![1i32, 1, 1, 1]);
        fault.trips(&wrong("blk 1 Qcur", "RoPE"));
    }
}

// ---- Kimi Delta Attention ------------------------------------------------------------------------------

#[test]
fn decay_of_each_element_left_out() {
    trips(&sound(KIMI), Taken("kda_g1", 0.0), &wrong("blk 0 attn_output", RULE));
    for tensor in ["blk.0.ssm_a", "blk.0.ssm_dt.bias"] {
        zeroed(KIMI, tensor).trips(&wrong("blk 0 kda_g1", "softplus"));
    }
}

/// Elements of a key take their neighbours' decays.
#[test]
fn decays_in_each_others_place() {
    struct Neighbours;
    impl Fault for Neighbours {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "kda_g1" {
                permute(values, 2, 1, &[1, 0]);
            }
        }
    }
    trips(&sound(KIMI), Neighbours, &wrong("blk 0 attn_output", RULE));
}

#[test]
fn strength_of_kimi_left_out() {
    // The sigmoid of this is 1.
    trips(&sound(KIMI), Taken("kda_beta", 40.0), &wrong("blk 0 attn_output", RULE));
}

#[test]
fn gate_and_norm_of_kimi_left_out() {
    let fault = Taken("g2 g_b(g_a(cur_2d))", 40.0);
    trips(&sound(KIMI), fault, &wrong("blk 0 kda_out", "the F32 kernel"));
    trips(&sound(KIMI), left_out("attn_output", 0, "kda_normed"), &wrong("blk 0 kda_normed", "RMS norm"));
}

/// What heads share of their keys is not rotated: queries are, by 90 degrees at odd positions.
#[test]
fn a_rotation_where_there_is_none() {
    struct Turned;
    impl Fault for Turned {
        fn taken(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "q_pe" {
                let row = node.shape[1] * node.shape[2];
                for odd in values.chunks_exact_mut(row).skip(1).step_by(2) {
                    odd.chunks_exact_mut(2).for_each(|pair| (pair[0], pair[1]) = (-pair[1], pair[0]));
                }
            }
        }
    }
    trips(&sound(KIMI), Turned, &wrong("blk 1 Qcur", SUMS));
}
