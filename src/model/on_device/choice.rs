//! Which experts the rows of a pass are sent to, and what is computed of each (token, expert) pair.
//!
//! A pair has a slot, and slots lie by expert: first those of experts that are on the device, then those that
//! are left to the CPU. So what each of them computes is one stretch.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use crate::device::{DeviceError, DeviceMatrix, DeviceSlice};
use crate::store::WeightId;

use super::super::parts::{Experts, take_out};
use super::super::state::ExpertBuffers;
use super::super::{Label, NodeId};
use super::step::values;
use super::{Step, Stop};

/// An expert in use whose weights are all on the device.
pub(super) struct Used {
    pub expert: usize,
    pub slots: Range<usize>,
    /// As [`Experts::parts`] has them.
    pub matrices: Vec<Arc<DeviceMatrix>>,
}

/// The choice for the rows of a pass.
pub(super) struct Choice {
    pub there: Vec<Used>,
    /// The slots of these; all behind are the CPU's.
    pub slots_there: usize,
    /// The slot of each pair.
    pub slots: Vec<usize>,
    /// On the device, by slot: tokens and weights; by pair: slots and weights; ones.
    pub tokens: DeviceSlice,
    pub by_slot: DeviceSlice,
    pub pairs: DeviceSlice,
    pub by_pair: DeviceSlice,
    pub ones: DeviceSlice,
}

impl Choice {
    /// Brings the choice that was made and [grouped](super::super::parts::group) to the device. The host's
    /// lists keep the experts that are left to the CPU; all are counted as wanted.
    pub fn bring(step: &mut Step<'_, '_>, experts: &Experts) -> Result<Choice, Stop> {
        let used = experts.sizes().1;
        let n = step.run.rows * used;
        let lists = &step.run.buffers.experts;
        let (there, here) = find(step, experts, &lists.tokens);
        let order = there.iter().map(|used| used.expert).chain(here);
        let by_slot: Vec<usize> = order.flat_map(|expert| lists.pairs[expert].iter().copied()).collect();
        let mut slots = vec![0; n];
        by_slot.iter().enumerate().for_each(|(slot, &pair)| slots[pair] = slot);
        let weights = &lists.weights[..n];
        let mut words: Vec<u32> = by_slot.iter().map(|pair| (pair / used) as u32).collect();
        words.extend(by_slot.iter().map(|&pair| weights[pair].to_bits()));
        words.extend(slots.iter().map(|&slot| slot as u32));
        words.extend(weights.iter().map(|weight| weight.to_bits()));
        words.extend(vec![1f32.to_bits(); n]);
        let all = step.slice("choice", 5 * n)?;
        step.ops().write(&all, &words)?;
        take_out(&mut step.run.buffers.experts, there.iter().map(|used| used.expert));
        let [tokens, by_slot, pairs, by_pair, ones] = [0, 1, 2, 3, 4].map(|i| all.part(i * n, n));
        let slots_there = there.last().map_or(0, |used| used.slots.end);
        Ok(Choice { there, slots_there, slots, tokens, by_slot, pairs, by_pair, ones })
    }

    /// Room for values of every slot.
    pub fn room(&self, step: &mut Step<'_, '_>, of: Of, row: usize) -> Result<BySlot, DeviceError> {
        let all = step.slice(of.name(), self.slots.len() * row)?;
        Ok(BySlot { of, row, all, slots_there: self.slots_there })
    }
}

/// Experts in use that are on the device as a whole now, and the others.
fn find(step: &Step<'_, '_>, experts: &Experts, tokens: &[Vec<usize>]) -> (Vec<Used>, Vec<usize>) {
    let in_use = || tokens.iter().enumerate().filter(|(_, tokens)| !tokens.is_empty());
    let weights = |expert: usize| experts.parts().map(move |part| part.matrices[expert].id);
    let ids: Vec<WeightId> = in_use().flat_map(|(expert, _)| weights(expert)).collect();
    let found = step.there.store.find_on_device(ids.into_iter());
    let (mut there, mut here, mut first) = (Vec::new(), Vec::new(), 0);
    for ((expert, tokens), found) in in_use().zip(found.chunks(experts.parts().count())) {
        match found.iter().cloned().collect::<Option<Vec<_>>>() {
            Some(matrices) => {
                let slots = first..first + tokens.len();
                first = slots.end;
                there.push(Used { expert, slots, matrices });
            }
            None => here.push(expert),
        }
    }
    (there, here)
}

