//! What was read back gives the bits of a run that computed it; what is not what it has to be is not used.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::*;
use crate::engine::EngineOptions;
use crate::gguf::Gguf;
use crate::kernels::{Isa, Kernels};
use crate::model::{KvElement, KvType, Logits, MemorySpec, Model};
use crate::store::Guesses;

/// Tokens of a text: two full pages and some.
const TEXT: usize = 300;
const NO_LIMIT: u64 = u64::MAX;

fn load(name: &str) -> Model {
    let path = format!("{}/fixtures/{name}.gguf", env!("CARGO_MANIFEST_DIR"));
    Model::load(&Gguf::open(&path).expect(name)).expect(name)
}

fn options(kv: KvType) -> EngineOptions {
    let (context, batch) = (400, 64);
    EngineOptions { context, batch, kv, threads: 1.into(), isa: None, drafts: 0, guesses: Guesses::Off }
}

fn engine(model: &Model, kv: KvType) -> Engine<'_> {
    Engine::new(model, &options(kv)).expect("an engine")
}

fn text(model: &Model, n: usize) -> Vec<u32> {
    (0..n).map(|i| (3 + 7919 * i as u32) % model.spec().vocab as u32).collect()
}

fn cache_of(folder: &Path, engine: &Engine<'_>) -> PrefixCache {
    let folder = PrefixFolder::open(folder).expect("a folder");
    PrefixCache::new(folder, NO_LIMIT, ModelId([7; 32]), engine)
}

/// Tokens more, one by one, each the most probable; the logits before each as bits.
fn go_on(engine: &mut Engine<'_>, sequence: &mut Sequence, n: usize) -> (Vec<u32>, Vec<Vec<u32>>) {
    let bits = |sequence: &Sequence| sequence.logits().iter().map(|logit| logit.to_bits()).collect();
    let mut logits = vec![bits(sequence)];
    let mut ids = Vec::new();
    for _ in 0..n {
        ids.push(sequence.argmax().expect("a token"));
        engine.feed(sequence, &ids[ids.len() - 1..], Logits::Last).expect("a pass");
        logits.push(bits(sequence));
    }
    (ids, logits)
}

/// Computes a text and keeps it; what follows.
fn keep(engine: &mut Engine<'_>, cache: &mut PrefixCache, ids: &[u32]) -> (Vec<u32>, Vec<Vec<u32>>) {
    let mut sequence = engine.sequence();
    engine.feed(&mut sequence, ids, Logits::Last).expect("a text");
    cache.keep(&sequence);
    go_on(engine, &mut sequence, 3)
}

/// Reads a text back as far as it goes and computes the rest: positions that were read, and what follows.
fn restored(
    engine: &mut Engine<'_>,
    cache: &mut PrefixCache,
    ids: &[u32],
) -> (usize, (Vec<u32>, Vec<Vec<u32>>)) {
    let mut sequence = engine.sequence();
    let positions = cache.restore(&mut sequence, ids).positions;
    assert_eq!((sequence.past(), sequence.tokens()), (positions, &ids[..positions]));
    engine.feed(&mut sequence, &ids[positions..], Logits::Last).expect("the rest");
    (positions, go_on(engine, &mut sequence, 3))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files
}

/// Models of which each remembers in another way.
const KINDS: [&str; 13] = [
    "dense-q8_0",
    "moe-q4_k_m",
    "gemma3",
    "gpt-oss",
    "llama4",
    "deepseek2",
    "glm-dsa",
    "deepseek4",
    "minimax-m3",
    "mamba",
    "jamba",
    "qwen3next",
    "qwen4exp",
];

