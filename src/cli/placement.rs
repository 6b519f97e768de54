//! Where a model's weights go: the budget of memory, the plan in words, and what came of it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::engine_args::{EngineArgs, Loaded};
use super::{CliError, output};
use crate::model::Model;
use crate::session::SessionOptions;
use crate::store::{
    Plan, ResidencyStats, available_memory_bytes, open_file, peak_rss_bytes, private_bytes, read_speed,
};

/// What is left to others where nobody says how much a run may take: a part of what is available, and so much at least, but never more
/// than half of it.
const HEADROOM_SHARE: u64 = 32;
const LEAST_HEADROOM: u64 = 256 << 20;
/// What a run takes beside what it counts: page tables, readers, the allocator's own.
const MARGIN: u64 = 32 << 20;
const MARGIN_SHARE: u64 = 256;
/// What the program has taken so far is counted in steps: it differs a little from run to run.
const OWN_STEP: u64 = 4 << 20;

fn headroom(available: u64) -> u64 {
    (available / HEADROOM_SHARE).max(LEAST_HEADROOM).min(available / 2)
}

/// How the memory of a run is divided.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// All that it may take.
    total: u64,
    /// Of it, what is no weight: the program's own, KV cache and buffers.
    other: u64,
    /// The most of which page tables take their share.
    weights: u64,
}

impl Budget {
    /// The memory of a run with these sessions, which keep the logits of so many tokens: as much as was asked for, else what is available.
    pub fn new(ram: Option<u64>, model: &Model, sessions: &[SessionOptions], logits: usize) -> Budget {
        let own = private_bytes().unwrap_or(0).next_multiple_of(OWN_STEP);
        let total = ram.unwrap_or_else(|| match available_memory_bytes() {
            Some(available) => available - headroom(available) + own,
            None => u64::MAX,
        });
        let sessions = sessions.iter().map(|session| session.memory_bytes(model.config(), logits));
        let sessions = sessions.fold(0, u64::saturating_add);
        let weights = model.store().file_bytes();
        let other = sessions.saturating_add(own + MARGIN + total.min(weights) / MARGIN_SHARE);
        Budget { total, other, weights }
    }

    /// The least total for weights that need so many bytes.
    fn least(&self, weights: u64) -> u64 {
        let fixed = self.other - self.total.min(self.weights) / MARGIN_SHARE;
        let least = weights.saturating_add(fixed);
        // The share is one of the total, which it adds to.
        least.saturating_add((least.min(self.weights) / (MARGIN_SHARE - 1)).saturating_add(1))
    }

    /// Bytes of it.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes of it that are not for weights.
    pub fn other(&self) -> u64 {
        self.other
    }

    /// The plan for it.
    pub fn plan(&self, model: &Model) -> Result<Plan, CliError> {
        let weights = self.total.saturating_sub(self.other);
        model.store().plan_for(weights).map_err(|shortage| {
            let least = self.least(shortage.least);
            let message = format!(
                "the model cannot be run in {} of memory: {} are needed at the least, {} of them for the KV cache, \
                 buffers and the program itself",
                output::binary_bytes(self.total),
                output::binary_bytes_up(least),
                output::binary_bytes(self.other),
            );
            CliError::new(message).hint("a smaller context (-c) needs less; --ram says how much may be taken")
        })
    }
}

/// Plans for the memory that there is and puts the weights in their places.
pub fn settle(
    loaded: &mut Loaded,
    engine: &EngineArgs,
    sessions: &[SessionOptions],
    logits: usize,
) -> Result<(), CliError> {
    let path = loaded.gguf.parts[0].path.clone();
    warn_of_more_than_there_is(engine.ram);
    let budget = Budget::new(engine.ram, &loaded.model, sessions, logits);
    let plan = budget.plan(&loaded.model).map_err(|error| error.in_file(&path))?;
    loaded.model.settle(plan)?;
    Ok(())
}

/// More than is available is the user's choice, but seldom meant.
fn warn_of_more_than_there_is(ram: Option<u64>) {
    if let Some((ram, available)) =
        ram.zip(available_memory_bytes()).filter(|(ram, available)| ram > available)
    {
        let [ram, available] = [ram, available].map(output::binary_bytes);
        eprintln!("warning: --ram asks for {ram}, where {available} are available");
    }
}

