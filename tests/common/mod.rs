//! What the integration tests share.
#![allow(dead_code)] // each test binary uses a part of it

pub mod deepseek4;
pub mod delta_nets;
pub mod gguf;
pub mod goldens;
pub mod nextn;
pub mod runs;
pub mod state_spaces;
pub mod tiny;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The folder of test data that is not in the repository, from the variable `WAYINFER_TEST_DATA`. Unset:
/// `None`, and the test says that it skips. Set, but `wanted` is not there: the test fails.
pub fn test_data(wanted: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("WAYINFER_TEST_DATA") else {
        say(&format!("skipped: WAYINFER_TEST_DATA is not set, {wanted} is needed"));
        return None;
    };
    let path = Path::new(&folder).join(wanted);
    assert!(path.exists(), "WAYINFER_TEST_DATA is set, but {} is not there", path.display());
    Some(path)
}

/// A line of a test's outcome that is worth seeing when the test passes: past the harness, which keeps `println!` back.
pub fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Says which kernel sets run here, and which this CPU or build lacks.
pub fn say_kernel_sets(test: &str) {
    use wayinfer::kernels::Kernels;
    let sets: Vec<_> = Kernels::available().map(|set| set.isa().name()).collect();
    let lacking: Vec<_> = Kernels::unavailable().map(|why| why.to_string()).collect();
    say(&format!("{test}: kernel sets {}; not run: {}", sets.join(", "), lacking.join("; ")));
}

/// The program, run in `dir` with nothing of the tester's terminal in its environment.
pub fn wayinfer(dir: &Path, columns: usize, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wayinfer"))
        .current_dir(dir)
        .env("COLUMNS", columns.to_string())
        .env_remove("RUST_BACKTRACE")
        .args(args)
        .output()
        .expect("the program starts")
}

/// Exit code, stdout and stderr as one text for a snapshot.
pub fn transcript(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("output is UTF-8");
    format!(
        "exit code: {}\n----- stdout -----\n{}----- stderr -----\n{}",
        output.status.code().map_or_else(|| "none".to_owned(), |c| c.to_string()),
        text(&output.stdout),
        text(&output.stderr),
    )
}
