//! Systems that nobody has written a file for: what the standard library can do, without advice and without
//! limits.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use memmap2::{Mmap, MmapMut};

use super::{FileIdentity, Reads, System};

/// See the module.
#[derive(Debug)]
pub struct Other;

impl System for Other {
    #[cfg(unix)]
    type Watch = super::unix::FaultWatch;
    #[cfg(not(unix))]
    type Watch = Unwatched;

    fn reopen(_: &File, path: &Path, reads: Reads) -> Option<File> {
        if reads == Reads::Small { File::open(path).ok() } else { None }
    }

    #[cfg(unix)]
    fn identity(file: &File) -> io::Result<FileIdentity> {
        super::unix::identity(file)
    }

    /// Files are not told apart: none is the same as another, itself included.
    #[cfg(not(unix))]
    fn identity(_: &File) -> io::Result<FileIdentity> {
        Err(io::ErrorKind::Unsupported.into())
    }

    #[cfg(unix)]
    fn identity_at(path: &Path) -> io::Result<FileIdentity> {
        super::unix::identity_at(path)
    }

    #[cfg(not(unix))]
    fn identity_at(_: &Path) -> io::Result<FileIdentity> {
        Err(io::ErrorKind::Unsupported.into())
    }

    #[cfg(unix)]
    fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        super::unix::read_at(file, buffer, offset)
    }

    #[cfg(not(unix))]
    fn read_at(mut file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        use std::io::{Read, Seek, SeekFrom};
        use std::sync::{Mutex, PoisonError};
        // A handle has one position.
        static READING: Mutex<()> = Mutex::new(());
        let _reading = READING.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.read(buffer)
    }

    fn drop_pages(_: &File, _: u64, _: usize) {}

    fn will_need(_: &Mmap, _: usize, _: usize) {}

    fn populate(_: &Mmap, _: usize, _: usize) -> bool {
        false
    }

    fn prefer_large_pages(_: &MmapMut) {}

    fn available_memory_bytes() -> Option<u64> {
        None
    }

    #[cfg(unix)]
    fn memory_limits() -> Vec<super::MemoryLimit> {
        super::unix::memory_limits()
    }

    #[cfg(unix)]
    fn free_disk_bytes(path: &Path) -> Option<u64> {
        super::unix::free_disk_bytes(path)
    }

    fn peak_rss_bytes() -> Option<u64> {
        None
    }

    fn private_bytes() -> Option<u64> {
        None
    }

    #[cfg(unix)]
    fn confine(memory: u64, time: Duration) -> io::Result<()> {
        super::unix::confine(memory, time)
    }

    #[cfg(not(unix))]
    fn confine(_: u64, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// A read that fails ends the process.
#[cfg(not(unix))]
#[derive(Debug)]
pub struct Unwatched;

#[cfg(not(unix))]
impl super::Watch for Unwatched {
    fn start(_: &[u8], _: &Path) -> Unwatched {
        Unwatched
    }

    fn fault(&self) -> Option<usize> {
        None
    }
}
