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

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use windows_sys::Win32::System::Diagnostics::Debug::RaiseException;

    use super::*;

    const PART: &str = "WAYINFER_TEST_FAULT";

    /// What the system does where the page of an address cannot be read: one of ours or not.
    fn raise(address: usize) {
        let what = [0, address, 0xc000_000e];
        // SAFETY: raises an exception with three numbers, whose handlers may end the process.
        unsafe { RaiseException(EXCEPTION_IN_PAGE_ERROR as u32, 0, 3, what.as_ptr()) };
    }

    /// This very program, run again with one test.
    fn again(test: &str, part: &str) -> Output {
        let mut run = Command::new(std::env::current_exe().unwrap());
        run.args(["--exact", &format!("store::os::windows::fault::tests::{test}"), "--nocapture"]);
        run.env(PART, part).output().unwrap()
    }

    /// A page that cannot be read ends the process with an error that names the file and the place; one of
    /// somebody else's, of a mapping that is gone, or where the handler was declined, as if it were not there.
    #[test]
    fn a_page_that_cannot_be_read_is_an_error_that_names_the_file() {
        let part = std::env::var(PART).unwrap_or_default();
        let bytes = vec![1u8; 10_000];
        match part.as_str() {
            "" => {
                let test = "a_page_that_cannot_be_read_is_an_error_that_names_the_file";
                for (part, ends_with_ours) in
                    [("ours", true), ("foreign", false), ("gone", false), ("declined", false)]
                {
                    let output = again(test, part);
                    let said = String::from_utf8_lossy(&output.stderr);
                    let ours =
                        "error: a model.gguf: cannot be read at byte 5000: the disk or the network failed";
                    assert_eq!(said.contains(ours), ends_with_ours, "{part}: {said}");
                    assert_eq!(
                        output.status.code() == Some(1),
                        ends_with_ours,
                        "{part}: {:?}",
                        output.status
                    );
                    assert!(!output.status.success(), "{part}");
                }
            }
            _ => {
                if part == "declined" {
                    crate::store::leave_faults_alone();
                }
                let watch = FaultWatch::start(&bytes[..9_000], Path::new("a model.gguf"));
                let _kept = (part != "gone").then_some(watch);
                raise(bytes.as_ptr().addr() + if part == "foreign" { 9_000 } else { 5_000 });
            }
        }
    }
}
