//! What the integration tests share.
#![allow(dead_code)] // each test binary uses a part of it

pub mod deepseek4;
pub mod delta_nets;
pub mod gguf;
pub mod goldens;
pub mod hyper;
pub mod latents;
pub mod mamba;
pub mod nextn;
pub mod qwen4;
pub mod rebuilt;
pub mod runs;
pub mod server;
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
        .env("WAYINFER_NO_CONFIG", "1")
        .env_remove("RUST_BACKTRACE")
        .args(args)
        .output()
        .expect("the program starts")
}

/// What `--ram` has to be at the least for a run with these arguments, in MiB, as the program says it.
pub fn least_ram(dir: &Path, args: &[&str]) -> f64 {
    let output = wayinfer(dir, 80, &[args, &["--ram", "1M"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    let least = error.split("of memory: ").nth(1).and_then(|rest| rest.split(" MiB").next());
    least.and_then(|least| least.parse().ok()).unwrap_or_else(|| panic!("{error}"))
}

/// The exit code of the program where nobody reads its stdout.
pub fn code_unread(dir: &Path, args: &[&str]) -> Option<i32> {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut program = Command::new(env!("CARGO_BIN_EXE_wayinfer"));
    let run = program.current_dir(dir).args(args).stdin(std::process::Stdio::null()).stdout(writer).output();
    run.expect("the program starts").status.code()
}

/// Exit code, stdout and stderr as one text for a snapshot, what systems say in words of their own in Linux's.
pub fn transcript(output: &Output) -> String {
    let no_file = std::io::Error::from_raw_os_error(2).to_string();
    let text = |bytes: &[u8]| {
        let text = String::from_utf8(bytes.to_vec()).expect("output is UTF-8");
        text.replace(&no_file, "No such file or directory (os error 2)")
    };
    format!(
        "exit code: {}\n----- stdout -----\n{}----- stderr -----\n{}",
        output.status.code().map_or_else(|| "none".to_owned(), |c| c.to_string()),
        text(&output.stdout),
        text(&output.stderr),
    )
}
