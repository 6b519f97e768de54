//! How a failure reaches the user: a line `error: ..`, a line `hint: ..` where there is one, an exit code.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::output::tell;
use super::safe_text::escape;
use crate::engine::EngineError;
use crate::model::ForwardError;
use crate::store::{StoreError, is_closed_pipe};
use crate::verify::VerifyError;

/// A failure of a subcommand. Made from any error by `?`; a layer's error says what is wrong in full,
/// the hint says what to do about it.
#[derive(Debug)]
pub struct CliError {
    error: Box<dyn Error + Send + Sync>,
    /// The file that it is about, where the error does not say.
    file: Option<PathBuf>,
    hint: Option<String>,
    code: u8,
}

impl CliError {
    /// A failure with a message of its own (exit code 1).
    pub fn new(message: impl Into<String>) -> CliError {
        CliError { error: message.into().into(), file: None, hint: None, code: 1 }
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

    /// Names the file that it is about, unless it names one itself: of a split model perhaps another part.
    pub fn in_file(mut self, path: &Path) -> CliError {
        if !of_store(&*self.error).is_some_and(StoreError::names_a_file) {
            self.file = Some(path.to_owned());
        }
        self
    }

    /// Whether it is the arguments that are wrong.
    pub fn is_usage(&self) -> bool {
        self.code == 2
    }

    /// Whether all that went wrong is that nobody reads our stdout any more.
    fn is_broken_pipe(&self) -> bool {
        self.error.downcast_ref::<io::Error>().is_some_and(is_closed_pipe)
    }

    /// What the user can do about it.
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The error of a layer that it was made from, or one that is a message alone.
    pub fn cause(&self) -> &(dyn Error + 'static) {
        &*self.error
    }

    /// Prints the failure to stderr, with nothing in it that would control the terminal: what is wrong may
    /// be in the name of a file or a tensor. A reader of our stdout that has gone away is no failure.
    pub fn report(&self) -> ExitCode {
        if self.is_broken_pipe() {
            return ExitCode::SUCCESS;
        }
        tell!("error: {}", escape(&self.message()));
        if let Some(hint) = &self.hint {
            tell!("hint: {}", escape(hint));
        }
        ExitCode::from(self.code)
    }

    /// What went wrong, and with which file.
    pub fn message(&self) -> String {
        let mut file = self.file.as_ref().map(|path| format!("{}: ", path.display()));
        // Every file has errors of its own that name it.
        if self.error.is::<io::Error>() {
            file.get_or_insert_with(|| "standard output: ".to_owned());
        }
        let error = self.error.to_string();
        // What the files' own layers say names them already.
        let file = file.filter(|file| !error.starts_with(file)).unwrap_or_default();
        format!("{file}{error}")
    }
}

/// The exit code of a check whose findings have been printed: it stands where nobody reads them to the end.
pub fn verdict(code: ExitCode, printed: Result<(), CliError>) -> Result<ExitCode, CliError> {
    match printed {
        Err(error) if !error.is_broken_pipe() => Err(error),
        _ => Ok(code),
    }
}

/// What went wrong with a weight, where that is what an error tells.
fn of_store<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a StoreError> {
    let engine = match error.downcast_ref() {
        Some(VerifyError::Engine(engine)) => Some(engine),
        _ => error.downcast_ref(),
    };
    match engine {
        Some(EngineError::Forward(ForwardError::Store(store))) => Some(store),
        _ => error.downcast_ref(),
    }
}

/// Results of layers that know metadata, tensors and tokens, but not the file that they come from.
pub trait InFile<T> {
    /// Names the file in the failure.
    fn in_file(self, path: &Path) -> Result<T, CliError>;
}

impl<T, E: Into<CliError>> InFile<T> for Result<T, E> {
    fn in_file(self, path: &Path) -> Result<T, CliError> {
        self.map_err(|error| error.into().in_file(path))
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for CliError {
    fn from(error: E) -> CliError {
        CliError { error: Box::new(error), file: None, hint: None, code: 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_another_part_is_not_put_on_the_first() {
        let changed = || StoreError::Changed { path: "b.gguf".into() };
        let engine = || EngineError::Forward(ForwardError::Store(changed()));
        let failures: [CliError; 3] =
            [changed().into(), engine().into(), VerifyError::Engine(engine()).into()];
        for failure in failures {
            assert_eq!(failure.in_file(Path::new("a.gguf")).file, None);
        }
        let failure = CliError::from(EngineError::NoLogits).in_file(Path::new("a.gguf"));
        assert_eq!(failure.file.as_deref(), Some(Path::new("a.gguf")));
    }
}
