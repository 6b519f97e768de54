//! Lossless speculation: tokens are drafted and verified in one pass.
//!
//! A pass over a token and its drafts gives the logits after each of them, bit for bit those of passes of one
//! token (see [`crate::kernels`]). A token is drawn from each in turn, and a draft stands as long as it is
//! the token drawn: the text is that without speculation, whatever the sampler. Where a pass costs the
//! reading of the weights, the tokens that it verifies come for nothing.
//!
//! Drafts come from the text itself (what followed the same tokens before), or from the model's block of
//! multi-token prediction.

mod ngram;
mod policy;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use crate::model::ModelSpec;

pub use ngram::NgramIndex;
use policy::MOST_OF_BLOCK;
pub use policy::{DraftOffer, DraftPlan, DraftPolicy, DraftSource};

/// Most tokens drafted for a pass: sixteen rows of logits of a vocabulary of 128k are 8 MB.
pub const MAX_DRAFT: usize = 15;

/// The same of recurrent models where nobody asks for more: every draft keeps a state, and the memory for it
/// is set aside.
const MOST_STATES: usize = 3;

/// What is drafted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    #[default]
    Off,
    /// From the text or by the block, as many as pay by what is measured.
    Auto,
    /// From the text, up to so many, [`MAX_DRAFT`] at most.
    Fixed(usize),
    /// By the model's block of multi-token prediction: so many, or as many as are best by what is measured.
    Block(Option<usize>),
}

impl Speculation {
    /// Most tokens drafted for a pass of a model.
    pub fn most(self, spec: &ModelSpec) -> usize {
        match self {
            Speculation::Off => 0,
            Speculation::Auto if spec.is_recurrent() => MOST_STATES,
            Speculation::Auto => MAX_DRAFT,
            Speculation::Fixed(n) | Speculation::Block(Some(n)) => n.min(MAX_DRAFT),
            Speculation::Block(None) => MOST_OF_BLOCK,
        }
    }
}

impl fmt::Display for Speculation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Speculation::Off => f.pad("off"),
            Speculation::Auto => f.pad("auto"),
            Speculation::Fixed(n) => n.fmt(f),
            Speculation::Block(None) => f.pad("mtp"),
            Speculation::Block(Some(n)) => f.pad(&format!("mtp:{n}")),
        }
    }
}

impl FromStr for Speculation {
    type Err = String;

