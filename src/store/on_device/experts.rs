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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::super::plan::SlotClass;
    use super::super::super::registry::FileBytes;
    use super::*;
    use crate::gguf::{StaticBytes, TensorType};

    /// Two layers of four experts of two weights each, and so many slots.
    fn experts(slots: usize) -> Experts {
        let source = |i: usize| Source {
            file: FileBytes::Memory { name: PathBuf::new(), bytes: StaticBytes(&[]) },
            range: 0..0,
            ty: TensorType::F32,
            rows: 0,
            cols: 0,
            layer: i / 8,
            share: 0.25,
        };
        let sources: Vec<Source> = (0..16).map(source).collect();
        let plan = DevicePlan {
            budget: 0,
            kv_bytes: 0,
            always_bytes: 0,
            classes: vec![SlotClass { slot_bytes: 2, slots, members: 8 }],
            experts: (0..16).map(|i| Some((0, i / 2))).collect(),
            active_bytes: 0.0,
        };
        Experts::new(&sources, &plan)
    }

    /// Does all that is to be copied; says which units came, and which gave way.
    fn copy_all(experts: &mut Experts) -> Vec<(usize, Option<usize>)> {
        let mut done = Vec::new();
        while let Some((unit, weights, victims)) = experts.next() {
            assert_eq!(weights, [2 * unit, 2 * unit + 1]);
            let victim = victims.first().map(|weight| weight / 2);
            done.push((unit, victim));
            experts.moved(unit, true);
        }
        assert!(experts.is_idle());
        done
    }

    #[test]
    fn slots_fill_with_experts_of_all_layers() {
        let mut experts = experts(4);
        assert_eq!(copy_all(&mut experts), [(0, None), (4, None), (1, None), (5, None)]);
        assert_eq!(experts.stats.moved, 4);
    }

    #[test]
    fn an_expert_that_is_wanted_again_and_again_moves_up() {
        let mut experts = experts(4);
        copy_all(&mut experts);
        // Unit 3 of the first layer and unit 7 of the second in each pass: neither is there at first.
        let mut there = [false; 8];
        [0, 4, 1, 5].iter().for_each(|&unit| there[unit] = true);
        for _ in 0..60 {
            experts.begin_pass();
            for (unit, victim) in copy_all(&mut experts) {
                there[unit] = true;
                there[victim.expect("all slots are taken")] = false;
            }
            for unit in [3, 7] {
                (2 * unit..2 * unit + 2).for_each(|id| experts.wanted(id, there[unit]));
            }
        }
        assert!(there[3] && there[7], "{there:?}");
        assert_eq!(there.iter().filter(|there| **there).count(), 4);
        assert!(experts.stats.moved <= 8, "no more moves than pay: {:?}", experts.stats);
        // Each expert is counted once a pass.
        assert_eq!(experts.stats.hits + experts.stats.misses, 120);
        assert!(experts.stats.hits > 100, "{:?}", experts.stats);
    }

    #[test]
    fn without_memory_there_are_no_more_slots_than_are_taken() {
        let mut experts = experts(8);
        let (unit, ..) = experts.next().expect("a copy");
        experts.moved(unit, true);
        let (unit, ..) = experts.next().expect("another");
        experts.moved(unit, false);
        experts.no_more();
        assert!(experts.is_idle());
        for pass in 0..20 {
            experts.begin_pass();
            experts.wanted(2 * unit, false);
            for (came, victim) in copy_all(&mut experts) {
                assert_eq!((came, victim), (unit, Some(0)), "pass {pass}: for the only one that is there");
            }
        }
        assert_eq!(experts.stats.moved, 2);
    }
}
