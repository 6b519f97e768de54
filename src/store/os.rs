//! What only the operating system can tell.

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

/// Memory in bytes that the process has for itself now, file pages left out; `None` where the system does not say.
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
