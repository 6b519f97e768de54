//! `dequant` as a user runs it.

mod common;

use std::path::Path;

use common::gguf::{Data, GgufBuilder, Ty, ty};
use common::{transcript, wayinfer};
use serde_json::Value;
use tempfile::TempDir;
use wayinfer::quant::FORMATS;
use wayinfer::verify::TensorFile;
use wayinfer::verify::formats::FormatGoldens;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn floats(values: &[f32]) -> Data {
    values.to_vec().into()
}

/// Tensors whose values are easy to know: no architecture, no configuration.
fn small(dir: &TempDir) {
    let ramp: Vec<f32> = (0..24).map(|i| i as f32 / 4.0 - 2.0).collect();
    let odd = [1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e-40, 0.1, -3e38];
    let near: Vec<f32> = ramp.iter().enumerate().map(|(i, v)| if i == 17 { v + 0.5 } else { *v }).collect();
    GgufBuilder::new()
        .tensor("experts", ty::F32, &[4, 3, 2], floats(&ramp))
        .tensor("near", ty::F32, &[4, 3, 2], floats(&near))
        .tensor("expert.1", ty::F32, &[4, 3], floats(&near[12..]))
        .tensor("odd", ty::F32, &[8], floats(&odd))
        .tensor("one", ty::F32, &[2, 2], floats(&[7.5; 4]))
        .tensor("nan", ty::F32, &[2], floats(&[f32::NAN; 2]))
        .tensor("none", ty::F32, &[0, 4], Data::Zero)
        .tensor("unsupported", ty::Q8_K, &[256, 2], Data::Zero)
        .tensor("evil\u{1b}[31m", ty::F32, &[1], floats(&[1.0]))
        .write(&dir.path().join("m.gguf"));
}

fn folder() -> TempDir {
    let dir = TempDir::new().expect("a folder");
    small(&dir);
    dir
}

fn run(dir: &TempDir, args: &[&str]) -> String {
    transcript(&wayinfer(dir.path(), 80, &[&["dequant", "-m", "m.gguf"], args].concat()))
}

/// What is printed on success.
fn stdout(dir: &TempDir, args: &[&str]) -> String {
    let output = wayinfer(dir.path(), 80, &[&["dequant", "-m", "m.gguf"], args].concat());
    assert!(output.status.success(), "{}", transcript(&output));
    String::from_utf8(output.stdout).expect("output is UTF-8")
}

fn json(dir: &TempDir, args: &[&str]) -> Value {
    let text = stdout(dir, &[args, &["--json"]].concat());
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).expect("output is JSON")
}

