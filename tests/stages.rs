//! Models cut into stages: together they give the bits of the whole, each reads its layers alone, and where a
//! model cannot be cut it says so.

mod common;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use common::runs::{fixture, options};
use common::say;
use wayinfer::engine::{Engine, EngineError, EngineOptions, Feed, Sequence, StageId};
use wayinfer::gguf::Gguf;
use wayinfer::model::{ForwardError, KvType, Logits, Model, ModelError};

/// Sequences of a run.
const SEQUENCES: usize = 3;

/// All fixtures, of a split one its first file.
fn fixtures() -> Vec<(String, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let entries = fs::read_dir(folder).expect("the fixtures").map(|entry| entry.expect("an entry").path());
    let named = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?.to_owned();
        let later = name.contains("-of-") && !name.contains("-00001-of-");
        (!later).then_some((name, path))
    };
    let mut fixtures: Vec<_> = entries.filter_map(named).collect();
    fixtures.sort();
    assert!(fixtures.len() > 80, "{}", fixtures.len());
    fixtures
}

fn sizes() -> EngineOptions {
    options(64, 24)
}

/// Stages one behind another, each with its part of every sequence.
struct Line<'m> {
    engines: Vec<Engine<'m>>,
    sequences: Vec<Vec<Sequence>>,
}

/// Tokens for a sequence, and the logits that are wanted.
type Fed<'t> = (usize, &'t [u32], Logits);

