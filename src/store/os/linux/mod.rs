//! Linux.

mod memory;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use memmap2::{Advice, Mmap, MmapMut};

use super::unix::{self, FaultWatch};
use super::{FileIdentity, Reads, System};

/// See the module.
#[derive(Debug)]
pub struct Linux;

impl System for Linux {
    type Watch = FaultWatch;

    fn reopen(file: &File, path: &Path, reads: Reads) -> Option<File> {
        // The handle's own file, wherever the path leads; the path where /proc is not to be had.
        let own = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let mut options = OpenOptions::new();
        options.read(true);
        if reads == Reads::Direct {
            options.custom_flags(libc::O_DIRECT);
        }
        let again = options.open(own).or_else(|_| options.open(path)).ok()?;
        if reads == Reads::Small {
            advise(&again, 0, 0, libc::POSIX_FADV_RANDOM);
        }
        Some(again)
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

    fn drop_pages(file: &File, offset: u64, len: usize) {
        advise(file, offset, len, libc::POSIX_FADV_DONTNEED);
    }

    fn will_need(map: &Mmap, start: usize, len: usize) {
        let _ = map.advise_range(Advice::WillNeed, start, len);
    }

    fn populate(map: &Mmap, start: usize, len: usize) -> bool {
        map.advise_range(Advice::PopulateRead, start, len).is_ok()
    }

    fn prefer_large_pages(map: &MmapMut) {
        let _ = map.advise(Advice::HugePage);
    }

    fn prefer_large_file_pages(map: &Mmap) {
        let _ = map.advise(Advice::HugePage);
    }

    fn available_memory_bytes() -> Option<u64> {
        memory::available_under(Path::new("/"))
    }

    fn peak_rss_bytes() -> Option<u64> {
        memory::of_this_process("VmHWM")
    }

    fn private_bytes() -> Option<u64> {
        memory::of_this_process("RssAnon")
    }

    fn free_disk_bytes(path: &Path) -> Option<u64> {
        unix::free_disk_bytes(path)
    }

    fn confine(memory: u64, time: Duration) -> io::Result<()> {
        unix::confine(memory, time)
    }

    #[cfg(target_arch = "x86_64")]
    fn allow_amx_tiles() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: this `arch_prctl` takes two numbers and touches no memory of ours; unknown to a kernel, it
        // fails.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
}

fn advise(file: &File, offset: u64, len: usize, advice: libc::c_int) {
    // SAFETY: a call on an open descriptor that touches no memory of ours; it is advice, so that its failure
    // changes nothing.
    let _ =
        unsafe { libc::posix_fadvise(file.as_raw_fd(), offset as libc::off_t, len as libc::off_t, advice) };
}
