//! A text in the user's editor.

use std::io::Write;
use std::process::Command;

use crate::cli::CliError;

/// What is started where neither `VISUAL` nor `EDITOR` says.
const DEFAULT: &str = if cfg!(windows) { "notepad" } else { "vi" };

/// Lets the user change a text in the program that `VISUAL` or `EDITOR` names, words after it being its
/// arguments.
///
/// # Errors
/// A program that cannot be started or says that it failed, and what is no text afterwards, or none at all.
pub fn edit(text: &str) -> Result<String, CliError> {
    let mut named = ["VISUAL", "EDITOR"].into_iter().filter_map(|name| std::env::var(name).ok());
    let named = named.find(|editor| !editor.trim().is_empty()).unwrap_or_else(|| DEFAULT.to_owned());
    let mut words = named.split_whitespace();
    let mut file = tempfile::Builder::new().prefix("wayinfer-").suffix(".md").tempfile()?;
    file.write_all(text.as_bytes())?;
    let path = file.into_temp_path();
    let status = Command::new(words.next().unwrap_or(DEFAULT)).args(words).arg(&path).status();
    let status =
        status.map_err(|error| CliError::new(format!("the editor {named} cannot be started: {error}")))?;
    if !status.success() {
        return Err(CliError::new(format!("the editor {named} ended with {status}: nothing is changed")));
    }
    let text = crate::cli::input::Input::File(&path).text()?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    if text.trim().is_empty() {
        return Err(CliError::new("an empty message: nothing is changed"));
    }
    Ok(text.to_owned())
}
