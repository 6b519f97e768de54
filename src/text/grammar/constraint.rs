//! A grammar at work on one answer.

use std::fmt;
use std::sync::Arc;

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use super::reason;
use crate::text::TextError;

/// Which tokens may come next.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenMask(SimpleVob);

impl TokenMask {
    /// Whether a token may come next; none outside the vocabulary may.
    pub fn allows(&self, id: u32) -> bool {
        (id as usize) < self.0.len() && self.0.is_allowed(id)
    }

    /// How many tokens may.
    pub fn count(&self) -> usize {
        self.0.num_set()
    }

    /// A bit a token, the lowest of each word first; those behind the vocabulary are 0.
    pub fn words(&self) -> &[u32] {
        self.0.as_slice()
    }
}

impl fmt::Debug for TokenMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenMask({} of {})", self.count(), self.0.len())
    }
}

/// Says which tokens an answer may go on with, given those that it has. Made by
/// [`GrammarFactory::constraint`](super::GrammarFactory::constraint).
///
/// What it says depends on the grammar, the vocabulary and the tokens accepted alone.
pub struct Constraint {
    matcher: Matcher,
    /// Tokens that end a generation.
    ends: Arc<[u32]>,
    /// For the next token, where it has been asked for.
    mask: Option<TokenMask>,
}

impl Constraint {
    pub(super) fn new(matcher: Matcher, ends: Arc<[u32]>) -> Constraint {
        Constraint { matcher, ends, mask: None }
    }

    /// The tokens that may come next, computed once for each. Those that end a generation are among them
    /// where the grammar may end, and they alone where it has ended.
    ///
    /// # Errors
    /// A grammar that takes more work than is allowed, or with which no token of the vocabulary can go on;
    /// every later call fails too.
    pub fn mask(&mut self) -> Result<&TokenMask, TextError> {
        let mask = match self.mask.take() {
            Some(mask) => mask,
            None => TokenMask(self.matcher.compute_mask_or_eos().map_err(|error| failed(&error))?),
        };
        Ok(self.mask.insert(mask))
    }

    /// Goes on with a token.
    ///
    /// # Errors
    /// One that the mask does not allow; every later call fails too.
    pub fn accept(&mut self, id: u32) -> Result<(), TextError> {
        if self.is_finished() && self.ends.contains(&id) {
            return Ok(());
        }
        self.mask = None;
        self.matcher.consume_token(id).map_err(|error| failed(&error))
    }

    /// Whether the grammar has ended: nothing but an end of generation can follow.
    pub fn is_finished(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

impl Clone for Constraint {
    fn clone(&self) -> Constraint {
        // A plain clone of the matcher would wait for the other's masks.
        let (matcher, ends, mask) = (self.matcher.deep_clone(), self.ends.clone(), self.mask.clone());
        Constraint { matcher, ends, mask }
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("finished", &self.is_finished()).finish_non_exhaustive()
    }
}

fn failed(error: &dyn std::fmt::Display) -> TextError {
    let reason = reason(error);
    TextError::Constraint(match reason.as_str() {
        "NoExtensionBias" => "no token of the vocabulary can come next".to_owned(),
        _ => reason,
    })
}
