//! What goes where: pure arithmetic over the sizes of a model's weights and a budget.
//!
//! What every token reads is worth most a byte and is pinned first; experts share a cache over the rest.
//! Where even that does not fit, a fixed part of it is pinned and the rest streamed through a ring once a
//! pass, in equal portions all over the layers, so that the disk works on while they are computed.
//!
//! The matrices of an expert are read by the same tokens. So the unit of the cache is the expert: its
//! matrices share a slot, and are read, kept and evicted together.
//!
//! Where there is a device, it comes first: see [`DevicePlan`]. The rest is planned as if there were none.

mod on_device;

use std::collections::HashMap;

use thiserror::Error;

pub use on_device::{DeviceBytes, DevicePlan};

/// What a weight is read for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// Decoded when the model is loaded and not read again.
    Once,
    /// Some rows a token: the embedding.
    Rows,
    /// As a whole in every pass.
    Always,
    /// Where a token chooses it: a matrix of number `expert` of the `count` experts of a layer, of which a
    /// token uses `used`. The matrices of the same layer and expert are one unit of the cache, wherever
    /// they lie.
    Expert { layer: usize, expert: usize, count: usize, used: usize },
}

/// A weight as the plan sees it.
#[derive(Clone, Copy, Debug)]
pub struct WeightUse {
    pub role: Role,
    /// Bytes of it.
    pub bytes: u64,
    /// Bytes that it takes in memory of our own: whole blocks of the disk.
    pub span: u64,
    /// Bytes that it takes on the device, where that can compute with it.
    pub device_bytes: Option<u64>,
}

/// Where a weight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a mapped file, or in memory anyway.
    Mapped,
    /// Read from the file where it is wanted, in pieces of less than a weight.
    File,
    /// In memory all the time, at this place of the pinned part.
    Pinned { at: u64 },
    /// In the ring, once a pass.
    Streamed,
    /// In the cache, as part of this expert (numbered over all layers): at this place of its slot, which is
    /// one of this class.
    Cached { class: usize, unit: usize, at: u64 },
    /// On the device all the time; where that fails, in a mapped file.
    Device,
}

/// Slots of one size in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotClass {
    pub slot_bytes: u64,
    pub slots: usize,
    /// Experts that share them.
    pub members: usize,
}

/// Where all weights are.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Of each weight, in the order of registration.
    pub places: Vec<Place>,
    /// Bytes that the weights may take.
    pub budget: u64,
    /// Bytes of all weights.
    pub total_bytes: u64,
    pub pinned_bytes: u64,
    pub ring_bytes: u64,
    pub classes: Vec<SlotClass>,
    pub device: Option<DevicePlan>,
    /// Bytes that a token is expected to read from memory or from disk.
    pub active_bytes: f64,
    /// Bytes that a token is expected to read from disk.
    pub disk_bytes: f64,
}

/// A budget in which the model cannot be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the weights need at least {least} bytes of memory, and {budget} are left for them")]
pub struct Shortage {
    pub budget: u64,
    pub least: u64,
}

impl SlotClass {
    /// Adds the slots that so many bytes give, as far as there are members for them, and says how many
    /// bytes they take.
    fn add_slots(&mut self, bytes: u64) -> u64 {
        let more = (bytes / self.slot_bytes.max(1)).min((self.members - self.slots) as u64);
        self.slots += more as usize;
        more * self.slot_bytes
    }
}

fn slots_and_experts(classes: &[SlotClass]) -> (usize, usize) {
    classes.iter().fold((0, 0), |(slots, experts), class| (slots + class.slots, experts + class.members))
}

/// Slots that a class has at the least: one expert in use, one on its way.
const LEAST_SLOTS: usize = 2;
/// Weights of the largest streamed size that the ring has room for, the most comfortable first.
const RING_WEIGHTS: [u64; 3] = [4, 3, 2];
/// A ring of many small weights is at least so large, so that enough reads are under way.
const LEAST_RING: u64 = 16 << 20;

impl Plan {
    /// Whether all weights are mapped, but for those on a device.
    pub fn is_mapped(&self) -> bool {
        self.places.iter().all(|place| matches!(place, Place::Mapped | Place::Device))
    }

    /// Whether there is more to say of it than that all weights are mapped.
    pub fn is_placed(&self) -> bool {
        self.device.is_some() || !self.is_mapped()
    }

