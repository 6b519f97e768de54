//! `wayinfer` itself, built with the sanitizer.

use std::process::ExitCode;

fn main() -> ExitCode {
    wayinfer::cli::main()
}
