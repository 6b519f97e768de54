//! Budgets in a control group: by default a run takes no more than its group leaves it, page cache counted.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use common::gguf::{Data, GgufBuilder, ty};
use common::{say, transcript};
use serde_json::Value;

/// What the group's processes may have together.
const LIMIT: u64 = 128 << 20;

/// The files of a version of control groups.
struct Version {
    limit: &'static str,
    peak: &'static str,
    /// What keeps memory from being swapped out, where the system has it.
    swap: (&'static str, u64),
}

const V1: Version = Version {
    limit: "memory.limit_in_bytes",
    peak: "memory.max_usage_in_bytes",
    swap: ("memory.memsw.limit_in_bytes", LIMIT),
};
const V2: Version = Version { limit: "memory.max", peak: "memory.peak", swap: ("memory.swap.max", 0) };

/// A control group of this test's own, which ends with this.
struct Group {
    version: &'static Version,
    folder: PathBuf,
}

impl Group {
    /// Makes one, where the machine's memory is limited by groups and this process may make one.
    fn make(name: &str) -> Result<Group, String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
        let mounted = |is_it: &dyn Fn(&str) -> bool| {
            let line =
                mounts.lines().find(|line| line.split_once(" - ").is_some_and(|(_, what)| is_it(what)));
            line.and_then(|line| line.split(' ').nth(4)).map(PathBuf::from)
        };
        let v1 = mounted(&|what| {
            what.starts_with("cgroup ") && what.split([' ', ',']).any(|option| option == "memory")
        });
        let (version, top) = match (v1, mounted(&|what| what.starts_with("cgroup2 "))) {
            (Some(top), _) => (&V1, top),
            (None, Some(top)) => (&V2, top),
            (None, None) => return Err("no control groups are mounted".to_owned()),
        };
        let failed = |what: &Path, error: std::io::Error| format!("{}: {error}", what.display());
        if std::ptr::eq(version, &V2) {
            let control = top.join("cgroup.subtree_control");
            fs::write(&control, "+memory").map_err(|error| failed(&control, error))?;
        }
        let folder = top.join(format!("wayinfer-test-{name}-{}", std::process::id()));
        fs::create_dir(&folder).map_err(|error| failed(&folder, error))?;
        let group = Group { version, folder };
        for (file, value) in [(version.limit, LIMIT), version.swap] {
            let path = group.folder.join(file);
            if path.exists() {
                fs::write(&path, value.to_string()).map_err(|error| failed(&path, error))?;
            }
        }
        Ok(group)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.join(file)).unwrap_or_default()
    }

    /// The most bytes that its processes had at a time, page cache and all; kernels before 5.19 do not count
    /// them in version 2.
    fn peak(&self) -> Option<u64> {
        self.read(self.version.peak).trim().parse().ok()
    }

    /// Whether the limit was reached. The counters of version 1 depend on which of two limits stops a process,
    /// of memory or of memory and what is swapped out.
    fn was_full(&self) -> bool {
        let events = self.read("memory.events");
        match (self.peak(), events.lines().find_map(|line| line.strip_prefix("max "))) {
            (Some(peak), _) => peak > LIMIT - LIMIT / 64,
            (None, Some(times)) => times != "0",
            (None, None) => panic!("{} counts nothing", self.folder.display()),
        }
    }

    /// The program in the group: a shell joins it and becomes the program.
    fn run(&self, args: &[&str]) -> Output {
        Command::new("/bin/sh")
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.folder.join("cgroup.procs"))
            .arg(env!("CARGO_BIN_EXE_wayinfer"))
            .args(args)
            .env_remove("RUST_BACKTRACE")
            .output()
            .expect("a shell")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What has just ended may be counted for a moment.
        for _ in 0..100 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        say(&format!("{} is left behind", self.folder.display()));
    }
}

/// A dense model of F32, larger than the limit: layers of 4 MiB.
fn model(layers: usize) -> GgufBuilder {
    const EMBD: u64 = 256;
    const FF: u64 = 1024;
    let mut names: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    names.extend((names.len()..32).map(|i| format!("word{i}")));
    let types: Vec<i32> = [2, 3, 3].into_iter().chain([1; 29]).collect();
    let values = |seed: u64, n: u64| -> Data {
        let value = |i: u64| ((i * 7 + seed * 13) % 251) as f32 / 2510.0 - 0.05;
        (0..n).map(value).collect::<Vec<f32>>().into()
    };
    let ones = || Data::from(vec![1f32; EMBD as usize]);
    let model = GgufBuilder::new()
        .kv("general.architecture", "llama")
        .kv("tokenizer.ggml.model", "llama")
        .kv("tokenizer.ggml.tokens", names.iter().map(String::as_str).collect::<Vec<_>>())
        .kv("tokenizer.ggml.scores", vec![0f32; 32])
        .kv("tokenizer.ggml.token_type", types)
        .kv("tokenizer.ggml.bos_token_id", 1u32)
        .kv("tokenizer.ggml.eos_token_id", 2u32)
        .kv("llama.block_count", layers as u32)
        .kv("llama.context_length", 64u32)
        .kv("llama.embedding_length", EMBD as u32)
        .kv("llama.feed_forward_length", FF as u32)
        .kv("llama.attention.head_count", 4u32)
        .kv("llama.attention.head_count_kv", 4u32)
        .kv("llama.attention.layer_norm_rms_epsilon", 1e-5f32)
        .tensor("token_embd.weight", ty::F32, &[EMBD, 32], values(1, EMBD * 32))
        .tensor("output_norm.weight", ty::F32, &[EMBD], ones())
        .tensor("output.weight", ty::F32, &[EMBD, 32], values(2, EMBD * 32));
    (0..layers).fold(model, |model, il| {
        let name = |part: &str| format!("blk.{il}.{part}.weight");
        let matrix = |model: GgufBuilder, part: &str, cols: u64, rows: u64| {
            let seed = (il * 8 + part.len()) as u64;
            model.tensor(name(part), ty::F32, &[cols, rows], values(seed, cols * rows))
        };
        let parts = [
            ("attn_q", EMBD, EMBD),
            ("attn_k", EMBD, EMBD),
            ("attn_v", EMBD, EMBD),
            ("attn_output", EMBD, EMBD),
            ("ffn_gate", EMBD, FF),
            ("ffn_up", EMBD, FF),
            ("ffn_down", FF, EMBD),
        ];
        let model = model.tensor(name("attn_norm"), ty::F32, &[EMBD], ones()).tensor(
            name("ffn_norm"),
            ty::F32,
            &[EMBD],
            ones(),
        );
        parts.into_iter().fold(model, |model, (part, cols, rows)| matrix(model, part, cols, rows))
    })
}

