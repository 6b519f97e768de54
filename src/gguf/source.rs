//! What a model is read from: files, or memory.

use std::fmt;
use std::ops::Deref;
use std::path::Path;

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
