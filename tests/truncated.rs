//! Files that are cut short while they are mapped: an error that names the file, and nothing made of what it
//! lost. Windows lets nobody cut a mapped file short (`windows.rs`).
#![cfg(unix)]

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use common::runs::{Run, options};
use tempfile::TempDir;
use wayinfer::engine::EngineError;
use wayinfer::gguf::Gguf;
use wayinfer::model::{ForwardError, Logits, Model};
use wayinfer::store::StoreError;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Copies a model's files and loads the copy as a run does: planned, and read ahead in the background.
fn load(dir: &TempDir, files: &[&str]) -> (Vec<PathBuf>, Model) {
    let copy = |name: &&str| {
        let path = dir.path().join(name);
        fs::copy(fixtures().join(name), &path).unwrap();
        path
    };
    let paths: Vec<PathBuf> = files.iter().map(copy).collect();
    let mut model = Model::load(&Gguf::open(&paths[0]).unwrap()).unwrap();
    let plan = model.store().plan_for(u64::MAX).unwrap();
    model.settle(plan).unwrap();
    (paths, model)
}

fn run_of(model: &Model) -> Run<'_> {
    Run::new(model, &options(64, 16))
}

fn set_len(path: &Path, len: u64) {
    File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}

/// The place of the loss, which is in this file.
fn lost(result: Result<(), EngineError>, path: &Path) -> (String, u64) {
    match result {
        Err(EngineError::Forward(ForwardError::Store(StoreError::CutShort { path: p, tensor, offset }))) => {
            assert_eq!(p, path);
            (tensor, offset)
        }
        other => panic!("not found out: {other:?}"),
    }
}

const MODELS: &[&[&str]] = &[
    &["dense-q4_k_m.gguf"],
    &["dense-f32.gguf"],
    &["moe-q4_k_m.gguf"],
    &["moe-q4_k_m-00001-of-00003.gguf", "moe-q4_k_m-00002-of-00003.gguf", "moe-q4_k_m-00003-of-00003.gguf"],
];

#[test]
fn a_pass_over_a_file_cut_short_is_an_error() {
    for files in MODELS {
        let dir = TempDir::new().unwrap();
        let (paths, model) = load(&dir, files);
        let mut run = run_of(&model);
        run.feed(&[1, 2, 3, 4], Logits::Last).unwrap();
        run.feed(&[5], Logits::Last).unwrap();
        let cut = &paths[paths.len() / 2];
        let (whole, half) = (fs::metadata(cut).unwrap().len(), fs::metadata(cut).unwrap().len() / 2);
        set_len(cut, half);
        let (tensor, offset) = lost(run.feed(&[6], Logits::Last), cut);
        // Reading ahead in the background raises no signal: it is the pass that met the end.
        assert!(!tensor.is_empty() && offset >= half, "{files:?}: {tensor} at {offset}");
        assert_eq!(run.sequence.past(), 5, "the pass counts for nothing");
        let again = lost(run.feed(&[6], Logits::Last), cut);
        assert_eq!(again, (tensor, offset));
        // Once the file has its size again, only what was noted tells: zeros were read.
        set_len(cut, whole);
        let error = run.feed(&[6], Logits::Last).unwrap_err().to_string();
        assert!(error.starts_with(&cut.display().to_string()) && error.contains("for a while"), "{error}");
    }
}

#[test]
fn less_than_a_page_is_missed() {
    let dir = TempDir::new().unwrap();
    let (paths, model) = load(&dir, MODELS[0]);
    let mut run = run_of(&model);
    run.feed(&[1, 2], Logits::Last).unwrap();
    // The rest of the last page reads as zeros without a fault.
    let whole = fs::metadata(&paths[0]).unwrap().len();
    set_len(&paths[0], whole - 1);
    assert_eq!(lost(run.feed(&[3], Logits::Last), &paths[0]).1, whole - 1);
}

#[test]
fn an_error_of_the_pass_itself_is_not_in_the_way() {
    let dir = TempDir::new().unwrap();
    let (paths, model) = load(&dir, MODELS[1]);
    let mut run = run_of(&model);
    set_len(&paths[0], 0);
    lost(run.feed(&[1], Logits::Last), &paths[0]);
    // Nothing is left that could be drawn from.
    assert!(run.logits().is_empty() && matches!(run.sequence.argmax(), Err(EngineError::NoLogits)));
}

/// The program while files are changed under it.
mod program {
    use std::io::Read;
    use std::process::{Child, Command, Output, Stdio};

    use super::common::gguf::{Data, GgufBuilder, ty};
    use super::*;

    fn start(dir: &TempDir, args: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_wayinfer"))
            .current_dir(dir.path())
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn refused(output: &Output, tensor: &str) {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{:?}: {stderr}", output.status);
        let error = stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        assert!(error.starts_with(&format!("error: m.gguf: tensor {tensor}")), "{stderr}");
        assert!(error.contains("cut short since it was opened"), "{stderr}");
    }

    #[test]
    fn generate_ends_with_an_error() {
        let dir = TempDir::new().unwrap();
        let model = dir.path().join("m.gguf");
        fs::copy(fixtures().join("dense-q4_k_m.gguf"), &model).unwrap();
        let args = [
            "generate",
            "m.gguf",
            "-p",
            "a",
            "-n",
            "90000",
            "-c",
            "90001",
            "--ignore-eos",
            "--isa",
            "scalar",
        ];
        let mut child = start(&dir, &args);
        let mut text = [0; 1];
        child.stdout.as_mut().unwrap().read_exact(&mut text).unwrap();
        set_len(&model, 4096);
        // Which tensor is read first after the cut is chance.
        refused(&child.wait_with_output().unwrap(), "");
    }

    /// It prints when all is done: what shows that it computes are the threads that do.
    #[cfg(target_os = "linux")]
    #[test]
    fn trace_ends_with_an_error() {
        let dir = TempDir::new().unwrap();
        let model = dir.path().join("m.gguf");
        fs::copy(fixtures().join("dense-f32.gguf"), &model).unwrap();
        let mut child =
            start(&dir, &["trace", "-m", "m.gguf", "-p", "a", "-n", "500", "-t", "2", "--isa", "scalar"]);
        let tasks = format!("/proc/{}/task", child.id());
        let threads = || fs::read_dir(&tasks).map_or(0, |tasks| tasks.count());
        while threads() < 3 {
            assert!(child.try_wait().unwrap().is_none(), "it has ended");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        set_len(&model, 4096);
        let output = child.wait_with_output().unwrap();
        // It may be about to compute: then no tensor is read yet, but the file is.
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains("error: m.gguf: ") && stderr.contains("cut short since it was opened"),
            "{stderr}"
        );
        assert!(output.stdout.is_empty());
    }

    #[test]
    fn dequant_ends_with_an_error() {
        let dir = TempDir::new().unwrap();
        let model = dir.path().join("m.gguf");
        let large = GgufBuilder::new().tensor("large", ty::F16, &[1024, 4096], Data::Zero);
        large.write(&model);
        // It waits for its reader after a part of the values.
        let mut child = start(&dir, &["dequant", "-m", "m.gguf", "large", "--values"]);
        let stdout = child.stdout.as_mut().unwrap();
        stdout.read_exact(&mut [0; 128]).unwrap();
        set_len(&model, 4096);
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).unwrap();
        refused(&child.wait_with_output().unwrap(), "large");
        assert!(rest.len() < 4 * 1024 * 4096 / 2, "{} bytes of values were printed", rest.len());
    }
}
