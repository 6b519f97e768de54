//! `generate` and `bench` as a user runs them.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{test_data, transcript, wayinfer};
use insta::assert_snapshot;
use serde_json::Value;
use wayinfer::kernels::{Isa, Kernels};

const STORY: &str = "models/stories260K.gguf";
const STORY_START: &str = ", there was a little girl named Lily. She loved to play outside in the park. One day, she \
                           saw a big, red ball. She wanted to play with it, but it was too high.";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Runs in the folder of the fixtures.
fn run(args: &[&str]) -> Output {
    wayinfer(&fixtures(), 100, args)
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", transcript(output));
    let text = std::str::from_utf8(&output.stdout).expect("output is UTF-8");
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    serde_json::from_str(text).expect("output is JSON")
}

fn generate(model: &str, args: &[&str]) -> Value {
    json(&run(&[&["generate", "-m", model, "--json"], args].concat()))
}

#[test]
fn a_real_model_tells_the_story_that_peers_tell() {
    let Some(model) = test_data(STORY) else { return };
    let model = model.to_str().expect("a path of UTF-8");
    let plain = run(&["generate", "-m", model, "-p", "Once upon a time", "--greedy", "-n", "200"]);
    assert!(plain.status.success());
    let text = String::from_utf8(plain.stdout).expect("output is UTF-8");
    assert!(text.starts_with(STORY_START), "{text}");
    let stats = String::from_utf8(plain.stderr).expect("output is UTF-8");
    assert!(stats.contains("tok/s") && stats.contains("peak RSS"), "{stats}");

    for isa in [Isa::Scalar, Kernels::detect_best().isa()] {
        let isa = isa.name();
        for (threads, kv) in [("1", "f16"), ("3", "f32")] {
            let args =
                ["-p", "Once upon a time", "--greedy", "-n", "50", "--isa", isa, "-t", threads, "--kv", kv];
            let output = run(&[&["generate", "-m", model, "--json"], &args[..]].concat());
            let report = json(&output);
            assert!(report["text"].as_str().is_some_and(|t| t.starts_with(", there was a little girl")));
            assert_eq!(report["ids"].as_array().map(Vec::len), Some(50));
            assert_eq!(report["prompt_ids"][0], 1, "BOS");
            assert_eq!(report["stop"], "max_tokens");
        }
    }
}

#[test]
fn stop_strings_and_context_end_the_text() {
    let Some(model) = test_data(STORY) else { return };
    let model = model.to_str().expect("a path of UTF-8");
    let story = ["-p", "Once upon a time", "--greedy"];
    let report = generate(model, &[&story[..], &["--stop", "park.", "--stop", "never said"]].concat());
    assert_eq!(report["stop"], "stop_string");
    assert_eq!(report["text"], ", there was a little girl named Lily. She loved to play outside in the ");
    let report = generate(model, &[&story[..], &["-c", "16"]].concat());
    assert_eq!(report["stop"], "context_full");
    // The last token drawn is not fed any more.
    assert_eq!(report["ids"].as_array().map(Vec::len), Some(16 - 5 + 1));
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let args = ["-p", "hello", "-n", "20", "--temp", "1.5", "--ignore-eos"];
    let with = |more: &[&str]| generate("moe-q4_k_m.gguf", &[&args[..], more].concat());
    let (a, b) = (with(&["--seed", "7", "-t", "1"]), with(&["--seed", "7", "-t", "2", "--isa", "scalar"]));
    assert_eq!(a["seed"], 7);
    assert_eq!(a["ids"], b["ids"]);
    assert_ne!(a["ids"], with(&["--seed", "8"])["ids"]);
}

