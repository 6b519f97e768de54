//! What goes wrong, as exceptions of the package.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::prelude::*;

use crate::cli::CliError;
use crate::cli::embedded::Kind;
use crate::engine::EngineError;
use crate::server::{ApiError, ErrorKind, MORE_ROOM};

/// What has gone wrong, while the interpreter is not at hand.
#[derive(Debug)]
pub struct Fault {
    kind: Kind,
    message: String,
    /// What the user can do about it.
    hint: Option<String>,
}

impl Fault {
    pub fn new(kind: Kind, message: impl Into<String>) -> Fault {
        Fault { kind, message: message.into(), hint: None }
    }

    /// Arguments that make no sense.
    pub fn usage(message: impl Into<String>) -> Fault {
        Fault::new(Kind::Usage, message)
    }

    /// The engine is gone, and all that was asked of it.
    pub fn ended() -> Fault {
        Fault::new(Kind::Other, "the model's engine has ended")
    }

    /// The same, of another kind.
    pub fn with_kind(self, kind: Kind) -> Fault {
        Fault { kind, ..self }
    }

    /// A layer's error.
    pub fn of(error: impl Error + 'static) -> Fault {
        Fault::new(Kind::of_cause(&error), error.to_string())
    }

    /// The exception, of the package's own class for its kind.
    fn exception(self, py: Python<'_>) -> PyResult<PyErr> {
        let class = match self.kind {
            Kind::Usage => "UsageError",
            Kind::File => "FileError",
            Kind::OutOfMemory => "OutOfMemory",
            Kind::Unsupported => "Unsupported",
            Kind::ContextFull => "ContextFull",
            Kind::Other => "Error",
        };
        let exception = py.import("wayinfer.errors")?.getattr(class)?.call1((self.message,))?;
        exception.setattr("hint", self.hint)?;
        Ok(PyErr::from_value(exception))
    }
}

impl From<CliError> for Fault {
    fn from(error: CliError) -> Fault {
        let hint = error.advice().map(str::to_owned);
        Fault { hint, ..Fault::new(Kind::of(&error), error.message()) }
    }
}

impl From<ApiError> for Fault {
    fn from(error: ApiError) -> Fault {
        let kind = match error.kind {
            ErrorKind::ContextLength { .. } => Kind::ContextFull,
            ErrorKind::Unsupported | ErrorKind::NotImplemented => Kind::Unsupported,
            ErrorKind::NoRoom => Kind::OutOfMemory,
            ErrorKind::Internal | ErrorKind::Overloaded | ErrorKind::ShuttingDown => Kind::Other,
            _ => Kind::Usage,
        };
        Fault::new(kind, error.message)
    }
}

impl From<EngineError> for Fault {
    fn from(error: EngineError) -> Fault {
        let hint = matches!(error, EngineError::NoRoom { .. }).then(|| MORE_ROOM.to_owned());
        Fault { hint, ..Fault::of(error) }
    }
}

impl From<Fault> for PyErr {
    fn from(fault: Fault) -> PyErr {
        Python::attach(|py| fault.exception(py).unwrap_or_else(|error| error))
    }
}

/// Runs what may panic: a bug of ours is an exception like any other.
pub fn caught<R>(work: impl FnOnce() -> Result<R, Fault>) -> Result<R, Fault> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(Fault::new(Kind::Other, format!("a bug of WayInfer: {text}")))
    })
}
