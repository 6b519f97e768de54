//! Memory on the device for what a pass computes there, kept from one pass to the next.

use std::collections::HashMap;
use std::sync::Arc;

use crate::device::{Device, DeviceActivations, DeviceError, DeviceOps, DeviceSlice, Memory};
use crate::kernels::ops::PAGE;
use crate::quant::ActivationType;

use super::super::state::{ExpertSizes, KvType, SequenceState, dense_ff};
use super::super::{LayerSpec, MemorySpec, ModelSpec};
use super::There;
use super::pages::PageCopies;
use super::states::StateCopies;

/// Values of keys and values, and those of states, that a chain keeps at most, unless a single block has more
/// keys and values, or states of so many stretches.
const MOST_KEPT: usize = 1 << 24;
const KEPT_STATES: usize = 8;
/// Stretches of a pass, beside those that end with pages, from which on the CPU does its recurrences.
const MOST_STRETCHES: usize = 64;
/// Words of what is small: of a (token, expert) pair in the choice, of a row's rotations and other factors,
/// and vectors of a layer.
const OF_PAIR: usize = 5;
const OF_ROW: usize = 1 << 9;
const OF_LAYER: usize = 8;

/// See the module.
#[derive(Debug)]
pub(in crate::model) struct Room {
    /// Where the device at hand lies: memory of another one is none of its own.
    device: usize,
    /// Passes of so many rows and more have no room.
    refused_from: usize,
    slices: HashMap<(&'static str, usize), DeviceSlice>,
    /// What came down of the last chain: new memory each time takes as long as the copy.
    pub(super) results: Vec<u32>,
    /// Rows of activations, by their type and length.
    rounded: Vec<DeviceActivations>,
    pub(super) pages: PageCopies,
    pub(super) states: StateCopies,
    shares: Shares,
    /// Values of keys and values of a token: of all layers, and of the widest.
    kept: usize,
    widest_kept: usize,
    /// Values of the states of a sequence: of all slots, and of the block with the largest.
    kept_states: usize,
    widest_states: usize,
}

/// How copies of pages and of states share what the plan has for them.
#[derive(Debug)]
struct Shares {
    memories: Vec<MemorySpec>,
    /// Rows of a pass and positions of a sequence at most.
    batch: usize,
    context: usize,
}

impl Shares {
    /// Bytes of both, where keys and values are of this type: by what full sequences have of them, but first
    /// the states of one sequence, of which a part is of little use.
    fn of(&self, there: There<'_>, ty: KvType) -> [u64; 2] {
        let plan = there.store.plan().and_then(|plan| plan.device.as_ref());
        let all = plan.map_or(0, |plan| plan.kv_bytes);
        let Shares { memories, batch, context } = self;
        let [pages, states] = SequenceState::copies_bytes(memories, *context, *batch, ty);
        let both = (u128::from(pages) + u128::from(states)).max(1);
        let share = u128::from(all) * u128::from(states) / both;
        let states = (share as u64).max(states.min(all));
        [all - states, states]
    }
}

impl Room {
    /// Of passes of up to `batch` rows, of sequences of up to `context` positions.
    pub fn new(spec: &ModelSpec, [batch, context]: [usize; 2]) -> Room {
        let kept = |memory: &MemorySpec| match *memory {
            MemorySpec::Pages { kv_heads, key_len, value_len: value_len @ 1.., .. } => {
                kv_heads * (key_len + value_len)
            }
            _ => 0,
        };
        let state = |memory: &MemorySpec| match *memory {
            MemorySpec::Recurrent { floats } => floats,
            _ => 0,
        };
        let states: Vec<usize> = spec.memories.iter().map(state).collect();
        let shape = |memory: &MemorySpec| match *memory {
            MemorySpec::Pages { kv_heads, key_len, value_len: value_len @ 1.., .. } => {
                Some([kv_heads, key_len, value_len])
            }
            _ => None,
        };
        Room {
            device: 0,
            refused_from: usize::MAX,
            slices: HashMap::new(),
            results: Vec::new(),
            rounded: Vec::new(),
            pages: PageCopies::new(spec.memories.iter().filter_map(shape).collect()),
            states: StateCopies::new(&spec.memories),
            shares: Shares { memories: spec.memories.clone(), batch, context },
            kept: spec.memories.iter().map(kept).sum(),
            widest_kept: spec.memories.iter().map(kept).max().unwrap_or(0),
            kept_states: states.iter().sum(),
            // A block has one slot, or two one behind the other.
            widest_states: (0..states.len())
                .map(|i| states[i..].iter().take(2).sum::<usize>())
                .max()
                .unwrap_or(0),
        }
    }

