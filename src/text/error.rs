//! What can be wrong with a vocabulary, a text or a chat template.

use thiserror::Error;

use crate::gguf::MetadataError;

/// A vocabulary, a text or a chat template that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TextError {
    /// A key is missing or of the wrong type.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A kind of tokenizer that is not supported.
    #[error("tokenizer.ggml.model is \"{model}\", which is not supported (supported: llama, gpt2, gemma4)")]
    UnsupportedModel { model: String },
    /// The pre-tokenizer is not in the table.
    #[error("pre-tokenizer \"{name}\" is not known (known: {known})")]
    UnknownPreTokenizer { name: String, known: String },
    /// A pre-tokenizer was asked for where the vocabulary has none.
    #[error("the vocabulary is of the kind \"{model}\", which has no pre-tokenizer to override")]
    NoPreTokenizer { model: &'static str },
    /// The vocabulary holds no token, or more than ids can count.
    #[error("the vocabulary has {len} tokens")]
    VocabularySize { len: usize },
    /// Scores or types that are not one a token.
    #[error("{key} has {found} elements for {tokens} tokens")]
    LengthMismatch { key: &'static str, found: usize, tokens: usize },
    /// A token's text is no UTF-8.
    #[error("token {id} is not UTF-8")]
    TokenNotUtf8 { id: u32 },
    /// Two tokens have the same text.
    #[error("tokens {first} and {second} have the same text {text:?}")]
    DuplicateToken { first: u32, second: u32, text: String },
    /// A byte token that does not say which byte.
    #[error("token {id} is a byte token, but its text {text:?} is not of the form <0xHH>")]
    BadByteToken { id: u32, text: String },
    /// A token's score is not a number.
    #[error("the score of token {id} is not a number")]
    BadScore { id: u32 },
    /// More special tokens than a vocabulary has: a search for all of them takes many times their size.
    #[error("the vocabulary has {tokens} special tokens of {bytes} bytes in all, more than {max}")]
    SpecialTokensTooLong { tokens: usize, bytes: usize, max: usize },
    /// There is no memory for what the file lists.
    #[error("there is no memory for {len} {what}")]
    OutOfMemory { what: &'static str, len: usize },
    /// The id of a special token is outside the vocabulary.
    #[error("{key} is {id}, but the vocabulary has {tokens} tokens")]
    SpecialOutOfRange { key: &'static str, id: u64, tokens: usize },
    /// A token is to be added to every prompt, but there is none.
    #[error("{flag} is set, but {key} is missing")]
    NoSpecialToken { flag: &'static str, key: &'static str },
    /// A merge that is not two tokens with a space between.
    #[error("merge {index} is {text:?}, not two tokens with a space between them")]
    BadMerge { index: usize, text: String },
    /// A merge of, or to, something that is no token.
    #[error("a merge uses {token:?}, which is not in the vocabulary")]
    UnknownMergeToken { token: String },
    /// The crate `tokenizers` refused something.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A byte of the text has no token.
    #[error("the vocabulary has no token for the byte 0x{byte:02X} of the text")]
    NoTokenForByte { byte: u8 },
    /// The text is longer than is allowed.
    #[error("the text is {len} bytes long, more than {max}")]
    TextTooLong { len: usize, max: usize },
    /// The chat template is longer than is allowed.
    #[error("the chat template is {len} bytes long, more than {max}")]
    TemplateTooLong { len: usize, max: usize },
    /// A grammar that an answer is to obey is wrong, or asks for what is not supported.
    #[error("the {kind} cannot be used: {reason}")]
    Grammar { kind: &'static str, reason: String },
    /// It is longer than is allowed.
    #[error("the {kind} is {len} bytes long, more than {max}")]
    GrammarTooLong { kind: &'static str, len: usize, max: usize },
    /// A grammar has no next token, or takes more work than is allowed.
    #[error("the answer cannot go on by its grammar: {0}")]
    Constraint(String),
    /// A grammar could never end.
    #[error("the vocabulary has no token that ends an answer, without which no grammar can end")]
    NoEndToken,
    /// A vocabulary that grammars cannot be checked against.
    #[error("the trie of the vocabulary has {nodes} nodes, more than {max}")]
    TrieTooLarge { nodes: usize, max: usize },
    /// The chat template cannot be parsed, or it failed.
    #[error("chat template: {0}")]
    Template(String),
    /// A message that a chat template cannot be given.
    #[error("message {index}: {what}")]
    Message { index: usize, what: String },
    /// A call of a tool is asked for that there cannot be.
    #[error("tools: {0}")]
    Tool(String),
}
