//! TEXT: from text to token ids and back, with nothing but the vocabulary that the GGUF file carries,
//! and the model's own chat template.
//!
//! - [`Tokenizer`] encodes and decodes. The families of vocabularies that it knows (SentencePiece
//!   BPE, `llama`; byte-level BPE, `gpt2`; Gemma 4's BPE of characters, `gemma4`) are models of the crate
//!   `tokenizers`: its own [`BPE`](tokenizers::models::bpe::BPE) and `spm`, which GGUF needs because its
//!   SentencePiece vocabularies have scores and no merges.
//! - Around them stands what the format says and the crate does not know: special tokens
//!   (`special`), the pre-tokenizers by their names in GGUF (one table, `pre_tokenizer/table.rs`),
//!   the meaning of token types and special ids (`vocabulary`), what ends an answer (`ends`).
//! - [`TokenStream`] turns generated ids into text as they come.
//! - [`ChatTemplate`] renders a [`Conversation`]; what people say in it stays text.
//! - [`tools`] tells an answer apart into reasoning, text and calls of tools.
//! - [`GrammarFactory`] says which tokens keep an answer within a [`Grammar`].

mod bpe;
mod byte_level;
mod chat;
mod ends;
mod error;
mod grammar;
#[cfg(test)]
mod naive_spm;
mod normal_form;
mod pre_tokenizer;
mod special;
mod spm;
mod stream;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tokenizer;
pub mod tools;
mod vocabulary;

pub use chat::{
    ChatTemplate, Conversation, Exchange, Message, Rendered, Transcript, TranscriptError, template_named,
    template_names,
};
pub use error::TextError;
pub use grammar::{Constraint, Grammar, GrammarFactory, TokenMask};
pub use pre_tokenizer::pre_tokenizer_names;
pub use stream::{TokenStream, Utf8Joiner};
pub use tokenizer::{EncodeOptions, Tokenizer};
pub use tools::Part;
pub use vocabulary::TokenKind;
