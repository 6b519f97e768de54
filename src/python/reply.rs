//! What a model answers to a request, as it comes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Poll;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::errors::Fault;
use super::model::Core;
use super::wait::{TICK, detached, lock};
use crate::server::{self, Piece};

/// See the module. Dropped or closed, its request ends.
#[pyclass(frozen, module = "wayinfer._native")]
pub struct Reply {
    /// None once it is closed.
    reply: Mutex<Option<server::Reply>>,
    closed: AtomicBool,
    head: OnceLock<(u16, String)>,
    /// It stays open while it answers.
    _model: Arc<Core>,
}

impl Reply {
    pub fn new(reply: server::Reply, model: &Arc<Core>) -> Reply {
        Reply {
            reply: Mutex::new(Some(reply)),
            closed: AtomicBool::new(false),
            head: OnceLock::new(),
            _model: Arc::clone(model),
        }
    }

    fn piece_within(&self, time: Duration) -> Poll<Option<Piece>> {
        let mut reply = lock(&self.reply);
        if self.closed.load(Ordering::Relaxed) {
            *reply = None;
        }
        reply.as_ref().map_or(Poll::Ready(None), |reply| reply.next_within(time))
    }

    /// What comes next; none at the end. An interrupt ends the request.
    fn piece(&self, py: Python<'_>) -> PyResult<Option<Piece>> {
        loop {
            if let Poll::Ready(piece) = detached(py, || self.piece_within(TICK)) {
                return Ok(piece);
            }
            if let Err(raised) = py.check_signals() {
                self.close();
                return Err(raised);
            }
        }
    }
}

#[pymethods]
impl Reply {
    /// The status, as HTTP has it, and the type of the content. Waits for them.
    fn head(&self, py: Python<'_>) -> PyResult<(u16, String)> {
        if let Some(head) = self.head.get() {
            return Ok(head.clone());
        }
        match self.piece(py)? {
            Some(Piece::Head { status, content_type }) => {
                Ok(self.head.get_or_init(|| (status, content_type)).clone())
            }
            _ => Err(Fault::ended().into()),
        }
    }

    /// More of the body, once the head was asked for; None at the end.
    fn chunk<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        match self.piece(py)? {
            Some(Piece::Data(data)) => Ok(Some(PyBytes::new(py, &data))),
            _ => Ok(None),
        }
    }

    /// Ends the request.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        // A thread that waits for a piece sees it within a moment, and ends the request itself.
        if let Ok(mut reply) = self.reply.try_lock() {
            *reply = None;
        }
    }

    /// Whether it was closed before its end was read.
    #[getter]
    fn closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}
