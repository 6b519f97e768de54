//! A device computes what the CPU computes, to the last bit: weights on it whole or in part, beside memory
//! that holds the rest or streams it; and where it fails, the run goes on without it.
//!
//! Any device will do; PoCL is one that every CPU can be.

mod common;

use std::sync::{Arc, Mutex, OnceLock};

use common::goldens::{Loaded, cases};
use common::runs::{Nodes, Run, SeenNode, assert_same_nodes, bits, fixture, load, options};
use wayinfer::device::{self, Device, DeviceError};
use wayinfer::engine::{Engine, EngineError, EngineOptions, Feed, Sequence};
use wayinfer::model::{FeedForwardSpec, KvType, LayerSpec, Logits, Model, RowSizes, SequenceState};
use wayinfer::store::{DeviceBytes, Guesses, OfDevice, Place, Plan};
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

/// Models whose mixing steps or whose networks run on a device as blocks, and whether both do: biases, norms
/// of queries and keys, norms behind blocks, windows, sinks, caps, gates, factors, one tensor for several,
/// layers that look into another's keys and values; recurrences, alone, among layers of attention and beside
/// it.
const BLOCKS: &[(&str, bool, bool)] = &[
    ("dense-f32", true, true),
    ("dense-f16", true, true),
    ("dense-bf16", true, true),
    ("dense-q8_0", true, true),
    ("dense-q4_k_m", true, true),
    ("moe-q4_k_m", true, true),
    ("odd-q8_0", true, true),
    ("cohere2", true, false),
    ("command-r", true, false),
    ("gemma2", true, true),
    ("gemma3", true, true),
    ("gemma4-moe", true, true),
    ("falcon-h1", true, true),
    ("gpt-oss", true, true),
    ("granite", true, true),
    ("granitehybrid", true, true),
    ("jamba", true, true),
    ("lfm2", true, true),
    ("lfm2moe", true, true),
    ("llama4", true, true),
    ("llama-longrope", true, true),
    ("mamba", true, true),
    ("mamba2", true, true),
    ("minimax-01", true, true),
    ("nemotron", true, true),
    ("nemotron_h", true, true),
    ("nemotron_h_moe", true, false),
    ("olmo2", true, true),
    ("phi3", true, true),
    ("qwen2", true, true),
    ("qwen2moe", true, true),
    ("qwen3", true, true),
    ("qwen35", true, true),
    ("qwen35moe", true, true),
    ("qwen3moe", true, true),
    ("qwen3next", true, true),
    ("qwen3next-by-head", true, true),
    ("starcoder2", true, true),
];

/// What keys and values of all layers may take: more than any fixture's do.
const KV_BYTES: u64 = 8 << 20;

/// The device of the index in `WAYINFER_TEST_DEVICE`, else the first that is a CPU.
fn index() -> usize {
    let named = std::env::var("WAYINFER_TEST_DEVICE").ok();
    named.map(|index| index.parse().expect("an index")).unwrap_or_else(|| {
        device::devices().unwrap_or_default().iter().position(|found| found.info.is_cpu).unwrap_or(0)
    })
}

