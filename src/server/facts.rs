//! What is known of a model without asking its engine.

use std::sync::{Arc, OnceLock};

use super::error::{ApiError, ErrorKind};
use crate::engine::SamplerConfig;
use crate::text::tools::Format;
use crate::text::{GrammarFactory, Tokenizer};

/// See the module.
pub struct Facts {
    /// What clients call it.
    pub name: String,
    pub tokenizer: Tokenizer,
    /// How conversations become texts; without it there are none.
    pub template: Option<Template>,
    /// Positions that a sequence may have.
    pub context: usize,
    /// What its context was when it was trained.
    pub trained_context: usize,
    pub vocab: usize,
    pub embd: usize,
    /// Tokens that end a text.
    pub ends: Arc<[u32]>,
    /// How tokens are chosen where a request does not say.
    pub sampling: SamplerConfig,
    /// The same where it says something of it.
    pub drawing: SamplerConfig,
    pub architecture: String,
    pub parameters: u64,
    pub file_bytes: u64,
    /// The type of most of its weights, by its name.
    pub quantization: String,
    /// When its file was changed last, in seconds since 1970.
    pub created: u64,
    pub grammars: OnceLock<Result<GrammarFactory, String>>,
}

/// A chat template.
pub struct Template {
    pub source: String,
    /// What ends an answer beside end tokens.
    pub stops: Vec<String>,
    /// How it has tools called, where it knows of tools.
    pub calls: Option<Format>,
}

impl Template {
    /// The template of this source.
    pub fn new(source: String, stops: Vec<String>) -> Template {
        let calls = Format::of_template(&source);
        Template { source, stops, calls }
    }
}

impl Facts {
    /// Makes constraints in the model's vocabulary; built when it is asked for first.
    ///
    /// # Errors
    /// Where the vocabulary has no token that ends a text.
    pub fn grammars(&self) -> Result<&GrammarFactory, ApiError> {
        let made = self
            .grammars
            .get_or_init(|| GrammarFactory::new(&self.tokenizer).map_err(|error| error.to_string()));
        made.as_ref().map_err(|error| ApiError::new(ErrorKind::Unsupported, error.clone()))
    }
}
