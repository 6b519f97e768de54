//! Drivers, on whatever OpenCL finds that is a CPU: PoCL, where it is installed. CUDA's, on a card.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::*;
use crate::quant::testing::say;

pub(super) const SOURCE: &str = r#"
#pragma OPENCL FP_CONTRACT OFF
__kernel void add(__global const uint* a, uint b, __global uint* to, ulong n) {
    ulong i = get_global_id(0);
    if (i < n) to[i] = a[i] + b;
}
__kernel void place(__global uint* to) {
    to[get_group_id(1) * get_num_groups(0) * get_local_size(0) + get_group_id(0) * get_local_size(0)
        + get_local_id(0)] = get_group_id(1) << 16 | get_group_id(0) << 8 | get_local_id(0);
}
__kernel void numbers(__global float* to, float a, float b, float c) {
    to[0] = fma(a, b, c);
    to[1] = a * b + c;
    to[2] = a / c;
    to[3] = as_float(1u) * 1.0f;
}
__kernel void count(__global uint* to, uint times) {
    uint x = to[0];
    for (uint i = 0; i < times; i++) x = x * 1664525u + 1013904223u + (x >> 7);
    to[0] = x;
}
"#;

/// What a device may say of itself.
pub(super) fn info(name: &str) -> DeviceInfo {
    DeviceInfo {
        api: Api::OpenCl,
        name: name.to_owned(),
        driver: "none".to_owned(),
        memory_bytes: 1 << 30,
        most_allocated_bytes: 1 << 28,
        shares_memory: false,
        is_cpu: false,
        pci: None,
        unfit: None,
    }
}

/// A driver that does nothing, and well.
#[derive(Debug)]
pub(super) struct Nothing(pub DeviceInfo);

impl Driver for Nothing {
    fn info(&self) -> &DeviceInfo {
        &self.0
    }

    fn allocate(&self, _: usize) -> Result<Handle, DeviceError> {
        Ok(Handle(1))
    }

    fn free(&self, _: Handle) {}