#[test]
fn bits_are_those_of_a_run_without() {
    let (mut seen, mut seen_quantised) = ([false; 6], false);
    for name in KINDS {
        let model = load(name);
        for memory in &model.spec().memories {
            let kind = match memory {
                MemorySpec::Pages { window: None, .. } => 0,
                MemorySpec::Pages { .. } => 1,
                MemorySpec::Rows { .. } | MemorySpec::Latents { .. } => 2,
                MemorySpec::Compressing { .. } => 3,
                MemorySpec::Compressed { .. } => 4,
                MemorySpec::Recurrent { .. } => 5,
            };
            seen[kind] = true;
        }
        let quantised = KvType { keys: KvElement::Q8_0, values: KvElement::Q4_0 };
        for kv in [KvType::F16, KvType::F32, quantised] {
            if SequenceState::check(model.spec(), kv).is_err() {
                continue;
            }
            seen_quantised |= kv == quantised;
            let dir = tempfile::tempdir().expect("a folder");
            let ids = text(&model, TEXT);
            let engine = &mut engine(&model, kv);
            let mut cache = cache_of(dir.path(), engine);
            let truth = keep(engine, &mut cache, &ids);
            // Another process, another batch.
            let other = EngineOptions { batch: 37, ..options(kv) };
            let engine = &mut Engine::new(&model, &other).expect("an engine");
            let mut cache = cache_of(dir.path(), engine);
            let (positions, found) = restored(engine, &mut cache, &ids);
            assert_eq!(positions, 2 * PAGE, "{name} {kv}");
            assert!(found == truth, "{name} {kv}: {:?} after {:?}", found.0, truth.0);
            assert_eq!(cache.take_warnings(), [""; 0], "{name} {kv}");
        }
    }
    assert!(seen == [true; 6] && seen_quantised, "kinds of memory");
}

#[test]
fn files_are_the_same_on_every_kernel_set() {
    for name in ["dense-q8_0", "deepseek4", "qwen3next"] {
        let model = load(name);
        let ids = text(&model, 200);
        let mut truth: Option<Vec<(PathBuf, Vec<u8>)>> = None;
        let isas: Vec<Isa> = Kernels::available().map(|set| set.isa()).collect();
        for &isa in &isas {
            let dir = tempfile::tempdir().expect("a folder");
            let options = EngineOptions { isa: Some(isa), ..options(KvType::F16) };
            let engine = &mut Engine::new(&model, &options).expect("an engine");
            let mut cache = cache_of(dir.path(), engine);
            let follows = keep(engine, &mut cache, &ids);
            let contents =
                |path: PathBuf| (path.file_name().expect("a name").into(), fs::read(&path).expect("a file"));
            let written: Vec<_> = files(dir.path()).into_iter().map(contents).collect();
            assert!(!written.is_empty());
            assert!(*truth.get_or_insert(written.clone()) == written, "{name} {isa}");
            // Read by each of the others.
            for &other in &isas {
                let options = EngineOptions { isa: Some(other), ..options.clone() };
                let engine = &mut Engine::new(&model, &options).expect("an engine");
                let mut cache = cache_of(dir.path(), engine);
                let (positions, found) = restored(engine, &mut cache, &ids);
                assert_eq!(positions, PAGE);
                assert!(found == follows, "{name}: written with {isa}, read with {other}");
            }
        }
    }
}

/// What README says of sizes: a page of the 1B shape of Llama 3.2, and of a file what lies around it.
#[test]
fn a_page_takes_what_it_takes_in_memory() {
    let model = load("dense-q8_0");
    let state = SequenceState::new(model.spec(), KvType::F16);
    let floats = |memory: &MemorySpec| match *memory {
        MemorySpec::Pages { kv_heads, key_len, value_len, .. } => kv_heads * (key_len + value_len),
        _ => unreachable!("attention alone"),
    };
    let elements: usize = model.spec().memories.iter().map(floats).sum();
    let parts = SequenceState::kept_parts(model.spec());
    assert_eq!(parts.iter().map(|part| state.kept_bytes(part, 0)).sum::<u64>(), (2 * PAGE * elements) as u64);
    let kept = Kept::new();
    assert_eq!(kept.whole.len(), 128 + 2 * PAGE * elements + 32);
    let one_b = MemorySpec::Pages { kv_heads: 8, key_len: 64, value_len: 64, window: None };
    let spec =
        crate::model::ModelSpec { memories: vec![one_b; 16], trunk_memories: 16, ..model.spec().clone() };
    let state = SequenceState::new(&spec, KvType::F16);
    assert_eq!(state.kept_bytes(&SequenceState::kept_parts(&spec)[0], 0), 4_194_304);
}