/// What values of slots are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Of {
    Input,
    Gate,
    Up,
    Down,
}

impl Of {
    fn name(self) -> &'static str {
        match self {
            Of::Input => "gathered",
            Of::Gate => "expert_gate",
            Of::Up => "expert_up",
            Of::Down => "expert_down",
        }
    }

    /// Those of the CPU's slots, and the tokens of its experts.
    pub fn here(self, buffers: &mut ExpertBuffers) -> (&mut [f32], &[Vec<usize>]) {
        let ExpertBuffers { weighted, gate, up, down, tokens, .. } = buffers;
        let values = match self {
            Of::Input => weighted,
            Of::Gate => gate,
            Of::Up => up,
            Of::Down => down,
        };
        (values, tokens)
    }
}

/// Values by slot.
pub(super) struct BySlot {
    pub of: Of,
    /// Values of a slot.
    pub row: usize,
    /// Room for all on the device.
    all: DeviceSlice,
    /// Slots whose values are there; those of the others are the host's.
    slots_there: usize,
}

impl BySlot {
    /// Those that are on the device.
    pub fn there(&self) -> DeviceSlice {
        self.all.part(0, self.slots_there * self.row)
    }

    /// Those of some slots.
    pub fn part(&self, slots: &Range<usize>) -> DeviceSlice {
        self.all.part(slots.start * self.row, slots.len() * self.row)
    }

    /// Brings those of the other slots to the device.
    pub fn bring_rest(&mut self, step: &mut Step<'_, '_>) -> Result<(), DeviceError> {
        let all = self.all.len() / self.row;
        let rest = self.part(&(self.slots_there..all));
        if rest.is_empty() {
            return Ok(());
        }
        self.slots_there = all;
        let (here, _) = self.of.here(&mut step.run.buffers.experts);
        step.there.ops.write(&rest, &here[..rest.len()])
    }

    /// Whether a slot's values are on the device or here, and which they are there.
    fn place(&self, slot: usize) -> (bool, Range<usize>) {
        let is_there = slot < self.slots_there;
        let at = if is_there { slot } else { slot - self.slots_there } * self.row;
        (is_there, at..at + self.row)
    }
}

/// Shows values in the order (token, rank), which ggml has, several side by side.
pub(super) fn show(
    step: &mut Step<'_, '_>,
    label: Label<'_>,
    parts: &[&BySlot],
    choice: &Choice,
) -> Result<NodeId<'static>, DeviceError> {
    let (ops, rows) = (step.ops(), step.run.rows);
    let shape = [rows, choice.slots.len() / rows, parts.iter().map(|part| part.row).sum()];
    let buffers = RefCell::new(&mut step.run.buffers.experts);
    let read = || {
        let there: Result<Vec<Vec<f32>>, DeviceError> =
            parts.iter().map(|part| values(ops, &part.there())).collect();
        let (there, mut shown) = (there?, Vec::new());
        for &slot in &choice.slots {
            for (part, there) in parts.iter().zip(&there) {
                match part.place(slot) {
                    (true, place) => shown.extend_from_slice(&there[place]),
                    (false, place) => {
                        shown.extend_from_slice(&part.of.here(&mut buffers.borrow_mut()).0[place])
                    }
                }
            }
        }
        Ok(shown)
    };
    let write = |shown: &[f32]| {
        let mut there: Vec<Vec<f32>> = parts.iter().map(|part| vec![0.0; part.there().len()]).collect();
        let mut rest = shown;
        for &slot in &choice.slots {
            for (part, there) in parts.iter().zip(&mut there) {
                let (row, others) = rest.split_at(part.row);
                rest = others;
                match part.place(slot) {
                    (true, place) => there[place].copy_from_slice(row),
                    (false, place) => part.of.here(&mut buffers.borrow_mut()).0[place].copy_from_slice(row),
                }
            }
        }
        parts.iter().zip(there).try_for_each(|(part, there)| ops.write(&part.there(), &there))
    };
    step.run.watch.show_elsewhere(label, shape, read, write)
}
