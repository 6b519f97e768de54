//! One arithmetic: every kernel set, number of threads and batch gives the bits of the scalar kernels fed
//! token by token, at every node and in the logits.

mod common;

use common::runs::{Nodes, Run, SeenNode, assert_same_nodes, fixture, load, options_of};
use wayinfer::kernels::{Isa, Kernels};
use wayinfer::model::{KvElement, KvType, Logits, Model, Node, Observer, SequenceState};

/// Models in `fixtures/`: every format, dense and with experts, odd sizes, several streams, keys of other layers; latents,
/// positions and blocks that are chosen.
const FIXTURES: &[&str] = &[
    "dense-f32",
    "dense-f16",
    "dense-bf16",
    "dense-q8_0",
    "dense-q4_k_m",
    "dense-q5_k_m",
    "moe-q4_k_m",
    "moe-per-expert-q4_k_m",
    "odd-q8_0",
    "mixed",
    "demo-q4_k_m",
    "deepseek2",
    "deepseek2-lite",
    "deepseek32",
    "deepseek4",
    "glm-dsa",
    "glm5-next",
    "hy_v4",
    "minimax-m3",
    "gemma3n",
    "gemma4",
    "gemma4-moe",
];

/// Those of them that `WAYINFER_FIXTURES` names, separated by commas (where an emulated CPU would take long);
/// all by default.
fn fixtures() -> Vec<&'static str> {
    let Ok(names) = std::env::var("WAYINFER_FIXTURES") else {
        return FIXTURES.to_vec();
    };
    let known = |name| FIXTURES.iter().copied().find(|&known| known == name);
    names.split(',').map(|name| known(name).unwrap_or_else(|| panic!("no fixture {name}"))).collect()
}

fn run_of(model: &Model, isa: Isa, threads: usize, batch: usize, kv: KvType) -> Run<'_> {
    Run::new(model, &options_of(160, batch, isa, threads, kv))
}

/// 65 tokens: neither a multiple of what kernels take at once nor of a batch.
fn prompt(model: &Model) -> Vec<u32> {
    (0..65).map(|i| ((3 + 7919 * i) % model.spec().vocab) as u32).collect()
}

/// Two floats of the same bits, or both NaN.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

fn first_difference(a: &[f32], b: &[f32]) -> Option<usize> {
    assert_eq!(a.len(), b.len(), "as many values");
    (0..a.len()).find(|&i| !same(a[i], b[i]))
}

/// The logits of every token of the prompt and of three more.
fn logits_of(run: &mut Run<'_>, prompt: &[u32]) -> Vec<f32> {
    let mut all = Vec::new();
    for chunk in prompt.chunks(run.engine.batch()) {
        run.feed(chunk, Logits::All).expect("a pass");
        all.extend_from_slice(run.logits());
    }
    for id in [1, 2, 3] {
        run.feed(&[id], Logits::Last).expect("a step");
        all.extend_from_slice(run.logits());
    }
    all
}

#[test]
fn kernel_sets_threads_and_batches_give_the_same_bits() {
    common::say_kernel_sets("one arithmetic");
    let quantised = KvType { keys: KvElement::Q8_0, values: KvElement::Q4_0 };
    for name in fixtures() {
        let model = load(&fixture(name));
        let prompt = prompt(&model);
        for kv in [KvType::F16, KvType::F32, quantised] {
            // Heads are whole blocks.
            if SequenceState::check(model.spec(), kv).is_err() {
                assert!(kv == quantised && !["dense-q4_k_m", "moe-q4_k_m"].contains(&name), "{name}, {kv}");
                continue;
            }
            let truth = logits_of(&mut run_of(&model, Isa::Scalar, 1, 1, kv), &prompt);
            assert!(
                truth.iter().all(|l| l.is_finite()) && truth.iter().any(|&l| l != truth[0]),
                "{name}: logits"
            );
            for kernels in Kernels::available() {
                for (threads, batch) in [(1, 65), (2, 65), (3, 65), (2, 1), (1, 7), (2, 33)] {
                    let got = logits_of(&mut run_of(&model, kernels.isa(), threads, batch, kv), &prompt);
                    let what =
                        format!("{name}, {}, {threads} threads, batches of {batch}, {kv:?}", kernels.isa());
                    assert_eq!(first_difference(&truth, &got), None, "{what}");
                }
            }
        }
    }
}

/// Every node of the prompt in one pass and of three more tokens.
fn record(model: &Model, isa: Isa, threads: usize, kv: KvType) -> Vec<SeenNode> {
    let mut nodes = Nodes::default();
    let mut run = run_of(model, isa, threads, 65, kv);
    run.feed_observed(&prompt(model), Logits::All, &mut nodes).expect("a pass");
    for id in [1, 2, 3] {
        run.feed_observed(&[id], Logits::Last, &mut nodes).expect("a step");
    }
    nodes.0
}

