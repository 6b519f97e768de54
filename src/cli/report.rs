//! `--report FILE`: the page that a subcommand draws, and the file that it goes to.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{CliError, interrupt, output_file};
use crate::gguf::Gguf;
use crate::show::Page;
use crate::verify::{NewFile, TensorFileError};

/// `--report FILE`, and whether it may take a file's place. The group holds all flags that write a file.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// Draw it as well: one HTML file that needs nothing else
    #[arg(long, value_name = "FILE", group = "written")]
    report: Option<PathBuf>,

    /// Overwrite the file that is to be written
    #[arg(long, requires = "written")]
    pub force: bool,
}

/// The file of a report, which is there once it is written whole.
pub struct ReportFile {
    path: PathBuf,
    file: NewFile,
}

impl ReportArgs {
    /// The file of the report, where one is asked for: what would be in the way is told before the work.
    ///
    /// # Errors
    /// A file that is there already, or cannot be written.
    pub fn create(&self) -> Result<Option<ReportFile>, CliError> {
        if self.is_asked_for() {
            interrupt::leave_nothing_behind()?;
        }
        self.create_watched()
    }

    /// The same for a run that watches for interrupts itself, and leaves no unfinished file where one ends
    /// it.
    ///
    /// # Errors
    /// Those of [`ReportArgs::create`].
    pub fn create_watched(&self) -> Result<Option<ReportFile>, CliError> {
        let Some(path) = &self.report else { return Ok(None) };
        let file = NewFile::create(path, self.force).map_err(|error| {
            let exists = matches!(error, TensorFileError::Exists { .. });
            let error = CliError::from(error);
            if exists { error.hint("--force overwrites it") } else { error }
        })?;
        Ok(Some(ReportFile { path: path.clone(), file }))
    }

    /// Whether it is asked for at this path.
    pub fn is_at(&self, path: &Path) -> bool {
        self.report.as_deref() == Some(path)
    }

    /// Whether one is asked for.
    pub fn is_asked_for(&self) -> bool {
        self.report.is_some()
    }

    /// Refuses to write over the model.
    ///
    /// # Errors
    /// Where the report's file is one of the model's.
    pub fn refuse_model_file(&self, gguf: &Gguf) -> Result<(), CliError> {
        self.report.as_deref().map_or(Ok(()), |path: &Path| output_file::refuse_model_file(gguf, path))
    }
}

impl ReportFile {
    /// Writes the report.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(mut self, page: Page) -> Result<(), CliError> {
        let written = self.file.write_all(page.finish().as_bytes());
        written.map_err(|error| CliError::new(format!("cannot be written: {error}")).in_file(&self.path))?;
        Ok(self.file.finish()?)
    }
}
