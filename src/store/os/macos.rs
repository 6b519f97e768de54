//! macOS. Direct reads are reads that leave nothing in the page cache (F_NOCACHE); memory is the machine's,
//! for there are no groups that limit it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use memmap2::{Advice, Mmap, MmapMut};

use super::unix::{self, FaultWatch};
use super::{FileIdentity, Reads, System};

/// See the module.
#[derive(Debug)]
pub struct MacOs;

impl System for MacOs {
    type Watch = FaultWatch;

    /// By its path: what is opened by way of `/dev/fd` shares the flags of the handle that it was.
    fn reopen(_: &File, path: &Path, reads: Reads) -> Option<File> {
        let again = File::open(path).ok()?;
        let (command, value) = match reads {
            Reads::Small => (libc::F_RDAHEAD, 0),
            Reads::Direct => (libc::F_NOCACHE, 1),
        };
        // SAFETY: a call on an open descriptor that takes a number.
        let done = unsafe { libc::fcntl(again.as_raw_fd(), command, value) } != -1;
        done.then_some(again)
    }

    fn identity(file: &File) -> io::Result<FileIdentity> {
        unix::identity(file)
    }

    fn identity_at(path: &Path) -> io::Result<FileIdentity> {
        unix::identity_at(path)
    }

    fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        unix::read_at(file, buffer, offset)
    }

    /// There is no such call; files for direct reads keep no pages.
    fn drop_pages(_: &File, _: u64, _: usize) {}

    fn will_need(map: &Mmap, start: usize, len: usize) {
        let _ = map.advise_range(Advice::WillNeed, start, len);
    }

    fn populate(map: &Mmap, start: usize, len: usize) -> bool {
        map.advise_range(Advice::WillNeed, start, len).is_ok()
    }

    /// The system chooses the size of pages by itself.
    fn prefer_large_pages(_: &MmapMut) {}

    fn available_memory_bytes() -> Option<u64> {
        let free = free_bytes();
        installed_bytes().map_or(free, |installed| Some(free?.min(installed)))
    }

    fn peak_rss_bytes() -> Option<u64> {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
        // SAFETY: getrusage fills the struct whose address it is given, and says by 0 that it did.
        let done = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) } == 0;
        // SAFETY: filled, since getrusage returned 0. It counts bytes here.
        u64::try_from(done.then(|| unsafe { usage.assume_init() })?.ru_maxrss).ok()
    }

    fn private_bytes() -> Option<u64> {
        let mut usage = std::mem::MaybeUninit::<libc::rusage_info_v0>::uninit();
        // SAFETY: fills the struct of the version asked for, whose address it is given, and says by 0 that it
        // did.
        let done =
            unsafe { libc::proc_pid_rusage(libc::getpid(), libc::RUSAGE_INFO_V0, usage.as_mut_ptr().cast()) }
                == 0;
        // SAFETY: filled, since proc_pid_rusage returned 0.
        Some(done.then(|| unsafe { usage.assume_init() })?.ri_phys_footprint)
    }

    fn free_disk_bytes(path: &Path) -> Option<u64> {
        unix::free_disk_bytes(path)
    }

    fn confine(memory: u64, time: Duration) -> io::Result<()> {
        unix::confine(memory, time)
    }
}

/// Memory of the machine.
fn installed_bytes() -> Option<u64> {
    let (mut bytes, mut len) = (0u64, size_of::<u64>());
    // SAFETY: writes at most `len` bytes to `bytes`, and sets nothing.
    let done = unsafe {
        libc::sysctlbyname(
            c"hw.memsize".as_ptr(),
            (&raw mut bytes).cast(),
            &raw mut len,
            std::ptr::null_mut(),
            0,
        )
    } == 0;
    (done && len == size_of::<u64>()).then_some(bytes)
}

/// What is free, and file pages and purgeable ones, which go where memory is short.
#[allow(deprecated)] // libc points to another crate for these calls
fn free_bytes() -> Option<u64> {
    let mut statistics = std::mem::MaybeUninit::<libc::vm_statistics64>::zeroed();
    let mut count = libc::HOST_VM_INFO64_COUNT;
    // SAFETY: fills at most `count` words of the struct, and says by 0 that it did.
    let done = unsafe {
        libc::host_statistics64(
            libc::mach_host_self(),
            libc::HOST_VM_INFO64,
            statistics.as_mut_ptr().cast(),
            &raw mut count,
        )
    } == 0;
    // SAFETY: all zeros is such a struct, and what the system knows of it has been filled.
    let found = done.then(|| unsafe { statistics.assume_init() })?;
    // Pages read ahead count as free and as file pages.
    let pages =
        u64::from(found.free_count) + u64::from(found.external_page_count) + u64::from(found.purgeable_count);
    let pages = pages.saturating_sub(u64::from(found.speculative_count));
    // SAFETY: asks for a number.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    pages.checked_mul(page)
}
