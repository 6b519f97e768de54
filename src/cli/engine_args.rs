//! What the subcommands that run a model share: loading, kernel set, threads, KV cache.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use clap::builder::RangedI64ValueParser;
use clap::{Args, ValueEnum};

use super::device_args::DeviceArgs;
use super::output::tell;
use super::{CliError, InFile, model_arg, safe_text};
use crate::engine::{DEFAULT_BATCH, Engine, EngineError, EngineOptions, Speculation, Threads};
use crate::gguf::{Gguf, Source};
use crate::kernels::Isa;
use crate::model::{KvElement, KvType, Model, ModelError, SequenceState};
use crate::store::Guesses;

/// Context where neither the user nor the model asks for less.
const DEFAULT_CONTEXT: usize = 4096;

#[derive(Args, Debug)]
pub struct EngineArgs {
    /// Worker threads, at most 1024 [default: one a core, or another number where that is found to be faster]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = threads_parser())]
    #[arg(env = "WAYINFER_THREADS")]
    pub threads: Option<u16>,

    #[arg(long, value_name = "SET", help = isa_help(), env = "WAYINFER_ISA")]
    pub isa: Option<Isa>,

    /// Memory that the run may take in all, in GiB (12G) or MiB (800M) [default: what is available]. A model
    /// that does not fit is streamed from disk
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = memory_size)]
    #[arg(env = "WAYINFER_RAM")]
    pub ram: Option<u64>,

    #[command(flatten)]
    pub device: DeviceArgs,

    /// Guess the experts of the next layer and read them ahead, where experts are streamed; changes no
    /// result. `auto`: while most guesses are right
    #[arg(
        long,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_value = "auto",
        default_missing_value = "on"
    )]
    pub guess_experts: GuessExperts,

    #[arg(long, value_name = "TYPE", help = kv_help(), env = "WAYINFER_KV")]
    kv: Option<KvType>,

    #[command(flatten)]
    kv_apart: KvApart,
}

/// Types of keys and of values, where these are not the same.
#[derive(Args, Debug)]
pub struct KvApart {
    /// Type of the keys alone, where values are of another
    #[arg(long, value_name = "TYPE", env = "WAYINFER_KV_K")]
    kv_k: Option<KvElement>,

    /// Type of the values alone
    #[arg(long, value_name = "TYPE", env = "WAYINFER_KV_V")]
    kv_v: Option<KvElement>,
}

impl KvApart {
    /// The types of a KV cache, where any was asked for, be it for both or for one.
    pub fn or_both(&self, both: Option<KvType>) -> Option<KvType> {
        if both.is_none() && self.kv_k.is_none() && self.kv_v.is_none() {
            return None;
        }
        let both = both.unwrap_or_default();
        Some(KvType { keys: self.kv_k.unwrap_or(both.keys), values: self.kv_v.unwrap_or(both.values) })
    }
}

/// When experts are guessed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum GuessExperts {
    Off,
    Auto,
    On,
}

impl From<GuessExperts> for Guesses {
    fn from(when: GuessExperts) -> Guesses {
        match when {
            GuessExperts::Off => Guesses::Off,
            GuessExperts::Auto => Guesses::Auto,
            GuessExperts::On => Guesses::On,
        }
    }
}

impl EngineArgs {
    /// The types of the KV cache, where any was asked for.
    pub fn kv(&self) -> Option<KvType> {
        self.kv_apart.or_both(self.kv)
    }

    /// The options of an engine with a context of this many tokens.
    pub fn options(&self, context: usize) -> EngineOptions {
        EngineOptions {
            context,
            batch: DEFAULT_BATCH,
            kv: self.kv().unwrap_or_default(),
            threads: threads(self.threads),
            isa: self.isa,
            drafts: 0,
            guesses: self.guess_experts.into(),
        }
    }
}

fn isa_help() -> String {
    format!("Kernel set: {} [default: the best that this CPU has]", Isa::names(" or "))
}

fn kv_help() -> String {
    format!("Type of the KV cache: {} [default: {}]", KvElement::names(), KvElement::default())
}

/// Sizes of memory below this are a unit forgotten.
const LEAST_MEMORY: u64 = 1 << 20;

/// A size of memory: binary units, as memory is sold.
pub fn memory_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if bytes < LEAST_MEMORY => Err(format!("{bytes} bytes run nothing; 12G and 800M are sizes")),
        bytes => Ok(bytes),
    }
}

