//! `inspect --plan`: where a model's weights would go, and what speed to expect.

use std::io::Write;

use serde::Serialize;

use super::{Args, json};
use crate::cli::device_args::tell_of_failure;
use crate::cli::engine_args::{self, Loaded};
use crate::cli::placement::{self, Budget, DiskReport, Disks, PlanReport};
use crate::cli::{CliError, InFile, output, safe_text};
use crate::engine::{DEFAULT_BATCH, EngineOptions};
use crate::model::KvType;
use crate::store::{Guesses, Nodes, Plan, open_file};
use crate::text::Tokenizer;
use crate::verify::formats::SpeedTest;

/// Memory is read at the measured bandwidth at best.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    plan: PlanReport,
    context: usize,
    kv: String,
    budget_bytes: u64,
    /// Of the budget, what is no weight.
    other_bytes: u64,
    /// Of all disks together.
    disk_bytes_s: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    disks: Vec<DiskReport>,
    memory_bytes_s: f64,
    /// The device's name, and weights that it reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_bytes_s: Option<f64>,
    /// Of memory, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<String>,
    expected_tok_s: Option<f64>,
    bound_by: &'static str,
}

/// Plans, measures and prints.
pub fn run(args: &Args, out: &mut impl Write) -> Result<(), CliError> {
    let path = args.model.path();
    let both = args.kv.as_deref().map(str::parse::<KvType>).transpose();
    let both = both.map_err(|error| CliError::usage(format!("--kv: {error}")))?;
    let kv = args.kv_apart.or_both(both).unwrap_or_default();
    let loaded = engine_args::load_to_draft(args.model.source(), args.speculate)?;
    loaded.check_kv(kv)?;
    let Loaded { gguf, model, .. } = loaded;
    // A run has it in memory as well, where there is one.
    let _tokenizer = Tokenizer::from_metadata(gguf.metadata(), None).ok();
    let context = engine_args::context(args.ctx, model.spec().context);
    let threads = engine_args::threads(None);
    let drafts = args.speculate.most(model.spec());
    let options = EngineOptions {
        context,
        batch: DEFAULT_BATCH,
        kv,
        threads,
        isa: None,
        drafts,
        guesses: Guesses::Off,
    };
    let device = args.device.open(model.store().file_bytes())?;
    let budget = Budget::new(args.ram, &model, std::slice::from_ref(&options), 1 + drafts);
    let plan = budget.plan(&model, device.as_ref()).in_file(path)?;
    let direct = match model.store().opened_files().next().filter(|_| !plan.is_mapped()) {
        Some(file) => Some(open_file(file).in_file(file.path())?.is_direct()),
        None => None,
    };
    let disks = Disks::measure(&model, &plan);
    let seconds = disks.seconds_per_token();
    // The memory that the test reads is the first that is asked for in this way.
    let nodes = Nodes::interleave();
    let memory = SpeedTest::new()?.read_speed();
    let of_device = device.as_ref().filter(|_| plan.device.is_some());
    let device_bytes_s = match of_device {
        Some(device) => device.device.weights_speed().unwrap_or_else(|error| {
            tell_of_failure(&error);
            None
        }),
        None => None,
    };
    let report = Report {
        context,
        kv: kv.to_string(),
        budget_bytes: budget.total(),
        other_bytes: budget.other(),
        disk_bytes_s: disks.total(),
        disks: if plan.is_mapped() { Vec::new() } else { disks.report() },
        memory_bytes_s: memory,
        device_name: of_device.map(|device| device.device.info().name.clone()),
        device_bytes_s,
        nodes: (nodes != Nodes::One).then(|| nodes.to_string()),
        expected_tok_s: seconds
            .or(plan.is_mapped().then_some(0.0))
            .map(|seconds| plan.tokens_per_second(seconds, memory, device_bytes_s)),
        bound_by: bound_by(&plan, seconds, memory, device_bytes_s),
        plan: PlanReport::new(&plan, direct),
    };
    let rows = placement::rows(&budget, &plan, &options, direct);
    if args.json { json::write(&report, out) } else { print(&report, rows, &disks, out) }
}

fn bound_by(plan: &Plan, disk_s: Option<f64>, memory: f64, device: Option<f64>) -> &'static str {
    let disk_s = disk_s.unwrap_or(0.0);
    let memory_s = plan.active_bytes / memory;
    let device_s: f64 = plan.device_seconds(device).iter().sum();
    if device_s > disk_s.max(memory_s) {
        "device"
    } else if disk_s > memory_s {
        "disk"
    } else {
        "memory"
    }
}

fn print(
    report: &Report,
    shared: Vec<(&'static str, String)>,
    disks: &Disks,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let rate = |bytes: f64| format!("{}/s", output::bytes(bytes as u64));
    let mut table = output::new_table(&["", ""], &[]);
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    for (name, value) in shared {
        row(name, value);
    }
    if let Some(line) = disks.line() {
        row(if report.disks.is_empty() { "disk" } else { "disks" }, line);
    }
    row("memory", format!("{} measured", rate(report.memory_bytes_s)));
    if let (Some(name), Some(speed)) = (&report.device_name, report.device_bytes_s) {
        row("its speed", format!("{} of weights measured on {}", rate(speed), safe_text::escape(name)));
    }
    if let Some(nodes) = &report.nodes {
        row("its nodes", nodes.clone());
    }
    if let Some(speed) = report.expected_tok_s {
        row("expected", format!("at most {speed:.2} tok/s, bound by the {}", report.bound_by));
    }
    writeln!(out, "{}", table.trim_fmt())?;
    Ok(())
}