    /// Memory of our own.
    pub fn own_bytes(&self) -> u64 {
        self.pinned_bytes + self.ring_bytes + self.cache_bytes()
    }

    /// Bytes of the cache.
    pub fn cache_bytes(&self) -> u64 {
        self.classes.iter().map(|c| c.slot_bytes * c.slots as u64).sum()
    }

    /// Slots of the cache, and experts that share them.
    pub fn slots_and_experts(&self) -> (usize, usize) {
        slots_and_experts(&self.classes)
    }

    /// Bytes that pass through the ring in each pass.
    pub fn streamed_bytes(&self, weights: &[WeightUse]) -> u64 {
        let streamed = self.places.iter().zip(weights).filter(|(place, _)| **place == Place::Streamed);
        streamed.map(|(_, w)| w.bytes).sum()
    }

    /// Bytes of each weight that a token is expected to read from disk, where every expert of a layer is as
    /// probable as any other.
    pub fn disk_bytes_of(&self, weights: &[WeightUse]) -> impl Iterator<Item = f64> {
        let missing = |place: &Place| match place {
            Place::Mapped | Place::File | Place::Pinned { .. } | Place::Device => 0.0,
            Place::Streamed => 1.0,
            Place::Cached { class, .. } => {
                let class = &self.classes[*class];
                1.0 - class.slots as f64 / class.members as f64
            }
        };
        let of_token = move |(i, w)| self.left(i) * share(w) * w.bytes as f64;
        let bytes = weights.iter().enumerate().map(of_token);
        self.places.iter().zip(bytes).map(move |(place, bytes)| missing(place) * bytes)
    }

    /// The part of a weight's use that is not on the device.
    fn left(&self, weight: usize) -> f64 {
        match (&self.device, self.places[weight]) {
            (_, Place::Device) => 0.0,
            (Some(device), _) => device.misses(weight),
            (None, _) => 1.0,
        }
    }

    /// Bytes that a token is expected to read from memory or from disk.
    fn left_active_bytes(&self, weights: &[WeightUse]) -> f64 {
        weights.iter().enumerate().map(|(i, w)| self.left(i) * share(w) * w.bytes as f64).sum()
    }

    /// Tokens a second that are possible where disks take so many seconds for those of a token, and memory
    /// and the device have these speeds (bytes a second). What is always on the device is waited for; its
    /// experts are computed while memory and disk give the others.
    pub fn tokens_per_second(&self, disk_s: f64, memory: f64, device: Option<f64>) -> f64 {
        let [always_s, experts_s] = self.device_seconds(device);
        1.0 / (always_s + disk_s.max(self.active_bytes / memory).max(experts_s))
    }

    /// Seconds that a device of this speed takes for a token: what is always there, and experts.
    pub fn device_seconds(&self, speed: Option<f64>) -> [f64; 2] {
        let Some((plan, speed)) = self.device.as_ref().zip(speed) else { return [0.0; 2] };
        let always = plan.always_bytes as f64;
        [always / speed, (plan.active_bytes - always) / speed]
    }
}

/// Everything mapped.
fn mapped(weights: &[WeightUse], budget: u64) -> Plan {
    Plan {
        places: vec![Place::Mapped; weights.len()],
        budget,
        total_bytes: weights.iter().map(|w| w.bytes).sum(),
        pinned_bytes: 0,
        ring_bytes: 0,
        classes: Vec::new(),
        device: None,
        active_bytes: 0.0,
        disk_bytes: 0.0,
    }
}

