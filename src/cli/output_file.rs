//! Files that are written to while a model is mapped.

use std::path::Path;

use super::CliError;
use crate::gguf::Gguf;
use crate::store::same_file;

/// Refuses to write to a file of the model, by whatever name: it is mapped while it is read, and to cut it
/// short would end the process.
///
/// # Errors
/// Where `out` is such a file, through a link too.
pub fn refuse_model_file(gguf: &Gguf, out: &Path) -> Result<(), CliError> {
    if gguf.parts.iter().any(|part| same_file(&part.path, out)) {
        return Err(CliError::new(format!("{}: it is the model itself", out.display())));
    }
    Ok(())
}
