//! Rounding of activations to what products read.

use std::sync::Arc;

use super::{DeviceOps, DeviceSlice, count, number};
use crate::device::{Arg, DeviceError, Memory};
use crate::quant::ActivationType;

/// As in the source's `ops_rounding.cl`.
const ROUND_LANES: usize = 256;
/// Parts begin at multiples of so many words: kernels load as many at once.
const ALIGNMENT: usize = 4;

/// Rows of activations on a device: room for `rows` rows of `cols` elements.
#[derive(Clone, Debug)]
pub struct DeviceActivations {
    ty: ActivationType,
    rows: usize,
    cols: usize,
    memory: Arc<Memory>,
    at: [usize; 3],
}

impl DeviceActivations {
    pub fn ty(&self) -> ActivationType {
        self.ty
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Where they lie: words of the memory at which these begin, row after row:
    ///
    /// - integers, four a word, or floats;
    /// - quantised types: scales;
    /// - Q8_1: sums of the blocks' values; Q8_K: sums of 16 integers, two a word.
    pub fn memory(&self) -> (&Arc<Memory>, [usize; 3]) {
        (&self.memory, self.at)
    }

    /// Words of a row of each of these.
    pub fn row_words(&self) -> [usize; 3] {
        row_words(self.ty, self.cols)
    }
}

fn row_words(ty: ActivationType, cols: usize) -> [usize; 3] {
    match ty {
        ActivationType::F32 | ActivationType::F16 | ActivationType::BF16 => [cols, 0, 0],
        ActivationType::Q8_0 => [cols / 4, cols / 32, 0],
        ActivationType::Q8_1 => [cols / 4, cols / 32, cols / 32],
        ActivationType::Q8_K => [cols / 4, cols / 256, cols / 32],
    }
}

impl DeviceOps {
    /// Memory for rows of activations.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or that the device is lost.
    ///
    /// # Panics
    /// Where rows are no whole number of blocks.
    pub fn allocate_activations(
        &self,
        ty: ActivationType,
        rows: usize,
        cols: usize,
    ) -> Result<DeviceActivations, DeviceError> {
        assert!(cols.is_multiple_of(ty.block_len()), "a row of {cols} is no whole number of {ty:?} blocks");
        let mut words = 0;
        let at = row_words(ty, cols).map(|n| {
            let at = words;
            words += (n * rows).next_multiple_of(ALIGNMENT);
            at
        });
        let memory = self.allocate(words)?.memory;
        Ok(DeviceActivations { ty, rows, cols, memory, at })
    }

    /// Rounds `x`, `[rows][cols]`, as [`Activations::quantize`](crate::quant::Activations::quantize) does, to
    /// the first rows of `to`. Where the type is a quantised one and values are not finite, `flag`, one u32,
    /// becomes the least of their indices or stays where it is less: it is to be `u32::MAX` before.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where there is no room for the rows.
    pub fn round(
        &self,
        x: &DeviceSlice,
        to: &DeviceActivations,
        flag: &DeviceSlice,
    ) -> Result<(), DeviceError> {
        let room = to.cols > 0 && x.len.is_multiple_of(to.cols) && x.len / to.cols <= to.rows;
        assert!(room && flag.len == 1, "{} values to {} rows of {}", x.len, to.rows, to.cols);
        let kernel = match to.ty {
            ActivationType::F32 => "op_round_f32",
            ActivationType::F16 => "op_round_f16",
            ActivationType::BF16 => "op_round_bf16",
            ActivationType::Q8_0 => "op_round_q8_0",
            ActivationType::Q8_1 => "op_round_q8_1",
            ActivationType::Q8_K => "op_round_q8_k",
        };
        let ([memory, at], [qs_at, d_at, sums_at]) = (x.args(), to.at.map(count));
        let (flag, flag_at) = (Arg::Memory(&flag.memory), Arg::U32(number(flag.at)));
        let args = [memory, at, Arg::Memory(&to.memory), qs_at, d_at, sums_at, count(x.len), flag, flag_at];
        self.run(kernel, [x.len.div_ceil(ROUND_LANES), 1], ROUND_LANES, &args)
    }
}
