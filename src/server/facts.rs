//! What is known of a model without asking its engine.

use std::sync::Arc;

use crate::engine::SamplerConfig;
use crate::text::Tokenizer;

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
}

/// A chat template.
pub struct Template {
    pub source: String,
    /// What ends an answer beside end tokens.
    pub stops: Vec<String>,
}
