//! Blocks on a device that fails or leaves out something, on whatever OpenCL finds that is a CPU.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::device::{
    self, Device, DeviceError, DeviceInfo, Driver, Handle, Launch, Queue, driver_for_kernels,
};
use crate::engine::{Engine, EngineError, EngineOptions, Sequence};
use crate::gguf::Gguf;
use crate::model::{KvType, Logits, Model, Node, Observer, SequenceState};
use crate::store::{DeviceBytes, Guesses, OfDevice};

/// What a driver does wrongly.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Kernels whose names begin so are not launched.
    LeavesOut(&'static str),
    /// Copies for what is launched afterwards, of whole rows of so many bytes, bring zeros.
    Zeroes { row: usize },
    /// Operations from the one of this number on fail, or this one alone for lack of memory.
    Fails { at: usize, for_good: bool },
}

/// A driver that is as good as another until it is told otherwise.
#[derive(Debug)]
struct Meddling {
    driver: Arc<dyn Driver>,
    /// Since when so many operations have been done.
    fault: Mutex<(Option<Fault>, usize)>,
    /// Bytes of each allocation, and the most that all have had together.
    allocated: Mutex<(HashMap<Handle, usize>, usize)>,
    /// Bytes that were copied to the device for what is launched afterwards.
    written: AtomicUsize,
}

impl Meddling {
    /// Bytes that are allocated now, and the most that were at a time since this was asked.
    fn allocated(&self) -> [usize; 2] {
        let (allocations, most) = &mut *self.allocated.lock().unwrap();
        let now = allocations.values().sum();
        [now, std::mem::replace(most, now)]
    }

    fn set(&self, fault: Option<Fault>) {
        *self.fault.lock().unwrap() = (fault, 0);
    }

    /// Operations since.
    fn done(&self) -> usize {
        self.fault.lock().unwrap().1
    }

    fn check(&self) -> Result<(), DeviceError> {
        let mut fault = self.fault.lock().unwrap();
        fault.1 += 1;
        let device = "a device".to_owned();
        match *fault {
            (Some(Fault::Fails { at, for_good: true }), done) if done >= at => {
                Err(DeviceError::Lost { device, what: "fault", error: "as planned".to_owned() })
            }
            (Some(Fault::Fails { at, for_good: false }), done) if done == at => {
                Err(DeviceError::OutOfMemory { device, bytes: 1 })
            }
            _ => Ok(()),
        }
    }
}

impl Driver for Meddling {
    fn info(&self) -> &DeviceInfo {
        self.driver.info()
    }

    fn allocate(&self, bytes: usize) -> Result<Handle, DeviceError> {
        self.check()?;
        let handle = self.driver.allocate(bytes)?;
        let (allocations, most) = &mut *self.allocated.lock().unwrap();
        allocations.insert(handle, bytes);
        *most = allocations.values().sum::<usize>().max(*most);
        Ok(handle)
    }

    fn free(&self, handle: Handle) {
        self.allocated.lock().unwrap().0.remove(&handle);
        self.driver.free(handle);
    }

    fn write(&self, queue: Queue, to: Handle, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.check()?;
        if queue == Queue::Compute {
            self.written.fetch_add(bytes.len(), Ordering::Relaxed);
        }
        let fault = self.fault.lock().unwrap().0;
        match fault {
            Some(Fault::Zeroes { row }) if queue == Queue::Compute && bytes.len().is_multiple_of(row) => {
                self.driver.write(queue, to, at, &vec![0; bytes.len()])
            }
            _ => self.driver.write(queue, to, at, bytes),
        }
    }

    fn read(&self, from: Handle, at: usize, into: &mut [u8]) -> Result<(), DeviceError> {
        self.check()?;
        self.driver.read(from, at, into)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        self.check()?;
        let fault = self.fault.lock().unwrap().0;
        match fault {
            Some(Fault::LeavesOut(kernel)) if launch.kernel.starts_with(kernel) => Ok(()),
            _ => self.driver.launch(launch),
        }
    }
}

