//! `perplexity` as a user runs it.

mod common;

use std::path::Path;

use common::{transcript, wayinfer};
use serde_json::Value;
use tempfile::TempDir;

const DEMO: &str = "demo";

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name).to_str().expect("UTF-8").to_owned()
}

/// A folder with `chat.txt`: conversations of the demo's kind, that it was not trained on.
fn folder() -> TempDir {
    let dir = TempDir::new().expect("a folder");
    let held_out = std::fs::read(fixture("demo-held-out.json")).expect("held-out questions");
    let held_out: Vec<Value> = serde_json::from_slice(&held_out).expect("JSON");
    let mut text = String::new();
    for pair in &held_out[..200] {
        let [question, answer] = ["question", "answer"].map(|key| pair[key].as_str().expect("text"));
        text.push_str(&format!("<|user|>{question}<|end|><|assistant|>{answer}<|end|>"));
    }
    std::fs::write(dir.path().join("chat.txt"), text + "\n").expect("written");
    dir
}

fn run(dir: &TempDir, args: &[&str]) -> String {
    transcript(&wayinfer(dir.path(), 100, &[&["perplexity"], args].concat()))
}

fn json(dir: &TempDir, args: &[&str]) -> Value {
    let output = wayinfer(dir.path(), 100, &[&["perplexity", "--json"], args].concat());
    assert!(output.status.success(), "{}", transcript(&output));
    serde_json::from_slice(&output.stdout).expect("one object")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn help_and_mistakes() {
    let dir = folder();
    insta::assert_snapshot!("help", run(&dir, &["--help"]));
    std::fs::write(dir.path().join("empty.txt"), "").expect("written");
    std::fs::write(dir.path().join("latin.txt"), b"caf\xe9").expect("written");
    std::fs::write(dir.path().join("there"), "").expect("written");
    let refused = |args: &[&str]| run(&dir, &[&["-m", DEMO, "-f", "chat.txt"], args].concat());
    let told = [
        run(&dir, &["-m", DEMO, "-f", "empty.txt"]),
        run(&dir, &["-m", DEMO, "-f", "latin.txt"]),
        run(&dir, &["-m", DEMO, "-f", "none.txt"]),
        refused(&["-c", "9000"]),
        refused(&["-c", "3"]),
        refused(&["-c", "64", "--stride", "64"]),
        refused(&["--base", "there"]),
        refused(&["--base-top", "9"]),
        refused(&["--base", "b", "--base-top", "0"]),
        refused(&["--against", "there"]),
        refused(&["--against", "none.base"]),
        refused(&["-c", "64", "--against", &fixture("moe-q4_k_m.gguf")]).replace(&fixture(""), "fixtures/"),
    ];
    insta::assert_snapshot!("mistakes", told.join("\n"));
}

/// Model, text and arguments; the perplexity that ggml has of it (`wayinfer-ggml perplexity`, the portable build)
/// and how far ours was from it, relatively.
type Figure = (&'static str, &'static str, &'static [&'static str], f64, f64);

/// Of float weights within 1e-4. Of quantised ones roundings of activations to 8 bits come out otherwise: against
/// ggml's own logits the ratios of these two are 1.0009 ± 0.0008 and 1.0020 ± 0.0023.
const OF_GGML: [Figure; 4] = [
    ("dense-f32.gguf", "demo-held-out.json", &["-c", "64", "--chunks", "8"], 8739.969199388901, 5.9e-6),
    ("dense-f16.gguf", "demo-held-out.json", &["-c", "64", "--chunks", "8"], 8742.160010594398, 2.1e-5),
    (
        "demo-q4_k_m.gguf",
        "chat.txt",
        &["-c", "128", "--chunks", "10", "--special"],
        164.61771270155106,
        8.6e-4,
    ),
    (
        "demo-q4_k_m.gguf",
        "chat.txt",
        &["-c", "128", "--chunks", "8", "--stride", "64", "--special"],
        159.31218990562348,
        2.0e-3,
    ),
];

#[test]
fn the_figure_is_ggmls() {
    let dir = folder();
    std::fs::copy(fixture("demo-held-out.json"), dir.path().join("demo-held-out.json")).expect("a copy");
    for (model, text, args, wanted, measured) in OF_GGML {
        let found = json(&dir, &[&["-m", &fixture(model), "-f", text], args].concat());
        let found = number(&found["perplexity"]["mean"]);
        let far = (found - wanted).abs() / wanted;
        // The same bits on every machine: no more than what was measured, rounded.
        assert!(far <= 1.02 * measured, "{model} {args:?}: {found}, where ggml has {wanted}: {far:.2e}");
    }
}

