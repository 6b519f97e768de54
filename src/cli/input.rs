//! Texts and ids that a user gives in a file or through standard input.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::CliError;

/// Most bytes that are read: what a tokenizer takes at most. It ends the reading of what has no end.
const MAX_BYTES: u64 = 1 << 30;

/// Where a text comes from.
#[derive(Debug)]
pub enum Input<'a> {
    File(&'a Path),
    Stdin,
}

impl Input<'_> {
    /// A file, or standard input where none is given.
    pub fn of(file: Option<&PathBuf>) -> Input<'_> {
        file.map_or(Input::Stdin, |path| Input::File(path))
    }

    /// What errors call it.
    fn name(&self) -> &Path {
        match self {
            Input::File(path) => path,
            Input::Stdin => Path::new("standard input"),
        }
    }

    /// All bytes.
    ///
    /// # Errors
    /// What cannot be read, or has over 1 GiB.
    pub fn bytes(&self) -> Result<Vec<u8>, CliError> {
        let mut bytes = Vec::new();
        let read = match self {
            Input::File(path) => File::open(path).and_then(|f| f.take(MAX_BYTES + 1).read_to_end(&mut bytes)),
            Input::Stdin => io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut bytes),
        };
        match read {
            Err(error) => Err(CliError::new(format!("cannot be read: {error}")).in_file(self.name())),
            Ok(n) if n as u64 > MAX_BYTES => {
                Err(CliError::new(format!("has over {MAX_BYTES} bytes")).in_file(self.name()))
            }
            Ok(_) => Ok(bytes),
        }
    }

    /// All bytes as text, a newline at the end included.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes), and what is not UTF-8, with the place.
    pub fn text(&self) -> Result<String, CliError> {
        String::from_utf8(self.bytes()?).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            CliError::new(format!("not UTF-8 at byte {at}")).in_file(self.name())
        })
    }

    /// All bytes as little-endian 32-bit ids, of which there is at least one.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes), and a number of bytes that is no whole number of ids.
    pub fn ids(&self) -> Result<Vec<u32>, CliError> {
        let bytes = self.bytes()?;
        let problem = match bytes.as_chunks::<4>() {
            ([], []) => "is empty, where token ids are needed".to_owned(),
            (ids, []) => return Ok(ids.iter().map(|&id| u32::from_le_bytes(id)).collect()),
            _ => format!("{} bytes are no whole number of 32-bit ids", bytes.len()),
        };
        Err(CliError::new(problem).in_file(self.name()))
    }
}