/// That device, which all tests share: its kernels are tested when it is opened. None is no fault, but said.
fn open(test: &str) -> Option<Arc<Device>> {
    static DEVICE: OnceLock<Result<Arc<Device>, DeviceError>> = OnceLock::new();
    match DEVICE.get_or_init(|| device::open(index()).map(Arc::new)).clone() {
        Ok(device) => Some(device),
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

/// A model with so much of it on a device: a share of its weights; and a share of what memory needs.
fn load_with(name: &str, device: &Arc<Device>, share: f64, memory: f64) -> (Model, Failures) {
    let model = load(&fixture(name));
    let total = model.store().plan_for(u64::MAX).expect("a plan").total_bytes as f64;
    let room = (total * share) as u64;
    let (model, failures) = settle_in(model, device, room, memory);
    let plan = model.store().plan().expect("a plan");
    assert!(plan.device.is_some(), "{name}: something is on the device");
    assert!(plan.places.contains(&Place::Device) || share < 0.1, "{name}");
    (model, failures)
}

/// A model with half of its experts on a device, and all that every token reads; `None` where it has no
/// experts.
fn load_half(name: &str, device: &Arc<Device>, memory: f64) -> Option<(Model, Failures)> {
    let model = load(&fixture(name));
    let all = DeviceBytes { all: u64::MAX, kv: KV_BYTES };
    let plan = model.store().plan_with(u64::MAX, Some((device, all))).expect("a plan").device?;
    let room = plan.always_bytes + plan.cache_bytes() / 2;
    (!plan.classes.is_empty()).then(|| settle_in(model, device, room, memory))
}

/// A model with so many bytes of a device for its weights, and a share of what memory needs for the others.
fn settle_in(mut model: Model, device: &Arc<Device>, room: u64, memory: f64) -> (Model, Failures) {
    let store = model.store();
    let total = store.plan_for(u64::MAX).expect("a plan").total_bytes as f64;
    let room = DeviceBytes { all: room + KV_BYTES, kv: KV_BYTES };
    let least = store.plan_with(0, Some((device, room)));
    let least = least.map_or_else(|shortage| shortage.least as f64, |_| 0.0);
    let budget = least + (total - least) * memory;
    let plan = store.plan_with(budget as u64, Some((device, room))).expect("a plan");
    let failures = settle(&mut model, plan, device);
    (model, failures)
}

fn run_of(model: &Model) -> Run<'_> {
    Run::new(model, &EngineOptions { guesses: Guesses::On, ..options(64, 24) })
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

/// Blocks of passes of a model; a batch that wants no logits ends within the last layer, and one
/// that wants those of some rows drops the others there.
fn blocks_of(
    model: &Model,
    (mixers, networks): (bool, bool),
    silent: usize,
    last: usize,
    decode: usize,
) -> u64 {
    let layers = &model.spec().layers;
    let mixes = |layer: &LayerSpec| layer.rows != RowSizes::default();
    let blocks = |layer: &LayerSpec| {
        usize::from(mixers && mixes(layer)) + usize::from(networks && layer.ff != FeedForwardSpec::Nothing)
    };
    let sum = |layers: &[LayerSpec]| layers.iter().map(blocks).sum::<usize>();
    let remembered = layers.iter().rposition(mixes).expect("a mixing step");
    let (all, before) = (sum(layers), sum(&layers[..remembered]));
    (silent * before + last * (all - usize::from(mixers)) + decode * all) as u64
}

#[test]
fn blocks_run_on_the_device() {
    let Some(device) = open("blocks on a device") else { return };
    let (mut wrong, mut split) = (Vec::new(), 0);
    for &(name, attention, networks) in BLOCKS {
        let truth = record(&load(&fixture(name))).expect("a run");
        // The experts to read are guessed by the CPU behind dense networks, and where routers have an input
        // of their own.
        let guessed_there = ["llama4", "gemma4-moe", "jamba", "lfm2moe", "nemotron_h_moe"];
        let memory = if guessed_there.contains(&name) { 1.0 } else { 0.3 };
        let all = load_with(name, &device, 1.0, 1.0);
        let half = load_half(name, &device, memory);
        for (i, (model, failures)) in std::iter::once(all).chain(half).enumerate() {
            let what = format!("{name}, {}", ["all of it there", "half of the experts there"][i]);
            model.store().wait_for_device();
            assert_same_nodes(&truth, &record(&model).expect(&what), &what);
            assert!(failures.lock().unwrap().is_empty(), "{what}");
            let stats = model.store().device_stats().expect("a device");
            let wanted = blocks_of(&model, (attention, networks), 1, 1, 3);
            if stats.blocks != wanted {
                wrong.push(format!("{what}: {} blocks, not {wanted}", stats.blocks));
            }
            if i == 1 {
                assert!(stats.hits > 0 && stats.misses > 0, "{what}: {stats:?}");
                split += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(split >= 5, "{split}");
    // Delta nets beside attention over latents, which the CPU does: of two layers each.
    for name in ["kimi-linear", "bailingmoe3"] {
        let truth = record(&load(&fixture(name))).expect("a run");
        let (model, failures) = load_with(name, &device, 1.0, 1.0);
        model.store().wait_for_device();
        assert_same_nodes(&truth, &record(&model).expect(name), name);
        assert!(failures.lock().unwrap().is_empty(), "{name}");
        // Of five passes the first wants no more of the last layer than what is remembered.
        assert_eq!(model.store().device_stats().expect("a device").blocks, 5 * 3 - 1, "{name}");
    }
}

/// Logits after each step of two sequences that share passes: over pages, taken back within and over pages,
/// forked and gone on with.
fn go_through(model: &Model, kv: KvType) -> Vec<Vec<u32>> {
    let options = EngineOptions { kv, ..options(400, 300) };
    let mut engine = Engine::new(model, &options).expect("an engine");
    let vocab = model.spec().vocab;
    let tokens = |seed: usize, n: usize| -> Vec<u32> {
        (0..n).map(|i| ((3 + 7919 * (i + 1) * (seed + 1) + 31 * seed) % vocab) as u32).collect()
    };
    let (mut a, mut b) = (engine.sequence(), engine.sequence());
    let mut seen = Vec::new();
    let mut both = |a: &mut Sequence, b: &mut Sequence, [of_a, of_b]: [usize; 2]| {
        let tokens = [tokens(seen.len(), of_a), tokens(seen.len() + 50, of_b)];
        let [of_a, of_b] = &tokens;
        let mut feeds = vec![
            Feed { sequence: a, tokens: of_a, logits: Logits::Last },
            Feed { sequence: b, tokens: of_b, logits: Logits::All },
        ];
        feeds.retain(|feed| !feed.tokens.is_empty());
        engine.feed_all(&mut feeds).expect("a pass");
        seen.push([bits(a.logits()), bits(b.logits())].concat());
    };
    both(&mut a, &mut b, [150, 20]);
    both(&mut a, &mut b, [1, 1]);
    both(&mut a, &mut b, [1, 110]);
    // Recurrences go back to where there is a copy of their states.
    let back = (a.rewind(140), b.rewind(125));
    assert!(back == (140, 125) || back == (128, 21) && model.spec().is_recurrent(), "{back:?}");
    both(&mut a, &mut b, [1, 5]);
    let mut fork = a.fork();
    both(&mut a, &mut b, [1, 0]);
    both(&mut fork, &mut b, [3, 1]);
    both(&mut a, &mut fork, [1, 1]);
    let back = a.rewind(30);
    assert!(back == 30 || back == 0, "{back}: a window may have given up its pages");
    both(&mut a, &mut fork, [230, 1]);
    both(&mut a, &mut b, [1, 1]);
    let drafting = if model.spec().is_recurrent() { &[0, 2, 3][..] } else { &[] };
    for taken in drafting {
        let past = a.past() + taken;
        engine.feed(&mut a, &tokens(*taken, 3), Logits::Drafts).expect("a pass");
        seen.push(bits(a.logits()));
        assert_eq!(a.rewind(past), past, "drafts are taken back one by one");
        engine.feed(&mut a, &[5], Logits::Last).expect("a pass");
        seen.push(bits(a.logits()));
    }
    seen
}

/// States at ends of pages, where passes begin, behind drafts: also where there is room for those of few
/// sequences or of none.
#[test]
fn sequences_have_their_states_on_the_device() {
    let Some(device) = open("states on a device") else { return };
    let of_mamba2: &[u64] = &[0, 1, 2, 20];
    for (name, rooms) in [
        ("lfm2", &[2][..]),
        ("mamba", &[1, 2]),
        ("mamba2", of_mamba2),
        ("falcon-h1", &[1, 2]),
        ("qwen3next-by-head", &[2]),
        ("kimi-linear", &[2]),
        ("minimax-01", &[2]),
    ] {
        let truth = go_through(&load(&fixture(name)), KvType::F16);
        let mut before = None;
        for &sequences in rooms {
            let what = format!("{name}, {sequences} sequences");
            let mut model = load(&fixture(name));
            let memories = &model.spec().memories;
            let [pages, states] = SequenceState::copies_bytes(memories, 400, 300, KvType::F16);
            let bytes = DeviceBytes { all: 8 << 20, kv: sequences * (pages + states) };
            let plan = model.store().plan_with(u64::MAX, Some((&device, bytes))).expect("a plan");
            let failures = settle(&mut model, plan, &device);
            model.store().wait_for_device();
            for (step, (seen, truth)) in go_through(&model, KvType::F16).iter().zip(&truth).enumerate() {
                assert!(seen == truth, "{what}: step {step}");
            }
            assert!(failures.lock().unwrap().is_empty(), "{what}");
            let blocks = model.store().device_stats().expect("a device").blocks;
            let more = before.is_none_or(|before| blocks > before || sequences == 20 && blocks == before);
            assert!(more, "{what}: {blocks} blocks, {before:?} before");
            before = Some(blocks);
        }
    }
}

/// All types of keys and values, contexts of several pages, windows, sinks.
#[test]
fn sequences_have_their_pages_on_the_device() {
    let Some(device) = open("pages on a device") else { return };
    for name in ["dense-q4_k_m", "gemma3", "gpt-oss"] {
        for kv in ["f16", "f32", "q8_0", "q4_0", "q8_0/q4_0", "f16/q8_0"] {
            let kv: KvType = kv.parse().expect("types");
            let here = load(&fixture(name));
            if SequenceState::check(here.spec(), kv).is_err() {
                continue;
            }
            let truth = go_through(&here, kv);
            let is_f16 = kv == KvType::F16;
            let shares: &[f64] = match (name, is_f16) {
                ("dense-q4_k_m", true) => &[1.0, 0.5, 0.2],
                ("dense-q4_k_m", false) => &[1.0],
                // Windows, soft caps and sinks do not depend on the type that keys are read from.
                _ if is_f16 || kv.keys != kv.values => &[1.0],
                _ => &[],
            };
            for &share in shares {
                let (model, failures) = load_with(name, &device, share, 1.0);
                model.store().wait_for_device();
                let what = format!("{name}, {kv}, {share} on the device");
                for (step, (seen, truth)) in go_through(&model, kv).iter().zip(&truth).enumerate() {
                    assert!(seen == truth, "{what}: step {step}");
                }
                assert!(failures.lock().unwrap().is_empty(), "{what}");
                let stats = model.store().device_stats().expect("a device");
                let least = if share == 1.0 { 20 } else { u64::from(share == 0.5) };
                assert!(stats.blocks >= least, "{what}: {stats:?}");
            }
        }
    }
}

/// Where there is hardly room for keys and values, the CPU attends where there is none.
#[test]
fn pages_that_do_not_fit_stay_with_the_cpu() {
    let Some(device) = open("few pages on a device") else { return };
    let truth = go_through(&load(&fixture("dense-q4_k_m")), KvType::F16);
    let mut most = 0;
    for places in [0, 1, 3, 8, 30] {
        let mut model = load(&fixture("dense-q4_k_m"));
        let [pages, _] = SequenceState::copies_bytes(&model.spec().memories, 1, 1, KvType::F16);
        let page = pages / model.spec().layers.len() as u64;
        let bytes = DeviceBytes { all: 8 << 20, kv: places * page };
        let plan = model.store().plan_with(u64::MAX, Some((&device, bytes))).expect("a plan");
        let failures = settle(&mut model, plan, &device);
        model.store().wait_for_device();
        assert!(go_through(&model, KvType::F16) == truth, "{places} places");
        assert!(failures.lock().unwrap().is_empty(), "{places} places");
        let stats = model.store().device_stats().expect("a device");
        assert!(stats.blocks > most || places == 1, "{places} places: {stats:?}, before {most}");
        most = stats.blocks;
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
        let plan = loaded
            .model
            .store()
            .plan_with(u64::MAX, Some((&device, DeviceBytes { all: u64::MAX, kv: KV_BYTES })))
            .expect("a plan");
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
    // A slow CPU leaves time for weights to get there.
    command.args(["--seed", "3", "-c", "128", "--isa", "scalar", "-t", "1"]).args(gpu);
    command.env_remove("WAYINFER_DEVICE_FAULT");
    if let Some(fault) = fault {
        command.env("WAYINFER_DEVICE_FAULT", fault);
    }
    let output = command.output().expect("the program starts");
    let told = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{fault:?}: {told}");
    let warnings = told.lines().filter(|line| line.starts_with("warning: ")).map(str::to_owned).collect();
    (String::from_utf8(output.stdout).expect("UTF-8"), warnings)
}

/// Wherever it fails, while it is tested, while weights are copied or within a pass: the text is the CPU's,
/// and that the device has failed is said once.
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
    assert_eq!(answer(&[&gpu[..], &["--vram", "6M"]].concat(), None), (truth.clone(), vec![]));
    // Each comes to pass soon; where the weights have come too late for it, it does in another run.
    let faults = [
        ("launch:1:lost", true),
        ("launch:700:timeout", true),
        ("used:write:1:timeout", true),
        ("used:allocate:3:memory", false),
        ("used:launch:1:lost", true),
        ("used:launch:60:timeout", true),
        ("used:launch:90:memory", false),
        ("used:read:2:lost", true),
    ];
    for (fault, is_said) in faults {
        let mut runs = (0..10).map(|_| {
            let (text, warnings) = answer(&gpu, Some(fault));
            assert_eq!(text, truth, "{fault}");
            assert!(warnings.len() <= usize::from(is_said), "{fault}: {warnings:?}");
            warnings.len()
        });
        assert_eq!(runs.find(|&said| said == usize::from(is_said)), Some(usize::from(is_said)), "{fault}");
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
