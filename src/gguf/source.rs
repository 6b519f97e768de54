//! What a model is read from: files, or memory.

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// Bytes that are there as long as the program runs.
#[derive(Clone, Copy)]
pub struct StaticBytes(pub &'static [u8]);

impl Deref for StaticBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0
    }
}

impl fmt::Debug for StaticBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// A regular file that is open, and what it was like then. A model's file is opened once: what reads of it
/// later has it from here, wherever its path leads by then.
#[derive(Debug)]
pub struct OpenedFile {
    path: PathBuf,
    file: File,
    found: Metadata,
}

impl OpenedFile {
    /// Opens a regular file.
    ///
    /// # Errors
    /// What is no regular file, or cannot be opened.
    pub fn open(path: &Path) -> io::Result<OpenedFile> {
        // To open a named pipe would wait for its other end.
        check_regular(&std::fs::metadata(path)?)?;
        OpenedFile::of(File::open(path)?, path)
    }

    /// A file that is open already; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`OpenedFile::open`].
    pub fn of(file: File, path: &Path) -> io::Result<OpenedFile> {
        let found = file.metadata()?;
        check_regular(&found)?;
        Ok(OpenedFile { path: path.to_owned(), file, found })
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The handle. Its position is the header reader's: everybody else reads at places.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Bytes that it had when it was opened.
    pub fn bytes(&self) -> u64 {
        self.found.len()
    }

    /// Whether it still is what it was: told by its size and by the time of the last change to its bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] where it is shorter, [`io::ErrorKind::StaleNetworkFileHandle`] where
    /// it has been written to otherwise, or what the system says.
    pub fn check_unchanged(&self) -> io::Result<()> {
        let now = self.file.metadata()?;
        if now.len() < self.found.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Where the system knows no such time, neither has one.
        let same_time = now.modified().ok() == self.found.modified().ok();
        match same_time && now.len() == self.found.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::StaleNetworkFileHandle.into()),
        }
    }
}

fn check_regular(found: &Metadata) -> io::Result<()> {
    match found.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// What a model is read from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A file, or any one file of a split.
    File(&'a Path),
    /// A whole file in memory; `name` stands where a path would.
    Memory { name: &'a str, bytes: StaticBytes },
}

impl<'a> Source<'a> {
    /// The path, or what stands in its place.
    pub fn path(self) -> &'a Path {
        match self {
            Source::File(path) => path,
            Source::Memory { name, .. } => Path::new(name),
        }
    }
}

impl<'a, P: AsRef<Path> + ?Sized> From<&'a P> for Source<'a> {
    fn from(path: &'a P) -> Source<'a> {
        Source::File(path.as_ref())
    }
}
