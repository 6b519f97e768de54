//! Faults in Mamba and Jamba: of what their blocks compute ggml names the sum with the residual stream alone,
//! or the output.

use wayinfer::model::{Node, NodeId};

use super::delta_nets::values_of;
use super::faults::{SUMS, left_out, sound, wrong, zeroed};
use super::{Fault, Spoilt, permute, trips};

const JAMBA: &str = "jamba/long";
/// Both, the node in which a block ends, and what is suspected of it.
const ALL: [(&str, &str, &str); 2] =
    [("mamba/long", "blk 0 l_out", SUMS), (JAMBA, "blk 0 ffn_inp", "the F32 kernel")];
const TAPS: usize = 4;
const STATE: usize = 8;

#[test]
fn parts_of_the_scan_left_out() {
    for (name, node, suspect) in ALL {
        for tensor in ["ssm_a", "ssm_d", "ssm_dt.bias", "ssm_conv1d.bias"] {
            zeroed(name, &format!("blk.0.{tensor}")).trips(&wrong(node, suspect));
        }
    }
}

/// Every tap sees the token behind the one that it should.
#[test]
fn convolution_off_by_one() {
    for (name, node, suspect) in ALL {
        let spoilt = Spoilt::new(name, |gguf, bytes| {
            let tensor = gguf.tensor("blk.0.ssm_conv1d.weight").expect("the tensor");
            let bytes = &mut bytes[tensor.offset as usize..][..tensor.bytes as usize];
            bytes.chunks_exact_mut(4 * TAPS).for_each(|channel| channel.rotate_left(4));
        });
        spoilt.trips(&wrong(node, suspect));
    }
}

#[test]
fn gate_left_out() {
    for (name, node, suspect) in ALL {
        trips(&sound(name), left_out("mamba_y", 0, "mamba_gated"), &wrong(node, suspect));
    }
}

#[test]
fn norms_of_steps_and_of_what_a_state_takes_and_gives_left_out() {
    for (name, node, suspect) in ALL {
        for (from, at) in [
            ("mamba_dt_low", "mamba_dt_normed"),
            ("mamba_b", "mamba_b_normed"),
            ("mamba_c", "mamba_c_normed"),
        ] {
            trips(&sound(name), left_out(from, 0, at), &wrong(node, suspect));
        }
    }
}

/// Changes what a node hands on.
struct Handed(&'static str, fn(&mut [f32]));

impl Fault for Handed {
    fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if id.name == self.0 {
            (self.1)(values);
        }
    }
}

/// Channels take their neighbours' steps, elements of the state what others take in.
#[test]
fn neighbours_in_each_others_place() {
    for (name, node, suspect) in ALL {
        for part in ["mamba_dt", "mamba_b_normed", "mamba_z"] {
            let fault = Handed(part, |values| permute(values, 2, 1, &[1, 0]));
            trips(&sound(name), fault, &wrong(node, suspect));
        }
    }
}

/// Every element of a channel's state fades as its first.
#[test]
fn one_rate_for_all_of_a_channel() {
    for (name, node, suspect) in ALL {
        let spoilt = Spoilt::new(name, |gguf, bytes| {
            let tensor = gguf.tensor("blk.0.ssm_a").expect("the tensor");
            let bytes = &mut bytes[tensor.offset as usize..][..tensor.bytes as usize];
            bytes.chunks_exact_mut(4 * STATE).for_each(|rates| {
                let first = [rates[0], rates[1], rates[2], rates[3]];
                rates.chunks_exact_mut(4).for_each(|rate| rate.copy_from_slice(&first));
            });
        });
        spoilt.trips(&wrong(node, suspect));
    }
}

/// A decode step finds a state of zeros.
#[test]
fn state_not_carried_over_the_end_of_a_batch() {
    #[derive(Default)]
    struct Forgetful {
        d: Vec<f32>,
        x: Vec<f32>,
        dt: Vec<f32>,
        b: Vec<f32>,
        c: Vec<f32>,
    }
    impl Fault for Forgetful {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            match id.name {
                "mamba_conv" => self.x = values.to_vec(),
                "mamba_dt" => self.dt = values.iter().map(|dt| dt.exp().ln_1p()).collect(),
                "mamba_b_normed" => self.b = values.to_vec(),
                "mamba_c_normed" => self.c = values.to_vec(),
                _ => {}
            }
        }

        /// Of one token: `x * dt * dot(B, C) + x * d`.
        fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name != "mamba_y" || id.layer != Some(0) || node.shape[0] > 1 {
                return;
            }
            let dot: f32 = self.b.iter().zip(&self.c).map(|(b, c)| b * c).sum();
            for (i, value) in values.iter_mut().enumerate() {
                *value = self.x[i] * self.dt[i] * dot + self.x[i] * self.d[i];
            }
        }
    }
    for (name, node, suspect) in ALL {
        let fault = Forgetful { d: values_of(name, "blk.0.ssm_d"), ..Forgetful::default() };
        trips(&sound(name), fault, &wrong(node, suspect).replace("prefill", "decode.0"));
    }
}

/// Jamba's attention has no rotation: queries are turned by 90 degrees at odd positions.
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
    trips(&sound(JAMBA), Turned, &wrong("blk 1 kqv_out", "attention"));
}
