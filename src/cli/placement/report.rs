//! A plan in numbers and in words, and what came of it.

use std::sync::Arc;

use serde::Serialize;

use super::Traffic;
use crate::cli::output;
use crate::model::Model;
use crate::store::{
    DevicePlan, DeviceStats, DiskLoad, Plan, disk_seconds, open_file, peak_rss_bytes, read_speeds,
};

/// A plan in numbers.
#[derive(Debug, Serialize)]
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
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<DevicePlanReport>,
    active_bytes_per_token: f64,
    disk_bytes_per_token: f64,
}

/// What is on a device, in numbers.
#[derive(Debug, Serialize)]
struct DevicePlanReport {
    weights_budget_bytes: u64,
    always_bytes: u64,
    kv_bytes: u64,
    cache_bytes: u64,
    cache_slots: usize,
    experts: usize,
    active_bytes_per_token: f64,
}

impl DevicePlanReport {
    fn new(plan: &DevicePlan) -> DevicePlanReport {
        let (cache_slots, experts) = plan.slots_and_experts();
        DevicePlanReport {
            weights_budget_bytes: plan.budget,
            always_bytes: plan.always_bytes,
            kv_bytes: plan.kv_bytes,
            cache_bytes: plan.cache_bytes(),
            cache_slots,
            experts,
            active_bytes_per_token: plan.active_bytes,
        }
    }
}

impl PlanReport {
    /// Of a plan; `direct_io` where it is known.
    pub fn new(plan: &Plan, direct_io: Option<bool>) -> PlanReport {
        let (cache_slots, experts) = plan.slots_and_experts();
        PlanReport {
            mode: if plan.is_mapped() { "mapped" } else { "streamed" },
            direct_io,
            weights_bytes: plan.total_bytes,
            weights_budget_bytes: plan.budget,
            pinned_bytes: plan.pinned_bytes,
            ring_bytes: plan.ring_bytes,
            cache_bytes: plan.cache_bytes(),
            cache_slots,
            experts,
            device: plan.device.as_ref().map(DevicePlanReport::new),
            active_bytes_per_token: plan.active_bytes,
            disk_bytes_per_token: plan.disk_bytes,
        }
    }
}

/// What the weights' places came to: of a run that streams.
#[derive(Serialize)]
pub struct Residency {
    plan: PlanReport,
    /// Of all disks together.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_bytes_s: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    disks: Vec<DiskReport>,
    /// What came of experts on a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<DeviceStats>,
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
        let mut disks = Disks::measure(model, plan);
        [&prefill, &decode].into_iter().flatten().for_each(|traffic| disks.reached(traffic));
        let bounded = |traffic: Option<Traffic>| {
            traffic.filter(|_| !plan.is_mapped()).map(|traffic| traffic.bounded_by(disks.speeds()))
        };
        Some(Residency {
            plan: PlanReport::new(plan, store.reads_directly()),
            disk_bytes_s: disks.total(),
            disks: if plan.is_mapped() { Vec::new() } else { disks.report() },
            device: store.device_stats(),
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
        let device = self.device.filter(|stats| stats.hits + stats.misses > 0).map(|stats| {
            let rate = 100.0 * stats.hits as f64 / (stats.hits + stats.misses) as f64;
            format!("device: {rate:.1} % of the experts were there, {} moved to it", stats.moved)
        });
        phases.into_iter().filter_map(line).chain(device).collect()
    }
}

/// The disks that a streamed model lies on.
pub struct Disks {
    loads: Vec<DiskLoad>,
    /// Bytes a second of each while all are read; `None` where it cannot be told.
    speeds: Vec<Option<f64>>,
}

/// A disk in numbers.
#[derive(Serialize)]
pub struct DiskReport {
    bytes_s: Option<f64>,
    bytes_per_token: f64,
}

impl Disks {
    /// Measures the disks of a plan, each by the largest of the model's files on it. Where they cannot be
    /// measured, or nothing is streamed, no speed is known, which takes nothing from a run that is done.
    pub fn measure(model: &Model, plan: &Plan) -> Disks {
        let loads = model.store().disk_loads(plan);
        let files: Vec<_> = loads.iter().map(|load| Arc::clone(&load.largest)).collect();
        let speeds = if plan.is_mapped() { None } else { read_speeds(&files, &open_file).ok() };
        Disks { speeds: speeds.unwrap_or_else(|| vec![None; loads.len()]), loads }
    }

    /// A disk that did better during a run can do better.
    fn reached(&mut self, traffic: &Traffic) {
        for (speed, reached) in self.speeds.iter_mut().zip(traffic.read_bytes_s_by_disk()) {
            *speed = speed.map(|speed| speed.max(reached));
        }
    }

    /// Bytes a second of each disk; `None` where it is not known.
    pub fn speeds(&self) -> &[Option<f64>] {
        &self.speeds
    }

    /// Bytes a second of all together; `None` where it is known of none.
    pub fn total(&self) -> Option<f64> {
        self.speeds.iter().flatten().copied().reduce(|a, b| a + b)
    }

    /// Seconds that a token takes of them at the least; see [`disk_seconds`].
    pub fn seconds_per_token(&self) -> Option<f64> {
        disk_seconds(self.loads.iter().map(|load| load.bytes_per_token), &self.speeds)
    }

    /// Of each disk, where there are several.
    pub fn report(&self) -> Vec<DiskReport> {
        let disks = self.loads.iter().zip(&self.speeds).filter(|_| self.loads.len() > 1);
        let report = |(load, &bytes_s): (&DiskLoad, &Option<f64>)| DiskReport {
            bytes_s,
            bytes_per_token: load.bytes_per_token,
        };
        disks.map(report).collect()
    }

    /// In words; `None` where no speed is known.
    pub fn line(&self) -> Option<String> {
        let rate = |speed: f64| format!("{}/s", output::bytes(speed as u64));
        let total = rate(self.total()?);
        if self.loads.len() == 1 {
            return Some(format!("{total} measured"));
        }
        let disk = |disk: DiskReport| {
            let speed = disk.bytes_s.map_or("unknown".to_owned(), rate);
            format!("{speed} for {}", output::bytes(disk.bytes_per_token as u64))
        };
        let disks: Vec<_> = self.report().into_iter().map(disk).collect();
        Some(format!("{total} of {} disks, measured at once: {}", disks.len(), disks.join(", ")))
    }
}
