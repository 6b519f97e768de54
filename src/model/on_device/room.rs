//! Memory on the device for what a pass computes there, kept from one pass to the next.

use std::collections::HashMap;

use crate::device::{Device, DeviceActivations, DeviceError, DeviceOps, DeviceSlice};
use crate::quant::ActivationType;

use super::super::state::{ExpertSizes, dense_ff};
use super::super::{LayerSpec, MemorySpec, ModelSpec};
use super::pages::PageCopies;

/// Values of keys and values that a chain keeps at most, unless a single block has more.
const MOST_KEPT: usize = 1 << 24;
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
    /// Rows of activations, by their type and length.
    rounded: Vec<DeviceActivations>,
    pub(super) pages: PageCopies,
    /// Values of keys and values of a token: of all layers, and of the widest.
    kept: usize,
    widest_kept: usize,
}

impl Room {
    pub fn new(spec: &ModelSpec) -> Room {
        let kept = |layer: &LayerSpec| layer.rows.k + layer.rows.v;
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
            rounded: Vec::new(),
            pages: PageCopies::new(spec.memories.iter().filter_map(shape).collect()),
            kept: spec.layers.iter().map(kept).sum(),
            widest_kept: spec.widest(kept),
        }
    }

    /// Bytes that passes of up to `batch` rows, of sequences of up to `context` positions, take at most
    /// beside weights and copies of pages where all their blocks run on the device, so many rows of logits
    /// included.
    pub fn bytes(spec: &ModelSpec, [batch, context]: [usize; 2], logits: usize) -> u64 {
        let ExpertSizes { count, used, hidden, .. } = ExpertSizes::of(spec);
        let (embd, dense) = (spec.embd, spec.widest(dense_ff));
        let attended = spec.widest(|layer| layer.rows.attended);
        let attention = spec.widest(|layer| 2 * layer.rows.q + layer.rows.gate) + attended;
        let experts = count + used * OF_PAIR + 2 * (hidden + used * embd);
        // Of the stream, a block's input and what stands beside it, each rounded to f32 at most.
        let rounded = (used + 1) * embd + attended + dense + hidden;
        let row = 5 * embd + attention + 2 * dense + experts + rounded + OF_ROW;
        let constants = OF_LAYER * embd * spec.layers.len();
        let head = logits as u64 * (embd + spec.vocab) as u64;
        let words = (batch as u64).saturating_mul(row as u64).saturating_add(constants as u64);
        let words = words.saturating_add(Room::new(spec).kept(batch) as u64).saturating_add(head);
        let shapes = spec.all_layers().filter_map(|layer| layer.scratch.attention);
        let parts = shapes.map(|shape| DeviceOps::attention_bytes(&shape, batch, context)).max();
        words.saturating_mul(size_of::<f32>() as u64).saturating_add(parts.unwrap_or(0))
    }

    pub fn begin_pass(&mut self) {
        self.pages.begin_pass();
    }

    /// What is here is of this device, or goes.
    pub(super) fn belong_to(&mut self, device: &Device) {
        let device = std::ptr::from_ref(device).addr();
        if self.device != device {
            (self.device, self.refused_from) = (device, usize::MAX);
            self.slices.clear();
            self.rounded.clear();
            self.pages.forget();
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

    /// Values of keys and values of a chain of so many rows at most.
    pub(super) fn kept(&self, rows: usize) -> usize {
        (rows * self.kept).min(MOST_KEPT.max(rows * self.widest_kept))
    }

    /// Those of a block at most.
    pub(super) fn kept_of_block(&self, rows: usize) -> usize {
        rows * self.widest_kept
    }
}
