//! Weights that cannot be had.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::{OutOfMemory, Shortage};
use crate::device::DeviceError;

/// A weight that cannot be had.
#[derive(Clone, Debug, Error)]
pub enum StoreError {
    #[error("{}: cannot be opened: {source}", path.display())]
    Open { path: PathBuf, source: Arc<std::io::Error> },
    #[error("{}: cannot be read: {source}", path.display())]
    ReadFile { path: PathBuf, source: Arc<std::io::Error> },
    #[error("{}: has been written to since its header was read", path.display())]
    Changed { path: PathBuf },
    #[error("{}: was {expected} bytes when its header was read and is {found} now", path.display())]
    SizeChanged { path: PathBuf, expected: u64, found: u64 },
    #[error("{}: tensor {tensor} at byte {offset} ends beyond the file", path.display())]
    OutOfFile { path: PathBuf, tensor: String, offset: u64 },
    #[error("{}: tensor {tensor} cannot be read at byte {offset}: {source}", path.display())]
    Read { path: PathBuf, tensor: String, offset: u64, source: Arc<std::io::Error> },
    #[error(
        "{}: tensor {tensor} cannot be read at byte {offset}: the file has been cut short since it was \
         opened",
        path.display()
    )]
    CutShort { path: PathBuf, tensor: String, offset: u64 },
    #[error(
        "{}: tensor {tensor} cannot be read at byte {offset}: the file has been written to since its header \
         was read",
        path.display()
    )]
    Rewritten { path: PathBuf, tensor: String, offset: u64 },
    #[error(
        "{}: tensor {tensor} cannot be read at byte {offset}: a thread that reads has panicked",
        path.display()
    )]
    ReaderPanicked { path: PathBuf, tensor: String, offset: u64 },
    #[error("{}: cannot be read at byte {offset}: {problem}", path.display())]
    Lost { path: PathBuf, offset: u64, problem: &'static str },
    #[error(transparent)]
    Shortage(#[from] Shortage),
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("threads that read cannot be started: {0}")]
    Threads(Arc<std::io::Error>),
}

impl StoreError {
    /// Whether it says which file it is about.
    pub fn names_a_file(&self) -> bool {
        !matches!(
            self,
            StoreError::Shortage(_)
                | StoreError::OutOfMemory(_)
                | StoreError::Device(_)
                | StoreError::Threads(_)
        )
    }

    pub(super) fn open(path: &Path, error: std::io::Error) -> StoreError {
        StoreError::Open { path: path.to_owned(), source: Arc::new(error) }
    }

    pub(super) fn read(path: &Path, tensor: &str, offset: u64, error: Arc<std::io::Error>) -> StoreError {
        let (path, tensor) = (path.to_owned(), tensor.to_owned());
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => StoreError::CutShort { path, tensor, offset },
            std::io::ErrorKind::StaleNetworkFileHandle => StoreError::Rewritten { path, tensor, offset },
            _ => StoreError::Read { path, tensor, offset, source: error },
        }
    }

    /// A file that is not as it was.
    pub(super) fn changed(path: &Path, error: std::io::Error) -> StoreError {
        let path = path.to_owned();
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::StaleNetworkFileHandle => {
                StoreError::Changed { path }
            }
            _ => StoreError::ReadFile { path, source: Arc::new(error) },
        }
    }

    /// Bytes of a mapping that its file does not have (any more), or that the system could not read.
    pub(super) fn lost(path: &Path, tensor: Option<&str>, offset: u64, shorter: bool) -> StoreError {
        let problem = match shorter {
            true => "the file has been cut short since it was opened",
            false => "the system failed to, or the file was cut short for a while",
        };
        match tensor {
            Some(tensor) if shorter => {
                StoreError::CutShort { path: path.to_owned(), tensor: tensor.to_owned(), offset }
            }
            Some(tensor) => StoreError::read(path, tensor, offset, Arc::new(std::io::Error::other(problem))),
            None => StoreError::Lost { path: path.to_owned(), offset, problem },
        }
    }
}
