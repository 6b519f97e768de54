//! The state of runs: what each sequence remembers, and the buffers that all passes share.

mod buffers;
mod inputs;
mod kv;

pub use buffers::Buffers;
pub(super) use buffers::ExpertBuffers;
pub(super) use inputs::Inputs;
pub use kv::{KvType, SequenceState};
