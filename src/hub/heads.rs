//! The headers of files that are not there yet.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::HubError;
use crate::gguf::{Gguf, GgufError, GgufErrorKind};
use crate::verify::Unfinished;

/// Bytes of a file that are fetched first: most headers are shorter.
pub const FIRST: u64 = 4 << 20;
/// Longest header that is fetched ahead; the largest known (vocabulary, merges, 2,000 tensors) take 20 MB.
const MOST: u64 = 128 << 20;

/// Files as long as those of a model, of which only the headers are written: what reads no weights takes them
/// for the model. They are gone with this.
pub struct Heads {
    folder: TempDir,
    first: PathBuf,
    /// Where the process is interrupted, the folder goes as well.
    _unfinished: Unfinished,
}

impl Heads {
    /// None yet, in a folder below this one: the files are as large as those that will lie there.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(below: &Path) -> Result<Heads, HubError> {
        let make = || tempfile::Builder::new().prefix(".wayinfer-").tempdir_in(below);
        let begun = Unfinished::begin(make, TempDir::path);
        let (folder, unfinished) = begun.map_err(|error| HubError::io(below, error))?;
        Ok(Heads { first: folder.path().to_owned(), folder, _unfinished: unfinished })
    }

    /// The file to open; of a split the first.
    pub fn path(&self) -> &Path {
        &self.first
    }

    /// Their folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Adds a file of `bytes` bytes that is called `name`; `fetch` makes its first so many be there, and says
    /// where.
    ///
    /// # Errors
    /// What `fetch` fails with, or a header that does not end.
    pub fn add(
        &mut self,
        name: &str,
        bytes: u64,
        fetch: &mut dyn FnMut(u64) -> Result<PathBuf, HubError>,
    ) -> Result<(), HubError> {
        // By this name it is no part of a split, whose other parts would be read too.
        let path = self.folder.path().join("head");
        let fail = |error| HubError::io(&path, error);
        let mut head = File::create(&path).map_err(fail)?;
        let mut wanted = FIRST.min(bytes);
        loop {
            let from = fetch(wanted)?;
            let written = head.metadata().map_err(fail)?.len();
            let mut source = File::open(&from).map_err(|error| HubError::io(&from, error))?;
            let mut more = Vec::new();
            source
                .seek(SeekFrom::Start(written))
                .and_then(|_| source.take(wanted - written).read_to_end(&mut more))
                .map_err(|error| HubError::io(&from, error))?;
            head.write_all(&more).map_err(fail)?;
            match Gguf::open(&path) {
                Err(GgufError { kind, .. }) if is_cut_short(&kind) && wanted < bytes => {
                    if wanted >= MOST {
                        return Err(HubError::LongHeader { file: name.to_owned(), bytes: wanted });
                    }
                    wanted = (wanted * 2).min(bytes);
                }
                // What is wrong otherwise is told when all files are there.
                _ => break,
            }
        }
        // The rest is a hole, which takes no room on most file systems.
        head.set_len(bytes).map_err(fail)?;
        drop(head);
        let place = self.folder.path().join(name.rsplit('/').next().unwrap_or(name));
        fs::rename(&path, &place).map_err(|error| HubError::io(&place, error))?;
        if self.first == self.folder.path() {
            self.first = place;
        }
        Ok(())
    }
}

/// Whether a header may be whole in a longer file.
fn is_cut_short(kind: &GgufErrorKind) -> bool {
    matches!(kind, GgufErrorKind::Truncated { .. } | GgufErrorKind::CountBeyondFile { .. })
}
