//! Removing models from the cache, and nothing that anything else there uses.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::cache::{Repo, names_in, walk};
use super::choose::{Choice, matching};
use super::name::{ModelName, Selector, is_sha256};
use super::{Hub, HubError};

/// What is to be removed.
#[derive(Debug)]
pub struct Removal {
    repo: Repo,
    /// Snapshots' files, and unfinished ones.
    files: Vec<PathBuf>,
    /// Bytes that nothing else in the cache uses.
    blobs: Vec<PathBuf>,
    /// The same in the store of all repositories.
    shared: Vec<PathBuf>,
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
    /// What a name means in the cache: without a quantisation or file all models of the repository and what
    /// is unfinished; without a revision those of all.
    ///
    /// # Errors
    /// Nothing there, or a file that is being fetched.
    pub fn removal(&self, name: &ModelName) -> Result<Removal, HubError> {
        let repo = self.cache.repo(&name.repo);
        let pointers = repo.pointers_of(name)?;
        let all = name.selector == Selector::Default && name.revision.is_none();
        let unfinished = if all { repo.unfinished()? } else { Vec::new() };
        if pointers.is_empty() && unfinished.is_empty() {
            return Err(HubError::NotCached { name: Box::new(name.clone()) });
        }
        let locks = unfinished.iter().map(|(path, _)| repo.lock_of(path, name)).collect::<Result<_, _>>()?;
        let blobs_folder = fs::canonicalize(repo.blobs()).ok();
        let used = self.links_in("snapshots", &|path| !pointers.contains(path))?;
        let (mut blobs, mut kept) = (BTreeSet::new(), 0);
        let mut bytes: u64 = unfinished.iter().map(|(_, bytes)| bytes).sum();
        for pointer in &pointers {
            match one_step(pointer) {
                // Where links cannot be made, the file itself.
                None => bytes += size(pointer),
                // Of a link that leads elsewhere only the link is ours.
                Some(blob) if blob.parent() != blobs_folder.as_deref() || used.contains(&blob) => kept += 1,
                Some(blob) => {
                    blobs.insert(blob);
                }
            }
        }
        let shared = self.shared(&blobs)?;
        for blob in &blobs {
            match one_step(blob) {
                None => bytes += size(blob),
                Some(payload) if shared.contains(&payload) => bytes += size(&payload),
                Some(_) => kept += 1,
            }
        }
        let files = pointers.into_iter().chain(unfinished.into_iter().map(|(path, _)| path)).collect();
        let blobs = blobs.into_iter().collect();
        let shared = shared.into_iter().collect();
        Ok(Removal { repo, files, blobs, shared, _locks: locks, bytes, kept })
    }

    /// Where links of the cache lead in one step: those in a folder of all repositories that are asked for.
    fn links_in(&self, kind: &str, counts: &dyn Fn(&PathBuf) -> bool) -> Result<BTreeSet<PathBuf>, HubError> {
        let folder = self.cache.folder();
        let mut found = BTreeSet::new();
        for name in names_in(folder)? {
            let links = folder.join(name).join(kind);
            let paths = walk(&links)?.into_iter().map(|path| links.join(path));
            found.extend(paths.filter(counts).filter_map(|path| one_step(&path)));
        }
        Ok(found)
    }

    /// The bytes that these blobs have in the store of all repositories, where no other has them: newer tools
    /// of the hub keep a file once, at `blobs/HA/HASH` of the cache, and link to it from each repository.
    fn shared(&self, blobs: &BTreeSet<PathBuf>) -> Result<BTreeSet<PathBuf>, HubError> {
        const MARKER: &str = ".huggingface-shared-blobs";
        let store = self.cache.folder().join("blobs");
        let is_store = fs::symlink_metadata(store.join(MARKER)).is_ok_and(|found| found.is_file());
        let Some(store) = fs::canonicalize(store).ok().filter(|_| is_store) else {
            return Ok(BTreeSet::new());
        };
        let in_store = |payload: &PathBuf| {
            let hash = payload.file_name().and_then(|name| name.to_str()).filter(|name| is_sha256(name));
            hash.is_some_and(|hash| *payload == store.join(&hash[..2]).join(hash))
        };
        let payloads: BTreeSet<_> = blobs.iter().filter_map(|blob| one_step(blob)).filter(in_store).collect();
        if payloads.is_empty() {
            return Ok(payloads);
        }
        let ours: BTreeSet<_> = blobs.iter().cloned().collect();
        let is_other = |path: &PathBuf| whole_parent(path).is_none_or(|path| !ours.contains(&path));
        let used = self.links_in("blobs", &is_other)?;
        Ok(payloads.difference(&used).cloned().collect())
    }
}

/// The same place, links of its folder resolved and not its own.
fn whole_parent(path: &Path) -> Option<PathBuf> {
    Some(fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?))
}

/// Where a link leads, if it is one: a link there is not followed on.
fn one_step(path: &Path) -> Option<PathBuf> {
    let target = fs::read_link(path).ok()?;
    whole_parent(&path.parent()?.join(target))
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}

impl Removal {
    /// Removes it, and the folders and references that lead to nothing by then.
    ///
    /// # Errors
    /// What the system says; what is gone by then stays so.
    pub fn remove(self) -> Result<(), HubError> {
        let remove = |path: &PathBuf| fs::remove_file(path).map_err(|error| HubError::io(path, error));
        self.files.iter().chain(&self.blobs).try_for_each(remove)?;
        for payload in &self.shared {
            // The hub's own tools link to it under this lock.
            let lock = payload.with_extension("lock");
            let lock = File::create(&lock).map_err(|error| HubError::io(&lock, error))?;
            let _ = lock.lock(); // some file systems know no locks
            remove(payload)?;
            let _ = fs::remove_file(payload.with_extension("refs")); // who links to it
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
    fn pointers_of(&self, name: &ModelName) -> Result<BTreeSet<PathBuf>, HubError> {
        let references = self.references()?;
        let asked = name.revision.as_ref().map(|revision| references.get(revision).unwrap_or(revision));
        let mut choices = self.choices()?;
        choices.retain(|(commit, _)| asked.is_none_or(|asked| commit == asked));
        let commits: BTreeSet<_> = choices.iter().map(|(commit, _)| commit.clone()).collect();
        let mut pointers = BTreeSet::new();
        for commit in commits {
            let models: Vec<Choice> =
                choices.iter().filter(|(of, _)| *of == commit).map(|(_, choice)| choice.clone()).collect();
            let meant = match &name.selector {
                Selector::Default => models.iter().collect(),
                selector => matching(selector, &models),
            };
            pointers
                .extend(meant.iter().flat_map(|model| &model.files).map(|path| self.pointer(&commit, path)));
        }
        Ok(pointers)
    }

    /// The lock of an unfinished file.
    fn lock_of(&self, path: &Path, name: &ModelName) -> Result<File, HubError> {
        let in_use = || HubError::InUse { name: Box::new(name.clone()) };
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
