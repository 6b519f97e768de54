//! How a failure reaches the user: a line `error: ..`, a line `hint: ..` where there is one, an exit code.

use std::error::Error;
use std::io;
use std::process::ExitCode;

/// A failure of a subcommand. Made from any error by `?`; a layer's error says what is wrong in full,
/// the hint says what to do about it.
#[derive(Debug)]
pub struct CliError {
    error: Box<dyn Error + Send + Sync>,
    hint: Option<String>,
    code: u8,
}

impl CliError {
    /// A failure with a message of its own (exit code 1).
    pub fn new(message: impl Into<String>) -> CliError {
        CliError { error: message.into().into(), hint: None, code: 1 }
    }

    /// Arguments that cannot be meant together or a value that cannot be (exit code 2).
    pub fn usage(message: impl Into<String>) -> CliError {
        CliError { code: 2, ..CliError::new(message) }
    }

    /// Adds what the user can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> CliError {
        self.hint = Some(hint.into());
        self
    }

    /// Prints the failure to stderr; a reader of our stdout that has gone away is none.
    pub fn report(&self) -> ExitCode {
        if let Some(io) = self.error.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::BrokenPipe
        {
            return ExitCode::SUCCESS;
        }
        eprintln!("error: {}", self.error);
        if let Some(hint) = &self.hint {
            eprintln!("hint: {hint}");
        }
        ExitCode::from(self.code)
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for CliError {
    fn from(error: E) -> CliError {
        CliError { error: Box::new(error), hint: None, code: 1 }
    }
}