/// Runs with drafts of each length and compares all that must be the same as without; gives how many drafts were
/// accepted.
fn accepted(args: &[&str]) -> u64 {
    let with = |mode: &str| json(&run(&[&["generate", "--json", "--speculate", mode], args].concat()));
    let plain = with("off");
    assert_eq!((&plain["drafted"], &plain["accepted"]), (&0.into(), &0.into()));
    let made = plain["ids"].as_array().map_or(0, Vec::len) as u64;
    let mut sum = 0;
    for drafts in ["1", "3", "8", "15"] {
        let report = with(drafts);
        for key in ["ids", "text", "stop"] {
            assert_eq!(report[key], plain[key], "{args:?}: {key} with {drafts} drafts");
        }
        let number = |key: &str| report[key].as_u64().expect("a number");
        // The first token comes from the prompt. The last may be a draft that was accepted and would not be run else.
        let fed = number("passes") + number("accepted");
        assert!(fed == made - 1 || fed == made, "{args:?}: {report}");
        assert!(number("accepted") <= number("drafted"));
        sum += number("accepted");
    }
    sum
}

#[test]
fn speculation_changes_no_token() {
    let samplings = [
        &["--greedy"][..],
        &["--seed", "1"],
        &["--seed", "2", "--temp", "1.2", "--repeat-penalty", "1.2"],
        &["--seed", "3", "--top-k", "2", "--top-p", "0.8", "--min-p", "0.1"],
    ];
    let repeating = "one two three one two three one two three one two three one two";
    let mut fixtures = 0;
    for (model, prompt) in [
        ("dense-q4_k_m.gguf", repeating),
        ("dense-q8_0.gguf", "no word twice"),
        ("moe-q4_k_m.gguf", repeating),
        ("demo", "What is 2+2? What is 2+3? What is 2+4?"),
        ("demo", "Spell banana."),
    ] {
        for sampling in samplings {
            let args = ["-m", model, "-p", prompt, "-n", "60", "--ignore-eos"];
            fixtures += accepted(&[&args[..], sampling].concat());
        }
    }
    assert!(fixtures > 0, "no draft was accepted");

    let Some(model) = test_data(STORY) else { return };
    let model = model.to_str().expect("a path of UTF-8");
    let story = STORY_START.repeat(2);
    for sampling in samplings {
        let with = |more: &[&str]| accepted(&[&["-m", model], sampling, more].concat());
        let repeated = with(&["-n", "100", "-p", &story]);
        println!("{sampling:?}: {repeated} accepted");
        assert!(repeated > 0, "{sampling:?}: no draft was accepted");
        with(&["-n", "100", "-p", "Zebra"]);
        with(&["-n", "100", "-p", &story, "--stop", "park", "--stop", "ball"]);
        with(&["-c", "180", "-p", &story]);
    }
}

