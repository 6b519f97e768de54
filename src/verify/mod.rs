//! VERIFY: how far values are from a reference, and where they part.
//!
//! - [`Difference`] measures values against a reference.
//! - [`TensorFile`] reads, [`TensorWriter`] writes named tensors as safetensors: references captured from
//!   another program, traces, dequantised tensors.
//! - [`Golden`] is a reference file of a run, [`Recorder`] writes one, [`run()`] makes a watched run.
//! - [`Comparer`] is the observer that compares a run's nodes with a [`Reference`]; [`compare_runs`] takes a
//!   second run for one; [`NodeGraph`] knows what a node is computed from.
//! - [`bounds`] says how far nodes may be from ggml's.
//! - [`Profiler`] says where a run's time goes.
//! - [`WeightRows`] decodes rows of any GGUF file's tensors, [`Statistics`] sums them up, [`NpyWriter`]
//!   writes them.
//! - [`perplexity`] says how well a text is foretold, and how far probabilities are from another run's.
//! - [`files`] hashes and compares whole models.
//! - [`formats`] holds the formats against what ggml computed, and every kernel set against the scalar dots.

pub mod bounds;
mod compare;
mod diff;
pub mod files;
pub mod formats;
mod golden;
mod lockstep;
mod measure;
mod new_file;
mod nodes;
mod npy;
pub mod perplexity;
mod profile;
mod record;
mod reference;
mod report;
mod run;
mod statistics;
mod summary;
mod tensors;
mod weight_rows;

use std::path::PathBuf;

use thiserror::Error;

use crate::engine::EngineError;

pub use crate::model::{NodeId, NodeKind};
pub use compare::Comparer;
pub use diff::{FileDiff, diff};
pub use golden::{Description, Golden, GoldenReference};
pub use lockstep::compare_runs;
pub use measure::Difference;
pub use new_file::remove_unfinished_files;
pub(crate) use new_file::{NewFile, Unfinished};
pub use nodes::{NodeDescription, NodeGraph};
pub use npy::NpyWriter;
pub use profile::{Profiler, WorkTime};
pub use record::{NodeStatistics, Recorder, Statistician};
pub use reference::{Reference, Values};
pub use report::{Choices, CompareOptions, Flips, InputState, NodeFilter, NodeReport, Substitute, Tolerance};
pub use run::{PassObserver, run, run_block};
pub use statistics::{Histogram, Statistics, median};
pub use summary::{Divergence, NodeLabel};
pub use tensors::{Element, Tensor, TensorFile, TensorFileError, TensorWriter};
pub use weight_rows::{Place, RowRange, RowsError, Selection, WeightRows};

/// Why values cannot be compared or kept.
#[derive(Debug, Error)]
pub enum VerifyError {
    #[error(transparent)]
    Tensors(#[from] TensorFileError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("{}: not a file of reference nodes: {problem}", path.display())]
    NotAReference { path: PathBuf, problem: String },
    #[error(
        "node {node} has {found} values of {tokens} tokens, its reference {wanted} of {rows}: not the same \
         model or prompt"
    )]
    Shape { node: String, found: usize, wanted: usize, tokens: usize, rows: usize },
    #[error("node {node}: the reference chooses {index} of {experts} experts")]
    Choice { node: String, index: i32, experts: usize },
    #[error(
        "{}: has only some tokens of its prompt: give it as the first file, which is the reference",
        path.display()
    )]
    Rows { path: PathBuf },
    #[error(transparent)]
    Base(#[from] perplexity::BaseError),
    #[error(
        "the logits at position {position} of window {window} are not finite (first at token {id}): the \
         model's weights or its arithmetic overflow"
    )]
    LogitsNotFinite { window: usize, position: usize, id: usize },
    #[error("a vocabulary of {found} tokens cannot be compared with one of {wanted}")]
    Vocabularies { found: usize, wanted: usize },
    #[error("the run to compare with ended early")]
    OtherRunEnded,
    #[error("a description cannot be written: {0}")]
    Json(#[from] serde_json::Error),
}
