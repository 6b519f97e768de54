//! A tensor by its name, for the subcommands that take one.

use super::CliError;
use super::safe_text::escape;
use crate::gguf::{Gguf, TensorInfo};

/// The tensor of this name.
pub fn find<'a>(gguf: &'a Gguf, name: &str) -> Result<&'a TensorInfo, CliError> {
    gguf.tensor(name).ok_or_else(|| {
        let path = gguf.parts[0].path.display();
        let error = CliError::new(format!("{path}: there is no tensor \"{}\"", escape(name)));
        let near = gguf.tensors.iter().find(|t| t.name.contains(name) || name.contains(&t.name));
        match near {
            Some(near) if !name.is_empty() => error.hint(format!("there is \"{}\"", escape(&near.name))),
            _ => error.hint("`wayinfer inspect MODEL` lists the tensors"),
        }
    })
}
