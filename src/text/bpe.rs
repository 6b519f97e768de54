//! Byte-level BPE: the crate's model over the merges that the file lists.

use std::collections::HashSet;

use tokenizers::models::bpe::{self, BPE, Vocab as IdsByText};

use super::TextError;
use crate::gguf::Metadata;

const MERGES: &str = "tokenizer.ggml.merges";

/// The crate's BPE over the file's merges; `ids` must hold every token.
pub fn from_metadata(meta: &Metadata, ids: IdsByText, ignore_merges: bool) -> Result<BPE, TextError> {
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
    BPE::builder().vocab_and_merges(ids, merges).ignore_merges(ignore_merges).build().map_err(|error| {
        match error.downcast::<bpe::Error>() {
            Ok(error) => match *error {
                bpe::Error::MergeTokenOutOfVocabulary(token) => TextError::UnknownMergeToken { token },
                other => TextError::Tokenizer(other.to_string()),
            },
            Err(other) => TextError::Tokenizer(other.to_string()),
        }
    })
}
