//! A file of a prefix cache: used where it is what it has to be, else refused and computed anew. Its checksum is made right
//! as well, so that everything behind it is reached.
#![no_main]

mod common;

use std::cell::RefCell;
use std::ops::ControlFlow;

use libfuzzer_sys::fuzz_target;
use wayinfer::engine::{Engine, ModelId, PrefixCache, PrefixFolder};
use wayinfer::gguf::{Gguf, Source, StaticBytes};
use wayinfer::model::{Logits, Model};

#[path = "../cached.rs"]
mod cached;
#[path = "../../../tests/common/gguf.rs"]
#[allow(dead_code)]
mod gguf;
#[path = "../../../tests/common/tiny.rs"]
#[allow(dead_code)]
mod tiny;

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// What stays from one input to the next: a model, and a folder with a page of a text.
struct World {
    engine: Engine<'static>,
    folder: PrefixFolder,
    model: ModelId,
    name: String,
    whole: Vec<u8>,
}

impl World {
    fn new() -> World {
        let bytes: &'static [u8] = Vec::leak(tiny::tiny_model().build());
        let gguf =
            Gguf::open(Source::Memory { name: "tiny", bytes: StaticBytes(bytes) }).expect("a sound model");
        let folder = common::path("cache");
        let kept = cached::kept(&gguf, &folder);
        let folder = PrefixFolder::open(&folder).expect("a folder");
        let (model, _) = ModelId::of(&gguf, &folder, |_, _| ControlFlow::Continue(())).expect("in memory");
        let loaded: &'static Model = Box::leak(Box::new(Model::load(&gguf).expect("a sound model")));
        let engine = Engine::new(loaded, &cached::options()).expect("an engine");
        World { engine, folder, model, name: kept.0, whole: kept.1 }
    }

    /// Reads a text back with these bytes in the page's place, and runs the rest.
    fn run(&mut self, bytes: &[u8]) {
        std::fs::write(self.folder.path().join(&self.name), bytes).expect("a file can be written");
        let mut cache = PrefixCache::new(self.folder.clone(), u64::MAX, self.model, &self.engine);
        let mut sequence = self.engine.sequence();
        let ids = cached::text();
        let restored = cache.restore(&mut sequence, &ids);
        // Nothing of another size or with another header is used.
        assert!(
            restored.positions == 0 || (bytes.len() == self.whole.len() && bytes[..128] == self.whole[..128])
        );
        assert_eq!(restored.positions == 0, !cache.take_warnings().is_empty());
        // Whatever numbers it held: tokens, or an error.
        let _ = self.engine.feed(&mut sequence, &ids[restored.positions..], Logits::Last);
        let _ = sequence.argmax();
    }
}

fuzz_target!(|data: &[u8]| {
    WORLD.with_borrow_mut(|world| {
        let world = world.get_or_insert_with(World::new);
        world.run(data);
        if let Some(at) = data.len().checked_sub(32) {
            let mut sealed = data.to_vec();
            let hash = *blake3::hash(&sealed[..at]).as_bytes();
            sealed[at..].copy_from_slice(&hash);
            world.run(&sealed);
        }
    });
});
