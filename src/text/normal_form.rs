//! Canonical composition (NFC) of texts, for tokenizers whose authors compose a text before they cut it.

use std::borrow::Cow;

use tokenizers::normalizers::NFC;
use tokenizers::{NormalizedString, Normalizer};

use super::TextError;

/// What is done to a text before it is cut into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormalForm {
    /// Nothing.
    AsWritten,
    /// Canonical composition.
    Nfc,
}

impl NormalForm {
    /// The text in this form.
    pub fn apply(self, text: &str) -> Result<Cow<'_, str>, TextError> {
        match self {
            NormalForm::AsWritten => Ok(Cow::Borrowed(text)),
            NormalForm::Nfc => nfc(text),
        }
    }
}

/// Every character below this one is composed, and composes with no character before it.
const FIRST_TO_COMPOSE: char = '\u{300}';

/// The text composed as the authors' tokenizers do it: by the crate `tokenizers`, whose tables decide which
/// version of Unicode that is.
fn nfc(text: &str) -> Result<Cow<'_, str>, TextError> {
    if text.chars().all(|c| c < FIRST_TO_COMPOSE) {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c| c >= FIRST_TO_COMPOSE) {
        // A mark composes with the character before it, and no ASCII character composes with one before.
        let start = rest[..at].char_indices().next_back().map_or(at, |(start, _)| start);
        let end = rest[at..].find(|c: char| c.is_ascii()).map_or(rest.len(), |len| at + len);
        let mut run = NormalizedString::from(&rest[start..end]);
        NFC.normalize(&mut run).map_err(|error| TextError::Tokenizer(error.to_string()))?;
        out.push_str(&rest[..start]);
        out.push_str(run.get());
        rest = &rest[end..];
    }
    out.push_str(rest);
    Ok(Cow::Owned(out))
}

#[cfg(test)]
mod tests {
    use super::super::testing::Rng;
    use super::*;

    #[test]
    fn marks_compose_with_what_is_before_them() {
        assert_eq!(nfc("e\u{301}\u{327}x\u{308}").unwrap(), "ȩ\u{301}ẍ");
        assert_eq!(nfc("\u{1112}\u{1161}\u{11AB}").unwrap(), "한");
        assert_eq!(nfc("\u{212B} \u{F900}").unwrap(), "Å 豈");
        assert_eq!(nfc("é \u{301}e").unwrap(), "é \u{301}e");
        assert!(matches!(nfc("déjà vu ¿").unwrap(), Cow::Borrowed(_)));
        assert_eq!(nfc("").unwrap(), "");
    }

    /// The runs are cut where nothing composes: composing a text as a whole gives the same.
    #[test]
    fn runs_compose_as_the_whole_does() {
        let alphabet = [
            'a',
            'e',
            ' ',
            '\n',
            'é',
            'Å',
            'ß',
            '\u{301}',
            '\u{327}',
            '\u{308}',
            '\u{323}',
            '\u{1100}',
            '\u{1161}',
            '\u{11A8}',
            '中',
            '\u{2126}',
            '\u{200D}',
            '\u{1F600}',
        ];
        let mut rng = Rng(11);
        for _ in 0..2000 {
            let len = rng.below(20);
            let text: String =
                (0..len).map(|_| alphabet[rng.below(alphabet.len() as u64) as usize]).collect();
            let mut whole = NormalizedString::from(&text[..]);
            NFC.normalize(&mut whole).unwrap();
            assert_eq!(nfc(&text).unwrap(), whole.get(), "{text:?}");
        }
    }
}
