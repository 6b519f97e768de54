//! `wayinfer trace` as users run it.

mod common;

use std::path::{Path, PathBuf};
use std::process::Output;

use common::wayinfer;
use serde_json::Value;
use tempfile::TempDir;

/// Runs in the repository's folder, where fixtures and goldens are.
fn trace(args: &[&str]) -> Output {
    let args: Vec<&str> = ["trace"].iter().chain(args).copied().collect();
    wayinfer(Path::new(env!("CARGO_MANIFEST_DIR")), 80, &args)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn stdout(output: &Output) -> String {
    text(&output.stdout)
}

/// Asserts the exit code; returns the last line of stdout.
fn summary(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{}{}", stdout(output), text(&output.stderr));
    stdout(output).lines().last().unwrap_or_default().to_owned()
}

fn refused(args: &[&str], code: i32, words: &str) {
    let output = trace(args);
    assert_eq!(output.status.code(), Some(code), "{args:?}");
    let stderr = text(&output.stderr);
    assert!(stderr.contains(words), "{args:?}: {stderr}");
    assert_eq!(stdout(&output), "", "{args:?}");
}

const MODEL: &str = "fixtures/moe-q4_k_m.gguf";
const GOLDEN: &str = "golden/moe-q4_k_m/short.safetensors";

/// The prompt of [`GOLDEN`] as a file of ids.
fn ids_file(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("ids");
    let prompts = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/prompts.json"));
    let prompts: Value = serde_json::from_slice(&prompts.expect("prompts")).expect("JSON");
    let ids: Vec<u32> = serde_json::from_value(prompts["short"].clone()).expect("ids");
    let bytes: Vec<u8> = ids.into_iter().flat_map(u32::to_le_bytes).collect();
    std::fs::write(&path, bytes).expect("a file");
    path
}

/// A trace of [`MODEL`] on [`GOLDEN`]'s prompt.
fn saved(dir: &TempDir, name: &str, more: &[&str]) -> String {
    let (ids, path) = (ids_file(dir), dir.path().join(name));
    let path = path.to_str().expect("UTF-8").to_owned();
    let ids = ids.to_str().expect("UTF-8");
    let args = ["-m", MODEL, "--ids-file", ids, "-n", "2", "--kv", "f32", "--save", &path];
    let output = trace(&args.iter().chain(more).copied().collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(stdout(&output), "");
    path
}

#[test]
fn a_run_against_ggml_on_equal_inputs_is_within_the_bounds() {
    let output = trace(&["-m", MODEL, "--golden", GOLDEN, "--isolate"]);
    let line = summary(&output, 0);
    assert!(line.contains("153 nodes of 3 passes, all within tolerance; the worst is"), "{line}");
    let table = stdout(&output);
    assert!(table.contains("prefill, 7 tokens\n") && table.contains("decode.1, 1 token\n"));
    assert!(table.lines().take_while(|l| !l.contains(" against ")).all(|l| l.chars().count() <= 80));
}

#[test]
fn a_free_run_is_judged_by_the_tolerance_asked_for() {
    let run = |tolerance| trace(&["-m", MODEL, "--golden", GOLDEN, "--tolerance", tolerance]);
    assert!(summary(&run("1e-9"), 0).contains("; 0 of "));
    let line = summary(&run("0"), 1);
    assert!(line.contains("beyond tolerance; first differs at blk 0 "), "{line}");
    assert!(line.contains("inputs equal: suspect "), "{line}");
}

#[test]
fn kernel_sets_side_by_side_give_the_same_bits() {
    let line = summary(
        &trace(&["-m", MODEL, "-p", "abc", "-n", "3", "--isa", "scalar", "--against", "scalar", "-t", "3"]),
        0,
    );
    assert!(line.ends_with("4 passes: 0 differences, every bit the same"), "{line}");
    for set in wayinfer::kernels::Kernels::available() {
        let args = ["-m", MODEL, "-p", "abc", "-n", "3", "--isa", "scalar", "--against", set.isa().name()];
        assert!(summary(&trace(&args), 0).ends_with("0 differences, every bit the same"));
    }
}

#[test]
fn saved_traces_are_references_too() {
    let dir = TempDir::new().expect("a folder");
    let (a, b) = (saved(&dir, "a", &["-t", "1"]), saved(&dir, "b", &["--isa", "scalar", "--batch", "64"]));
    assert!(summary(&trace(&["diff", &a, &b]), 0).ends_with("every bit the same"));
    assert!(summary(&trace(&["-m", MODEL, "--golden", &a]), 0).ends_with("every bit the same"));
    // Against ggml's: close, but not the same bits.
    let line = summary(&trace(&["diff", GOLDEN, &a, "--tolerance", "1e-9"]), 0);
    assert!(line.contains("153 nodes of 3 passes, all within tolerance"), "{line}");
    let line = summary(&trace(&["diff", GOLDEN, &a]), 1);
    assert!(line.contains("first differs at blk 0 "), "{line}");
    // Another batch: other passes.
    let c = saved(&dir, "c", &["--batch", "4"]);
    let line = summary(&trace(&["-m", MODEL, "--golden", &c]), 0);
    assert!(line.contains("4 passes: 0 differences"), "{line}");
}

#[test]
fn a_reference_with_some_tokens_only_compares_those() {
    let long = "golden/moe-q4_k_m/long.safetensors";
    assert!(summary(&trace(&["diff", long, long]), 0).ends_with("every bit the same"));
    let line = summary(&trace(&["-m", MODEL, "--golden", long, "--isolate"]), 0);
    assert!(line.contains("all within tolerance"), "{line}");
}

#[test]
fn files_are_not_overwritten_unasked() {
    let dir = TempDir::new().expect("a folder");
    let path = saved(&dir, "t", &[]);
    let before = std::fs::read(&path).expect("a trace");
    refused(&["-m", MODEL, "-p", "abc", "--save", &path], 1, "already there");
    assert!(std::fs::read(&path).expect("a trace") == before);
    saved(&dir, "t", &["--force", "--nodes", "l_out"]);
    // The model itself is never written to.
    let model = dir.path().join("m.gguf");
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL), &model).expect("a copy");
    let model = model.to_str().expect("UTF-8");
    let bytes = std::fs::read(model).expect("a model");
    let output = trace(&["-m", model, "-p", "abc", "--save", model, "--force"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(std::fs::read(model).expect("a model") == bytes);
    assert!(std::fs::read(&path).expect("a trace").len() < before.len());
}

#[test]
fn filters_choose_layers_and_nodes() {
    let dir = TempDir::new().expect("a folder");
    let path = saved(&dir, "t", &["--layers", "1", "--nodes", "ffn_moe_*"]);
    let line = summary(&trace(&["diff", GOLDEN, &path, "--tolerance", "1e-9"]), 0);
    assert!(line.contains("39 nodes of 3 passes"), "{line}"); // 13 a layer
    let args = ["-m", MODEL, "--golden", GOLDEN, "--isolate", "--nodes", "Qcur", "--layers", "0-1", "--json"];
    let output = trace(&args);
    let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!((report["compared"].as_u64(), report["beyond"].as_u64()), (Some(12), Some(0)));
    let nodes = report["nodes"].as_array().expect("nodes");
    assert!(nodes.iter().all(|n| n["name"] == "Qcur" && n["inputs"] != "beyond tolerance"));
    let output = trace(&["-m", MODEL, "--golden", GOLDEN, "--worst", "2"]);
    assert_eq!(stdout(&output).lines().count(), 5, "{}", stdout(&output));
}

/// The bytes of [`GOLDEN`], and where the experts chosen for its prompt in layer 0 begin.
fn golden_and_choices() -> (Vec<u8>, usize) {
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN)).expect("a golden");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    let at = &tensors["prefill/ffn_moe_topk-0#0"]["data_offsets"][0];
    let at = 8 + header + at.as_u64().expect("an offset") as usize;
    (bytes, at)
}

