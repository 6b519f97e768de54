//! Findings: one code path reads a model either up to its first error or collecting all that is wrong.

use std::fmt;
use std::path::{Path, PathBuf};

use super::Gguf;
use super::error::GgufError;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The model can be read, but something is odd.
    Warning,
    /// The model cannot be used, or not be trusted.
    Error,
}

impl Severity {
    /// `error` or `warning`.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One thing found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    pub path: PathBuf,
    /// Bytes from the start of the file, where there is one place to point at.
    pub offset: Option<u64>,
    pub text: String,
}

/// All that was found wrong with a model.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// In the order in which the checks are made: file by file, then the split, then the model as a whole.
    pub findings: Vec<Finding>,
    /// Findings beyond the first 1,000, which are not kept.
    pub dropped: usize,
    /// The model, where nothing is wrong with its files themselves: where [`Gguf::open`] would succeed.
    pub gguf: Option<Gguf>,
}

impl CheckReport {
    /// Number of findings of this severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|f| f.severity == severity).count()
    }

    /// Whether any finding is an error.
    pub fn has_errors(&self) -> bool {
        self.gguf.is_none() || self.count(Severity::Error) > 0
    }
}

/// Most findings that are kept: enough to see what is wrong, whatever the file.
const MAX_FINDINGS: usize = 1_000;

/// Where the checks report to: stops at the first error, or collects.
pub(super) struct Findings {
    collect: bool,
    pub list: Vec<Finding>,
    pub dropped: usize,
    pub errors: usize,
}

impl Findings {
    /// Every error is handed back at once; warnings are not looked for.
    pub fn stop_at_first() -> Findings {
        Findings { collect: false, list: Vec::new(), dropped: 0, errors: 0 }
    }

    /// Errors and warnings are kept.
    pub fn collect() -> Findings {
        Findings { collect: true, ..Findings::stop_at_first() }
    }

    /// Whether to go on after an error, and to look for warnings.
    pub fn collects(&self) -> bool {
        self.collect
    }

    /// An error after which reading can go on.
    pub fn error(&mut self, error: GgufError) -> Result<(), GgufError> {
        if !self.collect {
            return Err(error);
        }
        self.add(Severity::Error, &error.path, error.offset, error.kind.to_string());
        Ok(())
    }

    /// Keeps a finding.
    pub fn add(&mut self, severity: Severity, path: &Path, offset: Option<u64>, text: String) {
        self.errors += usize::from(severity == Severity::Error);
        if self.list.len() >= MAX_FINDINGS {
            self.dropped += 1;
        } else {
            self.list.push(Finding { severity, path: path.to_owned(), offset, text });
        }
    }
}
