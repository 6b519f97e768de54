//! The folder of a prefix cache: files that come whole or not at all, and go when room is needed, those first
//! that have not been used for the longest time. Several processes may use it at once.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::format::Hash;
use crate::store::os::make_private_folder;

/// Names of files that are being written begin so.
const UNFINISHED: &str = ".wayinfer-";
/// A file that has not been finished for so long never will be.
const ABANDONED: Duration = Duration::from_secs(3600);

/// What the names of files end in: pages, and the identities of models.
pub const PAGE_ENDING: &str = "page";
pub const MODEL_ENDING: &str = "model";

/// Bytes that are written at a time.
const BUFFER: usize = 1 << 18;

/// See the module.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

/// A file of a cache.
struct Entry {
    path: PathBuf,
    name: String,
    bytes: u64,
    used: SystemTime,
}

/// A hash as it stands in names.
pub fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a name is one of a cache's; other files are none of its business.
fn is_name(name: &str) -> bool {
    let Some((stem, ending)) = name.split_once('.') else { return false };
    let (hash, part) = stem.split_once('-').unwrap_or((stem, "0"));
    let is_hash = hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_part = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    is_hash && is_part && (ending == PAGE_ENDING || ending == MODEL_ENDING)
}

impl Folder {
    /// A folder, which is made for its user alone where it is not there.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn open(path: &Path) -> io::Result<Folder> {
        make_private_folder(path)?;
        Ok(Folder(path.to_owned()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Bytes of a file, where there is one.
    pub fn bytes(&self, name: &str) -> Option<u64> {
        let found = self.0.join(name).symlink_metadata().ok()?;
        Some(found.len())
    }

    /// Opens a file to be read.
    ///
    /// # Errors
    /// What is no regular file, or cannot be opened.
    pub fn read(&self, name: &str) -> io::Result<File> {
        let path = self.0.join(name);
        // No link is followed, and no pipe waited for.
        if !path.symlink_metadata()?.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"));
        }
        File::open(path)
    }

    /// Writes a file, which takes the place of one of that name when it is whole.
    ///
    /// # Errors
    /// What writing says.
    pub fn write(
        &self,
        name: &str,
        write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
    ) -> io::Result<()> {
        // Its user alone may read it.
        let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.0)?;
        let mut out = BufWriter::with_capacity(BUFFER, file.as_file());
        write(&mut out)?;
        out.flush()?;
        drop(out);
        match file.persist(self.0.join(name)) {
            // Windows replaces no file that another process reads; it is the same.
            Err(_) if cfg!(windows) && self.bytes(name).is_some() => Ok(()),
            Err(error) => Err(error.error),
            Ok(_) => Ok(()),
        }
    }

    /// Marks a file as used at some time.
    pub fn touch(&self, name: &str, at: SystemTime) {
        // Nothing but the order of eviction depends on it.
        if let Ok(file) = File::options().write(true).open(self.0.join(name)) {
            let _ = file.set_modified(at);
        }
    }

    /// Removes a file, which may be gone.
    pub fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.0.join(name));
    }

    /// Removes files until so many bytes more fit the limit, those of the oldest use first; those of `spared`
    /// stay.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn make_room(&self, bytes: u64, limit: u64, spared: &HashSet<&str>) -> io::Result<()> {
        let mut entries = self.entries()?;
        let mut all = entries.iter().fold(bytes, |all, entry| all.saturating_add(entry.bytes));
        entries.sort_by_key(|entry| entry.used);
        for entry in entries.iter().filter(|entry| !spared.contains(entry.name.as_str())) {
            if all <= limit {
                break;
            }
            match fs::remove_file(&entry.path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => all -= entry.bytes,
            }
        }
        Ok(())
    }

    /// The files of the cache; what processes have begun and left behind is removed.
    fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Ok(found) = entry.metadata() else { continue };
            let used = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if name.starts_with(UNFINISHED) && used.elapsed().is_ok_and(|age| age > ABANDONED) {
                let _ = fs::remove_file(entry.path());
            } else if found.is_file() && is_name(&name) {
                entries.push(Entry { path: entry.path(), name, bytes: found.len(), used });
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(i: u8) -> String {
        format!("{}-0.{PAGE_ENDING}", hex(&[i; 32]))
    }

    fn there(folder: &Folder) -> Vec<u8> {
        (0..10).filter(|&i| folder.bytes(&name(i)).is_some()).collect()
    }

    /// A folder with files 0 to 4 of 100 bytes, used in the order 3, 1, 4, 0, 2.
    fn filled(dir: &Path) -> Folder {
        let folder = Folder::open(&dir.join("a/b")).unwrap();
        let start = SystemTime::now() - Duration::from_secs(100);
        for (second, i) in [3, 1, 4, 0, 2].into_iter().enumerate() {
            folder.write(&name(i), |out| out.write_all(&[7; 100])).unwrap();
            folder.touch(&name(i), start + Duration::from_secs(second as u64));
        }
        folder
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let folder = filled(dir.path());
        folder.make_room(0, 500, &HashSet::new()).unwrap();
        assert_eq!(there(&folder), [0, 1, 2, 3, 4], "all fit");
        folder.make_room(50, 500, &HashSet::new()).unwrap();
        assert_eq!(there(&folder), [0, 1, 2, 4]);
        folder.touch(&name(1), SystemTime::now());
        folder.make_room(100, 400, &HashSet::new()).unwrap();
        assert_eq!(there(&folder), [0, 1, 2], "the other was used since");
        folder.make_room(100, 200, &HashSet::from([name(0).as_str()])).unwrap();
        assert_eq!(there(&folder), [0], "what is spared stays");
        folder.make_room(100, 50, &HashSet::from([name(0).as_str()])).unwrap();
        assert_eq!(there(&folder), [0]);
    }

    #[test]
    fn other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = filled(dir.path());
        let long = format!("{}.txt", "0".repeat(64));
        let others = ["notes.txt", "model.gguf", &long, ".wayinfer-young"];
        for other in others {
            fs::write(folder.path().join(other), [0; 1000]).unwrap();
        }
        let old = ".wayinfer-old";
        fs::write(folder.path().join(old), [0; 1000]).unwrap();
        folder.touch(old, SystemTime::now() - 2 * ABANDONED);
        folder.make_room(0, 0, &HashSet::new()).unwrap();
        assert_eq!(there(&folder), [0u8; 0]);
        assert!(others.iter().all(|other| folder.bytes(other).is_some()));
        assert_eq!(folder.bytes(old), None, "nobody will finish it");
    }

    #[test]
    fn a_file_that_was_not_finished_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let broken = folder.write(&name(1), |out| {
            out.write_all(&[0; 1 << 20])?;
            Err(ErrorKind::StorageFull.into())
        });
        assert_eq!(broken.unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn it_is_for_its_user_alone_and_follows_no_link() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let folder = filled(dir.path());
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(folder.path()), 0o700);
        assert_eq!(mode(&folder.path().join(name(1))), 0o600);
        symlink(folder.path().join(name(1)), folder.path().join(name(9))).unwrap();
        assert!(folder.read(&name(1)).is_ok());
        assert_eq!(folder.read(&name(9)).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
