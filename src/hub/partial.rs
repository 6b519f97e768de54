//! A blob that is on its way: `HASH.incomplete`, as the hub's own tools call it.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::HubError;

/// Bytes that are read at a time.
pub const CHUNK: usize = 256 << 10;

/// Its bytes so far are the first of the file, if they are the file's at all: only the hash says that.
pub struct Partial {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// Bytes that were there before.
    found: u64,
    hash: Sha256,
    /// How many bytes it is of.
    hashed: u64,
    /// Held until it is in its place.
    _lock: File,
}

impl Partial {
    /// Goes on with what is there, which has `most` bytes at the most.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path, most: u64, lock: File) -> Result<Partial, HubError> {
        let fail = |error| HubError::io(path, error);
        // A link could lead to any file of the user.
        match fs::symlink_metadata(path) {
            Ok(found) if !found.is_file() => fs::remove_file(path).map_err(fail)?,
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        let file = File::options().read(true).append(true).create(true).open(path).map_err(fail)?;
        let found = file.metadata().map_err(fail)?.len();
        let mut partial = Partial {
            path: path.to_owned(),
            file,
            bytes: found,
            found,
            hash: Sha256::new(),
            hashed: 0,
            _lock: lock,
        };
        if found > most {
            partial.restart()?;
        }
        Ok(partial)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether some of them were there before.
    pub fn is_resumed(&self) -> bool {
        self.found > 0
    }

    /// Adds what follows.
    ///
    /// # Errors
    /// What the system says: a full disk, say. What is there by then stays.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(|error| HubError::io(&self.path, error))?;
        if self.hashed == self.bytes {
            self.hash.update(bytes);
            self.hashed += bytes.len() as u64;
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Drops all bytes.
    ///
    /// # Errors
    /// What the system says.
    pub fn restart(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).map_err(|error| HubError::io(&self.path, error))?;
        (self.bytes, self.found, self.hashed, self.hash) = (0, 0, 0, Sha256::new());
        Ok(())
    }

    /// Hashes what was there before; `tell` has the bytes that are done.
    ///
    /// # Errors
    /// What the system says.
    pub fn hash_what_is_there(&mut self, tell: &mut dyn FnMut(u64)) -> Result<(), HubError> {
        let fail = |error| HubError::io(&self.path, error);
        self.file.seek(SeekFrom::Start(self.hashed)).map_err(fail)?;
        let mut buffer = vec![0; CHUNK];
        while self.hashed < self.bytes {
            let room = (self.bytes - self.hashed).min(CHUNK as u64) as usize;
            match self.file.read(&mut buffer[..room]).map_err(fail)? {
                0 => return Err(fail(ErrorKind::UnexpectedEof.into())),
                n => {
                    self.hash.update(&buffer[..n]);
                    self.hashed += n as u64;
                    tell(self.hashed);
                }
            }
        }
        Ok(())
    }

    /// The SHA-256 of all bytes.
    ///
    /// # Errors
    /// What the system says.
    pub fn sha256(&mut self) -> Result<String, HubError> {
        self.hash_what_is_there(&mut |_| ())?;
        Ok(self.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Puts it in its place, whole.
    ///
    /// # Errors
    /// What the system says.
    pub fn place(self, blob: &Path) -> Result<(), HubError> {
        // Its name says that its bytes are checked: after a power cut as well.
        self.file.sync_all().map_err(|error| HubError::io(&self.path, error))?;
        let Partial { path, file, _lock, .. } = self;
        drop(file); // Windows renames no file that is open
        fs::rename(&path, blob).map_err(|error| HubError::io(blob, error))
    }

    /// Removes it.
    pub fn remove(self) {
        let Partial { path, file, _lock, .. } = self;
        drop(file);
        let _ = fs::remove_file(path); // what is left there is gone on with
    }
}