#[test]
fn experts_that_a_model_does_not_have_are_refused() {
    let (golden, at) = golden_and_choices();
    let dir = TempDir::new().expect("a folder");
    let path = dir.path().join("t.safetensors");
    for index in [8i32, 99, -1] {
        let mut bytes = golden.clone();
        bytes[at..at + 4].copy_from_slice(&index.to_le_bytes());
        std::fs::write(&path, bytes).expect("a file");
        let words = format!(
            "t.safetensors: node prefill/ffn_moe_topk-0#0: the reference chooses {index} of 8 experts"
        );
        refused(&["-m", MODEL, "--golden", path.to_str().expect("UTF-8"), "--isolate"], 1, &words);
    }
}

/// A reference in which one token has another expert and one the same in another order.
#[test]
fn chosen_experts_are_compared_as_sets() {
    let (mut bytes, at) = golden_and_choices();
    let chosen = [bytes[at], bytes[at + 4]];
    bytes[at] = (0..8).find(|id| !chosen.contains(id)).expect("another expert");
    bytes.swap(at + 8, at + 12);
    let dir = TempDir::new().expect("a folder");
    let path = dir.path().join("t.safetensors");
    std::fs::write(&path, bytes).expect("a file");

    let args = ["-m", MODEL, "--golden", path.to_str().expect("UTF-8"), "--nodes", "ffn_moe_topk"];
    let output = trace(&args);
    let line = summary(&output, 1);
    assert!(line.contains("1 beyond tolerance; first differs at blk 0 ffn_moe_topk (prefill)"), "{line}");
    let row = stdout(&output).lines().find(|l| l.contains("ffn_moe_topk!")).expect("a row").to_owned();
    assert!(row.contains(" 1 sets "), "{row}");
    let json: Value =
        serde_json::from_slice(&trace(&[&args[..], &["--json"]].concat()).stdout).expect("JSON");
    let wanted = serde_json::json!({ "tokens": 7, "sets_differ": 1, "orders_differ": 1 });
    assert_eq!(json["nodes"][0]["choices"], wanted);
}

