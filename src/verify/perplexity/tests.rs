//! Bases as files, whole, altered and hostile; and runs against them.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::*;
use crate::engine::{Engine, EngineOptions, LogSoftmax};
use crate::gguf::Gguf;
use crate::kernels::Isa;
use crate::model::{KvType, Model};
use crate::store::Guesses;
use crate::verify::{NpyWriter, VerifyError};

const VOCAB: usize = 50;

fn windows(tokens: usize, context: usize) -> Windows {
    let options = WindowOptions { context, stride: None, most: None, bos: Some(1) };
    Windows::new((0..tokens).map(|i| (i * 7919 % VOCAB) as u32).collect(), options).expect("windows")
}

fn logits(row: usize) -> Vec<f32> {
    (0..VOCAB).map(|id| ((row * 131 + id * 7919) % 613) as f32 / 60.0).collect()
}

fn header(windows: &Windows, top: usize) -> BaseHeader {
    let (model, settings) = ("m.gguf".to_owned(), "scalar, KV f16".to_owned());
    let context = windows.options().context;
    BaseHeader { model, settings, vocab: VOCAB, context, stride: None, windows: windows.count(), top }
}

fn rows(windows: &Windows, i: usize, top: usize) -> Vec<TopRow> {
    let row =
        |(row, &target): (usize, &u32)| TopRow::new(&LogSoftmax::new(&logits(i * 100 + row)), target, top);
    windows.targets(i).iter().enumerate().map(row).collect()
}

/// A base of these windows; its bytes too.
fn write(path: &Path, windows: &Windows, top: usize) -> Vec<u8> {
    let mut writer = BaseWriter::create(path, true).expect("a file");
    writer.begin(&header(windows, top)).expect("a header");
    for i in 0..windows.count() {
        writer.add(&windows.hash(i), &rows(windows, i, top)).expect("a window");
    }
    writer.finish().expect("a base");
    fs::read(path).expect("bytes")
}

/// Reads all of a file's windows, as a comparison does.
fn read(path: &Path, windows: &Windows) -> Result<Vec<Vec<TopRow>>, BaseError> {
    let mut source = BaseSource::open(path)?;
    source.check(windows, VOCAB)?;
    let mut all = Vec::new();
    for i in 0..windows.count() {
        source.begin(windows, i..i + 1)?;
        let rows = source.rows(windows, [i, 0], 0..windows.rows())?;
        if let sources::BaseRows::Top(rows) = rows {
            all.push(rows.to_vec());
        }
    }
    Ok(all)
}

#[test]
fn bases_are_read_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.base");
    let windows = windows(40, 8);
    for top in [1, 7, VOCAB, 60_000] {
        write(&path, &windows, top);
        let found = read(&path, &windows).expect("a base");
        assert!((0..windows.count()).all(|i| found[i] == rows(&windows, i, top)), "{top}");
    }
    // Of fewer windows, too, and there is nothing left of a file that is not finished.
    let options = WindowOptions { most: Some(2), ..*windows.options() };
    let fewer = Windows::new(windows.tokens().to_vec(), options).expect("windows");
    assert_eq!(read(&path, &fewer).expect("a base").len(), 2);
    drop(BaseWriter::create(&dir.path().join("b.base"), false).expect("a file"));
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1);
}

#[test]
fn bases_of_something_else_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.base");
    let whole = windows(40, 8);
    write(&path, &whole, 5);
    let problem = |windows: &Windows| read(&path, windows).expect_err("another").problem;
    assert!(matches!(problem(&windows(40, 10)), BaseProblem::Context { .. }));
    assert!(matches!(problem(&windows(48, 8)), BaseProblem::Windows { found: 5, wanted: 6 }));
    let mut tokens = whole.tokens().to_vec();
    tokens[25] ^= 1;
    let other = Windows::new(tokens, *whole.options()).expect("windows");
    assert!(matches!(problem(&other), BaseProblem::Text { window: 3 }));
    let other = WindowOptions { bos: None, ..*whole.options() };
    let other = Windows::new(whole.tokens().to_vec(), other).expect("windows");
    assert!(matches!(problem(&other), BaseProblem::Text { window: 0 }));
    let strided = WindowOptions { stride: Some(4), most: Some(2), ..*whole.options() };
    let strided = Windows::new(whole.tokens().to_vec(), strided).expect("windows");
    assert!(matches!(problem(&strided), BaseProblem::Context { .. }));
    let mut source = BaseSource::open(&path).expect("a base");
    let error = source.check(&whole, VOCAB + 1).expect_err("another").problem;
    assert!(matches!(error, BaseProblem::Vocabulary { found: 50, wanted: 51 }));
    assert!(error.to_string().contains("50 tokens"), "{error}");
}

