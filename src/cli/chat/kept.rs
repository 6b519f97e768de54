//! Conversations that are kept in the user's data folder, and the lines that were typed.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use jiff::Zoned;

use super::Args;
use crate::cli::CliError;
use crate::cli::output::tell;
use crate::store::os::make_private_folder;
use crate::text::Transcript;
use crate::verify::NewFile;

/// Bytes of a conversation's name at most.
const MAX_NAME: usize = 100;
const ENDING: &str = "jsonl";

/// Where a conversation is kept, if it is.
#[derive(Debug, Default)]
pub struct Kept {
    /// Of the program, in the user's data folder.
    folder: Option<PathBuf>,
    /// The conversation's.
    file: Option<PathBuf>,
    /// Whether the file is this conversation's: nothing else is replaced.
    ours: bool,
    /// Whether the last exchange could not be kept, and that has been told.
    failing: bool,
    /// What the file holds already.
    pub transcript: Option<Transcript>,
}

impl Kept {
    /// As the arguments ask for.
    ///
    /// # Errors
    /// A conversation that cannot be read, or is to be gone on with where there is none.
    pub fn open(args: &Args) -> Result<Kept, CliError> {
        let nothing = Kept::default();
        if args.no_history {
            return Ok(nothing);
        }
        let folder = match data_folder() {
            Ok(folder) => folder,
            // Nobody has asked for it.
            Err(error) if args.resume.is_none() => {
                tell!("warning: nothing is kept: {error}");
                return Ok(nothing);
            }
            Err(error) => return Err(CliError::new(format!("conversations cannot be kept: {error}"))),
        };
        let chats = folder.join("chats");
        let file = match &args.resume {
            // The first exchange is what makes it worth a file.
            None => unused(&chats),
            Some(None) => newest(&chats)?,
            Some(Some(name)) => chats.join(format!("{}.{ENDING}", checked(name)?)),
        };
        let transcript = if file.exists() { Some(read(&file)?) } else { None };
        let ours = transcript.is_some();
        Ok(Kept { folder: Some(folder), file: Some(file), ours, failing: false, transcript })
    }

    /// The file of the lines that were typed.
    pub fn typed(&self) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join("typed.txt"))
    }

    /// The folder for what is computed of conversations.
    pub fn prefixes(&self) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join("prefixes"))
    }

    /// The name to resume the conversation by.
    pub fn name(&self) -> Option<&str> {
        self.file.as_ref()?.file_stem()?.to_str()
    }

    /// Does not keep what comes: nobody sits there who could go on with it.
    pub fn forget(&mut self) {
        *self = Kept::default();
    }

    /// What comes is another conversation, under another name.
    pub fn begin_anew(&mut self) {
        self.ours = false;
        if let Some(file) = &mut self.file {
            *file = unused(file.parent().unwrap_or(Path::new("")));
        }
    }

    /// Keeps the conversation as it is now. Where that cannot be done, what was kept before stays, and every
    /// exchange tries again: a full disk may be emptied. It is told once.
    pub fn keep(&mut self, model: &str, transcript: &Transcript) {
        let Some(file) = &mut self.file else { return };
        // Another conversation of this second has taken the name.
        if !self.ours && file.exists() {
            *file = unused(file.parent().unwrap_or(Path::new("")));
        }
        let kept = file.parent().map_or(Ok(()), make_private_folder).map_err(CliError::from);
        match kept.and_then(|()| write(file, self.ours, model, transcript)) {
            Ok(()) => {
                self.ours = true;
                if std::mem::take(&mut self.failing) {
                    tell!("the conversation is kept again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tell!("warning: the conversation is not kept");
                    let _ = error.report();
                }
            }
        }
    }
}

/// Reads a conversation.
///
/// # Errors
/// What cannot be read, or is no conversation.
pub fn read(file: &Path) -> Result<Transcript, CliError> {
    let open =
        File::open(file).map_err(|error| CliError::new(format!("cannot be read: {error}")).in_file(file))?;
    Transcript::read(BufReader::new(open)).map_err(|error| CliError::new(error.to_string()).in_file(file))
}