/// Every node by its name, with its bits.
#[derive(Default)]
struct Nodes(Vec<(String, Vec<u32>)>);

impl Observer for Nodes {
    fn active(&self) -> bool {
        true
    }

    fn node(&mut self, node: &Node<'_>, values: &mut [f32]) {
        self.0.push((node.id.to_string(), values.iter().map(|v| v.to_bits()).collect()));
    }
}

/// A model that is on the device as a whole, and one half of whose experts are not.
const FIXTURES: [&str; 2] = ["dense-q4_k_m", "moe-q4_k_m"];

fn load(fixture: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/{fixture}.gguf"));
    Model::load(&Gguf::open(&path).expect("a file")).expect("a model")
}

/// Nodes and logits of a prompt and of a token.
type Seen = (Vec<(String, Vec<u32>)>, Vec<u32>);

fn options() -> EngineOptions {
    EngineOptions {
        context: 64,
        batch: 21,
        kv: KvType::F16,
        threads: 1.into(),
        isa: None,
        drafts: 0,
        guesses: Guesses::Off,
    }
}

fn record(model: &Model, observed: bool) -> Result<Seen, EngineError> {
    let mut engine = Engine::new(model, &options()).expect("an engine");
    let (mut sequence, mut nodes) = (engine.sequence(), Nodes::default());
    let vocab = (model.spec().vocab as u32).min(200);
    let prompt: Vec<u32> = (0..26).map(|i| (3 + 7919 * i) % vocab).collect();
    let mut feed = |tokens: &[u32]| -> Result<(), EngineError> {
        match observed {
            true => engine.feed_observed(&mut sequence, tokens, Logits::Last, &mut nodes, |_| {
                ControlFlow::Continue(())
            }),
            false => engine.feed(&mut sequence, tokens, Logits::Last),
        }
    };
    feed(&prompt)?;
    feed(&[1])?;
    Ok((nodes.0, sequence.logits().iter().map(|v| v.to_bits()).collect()))
}

/// A model that is on a device, the device's driver, and what was said of its failure.
struct Settled {
    model: Model,
    driver: Arc<Meddling>,
    failures: Arc<Mutex<Vec<DeviceError>>>,
}

/// What every token reads is on the device, and half of the experts where there are some.
fn settle(fixture: &str, driver: Arc<Meddling>, device: Arc<Device>) -> Settled {
    let mut model = load(fixture);
    let plan = |all| model.store().plan_with(u64::MAX, Some((&device, DeviceBytes { all, kv: 4 << 20 })));
    let of_all = plan(u64::MAX).expect("a plan").device.expect("something is there");
    let plan = plan((4 << 20) + of_all.always_bytes + of_all.cache_bytes() / 2).expect("a plan");
    let failures = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&failures);
    let on_failure = Box::new(move |error: &DeviceError| told.lock().unwrap().push(error.clone()));
    model.settle_with(plan, Some(OfDevice { device, on_failure })).expect("room");
    model.store().wait_for_device();
    Settled { model, driver, failures }
}

/// A driver that may be told to do wrong, and its device.
fn open() -> Option<(Arc<Meddling>, Arc<Device>)> {
    let driver = driver_for_kernels(&device::source())?;
    let driver = Arc::new(Meddling {
        driver,
        fault: Mutex::default(),
        allocated: Mutex::default(),
        written: AtomicUsize::new(0),
    });
    let device = Arc::new(Device::new(driver.clone()).expect("it answers"));
    Some((driver, device))
}

