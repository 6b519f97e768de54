//! Models whose layers carry a state from token to token, or compress keys of several: the same bits however a text is cut into passes,
//! whoever else is in a pass, and wherever a sequence goes back to.

mod common;

use common::gguf::GgufBuilder;
use common::runs::{bits, load, options_of};
use common::{deepseek4, delta_nets, hyper, mamba, qwen4, state_spaces};
use wayinfer::engine::{Engine, EngineOptions, Feed, Sequence};
use wayinfer::kernels::{Isa, Kernels};
use wayinfer::model::{KvType, Logits, Model};

/// More than four pages, and more than the largest batch.
const TEXT: usize = 530;
const CONTEXT: usize = 600;

/// Runs a test on a model of each family.
fn with_models(test: impl Fn(&str, &Model)) {
    let dir = tempfile::TempDir::new().expect("a folder");
    let others = [("qwen4exp", qwen4::qwen4()), ("mamba", mamba::mamba()), ("jamba", mamba::jamba())];
    let all = state_spaces::all().into_iter().chain(delta_nets::all()).chain(hyper::all()).chain(others);
    for (name, builder) in all {
        let path = builder.write(&dir.path().join(format!("{name}.gguf")));
        test(name, &load(&path));
    }
}

fn tokens(seed: usize, n: usize) -> Vec<u32> {
    (0..n).map(|i| ((3 + 7919 * (i + 1) * (seed + 1) + 31 * seed) % 16) as u32).collect()
}

fn engine<'m>(model: &'m Model, isa: Isa, threads: usize, batch: usize) -> Engine<'m> {
    let options = options_of(CONTEXT, batch, isa, threads, KvType::F32);
    Engine::new(model, &EngineOptions { context: CONTEXT.max(batch), ..options }).expect("an engine")
}

/// The logits of every token of the text and of three more.
fn logits(engine: &mut Engine<'_>, text: &[u32]) -> Vec<u32> {
    let (mut sequence, mut all) = (engine.sequence(), Vec::new());
    for chunk in text.chunks(engine.batch()) {
        engine.feed(&mut sequence, chunk, Logits::All).expect("a pass");
        all.extend(bits(sequence.logits()));
    }
    for id in [1, 2, 3] {
        engine.feed(&mut sequence, &[id], Logits::Last).expect("a step");
        all.extend(bits(sequence.logits()));
    }
    all
}

#[test]
fn prefill_in_any_batches_gives_the_bits_of_single_tokens() {
    common::say_kernel_sets("state spaces");
    with_models(|name, model| {
        let text = tokens(0, TEXT);
        let truth = logits(&mut engine(model, Isa::Scalar, 1, 1), &text);
        assert!(truth.iter().all(|&l| f32::from_bits(l).is_finite()), "{name}");
        // The canary: a text that begins otherwise ends otherwise.
        let other = [&[5], &text[1..]].concat();
        assert_ne!(text, other);
        let others = logits(&mut engine(model, Isa::Scalar, 1, 512), &other);
        assert_ne!(others[others.len() - 16..], truth[truth.len() - 16..], "{name}: the past is forgotten");
        for (i, set) in Kernels::available().enumerate() {
            let batches = [(1, 7), (2, 128), (3, 512)];
            // The first set with all, the others with one each: a batch of another size is not another
            // kernel.
            let chosen = if i == 0 { &batches[..] } else { &batches[i % 3..i % 3 + 1] };
            for &(threads, batch) in chosen {
                let got = logits(&mut engine(model, set.isa(), threads, batch), &text);
                assert_eq!(got, truth, "{name}, {}, batches of {batch}, {threads} threads", set.isa());
            }
        }
    });
}

/// The canary of compressed keys: what others are made of changes nothing before the first is whole, and
/// everything from there on.
#[test]
fn compressed_keys_are_seen_once_they_are_whole() {
    let dir = tempfile::TempDir::new().expect("a folder");
    let text = tokens(0, 140);
    let logits_of = |name: &str, spoilt: Option<&str>| {
        let model = deepseek4::deepseek4();
        let model = match spoilt {
            Some(tensor) => model.values(tensor, |values| values.iter_mut().for_each(|v| *v = -*v)),
            None => model,
        };
        let model = load(&model.write(&dir.path().join(name)));
        let mut all = logits(&mut engine(&model, Isa::Scalar, 2, 512), &text);
        all.truncate(text.len() * 16);
        all
    };
    let sound = logits_of("sound.gguf", None);
    for (i, (layer, ratio)) in deepseek4::RATIOS.into_iter().enumerate().skip(1).enumerate() {
        let tensor = format!("blk.{layer}.attn_compressor_kv.weight");
        let spoilt = logits_of(&format!("{i}.gguf"), Some(&tensor));
        let same = sound.chunks(16).zip(spoilt.chunks(16)).take_while(|(a, b)| a == b).count();
        assert_eq!(same, ratio as usize - 1, "layer {layer}");
    }
}

