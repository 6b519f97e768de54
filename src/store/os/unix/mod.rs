//! What Unix systems have in common.

mod fault;
mod terminal;

use std::ffi::CString;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::{FileIdentity, MemoryLimit};
pub use fault::FaultWatch;
pub use terminal::TerminalMode;

pub fn identity(file: &File) -> io::Result<FileIdentity> {
    file.metadata().map(|found| identity_of(&found))
}

pub fn identity_at(path: &Path) -> io::Result<FileIdentity> {
    std::fs::metadata(path).map(|found| identity_of(&found))
}

fn identity_of(found: &Metadata) -> FileIdentity {
    FileIdentity { device: found.dev(), number: found.ino() }
}

pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

/// The resource limits that bound memory, where there are any.
#[allow(clippy::unnecessary_cast)] // types differ from system to system
pub fn memory_limits() -> Vec<MemoryLimit> {
    let limits = [("RLIMIT_AS (ulimit -v)", libc::RLIMIT_AS), ("RLIMIT_DATA (ulimit -d)", libc::RLIMIT_DATA)];
    let found = limits.map(|(by, resource)| {
        let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: fills the struct whose address it is given.
        let done = unsafe { libc::getrlimit(resource, &mut limit) } == 0;
        (done && limit.rlim_cur != libc::RLIM_INFINITY)
            .then(|| MemoryLimit { by: by.to_owned(), bytes: limit.rlim_cur as u64 })
    });
    found.into_iter().flatten().collect()
}

/// What users without privileges may still write.
#[allow(clippy::unnecessary_cast)] // types differ from system to system
pub fn free_disk_bytes(path: &Path) -> Option<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut found = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: reads a string that ends with a zero, fills the struct, and says by 0 that it did.
    let done = unsafe { libc::statvfs(path.as_ptr(), found.as_mut_ptr()) } == 0;
    // SAFETY: all zeros is such a struct, and what the system knows of it has been filled.
    let found = done.then(|| unsafe { found.assume_init() })?;
    (found.f_bavail as u64).checked_mul(found.f_frsize as u64)
}

/// By RLIMIT_DATA, which macOS takes and does not heed, and a timer that ends in SIGPROF.
pub fn confine(memory: u64, time: Duration) -> io::Result<()> {
    let done = |result: libc::c_int| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // A process that is ended leaves no file behind.
    for (resource, most) in [(libc::RLIMIT_DATA, memory), (libc::RLIMIT_CORE, 0)] {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: fills the struct whose address it is given.
        done(unsafe { libc::getrlimit(resource, &mut limit) })?;
        limit.rlim_max = limit.rlim_max.min(most as libc::rlim_t);
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: reads the struct whose address it is given.
        done(unsafe { libc::setrlimit(resource, &limit) })?;
    }
    let once = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let value = libc::timeval {
        tv_sec: time.as_secs() as libc::time_t,
        tv_usec: time.subsec_micros() as libc::suseconds_t,
    };
    let timer = libc::itimerval { it_interval: once, it_value: value };
    // SAFETY: reads the struct whose address it is given, and stores nothing at a null pointer.
    done(unsafe { libc::setitimer(libc::ITIMER_PROF, &timer, std::ptr::null_mut()) })
}
