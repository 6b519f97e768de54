//! The models of a folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::cli::CliError;
use crate::server::Listed;

/// A model, and the file to open.
#[derive(Clone, Debug)]
pub struct Entry {
    pub listed: Listed,
    pub path: PathBuf,
}

/// All GGUF files of a folder, a split model as one, in the order of their names.
///
/// # Errors
/// Where the folder cannot be read.
pub fn entries(folder: &Path) -> Result<Vec<Entry>, CliError> {
    let failed = |error: std::io::Error| CliError::from(error).in_file(folder);
    let mut entries: Vec<Entry> = Vec::new();
    for found in fs::read_dir(folder).map_err(failed)? {
        let path = found.map_err(failed)?.path();
        let is_gguf = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
        let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()).filter(|_| is_gguf) else {
            continue;
        };
        let Ok(file) = path.metadata() else { continue };
        if !file.is_file() {
            continue;
        }
        let (name, part) = split_name(stem);
        match entries.iter_mut().find(|entry| entry.listed.name == name) {
            Some(entry) => {
                entry.listed.file_bytes += file.len();
                if part == 1 {
                    entry.path = path;
                }
            }
            None => entries.push(entry(name.to_owned(), path, &file)),
        }
    }
    entries.sort_by(|a, b| a.listed.name.cmp(&b.listed.name));
    Ok(entries)
}

/// A model of this name.
pub fn entry(name: String, path: PathBuf, file: &fs::Metadata) -> Entry {
    let since = file.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let created = since.map_or(0, |since| since.as_secs());
    Entry { listed: Listed { name, file_bytes: file.len(), created }, path }
}

/// The name of a model whose file is called so, and which part of it that is: `NAME-00001-of-00003`.
fn split_name(stem: &str) -> (&str, usize) {
    let parts = || {
        let (rest, of) = stem.rsplit_once("-of-")?;
        let (name, part) = rest.rsplit_once('-')?;
        let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        (is_number(of) && is_number(part)).then(|| (name, part.parse().unwrap_or(1)))
    };
    parts().unwrap_or((stem, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_split_have_one_name() {
        assert_eq!(split_name("a-q4-00002-of-00003"), ("a-q4", 2));
        assert_eq!(split_name("a-q4"), ("a-q4", 1));
        assert_eq!(split_name("a-2-of-3"), ("a-2-of-3", 1));
    }

    #[test]
    fn a_folder_lists_each_model_once() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in
            [("b-00002-of-00002.gguf", 3), ("b-00001-of-00002.gguf", 2), ("a.GGUF", 1), ("c.txt", 9)]
        {
            fs::write(folder.path().join(name), vec![0; bytes]).unwrap();
        }
        fs::create_dir(folder.path().join("d.gguf")).unwrap();
        let entries = entries(folder.path()).unwrap();
        let seen: Vec<_> = entries.iter().map(|e| (&*e.listed.name, e.listed.file_bytes)).collect();
        assert_eq!(seen, [("a", 1), ("b", 5)]);
        assert!(entries[1].path.ends_with("b-00001-of-00002.gguf"));
    }
}
