//! Models as a server asks for them, be it one with a socket or one that answers a batch.

mod folder;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use clap::Args;
use serde_json::Value as Json;

use super::chat::Template;
use super::engine_args::{self, EngineArgs, Loaded, open_engine};
use super::model_arg::ModelArg;
use super::output::tell;
use super::placement::{self, Room};
use super::prefix_cache::{self, CacheArgs};
use super::sampling_args::SamplingArgs;
use super::tokenizer_arg::TokenizerArg;
use super::{CliError, model_arg, safe_text};
use crate::engine::{EngineOptions, SchedulerLimits};
use crate::gguf::{self, Gguf};
use crate::server::{self, Described, Facts, Listed, Models, NotOpened, Opened};
use crate::store::available_memory_bytes;
use crate::text::Tokenizer;
use folder::{Entry, entries, entry};

/// Context where neither the user nor the model asks for less.
const DEFAULT_CONTEXT: usize = 8192;
/// Tokens of prompts in a pass.
const DEFAULT_CHUNK: usize = 128;

/// How models are run.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Tokens of prompts in a pass: what a long prompt delays others by [default: 128; 512 where weights are
    /// streamed]
    #[arg(long, value_name = "N")]
    chunk: Option<NonZeroUsize>,

    /// Context of a request in tokens [default: the model's, at most 8192]
    #[arg(short = 'c', long, value_name = "N", allow_negative_numbers = true, env = "WAYINFER_CTX")]
    ctx: Option<NonZeroUsize>,

    #[arg(long, value_name = "NAME|FILE", help = super::chat::template_help())]
    template: Option<String>,

    #[command(flatten)]
    tokenizer: TokenizerArg,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

/// Requests that run at a time.
#[derive(Clone, Copy, Debug)]
pub enum AtOnce {
    /// So many, with memory for a full context of each.
    Fixed(usize),
    /// As many as memory has room for, and so many at most.
    AsRoomAllows(usize),
}

/// Which models there are.
pub struct Chosen {
    pub model: ModelArg,
    /// All of a folder in its place.
    pub models: Option<PathBuf>,
    /// What the model is called.
    pub alias: Option<String>,
    /// Whether to tell of nothing but what there is to warn of.
    pub quiet: bool,
}

/// See the module.
pub struct Shelf {
    chosen: Chosen,
    at_once: AtOnce,
    run: RunArgs,
    entries: Vec<Entry>,
    /// Bytes that all models may take.
    budget: u64,
    /// Why a model could not be opened last.
    failure: Mutex<Option<CliError>>,
}

impl Shelf {
    /// All that the arguments name; a single model's headers are read, so that what is wrong with it is told at
    /// once.
    pub fn new(chosen: Chosen, at_once: AtOnce, run: RunArgs) -> Result<Shelf, CliError> {
        let entries = match &chosen.models {
            Some(folder) => {
                let entries = entries(folder)?;
                if entries.is_empty() {
                    return Err(CliError::new("there are no GGUF files").in_file(folder));
                }
                entries
            }
            None => {
                if chosen.model.is_demo() && !chosen.quiet {
                    tell!(
                        "the demo answers, a small model that is part of wayinfer; -m MODEL serves another"
                    );
                }
                vec![single(&chosen)?]
            }
        };
        let budget = run.engine.ram.or_else(available_memory_bytes).unwrap_or(u64::MAX);
        Ok(Shelf { chosen, at_once, run, entries, budget, failure: Mutex::default() })
    }

    fn failure(&self) -> std::sync::MutexGuard<'_, Option<CliError>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why a model could not be opened last, with its hint.
    pub fn take_failure(&self) -> Option<CliError> {
        self.failure().take()
    }

    fn entry(&self, name: &str) -> Result<&Entry, CliError> {
        let found = self.entries.iter().find(|entry| entry.listed.name == name);
        found.ok_or_else(|| CliError::new(format!("there is no model {name:?}")))
    }

