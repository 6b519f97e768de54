//! RESIDENCY: where a weight's bytes are.
//!
//! The model registers every weight that it will read (a tensor, or one expert of a merged tensor)
//! and gets a [`WeightId`]; in the forward pass it says [`Store::will_need`] and then
//! [`Store::acquire`]s a guard that dereferences to the bytes. Whether they are mapped, pinned, cached
//! or on their way from the disk is the store's business. Today they are mapped.

mod file;
mod os;
mod zeroed;

use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

use crate::gguf::{Gguf, Part, StaticBytes, TensorInfo};
pub use file::MappedFile;
pub use os::{available_memory_bytes, peak_rss_bytes};
pub use zeroed::{OutOfMemory, zeroed};

/// A weight that cannot be had.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error("{}: cannot be mapped: {source}", path.display())]
    Map { path: PathBuf, source: std::io::Error },
    #[error("{}: was {expected} bytes when its header was read and is {found} now", path.display())]
    SizeChanged { path: PathBuf, expected: u64, found: u64 },
    #[error("{}: tensor {tensor} at byte {offset} ends beyond the file", path.display())]
    OutOfFile { path: PathBuf, tensor: String, offset: u64 },
}

/// A registered weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightId(u32);

/// Where a weight lies.
#[derive(Debug)]
struct Extent {
    part: usize,
    bytes: Range<usize>,
    /// Whether the system has been told that it will be read.
    announced: AtomicBool,
}

/// The bytes of a file.
#[derive(Debug)]
enum FileBytes {
    Mapped(MappedFile),
    /// In memory whether they are read or not: part of the program.
    Memory {
        name: PathBuf,
        bytes: StaticBytes,
    },
}

impl FileBytes {
    fn open(part: &Part) -> Result<FileBytes, StoreError> {
        Ok(match part.memory {
            Some(bytes) => FileBytes::Memory { name: part.path.clone(), bytes },
            None => FileBytes::Mapped(MappedFile::open(&part.path)?),
        })
    }

    fn path(&self) -> &Path {
        match self {
            FileBytes::Mapped(file) => file.path(),
            FileBytes::Memory { name, .. } => name,
        }
    }

    fn will_need(&self, start: usize, len: usize) {
        if let FileBytes::Mapped(file) = self {
            file.will_need(start, len);
        }
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(file) => file,
            FileBytes::Memory { bytes, .. } => bytes,
        }
    }
}

/// The bytes of all weights of a model.
#[derive(Debug)]
pub struct Store {
    files: Vec<FileBytes>,
    extents: Vec<Extent>,
}

impl Store {
    /// Maps the files of a model; what is in memory already is used where it is.
    ///
    /// # Errors
    /// A file that cannot be opened or mapped, or that has changed its size since its header was read.
    pub fn open(gguf: &Gguf) -> Result<Store, StoreError> {
        let mut files = Vec::with_capacity(gguf.parts.len());
        for part in &gguf.parts {
            let file = FileBytes::open(part)?;
            if file.len() as u64 != part.file_bytes {
                return Err(StoreError::SizeChanged {
                    path: part.path.clone(),
                    expected: part.file_bytes,
                    found: file.len() as u64,
                });
            }
            files.push(file);
        }
        Ok(Store { files, extents: Vec::new() })
    }

    /// Registers bytes `range` (relative to the tensor's start) of a tensor as a weight.
    ///
    /// # Errors
    /// Where the range ends beyond the tensor's file.
    pub fn register(&mut self, tensor: &TensorInfo, range: Range<u64>) -> Result<WeightId, StoreError> {
        let out_of_file = || StoreError::OutOfFile {
            path: self.files[tensor.part].path().to_owned(),
            tensor: tensor.name.clone(),
            offset: tensor.offset,
        };
        let at = |offset: u64| {
            let at = tensor.offset.checked_add(offset)?;
            usize::try_from(at).ok().filter(|&at| at <= self.files[tensor.part].len())
        };
        let start = at(range.start).ok_or_else(out_of_file)?;
        let end = at(range.end).filter(|&end| end >= start).ok_or_else(out_of_file)?;
        self.extents.push(Extent { part: tensor.part, bytes: start..end, announced: AtomicBool::new(false) });
        Ok(WeightId(self.extents.len() as u32 - 1))
    }

    /// Says that these weights will be read soon, in this order. Never blocks.
    pub fn will_need(&self, ids: impl IntoIterator<Item = WeightId>) {
        for id in ids {
            let extent = &self.extents[id.0 as usize];
            if !extent.announced.swap(true, Ordering::Relaxed) {
                self.files[extent.part].will_need(extent.bytes.start, extent.bytes.len());
            }
        }
    }

    /// The bytes of a weight, for as long as the guard lives.
    pub fn acquire(&self, id: WeightId) -> Guard<'_> {
        let extent = &self.extents[id.0 as usize];
        Guard(&self.files[extent.part][extent.bytes.clone()])
    }

    /// Whether every pass reads weights from the disk anew, so that a pass costs that reading and further tokens in
    /// it next to nothing.
    pub fn streams_every_pass(&self) -> bool {
        false
    }

    /// Bytes of all files.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|m| m.len() as u64).sum()
    }
}

/// Holds a weight's bytes where they are.
#[derive(Debug)]
pub struct Guard<'a>(&'a [u8]);

impl Deref for Guard<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0
    }
}