/// A text's figures, in words and as JSON: the same on every machine.
#[test]
fn figures_are_told() {
    let dir = folder();
    let args =
        ["-m", DEMO, "-f", "chat.txt", "--special", "-c", "64", "--chunks", "6", "--against-kv", "q4_0"];
    let mask = |text: String| {
        let mut sets: Vec<_> = wayinfer::kernels::Isa::ALL.iter().map(|isa| isa.name()).collect();
        sets.sort_by_key(|name| std::cmp::Reverse(name.len()));
        sets.iter().fold(text, |text, set| text.replace(&format!("({set},"), "(ISA,"))
    };
    let output = wayinfer(dir.path(), 100, &[&["perplexity"], &args[..]].concat());
    assert!(output.status.success(), "{}", transcript(&output));
    insta::assert_snapshot!("figures", mask(String::from_utf8(output.stdout).expect("UTF-8")));
    let found = json(&dir, &args);
    assert_eq!(found["windows"].as_array().map(Vec::len), Some(6));
    assert_eq!(found["positions"].as_array().map(Vec::len), Some(31));
    assert_eq!((&found["first_position"], &found["scored"]), (&32.into(), &186.into()));
    // The mean over windows, and over positions, is the mean.
    for parts in ["windows", "positions"] {
        for (key, whole) in [("nll", &found["nll"]["mean"]), ("kld", &found["divergence"]["kld"]["mean"])] {
            let parts = found[parts].as_array().expect("parts");
            let mean = parts.iter().map(|part| number(&part[key])).sum::<f64>() / parts.len() as f64;
            assert!((mean - number(whole)).abs() < 1e-12, "{parts:?} {key}");
        }
    }
    assert!((number(&found["nll"]["mean"]).exp() - number(&found["perplexity"]["mean"])).abs() < 1e-9);
}

/// Two kernel sets, a model and itself, a model and a base of itself: exactly 0.
#[test]
fn what_is_the_same_diverges_by_nothing() {
    let dir = folder();
    let base = |args: &[&str]| {
        json(&dir, &[&["-m", DEMO, "-f", "chat.txt", "-c", "32", "--chunks", "3"], args].concat())
    };
    let written = base(&["--base", "b.base"]);
    assert!(written.get("divergence").is_none());
    let copy = dir.path().join("copy.gguf");
    std::fs::copy(fixture("demo-q4_k_m.gguf"), &copy).expect("a copy");
    let runs: [&[&str]; 4] = [
        &["--against-isa", "scalar"],
        &["--against", DEMO, "--threads", "1"],
        &["--against", "copy.gguf", "--isa", "scalar"],
        &["--against", "b.base", "--isa", "scalar"],
    ];
    for args in runs {
        let found = base(args);
        let divergence = &found["divergence"];
        assert_eq!(number(&divergence["kld"]["mean"]), 0.0, "{args:?}");
        assert_eq!(number(&divergence["same_top"]["mean"]), 1.0, "{args:?}");
        let exact = !args.contains(&"b.base");
        assert_eq!(divergence["rows_that_differ"].as_u64(), exact.then_some(0), "{args:?}");
        assert_eq!(found["perplexity"], written["perplexity"], "{args:?}");
    }
    // A KV cache of another type is seen, in a base as in a run.
    for args in [&["--against", "b.base", "--kv", "q4_0"][..], &["--against-kv", "q4_0"]] {
        assert!(number(&base(args)["divergence"]["kld"]["mean"]) > 1e-4, "{args:?}");
    }
}

#[test]
fn a_base_of_something_else_is_refused() {
    let dir = folder();
    let base = |args: &[&str]| run(&dir, &[&["-m", DEMO, "--chunks", "3", "-c", "32"], args].concat());
    assert!(base(&["-f", "chat.txt", "--base", "b.base"]).starts_with("exit code: 0"));
    std::fs::write(dir.path().join("other.txt"), "What is 2+2? ".repeat(40)).expect("written");
    let bytes = std::fs::read(dir.path().join("b.base")).expect("a base");
    std::fs::write(dir.path().join("cut.base"), &bytes[..bytes.len() * 2 / 3]).expect("written");
    let told = [
        base(&["-f", "other.txt", "--against", "b.base"]),
        base(&["-f", "chat.txt", "--against", "b.base", "--stride", "8"]),
        run(&dir, &["-m", DEMO, "-f", "chat.txt", "-c", "32", "--against", "b.base"]),
        base(&["-f", "chat.txt", "--against", "cut.base"]),
        base(&["-f", "chat.txt", "--against", "b.base", "--against-isa", "scalar"]),
        base(&["-f", "chat.txt", "--base", "b.base"]),
    ];
    insta::assert_snapshot!("bases", told.join("\n"));
    assert_eq!(std::fs::read(dir.path().join("b.base")).expect("a base"), bytes, "it stays");
    assert!(base(&["-f", "other.txt", "--base", "b.base", "--force"]).starts_with("exit code: 0"));
    assert!(base(&["-f", "other.txt", "--against", "b.base"]).contains("KL divergence          0 ± 0"));
}
