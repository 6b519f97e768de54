//! Prompt lookup decoding: what followed the last tokens when they stood earlier in the text.
//!
//! <https://github.com/apoorvumang/prompt-lookup-decoding>

use std::collections::HashMap;

/// Tokens of the shortest n-gram that is looked up.
pub const SHORTEST: usize = 2;
/// Tokens of the longest n-gram that is looked up; four ids fill a `u128`.
pub const LONGEST: usize = 4;

/// The text so far, and where each of its n-grams was last followed by a token.
///
/// A token costs one entry for each length of n-gram, whatever the length of the text.
#[derive(Clone, Debug, Default)]
pub struct NgramIndex {
    tokens: Vec<u32>,
    /// For n of [`SHORTEST`] to [`LONGEST`]: the n-gram, its ids side by side, to the position after its
    /// latest occurrence. The n-gram that ends the text is not in it: nothing has followed it yet.
    after: [HashMap<u128, usize>; LONGEST - SHORTEST + 1],
}

impl NgramIndex {
    /// An index of this text.
    pub fn new(tokens: &[u32]) -> NgramIndex {
        let mut index = NgramIndex::default();
        tokens.iter().for_each(|&id| index.push(id));
        index
    }

    /// Appends a token to the text.
    pub fn push(&mut self, id: u32) {
        let end = self.tokens.len();
        for (n, after) in (SHORTEST..).zip(&mut self.after) {
            if let Some(gram) = last(&self.tokens, n) {
                after.insert(gram, end);
            }
        }
        self.tokens.push(id);
    }

    /// Tokens of the text.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the text has no token yet.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// What may follow: `most` tokens that followed the latest earlier occurrence of the longest n-gram that
    /// ends the text, with that n; none where there is no such. Where the text ends before there are as many,
    /// it is taken to go on in the same circle.
    pub fn draft(&self, most: usize) -> Option<(usize, impl Iterator<Item = u32>)> {
        let (n, at) = (SHORTEST..LONGEST + 1).zip(&self.after).rev().find_map(|(n, after)| {
            let at = after.get(&last(&self.tokens, n)?)?;
            Some((n, *at))
        })?;
        let circle = &self.tokens[at..];
        Some((n, circle.iter().copied().cycle().take(most)))
    }
}

/// The last `n` tokens, side by side.
fn last(tokens: &[u32], n: usize) -> Option<u128> {
    let start = tokens.len().checked_sub(n)?;
    Some(tokens[start..].iter().fold(0, |gram, &id| gram << 32 | u128::from(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(tokens: &[u32], most: usize) -> (usize, Vec<u32>) {
        NgramIndex::new(tokens).draft(most).map_or((0, Vec::new()), |(n, ids)| (n, ids.collect()))
    }

    #[test]
    fn what_followed_before_is_the_draft() {
        assert_eq!(draft(&[1, 2, 3, 4, 5, 9, 1, 2], 3), (2, vec![3, 4, 5]));
        assert_eq!(draft(&[7, 1, 2, 3, 4, 7, 1, 2], 1), (3, vec![3]));
        assert_eq!(draft(&[7, 1, 2, 3, 4, 7, 1, 2], 0), (3, vec![]));
    }

    #[test]
    fn the_longest_ngram_wins_then_the_latest() {
        // 1 2 was last followed by 6; 0 1 2 only by 5.
        assert_eq!(draft(&[0, 1, 2, 5, 1, 2, 6, 0, 1, 2], 1), (3, vec![5]));
        assert_eq!(draft(&[1, 2, 5, 1, 2, 6, 8, 1, 2], 1), (2, vec![6]));
        // Five tokens in common count as four.
        assert_eq!(draft(&[1, 2, 3, 4, 5, 6, 9, 1, 2, 3, 4, 5], 1), (4, vec![6]));
    }

    #[test]
    fn nothing_known_is_no_draft() {
        for tokens in [&[][..], &[1], &[1, 2], &[1, 1], &[1, 2, 3, 4, 3], &[5, 1, 6, 1]] {
            assert_eq!(draft(tokens, 8), (0, vec![]), "{tokens:?}");
        }
        // Ids side by side are not taken for one another.
        assert_eq!(draft(&[0, 0, 1, 7, 0, 1], 1), (2, vec![7]));
        assert_eq!(draft(&[1, 0, 7, 0, 1], 1), (0, vec![]));
    }

    #[test]
    fn a_draft_goes_on_in_the_circle_that_the_text_is_in() {
        assert_eq!(draft(&[4, 4, 4], 5), (2, vec![4; 5]));
        assert_eq!(draft(&[1, 2, 3, 1, 2, 3, 1, 2], 7), (4, vec![3, 1, 2, 3, 1, 2, 3]));
    }

    #[test]
    fn it_grows_as_the_text_does() {
        let text: Vec<u32> = (0..500).map(|i| i * i % 17 % 5).collect();
        let mut index = NgramIndex::default();
        for (end, &id) in text.iter().enumerate() {
            // The definition, by search.
            let known = &text[..end];
            let found = (SHORTEST..=LONGEST).rev().filter(|&n| n < end).find_map(|n| {
                let at = (n..end).rev().find(|&at| known[at - n..at] == known[end - n..])?;
                Some((n, known[at]))
            });
            let draft = index.draft(1).map(|(n, mut ids)| (n, ids.next().unwrap()));
            assert_eq!(draft, found, "after {end} tokens");
            index.push(id);
        }
    }
}
