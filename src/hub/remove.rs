//! Removing models from the cache, and nothing that anything else there uses.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::cache::{Repo, names_in, walk};
use super::choose::{Choice, matching};
use super::name::{ModelName, Selector};
use super::{Hub, HubError};

/// What is to be removed.
#[derive(Debug)]
pub struct Removal {
    repo: Repo,
    /// Snapshots' files, and unfinished ones.
    files: Vec<PathBuf>,
    /// Bytes that nothing else in the cache uses.
    blobs: Vec<PathBuf>,
    /// Of what is unfinished: held until it is gone.
    _locks: Vec<File>,
    bytes: u64,
    kept: usize,
}

impl Removal {
    /// The snapshots' files and unfinished ones.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Bytes that will be free.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Files whose bytes stay, as others in the cache use them.
    pub fn kept(&self) -> usize {
        self.kept
    }
}

impl Hub {
    /// What a name means in the cache: without a quantisation or file all models of the repository and what is
    /// unfinished; without a revision those of all.
    ///
    /// # Errors
    /// Nothing there, or a file that is being fetched.
    pub fn removal(&self, name: &ModelName) -> Result<Removal, HubError> {
        let repo = self.cache.repo(&name.repo);
        let pointers = repo.pointers_of(name)?;
        let all = name.selector == Selector::Default && name.revision.is_none();
        let unfinished = if all { repo.unfinished()? } else { Vec::new() };
        if pointers.is_empty() && unfinished.is_empty() {
            return Err(HubError::NotCached { name: name.clone() });
        }
        let locks = unfinished.iter().map(|(path, _)| repo.lock_of(path, name)).collect::<Result<_, _>>()?;
        let used = self.used_beside(&pointers)?;
        let blobs_folder = fs::canonicalize(repo.blobs()).ok();
        let (mut blobs, mut kept) = (BTreeSet::new(), 0);
        let mut bytes = unfinished.iter().map(|(_, bytes)| bytes).sum();
        for pointer in &pointers {
            let Ok(target) = fs::canonicalize(pointer) else { continue };
            let is_link = fs::symlink_metadata(pointer).is_ok_and(|found| found.is_symlink());
            // Of a link that leads elsewhere only the link is ours.
            let is_ours = !is_link || target.parent() == blobs_folder.as_deref();
            if !is_ours || used.contains(&target) {
                kept += 1;
            } else if !is_link || blobs.insert(target.clone()) {
                bytes += fs::metadata(&target).map_or(0, |found| found.len());
            }
        }
        let files = pointers.into_iter().chain(unfinished.into_iter().map(|(path, _)| path)).collect();
        Ok(Removal { repo, files, blobs: blobs.into_iter().collect(), _locks: locks, bytes, kept })
    }

    /// Where all other links of the cache's snapshots lead.
    fn used_beside(&self, pointers: &[PathBuf]) -> Result<BTreeSet<PathBuf>, HubError> {
        let folder = self.cache.folder();
        let mut used = BTreeSet::new();
        for name in names_in(folder)? {
            let snapshots = folder.join(name).join("snapshots");
            let others = walk(&snapshots)?.into_iter().map(|path| snapshots.join(path));
            used.extend(others.filter(|path| !pointers.contains(path)).filter_map(|path| fs::canonicalize(path).ok()));
        }
        Ok(used)
    }
}

impl Removal {
    /// Removes it, and the folders and references that lead to nothing by then.
    ///
    /// # Errors
    /// What the system says; what is gone by then stays so.
    pub fn remove(self) -> Result<(), HubError> {
        for path in self.files.iter().chain(&self.blobs) {
            fs::remove_file(path).map_err(|error| HubError::io(path, error))?;
        }
        let snapshots = self.repo.snapshots();
        for file in &self.files {
            remove_empty(file.parent(), &snapshots);
        }
        for (reference, commit) in self.repo.references()? {
            if !snapshots.join(commit).exists() {
                let path = self.repo.refs().join(reference);
                fs::remove_file(&path).map_err(|error| HubError::io(&path, error))?;
                remove_empty(path.parent(), &self.repo.refs());
            }
        }
        self.repo.remove_if_unused();
        Ok(())
    }
}

impl Repo {
    /// The snapshots' files that a name means.
    fn pointers_of(&self, name: &ModelName) -> Result<Vec<PathBuf>, HubError> {
        let references = self.references()?;
        let asked = name.revision.as_ref().map(|revision| references.get(revision).unwrap_or(revision));
        let mut choices = self.choices()?;
        choices.retain(|(commit, _)| asked.is_none_or(|asked| commit == asked));
        let commits: BTreeSet<_> = choices.iter().map(|(commit, _)| commit.clone()).collect();
        let mut pointers = Vec::new();
        for commit in commits {
            let models: Vec<Choice> =
                choices.iter().filter(|(of, _)| *of == commit).map(|(_, choice)| choice.clone()).collect();
            let meant = match &name.selector {
                Selector::Default => models.iter().collect(),
                selector => matching(selector, &models),
            };
            pointers.extend(meant.iter().flat_map(|model| &model.files).map(|path| self.pointer(&commit, path)));
        }
        Ok(pointers)
    }

    /// The lock of an unfinished file.
    fn lock_of(&self, path: &Path, name: &ModelName) -> Result<File, HubError> {
        let in_use = || HubError::InUse { name: name.clone() };
        let etag = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        fs::create_dir_all(self.locks()).map_err(|error| HubError::io(self.locks(), error))?;
        self.try_lock(etag)?.ok_or_else(in_use)
    }

    /// Removes the repository's folders where no snapshot and no blob is left.
    fn remove_if_unused(&self) {
        let is_empty = |folder: &Path| names_in(folder).is_ok_and(|names| names.is_empty());
        if !is_empty(&self.snapshots()) || !is_empty(&self.blobs()) {
            return;
        }
        // What stays behind of this is for the next time.
        for folder in [self.snapshots(), self.blobs(), self.refs(), self.root.join(".no_exist")] {
            let _ = fs::remove_dir_all(folder);
        }
        let _ = fs::remove_dir(&self.root);
        let _ = fs::remove_dir_all(self.locks());
    }
}

/// Removes folders that are empty, up to one that stays.
fn remove_empty(folder: Option<&Path>, top: &Path) {
    let mut folder = folder;
    while let Some(path) = folder.filter(|path| path.starts_with(top) && *path != top) {
        if fs::remove_dir(path).is_err() {
            return;
        }
        folder = path.parent();
    }
}
