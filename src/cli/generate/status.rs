//! What a run tells while it works: a bar over the prompt, a line about the disk once a second.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::placement::Traffic;
use crate::cli::{CliError, output};
use crate::engine::{Engine, EngineError, Sequence};
use crate::model::{Logits, Node, Observer};
use crate::store::{ResidencyStats, Store};

/// Moves a bar on with every layer: a pass over a streamed model takes long.
struct LayerProgress<'a> {
    bar: ProgressBar,
    layers: usize,
    batch: usize,
    /// Tokens before this pass.
    before: &'a AtomicUsize,
    len: usize,
    interrupted: &'a AtomicBool,
}

impl Observer for LayerProgress<'_> {
    fn active(&self) -> bool {
        false
    }

    fn layer_done(&mut self, done: usize) {
        let before = self.before.load(Ordering::Relaxed);
        let batch = self.batch.min(self.len - before);
        let part = (batch * done).checked_div(self.layers).unwrap_or(0);
        self.bar.set_position((before + part) as u64);
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    fn node(&mut self, _: &Node<'_>, _: &mut [f32]) {}
}

/// Feeds the prompt under a progress bar; says whether it was broken off.
pub fn prefill(
    engine: &mut Engine<'_>,
    sequence: &mut Sequence,
    ids: &[u32],
    interrupted: &AtomicBool,
    verbose: bool,
) -> Result<ControlFlow<()>, CliError> {
    let bar = ProgressBar::new(ids.len() as u64);
    let style = ProgressStyle::with_template("prefill {bar:30} {pos}/{len} tokens, {per_sec}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let before = AtomicUsize::new(0);
    let mut progress = LayerProgress {
        bar: bar.clone(),
        layers: engine.model().spec().layers.len(),
        batch: engine.batch(),
        before: &before,
        len: ids.len(),
        interrupted,
    };
    let store = engine.model().store();
    let started = Instant::now();
    // Of a batch without logits the last layer is not told of.
    let batch_done = |tokens: usize| {
        before.store(tokens, Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    let fed = engine.feed_observed(sequence, ids, Logits::Last, &mut progress, batch_done);
    bar.finish_and_clear();
    match fed {
        Err(EngineError::Interrupted) => return Ok(ControlFlow::Break(())),
        Err(error) => return Err(error.into()),
        Ok(()) => {}
    }
    if verbose {
        let time = started.elapsed();
        let rate = ids.len() as f64 / time.as_secs_f64();
        eprintln!("prefill: {rate:.2} tok/s{}", disk(store, &store.stats(), ids.len(), time));
    }
    Ok(ControlFlow::Continue(()))
}

/// What came from the disk, in words; nothing where nothing did.
fn disk(store: &Store, stats: &ResidencyStats, tokens: usize, time: Duration) -> String {
    match store.reads_directly() {
        Some(_) => format!(", {}", Traffic::new(stats, tokens, time).line()),
        None => String::new(),
    }
}

/// Tells how decoding goes, a line about once a second, where it is wanted.
pub struct Status<'a> {
    store: &'a Store,
    wanted: bool,
    since: Instant,
    tokens: usize,
    before: ResidencyStats,
}

impl<'a> Status<'a> {
    const INTERVAL: Duration = Duration::from_secs(1);

    /// Of a run that decodes from now on.
    pub fn new(store: &'a Store, wanted: bool) -> Status<'a> {
        Status { store, wanted, since: Instant::now(), tokens: 0, before: store.stats() }
    }

    /// Takes note of a token.
    pub fn token(&mut self) {
        if !self.wanted {
            return;
        }
        self.tokens += 1;
        let time = self.since.elapsed();
        if time < Status::INTERVAL {
            return;
        }
        let stats = self.store.stats();
        let rate = self.tokens as f64 / time.as_secs_f64();
        let line = disk(self.store, &stats.since(&self.before), self.tokens, time);
        eprintln!("{}decode: {rate:.2} tok/s{line}", output::line_start());
        (self.since, self.tokens, self.before) = (Instant::now(), 0, stats);
    }
}
