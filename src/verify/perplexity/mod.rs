//! Perplexity and divergence, as llama-perplexity computes them: how well a model foretells a text, and how
//! far its probabilities are from those of another model, quantisation, KV cache, kernel set or program.
//!
//! A text's tokens are cut into [`Windows`]. [`measure()`] runs them, several in a pass, and judges each
//! scored token: its negative logarithm of probability ([`Perplexity`]) and what its row differs by from a
//! base's ([`Divergences`]). The softmax is [`LogSoftmax`](crate::engine::LogSoftmax), one arithmetic in f64;
//! sums run in the order of windows and positions. So the figures do not depend on threads, batches or
//! machines.
//!
//! A base is another engine, a file of ours ([`BaseWriter`], [`BaseFile`]: the most probable tokens and the
//! rest's mass), one that llama-perplexity has written, or an array of logits.

mod base;
mod divergence;
mod measure;
mod measures;
mod passes;
mod sources;
#[cfg(test)]
mod tests;
mod top_row;
mod windows;

pub use base::{BaseFile, BaseHeader, BaseWriter, MOST_TOP};
pub use divergence::{
    BaseRow, DivergenceSummary, Divergences, Part as DivergencePart, Percentile, RowDivergence,
};
pub use measure::{Against, Measured, Step, measure};
pub use measures::{Mean, Perplexity, Sums, share};
pub use passes::Shares;
pub use sources::{BaseError, BaseProblem, BaseRows, BaseSource};
pub use top_row::TopRow;
pub use windows::{WindowOptions, Windows, WindowsError, text_tokens};
