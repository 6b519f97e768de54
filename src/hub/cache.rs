//! The cache folder, as the hub's own tools lay it out: `models--USER--REPO/blobs/HASH` holds the bytes,
//! `snapshots/COMMIT/PATH` links to them, `refs/BRANCH` says the commit; `.locks` lies beside the
//! repositories. Where links cannot be made, a snapshot has the file itself.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::choose::{Choice, choose, models};
use super::name::{ModelName, RepoName, Selector, is_commit, is_safe_path};
use super::{Hub, HubError};
use crate::store::os::link_file;

/// How deep folders of snapshots and of references go, and how many files are looked at.
const MAX_DEPTH: usize = 8;
const MAX_FILES: usize = 1_000_000;

/// The folder of all repositories.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// A repository's part of the cache; nothing of it need be there.
#[derive(Clone, Debug)]
pub struct Repo {
    pub name: RepoName,
    pub root: PathBuf,
    locks: PathBuf,
}

/// A model in the cache.
#[derive(Clone, Debug)]
pub struct CachedModel {
    /// What `-m` finds it by.
    pub name: ModelName,
    pub commit: String,
    /// As its file's name says it.
    pub quant: Option<String>,
    /// Its files, in the split's order.
    pub files: Vec<PathBuf>,
    /// Of all of them.
    pub bytes: u64,
    /// When it was last read, as far as the file system keeps that.
    pub used: Option<SystemTime>,
}

/// What has come of files that have not come whole.
#[derive(Clone, Debug)]
pub struct Unfinished {
    pub repo: RepoName,
    pub bytes: u64,
}

impl Cache {
    pub fn new(folder: PathBuf) -> Cache {
        Cache { folder }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The place of a repository.
    pub fn repo(&self, name: &RepoName) -> Repo {
        let folder = name.folder();
        Repo {
            name: name.clone(),
            root: self.folder.join(&folder),
            locks: self.folder.join(".locks").join(folder),
        }
    }

    /// The repositories that have a folder.
    ///
    /// # Errors
    /// Where the cache is there and cannot be read.
    pub fn repos(&self) -> Result<Vec<Repo>, HubError> {
        let names = names_in(&self.folder)?;
        Ok(names.iter().filter_map(|name| RepoName::of_folder(name)).map(|name| self.repo(&name)).collect())
    }
}

impl Hub {
    /// The file of a model in the cache, of a split the first. No connection is opened.
    ///
    /// # Errors
    /// None there that the name means, or several.
    pub fn cached(&self, name: &ModelName) -> Result<PathBuf, HubError> {
        self.cache.repo(&name.repo).find(name)
    }

    /// All models in the cache, and what has not come whole.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn list(&self) -> Result<(Vec<CachedModel>, Vec<Unfinished>), HubError> {
        let (mut found, mut unfinished) = (Vec::new(), Vec::new());
        for repo in self.cache.repos()? {
            let (whole, parts) = repo.models()?;
            found.extend(whole);
            let bytes = parts + repo.unfinished()?.iter().map(|(_, bytes)| bytes).sum::<u64>();
            if bytes > 0 {
                unfinished.push(Unfinished { repo: repo.name.clone(), bytes });
            }
        }
        Ok((found, unfinished))
    }
}

impl Repo {
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub fn refs(&self) -> PathBuf {
        self.root.join("refs")
    }

    /// The folder of its locks.
    pub fn locks(&self) -> &Path {
        &self.locks
    }

    /// Where a file of a commit is.
    pub fn pointer(&self, commit: &str, path: &str) -> PathBuf {
        self.snapshots().join(commit).join(path)
    }

    /// The commit that a revision is, as the cache knows it.
    fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let file = self.refs().join(revision);
        let sound = fs::metadata(&file).is_ok_and(|found| found.is_file() && found.len() <= 100);
        let text = fs::read_to_string(file).ok().filter(|_| sound)?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    fn find(&self, name: &ModelName) -> Result<PathBuf, HubError> {
        let missing = || HubError::NotCached { name: Box::new(name.clone()) };
        let commit = self.commit(name.revision()).ok_or_else(missing)?;
        let files = self.files(&commit)?;
        if files.is_empty() {
            return Err(missing());
        }
        let choice = choose(name, models(files.iter().map(String::as_str)))?;
        Ok(self.pointer(&commit, &choice.files[0]))
    }

