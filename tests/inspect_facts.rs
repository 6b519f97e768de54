//! That what `wayinfer inspect` says is right: exact numbers, all files of a split, every check, large files.

mod common;

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use common::gguf::{Data, GgufBuilder, Kv, small_model, ty, write_split};
use common::{transcript, wayinfer};
use tempfile::TempDir;
use wayinfer::gguf::Gguf;

/// A folder with these bytes as `m.gguf`.
fn folder(model: &GgufBuilder) -> TempDir {
    let dir = TempDir::new().unwrap();
    model.write(&dir.path().join("m.gguf"));
    dir
}

/// The program's transcript on `m.gguf`.
fn inspect(model: &GgufBuilder, columns: usize, args: &[&str]) -> String {
    let dir = folder(model);
    transcript(&wayinfer(dir.path(), columns, &[&["inspect", "m.gguf"], args].concat()))
}

fn json(model: &GgufBuilder, args: &[&str]) -> serde_json::Value {
    let dir = folder(model);
    let output = wayinfer(dir.path(), 80, &[&["inspect", "m.gguf", "--json"], args].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON value")
}

/// The small model with what is hard to print: long names, control characters, large numbers, no numbers.
fn awkward() -> GgufBuilder {
    small_model()
        .kv("general.description", "Two lines,\nand \x1b[31mred\u{202e} text that is long enough to be cut at any width at which a terminal of today might show it, for it goes on and on")
        .kv("wayinfer.test.a_key_that_is_rather_longer_than_keys_are", u64::MAX)
        .kv("wayinfer.test.i64", i64::MIN)
        .kv("wayinfer.test.f32", f32::NAN)
        .kv("wayinfer.test.f64", vec![f64::INFINITY, f64::NEG_INFINITY, 0.1])
        .kv("wayinfer.test.tokens", vec!["a\"b", "\x07", "漢字"])
        .kv("wayinfer.test.bytes", &b"\xff\x00"[..])
        .tensor("blk.1.a_tensor_whose_name_takes_all_the_63_bytes_allowed.weight", ty::I16, &[3, 5, 7, 2], Data::Zero)
}

fn mixture(merged: bool) -> GgufBuilder {
    let mut model = GgufBuilder::new()
        .kv("general.architecture", "llama")
        .kv("llama.expert_count", 4u32)
        .kv("llama.expert_used_count", 2u32)
        .tensor("token_embd.weight", ty::F32, &[32, 10], Data::Zero)
        .tensor("output.weight", ty::F32, &[32, 10], Data::Zero);
    if merged {
        model = model.tensor("blk.0.ffn_up_exps.weight", ty::Q8_0, &[32, 8, 4], Data::Zero);
    } else {
        for expert in 0..4 {
            model = model.tensor(format!("blk.0.ffn_up.{expert}.weight"), ty::Q8_0, &[32, 8], Data::Zero);
        }
    }
    model
}

// ---- Tables ----------------------------------------------------------------------------------------------------------

#[test]
fn a_file_of_nothing_is_shown() {
    let text = inspect(&GgufBuilder::new(), 80, &[]);
    assert!(text.starts_with("exit code: 0") && text.contains("architecture    unknown"), "{text}");
    assert!(text.contains("none: there are no tensors"), "{text}");
}

#[test]
fn awkward_tables_fit_and_are_safe_to_print() {
    for columns in [80, 200] {
        let text = inspect(&awkward(), columns, &[]);
        assert!(text.starts_with("exit code: 0"), "{text}");
        let widest = text.lines().map(|l| l.chars().count()).max().unwrap();
        assert!(widest <= columns, "a line of {widest} columns:\n{text}");
        assert!(!text.contains(['\x1b', '\x07', '\0', '\u{202e}']), "{text}");
        assert!(text.contains("18446744073709551615") && text.contains("\\u{1b}[31m"), "{text}");
    }
    assert!(inspect(&awkward(), 80, &[]).contains("blk.1.a_tensor_whose…_bytes_allowed.weight"));
}

// ---- JSON ------------------------------------------------------------------------------------------------------------

/// JSON is for programs, and still shown on terminals.
#[test]
fn json_is_safe_to_print() {
    let text = "del \x7f c1 \u{9b}31m turned \u{202e}";
    let file = small_model().kv("general.description", text).kv("a.\u{9b}.key", 1u32);
    let dir = tempfile::tempdir().unwrap();
    file.write(&dir.path().join("model.gguf"));
    for args in [&["--json"][..], &["--json", "--kv", "general.description"]] {
        let output = wayinfer(dir.path(), 100, &[&["inspect", "model.gguf"], args].concat());
        let shown = std::str::from_utf8(&output.stdout).unwrap();
        assert!(shown.contains("\\u007f") && !shown.contains(['\x7f', '\u{9b}', '\u{202e}']), "{shown}");
        let value: serde_json::Value = serde_json::from_str(shown).unwrap();
        assert!(value.to_string().contains(text), "{value}");
    }
}

#[test]
fn json_is_exact() {
    let value = json(&awkward(), &["--arrays", "--no-tensors"]);
    let metadata = &value["metadata"];
    assert_eq!(metadata["wayinfer.test.a_key_that_is_rather_longer_than_keys_are"]["value"], u64::MAX);
    assert_eq!(metadata["wayinfer.test.i64"]["value"], i64::MIN);
    assert_eq!(metadata["wayinfer.test.f32"]["value"], "NaN");
    let floats = serde_json::json!(["Infinity", "-Infinity", 0.1]);
    assert_eq!(metadata["wayinfer.test.f64"]["value"], floats);
    let texts = serde_json::json!(["a\"b", "\u{7}", "漢字"]);
    assert_eq!(metadata["wayinfer.test.tokens"]["value"], texts);
    assert_eq!(metadata["wayinfer.test.bytes"]["utf8"], false);
    assert!(value.get("tensors").is_none());
    assert_eq!(value["totals"]["all"]["tensors"], 7);
}

#[test]
fn json_of_a_split_has_every_file() {
    let dir = TempDir::new().unwrap();
    write_split(&small_model().split(2), dir.path(), "m");
    let output = wayinfer(dir.path(), 80, &["inspect", "m-00001-of-00002.gguf", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["files"][1]["path"], "m-00002-of-00002.gguf");
    assert_eq!(value["files"][1]["metadata"]["split.no"]["value"], 1);
    assert_eq!(value["tensors"][3]["file"], 1);
}

#[test]
fn json_offsets_are_where_the_data_is() {
    let model = small_model();
    let value = json(&model, &["--filter", "output.weight"]);
    let tensor = &value["tensors"][0];
    let (at, len) = (tensor["offset"].as_u64().unwrap() as usize, tensor["bytes"].as_u64().unwrap() as usize);
    let mut data = common::gguf::Rng(6); // the seed of that tensor
    assert!(model.build()[at..at + len].iter().all(|&b| b == data.next() as u8));
}

// ---- The summary -----------------------------------------------------------------------------------------------------

#[test]
fn experts_count_by_the_share_used() {
    // A row of the embedding, the output whole, half of the experts: 4 rows of 8 blocks of 34 bytes.
    let wanted = 32 * 4 + 32 * 10 * 4 + 4 * 8 * 34 / 2;
    for merged in [true, false] {
        assert_eq!(json(&mixture(merged), &[])["summary"]["bytes_per_token"], wanted, "merged: {merged}");
    }
}

#[test]
fn a_tied_embedding_counts_whole() {
    let model = GgufBuilder::new().tensor("token_embd.weight", ty::F32, &[32, 10], Data::Zero);
    assert_eq!(json(&model, &[])["summary"]["bytes_per_token"], 32 * 10 * 4);
}

#[test]
fn values_of_odd_types_are_left_out_of_the_summary() {
    let model = small_model().with(|m| {
        for pair in &mut m.pairs {
            if pair.key.starts_with(b"llama.") || pair.key == b"general.name" {
                pair.value = Kv::from(vec!["no", "number"]);
            }
        }
    });
    let summary = &json(&model, &[])["summary"];
    assert!(summary["layers"].is_null() && summary["heads"].is_null() && summary["name"].is_null());
    assert_eq!(summary["architecture"], "llama");
}

// ---- One value ---------------------------------------------------------------------------------------------------------

#[test]
fn one_value_is_printed_whole() {
    let dir = folder(&awkward());
    let kv = |key: &str, more: &[&str]| {
        let output = wayinfer(dir.path(), 40, &[&["inspect", "m.gguf", "--kv", key], more].concat());
        assert!(output.status.success(), "{key}");
        output.stdout
    };
    let template = "{% for m in messages %}\n{{ m.content }}\n{% endfor %}\n";
    assert_eq!(kv("tokenizer.chat_template", &[]), template.as_bytes());
    assert_eq!(kv("wayinfer.test.bytes", &[]), b"\xff\x00\n");
    assert_eq!(kv("wayinfer.test.i64", &[]), b"-9223372036854775808\n");
    assert_eq!(kv("tokenizer.ggml.scores", &[]), b"0.0\n0.0\n0.0\n-1.5\n");
    assert_eq!(kv("wayinfer.test.tokens", &[]), "a\"b\n\\u{7}\n漢字\n".as_bytes());
    let value: serde_json::Value = serde_json::from_slice(&kv("tokenizer.ggml.scores", &["--json"])).unwrap();
    let wanted = serde_json::json!({
        "key": "tokenizer.ggml.scores", "type": "f32[]", "len": 4, "value": [0.0, 0.0, 0.0, -1.5]
    });
    assert_eq!(value, wanted);
}

// ---- Checks ------------------------------------------------------------------------------------------------------------

#[test]
fn check_names_what_does_not_divide() {
    let set = |key: &str, value: Kv| {
        small_model().with(|m| m.pairs.iter_mut().find(|p| p.key == key.as_bytes()).unwrap().value = value)
    };
    let cases = [
        (set("llama.attention.head_count", 0u32.into()), "llama.attention.head_count is 0"),
        (set("llama.attention.head_count_kv", 0u32.into()), "llama.attention.head_count_kv is 0"),
        (set("llama.attention.head_count", 6u32.into()), "llama.embedding_length is 256, not a multiple of"),
        (set("llama.attention.head_count", "8".into()), "is str, where a non-negative integer"),
        (set("tokenizer.ggml.tokens", vec!["a"].into()), "tokenizer.ggml.scores has 4 elements"),
        (set("tokenizer.ggml.tokens", 4u32.into()), "tokenizer.ggml.tokens is u32, where an array of str"),
        (
            set("general.architecture", 4u32.into()),
            "general.architecture is the u32 4, where a string is needed",
        ),
        (
            small_model().kv("llama.expert_count", 4u32).kv("llama.expert_used_count", 5u32),
            "llama.expert_used_count is 5, where 1 to 4",
        ),
    ];
    for (model, text) in cases {
        let found = inspect(&model, 80, &["--check"]);
        assert!(found.starts_with("exit code: 1") && found.contains(text), "{text}:\n{found}");
    }
}

#[test]
fn check_covers_all_files_of_a_split() {
    let dir = TempDir::new().unwrap();
    let mut parts = small_model().split(3);
    parts[0].pairs.retain(|p| p.key != b"split.no");
    parts[2].tensors[0].name = b"token_embd.weight".to_vec();
    let paths = write_split(&parts, dir.path(), "m");
    fs::remove_file(&paths[1]).unwrap();
    let output = wayinfer(dir.path(), 80, &["inspect", "--check", "m-00003-of-00003.gguf"]);
    let wanted = "exit code: 1\n----- stdout -----\n\
        error: m-00001-of-00003.gguf: split.no is missing or not a non-negative integer\n\
        error: m-00002-of-00003.gguf: part 2 of 3 is missing\n\
        error: m-00003-of-00003.gguf at byte 106: tensor \"token_embd.weight\" is there twice: in m-00001-of-00003.gguf too\n\
        warning: m-00001-of-00003.gguf at byte 106: llama.block_count is 2, the last layer that has tensors is 0\n\
        m-00003-of-00003.gguf: 3 errors, 1 warning\n----- stderr -----\n";
    assert_eq!(transcript(&output), wanted);
}

// ---- Errors and help -----------------------------------------------------------------------------------------------------

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let words: Vec<String> = (0..200_000).map(|i| i.to_string()).collect();
    let dir = folder(&GgufBuilder::new().kv("words", words.iter().map(String::as_str).collect::<Vec<_>>()));
    let mut child = Command::new(env!("CARGO_BIN_EXE_wayinfer"))
        .current_dir(dir.path())
        .args(["inspect", "m.gguf", "--kv", "words"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut start = [0; 2];
    child.stdout.take().unwrap().read_exact(&mut start).unwrap(); // and the pipe closes
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

// ---- Real and large files --------------------------------------------------------------------------------------------------

/// Only headers are read: reading the data would take most of a minute.
#[test]
fn a_model_of_28_gb_opens_by_its_headers() {
    const PART: u64 = 14_000_000_000;
    let words: Vec<String> = (0..300_000).map(|i| format!("word{i}")).collect();
    let model = GgufBuilder::new()
        .kv("tokenizer.ggml.tokens", words.iter().map(String::as_str).collect::<Vec<_>>())
        .tensor("a", ty::I8, &[PART / 1000, 1000], Data::Zero)
        .tensor("b", ty::I8, &[PART / 1000, 1000], Data::Zero);
    let dir = TempDir::new().unwrap();
    let paths = write_split(&model.split(2), dir.path(), "m");
    for path in &paths {
        // The data is a hole in the file.
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() + PART).unwrap();
    }
    let gguf = Gguf::open(&paths[1]).unwrap();
    assert_eq!(gguf.tensors[1].bytes, PART);
}
