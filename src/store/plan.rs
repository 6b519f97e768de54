//! What goes where: pure arithmetic over the sizes of a model's weights and a budget.
//!
//! What every token reads is worth most a byte and is pinned first; experts share a cache over the rest. Where
//! even that does not fit, a fixed part of it is pinned and the rest streamed through a ring once a pass, in equal portions all
//! over the layers, so that the disk works on while they are computed.

use thiserror::Error;

/// What a weight is read for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// Decoded when the model is loaded and not read again.
    Once,
    /// Some rows a token: the embedding.
    Rows,
    /// As a whole in every pass.
    Always,
    /// Where a token chooses it: one of `count` experts of a layer, of which it uses `used`.
    Expert { layer: usize, count: usize, used: usize },
}

/// A weight as the plan sees it.
#[derive(Clone, Copy, Debug)]
pub struct WeightUse {
    pub role: Role,
    /// Bytes of it.
    pub bytes: u64,
    /// Bytes that it takes in memory of our own: whole blocks of the disk.
    pub span: u64,
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
    /// In the cache, in a slot of this class.
    Cached { class: usize },
}

/// Slots of one size in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotClass {
    pub slot_bytes: u64,
    pub slots: usize,
    /// Weights that share them.
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
    /// Bytes that a token reads, from memory or from disk.
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

/// Slots that a class has at the least: one in use, one on its way.
const LEAST_SLOTS: usize = 2;
/// Weights of the largest streamed size that the ring has room for, the most comfortable first.
const RING_WEIGHTS: [u64; 3] = [4, 3, 2];
/// A ring of many small weights is at least so large, so that enough reads are under way.
const LEAST_RING: u64 = 16 << 20;

impl Plan {
    /// Whether all weights are mapped.
    pub fn is_mapped(&self) -> bool {
        self.places.iter().all(|place| *place == Place::Mapped)
    }

    /// Memory of our own.
    pub fn own_bytes(&self) -> u64 {
        self.pinned_bytes + self.ring_bytes + self.cache_bytes()
    }

    /// Bytes of the cache.
    pub fn cache_bytes(&self) -> u64 {
        self.classes.iter().map(|c| c.slot_bytes * c.slots as u64).sum()
    }

    /// Bytes that pass through the ring in each pass.
    pub fn streamed_bytes(&self, weights: &[WeightUse]) -> u64 {
        let streamed = self.places.iter().zip(weights).filter(|(place, _)| **place == Place::Streamed);
        streamed.map(|(_, w)| w.bytes).sum()
    }

    /// Tokens a second that a disk and a memory of these speeds (bytes a second) allow at best.
    pub fn tokens_per_second(&self, disk: f64, memory: f64) -> f64 {
        1.0 / (self.disk_bytes / disk).max(self.active_bytes / memory)
    }
}

/// Everything mapped.
pub fn mapped(weights: &[WeightUse], budget: u64) -> Plan {
    Plan {
        places: vec![Place::Mapped; weights.len()],
        budget,
        total_bytes: weights.iter().map(|w| w.bytes).sum(),
        pinned_bytes: 0,
        ring_bytes: 0,
        classes: Vec::new(),
        active_bytes: active_bytes(weights),
        disk_bytes: 0.0,
    }
}

