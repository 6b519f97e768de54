//! BPE: the crate's model over the merges that the file lists.

use std::collections::HashSet;

use tokenizers::models::bpe::{self, BPE, Vocab as IdsByText};

use super::TextError;
use crate::gguf::Metadata;

const MERGES: &str = "tokenizer.ggml.merges";

/// What is particular to a vocabulary's BPE.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A word that is a token is that token, whatever the merges would make of it.
    pub ignore_merges: bool,
    /// A character that is no token is written by the tokens `<0xHH>` of its bytes.
    pub byte_fallback: bool,
}

/// The crate's BPE over the file's merges; `ids` must hold every token.
pub fn from_metadata(meta: &Metadata, ids: IdsByText, options: Options) -> Result<BPE, TextError> {
    let texts = meta.required(MERGES, meta.texts(MERGES)?)?;
    let (mut seen, mut merges) = (HashSet::new(), Vec::new());
    let out_of_memory = |_| TextError::OutOfMemory { what: "merges", len: texts.len() };
    seen.try_reserve(texts.len()).and_then(|()| merges.try_reserve(texts.len())).map_err(out_of_memory)?;
    for (index, text) in texts.iter().enumerate() {
        // The first of two equal merges counts.
        if !seen.insert(text) {
            continue;
        }
        let pair = std::str::from_utf8(text).ok().and_then(|text| text.split_once(' '));
        match pair.filter(|(left, right)| !left.is_empty() && !right.is_empty()) {
            Some((left, right)) => merges.push((left.to_owned(), right.to_owned())),
            None => {
                let text = String::from_utf8_lossy(text).into_owned();
                return Err(TextError::BadMerge { index, text });
            }
        }
    }
    let builder = BPE::builder().vocab_and_merges(ids, merges);
    let builder = builder.ignore_merges(options.ignore_merges).byte_fallback(options.byte_fallback);
    builder.build().map_err(|error| match error.downcast::<bpe::Error>() {
        Ok(error) => match *error {
            bpe::Error::MergeTokenOutOfVocabulary(token) => TextError::UnknownMergeToken { token },
            other => TextError::Tokenizer(other.to_string()),
        },
        Err(other) => TextError::Tokenizer(other.to_string()),
    })
}