    fn write(&self, _: Queue, _: Handle, _: usize, _: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn read(&self, _: Handle, _: usize, _: &mut [u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn launch(&self, _: &Launch<'_>) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// The devices that tests run on: the first that is a CPU, the first that is NVIDIA's.
fn found() -> Vec<Found> {
    let all = devices().unwrap_or_default();
    let pocl = all.iter().find(|found| found.info.is_cpu);
    let cuda = all.iter().find(|found| found.info.api == Api::Cuda && found.info.unfit.is_none());
    if pocl.is_none() {
        eprintln!("skipped on OpenCL: none for the CPU (PoCL) is installed");
    }
    if cuda.is_none() {
        eprintln!("skipped on CUDA: no card of NVIDIA's, or no NVRTC");
    }
    pocl.into_iter().chain(cuda).cloned().collect()
}

/// The device that kernels are tested on, with this source: that of the index in `WAYINFER_TEST_DEVICE`, else
/// the first that is a CPU.
pub(crate) fn driver_for_kernels(source: &str) -> Option<Arc<dyn Driver>> {
    let all = devices().unwrap_or_default();
    let found = match std::env::var("WAYINFER_TEST_DEVICE") {
        Ok(index) => Some(&all[index.parse::<usize>().expect("an index")]),
        Err(_) => all.iter().find(|found| found.info.is_cpu),
    };
    let Some(found) = found else {
        say("skipped: no OpenCL for the CPU (PoCL) is installed");
        return None;
    };
    Some(found.open(source, &Programs::nowhere(), DEADLINE).expect("it opens"))
}

fn open(found: &Found, source: &str, deadline: Duration) -> Result<Arc<dyn Driver>, DeviceError> {
    found.open(source, &Programs::nowhere(), deadline)
}

fn drivers() -> Vec<Arc<dyn Driver>> {
    found().iter().map(|found| open(found, SOURCE, DEADLINE).expect("it opens")).collect()
}

fn bytes_of(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn read(driver: &dyn Driver, from: &Memory, at: usize, len: usize) -> Vec<u32> {
    let mut bytes = vec![0; 4 * len];
    driver.read(from.handle(), at, &mut bytes).unwrap();
    bytes.chunks(4).map(|four| u32::from_le_bytes(four.try_into().unwrap())).collect()
}

fn run(
    driver: &dyn Driver,
    kernel: &str,
    groups: [u32; 2],
    lanes: u32,
    args: &[Arg<'_>],
) -> Result<(), DeviceError> {
    driver.launch(&Launch { kernel, groups, lanes, args })
}

fn add(driver: &dyn Driver, from: &Memory, b: u32, to: &Memory) -> Result<(), DeviceError> {
    let n = from.bytes() / 4;
    let args = [Arg::Memory(from), Arg::U32(b), Arg::Memory(to), Arg::U64(n as u64)];
    run(driver, "add", [n.div_ceil(64) as u32, 1], 64, &args)
}

#[test]
fn bytes_go_there_through_a_kernel_and_back() {
    for driver in drivers() {
        // The last are several parts of the stages.
        for n in [1usize, 63, 64, 1000, (1 << 19) + 1, 5 << 20] {
            let a: Vec<u32> = (0..n as u32).collect();
            let from = Memory::allocate(&driver, 4 * n).unwrap();
            let to = Memory::allocate(&driver, 4 * n).unwrap();
            for (queue, b) in [(Queue::Compute, 7), (Queue::Copies, 8)] {
                driver.write(queue, from.handle(), 0, &bytes_of(&a)).unwrap();
                add(&*driver, &from, b, &to).unwrap();
                assert!(read(&*driver, &to, 0, n).iter().zip(&a).all(|(c, a)| *c == a + b), "{n} {queue:?}");
            }
        }
    }
}

#[test]
fn parts_of_allocations_are_written_and_read() {
    for driver in drivers() {
        let memory = Memory::allocate(&driver, 400).unwrap();
        driver.write(Queue::Compute, memory.handle(), 0, &bytes_of(&[0; 100])).unwrap();
        driver.write(Queue::Compute, memory.handle(), 40, &bytes_of(&[1, 2, 3])).unwrap();
        driver.write(Queue::Copies, memory.handle(), 396, &bytes_of(&[4])).unwrap();
        assert_eq!(read(&*driver, &memory, 36, 5), [0, 1, 2, 3, 0]);
        assert_eq!(read(&*driver, &memory, 392, 2), [0, 4]);
        driver.write(Queue::Compute, memory.handle(), 400, &[]).unwrap();
        for at in [397, 400, usize::MAX] {
            let error = driver.write(Queue::Compute, memory.handle(), at, &bytes_of(&[1]));
            assert!(matches!(error, Err(DeviceError::Lost { .. })), "{at}");
            let error = driver.read(memory.handle(), at, &mut [0; 4]);
            assert!(matches!(error, Err(DeviceError::Lost { .. })), "{at}");
        }
        assert_eq!(read(&*driver, &memory, 396, 1), [4], "nothing is lost by asking wrongly");
        Memory::allocate(&driver, 0).unwrap();
    }
}

#[test]
fn groups_and_lanes_are_where_they_should_be() {
    for driver in drivers() {
        let memory = Memory::allocate(&driver, 4 * 3 * 5 * 32).unwrap();
        run(&*driver, "place", [5, 3], 32, &[Arg::Memory(&memory)]).unwrap();
        let all =
            (0..3).flat_map(|y| (0..5).flat_map(move |x| (0..32).map(move |lane| y << 16 | x << 8 | lane)));
        assert_eq!(read(&*driver, &memory, 0, 3 * 5 * 32), all.collect::<Vec<u32>>());
    }
}

#[test]
fn numbers_are_what_they_are_here() {
    for driver in drivers() {
        // Contracted, the second would be the first.
        let (a, b, c) = (1.000_000_1f32, 1.000_000_2f32, -1.000_000_4f32);
        let memory = Memory::allocate(&driver, 16).unwrap();
        run(&*driver, "numbers", [1, 1], 1, &[Arg::Memory(&memory), Arg::F32(a), Arg::F32(b), Arg::F32(c)])
            .unwrap();
        let expected = [a.mul_add(b, c), a * b + c, a / c, f32::from_bits(1)].map(f32::to_bits);
        assert_ne!(expected[0], expected[1]);
        assert_eq!(read(&*driver, &memory, 0, 4), expected);
    }
}

#[test]
fn what_does_not_compile_says_why() {
    for found in found() {
        let source = "__kernel void f(__global uint* to) { to[0] = no_such_thing; }";
        match open(&found, source, DEADLINE) {
            Err(DeviceError::Build { log, .. }) => assert!(log.contains("no_such_thing"), "{log}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_launch_that_cannot_be_is_refused_and_the_next_is_not() {
    for driver in drivers() {
        let memory = Memory::allocate(&driver, 64).unwrap();
        let refused =
            |kernel: &str, args: &[Arg<'_>], says: &str| match run(&*driver, kernel, [1, 1], 1, args) {
                Err(DeviceError::Lost { what: "launch", error, .. }) => {
                    assert!(error.contains(says), "{error}")
                }
                other => panic!("{kernel}: {other:?}"),
            };
        refused("nothing", &[], "nothing");
        let other: Arc<dyn Driver> = Arc::new(Nothing(info("other")));
        let elsewhere = Memory { driver: other, handle: Handle(0), bytes: 64 };
        refused("place", &[Arg::Memory(&elsewhere)], "another device");
        if driver.info().api == Api::OpenCl {
            refused("place", &[Arg::U32(1)], "argument 0");
            refused("add", &[Arg::Memory(&memory)], "ARGS");
        }
        run(&*driver, "place", [1, 1], 16, &[Arg::Memory(&memory)]).unwrap();
        assert_eq!(read(&*driver, &memory, 0, 2), [0, 1]);
    }
}

#[test]
fn memory_ends_by_an_error_and_can_be_had_again() {
    for driver in drivers() {
        let most = driver.info().most_allocated_bytes;
        match driver.allocate(usize::try_from(most).unwrap() + 1) {
            Err(DeviceError::OutOfMemory { bytes, .. }) => assert_eq!(bytes, most + 1),
            other => panic!("{other:?}"),
        }
        assert!(matches!(driver.allocate(usize::MAX), Err(DeviceError::OutOfMemory { .. })));
        // PoCL has only what it says; of it, hardly any is touched.
        let part = (driver.info().memory_bytes / 8).min(most) as usize;
        let mut all = Vec::new();
        let error = loop {
            match Memory::allocate(&driver, part) {
                Ok(memory) => all.push(memory),
                Err(error) => break error,
            }
            assert!(all.len() < 100, "it has more than it says");
        };
        assert!(matches!(error, DeviceError::OutOfMemory { .. }), "{error}");
        assert!(!all.is_empty());
        drop(all);
        Memory::allocate(&driver, part).unwrap();
    }
}

#[test]
fn what_is_freed_while_it_is_used_stays_until_it_is_not() {
    for driver in drivers() {
        let n = 1 << 16;
        let from = Memory::allocate(&driver, 4 * n).unwrap();
        driver.write(Queue::Compute, from.handle(), 0, &bytes_of(&vec![1; n])).unwrap();
        let sum = Memory::allocate(&driver, 4 * n).unwrap();
        for i in 0..200 {
            let between = Memory::allocate(&driver, 4 * n).unwrap();
            add(&*driver, &from, i, &between).unwrap();
            add(&*driver, &between, i, &sum).unwrap();
        }
        assert!(read(&*driver, &sum, 0, n).iter().all(|v| *v == 1 + 2 * 199));
    }
}

#[test]
fn threads_share_a_device() {
    for driver in drivers() {
        thread::scope(|scope| {
            for t in 0..4u32 {
                let driver = driver.clone();
                scope.spawn(move || {
                    let n = 1000 + t as usize;
                    let from = Memory::allocate(&driver, 4 * n).unwrap();
                    let to = Memory::allocate(&driver, 4 * n).unwrap();
                    for i in 0..50 {
                        let queue = if i % 2 == 0 { Queue::Compute } else { Queue::Copies };
                        driver.write(queue, from.handle(), 0, &bytes_of(&vec![1000 * t + i; n])).unwrap();
                        add(&*driver, &from, t, &to).unwrap();
                        assert!(read(&*driver, &to, 0, n).iter().all(|v| *v == 1000 * t + i + t), "{t} {i}");
                    }
                });
            }
        });
    }
}

/// Takes a second at least, and ends by itself, so that the process can.
const LONG: u32 = 800_000_000;
const SHORT: u32 = LONG / 200;

/// In turn: a kernel that is left to itself may hold up others on a device of few cores.
#[test]
fn each_step_has_its_deadline() {
    for found in found() {
        many_short_launches_may_take_longer_together(&found);
        a_kernel_that_takes_too_long_is_not_waited_for(&found);
    }
}

fn many_short_launches_may_take_longer_together(found: &Found) {
    let deadline = Duration::from_millis(800);
    let driver = open(found, SOURCE, deadline).unwrap();
    let memory = Memory::allocate(&driver, 64).unwrap();
    let count = |launches: usize, times| {
        let start = Instant::now();
        for _ in 0..launches {
            run(&*driver, "count", [1, 1], 1, &[Arg::Memory(&memory), Arg::U32(times)]).unwrap();
        }
        driver.read(memory.handle(), 0, &mut [0; 4]).unwrap();
        start.elapsed()
    };
    count(1, 1); // PoCL compiles a kernel when it is first run
    let each = count(1, SHORT).max(Duration::from_millis(1));
    let launches = (4.0 * deadline.as_secs_f64() / each.as_secs_f64()).ceil() as usize;
    let together = count(launches, SHORT);
    assert!(together > deadline, "they would have to take longer: {together:?}");
}

fn a_kernel_that_takes_too_long_is_not_waited_for(found: &Found) {
    let deadline = Duration::from_millis(300);
    let driver = open(found, SOURCE, deadline).unwrap();
    let memory = Memory::allocate(&driver, 64).unwrap();
    let start = Instant::now();
    run(&*driver, "count", [1, 1], 1, &[Arg::Memory(&memory), Arg::U32(LONG)]).unwrap();
    let error = driver.read(memory.handle(), 0, &mut [0; 4]).unwrap_err();
    assert!(matches!(error, DeviceError::Timeout { .. }), "{error}");
    assert!(start.elapsed() >= deadline);
    // From now on nothing is waited for, which would be five deadlines or until the kernel ends.
    let now = Instant::now();
    assert_eq!(driver.allocate(64), Err(error.clone()));
    assert_eq!(driver.write(Queue::Copies, memory.handle(), 0, &[0; 4]), Err(error.clone()));
    assert_eq!(driver.read(memory.handle(), 0, &mut [0; 4]), Err(error.clone()));
    assert_eq!(run(&*driver, "place", [1, 1], 1, &[Arg::Memory(&memory)]), Err(error));
    drop(memory);
    drop(driver);
    assert!(now.elapsed() < 3 * deadline, "{:?}", now.elapsed());
}

#[test]
fn a_program_on_disk_is_used_and_a_broken_one_compiled_anew() {
    for found in found() {
        let folder = tempfile::tempdir().unwrap();
        let programs = Programs::within(folder.path().to_owned());
        let works = |source: &str| {
            let driver = found.open(source, &programs, DEADLINE).unwrap();
            let memory = Memory::allocate(&driver, 64).unwrap();
            run(&*driver, "place", [1, 1], 16, &[Arg::Memory(&memory)]).unwrap();
            assert_eq!(read(&*driver, &memory, 0, 3), [0, 1, 2]);
        };
        let files =
            || fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        works(SOURCE);
        let [file] = &files()[..] else { panic!("one file") };
        let first = fs::read(file).unwrap();
        // Who compiles writes.
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        fs::File::options().write(true).open(file).unwrap().set_modified(then).unwrap();
        works(SOURCE);
        assert_eq!(fs::metadata(file).unwrap().modified().unwrap(), then, "it was compiled again");
        // Broken by itself, and one that says it is whole.
        let mut of_others = blake3::hash(b"nonsense").as_bytes().to_vec();
        of_others.extend_from_slice(b"nonsense");
        for broken in [&first[..first.len() / 2], &[], &of_others] {
            fs::write(file, broken).unwrap();
            works(SOURCE);
            assert!(fs::read(file).unwrap().len() > of_others.len(), "it was written anew");
        }
        works(&format!("{SOURCE}\n"));
        assert_eq!(files().len(), 2, "another source is another program");
    }
}
