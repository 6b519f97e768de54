//! The operating system: what residency needs of it, and kernels that have to ask for their instructions.
//!
//! A system is a file with one implementation of [`System`]; [`Os`] is that of this build. No other code of
//! the crate calls a system or names one. This module imports nothing of the crate: every layer may use it.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
mod other;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use memmap2::{Mmap, MmapMut};

#[cfg(target_os = "linux")]
pub use linux::Linux as Os;
#[cfg(target_os = "macos")]
pub use macos::MacOs as Os;
#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
pub use other::Other as Os;
#[cfg(windows)]
pub use windows::Windows as Os;

#[cfg(unix)]
pub use unix::TerminalMode;

/// How the terminal of standard input is set: where the system has nothing to put back.
#[cfg(not(unix))]
pub struct TerminalMode;

#[cfg(not(unix))]
impl TerminalMode {
    /// Never known.
    pub fn now() -> Option<TerminalMode> {
        None
    }

    /// Does nothing.
    pub fn restore(&self) {}
}

/// What a file is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Small reads of which no neighbours are wanted.
    Small,
    /// Reads around the page cache; see [`System::read_at`] for what they are aligned to.
    Direct,
}

/// Which file it is, by whatever path and handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// The file system that it lies on.
    pub device: u64,
    /// Its number there.
    pub number: u64,
}

/// The processors that this process may run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processors {
    /// Cores of the fastest kind there is.
    pub fast_cores: usize,
    pub cores: usize,
    /// What runs at a time: cores may run two threads each.
    pub threads: usize,
    /// Numbers of the nodes of memory beside them; none where the system does not say.
    pub nodes: Vec<u32>,
}

impl Processors {
    /// Those that this process may run on, and no more of each kind than threads that its group may have
    /// running. Where the system does not say, every such thread has a core of its own.
    pub fn of_this_process() -> Processors {
        let most = std::thread::available_parallelism().map_or(1, usize::from);
        let unknown = || Processors { fast_cores: most, cores: most, threads: most, nodes: Vec::new() };
        let found = Os::processors().unwrap_or_else(unknown);
        let bound = |n: usize| n.clamp(1, most);
        let [fast_cores, cores, threads] = [found.fast_cores, found.cores, found.threads].map(bound);
        Processors { fast_cores, cores, threads, ..found }
    }
}

/// A limit to the memory of this process or of a group that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Who sets it: a file of a control group, or the name of a resource limit.
    pub by: String,
    pub bytes: u64,
}

/// What is asked of a system. Functions that only advise it fail silently: nothing but time depends on them.
pub trait System {
    /// See [`Watch`].
    type Watch: Watch;

    /// Opens an open file once more, for other reads. The path is that by which it was opened, and may lead
    /// elsewhere by now: see [`reopen`]. `None` where the system cannot.
    fn reopen(file: &File, path: &Path, reads: Reads) -> Option<File>;

    /// Which file a handle is of.
    ///
    /// # Errors
    /// What the system says.
    fn identity(file: &File) -> io::Result<FileIdentity>;

    /// Which file a path leads to; it may be one that cannot be read.
    ///
    /// # Errors
    /// What the system says.
    fn identity_at(path: &Path) -> io::Result<FileIdentity>;

    /// Reads from `offset` on, by several threads at once; 0 bytes are the end. Of a file for direct reads
    /// the buffer's address and length and the offset are multiples of [`ALIGNMENT`](super::ALIGNMENT).
    ///
    /// # Errors
    /// What the system says.
    fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Whether an error of writing says that nobody reads any more.
    fn is_closed_pipe(error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::BrokenPipe
    }

    /// Drops pages of a file that were read from the page cache.
    fn drop_pages(file: &File, offset: u64, len: usize);

    /// Asks for bytes of a mapping to be read soon.
    fn will_need(map: &Mmap, start: usize, len: usize);

    /// Reads bytes of a mapping, and waits for them where the system can; whether it could.
    fn populate(map: &Mmap, start: usize, len: usize) -> bool;

    /// Prefers fewer and larger pages for memory of our own.
    fn prefer_large_pages(map: &MmapMut);

    /// Prefers larger pages for what will be read of a mapped file, where the file system can have them.
    fn prefer_large_file_pages(_: &Mmap) {}

    /// Memory in bytes that can be had without swapping: what the system has available, or less where a
    /// limit on the process or its group allows less. Cached file pages count as available. `None` where
    /// the system does not say.
    fn available_memory_bytes() -> Option<u64>;

    /// Memory in bytes that the machine has; `None` where the system does not say.
    fn total_memory_bytes() -> Option<u64> {
        None
    }

    /// Limits below what the machine has, as far as they are known.
    fn memory_limits() -> Vec<MemoryLimit> {
        Vec::new()
    }

    /// For whom the system makes large pages of memory, in its own word; `None` where it does not say.
    fn large_pages() -> Option<String> {
        None
    }

    /// Bytes that may still be written to the file system of a path; `None` where the system does not say.
    fn free_disk_bytes(_: &Path) -> Option<u64> {
        None
    }

    /// The most memory in bytes that this process has had at a time, mapped file pages included; `None` where
    /// the system does not say.
    fn peak_rss_bytes() -> Option<u64>;

    /// Memory in bytes that the process has for itself now, file pages left out; `None` where the system does
    /// not say.
    fn private_bytes() -> Option<u64>;

