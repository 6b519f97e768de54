//! What an answer has to be: `--json-schema` and `--grammar`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::input::Input;
use super::{CliError, InFile};
use crate::text::{Constraint, Grammar, GrammarFactory, Tokenizer};

#[derive(Args, Debug)]
pub struct GrammarArgs {
    /// Make each answer JSON that this JSON Schema describes; --max-tokens may cut it off
    #[arg(long, value_name = "FILE", conflicts_with = "grammar")]
    json_schema: Option<PathBuf>,

    /// Make each answer obey a grammar: GBNF where the file is named .gbnf or has a rule "root ::=", else
    /// Lark as llguidance writes it
    #[arg(long, value_name = "FILE")]
    grammar: Option<PathBuf>,
}

impl GrammarArgs {
    /// The grammar of the file that is named, if one is.
    ///
    /// # Errors
    /// A file that cannot be read or is none of its kind.
    pub fn read(&self) -> Result<Option<GrammarFile<'_>>, CliError> {
        let (path, grammar) = if let Some(path) = &self.json_schema {
            let schema = serde_json::from_str(&Input::File(path).text()?);
            let schema = schema.map_err(|error| CliError::new(format!("not JSON: {error}"))).in_file(path)?;
            (path, Grammar::json_schema(&schema))
        } else if let Some(path) = &self.grammar {
            let text = Input::File(path).text()?;
            let named = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gbnf"));
            let is_gbnf = named || Grammar::is_gbnf(&text);
            (path, if is_gbnf { Grammar::gbnf(&text) } else { Grammar::lark(&text) })
        } else {
            return Ok(None);
        };
        Ok(Some(GrammarFile { grammar: grammar.in_file(path)?, path }))
    }
}

/// A grammar, and the file that it is from.
pub struct GrammarFile<'a> {
    grammar: Grammar,
    path: &'a Path,
}

impl GrammarFile<'_> {
    /// What holds an answer to it, in a model's vocabulary.
    ///
    /// # Errors
    /// A grammar that cannot be used, by its file's name, and a vocabulary that no grammar can, by the
    /// model's.
    pub fn constraint(&self, tokenizer: &Tokenizer, model: &Path) -> Result<Constraint, CliError> {
        let factory = GrammarFactory::new(tokenizer).in_file(model)?;
        factory.constraint(&self.grammar).in_file(self.path)
    }
}
