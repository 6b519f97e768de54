//! Streaming: a model under a budget smaller than itself gives the bits of the mapped run, whatever the
//! disk does, and what the disk cannot give is an error that names its place.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::runs::{Nodes, Run, SeenNode, assert_same_nodes, fixture, load, options};
use wayinfer::engine::{EngineError, EngineOptions};
use wayinfer::gguf::{Gguf, OpenedFile};
use wayinfer::model::{Logits, Model};
use wayinfer::store::{Guesses, OpenFile, Place, Plan, ReadAt, open_file};

/// Every format, dense and with experts, merged and one a tensor, odd sizes, a tied embedding, a split;
/// latents and indexers.
const FIXTURES: &[&str] = &[
    "dense-f32",
    "dense-bf16",
    "dense-q4_k_m",
    "moe-q4_k_m",
    "moe-per-expert-q4_k_m",
    "odd-q8_0",
    "moe-q4_k_m-00002-of-00003",
    "deepseek2",
    "deepseek32",
    "minimax-m3",
    "gemma4",
    "gemma4-moe",
    "gemma3n",
];

fn run_that(model: &Model, guesses: Guesses) -> Run<'_> {
    Run::new(model, &EngineOptions { guesses, ..options(64, 24) })
}

/// Budgets for weights: the least, the most that still streams, and one between.
fn budgets(model: &Model) -> [u64; 3] {
    let store = model.store();
    let least = store.plan_for(0).expect_err("no model runs in nothing").least;
    let total = store.plan_for(u64::MAX).expect("all the memory there is").total_bytes;
    assert!(least < total, "{least} of {total}");
    [least, least.midpoint(total), total - 1]
}

fn streamed(path: &Path, budget: impl Fn([u64; 3]) -> u64, open: OpenFile<'_>) -> Model {
    let mut model = load(path);
    let plan = model.store().plan_for(budget(budgets(&model))).expect("a plan");
    assert!(!plan.is_mapped());
    model.settle_reading(plan, open).expect("files that open");
    model
}

/// Every node of a prompt in two batches, of which the first ends early, and of three more tokens.
fn record(model: &Model) -> Result<Vec<SeenNode>, EngineError> {
    record_of(&mut run_that(model, Guesses::Off))
}

fn record_of(run: &mut Run<'_>) -> Result<Vec<SeenNode>, EngineError> {
    let vocab = run.engine.model().spec().vocab;
    let prompt: Vec<u32> = (0..37).map(|i| ((3 + 7919 * i) % vocab) as u32).collect();
    let mut nodes = Nodes::default();
    run.feed_observed(&prompt, Logits::Last, &mut nodes)?;
    for id in [1, 2, 3] {
        run.feed_observed(&[id], Logits::Last, &mut nodes)?;
    }
    Ok(nodes.0)
}

#[test]
fn every_budget_gives_the_bits_of_the_mapped_run() {
    for name in FIXTURES {
        let path = fixture(name);
        let truth = record(&load(&path)).expect("a mapped run");
        for which in 0..3 {
            let model = streamed(&path, |budgets| budgets[which], &open_file);
            let what = format!("{name}, budget {which}");
            assert_same_nodes(&truth, &record(&model).expect(&what), &what);
            assert!(model.store().stats().bytes_read > 0);
        }
    }
}

/// A pass of so many tokens that latent attention goes through it in stretches.
#[test]
fn stretches_of_a_pass_give_the_bits_of_the_mapped_run() {
    let logits = |model: &Model| {
        let mut run = Run::new(model, &options(160, 150));
        let vocab = model.spec().vocab;
        let prompt: Vec<u32> = (0..150).map(|i| ((3 + 7919 * i) % vocab) as u32).collect();
        run.feed(&prompt, Logits::All).expect("a pass");
        run.logits().iter().map(|logit| logit.to_bits()).collect::<Vec<_>>()
    };
    for name in ["deepseek2", "deepseek32"] {
        let path = fixture(name);
        let truth = logits(&load(&path));
        for which in 0..3 {
            let model = streamed(&path, |budgets| budgets[which], &open_file);
            assert!(truth == logits(&model), "{name}, budget {which}");
        }
    }
}

