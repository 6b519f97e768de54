//! Faults in what Gemma 3n and 4 have: windows, keys and values of another layer, norms of values, inputs of
//! each layer of its own, residual streams, sparse networks, a router of the stream, factors.

use wayinfer::model::{Node, NodeId};

use super::faults::{SUMS, changed, filled, left_out, sound, wrong, zeroed};
use super::{Fault, trips};

const GEMMA4: &str = "gemma4/long";
const MOE: &str = "gemma4-moe/long";
const GEMMA3N: &str = "gemma3n/long";

/// Takes note of some nodes of layers and puts another value in the place of one of the prompt's.
struct Replaced {
    node: (&'static str, usize),
    from: Vec<(&'static str, usize)>,
    kept: Vec<Vec<f32>>,
    value: fn(&[Vec<f32>], &mut [f32]),
}

impl Replaced {
    fn new(
        node: (&'static str, usize),
        from: &[(&'static str, usize)],
        value: fn(&[Vec<f32>], &mut [f32]),
    ) -> Replaced {
        Replaced { node, from: from.to_vec(), kept: vec![Vec::new(); from.len()], value }
    }
}

impl Fault for Replaced {
    fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
        if (id.name, id.layer) == (self.node.0, Some(self.node.1)) && node.shape[0] > 1 {
            (self.value)(&self.kept, values);
        }
    }

    fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        let of = self.from.iter().position(|from| (id.name, id.layer) == (from.0, Some(from.1)));
        if let Some(of) = of {
            self.kept[of] = values.to_vec();
        }
    }
}

// ---- Attention ------------------------------------------------------------------------------------------

#[test]
fn a_window_of_one_position_more() {
    for name in [GEMMA4, MOE, GEMMA3N] {
        changed(name, "attention.sliding_window", 16u32, 17u32).trips(&wrong("blk 0 kqv_out", "attention"));
    }
}

#[test]
fn windows_on_the_wrong_layers() {
    let (from, to) = (vec![true, true, false], vec![true, false, false]);
    let spoilt = changed(MOE, "attention.sliding_window_pattern", from, to);
    spoilt.trips(&wrong("blk 1 Qcur_pos", "RoPE"));
    let spoilt = changed(GEMMA3N, "attention.sliding_window_pattern", 2u32, 1u32);
    spoilt.trips(&wrong("blk 0 kqv_out", "attention"));
}

#[test]
fn factors_of_frequencies_left_out() {
    filled(GEMMA4, "rope_freqs.weight", 1.0).trips(&wrong("blk 2 Qcur_pos", "RoPE"));
}

/// The fourth layer sees the keys and values of the first where it should see those of the second.
#[test]
fn keys_and_values_of_the_wrong_layer() {
    const HEAD: usize = 8;
    const WINDOW: usize = 16;
    fn attention(kept: &[Vec<f32>], out: &mut [f32]) {
        let [q, k, v] = kept else { panic!("queries, keys, values") };
        let heads = q.len() / k.len();
        for (at, (q, out)) in q.chunks_exact(HEAD).zip(out.chunks_exact_mut(HEAD)).enumerate() {
            let position = at / heads;
            let seen = (position + 1).saturating_sub(WINDOW)..position + 1;
            let row = |of: &[f32], position: usize| of[position * HEAD..][..HEAD].to_vec();
            let score = |position| q.iter().zip(row(k, position)).map(|(q, k)| q * k).sum::<f32>();
            let weights: Vec<f32> = seen.clone().map(|position| score(position).exp()).collect();
            let sum: f32 = weights.iter().sum();
            out.fill(0.0);
            for (position, weight) in seen.zip(weights) {
                out.iter_mut().zip(row(v, position)).for_each(|(out, v)| *out += weight / sum * v);
            }
        }
    }
    let of = |layer| [("Qcur_pos", 3), ("Kcur_pos", layer), ("Vcur_normed", layer)];
    let fault = Replaced::new(("kqv_out", 3), &of(0), attention);
    trips(&sound(GEMMA4), fault, &wrong("blk 3 kqv_out", "attention"));
    // The attention above is right where the layer is: it rounds otherwise, and no more.
    let near = |kept: &[Vec<f32>], out: &mut [f32]| {
        let right = out.to_vec();
        attention(kept, out);
        assert!(right.iter().zip(&*out).all(|(a, b)| (a - b).abs() < 1e-4));
        out.copy_from_slice(&right);
    };
    assert_eq!(super::gate(&sound(GEMMA4), Replaced::new(("kqv_out", 3), &of(1), near)), None);
}

#[test]
fn norm_of_values_left_out() {
    let words = &wrong("blk 0 Vcur_normed", "RMS norm");
    for name in [GEMMA4, MOE, GEMMA3N] {
        trips(&sound(name), left_out("Vcur", 0, "Vcur_normed"), words);
    }
}

/// Where values are the keys' products, these are not the keys as they are normed.
#[test]
fn values_of_normed_keys() {
    let fault = Replaced::new(("Vcur_normed", 2), &[("Kcur_normed", 2)], |kept, values| {
        values.copy_from_slice(&kept[0]);
    });
    trips(&sound(MOE), fault, &wrong("blk 2 Vcur_normed", "RMS norm"));
}

// ---- Inputs of each layer of its own, factors
// --------------------------------------------------------------

#[test]
fn input_of_a_layer_left_out() {
    let fault = left_out("per_layer_gelu", 0, "per_layer_gated");
    trips(&sound(GEMMA4), fault, &wrong("blk 0 per_layer_embd_out", "RMS norm"));
    let fault = left_out("first_prediction_gated", 0, "first_prediction_scaled");
    trips(&sound(GEMMA3N), fault, &wrong("blk 0 first_prediction_scaled", SUMS));
}

#[test]
fn gate_of_a_layers_input_left_out() {
    zeroed(GEMMA4, "blk.1.inp_gate.weight").trips(&wrong("blk 1 per_layer_embd_out", "RMS norm"));
    let words = &wrong("blk 1 first_prediction_gated", "a product or its GELU");
    zeroed(GEMMA3N, "blk.1.inp_gate.weight").trips(words);
}

#[test]
fn rows_of_the_wide_embedding_left_out() {
    for name in [GEMMA4, GEMMA3N] {
        let fault = left_out("per_layer_proj", 0, "inp_per_layer");
        let words = format!("first differs at inp_per_layer (prefill), inputs equal: suspect {SUMS}");
        trips(&sound(name), fault, &words);
    }
}

#[test]
fn factor_of_a_layer_left_out() {
    filled(GEMMA4, "blk.1.layer_output_scale.weight", 1.0).trips(&wrong("blk 1 l_out", SUMS));
}

#[test]
fn cap_of_logits_wrong() {
    let spoilt = changed(GEMMA4, "final_logit_softcapping", 5f32, 30f32);
    spoilt.trips(&wrong("result_output", "the soft cap"));
}

// ---- Experts beside the dense network
// ------------------------------------------------------------------------

#[test]
fn factors_of_the_routers_input_left_out() {
    filled(MOE, "blk.1.ffn_gate_inp.scale", 1.0).trips(&wrong("blk 1 ffn_moe_logits", "the F32 kernel"));
}

#[test]
fn factors_of_experts_left_out() {
    let words = &wrong("blk 1 ffn_moe_down_scaled", "the F32 kernel");
    filled(MOE, "blk.1.ffn_down_exps.scale", 1.0).trips(words);
}

#[test]
fn weights_of_experts_not_normalised() {
    let fault = left_out("ffn_moe_weights", 0, "ffn_moe_weights_norm");
    trips(&sound(MOE), fault, &wrong("blk 1 ffn_moe_weights_norm", SUMS));
}

#[test]
fn dense_network_left_out() {
    let fault = left_out("ffn_moe", 0, "ffn_moe_combined");
    trips(&sound(MOE), fault, &wrong("blk 1 ffn_moe_combined", SUMS));
}

// ---- Residual streams
// ----------------------------------------------------------------------------------------

#[test]
fn coefficients_of_streams_left_out() {
    let words = |node| wrong(node, "the F32 kernel");
    zeroed(GEMMA3N, "blk.0.altup_predict_coef.weight").trips(&words("blk 0 all_coefs"));
    zeroed(GEMMA3N, "blk.1.altup_correct_coef.weight").trips(&words("blk 1 all_coefs (2nd)"));
    zeroed(GEMMA3N, "blk.1.altup_router.weight").trips(&wrong("blk 1 modalities", "the soft cap"));
}

/// Coefficients of stream i for stream j where it should be those of j for i.
#[test]
fn coefficients_of_streams_transposed() {
    struct Transposed;
    impl Fault for Transposed {
        fn taken(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "all_coefs" && id.occurrence == 0 && node.shape[1] == 16 {
                for coefs in values.chunks_exact_mut(16) {
                    let old = coefs.to_vec();
                    (0..16).for_each(|at| coefs[at] = old[at % 4 * 4 + at / 4]);
                }
            }
        }
    }
    trips(&sound(GEMMA3N), Transposed, &wrong("blk 0 predictions", "the product's kernel"));
}

#[test]
fn path_beside_attention_left_out() {
    let fault = left_out("attn_gated", 0, "attn_laurel");
    trips(&sound(GEMMA3N), fault, &wrong("blk 0 attn_laurel", SUMS));
    zeroed(GEMMA3N, "blk.1.laurel_l.weight").trips(&wrong("blk 1 laurel_out", SUMS));
}

#[test]
fn streams_at_the_end_not_merged() {
    let fault = left_out("inp_scaled", 0, "unembd_merged");
    let words = format!("first differs at unembd_merged (prefill), inputs equal: suspect {SUMS}");
    trips(&sound(GEMMA3N), fault, &words);
}

/// All of the network counts, not one element in twenty.
#[test]
fn network_not_sparse() {
    fn whole(kept: &[Vec<f32>], hidden: &mut [f32]) {
        for ((hidden, gate), up) in hidden.iter_mut().zip(&kept[0]).zip(&kept[1]) {
            let tanh = (0.797_884_6 * gate * (1.0 + 0.044_715 * gate * gate)).tanh();
            *hidden = 0.5 * gate * (1.0 + tanh) * up;
        }
    }
    let fault = Replaced::new(("ffn_geglu", 0), &[("ffn_gate", 0), ("ffn_up", 0)], whole);
    trips(&sound(GEMMA3N), fault, &wrong("blk 0 ffn_out", "the F32 kernel"));
}
