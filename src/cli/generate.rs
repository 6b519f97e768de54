//! `wayinfer generate`: a prompt in, text out as it is made.

mod draw;
mod printer;
mod prompt;

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;

use super::engine_args::{self, EngineArgs};
use super::grammar_args::GrammarArgs;
use super::model_arg::ModelArg;
use super::output::tell;
use super::placement::{self, Residency, Traffic};
use super::prefix_cache::{Cache, CacheArgs};
use super::report::ReportArgs;
use super::sampling_args::SamplingArgs;
use super::status::{Status, prefill};
use super::tokenizer_arg::TokenizerArg;
use super::{CliError, InFile, interrupt, output, safe_text};
use crate::engine::{
    Candidate, Engine, EngineError, EngineOptions, Sampler, Sequence, Speculation, SpeculationStats,
};
use crate::store::{Plan, peak_rss_bytes};
use crate::text::Tokenizer;
use draw::Watched;
use printer::Printer;
use prompt::encode;
pub(super) use prompt::{Prompt, PromptArgs, read_prompt};

/// Continue a prompt, or answer it with --chat.
///
/// Without a model it is the demo that answers: a small model of sums, comparisons, counting, days and
/// months, spelling and small facts that is part of the program. It answers as with --chat (unless --ids-file
/// is given), and as with --greedy unless an option of sampling is given.
///
/// The text goes to stdout as it is made; progress and statistics to stderr. The same model, prompt and seed
/// give the same text on every CPU and with any number of threads. --report FILE draws the time of each
/// token, where weights are streamed hits, bytes and waiting, and which experts were used.
#[derive(ClapArgs, Debug)]
#[command(mut_group("model_arg", |group| group.required(false)))]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    prompt: PromptArgs,

    /// Wrap the prompt in the model's own chat template
    #[arg(long, conflicts_with = "ids_file")]
    chat: bool,

    /// System message before the prompt, with --chat
    #[arg(long, value_name = "TEXT", conflicts_with = "ids_file", allow_hyphen_values = true)]
    system: Option<String>,

    #[command(flatten)]
    tokenizer: TokenizerArg,

    /// Tokens to make at most [default: until the model ends or the context is full]
    #[arg(short = 'n', long, value_name = "N", allow_negative_numbers = true)]
    max_tokens: Option<usize>,

    /// Context in tokens [default: the model's, at most 4096]
    #[arg(short = 'c', long, value_name = "N", allow_negative_numbers = true, env = "WAYINFER_CTX")]
    ctx: Option<NonZeroUsize>,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    grammar: GrammarArgs,

    /// Go on where the model would end (end tokens are never chosen)
    #[arg(long, conflicts_with_all = ["json_schema", "grammar"])]
    ignore_eos: bool,

    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,

    /// Draft tokens and verify several in one pass, which changes no token: up to N (at most 15) from what
    /// the text repeats, mtp (or mtp:N) by the model's block of multi-token prediction, auto (whichever of
    /// both pays, by measured times), off
    #[arg(long, value_name = "MODE", default_value = "auto", allow_negative_numbers = true)]
    speculate: Speculation,

    /// Show the prompt's tokens and what each token was chosen from, on stderr
    #[arg(long)]
    debug: bool,

    /// Tell on stderr how it goes, about once a second: tok/s and, where weights are streamed, hits, bytes
    /// and waiting
    #[arg(short, long)]
    verbose: bool,

    /// One JSON object on one line, at the end
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    report: ReportArgs,

    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

impl Args {
    /// Whether the prompt goes into the chat template; the demo was trained on nothing else.
    fn chats(&self) -> bool {
        self.chat || (self.model.is_demo() && self.prompt.ids_file.is_none())
    }
}

/// Why the text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum StopReason {
    /// The model chose an end token.
    EndOfText,
    MaxTokens,
    StopString,
    ContextFull,
    Interrupted,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    text: &'a str,
    ids: &'a [u32],
    prompt_ids: &'a [u32],
    /// Tokens of the prompt that came from the cache.
    cached_tokens: usize,
    stop: StopReason,
    seed: u64,
    timings: Timings,
    #[serde(flatten)]
    speculation: SpeculationStats,
    model: String,
    isa: String,
    threads: usize,
    peak_rss_bytes: Option<u64>,
    /// Where the weights were and what was read from disk.
    residency: Option<Residency>,
}