#[test]
fn every_node_has_the_same_bits() {
    compare_nodes(KvType::F16);
}

#[test]
fn every_node_has_the_same_bits_with_an_f32_cache() {
    compare_nodes(KvType::F32);
}

fn compare_nodes(kv: KvType) {
    for name in fixtures() {
        let model = load(&fixture(name));
        let truth = record(&model, Isa::Scalar, 1, kv);
        let layers = model.spec().layers.len();
        assert!(truth.len() > 40 * layers, "{name}: {} nodes", truth.len());
        for kernels in Kernels::available() {
            for threads in [1, 2, 3] {
                let got = record(&model, kernels.isa(), threads, kv);
                assert_same_nodes(&truth, &got, &format!("{name}, {}, {threads} threads", kernels.isa()));
            }
        }
    }
}

/// An observer that changes one value changes the logits: it is the forward pass itself that it sees.
#[test]
fn an_observer_can_replace_values() {
    struct Nudge;
    impl Observer for Nudge {
        fn active(&self) -> bool {
            true
        }

        fn node(&mut self, node: &Node<'_>, values: &mut [f32]) {
            if node.id.name == "ffn_moe_down" && node.id.layer == Some(0) {
                values[5] += 1.0;
            }
        }
    }
    let model = load(&fixture("moe-q4_k_m"));
    let logits = |observer: &mut dyn Observer| {
        let mut run = run_of(&model, Isa::Scalar, 1, 65, KvType::F16);
        run.feed_observed(&[1, 2, 3], Logits::Last, observer).expect("a pass");
        run.logits().to_vec()
    };
    let (plain, nudged) = (logits(&mut Nodes::default()), logits(&mut Nudge));
    assert!(first_difference(&plain, &nudged).is_some());
}

/// Merged experts and one tensor an expert hold the same weights.
#[test]
fn both_layouts_of_experts_give_the_same_bits() {
    let (merged, apart) = (load(&fixture("moe-q4_k_m")), load(&fixture("moe-per-expert-q4_k_m")));
    let logits = |model| logits_of(&mut run_of(model, Isa::Scalar, 2, 65, KvType::F16), &prompt(&merged));
    assert_eq!(first_difference(&logits(&merged), &logits(&apart)), None);
}

/// Rewinding and feeding again gives what a fresh sequence gives.
#[test]
fn a_rewound_sequence_is_as_new() {
    let model = load(&fixture("dense-q4_k_m"));
    let prompt = prompt(&model);
    let mut run = run_of(&model, Isa::Scalar, 2, 65, KvType::F16);
    let fresh = logits_of(&mut run, &prompt);
    assert_eq!(run.sequence.rewind(10), 10);
    assert!(run.logits().is_empty(), "logits of what was taken back");
    run.feed(&prompt[10..], Logits::All).expect("a pass");
    let vocab = model.spec().vocab;
    assert_eq!(first_difference(&fresh[10 * vocab..65 * vocab], run.logits()), None);
}

/// The same on models of real shapes: `WAYINFER_BIG_MODELS` names them, separated by colons. 512 tokens at
/// once and one by one, one thread and two; scalar on 65 of them.
#[test]
fn large_models_too() {
    let Some(paths) = std::env::var_os("WAYINFER_BIG_MODELS") else {
        common::say("skipped: WAYINFER_BIG_MODELS is not set");
        return;
    };
    for path in std::env::split_paths(&paths) {
        let model = load(&path);
        let prompt: Vec<u32> = (0..512).map(|i| ((100 + 7919 * i) % model.spec().vocab) as u32).collect();
        let last = |isa, threads, batch, tokens: usize| {
            let mut run = Run::new(&model, &options_of(512, batch, isa, threads, KvType::F16));
            run.feed(&prompt[..tokens], Logits::Last).expect("a pass");
            run.logits().to_vec()
        };
        let best = Kernels::detect_best().isa();
        let truth = last(best, 2, 512, 512);
        for (threads, batch) in [(1, 512), (2, 1), (2, 100)] {
            let what = format!("{}, {threads} threads, batches of {batch}", path.display());
            assert_eq!(first_difference(&truth, &last(best, threads, batch, 512)), None, "{what}");
        }
        let scalar = last(Isa::Scalar, 2, 65, 65);
        assert_eq!(first_difference(&scalar, &last(best, 2, 65, 65)), None, "{}: scalar", path.display());
        println!("{}: the same bits", path.display());
    }
}