    /// The processors that this process may run on; `None` where the system does not say.
    fn processors() -> Option<Processors> {
        None
    }

    /// Has pages that this thread, and those that it starts from now on, ask for come from these nodes in
    /// turns, pages of files that they read among them. Whether it was done: what a user has set before
    /// stays.
    ///
    /// # Errors
    /// What the system says; that it cannot.
    fn interleave_pages(_nodes: &[u32]) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Bounds what this process may take: memory of its own in bytes, with what it has; time of its
    /// processors from now on. It is refused more memory; when its time is over, the system ends it. There is
    /// no way back. Systems that cannot bound one of both leave it unbounded.
    ///
    /// # Errors
    /// What the system says.
    fn confine(memory: u64, time: Duration) -> io::Result<()>;

    /// Asks for this process, all its threads, to be allowed AMX tiles; whether it is. To ask again does no
    /// harm. Kernels for them are built for Linux alone.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn allow_amx_tiles() -> bool {
        true
    }
}

/// Watches a mapping of a file for reads that fail, because the file has been cut short since or its disk
/// cannot be read; ends with this, which must be before the mapping does.
///
/// Where the system lets a program go on after such a read, zeros stand in for what was lost, and whoever
/// reads mapped bytes asks for the fault before using what was made of them.
pub trait Watch: Sized + std::fmt::Debug + Send + Sync {
    /// Watches the bytes of a mapping; `path` is what a message calls its file.
    fn start(bytes: &[u8], path: &Path) -> Self;

    /// Where in the mapping the first read failed: from there on it may hold zeros that are not the file's.
    fn fault(&self) -> Option<usize>;
}

/// Whether reads of mappings that fail are handled: see [`Watch`].
static HANDLES_FAULTS: AtomicBool = AtomicBool::new(true);

/// Whether a handler is to be installed with the first mapping.
fn handles_faults() -> bool {
    HANDLES_FAULTS.load(Ordering::SeqCst)
}

/// From now on no handler is installed.
pub fn leave_faults_alone() {
    HANDLES_FAULTS.store(false, Ordering::SeqCst);
}

/// Makes a folder, and those that it lies in, for its user alone where the system has such a thing. One that
/// is there stays as it is.
///
/// # Errors
/// What the system says.
pub fn make_private_folder(path: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Makes a symbolic link to a file.
///
/// # Errors
/// What the system says: Windows lets few users do it.
pub fn link_file(target: &Path, link: &Path) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::symlink(target, link);
    #[cfg(windows)]
    return std::os::windows::fs::symlink_file(target, link);
    #[cfg(not(any(unix, windows)))]
    return Err(io::ErrorKind::Unsupported.into());
}

/// Opens an open file once more, for other reads: this very file. `None` where that cannot be done.
pub fn reopen(file: &File, path: &Path, reads: Reads) -> Option<File> {
    let again = Os::reopen(file, path, reads)?;
    let same = Os::identity(file).ok()? == Os::identity(&again).ok()?;
    same.then_some(again)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever has taken its place: not what the path leads to.
    #[test]
    fn a_file_is_opened_again_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"first").unwrap();
        let file = File::open(&path).unwrap();
        let read = |reads| {
            let again = reopen(&file, &path, reads)?;
            // One page, as direct reads want it.
            let mut buffer = super::super::AlignedBuffer::new(4096).unwrap();
            let n = Os::read_at(&again, buffer.as_mut(), 0).ok()?;
            Some(buffer.as_ref()[..n].to_vec())
        };
        assert_eq!(read(Reads::Small).as_deref(), Some(&b"first"[..]));
        let identity = Os::identity(&file).unwrap();
        assert_eq!(Os::identity_at(&path).unwrap(), identity);
        std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        std::fs::write(&path, b"other").unwrap();
        assert_ne!(Os::identity_at(&path).unwrap(), identity);
        for reads in [Reads::Small, Reads::Direct] {
            let again = read(reads);
            assert!(again.is_none() || again.as_deref() == Some(&b"first"[..]), "{reads:?}: {again:?}");
        }
    }

    #[test]
    fn processors_are_told_of() {
        let Processors { fast_cores, cores, threads, nodes } = Processors::of_this_process();
        assert!(
            1 <= fast_cores && fast_cores <= cores && cores <= threads,
            "{fast_cores}, {cores}, {threads}"
        );
        assert!(threads <= std::thread::available_parallelism().unwrap().get());
        assert!(nodes.is_sorted());
        let known = cfg!(any(target_os = "linux", target_os = "macos", windows));
        assert!(!known || Os::processors().is_some(), "the system says nothing");
    }

    #[test]
    fn free_space_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let known = cfg!(any(target_os = "linux", target_os = "macos", windows));
        assert_eq!(Os::free_disk_bytes(dir.path()).is_some_and(|free| free > 0), known);
        assert_eq!(Os::free_disk_bytes(&dir.path().join("nowhere")), None);
    }

    #[test]
    fn memory_is_told_of() {
        // Other tests take memory meanwhile.
        let private = Os::private_bytes();
        let told = [Os::available_memory_bytes(), Os::peak_rss_bytes(), private];
        let known = cfg!(any(target_os = "linux", target_os = "macos", windows));
        assert!(!known || told.iter().all(|&bytes| bytes > Some(0)), "{told:?}");
        assert!(!known || told[2] <= told[1], "{told:?}");
    }
}
