//! `wayinfer trace`: the nodes of a run, kept, or compared with a reference.

mod draw;
mod print;

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args as ClapArgs, Subcommand};
use globset::{Glob, GlobMatcher};

use super::engine_args::{self, EngineArgs, Loaded};
use super::generate::{Prompt, PromptArgs, read_prompt};
use super::output::tell;
use super::output_file::refuse_model_file;
use super::placement;
use super::report::{ReportArgs, ReportFile};
use super::tokenizer_arg::TokenizerArg;
use super::{CliError, InFile, interrupt, model_arg};
use crate::engine::{Engine, EngineOptions, Sequence, Speculation};
use crate::kernels::Isa;
use crate::model::KvType;
use crate::text::EncodeOptions;
use crate::verify::{
    self, CompareOptions, Comparer, Golden, NodeFilter, NodeGraph, PassObserver, Recorder, Statistician,
    Substitute, TensorWriter, Tolerance, VerifyError,
};
use print::{Comparison, Shown};

/// Tokens of a pass, where no reference says otherwise: the logits of all of them are nodes.
const DEFAULT_BATCH: usize = 64;

/// The NMSE that a free run may drift away from a reference, unless asked otherwise.
const FREE_TOLERANCE: f64 = 1e-2;

/// Show, save or compare the values of every node of a forward pass.
///
/// Without a reference: what each node's values look like, or --save to keep them. With --golden FILE
/// (captured from ggml, or saved before) or --against SET (another kernel set, side by side): how far each
/// node is from it, and where the two first part. Ends with 1 where a node is beyond the tolerance.
#[derive(ClapArgs, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    /// GGUF file, any one of a split model, `hf:USER/REPO[:QUANT]` for a model of the hub, or `demo`
    #[arg(short, long, value_name = "MODEL", env = "WAYINFER_MODEL")]
    model: Option<PathBuf>,

    #[command(flatten)]
    prompt: PromptArgs,

    #[command(flatten)]
    tokenizer: TokenizerArg,

    /// Tokens to go on with after the prompt, the most probable each time [default: 0; as many as the
    /// reference has]
    #[arg(short = 'n', long, value_name = "N", allow_negative_numbers = true)]
    steps: Option<usize>,

    /// Tokens in a pass [default: 64, or what the reference was made with]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    batch: Option<NonZeroUsize>,

    /// The nodes of the model's block of multi-token prediction, which runs the prompt in one pass, in the
    /// place of the model's own
    #[arg(long, conflicts_with_all = ["golden", "against", "steps", "batch"])]
    mtp: bool,

    /// Write the nodes to this file (safetensors)
    #[arg(long, value_name = "FILE", group = "written")]
    #[arg(conflicts_with_all = ["golden", "against", "worst", "tolerance", "json"])]
    save: Option<PathBuf>,

    /// Compare with the nodes of this file; prompt, tokens and KV type are the file's
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "file", "ids_file", "against"])]
    golden: Option<PathBuf>,

    /// Compare with a run on this kernel set; --isa names the one to check
    #[arg(long, value_name = "SET")]
    against: Option<Isa>,

    /// Compute every node from the reference's values: each is judged alone
    #[arg(long)]
    isolate: bool,

    /// Go on with the reference's values where a rounding came out otherwise or other experts were chosen:
    /// the arithmetic alone is judged
    #[arg(long, conflicts_with = "isolate")]
    same_roundings: bool,

    #[command(flatten)]
    compare: CompareArgs,

    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Compare two files of nodes; the first is the reference
    Diff {
        #[arg(value_name = "REFERENCE")]
        first: PathBuf,
        #[arg(value_name = "FILE")]
        second: PathBuf,
        #[command(flatten)]
        compare: CompareArgs,
    },
}

/// What is compared and shown.
#[derive(ClapArgs, Debug)]
struct CompareArgs {
    /// Only these layers: 3, or 0-3
    #[arg(long, value_name = "LAYERS", value_parser = layers)]
    layers: Option<RangeInclusive<usize>>,

    /// Only nodes of these names, as in 'ffn_*'
    #[arg(long, value_name = "GLOB", value_parser = glob)]
    nodes: Option<GlobMatcher>,

    /// Show only the N nodes that are furthest from the reference
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    worst: Option<usize>,

    /// The NMSE allowed; 0 asks for the same bits [default: 0; with --golden 0.01; with --golden and
    /// --isolate the stated bound of each node]
    #[arg(long, value_name = "NMSE", allow_negative_numbers = true, value_parser = tolerance)]
    tolerance: Option<f64>,

