//! `wayinfer bench`: prefill and decode speed on ids that every program can make.

mod draw;
mod profile;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args as ClapArgs;
use serde::Serialize;

use super::engine_args::{self, EngineArgs};
use super::model_arg::ModelArg;
use super::placement::{self, Residency, Traffic};
use super::report::ReportArgs;
use super::{CliError, InFile, output, safe_text};
use crate::engine::{Engine, EngineError, Sequence};
use crate::gguf::Gguf;
use crate::kernels::{Isa, Kernels};
use crate::model::{Logits, NoObserver};
use crate::store::{OutOfMemory, ResidencyStats, available_memory_bytes, peak_rss_bytes, zeroed};
use crate::verify::median;

/// Measure prefill and decode speed.
///
/// Prompt id i is (100 + 7919*i mod 20000) mod vocabulary; decode follows that prompt (or one of DEPTH
/// tokens), feeds id 100 first and then the most probable token, with all logits at every step. One round
/// warms up, medians of the others are reported. Where weights are streamed, every round begins with an empty
/// cache of experts.
#[derive(ClapArgs, Debug)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    /// Prompt tokens of the prefill measurement (0: none)
    #[arg(short = 'p', long, value_name = "N", allow_negative_numbers = true, default_value_t = 512)]
    prompt_tokens: usize,

    /// Tokens of the decode measurement (0: none)
    #[arg(short = 'n', long, value_name = "N", allow_negative_numbers = true, default_value_t = 64)]
    decode_tokens: usize,

    /// Tokens in the context before decode begins [default: the prompt's]
    #[arg(short = 'd', long, value_name = "DEPTH", allow_negative_numbers = true)]
    depth: Option<usize>,

    /// Measured rounds
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, default_value = "5")]
    rounds: NonZeroUsize,

    /// Measure the first round as well: from a cold start, where there is one
    #[arg(long)]
    no_warmup: bool,

    /// Show where the time goes, by kind of work, measured in a round of its own
    #[arg(long)]
    profile: bool,

    /// One JSON object on one line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    report: ReportArgs,

    #[command(flatten)]
    engine: EngineArgs,
}

/// What was measured.
#[derive(Serialize)]
struct Report {
    model: String,
    isa: String,
    threads: usize,
    prompt_tokens: usize,
    decode_tokens: usize,
    depth: usize,
    rounds: usize,
    load_s: f64,
    prefill_tok_s: Option<f64>,
    decode_tok_s: Option<f64>,
    /// When the last round's phases began, for meters outside: seconds of Unix time.
    prefill_began_unix_s: Option<f64>,
    decode_began_unix_s: Option<f64>,
    peak_rss_bytes: Option<u64>,
    /// Where the weights were and what was read from disk, over all measured rounds.
    residency: Option<Residency>,
    /// The kernel that ran for each type of weights.
    kernels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<profile::Profile>,
}

