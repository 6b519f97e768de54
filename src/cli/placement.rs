//! Where a model's weights go: the budget of memory, and the plan made for it.

mod report;
mod traffic;

use std::sync::Arc;

use thiserror::Error;

use super::device_args::{ForWeights, tell_of_failure};
use super::engine_args::{EngineArgs, Loaded};
use super::output::tell;
use super::{CliError, InFile, output};
use crate::device::DeviceError;
use crate::engine::EngineOptions;
use crate::model::Model;
pub use crate::show::residency::plan_line as line;
use crate::show::residency::{device_line, memory_line};
use crate::store::{DeviceBytes, Nodes, OfDevice, Plan, StoreError, available_memory_bytes, private_bytes};
pub use report::{DiskReport, Disks, PlanReport, Residency};
pub use traffic::Traffic;

/// What is left to others where nobody says how much a run may take: a part of what is available, and so much
/// at least, but never more than half of it.
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

/// A model that cannot be run in the memory that it may take.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct NoRoom(String);

/// How the memory of a run is divided.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// All that it may take.
    total: u64,
    /// Of it, what is no weight: the program's own, KV cache and buffers.
    other: u64,
    /// The most of which page tables take their share.
    weights: u64,
    /// What copies of keys, values and recurrent states on a device take, and what passes take there beside.
    kv: u64,
    passes: u64,
}

