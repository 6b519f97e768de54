//! Experts that come and go: which are asked for, announced or guessed, and which of them give way. The
//! matrices of an expert are one unit, which has a slot of the cache or none; each matrix can be used as
//! soon as it has been read.

use std::collections::VecDeque;

use super::super::ResidencyStats;
use super::super::cache::{Cache, Member, Now, Standing};
use super::super::plan::{Place, Plan, SlotClass};
use super::reads::{Reads, Weight};
use super::trust::{Guesses, Trust};

/// An expert of a layer.
#[derive(Debug)]
struct Unit {
    layer: usize,
    class: usize,
    /// Its weights, in the order of registration, and where each begins in the slot.
    weights: Vec<(usize, usize)>,
    /// The last pass that asked for it.
    seen: u64,
    /// The last announcement that named it.
    named: u64,
}

/// Slots of one size.
#[derive(Clone, Copy, Debug)]
struct Class {
    /// Where they begin in the memory.
    start: usize,
    slot_bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Experts {
    units: Vec<Unit>,
    /// The unit of each weight.
    unit_of: Vec<Option<usize>>,
    /// The pass that announced each weight and has not used it yet.
    wanted: Vec<u64>,
    pub(super) cache: Cache,
    classes: Vec<Class>,
    announcements: u64,
    /// Units with weights that this pass has announced.
    announced: Vec<usize>,
    /// Units that were guessed before their layer has chosen, and whether they are read.
    guesses: Vec<(usize, bool)>,
    trust: Trust,
    /// Announced units that have no room yet.
    pub(super) ahead: VecDeque<usize>,
    layer: usize,
}

impl Experts {
    /// The empty cache that a plan asks for.
    pub fn new(weights: &[Weight], plan: &Plan) -> Experts {
        let mut start = (plan.pinned_bytes + plan.ring_bytes) as usize;
        let class = |class: &SlotClass| {
            let slot_bytes = class.slot_bytes as usize;
            start += class.slots * slot_bytes;
            Class { start: start - class.slots * slot_bytes, slot_bytes }
        };
        let classes = plan.classes.iter().map(class).collect();
        let (mut units, mut members) = (Vec::<Unit>::new(), Vec::new());
        let mut unit_of = vec![None; weights.len()];
        for (id, (weight, place)) in weights.iter().zip(&plan.places).enumerate() {
            let Place::Cached { class, unit, at } = *place else { continue };
            // A plan numbers experts in the order in which their first weights are registered.
            if unit == units.len() {
                units.push(Unit { layer: weight.layer, class, weights: Vec::new(), seen: 0, named: 0 });
                members.push(Member { class, layer: weight.layer, share: weight.share });
            }
            units[unit].weights.push((id, at as usize));
            unit_of[id] = Some(unit);
        }
        let slots: Vec<usize> = plan.classes.iter().map(|class| class.slots).collect();
        Experts {
            wanted: vec![0; weights.len()],
            cache: Cache::new(members, &slots),
            units,
            unit_of,
            classes,
            announcements: 0,
            announced: Vec::new(),
            guesses: Vec::new(),
            trust: Trust::default(),
            ahead: VecDeque::new(),
            layer: 0,
        }
    }

    /// Forgets what the pass before announced and did not use.
    pub fn begin_pass(&mut self, reads: &Reads) {
        self.ahead.clear();
        self.guesses.clear();
        for unit in std::mem::take(&mut self.announced) {
            self.stand(reads, unit);
        }
    }

    /// Whether a unit may lose its slot.
    pub(super) fn standing(&self, reads: &Reads, unit: usize) -> Standing {
        let weights = &self.units[unit].weights;
        if weights.iter().any(|&(id, _)| reads.in_use(id) || reads.is_loading(id)) {
            Standing::Busy
        } else if weights.iter().any(|&(id, _)| self.wanted[id] == reads.pass() && self.wanted[id] > 0) {
            Standing::Announced
        } else {
            Standing::Free
        }
    }

    /// Takes note of a change of one of a unit's weights.
    fn stand(&mut self, reads: &Reads, unit: usize) {
        self.cache.stand(unit, self.standing(reads, unit));
    }

    /// Takes note of a weight that is waited for or held, or is not any more.
    pub fn changed(&mut self, reads: &Reads, id: usize) {
        if let Some(unit) = self.unit_of[id] {
            self.stand(reads, unit);
        }
    }

    /// Whether all of a unit is in memory or on its way there.
    fn is_whole(&self, reads: &Reads, unit: usize) -> bool {
        self.units[unit].weights.iter().all(|&(id, _)| !reads.is_absent(id))
    }

    /// Notes the first time that a pass asks for a unit.
    fn see(&mut self, reads: &Reads, stats: &mut ResidencyStats, unit: usize) {
        if self.units[unit].seen == reads.pass() {
            return;
        }
        self.units[unit].seen = reads.pass();
        self.cache.touch(unit, reads.pass());
        let mut hit = true;
        for &(id, _) in &self.units[unit].weights {
            let bytes = reads.weight(id).len();
            match reads.is_ready(id) {
                true => stats.hit_bytes += bytes,
                false => (stats.miss_bytes, hit) = (stats.miss_bytes + bytes, false),
            }
        }
        stats.hits += u64::from(hit);
        stats.misses += u64::from(!hit);
    }

    /// A weight is asked for. Where it is neither in memory nor on its way, its unit is read as soon as
    /// there is room.
    pub fn request(&mut self, reads: &mut Reads, stats: &mut ResidencyStats, id: usize) {
        let Some(unit) = self.unit_of[id] else { return };
        self.layer = self.units[unit].layer;
        self.see(reads, stats, unit);
        if reads.is_absent(id) {
            // What was only announced has to give way.
            let _ = self.place(reads, unit, Standing::Free) || self.place(reads, unit, Standing::Announced);
        }
    }

