//! A file whose bytes are mapped.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::os::{self, Os, Reads, System, Watch};
use super::{StoreError, disk};
use crate::gguf::OpenedFile;

/// The bytes of a file, read as they are touched.
#[derive(Debug)]
pub struct MappedFile {
    /// Ends before the mapping does.
    watch: <Os as System>::Watch,
    map: Mmap,
    opened: Arc<OpenedFile>,
    /// Open on its own: advice on one of them is not for the other.
    small_reads: Option<File>,
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// Where it cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<MappedFile, StoreError> {
        let opened = OpenedFile::open(path).map_err(|error| StoreError::open(path, error))?;
        MappedFile::of(Arc::new(opened))
    }

    /// Maps a file that is open already.
    ///
    /// # Errors
    /// Where it cannot be mapped.
    pub fn of(opened: Arc<OpenedFile>) -> Result<MappedFile, StoreError> {
        // SAFETY: the mapping is read-only; the bytes are only ever read as plain numbers, so a writer
        // elsewhere can spoil results but not memory. A truncated file is detected: see `check`.
        let map = unsafe { Mmap::map(opened.file()) };
        let map = map.map_err(|error| StoreError::open(opened.path(), error))?;
        let watch = <Os as System>::Watch::start(&map, opened.path());
        let small_reads = os::reopen(opened.file(), opened.path(), Reads::Small);
        Ok(MappedFile { watch, map, opened, small_reads })
    }

    /// Whether all that was read so far were the file's bytes; asked after reading, before what was read is
    /// used.
    ///
    /// # Errors
    /// Where the file has been cut short or changed, or could not be read; `tensor` names what lies at a
    /// place in it.
    pub fn check<'a>(&self, tensor: impl FnOnce(u64) -> Option<&'a str>) -> Result<(), StoreError> {
        let fault = self.watch.fault().map(|offset| offset as u64);
        // What is left of the last page of a shorter file reads as zeros without a fault.
        let left = self.opened.file().metadata().ok().map(|found| found.len());
        let lost = left.filter(|&left| left < self.map.len() as u64);
        match fault.or(lost) {
            None => self.check_unchanged(),
            Some(offset) => {
                let shorter = lost.is_some_and(|left| left <= offset);
                Err(StoreError::lost(self.path(), tensor(offset), offset, shorter))
            }
        }
    }

    /// Whether the file is as it was when it was opened.
    ///
    /// # Errors
    /// Where it has been written to, or the system cannot tell.
    pub(super) fn check_unchanged(&self) -> Result<(), StoreError> {
        self.opened.check_unchanged().map_err(|error| StoreError::changed(self.path(), error))
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        self.opened.path()
    }

    /// The file itself.
    pub(super) fn opened(&self) -> &Arc<OpenedFile> {
        &self.opened
    }

    /// Bytes of the file, read and not mapped: no more of it comes into memory than asked for.
    pub(super) fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let bytes = disk::read_exact(self.small_reads.as_ref().unwrap_or(self.opened.file()), offset, len)?;
        self.opened.check_unchanged()?;
        Ok(bytes)
    }

    /// Prefers larger pages for what will be read: a core that looks up fewer pages reads up to a third faster.
    pub(super) fn prefer_large_pages(&self) {
        Os::prefer_large_file_pages(&self.map);
    }

    /// Reads these bytes and waits for them; whether the system can.
    pub(super) fn populate(&self, start: usize, len: usize) -> bool {
        Os::populate(&self.map, start, len)
    }

    /// Asks the system to read these bytes; where it does not take the advice, the pages come by fault.
    pub(super) fn will_need(&self, start: usize, len: usize) {
        Os::will_need(&self.map, start, len);
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
