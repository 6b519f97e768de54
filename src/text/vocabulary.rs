//! What the metadata says of the tokens: texts, types, special ids.
//!
//! Keys, their defaults and the texts of well-known special tokens: the GGUF specification and
//! llama.cpp's llama-vocab.cpp.

use tokenizers::models::bpe::Vocab as IdsByText;

use super::ends::{self, Roles};
use super::{TextError, byte_level};
use crate::gguf::{Array, Metadata, MetadataError, TextArray, ValueType};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";

/// How a vocabulary writes text in its tokens: `tokenizer.ggml.model`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `llama`: SentencePiece BPE; a space is U+2581, bytes have tokens `<0xHH>`.
    Spm,
    /// `gpt2`: byte-level BPE; text is written in GPT-2's alphabet of bytes.
    Bpe,
    /// `gemma4`: BPE with merges; a space is U+2581, bytes have tokens `<0xHH>`.
    Gemma,
}

impl Family {
    pub fn from_metadata(meta: &Metadata) -> Result<Family, TextError> {
        const KEY: &str = "tokenizer.ggml.model";
        match meta.required(KEY, meta.str(KEY)?)? {
            "llama" => Ok(Family::Spm),
            "gpt2" => Ok(Family::Bpe),
            "gemma4" => Ok(Family::Gemma),
            other => Err(TextError::UnsupportedModel { model: other.to_owned() }),
        }
    }
}

/// What a token is for: `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    Undefined,
    Normal,
    /// Stands for text that the vocabulary cannot write.
    Unknown,
    /// Steers the model; not text.
    Control,
    /// Text that is recognised before anything else.
    UserDefined,
    Unused,
    /// One byte, `<0xHH>`.
    Byte,
}

impl TokenKind {
    fn from_id(id: i64) -> TokenKind {
        use TokenKind::*;
        let by_id = [Undefined, Normal, Unknown, Control, UserDefined, Unused, Byte];
        usize::try_from(id).ok().and_then(|id| by_id.get(id).copied()).unwrap_or(Undefined)
    }

    /// Recognised in text only where special tokens are parsed, shown only where they are asked for.
    pub fn is_control(self) -> bool {
        matches!(self, TokenKind::Control | TokenKind::Unknown)
    }
}

/// The tokens of a model.
#[derive(Debug)]
pub struct Vocabulary {
    pub family: Family,
    /// Every token as the file writes it.
    texts: TextArray,
    /// The bytes that every token stands for; a special token's is its text.
    pieces: TextArray,
    kinds: Vec<TokenKind>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
    roles: Roles,
}

impl Vocabulary {
    /// Reads and checks the tokens; also the ids by their texts, for the model that is to own them.
    pub fn from_metadata(meta: &Metadata, family: Family) -> Result<(Vocabulary, IdsByText), TextError> {
        let texts = named_where_empty(meta.required(TOKENS, meta.texts(TOKENS)?)?);
        let tokens = texts.len();
        // Ids are used as i32 by everyone else who reads the format.
        if tokens == 0 || i32::try_from(tokens).is_err() {
            return Err(TextError::VocabularySize { len: tokens });
        }
        let mut kinds = read_kinds(meta, tokens)?;
        let ids = index(&texts)?;
        let named = |key| special_id(meta, key, tokens);
        let spm_default = |id: u32| (family == Family::Spm && (id as usize) < tokens).then_some(id);
        let mut vocabulary = Vocabulary {
            bos: named(BOS)?.or(spm_default(1)),
            eos: named(EOS)?.or(spm_default(2)),
            unknown: named("tokenizer.ggml.unknown_token_id")?.or(spm_default(0)),
            padding: named("tokenizer.ggml.padding_token_id")?,
            roles: Roles::default(),
            pieces: TextArray::default(),
            kinds: Vec::new(),
            family,
            texts,
        };
        vocabulary.roles = ends::find(meta, &ids, &mut kinds, vocabulary.eos)?;
        vocabulary.kinds = kinds;
        vocabulary.pieces = vocabulary.all_pieces()?;
        Ok((vocabulary, ids))
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// A token as the file writes it.
    pub fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize).and_then(|t| std::str::from_utf8(t).ok())
    }

    /// The bytes that a token stands for.
    pub fn piece(&self, id: u32) -> Option<&[u8]> {
        self.pieces.get(id as usize)
    }

    /// What a token is for.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// What the tokens are for, by id.
    pub fn kinds(&self) -> &[TokenKind] {
        &self.kinds
    }

    /// Whether a generation ends with this token.
    pub fn is_end(&self, id: u32) -> bool {
        self.roles.ends.binary_search(&id).is_ok()
    }

    /// Whether a token is left out where a text is shown without its special tokens.
    pub fn is_hidden(&self, id: u32) -> bool {
        self.kind(id).is_some_and(TokenKind::is_control) && self.roles.shown.binary_search(&id).is_err()
    }

    fn all_pieces(&self) -> Result<TextArray, TextError> {
        let mut pieces = TextArray::default();
        for (id, &kind) in (0u32..).zip(&self.kinds) {
            let text = self.text(id).unwrap_or_default();
            match (kind, self.family) {
                (TokenKind::Byte, _) => pieces.push(&[byte_token(id, text)?]),
                (TokenKind::Unused | TokenKind::Undefined, _) => pieces.push(b""),
                // Runs of spaces may be tokens of this kind; the authors' decoder replaces U+2581 in all of
                // them.
                (TokenKind::UserDefined, Family::Gemma) => {
                    pieces.push(text.replace('\u{2581}', " ").as_bytes());
                }
                (TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined, _) => {
                    pieces.push(text.as_bytes());
                }
                (TokenKind::Normal, Family::Spm | Family::Gemma) => {
                    pieces.push(text.replace('\u{2581}', " ").as_bytes());
                }
                (TokenKind::Normal, Family::Bpe) => match byte_level::decode(text) {
                    Some(bytes) => pieces.push(&bytes),
                    // Not of the alphabet (an added token without a type): the text itself.
                    None => pieces.push(text.as_bytes()),
                },
            }
        }
        Ok(pieces)
    }
}

