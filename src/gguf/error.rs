//! What can be wrong with a GGUF file.

use std::path::PathBuf;

use thiserror::Error;

/// Something wrong with a file, and where.
#[derive(Debug, Error)]
#[error("{}{}: {kind}", path.display(), offset.map_or_else(String::new, |o| format!(" at byte {o}")))]
pub struct GgufError {
    pub path: PathBuf,
    /// Bytes from the start of the file, where there is one place to point at.
    pub offset: Option<u64>,
    #[source]
    pub kind: GgufErrorKind,
}

/// What is wrong.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GgufErrorKind {
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
}