#[test]
fn texts_share_their_beginning() {
    let model = load("dense-q8_0");
    let dir = tempfile::tempdir().expect("a folder");
    let engine = &mut engine(&model, KvType::F16);
    let mut cache = cache_of(dir.path(), engine);
    let ids = text(&model, TEXT);
    keep(engine, &mut cache, &ids);
    let count = files(dir.path()).len();
    assert_eq!(count, 2);
    let mut other = ids.clone();
    other[200] += 1;
    let (positions, found) = restored(engine, &mut cache, &other);
    assert_eq!(positions, PAGE);
    let elsewhere = tempfile::tempdir().expect("a folder");
    let mut alone = cache_of(elsewhere.path(), engine);
    assert!(found == keep(engine, &mut alone, &other));
    keep(engine, &mut cache, &other);
    assert_eq!(files(dir.path()).len(), count + 1, "the page that differs");
    // The first token differs.
    other[0] += 1;
    assert_eq!(restored(engine, &mut cache, &other).0, 0);
    // The last token is left to be run: its logits are wanted.
    for (n, wanted) in [(0, 0), (1, 0), (128, 0), (129, 128), (256, 128), (257, 256)] {
        let mut sequence = engine.sequence();
        assert_eq!(cache.restore(&mut sequence, &ids[..n]).positions, wanted, "{n} tokens");
    }
}

/// Where a sequence cannot be cut back, a second text says where it parts from the first: a third goes on
/// there.
#[test]
fn texts_that_part_are_kept_where_they_do() {
    for name in ["mamba", "jamba", "gemma3"] {
        let model = load(name);
        let dir = tempfile::tempdir().expect("a folder");
        let engine = &mut engine(&model, KvType::F16);
        let mut cache = cache_of(dir.path(), engine);
        let text_of = |i: usize| {
            let mut ids = text(&model, 390);
            ids[200] = i as u32;
            ids
        };
        keep(engine, &mut cache, &text_of(0));
        let ids = text_of(1);
        let mut sequence = engine.sequence();
        let restored_now = cache.restore(&mut sequence, &ids);
        assert_eq!((restored_now.positions, restored_now.parts_at), (0, Some(PAGE)), "{name}");
        engine.feed(&mut sequence, &ids[..PAGE], Logits::None).expect("a page");
        cache.keep(&sequence);
        let ids = text_of(2);
        let (positions, found) = restored(engine, &mut cache, &ids);
        assert_eq!(positions, PAGE, "{name}");
        let elsewhere = tempfile::tempdir().expect("a folder");
        let mut alone = cache_of(elsewhere.path(), engine);
        assert!(found == keep(engine, &mut alone, &ids), "{name}");
        // The first is found whole as before.
        let found = cache.restore(&mut engine.sequence(), &text_of(0));
        assert_eq!((found.positions, found.parts_at), (3 * PAGE, None), "{name}");
    }
}

#[test]
fn a_sequence_that_knows_more_stays_as_it_is() {
    let model = load("dense-q8_0");
    let dir = tempfile::tempdir().expect("a folder");
    let engine = &mut engine(&model, KvType::F16);
    let mut cache = cache_of(dir.path(), engine);
    let ids = text(&model, TEXT);
    keep(engine, &mut cache, &ids);
    for (past, wanted) in [(0, 256), (100, 156), (256, 0), (299, 0)] {
        let mut sequence = engine.sequence();
        engine.feed(&mut sequence, &ids[..past], Logits::Last).expect("a text");
        assert_eq!(cache.restore(&mut sequence, &ids).positions, wanted, "after {past}");
        assert_eq!(sequence.past(), past + wanted);
    }
}

/// A window that has let go of its first pages, and what is taken back after it was read.
#[test]
fn what_was_read_can_be_taken_back_and_gone_on_with() {
    for name in ["gemma3", "llama4", "jamba", "deepseek4"] {
        let model = load(name);
        let dir = tempfile::tempdir().expect("a folder");
        let engine = &mut engine(&model, KvType::F16);
        let mut cache = cache_of(dir.path(), engine);
        let ids = text(&model, 390);
        keep(engine, &mut cache, &ids);
        for past in [1, 130, 255, 256, 300, 383] {
            let mut sequence = engine.sequence();
            assert_eq!(cache.restore(&mut sequence, &ids).positions, 3 * PAGE, "{name}");
            let mut other = ids[..past].to_vec();
            other.push(5);
            let left = sequence.rewind(past);
            engine.feed(&mut sequence, &other[left..], Logits::Last).expect("the rest");
            let found = go_on(engine, &mut sequence, 1);
            let mut fresh = engine.sequence();
            engine.feed(&mut fresh, &other, Logits::Last).expect("a text");
            assert!(found == go_on(engine, &mut fresh, 1), "{name}: back to {past}");
        }
    }
}