/// Cut anywhere, with any byte altered, or made up: an error that says what, and no more memory than is
/// there.
#[test]
fn broken_bases_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.base");
    let windows = windows(16, 8);
    let bytes = write(&path, &windows, 3);
    for cut in 0..bytes.len() {
        fs::write(&path, &bytes[..cut]).expect("written");
        let problem = read(&path, &windows).expect_err("cut").problem;
        let told = match cut {
            0..7 => matches!(problem, BaseProblem::Unknown),
            _ => matches!(problem, BaseProblem::Truncated { .. }),
        };
        assert!(told, "{cut}: {problem:?}");
    }
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 0x41;
        fs::write(&path, &altered).expect("written");
        let problem = read(&path, &windows).expect_err("altered").problem;
        assert!(at >= 7 || matches!(problem, BaseProblem::Unknown), "{at}: {problem:?}");
    }
    let with_header = |json: &str, rest: &[u8]| {
        let hash = blake3::hash(json.as_bytes());
        let len = (json.len() as u32).to_le_bytes();
        let made = [&bytes[..8], &len, json.as_bytes(), hash.as_bytes(), rest].concat();
        fs::write(&path, made).expect("written");
        read(&path, &windows).expect_err("made up").problem
    };
    let json = serde_json::to_string(&header(&windows, 3)).expect("JSON");
    assert!(matches!(with_header("{}", &[]), BaseProblem::Header(_)));
    assert!(matches!(with_header(&json.replace(":3}", ":-3}"), &[]), BaseProblem::Header(_)));
    let huge = json.replace(":3}", &format!(":{}}}", u64::MAX));
    assert!(matches!(with_header(&huge, &[255; 4]), BaseProblem::Row { .. }), "a window that is too long");
    assert!(matches!(with_header(&json, &[255; 64]), BaseProblem::Row { .. }));
    let short = [&8u32.to_le_bytes()[..], &windows.hash(0)].concat();
    assert!(matches!(with_header(&json, &short), BaseProblem::Truncated { window: Some(0) }));
    // Rows that are none, in a file that is whole.
    for rows in
        [&[255u8; 8][..], &[0; 8], &[3, 1, 1, 1, 0, 0, 0, 0], &[0x80, 0x80, 0x80, 0x80, 0x7f, 0, 0, 0]]
    {
        let body = [&windows.hash(0)[..], rows].concat();
        let rest = [&8u32.to_le_bytes()[..], &body, blake3::hash(&body).as_bytes()].concat();
        let problem = with_header(&json, &rest);
        assert!(matches!(problem, BaseProblem::Row { window: 0, row: 0, .. }), "{rows:?}: {problem:?}");
    }
    let mut long = bytes[..8].to_vec();
    long.extend([255; 4]);
    fs::write(&path, long).expect("written");
    assert!(matches!(read(&path, &windows).expect_err("long").problem, BaseProblem::Header(_)));
    let mut newer = bytes.clone();
    newer[7] = 9;
    fs::write(&path, newer).expect("written");
    assert!(matches!(read(&path, &windows).expect_err("newer").problem, BaseProblem::Version { found: 9 }));
    for other in ["GGUF", "", "{}", "_logits_", "\u{93}NUMPY", "_logits_\u{1}\u{1}\u{1}\u{1}"] {
        fs::write(&path, other).expect("written");
        assert!(read(&path, &windows).is_err(), "{other}");
    }
    assert!(read(dir.path(), &windows).is_err(), "a folder");
    assert!(matches!(
        read(&dir.path().join("none"), &windows).expect_err("none").problem,
        BaseProblem::Io(_)
    ));
}