/// Takes a file out of the page cache, so that whoever reads it next has it counted.
fn drop_from_cache(path: &Path) {
    let file = fs::File::open(path).expect("the file");
    file.sync_all().expect("written");
    // SAFETY: advice on an open descriptor, which touches no memory of ours.
    let refused = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(refused, 0);
}

#[test]
fn a_run_keeps_to_what_its_group_leaves() {
    let group = |name| match Group::make(name) {
        Ok(group) => Some(group),
        Err(why) => {
            say(&format!("skipped: no control group can be made for a run with a limit of memory: {why}"));
            None
        }
    };
    let Some(limited) = group("default") else { return };
    // On a disk: a file in memory would be counted all the time.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let path = model(48).write(&dir.path().join("model.gguf"));
    let size = fs::metadata(&path).expect("the model").len();
    assert!(size > LIMIT + LIMIT / 4, "{size}");
    let ids = dir.path().join("ids");
    fs::write(&ids, [3u32, 4, 5].map(u32::to_le_bytes).concat()).expect("a prompt");
    let [model, ids] = [&path, &ids].map(|path| path.to_str().expect("UTF-8"));
    let args = ["generate", "-m", model, "--ids-file", ids, "-n", "3", "--greedy", "--ignore-eos", "-t", "2"];
    let args = [&args[..], &["--json"]].concat();
    let report = |output: &Output| -> Value {
        assert!(output.status.success(), "{:?}: {}", output.status.signal(), transcript(output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };

    // The program's own pages are not the group's, which would be those that read them first.
    fs::read(env!("CARGO_BIN_EXE_wayinfer")).expect("the program");
    // What a run does by itself.
    drop_from_cache(&path);
    let streamed = report(&limited.run(&args));
    let plan = &streamed["residency"]["plan"];
    assert_eq!(plan["mode"], "streamed", "{plan}");
    let own = ["pinned_bytes", "ring_bytes", "cache_bytes"].map(|part| plan[part].as_u64().expect("bytes"));
    assert!(own.iter().sum::<u64>() < LIMIT, "{plan}");
    assert!(plan["weights_budget_bytes"].as_u64() < Some(LIMIT), "{plan}");
    let peak = limited.peak();
    assert!(!limited.was_full(), "{peak:?} of {LIMIT}");
    say(&format!("a default budget: {peak:?} of {LIMIT} bytes at the most, for a model of {size}"));

    let decode = &streamed["residency"]["decode"];
    assert!(decode["wait_s"].is_number(), "{decode}");
    for key in ["bytes_read", "bound_tok_s", "fraction_of_bound"] {
        assert!(decode[key].as_f64() > Some(0.0), "{key}: {decode}");
    }
    let shown = limited.run(&["inspect", "--plan", model]);
    let text = String::from_utf8_lossy(&shown.stdout);
    for words in ["a token from disk", "/s measured", "expected ", "tok/s, bound by the "] {
        assert!(shown.status.success() && text.contains(words), "{words}: {}", transcript(&shown));
    }

    // The tokens are those of a run without a limit, which maps the model.
    let mapped = Command::new(env!("CARGO_BIN_EXE_wayinfer")).args(&args).output().expect("the program");
    let mapped = report(&mapped);
    if mapped["residency"]["plan"]["mode"] == "mapped" {
        assert_eq!(mapped["ids"], streamed["ids"]);
    } else {
        say("skipped: this machine has no memory to map 200 MB for comparison");
    }

    // Canaries. A run that is told of more maps the model, and its pages are counted up to the limit.
    let Some(mapping) = group("mapping") else { return };
    drop_from_cache(&path);
    report(&mapping.run(&[&args[..], &["--ram", "1G"]].concat()));
    assert!(mapping.was_full(), "{:?} of {LIMIT}", mapping.peak());
    // One that takes the memory for itself is killed.
    let Some(greedy) = group("greedy") else { return };
    let ram = format!("{}K", (size + (16 << 20)) >> 10);
    let killed = greedy.run(&[&args[..], &["--ram", &ram]].concat());
    assert_eq!(killed.status.signal(), Some(libc::SIGKILL), "{}", transcript(&killed));
}
