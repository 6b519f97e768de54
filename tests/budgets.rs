//! What a run takes beside the weights is within what a budget sets aside for it.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::runs::{fixture, options};
use common::say;
use wayinfer::engine::{Engine, EngineOptions, Sampler, SamplerConfig, Speculation};
use wayinfer::gguf::Gguf;
use wayinfer::model::{Buffers, KvType, Logits, Model};

/// The system's allocator; counts what it has given and not got back, and the most of that.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static COUNTING: Counting = Counting;

fn given(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::SeqCst) + bytes;
    MOST.fetch_max(now, Ordering::SeqCst);
}

// SAFETY: all is the system's allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        given(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        given(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }
}

/// What a worker thread is counted with, which is mostly its stack; and what a pass takes in small pieces.
const THREAD: u64 = 2 << 20;
const SMALL: u64 = 256 << 10;

/// The most bytes that an engine and a sequence had at a time, in a run of as many tokens as fit.
fn most_bytes(model: &Model, options: &EngineOptions) -> u64 {
    let vocab = model.spec().vocab;
    let made = 24;
    let prompt: Vec<u32> = (0..options.context - made).map(|i| ((3 + 7919 * i) % vocab) as u32).collect();
    let before = NOW.load(Ordering::SeqCst);
    MOST.store(before, Ordering::SeqCst);
    let mut engine = Engine::new(model, options).expect("an engine");
    let mut sequence = engine.sequence();
    engine.feed(&mut sequence, &prompt, Logits::Last).expect("the prompt");
    let mut sampler = Sampler::new(SamplerConfig::greedy()).expect("a sampler");
    let block = model.spec().nextn.is_some();
    let speculation =
        if block { Speculation::Block(Some(options.drafts)) } else { Speculation::Fixed(options.drafts) };
    let tokens = engine.generate(&mut sequence, &mut sampler).speculate(speculation, made);
    assert_eq!(tokens.take(made).filter(|token| token.is_ok()).count(), made);
    (MOST.load(Ordering::SeqCst) - before) as u64
}

/// One test: the counts are the process's.
#[test]
fn runs_take_no_more_than_is_set_aside() {
    for (name, batch) in [
        ("dense-q8_0", 1024),
        ("moe-q4_k_m", 1024),
        ("gpt-oss", 1024),
        ("gemma3n", 512),
        ("deepseek2", 512),
        ("deepseek32", 1024),
        ("glm-dsa", 1024),
        ("minimax-m3", 1024),
        ("deepseek4", 1024),
        ("qwen35moe", 512),
        ("falcon-h1", 512),
        ("hy_v3", 512),
    ] {
        let gguf = Gguf::open(&fixture(name)).expect("the fixture");
        let model = Model::load_with_nextn(&gguf).or_else(|_| Model::load(&gguf)).expect("a model");
        let options = EngineOptions { drafts: 3, ..options(1024, batch) };
        let most = most_bytes(&model, &options);
        let counted = options.memory_bytes(model.spec(), 1 + options.drafts)
            - options.threads.started() as u64 * THREAD;
        say(&format!("{name}: {most} of {counted} bytes"));
        assert!(most <= counted + SMALL, "{name}: {most} bytes, {counted} counted");
    }
    choices_grow_with_the_context();
}

/// Masks of the positions that tokens attend to are as many as positions, and there is one for each row.
fn choices_grow_with_the_context() {
    // Lists of a row, and positions that a bit stands for.
    for (name, lists, per_bit) in
        [("deepseek32", 1, 1), ("glm-dsa", 1, 1), ("minimax-m3", 2, 1), ("deepseek4", 2, 4)]
    {
        let model = common::runs::load(&fixture(name));
        let bytes = |context| Buffers::bytes(model.spec(), [512, context], 1, 2, KvType::F16);
        let masks = 512 * lists * ((1 << 20) / per_bit / 8);
        let more = bytes(1 << 20) - bytes(1 << 10);
        assert!(more >= masks && more < 10 * masks, "{name}: {more} bytes more, {masks} of masks");
    }
    // Whatever is asked for has a number.
    let model = common::runs::load(&fixture("deepseek4"));
    assert!(Buffers::bytes(model.spec(), [usize::MAX, usize::MAX], 1, 1024, KvType::Q8_0) > 1 << 60);
}
