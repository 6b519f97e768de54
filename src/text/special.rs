//! Special tokens in a text: found before anything else is, the longest first.
//!
//! A token is sought in the whole text before the next shorter one is; so where two overlap the longer
//! wins, wherever it begins. That is llama.cpp's `tokenizer_st_partition`; the crate's added tokens are
//! taken leftmost first, which differs.

use std::ops::Range;

use aho_corasick::AhoCorasick;

use super::TextError;
use super::vocabulary::{TokenKind, Vocabulary};

/// Most bytes of all special tokens: 28,672 of a model that speaks are 0.6 MB.
const MAX_BYTES: usize = 1 << 20;

/// A part of a text: a special token, or text that has none.
#[derive(Clone, Debug, PartialEq)]
pub enum Fragment {
    Token(u32),
    Text(Range<usize>),
}

/// The special tokens of a vocabulary.
pub struct SpecialTokens {
    /// Longest first, then by id.
    tokens: Vec<Special>,
    /// Finds which of them, by index, a text has at all.
    finder: AhoCorasick,
}

struct Special {
    id: u32,
    text: String,
    /// Recognised only where control tokens are parsed.
    control: bool,
    /// Takes the white space on its right with it.
    strip_right: bool,
}

impl SpecialTokens {
    /// `strip_right`: the special tokens of this vocabulary take the white space after them, except
    /// those named.
    pub fn new(vocabulary: &Vocabulary, strip_right: Option<&[&str]>) -> Result<SpecialTokens, TextError> {
        let mut tokens: Vec<Special> = (0u32..)
            .zip(vocabulary.kinds())
            .filter(|(_, kind)| kind.is_control() || **kind == TokenKind::UserDefined)
            .filter_map(|(id, kind)| {
                let text = vocabulary.text(id)?.to_owned();
                let strip_right = strip_right.is_some_and(|not| !not.contains(&text.as_str()));
                Some(Special { id, text, control: kind.is_control(), strip_right })
            })
            .collect();
        let bytes = tokens.iter().map(|token| token.text.len()).sum();
        if bytes > MAX_BYTES {
            return Err(TextError::SpecialTokensTooLong { tokens: tokens.len(), bytes, max: MAX_BYTES });
        }
        tokens.sort_by(|a, b| b.text.len().cmp(&a.text.len()).then(a.id.cmp(&b.id)));
        let finder = AhoCorasick::new(tokens.iter().map(|token| token.text.as_bytes()))
            .map_err(|error| TextError::Tokenizer(error.to_string()))?;
        Ok(SpecialTokens { tokens, finder })
    }

    /// Cuts a text at its special tokens; those of type control or unknown count only with `parse_control`.
    pub fn partition(&self, text: &str, parse_control: bool) -> Vec<Fragment> {
        if text.is_empty() {
            return Vec::new();
        }
        let mut fragments = vec![Fragment::Text(0..text.len())];
        for index in self.present(text) {
            let special = &self.tokens[index];
            if parse_control || !special.control {
                fragments = cut(text, fragments, special);
            }
        }
        fragments
    }

    /// The indices of the tokens that the text has, overlapping or not, in rising order.
    fn present(&self, text: &str) -> Vec<usize> {
        let mut seen = vec![false; self.tokens.len()];
        for found in self.finder.find_overlapping_iter(text) {
            seen[found.pattern().as_usize()] = true;
        }
        (0..seen.len()).filter(|&index| seen[index]).collect()
    }
}

fn cut(text: &str, fragments: Vec<Fragment>, special: &Special) -> Vec<Fragment> {
    let mut out = Vec::with_capacity(fragments.len());
    for fragment in fragments {
        let Fragment::Text(range) = fragment else {
            out.push(fragment);
            continue;
        };
        let mut rest = range.clone();
        while let Some(at) = text[rest.clone()].find(&special.text) {
            let start = rest.start + at;
            if start > rest.start {
                out.push(Fragment::Text(rest.start..start));
            }
            out.push(Fragment::Token(special.id));
            rest.start = start + special.text.len();
            if special.strip_right {
                let is_space = |b: &u8| b.is_ascii_whitespace() || *b == 0x0B;
                rest.start += text.as_bytes()[rest.clone()].iter().take_while(|b| is_space(b)).count();
            }
        }
        if !rest.is_empty() {
            out.push(Fragment::Text(rest));
        }
    }
    out
}
