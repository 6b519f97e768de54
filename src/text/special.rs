//! Special tokens in a text: found before anything else is.
//!
//! The leftmost comes first, of those that begin together the longest: so the authors' tokenizers take
//! them. (llama.cpp's `tokenizer_st_partition` seeks the longest in the whole text before the next
//! shorter one, which differs where two overlap.)

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

use super::TextError;
use super::chat::{Disguise, is_reserved};
use super::vocabulary::{TokenKind, Vocabulary};
use crate::gguf::Metadata;

/// Most bytes of all special tokens: 28,672 of a model that speaks are 0.6 MB.
const MAX_BYTES: usize = 1 << 20;

/// A part of a text: a special token, or text that has none.
#[derive(Clone, Debug, PartialEq)]
pub enum Fragment {
    Token(u32),
    Text(Range<usize>),
}

/// Which special tokens are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those of every kind: user-defined, control and unknown.
    All,
    /// The user-defined ones alone.
    UserDefined,
    /// Those that what people say may hold: the user-defined ones that do not mark parts of a chat.
    Said,
}

/// The special tokens of a vocabulary.
pub struct SpecialTokens {
    all: Finder,
    user_defined: Finder,
    said: Finder,
    disguise: Disguise,
}

/// Finds some of the special tokens.
struct Finder {
    tokens: Vec<Special>,
    automaton: AhoCorasick,
}

struct Special {
    id: u32,
    /// Takes the white space on its right with it.
    strip_right: bool,
}

impl SpecialTokens {
    /// The special tokens by their types; the model's name tells which of them take white space.
    pub fn from_metadata(meta: &Metadata, vocabulary: &Vocabulary) -> Result<SpecialTokens, TextError> {
        let strip_right = strips_right(meta)?;
        let finder = |wanted: fn(TokenKind, &str) -> bool| Finder::new(vocabulary, wanted, strip_right);
        let texts = |wanted: fn(TokenKind, &str) -> bool| {
            let tokens = (0u32..).zip(vocabulary.kinds());
            let text =
                move |(id, &kind): (u32, &TokenKind)| vocabulary.text(id).filter(|text| wanted(kind, text));
            tokens.filter_map(text)
        };
        let is_mark = |kind, text: &str| kind == TokenKind::UserDefined && is_reserved(text);
        Ok(SpecialTokens {
            all: finder(|kind, _| kind.is_control() || kind == TokenKind::UserDefined)?,
            user_defined: finder(|kind, _| kind == TokenKind::UserDefined)?,
            said: finder(|kind, text| kind == TokenKind::UserDefined && !is_reserved(text))?,
            disguise: Disguise::new(texts(|kind, _| kind.is_control()), texts(is_mark)),
        })
    }

    /// How texts of people are disguised, so that no [`Which::All`] but those of their own are found in them.
    pub fn disguise(&self) -> &Disguise {
        &self.disguise
    }

    /// Cuts a text at those special tokens that are looked for.
    pub fn partition(&self, text: &str, which: Which) -> Vec<Fragment> {
        let finder = match which {
            Which::All => &self.all,
            Which::UserDefined => &self.user_defined,
            Which::Said => &self.said,
        };
        let mut fragments = Vec::new();
        let mut at = 0;
        while let Some(found) = finder.automaton.find(aho_corasick::Input::new(text).range(at..)) {
            if found.start() > at {
                fragments.push(Fragment::Text(at..found.start()));
            }
            let special = &finder.tokens[found.pattern().as_usize()];
            fragments.push(Fragment::Token(special.id));
            at = found.end();
            if special.strip_right {
                let is_space = |b: &u8| b.is_ascii_whitespace() || *b == 0x0B;
                at += text.as_bytes()[at..].iter().take_while(|b| is_space(b)).count();
            }
        }
        if at < text.len() {
            fragments.push(Fragment::Text(at..text.len()));
        }
        fragments
    }
}

impl Finder {
    /// Of the tokens of the kinds that are wanted. `strip_right`: they take the white space after them,
    /// except those named.
    fn new(
        vocabulary: &Vocabulary,
        wanted: fn(TokenKind, &str) -> bool,
        strip_right: Option<&[&str]>,
    ) -> Result<Finder, TextError> {
        let (mut tokens, mut texts, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (id, &kind) in (0u32..).zip(vocabulary.kinds()) {
            let Some(text) = vocabulary.text(id).filter(|text| wanted(kind, text)) else { continue };
            tokens.push(Special { id, strip_right: strip_right.is_some_and(|not| !not.contains(&text)) });
            texts.push(text);
            bytes += text.len();
        }
        if bytes > MAX_BYTES {
            return Err(TextError::SpecialTokensTooLong { tokens: tokens.len(), bytes, max: MAX_BYTES });
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts)
            .map_err(|error| TextError::Tokenizer(error.to_string()))?;
        Ok(Finder { tokens, automaton })
    }
}

/// Phi-3's special tokens take the white space after them, all but those returned. The format has no key
/// for it: as everywhere the model's name decides.
fn strips_right(meta: &Metadata) -> Result<Option<&'static [&'static str]>, TextError> {
    let name = meta.str("general.name")?.unwrap_or_default().to_lowercase();
    let is_phi3 = name.contains("phi-3") || name.contains("phi3");
    Ok(is_phi3.then_some(&["<unk>", "<s>", "<|endoftext|>"]))
}
