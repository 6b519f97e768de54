//! A disk that is full: what lies on it stays whole, a run goes on without it, and uses it again when there
//! is room.
#![cfg(target_os = "linux")]

mod common;
#[path = "hub/server.rs"]
mod server;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::gguf::{Data, ty};
use common::runs::fixture;
use common::say;
use common::tiny::tiny_model;
use serde_json::Value;
use tempfile::TempDir;

/// A file system in memory that only a process of its own has mounted, through which others see it.
struct SmallDisk {
    holder: Child,
    path: PathBuf,
    _dir: TempDir,
}

impl SmallDisk {
    /// One of so many bytes; none where the user may not mount anything, which is said.
    fn new(test: &str, bytes: u64) -> Option<SmallDisk> {
        const MOUNT: &str = r#"mount -t tmpfs -o "size=$1,mode=700" none "$0" && echo mounted && exec cat"#;
        let dir = TempDir::new().expect("a folder");
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--map-root-user", "--mount", "sh", "-c", MOUNT])
            .arg(dir.path())
            .arg(bytes.to_string());
        unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let skipped =
            || say(&format!("{test}: skipped: no file system can be mounted here (unshare, mount)"));
        let Ok(mut holder) = unshare.spawn() else {
            skipped();
            return None;
        };
        let mut line = String::new();
        let read = BufReader::new(holder.stdout.take().expect("a pipe")).read_line(&mut line);
        let inside = dir.path().strip_prefix("/").expect("a path from the root");
        let path = Path::new("/proc").join(holder.id().to_string()).join("root").join(inside);
        let disk = SmallDisk { holder, path, _dir: dir };
        if read.is_ok() && line == "mounted\n" && fs::read_dir(&disk.path).is_ok() {
            return Some(disk);
        }
        skipped();
        None
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Fills it, but for so many bytes.
    fn fill_but(&self, left: u64) {
        fill_but(&self.filler(), left);
    }

    /// Takes away what fills it.
    fn empty(&self) {
        fs::remove_file(self.filler()).expect("it was full");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Fills the disk that a file lies on, but for so many bytes.
fn fill_but(filler: &Path, left: u64) {
    let mut file = File::create(filler).expect("room for a file");
    let mut bytes = 0;
    loop {
        match file.write(&[1; 4096]) {
            Ok(n) => bytes += n as u64,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull);
                break;
            }
        }
    }
    file.set_len(bytes - left).expect("a shorter file");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The files of a folder by name.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry"));
    let file = |entry: fs::DirEntry| {
        (entry.file_name().into_string().expect("UTF-8"), fs::read(entry.path()).expect("a file"))
    };
    let mut files: Vec<_> = entries.map(file).collect();
    files.sort();
    files
}

#[test]
fn a_cache_stays_usable() {
    let Some(disk) = SmallDisk::new("a_cache_stays_usable", 8 << 20) else { return };
    let dir = TempDir::new().expect("a folder");
    let ids = dir.path().join("ids");
    let tokens: Vec<u8> = (0..300u32).flat_map(|i| (3 + i * 7919 % 90).to_le_bytes()).collect();
    fs::write(&ids, tokens).expect("a prompt");
    let run = |cache: &Path| {
        let model = fixture("dense-q8_0");
        let mut run = Command::new(env!("CARGO_BIN_EXE_wayinfer"));
        run.args([
            "generate",
            "-m",
            text(&model),
            "-c",
            "400",
            "-n",
            "12",
            "--seed",
            "5",
            "--json",
            "-t",
            "1",
        ]);
        run.args(["--ids-file", text(&ids), "--cache", text(cache)]).stdin(Stdio::null());
        let output = run.output().expect("it starts");
        assert!(output.status.success(), "{}", told(&output));
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (report["ids"].clone(), report["cached_tokens"].as_u64().expect("a count"), told(&output))
    };
    let elsewhere = dir.path().join("cache");
    let (truth, _, _) = run(&elsewhere);
    let whole: Vec<_> = files(&elsewhere).into_iter().filter(|(name, _)| name.ends_with(".page")).collect();
    assert!(whole.len() >= 2);
    let bytes: u64 = whole.iter().map(|(_, page)| page.len() as u64).sum();

    // From no room at all to room for all but the last page.
    let cache = disk.path.join("cache");
    let mut kept = Vec::new();
    for left in [0, bytes / 3, bytes / 3 * 2] {
        disk.fill_but(left);
        let (ids, _, told) = run(&cache);
        assert_eq!(ids, truth, "{left} bytes left");
        let warnings: Vec<_> = told.lines().filter(|line| line.starts_with("warning: ")).collect();
        assert!(!warnings.is_empty() && warnings.len() <= 2, "{told}");
        assert!(warnings.iter().all(|line| line.contains("No space left on device")), "{told}");
        if cache.exists() {
            let there = files(&cache);
            assert!(!there.iter().any(|(name, _)| name.starts_with('.')), "something unfinished is left");
            let pages: Vec<_> = there.into_iter().filter(|(name, _)| name.ends_with(".page")).collect();
            assert!(pages.iter().all(|page| whole.contains(page)), "a page that is not whole");
            kept.push(pages.len());
        }
        disk.empty();
    }
    assert!(kept.last().is_some_and(|&n| n > 0 && n < whole.len()), "{kept:?} of {}", whole.len());
    // With room the rest is written, and all is read.
    let (ids, _, told) = run(&cache);
    assert!(ids == truth && !told.contains("warning: "), "{told}");
    let (ids, cached, told) = run(&cache);
    assert!(ids == truth && cached == 256 && !told.contains("warning: "), "{told}");
}

/// A conversation that a test waits for.
struct Talk {
    child: Child,
    input: ChildStdin,
    told: BufReader<ChildStderr>,
    /// All that was told so far.
    lines: String,
}

impl Talk {
    fn new(data: &Path) -> Talk {
        let mut chat = Command::new(env!("CARGO_BIN_EXE_wayinfer"));
        chat.args(["chat", "--resume=talk", "--no-cache"]).env("XDG_DATA_HOME", data).env("HOME", data);
        chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = chat.spawn().expect("it starts");
        let (input, told) = (child.stdin.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
        Talk { child, input, told: BufReader::new(told), lines: String::new() }
    }

    /// Says something and waits until it has been answered and, if it can be, kept; what was told meanwhile.
    fn say(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}\n/stats").expect("it listens");
        let before = self.lines.len();
        loop {
            let from = self.lines.len();
            assert!(self.told.read_line(&mut self.lines).expect("UTF-8") > 0, "it has ended: {}", self.lines);
            if self.lines[from..].starts_with("prompt ") {
                return self.lines[before..].to_owned();
            }
        }
    }

