//! Hostile models of every family: each key and tensor that a family has beside the common ones.
#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;
mod deepseek4;
mod delta_nets;
mod gates_and_side_by_side;
mod gemma;
mod hyper;
mod kin;
mod latent;
#[path = "../common/limits.rs"]
mod limits;
mod mamba;
mod qwen4;
mod routers_and_scales;
mod state_spaces;
mod windows_and_images;

use std::fs;

use common::gguf::GgufBuilder;
use limits::{COMMANDS, Watched};
use tempfile::TempDir;

fn run(model: &GgufBuilder, args: &[&str]) -> Watched {
    let (dir, bytes) = (TempDir::new().unwrap(), model.build());
    fs::write(dir.path().join("m.gguf"), &bytes).unwrap();
    limits::wayinfer(dir.path(), bytes.len() as u64, args)
}

/// What runs a model refuses this one with this text; what shows its directory shows it.
#[track_caller]
fn refused_by_runs(model: &GgufBuilder, text: &str) {
    let [inspect, generate, ..] = COMMANDS.map(|args| run(model, args));
    assert_eq!((generate.status.code(), generate.stdout.as_str()), (Some(1), ""), "{}", generate.stderr);
    assert!(generate.error().starts_with("error: m.gguf: "), "{}", generate.stderr);
    assert!(generate.error().contains(text), "another text: {}", generate.stderr);
    assert_eq!(inspect.status.code(), Some(0), "{}", inspect.stderr);
}

/// The model runs as it is.
#[track_caller]
fn sound(model: &GgufBuilder) {
    let generate = run(model, COMMANDS[1]);
    assert!(generate.status.success(), "{}", generate.stderr);
}

/// One test a model: how it is spoiled, what the error contains.
macro_rules! refused {
    ($($name:ident: $model:expr => $text:literal;)*) => {$(
        #[test]
        fn $name() {
            crate::refused_by_runs(&$model, $text);
        }
    )*};
}
use refused;