/// A size in binary units.
pub fn size(text: &str) -> Result<u64, String> {
    let sizes = parse_size::Config::new().with_binary();
    sizes.parse_size(text).map_err(|error| format!("{error}; 12G and 800M are sizes"))
}

/// What `--threads` takes: 1 to 1024.
pub fn threads_parser() -> RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=1024)
}

/// The threads to run with: what was asked for, else what is best on this machine.
pub fn threads(asked: Option<u16>) -> Threads {
    asked.map_or_else(Threads::of_this_machine, |n| Threads::Fixed(n.into()))
}

/// The context to run with: what was asked for, else the model's own up to 4096.
pub fn context(asked: Option<NonZeroUsize>, trained: usize) -> usize {
    asked.map_or(trained.min(DEFAULT_CONTEXT), NonZeroUsize::get)
}

/// A model that is ready to run.
pub struct Loaded {
    pub gguf: Gguf,
    pub model: Model,
    /// When loading began, for the statistics.
    pub started: Instant,
}

impl Loaded {
    /// Its file; of a split model the first.
    pub fn path(&self) -> &Path {
        &self.gguf.parts[0].path
    }

    /// Refuses a KV cache that the model cannot have, before it is planned for.
    pub fn check_kv(&self, kv: KvType) -> Result<(), CliError> {
        SequenceState::check(self.model.spec(), kv).in_file(self.path())
    }
}

/// Opens and loads a model.
pub fn load(source: Source<'_>) -> Result<Loaded, CliError> {
    load_by(source, Model::load)
}

/// The same of these layers of a model alone.
pub fn load_stage(source: Source<'_>, layers: Range<usize>) -> Result<Loaded, CliError> {
    load_by(source, |gguf| Model::load_stage(gguf, layers))
}

/// The same of a model that is to draft: with its block of multi-token prediction where that is asked for, or
/// where drafts are to be what pays and the file has one.
pub fn load_to_draft(source: Source<'_>, speculation: Speculation) -> Result<Loaded, CliError> {
    load_by(source, |gguf| match speculation {
        Speculation::Block(_) => Model::load_with_nextn(gguf),
        Speculation::Auto if has_nextn(gguf) => load_with_what_drafts(gguf),
        _ => Model::load(gguf),
    })
}

fn has_nextn(gguf: &Gguf) -> bool {
    gguf.tensors.iter().any(|tensor| tensor.name.ends_with(".nextn.eh_proj.weight"))
}

/// A model whose block is left aside where it cannot be used: nobody has asked for it.
fn load_with_what_drafts(gguf: &Gguf) -> Result<Model, ModelError> {
    let error = match Model::load_with_nextn(gguf) {
        Ok(model) => return Ok(model),
        Err(error) => error,
    };
    let model = Model::load(gguf)?;
    if !matches!(error, ModelError::UnsupportedNextn { .. }) {
        let error = error.to_string();
        let error = safe_text::escape(&error);
        tell!("warning: the block of multi-token prediction is left aside: {error}");
    }
    Ok(model)
}

fn load_by(
    source: Source<'_>,
    load: impl FnOnce(&Gguf) -> Result<Model, ModelError>,
) -> Result<Loaded, CliError> {
    let started = Instant::now();
    let gguf = model_arg::open(source)?;
    let model = load(&gguf).map_err(|error| {
        let hint = match &error {
            ModelError::UnknownArchitecture { .. } | ModelError::UnsupportedType { .. } => {
                Some("`wayinfer inspect` shows what the file holds all the same")
            }
            ModelError::MissingTensor { .. } | ModelError::Metadata(_) => {
                Some("`wayinfer inspect --check` lists everything that is wrong with the file")
            }
            _ => None,
        };
        // The store reads the files and names them itself.
        let named = matches!(error, ModelError::Store(_));
        let error = CliError::from(error);
        let error = if named { error } else { error.in_file(source.path()) };
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    })?;
    Ok(Loaded { gguf, model, started })
}

/// An engine for a model whose weights are in their places.
pub fn open_engine<'m>(loaded: &'m Loaded, options: &EngineOptions) -> Result<Engine<'m>, CliError> {
    Engine::new(&loaded.model, options).map_err(|error| match error {
        EngineError::OutOfMemory(_) => CliError::from(error).hint("a smaller -c/--ctx needs less"),
        _ => error.into(),
    })
}
