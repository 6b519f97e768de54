//! `--check`: all findings at once.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::json;
use crate::cli::CliError;
use crate::cli::output::escape;
use crate::gguf::{Finding, Gguf, Severity};

#[derive(Serialize)]
struct Report {
    ok: bool,
    errors: usize,
    warnings: usize,
    findings: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    severity: &'static str,
    file: String,
    offset: Option<u64>,
    text: String,
}

/// Prints what is wrong with a model; exit code 1 where any of it is an error.
pub fn run(path: &Path, json: bool, out: &mut impl Write) -> Result<ExitCode, CliError> {
    let report = Gguf::check(path);
    let ok = !report.has_errors();
    let (errors, warnings) = (report.count(Severity::Error), report.count(Severity::Warning));
    if json {
        let findings = report.findings.iter().map(row).collect();
        json::write(&Report { ok, errors, warnings, findings }, out)?;
    } else {
        for finding in &report.findings {
            writeln!(out, "{}", escape(&line(finding)))?;
        }
        if report.dropped > 0 {
            writeln!(out, "and {} more", report.dropped)?;
        }
        let path = path.display().to_string();
        match (errors, warnings) {
            (0, 0) => writeln!(out, "{}: no errors, no warnings", escape(&path))?,
            _ => writeln!(
                out,
                "{}: {}, {}",
                escape(&path),
                several(errors, "error"),
                several(warnings, "warning")
            )?,
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn several(n: usize, what: &str) -> String {
    match n {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}

fn line(finding: &Finding) -> String {
    let place = finding.offset.map_or_else(String::new, |o| format!(" at byte {o}"));
    format!("{}: {}{place}: {}", finding.severity, finding.path.display(), finding.text)
}

fn row(finding: &Finding) -> Row {
    Row {
        severity: finding.severity.name(),
        file: finding.path.display().to_string(),
        offset: finding.offset,
        text: finding.text.clone(),
    }
}