/// The canary: whatever a block leaves out, nodes and logits are others.
#[test]
fn what_is_left_out_is_seen() {
    let Some((driver, device)) = open() else { return };
    let of_both = ["op_rms_norm", "op_round_q8_k", "dot_", "op_swiglu", "op_add"];
    let of_attention = ["op_copy", "tile_", "op_rope", "op_store_kv", "op_attend", "op_combine"];
    // The latter are what the CPU gives of its experts: all else that goes up has other lengths.
    let of_experts = [Fault::LeavesOut("op_sum_weighted"), Fault::Zeroes { row: 256 * size_of::<f32>() }];
    let kernels =
        |names: &[&'static str]| names.iter().map(|name| Fault::LeavesOut(name)).collect::<Vec<_>>();
    let of_scan = kernels(&[
        "op_causal_conv",
        "op_conv_window",
        "op_selective_scan",
        "op_softplus",
        "op_swiglu",
        "op_copy",
    ]);
    // With the blocks of a layer.
    let cases = [
        (FIXTURES[0], 2, kernels(&[&of_both[..], &of_attention].concat())),
        (FIXTURES[1], 2, [kernels(&of_both), of_experts.to_vec()].concat()),
        ("lfm2", 2, kernels(&["op_causal_conv", "op_conv_window", "op_mul"])),
        ("mamba", 1, of_scan.clone()),
        ("mamba2", 1, [of_scan, kernels(&["op_rms_norm"])].concat()),
    ];
    for (fixture, each, faults) in cases {
        let truth = [false, true].map(|observed| record(&load(fixture), observed).expect("passes"));
        let Settled { model, driver, .. } = settle(fixture, driver.clone(), device.clone());
        let stats = || model.store().device_stats().expect("a device");
        let record = |observed: bool| {
            let before = stats().blocks;
            (record(&model, observed).ok(), stats().blocks - before)
        };
        // A batch without logits ends within the last layer; an observer of the next sees the CPU attend
        // there.
        let of_all = 3 * each * model.spec().layers.len() as u64;
        let wanted = [of_all - each, of_all - each - 1];
        // What is not finite is computed by the CPU, or is an error.
        let same = |observed: bool| {
            let (seen, blocks) = record(observed);
            let at = usize::from(observed);
            seen.as_ref() == Some(&truth[at]) && blocks == wanted[at]
        };
        assert!(same(false) && same(true), "{fixture}");
        let is_split = stats().hits > 5 && stats().misses > 5;
        assert!(is_split == (fixture == FIXTURES[1]), "{fixture}: {:?}", stats());
        for fault in faults {
            driver.set(Some(fault));
            assert!(!same(false) && !same(true), "{fixture}: {fault:?}");
            driver.set(None);
        }
        assert!(same(false) && same(true), "{fixture}");
    }
}

/// States of recurrences stay on the device, and go up again where they are not what the host's have become;
/// of memory they take what they are given, which is enough for more stretches than there are here.
#[test]
fn states_go_up_where_they_are_not_there() {
    let Some((driver, device)) = open() else { return };
    let Settled { model, driver, .. } = settle("mamba2", driver, device);
    let [taken, given] = taken_and_given(&model, &driver);
    assert!(taken <= given, "{taken} of {given}");
    let spec = model.spec();
    let [_, states] = SequenceState::copies_bytes(&spec.memories, 64, 21, KvType::F16);
    let mut engine = Engine::new(&model, &options()).expect("an engine");
    let mut a = engine.sequence();
    let mut goes_up = |sequence: &mut Sequence, token: u32| {
        driver.written.store(0, Ordering::Relaxed);
        engine.feed(sequence, &[token], Logits::Last).expect("a pass");
        driver.written.load(Ordering::Relaxed) as u64 >= states
    };
    assert!(goes_up(&mut a, 3), "zeros");
    assert!((4..10).all(|token| !goes_up(&mut a, token)), "it is there");
    let mut b = a.fork();
    assert!(!goes_up(&mut b, 5), "the fork has what was both's");
    assert!(goes_up(&mut a, 6), "the other's went on");
    assert!(!goes_up(&mut a, 7) && !goes_up(&mut b, 8));
    let past = b.past();
    assert_eq!((a.rewind(0), b.rewind(past)), (0, past));
    assert!(goes_up(&mut a, 3) && !goes_up(&mut b, 9));
}

/// What passes take of a device, and what the plan leaves to them.
fn taken_and_given(model: &Model, driver: &Meddling) -> [u64; 2] {
    let [before, _] = driver.allocated();
    record(model, false).expect("passes");
    let [_, most] = driver.allocated();
    let kv = model.store().plan().and_then(|plan| plan.device.as_ref()).map_or(0, |plan| plan.kv_bytes);
    // Copies fill what is theirs.
    let taken = ((most - before) as u64).checked_sub(kv).expect("copies, and more");
    [taken, options().device_bytes(model.spec(), 1)]
}

/// It is no more, and not much less.
#[test]
fn passes_take_what_they_are_given() {
    for fixture in FIXTURES {
        // One that has no memory of other models' passes.
        let Some((driver, device)) = open() else { return };
        let Settled { model, driver, .. } = settle(fixture, driver, device);
        let [taken, given] = taken_and_given(&model, &driver);
        assert!(taken <= given && given < 4 * taken, "{fixture}: {taken} of {given}");
    }
}

/// Wherever a chain breaks off: all is as on the CPU, every node is shown once, and a device that is lost is
/// told of once.
#[test]
fn a_chain_that_breaks_off_is_computed_by_the_cpu() {
    let Some((driver, device)) = open() else { return };
    for (fixture, observed, points) in
        [(FIXTURES[0], false, 8), (FIXTURES[0], true, 8), (FIXTURES[1], true, 4), ("mamba2", false, 8)]
    {
        let truth = record(&load(fixture), observed).expect("passes");
        let settle = || settle(fixture, driver.clone(), device.clone());
        let Settled { model, driver, .. } = settle();
        driver.set(None);
        assert!(record(&model, observed).expect("passes") == truth, "{fixture}");
        drop(model);
        // How many experts move depends on time.
        let all = if fixture == FIXTURES[1] { driver.done() * 3 / 4 } else { driver.done() };
        assert!(all > 100, "{all}");
        for at in (1..=all).step_by(1 + all / points) {
            for for_good in [false, true] {
                let Settled { model, driver, failures } = settle();
                driver.set(Some(Fault::Fails { at, for_good }));
                let seen = record(&model, observed).expect("passes");
                driver.set(None);
                let what = format!("{fixture}: {at} of {all}, observed: {observed}");
                assert_eq!(seen.0.len(), truth.0.len(), "{what}");
                for (seen, node) in seen.0.iter().zip(&truth.0) {
                    assert!(seen == node, "{what}: {}, {}", seen.0, node.0);
                }
                assert!(seen.1 == truth.1, "{what}");
                assert_eq!(failures.lock().unwrap().len(), usize::from(for_good), "{what}");
            }
        }
    }
}

/// The canary of delta nets and of lightning attention, as an observer sees them.
#[test]
fn what_is_left_out_of_a_delta_net_is_seen() {
    let Some((driver, device)) = open() else { return };
    let of_all = ["op_causal_conv", "op_conv_window", "op_l2_norm", "op_delta_rule", "op_softplus", "op_exp"];
    for (fixture, kernels) in [
        ("qwen3next-by-head", &[&of_all[..], &["op_copy_heads", "op_copy_parts", "op_silu"]].concat()[..]),
        ("kimi-linear", &[&of_all[..], &["op_sigmoid"]].concat()),
        ("minimax-01", &["op_copy_heads", "op_selective_scan", "op_silu", "op_sigmoid"]),
    ] {
        let truth = record(&load(fixture), true).expect("passes");
        let Settled { model, driver, .. } = settle(fixture, driver.clone(), device.clone());
        let [taken, given] = taken_and_given(&model, &driver);
        assert!(taken <= given, "{fixture}: {taken} of {given}");
        let run = || {
            let blocks = || model.store().device_stats().expect("a device").blocks;
            let before = blocks();
            (record(&model, true).ok(), blocks() - before)
        };
        let right = run();
        assert!(right.0 == Some(truth) && right.1 > 0, "{fixture}");
        for kernel in kernels {
            driver.set(Some(Fault::LeavesOut(kernel)));
            assert!(run() != right, "{fixture}: {kernel}");
            driver.set(None);
        }
        assert!(run() == right, "{fixture}");
    }
}
