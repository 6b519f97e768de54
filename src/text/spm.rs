//! SentencePiece BPE with scores: a model for the crate `tokenizers`.
//!
//! The crate's own BPE needs merges with ranks. GGUF's SentencePiece vocabularies have a score a token
//! instead, any two neighbours may merge whose joined text is a token, also characters that are no
//! tokens themselves, and equal scores go to the leftmost pair, which ranks cannot say. So the algorithm
//! is here: of all neighbours whose joined text is a token, join the pair with the highest score, until
//! there is none; what is then no token is written byte by byte. Source: SentencePiece's bpe_model.cc.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::models::bpe::{BpeTrainer, Vocab as IdsByText};
use tokenizers::{Model, Result, Token};

use super::TextError;
use super::vocabulary::Vocabulary;

/// The model: texts to ids, and the scores that order the merges.
pub struct Spm {
    vocabulary: Arc<Vocabulary>,
    ids: IdsByText,
    scores: Vec<f32>,
    /// The token of each byte.
    bytes: Vec<Option<u32>>,
    /// Bytes of the longest token: no longer pair needs to be looked up.
    longest: usize,
}

impl Spm {
    /// `scores` are one a token and no NaN.
    pub fn new(vocabulary: Arc<Vocabulary>, ids: IdsByText, scores: Vec<f32>) -> Spm {
        let bytes = (0..=255u8).map(|b| ids.get(&format!("<0x{b:02X}>")).copied()).collect();
        let longest = ids.keys().map(String::len).max().unwrap_or(0);
        Spm { vocabulary, ids, scores, bytes, longest }
    }

    /// Joins the characters of the text into the pieces that remain.
    fn merge(&self, text: &str) -> Vec<Symbol> {
        let mut symbols = Symbol::characters(text);
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() {
            queue.extend(self.bigram(text, &symbols, right - 1, right));
        }
        while let Some(bigram) = queue.pop() {
            let (left, right) = (bigram.left as usize, bigram.right as usize);
            let (l, r) = (symbols[left], symbols[right]);
            // Out of date where one of the two has been merged with another since.
            if l.len == 0 || r.len == 0 || l.len + r.len != bigram.len {
                continue;
            }
            symbols[left].len = bigram.len;
            symbols[left].next = r.next;
            symbols[right].len = 0;
            if let Some(next) = r.next.get() {
                symbols[next].prev = Link::to(left);
                queue.extend(self.bigram(text, &symbols, left, next));
            }
            if let Some(prev) = l.prev.get() {
                queue.extend(self.bigram(text, &symbols, prev, left));
            }
        }
        symbols.retain(|symbol| symbol.len > 0);
        symbols
    }

    /// The pair of two neighbours, where joined they are a token.
    fn bigram(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Bigram> {
        let len = symbols[left].len + symbols[right].len;
        if len as usize > self.longest {
            return None;
        }
        let start = symbols[left].start as usize;
        let id = *self.ids.get(&text[start..start + len as usize])?;
        Some(Bigram { score: self.scores[id as usize], left: left as u32, right: right as u32, len })
    }
}

impl Model for Spm {
    type Trainer = BpeTrainer;

    fn tokenize(&self, sequence: &str) -> Result<Vec<Token>> {
        if u32::try_from(sequence.len()).is_err() {
            let max = u32::MAX as usize;
            return Err(TextError::TextTooLong { len: sequence.len(), max }.into());
        }
        let mut tokens = Vec::new();
        for symbol in self.merge(sequence) {
            let (start, end) = (symbol.start as usize, (symbol.start + symbol.len) as usize);
            let text = &sequence[start..end];
            if let Some(&id) = self.ids.get(text) {
                tokens.push(Token::new(id, text.to_owned(), (start, end)));
                continue;
            }
            for (i, byte) in text.bytes().enumerate() {
                let id = self.bytes[usize::from(byte)].ok_or(TextError::NoTokenForByte { byte })?;
                tokens.push(Token::new(id, format!("<0x{byte:02X}>"), (start + i, start + i + 1)));
            }
        }
        Ok(tokens)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.vocabulary.text(id).map(str::to_owned)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.ids.iter().map(|(text, &id)| (text.clone(), id)).collect()
    }

    fn get_vocab_size(&self) -> usize {
        self.ids.len()
    }

    fn save(&self, _folder: &Path, _prefix: Option<&str>) -> Result<Vec<PathBuf>> {
        Err("a vocabulary read from GGUF has no file form of its own".into())
    }

    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}

/// A piece of the text, linked to its neighbours; length 0 once it is part of the one on its left.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    len: u32,
    prev: Link,
    next: Link,
}

impl Symbol {
    fn characters(text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol {
                start: start as u32,
                len: c.len_utf8() as u32,
                prev: i.checked_sub(1).map_or(Link::NONE, Link::to),
                next: Link::to(i + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = Link::NONE;
        }
        symbols
    }
}

/// The index of a symbol, or none, in four bytes.
#[derive(Clone, Copy, PartialEq)]
struct Link(u32);

impl Link {
    const NONE: Link = Link(u32::MAX);

    fn to(index: usize) -> Link {
        Link(index as u32)
    }

    fn get(self) -> Option<usize> {
        (self != Link::NONE).then_some(self.0 as usize)
    }
}

/// Two neighbours that may be joined. The greatest is the one to join first: the highest score, of
/// equal scores the leftmost.
struct Bigram {
    score: f32,
    left: u32,
    right: u32,
    /// Bytes of both together when they were queued.
    len: u32,
}

impl Ord for Bigram {
    fn cmp(&self, other: &Bigram) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Bigram {
    fn partial_cmp(&self, other: &Bigram) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Bigram {
    fn eq(&self, other: &Bigram) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Bigram {}