/// A plan in numbers.
#[derive(Serialize)]
pub struct PlanReport {
    /// `mapped` or `streamed`.
    mode: &'static str,
    /// Whether reads go around the page cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_io: Option<bool>,
    weights_bytes: u64,
    weights_budget_bytes: u64,
    pinned_bytes: u64,
    ring_bytes: u64,
    cache_bytes: u64,
    cache_slots: usize,
    experts: usize,
    active_bytes_per_token: f64,
    disk_bytes_per_token: f64,
}

impl PlanReport {
    /// Of a plan; `direct_io` where it is known.
    pub fn new(plan: &Plan, direct_io: Option<bool>) -> PlanReport {
        PlanReport {
            mode: if plan.is_mapped() { "mapped" } else { "streamed" },
            direct_io,
            weights_bytes: plan.total_bytes,
            weights_budget_bytes: plan.budget,
            pinned_bytes: plan.pinned_bytes,
            ring_bytes: plan.ring_bytes,
            cache_bytes: plan.cache_bytes(),
            cache_slots: plan.classes.iter().map(|class| class.slots).sum(),
            experts: plan.classes.iter().map(|class| class.members).sum(),
            active_bytes_per_token: plan.active_bytes,
            disk_bytes_per_token: plan.disk_bytes,
        }
    }
}

/// A plan in a line.
pub fn line(plan: &Plan, direct_io: Option<bool>) -> String {
    let size = output::bytes;
    if plan.is_mapped() {
        return format!("{} of weights, mapped", size(plan.total_bytes));
    }
    let mut line = format!(
        "{} of weights in {}: {} pinned",
        size(plan.total_bytes),
        size(plan.own_bytes()),
        size(plan.pinned_bytes)
    );
    if plan.ring_bytes > 0 {
        let _ = write!(line, ", a ring of {} for what is streamed", size(plan.ring_bytes));
    }
    if !plan.classes.is_empty() {
        let (slots, members) = plan.classes.iter().fold((0, 0), |(s, m), c| (s + c.slots, m + c.members));
        let share = 100.0 * slots as f64 / members as f64;
        let _ = write!(line, ", {} of experts cached ({share:.0} %)", size(plan.cache_bytes()));
    }
    let _ = write!(line, ", {} a token from disk", size(plan.disk_bytes as u64));
    if direct_io == Some(false) {
        line.push_str(" through the page cache: this file system has no direct reads");
    }
    line
}

/// What a run read from disk and waited for.
#[derive(Clone, Debug, Serialize)]
pub struct Traffic {
    tokens: usize,
    seconds: f64,
    /// Experts found in memory and not.
    hits: u64,
    misses: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    hit_rate: Option<f64>,
    /// Experts read on a guess, and those of them that were chosen.
    #[serde(skip_serializing_if = "is_zero")]
    guesses: u64,
    #[serde(skip_serializing_if = "is_zero")]
    right_guesses: u64,
    bytes_read: u64,
    bytes_read_per_token: f64,
    read_bytes_s: f64,
    /// Time in which the run stood still for want of weights.
    wait_s: f64,
    /// Tokens a second if nothing but the reads took time; and the share of it that was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    bound_tok_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fraction_of_bound: Option<f64>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Traffic {
    /// Of so many tokens in a time.
    pub fn new(stats: &ResidencyStats, tokens: usize, time: Duration) -> Traffic {
        let seconds = time.as_secs_f64();
        let lookups = stats.hits + stats.misses;
        let (hit_bytes, bytes) = (stats.hit_bytes as f64, (stats.hit_bytes + stats.miss_bytes) as f64);
        Traffic {
            tokens,
            seconds,
            hits: stats.hits,
            misses: stats.misses,
            hit_rate: (lookups > 0).then_some(hit_bytes / bytes),
            guesses: stats.guesses,
            right_guesses: stats.right_guesses,
            bytes_read: stats.bytes_read,
            bytes_read_per_token: stats.bytes_read as f64 / tokens.max(1) as f64,
            read_bytes_s: stats.bytes_read as f64 / seconds,
            wait_s: stats.wait.as_secs_f64(),
            bound_tok_s: None,
            fraction_of_bound: None,
        }
    }

    /// Adds the bound that a disk of this speed (bytes a second) sets.
    pub fn bounded_by(mut self, disk: Option<f64>) -> Traffic {
        if let Some(disk) = disk.filter(|_| self.bytes_read > 0) {
            let bound = disk / self.bytes_read_per_token;
            self.bound_tok_s = Some(bound);
            self.fraction_of_bound = Some(self.tokens as f64 / self.seconds / bound);
        }
        self
    }

