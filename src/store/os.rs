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
