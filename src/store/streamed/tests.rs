//! Readers on a disk that fails or is slow, or whose driver panics.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::super::plan::{Role, WeightUse, plan};
use super::*;

const BLOCK: u64 = ALIGNMENT as u64;

/// A file whose bytes are the numbers of their blocks; its next reads fail, panic or take their time.
#[derive(Debug, Default)]
struct Faulty {
    failures: AtomicUsize,
    panics: AtomicUsize,
    slow: AtomicBool,
    stuck: AtomicBool,
    reads: AtomicUsize,
}

fn take_one(count: &AtomicUsize) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

impl ReadAt for Faulty {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        assert!(!take_one(&self.panics), "a deliberate panic");
        while self.stuck.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.slow.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if take_one(&self.failures) {
            return Err(io::Error::from_raw_os_error(5));
        }
        for (i, block) in buffer.chunks_mut(ALIGNMENT).enumerate() {
            block.fill((offset / BLOCK) as u8 + i as u8);
        }
        Ok(buffer.len())
    }
}

/// A block that is read always, and four experts of a layer with gate, up and down of a block each; two
/// slots.
fn streamed(file: &Arc<Faulty>) -> Streamed {
    let expert = |expert| Role::Expert { layer: 0, expert, count: 4, used: 1 };
    let roles: Vec<Role> =
        [Role::Always].into_iter().chain((0..3).flat_map(|_| (0..4).map(expert))).collect();
    let uses: Vec<WeightUse> =
        roles.iter().map(|&role| WeightUse { role, bytes: BLOCK, span: BLOCK, device_bytes: None }).collect();
    let plan = plan(&uses, &vec![false; uses.len()], 7 * BLOCK, None).unwrap();
    let weight = |i: u64| Weight {
        part: 0,
        disk: 0,
        bytes: i * BLOCK..(i + 1) * BLOCK,
        position: i,
        layer: 0,
        share: 0.25,
    };
    let file = StreamedFile { file: Arc::clone(file) as Arc<dyn ReadAt>, disk: 0 };
    Streamed::start((0..uses.len() as u64).map(weight).collect(), vec![Some(file)], &plan).unwrap()
}

/// Each disk has its own queue and its own readers: where one gives nothing, the other goes on.
#[test]
fn a_disk_that_is_stuck_does_not_hold_up_another() {
    // So many blocks that are read always on the first disk that all its readers are busy, then one on the
    // other, and experts that do not all fit.
    let first = 2 * READS_A_DISK;
    let expert = |expert| Role::Expert { layer: 0, expert, count: 4, used: 1 };
    let roles: Vec<Role> = std::iter::repeat_n(Role::Always, first + 1).chain((0..4).map(expert)).collect();
    let uses: Vec<WeightUse> =
        roles.iter().map(|&role| WeightUse { role, bytes: BLOCK, span: BLOCK, device_bytes: None }).collect();
    let plan = plan(&uses, &vec![false; uses.len()], (first as u64 + 3) * BLOCK, None).unwrap();
    for disks in [2, 1] {
        let files = [0, 1].map(|part| (Arc::new(Faulty::default()), part % disks));
        files[0].0.stuck.store(true, Ordering::SeqCst);
        let weight = |i: usize| {
            let (part, at) = (usize::from(i >= first), i as u64 * BLOCK);
            let disk = files[part].1;
            Weight { part, disk, bytes: at..at + BLOCK, position: i as u64, layer: 0, share: 0.25 }
        };
        let streamed_files = files.iter().map(|(file, disk)| {
            Some(StreamedFile { file: Arc::clone(file) as Arc<dyn ReadAt>, disk: *disk })
        });
        let weights = (0..uses.len()).map(weight).collect();
        let streamed = Streamed::start(weights, streamed_files.collect(), &plan).unwrap();
        if disks == 2 {
            assert_reads(&streamed, first);
            assert!((0..first).all(|id| !streamed.is_resident(id)));
        } else {
            // The canary: behind the same disk's readers it does not come.
            std::thread::sleep(Duration::from_millis(50));
            assert!(!streamed.is_resident(first));
        }
        files[0].0.stuck.store(false, Ordering::SeqCst);
        (0..=first).for_each(|id| assert_reads(&streamed, id));
        let stats = streamed.stats();
        let bytes = [first as u64 * BLOCK, BLOCK];
        match disks {
            2 => assert_eq!(stats.bytes_by_disk, bytes),
            _ => assert_eq!(stats.bytes_by_disk, [bytes[0] + bytes[1]]),
        }
        assert_eq!(stats.bytes_read, bytes[0] + bytes[1]);
    }
}