/// A file as llama-perplexity writes it, of rows of `logits`.
fn llama(windows: &Windows, numbers: [i32; 3], rows: usize) -> Vec<u8> {
    let mut bytes = b"_logits_".to_vec();
    numbers.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
    for i in 0..windows.count() {
        windows.text(i).iter().for_each(|id| bytes.extend(id.to_le_bytes()));
    }
    for row in 0..rows {
        let logits = logits(row);
        let softmax = LogSoftmax::new(&logits);
        let least = logits.iter().map(|&l| softmax.ln_p(l)).fold(0.0, f64::min);
        let scale = -least as f32 / 65535.0;
        bytes.extend(scale.to_le_bytes());
        bytes.extend((least as f32).to_le_bytes());
        for &logit in &logits {
            bytes.extend((((softmax.ln_p(logit) - least) as f32 / scale).round() as u16).to_le_bytes());
        }
    }
    bytes
}

#[test]
fn llama_cpps_bases_are_read_and_hostile_ones_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.kld");
    let windows = windows(16, 8);
    let put = |bytes: &[u8]| fs::write(&path, bytes).expect("written");
    let all = windows.count() * windows.rows();
    let numbers = [8, VOCAB as i32, 2];
    let bytes = llama(&windows, numbers, all);
    put(&bytes);
    let mut source = BaseSource::open(&path).expect("a base");
    source.check(&windows, VOCAB).expect("of these windows");
    let sources::BaseRows::LnP(found) = source.rows(&windows, [1, 0], 1..3).expect("rows") else {
        panic!("logarithms")
    };
    let of = logits(windows.rows() + 1);
    let softmax = LogSoftmax::new(&of);
    let far = (0..VOCAB).map(|id| (f64::from(found[id]) - softmax.ln_p(of[id])).abs()).fold(0.0, f64::max);
    assert!(found.len() == 2 * VOCAB && far < 2e-4, "{far}");
    let row = RowDivergence::new(&softmax, BaseRow::LnP(&found[..VOCAB]), 3);
    assert!(row.kld.abs() < 1e-4 && row.same_top, "{row:?}");

    for cut in (0..bytes.len()).step_by(3) {
        put(&bytes[..cut]);
        assert!(read(&path, &windows).is_err(), "{cut}");
    }
    for (numbers, wanted) in [
        ([8, VOCAB as i32, -1], "holds -1"),
        ([8, VOCAB as i32, i32::MAX], "of other tokens"),
        ([i32::MAX, VOCAB as i32, i32::MAX], "a context of 2147483647"),
        ([8, i32::MAX, 2], "2147483647 tokens"),
        ([8, VOCAB as i32, 1], "1 windows"),
    ] {
        let mut bytes = llama(&windows, numbers, all);
        if numbers[2] == i32::MAX {
            bytes[20] ^= 1;
        }
        put(&bytes);
        let error = read(&path, &windows).expect_err("hostile").to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let mut bytes = llama(&windows, numbers, all);
    let rows = 20 + 16 * 4;
    bytes[rows..rows + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    put(&bytes);
    let error = read(&path, &windows).expect_err("NaN").problem;
    assert!(matches!(error, BaseProblem::Row { window: 0, row: 0, .. }), "{error:?}");
}

#[test]
fn arrays_of_logits_are_read_and_others_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.npy");
    let windows = windows(16, 8);
    let all = windows.count() * windows.rows();
    let put = |shape: &[u64], value: Option<f32>| {
        let mut writer = NpyWriter::create(&path, shape, true).expect("a file");
        let values = shape.iter().product::<u64>() as usize;
        let mut all: Vec<f32> = (0..).flat_map(logits).take(values).collect();
        if let Some(value) = value {
            all[VOCAB + 3] = value;
        }
        writer.add(&all).expect("values");
        writer.finish().expect("a file");
        read(&path, &windows)
    };
    let vocab = VOCAB as u64;
    for shape in [&[all as u64, vocab][..], &[2, windows.rows() as u64, vocab], &[3 * all as u64, vocab]] {
        assert!(put(shape, None).is_ok(), "{shape:?}");
    }
    let problem = |shape: &[u64], value| put(shape, value).expect_err("refused").to_string();
    assert!(problem(&[all as u64, vocab + 1], None).contains("51 tokens"));
    assert!(problem(&[all as u64 - 1, vocab], None).contains("5 rows"));
    assert!(problem(&[windows.rows() as u64, vocab], None).contains("1 windows"));
    assert!(problem(&[all as u64 * vocab], None).contains("rows and tokens"));
    for value in [f32::NAN, f32::INFINITY] {
        assert!(problem(&[all as u64, vocab], Some(value)).contains("row 1 of window 0"));
    }
    assert!(put(&[all as u64, vocab], None).is_ok());
    let bytes = fs::read(&path).expect("bytes");
    fs::write(&path, &bytes[..bytes.len() - 1]).expect("written");
    assert!(matches!(read(&path, &windows).expect_err("cut").problem, BaseProblem::Truncated { .. }));
}

