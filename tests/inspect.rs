//! What `wayinfer inspect` prints, word for word, and that it reads real files.

mod common;

use std::path::Path;

use common::gguf::{Data, GgufBuilder, small_model, ty, write_split};
use common::{test_data, transcript, wayinfer};
use tempfile::TempDir;

/// The small model, alone in a directory as `m.gguf`.
fn small() -> TempDir {
    folder(&small_model())
}

fn folder(builder: &GgufBuilder) -> TempDir {
    let dir = TempDir::new().unwrap();
    builder.write(&dir.path().join("m.gguf"));
    dir
}

/// Runs in `dir` and compares all that comes out with the snapshot of this name; every path shown is
/// relative, and the list of all architectures is left out.
fn snapshot(name: &str, dir: &Path, columns: usize, args: &[&str]) {
    let known = wayinfer::model::architectures().collect::<Vec<_>>().join(", ");
    let text = transcript(&wayinfer(dir, columns, args)).replace(&known, "[architectures]");
    let temp = regex_of(dir);
    insta::with_settings!({
        prepend_module_to_snapshot => false,
        omit_expression => true,
        description => format!("COLUMNS={columns} wayinfer {}", args.join(" ").replace(&dir.display().to_string(), "[dir]")),
        filters => [(temp.as_str(), "[dir]"), (r"\[dir\]\\", "[dir]/")],
    }, {
        insta::assert_snapshot!(name, text);
    });
}

/// A pattern that matches this path alone.
fn regex_of(path: &Path) -> String {
    let special = |c: char| !c.is_alphanumeric() && c != '/' && c != '_';
    path.display().to_string().chars().fold(String::new(), |mut out, c| {
        if special(c) {
            out.push('\\');
        }
        out.push(c);
        out
    })
}

/// A model with many things wrong that are no bar to reading on, each of its own kind.
fn many_findings() -> GgufBuilder {
    small_model()
        .kv("llama.expert_count", 8u32)
        .kv("llama.expert_used_count", 9u32)
        .kv("tokenizer.ggml.bos_token_id", 7u32)
        .kv("a.bad.text", &b"\xff"[..])
        .kv("a.bad.number", f32::NAN)
        .kv("general.name", "again")
        .with(|b| {
            b.pairs.iter_mut().find(|p| p.key == b"llama.block_count").unwrap().value = 3u32.into();
            b.pairs.iter_mut().find(|p| p.key == b"llama.attention.head_count_kv").unwrap().value =
                3u32.into();
            b.pairs.iter_mut().find(|p| p.key == b"tokenizer.ggml.scores").unwrap().value =
                vec![0.0f32, 0.0].into();
            b.tensors[3].offset = Some(32);
            b.tensors[5].dims = vec![256, 1 << 30];
            b.tensors[5].data = Data::Zero;
        })
}

#[test]
fn tables() {
    let dir = small();
    snapshot("table_80", dir.path(), 80, &["inspect", "m.gguf"]);
    snapshot("table_200", dir.path(), 200, &["inspect", "-m", "m.gguf"]);
    snapshot("filter", dir.path(), 80, &["inspect", "m.gguf", "--filter", "*.attn_q.*"]);
    snapshot("no_tensors", dir.path(), 80, &["inspect", "m.gguf", "--no-tensors"]);
}

#[test]
fn tables_of_a_split_with_experts_and_long_names() {
    let model = small_model()
        .kv("llama.expert_count", 8u32)
        .kv("llama.expert_used_count", 2u32)
        .kv("a.text.that.is.long", "word ".repeat(60).as_str())
        .kv("a.text.with.\x1b[31m.escapes", "\x1b[31mred\r\n")
        .tensor("blk.0.ffn_gate_inp.weight", ty::F32, &[256, 8], Data::Zero)
        .tensor("blk.0.ffn_gate_exps.weight", ty::Q4_K, &[256, 512, 8], Data::Zero)
        .tensor(
            "v.blk.0.a_name_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx_long.weight",
            ty::MXFP4,
            &[64, 3],
            Data::Zero,
        );
    let dir = TempDir::new().unwrap();
    write_split(&model.split(2), dir.path(), "m");
    snapshot("split_80", dir.path(), 80, &["inspect", "m-00002-of-00002.gguf"]);
}

/// What a check came to is told by the exit code, whoever reads the rest.
#[test]
fn a_verdict_stands_though_nobody_reads_it() {
    let code = |dir: &TempDir, more: &[&str]| {
        common::code_unread(dir.path(), &[&["inspect", "--check", "m.gguf"], more].concat())
    };
    let (sound, bad) = (small(), folder(&many_findings()));
    assert_eq!([code(&sound, &[]), code(&bad, &[]), code(&bad, &["--json"])], [Some(0), Some(1), Some(1)]);
}