#[derive(Clone, Copy, Serialize)]
struct Timings {
    load_s: f64,
    prefill_tokens: usize,
    prefill_s: f64,
    prefill_tok_s: Option<f64>,
    decode_tokens: usize,
    decode_s: f64,
    decode_tok_s: Option<f64>,
}

pub(super) fn rate(tokens: usize, seconds: f64) -> Option<f64> {
    (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
}

/// See [`Args`]. Ends with the shell's code for an interrupt, 130, where there was one.
pub fn run(args: &Args) -> Result<std::process::ExitCode, CliError> {
    if args.system.is_some() && !args.chats() {
        return Err(CliError::usage("--system is a part of a chat").hint("--chat makes the prompt one"));
    }
    // What would be in the way of the report is told before the work.
    drop(args.report.create_watched()?);
    let prompt = read_prompt(&args.prompt)?;
    let grammar = args.grammar.read()?;
    let mut loaded = engine_args::load_to_draft(args.model.source(), args.speculate)?;
    if args.model.is_demo() {
        tell!("the demo answers, a small model that is part of wayinfer; -m MODEL runs another");
    }
    args.report.refuse_model_file(&loaded.gguf)?;
    let path = args.model.path();
    let tokenizer = args.tokenizer.tokenizer(&loaded.gguf)?;
    let prompt_ids = encode(args, &loaded.gguf, &tokenizer, prompt)?;
    let constraint = grammar.map(|grammar| grammar.constraint(&tokenizer, path)).transpose()?;
    let context = engine_args::context(args.ctx, loaded.model.spec().context);
    if prompt_ids.is_empty() {
        let error = CliError::new("the prompt is empty and the model has no token to begin with");
        return Err(error.in_file(path));
    }
    if prompt_ids.len() > context {
        let message = format!("the prompt has {} tokens, the context {context}", prompt_ids.len());
        return Err(CliError::new(message).hint("-c/--ctx makes the context longer"));
    }
    if context > loaded.model.spec().context {
        let trained = loaded.model.spec().context;
        tell!("warning: a context of {context} tokens, where the model was trained for {trained}");
    }
    let drafts = args.speculate.most(loaded.model.spec());
    let options = EngineOptions { drafts, ..args.engine.options(context) };
    placement::settle(&mut loaded, &args.engine, std::slice::from_ref(&options), 1 + drafts)?;
    if let Some(plan) = loaded.model.store().plan().filter(|plan| plan.is_placed()) {
        tell!("{}", placement::line(plan, loaded.model.store().reads_directly()));
    }
    let mut engine = engine_args::open_engine(&loaded, &options)?;
    let mut sequence = engine.sequence();
    let load_s = loaded.started.elapsed().as_secs_f64();
    // Until here an interrupt has nothing to end cleanly.
    let interrupted = interrupt::watch_to_leave(|| ())?;
    let file = args.report.create_watched()?;

    let config = args.sampling.config(args.model.is_demo());
    let seed = config.seed;
    let mut sampler = Sampler::new(config)?;
    if args.ignore_eos {
        let vocab = 0..loaded.model.spec().vocab as u32;
        sampler.ban(vocab.filter(|&id| tokenizer.is_end_of_generation(id)));
    }
    sampler.read(prompt_ids.iter().copied());
    constraint.into_iter().for_each(|constraint| sampler.constrain(constraint));
    if args.debug {
        show_prompt(&tokenizer, &prompt_ids, &engine);
    }

    let CacheArgs { cache, cache_size } = &args.cache;
    let mut cache = Cache::open(cache.as_deref(), *cache_size, (&loaded.gguf, &engine), &interrupted);
    let cached = cache.restore(&mut sequence, &prompt_ids);
    let started = Instant::now();
    let feed = |sequence: &mut Sequence, ids: &[u32]| {
        prefill(&mut engine, sequence, ids, &interrupted, args.verbose).in_file(path)
    };
    let prefilled = cache.feed(&mut sequence, &prompt_ids, feed)?;
    let prefill_s = started.elapsed().as_secs_f64();
    let prefill_stats = loaded.model.store().stats();

    let started = Instant::now();
    let mut text = Printer::new(&tokenizer, args);
    let mut watched = file.is_some().then(|| Watched::new(loaded.model.store()));
    let Decoded { ids, stop, speculation } = match prefilled {
        ControlFlow::Continue(()) => {
            let run = (&mut engine, &mut sequence, &mut sampler);
            decode(run, &tokenizer, args, &mut text, &interrupted, watched.as_mut())?
        }
        ControlFlow::Break(()) => Decoded::interrupted(),
    };
    let decode_s = started.elapsed().as_secs_f64();
    let decode_stats = loaded.model.store().stats().since(&prefill_stats);
    let text = text.finish()?;
    cache.keep(&sequence);

    // The first token comes from the prefill's logits.
    let decoded = ids.len().saturating_sub(1);
    let prefill_tokens = sequence.past().min(prompt_ids.len()) - cached;
    let timings = Timings {
        load_s,
        prefill_tokens,
        prefill_s,
        prefill_tok_s: rate(prefill_tokens, prefill_s),
        decode_tokens: ids.len(),
        decode_s,
        decode_tok_s: rate(decoded, decode_s),
    };
    let prefill_traffic = Traffic::new(&prefill_stats, prefill_tokens, Duration::from_secs_f64(prefill_s));
    let decode_traffic = Traffic::new(&decode_stats, decoded, Duration::from_secs_f64(decode_s));
    let is_streamed = loaded.model.store().plan().is_some_and(|plan| !plan.is_mapped());
    if let Some((file, watched)) = file.zip(watched) {
        let facts = facts(&path.display().to_string(), &timings, stop, &engine, loaded.model.store().plan());
        let traffic = [("prompt", &prefill_traffic), ("decode", &decode_traffic)];
        let traffic = traffic.map(|(phase, traffic)| format!("{phase}: {}", traffic.line()));
        file.write(draw::page(&facts, &traffic, &watched, loaded.model.spec(), is_streamed))?;
    }
    if args.json {
        let report = Report {
            text: &text,
            ids: &ids,
            prompt_ids: &prompt_ids,
            cached_tokens: cached,
            stop,
            seed,
            timings,
            speculation,
            model: path.display().to_string(),
            isa: engine.isa().to_string(),
            threads: engine.threads(),
            peak_rss_bytes: peak_rss_bytes(),
            residency: Residency::new(&loaded.model, Some(prefill_traffic), Some(decode_traffic.clone())),
        };
        safe_text::write_json(&report, &mut std::io::stdout())?;
    }
    statistics(&timings, &speculation, seed, &engine);
    if decoded > 0 && is_streamed {
        tell!("decode: {}", decode_traffic.line());
    }
    Ok(if stop == StopReason::Interrupted { interrupt::INTERRUPTED.into() } else { 0.into() })
}

/// What ran, for the report.
fn facts(
    model: &str,
    t: &Timings,
    stop: StopReason,
    engine: &Engine<'_>,
    plan: Option<&Plan>,
) -> Vec<(&'static str, String)> {
    let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.2} tok/s"));
    let reason = match stop {
        StopReason::EndOfText => "the model ended",
        StopReason::MaxTokens => "as many as were asked for",
        StopReason::StopString => "a text to stop at",
        StopReason::ContextFull => "the context is full",
        StopReason::Interrupted => "interrupted",
    };
    let mut facts = vec![
        ("model", model.to_owned()),
        ("prompt", format!("{} tokens, {}", t.prefill_tokens, rate(t.prefill_tok_s))),
        ("made", format!("{} tokens, {}: {reason}", t.decode_tokens, rate(t.decode_tok_s))),
        ("kernels", format!("{}, {} threads", engine.isa(), engine.threads())),
        ("peak RSS", peak_rss_bytes().map_or_else(|| "unknown".to_owned(), output::bytes)),
    ];
    if let Some(plan) = plan {
        facts.push(("weights", placement::line(plan, engine.model().store().reads_directly())));
    }
    facts
}

