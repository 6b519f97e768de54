//! `--cache`: beginnings of texts that an earlier run has computed, and what is said of them.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;

use super::engine_args::size;
use super::output::{bytes, tell};
use super::safe_text;
use crate::engine::{Engine, ModelId, PrefixCache, PrefixFolder, Sequence};
use crate::gguf::Gguf;

#[derive(Args, Debug)]
pub struct CacheArgs {
    /// Keep in this folder what is computed of a text, and read back what a run that began alike has left
    /// there: the same bits, sooner. Its files hold what was said; others cannot read them
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,

    /// What the folder may hold; what has not been used for the longest time goes first
    #[arg(long, value_name = "SIZE", default_value = "8G", value_parser = size)]
    pub cache_size: u64,
}

/// A cache, if there is one. Whatever is wrong with it is told of, and the run goes on without.
pub struct Cache(Option<PrefixCache>);

/// A model that takes longer to be read than this is told of.
const LONG: Duration = Duration::from_secs(2);

impl Cache {
    /// The cache in a folder, for sequences of an engine that runs this model. Without a folder there is none.
    pub fn open(
        folder: Option<&Path>,
        limit: u64,
        (gguf, engine): (&Gguf, &Engine<'_>),
        interrupted: &AtomicBool,
    ) -> Cache {
        let Some(path) = folder else { return Cache(None) };
        let started = Instant::now();
        let mut told = false;
        let progress = |_: u64, all: u64| {
            if !told && started.elapsed() > LONG {
                told = true;
                tell!("the cache knows a model by all its bytes: {} are read, once", bytes(all));
            }
            match interrupted.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let opened = PrefixFolder::open(path).and_then(|folder| {
            let (model, _) = ModelId::of(gguf, &folder, progress)?;
            Ok(PrefixCache::new(folder, limit, model, engine))
        });
        match opened {
            Ok(cache) => Cache(Some(cache)),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Cache(None),
            Err(error) => {
                warn(&format!("{}: there is no cache: {error}", path.display()));
                Cache(None)
            }
        }
    }

    /// Brings a sequence as far into these tokens as the cache goes, and says so; returns how many it has now
    /// and had not before.
    pub fn restore(&mut self, sequence: &mut Sequence, ids: &[u32]) -> usize {
        let Some(cache) = &mut self.0 else { return 0 };
        let restored = cache.restore(sequence, ids);
        cache.take_warnings().iter().for_each(|warning| warn(warning));
        let n = restored.positions;
        if n > 0 {
            let (all, time) = (ids.len(), restored.time.as_secs_f64());
            tell!("prompt: {n} of {all} tokens from the cache, {} in {time:.2} s", bytes(restored.bytes));
        }
        n
    }

    /// Keeps what a prompt has made, where that could not be told from what follows it any more: a later run
    /// goes on from ends alone.
    pub fn keep_prompt(&mut self, sequence: &Sequence) {
        if self.0.as_ref().is_some_and(PrefixCache::keeps_ends_alone) {
            self.keep(sequence);
        }
    }

    /// Keeps what a sequence remembers.
    pub fn keep(&mut self, sequence: &Sequence) {
        let Some(cache) = &mut self.0 else { return };
        cache.keep(sequence);
        cache.take_warnings().iter().for_each(|warning| warn(warning));
    }
}

fn warn(what: &str) {
    tell!("warning: {}", safe_text::escape(what));
}
