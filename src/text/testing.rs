//! Vocabularies for tests, made as files and read as files are.

#[allow(dead_code)] // the integration tests use the rest
#[path = "../../tests/common/gguf.rs"]
mod gguf_file;

pub use gguf_file::{GgufBuilder, Kv, Rng};

use super::{TextError, Tokenizer, byte_level};
use crate::gguf::{Gguf, Metadata};

/// The first id of [`spm`]'s own pieces: `<unk>`, `<s>`, `</s>` and 256 bytes are before it.
pub const SPM_FIRST: u32 = 259;

/// The metadata of a file.
pub fn metadata(file: &GgufBuilder) -> Metadata {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let path = file.write(&folder.path().join("vocabulary.gguf"));
    Gguf::open(&path).expect("the file is sound").metadata().clone()
}

/// The tokenizer of a file.
pub fn tokenizer(file: &GgufBuilder) -> Result<Tokenizer, TextError> {
    Tokenizer::from_metadata(&metadata(file), None)
}

/// A vocabulary from its parts; the types are those of the format.
pub fn vocabulary(model: &str, tokens: &[String], types: Vec<i32>) -> GgufBuilder {
    GgufBuilder::new()
        .kv("tokenizer.ggml.model", model)
        .kv("tokenizer.ggml.tokens", tokens.iter().map(String::as_str).collect::<Vec<_>>())
        .kv("tokenizer.ggml.token_type", types)
}

/// A SentencePiece vocabulary: `<unk>`, `<s>`, `</s>`, the bytes, then the pieces with score and type.
pub fn spm(pieces: &[(&str, f32, i32)]) -> GgufBuilder {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(pieces.iter().map(|piece| piece.0.to_owned()));
    let types = [2, 3, 3].into_iter().chain([6; 256]).chain(pieces.iter().map(|piece| piece.2)).collect();
    let scores: Vec<f32> = [0.0; 259].into_iter().chain(pieces.iter().map(|piece| piece.1)).collect();
    vocabulary("llama", &tokens, types).kv("tokenizer.ggml.scores", scores)
}

/// A byte-level vocabulary cut as GPT-2's: the bytes (the id of each is the byte), the results of the merges,
/// the special tokens with their types.
pub fn bpe(merges: &[&str], special: &[(&str, i32)]) -> GgufBuilder {
    let mut tokens: Vec<String> = byte_level::BYTE_TO_CHAR.iter().map(char::to_string).collect();
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    tokens.extend(special.iter().map(|token| token.0.to_owned()));
    let types = vec![1; 256 + merges.len()].into_iter().chain(special.iter().map(|token| token.1)).collect();
    vocabulary("gpt2", &tokens, types)
        .kv("tokenizer.ggml.merges", merges.to_vec())
        .kv("tokenizer.ggml.pre", "gpt-2")
}