    /// One JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    report: ReportArgs,
}

fn layers(text: &str) -> Result<RangeInclusive<usize>, String> {
    let number =
        |text: &str| text.parse::<usize>().map_err(|_| "a layer or two with a dash are needed".to_owned());
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let range = number(from)?..=number(to)?;
    if range.is_empty() { Err("the first layer comes after the last".to_owned()) } else { Ok(range) }
}

fn glob(text: &str) -> Result<GlobMatcher, String> {
    Glob::new(text).map(|glob| glob.compile_matcher()).map_err(|e| e.to_string())
}

fn tolerance(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&v: &f64| v >= 0.0).ok_or_else(|| "a number of at least 0 is needed".to_owned())
}

impl Args {
    fn substitute(&self) -> Substitute {
        match (self.isolate, self.same_roundings) {
            (true, _) => Substitute::Everywhere,
            (false, true) => Substitute::Roundings,
            (false, false) => Substitute::Nowhere,
        }
    }
}

impl CompareArgs {
    fn filter(&self) -> NodeFilter {
        NodeFilter { layers: self.layers.clone(), names: self.nodes.clone() }
    }

    fn tolerance(&self) -> Option<Tolerance> {
        self.tolerance.map(|nmse| if nmse == 0.0 { Tolerance::SameBits } else { Tolerance::Nmse(nmse) })
    }
}

/// See [`Args`].
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    if let Some(Command::Diff { first, second, compare }) = &args.command {
        return diff(first, second, compare);
    }
    let Some(model) = &args.model else {
        return Err(CliError::usage("no model").hint("give -m/--model, or `trace diff` and two files"));
    };
    let option = match args.substitute() {
        Substitute::Everywhere => Some("--isolate"),
        Substitute::Roundings => Some("--same-roundings"),
        Substitute::Nowhere if args.compare.worst.is_some() => Some("--worst"),
        Substitute::Nowhere if args.compare.report.is_asked_for() => Some("--report"),
        Substitute::Nowhere => args.compare.tolerance.map(|_| "--tolerance"),
    };
    if let Some(option) = option.filter(|_| args.golden.is_none() && args.against.is_none()) {
        let error = CliError::usage(format!("{option} without a reference"));
        return Err(error.hint("give --golden or --against"));
    }
    // What would be in the way at the end is told before the work.
    let writer = args.save.as_deref().map(|path| create(path, args.compare.report.force)).transpose()?;
    let report = args.compare.report.create()?;
    match &args.golden {
        Some(golden) => against_file(args, model, golden, report),
        None => {
            let prompt = read_prompt(&args.prompt)?;
            let block = if args.mtp { Speculation::Block(None) } else { Speculation::Off };
            let mut loaded = engine_args::load_to_draft(model_arg::source(model), block)?;
            if let Some(path) = &args.save {
                refuse_model_file(&loaded.gguf, path)?;
            }
            let prompt = encode(args, &loaded, model, prompt)?;
            match (args.against, writer) {
                (Some(reference), _) => against_set(args, &mut loaded, &prompt, reference, report),
                (None, Some(writer)) => save(args, &mut loaded, &prompt, writer),
                (None, None) => statistics(args, &mut loaded, &prompt),
            }
        }
    }
}

fn create(path: &Path, force: bool) -> Result<TensorWriter, CliError> {
    interrupt::leave_nothing_behind()?;
    TensorWriter::create(path, force).map_err(|error| {
        let exists = matches!(error, verify::TensorFileError::Exists { .. });
        let error = CliError::from(error);
        if exists { error.hint("--force overwrites it") } else { error }
    })
}

fn encode(args: &Args, loaded: &Loaded, model: &Path, prompt: Prompt) -> Result<Vec<u32>, CliError> {
    let ids = match prompt {
        Prompt::Ids(ids) => ids,
        Prompt::Text(text) => {
            let tokenizer = args.tokenizer.tokenizer(&loaded.gguf)?;
            let options = EncodeOptions { add_special: true, parse_special: true };
            tokenizer.encode(&text, options).in_file(model)?
        }
    };
    match ids.is_empty() {
        true => {
            Err(CliError::new("the prompt is empty and the model has no token to begin with").in_file(model))
        }
        false => Ok(ids),
    }
}

