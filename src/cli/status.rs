//! What a run tells while it works: a bar over the prompt, a line about the disk once a second.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::cli::output::tell;
use crate::cli::placement::Traffic;
use crate::cli::{CliError, output};
use crate::engine::{Engine, EngineError, Sequence};
use crate::model::{Logits, Node, Observer};
use crate::store::{ResidencyStats, Store};

/// Shows tokens done with every layer: a pass over a streamed model takes long.
struct LayerProgress<'a> {
    show: &'a (dyn Fn(usize) + Sync),
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
        (self.show)(before + part);
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
    prefill_under(ProgressBar::new(ids.len() as u64), engine, sequence, ids, interrupted, verbose)
}

/// The same without a bar.
pub fn prefill_unseen(
    engine: &mut Engine<'_>,
    sequence: &mut Sequence,
    ids: &[u32],
    interrupted: &AtomicBool,
) -> Result<ControlFlow<()>, CliError> {
    prefill_under(ProgressBar::hidden(), engine, sequence, ids, interrupted, false)
}

fn prefill_under(
    bar: ProgressBar,
    engine: &mut Engine<'_>,
    sequence: &mut Sequence,
    ids: &[u32],
    interrupted: &AtomicBool,
    verbose: bool,
) -> Result<ControlFlow<()>, CliError> {
    bar.set_style(bar_style());
    let show = |done: usize| bar.set_position(done as u64);
    let store = engine.model().store();
    let started = Instant::now();
    let fed = feed(engine, sequence, ids, interrupted, &show);
    bar.finish_and_clear();
    match fed {
        Err(EngineError::Interrupted) => return Ok(ControlFlow::Break(())),
        Err(error) => return Err(error.into()),
        Ok(()) => {}
    }
    if verbose {
        let time = started.elapsed();
        let rate = ids.len() as f64 / time.as_secs_f64();
        tell!("prefill: {rate:.2} tok/s{}", disk(store, &store.stats(), ids.len(), time));
    }
    Ok(ControlFlow::Continue(()))
}

fn bar_style() -> ProgressStyle {
    let style = ProgressStyle::with_template("prefill {bar:30} {pos}/{len} tokens, {rate}, {eta} left");
    let rate = |state: &ProgressState, out: &mut dyn fmt::Write| {
        // There is nobody to tell of a failure.
        let _ = write!(out, "{:.1} tok/s", state.per_sec());
    };
    style.unwrap_or_else(|_| ProgressStyle::default_bar()).with_key("rate", rate)
}

/// Feeds the prompt and shows how many of its tokens are done.
fn feed(
    engine: &mut Engine<'_>,
    sequence: &mut Sequence,
    ids: &[u32],
    interrupted: &AtomicBool,
    show: &(dyn Fn(usize) + Sync),
) -> Result<(), EngineError> {
    let before = AtomicUsize::new(0);
    let layers = engine.model().spec().layers.len();
    let batch = engine.batch();
    let mut progress = LayerProgress { show, layers, batch, before: &before, len: ids.len(), interrupted };
    // Of a batch without logits the last layer is not told of.
    let batch_done = |tokens: usize| {
        before.store(tokens, Ordering::Relaxed);
        show(tokens);
        ControlFlow::Continue(())
    };
    engine.feed_observed(sequence, ids, Logits::Last, &mut progress, batch_done)
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
        tell!("{}decode: {rate:.2} tok/s{line}", output::line_start());
        (self.since, self.tokens, self.before) = (Instant::now(), 0, stats);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use indicatif::{ProgressDrawTarget, TermLike};

    use super::*;
    use crate::engine::EngineOptions;
    use crate::gguf::Gguf;
    use crate::model::{KvType, Model};
    use crate::store::Guesses;

    /// What is drawn, without what moves the cursor.
    #[derive(Clone, Debug, Default)]
    struct Drawn(Arc<Mutex<String>>);

    impl TermLike for Drawn {
        fn width(&self) -> u16 {
            100
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }

        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_bar_tells_a_rate_to_one_decimal() {
        let drawn = Drawn::default();
        let bar =
            ProgressBar::with_draw_target(Some(20), ProgressDrawTarget::term_like(Box::new(drawn.clone())));
        bar.set_style(bar_style());
        bar.set_position(7);
        bar.force_draw();
        let drawn = drawn.0.lock().unwrap();
        let (_, rate) = drawn.rsplit_once("7/20 tokens, ").unwrap_or_else(|| panic!("{drawn}"));
        let (rate, left) = rate.split_once(" tok/s, ").unwrap_or_else(|| panic!("{drawn}"));
        assert!(rate.split_once('.').is_some_and(|(_, decimals)| decimals.len() == 1), "{drawn}");
        assert!(left.contains(" left"), "{drawn}");
    }

    /// A prompt of several batches: the bar goes on from one to the next and ends at its end.
    #[test]
    fn progress_goes_on_over_batches() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/dense-q8_0.gguf");
        let model = Model::load(&Gguf::open(path).unwrap()).unwrap();
        let options = EngineOptions {
            context: 64,
            batch: 8,
            kv: KvType::F16,
            threads: 1.into(),
            isa: None,
            drafts: 0,
            guesses: Guesses::Off,
        };
        let mut engine = Engine::new(&model, &options).unwrap();
        let mut sequence = engine.sequence();
        let shown = Mutex::new(Vec::new());
        let show = |done| shown.lock().unwrap().push(done);
        let ids: Vec<u32> = (1..=20).collect();
        feed(&mut engine, &mut sequence, &ids, &AtomicBool::new(false), &show).unwrap();
        let shown = shown.into_inner().unwrap();
        assert!(shown.is_sorted(), "{shown:?}");
        assert!([8, 16].iter().all(|done| shown.contains(done)), "{shown:?}");
        assert_eq!(shown.last(), Some(&20), "{shown:?}");
        // Layers within a batch are seen as well.
        assert!(shown.iter().any(|&done| done > 8 && done < 16), "{shown:?}");
    }
}
