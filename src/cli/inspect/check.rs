//! `--check`: all findings at once, those of the file's reader and what this program cannot run.

use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;

use super::json;
use crate::cli::safe_text::escape;
use crate::cli::{CliError, verdict};
use crate::gguf::{CheckReport, Finding, Gguf, Severity, Source, TensorInfo};
use crate::{model, quant};

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
pub fn run(source: Source<'_>, json: bool, out: &mut impl Write) -> Result<ExitCode, CliError> {
    let mut report = Gguf::check(source);
    if let Some(gguf) = &report.gguf {
        report.findings.extend(unknown_architecture(gguf).into_iter().chain(types_without_format(gguf)));
    }
    let ok = !report.has_errors();
    let code = if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    verdict(code, print(&report, source, json, out))
}

fn print(report: &CheckReport, source: Source<'_>, json: bool, out: &mut impl Write) -> Result<(), CliError> {
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
        let path = source.path().display().to_string();
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
    Ok(out.flush()?)
}

/// A warning that the model cannot be run, whatever its tensors.
fn unknown_architecture(gguf: &Gguf) -> Option<Finding> {
    let name = gguf.metadata().str("general.architecture").ok().flatten()?;
    if model::architectures().any(|known| known == name) {
        return None;
    }
    let known = model::architectures().collect::<Vec<_>>().join(", ");
    let text = format!("the architecture {name:?} cannot be run (those that can: {known})");
    Some(Finding { severity: Severity::Warning, path: gguf.parts[0].path.clone(), offset: None, text })
}

/// A warning for every tensor type that cannot be computed with, in the order of their first tensors.
fn types_without_format(gguf: &Gguf) -> Vec<Finding> {
    let mut first: Vec<&TensorInfo> = Vec::new();
    let mut counts = HashMap::new();
    for tensor in gguf.tensors.iter().filter(|t| quant::format(t.ty).is_none() && !model::is_table(t)) {
        let count = counts.entry(tensor.ty).or_insert(0);
        *count += 1;
        if *count == 1 {
            first.push(tensor);
        }
    }
    let finding = |tensor: &TensorInfo| Finding {
        severity: Severity::Warning,
        path: gguf.parts[tensor.part].path.clone(),
        offset: Some(tensor.offset),
        text: match counts[&tensor.ty] {
            1 => format!("tensor {:?} is of type {}, which cannot be run", tensor.name, tensor.ty),
            n => format!(
                "{n} tensors are of type {}, which cannot be run, the first is {:?}",
                tensor.ty, tensor.name
            ),
        },
    };
    first.into_iter().map(finding).collect()
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
