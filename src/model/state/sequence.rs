//! What a sequence remembers, slot by slot: each part of a model that remembers anything has a slot of its
//! own, or looks into another's.

mod kept;

use std::ops::Range;

use crate::kernels::ops::{KV_BLOCK, KvPages, Ops, PAGE};
use crate::store::OutOfMemory;

use super::super::{MemorySpec, ModelSpec};
use super::kv::Pages;
use super::recurrent::Recurrent;
use super::{KvElement, KvError, KvType};

pub use kept::{KeptNeeds, KeptPart};

/// A slot.
#[derive(Clone, Debug)]
enum Slot {
    Pages(Pages),
    /// A row for each so many positions.
    Compressed(Pages, usize),
    Recurrent(Recurrent),
}

impl Slot {
    fn new(spec: &MemorySpec, ty: KvType) -> Slot {
        match *spec {
            MemorySpec::Pages { kv_heads, key_len, value_len, window } => {
                // Keys alone are attended to together with compressed rows.
                let ty = if value_len > 0 { ty } else { ty.floats() };
                Slot::Pages(Pages::new(ty, [kv_heads, key_len, value_len], window))
            }
            MemorySpec::Latents { len } => Slot::Pages(Pages::new(ty, [1, len, 0], None)),
            MemorySpec::Rows { len } => Slot::Pages(Pages::new(ty.floats(), [1, len, 0], None)),
            MemorySpec::Compressing { len, scores, window } => {
                let score_len = if scores { len } else { 0 };
                Slot::Pages(Pages::new(KvType::F32, [1, len, score_len], Some(window)))
            }
            MemorySpec::Compressed { len, ratio } => {
                Slot::Compressed(Pages::new(ty.floats(), [1, len, 0], None), ratio)
            }
            MemorySpec::Recurrent { floats } => Slot::Recurrent(Recurrent::new(floats)),
        }
    }

    /// The last position up to `pos` from which a pass can go on.
    fn last_before(&self, pos: usize) -> usize {
        match self {
            Slot::Pages(pages) => pages.last_before(pos),
            Slot::Compressed(..) => pos,
            Slot::Recurrent(state) => state.last_before(pos),
        }
    }

    fn rewind(&mut self, past: usize) {
        match self {
            Slot::Pages(pages) => pages.rewind(past),
            Slot::Compressed(pages, ratio) => pages.rewind(past / *ratio),
            Slot::Recurrent(state) => state.rewind(past),
        }
    }
}

/// What a sequence remembers; a clone shares all of it until one of both writes.
#[derive(Clone, Debug)]
pub struct SequenceState {
    slots: Vec<Slot>,
    ty: KvType,
}

impl SequenceState {
    /// An empty state. Memory is taken as positions are filled.
    pub fn new(spec: &ModelSpec, ty: KvType) -> SequenceState {
        SequenceState { slots: spec.memories.iter().map(|memory| Slot::new(memory, ty)).collect(), ty }
    }