    fn open(&self, name: &str, taken: u64, run: &mut dyn FnMut(Opened<'_>)) -> Result<(), Failed> {
        let args = &self.run;
        let entry = self.entry(name)?;
        let mut loaded = engine_args::load(model_arg::source(&entry.path))?;
        let tokenizer = args.tokenizer.tokenizer(&loaded.gguf)?;
        let trained = loaded.model.spec().context;
        let context = args.ctx.map_or(trained.min(DEFAULT_CONTEXT), Into::into);
        let options = args.engine.options(context);
        let most = options.batch.min(context);
        let sequence = options.sequence_bytes(loaded.model.spec());
        let ram = if taken > 0 { Some(self.budget.saturating_sub(taken)) } else { args.engine.ram };
        // One model has the device; others that are loaded beside it have the CPU.
        let device =
            if taken > 0 { None } else { args.engine.device.open(loaded.model.store().file_bytes())? };
        let room = Room { ram, device };
        let (parallel, sequence_bytes) = match self.at_once {
            AtOnce::Fixed(n) => (n.min(most), sequence.saturating_mul(n.min(most) as u64)),
            AtOnce::AsRoomAllows(n) => {
                let n = n.min(most);
                (n, placement::room_for_sequences(&loaded.model, ram, &options, n))
            }
        };
        let others = sequence_bytes.saturating_sub(sequence);
        placement::settle_beside(&mut loaded, room, std::slice::from_ref(&options), parallel, others)
            .map_err(|error| Failed { error, for_memory: taken > 0 })?;
        let facts = self.facts(entry, &loaded, tokenizer, &options)?;
        let plan = loaded.model.store().plan();
        if let Some(plan) = plan.filter(|plan| plan.is_placed() && !self.chosen.quiet) {
            tell!("{}", placement::line(plan, loaded.model.store().reads_directly()));
        }
        let is_streamed = plan.is_some_and(|plan| !plan.is_mapped());
        let chunk = if is_streamed { options.batch } else { DEFAULT_CHUNK };
        let limits = SchedulerLimits {
            sequences: parallel,
            chunk: args.chunk.map_or(chunk, Into::into),
            sequence_bytes,
        };
        let engine = open_engine(&loaded, &options)?;
        let folder = args.cache.cache.as_deref();
        let never = AtomicBool::new(false);
        let cache = prefix_cache::open(folder, args.cache.cache_size, (&loaded.gguf, &engine), &never);
        if !self.chosen.quiet {
            tell!("{} is loaded", safe_text::escape(name));
        }
        run(Opened { engine, cache, limits, facts });
        Ok(())
    }

    /// What faces know of a model.
    fn facts(
        &self,
        entry: &Entry,
        loaded: &Loaded,
        tokenizer: Tokenizer,
        options: &EngineOptions,
    ) -> Result<Facts, CliError> {
        let (args, gguf, spec) = (&self.run, &loaded.gguf, loaded.model.spec());
        let template = Template::named_or_own(args.template.as_deref(), gguf)?;
        let ends = (0..spec.vocab as u32).filter(|&id| tokenizer.is_end_of_generation(id)).collect();
        Ok(Facts {
            name: entry.listed.name.clone(),
            template: template.map(|template| {
                let stops = template.stops.iter().map(|&stop| stop.to_owned()).collect();
                server::Template::new(template.source, stops)
            }),
            grammars: std::sync::OnceLock::new(),
            context: options.context,
            trained_context: spec.context,
            vocab: spec.vocab,
            embd: spec.embd,
            ends,
            sampling: args.sampling.config(self.chosen.model.is_demo() && self.chosen.models.is_none()),
            drawing: args.sampling.drawing(),
            architecture: spec.architecture.clone(),
            parameters: gguf.tensors.iter().map(|tensor| tensor.elements()).sum(),
            file_bytes: entry.listed.file_bytes,
            quantization: most_used_type(gguf),
            created: entry.listed.created,
            tokenizer,
        })
    }
}

/// Metadata texts longer than this are not told of.
const LONG_TEXT: usize = 1024;

/// What the headers of a model say.
fn described(args: &RunArgs, gguf: &Gguf) -> Result<Described, CliError> {
    let metadata = gguf.metadata();
    let architecture = metadata.str("general.architecture").ok().flatten().unwrap_or_default();
    let trained = metadata.u64(&format!("{architecture}.context_length")).ok().flatten();
    let trained = trained.and_then(|n| usize::try_from(n).ok()).unwrap_or(DEFAULT_CONTEXT);
    let plain = |(key, value): (&str, &gguf::Value)| {
        let number = value.as_u64().map(Json::from).or(value.as_i64().map(Json::from));
        let number = number.or(value.as_f64().map(Json::from)).or(value.as_bool().map(Json::from));
        let text = || value.as_str().filter(|text| text.len() <= LONG_TEXT).map(Json::from);
        Some((key.to_owned(), number.or_else(text)?))
    };
    Ok(Described {
        architecture: architecture.to_owned(),
        parameters: gguf.tensors.iter().map(|tensor| tensor.elements()).sum(),
        quantization: most_used_type(gguf),
        context: args.ctx.map_or(trained.min(DEFAULT_CONTEXT), Into::into),
        template: Template::named_or_own(args.template.as_deref(), gguf)?.map(|template| template.source),
        metadata: metadata.iter().filter_map(plain).collect(),
    })
}

/// Why a model is not opened, and whether less of others would help.
struct Failed {
    error: CliError,
    for_memory: bool,
}

impl<E: Into<CliError>> From<E> for Failed {
    fn from(error: E) -> Failed {
        Failed { error: error.into(), for_memory: false }
    }
}

/// The model that is served alone.
fn single(chosen: &Chosen) -> Result<Entry, CliError> {
    let path = chosen.model.path();
    let gguf = chosen.model.open()?;
    let stem = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy();
    let of_hub = path.to_str().filter(|_| !path.is_file()).and_then(|text| text.strip_prefix("hf:"));
    let own = || of_hub.map_or_else(|| stem.into_owned(), str::to_owned);
    let name = chosen.alias.clone().unwrap_or_else(own);
    Ok(match path.metadata() {
        Ok(file) if !chosen.model.is_demo() => {
            let mut entry = entry(name, path.to_owned(), &file);
            entry.listed.file_bytes = gguf.parts.iter().map(|part| part.file_bytes).sum();
            entry
        }
        _ => {
            let file_bytes = gguf.parts.iter().map(|part| part.file_bytes).sum();
            Entry { listed: Listed { name, file_bytes, created: 0 }, path: path.to_owned() }
        }
    })
}

/// The type that most bytes of the weights are of.
fn most_used_type(gguf: &Gguf) -> String {
    let mut bytes = BTreeMap::new();
    for tensor in &gguf.tensors {
        *bytes.entry(tensor.ty.to_string()).or_insert(0u64) += tensor.bytes;
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(ty, _)| ty).unwrap_or_default()
}

impl Models for Shelf {
    fn list(&self) -> Vec<Listed> {
        self.entries.iter().map(|entry| entry.listed.clone()).collect()
    }

    fn describe(&self, name: &str) -> Result<Described, String> {
        let described =
            || described(&self.run, &model_arg::open(model_arg::source(&self.entry(name)?.path))?);
        described().map_err(|error| error.message())
    }

    fn bytes(&self, name: &str) -> u64 {
        self.entry(name).map_or(0, |entry| entry.listed.file_bytes)
    }

    fn budget(&self) -> u64 {
        self.budget
    }

    fn open(&self, name: &str, taken: u64, run: &mut dyn FnMut(Opened<'_>)) -> Result<(), NotOpened> {
        let opened = Shelf::open(self, name, taken, run);
        opened.map_err(|Failed { error, for_memory }| {
            let why = error.message();
            *self.failure() = Some(error);
            NotOpened { why, for_memory }
        })
    }

    fn warn(&self, what: &str) {
        tell!("warning: {}", safe_text::escape(what));
    }
}
