//! The vocabulary as a trie of bytes, for the crate `toktrie`.
//!
//! Tokens that are text stand for their bytes. Control tokens and ends of generations begin with 0xFF, which
//! no text has: a grammar may name them, and nothing that it says of text ever matches them.

use llguidance::toktrie::{TokRxInfo, TokTrie};

use crate::text::{TextError, TokenKind, Tokenizer};

/// Bytes of the longest token that a trie holds.
const MAX_TOKEN: usize = 1 << 10;

/// Most nodes: the crate counts them in 22 bits.
const MAX_NODES: usize = (1 << 22) - 1;

/// The crate's ids have 24 bits, of which the highest stands for none.
const MAX_TOKENS: usize = (1 << 24) - 2;

/// The trie of a vocabulary, with the tokens that end a generation.
///
/// # Errors
/// A vocabulary without an end of generation, or one that is larger than a trie may be.
pub fn build(tokenizer: &Tokenizer) -> Result<TokTrie, TextError> {
    let tokens = tokenizer.vocab_len();
    if tokens > MAX_TOKENS {
        return Err(TextError::VocabularySize { len: tokens });
    }
    let ids = 0..tokens as u32;
    let mut ends: Vec<u32> = ids.clone().filter(|&id| tokenizer.is_end_of_generation(id)).collect();
    // The first is the one that the file itself calls the end of a text.
    ends.sort_by_key(|&id| (Some(id) != tokenizer.eos(), id));
    let &[first, ..] = &ends[..] else { return Err(TextError::NoEndToken) };
    let words: Vec<Vec<u8>> = ids.map(|id| word(tokenizer, id)).collect();
    let nodes = nodes(&words);
    if nodes > MAX_NODES {
        return Err(TextError::TrieTooLarge { nodes, max: MAX_NODES });
    }
    let info = TokRxInfo::new(tokens as u32, first);
    Ok(TokTrie::from(&info, &words).with_eos_tokens(&ends))
}

/// What a token is in the trie; nothing where no text can have it.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
    let special = tokenizer.token_kind(id).is_none_or(TokenKind::is_control);
    let word = match tokenizer.token_text(id) {
        Some(text) if special || tokenizer.is_end_of_generation(id) => [&[MARKER], text.as_bytes()].concat(),
        _ => tokenizer.piece(id, true).filter(|piece| !piece.contains(&MARKER)).unwrap_or_default().to_vec(),
    };
    if word.len() > MAX_TOKEN { Vec::new() } else { word }
}

/// Nodes of the trie of these words at most: each word's bytes beyond what it shares with the one before it.
fn nodes(words: &[Vec<u8>]) -> usize {
    let mut sorted: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    sorted.sort_unstable();
    let own = |pair: &[&[u8]]| {
        let shared = pair[0].iter().zip(pair[1]).take_while(|(a, b)| a == b).count();
        // One of two equal words has a last node of its own.
        (pair[1].len() - shared).max(usize::from(!pair[1].is_empty()))
    };
    1 + sorted.first().map_or(0, |word| word.len()) + sorted.windows(2).map(own).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing::{bpe, spm, tokenizer};

    #[test]
    fn text_stands_for_its_bytes_and_nothing_else_does() {
        let long = "x".repeat(MAX_TOKEN + 1);
        let pieces = [("ab", -1.0, 1), ("\u{2581}ab", -1.0, 1), ("<tool>", -1.0, 4), ("<|im_end|>", -1.0, 3)];
        let unused = [("gone", -1.0, 5), (long.as_str(), -1.0, 1), (&long[1..], -1.0, 1)];
        let tokenizer = tokenizer(&spm(&[&pieces[..], &unused].concat())).expect("a tokenizer");
        let trie = build(&tokenizer).expect("a trie");
        let words: [&[u8]; 7] =
            [b"ab", b" ab", b"<tool>", b"\xFF<|im_end|>", b"", b"", &long.as_bytes()[1..]];
        for (id, word) in (259..).zip(words) {
            assert_eq!(trie.token(id), word, "{id}");
        }
        // The byte of every byte token, but for the one that no text has.
        assert_eq!((trie.token(3 + 0x41), trie.token(3 + 0xFF)), (&b"A"[..], &b""[..]));
        assert_eq!(
            (trie.token(0), trie.token(1), trie.token(2)),
            (&b"\xFF<unk>"[..], &b"\xFF<s>"[..], &b"\xFF</s>"[..])
        );
        // The end of a text first, then the end of a turn.
        assert_eq!(trie.eos_tokens(), [2, 262]);
    }

    #[test]
    fn a_vocabulary_without_an_end_is_refused() {
        let tokenizer = tokenizer(&bpe(&[], &[])).expect("a tokenizer");
        assert!(matches!(build(&tokenizer), Err(TextError::NoEndToken)));
    }

    #[test]
    fn nodes_are_counted_as_the_crate_makes_them() {
        let words = ["", "a", "abc", "abd", "abd", "b", "xyz"].map(|word| word.as_bytes().to_vec());
        assert_eq!(nodes(&words), 1 + 3 + 1 + 1 + 1 + 3);
        let trie = TokTrie::from(&TokRxInfo::new(7, 0), &words);
        assert_eq!(trie.root().subtree_size(), nodes(&words));
    }
}