    /// The paths within a snapshot that lead to files.
    fn files(&self, commit: &str) -> Result<Vec<String>, HubError> {
        let root = self.snapshots().join(commit);
        let mut files = walk(&root)?;
        files.retain(|path| fs::metadata(root.join(path)).is_ok_and(|found| found.is_file()));
        Ok(files)
    }

    /// The models of every snapshot, whole or not, with its commit.
    pub fn choices(&self) -> Result<Vec<(String, Choice)>, HubError> {
        let commits = names_in(&self.snapshots())?.into_iter().filter(|name| is_commit(name));
        let mut found = Vec::new();
        for commit in commits {
            let files = self.files(&commit)?;
            found.extend(models(files.iter().map(String::as_str)).into_iter().map(|c| (commit.clone(), c)));
        }
        Ok(found)
    }

    /// The references, each with its commit.
    pub fn references(&self) -> Result<BTreeMap<String, String>, HubError> {
        let named = |revision: String| self.commit(&revision).map(|commit| (revision, commit));
        Ok(walk(&self.refs())?.into_iter().filter_map(named).collect())
    }

    /// The models that are whole, and the bytes of parts of others.
    fn models(&self) -> Result<(Vec<CachedModel>, u64), HubError> {
        let references = self.references()?;
        let (mut whole, mut parts) = (Vec::new(), 0);
        for (commit, choice) in self.choices()? {
            let files: Vec<_> = choice.files.iter().map(|path| self.pointer(&commit, path)).collect();
            let found: Vec<_> = files.iter().filter_map(|file| fs::metadata(file).ok()).collect();
            let bytes = found.iter().map(fs::Metadata::len).sum();
            let used = found.iter().filter_map(|found| found.accessed().ok()).max();
            match self.name_of(&references, &commit, &choice) {
                Some(name) => {
                    whole.push(CachedModel { name, commit, quant: choice.quant, files, bytes, used });
                }
                None => parts += bytes,
            }
        }
        Ok((whole, parts))
    }

    /// The shortest name that finds this model; none where parts of it are missing.
    fn name_of(
        &self,
        references: &BTreeMap<String, String>,
        commit: &str,
        choice: &Choice,
    ) -> Option<ModelName> {
        let is_main = references.get("main").is_some_and(|main| main == commit);
        let other = references.iter().find(|(_, to)| *to == commit).map(|(name, _)| name.clone());
        let revision = if is_main { None } else { Some(other.unwrap_or_else(|| commit.to_owned())) };
        let by_file = Selector::File(choice.files[0].clone());
        let by_quant = choice.quant.clone().map(Selector::Quant);
        let place = self.pointer(commit, &choice.files[0]);
        let names = by_quant.into_iter().chain([by_file]).map(|selector| ModelName {
            repo: self.name.clone(),
            revision: revision.clone(),
            selector,
        });
        // What is read back must be this name.
        let mut names =
            names.filter(|name| name.to_string().parse().is_ok_and(|read: ModelName| read == *name));
        names.find(|name| self.find(name).is_ok_and(|found| found == place))
    }

    /// Files that have not come whole, and their bytes.
    pub fn unfinished(&self) -> Result<Vec<(PathBuf, u64)>, HubError> {
        let blobs = self.blobs();
        let names = names_in(&blobs)?.into_iter().filter(|name| name.ends_with(".incomplete"));
        let sized = |name: String| {
            let path = blobs.join(name);
            let found = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
            Some((path, found.len()))
        };
        Ok(names.filter_map(sized).collect())
    }

    /// Makes the folders that a file comes into.
    pub fn make_folders(&self) -> Result<(), HubError> {
        for folder in [&self.root, self.locks()] {
            fs::create_dir_all(folder).map_err(|error| HubError::io(folder, error))?;
        }
        make_below(&self.root, Path::new("blobs"))
    }