/// A part of a split model may lie on another disk, by a link: its reads are counted there, and the bits stay.
#[cfg(target_os = "linux")]
#[test]
fn parts_on_several_disks_give_the_bits_of_the_mapped_run() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let (here, there) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir_in("/dev/shm"));
    let device = |path: &Path| std::fs::metadata(path).expect("a folder").dev();
    let there = match there {
        Ok(there) if device(there.path()) != device(here.path()) => there,
        _ => return common::say("skipped: /dev/shm is no other file system"),
    };
    for part in 1..=3 {
        let name = format!("moe-q4_k_m-{part:05}-of-00003");
        let (path, linked) = (here.path().join(format!("{name}.gguf")), there.path().join(&name));
        if part == 2 {
            std::fs::copy(fixture(&name), &linked).expect("a copy");
            symlink(&linked, &path).expect("a link");
        } else {
            std::fs::copy(fixture(&name), &path).expect("a copy");
        }
    }
    let path = here.path().join("moe-q4_k_m-00001-of-00003.gguf");
    let truth = record(&load(&path)).expect("a mapped run");
    let model = streamed(&path, |budgets| budgets[0], &open_file);
    assert_same_nodes(&truth, &record(&model).expect("a run"), "two disks");
    let (store, stats) = (model.store(), model.store().stats());
    assert_eq!(stats.bytes_by_disk.len(), 2);
    assert!(stats.bytes_by_disk.iter().all(|&bytes| bytes > 0), "{stats:?}");
    assert_eq!(stats.bytes_by_disk.iter().sum::<u64>(), stats.bytes_read);
    let plan = store.plan().expect("a plan");
    let loads = store.disk_loads(plan);
    assert_eq!(loads.len(), 2);
    assert!(loads.iter().all(|load| load.bytes_per_token > 0.0));
    let all: f64 = loads.iter().map(|load| load.bytes_per_token).sum();
    assert!((all - plan.disk_bytes).abs() < 1.0, "{all} {}", plan.disk_bytes);
}

#[test]
fn guessed_experts_change_nothing() {
    for name in ["moe-q4_k_m", "moe-per-expert-q4_k_m", "demo-q4_k_m"] {
        let path = fixture(name);
        let truth = record(&load(&path)).expect("a mapped run");
        for which in 0..3 {
            let model = streamed(&path, |budgets| budgets[which], &open_file);
            let nodes = record_of(&mut run_that(&model, Guesses::On)).expect("a run");
            assert_same_nodes(&truth, &nodes, name);
            let stats = model.store().stats();
            assert!(stats.right_guesses <= stats.guesses);
            // The least budget has no room for guesses, and the most has nearly all in memory already.
            assert!(which != 1 || stats.guesses > 0, "{name}, budget {which}: nothing was guessed");
        }
    }
}

/// A disk with moods: what a read gives is decided by its number, which is not its place: reads run side by
/// side.
struct Moody<F> {
    file: Arc<dyn ReadAt>,
    reads: AtomicU64,
    mood: F,
}

impl<F> std::fmt::Debug for Moody<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Moody").field("file", &self.file).finish_non_exhaustive()
    }
}

impl<F> ReadAt for Moody<F>
where
    F: Fn(u64, &dyn ReadAt, &mut [u8], u64) -> std::io::Result<usize> + Send + Sync,
{
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        (self.mood)(self.reads.fetch_add(1, Ordering::Relaxed), &*self.file, buffer, offset)
    }
}

fn moody<F>(mood: F) -> impl Fn(&Arc<OpenedFile>) -> std::io::Result<Arc<dyn ReadAt>>
where
    F: Fn(u64, &dyn ReadAt, &mut [u8], u64) -> std::io::Result<usize> + Clone + Send + Sync + 'static,
{
    move |file| Ok(Arc::new(Moody { file: open_file(file)?, reads: AtomicU64::new(0), mood: mood.clone() }))
}

