//! The program under a watch: what a file may make it cost, whatever it says of itself.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// Most memory beside the file's size, bytes.
pub const MOST_MEMORY: u64 = 50 << 20;
/// Most time, seconds of CPU: what else runs on the machine does not count.
pub const MOST_TIME: f64 = 1.0;

/// A run that has ended.
#[derive(Debug)]
pub struct Watched {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    /// Seconds of CPU.
    pub time: f64,
    /// High-water mark of resident memory, bytes. It counts what the test itself had when it started the program too.
    pub memory: u64,
}

/// Runs a command to its end, its output into files, so that nothing waits for a reader.
pub fn watch(command: &mut Command) -> Watched {
    let file = || tempfile::NamedTempFile::new().expect("a temporary file");
    let (stdout, stderr) = (file(), file());
    let open = |file: &tempfile::NamedTempFile| Stdio::from(file.reopen().expect("it opens again"));
    let child = command.stdin(Stdio::null()).stdout(open(&stdout)).stderr(open(&stderr));
    let child = child.spawn().expect("the program starts");
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: waits for the child that was just started and fills the two places that it is given.
    let waited = unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, usage.as_mut_ptr()) };
    assert_eq!(waited, child.id() as i32);
    // SAFETY: zeroed, and filled by wait4.
    let usage = unsafe { usage.assume_init() };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    let kib = if cfg!(target_os = "macos") { 1 } else { 1024 };
    let text = |file: tempfile::NamedTempFile| {
        String::from_utf8(std::fs::read(file.path()).expect("what was written")).expect("output is UTF-8")
    };
    Watched {
        status: ExitStatus::from_raw(status),
        stdout: text(stdout),
        stderr: text(stderr),
        time: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        memory: usage.ru_maxrss as u64 * kib,
    }
}

impl Watched {
    /// Whether the run kept to the limits for a file (or files) of this size.
    pub fn kept_limits(&self, file_bytes: u64) -> bool {
        self.time <= MOST_TIME && self.memory <= file_bytes + MOST_MEMORY
    }

    /// The first line of the failure.
    pub fn error(&self) -> &str {
        self.stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default()
    }
}

/// What the four ways to read a file are asked, each of the model at `m.gguf`.
pub const COMMANDS: [&[&str]; 4] = [
    &["inspect", "-m", "m.gguf"],
    &["generate", "-m", "m.gguf", "-p", "a", "-n", "2", "-t", "1"],
    &["trace", "-m", "m.gguf", "-p", "a", "-t", "1"],
    &["dequant", "-m", "m.gguf", "token_embd.weight"],
];

/// Runs the program in `dir`: it must end by itself, without a panic, with nothing that controls a terminal, within the
/// limits for files of this size.
pub fn wayinfer(dir: &Path, file_bytes: u64, args: &[&str]) -> Watched {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayinfer"));
    command.current_dir(dir).args(args).env("COLUMNS", "100").env_remove("RUST_BACKTRACE");
    let run = watch(&mut command);
    let what = format!("{args:?}: {:?}, {:.2} s, {} bytes\n{}", run.status, run.time, run.memory, run.stderr);
    assert!(matches!(run.status.code(), Some(0 | 1)), "{what}");
    assert!(!run.stderr.contains("panicked"), "{what}");
    assert!(!run.stderr.contains(|c: char| c.is_control() && c != '\n'), "{what}");
    assert!(run.kept_limits(file_bytes), "{what}");
    run
}
