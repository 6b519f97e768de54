//! How much memory there is for a process, the machine's and what its job leaves it, and how much it has.

use std::io;
use std::ptr;
use std::time::Duration;

use windows_sys::Win32::System::JobObjects::{
    AssignProcessToJobObject, CreateJobObjectW, JOB_OBJECT_LIMIT_JOB_MEMORY, JOB_OBJECT_LIMIT_PROCESS_MEMORY,
    JOB_OBJECT_LIMIT_PROCESS_TIME, JOBOBJECT_EXTENDED_LIMIT_INFORMATION, JobObjectExtendedLimitInformation,
    QueryInformationJobObject, SetInformationJobObject,
};
use windows_sys::Win32::System::ProcessStatus::{GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS_EX};
use windows_sys::Win32::System::SystemInformation::{GlobalMemoryStatusEx, MEMORYSTATUSEX};
use windows_sys::Win32::System::Threading::GetCurrentProcess;

use super::check;

/// What this process has and had.
pub fn counters() -> Option<PROCESS_MEMORY_COUNTERS_EX> {
    // SAFETY: all zeros is such a struct.
    let mut counters: PROCESS_MEMORY_COUNTERS_EX = unsafe { std::mem::zeroed() };
    counters.cb = size_of::<PROCESS_MEMORY_COUNTERS_EX>() as u32;
    // SAFETY: fills the struct whose address and size it is given; the longer struct begins as the shorter.
    let done = unsafe { GetProcessMemoryInfo(GetCurrentProcess(), (&raw mut counters).cast(), counters.cb) };
    (done != 0).then_some(counters)
}

/// Memory of its own that the process has: of what it has reserved, what it has written to at the most.
pub fn private_bytes() -> Option<u64> {
    let own = counters()?;
    Some(reserved(&own).min(own.WorkingSetSize) as u64)
}

/// The same number by two names, of which Wine fills in one.
fn reserved(own: &PROCESS_MEMORY_COUNTERS_EX) -> usize {
    own.PrivateUsage.max(own.PagefileUsage)
}

/// Memory that the machine has available, or less where a job allows less.
pub fn available_bytes() -> Option<u64> {
    machine().into_iter().chain(job()).min()
}

/// Memory that can be had without the page file, and that can be committed.
fn machine() -> Option<u64> {
    // SAFETY: all zeros is such a struct.
    let mut status: MEMORYSTATUSEX = unsafe { std::mem::zeroed() };
    status.dwLength = size_of::<MEMORYSTATUSEX>() as u32;
    // SAFETY: fills the struct whose address it is given, of the length that stands in it.
    let done = unsafe { GlobalMemoryStatusEx(&raw mut status) };
    (done != 0).then(|| status.ullAvailPhys.min(status.ullAvailPageFile))
}

/// What the limits of the job that this process is in leave it. Of what others in the job have, nothing is
/// known.
fn job() -> Option<u64> {
    // SAFETY: all zeros is such a struct.
    let mut limits: JOBOBJECT_EXTENDED_LIMIT_INFORMATION = unsafe { std::mem::zeroed() };
    // SAFETY: asks for the limits of the job of this process, which are written to the struct whose address
    // and size are given.
    let done = unsafe {
        QueryInformationJobObject(
            ptr::null_mut(),
            JobObjectExtendedLimitInformation,
            (&raw mut limits).cast(),
            size_of::<JOBOBJECT_EXTENDED_LIMIT_INFORMATION>() as u32,
            ptr::null_mut(),
        )
    };
    if done == 0 {
        return None;
    }
    let flags = limits.BasicLimitInformation.LimitFlags;
    let bounds = [
        (JOB_OBJECT_LIMIT_PROCESS_MEMORY, limits.ProcessMemoryLimit),
        (JOB_OBJECT_LIMIT_JOB_MEMORY, limits.JobMemoryLimit),
    ];
    let bound = bounds.into_iter().filter(|(flag, _)| flags & flag != 0).map(|(_, bytes)| bytes as u64).min();
    Some(bound?.saturating_sub(counters().map_or(0, |own| reserved(&own) as u64)))
}

/// Puts this process in a job of its own, whose limits are these.
pub fn confine(memory: u64, time: Duration) -> io::Result<()> {
    // SAFETY: makes a job without a name and with the usual rights. It is not closed: it is to last as long as
    // the process, whose end closes it.
    let job = unsafe { CreateJobObjectW(ptr::null(), ptr::null()) };
    if job.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeros is such a struct.
    let mut limits: JOBOBJECT_EXTENDED_LIMIT_INFORMATION = unsafe { std::mem::zeroed() };
    limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_PROCESS_MEMORY | JOB_OBJECT_LIMIT_PROCESS_TIME;
    // The time since the process began counts, in units of 100 ns.
    limits.BasicLimitInformation.PerProcessUserTimeLimit =
        i64::try_from(time.as_nanos() / 100).unwrap_or(i64::MAX);
    limits.ProcessMemoryLimit = usize::try_from(memory).unwrap_or(usize::MAX);
    // SAFETY: reads the struct whose address and size it is given.
    check(unsafe {
        SetInformationJobObject(
            job,
            JobObjectExtendedLimitInformation,
            (&raw const limits).cast(),
            size_of::<JOBOBJECT_EXTENDED_LIMIT_INFORMATION>() as u32,
        )
    })?;
    // SAFETY: takes two handles that are open.
    check(unsafe { AssignProcessToJobObject(job, GetCurrentProcess()) })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const LIMIT: u64 = 3 << 30;

    /// What a job allows is what there is, less what the process has. Not of every system: Wine knows jobs
    /// without their limits.
    #[test]
    fn a_job_s_limit_is_all_that_is_available() {
        let this = "store::os::windows::memory::tests::a_job_s_limit_is_all_that_is_available";
        if std::env::var_os("WAYINFER_TEST_JOB").is_none() {
            let mut run = Command::new(std::env::current_exe().unwrap());
            run.args(["--exact", this]).env("WAYINFER_TEST_JOB", "1");
            assert!(run.status().unwrap().success());
            return;
        }
        let free = available_bytes().unwrap();
        confine(LIMIT, Duration::from_secs(60)).unwrap();
        let own = reserved(&counters().unwrap()) as u64;
        match job() {
            Some(left) => {
                assert!(
                    left <= LIMIT - own / 2 && left >= LIMIT.saturating_sub(2 * own),
                    "{left} of {LIMIT}"
                );
                assert!(available_bytes().unwrap() <= free.min(left));
            }
            None => assert!(is_wine(), "the job has no limit"),
        }
    }

    fn is_wine() -> bool {
        use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress};
        // SAFETY: both names end in zeros; this library is a part of every process.
        unsafe {
            let ntdll = GetModuleHandleW(windows_sys::w!("ntdll.dll"));
            GetProcAddress(ntdll, c"wine_get_version".as_ptr().cast()).is_some()
        }
    }
}
