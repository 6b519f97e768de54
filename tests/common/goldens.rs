//! The fixtures and what ggml computed on them.
#![allow(dead_code)] // each test file uses a part

use std::path::{Path, PathBuf};

use super::runs::{Run, load, options};
use wayinfer::engine::EngineOptions;
use wayinfer::kernels::Isa;
use wayinfer::model::{KvType, Model};
use wayinfer::verify::{
    CompareOptions, Comparer, Golden, GoldenReference, NodeFilter, NodeGraph, Substitute, Tolerance,
};

/// A fixture with one of its reference files.
pub struct Case {
    /// `moe-q4_k_m/long`
    pub name: String,
    pub fixture: PathBuf,
    pub golden: PathBuf,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every reference file with every model that it is of, as the manifest has them.
pub fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(root().join("golden/manifest.json")).expect("the manifest");
    let manifest: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let fixtures = manifest["fixtures"].as_object().expect("fixtures");
    let mut cases = Vec::new();
    for (name, fixture) in fixtures {
        let owner = fixture["goldens_of"].as_str().unwrap_or(name);
        for golden in fixtures[owner]["goldens"].as_array().expect("goldens") {
            let file = golden["file"].as_str().expect("a file");
            let stem = Path::new(file).file_stem().expect("a name").to_string_lossy();
            cases.push(Case {
                name: format!("{name}/{stem}"),
                fixture: root().join(fixture["file"].as_str().expect("a file")),
                golden: root().join(file),
            });
        }
    }
    assert!(cases.len() >= 20, "{} cases", cases.len());
    cases
}

/// The case of this name.
pub fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name}"))
}

/// A fixture, loaded, with a reference file.
pub struct Loaded {
    pub model: Model,
    pub graph: NodeGraph<'static>,
    pub golden: Golden,
}

impl Loaded {
    /// Loads a model (the case's fixture, or one with a fault in it) with a case's reference.
    pub fn new(fixture: &Path, golden: &Path) -> Loaded {
        let model = load(fixture);
        let graph = NodeGraph::new(&model.graph().expect("its graph"));
        Loaded { model, graph, golden: Golden::open(golden).unwrap_or_else(|e| panic!("{e}")) }
    }

    pub fn of(case: &Case) -> Loaded {
        Loaded::new(&case.fixture, &case.golden)
    }

    /// The cache that the reference was made with.
    pub fn kv(&self) -> KvType {
        self.golden.description().kv.parse().expect("a type")
    }

    /// Positions of a run of the prompt and of what follows.
    pub fn positions(&self) -> usize {
        self.golden.prompt().len() + self.golden.greedy().len()
    }

    /// A run that takes the whole prompt in one pass, as the reference did.
    pub fn run(&self, isa: Option<Isa>, threads: usize) -> Run<'_> {
        let prompt = self.golden.prompt().len();
        let options = EngineOptions {
            kv: self.kv(),
            threads: threads.into(),
            isa,
            ..options(self.positions(), prompt)
        };
        Run::new(&self.model, &options)
    }

    pub fn comparer(&self, isolate: bool) -> Comparer<'_, 'static, GoldenReference<'_>> {
        let tolerance = if isolate { Tolerance::Bounds } else { Tolerance::Nmse(f64::MAX) };
        let options = CompareOptions {
            substitute: if isolate { Substitute::Everywhere } else { Substitute::Nowhere },
            tolerance,
            kv: self.kv(),
            positions: self.positions(),
            filter: NodeFilter::default(),
            flips: !isolate,
        };
        Comparer::new(&self.graph, self.golden.reference(), options)
    }
}
