//! Files that are read at places, around the page cache where the file system allows it.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;

use super::os::{self, Os, Reads, System};
use super::zeroed;
use crate::gguf::OpenedFile;

/// What places, lengths and buffers of direct reads are multiples of: enough for every disk in use.
pub const ALIGNMENT: usize = 4096;

/// A file that is read at places, by several threads at once.
pub trait ReadAt: fmt::Debug + Send + Sync {
    /// Reads bytes from `offset` on into `buffer`, and says how many: fewer than asked for where the file
    /// ends or the system gives no more at once. 0 is the end.
    ///
    /// `buffer` and `offset` are aligned to [`ALIGNMENT`].
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Files of the same number lie on the same disk and share its threads.
    fn disk(&self) -> u64 {
        0
    }

    /// Whether reads go around the page cache.
    fn is_direct(&self) -> bool {
        false
    }
}

/// Opens a file that is open already for reading at places.
pub type OpenFile<'a> = &'a dyn Fn(&Arc<OpenedFile>) -> io::Result<Arc<dyn ReadAt>>;

/// Opens a file for reading at places: around the page cache where the file system can, else through it,
/// dropping what was read. A read that finds the file changed is an error; see
/// [`OpenedFile::check_unchanged`].
///
/// # Errors
/// What the system says.
pub fn open_file(opened: &Arc<OpenedFile>) -> io::Result<Arc<dyn ReadAt>> {
    let again = |reads| os::reopen(opened.file(), opened.path(), reads);
    let direct = again(Reads::Direct).filter(takes_direct_reads);
    let is_direct = direct.is_some();
    let again = direct.or_else(|| again(Reads::Small));
    let disk = disk_of(opened);
    Ok(Arc::new(DiskFile { opened: Arc::clone(opened), again, disk, is_direct, keeps_pages: false }))
}

/// Opens a file for reading at places through the page cache, in which what was read stays.
pub fn open_cached(opened: &Arc<OpenedFile>) -> Arc<dyn ReadAt> {
    let (again, disk) = (os::reopen(opened.file(), opened.path(), Reads::Small), disk_of(opened));
    Arc::new(DiskFile { opened: Arc::clone(opened), again, disk, is_direct: false, keeps_pages: true })
}

/// The number of the disk that a file lies on, wherever links to it do: see [`ReadAt::disk`]. Partitions of a
/// disk count as disks of their own.
pub fn disk_of(opened: &OpenedFile) -> u64 {
    // Where files cannot be told apart, neither can disks.
    Os::identity(opened.file()).map_or(0, |identity| identity.device)
}

/// Disks by their numbers.
#[derive(Debug, Default)]
pub struct Disks(Vec<u64>);

impl Disks {
    /// The index of the disk of a number: they are counted as they come.
    pub fn index(&mut self, number: u64) -> usize {
        let known = self.0.iter().position(|&disk| disk == number);
        known.unwrap_or_else(|| {
            self.0.push(number);
            self.0.len() - 1
        })
    }
}

/// Reads `len` bytes from `offset` on.
///
/// # Errors
/// Where the file ends earlier, or what the system says.
pub fn read_exact(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes: Vec<u8> = zeroed(&[len], "reads").map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut done = 0;
    while done < len {
        match Os::read_at(file, &mut bytes[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Some file systems open a file for direct reads and then refuse these.
fn takes_direct_reads(file: &File) -> bool {
    AlignedBuffer::new(ALIGNMENT).and_then(|mut buffer| Os::read_at(file, buffer.as_mut(), 0)).is_ok()
}

#[derive(Debug)]
struct DiskFile {
    opened: Arc<OpenedFile>,
    /// A handle of its own for the reads; where none was to be had the first.
    again: Option<File>,
    disk: u64,
    is_direct: bool,
    /// Of what is not read directly: what was read stays in the page cache.
    keeps_pages: bool,
}

impl ReadAt for DiskFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let file = self.again.as_ref().unwrap_or(self.opened.file());
        let read = Os::read_at(file, buffer, offset)?;
        if !self.is_direct && !self.keeps_pages {
            Os::drop_pages(file, offset, read);
        }
        self.opened.check_unchanged()?;
        Ok(read)
    }

    fn disk(&self) -> u64 {
        self.disk
    }

    fn is_direct(&self) -> bool {
        self.is_direct
    }
}

/// A buffer for direct reads.
#[derive(Debug, Default)]
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// A buffer of `len` bytes.
    ///
    /// # Errors
    /// Where they cannot be had.
    pub fn new(len: usize) -> io::Result<AlignedBuffer> {
        let mut buffer = AlignedBuffer::default();
        buffer.resize(len)?;
        Ok(buffer)
    }

    /// Makes it `len` bytes long; what it held is gone where it grows.
    ///
    /// # Errors
    /// Where they cannot be had.
    pub fn resize(&mut self, len: usize) -> io::Result<()> {
        if len > self.bytes.len().saturating_sub(ALIGNMENT) {
            let out_of_memory = || io::Error::from(io::ErrorKind::OutOfMemory);
            // Zeros that nothing has written cost no memory until they are read over.
            let wanted = len.checked_add(ALIGNMENT).ok_or_else(out_of_memory)?;
            self.bytes = zeroed(&[wanted], "reads").map_err(|_| out_of_memory())?;
            self.start = self.bytes.as_ptr().align_offset(ALIGNMENT);
        }
        self.len = len;
        Ok(())
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }
}

impl AsMut<[u8]> for AlignedBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }
}

