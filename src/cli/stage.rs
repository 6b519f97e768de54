//! Stages of a model, opened as the command line opens models: for programs that have this library within them.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;

use clap::{Args, FromArgMatches};
use serde::Serialize;

use super::engine_args::{self, EngineArgs, open_engine};
use super::placement::{self, Room};
use super::sampling_args::SamplingArgs;
use super::tokenizer_arg::TokenizerArg;
use super::{CliError, InFile, config, model_arg};
use crate::engine::{Engine, SamplerConfig, StageId};
use crate::gguf::Gguf;
use crate::text::Tokenizer;

/// How a stage is run.
#[derive(Args, Debug)]
struct StageArgs {
    /// Context of a sequence in tokens [default: the model's, at most 4096]
    #[arg(short = 'c', long, value_name = "N")]
    ctx: Option<NonZeroUsize>,

    /// Sequences that memory is set aside for
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::new(8).expect("8 is not 0"))]
    sequences: NonZeroUsize,

    #[command(flatten)]
    tokenizer: TokenizerArg,

    #[command(flatten)]
    engine: EngineArgs,
}

/// How tokens are chosen.
#[derive(Args, Debug)]
struct DrawArgs {
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// A stage that is ready to run.
pub struct Stage<'m> {
    pub engine: Engine<'m>,
    pub tokenizer: Tokenizer,
    /// Tokens that end a text.
    pub ends: Vec<u32>,
    pub id: StageId,
    /// Sequences that memory was set aside for.
    pub sequences: usize,
    /// Bytes of a full one.
    pub sequence_bytes: u64,
}

/// Options as a subcommand has them. Neither the environment nor a file of settings adds to them: what a program
/// asks for is what it gets.
///
/// # Errors
/// What makes no sense, as it would be told of on the command line.
pub(super) fn parsed<A: Args + FromArgMatches>(args: &[String]) -> Result<A, CliError> {
    let command = config::without_environment(A::augment_args(clap::Command::new("wayinfer")));
    let matches = command.no_binary_name(true).try_get_matches_from(args);
    matches.and_then(|matches| A::from_arg_matches(&matches)).map_err(|error| {
        let text = error.to_string();
        let what = text.split("\n\n").next().unwrap_or_default();
        CliError::usage(what.strip_prefix("error: ").unwrap_or(what))
    })
}

/// Opens these layers of a model, all where none are given, within the memory that there is or that the options
/// say, and runs something with them.
///
/// # Errors
/// As the command line has them.
pub fn open<R>(
    path: &Path,
    layers: Option<Range<usize>>,
    args: &[String],
    run: impl FnOnce(Stage<'_>) -> R,
) -> Result<R, CliError> {
    let args: StageArgs = parsed(args)?;
    let source = model_arg::source(path);
    let mut loaded = match layers {
        Some(layers) => engine_args::load_stage(source, layers)?,
        None => engine_args::load(source)?,
    };
    let tokenizer = args.tokenizer.tokenizer(&loaded.gguf)?;
    let options = args.engine.options(engine_args::context(args.ctx, loaded.model.spec().context));
    let sequence_bytes = options.sequence_bytes(loaded.model.spec());
    let sequences = args.sequences.get();
    let others = sequence_bytes.saturating_mul(sequences as u64 - 1);
    let room = Room::of(&args.engine, &loaded.model)?;
    placement::settle_beside(&mut loaded, room, std::slice::from_ref(&options), sequences, others)?;
    let engine = open_engine(&loaded, &options)?;
    let id = StageId::of(&loaded.gguf, &engine).in_file(loaded.path())?;
    let vocab = loaded.model.spec().vocab as u32;
    let ends = (0..vocab).filter(|&id| tokenizer.is_end_of_generation(id)).collect();
    Ok(run(Stage { engine, tokenizer, ends, id, sequences, sequence_bytes }))
}

/// How tokens are chosen by these options of `wayinfer generate`.
///
/// # Errors
/// What makes no sense.
pub fn sampler(args: &[String]) -> Result<SamplerConfig, CliError> {
    Ok(parsed::<DrawArgs>(args)?.sampling.config(false))
}

/// What a layer takes, or what stands before or behind all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Bytes of its weights.
    pub bytes: u64,
    /// Bytes of them that a token is expected to read.
    pub active: f64,
}

/// What a model takes, layer by layer, by its headers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Costs {
    pub before: Cost,
    pub layers: Vec<Cost>,
    pub behind: Cost,
    /// The layers before which it can be cut.
    pub borders: Vec<usize>,
    /// Values of a token that stages pass on, f32.
    pub row: usize,
    /// Bytes of a full sequence in a layer, on the average.
    pub sequence_bytes: u64,
    pub context: usize,
}

