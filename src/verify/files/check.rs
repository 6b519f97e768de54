//! A model's hashes against those that a manifest says it should have.

use std::collections::HashMap;
use std::fmt;
use std::path::{Component, Path};

use super::digest::{Algorithm, Algorithms, Digests};
use super::hash::{Covered, FileDigest, ModelDigests};
use super::manifest::{FileEntry, Manifest, file_name, shape};
use crate::gguf::Gguf;

/// What a hash is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    File(String),
    Metadata,
    Model,
    Tensor(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::File(name) => write!(f, "file {name}"),
            Subject::Metadata => f.write_str("metadata"),
            Subject::Model => f.write_str("model"),
            Subject::Tensor(name) => write!(f, "tensor {name}"),
        }
    }
}

/// Where a model is not as a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deviation {
    Differs {
        subject: Subject,
        what: &'static str,
        found: String,
        wanted: String,
    },
    /// The manifest has it, the model does not.
    Missing(Subject),
    /// The model has it, the manifest does not.
    Extra(Subject),
}

/// What was found of a model.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CheckOutcome {
    pub deviations: Vec<Deviation>,
    /// Files and tensors that were held against the manifest.
    pub files: usize,
    pub tensors: usize,
    /// Whether metadata and model were.
    pub metadata: bool,
    pub model: bool,
    /// Entries of sha256sum that are of other files than the model's.
    pub other_files: usize,
}

impl Manifest {
    /// Leaves out all but the files, or all but what is not one.
    pub fn keep(&mut self, files: bool, tensors: bool) {
        if !files {
            self.files.clear();
        }
        if !tensors {
            (self.metadata, self.model) = (None, None);
            self.tensors.clear();
        }
    }

    /// Whether there is no hash.
    pub fn is_empty(&self) -> bool {
        self.digests().next().is_none()
    }

    /// What has to be hashed for it. Of an algorithm that was asked for every entry must have the hash: the
    /// first that does not is the error.
    pub fn covered(&self, asked: Option<Algorithm>) -> Result<Covered, Subject> {
        let has = |digests: &Digests, algorithm| digests.hex(algorithm).is_some();
        if let Some(asked) = asked
            && let Some((subject, _)) = self.digests().find(|(_, digests)| !has(digests, asked))
        {
            return Err(subject);
        }
        let any = |algorithm| self.digests().any(|(_, digests)| has(digests, algorithm));
        let all = Algorithms { xxh3: any(Algorithm::Xxh3), sha256: any(Algorithm::Sha256) };
        let others = self.digests().any(|(subject, _)| !matches!(subject, Subject::File(_)));
        Ok(Covered {
            algorithms: asked.map_or(all, Algorithms::only),
            files: !self.files.is_empty(),
            tensors: others,
        })
    }

    fn digests(&self) -> impl Iterator<Item = (Subject, &Digests)> {
        let files = self.files.iter().map(|file| (Subject::File(file.label()), &file.digests));
        let tensors = self.tensors.iter().map(|t| (Subject::Tensor(t.name.clone()), &t.digests));
        let metadata = self.metadata.iter().map(|digests| (Subject::Metadata, digests));
        let model = self.model.iter().map(|digests| (Subject::Model, digests));
        files.chain(metadata).chain(model).chain(tensors)
    }
}

impl FileEntry {
    fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| "of the pointer".to_owned())
    }
}

/// Holds a model's hashes against a manifest. `given` is the file of the model that was named: what a pointer
/// of Git LFS is about.
pub fn check(gguf: &Gguf, given: &Path, digests: &ModelDigests, manifest: &Manifest) -> CheckOutcome {
    let mut outcome = CheckOutcome::default();
    if !manifest.files.is_empty() {
        check_files(gguf, given, &digests.files, &manifest.files, &mut outcome);
    }
    let single = [
        (Subject::Metadata, &digests.metadata, &manifest.metadata),
        (Subject::Model, &digests.model, &manifest.model),
    ];
    for (subject, found, wanted) in single {
        if let Some((found, wanted)) = found.as_ref().zip(wanted.as_ref()) {
            let checked = if subject == Subject::Model { &mut outcome.model } else { &mut outcome.metadata };
            *checked = true;
            outcome.hashes(subject, found, wanted);
        }
    }
    if !manifest.tensors.is_empty() {
        check_tensors(gguf, digests, manifest, &mut outcome);
    }
    outcome
}

