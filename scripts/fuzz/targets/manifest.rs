//! Manifests of hashes: read, and a model held to them, or refused.
#![no_main]

mod common;
#[path = "../../../tests/common/gguf.rs"]
#[allow(dead_code)]
mod gguf;
#[path = "../../../tests/common/tiny.rs"]
#[allow(dead_code)]
mod tiny;

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use wayinfer::gguf::Gguf;
use wayinfer::verify::files::{Algorithm, Algorithms, Covered, Manifest, ModelDigests, check, hash};

/// A model that is held to manifests, and its hashes.
fn model() -> &'static (PathBuf, Gguf, ModelDigests) {
    static MODEL: OnceLock<(PathBuf, Gguf, ModelDigests)> = OnceLock::new();
    MODEL.get_or_init(|| {
        let path = common::write("model.gguf", &tiny::tiny_model().build());
        let gguf = Gguf::open(path.as_path()).expect("a model");
        let all = Covered { algorithms: Algorithms::BOTH, files: true, tensors: true };
        let digests = hash(&gguf, all, &|_| ()).expect("hashes");
        (path, gguf, digests)
    })
}

fuzz_target!(|data: &[u8]| {
    let Ok(mut manifest) = Manifest::open(&common::write("manifest", data)) else { return };
    assert!(!manifest.is_empty());
    let (path, gguf, digests) = model();
    for asked in [None, Some(Algorithm::Xxh3), Some(Algorithm::Sha256)] {
        let _ = manifest.covered(asked);
    }
    for deviation in check(gguf, path, digests, &manifest).deviations {
        assert!(!format!("{deviation:?}").is_empty());
    }
    manifest.keep(true, false);
    assert!(manifest.tensors.is_empty() && manifest.model.is_none());
    manifest.keep(false, true);
    assert!(manifest.is_empty());
});
