//! `dot-check` as a user runs it.

mod common;

use std::path::Path;

use common::gguf::{Data, GgufBuilder, ty};
use common::{transcript, wayinfer};
use serde_json::Value;
use tempfile::TempDir;
use wayinfer::kernels::Kernels;
use wayinfer::quant::FORMATS;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(args: &[&str]) -> String {
    transcript(&wayinfer(repository(), 80, &[&["dot-check"], args].concat()))
}

/// The report and whether it says that nothing differs.
fn json(args: &[&str]) -> (Value, bool) {
    let output = wayinfer(repository(), 80, &[&["dot-check", "--json"], args].concat());
    let text = String::from_utf8(output.stdout.clone()).expect("output is UTF-8");
    assert_eq!(text.lines().count(), 1, "{}", transcript(&output));
    let report: Value = serde_json::from_str(&text).expect("output is JSON");
    assert_eq!(report["ok"].as_bool(), Some(output.status.success()), "{text}");
    (report, output.status.success())
}

#[test]
fn what_is_printed() {
    insta::assert_snapshot!("one_format", run(&["--format", "q4_k", "--isa", "scalar"]));
    insta::assert_snapshot!("help", run(&["--help"]));
    insta::assert_snapshot!(
        "real_weights",
        run(
            &["-m", "fixtures/moe-q4_k_m.gguf", "--tensor", "blk.0.ffn_gate_exps.weight", "--isa", "scalar",]
        )
    );
    let dir = TempDir::new().expect("a folder");
    let args = ["dot-check", "--format", "Q8_0", "--isa", "scalar"];
    insta::assert_snapshot!("no_goldens", transcript(&wayinfer(dir.path(), 80, &args)));
}

/// Every format and every kernel set of this CPU stands in the report, and nothing differs.
#[test]
fn the_report_is_whole() {
    let (report, ok) = json(&[]);
    assert!(ok, "{report}");
    let sets = Kernels::available().count();
    let kernels = report["kernels"].as_array().expect("rows");
    assert_eq!(report["kernel_sets"].as_array().map(Vec::len), Some(sets));
    assert_eq!(report["unavailable"].as_array().map(Vec::len), Some(Kernels::unavailable().count()));
    assert_eq!(kernels.len(), sets * FORMATS.len());
    for row in kernels {
        assert!(row["dots"].as_u64() > Some(10_000) && row["differing"] == 0, "{row}");
        assert!(row["ggml"]["worst_ulp"].as_f64() < row["ggml"]["bound_ulp"].as_f64(), "{row}");
    }
}

/// One bit of ggml's results is another: exit code 1, and the report names the format and the place.
#[test]
fn differences_are_found() {
    let dir = TempDir::new().expect("a folder");
    let golden = dir.path().to_str().expect("a path of UTF-8");
    let source = std::fs::read(repository().join("golden/formats/Q6_K.safetensors")).expect("goldens");
    let header = 8 + u64::from_le_bytes(source[..8].try_into().expect("a length")) as usize;
    let layout: Value = serde_json::from_slice(&source[8..header]).expect("a header");
    for (tensor, at, wanted) in [
        ("decode/values", 4 * 300 + 3, "Q6_K decode, case \"all bits set\", value 44"),
        ("activations/quantised", 292 * 4 + 10, "Q6_K activations, case \"ties, peak 127\", value 6"),
        ("exact/512/dots", 4 * 3 + 2, "Q6_K exact dot, row 3 of 512 values"),
        ("dots/1024/dots", 4 * 5 + 2, "Q6_K dot, row 5 of 1024 values"),
    ] {
        let mut bytes = source.clone();
        let start = layout[tensor]["data_offsets"][0].as_u64().expect("an offset") as usize;
        bytes[header + start + at] ^= 0x40;
        std::fs::write(dir.path().join("Q6_K.safetensors"), bytes).expect("written");
        let args = ["--format", "Q6_K", "--isa", "scalar", "--golden", golden];
        let output = run(&args);
        let (code, seen) = (output.starts_with("exit code: 1\n"), output.contains(wanted));
        assert!(code && seen && output.contains("DIFFER"), "{tensor}: {output}");
        assert!(!json(&args).1);
    }
}

