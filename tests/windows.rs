//! What differs on Windows, as a user meets it: paths, files that other programs have open, pipes, Ctrl-C.
#![cfg(windows)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::runs::fixture;
use common::server::{Server, command};
use common::{say, transcript, wayinfer};
use tempfile::TempDir;
use windows_sys::Win32::Storage::FileSystem::{FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE};
use windows_sys::Win32::System::Console::{AllocConsole, CTRL_BREAK_EVENT, GenerateConsoleCtrlEvent};
use windows_sys::Win32::System::Threading::CREATE_NEW_PROCESS_GROUP;

/// A long text from a small model, and little else.
const LONG: [&str; 8] = ["-p", "a", "-n", "20000", "-c", "20001", "--ignore-eos", "--greedy"];

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are Unicode")
}

fn copy(name: &str, to: &Path) {
    fs::copy(fixture(name), to).expect("a copy");
}

/// What a run says, which must succeed.
fn stdout(dir: &Path, args: &[&str]) -> String {
    let output = wayinfer(dir, 100, args);
    assert!(output.status.success(), "{args:?}: {}", transcript(&output));
    String::from_utf8(output.stdout).expect("output is UTF-8")
}

fn generate(dir: &Path, model: &str) -> String {
    stdout(dir, &["generate", "-m", model, "-p", "Grüße, 世界", "-n", "8", "--greedy", "--ignore-eos"])
}

