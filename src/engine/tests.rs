//! What a sequence is after a pass, one that is broken off included, and when it goes back.

use std::path::Path;

use super::*;
use crate::gguf::Gguf;
use crate::model::Node;

/// Breaks the pass off when it has seen so many nodes of a name.
struct After {
    name: &'static str,
    left: usize,
}

impl Observer for After {
    fn active(&self) -> bool {
        false
    }

    fn computed(&mut self, node: &Node<'_>) {
        self.left -= usize::from(node.id.name == self.name && self.left > 0);
    }

    fn interrupted(&self) -> bool {
        self.left == 0
    }

    fn node(&mut self, _: &Node<'_>, _: &mut [f32]) {}
}

fn model() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/moe-q4_k_m.gguf");
    Model::load(&Gguf::open(&path).expect("a model")).expect("it loads")
}

const OPTIONS: EngineOptions = EngineOptions {
    context: 64,
    batch: 16,
    kv: KvType::F16,
    threads: Threads::Fixed(2),
    isa: None,
    drafts: 0,
    guesses: Guesses::Off,
};

/// What was said of another text is not what follows this one.
#[test]
fn a_rewound_sequence_has_no_logits() {
    let model = model();
    let mut engine = Engine::new(&model, &OPTIONS).expect("an engine");
    let mut sequence = engine.sequence();
    assert!(matches!(sequence.argmax(), Err(EngineError::NoLogits)));
    for past in [5, 2, 0] {
        engine.feed(&mut sequence, &[3, 4, 5, 6, 7, 8], Logits::Last).expect("it runs");
        assert!(sequence.argmax().is_ok());
        assert_eq!(sequence.rewind(past), past);
        assert!(sequence.logits().is_empty(), "back to {past}");
        assert!(matches!(sequence.argmax(), Err(EngineError::NoLogits)));
    }
}

/// The most probable token is the same for both who look for it: the lower id of equals, as 0 and -0 are.
#[test]
fn the_greedy_sampler_chooses_the_most_probable_token() {
    let model = model();
    let engine = Engine::new(&model, &OPTIONS).expect("an engine");
    let mut greedy = Sampler::new(SamplerConfig::greedy()).expect("a sampler");
    for (a, b) in [(-0.0, 0.0), (0.0, -0.0), (0.0, 0.0), (2.0, 1.0), (1.0, 2.0)] {
        let mut logits = vec![-1.0; model.spec().vocab];
        (logits[3], logits[7]) = (a, b);
        let chosen = greedy.sample(&logits).expect("a token").id;
        let mut sequence = engine.sequence();
        sequence.passed(&[1], &mut logits);
        assert_eq!(sequence.argmax().expect("a token"), chosen, "{a:?}, {b:?}");
        assert_eq!(chosen, if b > a { 7 } else { 3 }, "{a:?}, {b:?}");
    }
}

#[test]
fn an_interrupted_prefill_ends_within_its_batch_and_can_be_done_again() {
    let model = model();
    let tokens: Vec<u32> = (3..43).collect();
    let go_on = |_| ControlFlow::Continue(());
    let mut engine = Engine::new(&model, &OPTIONS).expect("an engine");
    let mut whole = engine.sequence();
    engine.feed(&mut whole, &tokens, Logits::Last).expect("it runs");

    // Two layers, of which the second ends with its keys and values where no logits are wanted.
    for (name, left, past) in
        [("ffn_inp", 1, 0), ("l_out", 1, 0), ("ffn_inp", 2, 16), ("l_out", 3, 32), ("l_out", 4, 32)]
    {
        let mut sequence = engine.sequence();
        let after = &mut After { name, left };
        let interrupted = engine.feed_observed(&mut sequence, &tokens, Logits::Last, after, go_on);
        assert!(matches!(interrupted, Err(EngineError::Interrupted)), "{interrupted:?}");
        assert_eq!((sequence.past(), sequence.tokens()), (past, &tokens[..past]));
        assert!(sequence.argmax().is_err(), "logits of a pass that was broken off");
        engine.feed(&mut sequence, &tokens[past..], Logits::Last).expect("it runs");
        assert_eq!(sequence.logits(), whole.logits());
    }
}

/// While the fastest number of threads is looked for, passes run on each of them.
#[test]
fn the_number_of_threads_may_change_under_way() {
    let model = model();
    let text = |threads: Threads| {
        let mut engine = Engine::new(&model, &EngineOptions { threads, ..OPTIONS }).expect("an engine");
        let mut sequence = engine.sequence();
        engine.feed(&mut sequence, &(3..20).collect::<Vec<_>>(), Logits::Last).expect("it runs");
        let mut bits = Vec::new();
        let mut used = Vec::new();
        for _ in 0..24 {
            let token = sequence.argmax().expect("a token");
            used.push(engine.threads());
            engine.feed(&mut sequence, &[token], Logits::Last).expect("it runs");
            bits.extend(sequence.logits().iter().map(|logit| logit.to_bits()));
        }
        used.sort_unstable();
        used.dedup();
        (bits, used)
    };
    let (alone, used) = text(Threads::Fixed(1));
    assert_eq!(used, [1]);
    let (changing, used) = text(Threads::Best(vec![2, 1, 3]));
    assert_eq!(used, [1, 2, 3]);
    assert!(alone == changing, "other logits");
}
