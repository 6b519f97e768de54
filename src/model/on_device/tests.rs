//! Blocks on a device that fails or leaves out something, on whatever OpenCL finds that is a CPU.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::device::{
    self, Device, DeviceError, DeviceInfo, Driver, Handle, Launch, Queue, driver_for_kernels,
};
use crate::engine::{Engine, EngineError, EngineOptions};
use crate::gguf::Gguf;
use crate::model::{KvType, Logits, Model, Node, Observer};
use crate::store::{DeviceBytes, Guesses, OfDevice};

/// What a driver does wrongly.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Kernels whose names begin so are not launched.
    LeavesOut(&'static str),
    /// Operations from the one of this number on fail, or this one alone for lack of memory.
    Fails { at: usize, for_good: bool },
}

/// A driver that is as good as another until it is told otherwise.
#[derive(Debug)]
struct Meddling {
    driver: Arc<dyn Driver>,
    /// Since when so many operations have been done.
    fault: Mutex<(Option<Fault>, usize)>,
}

impl Meddling {
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
        self.driver.allocate(bytes)
    }

    fn free(&self, handle: Handle) {
        self.driver.free(handle);
    }

    fn write(&self, queue: Queue, to: Handle, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.check()?;
        self.driver.write(queue, to, at, bytes)
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

fn load() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/dense-q4_k_m.gguf");
    Model::load(&Gguf::open(&path).expect("a file")).expect("a model")
}

/// Nodes and logits of a prompt and of a token.
type Seen = (Vec<(String, Vec<u32>)>, Vec<u32>);

fn record(model: &Model, observed: bool) -> Result<Seen, EngineError> {
    let options = EngineOptions {
        context: 64,
        batch: 24,
        kv: KvType::F16,
        threads: 1.into(),
        isa: None,
        drafts: 0,
        guesses: Guesses::Off,
    };
    let mut engine = Engine::new(model, &options).expect("an engine");
    let (mut sequence, mut nodes) = (engine.sequence(), Nodes::default());
    let prompt: Vec<u32> = (0..29).map(|i| (3 + 7919 * i) % 200).collect();
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

/// A model that is on a device as a whole, the device's driver, and what was said of its failure.
struct Settled {
    model: Model,
    driver: Arc<Meddling>,
    failures: Arc<Mutex<Vec<DeviceError>>>,
}

fn settle(driver: &Arc<dyn Driver>) -> Settled {
    let driver = Arc::new(Meddling { driver: Arc::clone(driver), fault: Mutex::default() });
    let device = Arc::new(Device::new(driver.clone()).expect("it answers"));
    settle_on(driver, device)
}

fn settle_on(driver: Arc<Meddling>, device: Arc<Device>) -> Settled {
    let mut model = load();
    let bytes = DeviceBytes { all: 16 << 20, kv: 4 << 20 };
    let plan = model.store().plan_with(u64::MAX, Some((&device, bytes))).expect("a plan");
    let failures = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&failures);
    let on_failure = Box::new(move |error: &DeviceError| told.lock().unwrap().push(error.clone()));
    model.settle_with(plan, Some(OfDevice { device, on_failure })).expect("room");
    model.store().wait_for_device();
    Settled { model, driver, failures }
}

/// The canary: whatever a block leaves out, nodes and logits are others.
#[test]
fn a_kernel_that_is_left_out_is_seen() {
    let Some(driver) = driver_for_kernels(&device::source()) else { return };
    let truth = [false, true].map(|observed| record(&load(), observed).expect("passes"));
    let Settled { model, driver, .. } = settle(&driver);
    let blocks = || model.store().device_stats().map_or(0, |stats| stats.blocks);
    let record = |observed: bool| {
        let before = blocks();
        (record(&model, observed).ok(), blocks() - before)
    };
    let [usual, of_observed] = [false, true].map(|observed| record(observed).1);
    assert!(usual >= 10 && of_observed >= 9, "{usual} {of_observed}");
    // What is not finite is computed by the CPU, or is an error.
    let same = |observed: bool| {
        let (seen, blocks) = record(observed);
        seen.as_ref() == Some(&truth[usize::from(observed)])
            && blocks == if observed { of_observed } else { usual }
    };
    assert!(same(false) && same(true));
    let kernels = [
        "op_copy",
        "op_rms_norm",
        "op_round_q8_k",
        "dot_",
        "tile_",
        "op_rope",
        "op_store_kv",
        "op_attend",
        "op_combine",
        "op_swiglu",
        "op_add",
    ];
    for kernel in kernels {
        driver.set(Some(Fault::LeavesOut(kernel)));
        assert!(!same(false) && !same(true), "{kernel}");
        driver.set(None);
    }
    assert!(same(false) && same(true));
}

/// Wherever a chain breaks off: all is as on the CPU, every node is shown once, and a device that is lost is
/// told of once.
#[test]
fn a_chain_that_breaks_off_is_computed_by_the_cpu() {
    let Some(driver) = driver_for_kernels(&device::source()) else { return };
    let truth = [false, true].map(|observed| record(&load(), observed).expect("passes"));
    let meddling = Arc::new(Meddling { driver, fault: Mutex::default() });
    let device = Arc::new(Device::new(meddling.clone()).expect("it answers"));
    for observed in [false, true] {
        let Settled { model, driver, .. } = settle_on(meddling.clone(), device.clone());
        driver.set(None);
        assert!(record(&model, observed).expect("passes") == truth[usize::from(observed)]);
        let all = driver.done();
        assert!(all > 100, "{all}");
        for at in (1..=all).step_by(1 + all / 12) {
            for for_good in [false, true] {
                let Settled { model, driver, failures } = settle_on(meddling.clone(), device.clone());
                driver.set(Some(Fault::Fails { at, for_good }));
                let seen = record(&model, observed).expect("passes");
                driver.set(None);
                let (nodes, logits) = &truth[usize::from(observed)];
                assert_eq!(seen.0.len(), nodes.len(), "{at} of {all}, observed: {observed}");
                for (seen, node) in seen.0.iter().zip(nodes) {
                    assert!(seen == node, "{at} of {all}: {}, {}", seen.0, node.0);
                }
                assert!(seen.1 == *logits, "{at} of {all}, observed: {observed}");
                assert_eq!(failures.lock().unwrap().len(), usize::from(for_good), "{at} of {all}");
            }
        }
    }
}