#[test]
fn slow_short_and_interrupted_reads_change_nothing() {
    for name in ["dense-q4_k_m", "moe-q4_k_m"] {
        let path = fixture(name);
        let truth = record(&load(&path)).expect("a mapped run");
        let model = streamed(
            &path,
            |budgets| budgets[0],
            &moody(|i, file, buffer, offset| {
                match i * 7 % 5 {
                    0 => std::thread::sleep(Duration::from_micros(i * 37 % 500)),
                    1 => return Err(std::io::ErrorKind::Interrupted.into()),
                    _ => {}
                }
                let blocks = 1 + (i as usize * 13 % 5);
                let len = buffer.len().min(4096 * blocks);
                file.read_at(&mut buffer[..len], offset)
            }),
        );
        assert_same_nodes(&truth, &record(&model).expect("a run"), name);
    }
}

/// The comparison above sees a single wrong bit, wherever the weight has its place.
#[test]
fn a_bit_that_the_disk_turns_is_seen() {
    let path = fixture("moe-q4_k_m");
    let gguf = Gguf::open(&path).expect("a fixture");
    let truth = record(&load(&path)).expect("a mapped run");
    for which in 0..3 {
        // The first weight of a row of Q8_0, behind its block's scale.
        let place = gguf.tensor("blk.1.attn_k.weight").expect("the keys' weights").offset + 2;
        let turned = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&turned);
        let open = moody(move |_, file, buffer, offset| {
            let read = file.read_at(buffer, offset)?;
            if (offset..offset + read as u64).contains(&place) {
                buffer[(place - offset) as usize] ^= 0x40;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(read)
        });
        let model = streamed(&path, |budgets| budgets[which], &open);
        let nodes = record(&model).expect("a run");
        assert!(turned.load(Ordering::Relaxed) > 0, "budget {which}: the weight was not read");
        assert!(nodes != truth, "budget {which}: the run is the same with a wrong bit in a weight");
    }
}

/// A disk of which reads of a tensor fail, as often as it is told to.
fn failing(
    path: &Path,
    tensor: &str,
    failures: &Arc<AtomicU64>,
) -> impl Fn(&Arc<OpenedFile>) -> std::io::Result<Arc<dyn ReadAt>> + use<> {
    let gguf = Gguf::open(path).expect("a fixture");
    let tensor = gguf.tensor(tensor).expect("a tensor of the fixture");
    let (start, end) = (tensor.offset, tensor.offset + tensor.bytes);
    let failures = Arc::clone(failures);
    moody(move |_, file, buffer, offset| {
        let touches = offset < end && offset + buffer.len() as u64 > start;
        let one_less = |n: u64| n.checked_sub(1);
        if touches && failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
            return Err(std::io::Error::from_raw_os_error(5));
        }
        file.read_at(buffer, offset)
    })
}

/// A weight that is read always, and one of experts.
const UNRELIABLE: &[(&str, &str)] = &[
    ("dense-q4_k_m", "blk.1.attn_k.weight"),
    ("moe-q4_k_m", "blk.1.attn_k.weight"),
    ("moe-q4_k_m", "blk.1.ffn_down_exps.weight"),
];

#[test]
fn a_disk_error_names_its_place_and_can_be_overcome() {
    for (name, tensor) in UNRELIABLE {
        let path = fixture(name);
        let truth = record(&load(&path)).expect("a mapped run");
        let failures = Arc::new(AtomicU64::new(u64::MAX));
        let model = streamed(&path, |budgets| budgets[0], &failing(&path, tensor, &failures));
        for _ in 0..2 {
            let error = record(&model).expect_err("the tensor cannot be read").to_string();
            assert!(error.contains(&format!("{name}.gguf: tensor ")), "{error}");
            assert!(
                error.contains(".weight cannot be read at byte ") && error.contains("os error 5"),
                "{error}"
            );
        }
        failures.store(0, Ordering::SeqCst);
        assert_same_nodes(&truth, &record(&model).expect("the disk is well again"), name);
    }
}

