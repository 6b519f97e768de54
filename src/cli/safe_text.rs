//! Strings from files and models, made safe to show, and JSON of them; see [`crate::show::safe_text`].

use std::io;

use serde::Serialize;

use super::CliError;
use crate::show::safe_text;
pub use safe_text::{escape, escape_bytes, escape_lines, escape_text};

/// A value as JSON on one line.
///
/// # Errors
/// A value that is none in JSON.
pub fn json(value: &impl Serialize) -> Result<String, CliError> {
    Ok(safe_text::json(value)?)
}

/// Writes a value as JSON on one line, with its end.
///
/// # Errors
/// A value that is none in JSON, or what the system says.
pub fn write_json(value: &impl Serialize, out: &mut impl io::Write) -> Result<(), CliError> {
    writeln!(out, "{}", json(value)?)?;
    Ok(())
}

/// The same on many lines.
///
/// # Errors
/// As [`write_json`].
pub fn write_pretty_json(value: &impl Serialize, out: &mut impl io::Write) -> Result<(), CliError> {
    writeln!(out, "{}", safe_text::pretty_json(value)?)?;
    Ok(())
}
