//! A whole model: loaded, some tokens run and drawn, from memory and streamed from a file; or refused.
#![no_main]

mod common;

use libfuzzer_sys::fuzz_target;
use wayinfer::engine::{Engine, EngineOptions, Sampler, SamplerConfig};
use wayinfer::gguf::Gguf;
use wayinfer::model::{KvType, Logits, Model};
use wayinfer::store::Guesses;
use wayinfer::text::{EncodeOptions, Tokenizer};
use wayinfer::verify::{Selection, WeightRows};

/// More than this and a run of a moment is none any more; it is refused for want of memory on a small machine.
const MOST_MEMORY: u64 = 64 << 20;

fuzz_target!(|data: &[u8]| {
    let first = common::with_model(data, |gguf| gguf.ok().and_then(|gguf| run(&gguf, false)));
    // The least memory gives the same tokens.
    if let Some(ids) = first {
        let path = common::write("m.gguf", data);
        let gguf = Gguf::open(path.as_path()).expect("opened before");
        if let Some(streamed) = run(&gguf, true) {
            assert_eq!(ids, streamed);
        }
    }
});

fn run(gguf: &Gguf, streamed: bool) -> Option<Vec<u32>> {
    for tensor in gguf.tensors.iter().filter(|_| !streamed) {
        if let Ok(rows) = WeightRows::open(gguf, tensor, &Selection::default()) {
            assert_eq!(
                rows.chunks().map(|c| c.expect("in memory").len() as u64).sum::<u64>(),
                tensor.elements()
            );
        }
    }
    let mut model = Model::load(gguf).ok()?;
    let text = Tokenizer::from_metadata(gguf.metadata(), None).ok();
    let options = EngineOptions {
        context: 12,
        batch: 4,
        kv: KvType::F16,
        threads: 1.into(),
        isa: None,
        drafts: 0,
        guesses: Guesses::Off,
    };
    if options.memory_bytes(model.spec(), 1) > MOST_MEMORY {
        return None;
    }
    let budget = match streamed {
        true => model.store().plan_for(0).err()?.least,
        false => u64::MAX,
    };
    let plan = model.store().plan_for(budget).ok()?;
    model.settle(plan).ok()?;
    let mut engine = Engine::new(&model, &options).ok()?;
    let mut sequence = engine.sequence();
    let vocab = model.spec().vocab as u32;
    let prompt: Vec<u32> = (1..6).map(|i| (i * 7) % vocab).collect();
    engine.feed(&mut sequence, &prompt, Logits::Last).ok()?;
    let mut sampler = Sampler::new(SamplerConfig::greedy()).ok()?;
    let mut ids = Vec::new();
    for chosen in engine.generate(&mut sequence, &mut sampler).take(4) {
        let Ok(chosen) = chosen else { break };
        assert!(chosen.id < vocab);
        ids.push(chosen.id);
    }
    if let Some(text) = text {
        let _ =
            text.encode(&text.decode(&ids, true), EncodeOptions { add_special: true, parse_special: true });
    }
    Some(ids)
}