fn model() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/moe-q4_k_m.gguf");
    Model::load(&Gguf::open(&path).expect("a model")).expect("it loads")
}

fn engine(model: &Model, batch: usize, isa: Option<Isa>, kv: KvType) -> Engine<'_> {
    let options =
        EngineOptions { context: 16, batch, kv, threads: 2.into(), isa, drafts: 0, guesses: Guesses::Off };
    Engine::new(model, &options).expect("an engine")
}

fn text(stride: Option<usize>) -> Windows {
    let options =
        WindowOptions { context: 16 - stride.map_or(0, |s| s / 2), stride, most: None, bos: Some(1) };
    Windows::new((0..50).map(|i| 3 + i * 31 % 300).collect(), options).expect("windows")
}

fn go_on(_: Step<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// However many tokens share a pass, on every kernel set, the figures are the same bits, and a run does not
/// diverge from another.
#[test]
fn figures_do_not_depend_on_how_they_are_computed() {
    let model = model();
    for windows in [text(None), text(Some(6))] {
        let mut reference = engine(&model, 16, Some(Isa::Scalar), KvType::F16);
        let wanted = measure(&windows, &mut reference, None, None, &mut go_on).expect("it runs").perplexity;
        assert_eq!(wanted.all.count as usize, windows.count() * windows.rows());
        for batch in [5, 16] {
            let mut own = engine(&model, batch, None, KvType::F16);
            let against = Some(Against::Engine(&mut reference));
            let found = measure(&windows, &mut own, against, None, &mut go_on).expect("it runs");
            assert_eq!(found.perplexity.all, wanted.all, "{batch}");
            assert_eq!(found.perplexity.positions, wanted.positions);
            let summary = found.divergences.expect("compared").summary();
            assert_eq!((summary.differing, summary.kld), (Some(0), Mean::default()));
            assert_eq!((summary.ln_ratio, summary.same_top.mean), (Mean::default(), 1.0));
        }
        let mut other = engine(&model, 16, None, KvType::Q4_0);
        let against = Some(Against::Engine(&mut reference));
        let found = measure(&windows, &mut other, against, None, &mut go_on).expect("it runs");
        assert!(found.divergences.expect("compared").summary().kld.mean > 0.0);
    }
}

/// Logits of the scored rows, by way of a run whose base keeps all.
fn save(windows: &Windows, model: &Model, path: &Path, altered: Option<(usize, f32)>) {
    let vocab = model.spec().vocab;
    let mut values = Vec::new();
    let mut own = engine(model, 16, None, KvType::F16);
    let mut sequence = own.sequence();
    for i in 0..windows.count() {
        sequence.rewind(0);
        own.feed(&mut sequence, &windows.input(i), crate::model::Logits::All).expect("it runs");
        values.extend_from_slice(&sequence.logits()[windows.scored().start * vocab..]);
    }
    if let Some((at, by)) = altered {
        values[at] += by;
    }
    let rows = (windows.count() * windows.rows()) as u64;
    let mut writer = NpyWriter::create(path, &[rows, vocab as u64], true).expect("a file");
    writer.add(&values).expect("values");
    writer.finish().expect("a file");
}

/// The canary of "exactly 0": one logit of one row.
#[test]
fn one_altered_logit_is_seen() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.npy");
    let (model, windows) = (model(), text(None));
    let compare = |altered| {
        save(&windows, &model, &path, altered);
        let mut base = BaseSource::open(&path).expect("a base");
        base.check(&windows, model.spec().vocab).expect("of these windows");
        let mut own = engine(&model, 7, None, KvType::F16);
        let against = Some(Against::Base(&mut base));
        let found = measure(&windows, &mut own, against, None, &mut go_on).expect("it runs");
        found.divergences.expect("compared").summary()
    };
    let same = compare(None);
    assert_eq!((same.differing, same.kld, same.ratio.mean), (Some(0), Mean::default(), 1.0));
    let other = compare(Some((3 * model.spec().vocab + 11, 0.5)));
    assert_eq!(other.differing, Some(1));
    assert!(other.kld.mean > 0.0 && other.percentiles[1].kld > 0.0 && other.percentiles[6].kld == 0.0);
}

