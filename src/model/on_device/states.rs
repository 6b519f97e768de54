//! Copies of the states of recurrences on the device, which blocks change there. The host's are the truth: a
//! copy is found by the number of its state. While a chain changes it, it is nobody's; where the chain ends
//! well, it is what the host's state has become.

use std::ops::Range;
use std::sync::Arc;

use crate::device::{DeviceError, DeviceOps, DeviceSlice, Memory};

use super::super::run::{Run, with_rows};
use super::super::state::stretches;
use super::super::{Logits, MemorySpec, Segment};
use super::{Step, Stop, There};

/// What a place holds.
#[derive(Clone, Debug, Default)]
struct Copied {
    number: Option<u64>,
    /// The last pass that wanted it.
    wanted: u64,
}

/// A slot of a recurrence.
#[derive(Debug)]
struct Slot {
    /// Where its state begins among those of a sequence, and how many values it has.
    at: usize,
    floats: usize,
    /// By place.
    copies: Vec<Copied>,
}

/// See the module.
#[derive(Debug)]
pub(in crate::model) struct StateCopies {
    /// Slots of the model; `None` where it is no recurrence's.
    slots: Vec<Option<Slot>>,
    /// Values of a place, which has a state of each slot.
    place: usize,
    /// Where they lie: `None` before the first is wanted, and where there is no room.
    arena: Option<Arc<Memory>>,
    is_open: bool,
    pass: u64,
}

impl StateCopies {
    pub fn new(memories: &[MemorySpec]) -> StateCopies {
        let mut place = 0;
        let slot = |memory: &MemorySpec| match *memory {
            MemorySpec::Recurrent { floats } => {
                place += floats;
                Some(Slot { at: place - floats, floats, copies: Vec::new() })
            }
            _ => None,
        };
        let slots = memories.iter().map(slot).collect();
        StateCopies { slots, place, arena: None, is_open: false, pass: 0 }
    }

    /// Another device: nothing is there.
    pub fn forget(&mut self) {
        self.slots.iter_mut().flatten().for_each(|slot| slot.copies.clear());
        (self.arena, self.is_open) = (None, false);
    }

    /// A pass begins: what it wants stays until the next.
    pub fn begin_pass(&mut self) {
        self.pass += 1;
    }

    /// Takes so much memory, and no more than an allocation may have.
    pub fn open(&mut self, there: There<'_>, bytes: impl FnOnce() -> u64) -> Result<(), DeviceError> {
        if self.is_open {
            return Ok(());
        }
        self.is_open = true;
        let most = bytes().min(there.device.info().most_allocated_bytes);
        let place = self.place * size_of::<f32>();
        let places = usize::try_from(most).unwrap_or(usize::MAX) / place.max(1);
        if places > 0 && place > 0 {
            self.arena = Some(Arc::new(there.device.allocate(places * place)?));
            let copies = vec![Copied::default(); places];
            self.slots.iter_mut().flatten().for_each(|slot| slot.copies.clone_from(&copies));
        }
        Ok(())
    }

    /// The place of a slot's state of this number, or another: that which was wanted least recently, unless
    /// this pass wants it. Says whether the state is there. Until it is [kept](StateCopies::keep), the place
    /// holds nothing that can be found.
    fn place(&mut self, slot: usize, number: Option<u64>) -> Option<(usize, bool)> {
        let pass = self.pass;
        let copies = &mut self.slots[slot].as_mut().expect("the slot is a recurrence's").copies;
        let found = copies.iter().position(|copy| number.is_some() && copy.number == number);
        let free = || {
            let others = (0..copies.len()).filter(|&i| copies[i].wanted != pass);
            others.min_by_key(|&i| (copies[i].number.is_some(), copies[i].wanted))
        };
        let at = found.or_else(free)?;
        copies[at] = Copied { number: None, wanted: pass };
        Some((at, found.is_some()))
    }

