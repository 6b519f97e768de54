//! Ctrl-C, and other ways to ask a process to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::CliError;
use crate::verify::remove_unfinished_files;

/// Exit code of a process that was interrupted, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// The first interrupt sets the flag that is returned; the second ends the process, which does this before.
pub fn watch_to_leave(leave: impl Fn() + Send + 'static) -> Result<Arc<AtomicBool>, CliError> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            leave();
            std::process::exit(INTERRUPTED.into());
        }
    })?;
    Ok(interrupted)
}

/// An interrupt ends the process, which does this before.
pub fn leave_with(leave: impl Fn() + Send + 'static) -> Result<(), CliError> {
    ctrlc::set_handler(move || {
        leave();
        std::process::exit(INTERRUPTED.into());
    })?;
    Ok(())
}

/// An interrupt ends the process and leaves no unfinished file behind.
pub fn leave_nothing_behind() -> Result<(), CliError> {
    leave_with(remove_unfinished_files)
}
