//! Faults in Qwen 4 (experimental): gates between streams, the gate of its delta nets, pools of positions and
//! their choice, n-grams.

use wayinfer::model::{Node, NodeId};

use super::delta_nets::values_of;
use super::faults::{SUMS, changed, filled, left_out, sound, wrong};
use super::{Fault, Spoilt, permute, trips};

const NAME: &str = "qwen4exp/long";
const STREAMS: usize = 2;
const EMBD: usize = 16;
/// Elements of the indexer's keys, and positions of a pool.
const INDEX: usize = 16;
const POOL: usize = 2;
const PRODUCT: &str = "the F32 kernel";

/// Changes what a node hands on.
struct Handed<F>(&'static str, F);

impl<F: FnMut(&mut [f32]) + Send> Fault for Handed<F> {
    fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if id.name == self.0 {
            (self.1)(values);
        }
    }
}

/// Changes what a node is.
struct Computed<F>(&'static str, F);

impl<F: FnMut(&mut [f32]) + Send> Fault for Computed<F> {
    fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if id.name == self.0 {
            (self.1)(values);
        }
    }
}

/// A tensor whose rows of so many values begin with another one.
fn rotated(tensor: &str, row: usize) -> Spoilt {
    Spoilt::new(NAME, |gguf, bytes| {
        let tensor = gguf.tensor(tensor).expect("the tensor");
        let bytes = &mut bytes[tensor.offset as usize..][..tensor.bytes as usize];
        bytes.chunks_exact_mut(4 * row).for_each(|row| row.rotate_left(4));
    })
}

// ---- Streams -------------------------------------------------------------------------------------------

#[test]
fn gates_of_streams_left_out() {
    // The sigmoid of this is 1.
    let fault = Handed("hc_gate", |values: &mut [f32]| values.fill(40.0));
    trips(&sound(NAME), fault, &wrong("blk 0 hc_mixed", "sigmoid"));
    // Twice the sigmoid of this is.
    let fault = Handed("hc_inject", |values: &mut [f32]| values.fill(0.0));
    trips(&sound(NAME), fault, &wrong("blk 0 hc_combine", "sigmoid"));
}

#[test]
fn streams_in_each_others_place() {
    let turned = |values: &mut [f32]| permute(values, STREAMS * EMBD, EMBD, &[1, 0]);
    trips(&sound(NAME), Handed("hc_norm", turned), &wrong("blk 0 hc_gate", PRODUCT));
    let turned = |values: &mut [f32]| permute(values, STREAMS, 1, &[1, 0]);
    trips(&sound(NAME), Handed("hc_inject", turned), &wrong("blk 0 hc_combine", "sigmoid"));
}

#[test]
fn norms_of_streams_off() {
    filled(NAME, "blk.1.hc_attn_norm.weight", 1.0).trips(&wrong("blk 1 hc_norm", "RMS norm"));
    filled(NAME, "blk.1.hc_ffn_norm.weight", 1.0).trips(&wrong("blk 1 hc_norm (2nd)", "RMS norm"));
    let words = "first differs at hc_norm (prefill), inputs equal: suspect RMS norm";
    filled(NAME, "output_hc_norm.weight", 1.0).trips(words);
}

#[test]
fn low_rank_of_gates_off() {
    rotated("blk.1.hc_attn_up.weight", 2).trips(&wrong("blk 1 hc_gate", PRODUCT));
    rotated("output_hc_down.weight", STREAMS * EMBD)
        .trips("first differs at hc_gate (prefill), inputs equal: suspect the F32 kernel");
}

// ---- The delta net -------------------------------------------------------------------------------------

/// As in Qwen 3.5: SiLU of z, not its sigmoid.
#[test]
fn silu_in_the_place_of_a_sigmoid() {
    #[derive(Default)]
    struct Silu(Vec<f32>);
    impl Fault for Silu {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "z" {
                self.0 = values.to_vec();
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "final_output" {
                values.iter_mut().zip(&self.0).for_each(|(value, z)| *value *= z);
            }
        }
    }
    trips(&sound(NAME), Silu::default(), &wrong("blk 0 final_output", "the gated norm"));
}

// ---- Pools ---------------------------------------------------------------------------------------------

const CHOSEN: (&str, &str) = ("blk 1 attn_pregate", "attention");

#[test]
fn one_pool_more_or_less_is_chosen() {
    let words = &wrong(CHOSEN.0, CHOSEN.1);
    changed(NAME, "attention.indexer.top_k", 4u32, 6u32).trips(words);
    changed(NAME, "attention.indexer.top_k", 4u32, 2u32).trips(words);
    // All are.
    changed(NAME, "attention.indexer.top_k", 4u32, 400u32).trips(words);
}

#[test]
fn pools_of_other_positions() {
    let words = &wrong(CHOSEN.0, CHOSEN.1);
    changed(NAME, "attention.compress_ratios", vec![0i32, 2], vec![0i32, 4]).trips(words);
    let first_alone = |values: &mut [f32]| {
        values.chunks_exact_mut(POOL * INDEX).for_each(|pool| pool[INDEX..].fill(0.0));
    };
    trips(&sound(NAME), Handed("indexer_k_raw", first_alone), words);
}

