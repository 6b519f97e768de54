//! A file whose bytes are mapped.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap};

use super::StoreError;

/// The bytes of a file, read as they are touched.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Mmap,
    /// Open on its own: advice on one of them is not for the other.
    file: Option<File>,
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// Where it cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<MappedFile, StoreError> {
        let failed = |error| StoreError::open(path, error);
        // To open a named pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            let problem = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(failed(problem));
        }
        let mut mapped = MappedFile::of(&File::open(path).map_err(failed)?, path)?;
        mapped.file = super::disk::open_for_small_reads(path).ok();
        Ok(mapped)
    }

    /// Maps a file that is open already; `path` is what errors call it.
    ///
    /// # Errors
    /// Where it cannot be mapped.
    pub fn of(file: &File, path: &Path) -> Result<MappedFile, StoreError> {
        let failed = |error| StoreError::open(path, error);
        // SAFETY: the mapping is read-only; the bytes are only ever read as plain numbers, so
        // a writer elsewhere can spoil results but not memory.
        let map = unsafe { Mmap::map(file) }.map_err(failed)?;
        Ok(MappedFile { path: path.to_owned(), map, file: None })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file, read and not mapped: no more of it comes into memory than asked for.
    pub(super) fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        match &self.file {
            Some(file) => super::disk::read_exact(file, offset, len),
            None => Ok(self.map[offset as usize..][..len].to_vec()),
        }
    }

    /// Reads these bytes and waits for them; whether the system can.
    pub(super) fn populate(&self, start: usize, len: usize) -> bool {
        #[cfg(target_os = "linux")]
        let advice = Advice::PopulateRead;
        #[cfg(not(target_os = "linux"))]
        let advice = Advice::WillNeed;
        self.map.advise_range(advice, start, len).is_ok()
    }

    /// Asks the system to read these bytes; where it does not take the advice, the pages come by fault.
    pub(super) fn will_need(&self, start: usize, len: usize) {
        let _ = self.map.advise_range(Advice::WillNeed, start, len);
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