/// What is read before anybody waits for it may fail: it is read again when it is wanted.
#[test]
fn a_read_ahead_that_fails_is_tried_again() {
    for (name, tensor) in UNRELIABLE {
        let path = fixture(name);
        let truth = record(&load(&path)).expect("a mapped run");
        let failures = Arc::new(AtomicU64::new(1));
        // With room for nearly all, the first read of a weight is one ahead.
        let model = streamed(&path, |budgets| budgets[2], &failing(&path, tensor, &failures));
        assert_same_nodes(&truth, &record(&model).expect("a run"), name);
        assert_eq!(failures.load(Ordering::SeqCst), 0, "{tensor} was read");
    }
}

#[test]
fn a_reader_that_panics_ends_the_run() {
    for name in ["dense-q4_k_m", "moe-q4_k_m"] {
        let open = moody(|i, file, buffer, offset| {
            // Rows of the embedding are read by the run's own thread.
            let thread = std::thread::current();
            let is_reader = thread.name().is_some_and(|name| name.starts_with("disk "));
            assert!(i < 40 || !is_reader, "a deliberate panic");
            file.read_at(buffer, offset)
        });
        let model = streamed(&fixture(name), |budgets| budgets[0], &open);
        let error = record(&model).expect_err("a reader has panicked").to_string();
        let place = format!("{name}.gguf: tensor ");
        assert!(error.contains(&place) && error.ends_with("a thread that reads has panicked"), "{error}");
    }
}

#[test]
fn a_file_cut_short_or_removed_under_way() {
    for name in ["dense-q4_k_m", "moe-q4_k_m"] {
        for dir in [std::env::temp_dir(), "/dev/shm".into()].into_iter().filter(|dir| dir.is_dir()) {
            let dir = tempfile::tempdir_in(dir).expect("a folder");
            let path = dir.path().join("model.gguf");
            std::fs::copy(fixture(name), &path).expect("a copy");
            let truth = record(&load(&path)).expect("a mapped run");

            // A read-only file that gets another name is still there for those that have it open.
            let mut permissions = std::fs::metadata(&path).expect("metadata").permissions();
            permissions.set_readonly(true);
            std::fs::set_permissions(&path, permissions).expect("permissions");
            let model = streamed(&path, |budgets| budgets[0], &open_file);
            std::fs::rename(&path, dir.path().join("elsewhere")).expect("a new name");
            assert_same_nodes(&truth, &record(&model).expect("a run"), name);
            drop(model);

            std::fs::copy(fixture(name), &path).expect("a copy");
            let model = streamed(&path, |budgets| budgets[0], &open_file);
            record(&model).expect("a run");
            let file = std::fs::File::options().write(true).open(&path).expect("the file");
            let cut = file.set_len(file.metadata().expect("metadata").len() / 3);
            if cfg!(windows) {
                // No file is cut short there while it is mapped.
                assert!(cut.is_err());
                record(&model).expect("a run");
                continue;
            }
            cut.expect("a shorter file");
            let error = record(&model).expect_err("weights are gone").to_string();
            assert!(error.contains("model.gguf") && error.contains("cannot be read at byte"), "{error}");
            assert!(error.contains("cut short"), "{error}");
        }
    }
}

/// A copy of a model in a folder of its own, and one of the same size whose weights are others.
fn two_models() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let [path, other] = ["model.gguf", "other.gguf"].map(|name| dir.path().join(name));
    std::fs::copy(fixture("dense-q4_k_m"), &path).expect("a copy");
    let mut bytes = std::fs::read(&path).expect("the copy");
    let gguf = Gguf::open(&path).expect("a fixture");
    for tensor in gguf.tensors.iter().filter(|tensor| tensor.name.contains("attn_k.weight")) {
        bytes[tensor.offset as usize + 20..][..64].fill(0x5a);
    }
    std::fs::write(&other, bytes).expect("another file");
    (dir, path, other)
}

