//! Text to ids and back.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use tokenizers::Model;
use tokenizers::models::bpe::BpeTrainer;

use super::chat::{Disguise, Rendered};
use super::pre_tokenizer::PreTokenizer;
use super::special::{Fragment, SpecialTokens, Which};
use super::spm::Spm;
use super::stream::TokenStream;
use super::tools::TextPart;
use super::vocabulary::{self, Family, TokenKind, Vocabulary};
use super::{TextError, bpe, byte_level};
use crate::gguf::Metadata;

/// Bytes of the longest text that is encoded in one go: lengths are 32 bits wide, and U+2581 takes three
/// times the room of a space.
const MAX_TEXT: usize = 1 << 30;

const PRE_TOKENIZER: &str = "tokenizer.ggml.pre";

type BoxedModel = Box<dyn Model<Trainer = BpeTrainer> + Send + Sync>;

/// What to do about special tokens when a text is encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put BOS before and EOS after, as the metadata says (`add_bos_token`, `add_eos_token`; where it
    /// says nothing: BOS for SentencePiece and for the byte-level vocabularies known to want it).
    pub add_special: bool,
    /// Recognise control tokens in the text. User-defined tokens are recognised anyway.
    pub parse_special: bool,
}

/// A tokenizer made of a model's own vocabulary.
pub struct Tokenizer {
    vocabulary: Arc<Vocabulary>,
    special: SpecialTokens,
    model: BoxedModel,
    words: Words,
    add_bos: bool,
    add_eos: bool,
    warnings: Vec<String>,
}

/// How text is prepared for the model.
enum Words {
    /// Spaces become U+2581; one goes before a text and after a special token.
    Spm { space_prefix: bool },
    /// Words, written in GPT-2's alphabet of bytes.
    Bpe(PreTokenizer),
    /// Spaces become U+2581; lines are words, and what ends them.
    Lines,
}

impl Tokenizer {
    /// Builds the tokenizer that `tokenizer.ggml.*` describes. `pre_override` replaces the name of the
    /// pre-tokenizer, for files that name none or a wrong one.
    ///
    /// # Errors
    /// Kinds of vocabularies and pre-tokenizers that are not known, by name; anything in the metadata
    /// that is missing, of the wrong type, of different lengths or inconsistent.
    pub fn from_metadata(meta: &Metadata, pre_override: Option<&str>) -> Result<Tokenizer, TextError> {
        let family = Family::from_metadata(meta)?;
        let (vocabulary, ids) = Vocabulary::from_metadata(meta, family)?;
        let vocabulary = Arc::new(vocabulary);
        let mut warnings = Vec::new();
        let (model, words): (BoxedModel, Words) = match family {
            Family::Spm if pre_override.is_some() => {
                return Err(TextError::NoPreTokenizer { model: "llama" });
            }
            Family::Gemma if pre_override.is_some() => {
                return Err(TextError::NoPreTokenizer { model: "gemma4" });
            }
            Family::Spm => {
                let scores = vocabulary::read_scores(meta, vocabulary.len())?;
                let space_prefix = vocabulary::flag(meta, "tokenizer.ggml.add_space_prefix", true)?;
                (Box::new(Spm::new(vocabulary.clone(), ids, scores)), Words::Spm { space_prefix })
            }
            Family::Bpe => {
                let pre = PreTokenizer::by_name(pre_name(meta, pre_override, &mut warnings)?)?;
                let options = bpe::Options { ignore_merges: pre.ignore_merges(), ..bpe::Options::default() };
                (Box::new(bpe::from_metadata(meta, ids, options)?), Words::Bpe(pre))
            }
            Family::Gemma => {
                let options = bpe::Options { byte_fallback: true, ..bpe::Options::default() };
                (Box::new(bpe::from_metadata(meta, ids, options)?), Words::Lines)
            }
        };
        let default_bos = match &words {
            Words::Spm { .. } | Words::Lines => true,
            Words::Bpe(pre) => pre.add_bos(),
        };
        let (mut add_bos, add_eos) = vocabulary::additions(meta, &vocabulary, default_bos)?;
        // Files of the first conversions say that there is none, which the models cannot do without.
        add_bos |= matches!(words, Words::Lines) && vocabulary.bos.is_some();
        let special = SpecialTokens::from_metadata(meta, &vocabulary)?;
        Ok(Tokenizer { vocabulary, special, model, words, add_bos, add_eos, warnings })
    }