#[test]
fn paths_with_spaces_beyond_ascii_and_longer_than_260() {
    let dir = TempDir::new().expect("a folder");
    let truth = generate(dir.path(), text(&fixture("dense-q4_k_m")));
    let mut long: PathBuf = dir.path().join("so");
    for _ in 0..8 {
        long.push("ein Ordner mit Leerzeichen, Ümläuten und 模型");
    }
    fs::create_dir_all(&long).expect("a folder");
    assert!(long.as_os_str().encode_wide().count() > 300);
    let short = dir.path().join("mit Leerzeichen, Ümläuten und 🦙.gguf");
    for model in [short, long.join("a model.gguf")] {
        copy("dense-q4_k_m", &model);
        assert_eq!(generate(dir.path(), text(&model)), truth, "{}", model.display());
        // Either separator, and a way around.
        let other = text(&model).replace('\\', "/");
        assert_eq!(generate(dir.path(), &other), truth, "{other}");
        let folder = model.parent().expect("a folder");
        let npy = folder.join("Gewichte 模型.npy");
        let dequant = ["dequant", "-m", text(&model), "output_norm.weight", "--out", text(&npy)];
        stdout(dir.path(), &dequant);
        let first = fs::read(&npy).expect("the values");
        let again = wayinfer(dir.path(), 100, &dequant);
        assert!(transcript(&again).contains(&format!("{}: already there", npy.display())));
        stdout(dir.path(), &[&dequant[..], &["--force"]].concat());
        assert_eq!(fs::read(&npy).expect("the values"), first);
        let prompt = folder.join("Frage.txt");
        fs::write(&prompt, "Grüße, 世界").expect("a prompt");
        let args =
            ["generate", "-m", text(&model), "-f", text(&prompt), "-n", "8", "--greedy", "--ignore-eos"];
        assert_eq!(stdout(dir.path(), &args), truth);
    }
    // A name that is not there, in full.
    let none = long.join("none.gguf");
    let output = wayinfer(dir.path(), 100, &["inspect", text(&none)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(transcript(&output).contains(&format!("error: {}: cannot be read", none.display())));
}

#[test]
fn a_model_that_another_program_has_open() {
    let dir = TempDir::new().expect("a folder");
    let model = dir.path().join("m.gguf");
    copy("moe-q4_k_m", &model);
    let truth = generate(dir.path(), "m.gguf");
    let all = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    for (writes, share) in [(false, all), (false, FILE_SHARE_READ), (true, all), (true, FILE_SHARE_READ)] {
        let held = OpenOptions::new().read(true).write(writes).share_mode(share).open(&model);
        let held = held.expect("nobody else has it");
        assert_eq!(generate(dir.path(), "m.gguf"), truth, "writes {writes}, shares {share}");
        drop(held);
    }
    // One that shares it with nobody.
    let held = OpenOptions::new().read(true).share_mode(0).open(&model).expect("nobody else has it");
    for args in [&["inspect", "m.gguf"][..], &["generate", "-p", "a", "m.gguf"], &["bench", "m.gguf"]] {
        let output = wayinfer(dir.path(), 100, args);
        let said = transcript(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("error: m.gguf: cannot be read: ") && said.contains("(os error 32)"), "{said}");
    }
    drop(held);
}

fn start(dir: &Path, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_wayinfer"))
        .current_dir(dir)
        .args(args)
        .creation_flags(CREATE_NEW_PROCESS_GROUP)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

/// Waits for the first of the text.
fn begun(child: &mut Child) {
    child.stdout.as_mut().expect("a pipe").read_exact(&mut [0; 4]).expect("some text");
}

/// Others may read a model while it runs, and give it another name.
#[test]
fn a_model_that_runs_is_left_to_others() {
    let dir = TempDir::new().expect("a folder");
    let model = dir.path().join("m.gguf");
    copy("moe-q4_k_m", &model);
    let bytes = fs::read(&model).expect("a model");
    let mut child = start(dir.path(), &[&["generate", "-m", "m.gguf"], &LONG[..]].concat());
    begun(&mut child);
    assert!(fs::read(&model).expect("it can be read") == bytes);
    generate(dir.path(), "m.gguf");
    fs::rename(&model, dir.path().join("elsewhere")).expect("another name");
    assert!(child.try_wait().expect("its state").is_none(), "it has ended too soon");
    // Its reader goes away meanwhile: the end of the run, and no failure.
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("error"), "{said}");
}

/// A console, which a process that is to be sent Ctrl-Break shares with the one that sends it.
fn console() {
    // SAFETY: a plain call. It fails where the process has a console already.
    unsafe { AllocConsole() };
}

/// Sends Ctrl-Break to a group of processes, which do not take Ctrl-C; or says why it cannot be sent.
fn ctrl_break(group: u32) -> bool {
    // SAFETY: a plain call.
    let sent = unsafe { GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, group) } != 0;
    if !sent {
        say(&format!("skipped: no console to send Ctrl-Break by: {}", std::io::Error::last_os_error()));
    }
    sent
}

#[test]
fn an_interrupt_ends_a_run_with_its_statistics() {
    console();
    let dir = TempDir::new().expect("a folder");
    copy("moe-q4_k_m", &dir.path().join("m.gguf"));
    let mut child = start(dir.path(), &[&["generate", "-m", "m.gguf"], &LONG[..]].concat());
    begun(&mut child);
    let sent = ctrl_break(child.id());
    if !sent {
        child.kill().expect("its end");
    }
    let output = child.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!sent || output.status.code() == Some(130), "{:?}: {said}", output.status);
    assert!(!sent || said.contains("load ") && said.contains(" tok/s") && said.contains("| seed "), "{said}");
}

/// The server takes it as an end that leaves answers their time.
#[test]
fn an_interrupt_ends_the_server() {
    console();
    let mut group = command(&["--port", "0", "-m", "demo"]);
    group.creation_flags(CREATE_NEW_PROCESS_GROUP);
    let mut server = Server::spawn(group);
    server.is_well();
    // A connection that says nothing holds nobody up.
    let _idle = server.connect();
    if ctrl_break(server.id()) {
        assert_eq!(server.wait(), Some(0));
        assert!(server.log().ends_with("ended\n"), "{}", server.log());
    }
}

/// What is mapped cannot be cut short, by whoever: the run goes on. The error of files that are is for other systems.
#[test]
fn a_mapped_model_keeps_its_length() {
    let dir = TempDir::new().expect("a folder");
    let path = dir.path().join("m.gguf");
    copy("dense-q4_k_m", &path);
    let file = wayinfer::store::MappedFile::open(&path).expect("a file");
    let len = file.len() as u64;
    let cut = File::options().write(true).open(&path).expect("the file").set_len(len / 2);
    assert!(cut.is_err());
    assert_eq!(fs::metadata(&path).expect("metadata").len(), len);
    file.check(|_| None).expect("all of its bytes");
}