#[test]
fn a_sequence_that_was_read_is_kept_on() {
    for name in ["dense-q8_0", "gemma3", "qwen3next"] {
        let model = load(name);
        let dir = tempfile::tempdir().expect("a folder");
        let engine = &mut engine(&model, KvType::F16);
        let mut cache = cache_of(dir.path(), engine);
        let ids = text(&model, 390);
        keep(engine, &mut cache, &ids[..TEXT]);
        let mut sequence = engine.sequence();
        assert_eq!(cache.restore(&mut sequence, &ids).positions, 2 * PAGE, "{name}");
        engine.feed(&mut sequence, &ids[2 * PAGE..], Logits::Last).expect("the rest");
        cache.keep(&sequence);
        let truth = go_on(engine, &mut sequence, 3);
        let (positions, found) = restored(engine, &mut cache, &ids);
        assert_eq!(positions, 3 * PAGE, "{name}");
        assert!(found == truth, "{name}");
    }
}

/// One file of a cache, and what is needed to read it anew.
struct Kept {
    dir: tempfile::TempDir,
    model: Model,
    ids: Vec<u32>,
    truth: (Vec<u32>, Vec<Vec<u32>>),
    file: PathBuf,
    whole: Vec<u8>,
}

impl Kept {
    fn new() -> Kept {
        let dir = tempfile::tempdir().expect("a folder");
        let model = load("dense-q8_0");
        let ids = text(&model, 150);
        let engine = &mut engine(&model, KvType::F16);
        let truth = keep(engine, &mut cache_of(dir.path(), engine), &ids);
        let file = files(dir.path()).remove(0);
        let whole = fs::read(&file).expect("a file");
        Kept { dir, model, ids, truth, file, whole }
    }

    /// What is said of these bytes in the file's place; the run's bits are the same.
    fn told(&self, bytes: &[u8]) -> String {
        fs::write(&self.file, bytes).expect("a file");
        let engine = &mut engine(&self.model, KvType::F16);
        let mut cache = cache_of(self.dir.path(), engine);
        let (positions, found) = restored(engine, &mut cache, &self.ids);
        assert!(found == self.truth, "bits");
        let told = cache.take_warnings().concat();
        assert_eq!(positions == 0, !told.is_empty(), "used, or told of: {told}");
        // What is wrong makes room for what is right.
        keep(engine, &mut cache, &self.ids);
        assert!(fs::read(&self.file).expect("a file") == self.whole, "written anew");
        assert_eq!(restored(engine, &mut cache, &self.ids).0, PAGE, "and used");
        told
    }

    fn altered(&self, at: usize) -> Vec<u8> {
        let mut bytes = self.whole.clone();
        bytes[at] ^= 0x20;
        bytes
    }

    /// With a checksum that is right.
    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let at = bytes.len() - 32;
        let hash = *blake3::hash(&bytes[..at]).as_bytes();
        bytes[at..].copy_from_slice(&hash);
        bytes
    }
}