#[test]
fn scores_of_pools_off() {
    let words = &wrong(CHOSEN.0, CHOSEN.1);
    let negated = |values: &mut [f32]| values.iter_mut().for_each(|v| *v = -*v);
    trips(&sound(NAME), Handed("indexer_q", negated), words);
    filled(NAME, "blk.1.indexer.k_norm.weight", -1.0).trips(words);
    filled(NAME, "blk.1.indexer.q_norm.weight", 1.0).trips(&wrong("blk 1 indexer_q", PRODUCT));
}

#[test]
fn gate_of_attention_left_out() {
    let fault = left_out("attn_pregate", 0, "attn_gated");
    trips(&sound(NAME), fault, &wrong("blk 1 attn_gated", SUMS));
}

// ---- N-grams -------------------------------------------------------------------------------------------

#[test]
fn rows_of_other_ngrams() {
    let words = "first differs at ple_embd (prefill), suspect the decoding of the embedding";
    changed(NAME, "ple.eos_token_id", 3u32, 4u32).trips(words);
    let by = [2_654_435_761u64, 7_046_029_254_386_353_131, 5_165_137_398_914_471_383];
    let other = vec![by[0], by[2], by[1]];
    changed(NAME, "ple.layer_multipliers", by.to_vec(), other).trips(words);
    changed(NAME, "ple.head_offsets", vec![0u64, 13, 30, 47], vec![0u64, 13, 30, 48]).trips(words);
    changed(NAME, "ple.head_vocab_sizes", vec![13u64, 17, 17, 19], vec![13u64, 17, 17, 18]).trips(words);
}

/// Rows of a token in another order.
#[test]
fn rows_in_each_others_place() {
    let order = |values: &mut [f32]| permute(values, EMBD, EMBD / 4, &[1, 0, 2, 3]);
    trips(&sound(NAME), Handed("ple_embd", order), &wrong("blk 0 ple_gate", "sigmoid"));
}

#[test]
fn gates_of_ngrams_off() {
    let fault = Handed("ple_gate", |values: &mut [f32]| values.fill(1.0));
    trips(&sound(NAME), fault, &wrong("blk 0 ple_gated_value", SUMS));
    // The root left out, and the sign.
    let logit = |gate: f32| (gate / (1.0 - gate)).ln();
    let of = |x: f32| 1.0 / (1.0 + (-x).exp());
    let squared = move |values: &mut [f32]| {
        values.iter_mut().for_each(|gate| *gate = of(logit(*gate) * logit(*gate).abs()));
    };
    trips(&sound(NAME), Computed("ple_gate", squared), &wrong("blk 0 ple_gate", "sigmoid"));
    let unsigned =
        move |values: &mut [f32]| values.iter_mut().for_each(|gate| *gate = of(logit(*gate).abs()));
    trips(&sound(NAME), Computed("ple_gate", unsigned), &wrong("blk 0 ple_gate", "sigmoid"));
    for part in ["key", "query"] {
        filled(NAME, &format!("blk.0.ple_norm_{part}.weight"), 1.0)
            .trips(&wrong("blk 0 ple_gate", "sigmoid"));
    }
}

#[test]
fn convolution_of_ngrams_off() {
    let words = &wrong("blk 0 ple_conv_out", "RMS norm");
    rotated("blk.0.ple_conv1d.weight", 2).trips(words);
    filled(NAME, "blk.0.ple_norm_conv.weight", 1.0).trips(words);
}

/// A decode step finds a window of zeros.
#[test]
fn window_not_carried_over_the_end_of_a_batch() {
    struct Forgetful {
        norm: Vec<f32>,
        taps: Vec<f32>,
        gated: Vec<f32>,
    }
    impl Fault for Forgetful {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "ple_gated_value" {
                self.gated = values.to_vec();
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name != "ple_conv_out" || node.shape[0] > 1 {
                return;
            }
            for (stream, gated) in self.gated.chunks_exact(EMBD).enumerate() {
                let root = (gated.iter().map(|v| v * v).sum::<f32>() / EMBD as f32 + 1e-5).sqrt();
                for (i, v) in gated.iter().enumerate() {
                    let at = stream * EMBD + i;
                    let y = v / root * self.norm[at] * self.taps[2 * at + 1];
                    values[at] = y / (1.0 + (-y).exp());
                }
            }
        }
    }
    let fault = Forgetful {
        norm: values_of(NAME, "blk.0.ple_norm_conv.weight"),
        taps: values_of(NAME, "blk.0.ple_conv1d.weight"),
        gated: Vec::new(),
    };
    let words = wrong("blk 0 ple_conv_out", "RMS norm").replace("prefill", "decode.0");
    trips(&sound(NAME), fault, &words);
}
