//! Compiled programs on disk: to compile the kernels takes seconds, at every start.
//!
//! A file is named by a hash of all that its program depends on, and begins with a hash of its bytes; what
//! does not match is compiled anew. A folder that cannot be read or written costs that time and nothing else.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use etcetera::BaseStrategy;

use super::DeviceInfo;

const SUFFIX: &str = ".program";
/// How many are kept, and the most bytes that one may have.
const MOST_KEPT: usize = 16;
const MOST_BYTES: u64 = 256 << 20;

/// The folder of compiled programs, if there is to be one.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: Option<PathBuf>,
}

/// All that a compiled program depends on.
pub(super) struct ProgramKey(blake3::Hash);

impl ProgramKey {
    pub(super) fn new(info: &DeviceInfo, options: &str, source: &str) -> ProgramKey {
        let mut hasher = blake3::Hasher::new();
        for text in [env!("CARGO_PKG_VERSION"), info.api.name(), &info.name, &info.driver, options, source] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        ProgramKey(hasher.finalize())
    }
}

impl Programs {
    /// None are kept.
    pub fn nowhere() -> Programs {
        Programs { folder: None }
    }

    pub fn within(folder: PathBuf) -> Programs {
        Programs { folder: Some(folder) }
    }

    /// In the user's folder of what programs keep for themselves.
    pub fn of_user() -> Programs {
        let strategy = etcetera::choose_base_strategy().ok();
        Programs { folder: strategy.map(|strategy| strategy.cache_dir().join("wayinfer").join("programs")) }
    }

    fn path(&self, key: &ProgramKey) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{}{SUFFIX}", key.0.to_hex())))
    }

    /// The program, if it is there as it was put.
    pub(super) fn get(&self, key: &ProgramKey) -> Option<Vec<u8>> {
        let path = self.path(key)?;
        let mut bytes = Vec::new();
        File::open(path).ok()?.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
        let (hash, program) = bytes.split_first_chunk::<32>()?;
        (blake3::hash(program) == *hash).then(|| program.to_vec())
    }

    /// Keeps a program, and no more than so many.
    pub(super) fn put(&self, key: &ProgramKey, program: &[u8]) {
        if let (Some(folder), Some(path)) = (&self.folder, self.path(key))
            && (program.len() as u64) < MOST_BYTES - 32
            && write(folder, &path, program).is_some()
        {
            keep_newest(folder);
        }
    }
}

/// Other processes see the file as a whole or not at all.
fn write(folder: &Path, path: &Path, program: &[u8]) -> Option<()> {
    fs::create_dir_all(folder).ok()?;
    let mut file = tempfile::Builder::new().prefix("new-").suffix(SUFFIX).tempfile_in(folder).ok()?;
    file.write_all(blake3::hash(program).as_bytes()).ok()?;
    file.write_all(program).ok()?;
    file.persist(path).ok().map(drop)
}

fn keep_newest(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let ours = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().ends_with(SUFFIX));
    let written = |entry: &fs::DirEntry| entry.metadata().and_then(|of| of.modified());
    let mut files: Vec<_> =
        ours.map(|entry| (written(&entry).unwrap_or(SystemTime::UNIX_EPOCH), entry.path())).collect();
    files.sort();
    for (_, path) in files.iter().rev().skip(MOST_KEPT) {
        let _ = fs::remove_file(path); // another process may have done it
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::info;
    use super::*;

    #[test]
    fn a_program_is_had_as_it_was_put_and_only_so() {
        let folder = tempfile::tempdir().unwrap();
        let programs = Programs::within(folder.path().join("a").join("b"));
        let key = ProgramKey::new(&info("card"), "-x", "source");
        assert_eq!(programs.get(&key), None);
        programs.put(&key, b"machine code");
        assert_eq!(programs.get(&key).as_deref(), Some(&b"machine code"[..]));
        let others = [("card", "-y", "source"), ("card", "-x", "other"), ("cards", "-x", "source")];
        for (name, options, source) in others {
            assert_eq!(programs.get(&ProgramKey::new(&info(name), options, source)), None);
        }
        // Not one bit may differ, nor a byte be missing.
        let path = programs.path(&key).unwrap();
        let whole = fs::read(&path).unwrap();
        for i in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[i] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert_eq!(programs.get(&key), None, "byte {i}");
            fs::write(&path, &whole[..i]).unwrap();
            assert_eq!(programs.get(&key), None, "{i} bytes");
        }
        programs.put(&key, b"machine code");
        assert!(programs.get(&key).is_some(), "it is written anew");
    }

    #[test]
    fn so_many_are_kept_and_other_files_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let programs = Programs::within(folder.path().to_owned());
        fs::write(folder.path().join("other"), "of somebody").unwrap();
        let key = |i: usize| ProgramKey::new(&info("card"), "", &i.to_string());
        for i in 0..MOST_KEPT + 3 {
            programs.put(&key(i), &[0; 100]);
            let path = programs.path(&key(i)).unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + i as u64);
            File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        }
        let kept: Vec<_> = (0..MOST_KEPT + 3).filter(|i| programs.get(&key(*i)).is_some()).collect();
        assert_eq!(kept, (3..MOST_KEPT + 3).collect::<Vec<_>>());
        assert!(folder.path().join("other").exists());
    }

    #[test]
    fn where_nothing_can_be_kept_nothing_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        for programs in [Programs::nowhere(), Programs::within(folder.path().join("file"))] {
            let key = ProgramKey::new(&info("card"), "", "");
            programs.put(&key, b"code");
            assert_eq!(programs.get(&key), None);
        }
    }
}
