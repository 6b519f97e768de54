//! Windows run through an engine, some of them in a pass.

use std::ops::Range;

use crate::engine::{Engine, EngineError, EngineOptions, Feed, Sequence};
use crate::model::Logits;

use super::Windows;

/// Bytes of logits that a pass leaves at most, but for those of one row a window.
const LOGIT_BYTES: usize = 64 << 20;

/// How windows share passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Windows that run at a time.
    pub windows: usize,
    /// Rows of each in a pass that leaves logits.
    pub rows: usize,
}

impl Shares {
    /// Of passes of so many tokens at most, with a vocabulary of so many.
    pub fn new(windows: &Windows, batch: usize, vocab: usize) -> Shares {
        let scored = windows.scored();
        // The part before the scored rows and these are passes of their own.
        let together = (batch / scored.start.max(scored.len()).max(1)).clamp(1, windows.count());
        let rows = batch.min(LOGIT_BYTES / (vocab.max(1) * size_of::<f32>())) / together;
        Shares { windows: together, rows: rows.clamp(1, scored.len()) }
    }

    /// The same for an engine that is yet to be made.
    pub fn of(windows: &Windows, options: &EngineOptions, vocab: usize) -> Shares {
        Shares::new(windows, options.batch.clamp(1, options.context.max(1)), vocab)
    }

    /// Rows of logits that a pass leaves.
    pub fn logits(&self) -> usize {
        self.windows * self.rows
    }
}

/// An engine with the windows that it runs at a time.
pub struct Passes<'e, 'm> {
    engine: &'e mut Engine<'m>,
    sequences: Vec<Sequence>,
    inputs: Vec<Vec<u32>>,
}

impl<'e, 'm> Passes<'e, 'm> {
    /// Passes of an engine that has run nothing yet.
    pub fn new(engine: &'e mut Engine<'m>) -> Passes<'e, 'm> {
        Passes { engine, sequences: Vec::new(), inputs: Vec::new() }
    }

    /// The engine.
    pub fn engine(&self) -> &Engine<'m> {
        self.engine
    }

    /// Begins with these windows; those before are forgotten.
    pub fn begin(&mut self, windows: &Windows, group: Range<usize>) {
        self.inputs = group.map(|i| windows.input(i)).collect();
        while self.sequences.len() < self.inputs.len() {
            self.sequences.push(self.engine.sequence());
        }
        self.sequences.truncate(self.inputs.len());
        for sequence in &mut self.sequences {
            sequence.rewind(0);
        }
    }

    /// Runs the next `n` tokens of each window, which are there and fit a batch.
    ///
    /// # Errors
    /// What the engine refuses.
    pub fn advance(&mut self, n: usize, logits: Logits) -> Result<(), EngineError> {
        let feeds = self.sequences.iter_mut().zip(&self.inputs).map(|(sequence, input)| {
            let past = sequence.past();
            Feed { sequence, tokens: &input[past..past + n], logits }
        });
        self.engine.feed_all(&mut feeds.collect::<Vec<_>>())
    }

    /// The logits of the last rows of a window: `[rows][vocabulary]`.
    pub fn logits(&self, window: usize) -> &[f32] {
        self.sequences[window].logits()
    }
}

#[cfg(test)]
mod tests {
    use super::super::WindowOptions;
    use super::*;

    #[test]
    fn passes_are_full_and_their_logits_bounded() {
        let windows = |context, stride| {
            let options = WindowOptions { context, stride, most: None, bos: None };
            Windows::new(vec![0; 100_000], options).unwrap()
        };
        let of = |context, vocab| {
            let shares = Shares::new(&windows(context, None), 512.min(context), vocab);
            (shares.windows, shares.rows)
        };
        assert_eq!(of(512, 32_000), (2, 255));
        assert_eq!(of(512, 256_000), (2, 32), "64 MiB");
        assert_eq!(of(4096, 32_000), (1, 512));
        assert_eq!(of(64, 300), (2, 31));
        assert_eq!(of(512, 1 << 30), (2, 1));
        let strided = Shares::new(&windows(512, Some(64)), 512, 32_000);
        assert_eq!((strided.windows, strided.rows), (1, 64));
    }
}