/// Each field of the header, whatever the checksum says.
#[test]
fn a_file_of_another_kind_is_refused() {
    let kept = Kept::new();
    assert_eq!(kept.told(&kept.whole), "");
    let fields = [
        (0, "no file of a prefix cache"),
        (7, "no file of a prefix cache"),
        (8, "its format is 33"),
        (11, "its format is 536870913"),
        (12, "another part"),
        (15, "another part"),
        (16, "another page"),
        (23, "another page"),
        (24, "another size"),
        (31, "another size"),
        (32, "another model"),
        (63, "another model"),
        (64, "another version"),
        (95, "another version"),
        (96, "another text"),
        (127, "another text"),
    ];
    for (at, why) in fields {
        for bytes in [kept.altered(at), Kept::sealed(kept.altered(at))] {
            let told = kept.told(&bytes);
            assert!(told.contains(why) && told.contains("computed anew"), "byte {at}: {told}");
        }
    }
    // Numbers that would overflow, or be allocated.
    for at in [12, 16, 24] {
        for value in [0u64, 1, u64::from(u32::MAX), u64::MAX / 2, u64::MAX] {
            let mut bytes = kept.whole.clone();
            let n = if at == 12 { 4 } else { 8 };
            bytes[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
            if bytes != kept.whole {
                let told = kept.told(&Kept::sealed(bytes));
                assert!(told.contains("another"), "{at}: {value}: {told}");
            }
        }
    }
}

#[test]
fn a_file_that_was_altered_or_cut_is_refused() {
    let kept = Kept::new();
    let len = kept.whole.len();
    for at in [128, 129, len / 3, len / 2, len - 33, len - 32, len - 1] {
        let told = kept.told(&kept.altered(at));
        assert!(told.contains("its checksum does not match"), "byte {at}: {told}");
    }
    for cut in [0, 1, 127, 128, 129, len / 2, len - 32, len - 1] {
        let told = kept.told(&kept.whole[..cut]);
        assert!(told.contains(&format!("it has {cut} bytes, where {len} are expected")), "{cut}: {told}");
    }
    let told = kept.told(&[&kept.whole[..], &[0]].concat());
    assert!(told.contains("bytes, where"), "{told}");
    // All zeros, and another file's bytes.
    assert!(kept.told(&vec![0; len]).contains("no file of a prefix cache"));
}

/// The canary of the tests above: without its checksum an altered file is used, and changes the result.
#[test]
fn an_altered_file_would_change_the_result() {
    let kept = Kept::new();
    let engine = &mut engine(&kept.model, KvType::F16);
    // The sign of a key, which is a rounded f16 and not zero.
    let payload = &kept.whole[HEADER_BYTES..];
    let at = (0..payload.len() / 2).map(|i| 2 * i + 1).find(|&i| payload[i] & 0x7f > 0x30).expect("a number");
    let mut bytes = kept.whole.clone();
    bytes[HEADER_BYTES + at] ^= 0x80;
    fs::write(&kept.file, &bytes).expect("a file");
    let mut cache = cache_of(kept.dir.path(), engine).without_checksums();
    let (positions, found) = restored(engine, &mut cache, &kept.ids);
    assert_eq!((positions, cache.take_warnings()), (PAGE, Vec::new()));
    assert!(found.1 != kept.truth.1, "it was used");
    let mut cache = cache_of(kept.dir.path(), engine);
    let (positions, found) = restored(engine, &mut cache, &kept.ids);
    assert_eq!(positions, 0);
    assert!(found == kept.truth);
}

const HEADER_BYTES: usize = super::format::HEADER;

#[test]
fn other_settings_and_models_find_nothing() {
    let kept = Kept::new();
    let try_with = |model: &Model, options: EngineOptions, id: u8| {
        let engine = &Engine::new(model, &options).expect("an engine");
        let folder = PrefixFolder::open(kept.dir.path()).expect("a folder");
        let mut cache = PrefixCache::new(folder, NO_LIMIT, ModelId([id; 32]), engine);
        cache.restore(&mut engine.sequence(), &kept.ids).positions
    };
    let usual = options(KvType::F16);
    assert_eq!(try_with(&kept.model, usual.clone(), 7), PAGE);
    // What changes no bit.
    assert_eq!(try_with(&kept.model, EngineOptions { context: 333, batch: 5, ..usual.clone() }, 7), PAGE);
    assert_eq!(try_with(&kept.model, usual.clone(), 8), 0);
    assert_eq!(try_with(&kept.model, options(KvType::F32), 7), 0);
    assert_eq!(try_with(&load("dense-f32"), usual, 8), 0);
}

/// LongRoPE has other frequencies for longer contexts.
#[test]
fn a_context_that_changes_bits_is_a_setting() {
    let model = load("llama-longrope");
    let step = model.spec().rope_steps[0];
    let of = |context| {
        let options = EngineOptions { context, ..options(KvType::F16) };
        settings(&Engine::new(&model, &options).expect("an engine"))
    };
    assert_eq!(of(step), of(step - 1));
    assert_eq!(of(step + 1), of(step + 2));
    assert_ne!(of(step), of(step + 1));
}

#[test]
fn the_oldest_texts_go_first() {
    let model = load("dense-q8_0");
    let dir = tempfile::tempdir().expect("a folder");
    let engine = &mut engine(&model, KvType::F16);
    let texts: Vec<Vec<u32>> = (0..3)
        .map(|i| {
            let mut ids = text(&model, TEXT);
            ids[0] = i;
            ids
        })
        .collect();
    keep(engine, &mut cache_of(dir.path(), engine), &texts[0]);
    let bytes = fs::metadata(&files(dir.path())[0]).expect("a file").len();
    // Room for two texts of two pages, and for one page more.
    let folder = PrefixFolder::open(dir.path()).expect("a folder");
    let mut cache = PrefixCache::new(folder, 5 * bytes, ModelId([7; 32]), engine);
    let there = |cache: &mut PrefixCache, engine: &Engine<'_>| {
        let positions = |ids: &Vec<u32>| cache.restore(&mut engine.sequence(), ids).positions / PAGE;
        texts.iter().map(positions).collect::<Vec<_>>()
    };
    keep(engine, &mut cache, &texts[1]);
    assert_eq!(there(&mut cache, engine), [2, 2, 0]);
    // The first is used once more, so that it is the second's end that goes.
    std::thread::sleep(Duration::from_millis(20));
    cache.restore(&mut engine.sequence(), &texts[0]);
    std::thread::sleep(Duration::from_millis(20));
    keep(engine, &mut cache, &texts[2]);
    assert_eq!(there(&mut cache, engine), [2, 1, 2]);
    assert_eq!(cache.take_warnings(), [""; 0]);
}

