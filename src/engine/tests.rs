//! A pass that is broken off leaves the sequence as it was.

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

#[test]
fn an_interrupted_prefill_ends_within_its_batch_and_can_be_done_again() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/moe-q4_k_m.gguf");
    let model = Model::load(&Gguf::open(&path).expect("a model")).expect("it loads");
    let options = EngineOptions {
        context: 64,
        batch: 16,
        kv: KvType::F16,
        threads: 2,
        isa: None,
        drafts: 0,
        guess_experts: false,
    };
    let tokens: Vec<u32> = (3..43).collect();
    let go_on = |_| ControlFlow::Continue(());
    let mut engine = Engine::new(&model, &options).expect("an engine");
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