impl Budget {
    /// The memory of a run with these engines, a sequence in each, which keep the logits of so many tokens:
    /// as much as was asked for, else what is available.
    pub fn new(ram: Option<u64>, model: &Model, engines: &[EngineOptions], logits: usize) -> Budget {
        let own = private_bytes().unwrap_or(0).next_multiple_of(OWN_STEP);
        let total = ram.unwrap_or_else(|| match available_memory_bytes() {
            Some(available) => available - headroom(available) + own,
            None => u64::MAX,
        });
        let sum =
            |bytes: &dyn Fn(&EngineOptions) -> u64| engines.iter().map(bytes).fold(0, u64::saturating_add);
        let kv = sum(&|engine| engine.copies_bytes(model.spec()));
        let passes = sum(&|engine| engine.device_bytes(model.spec(), logits));
        let engines = sum(&|engine| engine.memory_bytes(model.spec(), logits));
        let weights = model.store().file_bytes();
        let other = engines.saturating_add(own + MARGIN + total.min(weights) / MARGIN_SHARE);
        Budget { total, other, weights, kv, passes }
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

    /// The plan for it, and for a device where there is one.
    pub fn plan(&self, model: &Model, device: Option<&ForWeights>) -> Result<Plan, CliError> {
        let weights = self.total.saturating_sub(self.other);
        let left = |of: &ForWeights| of.bytes.saturating_sub(self.passes);
        let device = device.map(|of| (&*of.device, DeviceBytes { all: left(of), kv: self.kv }));
        model.store().plan_with(weights, device).map_err(|shortage| {
            let least = self.least(shortage.least);
            let message = format!(
                "the model cannot be run in {} of memory: {} are needed at the least, {} of them for the KV \
                 cache, buffers and the program itself",
                output::binary_bytes(self.total),
                output::binary_bytes_up(least),
                output::binary_bytes(self.other),
            );
            CliError::from(NoRoom(message))
                .hint("a smaller context (-c) needs less; --ram says how much may be taken")
        })
    }
}

/// A plan for people: names and values.
pub fn rows(
    budget: &Budget,
    plan: &Plan,
    options: &EngineOptions,
    direct_io: Option<bool>,
) -> Vec<(&'static str, String)> {
    let shared = format!(
        "{}, {} of them for the KV cache of {} tokens in {}, buffers and the program",
        output::binary_bytes(budget.total),
        output::binary_bytes(budget.other),
        options.context,
        options.kv,
    );
    let mut token = Vec::new();
    if let Some(device) = &plan.device {
        token.push(format!("{} from the device", output::bytes(device.active_bytes as u64)));
    }
    let from_memory = (plan.active_bytes - plan.disk_bytes) as u64;
    token.push(format!("{} from memory", output::bytes(from_memory)));
    token.push(format!("{} from disk", output::bytes(plan.disk_bytes as u64)));
    let mut rows = vec![("budget", shared), ("weights", memory_line(plan, direct_io))];
    let passes = output::bytes(budget.passes);
    let line = |device| ("device", format!("{}, {passes} beside for passes", device_line(device)));
    rows.extend(plan.device.as_ref().map(line));
    rows.push(("a token reads", token.join(", ")));
    rows
}

/// Memory for the weights of a model: so much, or what is there, and that of a device.
#[derive(Clone, Debug, Default)]
pub struct Room {
    pub ram: Option<u64>,
    pub device: Option<ForWeights>,
}

impl Room {
    /// What was asked for, for a model.
    ///
    /// # Errors
    /// As [`DeviceArgs::open`](super::device_args::DeviceArgs::open).
    pub fn of(engine: &EngineArgs, model: &Model) -> Result<Room, CliError> {
        Ok(Room { ram: engine.ram, device: engine.device.open(model.store().file_bytes())? })
    }
}

/// Plans for the memory that there is and puts the weights in their places.
pub fn settle(
    loaded: &mut Loaded,
    engine: &EngineArgs,
    engines: &[EngineOptions],
    logits: usize,
) -> Result<(), CliError> {
    let room = Room::of(engine, &loaded.model)?;
    settle_beside(loaded, room, engines, logits, 0)
}

/// The same in so much memory, and beside further sequences of so many bytes.
pub fn settle_beside(
    loaded: &mut Loaded,
    room: Room,
    engines: &[EngineOptions],
    logits: usize,
    sequences: u64,
) -> Result<(), CliError> {
    for engine in engines {
        loaded.check_kv(engine.kv)?;
    }
    let Room { ram, mut device } = room;
    warn_of_more_than_there_is(ram);
    let mut budget = Budget::new(ram, &loaded.model, engines, logits);
    budget.other = budget.other.saturating_add(sequences);
    if budget.kv > 0 {
        budget.kv = budget.kv.saturating_add(sequences);
    }
    // Before weights are read, and before threads start that read them.
    Nodes::interleave();
    loop {
        let plan = budget.plan(&loaded.model, device.as_ref()).in_file(loaded.path())?;
        let of_device = device.as_ref().map(|device| OfDevice {
            device: Arc::clone(&device.device),
            on_failure: Box::new(tell_of_failure),
        });
        match loaded.model.settle_with(plan, of_device) {
            Err(StoreError::Device(error)) => device = smaller(device, &error),
            settled => return Ok(settled?),
        }
    }
}

/// Bytes for sequences beside the weights, for a full one at least and for so many at most: what weights
/// leave that fit; of the memory of a model that is streamed a part, where its weights can do without.
pub fn room_for_sequences(model: &Model, ram: Option<u64>, engine: &EngineOptions, most: usize) -> u64 {
    /// The part of a streamed model's memory: more sequences share a reading of the weights, and leave less
    /// for the cache of experts.
    const SHARE: u64 = 8;
    let sequence = engine.sequence_bytes(model.spec());
    let budget = Budget::new(ram, model, std::slice::from_ref(engine), most);
    let free = budget.total().saturating_sub(budget.other());
    let left = free.saturating_sub(model.store().file_bytes());
    let wanted = if left > 0 { left } else { free / SHARE };
    // One sequence is counted already.
    let wanted = wanted.saturating_add(sequence).min(sequence.saturating_mul(most as u64));
    let fits = model.store().plan_for(free.saturating_sub(wanted.saturating_sub(sequence))).is_ok();
    if fits { wanted } else { sequence }
}

/// What to try where a device has less room than it says: three quarters of it, and in the end none.
fn smaller(device: Option<ForWeights>, error: &DeviceError) -> Option<ForWeights> {
    /// Less is not worth the copies.
    const LEAST: u64 = 64 << 20;
    let device = device.map(|device| ForWeights { bytes: device.bytes / 4 * 3, ..device });
    let is_short = matches!(error, DeviceError::OutOfMemory { .. });
    let device = device.filter(|device| is_short && device.bytes >= LEAST);
    if device.is_none() {
        tell_of_failure(error);
    }
    device
}

/// Divides the memory of a run between two models, by the sizes of their files.
pub fn divide(ram: Option<u64>, first: &Model, second: &Model) -> [u64; 2] {
    warn_of_more_than_there_is(ram);
    let total = Budget::new(ram, first, &[], 0).total();
    let [bytes, others] = [first, second].map(|model| u128::from(model.store().file_bytes()));
    let share = u128::from(total) * bytes / (bytes + others).max(1);
    [share as u64, total - share as u64]
}

/// More than is available is the user's choice, but seldom meant.
fn warn_of_more_than_there_is(ram: Option<u64>) {
    if let Some((ram, available)) =
        ram.zip(available_memory_bytes()).filter(|(ram, available)| ram > available)
    {
        let [ram, available] = [ram, available].map(output::binary_bytes);
        tell!("warning: --ram asks for {ram}, where {available} are available");
    }
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
            let budget = Budget { total, other: other(total), weights, kv: 0, passes: 0 };
            for needed in [1 << 20, 300 << 20, 4 << 30, 6 << 30] {
                let least = budget.least(needed);
                assert!(least - other(least) >= needed, "{needed}");
                assert!(least - other(least) <= needed + (needed >> 8) + 2, "{needed}");
            }
        }
    }
}
