//! Whole models: every byte read once, hashed or compared, by several threads in little memory.
//!
//! - [`hash()`] makes the [`ModelDigests`] of a model, [`Manifest`] holds those that a model should have, and
//!   [`check()`] tells where the two differ.
//! - [`compare_metadata`] and [`compare_data`] compare two models.

mod check;
mod compare;
mod digest;
mod hash;
mod jobs;
mod manifest;
mod metadata;
#[cfg(test)]
mod tests;

pub use check::{CheckOutcome, Deviation, Subject, check};
pub use compare::{DataDiff, compare_data};
pub use digest::{Algorithm, Algorithms, Digests};
pub use hash::{Covered, FileDigest, ModelDigests, TensorDigest, hash};
pub use manifest::{FileEntry, Manifest, ManifestError, ManifestErrorKind, TensorEntry, write_manifest};
pub use metadata::{ArrayDiff, MetadataDiff, compare_array, compare_metadata, is_of_layout};
