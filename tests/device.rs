//! A device computes what the CPU computes, to the last bit: weights on it whole or in part, beside memory
//! that holds the rest or streams it; and where it fails, the run goes on without it.
//!
//! Any device will do; PoCL is one that every CPU can be.

mod common;

use std::sync::{Arc, Mutex};

use common::goldens::{Loaded, cases};
use common::runs::{Nodes, Run, SeenNode, assert_same_nodes, fixture, load, options};
use wayinfer::device::{self, Device, DeviceError};
use wayinfer::engine::{EngineError, EngineOptions};
use wayinfer::model::{Logits, Model};
use wayinfer::store::{OfDevice, Place, Plan};
use wayinfer::verify::run;

/// Models of all formats, dense and with experts; latents, several streams, recurrences.
const FIXTURES: &[&str] = &[
    "dense-f32",
    "dense-f16",
    "dense-bf16",
    "dense-q8_0",
    "dense-q4_k_m",
    "moe-q4_k_m",
    "moe-per-expert-q4_k_m",
    "odd-q8_0",
    "mixed",
    "deepseek2",
    "deepseek4",
    "gpt-oss",
    "gemma3n",
    "gemma4-moe",
    "qwen35",
    "mamba2",
];

/// The device of the index in `WAYINFER_TEST_DEVICE`, else the first that is a CPU.
fn index() -> usize {
    let named = std::env::var("WAYINFER_TEST_DEVICE").ok();
    named.map(|index| index.parse().expect("an index")).unwrap_or_else(|| {
        device::devices().unwrap_or_default().iter().position(|found| found.info.is_cpu).unwrap_or(0)
    })
}