#[test]
fn speculation_says_what_it_did() {
    let args =
        ["generate", "-m", "demo-q4_k_m.gguf", "-p", "one two one two one two", "-n", "40", "--greedy"];
    let with = |more: &[&str]| run(&[&args[..], more].concat());
    let stderr = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let forced = stderr(&with(&["--speculate", "8", "--ignore-eos"]));
    assert!(forced.contains(" passes, ") && forced.contains(" drafted accepted | "), "{forced}");
    assert!(!stderr(&with(&["--speculate", "off"])).contains("accepted"));
    // Nothing is drafted before a pass was measured.
    let two = ["generate", "-m", "demo-q4_k_m.gguf", "-p", "one two", "-n", "2", "--greedy"];
    assert!(!stderr(&run(&two)).contains("accepted"));
    // What each token was drawn from is the same as well.
    let debug = |mode| {
        let said = stderr(&with(&["--speculate", mode, "--debug", "--ignore-eos"]));
        said.lines().filter(|line| line.starts_with("debug: ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(debug("off").len() > 40);
    assert_eq!(debug("off"), debug("8"));
}

#[test]
fn ids_and_standard_input_are_prompts_too() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ids.bin");
    std::fs::write(&path, [5u32, 6, 7].map(u32::to_le_bytes).concat()).expect("a file");
    let path = path.to_str().expect("a path of UTF-8");
    let report = generate("dense-q8_0.gguf", &["--ids-file", path, "-n", "1", "--greedy"]);
    assert_eq!(report["prompt_ids"], serde_json::json!([5, 6, 7]), "fed as they are");

    let mut child = Command::new(env!("CARGO_BIN_EXE_wayinfer"))
        .current_dir(fixtures())
        .args(["generate", "-m", "dense-q8_0.gguf", "--json", "-n", "1", "--greedy"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child.stdin.take().expect("a pipe").write_all(b"hello\n").expect("input");
    let piped = json(&child.wait_with_output().expect("output"));
    let given = generate("dense-q8_0.gguf", &["-p", "hello\n", "-n", "1", "--greedy"]);
    assert_eq!(piped["prompt_ids"], given["prompt_ids"]);
    assert_eq!(piped["ids"], given["ids"]);
}

/// A prompt that is missing is said to be, and not made up for.
#[test]
fn an_empty_standard_input_is_no_prompt() {
    for command in ["generate", "trace"] {
        // The program's standard input is empty here.
        let output = run(&[command, "-m", "dense-q8_0.gguf"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("error: no prompt: standard input is empty\nhint: give -p"), "{stderr}");
        assert!(output.stdout.is_empty());
    }
}

/// What nobody reads does not end the run.
#[test]
fn a_stderr_that_is_closed_ends_nothing() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_wayinfer"))
        .current_dir(fixtures())
        .args(["generate", "-m", "dense-q8_0.gguf", "-p", "a", "-n", "300", "--ignore-eos", "--debug"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stderr = child.stderr.take().expect("a pipe");
    std::io::Read::read_exact(&mut stderr, &mut [0; 8]).expect("some of what it says");
    drop(stderr);
    assert_eq!(child.wait().expect("its end").code(), Some(0));
}

/// The memory of the process, not that of the one that started it.
#[test]
fn the_peak_is_the_program_s_own() {
    const OURS: usize = 512 << 20;
    let ours = std::hint::black_box(vec![1u8; OURS]);
    let report = generate("dense-q8_0.gguf", &["-p", "a", "-n", "1"]);
    let peak = report["peak_rss_bytes"].as_u64();
    assert_eq!(ours[OURS / 2], 1);
    assert!(!cfg!(target_os = "linux") || peak.is_some(), "{report}");
    assert!(peak.is_none_or(|peak| peak > 1 << 20 && peak < OURS as u64 / 4), "{report}");
}

/// What this CPU lacks, and what this build does, is refused by name.
#[test]
fn kernel_sets_that_cannot_run_are_refused() {
    for isa in Isa::ALL {
        let output = run(&["generate", "-m", "dense-q8_0.gguf", "-p", "hi", "-n", "1", "--isa", isa.name()]);
        match Kernels::by_isa(*isa) {
            Ok(_) => assert!(output.status.success(), "{isa}"),
            Err(why) => {
                assert_eq!(output.status.code(), Some(1));
                assert_eq!(String::from_utf8_lossy(&output.stderr), format!("error: {why}\n"));
            }
        }
    }
}

#[test]
fn mistakes_are_named() {
    let dense = ["generate", "-m", "dense-q8_0.gguf"];
    let with = |more: &[&str]| transcript(&run(&[&dense[..], more].concat()));
    let long = "a b c d e f g h i j k l m n o p q r s t u v w x y z";
    assert_snapshot!("prompt_too_long", with(&["-p", long, "-c", "8"]));
    assert_snapshot!("no_chat_template", with(&["-p", "hi", "--chat"]));
    assert_snapshot!("unknown_isa", with(&["-p", "hi", "--isa", "sse"]));
    assert_snapshot!("temperature", with(&["-p", "hi", "--temp=-1"]));
    assert_snapshot!("two_prompts", with(&["-p", "hi", "-f", "x"]));
    assert_snapshot!("no_such_file", transcript(&run(&["generate", "-m", "nothing.gguf", "-p", "hi"])));

    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ids.bin");
    std::fs::write(&path, [0xff; 4]).expect("a file");
    let path = path.to_str().expect("a path of UTF-8");
    assert_snapshot!("id_outside", with(&["--ids-file", path]));
    std::fs::write(path, [0; 5]).expect("a file");
    assert_snapshot!("ids_cut", with(&["--ids-file", path]).replace(path, "IDS"));
}

/// Uses that make no sense, or hardly any: exit code and what stderr has to say.
#[test]
fn awkward_uses_end_in_an_error_that_says_what_is_wrong() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = dir.path().join("model.bin");
    std::fs::copy(fixtures().join("moe-q4_k_m.gguf"), &model).expect("a copy");
    std::fs::write(dir.path().join("empty"), []).expect("a file");
    std::fs::write(dir.path().join("latin1"), b"caf\xe9").expect("a file");
    std::fs::create_dir(dir.path().join("folder.gguf")).expect("a folder");
    let cases: &[(&[&str], i32, &str)] = &[
        (&["generate", "-p", "a", "-m", "folder.gguf"], 1, "folder.gguf: is a directory, not a file"),
        (&["bench", "folder.gguf"], 1, "folder.gguf: is a directory, not a file"),
        (&["tokenize", "--text", "a", "empty"], 1, "empty: is empty"),
        (&["generate", "-p", "a", "-m", "model.bin/x"], 1, "model.bin/x: cannot be read"),
        (&["generate", "-f", "folder.gguf", "-m", "model.bin"], 1, "folder.gguf: cannot be read"),
        (&["generate", "-f", "latin1", "-m", "model.bin"], 1, "latin1: not UTF-8 at byte 3"),
        (&["generate", "--ids-file", "empty", "-m", "model.bin"], 1, "empty: is empty, where token ids"),
        (&["generate", "--ids-file", "none", "-m", "model.bin"], 1, "none: cannot be read"),
        (&["generate", "-p", "a", "-m", "model.bin", "-n", "-5"], 2, "invalid value '-5' for '--max-tokens"),
        (&["generate", "-p", "a", "-m", "model.bin", "-c", "0"], 2, "invalid value '0' for '--ctx"),
        (&["generate", "-p", "a", "-m", "model.bin", "-c", "1000000000000"], 1, "of them for the KV cache"),
        (
            &["generate", "-p", "a", "-m", "model.bin", "-t", "1000000"],
            2,
            "invalid value '1000000' for '--thr",
        ),
        (&["generate", "-p", "a", "-m", "model.bin", "--seed", "-3"], 2, "invalid value '-3' for '--seed"),
        (&["generate", "-p", "a", "-m", "model.bin", "--top-p", "2"], 2, "a number from 0 to 1 is needed"),
        (&["generate", "-p", "a", "-m", "model.bin", "--temp", "nan"], 2, "of at least 0 is needed"),
        (
            &["generate", "-p", "a", "-m", "model.bin", "--speculate", "16"],
            2,
            "auto, off, mtp, mtp:1 to mtp:15 and 1 to 15 are known",
        ),
        (
            &["generate", "-p", "a", "-m", "model.bin", "--speculate", "-1"],
            2,
            "auto, off, mtp, mtp:1 to mtp:15 and 1 to 15 are known",
        ),
        (&["generate", "-p", "a", "-m", "model.bin", "--stop", ""], 2, "a value is required for '--stop"),
        (&["bench", "model.bin", "-p", "1000000000000"], 1, "of them for the KV cache"),
        (&["bench", "model.bin", "-d", "18446744073709551615"], 2, "depth is too large"),
        (&["bench", "model.bin", "-r", "0"], 2, "invalid value '0' for '--rounds"),
        // No budget bounds it: the demo is in memory anyway.
        (&["bench", "demo", "-p", "1000000000000"], 1, "bytes of memory cannot be had for the prompt"),
        (&["bench", "demo", "-d", "1000000000000"], 1, "bytes of memory cannot be had for the prompt"),
        (&["bench", "model.bin", "--ram", "-1"], 2, "12G and 800M are sizes"),
        (&["inspect", "model.bin", "--plan", "--ram", "-1"], 2, "12G and 800M are sizes"),
        (&["inspect", "model.bin", "--speculate", "3"], 2, "  --plan"),
        (&["inspect", "model.bin", "--kv-k", "q8_0"], 2, "  --plan"),
        (&["inspect", "model.bin", "--plan", "--kv", "q9"], 2, "--kv: 'q9' is none of f16, f32, q8_0, q4_0"),
        (&["generate", "-p", "a", "-m", "model.bin", "--greedy", "--temp", "1"], 2, "cannot be used with"),
        (&["generate", "-p", "a", "-m", "model.bin", "--top-k", "3", "--greedy"], 2, "cannot be used with"),
        (&["trace", "-m", "none.gguf"], 2, "no prompt: standard input is empty"),
        (&["trace", "-p", "a", "-m", "model.bin", "-n", "-1"], 2, "invalid value '-1' for '--steps"),
        (&["trace", "-p", "a", "-m", "model.bin", "--worst", "3"], 2, "--worst without a reference"),
        (
            &["trace", "-p", "a", "-m", "model.bin", "--tolerance", "0.1"],
            2,
            "--tolerance without a reference",
        ),
        (&["tokenize", "model.bin", "--decode", "-1"], 2, "\"-1\" is not the id of a token"),
        (&["tokenize", "model.bin", "--file", "folder.gguf"], 1, "folder.gguf: cannot be read"),
    ];
    for (args, code, text) in cases {
        let output = wayinfer(dir.path(), 100, args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {stderr}");
        assert!(stderr.contains(text) && stderr.contains("error: "), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    let odd: [&[&str]; 4] = [&["-p", "-5"], &["-p", ""], &["-f", "empty"], &["-p", "a", "--stop", "-x"]];
    for (tokens, args) in odd.iter().flat_map(|args| [("0", args), ("1", args)]) {
        let run = [&["generate", "-m", "model.bin", "-n", tokens][..], args].concat();
        let output = wayinfer(dir.path(), 100, &run);
        assert!(output.status.success(), "{run:?}: {}", transcript(&output));
    }
}

/// What cannot be written is said to be, and where.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_that_names_what_could_not_be_written() {
    let commands: [&[&str]; 7] = [
        &["generate", "-m", "demo", "-p", "1+1", "-n", "2"],
        &["generate", "-m", "demo", "-p", "1+1", "-n", "2", "--json"],
        &["bench", "demo", "-p", "2", "-n", "1", "-r", "1"],
        &["inspect", "demo", "--json"],
        &["tokenize", "demo", "--text", "a"],
        &["dequant", "-m", "demo", "output_norm.weight", "--values"],
        &["trace", "-m", "demo", "-p", "a"],
    ];
    for args in commands {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
        let output = Command::new(env!("CARGO_BIN_EXE_wayinfer")).args(args).stdout(full).output();
        let output = output.expect("the program starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains("error: standard output: No space left on device"), "{args:?}: {stderr}");
    }
}

/// A model is mapped, and so has to be a regular file; to open a pipe would wait for its other end.
#[cfg(unix)]
#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let dir = tempfile::tempdir().expect("a folder");
    let made = Command::new("mkfifo").arg(dir.path().join("pipe.gguf")).status().expect("mkfifo starts");
    assert!(made.success());
    let commands: [&[&str]; 5] = [
        &["inspect"],
        &["inspect", "--check"],
        &["tokenize", "--text", "a"],
        &["generate", "-p", "a"],
        &["bench"],
    ];
    for (path, args) in ["pipe.gguf", "/dev/null"].iter().flat_map(|path| commands.map(|args| (path, args))) {
        let output = wayinfer(dir.path(), 100, &[args, &["-m", path]].concat());
        let said = transcript(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("error: {path}: is a device, pipe or socket, not a file")), "{said}");
    }
}

#[test]
fn bench_reports_what_it_measured() {
    let args = ["bench", "-m", "moe-q4_k_m.gguf", "-p", "16", "-n", "4", "-t", "2", "-r", "2", "-d", "20"];
    let report = json(&run(&[&args[..], &["--json"]].concat()));
    for rate in ["load_s", "prefill_tok_s", "decode_tok_s", "peak_rss_bytes"] {
        assert!(report[rate].as_f64().is_some_and(|v| v > 0.0), "{rate}: {report}");
    }
    assert_eq!(report["threads"], 2);
    assert_eq!(report["depth"], 20);
    assert_eq!(report["model"], "moe-q4_k_m.gguf");
    let table = run(&args);
    assert!(table.status.success() && String::from_utf8_lossy(&table.stdout).contains("decode at 20"));
}

#[test]
fn a_profile_says_where_the_time_goes() {
    let args = ["bench", "-m", "moe-q4_k_m.gguf", "-p", "16", "-n", "4", "-r", "1", "--profile"];
    let json = json(&run(&[&args[..], &["--json"]].concat()));
    assert!(json["kernels"]["Q4_K"].as_str().is_some_and(|k| k.starts_with("vec_dot_q4_k_q8_k (")), "{json}");
    for phase in ["prefill", "decode"] {
        let rows = json["profile"][phase].as_array().expect("rows");
        let share: f64 = rows.iter().map(|row| row["share"].as_f64().expect("a share")).sum();
        assert!((share - 1.0).abs() < 1e-9 && rows.len() >= 11, "{phase}: {rows:?}");
        let down = rows.iter().find(|row| row["kind"] == "FFN down").expect("a row");
        assert_eq!(down["types"], serde_json::json!(["Q5_0", "Q8_0"]));
        assert_eq!(down.get("weights_gb_s").is_some(), phase == "decode");
    }
    let table = String::from_utf8(run(&args).stdout).expect("UTF-8");
    assert!(table.contains("attention output") && table.contains("q, k, v"), "{table}");
}

#[test]
fn a_cache_that_the_model_cannot_have_names_its_file() {
    let commands: [&[&str]; 5] = [
        &["generate", "-p", "a"],
        &["chat", "--template", "chatml", "--no-history"],
        &["bench"],
        &["trace", "-p", "a"],
        &["inspect", "--plan"],
    ];
    for command in commands {
        let output = run(&[command, &["-m", "odd-q8_0.gguf", "--kv", "q8_0"]].concat());
        let wanted = "error: odd-q8_0.gguf: a KV cache of q8_0 takes heads of a multiple of 32 elements: its keys \
                      have 24\n";
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(String::from_utf8_lossy(&output.stderr).ends_with(wanted), "{}", transcript(&output));
    }
}

#[test]
fn the_plan_counts_the_cache_as_it_is_to_be() {
    const MIB: u64 = 1 << 20;
    let other = |kv: &[&str]| {
        let plan = ["inspect", "--plan", "--json", "dense-q4_k_m.gguf", "-c", "65536", "--ram", "4G"];
        let output = run(&[&plan[..], kv].concat());
        assert!(output.status.success(), "{}", transcript(&output));
        let plan: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (plan["kv"].as_str().expect("a type").to_owned(), plan["other_bytes"].as_u64().expect("bytes"))
    };
    let (name, f16) = other(&[]);
    assert_eq!(name, "f16");
    // 512 elements of keys and values a token; the program itself takes a little more or less.
    let cases: [(&str, &[&str], f64); 2] =
        [("f32", &["--kv", "f32"], 128.0), ("q8_0/q4_0", &["--kv", "q8_0", "--kv-v", "q4_0"], 26.0)];
    for (wanted, args, mib) in cases {
        let (name, bytes) = other(args);
        let less = (f16 as f64 - bytes as f64) / MIB as f64;
        assert_eq!(name, wanted);
        assert!((less - (64.0 - mib)).abs() < 9.0, "{wanted}: {less:.1} MiB less than f16");
    }
}

#[test]
fn help_says_what_there_is() {
    for command in ["generate", "chat", "serve", "batch", "bench", "tokenize"] {
        assert_snapshot!(format!("help_{command}"), transcript(&run(&[command, "--help"])));
    }
}
