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
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// Where it cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<MappedFile, StoreError> {
        let failed = |source| StoreError::Map { path: path.to_owned(), source };
        // To open a named pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            let problem = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(failed(problem));
        }
        MappedFile::of(&File::open(path).map_err(failed)?, path)
    }

    /// Maps a file that is open already; `path` is what errors call it.
    ///
    /// # Errors
    /// Where it cannot be mapped.
    pub fn of(file: &File, path: &Path) -> Result<MappedFile, StoreError> {
        let failed = |source| StoreError::Map { path: path.to_owned(), source };
        // SAFETY: the mapping is read-only; the bytes are only ever read as plain numbers, so
        // a writer elsewhere can spoil results but not memory.
        let map = unsafe { Mmap::map(file) }.map_err(failed)?;
        Ok(MappedFile { path: path.to_owned(), map })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
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
