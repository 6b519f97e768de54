//! The model that is part of the program, and models in memory in general.

mod common;

use std::path::Path;

use common::gguf::small_model;
use common::runs::{Run, options};
use common::{transcript, wayinfer};
use serde_json::Value;
use tempfile::TempDir;
use wayinfer::gguf::{Gguf, GgufErrorKind, Source, StaticBytes};
use wayinfer::model::{Logits, Model};

const ANSWER: &str = "The sum of 2 and 2 is 4.";

/// Runs in an empty folder; the run must succeed. Gives stdout and stderr.
fn run(args: &[&str]) -> (String, String) {
    let dir = TempDir::new().expect("a folder");
    let output = wayinfer(dir.path(), 100, args);
    assert!(output.status.success(), "{args:?}: {}", transcript(&output));
    let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
    (text(output.stdout), text(output.stderr))
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&run(args).0).expect("output is JSON")
}

#[test]
fn without_a_model_the_demo_answers() {
    for model in [&[][..], &["-m", "demo"], &["demo"]] {
        let (stdout, stderr) = run(&[&["generate", "-p", "What is 2+2?"], model].concat());
        assert_eq!(stdout, format!("{ANSWER}\n"));
        assert!(stderr.starts_with("the demo answers,") && stderr.contains("-m MODEL"), "{stderr}");
    }
    let report = json(&["generate", "-p", "What is 2+2?", "--json"]);
    assert_eq!((&report["text"], &report["stop"]), (&ANSWER.into(), &"end_of_text".into()));
    assert_eq!(report["model"], "demo");
    // Other paths, the same bits.
    let scalar = json(&["generate", "-p", "What is 2+2?", "--json", "--isa", "scalar", "-t", "1"]);
    assert_eq!(scalar["ids"], report["ids"]);
}

#[test]
fn the_demo_is_greedy_until_sampling_is_asked_for() {
    let ask = |more: &[&str]| json(&[&["generate", "-p", "What is 2+2?", "--json"], more].concat());
    let greedy = ask(&[]);
    assert_eq!(greedy["ids"], ask(&["--greedy"])["ids"]);
    let hot = ["--temp", "9", "--top-k", "0", "--top-p", "1", "--min-p", "0", "-n", "40"];
    let sampled = ask(&[&hot[..], &["--seed", "1"]].concat());
    assert_ne!(sampled["ids"], greedy["ids"]);
    assert_eq!(sampled["ids"], ask(&[&hot[..], &["--seed", "1"]].concat())["ids"]);
    assert_eq!(ask(&["--seed", "5"])["seed"], 5, "a seed asks for sampling");
}

