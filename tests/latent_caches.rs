//! Quantised caches of latents, of models that are made here: no fixture's latents are whole blocks.

mod common;

use common::nextn::deepseek2_of;
use common::runs::{bits, load, options_of};
use wayinfer::engine::{Engine, EngineError};
use wayinfer::kernels::{Isa, Kernels};
use wayinfer::model::{KvElement, KvError, KvType, Logits, Model};

/// Over two pages.
const TEXT: usize = 300;

/// Latents and rotated elements: one block of both, whose end is no value; several of each.
const LENGTHS: [[u64; 2]; 2] = [[28, 4], [64, 32]];

fn with_models(test: impl Fn(&str, &Model)) {
    let dir = tempfile::TempDir::new().expect("a folder");
    for lengths in LENGTHS {
        let path = deepseek2_of(lengths).write(&dir.path().join("model.gguf"));
        test(&format!("latents of {lengths:?}"), &load(&path));
    }
}

/// The logits of all tokens, fed in batches.
fn logits(model: &Model, isa: Isa, threads: usize, batch: usize, kv: KvType) -> Vec<f32> {
    let text: Vec<u32> = (0..TEXT).map(|i| ((3 + 7919 * (i + 1)) % 16) as u32).collect();
    let mut engine = Engine::new(model, &options_of(TEXT, batch, isa, threads, kv)).expect("an engine");
    let (mut sequence, mut all) = (engine.sequence(), Vec::new());
    for chunk in text.chunks(engine.batch()) {
        engine.feed(&mut sequence, chunk, Logits::All).expect("a pass");
        all.extend_from_slice(sequence.logits());
    }
    all
}

#[test]
fn every_batch_thread_and_kernel_set_gives_the_same_bits() {
    common::say_kernel_sets("latent_caches");
    with_models(|name, model| {
        for kv in [KvType::Q8_0, KvType::Q4_0] {
            let truth = bits(&logits(model, Isa::Scalar, 1, 1, kv));
            for (i, set) in Kernels::available().enumerate() {
                for (threads, batch) in [(1, 7), (2, 128), (3, TEXT)].into_iter().skip(i % 2) {
                    let got = bits(&logits(model, set.isa(), threads, batch, kv));
                    assert!(got == truth, "{name}, {kv}, {}, batches of {batch}", set.isa());
                }
            }
        }
    });
}

/// How far the logits are from those of f32 latents, by NMSE. Measured, of the first model (the second is
/// nearer): f16 2.9e-7, q8_0 3.0e-4, q4_0 3.8e-2.
#[test]
fn quantised_latents_are_near_those_of_f32() {
    const BOUNDS: [(KvType, f64); 3] = [(KvType::F16, 1.2e-6), (KvType::Q8_0, 1.2e-3), (KvType::Q4_0, 0.15)];
    with_models(|name, model| {
        let truth = logits(model, Isa::Scalar, 2, TEXT, KvType::F32);
        let mut before = 0.0;
        for (kv, bound) in BOUNDS {
            let got = logits(model, Isa::Scalar, 2, TEXT, kv);
            let square = |v: f64| v * v;
            let error: f64 = truth.iter().zip(&got).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
            let nmse = error / truth.iter().map(|&a| square(f64::from(a))).sum::<f64>();
            common::say(&format!("{name}: {kv} {nmse:.2e}"));
            // The canary: what is coarser is farther away, so each cache is one of its own.
            assert!(nmse > 4.0 * before, "{name}: {kv} {nmse:e}");
            assert!(nmse < bound, "{name}: {kv} {nmse:e}");
            before = nmse;
        }
    });
}

#[test]
fn types_that_latents_cannot_have_are_refused() {
    let dir = tempfile::TempDir::new().expect("a folder");
    let refusal = |lengths, kv| {
        let model = load(&deepseek2_of(lengths).write(&dir.path().join("model.gguf")));
        match Engine::new(&model, &options_of(TEXT, TEXT, Isa::Scalar, 1, kv)).err() {
            Some(EngineError::Kv(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let apart = KvType { keys: KvElement::Q8_0, values: KvElement::Q4_0 };
    assert_eq!(refusal(LENGTHS[0], apart), KvError::Apart(apart));
    let element = KvElement::Q8_0;
    assert_eq!(refusal([16, 4], KvType::Q8_0), KvError::Blocks { element, what: "its latents", len: 20 });
}
