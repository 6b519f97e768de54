//! `--cache` as a user runs it: what was computed once is read back, with the same bits.

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use wayinfer::kernels::Kernels;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Token ids in a file: two pages and some.
fn prompt(dir: &Path, name: &str, n: u32, first: u32) -> String {
    let path = dir.join(name);
    let ids: Vec<u8> = (0..n).flat_map(|i| (first + i * 7919 % 90).to_le_bytes()).collect();
    fs::write(&path, ids).expect("a file");
    path.to_str().expect("UTF-8").to_owned()
}

fn command(model: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayinfer"));
    let model = model.to_str().expect("UTF-8");
    command.args(["generate", "-m", model, "-c", "400", "-n", "12", "--seed", "5", "--json", "-t", "1"]);
    command.args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(model: &Path, args: &[&str]) -> Output {
    command(model, args).output().expect("it starts")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", told(output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files
}

#[test]
fn a_prompt_is_computed_once() {
    for model in ["dense-q8_0.gguf", "gemma3.gguf", "qwen3next.gguf", "moe-q4_k_m-00002-of-00003.gguf"] {
        let (dir, model) = (folder(), fixture(model));
        let ids = prompt(dir.path(), "ids", 300, 3);
        let cache = dir.path().join("cache");
        let with = ["--ids-file", &ids, "--cache", cache.to_str().expect("UTF-8")];
        let plain = report(&run(&model, &with[..2]));
        assert_eq!((&plain["cached_tokens"], cache.exists()), (&Value::from(0), false), "off by default");
        let first = run(&model, &with);
        assert!(!told(&first).contains("from the cache"), "{}", told(&first));
        let first = report(&first);
        assert_eq!(first["cached_tokens"], 0);
        let second = run(&model, &with);
        assert!(told(&second).contains("prompt: 256 of 300 tokens from the cache, "), "{}", told(&second));
        let second = report(&second);
        assert_eq!(second["cached_tokens"], 256);
        assert_eq!(second["timings"]["prefill_tokens"], 44);
        for with_cache in [&first, &second] {
            assert_eq!((&with_cache["ids"], &with_cache["text"]), (&plain["ids"], &plain["text"]));
        }
        // A canary: another beginning shares nothing, and says something else.
        let other = prompt(dir.path(), "other", 300, 4);
        let other = report(&run(&model, &["--ids-file", &other, with[2], with[3]]));
        assert_eq!(other["cached_tokens"], 0);
        assert_ne!(other["ids"], plain["ids"]);
    }
}

/// The same document and another question each time: a model that cannot be cut back learns from the second
/// where they part.
#[test]
fn questions_about_one_text_share_it() {
    for (model, wanted) in [("dense-q8_0.gguf", [0, 128, 128]), ("qwen3next.gguf", [0, 0, 128])] {
        let (dir, model) = (folder(), fixture(model));
        let cache = dir.path().join("cache");
        for (i, wanted) in wanted.into_iter().enumerate() {
            let path = prompt(dir.path(), "ids", 300, 3);
            let mut ids = fs::read(&path).expect("a file");
            ids[4 * 200] = i as u8;
            fs::write(&path, ids).expect("a file");
            let plain = report(&run(&model, &["--ids-file", &path]));
            let args = ["--ids-file", &path, "--cache", cache.to_str().expect("UTF-8")];
            let cached = report(&run(&model, &args));
            assert_eq!(cached["cached_tokens"], wanted, "{i} of {}", model.display());
            assert_eq!(cached["ids"], plain["ids"]);
        }
    }
}

#[test]
fn what_a_kernel_set_wrote_another_reads() {
    let (dir, model) = (folder(), fixture("dense-q4_k_m.gguf"));
    let ids = prompt(dir.path(), "ids", 200, 3);
    let cache = dir.path().join("cache");
    let sets: Vec<_> = Kernels::available().map(|set| set.isa().name()).collect();
    let mut truth = None;
    for (i, isa) in sets.iter().rev().enumerate() {
        let cache = cache.to_str().expect("UTF-8");
        let report = report(&run(&model, &["--ids-file", &ids, "--cache", cache, "--isa", isa]));
        assert_eq!(report["cached_tokens"], if i == 0 { 0 } else { 128 }, "{isa}");
        assert_eq!(*truth.get_or_insert(report["ids"].clone()), report["ids"], "{isa}");
    }
    common::say_kernel_sets("what_a_kernel_set_wrote_another_reads");
}

#[test]
fn two_at_once_do_not_disturb_each_other() {
    let (dir, model) = (folder(), fixture("dense-q8_0.gguf"));
    let ids = prompt(dir.path(), "ids", 300, 3);
    let cache = dir.path().join("cache");
    let args = ["--ids-file", &ids, "--cache", cache.to_str().expect("UTF-8")];
    let plain = report(&run(&model, &args[..2]));
    let started: Vec<_> = (0..3).map(|_| command(&model, &args).spawn().expect("it starts")).collect();
    for child in started {
        let output = child.wait_with_output().expect("it ends");
        assert!(!told(&output).contains("warning"), "{}", told(&output));
        assert_eq!(report(&output)["ids"], plain["ids"]);
    }
    assert_eq!(report(&run(&model, &args))["cached_tokens"], 256);
    assert!(files(&cache).iter().all(|file| file.extension().is_some()), "nothing unfinished is left");
}

#[test]
fn what_was_altered_is_computed_anew() {
    let (dir, model) = (folder(), fixture("dense-q8_0.gguf"));
    let ids = prompt(dir.path(), "ids", 300, 3);
    let cache = dir.path().join("cache");
    let args = ["--ids-file", &ids, "--cache", cache.to_str().expect("UTF-8")];
    let truth = report(&run(&model, &args));
    for file in files(&cache).iter().filter(|file| file.extension().is_some_and(|ending| ending == "page")) {
        let whole = fs::read(file).expect("a file");
        let mut altered = whole.clone();
        altered[whole.len() / 2] ^= 1;
        for spoiled in [&altered[..], &whole[..whole.len() / 2], b""] {
            fs::write(file, spoiled).expect("a file");
            let output = run(&model, &args);
            assert_eq!(told(&output).matches("not used, and computed anew").count(), 1, "{}", told(&output));
            let report = report(&output);
            assert!(report["cached_tokens"].as_u64() < Some(256));
            assert_eq!(report["ids"], truth["ids"]);
            assert!(fs::read(file).expect("a file") == whole, "it is written anew");
        }
    }
}

/// A fine-tune has the same header, and other weights.
#[test]
fn another_model_finds_nothing() {
    let dir = folder();
    let ids = prompt(dir.path(), "ids", 300, 3);
    let cache = dir.path().join("cache");
    let args = ["--ids-file", &ids, "--cache", cache.to_str().expect("UTF-8")];
    let model = dir.path().join("model.gguf");
    let mut bytes = fs::read(fixture("dense-q8_0.gguf")).expect("a fixture");
    fs::write(&model, &bytes).expect("a model");
    assert_eq!(report(&run(&model, &args))["cached_tokens"], 0);
    assert_eq!(report(&run(&model, &args))["cached_tokens"], 256);
    let last = bytes.len() - 1;
    bytes[last] ^= 0x40;
    fs::write(&model, &bytes).expect("a model");
    assert_eq!(report(&run(&model, &args))["cached_tokens"], 0);
    // Other settings of the cache neither.
    assert_eq!(report(&run(&model, &[&args[..], &["--kv", "f32"]].concat()))["cached_tokens"], 0);
    assert_eq!(report(&run(&model, &args))["cached_tokens"], 256);
}

#[test]
fn a_cache_that_cannot_be_had_is_a_warning() {
    let (dir, model) = (folder(), fixture("dense-q8_0.gguf"));
    let ids = prompt(dir.path(), "ids", 300, 3);
    let plain = report(&run(&model, &["--ids-file", &ids]));
    let run = |folder: &str, size: &str| {
        let output = run(&model, &["--ids-file", &ids, "--cache", folder, "--cache-size", size]);
        assert_eq!(report(&output)["ids"], plain["ids"], "{folder}");
        told(&output)
    };
    // A file where the folder should be.
    let warning = run(&ids, "8G");
    assert!(warning.contains("warning: ") && warning.contains("there is no cache: "), "{warning}");
    if cfg!(target_os = "linux") {
        let warning = run("/proc/self", "8G");
        assert!(warning.contains("warning: /proc/self: nothing more is kept in the cache: "), "{warning}");
    }
    let cache = dir.path().join("cache");
    let cache = cache.to_str().expect("UTF-8");
    run(cache, "100");
    let pages = |file: &PathBuf| file.extension().is_some_and(|ending| ending == "page");
    assert!(!files(Path::new(cache)).iter().any(pages), "no page fits");
}

#[test]
fn the_size_is_kept_to() {
    let (dir, model) = (folder(), fixture("dense-q8_0.gguf"));
    let cache = dir.path().join("cache");
    let path = cache.to_str().expect("UTF-8");
    let bytes = || files(&cache).iter().map(|file| file.metadata().expect("a file").len()).sum::<u64>();
    let mut last = 0;
    for i in 0..4 {
        let ids = prompt(dir.path(), "ids", 300, i);
        report(&run(&model, &["--ids-file", &ids, "--cache", path]));
        assert!(bytes() > last, "all fit");
        last = bytes();
    }
    let half = (last / 2).to_string();
    let ids = prompt(dir.path(), "ids", 300, 5);
    report(&run(&model, &["--ids-file", &ids, "--cache", path, "--cache-size", &half]));
    assert!(bytes() <= last / 2, "{} of {half}", bytes());
    // What was used last is there, what was used first is not.
    for (i, wanted) in [(5, 256), (0, 0)] {
        let ids = prompt(dir.path(), "ids", 300, i);
        let found = report(&run(&model, &["--ids-file", &ids, "--cache", path, "--cache-size", &half]));
        assert_eq!(found["cached_tokens"], wanted, "{i}");
    }
}

/// A conversation through a pipe, its data in this folder.
fn chat(data: &Path, args: &[&str], lines: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_wayinfer"))
        .args(["chat", "--temp", "1.2", "--seed", "7", "-c", "512"])
        .args(args)
        .env("XDG_DATA_HOME", data)
        .env("HOME", data)
        .env("APPDATA", data)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // One that has ended does not read on.
    let _ = child.stdin.take().expect("a pipe").write_all(lines.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", told(&output));
    output
}

#[test]
fn a_conversation_that_is_resumed_is_not_read_anew() {
    let data = folder();
    let turns = ["What is 2+2?\n", "Count from 1 to 20.\n", "Spell the word banana.\n", "What is 9-4?\n"];
    let first: String = (0..8).map(|i| turns[i % 4]).collect();
    let last = "What is 3+4?\n/stats\n";
    // Apart from the other, which would find its pages.
    let elsewhere = folder();
    let whole = chat(elsewhere.path(), &["--resume=whole"], &format!("{first}{last}"));
    let parts = chat(data.path(), &["--resume=parts"], &first);
    assert!(!told(&parts).contains("from the cache"), "{}", told(&parts));
    let resumed = chat(data.path(), &["--resume=parts"], last);
    let stdout = |output: &Output| String::from_utf8(output.stdout.clone()).expect("UTF-8");
    assert_eq!(stdout(&parts) + &stdout(&resumed), stdout(&whole));
    // All full pages of the old turns, and less than one page is read anew.
    let told = told(&resumed);
    let line = told.lines().find(|line| line.contains("from the cache")).expect(&told);
    let numbers: Vec<usize> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(numbers[0] >= 128 && numbers[0].is_multiple_of(128), "{line}");
    assert!(numbers[1] - numbers[0] < 128 + 64, "{line}");
    let stats = told.lines().find(|line| line.starts_with("prompt ") && line.contains("remembered"));
    assert!(stats.expect(&told).contains(&format!("{} of them remembered", numbers[0])), "{told}");
    assert!(data.path().join("wayinfer/prefixes").is_dir());
}

#[test]
fn a_conversation_keeps_nothing_where_it_is_not_to() {
    let data = folder();
    let lines = "What is 2+2?\nCount from 1 to 20.\n";
    let places =
        || [data.path().join("wayinfer/prefixes"), data.path().join("elsewhere")].map(|p| p.exists());
    chat(data.path(), &[], lines);
    chat(data.path(), &["--resume=a", "--no-cache"], lines);
    assert_eq!(places(), [false; 2]);
    let elsewhere = data.path().join("elsewhere");
    chat(data.path(), &["--cache", elsewhere.to_str().expect("UTF-8")], lines);
    assert_eq!(places(), [false, true]);
}
