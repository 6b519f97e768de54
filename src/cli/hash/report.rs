//! Hashes for programs, and what a check found for people and programs.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::cli::safe_text::{self, escape};
use crate::cli::{CliError, output};
use crate::gguf::Gguf;
use crate::verify::files::{Algorithm, CheckOutcome, Deviation, Digests, ModelDigests, Subject};

#[derive(Serialize)]
struct Hashes {
    #[serde(skip_serializing_if = "Option::is_none")]
    xxh3: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

impl From<&Digests> for Hashes {
    fn from(digests: &Digests) -> Hashes {
        Hashes { xxh3: digests.hex(Algorithm::Xxh3), sha256: digests.hex(Algorithm::Sha256) }
    }
}

/// What is printed as JSON: the content of a manifest.
#[derive(Serialize)]
pub struct Report<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<File>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Hashes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<Hashes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<Tensor<'a>>>,
}

#[derive(Serialize)]
struct File {
    path: String,
    bytes: u64,
    #[serde(flatten)]
    hashes: Hashes,
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    ty: &'static str,
    shape: &'a [u64],
    bytes: u64,
    #[serde(flatten)]
    hashes: Hashes,
}

/// A model's hashes for JSON.
pub fn digests<'a>(gguf: &'a Gguf, digests: &ModelDigests) -> Report<'a> {
    let files = digests.files.iter().map(|file| {
        let part = &gguf.parts[file.part];
        File { path: part.path.display().to_string(), bytes: part.file_bytes, hashes: (&file.digests).into() }
    });
    let tensors = digests.tensors.iter().map(|found| {
        let tensor = &gguf.tensors[found.index];
        Tensor {
            name: &tensor.name,
            ty: tensor.ty.name(),
            shape: &tensor.dims,
            bytes: tensor.bytes,
            hashes: (&found.digests).into(),
        }
    });
    Report {
        files: files.collect(),
        metadata: digests.metadata.as_ref().map(Into::into),
        model: digests.model.as_ref().map(Into::into),
        tensors: digests.model.is_some().then(|| tensors.collect()),
    }
}

#[derive(Serialize)]
struct Checked {
    ok: bool,
    /// Held against the manifest.
    files: usize,
    tensors: usize,
    metadata: bool,
    model: bool,
    /// Lines of the manifest about files of others.
    other_files: usize,
    differing: Vec<Differing>,
    missing: Vec<Named>,
    extra: Vec<Named>,
}

#[derive(Serialize)]
struct Named {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

#[derive(Serialize)]
struct Differing {
    #[serde(flatten)]
    subject: Named,
    what: &'static str,
    found: String,
    manifest: String,
}

impl From<&Subject> for Named {
    fn from(subject: &Subject) -> Named {
        let (kind, name) = match subject {
            Subject::File(name) => ("file", Some(name.clone())),
            Subject::Metadata => ("metadata", None),
            Subject::Model => ("model", None),
            Subject::Tensor(name) => ("tensor", Some(name.clone())),
        };
        Named { kind, name }
    }
}

/// Prints what a check found.
pub fn check(path: &Path, outcome: &CheckOutcome, json: bool, out: &mut impl Write) -> Result<(), CliError> {
    if json {
        return safe_text::write_json(&checked(outcome), out);
    }
    for deviation in &outcome.deviations {
        match deviation {
            Deviation::Differs { subject, what, found, wanted } => {
                let subject = subject.to_string();
                writeln!(out, "DIFFERS: {}: {what} {found}, the manifest has {wanted}", escape(&subject))?;
            }
            Deviation::Missing(subject) => {
                writeln!(out, "MISSING: {}: the manifest alone has it", escape(&subject.to_string()))?;
            }
            Deviation::Extra(subject) => {
                writeln!(out, "EXTRA: {}: the manifest does not have it", escape(&subject.to_string()))?;
            }
        }
    }
    let path = path.display().to_string();
    let verdict = match outcome.deviations.len() {
        0 => "as the manifest says".to_owned(),
        1 => "1 deviation from the manifest".to_owned(),
        n => format!("{} deviations from the manifest", output::grouped(n as u64)),
    };
    writeln!(out, "{}: {} checked: {verdict}", escape(&path), what_was_checked(outcome))?;
    if outcome.other_files > 0 {
        writeln!(out, "of other files: {} of the manifest, not checked", lines(outcome.other_files))?;
    }
    Ok(())
}

fn lines(n: usize) -> String {
    if n == 1 { "1 line".to_owned() } else { format!("{n} lines") }
}

fn what_was_checked(outcome: &CheckOutcome) -> String {
    let several = |n: usize, what: &str| match n {
        0 => None,
        1 => Some(format!("1 {what}")),
        n => Some(format!("{n} {what}s")),
    };
    let single = |checked: bool, what: &str| checked.then(|| what.to_owned());
    let all = [
        several(outcome.files, "file"),
        several(outcome.tensors, "tensor"),
        single(outcome.metadata, "metadata"),
        single(outcome.model, "model"),
    ];
    let all: Vec<String> = all.into_iter().flatten().collect();
    if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
}

fn checked(outcome: &CheckOutcome) -> Checked {
    let mut report = Checked {
        ok: outcome.deviations.is_empty(),
        files: outcome.files,
        tensors: outcome.tensors,
        metadata: outcome.metadata,
        model: outcome.model,
        other_files: outcome.other_files,
        differing: Vec::new(),
        missing: Vec::new(),
        extra: Vec::new(),
    };
    for deviation in &outcome.deviations {
        match deviation {
            Deviation::Differs { subject, what, found, wanted } => report.differing.push(Differing {
                subject: subject.into(),
                what,
                found: found.clone(),
                manifest: wanted.clone(),
            }),
            Deviation::Missing(subject) => report.missing.push(subject.into()),
            Deviation::Extra(subject) => report.extra.push(subject.into()),
        }
    }
    report
}