#[test]
fn a_text_that_does_not_fit_is_kept_as_far_as_its_beginning_is_of_use() {
    for (name, wanted) in [("dense-q8_0", 1), ("qwen3next", 0)] {
        let model = load(name);
        let dir = tempfile::tempdir().expect("a folder");
        let engine = &mut engine(&model, KvType::F16);
        let ids = text(&model, TEXT);
        keep(engine, &mut cache_of(dir.path(), engine), &ids);
        let all: u64 = files(dir.path()).iter().map(|file| file.metadata().expect("a file").len()).sum();
        files(dir.path()).iter().for_each(|file| fs::remove_file(file).expect("a file"));
        let folder = PrefixFolder::open(dir.path()).expect("a folder");
        let mut cache = PrefixCache::new(folder, all - 1, ModelId([7; 32]), engine);
        keep(engine, &mut cache, &ids);
        assert_eq!(restored(engine, &mut cache, &ids).0, wanted * PAGE, "{name}");
        let told = cache.take_warnings().concat();
        let what = format!("this text takes {all} bytes of a cache of {}: {} tokens", all - 1, wanted * PAGE);
        assert!(told.starts_with(&what), "{name}: {told}");
        keep(engine, &mut cache, &ids);
        assert_eq!(cache.take_warnings(), [""; 0], "told once");
    }
}

/// Two at once: each may find what the other has written or removed, whole or not at all.
#[test]
fn two_write_and_read_at_once() {
    let model = load("dense-q8_0");
    let dir = tempfile::tempdir().expect("a folder");
    let texts: Vec<Vec<u32>> = (0..2)
        .map(|i| {
            let mut ids = text(&model, 260);
            ids[0] = i;
            ids
        })
        .collect();
    let truths: Vec<_> = texts
        .iter()
        .map(|ids| {
            let engine = &mut engine(&model, KvType::F16);
            keep(engine, &mut cache_of(dir.path(), engine), ids)
        })
        .collect();
    let bytes = fs::metadata(&files(dir.path())[0]).expect("a file").len();
    std::thread::scope(|scope| {
        for turn in 0..2 {
            let (model, texts, truths, path) = (&model, &texts, &truths, dir.path());
            scope.spawn(move || {
                let engine = &mut engine(model, KvType::F16);
                let folder = PrefixFolder::open(path).expect("a folder");
                // Room for three of four pages: each drives the other's out.
                let mut cache = PrefixCache::new(folder, 3 * bytes, ModelId([7; 32]), engine);
                for round in 0..12 {
                    let which = (turn + round) % 2;
                    let ids = &texts[which];
                    let mut sequence = engine.sequence();
                    let positions = cache.restore(&mut sequence, ids).positions;
                    engine.feed(&mut sequence, &ids[positions..], Logits::Last).expect("the rest");
                    cache.keep(&sequence);
                    assert!(go_on(engine, &mut sequence, 3) == truths[which]);
                    assert_eq!(cache.take_warnings(), [""; 0]);
                }
            });
        }
    });
    let all: u64 = files(dir.path()).iter().map(|file| file.metadata().expect("a file").len()).sum();
    assert!(files(dir.path()).iter().all(|file| file.extension().is_some_and(|e| e == PAGE_ENDING)));
    // Each may have written while the other counted.
    assert!(all <= 5 * bytes, "{all}");
}

