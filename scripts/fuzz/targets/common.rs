//! What the targets share.
#![allow(dead_code)] // each target uses a part of it

use std::path::PathBuf;
use std::sync::OnceLock;

use tempfile::TempDir;
use wayinfer::gguf::{Gguf, GgufError, Source, StaticBytes};

/// Runs `use_model` with the model whose whole file these bytes are, read where they are.
pub fn with_model<T>(bytes: &[u8], use_model: impl FnOnce(Result<Gguf, GgufError>) -> T) -> T {
    // SAFETY: the model is dropped before this function returns, and `T` cannot hold on to the bytes: `use_model` gets the
    // only thing that has them.
    let bytes: &'static [u8] = unsafe { std::mem::transmute(bytes) };
    use_model(Gguf::open(Source::Memory { name: "fuzzed", bytes: StaticBytes(bytes) }))
}

/// A file of this process.
pub fn path(name: &str) -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| TempDir::new().expect("a folder")).path().join(name)
}

/// Writes a file of this process.
pub fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = path(name);
    std::fs::write(&path, bytes).expect("a file can be written");
    path
}
