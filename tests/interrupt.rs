//! A run that is interrupted, and what one tells while it works.
#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::runs::fixture;

/// `generate` at work on a text without an end.
fn generate(model: &str, more: &[&str], stdout: Stdio) -> Child {
    Command::new(env!("CARGO_BIN_EXE_wayinfer"))
        .args(["generate", "-m"])
        .arg(fixture(model))
        .args(["-p", "a", "--ignore-eos", "-c", "100000", "--speculate", "off"])
        .args(more)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

/// What Ctrl-C sends.
fn interrupt(child: &Child) {
    // SAFETY: sends a signal to a child of this process that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
}

/// The exit code of a run that ends in a moment.
fn code(child: &mut Child) -> Option<i32> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        if let Some(status) = child.try_wait().expect("a child") {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().expect("a child");
    panic!("it does not end");
}

#[test]
fn an_interrupt_ends_the_text_with_its_statistics() {
    for json in [false, true] {
        let more: &[&str] = if json { &["--json", "--debug"] } else { &["--debug"] };
        let mut child = generate("dense-q8_0", more, Stdio::piped());
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut line = String::new();
        while !line.starts_with("debug: token 3") {
            line.clear();
            assert!(stderr.read_line(&mut line).expect("what it tells") > 0, "it has ended");
        }
        interrupt(&child);
        let (mut said, mut text) = (String::new(), String::new());
        let mut stdout = child.stdout.take().expect("a pipe");
        let reader = std::thread::spawn(move || {
            stdout.read_to_string(&mut text).expect("its text");
            text
        });
        stderr.read_to_string(&mut said).expect("what it tells");
        assert_eq!(code(&mut child), Some(130));
        assert!(said.lines().last().is_some_and(|line| line.contains(" | decode ")), "{said}");
        let text = reader.join().expect("no panic");
        assert!(text.ends_with('\n') && text.len() > 1, "{text:?}");
        if json {
            let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(report["stop"], "interrupted");
            assert!(report["ids"].as_array().is_some_and(|ids| ids.len() > 3), "{report}");
        }
    }
}

/// It cannot end by itself while nobody reads what it tells.
#[test]
fn a_second_interrupt_ends_the_process() {
    let mut child = generate("dense-q8_0", &["--debug"], Stdio::null());
    let stderr = child.stderr.take().expect("a pipe");
    let waiting = || {
        let mut bytes: libc::c_int = 0;
        // SAFETY: asks an open pipe how much it holds, which is written to the place given.
        assert_eq!(unsafe { libc::ioctl(stderr.as_raw_fd(), libc::FIONREAD as _, &raw mut bytes) }, 0);
        bytes
    };
    // The pipe is full when it holds no more for a while.
    let mut held = (waiting(), Instant::now());
    let began = Instant::now();
    while held.0 == 0 || held.1.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(20));
        let now = waiting();
        if now != held.0 {
            held = (now, Instant::now());
        }
        assert!(began.elapsed() < Duration::from_secs(60) && child.try_wait().expect("a child").is_none());
    }
    interrupt(&child);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(child.try_wait().expect("a child"), None, "the first one is not enough here");
    interrupt(&child);
    assert_eq!(code(&mut child), Some(130));
}

/// A streamed run tells once a second what comes from the disk.
#[test]
fn a_run_tells_once_a_second_what_it_reads() {
    let path = fixture("moe-q4_k_m");
    let (folder, name) = (path.parent().expect("a folder"), path.file_name().and_then(|name| name.to_str()));
    let name = name.expect("UTF-8");
    let least = common::least_ram(folder, &["generate", "-m", name, "-p", "a", "-c", "100000"]);
    let ram = format!("{}K", ((least + 0.2) * 1024.0) as u64);
    let mut child = generate("moe-q4_k_m", &["--verbose", "--ram", &ram], Stdio::null());
    let began = Instant::now();
    let lines: Vec<(String, Duration)> = BufReader::new(child.stderr.take().expect("a pipe"))
        .lines()
        .map(|line| (line.expect("what it tells"), began.elapsed()))
        .take_while(|_| began.elapsed() < Duration::from_secs(60))
        .filter(|(line, _)| line.starts_with("prefill: ") || line.starts_with("decode: "))
        .take(3)
        .collect();
    interrupt(&child);
    assert_eq!(code(&mut child), Some(130));
    let [prefill, first, second] = &lines[..] else { panic!("{lines:?}") };
    assert!(prefill.0.starts_with("prefill: "), "{lines:?}");
    for (line, _) in [first, second] {
        assert!(line.starts_with("decode: ") && line.contains("hits ") && line.contains("waited "), "{line}");
        assert!(line.contains(" a token from disk at "), "{line}");
    }
    // A token may take its time.
    let apart = second.1 - first.1;
    assert!(apart > Duration::from_millis(900), "{apart:?}");
}