/// Reads the whole of `buffer` from `offset` on, of which the first `needed` bytes must be in the file.
///
/// # Errors
/// Where the file ends earlier, or what the system says.
pub fn read_whole(file: &dyn ReadAt, buffer: &mut [u8], offset: u64, needed: usize) -> io::Result<()> {
    /// Reads in a row that may give less than one aligned block.
    const PATIENCE: usize = 16;
    let (mut done, mut idle) = (0, 0);
    while done < needed {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            // The last block of a file is shorter than others.
            Ok(n) if done + n >= needed => return Ok(()),
            Ok(n) => {
                // The next read has to be aligned as well.
                let aligned = n / ALIGNMENT * ALIGNMENT;
                idle = if aligned == 0 { idle + 1 } else { 0 };
                done += aligned;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted && idle < PATIENCE => idle += 1,
            Err(error) => return Err(error),
        }
        if idle > PATIENCE {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use super::*;

    /// Gives `bytes` in portions, one after another; a portion of `None` is an error.
    #[derive(Debug)]
    struct Portions {
        bytes: Vec<u8>,
        portions: Mutex<Vec<Option<usize>>>,
    }

    impl ReadAt for Portions {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let portion = self.portions.lock().unwrap().pop().unwrap_or(Some(usize::MAX));
            let portion = portion.ok_or(io::ErrorKind::Interrupted)?;
            let rest = self.bytes.get(offset as usize..).unwrap_or(&[]);
            let n = rest.len().min(buffer.len()).min(portion);
            buffer[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        }
    }

    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 31 % 251) as u8).collect()
    }

    #[test]
    fn short_reads_go_on_where_they_ended() {
        let all = bytes(5 * ALIGNMENT);
        let portions = [Some(5000), None, Some(100), Some(ALIGNMENT), Some(3 * ALIGNMENT)];
        let file = Portions { bytes: all.clone(), portions: Mutex::new(portions.to_vec()) };
        let mut buffer = AlignedBuffer::new(5 * ALIGNMENT).unwrap();
        read_whole(&file, buffer.as_mut(), 0, 5 * ALIGNMENT).unwrap();
        assert_eq!(buffer.as_ref(), all);
    }

    #[test]
    fn the_end_of_a_file_is_an_error_only_where_bytes_are_needed() {
        let all = bytes(ALIGNMENT + 100);
        let file = Portions { bytes: all.clone(), portions: Mutex::default() };
        let mut buffer = AlignedBuffer::new(2 * ALIGNMENT).unwrap();
        read_whole(&file, buffer.as_mut(), 0, ALIGNMENT + 100).unwrap();
        assert_eq!(buffer.as_ref()[..all.len()], all);
        let error = read_whole(&file, buffer.as_mut(), 0, ALIGNMENT + 101).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        // One that gives next to nothing each time is given up on.
        let file = Portions { bytes: all, portions: Mutex::new(vec![Some(1); 1000]) };
        assert!(read_whole(&file, buffer.as_mut(), 0, ALIGNMENT).is_err());
    }

    #[test]
    fn files_of_any_file_system_give_their_bytes() {
        for dir in [std::env::temp_dir(), "/dev/shm".into()].into_iter().filter(|dir| dir.is_dir()) {
            let mut file = tempfile::NamedTempFile::new_in(&dir).unwrap();
            let all = bytes(3 * ALIGNMENT + 77);
            file.write_all(&all).unwrap();
            file.as_file().sync_all().unwrap();
            let file = open_file(&Arc::new(OpenedFile::open(file.path()).unwrap())).unwrap();
            let mut buffer = AlignedBuffer::new(3 * ALIGNMENT).unwrap();
            read_whole(&*file, buffer.as_mut(), ALIGNMENT as u64, 2 * ALIGNMENT + 77).unwrap();
            assert_eq!(buffer.as_ref()[..2 * ALIGNMENT + 77], all[ALIGNMENT..], "{}", dir.display());
        }
    }

    /// Where reads cannot go around the page cache, they leave nothing in it.
    #[cfg(target_os = "linux")]
    #[test]
    fn pages_are_dropped_behind_reads() {
        const PAGES: usize = 64;
        let mut named = tempfile::NamedTempFile::new().unwrap();
        let all = bytes(PAGES * ALIGNMENT);
        named.write_all(&all).unwrap();
        named.as_file().sync_all().unwrap();
        let opened = Arc::new(OpenedFile::open(named.path()).unwrap());
        // SAFETY: nobody else has the file.
        let map = unsafe { memmap2::Mmap::map(opened.file()) }.unwrap();
        let cached = || {
            let mut pages = vec![0u8; PAGES];
            // SAFETY: asks for the pages of a mapping that lives, a byte for each.
            let asked =
                unsafe { libc::mincore(map.as_ptr().cast_mut().cast(), map.len(), pages.as_mut_ptr()) };
            assert_eq!(asked, 0);
            pages.into_iter().filter(|page| page & 1 == 1).count()
        };
        Os::drop_pages(opened.file(), 0, all.len());
        if cached() > 0 {
            crate::quant::testing::say("skipped: the file system of temporary files keeps its pages");
            return;
        }
        let again = os::reopen(opened.file(), opened.path(), Reads::Small);
        let file =
            DiskFile { opened: Arc::clone(&opened), again, disk: 0, is_direct: false, keeps_pages: false };
        let mut buffer = AlignedBuffer::new(all.len()).unwrap();
        read_whole(&file, buffer.as_mut(), 0, all.len()).unwrap();
        assert_eq!((buffer.as_ref() == all, cached()), (true, 0));
        // The canary: other reads leave all of them.
        read_whole(&*open_cached(&opened), buffer.as_mut(), 0, all.len()).unwrap();
        assert_eq!(cached(), PAGES);
    }
}