    /// What is doubtful about the vocabulary: sentences for the user.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// A byte for which the vocabulary has no token; a text of over 1 GiB.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::new();
        if options.add_special && self.add_bos {
            ids.extend(self.vocabulary.bos);
        }
        let which = if options.parse_special { Which::All } else { Which::UserDefined };
        self.encode_fragments(text, which, &mut true, &mut ids)?;
        if options.add_special && self.add_eos {
            ids.extend(self.vocabulary.eos);
        }
        Ok(ids)
    }

    /// The ids of a rendered chat: the template's special tokens are parsed, what people said is text;
    /// special tokens are added, with one BOS where both the template and the metadata put one.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_chat(&self, rendered: &Rendered) -> Result<Vec<u32>, TextError> {
        let bos = self.vocabulary.bos.filter(|_| self.add_bos);
        let mut ids: Vec<u32> = bos.into_iter().collect();
        let (text, mut after_special) = (rendered.disguised(), true);
        for fragment in self.special.partition(text, Which::All) {
            match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    after_special = true;
                }
                Fragment::Text(range) => {
                    let said = self.disguise().off(&text[range]);
                    self.encode_fragments(&said, Which::Said, &mut after_special, &mut ids)?;
                }
            }
        }
        if self.add_eos {
            ids.extend(self.vocabulary.eos);
        }
        if self.add_bos && ids.len() > 1 && Some(ids[0]) == self.bos() && Some(ids[1]) == self.bos() {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// How texts of people in a chat are disguised.
    pub(super) fn disguise(&self) -> &Disguise {
        self.special.disguise()
    }

    /// The control tokens in a text, and the text between them.
    pub(super) fn text_parts(&self, text: &str) -> Vec<TextPart> {
        let mut parts: Vec<TextPart> = Vec::new();
        for fragment in self.special.partition(text, Which::All) {
            let between = match fragment {
                Fragment::Token(id) if self.token_kind(id).is_some_and(TokenKind::is_control) => {
                    parts.push(TextPart::Token(id));
                    continue;
                }
                Fragment::Token(id) => self.token_text(id).unwrap_or_default(),
                Fragment::Text(range) => &text[range],
            };
            match parts.last_mut() {
                Some(TextPart::Text(last)) => last.push_str(between),
                _ => parts.push(TextPart::Text(between.to_owned())),
            }
        }
        parts
    }

    /// Encodes text and the special tokens in it that are looked for. `after_special`: one comes before it,
    /// or nothing.
    fn encode_fragments(
        &self,
        text: &str,
        which: Which,
        after_special: &mut bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        if text.len() > MAX_TEXT {
            return Err(TextError::TextTooLong { len: text.len(), max: MAX_TEXT });
        }
        for fragment in self.special.partition(text, which) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(ref range) => self.encode_text(&text[range.clone()], *after_special, ids)?,
            }
            *after_special = matches!(fragment, Fragment::Token(_));
        }
        Ok(())
    }

    /// Encodes text that holds no special token.
    fn encode_text(&self, text: &str, after_special: bool, ids: &mut Vec<u32>) -> Result<(), TextError> {
        match &self.words {
            Words::Spm { space_prefix } => {
                let prefix = if *space_prefix && after_special { "\u{2581}" } else { "" };
                let escaped = prefix.to_owned() + &text.replace(' ', "\u{2581}");
                self.encode_word(&escaped, ids)
            }
            Words::Bpe(pre) => {
                let text = pre.normal_form().apply(text)?;
                self.check_alphabet(&text)?;
                let mut word = String::new();
                for range in pre.words(&text) {
                    byte_level::encode_into(&text[range], &mut word);
                    self.encode_word(&word, ids)?;
                }
                Ok(())
            }
            Words::Lines => {
                let text = text.replace(' ', "\u{2581}");
                self.check_characters(&text)?;
                lines(&text).try_for_each(|line| match self.model.token_to_id(line) {
                    // Line ends side by side are one token where there is one, whatever the merges say.
                    Some(id) if line.starts_with('\n') => {
                        ids.push(id);
                        Ok(())
                    }
                    _ => self.encode_word(line, ids),
                })
            }
        }
    }

    fn encode_word(&self, word: &str, ids: &mut Vec<u32>) -> Result<(), TextError> {
        let tokens = self.model.tokenize(word).map_err(unboxed)?;
        ids.extend(tokens.iter().map(|token| token.id));
        Ok(())
    }

    /// The crate's BPE leaves out characters that are no tokens; a text that has some is refused.
    fn check_alphabet(&self, text: &str) -> Result<(), TextError> {
        let mut seen = [false; 256];
        text.bytes().for_each(|b| seen[usize::from(b)] = true);
        for byte in (0..=255u8).filter(|&b| seen[usize::from(b)]) {
            let mut buffer = [0; 4];
            let character = byte_level::BYTE_TO_CHAR[usize::from(byte)].encode_utf8(&mut buffer);
            if self.model.token_to_id(character).is_none() {
                return Err(TextError::NoTokenForByte { byte });
            }
        }
        Ok(())
    }

    /// The same of characters, which may be written by their bytes.
    fn check_characters(&self, text: &str) -> Result<(), TextError> {
        let (mut seen, mut known) = ([false; 128], HashSet::new());
        for c in text.chars() {
            let before = match seen.get_mut(c as usize) {
                Some(seen) => std::mem::replace(seen, true),
                None => !known.insert(c),
            };
            let mut buffer = [0; 4];
            let character = c.encode_utf8(&mut buffer);
            if before || self.model.token_to_id(character).is_some() {
                continue;
            }
            let missing = |byte: &u8| self.model.token_to_id(&format!("<0x{byte:02X}>")).is_none();
            if let Some(byte) = character.bytes().find(missing) {
                return Err(TextError::NoTokenForByte { byte });
            }
        }
        Ok(())
    }

    /// The bytes that a token stands for; `None` for an id outside the vocabulary. Control tokens stand
    /// for nothing, or with `special` for their text; those that Harmony marks the parts of an answer
    /// with always stand for their text.
    pub fn piece(&self, id: u32, special: bool) -> Option<&[u8]> {
        if self.vocabulary.is_hidden(id) && !special { Some(b"") } else { self.vocabulary.piece(id) }
    }

    /// The bytes of a text that begins with the first id: the space that the tokenizer puts before a
    /// text is taken away again. Ids outside the vocabulary stand for nothing; control tokens as in
    /// [`piece`](Self::piece).
    pub fn decode_bytes(&self, ids: &[u32], special: bool) -> Vec<u8> {
        let mut stream = self.stream(special).at_start();
        ids.iter().flat_map(|&id| stream.bytes(id)).copied().collect()
    }

    /// As [`decode_bytes`](Self::decode_bytes), as text; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], special: bool) -> String {
        match String::from_utf8_lossy(&self.decode_bytes(ids, special)) {
            Cow::Borrowed(text) => text.to_owned(),
            Cow::Owned(text) => text,
        }
    }

    /// Turns ids into text as they come. The ids go on from a text that is there already;
    /// [`TokenStream::at_start`] says otherwise.
    pub fn stream(&self, special: bool) -> TokenStream<'_> {
        TokenStream::new(self, special)
    }

    /// Number of tokens; ids are below it.
    pub fn vocab_len(&self) -> usize {
        self.vocabulary.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.vocabulary.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.vocabulary.eos
    }

    /// The token that stands for text that cannot be written.
    pub fn unknown(&self) -> Option<u32> {
        self.vocabulary.unknown
    }

    /// The token that fills up batches.
    pub fn padding(&self) -> Option<u32> {
        self.vocabulary.padding
    }

    /// Whether BOS is put before a text where special tokens are added.
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether EOS is put after a text where special tokens are added.
    pub fn adds_eos(&self) -> bool {
        self.add_eos
    }

    /// Whether a generation ends with this token: EOS, the ends of turns and messages that the metadata
    /// names, and special tokens whose texts are known to end a turn.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.vocabulary.is_end(id)
    }

    /// The id of the token with this text, written as the file writes it.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        self.model.token_to_id(text)
    }

    /// A token's text as the file writes it.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.vocabulary.text(id)
    }

    /// What a token is for.
    pub fn token_kind(&self, id: u32) -> Option<TokenKind> {
        self.vocabulary.kind(id)
    }

    pub(super) fn adds_space_prefix(&self) -> bool {
        matches!(self.words, Words::Spm { space_prefix: true })
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("family", &self.vocabulary.family)
            .field("tokens", &self.vocab_len())
            .finish_non_exhaustive()
    }
}

/// A text's lines and, apart from them, what stands between: line ends side by side.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let ends = rest.starts_with('\n');
        let len = rest.find(|c| (c == '\n') != ends).unwrap_or(rest.len());
        let line;
        (line, rest) = rest.split_at(len);
        Some(line).filter(|line| !line.is_empty())
    })
}

/// The name of the pre-tokenizer.
fn pre_name<'a>(
    meta: &'a Metadata,
    pre_override: Option<&'a str>,
    warnings: &mut Vec<String>,
) -> Result<&'a str, TextError> {
    if let Some(name) = pre_override {
        return Ok(name);
    }
    Ok(meta.str(PRE_TOKENIZER)?.unwrap_or_else(|| {
        let consequence = "texts are cut by the pre-tokenizer \"default\", which may not be the model's";
        warnings.push(format!("{PRE_TOKENIZER} is missing; {consequence}"));
        "default"
    }))
}

/// The model's error: one of ours, as [`Spm`] makes them, or the crate's.
fn unboxed(error: tokenizers::Error) -> TextError {
    match error.downcast::<TextError>() {
        Ok(error) => *error,
        Err(error) => TextError::Tokenizer(error.to_string()),
    }
}
