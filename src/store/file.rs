//! A file whose bytes are mapped.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap};

use super::StoreError;
#[cfg(unix)]
use super::sigbus::Watch;

/// The bytes of a file, read as they are touched.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    /// Ends before the mapping does.
    #[cfg(unix)]
    watch: Watch,
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
        // SAFETY: the mapping is read-only; the bytes are only ever read as plain numbers, so a writer
        // elsewhere can spoil results but not memory. Who cuts the file short is found out: see `check`.
        let map = unsafe { Mmap::map(file) }.map_err(failed)?;
        Ok(MappedFile {
            path: path.to_owned(),
            #[cfg(unix)]
            watch: Watch::start(&map),
            map,
            file: None,
        })
    }

    /// Whether all that was read so far were the file's bytes; asked after reading, before what was read is
    /// used.
    ///
    /// # Errors
    /// Where the file has been cut short or could not be read; `tensor` names what lies at a place in it.
    pub fn check<'a>(&self, tensor: impl FnOnce(u64) -> Option<&'a str>) -> Result<(), StoreError> {
        #[cfg(unix)]
        let fault = self.watch.fault().map(|offset| offset as u64);
        #[cfg(not(unix))]
        let fault = None;
        // What is left of the last page reads as zeros without a fault.
        let left = self.file.as_ref().and_then(|file| file.metadata().ok()).map(|found| found.len());
        let lost = left.filter(|&left| left < self.map.len() as u64);
        match fault.or(lost) {
            None => Ok(()),
            Some(offset) => {
                let shorter = lost.is_some_and(|left| left <= offset) || self.file.is_none();
                Err(StoreError::lost(&self.path, tensor(offset), offset, shorter))
            }
        }
    }

    /// Whether the path still leads to this very file.
    ///
    /// # Errors
    /// What the system says of the path.
    #[cfg(unix)]
    pub(super) fn is_at_its_path(&self) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let Some(file) = &self.file else { return Ok(true) };
        let (own, found) = (file.metadata()?, std::fs::metadata(&self.path)?);
        Ok((own.dev(), own.ino()) == (found.dev(), found.ino()))
    }

    /// See the Unix version: elsewhere a mapped file cannot be replaced.
    #[cfg(not(unix))]
    pub(super) fn is_at_its_path(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file, read and not mapped: no more of it comes into memory than asked for.
    pub(super) fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        match &self.file {
            Some(file) => super::disk::read_exact(file, offset, len),
            None => {
                let bytes = self.map[offset as usize..][..len].to_vec();
                self.check(|_| None).map_err(|_| io::ErrorKind::UnexpectedEof)?;
                Ok(bytes)
            }
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