/// What a base loses, of the divergence of a KV cache of Q4_0 from one of F16: it tells of no more than there
/// is, and of the more the more it keeps.
#[test]
fn a_base_loses_what_is_said() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, windows) = (model(), text(None));
    let mut own = engine(&model, 16, None, KvType::F16);
    let mut other = engine(&model, 16, None, KvType::Q4_0);
    let against = Some(Against::Engine(&mut own));
    let whole = measure(&windows, &mut other, against, None, &mut go_on).expect("it runs");
    let whole = whole.divergences.expect("compared").summary();
    let mut shares = Vec::new();
    for (top, measured) in BASE_SHARES {
        let path: PathBuf = dir.path().join(format!("{top}.base"));
        let mut writer = BaseWriter::create(&path, true).expect("a file");
        let (context, vocab) = (windows.options().context, model.spec().vocab);
        writer.begin(&BaseHeader { vocab, context, ..header(&windows, top) }).expect("a header");
        measure(&windows, &mut own, None, Some(&mut writer), &mut go_on).expect("it runs");
        writer.finish().expect("a base");
        let compare = |engine: &mut Engine<'_>| {
            let mut base = BaseSource::open(&path).expect("a base");
            base.check(&windows, vocab).expect("of these windows");
            let against = Some(Against::Base(&mut base));
            let found = measure(&windows, engine, against, None, &mut go_on).expect("it runs");
            found.divergences.expect("compared").summary()
        };
        let itself = compare(&mut own);
        assert_eq!(itself.kld, Mean::default(), "{top}");
        let found = compare(&mut other);
        shares.push((top, measured, found.kld.mean / whole.kld.mean));
        assert!((found.ln_ratio.mean - whole.ln_ratio.mean).abs() < 1e-6, "{top}");
        assert_eq!((found.same_top, found.differing), (whole.same_top, None), "{top}");
        assert!((found.delta_p.mean - whole.delta_p.mean).abs() < 1e-6 && found.rest < 1.0, "{top}");
    }
    assert!(shares.iter().all(|(_, measured, share)| (share - measured).abs() < 1e-4), "{shares:?}");
}

/// Tokens that are kept of 320, and the share of the divergence that is told: the same on every machine.
const BASE_SHARES: [(usize, f64); 3] = [(8, 0.8271), (64, 0.9836), (320, 1.0)];

#[test]
fn runs_that_cannot_be_are_refused_and_others_broken_off() {
    let model = model();
    let mut own = engine(&model, 16, None, KvType::F16);
    let options = *text(None).options();
    let beyond = Windows::new(vec![model.spec().vocab as u32; 40], options).expect("windows");
    let error = measure(&beyond, &mut own, None, None, &mut go_on).expect_err("no such token");
    assert!(error.to_string().contains("outside the vocabulary"), "{error}");
    let mut passes = 0;
    let stop = &mut |_: Step<'_>| {
        passes += 1;
        if passes < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let error = measure(&text(None), &mut own, None, None, stop).expect_err("broken off");
    assert!(matches!(error, VerifyError::Engine(crate::engine::EngineError::Interrupted)));
}