/// The options of an engine for a prompt and some steps; those of the command line, but for the batch.
fn options(args: &Args, prompt: &[u32], steps: usize, batch: usize) -> Result<EngineOptions, CliError> {
    let tokens = prompt.len().checked_add(steps).ok_or_else(|| CliError::usage("too many steps"))?;
    let batch = if args.mtp { prompt.len() } else { args.batch.map_or(batch, NonZeroUsize::get) };
    Ok(EngineOptions { batch, ..args.engine.options(tokens) })
}

fn against_file(
    args: &Args,
    model: &Path,
    golden: &Path,
    report: Option<ReportFile>,
) -> Result<ExitCode, CliError> {
    let golden = Golden::open(golden)?;
    let mut loaded = engine_args::load(model_arg::source(model))?;
    args.compare.report.refuse_model_file(&loaded.gguf)?;
    let path = golden.tensors().path().display();
    let description = golden.description();
    if let Some(asked) = args.engine.kv().filter(|asked| asked.to_string() != description.kv) {
        let message = format!("--kv {asked}, where the nodes of {path} are of a cache of {}", description.kv);
        return Err(CliError::usage(message).hint("leave --kv out"));
    }
    let kv: KvType = description
        .kv
        .parse()
        .map_err(|e| CliError::new(format!("{path}: KV cache of type {}: {e}", description.kv)))?;
    let steps = args.steps.unwrap_or(description.decode_steps);
    if steps > golden.greedy().len() {
        let message = format!("{path}: has {} tokens to go on with, not {steps}", golden.greedy().len());
        return Err(CliError::new(message));
    }
    let prompt = golden.prompt();
    let batch = description.batch.unwrap_or(prompt.len());
    let options = EngineOptions { kv, ..options(args, prompt, steps, batch)? };
    let default = if args.isolate { Tolerance::Bounds } else { Tolerance::Nmse(FREE_TOLERANCE) };
    let compare = compare_options(args, default, &options);
    let graph = graph(&loaded)?;
    placement::settle(&mut loaded, &args.engine, std::slice::from_ref(&options), options.batch)?;
    let mut engine = engine_args::open_engine(&loaded, &options)?;
    let mut sequence = engine.sequence();
    let mut comparer = Comparer::new(&graph, golden.reference(), compare);
    verify::run(&mut engine, &mut sequence, prompt, steps, &mut comparer).map_err(|error| match error {
        // What is wrong with the reference, and what with the model.
        VerifyError::Shape { .. } | VerifyError::Choice { .. } => {
            CliError::from(error).in_file(golden.tensors().path())
        }
        VerifyError::Tensors(_) => error.into(),
        _ => CliError::from(error).in_file(model),
    })?;
    let (reports, only_ours, reference) = comparer.finish();
    let isa = engine.isa();
    let comparison = Comparison {
        reference: path.to_string(),
        subject: format!("{} on {isa}", model.display()),
        substitute: args.substitute(),
        graph: &graph,
        reports: &reports,
        only_reference: reference.unseen(),
        only_subject: only_ours,
    };
    finish(&comparison, &args.compare, report)
}

/// Draws and prints a comparison.
fn finish(
    comparison: &Comparison<'_>,
    compare: &CompareArgs,
    report: Option<ReportFile>,
) -> Result<ExitCode, CliError> {
    if let Some(report) = report.filter(|_| !comparison.reports.is_empty()) {
        report.write(draw::page(comparison))?;
    }
    print::comparison(comparison, &shown(compare))
}

/// The nodes of a model, and what each is computed from.
fn graph(loaded: &Loaded) -> Result<NodeGraph<'static>, CliError> {
    let graph = loaded.model.graph().in_file(&loaded.gguf.parts[0].path)?;
    Ok(NodeGraph::new(&graph))
}

fn compare_options(args: &Args, default: Tolerance, options: &EngineOptions) -> CompareOptions {
    CompareOptions {
        substitute: args.substitute(),
        tolerance: args.compare.tolerance().unwrap_or(default),
        kv: options.kv,
        positions: options.context,
        filter: args.compare.filter(),
        flips: true,
    }
}

fn shown(compare: &CompareArgs) -> Shown {
    Shown { worst: compare.worst, json: compare.json }
}

