//! Files that are written to while a model is mapped.

use std::fs::Metadata;
use std::path::Path;

use super::CliError;
use crate::gguf::Gguf;

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

/// Whether two paths lead to one file. One that is not there is no other's.
fn same_file(a: &Path, b: &Path) -> bool {
    let both = |(a, b): (Metadata, Metadata)| same_inode(&a, &b);
    let inodes = a.metadata().ok().zip(b.metadata().ok()).and_then(both);
    inodes.unwrap_or_else(|| a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b)))
}

/// Whether two files are one, where the system can tell: hard links are.
#[cfg(unix)]
fn same_inode(a: &Metadata, b: &Metadata) -> Option<bool> {
    use std::os::unix::fs::MetadataExt;
    Some((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

#[cfg(not(unix))]
fn same_inode(_: &Metadata, _: &Metadata) -> Option<bool> {
    None
}
