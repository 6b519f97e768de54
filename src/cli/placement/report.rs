//! A plan in numbers and in words, and what came of it.

use std::fmt::Write as _;

use serde::Serialize;

use super::Traffic;
use crate::cli::output;
use crate::model::Model;
use crate::store::{Plan, open_file, peak_rss_bytes, read_speed};

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
    /// Of a model that was settled, and of what it read in the phases of a run. Measures the disk where it is
    /// streamed.
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

/// Bytes a second of the disk that a streamed model lies on, by the largest of its files; `None` where it
/// cannot be told, which takes nothing from a run that is done.
pub fn disk_speed(model: &Model, plan: &Plan) -> Option<f64> {
    let files = model.store().opened_files().filter(|_| !plan.is_mapped());
    read_speed(files.max_by_key(|file| file.bytes())?, &open_file).ok().flatten()
}