/// The canary of indexers: what chooses changes nothing as long as a token attends to all, and something soon
/// behind that.
#[test]
fn indexers_choose_once_there_is_a_choice() {
    let dir = tempfile::TempDir::new().expect("a folder");
    let text = tokens(0, 40);
    let logits_of = |model: GgufBuilder| {
        let model = load(&model.write(&dir.path().join("model.gguf")));
        let mut all = logits(&mut engine(&model, Isa::Scalar, 2, 512), &text);
        all.truncate(text.len() * 16);
        all
    };
    // Seven positions; four pools and what is behind them.
    let pools = 4 * hyper::POOL as usize + hyper::POOL as usize - 1;
    for (model, layer, attended) in [(hyper::hy_v4(), 0, 7), (hyper::glm5_next(), 1, pools)] {
        let tensor = format!("blk.{layer}.indexer.attn_k.weight");
        let spoilt = model.clone().values(&tensor, |values| values.iter_mut().for_each(|v| *v = -*v));
        let (sound, spoilt) = (logits_of(model), logits_of(spoilt));
        let same = sound.chunks(16).zip(spoilt.chunks(16)).take_while(|(a, b)| a == b).count();
        assert!((attended..attended + 6).contains(&same), "{same} tokens, where {attended} attend to all");
    }
}

/// Lengths of the sequences' texts: shorter than a convolution's window, around a page's end, over two pages.
const TEXTS: [usize; 7] = [1, 2, 3, 127, 128, 131, 300];

/// What each sequence's text and two more tokens give alone, and in passes with the others.
fn alone_and_together(engine: &mut Engine<'_>, meddle: impl Fn(&mut [Sequence])) -> [Vec<Vec<u32>>; 2] {
    let texts: Vec<Vec<u32>> = TEXTS.iter().enumerate().map(|(s, &n)| tokens(s, n)).collect();
    let more: Vec<Vec<u32>> = (0..TEXTS.len()).map(|s| tokens(40 + s, 2)).collect();
    let alone = texts.iter().zip(&more).map(|(text, more)| {
        let mut sequence = engine.sequence();
        engine.feed(&mut sequence, &[&text[..], more].concat(), Logits::Last).expect("passes");
        bits(sequence.logits())
    });
    let alone = alone.collect();
    let mut sequences: Vec<Sequence> = texts.iter().map(|_| engine.sequence()).collect();
    for round in [&texts, &more] {
        let feeds = sequences.iter_mut().zip(round);
        let feeds = feeds.map(|(sequence, tokens)| Feed { sequence, tokens, logits: Logits::Last });
        engine.feed_all(&mut feeds.collect::<Vec<_>>()).expect("passes");
        if std::ptr::eq(round, &texts) {
            meddle(&mut sequences);
        }
    }
    [alone, sequences.iter().map(|sequence| bits(sequence.logits())).collect()]
}

#[test]
fn sequences_in_one_pass_get_the_bits_that_each_gets_alone() {
    with_models(|name, model| {
        for set in Kernels::available() {
            for batch in [101, 1000] {
                let mut engine = engine(model, set.isa(), 2, batch);
                let [alone, together] = alone_and_together(&mut engine, |_| ());
                assert_eq!(together, alone, "{name}, {}, batches of {batch}", set.isa());
            }
        }
    });
}

/// The comparison above sees two sequences that have each other's states.
#[test]
fn states_of_other_sequences_are_noticed() {
    with_models(|name, model| {
        let mut engine = engine(model, Isa::Scalar, 2, 1000);
        let [alone, together] = alone_and_together(&mut engine, |sequences| sequences.swap(3, 4));
        for s in 0..TEXTS.len() {
            assert_eq!(alone[s] == together[s], s != 3 && s != 4, "{name}: sequence {s}");
        }
    });
}

#[test]
fn going_back_and_on_gives_the_bits_of_a_fresh_run() {
    with_models(|name, model| {
        let mut engine = engine(model, Isa::Scalar, 2, 100);
        let text = tokens(0, 300);
        let mut sequence = engine.sequence();
        engine.feed(&mut sequence, &text, Logits::Last).expect("passes");
        for past in [299, 290, 256, 255, 200, 130, 128, 100, 3, 1, 0] {
            let mut back = sequence.fork();
            let from = back.rewind(past);
            assert!(from <= past, "{name}: {from} for {past}");
            let more = tokens(9, 4);
            engine.feed(&mut back, &[&text[from..past], &more].concat(), Logits::Last).expect("passes");
            let mut fresh = engine.sequence();
            engine.feed(&mut fresh, &[&text[..past], &more].concat(), Logits::Last).expect("passes");
            assert_eq!(bits(back.logits()), bits(fresh.logits()), "{name}: back to {past}");
        }
    });
}

/// What is left of drafts needs no second run: each of their states is there.
#[test]
fn drafts_are_taken_back_one_by_one() {
    with_models(|name, model| {
        let mut engine = engine(model, Isa::Scalar, 2, 100);
        let (text, drafts, more) = (tokens(0, 125), tokens(7, 6), tokens(8, 2));
        for kept in 1..=drafts.len() {
            let mut sequence = engine.sequence();
            engine.feed(&mut sequence, &text, Logits::None).expect("passes");
            engine.feed(&mut sequence, &drafts, Logits::Drafts).expect("a pass");
            let past = text.len() + kept;
            assert_eq!(sequence.rewind(past), past, "{name}");
            engine.feed(&mut sequence, &more, Logits::Last).expect("a pass");
            let mut fresh = engine.sequence();
            let whole = [&text[..], &drafts[..kept], &more].concat();
            engine.feed(&mut fresh, &whole, Logits::Last).expect("passes");
            assert_eq!(bits(sequence.logits()), bits(fresh.logits()), "{name}: {kept} drafts kept");
        }
    });
}
