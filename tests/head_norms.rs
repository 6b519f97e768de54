//! Command R's norms of each head's queries and keys, which have weights for each head. Models of 64 layers
//! and more have them, and the nodes of so many layers would make a large fixture: here the nodes are held to
//! the formula (ggml's `LLM_NORM`) in f64. `scripts/differential.py command-r` holds the same ones to ggml.

mod common;

use std::collections::HashMap;

use common::gguf::{GgufBuilder, ty};
use common::runs::{Run, load, options};
use common::say;
use common::tiny::{layers, of};
use wayinfer::model::{Logits, Node, Observer};

const LAYERS: u32 = 64;
/// Elements of a head.
const HEAD: usize = 8;
/// Heads of each node, by its name.
const HEADS: [(&str, usize); 2] = [("Qcur", 4), ("Kcur", 2)];
const EPS: f32 = 1e-5;
/// The largest error relative to the largest value of a row, measured, and the one allowed.
const MEASURED: f64 = 1.90e-7;
const ALLOWED: f64 = 1e-6;

/// Weights that differ from element to element and from head to head.
fn weights(heads: usize) -> Vec<f32> {
    (0..heads * HEAD).map(|i| 0.5 + (i * 7 % 11) as f32 / 8.0).collect()
}

fn command_r_plus() -> GgufBuilder {
    let model = of("command-r")
        .without_tensor("blk.0.ffn_norm.weight")
        .without("command-r.attention.layer_norm_rms_epsilon")
        .set("command-r.attention.layer_norm_epsilon", EPS)
        .set("command-r.logit_scale", 0.25f32)
        .tensor("blk.0.attn_q_norm.weight", ty::F32, &[HEAD as u64, 4], weights(4))
        .tensor("blk.0.attn_k_norm.weight", ty::F32, &[HEAD as u64, 2], weights(2));
    layers(model, LAYERS)
}

/// The norm of parts of a row, each of so many elements, around their mean or not.
fn norm(row: &[f32], part: usize, centred: bool, weights: &[f32]) -> Vec<f64> {
    let mut out = Vec::with_capacity(row.len());
    for (part, weights) in row.chunks_exact(part).zip(weights.chunks_exact(part)) {
        let n = part.len() as f64;
        let mean = if centred { part.iter().map(|&v| f64::from(v)).sum::<f64>() / n } else { 0.0 };
        let square = part.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let by = (square + f64::from(EPS)).sqrt();
        out.extend(part.iter().zip(weights).map(|(&v, &w)| (f64::from(v) - mean) / by * f64::from(w)));
    }
    out
}

/// What a row of heads becomes instead of its norm.
type Fault = fn(before: &[f32], after: &mut [f32]);

/// Holds each normed node to the formula.
struct Checked {
    fault: Fault,
    /// Nodes before their norm, by name and layer.
    before: HashMap<(&'static str, usize), Vec<f32>>,
    nodes: usize,
    worst: f64,
    wrong: Vec<String>,
}

impl Checked {
    fn check(&mut self, name: &'static str, layer: usize, heads: usize, values: &mut [f32]) {
        let before = &self.before[&(name, layer)];
        let mut error = 0f64;
        for (before, after) in before.chunks_exact(heads * HEAD).zip(values.chunks_exact_mut(heads * HEAD)) {
            (self.fault)(before, after);
            let wanted = norm(before, HEAD, true, &weights(heads));
            let largest = wanted.iter().fold(0f64, |most, v| most.max(v.abs()));
            let errors = wanted.iter().zip(&*after).map(|(w, &v)| (w - f64::from(v)).abs() / largest);
            error = errors.fold(error, f64::max);
        }
        self.nodes += 1;
        self.worst = self.worst.max(error);
        if error > ALLOWED {
            self.wrong.push(format!("{name} of layer {layer}"));
        }
    }
}

impl Observer for Checked {
    fn active(&self) -> bool {
        true
    }

    fn node(&mut self, node: &Node<'_>, values: &mut [f32]) {
        let Some((name, heads)) = HEADS.into_iter().find(|(name, _)| *name == node.id.name) else { return };
        let layer = node.id.layer.expect("a layer");
        // The product, its norm, its rotation.
        match node.id.occurrence {
            0 => {
                self.before.insert((name, layer), values.to_vec());
            }
            1 => self.check(name, layer, heads, values),
            _ => {}
        }
    }
}

fn checked(fault: Fault) -> Checked {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, command_r_plus().build()).expect("a model");
    let model = load(&path);
    let mut checked = Checked { fault, before: HashMap::new(), nodes: 0, worst: 0.0, wrong: Vec::new() };
    let mut run = Run::new(&model, &options(16, 16));
    for tokens in [&[1, 4, 5, 6, 3, 4][..], &[5]] {
        run.feed_observed(tokens, Logits::Last, &mut checked).expect("a pass");
    }
    checked
}

#[test]
fn heads_are_normed_each_with_its_weights() {
    let checked = checked(|_, _| ());
    say(&format!("head_norms: the largest error {:.2e}, allowed {ALLOWED:.0e}", checked.worst));
    assert_eq!((checked.nodes, checked.wrong), (2 * 2 * LAYERS as usize, Vec::new()));
    assert!((checked.worst - MEASURED).abs() < 0.01 * MEASURED, "the figure is stale");
}

/// Canaries: each must be found where it first is.
#[test]
fn norms_that_are_wrong_are_found() {
    fn put(after: &mut [f32], values: &[f64]) {
        after.iter_mut().zip(values).for_each(|(after, &v)| *after = v as f32);
    }
    let left_out: Fault = |before, after| after.copy_from_slice(before);
    let of_the_row: Fault =
        |before, after| put(after, &norm(before, before.len(), true, &weights(before.len() / HEAD)));
    let not_centred: Fault =
        |before, after| put(after, &norm(before, HEAD, false, &weights(before.len() / HEAD)));
    let weights_of_one_head: Fault =
        |before, after| put(after, &norm(before, HEAD, true, &weights(1).repeat(before.len() / HEAD)));
    for fault in [left_out, of_the_row, not_centred, weights_of_one_head] {
        assert_eq!(checked(fault).wrong.first().map(String::as_str), Some("Qcur of layer 0"));
    }
}