impl CheckOutcome {
    /// Whether the manifest is of other files with the same content.
    pub fn is_otherwise_split(&self) -> bool {
        let of_files = |deviation: &Deviation| {
            matches!(deviation, Deviation::Missing(Subject::File(_)) | Deviation::Extra(Subject::File(_)))
        };
        self.tensors > 0 && !self.deviations.is_empty() && self.deviations.iter().all(of_files)
    }

    fn differs(&mut self, subject: &Subject, what: &'static str, found: String, wanted: String) {
        if found != wanted {
            self.deviations.push(Deviation::Differs { subject: subject.clone(), what, found, wanted });
        }
    }

    fn hashes(&mut self, subject: Subject, found: &Digests, wanted: &Digests) {
        if let Some(algorithm) = found.conflict(wanted) {
            let hex = |digests: &Digests| digests.hex(algorithm).unwrap_or_default();
            self.differs(&subject, algorithm.name(), hex(found), hex(wanted));
        }
    }
}

fn check_files(
    gguf: &Gguf,
    given: &Path,
    digests: &[FileDigest],
    entries: &[FileEntry],
    outcome: &mut CheckOutcome,
) {
    let mut used = vec![false; entries.len()];
    for file in digests {
        let part = &gguf.parts[file.part];
        let subject = Subject::File(file_name(&part.path));
        let is_given = file_name(&part.path) == file_name(given);
        let Some(index) = entry_of(&part.path, is_given, entries) else {
            outcome.deviations.push(Deviation::Extra(subject));
            continue;
        };
        let entry = &entries[index];
        (used[index], outcome.files) = (true, outcome.files + 1);
        if let Some(bytes) = entry.bytes {
            outcome.differs(&subject, "bytes", part.file_bytes.to_string(), bytes.to_string());
        }
        outcome.hashes(subject, &file.digests, &entry.digests);
    }
    for (entry, _) in entries.iter().zip(used).filter(|(_, used)| !used) {
        match entry.is_of_model {
            true => outcome.deviations.push(Deviation::Missing(Subject::File(entry.label()))),
            false => outcome.other_files += 1,
        }
    }
}

/// The entry of a file: whose name is the end of its path, the longest such one; or, wherever the files lie
/// now, the only one of its name.
fn entry_of(path: &Path, is_given: bool, entries: &[FileEntry]) -> Option<usize> {
    fn words(path: &Path) -> Vec<Component<'_>> {
        path.components().filter(|word| matches!(word, Component::Normal(_))).collect()
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let path = words(&absolute);
    let mut same_name = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let Some(name) = &entry.name else {
            same_name.extend(is_given.then_some((0, index)));
            continue;
        };
        let name = words(Path::new(name));
        if !name.is_empty() && name.last() == path.last() {
            same_name.push((if path.ends_with(&name) { name.len() } else { 0 }, index));
        }
    }
    match same_name[..] {
        [(_, only)] => Some(only),
        _ => same_name.into_iter().filter(|(words, _)| *words > 0).max().map(|(_, index)| index),
    }
}

fn check_tensors(gguf: &Gguf, digests: &ModelDigests, manifest: &Manifest, outcome: &mut CheckOutcome) {
    let mut entries: HashMap<&str, _> = manifest.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    for found in &digests.tensors {
        let tensor = &gguf.tensors[found.index];
        let subject = Subject::Tensor(tensor.name.clone());
        let Some(entry) = entries.remove(tensor.name.as_str()) else {
            outcome.deviations.push(Deviation::Extra(subject));
            continue;
        };
        outcome.tensors += 1;
        outcome.differs(&subject, "type", tensor.ty.to_string(), entry.ty.to_string());
        outcome.differs(&subject, "shape", shape(&tensor.dims), shape(&entry.dims));
        outcome.hashes(subject, &found.digests, &entry.digests);
    }
    let missing = manifest.tensors.iter().filter(|entry| entries.contains_key(entry.name.as_str()));
    let missing = missing.map(|entry| Deviation::Missing(Subject::Tensor(entry.name.clone())));
    outcome.deviations.extend(missing);
}