/// Writes a conversation, whole or not at all.
///
/// # Errors
/// A file that is there and may not be replaced, or that cannot be written.
pub fn write(file: &Path, overwrite: bool, model: &str, transcript: &Transcript) -> Result<(), CliError> {
    let mut out = BufWriter::new(NewFile::create(file, overwrite)?);
    let written = transcript.write(model, &mut out).and_then(|()| out.flush());
    written.map_err(|error| CliError::new(format!("cannot be written: {error}")).in_file(file))?;
    let (file, _) = out.into_parts();
    Ok(file.finish()?)
}

/// The program's part of the user's data folder.
fn data_folder() -> Result<PathBuf, etcetera::HomeDirError> {
    let folder = etcetera::choose_base_strategy()?.data_dir().join("wayinfer");
    Ok(folder)
}

/// A name that is one file in the folder on every system.
fn checked(name: &str) -> Result<&str, CliError> {
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
    if name.ends_with(".gguf") {
        let error = CliError::usage(format!("--resume {name}: a conversation's name, not a model's"));
        return Err(error.hint(format!("-m {name}, or MODEL before --resume, names the model")));
    }
    if name.is_empty() || name.len() > MAX_NAME || name.starts_with(['.', ' ']) || !name.chars().all(fits) {
        return Err(CliError::usage(format!(
            "--resume {name}: a name has letters, digits, '-', '_', '.' and spaces, {MAX_NAME} bytes at most"
        )));
    }
    if is_device(name) {
        return Err(CliError::usage(format!("--resume {name}: a device on Windows, not a name of a file")));
    }
    Ok(name)
}

/// Whether Windows takes it for a device, whatever stands behind the first dot.
fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_lowercase();
    let numbered = stem.strip_prefix("com").or_else(|| stem.strip_prefix("lpt"));
    matches!(stem.as_str(), "con" | "prn" | "aux" | "nul")
        || numbered.is_some_and(|n| n.len() == 1 && ("1"..="9").contains(&n))
}

/// A file of the moment that is not there yet.
fn unused(chats: &Path) -> PathBuf {
    let now = Zoned::now().strftime("%Y-%m-%d-%H%M%S").to_string();
    let names = std::iter::once(now.clone()).chain((2..).map(|n| format!("{now}-{n}")));
    let mut files = names.map(|name| chats.join(format!("{name}.{ENDING}")));
    files.find(|file| !file.exists()).expect("there are names without end")
}

/// The conversation that was kept last.
fn newest(chats: &Path) -> Result<PathBuf, CliError> {
    let entries = fs::read_dir(chats).into_iter().flatten().flatten().map(|entry| entry.path());
    let of_chats = entries.filter(|path| path.extension().is_some_and(|ending| ending == ENDING));
    let dated = of_chats.filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)));
    let newest = dated.max().map(|(_, path)| path);
    newest.ok_or_else(|| CliError::new(format!("no conversation is kept in {}", chats.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_the_conversations_own_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.jsonl");
        fs::write(&file, "another's").unwrap();
        let mut kept = Kept { file: Some(file.clone()), ..Kept::default() };
        kept.keep("m", &Transcript::default());
        assert_eq!(fs::read_to_string(&file).unwrap(), "another's");
        let name = kept.name().unwrap().to_owned();
        assert_ne!(name, "a");
        // Its own is replaced.
        let system = Transcript { system: Some("Be brief.".to_owned()), exchanges: Vec::new() };
        kept.keep("m", &system);
        assert_eq!(kept.name(), Some(name.as_str()));
        assert_eq!(read(kept.file.as_ref().unwrap()).unwrap(), system);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        kept.begin_anew();
        kept.keep("m", &system);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn names_are_one_file() {
        for name in ["a", "work 2.1", "Ünïcode-_x", "console", "com", "com10"] {
            assert!(checked(name).is_ok(), "{name}");
        }
        let devices = ["Con", "nul.x", "lpt1 .x"];
        let long = "a".repeat(101);
        let others = ["", ".", "../a", "a/b", "a\\b", ".hidden", "a\0", "c:x", "m.gguf", &long];
        for name in devices.into_iter().chain(others) {
            assert!(checked(name).is_err(), "{name:?}");
        }
    }
}