/// What a model takes that is run with these options.
///
/// # Errors
/// A model that cannot be loaded; options that make no sense.
pub fn costs(path: &Path, args: &[String]) -> Result<Costs, CliError> {
    let args: StageArgs = parsed(args)?;
    let loaded = engine_args::load(model_arg::source(path))?;
    let (gguf, model) = (&loaded.gguf, &loaded.model);
    let options = args.engine.options(engine_args::context(args.ctx, model.spec().context));
    let layers = model.all_layers();
    let mut costs = Costs {
        before: Cost::default(),
        layers: vec![Cost::default(); layers],
        behind: Cost::default(),
        borders: model.borders().to_vec(),
        row: model.border_row(),
        sequence_bytes: options.sequence_bytes(model.spec()) / layers.max(1) as u64,
        context: options.context,
    };
    let used = used_of_experts(gguf);
    let ties = gguf.tensor("output.weight").is_none();
    for tensor in &gguf.tensors {
        let share = if tensor.name.contains("_exps.") { used } else { 1.0 };
        let whole = Cost { bytes: tensor.bytes, active: tensor.bytes as f64 * share };
        // Of what is looked up a token takes a row.
        let looked_up = Cost { active: 0.0, ..whole };
        let block =
            tensor.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse::<usize>().ok());
        match block {
            Some(block) => {
                if let Some(cost) = costs.layers.get_mut(block) {
                    cost.add(whole);
                }
            }
            None if tensor.name.starts_with("output") => costs.behind.add(whole),
            None => {
                costs.before.add(if tensor.name.contains("token_embd") { looked_up } else { whole });
                if ties && tensor.name == "token_embd.weight" {
                    costs.behind.add(whole);
                }
            }
        }
    }
    Ok(costs)
}

impl Cost {
    fn add(&mut self, other: Cost) {
        self.bytes += other.bytes;
        self.active += other.active;
    }
}

/// The part of a layer's experts that a token is sent to.
fn used_of_experts(gguf: &Gguf) -> f64 {
    let metadata = gguf.metadata();
    let architecture = metadata.str("general.architecture").ok().flatten().unwrap_or_default();
    let number = |key: &str| metadata.u64(&format!("{architecture}.{key}")).ok().flatten();
    match (number("expert_used_count"), number("expert_count")) {
        (Some(used), Some(count @ 1..)) => used as f64 / count as f64,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(format!("{name}.gguf"))
    }

    #[test]
    fn costs_are_the_files() {
        let path = fixture("moe-per-expert-q4_k_m");
        let gguf = Gguf::open(&path).unwrap();
        let costs = costs(&path, &["--ctx=64".to_owned()]).unwrap();
        let parts = costs.layers.iter().chain([&costs.before, &costs.behind]);
        let all: u64 = parts.map(|cost| cost.bytes).sum();
        let tied = gguf.tensor("output.weight").is_none();
        let embedding = gguf.tensor("token_embd.weight").unwrap().bytes;
        let file: u64 = gguf.tensors.iter().map(|tensor| tensor.bytes).sum();
        assert_eq!(all, file + if tied { embedding } else { 0 });
        assert!(costs.row > 0 && costs.context == 64 && costs.sequence_bytes > 0);
        assert_eq!(costs.borders, (1..costs.layers.len()).collect::<Vec<_>>());
        assert!(super::costs(&path, &["--nothing".to_owned()]).unwrap_err().is_usage());
    }

    #[test]
    fn a_stage_opens_within_its_memory() {
        let path = fixture("dense-q8_0");
        let args = ["--ctx=64".to_owned(), "--sequences=2".to_owned()];
        let layers = open(&path, Some(0..1), &args, |stage| stage.engine.model().layers()).unwrap();
        assert_eq!(layers, 0..1);
        let little = ["--ctx=64".to_owned(), "--ram=1M".to_owned()];
        let error = open(&path, Some(0..1), &little, |_| ()).unwrap_err();
        assert!(error.message().contains("cannot be run in"), "{}", error.message());
        assert!(open(&path, Some(5..99), &args, |_| ()).is_err());
    }

    #[test]
    fn tokens_are_chosen_as_options_say() {
        let config = sampler(&["--temp=0.5".to_owned(), "--seed=7".to_owned()]).unwrap();
        assert_eq!((config.temperature, config.seed), (0.5, 7));
        assert!(sampler(&["--temp=-1".to_owned()]).is_err());
    }
}