/// Tokens without text get a name by their number, so that no two texts are the same.
fn named_where_empty(texts: &TextArray) -> TextArray {
    if texts.iter().all(|text| !text.is_empty()) {
        return texts.clone();
    }
    let mut named = TextArray::default();
    for (id, text) in texts.iter().enumerate() {
        match text {
            b"" => named.push(format!("[EMPTY_{id}]").as_bytes()),
            text => named.push(text),
        }
    }
    named
}

fn index(texts: &TextArray) -> Result<IdsByText, TextError> {
    let mut ids = IdsByText::default();
    let out_of_memory = |_| TextError::OutOfMemory { what: "tokens", len: texts.len() };
    ids.try_reserve(texts.len()).map_err(out_of_memory)?;
    for (id, text) in (0u32..).zip(texts.iter()) {
        let text = std::str::from_utf8(text).map_err(|_| TextError::TokenNotUtf8 { id })?;
        if let Some(first) = ids.insert(text.to_owned(), id) {
            return Err(TextError::DuplicateToken { first, second: id, text: text.to_owned() });
        }
    }
    Ok(ids)
}

fn read_kinds(meta: &Metadata, tokens: usize) -> Result<Vec<TokenKind>, TextError> {
    let Some(types) = meta.packed(TYPES, ValueType::I32)? else {
        return Ok(vec![TokenKind::Normal; tokens]);
    };
    if types.len() != tokens {
        return Err(TextError::LengthMismatch { key: TYPES, found: types.len(), tokens });
    }
    Ok(types.iter().map(|v| TokenKind::from_id(v.as_i64().unwrap_or(0))).collect())
}

/// The tokens' scores, one a token; f32, or i32 as some files have them.
pub fn read_scores(meta: &Metadata, tokens: usize) -> Result<Vec<f32>, TextError> {
    const KEY: &str = "tokenizer.ggml.scores";
    let array = match meta.get(KEY).and_then(|value| value.as_array()) {
        Some(Array::Packed(packed)) if packed.ty() == ValueType::I32 => packed,
        _ => meta.required(KEY, meta.packed(KEY, ValueType::F32)?)?,
    };
    if array.len() != tokens {
        return Err(TextError::LengthMismatch { key: KEY, found: array.len(), tokens });
    }
    let score = |(id, value): (u32, crate::gguf::Value)| {
        let score = value.as_f64().or(value.as_i64().map(|v| v as f64)).unwrap_or(f64::NAN) as f32;
        // Adding zero makes one zero of the two, so that their order is the numbers'.
        if score.is_nan() { Err(TextError::BadScore { id }) } else { Ok(score + 0.0) }
    };
    (0u32..).zip(array.iter()).map(score).collect()
}

/// A special token's id that the metadata may name.
pub fn special_id(meta: &Metadata, key: &'static str, tokens: usize) -> Result<Option<u32>, TextError> {
    let Some(id) = meta.get(key) else { return Ok(None) };
    // -1 is how some converters write "none".
    if matches!(id.as_i64(), Some(-1 | 0xFFFF_FFFF)) {
        return Ok(None);
    }
    let id = meta.u64(key)?.unwrap_or(0);
    match u32::try_from(id) {
        Ok(id) if (id as usize) < tokens => Ok(Some(id)),
        _ => Err(TextError::SpecialOutOfRange { key, id, tokens }),
    }
}

/// The byte of a token `<0xHH>`.
fn byte_token(id: u32, text: &str) -> Result<u8, TextError> {
    text.strip_prefix("<0x")
        .and_then(|t| t.strip_suffix('>'))
        .filter(|hex| hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        .and_then(|hex| u8::from_str_radix(hex, 16).ok())
        .ok_or_else(|| TextError::BadByteToken { id, text: text.to_owned() })
}

/// A boolean of the metadata, or the default of the kind of tokenizer.
pub fn flag(meta: &Metadata, key: &'static str, default: bool) -> Result<bool, MetadataError> {
    Ok(meta.bool(key)?.unwrap_or(default))
}

/// Whether a BOS token is put before, an EOS token after every text; both refused without such a token,
/// unless the file does not ask for it by name.
pub fn additions(meta: &Metadata, vocabulary: &Vocabulary, bos: bool) -> Result<(bool, bool), TextError> {
    let read = |flag_key: &'static str, key, id: Option<u32>, default: bool| match meta.bool(flag_key)? {
        Some(true) if id.is_none() => Err(TextError::NoSpecialToken { flag: flag_key, key }),
        Some(flag) => Ok(flag),
        None => Ok(default && id.is_some()),
    };
    Ok((
        read("tokenizer.ggml.add_bos_token", BOS, vocabulary.bos, bos)?,
        read("tokenizer.ggml.add_eos_token", EOS, vocabulary.eos, false)?,
    ))
}