/// A terminal as wide as no number says.
#[test]
fn a_width_that_cannot_be_is_no_mistake_of_ours() {
    let dir = small();
    let output = wayinfer(dir.path(), usize::MAX, &["inspect", "m.gguf"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn lines_fit_80_columns() {
    for dir in [small(), folder(&small_model().kv("a.text.that.is.long", "漢字 ".repeat(60).as_str()))] {
        let output = wayinfer(dir.path(), 80, &["inspect", "m.gguf"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.lines().count() > 20);
        for line in text.lines() {
            let width = unicode_width::UnicodeWidthStr::width(line);
            assert!(width <= 80, "{width} columns: {line:?}");
        }
    }
}

#[test]
fn json() {
    let dir = small();
    snapshot("json", dir.path(), 80, &["inspect", "m.gguf", "--json"]);
    snapshot("json_arrays", dir.path(), 80, &["inspect", "m.gguf", "--json", "--arrays", "--no-tensors"]);
    // What a program reads is JSON, and exact.
    let output = wayinfer(dir.path(), 80, &["inspect", "m.gguf", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["tensors"].as_array().unwrap().len(), 6);
    assert_eq!(value["tensors"][5]["bytes"], 2048);
}

#[test]
fn checks() {
    let sound = small();
    snapshot("check_sound", sound.path(), 80, &["inspect", "m.gguf", "--check"]);
    let spoiled = folder(&many_findings());
    snapshot("check_findings", spoiled.path(), 80, &["inspect", "m.gguf", "--check"]);
    snapshot("check_json", spoiled.path(), 80, &["inspect", "m.gguf", "--check", "--json"]);
    // Oddities alone do not fail a check.
    let odd = folder(&small_model().with(|b| b.trailer = vec![0; 100]));
    snapshot("check_warnings", odd.path(), 80, &["inspect", "m.gguf", "--check"]);
    // Nor does what is sound but cannot be run.
    let foreign = small_model()
        .with(|b| b.pairs[0].value = "gemma9".into())
        .tensor("blk.0.ffn_up.weight", ty::I32, &[256, 2], Data::Zero)
        .tensor("blk.0.ffn_gate.weight", ty::F64, &[256, 2], Data::Zero)
        .tensor("blk.1.ffn_up.weight", ty::I32, &[256, 2], Data::Zero);
    let dir = TempDir::new().unwrap();
    write_split(&foreign.split(3), dir.path(), "m");
    snapshot("check_cannot_run", dir.path(), 80, &["inspect", "m-00001-of-00003.gguf", "--check"]);
}

#[test]
fn values() {
    let dir = small();
    snapshot("kv_text", dir.path(), 80, &["inspect", "m.gguf", "--kv", "tokenizer.chat_template"]);
    snapshot("kv_array", dir.path(), 80, &["inspect", "m.gguf", "--kv", "tokenizer.ggml.tokens"]);
    let key = "llama.attention.layer_norm_rms_epsilon";
    snapshot("kv_number", dir.path(), 80, &["inspect", "m.gguf", "--kv", key]);
    snapshot("kv_json", dir.path(), 80, &["inspect", "m.gguf", "--json", "--kv", "tokenizer.ggml.scores"]);
    snapshot("kv_missing", dir.path(), 80, &["inspect", "m.gguf", "--kv", "block_count"]);
}

#[test]
fn errors() {
    let dir = small();
    snapshot("error_no_file", dir.path(), 80, &["inspect", "none.gguf"]);
    snapshot("error_two_models", dir.path(), 80, &["inspect", "m.gguf", "-m", "m.gguf"]);
    snapshot("error_glob", dir.path(), 80, &["inspect", "m.gguf", "--filter", "[a"]);
    let whole = small_model().build();
    std::fs::write(dir.path().join("short.gguf"), &whole[..whole.len() - 100]).unwrap();
    snapshot("error_short", dir.path(), 80, &["inspect", "short.gguf"]);
    let absolute = dir.path().join("none.gguf");
    snapshot("error_absolute_path", dir.path(), 80, &["inspect", absolute.to_str().unwrap()]);
}

#[test]
fn help() {
    let dir = TempDir::new().unwrap();
    snapshot("help", dir.path(), 80, &["--help"]);
    snapshot("help_inspect", dir.path(), 80, &["inspect", "--help"]);
}

/// Real files are shown whole and pass every check.
#[test]
fn real_files() {
    let Some(model) = test_data("models/stories260K.gguf") else { return };
    let names = ["gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2"];
    let vocabs = names.iter().filter_map(|name| test_data(&format!("vocab/ggml-vocab-{name}.gguf")));
    let files: Vec<_> = std::iter::once(model).chain(vocabs).collect();
    assert_eq!(files.len(), 6);
    let dir = TempDir::new().unwrap();
    for file in files {
        let path = file.to_str().unwrap();
        for args in [&["inspect", path][..], &["inspect", path, "--json", "--arrays"]] {
            let output = wayinfer(dir.path(), 80, args);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
            assert!(stderr.is_empty() && output.stdout.len() > 1_000, "{args:?}: {stderr}");
        }
        let output = wayinfer(dir.path(), 80, &["inspect", path, "--check"]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{said}");
        let gguf = wayinfer::gguf::Gguf::open(&file).expect("a GGUF file");
        let architecture = gguf.metadata().str("general.architecture").expect("a text").expect("a name");
        if !wayinfer::model::architectures().any(|known| known == architecture) {
            assert!(said.contains("cannot be run (those that can: llama, "), "{said}");
            assert!(said.ends_with(&format!("{path}: no errors, 1 warning\n")), "{said}");
        } else {
            assert_eq!(said, format!("{path}: no errors, no warnings\n"));
        }
    }
}
