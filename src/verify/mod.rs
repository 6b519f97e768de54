//! VERIFY: how far values are from a reference, and where they part.
//!
//! - [`Difference`] measures values against a reference.
//! - [`TensorFile`] reads, [`TensorWriter`] writes named tensors as safetensors: references captured from another
//!   program, traces, dequantised tensors.
//! - [`formats`] holds the formats against what ggml computed, and every kernel set against the scalar dots.

pub mod formats;
mod measure;
mod tensors;

pub use measure::Difference;
pub use tensors::{Element, Tensor, TensorFile, TensorFileError, TensorWriter};
