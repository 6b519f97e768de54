//! The program under a watch: what a file may make it cost, whatever it says of itself.

use std::ffi::OsStr;
use std::fs;
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
    /// High-water mark of resident memory, bytes.
    pub memory: u64,
}

/// What a launcher is told, and what it tells.
const LAUNCH: &str = "WAYINFER_TEST_LAUNCH";

/// Runs a command to its end, its output into files, so that nothing waits for a reader.
///
/// The system counts what the starting process holds as the child's peak too, which may be much in a test; therefore a
/// small process starts the command: this program, with [`the_limits_trip`] alone.
pub fn watch(command: &Command) -> Watched {
    let dir = tempfile::TempDir::new().expect("a folder");
    let text = |text: &OsStr| text.to_str().expect("arguments of tests are UTF-8").to_owned();
    let line: Vec<String> = [command.get_program()].into_iter().chain(command.get_args()).map(text).collect();
    fs::write(dir.path().join("command"), line.join("\0")).expect("it is written");
    let name = module_path!().split_once("::").map_or("", |(_, path)| path).to_owned() + "::the_limits_trip";
    let mut launcher = Command::new(std::env::current_exe().expect("this program"));
    launcher.args(["--exact", &name]).env(LAUNCH, dir.path()).stdin(Stdio::null()).stdout(Stdio::null());
    if let Some(folder) = command.get_current_dir() {
        launcher.current_dir(folder);
    }
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => launcher.env(key, value),
            None => launcher.env_remove(key),
        };
    }
    assert!(launcher.status().expect("it starts").success());
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("UTF-8 was written");
    let numbers: Vec<i64> = read("usage").split(' ').map(|n| n.parse().expect("a number")).collect();
    Watched {
        status: ExitStatus::from_raw(numbers[0] as i32),
        stdout: read("stdout"),
        stderr: read("stderr"),
        time: numbers[1] as f64 / 1e6,
        memory: numbers[2] as u64,
    }
}

/// The launcher's part: starts the command that `dir` names and writes how it went.
fn launch(dir: &Path) {
    let line = fs::read_to_string(dir.join("command")).expect("the command");
    let mut line = line.split('\0');
    let file = |name: &str| Stdio::from(fs::File::create(dir.join(name)).expect("a file"));
    let mut command = Command::new(line.next().expect("a program"));
    command.args(line).env_remove(LAUNCH).stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
    let child = command.spawn().expect("the program starts").id() as i32;
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: waits for the child that was just started and fills the two places that it is given.
    let waited = unsafe { libc::wait4(child, &raw mut status, 0, usage.as_mut_ptr()) };
    assert_eq!(waited, child);
    // SAFETY: zeroed, and filled by wait4.
    let usage = unsafe { usage.assume_init() };
    let micros = |t: libc::timeval| t.tv_sec as f64 * 1e6 + t.tv_usec as f64;
    let kib = if cfg!(target_os = "macos") { 1 } else { 1024 };
    let (time, memory) = (micros(usage.ru_utime) + micros(usage.ru_stime), usage.ru_maxrss * kib);
    fs::write(dir.join("usage"), format!("{status} {time:.0} {memory}")).expect("it is written");
}

/// A run that takes too much is found out, whatever the process that asks holds: this very test, which is told to.
#[test]
fn the_limits_trip() {
    if let Some(dir) = std::env::var_os(LAUNCH) {
        return launch(Path::new(&dir));
    }
    match std::env::var("WAYINFER_TEST_LIMITS").as_deref() {
        Ok("memory") => drop(std::hint::black_box(vec![1u8; 80 << 20])),
        Ok("time") => {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            while time.tv_sec < 2 {
                // SAFETY: writes to the place given, the CPU's time of this process.
                unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
            }
        }
        Ok(_) => {}
        Err(_) => {
            let _held = std::hint::black_box(vec![1u8; 100 << 20]);
            let this = std::thread::current().name().expect("tests have names").to_owned();
            for (what, kept) in [("memory", false), ("time", false), ("nothing", true)] {
                let mut command = Command::new(std::env::current_exe().expect("this program"));
                command.args(["--exact", &this]).env("WAYINFER_TEST_LIMITS", what);
                let run = watch(&command);
                assert!(run.status.success(), "{}{}", run.stdout, run.stderr);
                assert_eq!(run.kept_limits(0), kept, "{what}: {:.2} s, {} bytes", run.time, run.memory);
            }
        }
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
    let run = watch(&command);
    let what = format!("{args:?}: {:?}, {:.2} s, {} bytes\n{}", run.status, run.time, run.memory, run.stderr);
    assert!(matches!(run.status.code(), Some(0 | 1)), "{what}");
    assert!(!run.stderr.contains("panicked"), "{what}");
    assert!(!run.stderr.contains(|c: char| c.is_control() && c != '\n'), "{what}");
    assert!(run.kept_limits(file_bytes), "{what}");
    run
}