#[test]
fn without_a_reference_the_values_are_described() {
    let output = trace(&["-m", MODEL, "-p", "abc", "--layers", "0", "--nodes", "*norm"]);
    let table = stdout(&output);
    assert_eq!(output.status.code(), Some(0));
    assert!(table.starts_with("prefill, ") && table.contains("blk 0 ffn_norm"), "{table}");
    let json = trace(&["-m", MODEL, "-p", "abc", "--json"]);
    let report: Value = serde_json::from_str(&stdout(&json)).expect("JSON");
    assert_eq!(report["nodes"].as_array().map(Vec::len), Some(51));
}

/// Two models of one shape, side by side: the comparison of runs can fail, and says where they part.
#[test]
fn runs_that_differ_are_told_apart() {
    use common::runs::{fixture, load, options};
    use wayinfer::engine::{Engine, EngineOptions};
    use wayinfer::model::KvType;
    use wayinfer::verify::{
        CompareOptions, Divergence, NodeFilter, NodeGraph, Substitute, Tolerance, compare_runs,
    };

    // The other has one weight of a router's with another sign.
    let (path, dir) = (fixture("moe-q4_k_m"), tempfile::tempdir().expect("a folder"));
    let router = wayinfer::gguf::Gguf::open(&path).expect("a model");
    let router =
        router.tensors.iter().find(|tensor| tensor.name == "blk.0.ffn_gate_inp.weight").expect("a router");
    let mut bytes = std::fs::read(&path).expect("a file");
    bytes[router.offset as usize + 3] ^= 0x80;
    let other = dir.path().join("other.gguf");
    std::fs::write(&other, bytes).expect("a file");
    let (a, b) = (load(&path), load(&other));
    let graph = NodeGraph::new(&a.graph().expect("a graph"));
    let options = EngineOptions { kv: KvType::F32, ..options(16, 8) };
    let engine = |model| Engine::new(model, &options).expect("an engine");
    let compare = CompareOptions {
        substitute: Substitute::Nowhere,
        tolerance: Tolerance::SameBits,
        kv: KvType::F32,
        positions: 16,
        filter: NodeFilter::default(),
        flips: false,
    };
    let reports =
        compare_runs(&mut engine(&a), &mut engine(&b), &graph, &[1, 2, 3], 2, compare).expect("runs");
    let first = Divergence::first(&reports, &graph).expect("a difference").to_string();
    assert_eq!(
        first,
        "first differs at blk 0 ffn_moe_logits (prefill), inputs equal: suspect the F32 kernel"
    );
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let best = wayinfer::kernels::Kernels::detect_best().isa().name();
    refused(&["-m", MODEL, "-p", "abc", "--against", best], 2, "the run to check is on");
    refused(&["-m", MODEL, "-p", "abc", "-n", "18446744073709551615"], 2, "too many steps");
    refused(&["-m", MODEL, "-p", "abc", "--nodes", "nothing"], 1, "no node is asked for");
    refused(&["-m", MODEL, "-p", "abc", "--save", "t", "--json"], 2, "cannot be used with");
    refused(&["-m", MODEL, "--golden", "fixtures"], 1, "fixtures: cannot be opened: not a regular file");

    refused(&[], 2, "no model");
    for option in ["--isolate", "--same-roundings"] {
        refused(&["-m", MODEL, "-p", "abc", option], 2, &format!("{option} without a reference"));
    }
    refused(&["-m", MODEL, "--golden", GOLDEN, "--isolate", "--same-roundings"], 2, "cannot be used with");
    refused(&["-m", MODEL, "-p", "abc", "--layers", "3-1"], 2, "the first layer comes after the last");
    refused(&["-m", MODEL, "-p", "abc", "--nodes", "[", "--json"], 2, "--nodes");
    refused(&["-m", MODEL, "-p", "abc", "--against", "sse9"], 2, "unknown instruction set");
    refused(&["-m", MODEL, "--golden", GOLDEN, "-n", "33"], 1, "has 8 tokens to go on with, not 33");
    refused(&["-m", MODEL, "--golden", GOLDEN, "--layers", "7"], 1, "no node in common");
}