/// The shape that a `.npy` file names, and its values.
fn read_npy(path: &Path) -> (String, Vec<f32>) {
    let bytes = std::fs::read(path).expect("written");
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..start]).expect("a header of text");
    assert!(header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': ("), "{header}");
    let shape = header.split_once("'shape': ").expect("a shape").1.split_once(')').expect("a tuple").0;
    let values = bytes[start..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    (format!("{shape})"), values)
}

/// ggml's decoded values of every format, extremes and all, through a file, `--out` of either kind and `--values`.
#[test]
fn values_are_ggmls_bit_for_bit() {
    for format in FORMATS {
        let goldens = FormatGoldens::find(&repository().join("golden/formats"), format);
        let goldens = goldens.expect("sound goldens").expect("goldens of every format");
        let (rows, cols) = (goldens.decode_cases.len(), goldens.case_len);
        let ty = Ty(format.ty as u32, format.ty.block_len(), format.ty.block_bytes());
        let dir = TempDir::new().expect("a folder");
        GgufBuilder::new()
            .tensor("first", ty::F32, &[3], Data::Random(1))
            .tensor("golden", ty, &[cols as u64, rows as u64], Data::Bytes(goldens.blocks.clone()))
            .write(&dir.path().join("m.gguf"));
        stdout(&dir, &["golden", "--out", "g.npy"]);
        let (shape, npy) = read_npy(&dir.path().join("g.npy"));
        assert_eq!(shape, format!("({rows}, {cols})"));
        stdout(&dir, &["golden", "--out", "g.safetensors"]);
        let file = TensorFile::open(&dir.path().join("g.safetensors")).expect("a file of tensors");
        let tensor = file.tensor::<f32>("golden").expect("the tensor");
        assert_eq!(tensor.shape, [rows, cols]);
        let text = stdout(&dir, &["golden", "--values"]);
        assert_eq!(text.lines().count(), rows);
        let printed: Vec<f32> = text.split_whitespace().map(|v| v.parse().expect("a float")).collect();
        for values in [npy, tensor.values, printed] {
            assert_eq!(values.len(), rows * cols);
            let mut cases = values.chunks(cols).enumerate();
            let wrong = cases.find(|(case, values)| !goldens.decodes_to(*case, values));
            assert_eq!(wrong.map(|(case, _)| &goldens.decode_cases[case]), None, "{}", format.ty);
        }
    }
}

/// Plain numbers, rounded to f32: what nothing is computed with can be looked at all the same.
#[test]
fn numbers_of_other_types() {
    let dir = TempDir::new().expect("a folder");
    let bytes = |values: &[&[u8]]| Data::Bytes(values.concat());
    GgufBuilder::new()
        .tensor("i8", ty::I8, &[2], bytes(&[&[0x80, 0x7f]]))
        .tensor("i16", ty::I16, &[2], bytes(&[&i16::MIN.to_le_bytes(), &258i16.to_le_bytes()]))
        .tensor("i32", ty::I32, &[2], bytes(&[&i32::MAX.to_le_bytes(), &(-7i32).to_le_bytes()]))
        .tensor("i64", ty::I64, &[2], bytes(&[&i64::MIN.to_le_bytes(), &16_777_217i64.to_le_bytes()]))
        .tensor(
            "f64",
            ty::F64,
            &[3],
            bytes(&[&0.1f64, &-1e300, &f64::NAN].map(|v| v.to_le_bytes()).each_ref().map(|b| &b[..])),
        )
        .write(&dir.path().join("m.gguf"));
    for (name, values) in [
        ("i8", "-128.0 127.0\n"),
        ("i16", "-32768.0 258.0\n"),
        ("i32", "2147483600.0 -7.0\n"),
        ("i64", "-9.223372e18 16777216.0\n"),
        ("f64", "0.1 -inf NaN\n"),
    ] {
        assert_eq!(stdout(&dir, &[name, "--values"]), values, "{name}");
    }
}

#[test]
fn what_is_printed() {
    let dir = folder();
    insta::assert_snapshot!("statistics", run(&dir, &["experts"]));
    insta::assert_snapshot!("expert", run(&dir, &["experts", "--expert", "1", "--rows", "1.."]));
    insta::assert_snapshot!("odd", run(&dir, &["odd"]));
    insta::assert_snapshot!("odd_json", run(&dir, &["odd", "--json"]));
    insta::assert_snapshot!("nan", run(&dir, &["nan"]));
    insta::assert_snapshot!("one", run(&dir, &["one"]));
    insta::assert_snapshot!("compare", run(&dir, &["near", "--compare", "m.gguf", "--as", "experts"]));
    insta::assert_snapshot!("help", transcript(&wayinfer(dir.path(), 80, &["dequant", "--help"])));
}

#[test]
fn values_and_their_rows() {
    let dir = folder();
    let values = |args: &[&str]| stdout(&dir, &[&["experts", "--values"], args].concat());
    assert_eq!(values(&["--rows", "1..3"]), "-1.0 -0.75 -0.5 -0.25\n0.0 0.25 0.5 0.75\n");
    assert_eq!(values(&["--rows", "5"]), "3.0 3.25 3.5 3.75\n");
    assert_eq!(values(&["--expert", "1", "--rows", "..1"]), "1.0 1.25 1.5 1.75\n");
    assert_eq!(values(&[]).lines().count(), 6);
    assert_eq!(stdout(&dir, &["odd", "--values"]), "1.0 NaN inf -inf -0.0 1e-40 0.1 -3e38\n");
    let json = json(&dir, &["experts", "--values", "--expert", "1", "--rows", "2.."]);
    assert_eq!(json["values"], serde_json::json!([[3.0, 3.25, 3.5, 3.75]]));
    assert_eq!(json["shape"], serde_json::json!([1, 4]));
    let odd = self::json(&dir, &["odd", "--values"]);
    let wanted = r#"[[1.0,"NaN","Infinity","-Infinity",-0.0,1e-40,0.1,-3e+38]]"#;
    assert_eq!(odd["values"].to_string(), wanted);
}

#[test]
fn shapes_of_files() {
    let dir = folder();
    for (args, shape, first) in [
        (&["experts"][..], "(2, 3, 4)", -2.0),
        (&["experts", "--expert", "1"], "(3, 4)", 1.0),
        (&["experts", "--rows", "2..5"], "(3, 4)", 0.0),
        (&["odd"], "(8,)", 1.0),
    ] {
        stdout(&dir, &[args, &["--out", "x.npy", "--force"]].concat());
        let (found, values) = read_npy(&dir.path().join("x.npy"));
        assert_eq!((&found[..], values[0]), (shape, first));
    }
}

#[test]
fn differences_and_where_they_are() {
    let dir = folder();
    let report = json(&dir, &["near", "--compare", "m.gguf", "--as", "experts"]);
    let largest = serde_json::json!({"error": 0.5, "value": 2.75, "reference": 2.25, "expert": 1, "row": 1, "column": 1});
    assert_eq!(report["largest_error"], largest);
    assert_eq!((&report["differing"], &report["elements"]), (&1.into(), &24.into()));
    // One expert against a tensor of its own; the same bits.
    let report = json(&dir, &["near", "--expert", "1", "--compare", "m.gguf", "--as", "expert.1"]);
    assert_eq!((&report["differing"], &report["sqnr_db"]), (&0.into(), &"Infinity".into()));
    assert_eq!(report["largest_error"], Value::Null);
    // What is not finite on one side only is infinitely far, in JSON too.
    let report = json(&dir, &["nan", "--compare", "m.gguf"]);
    assert_eq!(report["differing"], 0);
    let args = ["one", "--rows", "0", "--compare", "m.gguf", "--as", "nan"];
    assert!(run(&dir, &args).contains("is of shape 1 x 2 x 2"), "{}", run(&dir, &args));
    // The demo needs no file, on either side.
    let args = ["dequant", "-m", "demo", "output_norm.weight", "--compare", "demo", "--json"];
    let output = wayinfer(dir.path(), 80, &args);
    assert!(output.status.success(), "{}", transcript(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&report["differing"], &report["reference"]["model"]), (&0.into(), &"demo".into()));
    let fixtures = repository().join("fixtures");
    let args = [
        "dequant",
        "-m",
        "dense-q4_k_m.gguf",
        "blk.0.ffn_up.weight",
        "--compare",
        "dense-q5_k_m.gguf",
        "--json",
    ];
    let output = wayinfer(&fixtures, 80, &args);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let sqnr = report["sqnr_db"].as_f64().expect("a number");
    assert!((20.0..26.0).contains(&sqnr), "Q4_K of normal weights: {sqnr} dB");
}

#[test]
fn nothing_is_overwritten_unasked() {
    let dir = folder();
    let there = dir.path().join("x.npy");
    std::fs::write(&there, "mine").expect("written");
    insta::assert_snapshot!("exists", run(&dir, &["odd", "--out", "x.npy"]));
    assert_eq!(std::fs::read(&there).expect("read"), b"mine");
    stdout(&dir, &["odd", "--out", "x.npy", "--force"]);
    assert_eq!(read_npy(&there).1.len(), 8);
    // A name does not control the terminal; Windows has none with control characters.
    let (name, shown) = match cfg!(windows) {
        true => ("a\u{202e}.npy", "a\\u{202e}.npy: 8 values"),
        false => ("a\x1b[31m.npy", "a\\u{1b}[31m.npy: 8 values"),
    };
    let said = run(&dir, &["odd", "--out", name]);
    assert!(said.contains(shown), "{said}");
    // The model itself, which is mapped.
    let dangerous = dir.path().join("m.npy");
    std::fs::rename(dir.path().join("m.gguf"), &dangerous).expect("renamed");
    let args = ["dequant", "-m", "m.npy", "odd", "--force", "--out", "./m.npy"];
    let output = transcript(&wayinfer(dir.path(), 80, &args));
    assert!(output.contains("it is the model itself"), "{output}");
    // By another name, too.
    std::fs::hard_link(&dangerous, dir.path().join("link.npy")).expect("linked");
    let args = ["dequant", "-m", "m.npy", "odd", "--force", "--out", "link.npy"];
    let output = transcript(&wayinfer(dir.path(), 80, &args));
    assert!(output.starts_with("exit code: 1\n") && output.contains("link.npy: it is the model"), "{output}");
    assert!(std::fs::read(&dangerous).expect("read").starts_with(b"GGUF"));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let dir = folder();
    insta::assert_snapshot!("unknown_tensor", run(&dir, &["expert"]));
    insta::assert_snapshot!("unsupported_type", run(&dir, &["unsupported"]));
    for (args, code, text) in [
        (&["nothing.like.it"][..], 1, "there is no tensor \"nothing.like.it\""),
        (&["experts", "--rows", "4..7"], 1, "has no rows 4..7: it has 6"),
        (&["experts", "--rows", "9.."], 1, "has no rows 9..6: it has 6"),
        (&["experts", "--expert", "0", "--rows", "0..4"], 1, "has no rows 0..4: it has 3"),
        (&["experts", "--expert", "2"], 1, "has no expert 2: it has 2"),
        (&["odd", "--expert", "0"], 1, "has no experts"),
        (&["experts", "--rows", "0..18446744073709551615"], 1, "has no rows"),
        (&["none"], 1, "has no elements"),
        (&["odd", "--rows", "3..1"], 2, "is no row at all"),
        (&["odd", "--as", "one"], 2, "--compare"),
        (&["odd", "--force"], 2, "--out"),
        (&["odd", "--out", "x.txt"], 2, ".npy or .safetensors"),
        (&["odd", "--out", "no/such/x.npy"], 1, "cannot be written"),
        (&["odd", "--out", "no/such/x.safetensors"], 1, "cannot be written"),
        (&["odd", "--values", "--out", "x.npy"], 2, "cannot be used with"),
        (&["odd", "--compare", "gone.gguf"], 1, "gone.gguf"),
        (&["odd", "--compare", "m.gguf", "--as", "two"], 1, "there is no tensor \"two\""),
        (&["odd", "--compare", "m.gguf", "--as", "one"], 1, "is of shape"),
        (&["odd", "--compare", "m.gguf", "--as", "unsupported"], 1, "is of shape"),
        (&[], 2, "<TENSOR>"),
    ] {
        let output = run(&dir, args);
        assert!(
            output.starts_with(&format!("exit code: {code}\n")) && output.contains(text),
            "{args:?}: {output}"
        );
    }
    assert!(!run(&dir, &["evil\u{1b}[31m"]).contains('\u{1b}'));
}

#[test]
fn a_truncated_file_is_refused() {
    let dir = folder();
    let path = dir.path().join("m.gguf");
    let whole = std::fs::read(&path).expect("read");
    for len in [0, 3, 20, whole.len() / 3, whole.len() - 40] {
        std::fs::write(&path, &whole[..len]).expect("written");
        let output = run(&dir, &["unsupported"]);
        assert!(output.starts_with("exit code: 1\n") && output.contains("m.gguf"), "{len}: {output}");
    }
}