    /// Bytes that passes of up to `batch` rows, of sequences of up to `context` positions, take at most
    /// beside weights and copies of pages where all their blocks run on the device, so many rows of logits
    /// included.
    pub fn bytes(spec: &ModelSpec, [batch, context]: [usize; 2], logits: usize) -> u64 {
        let ExpertSizes { count, used, hidden, .. } = ExpertSizes::of(spec);
        let (embd, dense) = (spec.embd, spec.widest(dense_ff));
        let attended = spec.widest(|layer| layer.rows.attended);
        // Keys and values of attention are kept apart from these rows, those of recurrences are not.
        let rows = |layer: &LayerSpec| 2 * layer.rows.q + layer.rows.k + layer.rows.v + layer.rows.gate;
        let mixed = spec.widest(rows) + attended;
        let experts = count + used * OF_PAIR + 2 * (hidden + used * embd);
        // Of the stream, a block's input and what stands beside it, each rounded to f32 at most.
        let outputs = attended + spec.widest(|layer| layer.rows.gate + layer.rows.v);
        let rounded = (used + 1) * embd + outputs + dense + hidden;
        let row = 5 * embd + mixed + 2 * dense + experts + rounded + OF_ROW;
        let of_mixers: usize = spec.all_layers().map(|layer| layer.scratch.constants).sum();
        let constants = OF_LAYER * embd * spec.layers.len() + of_mixers;
        let head = logits as u64 * (embd + spec.vocab) as u64;
        let words = (batch as u64).saturating_mul(row as u64).saturating_add(constants as u64);
        let room = Room::new(spec, [batch, context]);
        let kept = room.kept(batch) + room.kept_states(batch.min(MOST_STRETCHES + batch / PAGE));
        let words = words.saturating_add(kept as u64).saturating_add(head);
        let shapes = spec.all_layers().filter_map(|layer| layer.scratch.attention);
        let parts = shapes.map(|shape| DeviceOps::attention_bytes(&shape, batch, context)).max();
        words.saturating_mul(size_of::<f32>() as u64).saturating_add(parts.unwrap_or(0))
    }

    pub fn begin_pass(&mut self) {
        self.pages.begin_pass();
        self.states.begin_pass();
    }

    /// What is here is of this device, or goes.
    pub(super) fn belong_to(&mut self, device: &Device) {
        let device = std::ptr::from_ref(device).addr();
        if self.device != device {
            (self.device, self.refused_from) = (device, usize::MAX);
            self.slices.clear();
            self.rounded.clear();
            self.pages.forget();
            self.states.forget();
        }
    }

    /// Whether a pass of so many rows may have room.
    pub(super) fn takes(&self, rows: usize) -> bool {
        rows > 0 && rows < self.refused_from
    }

    /// There was no memory for a pass of so many rows: what it has is given back, and none is tried again.
    pub(super) fn refuse(&mut self, rows: usize) {
        self.refused_from = self.refused_from.min(rows);
        self.slices.clear();
        self.rounded.clear();
    }

    /// So many values under this name; what they are is open.
    pub(super) fn slice(
        &mut self,
        ops: &DeviceOps,
        name: &'static str,
        len: usize,
    ) -> Result<DeviceSlice, DeviceError> {
        self.numbered_slice(ops, (name, 0), len)
    }

    /// The same where there are several of a name.
    pub(super) fn numbered_slice(
        &mut self,
        ops: &DeviceOps,
        name: (&'static str, usize),
        len: usize,
    ) -> Result<DeviceSlice, DeviceError> {
        if let Some(slice) = self.slices.get(&name).filter(|slice| slice.len() >= len) {
            return Ok(slice.part(0, len));
        }
        self.slices.remove(&name); // the former goes first
        let slice = ops.allocate(len)?;
        self.slices.insert(name, slice.clone());
        Ok(slice)
    }

    /// Rows of activations: one input at a time of each type and length.
    pub(super) fn rounded(
        &mut self,
        ops: &DeviceOps,
        ty: ActivationType,
        rows: usize,
        cols: usize,
    ) -> Result<DeviceActivations, DeviceError> {
        let of_kind = |x: &DeviceActivations| x.ty() == ty && x.cols() == cols;
        if let Some(x) = self.rounded.iter().find(|x| of_kind(x) && x.rows() >= rows) {
            return Ok(x.clone());
        }
        self.rounded.retain(|x| !of_kind(x));
        let x = ops.allocate_activations(ty, rows, cols)?;
        self.rounded.push(x.clone());
        Ok(x)
    }

    /// The memory of copies of pages of this type; `None` where there is none.
    pub(super) fn page_arena(
        &mut self,
        there: There<'_>,
        ty: KvType,
    ) -> Result<Option<Arc<Memory>>, DeviceError> {
        self.pages.arena(there, ty, || self.shares.of(there, ty)[0])
    }

    /// Takes memory for copies of states, where keys and values are of this type.
    pub(super) fn open_states(&mut self, there: There<'_>, ty: KvType) -> Result<(), DeviceError> {
        self.states.open(there, || self.shares.of(there, ty)[1])
    }

    /// Whether the host can get the states at the ends of so many stretches of a pass of so many rows.
    pub(super) fn takes_states(&self, rows: usize, stretches: usize) -> bool {
        stretches <= MOST_STRETCHES + rows / PAGE && stretches * self.widest_states <= self.most_states()
    }

    fn most_states(&self) -> usize {
        MOST_KEPT.max(KEPT_STATES * self.widest_states)
    }

    /// Values of states of a chain over so many stretches at most.
    pub(super) fn kept_states(&self, stretches: usize) -> usize {
        (stretches * self.kept_states).min(self.most_states())
    }

    /// Those of a block at most.
    pub(super) fn kept_states_of_block(&self, stretches: usize) -> usize {
        stretches * self.widest_states
    }

    /// Values of keys and values of a chain of so many rows at most.
    pub(super) fn kept(&self, rows: usize) -> usize {
        (rows * self.kept).min(MOST_KEPT.max(rows * self.widest_kept))
    }

    /// Those of a block at most.
    pub(super) fn kept_of_block(&self, rows: usize) -> usize {
        rows * self.widest_kept
    }
}
