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
    Some(bound?.saturating_sub(counters().map_or(0, |own| own.PrivateUsage as u64)))
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