    /// A state to be changed: of a sequence after so many positions. `None` where there is no room for it.
    fn bring(
        &mut self,
        there: There<'_>,
        slot: usize,
        segment: &Segment<'_>,
    ) -> Result<Option<StatePlace>, DeviceError> {
        let Some(arena) = self.arena.clone() else { return Ok(None) };
        let state = segment.state.recurrent_state(slot, segment.first_pos);
        if state.is_none() && segment.first_pos > 0 {
            return Ok(None); // the engine's mistake, which the CPU tells of
        }
        let Some((number, is_there)) = self.place(slot, state.map(|(number, _)| number)) else {
            return Ok(None);
        };
        let of = self.slots[slot].as_ref().expect("the slot is a recurrence's");
        let place = DeviceSlice::new(arena, number * self.place + of.at, of.floats);
        match state {
            _ if is_there || of.floats == 0 => {}
            Some((_, values)) => there.ops.write(&place, values)?,
            None => there.ops.write(&place, &vec![0.0f32; of.floats])?,
        }
        Ok(Some(StatePlace { number, state: place }))
    }

    /// What a place holds is the host's state of this number.
    pub fn keep(&mut self, slot: usize, place: usize, number: u64) {
        if let Some(copy) = self.slots[slot].as_mut().and_then(|slot| slot.copies.get_mut(place)) {
            copy.number = Some(number);
        }
    }
}

/// A place that a chain changes.
#[derive(Clone, Debug)]
struct StatePlace {
    number: usize,
    state: DeviceSlice,
}

/// The states of some slots there, of each sequence of a pass that has rows.
#[derive(Debug)]
pub(super) struct States(Vec<(usize, Vec<Option<StatePlace>>)>);

impl States {
    /// Brings the states of a block's slots, as they are before the pass; `None` where there is no room for
    /// them, or for what they are at the ends of the pass's stretches.
    pub fn bring<'a>(
        run: &mut Run<'a>,
        there: There<'a>,
        slots: &[usize],
    ) -> Result<Option<States>, DeviceError> {
        let room = &mut run.buffers.on_device;
        let Some(first) = run.segments.first() else { return Ok(None) };
        if !room.takes_states(run.rows, stretches_of(&run.segments)) {
            return Ok(None);
        }
        room.open_states(there, first.state.ty())?;
        let mut found = Vec::with_capacity(slots.len());
        for &slot in slots {
            let mut places = Vec::with_capacity(run.segments.len());
            for segment in &run.segments {
                places.push(match segment.tokens.is_empty() {
                    true => None,
                    false => match room.states.bring(there, slot, segment)? {
                        Some(place) => Some(place),
                        None => return Ok(None),
                    },
                });
            }
            found.push((slot, places));
        }
        Ok(Some(States(found)))
    }

    fn of(&self, slot: usize) -> &[Option<StatePlace>] {
        let found = self.0.iter().find(|(other, _)| *other == slot);
        &found.expect("the slots of the block were brought").1
    }
}

/// Stretches of a sequence's rows, after each of which the host keeps the state.
fn stretches_in(segment: &Segment<'_>) -> Vec<Range<usize>> {
    stretches(segment.first_pos, segment.tokens.len(), segment.logits == Logits::Drafts).collect()
}

/// Stretches of all sequences.
pub(super) fn stretches_of(segments: &[Segment<'_>]) -> usize {
    segments.iter().map(|segment| stretches_in(segment).len()).sum()
}

impl Step<'_, '_> {
    /// Runs the recurrence of a slot in every sequence, as [`recur`](super::super::run::recur): calls
    /// `launch` with stretches of the pass's rows, one after another, and the state to change.
    pub fn recur(
        &mut self,
        states: &States,
        slot: usize,
        mut launch: impl FnMut(&DeviceOps, Range<usize>, &DeviceSlice) -> Result<(), DeviceError>,
    ) -> Result<(), Stop> {
        let ops = self.there.ops;
        let places = states.of(slot).iter();
        for (at, ((rows, segment), place)) in with_rows(&self.run.segments).zip(places).enumerate() {
            let Some(StatePlace { number, state }) = place else { continue };
            let stretches = stretches_in(segment);
            let ends = self.chain.keep_states((slot, at, *number), stretches.len(), state.len());
            for (i, stretch) in stretches.into_iter().enumerate() {
                launch(ops, rows.start + stretch.start..rows.start + stretch.end, state)?;
                ops.copy(&ends.part(i * state.len(), state.len()), state)?;
            }
        }
        Ok(())
    }
}
