//! Which experts have a slot on the device: the policy of the [cache](super::super::cache), with the
//! difference that nothing has to come: an expert moves to the device only where it is expected to be wanted
//! sooner than the one that it takes the place of.

use std::collections::VecDeque;

use super::super::cache::{Cache, Member, Now, Standing};
use super::super::plan::DevicePlan;
use super::{DeviceStats, Source};

/// Experts whose move is under way at a time. Copies have the bus for themselves; a pass that wants others
/// meanwhile may have them.
const MOST_MOVES: usize = 8;

/// An expert, and its weights.
#[derive(Debug, Default)]
struct Unit {
    weights: Vec<usize>,
    /// The last pass that wanted it.
    wanted: u64,
    moves: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Experts {
    units: Vec<Unit>,
    /// The unit of each weight.
    unit_of: Vec<Option<usize>>,
    cache: Cache,
    pass: u64,
    /// Units that the pass under way wants and that are not on the device.
    missed: Vec<usize>,
    /// Units to be copied, and those that they take the place of.
    moves: VecDeque<(usize, Option<usize>)>,
    under_way: usize,
    pub stats: DeviceStats,
}

impl Experts {
    /// Slots that fill up, with experts of all layers alike, before anything is known of their use.
    pub fn new(sources: &[Source], plan: &DevicePlan) -> Experts {
        let (mut units, mut members) = (Vec::<Unit>::new(), Vec::new());
        let mut unit_of = vec![None; sources.len()];
        for (id, place) in plan.experts.iter().enumerate() {
            let Some((class, unit)) = *place else { continue };
            if unit == units.len() {
                units.push(Unit::default());
                members.push(Member { class, layer: sources[id].layer, share: sources[id].share });
            }
            units[unit].weights.push(id);
            unit_of[id] = Some(unit);
        }
        let slots: Vec<usize> = plan.classes.iter().map(|class| class.slots).collect();
        let order = in_turns(&members);
        let mut experts = Experts {
            cache: Cache::new(members, &slots),
            units,
            unit_of,
            pass: 0,
            missed: Vec::new(),
            moves: VecDeque::new(),
            under_way: 0,
            stats: DeviceStats::default(),
        };
        for unit in order {
            if experts.cache.place_in_free(unit) {
                experts.units[unit].moves = true;
                experts.moves.push_back((unit, None));
            }
        }
        experts
    }

    /// Notes that a pass wants a weight.
    pub fn wanted(&mut self, id: usize, is_there: bool) {
        let Some(unit) = self.unit_of[id] else { return };
        if std::mem::replace(&mut self.units[unit].wanted, self.pass) == self.pass {
            return;
        }
        self.cache.touch(unit, self.pass);
        if is_there {
            self.stats.hits += 1;
        } else {
            self.stats.misses += 1;
            self.missed.push(unit);
        }
    }

    /// Goes on to the next pass; says whether there is something to copy.
    pub fn begin_pass(&mut self) -> bool {
        let now = Now { pass: self.pass, layer: 0 };
        for unit in std::mem::take(&mut self.missed) {
            if self.moves.len() + self.under_way >= MOST_MOVES || self.units[unit].moves {
                continue;
            }
            if let Some(victim) = self.cache.place_if_sooner(unit, now) {
                self.units[unit].moves = true;
                self.moves.push_back((unit, victim));
            }
        }
        self.pass += 1;
        !self.moves.is_empty()
    }

    /// The next expert to copy, and the one that it takes the place of, as weights.
    pub fn next(&mut self) -> Option<(usize, &[usize], &[usize])> {
        let (unit, victim) = self.moves.pop_front()?;
        self.under_way += 1;
        let weights = |unit: usize| &self.units[unit].weights[..];
        Some((unit, weights(unit), victim.map_or(&[][..], weights)))
    }

    /// An expert has been copied, or has not where that failed.
    pub fn moved(&mut self, unit: usize, is_there: bool) {
        self.under_way -= 1;
        self.units[unit].moves = false;
        if is_there {
            self.stats.moved += 1;
            self.cache.stand(unit, Standing::Free);
        } else {
            self.cache.remove(unit);
        }
    }

    /// Takes no more slots than there are now: the device has no more memory.
    pub fn no_more(&mut self) {
        for (unit, _) in std::mem::take(&mut self.moves) {
            self.units[unit].moves = false;
            self.cache.remove(unit);
        }
        self.cache.drop_free_slots();
    }

    pub fn is_idle(&self) -> bool {
        self.moves.is_empty() && self.under_way == 0
    }
}

/// All members, the first of every layer before the second of any.
fn in_turns(members: &[Member]) -> Vec<usize> {
    let mut seen = std::collections::HashMap::new();
    let mut order: Vec<(usize, usize)> = Vec::with_capacity(members.len());
    for (unit, member) in members.iter().enumerate() {
        let turn = seen.entry(member.layer).or_insert(0usize);
        order.push((*turn, unit));
        *turn += 1;
    }
    order.sort_unstable();
    order.into_iter().map(|(_, unit)| unit).collect()
}