/// The best places for weights in so many bytes of memory and those of a device; `in_memory` says of each
/// whether it is in memory anyway.
///
/// # Errors
/// Where they are too few.
pub fn plan(
    weights: &[WeightUse],
    in_memory: &[bool],
    budget: u64,
    device: Option<DeviceBytes>,
) -> Result<Plan, Shortage> {
    let mut plan = mapped(weights, budget);
    plan.device = device.and_then(|bytes| DevicePlan::make(weights, &mut plan.places, bytes));
    plan.active_bytes = plan.left_active_bytes(weights);
    let here = |((w, free), place): ((&WeightUse, &bool), &Place)| {
        if *free || *place == Place::Device { 0 } else { w.bytes }
    };
    let total: u64 = weights.iter().zip(in_memory).zip(&plan.places).map(here).sum();
    if total <= budget {
        return Ok(plan);
    }
    for ((place, weight), &free) in plan.places.iter_mut().zip(weights).zip(in_memory) {
        *place = match weight.role {
            _ if *place == Place::Device => Place::Device,
            _ if free => Place::Mapped,
            Role::Once | Role::Rows => Place::File,
            Role::Always => Place::Pinned { at: 0 },
            Role::Expert { .. } => Place::Cached { class: 0, unit: 0, at: 0 },
        };
    }
    plan.classes = classes(weights, &mut plan.places);
    let least_cache = plan.cache_bytes();
    let always = spans(weights, &plan.places, |place| matches!(place, Place::Pinned { .. }));
    if always + least_cache > budget {
        let ring = Ring::choose(weights, &plan.places, always, budget, least_cache)?;
        plan.ring_bytes = ring.bytes;
        stream(weights, &mut plan.places, ring, budget - least_cache - ring.bytes);
    }
    for (place, weight) in plan.places.iter_mut().zip(weights) {
        if let Place::Pinned { at } = place {
            *at = plan.pinned_bytes;
            plan.pinned_bytes += weight.span;
        }
    }
    let rest = budget - plan.pinned_bytes - plan.ring_bytes;
    share_out(&mut plan.classes, weights, &plan.places, rest);
    plan.disk_bytes = plan.disk_bytes_of(weights).sum();
    Ok(plan)
}

/// Seconds that disks take for so many bytes each, all at once: those of the slowest for its bytes. `speeds`
/// are bytes a second; a disk whose speed is not known takes no time. `None` where none is known that has
/// something to read.
pub fn disk_seconds(bytes: impl IntoIterator<Item = f64>, speeds: &[Option<f64>]) -> Option<f64> {
    let read = bytes.into_iter().zip(speeds).filter(|(bytes, _)| *bytes > 0.0);
    read.filter_map(|(bytes, speed)| Some(bytes / (*speed)?)).reduce(f64::max)
}

fn spans(weights: &[WeightUse], places: &[Place], which: impl Fn(&Place) -> bool) -> u64 {
    places.iter().zip(weights).filter(|(place, _)| which(place)).map(|(_, w)| w.span).sum()
}

/// The matrices of an expert.
#[derive(Clone, Copy, Debug, Default)]
struct Unit {
    class: usize,
    bytes: u64,
    /// Bytes that they take in a slot.
    span: u64,
}

/// Gathers cached weights into experts. Each weight gets its expert and its place in the expert's slot.
fn units(weights: &[WeightUse], places: &mut [Place]) -> Vec<Unit> {
    let (mut units, mut known) = (Vec::<Unit>::new(), HashMap::new());
    for (weight, place) in weights.iter().zip(places) {
        let (Role::Expert { layer, expert, .. }, Place::Cached { unit, at, .. }) = (weight.role, place)
        else {
            continue;
        };
        *unit = *known.entry((layer, expert)).or_insert(units.len());
        units.resize(units.len().max(*unit + 1), Unit::default());
        let entry = &mut units[*unit];
        *at = entry.span;
        entry.bytes += weight.bytes;
        entry.span += weight.span;
    }
    units
}

/// Gives each expert its class, by size, and each class its least slots.
fn classes(weights: &[WeightUse], places: &mut [Place]) -> Vec<SlotClass> {
    let mut units = units(weights, places);
    let (mut classes, mut known) = (Vec::<SlotClass>::new(), HashMap::new());
    for unit in &mut units {
        unit.class = *known.entry(unit.bytes).or_insert(classes.len());
        if unit.class == classes.len() {
            classes.push(SlotClass { slot_bytes: 0, slots: 0, members: 0 });
        }
        let class = &mut classes[unit.class];
        // Experts of as many bytes may begin and end at different places of a block.
        class.slot_bytes = class.slot_bytes.max(unit.span);
        class.members += 1;
        class.slots = class.members.min(LEAST_SLOTS);
    }
    for place in places {
        if let Place::Cached { class, unit, .. } = place {
            *class = units[*unit].class;
        }
    }
    classes
}