/// The block of multi-token prediction drafts on where it was kept too; the text is the same in any case.
#[test]
fn drafts_go_on() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/hy_v3.gguf");
    let gguf = Gguf::open(path).expect("a fixture");
    let (with, without) =
        (Model::load_with_nextn(&gguf).expect("a block"), Model::load(&gguf).expect("a model"));
    let ids = text(&with, TEXT);
    let drafting = EngineOptions { drafts: 4, ..options(KvType::F16) };
    let with = &mut Engine::new(&with, &drafting).expect("an engine");
    let without = &mut engine(&without, KvType::F16);
    let mut fresh = with.sequence();
    with.feed(&mut fresh, &ids, Logits::Last).expect("a text");
    let id = fresh.argmax().expect("a token");
    let drafts = with.draft(&mut fresh, id, 4).expect("drafts");
    let truth = go_on(with, &mut fresh, 3);
    for (kept_with_block, folder) in [(true, tempfile::tempdir()), (false, tempfile::tempdir())] {
        let dir = folder.expect("a folder");
        let keeps = if kept_with_block { &mut *with } else { &mut *without };
        let mut cache = cache_of(dir.path(), keeps);
        assert!(keep(keeps, &mut cache, &ids) == truth);
        // Kept with the block or without: a run without it finds the same trunk.
        let (positions, found) = restored(without, &mut cache_of(dir.path(), without), &ids);
        assert_eq!(positions, 2 * PAGE);
        assert!(found == truth);
        let mut cache = cache_of(dir.path(), with);
        let mut sequence = with.sequence();
        assert_eq!(cache.restore(&mut sequence, &ids).positions, 2 * PAGE);
        with.feed(&mut sequence, &ids[2 * PAGE..], Logits::Last).expect("the rest");
        let made = with.draft(&mut sequence, id, 4).expect("drafts");
        match kept_with_block {
            // But for what position 255 left, the block remembers the same.
            true => assert_eq!(made.len(), drafts.len()),
            false => assert_eq!(made, [0; 0], "it remembers nothing of the text"),
        }
        assert!(go_on(with, &mut sequence, 3) == truth);
    }
}

/// A disk that is full, a folder that cannot be written to: said once, and the run goes on.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_cannot_be_written_to_is_a_warning() {
    let model = load("dense-q8_0");
    let engine = &mut engine(&model, KvType::F16);
    // Whoever runs the tests may write anywhere, but not here.
    let folder = PrefixFolder::open(Path::new("/proc/self")).expect("it is there");
    let mut cache = PrefixCache::new(folder, NO_LIMIT, ModelId([7; 32]), engine);
    let ids = text(&model, 150);
    for _ in 0..2 {
        keep(engine, &mut cache, &ids);
        assert_eq!(restored(engine, &mut cache, &ids).0, 0);
    }
    let warnings = cache.take_warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("/proc/self: nothing more is kept in the cache: "), "{warnings:?}");
}

/// Files get older as they are not used.
#[test]
fn what_is_read_counts_as_used() {
    let kept = Kept::new();
    let old = SystemTime::now() - Duration::from_secs(1000);
    let folder = PrefixFolder::open(kept.dir.path()).expect("a folder");
    let name = kept.file.file_name().expect("a name").to_str().expect("UTF-8");
    folder.touch(name, old);
    let engine = &engine(&kept.model, KvType::F16);
    let mut cache = cache_of(kept.dir.path(), engine);
    assert_eq!(cache.restore(&mut engine.sequence(), &kept.ids).positions, PAGE);
    let used = kept.file.metadata().expect("a file").modified().expect("a time");
    assert!(used > old + Duration::from_secs(900));
}
