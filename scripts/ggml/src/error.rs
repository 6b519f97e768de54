//! What can go wrong.

use std::path::{Path, PathBuf};

/// An error of a reference program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{path}: {source}")]
    Safetensors { path: PathBuf, source: safetensors::SafeTensorError },
    #[error("ggml: {0}")]
    Ggml(String),
    /// The build or its input is not what this program may be used with.
    #[error("{0}")]
    Refused(String),
}

pub type Result<T> = std::result::Result<T, Error>;

/// Reads a whole file; the error names it.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })
}

/// Writes a whole file and the folders above it; the error names it.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |source| Error::Io { path: path.into(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    std::fs::write(path, bytes).map_err(io)
}

/// Reads a JSON file.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read(path)?).map_err(|source| Error::Json { path: path.into(), source })
}

/// Refuses for a reason.
pub fn refuse<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::Refused(reason.into()))
}