    /// Ends it; its answers.
    fn end(mut self) -> String {
        drop(self.input);
        self.told.read_to_string(&mut self.lines).expect("UTF-8");
        let output = self.child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", self.lines);
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}

#[test]
fn a_conversation_is_not_lost() {
    let Some(disk) = SmallDisk::new("a_conversation_is_not_lost", 1 << 20) else { return };
    let chats = disk.path.join("wayinfer/chats");
    let mut talk = Talk::new(&disk.path);
    talk.say("What is 2+2?");
    talk.end();
    let first = files(&chats);
    let [(name, transcript)] = &first[..] else { panic!("one conversation") };
    assert_eq!(name, "talk.jsonl");
    let exchanges = |transcript: &[u8]| {
        let text = std::str::from_utf8(transcript).expect("UTF-8");
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        lines.len() / 2
    };
    assert_eq!(exchanges(transcript), 1);

    let mut talk = Talk::new(&disk.path);
    disk.fill_but(0);
    let told = talk.say("What is 3+4?");
    assert_eq!(told.matches("warning: the conversation is not kept").count(), 1, "{told}");
    assert!(told.contains("talk.jsonl: ") && told.contains("No space left on device"), "{told}");
    assert!(files(&chats) == first, "what was kept stays, and nothing beside it");
    // It is told once.
    let told = talk.say("What is 5+1?");
    assert!(!told.contains("warning: "), "{told}");
    assert!(files(&chats) == first);
    disk.empty();
    let told = talk.say("What is 9-4?");
    assert!(told.contains("the conversation is kept again"), "{told}");
    let answers = talk.end();
    assert_eq!(answers.lines().count(), 3, "{answers}");
    assert_eq!(exchanges(&files(&chats)[0].1), 4);
}

/// What is saved by hand: an error that names the file, and nothing is left.
#[test]
fn a_transcript_that_does_not_fit_is_an_error() {
    let Some(disk) = SmallDisk::new("a_transcript_that_does_not_fit_is_an_error", 1 << 20) else { return };
    disk.fill_but(0);
    let dir = TempDir::new().expect("a folder");
    let mut chat = Command::new(env!("CARGO_BIN_EXE_wayinfer"));
    chat.args(["chat", "--no-history"]).env("XDG_DATA_HOME", dir.path()).env("HOME", dir.path());
    chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = chat.spawn().expect("it starts");
    let file = disk.path.join("saved.jsonl");
    let lines = format!("What is 2+2?\n/save {}\n", file.display());
    child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("it listens");
    let output = child.wait_with_output().expect("it ends");
    let told = told(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let wanted = format!("error: {}: ", file.display());
    assert!(told.contains(&wanted) && told.contains("No space left on device"), "{told}");
    assert_eq!(fs::read_dir(&disk.path).expect("a folder").count(), 1, "the filler alone");
}

/// A fetch of a model: what has come stays, and the next one goes on from there.
#[test]
fn a_fetch_keeps_what_came_before_the_disk_was_full() {
    let Some(disk) = SmallDisk::new("a_fetch_keeps_what_came_before_the_disk_was_full", 16 << 20) else {
        return;
    };
    let bytes = tiny_model().tensor("rest.weight", ty::F32, &[1 << 18, 7], Data::Random(3)).build();
    let (filler, asked) = (disk.filler(), AtomicUsize::new(0));
    // It fills while the second part of the file comes.
    let server = server::Server::ruled(&[("m.gguf", bytes.clone())], move |request, _| {
        if request.is_cdn && asked.fetch_add(1, Ordering::SeqCst) == 1 {
            fill_but(&filler, 1 << 20);
        }
        None
    });
    let pull = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wayinfer"));
        command.args(["pull", "some/model", "--anyway"]).env("HF_HUB_CACHE", disk.path.join("hub"));
        command.env("HF_ENDPOINT", &server.hub).env_remove("HF_HUB_OFFLINE");
        ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy"].iter().for_each(
            |name| {
                command.env_remove(name);
            },
        );
        command.output().expect("the program starts")
    };
    let first = pull();
    assert_eq!(first.status.code(), Some(1), "{}", told(&first));
    assert!(told(&first).contains("hint: what has come stays"), "{}", told(&first));
    let blob = disk.path.join("hub/models--some--model/blobs").join(server::sha256(&bytes));
    let left = fs::metadata(blob.with_extension("incomplete")).expect("what has come").len() as usize;
    assert!((4 << 20..bytes.len()).contains(&left), "{left}");
    server.forget();
    disk.empty();
    let second = pull();
    assert!(second.status.success(), "{}", told(&second));
    assert_eq!(server.ranges(), [(left, bytes.len() - 1)]);
    assert!(fs::read(blob).expect("the blob") == bytes);
}

/// Answers of a batch: those that fit stay, whole, and the same command goes on from there.
#[test]
fn a_batch_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::new("a_batch_goes_on_when_there_is_room", 1 << 20) else { return };
    let dir = TempDir::new().expect("a folder");
    let (questions, answers) = (dir.path().join("in.jsonl"), disk.path.join("out.jsonl"));
    let line = |n: usize| {
        let body = format!(r#"{{"prompt": "Once {n}", "max_tokens": 9, "logprobs": 5}}"#);
        format!("{{\"custom_id\": \"{n}\", \"url\": \"/v1/completions\", \"body\": {body}}}\n")
    };
    fs::write(&questions, (0..40).map(line).collect::<String>()).expect("requests");
    let run = || {
        let mut batch = Command::new(env!("CARGO_BIN_EXE_wayinfer"));
        batch.args(["batch", text(&questions), text(&answers), "-m", "demo"]).stdin(Stdio::null());
        batch.output().expect("it starts")
    };
    disk.fill_but(12 << 10);
    let first = run();
    assert_eq!(first.status.code(), Some(1), "{}", told(&first));
    assert!(
        told(&first).contains("out.jsonl: cannot be written: No space left on device"),
        "{}",
        told(&first)
    );
    let kept = fs::read_to_string(&answers).expect("answers");
    let lines = kept.lines().count();
    assert!((1..40).contains(&lines) && kept.ends_with('\n'), "{lines}");
    disk.empty();
    let second = run();
    assert!(second.status.success(), "{}", told(&second));
    let all = fs::read_to_string(&answers).expect("answers");
    assert!(all.starts_with(&kept) && all.lines().count() == 40, "{}", told(&second));
    assert!(told(&second).contains(&format!("{lines} of them before")), "{}", told(&second));
}
