//! How a run goes: a bar with the value so far where stderr is a terminal, else a line now and then.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::output::tell;
use crate::verify::perplexity::{Step, Windows};

/// Between two lines.
const INTERVAL: Duration = Duration::from_secs(2);

/// See the module.
pub struct Progress<'a> {
    bar: ProgressBar,
    windows: usize,
    /// Of the last line.
    told: Instant,
    shown: usize,
    interrupted: &'a AtomicBool,
}

impl<'a> Progress<'a> {
    /// Of a run of these windows through so many engines.
    pub fn new(windows: &Windows, runs: usize, interrupted: &'a AtomicBool) -> Progress<'a> {
        let tokens = windows.count() as u64 * windows.scored().end as u64 * runs as u64;
        let bar = ProgressBar::new(tokens);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} tokens, {eta} left{msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Progress { bar, windows: windows.count(), told: Instant::now(), shown: 0, interrupted }
    }

    /// Takes note of a pass.
    pub fn step(&mut self, step: &Step<'_>) -> ControlFlow<()> {
        self.bar.set_position(step.tokens as u64);
        if step.windows > self.shown {
            self.shown = step.windows;
            let line = line(step, self.windows);
            if self.bar.is_hidden() {
                if self.told.elapsed() >= INTERVAL {
                    tell!("{line}");
                    self.told = Instant::now();
                }
            } else {
                self.bar.set_message(format!(", {line}"));
            }
        }
        match self.interrupted.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// The value after so many windows.
fn line(step: &Step<'_>, windows: usize) -> String {
    let perplexity = step.measured.perplexity.perplexity();
    let mut line = format!(
        "window {} of {windows}: perplexity {:.4} ± {:.4}",
        step.windows, perplexity.mean, perplexity.error
    );
    if let Some(divergences) = &step.measured.divergences {
        let kld = divergences.all.kld.mean();
        line.push_str(&format!(", divergence {:.6} ± {:.6}", kld.mean, kld.error));
    }
    line
}
