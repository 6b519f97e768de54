//! Mapped files whose disk or server fails: the process ends with an error that names the file.
//!
//! A read of a mapping that fails raises an exception, EXCEPTION_IN_PAGE_ERROR, in the thread that reads.
//! Nothing else can be put in the place of a part of a mapping here, so that the thread cannot go on. An
//! exception from anywhere else takes its course.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use windows_sys::Win32::Foundation::EXCEPTION_IN_PAGE_ERROR;
use windows_sys::Win32::System::Diagnostics::Debug::{
    AddVectoredExceptionHandler, EXCEPTION_CONTINUE_SEARCH, EXCEPTION_POINTERS,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, TerminateProcess};

use super::super::Watch;

/// A mapping that is watched.
#[derive(Debug)]
pub struct FaultWatch {
    start: usize,
}

struct Watched {
    start: usize,
    len: usize,
    path: PathBuf,
}

/// The mappings that are watched. The handler may wait for it: code that reads mapped bytes has it not.
static WATCHED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());

fn watched() -> MutexGuard<'static, Vec<Watched>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch for FaultWatch {
    fn start(bytes: &[u8], path: &Path) -> FaultWatch {
        static INSTALL: Once = Once::new();
        if super::super::handles_faults() {
            // SAFETY: the handler does what code that reads memory may do; it is asked after those that are
            // there.
            INSTALL.call_once(|| _ = unsafe { AddVectoredExceptionHandler(0, Some(on_exception)) });
        }
        let start = bytes.as_ptr().addr();
        watched().push(Watched { start, len: bytes.len(), path: path.to_owned() });
        FaultWatch { start }
    }

    fn fault(&self) -> Option<usize> {
        None
    }
}

impl Drop for FaultWatch {
    fn drop(&mut self) {
        let mut watched = watched();
        if let Some(i) = watched.iter().position(|entry| entry.start == self.start) {
            watched.swap_remove(i);
        }
    }
}

/// Ends the process where a mapping of ours cannot be read.
unsafe extern "system" fn on_exception(pointers: *mut EXCEPTION_POINTERS) -> i32 {
    // SAFETY: the system hands over valid pointers.
    let record = unsafe { &*(*pointers).ExceptionRecord };
    if record.ExceptionCode != EXCEPTION_IN_PAGE_ERROR || record.NumberParameters < 2 {
        return EXCEPTION_CONTINUE_SEARCH;
    }
    let address = record.ExceptionInformation[1];
    let watched = watched();
    let found = watched.iter().find_map(|entry| {
        let offset = address.checked_sub(entry.start).filter(|&offset| offset < entry.len)?;
        Some((entry, offset))
    });
    let Some((entry, offset)) = found else { return EXCEPTION_CONTINUE_SEARCH };
    let message = format!(
        "error: {}: cannot be read at byte {offset}: the disk or the network failed\n",
        entry.path.display()
    );
    let _ = std::io::stderr().write_all(message.as_bytes());
    // SAFETY: ends this process at once: nothing that it would do on its way is safe any more.
    unsafe { TerminateProcess(GetCurrentProcess(), 1) };
    EXCEPTION_CONTINUE_SEARCH
}
