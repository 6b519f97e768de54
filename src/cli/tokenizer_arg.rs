//! The tokenizer's options that subcommands share.

use clap::Args;

use super::output::tell;
use super::{CliError, safe_text};
use crate::gguf::Gguf;
use crate::text::{TextError, Tokenizer};

/// `--pre NAME`.
#[derive(Args, Debug)]
pub struct TokenizerArg {
    /// Pre-tokenizer to use instead of the one that the file names
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,
}

impl TokenizerArg {
    /// The tokenizer of a model; what is doubtful about it goes to stderr.
    pub fn tokenizer(&self, gguf: &Gguf) -> Result<Tokenizer, CliError> {
        let path = &gguf.parts[0].path;
        let tokenizer = Tokenizer::from_metadata(gguf.metadata(), self.pre.as_deref()).map_err(|error| {
            let hint = match error {
                TextError::UnknownPreTokenizer { .. } => Some("--pre NAME uses another one"),
                TextError::NoPreTokenizer { .. } => Some("leave --pre out"),
                _ => None,
            };
            let error = CliError::from(error).in_file(path);
            if let Some(hint) = hint { error.hint(hint) } else { error }
        })?;
        for warning in tokenizer.warnings() {
            tell!("warning: {}", safe_text::escape(&format!("{}: {warning}", path.display())));
        }
        Ok(tokenizer)
    }
}
