//! A page of a text in a prefix cache, as a run with a model leaves it.

use std::ops::ControlFlow;
use std::path::Path;

use wayinfer::engine::{Engine, EngineOptions, ModelId, PrefixCache, PrefixFolder};
use wayinfer::gguf::Gguf;
use wayinfer::model::{KvType, Logits, Model};
use wayinfer::store::Guesses;

pub fn options() -> EngineOptions {
    let (context, batch, kv) = (160, 160, KvType::F16);
    EngineOptions { context, batch, kv, threads: 1.into(), isa: None, drafts: 0, guesses: Guesses::Off }
}

/// A page and a token.
pub fn text() -> Vec<u32> {
    (0..129).map(|i| 3 + i * 7 % 11).collect()
}

/// Runs the text, and keeps it in a folder: the name and the bytes of its one page.
pub fn kept(gguf: &Gguf, folder: &Path) -> (String, Vec<u8>) {
    let model = Model::load(gguf).expect("a sound model");
    let mut engine = Engine::new(&model, &options()).expect("an engine");
    let open = PrefixFolder::open(folder).expect("a folder");
    let (id, _) = ModelId::of(gguf, &open, |_, _| ControlFlow::Continue(())).expect("in memory");
    let mut sequence = engine.sequence();
    engine.feed(&mut sequence, &text(), Logits::None).expect("a sound model");
    PrefixCache::new(open, u64::MAX, id, &engine).keep(&sequence);
    let mut files = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file").path());
    let file = files.find(|path| path.extension().is_some_and(|ending| ending == "page")).expect("a page");
    let name = file.file_name().expect("a name").to_string_lossy().into_owned();
    (name, std::fs::read(&file).expect("a file"))
}