#[test]
fn bad_references_are_named() {
    let dir = TempDir::new().expect("a folder");
    let bad = dir.path().join("bad.safetensors");
    let path = bad.to_str().expect("UTF-8");
    let whole = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN)).expect("a golden");
    for (bytes, words) in [
        (&b""[..], "not a safetensors file"),
        (&b"GGUF and more"[..], "not a safetensors file"),
        (&whole[..whole.len() - 1], "not a safetensors file"),
        (&whole[..9], "not a safetensors file"),
    ] {
        std::fs::write(&bad, bytes).expect("a file");
        refused(&["-m", MODEL, "--golden", path], 1, words);
        refused(&["diff", GOLDEN, path], 1, "bad.safetensors");
    }
    let formats = "golden/formats/Q4_K.safetensors";
    refused(&["-m", MODEL, "--golden", formats], 1, "not a file of reference nodes");
    // A reference of another model.
    refused(&["-m", "fixtures/odd-q8_0.gguf", "--golden", GOLDEN], 1, "not the same model or prompt");
    refused(&["diff", GOLDEN, "golden/dense-f32/short.safetensors"], 1, "not the same model or prompt");
}

/// An interrupt leaves neither the file nor what was to become it.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_no_file_behind() {
    let dir = TempDir::new().expect("a folder");
    let files = || std::fs::read_dir(dir.path()).expect("the folder").count();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_wayinfer"))
        .args(["trace", "-m", "demo", "-p", "a", "-n", "100000000", "--save"])
        .arg(dir.path().join("nodes"))
        .stdin(std::process::Stdio::null())
        .spawn()
        .expect("the program starts");
    while files() == 0 && child.try_wait().expect("its state").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(files(), 1, "the file that is being written");
    let interrupted = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupted.expect("kill starts").success());
    assert_eq!(child.wait().expect("its end").code(), Some(130));
    assert_eq!(files(), 0);
}

/// What is written to wherever standard output leads waits there, not where its name is.
#[cfg(target_os = "linux")]
#[test]
fn nodes_go_to_where_a_path_leads() {
    let dir = TempDir::new().expect("a folder");
    let path = dir.path().join("nodes");
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_wayinfer"))
        .args(["trace", "-m", "demo", "-p", "a", "--force", "--save", "/proc/self/fd/1"])
        .stdin(std::process::Stdio::null())
        .stdout(std::fs::File::create(&path).expect("a file"))
        .status();
    assert!(status.expect("the program starts").success());
    let path = path.to_str().expect("UTF-8");
    assert!(summary(&trace(&["diff", path, path]), 0).ends_with("every bit the same"));
}

#[test]
fn a_cache_of_another_type_than_the_reference_s_is_refused() {
    refused(&["-m", MODEL, "--golden", GOLDEN, "--kv", "f16"], 2, "--kv f16, where the nodes of ");
}

/// What a comparison came to is told by the exit code, whoever reads the rest.
#[test]
fn a_verdict_stands_though_nobody_reads_it() {
    let run = |tolerance| {
        let args = ["trace", "-m", MODEL, "--golden", GOLDEN, "--tolerance", tolerance];
        common::code_unread(Path::new(env!("CARGO_MANIFEST_DIR")), &args)
    };
    assert_eq!((run("1e-9"), run("0")), (Some(0), Some(1)));
}
