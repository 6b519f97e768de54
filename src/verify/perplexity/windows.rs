//! A text's tokens cut into windows, as llama-perplexity cuts them.

use std::ops::Range;

use thiserror::Error;

use crate::text::{EncodeOptions, TextError, Tokenizer};

/// The least context: there are tokens before those that are scored, and there is one of these.
const LEAST_CONTEXT: usize = 4;

/// How a text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowOptions {
    /// Tokens of a window, of which the second half is scored. With a stride so many are in view of the
    /// tokens that are scored, on average.
    pub context: usize,
    /// Tokens from one window to the next, all of them scored; else windows lie side by side.
    pub stride: Option<usize>,
    /// Windows at most.
    pub most: Option<usize>,
    /// What takes the place of the first token of windows that lie side by side. Those of a stride are run as
    /// they are.
    pub bos: Option<u32>,
}

/// Why a text cannot be cut.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum WindowsError {
    #[error("a context of {context} tokens, where {LEAST_CONTEXT} are the least")]
    Context { context: usize },
    #[error("a stride of {stride} tokens, where it must be less than the context of {context}")]
    Stride { stride: usize, context: usize },
    #[error("the text has {found} tokens, where two windows of {window} need {}", .window.saturating_mul(2))]
    TooShort { found: usize, window: usize },
}

/// The tokens of a text, and the BOS that windows begin with. One line end at the text's end is left out, and
/// so is the EOS that a vocabulary adds: nothing of the text foretells it. Special tokens that are written
/// out are recognised where `special` is set.
///
/// # Errors
/// A text that the vocabulary cannot write.
pub fn text_tokens(
    tokenizer: &Tokenizer,
    text: &str,
    special: bool,
) -> Result<(Vec<u32>, Option<u32>), TextError> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let mut ids = tokenizer.encode(text, EncodeOptions { add_special: true, parse_special: special })?;
    if tokenizer.adds_eos() && ids.last().copied() == tokenizer.eos() {
        ids.pop();
    }
    Ok((ids, tokenizer.bos().filter(|_| tokenizer.adds_bos())))
}

/// The windows of a text.
#[derive(Clone, Debug)]
pub struct Windows {
    tokens: Vec<u32>,
    options: WindowOptions,
    len: usize,
    step: usize,
    count: usize,
    /// The first position that is scored.
    first: usize,
}

impl Windows {
    /// Cuts the tokens of a text.
    ///
    /// # Errors
    /// A context or stride that makes no sense, or a text of less than two windows.
    pub fn new(tokens: Vec<u32>, options: WindowOptions) -> Result<Windows, WindowsError> {
        let len = Windows::length(&options)?;
        let found = tokens.len();
        if found / 2 < len {
            return Err(WindowsError::TooShort { found, window: len });
        }
        let (step, count, first) = match options.stride {
            Some(stride) => (stride, (found - len).div_ceil(stride).max(1), len - stride - 1),
            None => (len, found / len, len / 2),
        };
        let count = options.most.map_or(count, |most| count.min(most.max(1)));
        Ok(Windows { tokens, options, len, step, count, first })
    }

    /// Tokens of a window: with a stride those of the context and half a stride more.
    ///
    /// # Errors
    /// A context or stride that makes no sense.
    pub fn length(options: &WindowOptions) -> Result<usize, WindowsError> {
        let WindowOptions { context, stride, .. } = *options;
        if context < LEAST_CONTEXT {
            return Err(WindowsError::Context { context });
        }
        match stride {
            Some(stride) if stride == 0 || stride >= context => Err(WindowsError::Stride { stride, context }),
            Some(stride) => Ok(context.saturating_add(stride / 2)),
            None => Ok(context),
        }
    }

    /// How the text was cut.
    pub fn options(&self) -> &WindowOptions {
        &self.options
    }

    /// Tokens of the whole text.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Windows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Tokens of a window; see [`Windows::length`].
    pub fn window(&self) -> usize {
        self.len
    }

    /// Positions whose logits are scored, each by the token behind it: of windows side by side those of the
    /// second half but for the last, which has none behind it; of a stride so many before the last.
    pub fn scored(&self) -> Range<usize> {
        self.first..self.len - 1
    }

    /// How many they are.
    pub fn rows(&self) -> usize {
        self.scored().len()
    }