    /// In words.
    pub fn line(&self) -> String {
        let mut line = String::new();
        if let Some(rate) = self.hit_rate {
            let _ = write!(line, "hits {:.1} %, ", rate * 100.0);
        }
        let _ = write!(
            line,
            "{} a token from disk at {}/s, waited {:.1} of {:.1} s",
            output::bytes(self.bytes_read_per_token as u64),
            output::bytes(self.read_bytes_s as u64),
            self.wait_s,
            self.seconds,
        );
        if let Some((bound, fraction)) = self.bound_tok_s.zip(self.fraction_of_bound) {
            let _ = write!(line, ", {:.0} % of the disk's bound of {bound:.2} tok/s", fraction * 100.0);
        }
        line
    }
}

/// What the weights' places came to: of a run that streams.
#[derive(Serialize)]
pub struct Residency {
    plan: PlanReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_bytes_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill: Option<Traffic>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decode: Option<Traffic>,
    peak_rss_bytes: Option<u64>,
}

impl Residency {
    /// Of a model that was settled, and of what it read in the phases of a run. Measures the disk where it is streamed.
    pub fn new(model: &Model, prefill: Option<Traffic>, decode: Option<Traffic>) -> Option<Residency> {
        let store = model.store();
        let plan = store.plan()?;
        // A disk that did better during the run can do better.
        let reached = [&prefill, &decode].into_iter().flatten().map(|traffic| traffic.read_bytes_s);
        let disk = disk_speed(model, plan).map(|speed| reached.fold(speed, f64::max));
        let bounded = |traffic: Option<Traffic>| {
            traffic.filter(|_| !plan.is_mapped()).map(|traffic| traffic.bounded_by(disk))
        };
        Some(Residency {
            plan: PlanReport::new(plan, store.reads_directly()),
            disk_bytes_s: disk,
            prefill: bounded(prefill),
            decode: bounded(decode),
            peak_rss_bytes: peak_rss_bytes(),
        })
    }

    /// The phases in words.
    pub fn lines(&self) -> Vec<String> {
        let phases = [("prefill", &self.prefill), ("decode", &self.decode)];
        let line =
            |(name, traffic): (&str, &Option<Traffic>)| Some(format!("{name}: {}", traffic.as_ref()?.line()));
        phases.into_iter().filter_map(line).collect()
    }
}

/// Bytes a second of the disk that a streamed model lies on, by the largest of its files; `None` where it cannot be told, which
/// takes nothing from a run that is done.
pub fn disk_speed(model: &Model, plan: &Plan) -> Option<f64> {
    let bytes = |path: &&Path| std::fs::metadata(path).map_or(0, |found| found.len());
    let path = model.store().paths().filter(|_| !plan.is_mapped()).max_by_key(bytes)?;
    read_speed(path, &open_file).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_memory_is_shared_with_others() {
        let shared = [4 << 20, 256 << 20, 2 << 30, 64 << 30].map(headroom);
        assert_eq!(shared, [2 << 20, 128 << 20, 256 << 20, 2 << 30]);
    }

    #[test]
    fn the_least_total_leaves_what_the_weights_need() {
        for (total, weights) in [(1 << 20, 5 << 30), (4 << 30, 5 << 30), (u64::MAX, 5 << 30)] {
            let fixed = 100 << 20;
            let other = |total: u64| fixed + total.min(weights) / MARGIN_SHARE;
            let budget = Budget { total, other: other(total), weights };
            for needed in [1 << 20, 300 << 20, 4 << 30, 6 << 30] {
                let least = budget.least(needed);
                assert!(least - other(least) >= needed, "{needed}");
                assert!(least - other(least) <= needed + (needed >> 8) + 2, "{needed}");
            }
        }
    }

    #[test]
    fn traffic_is_held_to_the_disk() {
        let stats = ResidencyStats {
            bytes_read: 4_000,
            hits: 1,
            misses: 3,
            hit_bytes: 1,
            miss_bytes: 3,
            ..Default::default()
        };
        let traffic = Traffic::new(&stats, 4, Duration::from_secs(2)).bounded_by(Some(4_000.0));
        assert_eq!((traffic.bytes_read_per_token, traffic.read_bytes_s), (1_000.0, 2_000.0));
        assert_eq!(
            (traffic.hit_rate, traffic.bound_tok_s, traffic.fraction_of_bound),
            (Some(0.25), Some(4.0), Some(0.5))
        );
        assert_eq!(
            traffic.line(),
            "hits 25.0 %, 1.00 kB a token from disk at 2.00 kB/s, waited 0.0 of 2.0 s, 50 % of the disk's bound of 4.00 tok/s"
        );
    }
}
