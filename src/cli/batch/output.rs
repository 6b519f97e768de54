//! The answers of a batch: lines that are added to a file, or to what an earlier run has left there.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::cli::output::tell;
use crate::cli::output_file::refuse_model_file;
use crate::cli::{CliError, safe_text};
use crate::gguf::Gguf;
use crate::server::batch;
use crate::store::same_file;

/// Bytes of the longest line that is looked for the end of.
const MAX_LINE: u64 = 1 << 30;

/// See the module.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    to: To,
    /// Names of what is answered already.
    done: HashSet<String>,
}

#[derive(Debug)]
enum To {
    Stdout,
    /// A device or a pipe: what was written is gone.
    Special(File),
    /// A file, locked as long as it is open, of so many bytes of whole lines.
    File(File, u64),
}

impl Output {
    /// Opens a file and reads what it holds; what was not written whole is cut off. `-` is standard output.
    ///
    /// # Errors
    /// The requests' file or one of the model's; one that another run has; one that holds anything else.
    pub fn open(path: &Path, questions: &Path, gguf: &Gguf) -> Result<Output, CliError> {
        let new = |to| Output { path: path.to_owned(), to, done: HashSet::new() };
        if path == Path::new("-") {
            return Ok(new(To::Stdout));
        }
        refuse_model_file(gguf, path)?;
        if same_file(path, questions) {
            return Err(CliError::new("the requests are in it").in_file(path));
        }
        let failed = |error| named(path, "cannot be written", &error);
        if path.metadata().is_ok_and(|found| !found.is_file() && !found.is_dir()) {
            return Ok(new(To::Special(File::options().write(true).open(path).map_err(failed)?)));
        }
        let mut options = File::options();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        match file.try_lock() {
            // Some network's file systems know no locks.
            Ok(()) | Err(TryLockError::Error(_)) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(CliError::new("another run adds to it").in_file(path));
            }
        }
        let (done, end) = read(&mut file, path)?;
        file.seek(SeekFrom::Start(end)).map_err(failed)?;
        Ok(Output { done, ..new(To::File(file, end)) })
    }

    /// Names of what was answered before.
    pub fn done(&self) -> &HashSet<String> {
        &self.done
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to call it.
    pub fn name(&self) -> String {
        match self.to {
            To::Stdout => "standard output".to_owned(),
            _ => safe_text::escape(&self.path.to_string_lossy()).into_owned(),
        }
    }

    /// Adds a line, whole or not at all.
    ///
    /// # Errors
    /// What the system says.
    pub fn add(&mut self, line: &str) -> Result<(), CliError> {
        let wrote = match &mut self.to {
            To::Stdout => {
                let mut out = io::stdout().lock();
                return Ok(out.write_all(line.as_bytes()).and_then(|()| out.flush())?);
            }
            To::Special(file) => file.write_all(line.as_bytes()),
            To::File(file, end) => match file.write_all(line.as_bytes()) {
                Ok(()) => {
                    *end += line.len() as u64;
                    Ok(())
                }
                Err(error) => {
                    // The next run would do the same.
                    let _ = file.set_len(*end);
                    Err(error)
                }
            },
        };
        wrote.map_err(|error| named(&self.path, "cannot be written", &error))
    }

    /// Waits until all of it is on the disk.
    ///
    /// # Errors
    /// What the system says.
    pub fn finish(&mut self) -> Result<(), CliError> {
        match &self.to {
            To::File(file, _) => {
                file.sync_all().map_err(|error| named(&self.path, "cannot be written", &error))
            }
            To::Stdout | To::Special(_) => Ok(()),
        }
    }
}

/// An error of the system, with what it is about.
fn named(path: &Path, what: &str, error: &io::Error) -> CliError {
    CliError::new(format!("{what}: {error}")).in_file(path)
}

/// The names in a file of answers, and the bytes of its whole lines.
fn read(file: &mut File, path: &Path) -> Result<(HashSet<String>, u64), CliError> {
    let failed = |error| named(path, "cannot be read", &error);
    let others = |number: usize| {
        let what = format!("line {number} is no answer of a batch: the file is left as it is");
        CliError::new(what).in_file(path).hint("name another file for the answers")
    };
    let (mut done, mut end, mut torn) = (HashSet::new(), 0, false);
    let mut reader = BufReader::new(&*file);
    // A file of something else may be large, and be one line.
    if !batch::is_torn(reader.fill_buf().map_err(failed)?) {
        return Err(others(1));
    }
    let (mut line, mut unfinished) = (Vec::new(), false);
    for number in 1.. {
        line.clear();
        let n = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(failed)?;
        if n == 0 {
            break;
        }
        let is_whole = line.ends_with(b"\n");
        match batch::answered(&line) {
            Some(id) => {
                done.insert(id);
                end += n as u64;
                unfinished = !is_whole;
            }
            None if !is_whole && (n as u64) < MAX_LINE && batch::is_torn(&line) => torn = true,
            None => return Err(others(number)),
        }
    }
    if torn {
        tell!(
            "{}: its last line was not written whole, and is cut off",
            safe_text::escape(&path.to_string_lossy())
        );
        file.set_len(end).map_err(failed)?;
    }
    if unfinished {
        file.seek(SeekFrom::Start(end)).and_then(|_| file.write_all(b"\n")).map_err(failed)?;
        end += 1;
    }
    Ok((done, end))
}
