//! What only the operating system can tell or do.

use std::io;
use std::time::Duration;

/// Bounds what this process may take: memory of its own in bytes, with what it has; time of its processors
/// from now on. Who takes more memory is refused it; whose time is over is ended by the system (SIGPROF).
/// There is no way back.
///
/// macOS does not bound memory, systems other than Unix bound neither.
///
/// # Errors
/// What the system says.
#[cfg(unix)]
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

/// See the Unix version.
#[cfg(not(unix))]
pub fn confine(_memory: u64, _time: Duration) -> io::Result<()> {
    Ok(())
}

/// The process's high-water mark of resident memory in bytes, mapped file pages included; `None` where
/// the system does not say.
#[cfg(unix)]
pub fn peak_rss_bytes() -> Option<u64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: getrusage fills the struct whose address it is given, and says by 0 that it did.
    let done = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) } == 0;
    // SAFETY: filled, since getrusage returned 0.
    let peak = u64::try_from(done.then(|| unsafe { usage.assume_init() })?.ru_maxrss).ok()?;
    // Linux counts in KiB, macOS in bytes.
    Some(if cfg!(target_os = "macos") { peak } else { peak * 1024 })
}

/// See the Unix version.
#[cfg(not(unix))]
pub fn peak_rss_bytes() -> Option<u64> {
    None
}

/// Memory in bytes that the process has for itself now, file pages left out; `None` where the system does not
/// say.
pub fn private_bytes() -> Option<u64> {
    private_of(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// `RssAnon` of Linux's `/proc/self/status`, which counts in KiB.
fn private_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_memory() {
        assert_eq!(private_of("VmRSS:\t    5000 kB\nRssAnon:\t    1234 kB\n"), Some(1234 * 1024));
        assert_eq!(private_of("RssAnon: much\n"), None);
        assert!(!cfg!(target_os = "linux") || private_bytes() > Some(0));
    }
}
