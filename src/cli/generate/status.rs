//! What a run tells while it works: a bar over the prompt, a line about the disk once a second.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::placement::Traffic;
use crate::cli::{CliError, output};
use crate::model::{Logits, Node, Observer};
use crate::session::{Session, SessionError};
use crate::store::{ResidencyStats, Store};

/// Moves a bar on with every layer: a pass over a streamed model takes long.
struct LayerProgress<'a> {
    bar: ProgressBar,
    layers: usize,
    batch: usize,
    /// Tokens before this pass.
    done: usize,
    len: usize,
    interrupted: &'a AtomicBool,
}

impl Observer for LayerProgress<'_> {
    fn active(&self) -> bool {
        false
    }

    fn computed(&mut self, node: Node) {
        let Some(layer) = node.layer.filter(|_| node.name == "l_out") else { return };
        let batch = self.batch.min(self.len - self.done);
        let part = (batch * (layer + 1)).checked_div(self.layers).unwrap_or(0);
        self.bar.set_position((self.done + part) as u64);
        if layer + 1 == self.layers {
            self.done += batch;
        }
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    fn node(&mut self, _: Node, _: &mut [f32]) {}
}

/// Feeds the prompt under a progress bar; says whether it was broken off.
pub fn prefill(
    session: &mut Session<'_>,
    ids: &[u32],
    interrupted: &AtomicBool,
    verbose: bool,
) -> Result<ControlFlow<()>, CliError> {
    let bar = ProgressBar::new(ids.len() as u64);
    let style = ProgressStyle::with_template("prefill {bar:30} {pos}/{len} tokens, {per_sec}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut progress = LayerProgress {
        bar: bar.clone(),
        layers: session.model().config().layers,
        batch: session.batch(),
        done: 0,
        len: ids.len(),
        interrupted,
    };
    let store = session.model().store();
    let started = Instant::now();
    let fed = session.feed_observed(ids, Logits::Last, &mut progress, |_| ControlFlow::Continue(()));
    bar.finish_and_clear();
    match fed {
        Err(SessionError::Interrupted) => return Ok(ControlFlow::Break(())),
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