/// What is mapped and what streams is the file whose header was read, whatever takes its place at any time.
#[test]
fn a_file_replaced_under_way_is_the_one_that_was_opened() {
    for stream in [false, true] {
        for late in [false, true] {
            let (_dir, path, other) = two_models();
            let truth = record(&load(&path)).expect("a mapped run");
            let gguf = Gguf::open(&path).expect("a model");
            let replace = || {
                // Windows puts no file in the place of one that is open, but that may get another name.
                if cfg!(windows) {
                    std::fs::rename(&path, path.with_extension("old")).expect("another name");
                }
                std::fs::rename(&other, &path).expect("the other file in its place");
            };
            if !late {
                replace();
            }
            let mut model = Model::load(&gguf).expect("the model that was opened");
            let budget = if stream { budgets(&model)[0] } else { u64::MAX };
            let plan = model.store().plan_for(budget).expect("a plan");
            if late {
                replace();
            }
            model.settle(plan).expect("the file that was opened");
            let what = format!("streamed: {stream}, late: {late}");
            assert_same_nodes(&truth, &record(&model).expect(&what), &what);
            // The canary: the other file gives other values.
            assert!(truth != record(&load(&path)).expect("a run of the other"), "{what}");
        }
    }
}

/// A file that is written to is no file to go on with: when it is loaded, and at the next read or pass.
#[test]
fn a_file_rewritten_in_place_is_detected() {
    let rewrite = |path: &Path, other: &Path| {
        // The times of changes are told apart by some milliseconds.
        std::thread::sleep(Duration::from_millis(20));
        let bytes = std::fs::read(other).expect("the other file");
        let mut file = std::fs::File::options().write(true).open(path).expect("the file");
        std::io::Write::write_all(&mut file, &bytes).expect("bytes");
    };
    let (_dir, path, other) = two_models();
    let gguf = Gguf::open(&path).expect("a model");
    rewrite(&path, &other);
    let error = Model::load(&gguf).expect_err("it has been written to").to_string();
    assert!(error.ends_with("model.gguf: has been written to since its header was read"), "{error}");

    for stream in [false, true] {
        let (_dir, path, other) = two_models();
        let mut model = load(&path);
        let budget = if stream { budgets(&model)[0] } else { u64::MAX };
        let plan = model.store().plan_for(budget).expect("a plan");
        model.settle(plan).expect("the file");
        let mut run = run_that(&model, Guesses::Off);
        run.feed(&[1, 2, 3], Logits::Last).expect("a pass before");
        rewrite(&path, &other);
        // Some of what streams may have been read ahead.
        let failed = (0..3).find_map(|_| run.feed(&[4], Logits::Last).err());
        let error = failed.expect("it has been written to").to_string();
        assert!(error.contains("model.gguf: "), "{error}");
        assert!(error.contains("has been written to since its header was read"), "{error}");
        assert!(!stream || error.contains("tensor ") && error.contains("at byte "), "{error}");
    }
}

/// Reads of which each waits for one on the other disk.
#[derive(Debug)]
struct Disks {
    file: Arc<dyn ReadAt>,
    disk: u64,
    under_way: Arc<(Mutex<[usize; 2]>, Condvar)>,
    met: Arc<AtomicU64>,
}

impl ReadAt for Disks {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let (count, changed) = &*self.under_way;
        let mut counts = count.lock().unwrap();
        counts[self.disk as usize] += 1;
        changed.notify_all();
        let other = 1 - self.disk as usize;
        let wait = Duration::from_millis(20);
        let (mut counts, _) = changed.wait_timeout_while(counts, wait, |counts| counts[other] == 0).unwrap();
        if counts[other] > 0 {
            self.met.fetch_add(1, Ordering::Relaxed);
        }
        counts[self.disk as usize] -= 1;
        drop(counts);
        self.file.read_at(buffer, offset)
    }

    fn disk(&self) -> u64 {
        self.disk
    }
}

