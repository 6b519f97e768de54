//! Models in several files: `NAME-00001-of-0000N.gguf`, found from any one, held against each other.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::check::{Findings, Severity};
use super::error::{GgufError, GgufErrorKind, label};
use super::header::{ParsedFile, read_file};
use super::source::Source;
use super::value::Value;

/// What a file's name says: `NAME-00002-of-00003.gguf` is part 1 (from 0) of 3.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SplitName {
    prefix: String,
    pub no: u64,
    pub count: u64,
}

impl SplitName {
    /// Reads a file name as llama-gguf-split writes it.
    pub fn parse(path: &Path) -> Option<SplitName> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let digits = |s: &str| {
            (s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse::<u64>().ok())?
        };
        let (number, count) = (digits(number)?, digits(count)?);
        (1..=count).contains(&number).then(|| SplitName { prefix: prefix.to_owned(), no: number - 1, count })
    }

    /// The path of part `no`, beside `path`.
    fn sibling(&self, path: &Path, no: u64) -> PathBuf {
        path.with_file_name(format!("{}-{:05}-of-{:05}.gguf", self.prefix, no + 1, self.count))
    }
}

/// Reads the file, and where it is one of several all others, in their order. Where errors are
/// collected: the files that could be read.
pub(super) fn read_model(source: Source<'_>, findings: &mut Findings) -> Result<Vec<ParsedFile>, GgufError> {
    let path = source.path();
    // What is in memory has no siblings.
    let name = match source {
        Source::File(path) => SplitName::parse(path).filter(|name| name.count > 1),
        Source::Memory { .. } => None,
    };
    let entry = match read_file(source, findings) {
        Ok(entry) => Some(entry),
        // A broken part does not keep the others from being looked at.
        Err(e) if name.is_some() && findings.collects() => {
            findings.error(e)?;
            None
        }
        Err(e) => return Err(e),
    };
    let Some(entry) = entry else { return read_parts(path, name, None, findings) };
    match declared(&entry, "count", findings)? {
        Some(count) if count > 1 && name.is_none() => {
            findings.error(entry.error_at("split.count", GgufErrorKind::SplitName { count }))?;
            Ok(vec![entry])
        }
        Some(count) if count > 1 => read_parts(path, name, Some(entry), findings),
        _ => {
            if let Some(name) = name
                && findings.collects()
            {
                let text = format!(
                    "the name says that it is one of {} files, the metadata that it is whole",
                    name.count
                );
                findings.add(Severity::Warning, path, None, text);
            }
            Ok(vec![entry])
        }
    }
}

/// Reads all parts but the one at hand, `entry`, and holds them against each other.
fn read_parts(
    path: &Path,
    name: Option<SplitName>,
    mut entry: Option<ParsedFile>,
    findings: &mut Findings,
) -> Result<Vec<ParsedFile>, GgufError> {
    let Some(name) = name else { return Ok(Vec::from_iter(entry)) };
    let mut files = Vec::new();
    for no in 0..name.count {
        let file = if no == name.no {
            entry.take()
        } else {
            read_part(&name.sibling(path, no), no, name.count, findings)?
        };
        if let Some(mut file) = file {
            file.no = no;
            check_part(&file, &name, findings)?;
            files.push(file);
        }
    }
    let whole = files.len() as u64 == name.count;
    check_together(&files, whole, findings)?;
    Ok(files)
}

/// Reads one part; `None` where it cannot be, which is reported.
fn read_part(
    path: &Path,
    no: u64,
    count: u64,
    findings: &mut Findings,
) -> Result<Option<ParsedFile>, GgufError> {
    match read_file(Source::File(path), findings) {
        Ok(file) => return Ok(Some(file)),
        Err(GgufError { kind: GgufErrorKind::Io(e), .. }) if e.kind() == ErrorKind::NotFound => {
            let kind = GgufErrorKind::SplitMissing { part: no + 1, count };
            findings.error(GgufError { path: path.to_owned(), offset: None, kind })?;
        }
        Err(e) => findings.error(e)?,
    }
    Ok(None)
}