    /// The tokens of window `i` as they stand in the text.
    pub fn text(&self, i: usize) -> &[u32] {
        &self.tokens[i * self.step..i * self.step + self.len]
    }

    /// What is run of window `i`: all but the last token, whose logits nobody scores.
    pub fn input(&self, i: usize) -> Vec<u32> {
        let mut input = self.text(i)[..self.len - 1].to_vec();
        if let Some(bos) = self.options.bos.filter(|_| self.options.stride.is_none()) {
            input[0] = bos;
        }
        input
    }

    /// The tokens that the scored rows of window `i` are to foretell.
    pub fn targets(&self, i: usize) -> &[u32] {
        &self.text(i)[self.first + 1..]
    }

    /// A hash of what is run of window `i` and foretold in it.
    pub fn hash(&self, i: usize) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for id in self.input(i).iter().chain(self.targets(i)) {
            hasher.update(&id.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(tokens: u32, context: usize, stride: Option<usize>, most: Option<usize>) -> Windows {
        let options = WindowOptions { context, stride, most, bos: Some(900) };
        Windows::new((0..tokens).collect(), options).unwrap()
    }

    #[test]
    fn windows_side_by_side_score_their_second_half() {
        let windows = cut(27, 8, None, None);
        assert_eq!((windows.count(), windows.window(), windows.scored()), (3, 8, 4..7));
        assert_eq!(windows.input(1), [900, 9, 10, 11, 12, 13, 14]);
        assert_eq!(windows.targets(1), [13, 14, 15]);
        assert_eq!(windows.text(2), [16, 17, 18, 19, 20, 21, 22, 23]);
        let odd = cut(27, 9, None, Some(1));
        assert_eq!((odd.count(), odd.scored(), odd.rows()), (1, 4..8, 4));
    }

    #[test]
    fn windows_of_a_stride_score_each_token_once() {
        let windows = cut(40, 8, Some(4), None);
        assert_eq!((windows.window(), windows.count(), windows.scored()), (10, 8, 5..9));
        assert_eq!(windows.input(0)[..2], [0, 1], "no token is put in");
        let told: Vec<u32> = (0..windows.count()).flat_map(|i| windows.targets(i).to_vec()).collect();
        assert_eq!(told, (6..38).collect::<Vec<_>>());
        for stride in 1..8 {
            let windows = cut(40, 8, Some(stride), None);
            assert_eq!(windows.rows(), stride);
            assert!(
                windows.scored().start > 0 && windows.text(windows.count() - 1).len() == windows.window()
            );
        }
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let new = |tokens: u32, context, stride| {
            let options = WindowOptions { context, stride, most: None, bos: None };
            Windows::new((0..tokens).collect(), options).map(|windows| windows.count())
        };
        assert_eq!(new(15, 8, None), Err(WindowsError::TooShort { found: 15, window: 8 }));
        assert_eq!(new(16, 8, None), Ok(2));
        assert_eq!(new(0, 8, None), Err(WindowsError::TooShort { found: 0, window: 8 }));
        assert_eq!(new(9, 3, None), Err(WindowsError::Context { context: 3 }));
        assert_eq!(new(19, 8, Some(4)), Err(WindowsError::TooShort { found: 19, window: 10 }));
        for stride in [0, 8, usize::MAX] {
            assert_eq!(new(99, 8, Some(stride)), Err(WindowsError::Stride { stride, context: 8 }));
        }
        let huge = new(9, usize::MAX, None).unwrap_err();
        assert!(matches!(huge, WindowsError::TooShort { .. }), "{huge:?}");
    }

    #[test]
    fn hashes_are_of_what_is_run() {
        let windows = cut(27, 8, None, None);
        assert_ne!(windows.hash(0), windows.hash(1));
        let mut other = windows.clone();
        other.tokens[9] += 1;
        assert_eq!((other.hash(0), other.hash(1) == windows.hash(1)), (windows.hash(0), false));
        other = windows.clone();
        other.options.bos = None;
        assert_ne!(other.hash(0), windows.hash(0));
        // A token that another one takes the place of is not run.
        other = windows.clone();
        other.tokens[8] += 1;
        assert_eq!(other.hash(1), windows.hash(1));
    }
}