#[test]
fn the_demo_chats_but_takes_ids_as_they_are() {
    let dir = TempDir::new().expect("a folder");
    std::fs::write(dir.path().join("ids"), [5u32, 6].map(u32::to_le_bytes).concat()).expect("a file");
    let output = wayinfer(dir.path(), 100, &["generate", "--ids-file", "ids", "-n", "1", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("output is JSON");
    assert_eq!(report["prompt_ids"], serde_json::json!([5, 6]));
    let chat = json(&["generate", "-p", "hi", "--chat", "-n", "1", "--json"]);
    assert_eq!(chat["prompt_ids"], json(&["generate", "-p", "hi", "-n", "1", "--json"])["prompt_ids"]);

    let refused = |args: &[&str], code: i32, text: &str| {
        let output = wayinfer(dir.path(), 100, args);
        let said = transcript(&output);
        assert!(output.status.code() == Some(code) && said.contains(text), "{said}");
    };
    refused(
        &["generate", "-p", "a", "--system", "b"],
        1,
        "error: demo: the chat template leaves system mess",
    );
    refused(&["generate", "--ids-file", "ids", "--system", "b"], 2, "cannot be used with");
    small_model().write(&dir.path().join("small.gguf"));
    refused(&["generate", "-m", "small.gguf", "-p", "a", "--system", "b"], 2, "--system is a part of a chat");
}

#[test]
fn every_command_knows_the_demo_by_name() {
    let (shown, _) = run(&["inspect", "-m", "demo"]);
    assert!(shown.starts_with("demo\n") && shown.contains("2 of 8 used a token"), "{shown}");
    assert_eq!(run(&["inspect", "--check", "demo"]).0, "demo: no errors, no warnings\n");
    assert!(json(&["inspect", "demo", "--json"])["tensors"].as_array().is_some_and(|t| t.len() > 10));
    let ids = json(&["tokenize", "-m", "demo", "--text", "What is 2+2?", "--json"]);
    let ids: Vec<_> = ids.as_array().expect("an array").iter().map(Value::to_string).collect();
    assert_eq!(run(&["tokenize", "-m", "demo", "--decode", &ids.join(" ")]).0, "What is 2+2?");
    let report = json(&["bench", "-m", "demo", "-p", "8", "-n", "2", "-r", "1", "--json"]);
    assert_eq!(report["model"], "demo");

    // A file of this name is meant, where there is one (not a folder); no other command runs the demo
    // unasked.
    let dir = TempDir::new().expect("a folder");
    let demo = dir.path().join("demo");
    std::fs::create_dir(&demo).expect("a folder");
    assert!(wayinfer(dir.path(), 100, &["inspect", "-m", "demo"]).status.success());
    std::fs::remove_dir(&demo).expect("it is empty");
    small_model().write(&demo);
    let output = wayinfer(dir.path(), 100, &["inspect", "-m", "demo"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("small"));
    for command in ["inspect", "tokenize", "bench"] {
        assert_eq!(wayinfer(dir.path(), 100, &[command]).status.code(), Some(2), "{command}");
    }
}

/// The last logits of a prompt of 40 tokens and of two more.
fn logits(gguf: &Gguf) -> Vec<f32> {
    let model = Model::load(gguf).unwrap_or_else(|e| panic!("{e}"));
    let mut run = Run::new(&model, &options(64, 32));
    let ids: Vec<u32> = (0..40).map(|i| i * 7 % 300).collect();
    [&ids[..], &[3], &[4]]
        .into_iter()
        .flat_map(|ids| {
            run.feed(ids, Logits::Last).expect("logits");
            run.logits().to_vec()
        })
        .collect()
}

/// Weights in memory may lie at any address: every format, at an odd one, gives the bits of a mapped file.
#[test]
fn a_model_in_memory_gives_the_bits_of_its_file() {
    for name in ["dense-f32", "dense-f16", "dense-bf16", "dense-q8_0", "dense-q5_k_m", "moe-q4_k_m"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/{name}.gguf"));
        let file = std::fs::read(&path).expect("a fixture");
        let mut bytes: Vec<u8> = Vec::with_capacity(file.len() + 64);
        let odd = 64 - bytes.as_ptr().addr() % 64 + 1;
        bytes.resize(odd % 64, 0);
        let start = bytes.len();
        bytes.extend(&file);
        let bytes = StaticBytes(&bytes.leak()[start..]);
        assert_eq!(bytes.as_ptr().addr() % 64, 1);
        let memory = Gguf::open(Source::Memory { name, bytes }).expect("the fixture opens");
        assert_eq!(memory.parts[0].path, Path::new(name));
        let mapped = Gguf::open(&path).expect("the fixture opens");
        assert_eq!(memory.tensors, mapped.tensors);
        assert!(logits(&memory) == logits(&mapped), "{name}: other bits");
    }
}

#[test]
fn bytes_in_memory_are_checked_as_files_are() {
    let open = |bytes: Vec<u8>| {
        let source = Source::Memory { name: "bytes", bytes: StaticBytes(bytes.leak()) };
        assert_eq!(Gguf::check(source).gguf.is_some(), Gguf::open(source).is_ok());
        Gguf::open(source)
    };
    let whole = small_model().build();
    assert!(open(whole.clone()).is_ok());
    let error = open(whole[..whole.len() - 100].to_vec()).expect_err("it is cut");
    assert!(matches!(error.kind, GgufErrorKind::DataBeyondFile { .. }), "{error}");
    assert!(error.to_string().starts_with("bytes at byte "), "{error}");
    assert!(matches!(open(Vec::new()).expect_err("it is empty").kind, GgufErrorKind::Empty));
    let split = small_model().kv("split.no", 0u16).kv("split.count", 2u16).build();
    assert!(matches!(open(split).expect_err("a part").kind, GgufErrorKind::SplitName { count: 2 }));
}
