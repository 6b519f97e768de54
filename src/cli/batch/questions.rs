//! The requests of a batch: lines that have names.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use super::output::Output;
use crate::cli::CliError;
use crate::cli::input::Input;
use crate::cli::safe_text::escape;
use crate::server::batch;

/// See the module.
#[derive(Debug)]
pub struct Questions {
    bytes: Vec<u8>,
    /// The name of each, and where its line is.
    lines: Vec<(String, Range<usize>)>,
}

/// Some editors begin a file of UTF-8 with it.
const MARK: &[u8] = b"\xef\xbb\xbf";

impl Questions {
    /// Those of a file; `-`: of standard input.
    ///
    /// # Errors
    /// What cannot be read; a line without a name; two of the same name; no line at all.
    pub fn read(path: &Path) -> Result<Questions, CliError> {
        let input = if path == Path::new("-") { Input::Stdin } else { Input::File(path) };
        let named = |error: CliError| error.in_file(path);
        let bytes = input.bytes()?;
        let lines = lines(&bytes).map_err(|what| named(CliError::new(what)))?;
        match lines.is_empty() {
            true => Err(named(CliError::new("there are no requests"))),
            false => Ok(Questions { bytes, lines }),
        }
    }

    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// The name and the line of one.
    pub fn get(&self, number: usize) -> (&str, &[u8]) {
        let (id, line) = &self.lines[number];
        (id, &self.bytes[line.clone()])
    }

    /// Those that have no answer yet.
    ///
    /// # Errors
    /// Where there is an answer to something else.
    pub fn without(&self, output: &Output) -> Result<Vec<usize>, CliError> {
        let is_left = |number: &usize| !output.done().contains(&self.lines[*number].0);
        let left: Vec<usize> = (0..self.lines.len()).filter(is_left).collect();
        if self.lines.len() - left.len() == output.done().len() {
            return Ok(left);
        }
        let known: HashSet<&str> = self.lines.iter().map(|(id, _)| &**id).collect();
        let unknown = output.done().iter().find(|id| !known.contains(&***id));
        let id = unknown.map(String::as_str).unwrap_or_default();
        let what = format!("it answers {:?}, which is not asked: it is another batch's", escape(id));
        Err(CliError::new(what).in_file(output.path()).hint("name another file for the answers"))
    }
}

/// The lines of a file with their names, without those that are blank; or what is wrong.
fn lines(bytes: &[u8]) -> Result<Vec<(String, Range<usize>)>, String> {
    let (mut lines, mut seen) = (Vec::new(), HashMap::new());
    let mut start = bytes.strip_prefix(MARK).map_or(0, |rest| bytes.len() - rest.len());
    let mut number = 0;
    while start < bytes.len() {
        let end = bytes[start..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |at| start + at);
        let line = &bytes[start..end];
        number += 1;
        if !line.trim_ascii().is_empty() {
            let id = batch::custom_id(line).map_err(|what| format!("line {number}: {}", escape(&what)))?;
            match seen.entry(id.clone()) {
                Entry::Occupied(first) => {
                    let (first, id) = (first.get(), escape(&id).into_owned());
                    return Err(format!("lines {first} and {number} have the same custom_id {id:?}"));
                }
                Entry::Vacant(new) => new.insert(number),
            };
            lines.push((id, start..end));
        }
        start = end + 1;
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_names() {
        let text = "\u{feff}{\"custom_id\": \"a\"}\r\n\n  \n{\"custom_id\": \"b\"}";
        let names: Vec<_> = lines(text.as_bytes()).unwrap().into_iter().map(|(id, _)| id).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(lines(b"\n\n").unwrap().len(), 0);
        let wrong = lines(b"{\"custom_id\": \"a\"}\n\n{\"custom\": \"a\"}\n").unwrap_err();
        assert!(wrong.starts_with("line 3: "), "{wrong}");
        let twice = lines(b"{\"custom_id\": \"a\"}\n\n{\"custom_id\": \"a\"}\n").unwrap_err();
        assert_eq!(twice, "lines 1 and 3 have the same custom_id \"a\"");
    }
}
