//! Lossless speculation: tokens are drafted from the text itself and verified in one pass.
//!
//! A pass over a token and its drafts gives the logits after each of them, bit for bit those of passes of one
//! token (see [`crate::kernels`]). A token is drawn from each in turn, and a draft stands as long as it is
//! the token drawn: the text is that without speculation, whatever the sampler. Where a pass costs the
//! reading of the weights, the tokens that it verifies come for nothing.

mod ngram;
mod policy;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

pub use ngram::NgramIndex;
pub use policy::DraftPolicy;

/// Most tokens drafted for a pass: sixteen rows of logits of a vocabulary of 128k are 8 MB.
pub const MAX_DRAFT: usize = 15;

/// Whether tokens are drafted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    #[default]
    Off,
    /// As many as pay, by what is measured, where the model is dense and its weights are streamed at every
    /// pass; none elsewhere.
    Auto,
    /// Up to so many, [`MAX_DRAFT`] at most, with any model.
    Fixed(usize),
}

impl Speculation {
    /// Most tokens drafted for a pass.
    pub fn most(self) -> usize {
        match self {
            Speculation::Off => 0,
            Speculation::Auto => MAX_DRAFT,
            Speculation::Fixed(n) => n.min(MAX_DRAFT),
        }
    }
}

impl fmt::Display for Speculation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Speculation::Off => f.pad("off"),
            Speculation::Auto => f.pad("auto"),
            Speculation::Fixed(n) => n.fmt(f),
        }
    }
}

impl FromStr for Speculation {
    type Err = String;

    fn from_str(text: &str) -> Result<Speculation, String> {
        match text {
            "off" => Ok(Speculation::Off),
            "auto" => Ok(Speculation::Auto),
            _ => text
                .parse()
                .ok()
                .filter(|n| (1..=MAX_DRAFT).contains(n))
                .map(Speculation::Fixed)
                .ok_or_else(|| format!("auto, off and 1 to {MAX_DRAFT} are known")),
        }
    }
}

/// What speculation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SpeculationStats {
    /// Tokens drafted and run.
    pub drafted: usize,
    /// Those of them that were drawn.
    pub accepted: usize,
    /// Passes through the model, with drafts and without.
    pub passes: usize,
}

/// How the length of a draft is found.
#[derive(Clone, Debug)]
enum Length {
    Fixed(usize),
    Adaptive(Box<DraftPolicy>),
}

/// Drafts tokens, and compares them with those that are drawn.
#[derive(Clone, Debug)]
pub(super) struct Drafter {
    index: NgramIndex,
    length: Length,
    /// What was expected after the token that the last pass began with.
    expected: Vec<u32>,
    /// Tokens of the n-gram that gave it.
    matched: usize,
    /// How many of the expected tokens were run.
    run: usize,
    /// How many of the expected tokens have been drawn; `None` from the first other one on.
    agreed: Option<usize>,
    #[cfg(test)]
    pub fault: Option<Fault>,
}

/// What tests put wrong.
#[cfg(test)]
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// A draft that was run is taken for the token drawn.
    NotCompared,
    /// Drafts are the tokens of this text from where the run stands, in place of what the index gives.
    Text(Vec<u32>),
}

impl Drafter {
    /// A drafter that knows this text, and drafts up to `most` tokens.
    pub fn fixed(text: &[u32], most: usize) -> Drafter {
        Drafter::new(text, Length::Fixed(most))
    }

    /// A drafter that knows this text, and drafts what pays.
    pub fn adaptive(text: &[u32]) -> Drafter {
        Drafter::new(text, Length::Adaptive(Box::default()))
    }

    fn new(text: &[u32], length: Length) -> Drafter {
        Drafter {
            index: NgramIndex::new(text),
            length,
            expected: Vec::new(),
            matched: 0,
            run: 0,
            agreed: None,
            #[cfg(test)]
            fault: None,
        }
    }

    /// At most `most` tokens to run behind the last one drawn.
    pub fn draft(&mut self, most: usize) -> &[u32] {
        self.expected.clear();
        self.agreed = Some(0);
        self.matched = 0;
        if let Some((matched, ids)) = self.index.draft(MAX_DRAFT) {
            self.matched = matched;
            self.expected.extend(ids);
        }
        #[cfg(test)]
        if let Some(Fault::Text(text)) = &self.fault {
            self.expected = text.iter().skip(self.index.len()).take(MAX_DRAFT).copied().collect();
        }
        let most = most.min(self.expected.len());
        self.run = match &self.length {
            Length::Fixed(length) => most.min(*length),
            Length::Adaptive(policy) => policy.draft_length(self.matched, most),
        };
        &self.expected[..self.run]
    }

    /// The drafts were not run after all.
    pub fn withdraw(&mut self) {
        self.run = 0;
    }

    /// What the pass with the drafts took.
    pub fn passed(&mut self, time: Duration) {
        if let Length::Adaptive(policy) = &mut self.length {
            policy.passed(self.run, time);
        }
    }

    /// Takes note of a token drawn; says whether it is a draft that was run.
    pub fn drawn(&mut self, id: u32) -> bool {
        self.index.push(id);
        let Some((at, &expected)) = self.agreed.and_then(|at| Some((at, self.expected.get(at)?))) else {
            return false;
        };
        let agrees = expected == id;
        if let Length::Adaptive(policy) = &mut self.length {
            policy.compared(self.matched, agrees);
        }
        #[cfg(test)]
        let agrees = agrees || matches!(self.fault, Some(Fault::NotCompared));
        self.agreed = agrees.then_some(at + 1);
        agrees && at < self.run
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_they_are_written() {
        for mode in [Speculation::Off, Speculation::Auto, Speculation::Fixed(1), Speculation::Fixed(15)] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        for text in ["", "0", "16", "-1", "on", "1.5"] {
            assert!(text.parse::<Speculation>().is_err(), "{text}");
        }
    }

    #[test]
    fn drafts_stand_up_to_the_first_that_is_not_drawn() {
        let mut drafter = Drafter::fixed(&[1, 2, 3, 4, 5, 1, 2], 3);
        assert_eq!(drafter.draft(15), [3, 4, 5]);
        assert_eq!([3, 4, 9].map(|id| drafter.drawn(id)), [true, true, false]);
        // 4 9 is new; when it comes again, it is not.
        assert!(drafter.draft(15).is_empty());
        assert_eq!([3, 4, 9].map(|id| drafter.drawn(id)), [false; 3]);
        assert_eq!(drafter.draft(2), [3, 4]);
        // The third was expected but not run.
        assert_eq!([3, 4, 9].map(|id| drafter.drawn(id)), [true, true, false]);
        assert_eq!(drafter.draft(2).len(), 2);
        drafter.withdraw();
        assert!(!drafter.drawn(3));
    }

    #[test]
    fn what_is_expected_is_compared_though_it_was_not_run() {
        let mut drafter = Drafter::adaptive(&[1, 2, 3, 1, 2]);
        assert!(drafter.draft(15).is_empty(), "nothing is measured yet");
        drafter.passed(Duration::from_millis(500));
        for _ in 0..30 {
            assert!(!drafter.drawn(7), "not run");
            drafter.draft(0);
            drafter.passed(Duration::from_millis(500));
        }
        // A free draft that is always right.
        assert_eq!(drafter.draft(15), [7], "the first tries one");
        drafter.passed(Duration::from_millis(500));
        assert!(drafter.drawn(7));
        assert_eq!(drafter.draft(15), [7; 2]);
    }
}