    /// Holds a blob's lock, which the hub's own tools hold too; `None` where another process has it.
    pub fn try_lock(&self, etag: &str) -> Result<Option<File>, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|error| HubError::io(&path, error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            // Some network's file systems know no locks; what comes is checked all the same.
            Err(TryLockError::Error(_)) => Ok(Some(file)),
        }
    }

    /// Waits for a blob's lock; `waits` is told once that it has to.
    pub fn lock(&self, etag: &str, waits: &mut dyn FnMut()) -> Result<File, HubError> {
        let mut told = false;
        loop {
            if let Some(lock) = self.try_lock(etag)? {
                return Ok(lock);
            }
            if !told {
                waits();
            }
            told = true;
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Where the bytes of a file are, if they are there whole.
    pub fn present(&self, commit: &str, path: &str, etag: &str, bytes: u64) -> Option<PathBuf> {
        let is_whole =
            |path: &PathBuf| fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == bytes);
        [self.blobs().join(etag), self.pointer(commit, path)].into_iter().find(is_whole)
    }

    /// Makes a snapshot's file lead to its blob, where it does not yet.
    pub fn place(&self, commit: &str, path: &str, etag: &str) -> Result<PathBuf, HubError> {
        let (pointer, blob) = (self.pointer(commit, path), self.blobs().join(etag));
        if !blob.is_file() || is_same(&pointer, &blob) {
            return Ok(pointer);
        }
        let folder = Path::new("snapshots").join(commit).join(path);
        make_below(&self.root, folder.parent().unwrap_or(&folder))?;
        let fail = |error| HubError::io(&pointer, error);
        match fs::remove_file(&pointer) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        let up = std::iter::repeat_n("..", path.split('/').count() + 1);
        let target: PathBuf = up.chain(["blobs", etag]).collect();
        let is_made = link_file(&target, &pointer).is_ok();
        if pointer.exists() {
            return Ok(pointer);
        }
        // Windows lets few users make links, and Wine says that it has made one: there the file itself is in
        // the snapshot.
        if is_made {
            let _ = fs::remove_file(&pointer);
        }
        fs::rename(&blob, &pointer).map_err(fail)?;
        Ok(pointer)
    }

    /// Notes which commit a revision is.
    pub fn note(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = Path::new("refs").join(revision);
        make_below(&self.root, path.parent().unwrap_or(&path))?;
        let path = self.root.join(path);
        let fail = |error| HubError::io(&path, error);
        // A link that stands there is not written through.
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink()) {
            fs::remove_file(&path).map_err(fail)?;
        }
        fs::write(&path, commit).map_err(fail)
    }
}

fn is_same(pointer: &Path, blob: &Path) -> bool {
    fs::canonicalize(pointer).ok().is_some_and(|found| fs::canonicalize(blob).is_ok_and(|blob| blob == found))
}

/// Makes folders below one that is there, none of them through a link.
fn make_below(root: &Path, folders: &Path) -> Result<(), HubError> {
    let mut path = root.to_owned();
    for part in folders.components() {
        let Component::Normal(part) = part else {
            return Err(HubError::io(&path, ErrorKind::InvalidInput.into()));
        };
        path.push(part);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(HubError::Link { path }),
            Err(_) => fs::create_dir(&path)
                .or_else(|error| if path.is_dir() { Ok(()) } else { Err(error) })
                .map_err(|error| HubError::io(&path, error))?,
        }
    }
    Ok(())
}

/// The names in a folder, sorted, those that are no UTF-8 left out; none where there is no folder.
pub fn names_in(folder: &Path) -> Result<Vec<String>, HubError> {
    let fail = |error: io::Error| HubError::io(folder, error);
    let entries = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries.map_err(fail)?,
    };
    let mut names = Vec::new();
    for entry in entries.take(MAX_FILES) {
        names.extend(entry.map_err(fail)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// The paths of what lies below a folder and is no folder; links to folders are not entered.
pub fn walk(root: &Path) -> Result<Vec<String>, HubError> {
    let (mut found, mut folders) = (Vec::new(), vec![(String::new(), 0)]);
    while let Some((folder, depth)) = folders.pop() {
        for name in names_in(&root.join(&folder))? {
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let Ok(kind) = fs::symlink_metadata(root.join(&path)) else { continue };
            if kind.is_dir() && depth < MAX_DEPTH {
                folders.push((path, depth + 1));
            } else if !kind.is_dir() && is_safe_path(&path) && found.len() < MAX_FILES {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