#[test]
fn disks_are_read_side_by_side() {
    let path = fixture("moe-q4_k_m-00001-of-00003");
    let truth = record(&load(&path)).expect("a mapped run");
    let (under_way, met) = (Arc::default(), Arc::new(AtomicU64::new(0)));
    let model = streamed(&path, |budgets| budgets[2], &|file: &Arc<OpenedFile>| {
        let disk = u64::from(file.path().to_string_lossy().contains("00002-of"));
        let (under_way, met) = (Arc::clone(&under_way), Arc::clone(&met));
        Ok(Arc::new(Disks { file: open_file(file)?, disk, under_way, met }) as Arc<dyn ReadAt>)
    });
    assert_same_nodes(&truth, &record(&model).expect("a run"), "two disks");
    assert!(met.load(Ordering::Relaxed) > 0, "no two disks were read at the same time");
}

/// Reads of a disk that take a while, and how many of them there are at a time.
#[derive(Debug)]
struct Counting {
    file: Arc<dyn ReadAt>,
    under_way: AtomicU64,
    most: Arc<AtomicU64>,
}

impl ReadAt for Counting {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.most.fetch_max(self.under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(5));
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        self.file.read_at(buffer, offset)
    }
}

#[test]
fn several_reads_are_under_way_on_a_disk() {
    let most = Arc::new(AtomicU64::new(0));
    let model = streamed(&fixture("dense-q4_k_m"), |budgets| budgets[1], &|file: &Arc<OpenedFile>| {
        let (under_way, most) = (AtomicU64::new(0), Arc::clone(&most));
        Ok(Arc::new(Counting { file: open_file(file)?, under_way, most }) as Arc<dyn ReadAt>)
    });
    record(&model).expect("a run");
    assert!(most.load(Ordering::SeqCst) > 2, "{most:?} at a time");
}

#[test]
fn engines_share_a_streamed_model() {
    for name in ["dense-q4_k_m", "moe-q4_k_m"] {
        let path = fixture(name);
        let truth = record(&load(&path)).expect("a mapped run");
        for which in [0, 1] {
            let model = streamed(&path, |budgets| budgets[which], &open_file);
            std::thread::scope(|scope| {
                let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| record(&model).expect("a run"))).collect();
                runs.into_iter()
                    .for_each(|run| assert_same_nodes(&truth, &run.join().expect("no panic"), name));
            });
        }
    }
}

/// Bytes that one more token reads, once the run is in its stride.
fn bytes_of_a_token(model: &Model, tokens: u32) -> f64 {
    let mut run = run_that(model, Guesses::Off);
    run.feed(&[1, 2, 3], Logits::Last).expect("a prompt");
    let before = model.store().stats().bytes_read;
    for id in 0..tokens {
        run.feed(&[id], Logits::Last).expect("a step");
    }
    (model.store().stats().bytes_read - before) as f64 / f64::from(tokens)
}

#[test]
fn a_stream_reads_what_its_plan_counts() {
    // The embedding of the last is its output matrix too.
    for name in ["dense-f32", "dense-q4_k_m", "deepseek2-lite", "odd-q8_0"] {
        for which in 0..3 {
            let model = streamed(&fixture(name), |budgets| budgets[which], &open_file);
            let plan: Plan = model.store().plan().expect("a plan").clone();
            let streams = plan.places.iter().filter(|place| **place == Place::Streamed).count();
            // Whole blocks: the weights' own and the embedding's row.
            let blocks = 2 * 4096 * (streams + 1);
            let ahead = plan.ring_bytes as f64 / 40.0;
            let (read, counted) = (bytes_of_a_token(&model, 40), plan.disk_bytes);
            // How much of the ring has been read ahead at the beginning and at the end depends on the disk.
            let (least, most) = (counted - ahead, counted + blocks as f64 + ahead);
            assert!(read >= least && read <= most, "{name}: {read} of {counted}");
        }
    }
}