/// Gate, up and down of an expert.
fn parts(expert: usize) -> [usize; 3] {
    [1, 5, 9].map(|part| part + expert)
}

/// Waits until so many reads have been done, and what they brought has been noted.
fn wait_for_reads(file: &Faulty, streamed: &Streamed, reads: usize) {
    while file.reads.load(Ordering::SeqCst) < reads || !streamed.shared.lock().is_cache_idle() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn assert_reads(streamed: &Streamed, id: usize) {
    let held = streamed.hold_some(&[id]).unwrap();
    assert!(held[0].1.iter().all(|&byte| byte == id as u8));
}

#[test]
fn reads_ahead_and_guesses_that_fail_are_tried_again() {
    for guess in [false, true] {
        let file = Arc::new(Faulty::default());
        let streamed = streamed(&file);
        assert_reads(&streamed, 0);
        streamed.begin_pass();
        file.failures.store(3, Ordering::SeqCst);
        if guess {
            streamed.may_need(&parts(2), Guesses::On);
        } else {
            streamed.will_need(&parts(2));
        }
        wait_for_reads(&file, &streamed, 4);
        assert!(parts(2).iter().all(|&id| !streamed.is_resident(id)));
        // It is wanted, and fails once more: that is the run's error.
        file.failures.store(3, Ordering::SeqCst);
        let Err(Failure::Read(fault)) = streamed.hold_some(&parts(2)) else { panic!("three reads fail") };
        assert_eq!(fault.offset, fault.weight as u64 * BLOCK);
        assert!(parts(2).contains(&fault.weight) && fault.error.raw_os_error() == Some(5));
        wait_for_reads(&file, &streamed, 7);
        parts(2).into_iter().for_each(|id| assert_reads(&streamed, id));
        assert_eq!(file.failures.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn a_reader_that_panics_ends_the_run_and_not_in_a_hang() {
    let file = Arc::new(Faulty::default());
    let streamed = streamed(&file);
    assert_reads(&streamed, 0);
    streamed.begin_pass();
    file.panics.store(1, Ordering::SeqCst);
    let failure = loop {
        // Parts that were read before the panic can be had before it as well.
        if let Err(failure) = streamed.hold_some(&parts(1)) {
            break failure;
        }
    };
    assert!(matches!(failure, Failure::Panicked));
    assert!(matches!(streamed.hold_some(&[0]), Err(Failure::Panicked)), "and so does all that follows");
    // Neither this nor the end waits for the reader.
    streamed.empty_cache();
    drop(streamed);
}

/// Threads that were put to sleep by a wait are woken after it: what a pass asks for is done after each wait,
/// and not where there was none.
#[test]
fn after_each_wait_for_the_disk_something_is_done() {
    let file = Arc::new(Faulty::default());
    let streamed = streamed(&file);
    assert_reads(&streamed, 0);
    let waits = Rc::new(Cell::new(0));
    let count = Rc::clone(&waits);
    after_wait(
        move || count.set(count.get() + 1),
        || {
            assert_reads(&streamed, 0);
            assert_eq!(waits.get(), 0, "it was there");
            streamed.begin_pass();
            file.slow.store(true, Ordering::SeqCst);
            assert_reads(&streamed, parts(1)[0]);
            assert_eq!(waits.get(), 1);
            streamed.read(0, (100, 200), &mut AlignedBuffer::default()).unwrap();
            assert_eq!(waits.get(), 2, "a part is waited for as well");
            file.failures.store(1, Ordering::SeqCst);
            streamed.read(0, (100, 200), &mut AlignedBuffer::default()).unwrap_err();
            assert_eq!(waits.get(), 3);
        },
    );
}