/// See [`Args`].
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    let depth = args.depth.unwrap_or(args.prompt_tokens);
    let context = args
        .prompt_tokens
        .max(depth.checked_add(args.decode_tokens).ok_or_else(|| CliError::usage("depth is too large"))?);
    // What would be in the way at the end is told before the work.
    let file = args.report.create()?;
    let mut loaded = engine_args::load(args.model.source())?;
    args.report.refuse_model_file(&loaded.gguf)?;
    let options = args.engine.options(context);
    placement::settle(&mut loaded, &args.engine, std::slice::from_ref(&options), 1)?;
    let mut engine = engine_args::open_engine(&loaded, &options)?;
    let mut sequence = engine.sequence();
    let load_s = loaded.started.elapsed().as_secs_f64();

    let vocab = loaded.model.spec().vocab;
    let (prompt, deep) = (prompt_ids(args.prompt_tokens, vocab)?, prompt_ids(depth, vocab)?);
    let (mut prefill, mut decode) = (Phase::default(), Phase::default());
    for round in usize::from(args.no_warmup)..=args.rounds.get() {
        let path = args.model.path();
        // No round finds what the one before left.
        loaded.model.store().empty_cache();
        let runs = (
            run_prefill(&mut engine, &mut sequence, &prompt).in_file(path)?,
            run_decode(&mut engine, &mut sequence, &deep, args.decode_tokens).in_file(path)?,
        );
        if round > 0 {
            prefill.runs.extend(runs.0);
            decode.runs.extend(runs.1);
        }
    }
    let profile = match args.profile || file.is_some() {
        true => Some(
            profile::measure(&mut engine, &mut sequence, &prompt, &deep, args.decode_tokens)
                .in_file(args.model.path())?,
        ),
        false => None,
    };
    let report = Report {
        model: args.model.path().display().to_string(),
        isa: engine.isa().to_string(),
        threads: engine.threads(),
        prompt_tokens: args.prompt_tokens,
        decode_tokens: args.decode_tokens,
        depth,
        rounds: args.rounds.get(),
        load_s,
        prefill_tok_s: prefill.rate(),
        decode_tok_s: decode.rate(),
        prefill_began_unix_s: prefill.began(),
        decode_began_unix_s: decode.began(),
        peak_rss_bytes: peak_rss_bytes(),
        residency: Residency::new(&loaded.model, prefill.traffic(), decode.traffic()),
        kernels: kernels(&loaded.gguf, engine.isa()),
        profile,
    };
    if let Some(file) = file {
        file.write(draw::page(&report, &prefill, &decode))?;
    }
    print(&report, args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// The kernels for the types of a model's matrices.
fn kernels(gguf: &Gguf, isa: Isa) -> BTreeMap<String, String> {
    let set = Kernels::by_isa(isa).ok();
    let matrices = gguf.tensors.iter().filter(|tensor| tensor.dims.len() > 1).map(|tensor| tensor.ty);
    matrices.filter_map(|ty| Some((ty.to_string(), set?.name_for(ty)?))).collect()
}

/// The ids of a prompt of so many tokens.
///
/// # Errors
/// Where they and the sequence's copy of them do not fit the memory that there is: a recurrent model may have
/// room for any number of tokens.
fn prompt_ids(tokens: usize, vocab: usize) -> Result<Vec<u32>, OutOfMemory> {
    let bytes = tokens as u128 * size_of::<u32>() as u128;
    if available_memory_bytes().is_some_and(|available| 2 * bytes > u128::from(available)) {
        return Err(OutOfMemory { bytes, what: "the prompt" });
    }
    let mut ids: Vec<u32> = zeroed(&[tokens], "the prompt")?;
    ids.iter_mut().enumerate().for_each(|(i, id)| *id = prompt_id(i, vocab));
    Ok(ids)
}

/// Id `i` of the prompt.
fn prompt_id(i: usize, vocab: usize) -> u32 {
    ((100 + 7919 * i % 20000) % vocab) as u32
}

/// A measured run.
struct Run {
    tokens: usize,
    began: SystemTime,
    time: Duration,
    stats: ResidencyStats,
    /// Its passes.
    steps: Vec<Step>,
}

/// A pass: where it begins, its tokens and what it took.
struct Step {
    position: usize,
    tokens: usize,
    time: Duration,
}

/// The passes of a run as they end.
struct Steps {
    position: usize,
    last: Instant,
    steps: Vec<Step>,
}

impl Steps {
    /// A pass of so many tokens has ended.
    fn step(&mut self, tokens: usize) {
        let now = Instant::now();
        self.steps.push(Step { position: self.position, tokens, time: now - self.last });
        (self.last, self.position) = (now, self.position + tokens);
    }
}

impl Run {
    /// Runs something and takes its time.
    fn of(
        engine: &mut Engine<'_>,
        position: usize,
        tokens: usize,
        run: impl FnOnce(&mut Engine<'_>, &mut Steps) -> Result<(), EngineError>,
    ) -> Result<Run, EngineError> {
        let store = engine.model().store();
        let before = store.stats();
        let (began, start) = (SystemTime::now(), Instant::now());
        let mut steps = Steps { position, last: start, steps: Vec::new() };
        run(engine, &mut steps)?;
        let (time, stats) = (start.elapsed(), store.stats().since(&before));
        Ok(Run { tokens, began, time, stats, steps: steps.steps })
    }
}

/// The measured runs of a kind.
#[derive(Default)]
struct Phase {
    runs: Vec<Run>,
}

impl Phase {
    /// The median of the tokens a second.
    fn rate(&self) -> Option<f64> {
        median(self.runs.iter().map(|run| run.tokens as f64 / run.time.as_secs_f64()).collect())
    }

    /// When the last of them began, in seconds of Unix time.
    fn began(&self) -> Option<f64> {
        let since = self.runs.last()?.began.duration_since(UNIX_EPOCH).ok()?;
        Some(since.as_secs_f64())
    }

    /// Tokens a second at each position where a pass begins: the median of the runs.
    fn rates(&self) -> Vec<(usize, f64)> {
        let mut all: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for step in self.runs.iter().flat_map(|run| &run.steps) {
            all.entry(step.position).or_default().push(step.tokens as f64 / step.time.as_secs_f64());
        }
        all.into_iter().filter_map(|(position, rates)| Some((position, median(rates)?))).collect()
    }

    /// What all of them read.
    fn traffic(&self) -> Option<Traffic> {
        let mut all = ResidencyStats::default();
        let (mut tokens, mut time) = (0, Duration::ZERO);
        for run in &self.runs {
            all.add(&run.stats);
            tokens += run.tokens;
            time += run.time;
        }
        (tokens > 0).then(|| Traffic::new(&all, tokens, time))
    }
}

/// The prompt through an empty sequence, in which it stays.
fn run_prefill(
    engine: &mut Engine<'_>,
    sequence: &mut Sequence,
    prompt: &[u32],
) -> Result<Option<Run>, EngineError> {
    sequence.rewind(0);
    if prompt.is_empty() {
        return Ok(None);
    }
    let prefill = |engine: &mut Engine<'_>, steps: &mut Steps| {
        let mut fed = 0;
        engine.feed_observed(sequence, prompt, Logits::Last, &mut NoObserver, |done| {
            steps.step(done - std::mem::replace(&mut fed, done));
            ControlFlow::Continue(())
        })
    };
    Run::of(engine, 0, prompt.len(), prefill).map(Some)
}

/// Tokens after `deep`, of which the sequence may hold the first ones already.
fn run_decode(
    engine: &mut Engine<'_>,
    sequence: &mut Sequence,
    deep: &[u32],
    tokens: usize,
) -> Result<Option<Run>, EngineError> {
    if tokens == 0 {
        return Ok(None);
    }
    stand_after(engine, sequence, deep)?;
    let decode = |engine: &mut Engine<'_>, steps: &mut Steps| {
        let mut id = prompt_id(0, engine.model().spec().vocab);
        for _ in 0..tokens {
            engine.feed(sequence, &[id], Logits::Last)?;
            id = sequence.argmax()?;
            steps.step(1);
        }
        Ok(())
    };
    Run::of(engine, deep.len(), tokens, decode).map(Some)
}