/// Weights that were streamed and are mapped then: a file that is cut short is noticed as ever.
#[cfg(unix)]
#[test]
fn a_model_can_be_settled_anew() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.gguf");
    std::fs::copy(fixture("dense-q8_0"), &path).expect("a copy");
    let mut model = streamed(&path, |budgets| budgets[0], &open_file);
    let truth = record(&model).expect("a streamed run");
    let plan = model.store().plan_for(u64::MAX).expect("a plan");
    model.settle(plan).expect("it is mapped");
    assert_eq!(model.store().reads_directly(), None);
    assert_same_nodes(&truth, &record(&model).expect("a mapped run"), "mapped");
    let file = std::fs::File::options().write(true).open(&path).expect("the file");
    file.set_len(file.metadata().expect("metadata").len() / 3).expect("a shorter file");
    assert!(record(&model).is_err(), "zeros were taken for weights");
}

/// A prompt goes through layer by layer: each weight is read once for all of its tokens.
#[test]
fn a_prompt_reads_each_weight_once() {
    for name in ["dense-q4_k_m", "moe-q4_k_m", "deepseek2-lite"] {
        let model = streamed(&fixture(name), |budgets| budgets[0], &open_file);
        let plan: Plan = model.store().plan().expect("a plan").clone();
        let vocab = model.spec().vocab;
        let prompt: Vec<u32> = (0..60).map(|i| ((3 + 7919 * i) % vocab) as u32).collect();
        let read = |batch: usize| {
            let mut run = Run::new(&model, &options(128, batch));
            run.feed(&[1, 2, 3], Logits::Last).expect("a prompt before");
            let before = model.store().stats().bytes_read;
            run.feed(&prompt, Logits::Last).expect("a prompt");
            model.store().stats().bytes_read - before
        };
        // Whole blocks of the disk, a row of the embedding for each token, and what is read ahead.
        let blocks = 2 * 4096 * (plan.places.len() + prompt.len()) as u64;
        let (at_once, one_by_one) = (read(64), read(1));
        let most = plan.total_bytes + plan.ring_bytes + blocks;
        assert!(at_once <= most, "{name}: {at_once} bytes, where {most} are all");
        // The canary: token by token much is read again and again.
        assert!(one_by_one > 4 * at_once, "{name}: {one_by_one}, at once {at_once}");
    }
}

#[test]
fn a_cache_is_emptied_and_fills_again() {
    let model = streamed(&fixture("moe-q4_k_m"), |budgets| budgets[1], &open_file);
    let store = model.store();
    bytes_of_a_token(&model, 20);
    let stats = store.stats();
    assert!(stats.hits > 0 && stats.misses > 0);
    store.empty_cache();
    assert_eq!(store.stats().hits + store.stats().bytes_read, 0);
    run_that(&model, Guesses::Off).feed(&[1], Logits::Last).expect("a pass");
    assert_eq!(store.stats().hits, 0, "nothing was left in the cache");
}