/// The best places for weights in so many bytes; `in_memory` says of each whether it is in memory anyway.
///
/// # Errors
/// Where they are too few.
pub fn plan(weights: &[WeightUse], in_memory: &[bool], budget: u64) -> Result<Plan, Shortage> {
    let total: u64 = weights.iter().zip(in_memory).filter(|(_, free)| !**free).map(|(w, _)| w.bytes).sum();
    if total <= budget {
        return Ok(mapped(weights, budget));
    }
    let mut plan = mapped(weights, budget);
    for ((place, weight), &free) in plan.places.iter_mut().zip(weights).zip(in_memory) {
        *place = match weight.role {
            _ if free => Place::Mapped,
            Role::Once | Role::Rows => Place::File,
            Role::Always => Place::Pinned { at: 0 },
            Role::Expert { .. } => Place::Cached { class: 0 },
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
    plan.disk_bytes = disk_bytes(&plan, weights);
    Ok(plan)
}

fn spans(weights: &[WeightUse], places: &[Place], which: impl Fn(&Place) -> bool) -> u64 {
    places.iter().zip(weights).filter(|(place, _)| which(place)).map(|(_, w)| w.span).sum()
}

/// Gives each cached weight its class, by size, and each class its least slots.
fn classes(weights: &[WeightUse], places: &mut [Place]) -> Vec<SlotClass> {
    let mut classes: Vec<(u64, SlotClass)> = Vec::new();
    for (weight, place) in weights.iter().zip(places) {
        let Place::Cached { class } = place else { continue };
        *class = classes.iter().position(|(bytes, _)| *bytes == weight.bytes).unwrap_or(classes.len());
        if *class == classes.len() {
            classes.push((weight.bytes, SlotClass { slot_bytes: 0, slots: 0, members: 0 }));
        }
        let entry = &mut classes[*class].1;
        entry.slot_bytes = entry.slot_bytes.max(weight.span);
        entry.members += 1;
        entry.slots = entry.members.min(LEAST_SLOTS);
    }
    classes.into_iter().map(|(_, class)| class).collect()
}

/// Shares the cache's bytes among its classes, by the bytes that a token reads of each.
fn share_out(classes: &mut [SlotClass], weights: &[WeightUse], places: &[Place], bytes: u64) {
    let mut wanted = vec![0.0; classes.len()];
    for (weight, place) in weights.iter().zip(places) {
        if let Place::Cached { class } = place {
            wanted[*class] += share(weight) * weight.bytes as f64;
        }
    }
    let least: u64 = classes.iter().map(|c| c.slots as u64 * c.slot_bytes).sum();
    let (mut rest, mut all) = ((bytes - least) as f64, wanted.iter().sum::<f64>());
    // Classes that fill up leave their part to the others, so the fullest come first.
    let mut order: Vec<usize> = (0..classes.len()).collect();
    let fullness = |i: usize| wanted[i] / (classes[i].members as f64 * classes[i].slot_bytes as f64);
    order.sort_by(|&a, &b| fullness(b).total_cmp(&fullness(a)));
    for i in order {
        let class = &mut classes[i];
        let more = (rest * wanted[i] / all / class.slot_bytes as f64) as usize;
        let more = more.min(class.members - class.slots);
        class.slots += more;
        rest -= (more as u64 * class.slot_bytes) as f64;
        all -= wanted[i];
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

fn active_bytes(weights: &[WeightUse]) -> f64 {
    weights.iter().map(|w| share(w) * w.bytes as f64).sum()
}

/// Bytes of a token that come from disk, where every expert of a layer is as probable as any other.
fn disk_bytes(plan: &Plan, weights: &[WeightUse]) -> f64 {
    let missing = |place: &Place| match place {
        Place::Mapped | Place::File | Place::Pinned { .. } => 0.0,
        Place::Streamed => 1.0,
        Place::Cached { class } => {
            let class = &plan.classes[*class];
            1.0 - class.slots as f64 / class.members as f64
        }
    };
    plan.places.iter().zip(weights).map(|(place, w)| missing(place) * share(w) * w.bytes as f64).sum()
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

/// Marks as streamed what does not fit `room`: of the sizes that the ring takes, spread evenly over the order.
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
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};

    use super::*;

    const MB: u64 = 1_000_000;
    const GIB: u64 = 1 << 30;

    fn weight(role: Role, bytes: u64) -> WeightUse {
        WeightUse { role, bytes, span: bytes.next_multiple_of(4096) + 4096 }
    }

    /// The shape of a Llama of 8 B parameters at Q4_K_M, its embedding left out.
    fn dense() -> Vec<WeightUse> {
        let layer = [9 * MB, 3 * MB, 3 * MB, 9 * MB, 33 * MB, 33 * MB, 40 * MB];
        let layers = (0..32).flat_map(|_| layer.map(|bytes| weight(Role::Always, bytes)));
        let embedding = weight(Role::Rows, 295 * MB);
        [embedding].into_iter().chain(layers).chain([weight(Role::Always, 431 * MB)]).collect()
    }

    /// The shape of a Mixtral 8x7B.
    fn moe() -> Vec<WeightUse> {
        let mut weights = vec![weight(Role::Rows, 74 * MB)];
        for layer in 0..32 {
            weights.extend([9 * MB, 5 * MB, 5 * MB, 9 * MB].map(|bytes| weight(Role::Always, bytes)));
            let expert = Role::Expert { layer, count: 8, used: 2 };
            let down = if layer % 2 == 0 { 33 * MB } else { 48 * MB };
            weights.extend([33 * MB; 16].map(|bytes| weight(expert, bytes)));
            weights.extend([down; 8].map(|bytes| weight(expert, bytes)));
        }
        weights.push(weight(Role::Always, 107 * MB));
        weights
    }

    fn planned(weights: &[WeightUse], budget: u64) -> Plan {
        plan(weights, &vec![false; weights.len()], budget).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn what_fits_is_mapped() {
        let all: u64 = dense().iter().map(|w| w.bytes).sum();
        assert!(planned(&dense(), all).is_mapped());
        assert!(!planned(&dense(), all - 1).is_mapped());
        // What is in memory anyway needs no room.
        let weights = dense();
        assert!(plan(&weights, &vec![true; weights.len()], 0).unwrap().is_mapped());
    }

    #[test]
    fn a_dense_model_is_pinned_but_for_an_even_stream() {
        let weights = dense();
        let plan = planned(&weights, 4 * GIB);
        // 4 GiB less the ring are pinned, and what is left over is smaller than the smallest weight.
        assert_eq!(plan.ring_bytes, 4 * weights[1].span);
        assert!(plan.pinned_bytes + plan.ring_bytes <= 4 * GIB);
        assert!(plan.pinned_bytes + plan.ring_bytes + weights[2].span > 4 * GIB);
        let always: u64 = weights[1..].iter().map(|w| w.bytes).sum();
        let streamed = plan.streamed_bytes(&weights);
        assert!(always - streamed <= 4 * GIB);
        assert_eq!(plan.disk_bytes, streamed as f64);
        assert_eq!(plan.places[0], Place::File);
        // Each eighth of the layers streams about an eighth.
        for eighth in 0..8 {
            let part = 1 + eighth * 28..1 + (eighth + 1) * 28;
            let here: u64 =
                part.filter(|&i| plan.places[i] == Place::Streamed).map(|i| weights[i].bytes).sum();
            assert!(here.abs_diff(streamed / 8) <= 18 * MB, "{here} of {streamed}");
        }
    }

    #[test]
    fn experts_share_what_the_rest_leaves() {
        let weights = moe();
        let plan = planned(&weights, 11 * GIB);
        let always = spans(&weights, &plan.places, |p| matches!(p, Place::Pinned { .. }));
        assert_eq!((plan.pinned_bytes, plan.ring_bytes), (always, 0));
        assert_eq!(plan.classes.len(), 2);
        assert!(plan.own_bytes() <= 11 * GIB && plan.own_bytes() > 11 * GIB - 100 * MB);
        // Both sizes are cached to the same share, which is that of the hits to expect.
        let share = |class: &SlotClass| class.slots as f64 / class.members as f64;
        let shares = [share(&plan.classes[0]), share(&plan.classes[1])];
        assert!((shares[0] - shares[1]).abs() < 0.01, "{shares:?}");
        let active = plan.active_bytes
            - weights.iter().filter(|w| w.role == Role::Always).map(|w| w.bytes as f64).sum::<f64>();
        assert!((plan.disk_bytes / active - (1.0 - shares[0])).abs() < 0.01);
        assert!((plan.tokens_per_second(1e9, 1e10) - 1e9 / plan.disk_bytes).abs() < 1e-9);
    }

    #[test]
    fn the_least_budget_is_enough_and_less_is_not() {
        for weights in [dense(), moe()] {
            let none = vec![false; weights.len()];
            let least = plan(&weights, &none, 0).unwrap_err().least;
            let plan_of_least = planned(&weights, least);
            assert!(plan_of_least.own_bytes() <= least);
            assert_eq!(plan(&weights, &none, least - 1).unwrap_err(), Shortage { budget: least - 1, least });
        }
    }

    #[test]
    fn no_plan_exceeds_its_budget_and_more_memory_reads_no_more() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut random = |n: u32| u64::from(rng.next_u32() % n);
        for _ in 0..300 {
            let mut weights: Vec<WeightUse> = Vec::new();
            for layer in 0..1 + random(8) as usize {
                weights.extend((0..random(6)).map(|_| weight(Role::Always, 1 + random(100_000))));
                let (count, bytes) = (1 + random(9) as usize, 1 + random(60_000));
                let expert = Role::Expert { layer, count, used: 1 + random(count as u32) as usize };
                weights.extend((0..count * random(3) as usize).map(|_| weight(expert, bytes)));
                weights.push(weight(Role::Once, 100));
            }
            let none = vec![false; weights.len()];
            let total: u64 = weights.iter().map(|w| w.bytes).sum();
            let mut before = f64::INFINITY;
            for budget in (0..=20).map(|i| total * i / 20) {
                let plan = match plan(&weights, &none, budget) {
                    Ok(plan) => plan,
                    Err(shortage) => {
                        assert!(shortage.least > budget);
                        continue;
                    }
                };
                assert!(plan.is_mapped() || plan.own_bytes() <= budget);
                let mut end = 0;
                for (place, w) in plan.places.iter().zip(&weights) {
                    match *place {
                        Place::Pinned { at } => {
                            assert_eq!(at, end);
                            end += w.span;
                        }
                        Place::Streamed => assert!(2 * w.span <= plan.ring_bytes),
                        Place::Cached { class } => assert!(w.span <= plan.classes[class].slot_bytes),
                        Place::Mapped | Place::File => {}
                    }
                }
                assert_eq!(end, plan.pinned_bytes);
                assert!(plan.classes.iter().all(|c| c.slots <= c.members && c.slots >= c.members.min(2)));
                // Slots are whole: what a step more of memory gains may be lost to rounding, of one weight at most.
                assert!(plan.disk_bytes <= before + 400_000.0, "{} {before}", plan.disk_bytes);
                before = plan.disk_bytes;
            }
        }
    }
}
