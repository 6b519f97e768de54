//! RESIDENCY: where a weight's bytes are.
//!
//! The model registers every weight that it will read (a tensor, or one expert of a merged tensor)
//! and gets a [`WeightId`]; in the forward pass it says [`Store::will_need`] and then
//! [`Store::acquire`]s a guard that dereferences to the bytes. Whether they are mapped, pinned, cached
//! or on their way from the disk is the store's business. Today they are mapped.

mod os;
mod zeroed;

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::{Advice, Mmap};
use thiserror::Error;

use crate::gguf::{Gguf, TensorInfo};
pub use os::peak_rss_bytes;
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

/// The bytes of all weights of a model.
#[derive(Debug)]
pub struct Store {
    paths: Vec<PathBuf>,
    maps: Vec<Mmap>,
    extents: Vec<Extent>,
}

impl Store {
    /// Maps the files of a model.
    ///
    /// # Errors
    /// A file that cannot be opened or mapped, or that has changed its size since its header was read.
    pub fn open(gguf: &Gguf) -> Result<Store, StoreError> {
        let mut maps = Vec::with_capacity(gguf.parts.len());
        for part in &gguf.parts {
            let failed = |source| StoreError::Map { path: part.path.clone(), source };
            let file = File::open(&part.path).map_err(failed)?;
            // SAFETY: the mapping is read-only and private to this store; the bytes are only ever read as
            // plain numbers, so a writer elsewhere can spoil results but not memory.
            let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
            if map.len() as u64 != part.file_bytes {
                return Err(StoreError::SizeChanged {
                    path: part.path.clone(),
                    expected: part.file_bytes,
                    found: map.len() as u64,
                });
            }
            maps.push(map);
        }
        let paths = gguf.parts.iter().map(|p| p.path.clone()).collect();
        Ok(Store { paths, maps, extents: Vec::new() })
    }

    /// Registers bytes `range` (relative to the tensor's start) of a tensor as a weight.
    ///
    /// # Errors
    /// Where the range ends beyond the tensor's file.
    pub fn register(&mut self, tensor: &TensorInfo, range: Range<u64>) -> Result<WeightId, StoreError> {
        let out_of_file = || StoreError::OutOfFile {
            path: self.paths[tensor.part].clone(),
            tensor: tensor.name.clone(),
            offset: tensor.offset,
        };
        let at = |offset: u64| {
            let at = tensor.offset.checked_add(offset)?;
            usize::try_from(at).ok().filter(|&at| at <= self.maps[tensor.part].len())
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
                // Advice only: where the system does not take it, the pages come by fault.
                let _ = self.maps[extent.part].advise_range(
                    Advice::WillNeed,
                    extent.bytes.start,
                    extent.bytes.len(),
                );
            }
        }
    }

    /// The bytes of a weight, for as long as the guard lives.
    pub fn acquire(&self, id: WeightId) -> Guard<'_> {
        let extent = &self.extents[id.0 as usize];
        Guard(&self.maps[extent.part][extent.bytes.clone()])
    }

    /// Bytes of all files.
    pub fn file_bytes(&self) -> u64 {
        self.maps.iter().map(|m| m.len() as u64).sum()
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
