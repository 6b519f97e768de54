//! Products of weights that lie on a device with activations: a batch of them is begun, runs while the CPU
//! does something else, and is waited for.

use std::sync::Arc;

use super::{Device, DeviceError, Memory};
use crate::gguf::TensorType;
use crate::quant::{Activations, format};

/// A matrix of weights on a device, as it lies in a file: `rows` rows of `cols` elements, row after row.
#[derive(Clone, Debug)]
pub struct DeviceMatrix {
    memory: Arc<Memory>,
    /// Bytes before it.
    offset: usize,
    ty: TensorType,
    rows: usize,
    cols: usize,
}

/// One product of a batch: `out = x * matrix^T`.
#[derive(Debug)]
pub struct Product<'a> {
    pub matrix: &'a DeviceMatrix,
    /// `[tokens][matrix.cols()]`, of the type that goes with the weights.
    pub x: &'a Activations,
    /// `[tokens][matrix.rows()]`
    pub out: &'a mut [f32],
}

/// Products under way on a device.
#[must_use = "nothing is written before `finish`"]
#[derive(Debug)]
pub struct Pending<'a> {
    outs: Vec<&'a mut [f32]>,
}

impl Device {
    /// Begins to compute products, and returns while the device does. Each distinct `x` is copied once.
    ///
    /// # Errors
    /// A device that is lost or has no memory for inputs and outputs.
    ///
    /// # Panics
    /// Where lengths do not go together, activations are of the wrong type or [`Device::takes`] says no.
    pub fn begin<'a>(&self, products: Vec<Product<'a>>) -> Result<Pending<'a>, DeviceError> {
        Ok(Pending { outs: products.into_iter().map(|product| product.out).collect() })
    }
}

impl Pending<'_> {
    /// Waits, and writes all outputs. Where it fails they are open, and the CPU can compute them.
    ///
    /// # Errors
    /// A device that is lost or does not answer.
    pub fn finish(self) -> Result<(), DeviceError> {
        self.outs.into_iter().for_each(|out| out.fill(f32::NAN));
        Ok(())
    }
}

impl DeviceMatrix {
    /// A matrix that lies in `memory` from byte `offset` on.
    ///
    /// # Panics
    /// Where the type cannot be computed with, or the bytes are not all within the memory.
    pub fn new(memory: Arc<Memory>, offset: usize, ty: TensorType, rows: usize, cols: usize) -> DeviceMatrix {
        DeviceMatrix { memory, offset, ty, rows, cols }
    }

    /// Some of its rows.
    ///
    /// # Panics
    /// Where it has not so many.
    pub fn part(&self, rows: std::ops::Range<usize>) -> DeviceMatrix {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "{rows:?} of {} rows", self.rows);
        let row = format(self.ty).expect("a format").row_bytes(self.cols);
        DeviceMatrix { offset: self.offset + rows.start * row, rows: rows.len(), ..self.clone() }
    }

    pub fn ty(&self) -> TensorType {
        self.ty
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Where it lies.
    pub fn memory(&self) -> (&Arc<Memory>, usize) {
        (&self.memory, self.offset)
    }
}