fn against_set(
    args: &Args,
    loaded: &mut Loaded,
    prompt: &[u32],
    set: Isa,
    report: Option<ReportFile>,
) -> Result<ExitCode, CliError> {
    args.compare.report.refuse_model_file(&loaded.gguf)?;
    let steps = args.steps.unwrap_or(0);
    let options = options(args, prompt, steps, DEFAULT_BATCH)?;
    let other = EngineOptions { isa: Some(set), ..options.clone() };
    placement::settle(loaded, &args.engine, &[options.clone(), other.clone()], options.batch)?;
    let mut engine = engine_args::open_engine(loaded, &options)?;
    if engine.isa() == set && args.engine.isa.is_none() {
        let message = format!("the run to check is on {set} already");
        return Err(CliError::usage(message).hint("--isa names another kernel set"));
    }
    let mut reference = engine_args::open_engine(loaded, &other)?;
    let graph = graph(loaded)?;
    let compare = compare_options(args, Tolerance::SameBits, &options);
    let reports = verify::compare_runs(&mut reference, &mut engine, &graph, prompt, steps, compare)
        .in_file(&loaded.gguf.parts[0].path)?;
    let comparison = Comparison {
        reference: set.to_string(),
        subject: engine.isa().to_string(),
        substitute: args.substitute(),
        graph: &graph,
        reports: &reports,
        only_reference: Vec::new(),
        only_subject: Vec::new(),
    };
    finish(&comparison, &args.compare, report)
}

fn save(
    args: &Args,
    loaded: &mut Loaded,
    prompt: &[u32],
    writer: TensorWriter,
) -> Result<ExitCode, CliError> {
    let steps = args.steps.unwrap_or(0);
    let options = options(args, prompt, steps, DEFAULT_BATCH)?;
    placement::settle(loaded, &args.engine, std::slice::from_ref(&options), options.batch)?;
    let mut engine = engine_args::open_engine(loaded, &options)?;
    let mut sequence = engine.sequence();
    let mut recorder = Recorder::new(writer, args.compare.filter());
    watch(args, (&mut engine, &mut sequence), prompt, steps, &mut recorder)
        .in_file(&loaded.gguf.parts[0].path)?;
    let kv = options.kv.to_string();
    let nodes = recorder.finish(prompt, &kv, engine.batch())?;
    tell!("{nodes} nodes of {} passes kept", prompt.len().div_ceil(engine.batch()) + steps);
    Ok(ExitCode::SUCCESS)
}

/// Runs what the arguments ask for.
fn watch(
    args: &Args,
    (engine, sequence): (&mut Engine<'_>, &mut Sequence),
    prompt: &[u32],
    steps: usize,
    observer: &mut dyn PassObserver,
) -> Result<(), VerifyError> {
    match args.mtp {
        true => verify::run_block(engine, sequence, prompt, observer),
        false => verify::run(engine, sequence, prompt, steps, observer),
    }
}

fn statistics(args: &Args, loaded: &mut Loaded, prompt: &[u32]) -> Result<ExitCode, CliError> {
    let steps = args.steps.unwrap_or(0);
    let options = options(args, prompt, steps, DEFAULT_BATCH)?;
    placement::settle(loaded, &args.engine, std::slice::from_ref(&options), options.batch)?;
    let mut engine = engine_args::open_engine(loaded, &options)?;
    let mut sequence = engine.sequence();
    let mut statistician = Statistician::new(args.compare.filter());
    watch(args, (&mut engine, &mut sequence), prompt, steps, &mut statistician)
        .in_file(&loaded.gguf.parts[0].path)?;
    print::statistics(&statistician.finish(), args.compare.json)
}

fn diff(first: &Path, second: &Path, compare: &CompareArgs) -> Result<ExitCode, CliError> {
    let report = compare.report.create()?;
    let (first, second) = (Golden::open(first)?, Golden::open(second)?);
    let options = CompareOptions {
        substitute: Substitute::Nowhere,
        tolerance: compare.tolerance().unwrap_or(Tolerance::SameBits),
        kv: KvType::F32,
        positions: 0,
        filter: compare.filter(),
        flips: false,
    };
    if first.prompt() != second.prompt() {
        tell!("warning: the prompts differ");
    }
    let diff = verify::diff(&first, &second, options)?;
    let comparison = Comparison {
        reference: first.tensors().path().display().to_string(),
        subject: second.tensors().path().display().to_string(),
        substitute: Substitute::Nowhere,
        graph: &diff.graph,
        reports: &diff.reports,
        only_reference: diff.only_first,
        only_subject: diff.only_second,
    };
    finish(&comparison, compare, report)
}