/// Brings a sequence to where it has seen these tokens, from as many of them as it holds.
fn stand_after(engine: &mut Engine<'_>, sequence: &mut Sequence, tokens: &[u32]) -> Result<(), EngineError> {
    let shared = sequence.tokens().iter().zip(tokens).take_while(|(a, b)| a == b).count();
    let kept = sequence.rewind(shared);
    engine.feed(sequence, &tokens[kept..], Logits::None)
}

fn print(report: &Report, json: bool) -> Result<(), CliError> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if json {
        safe_text::write_json(report, &mut out)?;
        return Ok(());
    }
    let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |r| format!("{r:.2}"));
    let mut table = output::new_table(&["work", "tokens", "tok/s"], &[1, 2]);
    table.add_row(["prefill", &report.prompt_tokens.to_string(), &rate(report.prefill_tok_s)]);
    table.add_row([
        &format!("decode at {}", report.depth),
        &report.decode_tokens.to_string(),
        &rate(report.decode_tok_s),
    ]);
    writeln!(out, "{table}")?;
    let rss = report.peak_rss_bytes.map_or_else(|| "unknown".to_owned(), output::bytes);
    writeln!(
        out,
        "{} | {} | {} threads | load {:.2} s | peak RSS {rss} | medians of {}",
        safe_text::escape(&report.model),
        report.isa,
        report.threads,
        report.load_s,
        report.rounds
    )?;
    let kernels: Vec<_> = report.kernels.iter().map(|(ty, kernel)| format!("{ty}: {kernel}")).collect();
    writeln!(out, "{}", kernels.join(", "))?;
    for line in report.residency.iter().flat_map(Residency::lines) {
        writeln!(out, "{line}")?;
    }
    if let Some(profile) = &report.profile {
        profile::print(&mut out, profile)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_prompt() {
        assert_eq!([0, 1, 2, 3].map(|i| prompt_id(i, 1 << 20)), [100, 8019, 15938, 3857]);
        assert_eq!(prompt_id(1, 512), 8019 % 512);
    }
}
