//! Ctrl-C, and other ways to ask a process to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::CliError;
use super::output::tell;
use crate::verify::remove_unfinished_files;

/// Exit code of a process that was interrupted, as shells have it.
pub const INTERRUPTED: u8 = 130;

type Action = Arc<dyn Fn() + Send + Sync>;

/// What an interrupt does. A process has one handler, whatever it does in turn.
static ACTION: Mutex<Option<Action>> = Mutex::new(None);

/// Has an interrupt do this from now on; returns what it did before, where it was handled.
fn on_interrupt(action: Action) -> Result<Option<Action>, CliError> {
    let mut current = ACTION.lock().unwrap_or_else(PoisonError::into_inner);
    if current.is_none() {
        ctrlc::set_handler(|| {
            let action = ACTION.lock().unwrap_or_else(PoisonError::into_inner).clone();
            action.iter().for_each(|action| action());
        })?;
    }
    Ok(current.replace(action))
}

/// Ends the process.
fn leave() {
    remove_unfinished_files();
    std::process::exit(INTERRUPTED.into());
}

/// The first interrupt sets the flag that is returned; the second ends the process, which does this before,
/// and leaves no unfinished file behind.
pub fn watch_to_leave(before: impl Fn() + Send + Sync + 'static) -> Result<Arc<AtomicBool>, CliError> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    on_interrupt(Arc::new(move || {
        if flag.swap(true, Ordering::Relaxed) {
            before();
            leave();
        }
    }))?;
    Ok(interrupted)
}

/// An interrupt ends the process and leaves no unfinished file behind.
pub fn leave_nothing_behind() -> Result<(), CliError> {
    on_interrupt(Arc::new(leave)).map(drop)
}

/// While a model is fetched, an interrupt ends the process; when this is dropped it does what it did before.
pub struct WhileFetching(Option<Action>);

impl WhileFetching {
    /// From now on.
    ///
    /// # Errors
    /// What the system says.
    pub fn begin() -> Result<WhileFetching, CliError> {
        let before = on_interrupt(Arc::new(|| {
            tell!("\ninterrupted: what has come stays, and the same command goes on from there");
            leave();
        }))?;
        Ok(WhileFetching(before))
    }
}

impl Drop for WhileFetching {
    fn drop(&mut self) {
        let before = self.0.take().unwrap_or_else(|| Arc::new(leave));
        // There is a handler by now, so that none has to be set.
        let _ = on_interrupt(before);
    }
}

/// Interrupts are somebody else's from now on: where a handler stands already it does nothing more.
pub fn leave_to_others() {
    let mut current = ACTION.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(action) = &mut *current {
        *action = Arc::new(|| ());
    }
}
