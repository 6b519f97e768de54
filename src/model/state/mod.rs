//! The state of runs: what each sequence remembers, and the buffers that all passes share.

mod buffers;
mod inputs;
mod kv;
mod numbers;
mod recurrent;
mod sequence;

pub use buffers::Buffers;
pub(super) use buffers::{
    CompressedBuffers, ExpertBuffers, ExpertSizes, IndexerBuffers, LatentBuffers, cleared, dense_ff, grown,
};
pub(super) use inputs::Inputs;
pub use kv::{KvElement, KvError, KvType, UnknownKv};
pub(super) use recurrent::stretches;
pub use sequence::{KeptNeeds, KeptPart, SequenceState};
