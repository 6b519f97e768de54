//! VERIFY: how far values are from a reference, and where they part.
//!
//! - [`Difference`] measures values against a reference.
//! - [`TensorFile`] reads, [`TensorWriter`] writes named tensors as safetensors: references captured from another
//!   program, traces, dequantised tensors.

mod measure;
mod tensors;

pub use measure::Difference;
pub use tensors::{Element, Tensor, TensorFile, TensorFileError, TensorWriter};