/// Shares the cache's bytes among its classes, by the bytes that a token reads of each.
fn share_out(classes: &mut [SlotClass], weights: &[WeightUse], places: &[Place], bytes: u64) {
    let mut wanted = vec![0.0; classes.len()];
    for (weight, place) in weights.iter().zip(places) {
        if let Place::Cached { class, .. } = place {
            wanted[*class] += share(weight) * weight.bytes as f64;
        }
    }
    let least: u64 = classes.iter().map(|c| c.slots as u64 * c.slot_bytes).sum();
    let (mut rest, mut all) = (bytes - least, wanted.iter().sum::<f64>());
    // Classes that fill up leave their part to the others, so the fullest come first.
    let mut order: Vec<usize> = (0..classes.len()).collect();
    let fullness = |i: usize| wanted[i] / (classes[i].members as f64 * classes[i].slot_bytes as f64);
    order.sort_by(|&a, &b| fullness(b).total_cmp(&fullness(a)));
    for &i in &order {
        let part = (rest as f64 * wanted[i] / all) as u64;
        rest -= classes[i].add_slots(part.min(rest));
        all -= wanted[i];
    }
    // What rounding left over.
    for i in order {
        rest -= classes[i].add_slots(rest);
    }
}

/// The share of tokens that read a weight.
fn share(weight: &WeightUse) -> f64 {
    match weight.role {
        Role::Once | Role::Rows => 0.0,
        Role::Always => 1.0,
        Role::Expert { count, used, .. } => used as f64 / count as f64,
    }
}

/// A ring for the weights of up to a size.
#[derive(Clone, Copy, Debug)]
struct Ring {
    bytes: u64,
    largest: u64,
}

impl Ring {
    /// The ring that costs least of those for which what has to be streamed is there to be streamed.
    fn choose(
        weights: &[WeightUse],
        places: &[Place],
        always: u64,
        budget: u64,
        least_cache: u64,
    ) -> Result<Ring, Shortage> {
        let pinnable = |place: &Place| matches!(place, Place::Pinned { .. });
        let mut sizes: Vec<u64> =
            places.iter().zip(weights).filter(|(p, _)| pinnable(p)).map(|(_, w)| w.span).collect();
        sizes.sort_unstable();
        let mut least = u64::MAX;
        for comfort in RING_WEIGHTS {
            let mut up_to = 0;
            for (i, &largest) in sizes.iter().enumerate() {
                up_to += largest;
                if sizes.get(i + 1) == Some(&largest) {
                    continue;
                }
                let bytes = (comfort * largest).max(LEAST_RING.min(up_to / 4));
                // What is larger is pinned, and what is smaller where there is room.
                let needed = least_cache + bytes + (always - up_to);
                if needed <= budget {
                    return Ok(Ring { bytes, largest });
                }
                least = least.min(needed);
            }
        }
        Err(Shortage { budget, least })
    }
}

/// Marks as streamed what does not fit `room`: of the sizes that the ring takes, spread evenly over the
/// order.
fn stream(weights: &[WeightUse], places: &mut [Place], ring: Ring, room: u64) {
    let fits = |place: &Place, w: &WeightUse| matches!(place, Place::Pinned { .. }) && w.span <= ring.largest;
    let (mut candidates, mut larger) = (0u64, 0u64);
    for (place, w) in places.iter().zip(weights) {
        match place {
            Place::Pinned { .. } if fits(place, w) => candidates += w.span,
            Place::Pinned { .. } => larger += w.span,
            _ => {}
        }
    }
    let kept = room - larger;
    let (mut seen, mut pinned) = (0u64, 0u64);
    for (place, w) in places.iter_mut().zip(weights) {
        if !fits(place, w) {
            continue;
        }
        seen += w.span;
        // As much of what was seen so far as of the whole.
        let due = (seen as f64 / candidates as f64 * kept as f64) as u64;
        if pinned + w.span <= due.min(kept) || (seen == candidates && pinned + w.span <= kept) {
            pinned += w.span;
        } else {
            *place = Place::Streamed;
        }
    }
    // What rounding left over.
    for (place, w) in places.iter_mut().zip(weights) {
        if *place == Place::Streamed && pinned + w.span <= kept {
            pinned += w.span;
            *place = Place::Pinned { at: 0 };
        }
    }
}

#[cfg(test)]
mod tests;