    /// Whether a model's keys and values can be kept as these types.
    ///
    /// # Errors
    /// Blocks that heads are no multiple of, and two types where values are parts of keys.
    pub fn check(spec: &ModelSpec, ty: KvType) -> Result<(), KvError> {
        let blocks = |element: KvElement, what: &'static str, len: usize| match element.is_quantised() {
            true if !len.is_multiple_of(KV_BLOCK) => Err(KvError::Blocks { element, what, len }),
            _ => Ok(()),
        };
        for memory in &spec.memories {
            match *memory {
                MemorySpec::Pages { key_len, value_len: value_len @ 1.., .. } => {
                    blocks(ty.keys, "its keys", key_len)?;
                    blocks(ty.values, "its values", value_len)?;
                }
                MemorySpec::Latents { .. } if ty.keys != ty.values => return Err(KvError::Apart(ty)),
                MemorySpec::Latents { len } => blocks(ty.keys, "its latents", len)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Bytes of a state of so many positions at most, filled in passes of up to `batch` tokens or with up to
    /// so many drafts.
    pub fn bytes(spec: &ModelSpec, context: usize, batch: usize, drafts: usize, ty: KvType) -> u64 {
        let slot = |memory: &MemorySpec| match Slot::new(memory, ty) {
            Slot::Pages(pages) => pages.most_bytes(context, batch),
            Slot::Compressed(pages, ratio) => pages.most_bytes(context / ratio, batch / ratio),
            Slot::Recurrent(state) => state.most_bytes(drafts),
        };
        spec.memories.iter().map(slot).fold(0, u64::saturating_add)
    }

    /// Bytes that are taken now; what is shared is counted whole.
    pub fn held_bytes(&self) -> u64 {
        let slot = |slot: &Slot| match slot {
            Slot::Pages(pages) | Slot::Compressed(pages, _) => pages.held_bytes(),
            Slot::Recurrent(state) => state.held_bytes(),
        };
        self.slots.iter().map(slot).sum()
    }

    /// The pages that are held: the number of each, which no other page has, and its bytes.
    pub fn pages_held(&self) -> Vec<(u64, u64)> {
        let pages = self.slots.iter().filter_map(|slot| match slot {
            Slot::Pages(pages) | Slot::Compressed(pages, _) => Some(pages.held()),
            Slot::Recurrent(_) => None,
        });
        pages.flatten().collect()
    }

    /// Those of them that the position `past` writes to: each is copied then where somebody else has it, too.
    pub fn open_pages(&self, past: usize) -> Vec<(u64, u64)> {
        let open = |slot: &Slot| {
            let (pages, rows) = match slot {
                Slot::Pages(pages) => (pages, past),
                Slot::Compressed(pages, ratio) => (pages, past / *ratio),
                Slot::Recurrent(_) => return None,
            };
            pages.held().next_back().filter(|_| !rows.is_multiple_of(PAGE))
        };
        self.slots.iter().filter_map(open).collect()
    }

    /// Bytes of the keys and values that attention of a layer sees, of so many positions at most, filled in
    /// passes of up to `batch` tokens, and of the states of recurrences: what copies of them on a device
    /// take.
    pub fn copies_bytes(memories: &[MemorySpec], context: usize, batch: usize, ty: KvType) -> [u64; 2] {
        let slot = |memory: &MemorySpec| match (memory, Slot::new(memory, ty)) {
            (MemorySpec::Pages { value_len: 1.., .. }, Slot::Pages(pages)) => {
                [pages.most_bytes(context, batch), 0]
            }
            (_, Slot::Recurrent(state)) => [0, (state.floats() * size_of::<f32>()) as u64],
            _ => [0; 2],
        };
        let add = |[pages, states]: [u64; 2], [more, others]: [u64; 2]| {
            [pages.saturating_add(more), states.saturating_add(others)]
        };
        memories.iter().map(slot).fold([0; 2], add)
    }

    /// What keys and values are kept as.
    pub fn ty(&self) -> KvType {
        self.ty
    }

    /// Forgets all from position `past` on, and says from which position a pass can go on: `past`; an earlier
    /// one, where a recurrence has kept a copy of its state; 0, where a window has given up what a token
    /// would see.
    pub fn rewind(&mut self, past: usize) -> usize {
        let mut to = past;
        loop {
            let last = self.slots.iter().fold(to, |to, slot| to.min(slot.last_before(to)));
            if last == to {
                break;
            }
            to = last;
        }
        self.slots.iter_mut().for_each(|slot| slot.rewind(to));
        to
    }

    /// The pages of a slot that has some.
    fn pages(&self, slot: usize) -> &Pages {
        match &self.slots[slot] {
            Slot::Pages(pages) | Slot::Compressed(pages, _) => pages,
            Slot::Recurrent(_) => unreachable!("slot {slot} holds a recurrence"),
        }
    }

    fn pages_mut(&mut self, slot: usize) -> &mut Pages {
        match &mut self.slots[slot] {
            Slot::Pages(pages) | Slot::Compressed(pages, _) => pages,
            Slot::Recurrent(_) => unreachable!("slot {slot} holds a recurrence"),
        }
    }

    /// Writes keys and values of a slot of pages, `[tokens][kv_heads * len]` each, at positions from
    /// `first_pos` on. Of rows alone there are no values. Compressed rows are counted by themselves.
    ///
    /// # Errors
    /// Where there is no memory for another page.
    pub(in crate::model) fn store(
        &mut self,
        ops: &Ops,
        slot: usize,
        first_pos: usize,
        keys: &[f32],
        values: &[f32],
    ) -> Result<(), OutOfMemory> {
        self.pages_mut(slot).store(ops, first_pos, keys, values)
    }

    /// Makes the pages of a slot ready for so many positions from `first_pos` on, which are stored
    /// afterwards.
    ///
    /// # Errors
    /// Where there is no memory for another page.
    pub(in crate::model) fn reserve(
        &mut self,
        slot: usize,
        first_pos: usize,
        tokens: usize,
    ) -> Result<(), OutOfMemory> {
        self.pages_mut(slot).reserve(first_pos, tokens)
    }

    /// The numbers of a slot's pages: as long as a page has its own, rows that are stored do not change.
    pub(in crate::model) fn page_ids(&self, slot: usize) -> Vec<u64> {
        self.pages(slot).ids()
    }

    /// What a slot's keys and values are kept as.
    pub(in crate::model) fn kept_as(&self, slot: usize) -> KvType {
        self.pages(slot).ty()
    }

    /// The order of the Hadamard matrix that a slot's values are rotated by, and so what attention gives; 1:
    /// none.
    pub(in crate::model) fn value_rotation(&self, slot: usize) -> usize {
        self.pages(slot).rotations()[1]
    }

    /// Calls `f` with the pages of a slot.
    pub(in crate::model) fn with_pages<T>(&self, slot: usize, f: impl FnOnce(&KvPages<'_>) -> T) -> T {
        self.pages(slot).with(f)
    }

    /// Runs the recurrence of a slot over `rows` rows from position `first_pos` on: calls `step` with
    /// stretches of rows and the state to change. Where the rows behind the first are `drafts`, each can be
    /// taken back.
    ///
    /// # Errors
    /// Where there is no memory for the state.
    pub(in crate::model) fn recurrent(
        &mut self,
        slot: usize,
        first_pos: usize,
        rows: usize,
        drafts: bool,
        step: impl FnMut(Range<usize>, &mut [f32]),
    ) -> Result<(), OutOfMemory> {
        match &mut self.slots[slot] {
            Slot::Recurrent(state) => state.advance(first_pos, rows, drafts, step),
            Slot::Pages(_) | Slot::Compressed(..) => unreachable!("slot {slot} holds pages"),
        }
    }

    /// The number and the values of the state of a slot after so many positions, where it is still there: as
    /// long as a state has its number, its values do not change. A recurrence that has seen nothing has none.
    pub(in crate::model) fn recurrent_state(&self, slot: usize, past: usize) -> Option<(u64, &[f32])> {
        match &self.slots[slot] {
            Slot::Recurrent(state) => state.state_at(past).map(|state| (state.number, &state.values[..])),
            Slot::Pages(_) | Slot::Compressed(..) => unreachable!("slot {slot} holds pages"),
        }
    }
}

#[cfg(test)]
mod tests;