fn show_prompt(tokenizer: &Tokenizer, ids: &[u32], engine: &Engine<'_>) {
    tell!("debug: kernels {}, {} threads, context {}", engine.isa(), engine.threads(), engine.context());
    for (i, &id) in ids.iter().enumerate() {
        tell!("debug: prompt {i}: {id} {}", shown(tokenizer, id));
    }
}

/// A token's text, quoted, with nothing that could move the cursor.
fn shown(tokenizer: &Tokenizer, id: u32) -> String {
    format!("\"{}\"", safe_text::escape_bytes(tokenizer.piece(id, true).unwrap_or_default()))
}

/// The tokens of a text.
struct Decoded {
    ids: Vec<u32>,
    stop: StopReason,
    speculation: SpeculationStats,
}

impl Decoded {
    /// A text that was broken off before its first token.
    fn interrupted() -> Decoded {
        Decoded { ids: Vec::new(), stop: StopReason::Interrupted, speculation: SpeculationStats::default() }
    }
}

/// Draws tokens until something ends the text.
fn decode(
    (engine, sequence, sampler): (&mut Engine<'_>, &mut Sequence, &mut Sampler),
    tokenizer: &Tokenizer,
    args: &Args,
    text: &mut Printer<'_>,
    interrupted: &AtomicBool,
    watched: Option<&mut Watched<'_>>,
) -> Result<Decoded, CliError> {
    let (mut steps, experts) = watched.map(|watched| (&mut watched.steps, &mut watched.experts)).unzip();
    let mut ids = Vec::new();
    let most = args.max_tokens.unwrap_or(usize::MAX);
    let mut status = Status::new(engine.model().store(), args.verbose);
    let tokens = engine.generate(sequence, sampler).speculate(args.speculate, most);
    let mut tokens = tokens.until(interrupted).count(experts);
    let stop = loop {
        if ids.len() >= most {
            break StopReason::MaxTokens;
        }
        if interrupted.load(Ordering::Relaxed) {
            break StopReason::Interrupted;
        }
        let Some(chosen) = tokens.next() else { break StopReason::ContextFull };
        // A pass over a streamed model takes long: it is broken off as well.
        if matches!(chosen, Err(EngineError::Interrupted)) {
            break StopReason::Interrupted;
        }
        let chosen = chosen.in_file(args.model.path())?;
        if args.debug {
            show_choice(tokenizer, ids.len(), chosen, tokens.candidates());
        }
        ids.push(chosen.id);
        status.token();
        if let Some(steps) = &mut steps {
            steps.token();
        }
        if tokenizer.is_end_of_generation(chosen.id) {
            break StopReason::EndOfText;
        }
        if text.push(chosen.id)?.is_break() {
            break StopReason::StopString;
        }
    };
    Ok(Decoded { ids, stop, speculation: tokens.stats() })
}

fn show_choice(tokenizer: &Tokenizer, i: usize, chosen: Candidate, from: &[Candidate]) {
    let others: Vec<_> = from
        .iter()
        .take(5)
        .map(|c| format!("{} {} {:.3}", c.id, shown(tokenizer, c.id), c.probability))
        .collect();
    tell!("debug: token {i}: {} {} of [{}]", chosen.id, shown(tokenizer, chosen.id), others.join(", "));
}

fn statistics(t: &Timings, speculation: &SpeculationStats, seed: u64, engine: &Engine<'_>) {
    let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |r| format!("{r:.2}"));
    let SpeculationStats { drafted, accepted, passes } = speculation;
    let drafts = match drafted {
        0 => String::new(),
        _ => format!(" in {passes} passes, {accepted} of {drafted} drafted accepted"),
    };
    tell!(
        "load {:.2} s | prefill {} tokens, {} tok/s | decode {} tokens, {} tok/s{drafts} | \
         peak RSS {} | {} x {} | seed {seed}",
        t.load_s,
        t.prefill_tokens,
        rate(t.prefill_tok_s),
        t.decode_tokens,
        rate(t.decode_tok_s),
        peak_rss_bytes().map_or_else(|| "unknown".to_owned(), output::bytes),
        engine.threads(),
        engine.isa(),
    );
}