#[test]
fn the_program_streams_and_says_so() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    for (model, prompt) in [("demo-q4_k_m.gguf", "What is 2+2?"), ("moe-q4_k_m.gguf", "Some words")] {
        let ram = least_ram(&fixtures, &["generate", "-m", model, "-p", "x", "-c", "64"]);
        let run = |ram: &[&str]| {
            let args = ["generate", "-m", model, "-p", prompt, "-n", "12", "--greedy", "-c", "64", "--json"];
            let args = [&args[..], &["--speculate", "off"]].concat();
            let output = common::wayinfer(&fixtures, 80, &[&args[..], ram].concat());
            let stderr = String::from_utf8(output.stderr).expect("UTF-8");
            assert_eq!(output.status.code(), Some(0), "{stderr}");
            (serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON"), stderr)
        };
        let (mapped, _) = run(&[]);
        let (streamed, stderr) = run(&["--ram", &ram]);
        assert_eq!(mapped["ids"], streamed["ids"]);
        assert_eq!(mapped["residency"]["plan"]["mode"], "mapped");
        let residency = &streamed["residency"];
        assert_eq!(residency["plan"]["mode"], "streamed", "{ram}");
        let decode = &residency["decode"];
        assert!(decode["bytes_read"].as_u64() > Some(0) && decode["wait_s"].is_number(), "{residency}");
        // Gate, up and down of an expert count as one.
        let count = |key: &str| decode[key].as_u64().expect("a number");
        let layers = load(&fixtures.join(model)).spec().layers.len() as u64;
        assert_eq!(count("hits") + count("misses"), 2 * layers * count("tokens"), "{residency}");
        assert!(stderr.contains("a token from disk"), "{stderr}");

        let args =
            ["bench", "-m", model, "-p", "60", "-n", "4", "-r", "1", "--no-warmup", "--json", "--ram", &ram];
        let bench = common::wayinfer(&fixtures, 80, &args);
        assert_eq!(bench.status.code(), Some(0), "{}", String::from_utf8_lossy(&bench.stderr));
        let bench: serde_json::Value = serde_json::from_slice(&bench.stdout).expect("JSON");
        // What a program has for itself differs there from run to run by more than these models have.
        let is_vague = cfg!(windows);
        assert!(is_vague || bench["residency"]["decode"]["bytes_read"].as_u64() > Some(0));
    }
    let model = ["trace", "-m", "moe-q4_k_m.gguf"];
    let golden = ["--golden", "../golden/moe-q4_k_m/short.safetensors", "--isolate"];
    let trace = [&model[..], &golden].concat();
    let ram = least_ram(&fixtures, &trace);
    let output = common::wayinfer(&fixtures, 80, &[&trace[..], &["--ram", &ram]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", common::transcript(&output));
}

/// The least that `--ram` may say, and a little more.
fn least_ram(dir: &Path, args: &[&str]) -> String {
    format!("{}K", ((common::least_ram(dir, args) + 0.2) * 1024.0) as u64)
}

#[test]
fn a_plan_can_be_looked_at() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let run = |args: &[&str]| {
        let output =
            common::wayinfer(&fixtures, 80, &[&["inspect", "moe-q4_k_m.gguf", "--plan"], args].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let text = run(&["--ram", "4G"]);
    assert!(text.contains("4.0 GiB") && text.contains("mapped") && text.contains("tok/s"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&run(&["--ram", "4G", "-c", "100", "--json"])).expect("JSON");
    assert_eq!((json["mode"].as_str(), json["context"].as_u64()), (Some("mapped"), Some(100)));
    assert!(json["expected_tok_s"].as_f64() > Some(0.0), "{json}");
}

/// `inspect --plan` and the run that it is for: the tokenizer of a large vocabulary takes its part of both.
#[test]
fn a_plan_counts_what_a_run_takes() {
    const TOKENS: usize = 150_000;
    let dir = tempfile::tempdir().expect("a folder");
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a"].map(str::to_owned).into();
    tokens.extend((tokens.len()..TOKENS).map(|i| format!("a rather long word {i}")));
    let embedding: Vec<f32> = (0..32 * TOKENS).map(|i| (i * 7919 % 101) as f32 / 100.0 - 0.5).collect();
    let model = common::tiny::tiny_model()
        .set("tokenizer.ggml.tokens", tokens.iter().map(String::as_str).collect::<Vec<_>>())
        .set("tokenizer.ggml.scores", vec![0f32; TOKENS])
        .set("tokenizer.ggml.token_type", vec![1i32; TOKENS])
        .without_tensor("output.weight")
        .replace("token_embd.weight", common::gguf::ty::F32, &[32, TOKENS as u64], embedding);
    model.write(&dir.path().join("m.gguf"));
    let run = |args: &[&str]| {
        let args = [args, &["-m", "m.gguf", "--ram", "400M", "-c", "64", "--json"]].concat();
        let output = common::wayinfer(dir.path(), 80, &args);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    let bytes = |value: &serde_json::Value| value["weights_budget_bytes"].as_u64().expect("a number");
    let planned = bytes(&run(&["inspect", "--plan"]));
    let run = bytes(&run(&["generate", "-p", "a", "-n", "1"])["residency"]["plan"]);
    // What the program itself takes is counted in steps of 4 MiB.
    assert!(planned.abs_diff(run) <= 8 << 20, "{planned} planned, {run} in the run");
}
