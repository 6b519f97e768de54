//! Files that come into being whole or not at all.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::NamedTempFile;

use super::TensorFileError;

/// Where files and folders are that have been begun and not finished.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Tries to remove a folder: whoever fills it may put more there meanwhile.
const TRIES: usize = 10;

/// Removes what this process has begun to write and not finished: for a process that is about to end at once.
pub fn remove_unfinished_files() {
    for path in UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        // It may be in its place by now.
        if !path.is_dir() {
            let _ = std::fs::remove_file(path);
        }
        for _ in 0..TRIES {
            if !path.is_dir() || std::fs::remove_dir_all(path).is_ok() {
                break;
            }
        }
    }
}

/// A file or a folder among those that are not finished.
#[derive(Debug)]
pub(crate) struct Unfinished(PathBuf);

impl Unfinished {
    /// Makes it. An interrupt meanwhile waits until it is known.
    pub fn begin<T>(
        make: impl FnOnce() -> io::Result<T>,
        path: impl FnOnce(&T) -> &Path,
    ) -> io::Result<(T, Unfinished)> {
        let mut all = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
        let made = make()?;
        let path = path(&made).to_owned();
        all.push(path.clone());
        Ok((made, Unfinished(path)))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).retain(|path| *path != self.0);
    }
}

/// A file that is written beside its place and put there when it is finished. What stood there before stays
/// until then, and for good where it is not finished.
///
/// Its permissions are those of any new file, or of the file whose place it takes. What is no regular file,
/// such as a device or a pipe, keeps its place: what is finished is copied into it.
#[derive(Debug)]
pub(crate) struct NewFile {
    /// As it was asked for.
    path: PathBuf,
    /// Where that leads to.
    place: PathBuf,
    overwrite: bool,
    is_special: bool,
    /// Open until it is written.
    file: NamedTempFile<Option<File>>,
    /// Held until it is finished or given up.
    _unfinished: Unfinished,
}

impl NewFile {
    /// Begins a file.
    ///
    /// # Errors
    /// Where there is one already and `overwrite` is false, or where it cannot be written.
    pub fn create(path: &Path, overwrite: bool) -> Result<NewFile, TensorFileError> {
        if !overwrite && path.symlink_metadata().is_ok() {
            return Err(TensorFileError::Exists { path: path.to_owned() });
        }
        let place = place_of(path);
        let is_special = place.metadata().is_ok_and(|found| !found.is_file());
        let failed = |source| TensorFileError::Write { path: path.to_owned(), source };
        if place.is_dir() {
            return Err(failed(ErrorKind::IsADirectory.into()));
        }
        let folder = if is_special { std::env::temp_dir() } else { folder(&place).to_owned() };
        // Made as any file is: others may read it as far as the user's mask lets them.
        let make = |path: &Path| File::options().read(true).write(true).create_new(true).open(path).map(Some);
        let make = || tempfile::Builder::new().prefix(".wayinfer-").make_in(folder, make);
        let (file, unfinished) = Unfinished::begin(make, |file| file.path()).map_err(failed)?;
        Ok(NewFile { path: path.to_owned(), place, overwrite, is_special, file, _unfinished: unfinished })
    }

    /// Where it is until it is finished.
    pub fn temporary_path(&self) -> &Path {
        self.file.path()
    }

    /// The same, closed: for whoever writes it by its path, and perhaps puts another in
    /// its place, which Windows does with no file that is open.
    pub fn close(&mut self) -> &Path {
        *self.file.as_file_mut() = None;
        self.file.path()
    }

    fn open(&mut self) -> io::Result<&mut File> {
        self.file.as_file_mut().as_mut().ok_or_else(|| io::Error::other("it is closed"))
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// Where that cannot be done, or where a file has come into being that is not to be overwritten.
    pub fn finish(self) -> Result<(), TensorFileError> {
        let path = self.path.clone();
        self.place().map_err(|source| match source.kind() {
            ErrorKind::AlreadyExists => TensorFileError::Exists { path },
            _ => TensorFileError::Write { path, source },
        })
    }

    fn place(self) -> io::Result<()> {
        if self.is_special {
            let mut target = File::options().write(true).open(&self.place)?;
            io::copy(&mut File::open(self.file.path())?, &mut target)?;
            return target.flush();
        }
        if !self.overwrite {
            self.file.persist_noclobber(&self.place)?;
            return Ok(());
        }
        if let Ok(former) = self.place.metadata() {
            std::fs::set_permissions(self.file.path(), former.permissions())?;
        }
        self.file.persist(&self.place)?;
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.open()?.flush()
    }
}

/// Where a file is to be put: what a link leads to is replaced, not the link. On Windows in full, as far as
/// it is there: it moves files of long paths by no other. Elsewhere as it is: a path through the root of a
/// process in another namespace (`/proc/PID/root`) would lead to a folder of ours.
fn place_of(path: &Path) -> PathBuf {
    let is_link = path.symlink_metadata().is_ok_and(|found| found.is_symlink());
    if !is_link && !cfg!(windows) {
        return path.to_owned();
    }
    let in_folder = || Some(folder(path).canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(in_folder).unwrap_or_else(|| path.to_owned())
}

/// The folder that a path names a file of.
pub(super) fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, overwrite: bool, bytes: &[u8]) -> Result<(), TensorFileError> {
        let mut file = NewFile::create(path, overwrite)?;
        file.write_all(bytes).unwrap();
        file.finish()
    }

    #[test]
    fn a_file_is_replaced_when_it_is_finished_and_no_sooner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write(&path, false, b"first").unwrap();
        assert!(matches!(write(&path, false, b"second"), Err(TensorFileError::Exists { .. })));
        let mut unfinished = NewFile::create(&path, true).unwrap();
        unfinished.write_all(b"half").unwrap();
        drop(unfinished);
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        write(&path, true, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        // What came into being meanwhile stays.
        let other = dir.path().join("other");
        let late = NewFile::create(&other, false).unwrap();
        std::fs::write(&other, "mine").unwrap();
        assert!(matches!(late.finish(), Err(TensorFileError::Exists { .. })));
        assert_eq!(std::fs::read(&other).unwrap(), b"mine");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left behind");
        assert!(matches!(NewFile::create(dir.path(), true), Err(TensorFileError::Write { .. })));
    }

    /// Permissions, links and devices, which not every system has.
    #[cfg(unix)]
    #[test]
    fn permissions_links_and_devices_stay_as_they_are() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        let [usual, path, link] = ["usual", "file", "link"].map(|name| dir.path().join(name));
        std::fs::write(&usual, b"").unwrap();
        write(&path, false, b"first").unwrap();
        assert_eq!(mode(&path), mode(&usual), "as the mask of new files has it");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        symlink(&path, &link).unwrap();
        write(&link, true, b"second").unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!((std::fs::read(&path).unwrap(), mode(&path)), (b"second".to_vec(), 0o640));
        write(Path::new("/dev/null"), true, b"nothing").unwrap();
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    }
}
