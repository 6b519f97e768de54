//! Ids to text as they come.

use super::Tokenizer;

/// Turns ids into text one at a time; a character is given out when its last byte has come.
///
/// Made by [`Tokenizer::stream`].
#[derive(Debug)]
pub struct TokenStream<'a> {
    tokenizer: &'a Tokenizer,
    special: bool,
    /// Whether a space at the start is the tokenizer's, not the text's.
    strip_space: bool,
    utf8: Utf8Joiner,
}

impl<'a> TokenStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, special: bool) -> TokenStream<'a> {
        TokenStream { tokenizer, special, strip_space: false, utf8: Utf8Joiner::default() }
    }

    /// The ids begin a text: the space that the tokenizer puts before a text is not given out.
    pub fn at_start(mut self) -> TokenStream<'a> {
        self.strip_space = self.tokenizer.adds_space_prefix();
        self
    }

    /// Takes an id, gives out the text that is complete with it: perhaps none. Bytes that cannot become
    /// UTF-8 any more are given out as U+FFFD. An id outside the vocabulary stands for nothing.
    pub fn push(&mut self, id: u32) -> String {
        let bytes = self.bytes(id);
        self.utf8.push(bytes)
    }

    /// What is left at the end: an unfinished character as U+FFFD.
    pub fn finish(&mut self) -> String {
        self.utf8.finish()
    }

    /// The bytes of the next id.
    pub(super) fn bytes(&mut self, id: u32) -> &'a [u8] {
        let piece = self.tokenizer.piece(id, self.special).unwrap_or_default();
        if !self.strip_space || piece.is_empty() {
            return piece;
        }
        self.strip_space = false;
        piece.strip_prefix(b" ").unwrap_or(piece)
    }
}

/// Joins pieces of bytes into text, as [`String::from_utf8_lossy`] would read them in one piece.
#[derive(Debug, Default)]
pub struct Utf8Joiner {
    /// The start of a character: at most three bytes between calls.
    pending: Vec<u8>,
}

impl Utf8Joiner {
    /// The text that is complete with these bytes; those that cannot become UTF-8 any more are U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut out = String::new();
        self.pending.extend_from_slice(bytes);
        let mut taken = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            out.push_str(chunk.valid());
            taken += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            // Only the last chunk can be the start of a character that is still to come.
            let unfinished = chunks.peek().is_none()
                && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if !unfinished {
                out.push(char::REPLACEMENT_CHARACTER);
                taken += invalid.len();
            }
        }
        self.pending.drain(..taken);
        out
    }

    /// What is left at the end: an unfinished character as U+FFFD.
    pub fn finish(&mut self) -> String {
        let left = !std::mem::take(&mut self.pending).is_empty();
        if left { char::REPLACEMENT_CHARACTER.to_string() } else { String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the bytes in all pieces of `size`.
    fn joined(bytes: &[u8], size: usize) -> Vec<String> {
        let mut joiner = Utf8Joiner::default();
        let mut parts: Vec<String> = bytes
            .chunks(size)
            .map(|chunk| {
                let out = joiner.push(chunk);
                assert!(joiner.pending.len() < 4);
                out
            })
            .collect();
        parts.push(joiner.finish());
        parts
    }

    #[test]
    fn a_character_is_given_out_with_its_last_byte() {
        let parts = joined("a€𝄞".as_bytes(), 1);
        assert_eq!(parts, ["a", "", "", "€", "", "", "", "𝄞", ""]);
    }

    #[test]
    fn invalid_bytes_become_replacements_once_they_are_lost() {
        // E2 82 could become a euro sign until 41 comes; FF never could.
        assert_eq!(joined(b"\xE2\x82A\xFFB", 1), ["", "", "\u{FFFD}A", "\u{FFFD}", "B", ""]);
        assert_eq!(joined(b"\xF0\x9F", 1), ["", "", "\u{FFFD}"]);
    }

    #[test]
    fn pieces_of_any_size_read_as_the_whole_does() {
        let mut state = 7u32;
        let noise: Vec<u8> = (0..4000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Mostly bytes of longer characters, so that many halves meet.
                [0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, b'a', 0xC3][(state >> 29) as usize]
            })
            .collect();
        for size in 1..9 {
            assert_eq!(joined(&noise, size).concat(), String::from_utf8_lossy(&noise), "pieces of {size}");
        }
    }
}