    fn from_str(text: &str) -> Result<Speculation, String> {
        let number = |text: &str| text.parse().ok().filter(|n| (1..=MAX_DRAFT).contains(n));
        let read = match text {
            "off" => Some(Speculation::Off),
            "auto" => Some(Speculation::Auto),
            "mtp" => Some(Speculation::Block(None)),
            _ => match text.strip_prefix("mtp:") {
                Some(n) => number(n).map(|n| Speculation::Block(Some(n))),
                None => number(text).map(Speculation::Fixed),
            },
        };
        read.ok_or_else(|| format!("auto, off, mtp, mtp:1 to mtp:{MAX_DRAFT} and 1 to {MAX_DRAFT} are known"))
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

/// Where drafts come from, and how their length is found.
#[derive(Clone, Debug)]
enum Mode {
    /// From the text, up to so many.
    Text(usize),
    /// By the block, so many.
    Block(usize),
    /// By the block, as many as are best.
    BestOfBlock(Box<DraftPolicy>),
    /// What pays; whether there is a block.
    WhatPays { policy: Box<DraftPolicy>, block: bool },
}

/// Tokens expected behind the one that the last pass began with, and how many of them have been drawn: `None`
/// from the first other one on.
#[derive(Clone, Debug, Default)]
struct Expected {
    ids: Vec<u32>,
    agreed: Option<usize>,
}

impl Expected {
    fn set(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.ids.clear();
        self.ids.extend(ids);
        self.agreed = Some(0);
    }

    fn clear(&mut self) {
        self.ids.clear();
        self.agreed = None;
    }

    /// Compares a token drawn: which of those expected, and whether it is the one.
    fn compare(&mut self, id: u32) -> Option<(usize, bool)> {
        let at = self.agreed?;
        let agrees = *self.ids.get(at)? == id;
        self.agreed = agrees.then_some(at + 1);
        Some((at, agrees))
    }
}

/// Drafts tokens, and compares them with those that are drawn.
#[derive(Clone, Debug)]
pub(super) struct Drafter {
    index: NgramIndex,
    mode: Mode,
    /// What the text and the block say.
    text: Expected,
    block: Expected,
    /// Tokens of the n-gram that gave what the text says.
    matched: usize,
    /// What the last pass ran.
    run: Option<DraftPlan>,
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
    /// The drafter that a mode asks for, which knows this text; `block`: whether the model has one.
    pub fn new(speculation: Speculation, text: &[u32], block: bool) -> Option<Drafter> {
        let mode = match speculation {
            Speculation::Off => return None,
            Speculation::Fixed(n) => Mode::Text(n.min(MAX_DRAFT)),
            Speculation::Block(_) if !block => return None,
            Speculation::Block(Some(n)) => Mode::Block(n.min(MAX_DRAFT)),
            Speculation::Block(None) => Mode::BestOfBlock(Box::default()),
            Speculation::Auto => Mode::WhatPays { policy: Box::default(), block },
        };
        Some(Drafter {
            index: NgramIndex::new(text),
            mode,
            text: Expected::default(),
            block: Expected::default(),
            matched: 0,
            run: None,
            #[cfg(test)]
            fault: None,
        })
    }

    /// What to run behind the last token drawn, at most `most` tokens. Drafts of the text are there then
    /// ([`Drafter::drafts`]); those of the block are to be made, and told by [`Drafter::made`].
    pub fn plan(&mut self, most: usize) -> Option<DraftPlan> {
        self.block.clear();
        self.matched = 0;
        let offered = self.index.draft(MAX_DRAFT).map(|(matched, ids)| {
            self.matched = matched;
            ids
        });
        self.text.set(offered.into_iter().flatten());
        #[cfg(test)]
        if let Some(Fault::Text(text)) = &self.fault {
            self.text.set(text.iter().skip(self.index.len()).take(MAX_DRAFT).copied());
        }
        let of_text = self.text.ids.len().min(most);
        let text = DraftSource::Text { matched: self.matched };
        let plan = match &mut self.mode {
            Mode::Text(n) => Some(DraftPlan { source: text, drafts: of_text.min(*n) }),
            Mode::Block(n) => Some(DraftPlan { source: DraftSource::Block, drafts: most.min(*n) }),
            Mode::BestOfBlock(policy) => {
                Some(DraftPlan { source: DraftSource::Block, drafts: policy.choose_of_block(most) })
            }
            Mode::WhatPays { policy, block } => policy.choose(DraftOffer {
                text: Some((self.matched, of_text)),
                block: if *block { most } else { 0 },
            }),
        };
        self.run = plan.filter(|plan| plan.drafts > 0);
        self.run
    }

    /// What the block drafted, which may be less than was asked for.
    pub fn made(&mut self, drafts: &[u32]) {
        self.block.set(drafts.iter().copied());
        let plan = DraftPlan { source: DraftSource::Block, drafts: drafts.len() };
        self.run = Some(plan).filter(|plan| plan.drafts > 0);
    }

    /// What to run.
    pub fn drafts(&self) -> &[u32] {
        match self.run {
            Some(DraftPlan { source: DraftSource::Text { .. }, drafts }) => &self.text.ids[..drafts],
            Some(DraftPlan { source: DraftSource::Block, drafts }) => &self.block.ids[..drafts],
            None => &[],
        }
    }

    /// The drafts were not run after all.
    pub fn withdraw(&mut self) {
        self.run = None;
    }

    /// What making the drafts took, and the pass with them.
    pub fn passed(&mut self, making: Duration, pass: Duration) {
        let (source, drafts) = (self.run.map(|plan| plan.source), self.run.map_or(0, |plan| plan.drafts));
        match &mut self.mode {
            Mode::BestOfBlock(policy) | Mode::WhatPays { policy, .. } => {
                policy.passed(source, drafts, making, pass);
            }
            Mode::Text(_) | Mode::Block(_) => {}
        }
    }

    /// Takes note of a token drawn; says whether it is a draft that was run.
    pub fn drawn(&mut self, id: u32) -> bool {
        self.index.push(id);
        let mut stands = false;
        let text = DraftSource::Text { matched: self.matched };
        for (source, expected) in [(text, &mut self.text), (DraftSource::Block, &mut self.block)] {
            #[cfg(test)]
            let id = match (&self.fault, expected.agreed) {
                (Some(Fault::NotCompared), Some(at)) => expected.ids.get(at).copied().unwrap_or(id),
                _ => id,
            };
            let Some((at, agrees)) = expected.compare(id) else { continue };
            let run = self.run.is_some_and(|plan| plan.source == source && at < plan.drafts);
            if let Mode::BestOfBlock(policy) | Mode::WhatPays { policy, .. } = &mut self.mode {
                policy.compared(source, at, agrees, run);
            }
            stands |= agrees && run;
        }
        stands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_they_are_written() {
        let numbered = [1, 15].map(|n| [Speculation::Fixed(n), Speculation::Block(Some(n))]).concat();
        for mode in [&[Speculation::Off, Speculation::Auto, Speculation::Block(None)][..], &numbered].concat()
        {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        for text in ["", "0", "16", "-1", "on", "1.5", "mtp:", "mtp:0", "mtp:16", "mtp1"] {
            assert!(text.parse::<Speculation>().is_err(), "{text}");
        }
    }

    /// Drafts of at most `most` tokens of the text.
    fn draft(drafter: &mut Drafter, most: usize) -> Vec<u32> {
        drafter.plan(most);
        drafter.drafts().to_vec()
    }

    fn drafter(speculation: Speculation, text: &[u32]) -> Drafter {
        Drafter::new(speculation, text, true).expect("it drafts")
    }

    #[test]
    fn drafts_stand_up_to_the_first_that_is_not_drawn() {
        let mut drafter = drafter(Speculation::Fixed(3), &[1, 2, 3, 4, 5, 1, 2]);
        assert_eq!(draft(&mut drafter, 15), [3, 4, 5]);
        assert_eq!([3, 4, 9].map(|id| drafter.drawn(id)), [true, true, false]);
        // 4 9 is new; when it comes again, it is not.
        assert!(draft(&mut drafter, 15).is_empty());
        assert_eq!([3, 4, 9].map(|id| drafter.drawn(id)), [false; 3]);
        assert_eq!(draft(&mut drafter, 2), [3, 4]);
        // The third was expected but not run.
        assert_eq!([3, 4, 9].map(|id| drafter.drawn(id)), [true, true, false]);
        assert_eq!(draft(&mut drafter, 2).len(), 2);
        drafter.withdraw();
        assert!(!drafter.drawn(3));
    }

    #[test]
    fn drafts_of_the_block_stand_as_those_of_the_text_do() {
        let mut drafter = drafter(Speculation::Block(Some(3)), &[1, 2, 3, 1, 2]);
        assert_eq!(drafter.plan(2), Some(DraftPlan { source: DraftSource::Block, drafts: 2 }));
        drafter.made(&[7, 8]);
        assert_eq!(drafter.drafts(), [7, 8]);
        assert_eq!([7, 9].map(|id| drafter.drawn(id)), [true, false]);
        // What the text says (3) was not run.
        drafter.plan(15);
        drafter.made(&[5]);
        assert!(!drafter.drawn(3));
        // A block that gives nothing.
        drafter.plan(15);
        drafter.made(&[]);
        assert!(drafter.drafts().is_empty() && !drafter.drawn(4));
        assert!(Drafter::new(Speculation::Block(None), &[], false).is_none());
    }

    #[test]
    fn what_is_expected_is_compared_though_it_was_not_run() {
        let mut drafter = Drafter::new(Speculation::Auto, &[1, 2, 3, 1, 2], false).expect("it drafts");
        let pass = Duration::from_millis(500);
        assert!(draft(&mut drafter, 15).is_empty(), "nothing is measured yet");
        drafter.passed(Duration::ZERO, pass);
        for _ in 0..30 {
            assert!(!drafter.drawn(7), "not run");
            draft(&mut drafter, 0);
            drafter.passed(Duration::ZERO, pass);
        }
        // A free draft that is always right.
        assert_eq!(draft(&mut drafter, 15), [7], "the first tries one");
        drafter.passed(Duration::ZERO, pass);
        assert!(drafter.drawn(7));
        assert_eq!(draft(&mut drafter, 15), [7; 2]);
    }
}