/// That device; none is no fault, but said.
fn open(test: &str) -> Option<Arc<Device>> {
    match device::open(index()) {
        Ok(device) => Some(Arc::new(device)),
        Err(error @ (DeviceError::NoDriver(_) | DeviceError::NoSuchDevice { .. })) => {
            common::say(&format!("skipped: {test}: {error} (pocl-opencl-icd is one)"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// What a device said of its failure.
type Failures = Arc<Mutex<Vec<DeviceError>>>;

fn settle(model: &mut Model, plan: Plan, device: &Arc<Device>) -> Failures {
    let failures = Failures::default();
    let told = Arc::clone(&failures);
    let on_failure = Box::new(move |error: &DeviceError| told.lock().unwrap().push(error.clone()));
    let device = OfDevice { device: Arc::clone(device), on_failure };
    model.settle_with(plan, Some(device)).expect("room");
    failures
}

/// A model with so much of it on a device: a share of what can be there; and a share of what memory needs.
fn load_with(name: &str, device: &Arc<Device>, share: f64, memory: f64) -> (Model, Failures) {
    let mut model = load(&fixture(name));
    let store = model.store();
    let total = store.plan_for(u64::MAX).expect("a plan").total_bytes as f64;
    let least = store.plan_with(0, Some((device, (total * share) as u64)));
    let least = least.map_or_else(|shortage| shortage.least as f64, |_| 0.0);
    let budget = least + (total - least) * memory;
    let plan = store.plan_with(budget as u64, Some((device, (total * share) as u64))).expect("a plan");
    assert!(plan.device.is_some(), "{name}: something is on the device");
    assert!(plan.places.contains(&Place::Device) || share < 0.1, "{name}");
    let failures = settle(&mut model, plan, device);
    (model, failures)
}

fn run_of(model: &Model) -> Run<'_> {
    Run::new(model, &EngineOptions { ..options(64, 24) })
}

/// Every node of a prompt in two batches and of three more tokens.
fn record(model: &Model) -> Result<Vec<SeenNode>, EngineError> {
    let mut run = run_of(model);
    let vocab = model.spec().vocab;
    let prompt: Vec<u32> = (0..37).map(|i| ((3 + 7919 * i) % vocab) as u32).collect();
    let mut nodes = Nodes::default();
    run.feed_observed(&prompt, Logits::Last, &mut nodes)?;
    for id in [1, 2, 3] {
        run.feed_observed(&[id], Logits::Last, &mut nodes)?;
    }
    Ok(nodes.0)
}

#[test]
fn every_node_has_the_bits_of_the_cpu() {
    let Some(device) = open("bits of a device") else { return };
    for name in FIXTURES {
        let truth = record(&load(&fixture(name))).expect("a run");
        for (share, memory) in [(1.0, 1.0), (0.5, 1.0), (0.5, 0.3), (0.2, 0.0)] {
            let what = format!("{name}, {share} on the device, {memory} in memory");
            let (model, failures) = load_with(name, &device, share, memory);
            model.store().wait_for_device();
            assert_same_nodes(&truth, &record(&model).expect(&what), &what);
            assert!(failures.lock().unwrap().is_empty(), "{what}");
            let stats = model.store().device_stats().expect("a device");
            assert!(stats.products > 0, "{what}: the CPU has computed it all");
        }
    }
}

/// While weights are still on their way, and experts come and go.
#[test]
fn a_pass_does_not_wait_for_copies() {
    let Some(device) = open("passes beside copies") else { return };
    let truth = record(&load(&fixture("moe-q4_k_m"))).expect("a run");
    for round in 0..10 {
        let (model, _) = load_with("moe-q4_k_m", &device, 0.8, 1.0);
        for again in 0..3 {
            let what = format!("round {round}, again {again}");
            assert_same_nodes(&truth, &record(&model).expect(&what), &what);
        }
        let stats = model.store().device_stats().expect("a device");
        assert!(stats.hits + stats.misses > 0, "{stats:?}");
    }
}

/// The goldens of ggml, computed on the device.
#[test]
fn goldens_pass_on_the_device() {
    let Some(device) = open("goldens on a device") else { return };
    let mut done = 0;
    for case in cases() {
        let mut loaded = Loaded::of(&case);
        let plan = loaded.model.store().plan_with(u64::MAX, Some((&device, u64::MAX))).expect("a plan");
        assert!(plan.device.is_some(), "{}", case.name);
        let failures = settle(&mut loaded.model, plan, &device);
        loaded.model.store().wait_for_device();
        let mut watched = loaded.run(None, 2);
        let mut comparer = loaded.comparer(true);
        let steps = loaded.golden.description().decode_steps;
        let prompt = loaded.golden.prompt();
        run(&mut watched.engine, &mut watched.sequence, prompt, steps, &mut comparer).expect("a run");
        let (reports, ..) = comparer.finish();
        let beyond: Vec<_> = reports.iter().filter(|report| report.beyond).collect();
        assert!(beyond.is_empty(), "{}: {beyond:?}", case.name);
        assert!(reports.len() > 10, "{}: {} nodes", case.name, reports.len());
        let stats = loaded.model.store().device_stats().expect("a device");
        assert!(stats.products > 0, "{}: the CPU has computed it all", case.name);
        assert!(failures.lock().unwrap().is_empty(), "{}", case.name);
        done += 1;
    }
    assert!(done >= 20, "{done}");
}

/// A run of the program with a fault in its device; what it wrote, and what it said of the device.
fn answer(gpu: &[&str], fault: Option<&str>) -> (String, Vec<String>) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_wayinfer"));
    command.args([
        "generate",
        "-m",
        "demo",
        "-p",
        "What is 2+2?",
        "-n",
        "30",
        "--ignore-eos",
        "--temp",
        "0.8",
    ]);
    command.args(["--seed", "3", "-c", "128"]).args(gpu).env_remove("WAYINFER_DEVICE_FAULT");
    if let Some(fault) = fault {
        command.env("WAYINFER_DEVICE_FAULT", fault);
    }
    let output = command.output().expect("the program starts");
    let told = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{fault:?}: {told}");
    let warnings = told.lines().filter(|line| line.starts_with("warning: ")).map(str::to_owned).collect();
    (String::from_utf8(output.stdout).expect("UTF-8"), warnings)
}

/// Wherever it fails, while it is tested, while weights are copied or within a pass: the text is the CPU's, and
/// that the device has failed is said once.
#[test]
fn a_device_that_fails_changes_no_text() {
    if open("faults of a device").is_none() {
        return;
    }
    let (truth, warnings) = answer(&["--gpu", "off"], None);
    assert!(truth.len() > 40 && warnings.is_empty(), "{truth} {warnings:?}");
    let number = index().to_string();
    let gpu = ["--gpu", &number];
    assert_eq!(answer(&gpu, None), (truth.clone(), vec![]));
    assert_eq!(answer(&[&gpu[..], &["--vram", "3M"]].concat(), None), (truth.clone(), vec![]));
    let faults = [
        ("launch:1:lost", true),
        ("launch:600:lost", true),
        ("launch:700:timeout", true),
        ("launch:650:memory", false),
        ("read:450:lost", true),
        ("write:40:timeout", true),
        ("write:500:memory", false),
        ("allocate:90:memory", false),
        ("allocate:90:lost", true),
    ];
    for (fault, is_said) in faults {
        let (text, warnings) = answer(&gpu, Some(fault));
        assert_eq!(text, truth, "{fault}");
        assert_eq!(warnings.len(), usize::from(is_said), "{fault}: {warnings:?}");
    }
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    if open("devices by number").is_none() {
        return;
    }
    let told = common::transcript(&common::wayinfer(
        std::path::Path::new("."),
        100,
        &["generate", "-p", "a", "--gpu", "99"],
    ));
    assert!(told.contains("error: there is no device 99\n"), "{told}");
    assert!(told.contains("hint: `wayinfer devices` lists them\n"), "{told}");
}
