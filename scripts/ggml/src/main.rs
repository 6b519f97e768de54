//! `wayinfer-ggml`: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use wayinfer_ggml::{answers, bench, capture, encode, ffi, formats, perplexity, quantize};

/// Makes WayInfer's fixtures and goldens with ggml, and measures llama.cpp as its peer
#[derive(Parser)]
enum Command {
    /// Every node of a run, logits and a greedy continuation, as safetensors
    Capture(capture::Args),
    /// Decoded values, quantised activations and dots of each block format, as safetensors
    Formats(formats::Args),
    /// A float GGUF to another file type
    Quantize(quantize::Args),
    /// Floats to a format's blocks
    Encode(encode::Args),
    /// Greedy answers to a JSON list of prompts
    Answers(answers::Args),
    /// How well a model foretells a text, as llama-perplexity computes it; its logits, or a base of them
    Perplexity(perplexity::Args),
    /// llama.cpp and wayinfer on the same model, in turns
    Bench(bench::Args),
    /// One measurement of llama.cpp, in the JSON of `wayinfer bench`
    BenchPeer(bench::PeerArgs),
    /// How fast ggml's dots read weights, a format after another
    BenchDots(bench::DotArgs),
    /// What this build of ggml is
    Info,
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Capture(args) => capture::run(&args),
        Command::Formats(args) => formats::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Encode(args) => encode::run(&args),
        Command::Answers(args) => answers::run(&args),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::BenchPeer(args) => bench::run_peer(&args),
        Command::BenchDots(args) => bench::run_dots(&args),
        Command::Info => {
            println!(
                "{}",
                serde_json::json!({ "version": ffi::version(), "system_info": ffi::system_info() })
            );
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
