//! Parse, run, exit code: see [`wayinfer::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    wayinfer::cli::main()
}