    /// Begins to read what is absent of a unit, if it has a slot or there is one for it.
    fn place(&mut self, reads: &mut Reads, unit: usize, gives_way: Standing) -> bool {
        let slot = match self.cache.slot(unit) {
            Some(slot) => slot,
            None => {
                let now = Now { pass: reads.pass(), layer: self.layer };
                let Some((slot, evicted)) = self.cache.place(unit, now, gives_way) else { return false };
                if let Some(evicted) = evicted {
                    self.units[evicted].weights.iter().for_each(|&(id, _)| reads.forget(id));
                }
                slot
            }
        };
        let Class { start, slot_bytes } = self.classes[self.units[unit].class];
        for &(id, at) in &self.units[unit].weights {
            if reads.is_absent(id) {
                reads.load(id, start + slot * slot_bytes + at);
            }
        }
        self.stand(reads, unit);
        true
    }

    /// Begins to read experts of this pass; those without room wait until there is some.
    pub fn announce(&mut self, reads: &mut Reads, stats: &mut ResidencyStats, ids: &[usize]) {
        let units = self.name(ids);
        let Some(&first) = units.first() else { return };
        self.layer = self.units[first].layer;
        self.settle_guesses(reads, stats);
        ids.iter().for_each(|&id| self.wanted[id] = reads.pass());
        for &unit in &units {
            self.see(reads, stats, unit);
            self.stand(reads, unit);
        }
        for &unit in &units {
            if !self.is_whole(reads, unit) && !self.place(reads, unit, Standing::Free) {
                self.ahead.push_back(unit);
            }
        }
        self.announced.extend(units);
    }

    /// The units of some weights, each once.
    fn name(&mut self, ids: &[usize]) -> Vec<usize> {
        self.announcements += 1;
        let first = |&unit: &usize| {
            std::mem::replace(&mut self.units[unit].named, self.announcements) != self.announcements
        };
        ids.iter().filter_map(|&id| self.unit_of[id]).filter(first).collect()
    }

    /// Whether guesses are to be made in this pass.
    pub fn makes_guesses(&self, reads: &Reads, guesses: Guesses) -> bool {
        self.trust.makes(guesses, reads.pass())
    }

    /// Begins to read experts that the next layer may choose, after everything that is certain and only
    /// where there is room that nothing certain needs; or only takes note of them.
    pub fn guess(&mut self, reads: &mut Reads, ids: &[usize], guesses: Guesses) {
        let read = self.trust.reads(guesses);
        for unit in self.name(ids) {
            if self.is_whole(reads, unit) {
                continue;
            }
            if !read {
                self.guesses.push((unit, false));
            } else if self.place(reads, unit, Standing::Free) {
                let weights = &self.units[unit].weights;
                weights.iter().for_each(|&(id, _)| self.wanted[id] = reads.pass());
                self.guesses.push((unit, true));
                self.announced.push(unit);
            }
        }
    }

    /// The layer of the units last named has chosen these: guesses that were wrong are given up where they
    /// have not been begun.
    fn settle_guesses(&mut self, reads: &mut Reads, stats: &mut ResidencyStats) {
        for (unit, read) in std::mem::take(&mut self.guesses) {
            if self.units[unit].layer != self.layer {
                self.guesses.push((unit, read));
                continue;
            }
            let right = self.units[unit].named == self.announcements;
            self.trust.note(right);
            stats.guesses += u64::from(read);
            stats.right_guesses += u64::from(read && right);
            if right || !read {
                continue;
            }
            for &(id, _) in &self.units[unit].weights {
                self.wanted[id] = 0;
                if reads.is_queued(id) && !reads.in_use(id) {
                    reads.abandon(id);
                }
            }
            self.tidy(reads, unit);
        }
    }

    /// Takes the slot from a unit of which nothing is left or on its way.
    fn tidy(&mut self, reads: &Reads, unit: usize) {
        let weights = &self.units[unit].weights;
        if weights.iter().all(|&(id, _)| reads.is_absent(id) && !reads.in_use(id)) {
            self.cache.remove(unit);
        } else {
            self.stand(reads, unit);
        }
    }

    /// Takes note of a weight that has been read, or could not be.
    pub fn settled(&mut self, reads: &Reads, id: usize) {
        if let Some(unit) = self.unit_of[id] {
            self.tidy(reads, unit);
        }
    }

    /// A weight has been used: what waits for room may have some now.
    pub fn release(&mut self, reads: &mut Reads, id: usize) {
        self.wanted[id] = 0;
        self.changed(reads, id);
        while let Some(&unit) = self.ahead.front() {
            if !self.is_whole(reads, unit) && !self.place(reads, unit, Standing::Free) {
                return;
            }
            self.ahead.pop_front();
        }
    }

    /// Whether no read for the cache is under way or to be given out.
    pub fn is_idle(&self, reads: &Reads) -> bool {
        !self.units.iter().flat_map(|unit| &unit.weights).any(|&(id, _)| reads.is_loading(id))
    }

    /// Empties the cache but for what is in use; what it has learned of the model's use is forgotten.
    pub fn empty(&mut self, reads: &mut Reads) {
        for unit in 0..self.units.len() {
            let weights = &self.units[unit].weights;
            if !weights.iter().any(|&(id, _)| reads.in_use(id) || reads.is_loading(id)) {
                weights.iter().for_each(|&(id, _)| reads.forget(id));
                self.cache.remove(unit);
            }
        }
        self.cache.forget_uses();
        self.trust = Trust::default();
    }
}
