//! What goes to a device: what every token reads first, in the order of a pass, then slots for experts.

use super::{Place, Role, SlotClass, WeightUse, classes, share, share_out, slots_and_experts};

/// Bytes of a device that a model may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceBytes {
    pub all: u64,
    /// Of them, what keys, values and recurrent states of full sequences take, where there is as much.
    pub kv: u64,
}

impl DeviceBytes {
    /// What is left to those beside weights of so many bytes that every token reads: where there is
    /// not enough for both, the share that they have of both, as of each layer on the device.
    fn kv_beside(self, always: u64) -> u64 {
        let both = u128::from(always) + u128::from(self.kv);
        let share = u128::from(self.all.min(always.saturating_add(self.kv))) * u128::from(self.kv);
        (share / both.max(1)) as u64
    }
}

/// What is on a device. Experts have their places in memory as well: a slot of the device holds a copy.
#[derive(Clone, Debug, PartialEq)]
pub struct DevicePlan {
    /// Bytes of the device that weights, keys, values and recurrent states may take.
    pub budget: u64,
    /// Bytes for copies of keys, values and recurrent states.
    pub kv_bytes: u64,
    /// Bytes of what is there all the time.
    pub always_bytes: u64,
    /// Slots for experts.
    pub classes: Vec<SlotClass>,
    /// Of each weight, in the order of registration: a slot's class and the expert (numbered over all that
    /// may be on the device).
    pub experts: Vec<Option<(usize, usize)>>,
    /// Bytes that a token is expected to read there.
    pub active_bytes: f64,
}

impl DevicePlan {
    /// Bytes of the slots.
    pub fn cache_bytes(&self) -> u64 {
        self.classes.iter().map(|class| class.slot_bytes * class.slots as u64).sum()
    }

    /// The slots, and experts that share them.
    pub fn slots_and_experts(&self) -> (usize, usize) {
        slots_and_experts(&self.classes)
    }

    /// The share of passes in which a weight that a token wants is on the device: of experts, where every one
    /// of a layer is as probable as any other.
    fn hits(&self, weight: usize) -> f64 {
        self.experts[weight].map_or(0.0, |(class, _)| {
            let class = &self.classes[class];
            class.slots as f64 / class.members as f64
        })
    }

    /// The part of a weight's use that is left to memory and disk.
    pub(super) fn misses(&self, weight: usize) -> f64 {
        1.0 - self.hits(weight)
    }

    /// Puts weights on a device: marks those of [`Role::Always`] in `places`. `None` where
    /// nothing fits.
    pub(super) fn make(
        weights: &[WeightUse],
        places: &mut [Place],
        bytes: DeviceBytes,
    ) -> Option<DevicePlan> {
        let always = weights.iter().filter(|weight| weight.role == Role::Always);
        let kv_bytes = bytes.kv_beside(always.filter_map(|weight| weight.device_bytes).sum());
        let mut plan = DevicePlan {
            budget: bytes.all,
            kv_bytes,
            always_bytes: 0,
            classes: Vec::new(),
            experts: vec![None; weights.len()],
            active_bytes: 0.0,
        };
        for (weight, place) in weights.iter().zip(&mut *places) {
            let fits = |more: &u64| plan.always_bytes + more <= bytes.all - kv_bytes;
            if let (Role::Always, Some(bytes)) = (weight.role, weight.device_bytes.filter(fits)) {
                *place = Place::Device;
                plan.always_bytes += bytes;
                plan.active_bytes += weight.bytes as f64;
            }
        }
        if plan.always_bytes == 0 {
            plan.kv_bytes = 0;
        }
        plan.share_out_slots(weights);
        let experts = weights.iter().enumerate();
        plan.active_bytes += experts.map(|(i, w)| plan.hits(i) * share(w) * w.bytes as f64).sum::<f64>();
        let is_empty = plan.always_bytes == 0 && plan.cache_bytes() == 0;
        (!is_empty).then_some(plan)
    }

    /// Slots in what is left, for experts of which the device can compute all matrices.
    fn share_out_slots(&mut self, weights: &[WeightUse]) {
        let unit = |weight: &WeightUse| match weight.role {
            Role::Expert { layer, expert, .. } => Some((layer, expert)),
            _ => None,
        };
        let impossible: std::collections::HashSet<_> =
            weights.iter().filter(|w| w.device_bytes.is_none()).filter_map(unit).collect();
        let mut places: Vec<Place> = (weights.iter())
            .map(|weight| match unit(weight).filter(|unit| !impossible.contains(unit)) {
                Some(_) => Place::Cached { class: 0, unit: 0, at: 0 },
                None => Place::Mapped,
            })
            .collect();
        let there: Vec<WeightUse> =
            weights.iter().map(|w| WeightUse { span: w.device_bytes.unwrap_or(0), ..*w }).collect();
        let mut found = classes(&there, &mut places);
        let least: u64 = found.iter().map(|class| class.slot_bytes * class.slots as u64).sum();
        let rest = self.budget - self.kv_bytes - self.always_bytes;
        if found.is_empty() || least > rest {
            return;
        }
        share_out(&mut found, &there, &places, rest);
        for (expert, place) in self.experts.iter_mut().zip(&places) {
            if let Place::Cached { class, unit, .. } = place {
                *expert = Some((*class, *unit));
            }
        }
        self.classes = found;
    }
}
