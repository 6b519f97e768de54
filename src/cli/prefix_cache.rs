//! `--cache`: beginnings of texts that an earlier run has computed, and what is said of them.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;

use super::engine_args::size;
use super::output::{bytes, tell};
use super::{CliError, safe_text};
use crate::engine::{Engine, ModelId, PrefixCache, PrefixFolder, Sequence};
use crate::gguf::Gguf;

#[derive(Args, Debug)]
pub struct CacheArgs {
    /// Keep in this folder what is computed of a text, and read back what a run that began alike has left
    /// there: the same bits, sooner. Its files hold what was said; others cannot read them
    #[arg(long, value_name = "DIR", env = "WAYINFER_CACHE")]
    pub cache: Option<PathBuf>,

    /// What the folder may hold; what has not been used for the longest time goes first
    #[arg(long, value_name = "SIZE", default_value = "8G", value_parser = size, env = "WAYINFER_CACHE_SIZE")]
    pub cache_size: u64,
}

/// A cache, if there is one. Whatever is wrong with it is told of, and the run goes on without.
pub struct Cache {
    cache: Option<PrefixCache>,
    /// Where another run's text parts from this one's.
    parts_at: Option<usize>,
}

/// See [`Cache::open`].
pub fn open(
    folder: Option<&Path>,
    limit: u64,
    (gguf, engine): (&Gguf, &Engine<'_>),
    interrupted: &AtomicBool,
) -> Option<PrefixCache> {
    let path = folder?;
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
    let cache = opened.map_err(|error| {
        if error.kind() != std::io::ErrorKind::Interrupted {
            warn(&format!("{}: there is no cache: {error}", path.display()));
        }
    });
    cache.ok()
}

/// A model that takes longer to be read than this is told of.
const LONG: Duration = Duration::from_secs(2);

impl Cache {
    /// The cache in a folder, for sequences of an engine that runs this model. Without a folder there is
    /// none.
    pub fn open(
        folder: Option<&Path>,
        limit: u64,
        (gguf, engine): (&Gguf, &Engine<'_>),
        interrupted: &AtomicBool,
    ) -> Cache {
        Cache { cache: open(folder, limit, (gguf, engine), interrupted), parts_at: None }
    }

    /// Brings a sequence as far into these tokens as the cache goes, and says so; returns how many it has now
    /// and had not before.
    pub fn restore(&mut self, sequence: &mut Sequence, ids: &[u32]) -> usize {
        let Some(cache) = &mut self.cache else { return 0 };
        let restored = cache.restore(sequence, ids);
        cache.take_warnings().iter().for_each(|warning| warn(warning));
        self.parts_at = restored.parts_at;
        let n = restored.positions;
        if n > 0 {
            let (all, time) = (ids.len(), restored.time.as_secs_f64());
            tell!("prompt: {n} of {all} tokens from the cache, {} in {time:.2} s", bytes(restored.bytes));
        }
        n
    }

    /// Feeds what a sequence has not seen of these tokens, and keeps what it could not go back to: a sequence
    /// with a recurrence or a window goes on from where it was kept alone. Whether it was broken off.
    pub fn feed(
        &mut self,
        sequence: &mut Sequence,
        ids: &[u32],
        mut feed: impl FnMut(&mut Sequence, &[u32]) -> Result<ControlFlow<()>, CliError>,
    ) -> Result<ControlFlow<()>, CliError> {
        let past = sequence.past();
        if let Some(at) = self.parts_at.take().filter(|at| (past + 1..ids.len()).contains(at)) {
            if feed(sequence, &ids[past..at])?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            self.keep(sequence);
        }
        let fed = feed(sequence, &ids[sequence.past()..])?;
        if self.cache.as_ref().is_some_and(PrefixCache::keeps_ends_alone) {
            self.keep(sequence);
        }
        Ok(fed)
    }

    /// Keeps what a sequence remembers.
    pub fn keep(&mut self, sequence: &Sequence) {
        let Some(cache) = &mut self.cache else { return };
        cache.keep(sequence);
        cache.take_warnings().iter().for_each(|warning| warn(warning));
    }
}

fn warn(what: &str) {
    tell!("warning: {}", safe_text::escape(what));
}