/// Holds what a part says of itself against its name.
fn check_part(file: &ParsedFile, name: &SplitName, findings: &mut Findings) -> Result<(), GgufError> {
    for (field, wanted) in [("no", file.no), ("count", name.count)] {
        match declared(file, field, findings)? {
            Some(found) if found == wanted => {}
            Some(found) => {
                let kind = GgufErrorKind::SplitValue { field, found, wanted, why: "so the file's name says" };
                findings.error(file.error_at(&format!("split.{field}"), kind))?;
            }
            None if file.part.metadata.contains(&format!("split.{field}")) => {} // reported
            None => findings.error(file.error_at("", GgufErrorKind::SplitKey { field }))?,
        }
    }
    Ok(())
}

/// Holds the parts against each other; the number of tensors only where all parts are there.
fn check_together(files: &[ParsedFile], whole: bool, findings: &mut Findings) -> Result<(), GgufError> {
    const ARCHITECTURE: &str = "general.architecture";
    let architecture =
        |file: &ParsedFile| file.part.metadata.str(ARCHITECTURE).ok().flatten().map(str::to_owned);
    let first = files.first().filter(|file| file.no == 0);
    let found = files.iter().map(|file| file.tensors.len() as u64).sum();
    let mut seen: HashMap<&str, &ParsedFile> = HashMap::new();
    for file in files {
        if let (Some(first), Some(found)) = (first, architecture(file)) {
            let wanted = architecture(first).unwrap_or_default();
            if found != wanted {
                let kind = GgufErrorKind::SplitForeign {
                    found: label(found.as_bytes()),
                    wanted: label(wanted.as_bytes()),
                };
                findings.error(file.error_at(ARCHITECTURE, kind))?;
            }
        }
        if whole {
            match declared(file, "tensors.count", findings)? {
                Some(wanted) if wanted != found => {
                    let kind = GgufErrorKind::SplitTensors { found, wanted };
                    findings.error(file.error_at("split.tensors.count", kind))?;
                }
                _ => {}
            }
        }
        for tensor in &file.tensors {
            match seen.insert(&tensor.info.name, file) {
                // Within a file it has been reported.
                Some(other) if other.no != file.no => {
                    let kind = GgufErrorKind::DuplicateTensor {
                        tensor: tensor.info.name.clone(),
                        other: Some(other.part.path.clone()),
                    };
                    findings.error(GgufError {
                        path: file.part.path.clone(),
                        offset: Some(tensor.entry_offset),
                        kind,
                    })?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// What `split.{field}` says, an integer of any width; another type is reported.
fn declared(
    file: &ParsedFile,
    field: &'static str,
    findings: &mut Findings,
) -> Result<Option<u64>, GgufError> {
    let key = format!("split.{field}");
    let value = file.part.metadata.get(&key);
    let found = value.and_then(Value::as_u64);
    if value.is_some() && found.is_none() {
        findings.error(file.error_at(&key, GgufErrorKind::SplitKey { field }))?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str) -> Option<(String, u64, u64)> {
        SplitName::parse(Path::new(name)).map(|n| (n.prefix, n.no, n.count))
    }

    #[test]
    fn names_are_read_as_llama_gguf_split_writes_them() {
        assert_eq!(parse("dir/m-q4-00002-of-00003.gguf"), Some(("m-q4".to_owned(), 1, 3)));
        assert_eq!(parse("m-00001-of-00001.gguf"), Some(("m".to_owned(), 0, 1)));
        for other in [
            "m.gguf",
            "m-00000-of-00003.gguf",
            "m-00004-of-00003.gguf",
            "m-2-of-3.gguf",
            "m-0000+-of-00003.gguf",
            "m-00002-of-00003.bin",
            "00002-of-00003.gguf",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn siblings_lie_in_the_same_directory() {
        let path = Path::new("dir/m-00002-of-00003.gguf");
        let name = SplitName::parse(path).unwrap();
        assert_eq!(name.sibling(path, 2), Path::new("dir/m-00003-of-00003.gguf"));
    }
}
