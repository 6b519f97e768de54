//! What the README says that a llama model may have, each by what it has to do: biases, windows, linear scaling.

mod common;

use common::gguf::{GgufBuilder, ty};
use common::runs::{Nodes, Run, bits, load, options};
use common::tiny::tiny_model;
use wayinfer::model::Logits;

/// Elements of a row of keys.
const KEYS: usize = 16;

/// The nodes of a pass over some tokens, and the logits of the last.
fn run(model: &GgufBuilder, tokens: &[u32]) -> (Nodes, Vec<u32>) {
    let dir = tempfile::tempdir().expect("a folder");
    let model = load(&model.write(&dir.path().join("m.gguf")));
    let mut run = Run::new(&model, &options(64, 64));
    let mut nodes = Nodes::default();
    run.feed_observed(tokens, Logits::Last, &mut nodes).expect("a pass");
    (nodes, bits(run.logits()))
}

fn logits(model: &GgufBuilder, tokens: &[u32]) -> Vec<u32> {
    run(model, tokens).1
}

/// The row of a node that a position has, as it is after all that is done to it.
fn row(nodes: &Nodes, name: &str, position: usize, len: usize) -> Vec<f32> {
    let node = nodes.0.iter().rfind(|node| node.id.name == name).expect("the node");
    node.bits[position * len..][..len].iter().map(|&bits| f32::from_bits(bits)).collect()
}

#[test]
fn linear_scaling_divides_positions() {
    let plain = tiny_model();
    let by_type =
        tiny_model().kv("llama.rope.scaling.type", "linear").kv("llama.rope.scaling.factor", 4.0f32);
    let of_old = tiny_model().kv("llama.rope.scale_linear", 4.0f32);
    let (unscaled, _) = run(&plain, &[5; 9]);
    for scaled in [by_type, of_old] {
        let (scaled, _) = run(&scaled, &[5; 9]);
        for position in 0..3 {
            // Four is a power of two: the very same angle.
            let key = |nodes: &Nodes, position| row(nodes, "Kcur", position, KEYS);
            assert_eq!(key(&scaled, 4 * position), key(&unscaled, position), "position {position}");
            assert!(position == 0 || key(&scaled, position) != key(&unscaled, position));
        }
    }
}

#[test]
fn biases_are_added() {
    let bias = |n: usize| -> Vec<f32> { (0..n).map(|i| (i * 7 % 11) as f32 / 8.0 - 0.5).collect() };
    let (plain, unbiased) = run(&tiny_model(), &[5, 6, 7]);
    for (tensor, node, n) in [("attn_k", "Kcur", KEYS), ("attn_v", "Vcur", KEYS), ("attn_q", "Qcur", 32)] {
        let model = tiny_model().tensor(format!("blk.0.{tensor}.bias"), ty::F32, &[n as u64], bias(n));
        let (biased, logits) = run(&model, &[5, 6, 7]);
        // Nothing turns at the first position.
        let wanted: Vec<f32> = row(&plain, node, 0, n).iter().zip(bias(n)).map(|(v, b)| v + b).collect();
        assert_eq!(row(&biased, node, 0, n), wanted, "{tensor}");
        assert_ne!(logits, unbiased, "{tensor}");
    }
    let model = tiny_model().tensor("blk.0.attn_output.bias", ty::F32, &[32], bias(32));
    assert_ne!(logits(&model, &[5, 6, 7]), unbiased, "attn_output");
    // The canary: a bias of zeros does nothing.
    let model = tiny_model().tensor("blk.0.attn_k.bias", ty::F32, &[KEYS as u64], vec![0f32; KEYS]);
    assert_eq!(logits(&model, &[5, 6, 7]), unbiased);
}

#[test]
fn a_window_hides_what_is_before_it() {
    let whole = tiny_model();
    let windowed = tiny_model().kv("llama.attention.sliding_window", 4u32);
    let tokens: Vec<u32> = (0..12).map(|i| 4 + i * 5 % 9).collect();
    let with = |at: usize| {
        let mut tokens = tokens.clone();
        tokens[at] = 3;
        tokens
    };
    for at in 0..8 {
        assert_eq!(logits(&windowed, &with(at)), logits(&windowed, &tokens), "position {at} is hidden");
        assert_ne!(logits(&whole, &with(at)), logits(&whole, &tokens), "position {at} is seen without");
    }
    for at in 8..12 {
        assert_ne!(logits(&windowed, &with(at)), logits(&windowed, &tokens), "position {at} is seen");
    }
}
