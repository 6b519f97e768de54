//! Models of the fixtures at work, most of them on one sequence, and the nodes that they compute.
#![allow(dead_code)] // each test binary uses a part

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use wayinfer::engine::{Engine, EngineError, EngineOptions, Sequence};
use wayinfer::gguf::Gguf;
use wayinfer::kernels::Isa;
use wayinfer::model::{KvType, Logits, Model, Node, NodeId, Observer};
use wayinfer::store::Guesses;

/// The file of a fixture.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(format!("{name}.gguf"))
}

/// A model, mapped.
pub fn load(path: &Path) -> Model {
    let gguf = Gguf::open(path).unwrap_or_else(|e| panic!("{e}"));
    Model::load(&gguf).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Options of an engine with two threads, the best kernel set and a cache of f16.
pub fn options(context: usize, batch: usize) -> EngineOptions {
    EngineOptions {
        context,
        batch,
        kv: KvType::F16,
        threads: 2.into(),
        isa: None,
        drafts: 15,
        guesses: Guesses::Off,
    }
}

/// The same with another kernel set, number of threads and cache.
pub fn options_of(context: usize, batch: usize, isa: Isa, threads: usize, kv: KvType) -> EngineOptions {
    EngineOptions { isa: Some(isa), threads: threads.into(), kv, ..options(context, batch) }
}

/// An engine with one sequence.
pub struct Run<'m> {
    pub engine: Engine<'m>,
    pub sequence: Sequence,
}

impl<'m> Run<'m> {
    pub fn new(model: &'m Model, options: &EngineOptions) -> Run<'m> {
        let engine = Engine::new(model, options).expect("an engine");
        let sequence = engine.sequence();
        Run { engine, sequence }
    }

    pub fn feed(&mut self, tokens: &[u32], logits: Logits) -> Result<(), EngineError> {
        self.engine.feed(&mut self.sequence, tokens, logits)
    }

    pub fn feed_observed(
        &mut self,
        tokens: &[u32],
        logits: Logits,
        observer: &mut dyn Observer,
    ) -> Result<(), EngineError> {
        let go_on = |_| ControlFlow::Continue(());
        self.engine.feed_observed(&mut self.sequence, tokens, logits, observer, go_on)
    }

    pub fn logits(&self) -> &[f32] {
        self.sequence.logits()
    }
}

/// A node as a pass computed it. Every NaN has the same bits.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenNode {
    pub id: NodeId<'static>,
    pub shape: [usize; 3],
    pub bits: Vec<u32>,
}

/// The bits of floats; every NaN has the same.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

/// Keeps every node.
#[derive(Default)]
pub struct Nodes(pub Vec<SeenNode>);

impl Observer for Nodes {
    fn active(&self) -> bool {
        true
    }

    fn node(&mut self, node: &Node<'_>, values: &mut [f32]) {
        self.0.push(SeenNode { id: node.id, shape: node.shape, bits: bits(values) });
    }

    fn indices(&mut self, node: &Node<'_>, values: &mut [u32]) {
        self.0.push(SeenNode { id: node.id, shape: node.shape, bits: values.to_vec() });
    }
}

/// The same nodes with the same bits.
pub fn assert_same_nodes(want: &[SeenNode], got: &[SeenNode], what: &str) {
    assert_eq!(want.len(), got.len(), "{what}: as many nodes");
    for (want, got) in want.iter().zip(got) {
        assert!(want == got, "{what}: {} {:?}, {} {:?}", want.id, want.shape, got.id, got.shape);
    }
}