/// Of the goldens that were asked for none may be missing.
#[test]
fn goldens_that_are_not_there_are_no_success() {
    let dir = TempDir::new().expect("a folder");
    let golden = dir.path().to_str().expect("a path of UTF-8");
    let refused = |format: &str| {
        let output = run(&["--isa", "scalar", "--golden", golden]);
        let wanted = format!("--golden {golden}: there are no goldens for {format}");
        assert!(output.starts_with("exit code: 1\n") && output.contains(&wanted), "{output}");
    };
    refused("F32");
    let source = repository().join("golden/formats/F32.safetensors");
    std::fs::copy(source, dir.path().join("F32.safetensors")).expect("copied");
    refused("F16");
    assert!(json(&["--isa", "scalar", "--golden", golden, "--format", "F32"]).1);
}

#[test]
fn real_weights() {
    let fixture = |name: &str| format!("fixtures/{name}.gguf");
    let merged = fixture("moe-q4_k_m");
    let (report, ok) =
        json(&["-m", &merged, "--tensor", "blk.0.ffn_gate_exps.weight", "--rows", "5", "-t", "2"]);
    assert!(ok && report["tensor"] == "blk.0.ffn_gate_exps.weight");
    for row in report["kernels"].as_array().expect("rows") {
        // 5 rows of 8 experts, with 1 token and with 9.
        assert_eq!((&row["type"], &row["dots"], &row["differing"]), (&"Q4_K".into(), &400.into(), &0.into()));
    }
    // Of any file, of one row, longer than what is taken at a time, of odd length.
    let dir = TempDir::new().expect("a folder");
    let path = dir.path().join("m.gguf");
    GgufBuilder::new()
        .tensor("vector", ty::F32, &[77], Data::Random(1))
        .tensor("long", ty::F16, &[3, 10_000], Data::Random(2))
        .tensor("unsupported", ty::F64, &[32, 2], Data::Zero)
        .tensor("none", ty::F32, &[4, 0], Data::Zero)
        .tensor("wide", ty::BF16, &[1 << 21], Data::Zero)
        .write(&path);
    let model = path.to_str().expect("a path of UTF-8");
    for (tensor, rows) in [("vector", 1), ("long", 10_000)] {
        let (report, ok) = json(&["-m", model, "--tensor", tensor]);
        assert!(ok && report["kernels"][0]["dots"] == rows * 10, "{report}");
    }
    for (tensor, text) in [
        ("unsupported", "is of type F64, which cannot be computed with"),
        ("none", "has no elements"),
        ("wide", "rows of 2097152 elements"),
        ("gone", "there is no tensor \"gone\""),
    ] {
        let output = run(&["-m", model, "--tensor", tensor]);
        assert!(output.starts_with("exit code: 1\n") && output.contains(text), "{output}");
    }
}

#[test]
fn the_speed_of_a_kernel_stands_beside_that_of_a_plain_read() {
    let best = Kernels::detect_best().isa().name();
    let args = ["--format", "F32", "--isa", best, "--bench"];
    let (report, ok) = json(&args);
    let speed = &report["kernels"][0]["speed"];
    assert!(
        ok && ["gb_s", "read_gb_s", "ratio"].iter().all(|key| speed[key].as_f64() > Some(0.0)),
        "{report}"
    );
    let text = run(&args);
    assert!(["GB/s", "plain read", "ratio"].iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    for (args, code, text) in [
        (&["--format", "Q8_K"][..], 1, "Q8_K cannot be computed with"),
        (&["--format", "nothing"], 2, "there is no format \"nothing\""),
        (&["--isa", "sse"], 2, "unknown instruction set 'sse'"),
        (&["--isa", "amx", "--format", "F32"], if has("amx") { 0 } else { 1 }, "amx"),
        (&["--golden", "no/such"], 1, "no/such: there is no such folder"),
        (&["--golden", "golden", "--format", "F32"], 1, "--golden golden: there are no goldens for F32"),
        (&["-t", "1025"], 2, "1025 is not in 1..=1024"),
        // No threads are started that have nothing to do.
        (&["-t", "1024", "--format", "F32", "--isa", "scalar"], 0, "F32"),
        (&["--tensor", "x"], 2, "--model"),
        (&["-m", "fixtures/odd-q8_0.gguf"], 2, "--tensor"),
        (&["-m", "gone.gguf", "--tensor", "x"], 1, "gone.gguf"),
        (&["-t", "0"], 2, "0"),
    ] {
        let output = run(args);
        assert!(
            output.starts_with(&format!("exit code: {code}\n")) && output.contains(text),
            "{args:?}: {output}"
        );
    }
}

fn has(isa: &str) -> bool {
    Kernels::available().any(|set| set.isa().name() == isa)
}
