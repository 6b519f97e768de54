//! VERIFY: how far values are from a reference, and where they part.
//!
//! - [`Difference`] measures values against a reference.
//! - [`TensorFile`] reads, [`TensorWriter`] writes named tensors as safetensors: references captured from another
//!   program, traces, dequantised tensors.
//! - [`WeightRows`] decodes rows of any GGUF file's tensors, [`Statistics`] sums them up, [`NpyWriter`] writes them.
//! - [`formats`] holds the formats against what ggml computed, and every kernel set against the scalar dots.

pub mod formats;
mod measure;
mod npy;
mod statistics;
mod tensors;
mod weight_rows;

pub use measure::Difference;
pub use npy::NpyWriter;
pub use statistics::{Histogram, Statistics};
pub use tensors::{Element, Tensor, TensorFile, TensorFileError, TensorWriter};
pub use weight_rows::{Place, RowRange, RowsError, Selection, WeightRows};
