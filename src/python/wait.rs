//! Waiting without the interpreter: other threads of Python go on, and an interrupt ends it.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;

use super::errors::{Fault, caught};

/// Whether anybody still waits for what is being done.
#[derive(Clone, Default)]
pub struct Left {
    /// Whoever has asked has left.
    pub caller: Arc<AtomicBool>,
    /// The model is being closed.
    pub model: Arc<AtomicBool>,
}

impl Left {
    /// Whether nobody waits any more.
    pub fn is_set(&self) -> bool {
        self.caller.load(Ordering::Relaxed) || self.model.load(Ordering::Relaxed)
    }

    /// Whether to go on.
    pub fn flow(&self) -> ControlFlow<()> {
        if self.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// How long an interrupt may go unseen.
pub const TICK: Duration = Duration::from_millis(50);

/// Threads of Python that wait here. One that comes back where the interpreter is gone already would bring
/// the process down: the package lets the last of them come back before.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Threads that wait for a model.
#[pyfunction]
pub fn waiting() -> usize {
    WAITING.load(Ordering::Relaxed)
}

/// Waits without the interpreter.
pub fn detached<R: Send>(py: Python<'_>, wait: impl FnOnce() -> R + Send) -> R {
    WAITING.fetch_add(1, Ordering::Relaxed);
    let waited = py.detach(wait);
    WAITING.fetch_sub(1, Ordering::Relaxed);
    waited
}

/// Locks, whatever a thread that panicked has left.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for what `within` waits for, a moment at a time. An interrupt, or another signal whose handler
/// raises, ends the waiting: `leave` is called then.
pub fn wait<R: Send>(
    py: Python<'_>,
    mut within: impl FnMut(Duration) -> Poll<R> + Send,
    leave: impl FnOnce(),
) -> PyResult<R> {
    loop {
        if let Poll::Ready(result) = detached(py, || within(TICK)) {
            return Ok(result);
        }
        if let Err(raised) = py.check_signals() {
            leave();
            return Err(raised);
        }
    }
}

/// Waits for a result. An interrupt ends the waiting: `leave` is called then.
pub fn wait_for<R: Send>(
    py: Python<'_>,
    results: Receiver<Result<R, Fault>>,
    leave: impl FnOnce(),
) -> PyResult<R> {
    let within = move |time| match results.recv_timeout(time) {
        Err(RecvTimeoutError::Timeout) => Poll::Pending,
        Err(RecvTimeoutError::Disconnected) => Poll::Ready(Err(Fault::ended())),
        Ok(result) => Poll::Ready(result),
    };
    Ok(wait(py, within, leave)??)
}

/// Does something long on a thread of its own; an interrupt leaves it behind.
pub fn apart<R: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<R, Fault> + Send + 'static,
) -> PyResult<R> {
    let (sender, results) = channel();
    let work = move || {
        // Nobody may listen any more.
        let _ = sender.send(caught(work));
    };
    thread::Builder::new().name("wayinfer".to_owned()).spawn(work).map_err(Fault::of)?;
    wait_for(py, results, || ())
}