impl<'m> Line<'m> {
    fn new(stages: impl IntoIterator<Item = &'m Model>) -> Line<'m> {
        let engine = |model| Engine::new(model, &sizes()).expect("an engine");
        let engines: Vec<_> = stages.into_iter().map(engine).collect();
        let new = |engine: &Engine<'m>| (0..SEQUENCES).map(|_| engine.sequence()).collect();
        let sequences = engines.iter().map(new).collect();
        Line { engines, sequences }
    }

    /// A pass; the logits of each sequence that took part.
    fn pass(&mut self, fed: &[Fed<'_>]) -> Result<Vec<Vec<f32>>, EngineError> {
        let mut rows = Vec::new();
        for (engine, sequences) in self.engines.iter_mut().zip(&mut self.sequences) {
            let feed = |(at, sequence)| {
                let &(_, tokens, logits) = fed.iter().find(|(of, ..)| *of == at)?;
                Some(Feed { sequence, tokens, logits })
            };
            let mut feeds: Vec<_> = sequences.iter_mut().enumerate().filter_map(feed).collect();
            rows = engine.feed_stage(&mut feeds, &rows)?;
        }
        assert!(rows.is_empty(), "the last stage has none to pass on");
        let last = self.sequences.last().expect("a stage");
        Ok(fed.iter().map(|&(at, ..)| last[at].logits().to_vec()).collect())
    }

    /// Takes a sequence back, as far as all stages can go on from.
    fn rewind(&mut self, at: usize, past: usize) -> usize {
        let mut to = past;
        loop {
            let all = self.sequences.iter_mut().map(|sequences| sequences[at].rewind(to));
            let least = all.min().expect("a stage");
            if least == to {
                return to;
            }
            to = least;
        }
    }
}

/// Every logit of a run: prompts of several lengths, tokens one by one, one sequence that goes back.
fn logits(line: &mut Line<'_>, vocab: usize) -> Vec<f32> {
    let text =
        |of: usize| -> Vec<u32> { (0..40).map(|i| ((3 + of * 31 + i * 7919) % vocab) as u32).collect() };
    let texts = [text(0), text(1), text(2)];
    let mut all = Vec::new();
    let mut pass = |line: &mut Line<'_>, fed: &[Fed<'_>]| {
        let logits = line.pass(fed).unwrap_or_else(|error| panic!("{error}"));
        all.extend(logits.into_iter().flatten());
    };
    let [a, b, c] = &texts;
    pass(line, &[(0, &a[..11], Logits::Last), (1, &b[..5], Logits::All), (2, &c[..1], Logits::None)]);
    pass(line, &[(0, &a[11..12], Logits::Last), (2, &c[1..12], Logits::Last)]);
    for i in 0..3 {
        pass(
            line,
            &[
                (0, &a[12 + i..13 + i], Logits::Last),
                (1, &b[5 + i..6 + i], Logits::Last),
                (2, &c[12 + i..13 + i], Logits::Last),
            ],
        );
    }
    // Nobody listens to the last but to what is remembered.
    pass(line, &[(1, &b[8..20], Logits::None)]);
    pass(line, &[(1, &b[20..21], Logits::Last)]);
    let past = line.rewind(0, 9);
    pass(line, &[(0, &a[past..14], Logits::Last)]);
    assert!(all.iter().any(|logit| *logit != 0.0));
    all
}

/// The stages of a model that is cut before these layers.
fn stages(gguf: &Gguf, cuts: &[usize], layers: usize) -> Vec<Model> {
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain(std::iter::once(layers));
    let load = |range: Range<usize>| {
        Model::load_stage(gguf, range.clone()).unwrap_or_else(|error| panic!("{range:?}: {error}"))
    };
    starts.zip(ends).map(|(start, end)| load(start..end)).collect()
}

/// Cuts into two parts and three that are as equal as can be.
fn cuts(model: &Model) -> Vec<Vec<usize>> {
    let near = |at: usize| model.borders().iter().copied().min_by_key(|border| border.abs_diff(at));
    let layers = model.all_layers();
    let Some(middle) = near(layers / 2) else { return Vec::new() };
    let mut cuts = vec![vec![middle]];
    if let (Some(first), Some(second)) = (near(layers / 3), near(layers * 2 / 3))
        && first < second
    {
        cuts.push(vec![first, second]);
    } else if let [first, .., last] = model.borders() {
        cuts.push(vec![*first, *last]);
    }
    cuts
}

/// Weights that a model has to have in memory.
fn weight_bytes(model: &Model) -> u64 {
    model.store().plan_for(u64::MAX).expect("a plan").total_bytes
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Every fixture, cut into two stages and into three where it has so many borders.
#[test]
fn stages_are_the_whole() {
    let (mut refused, mut cut_in_three) = (Vec::new(), 0);
    for (name, path) in fixtures() {
        let gguf = Gguf::open(&path).unwrap_or_else(|error| panic!("{error}"));
        let whole = Model::load(&gguf).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (vocab, layers) = (whole.spec().vocab, whole.all_layers());
        let want = logits(&mut Line::new([&whole]), vocab);
        let cuts = cuts(&whole);
        for cuts in &cuts {
            let stages = stages(&gguf, cuts, layers);
            let got = logits(&mut Line::new(&stages), vocab);
            assert!(same_bits(&want, &got), "{name} cut before {cuts:?}");
            check_budgets(&name, &gguf, &whole, &stages);
            cut_in_three += usize::from(stages.len() == 3);
        }
        if cuts.is_empty() {
            refused.push(name);
        }
    }
    say(&format!("cut in three: {cut_in_three}; with no place to cut: {refused:?}"));
    assert!(cut_in_three > 20, "{cut_in_three}");
}

/// What sequences and weights take is shared out among the stages.
fn check_budgets(name: &str, gguf: &Gguf, whole: &Model, stages: &[Model]) {
    let sequence = |model: &Model| sizes().sequence_bytes(model.spec());
    let all: u64 = stages.iter().map(sequence).sum();
    assert_eq!(all, sequence(whole), "{name}: sequences");
    let all: u64 = stages.iter().map(weight_bytes).sum();
    // The embedding may be the output matrix as well, and every stage has what stands before all layers.
    let embedding = gguf.tensor("token_embd.weight").map_or(0, |tensor| tensor.bytes);
    let before =
        gguf.tensors.iter().filter(|tensor| !tensor.name.starts_with("blk.") && tensor.dims.len() == 1);
    let before: u64 = before.map(|tensor| tensor.bytes).sum();
    let most = weight_bytes(whole) + embedding + before * stages.len() as u64;
    assert!((weight_bytes(whole)..=most).contains(&all), "{name}: weights");
    let layers: usize = stages.iter().map(|stage| stage.spec().layers.len()).sum();
    assert_eq!(layers, whole.all_layers(), "{name}");
    for stage in stages {
        assert_eq!(stage.borders(), whole.borders(), "{name}");
        assert!(sizes().memory_bytes(stage.spec(), 1) <= sizes().memory_bytes(whole.spec(), 1) + (1 << 20));
    }
}

/// Where a model has no border it is refused on both sides, by name; everywhere else it is not.
#[test]
fn models_are_cut_at_their_borders_alone() {
    let mut linked = Vec::new();
    for (name, path) in fixtures() {
        let gguf = Gguf::open(&path).unwrap_or_else(|error| panic!("{error}"));
        let whole = Model::load(&gguf).unwrap_or_else(|error| panic!("{name}: {error}"));
        let layers = whole.all_layers();
        for at in 1..layers {
            for range in [0..at, at..layers] {
                match (Model::load_stage(&gguf, range.clone()), whole.borders().contains(&at)) {
                    (Ok(stage), true) => assert_eq!(stage.layers(), range, "{name}"),
                    (Err(error @ ModelError::CannotCut { .. }), false) => {
                        assert!(error.to_string().contains("cannot be cut between layers"), "{error}");
                        linked.push(name.clone());
                    }
                    (found, border) => panic!("{name} cut before {at}: {border}, {found:?}"),
                }
            }
        }
    }
    linked.dedup();
    say(&format!("not to be cut everywhere: {linked:?}"));
    // Keys and values that layers share, and choices of positions.
    assert!(linked.iter().any(|name| name.starts_with("gemma")) && linked.len() > 1, "{linked:?}");
}

/// A copy of a model in which everything of other layers is nonsense.
fn with_nonsense(gguf: &Gguf, path: &Path, layers: Range<usize>, of: usize) -> tempfile::TempDir {
    let dir = tempfile::TempDir::new().expect("a folder");
    let mut bytes = fs::read(path).expect("a model");
    for tensor in &gguf.tensors {
        let block = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse().ok());
        let elsewhere = match block {
            Some(block) => !layers.contains(&block),
            None if tensor.name == "token_embd.weight" => {
                layers.start > 0 && (layers.end < of || gguf.tensor("output.weight").is_some())
            }
            None => tensor.name.starts_with("output") && layers.end < of,
        };
        if elsewhere {
            bytes[tensor.offset as usize..][..tensor.bytes as usize].fill(0xff);
        }
    }
    fs::write(dir.path().join("model.gguf"), bytes).expect("it is written");
    dir
}

/// A stage reads nothing of the layers that others have.
#[test]
fn other_layers_are_not_read() {
    let mut seen = 0;
    for (name, path) in fixtures().into_iter().filter(|(name, _)| !name.contains("-of-")) {
        let gguf = Gguf::open(&path).unwrap_or_else(|error| panic!("{error}"));
        let whole = Model::load(&gguf).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (vocab, layers) = (whole.spec().vocab, whole.all_layers());
        let Some(cuts) = cuts(&whole).pop() else { continue };
        let starts = std::iter::once(0).chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain(std::iter::once(layers));
        let ranges: Vec<Range<usize>> = starts.zip(ends).map(|(start, end)| start..end).collect();
        let copies: Vec<_> =
            ranges.iter().map(|range| with_nonsense(&gguf, &path, range.clone(), layers)).collect();
        let load = |(range, copy): (&Range<usize>, &tempfile::TempDir)| {
            let gguf = Gguf::open(&copy.path().join("model.gguf")).expect("a model");
            Model::load_stage(&gguf, range.clone()).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let stages: Vec<Model> = ranges.iter().zip(&copies).map(load).collect();
        let want = logits(&mut Line::new([&whole]), vocab);
        let got = logits(&mut Line::new(&stages), vocab);
        assert!(same_bits(&want, &got), "{name} cut before {cuts:?}");
        seen += 1;
    }
    assert!(seen > 50, "{seen}");
}

/// The comparisons above see a value of another last digit that a stage passes on.
#[test]
fn another_bit_between_stages_is_seen() {
    let gguf = Gguf::open(&fixture("dense-q8_0")).expect("a model");
    let whole = Model::load(&gguf).expect("it loads");
    let stages = stages(&gguf, &[1], whole.all_layers());
    let mut engines: Vec<_> =
        stages.iter().map(|stage| Engine::new(stage, &sizes()).expect("an engine")).collect();
    let mut run = |bit: u32| {
        let tokens = [5, 6, 7];
        let mut rows = Vec::new();
        let mut sequence = engines[0].sequence();
        let mut last = engines[1].sequence();
        for (engine, sequence) in engines.iter_mut().zip([&mut sequence, &mut last]) {
            rows = engine
                .feed_stage(&mut [Feed { sequence, tokens: &tokens, logits: Logits::Last }], &rows)
                .expect("it runs");
            if let Some(value) = rows.last_mut() {
                *value = f32::from_bits(value.to_bits() ^ bit);
            }
        }
        last.logits().to_vec()
    };
    let want = run(0);
    assert!(same_bits(&want, &run(0)) && !same_bits(&want, &run(1 << 16)));
}

#[test]
fn what_makes_no_sense_is_an_error() {
    let gguf = Gguf::open(&fixture("dense-q8_0")).expect("a model");
    let layers = Model::load(&gguf).expect("it loads").all_layers();
    for wrong in [0..0, 1..1, 0..layers + 1, layers..layers + 1, 0..usize::MAX] {
        let error = Model::load_stage(&gguf, wrong.clone()).expect_err("no such layers");
        assert!(matches!(error, ModelError::NoSuchLayers { .. }), "{wrong:?}: {error}");
    }
    let stage = Model::load_stage(&gguf, 1..layers).expect("a stage");
    let mut engine = Engine::new(&stage, &sizes()).expect("an engine");
    let mut sequence = engine.sequence();
    let row = stage.row_in();
    let mut feed = |tokens: &[u32], rows: &[f32]| {
        let fed =
            engine.feed_stage(&mut [Feed { sequence: &mut sequence, tokens, logits: Logits::Last }], rows);
        (fed, sequence.past())
    };
    assert!(matches!(feed(&[1, 2], &vec![0.5; row]), (Err(EngineError::Rows { .. }), 0)));
    assert!(matches!(feed(&[1, 2], &[]), (Err(EngineError::Rows { .. }), 0)));
    assert!(matches!(feed(&[1; 25], &vec![0.5; 25 * row]), (Err(EngineError::PassFull { .. }), 0)));
    let mut rows = vec![0.5; 2 * row];
    rows[row + 1] = f32::NAN;
    let (fed, past) = feed(&[1, 2], &rows);
    let not_finite = ForwardError::NotFinite { node: "stage_input", layer: 1, token: 1, index: 1 };
    assert_eq!((fed.expect_err("not finite").to_string(), past), (not_finite.to_string(), 0));
    let (fed, past) = feed(&[1, u32::MAX], &vec![0.5; 2 * row]);
    assert!(matches!(fed, Err(EngineError::Forward(ForwardError::TokenRange { .. }))) && past == 0);
    assert!(matches!(feed(&[1, 2], &vec![0.5; 2 * row]), (Ok(rows), 2) if rows.is_empty()));
    // What runs whole models refuses a part of one.
    assert!(matches!(engine.feed(&mut engine.sequence(), &[1], Logits::Last), Err(EngineError::Rows { .. })));
}

#[test]
fn stages_know_whether_they_belong_together() {
    let path = fixture("dense-q8_0");
    let id = |path: &Path, layers: Option<Range<usize>>, options: &EngineOptions| {
        let gguf = Gguf::open(path).expect("a model");
        let model = match layers {
            Some(layers) => Model::load_stage(&gguf, layers),
            None => Model::load(&gguf),
        };
        let model = model.expect("it loads");
        StageId::of(&gguf, &Engine::new(&model, options).expect("an engine")).expect("an id")
    };
    let layers = Model::load(&Gguf::open(&path).expect("a model")).expect("it loads").all_layers();
    let first = id(&path, Some(0..1), &sizes());
    assert_eq!(id(&path, Some(1..layers), &sizes()), first);
    assert_eq!(id(&path, None, &EngineOptions { threads: 1.into(), batch: 7, ..sizes() }), first);
    assert_ne!(id(&path, None, &EngineOptions { kv: KvType::F32, ..sizes() }), first);
    assert_ne!(id(&fixture("dense-q4_k_m"), None, &sizes()), first);
    assert_eq!(first.to_string().len(), 64);
    // Another weight, and another size.
    let dir = tempfile::TempDir::new().expect("a folder");
    let copy = dir.path().join("copy.gguf");
    let bytes = fs::read(&path).expect("a model");
    fs::write(&copy, &bytes).expect("it is written");
    assert_eq!(id(&copy, None, &sizes()), first);
    let mut altered = bytes.clone();
    let gguf = Gguf::open(&path).expect("a model");
    let tensor = gguf.tensor("blk.0.attn_q.weight").expect("a weight");
    // Within a sample: they are nearer to each other than this tensor is long.
    altered[tensor.offset as usize..][..tensor.bytes as usize].iter_mut().for_each(|byte| *byte ^= 1);
    fs::write(&copy, &altered).expect("it is written");
    assert_ne!(id(&copy, None, &sizes()), first);
    fs::write(&copy, [&bytes[..], b"x"].concat()).expect("it is written");
    assert_ne!(id(&copy, None, &sizes()), first);
}
