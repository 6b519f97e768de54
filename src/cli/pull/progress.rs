//! What a fetch tells while it goes on: a bar where stderr is a terminal, else a line now and then.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::output::{self, tell};
use crate::cli::safe_text::escape;
use crate::hub::Event;

/// Between two lines where there is no bar.
const LINES: Duration = Duration::from_secs(30);
/// Of what was there before, less is hashed in a moment.
const LONG_CHECK: u64 = 1 << 30;

/// See the module.
pub struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    /// When the first bytes came, and how many were there before them.
    started: Option<Instant>,
    before: u64,
    done: u64,
    said: Instant,
    has_told_of_check: bool,
}

impl Progress {
    /// Of what is not known yet.
    pub fn new() -> Progress {
        Progress {
            bar: None,
            total: 0,
            started: None,
            before: 0,
            done: 0,
            said: Instant::now(),
            has_told_of_check: false,
        }
    }

    /// So many bytes are to be there in the end, so many are.
    pub fn expect(&mut self, total: u64, before: u64) {
        (self.total, self.before, self.done) = (total, before, before);
    }

    /// Shows what happens.
    pub fn hear(&mut self, event: &Event<'_>) {
        match event {
            Event::Fetched(done) => self.fetched(*done),
            Event::Checking { done, total } => {
                if !self.has_told_of_check && *total - *done > LONG_CHECK {
                    self.has_told_of_check = true;
                    let total = output::bytes(*total);
                    self.line(&format!("{total} are there from before and are hashed"));
                }
            }
            Event::Waiting => self.line("another process fetches a file of it and is waited for"),
            Event::Again { why, pause } if !pause.is_zero() => {
                self.line(&format!("{why}; tried again in {:.1} s", pause.as_secs_f64()));
            }
            Event::Again { .. } => {}
            Event::Anew { file } => {
                self.line(&format!("{file}: what was there before has another hash; it is fetched anew"));
            }
        }
    }

    fn line(&self, text: &str) {
        let print = || tell!("{}", escape(text));
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn fetched(&mut self, done: u64) {
        self.done = done;
        if self.started.is_none() {
            self.started = Some(Instant::now());
            self.before = self.before.min(done);
        }
        let (total, before) = (self.total, self.before);
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(total).with_style(style()).with_position(before);
            // The rate is that of what comes, not of what was there.
            bar.reset_eta();
            bar
        });
        bar.set_position(done);
        if bar.is_hidden() && self.said.elapsed() > LINES {
            self.said = Instant::now();
            let rate = output::bytes(self.rate() as u64);
            let (done, total) = (output::bytes(done), output::bytes(total));
            tell!("{done} of {total}, {rate}/s");
        }
    }

    /// Bytes a second so far.
    fn rate(&self) -> f64 {
        let seconds = self.started.map_or(0.0, |started| started.elapsed().as_secs_f64());
        self.done.saturating_sub(self.before) as f64 / seconds.max(1e-3)
    }

    /// Takes the bar away for a while.
    pub fn pause(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Takes the bar away, and says what has come where all has.
    pub fn end(mut self, all: bool) {
        self.pause();
        if let (true, Some(started)) = (all, self.started) {
            let fetched = output::bytes(self.done.saturating_sub(self.before));
            let (seconds, rate) = (started.elapsed().as_secs_f64(), output::bytes(self.rate() as u64));
            tell!("{fetched} fetched and checked in {seconds:.1} s, {rate}/s");
        }
    }
}

fn style() -> ProgressStyle {
    let template = "{bar:30} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
