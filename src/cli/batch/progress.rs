//! How a batch goes: a bar where stderr is a terminal, else a line now and then.

use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::cli::output::tell;

/// Between two lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// See the module.
pub struct Progress {
    bar: ProgressBar,
    began: Instant,
    /// Requests of the batch, and those that this run is to answer.
    all: usize,
    left: usize,
    answered: usize,
    errors: usize,
    tokens: u64,
    /// Of the last line.
    told: Instant,
}

impl Progress {
    /// Of a run that is to answer `left` of all requests.
    pub fn new(all: usize, left: usize) -> Progress {
        let bar = ProgressBar::new(left as u64);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} requests{msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let now = Instant::now();
        Progress { bar, began: now, all, left, answered: 0, errors: 0, tokens: 0, told: now }
    }

    /// Takes note of an answer, well or not; so many tokens have been made by now.
    pub fn answered(&mut self, well: bool, tokens: u64) {
        self.answered += 1;
        self.errors += usize::from(!well);
        self.bar.set_position(self.answered as u64);
        self.tick(tokens);
    }

    /// Takes note that time has passed.
    pub fn tick(&mut self, tokens: u64) {
        self.tokens = self.tokens.max(tokens);
        if !self.bar.is_hidden() {
            self.bar.set_message(self.pace());
        } else if self.told.elapsed() >= INTERVAL {
            tell!("{} of {} requests{}", self.answered, self.left, self.pace());
            self.told = Instant::now();
        }
    }

    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.began.elapsed().as_secs_f64().max(1e-3)
    }

    /// Speed, and the time that is left if all go on as those that are answered.
    fn pace(&self) -> String {
        let mut pace = format!(", {:.1} tokens/s", self.tokens_per_second());
        if self.answered > 0 && self.answered < self.left {
            let each = self.began.elapsed().div_f64(self.answered as f64);
            let time = each.mul_f64((self.left - self.answered) as f64);
            pace.push_str(&format!(", {:#} left", HumanDuration(time)));
        }
        pace
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Whether all is answered.
    pub fn is_done(&self) -> bool {
        self.answered == self.left
    }

    /// Tells what has become of the batch.
    pub fn tell(&self, name: &str) {
        let Progress { all, left, answered, errors, tokens, .. } = *self;
        let before = all - left;
        let earlier = if before > 0 { format!(", {before} of them before") } else { String::new() };
        tell!("{} of {all} requests are answered in {name}{earlier}", before + answered);
        if errors > 0 {
            tell!("{errors} of them with errors");
        }
        if tokens > 0 {
            tell!("{tokens} tokens, {:.1} tokens/s", self.tokens_per_second());
        }
        if !self.is_done() {
            tell!("interrupted: the same command goes on from there");
        }
    }
}
