//! Drafts in an engine: those of the model's block of multi-token prediction, and the pass that verifies any.

use std::ops::ControlFlow;

use super::trail::MOST_BEHIND;
use super::{Engine, EngineError, Feed, Sequence};
use crate::model::{ForwardError, Logits, NoObserver, Observer, Pass, Segment};
use crate::store::Guesses;

impl Engine<'_> {
    /// Runs a token and drafts behind it in one pass of at most a batch. The sequence stands at the token
    /// then, and goes on over the drafts by [`Sequence::move_on`].
    pub(super) fn feed_drafted(
        &mut self,
        sequence: &mut Sequence,
        id: u32,
        drafts: &[u32],
        observer: &mut dyn Observer,
    ) -> Result<(), EngineError> {
        let go_on = |_| ControlFlow::Continue(());
        if drafts.is_empty() {
            return self.feed_observed(sequence, &[id], Logits::Last, observer, go_on);
        }
        debug_assert!(drafts.len() < self.batch);
        let past = sequence.past();
        let tokens = [&[id], drafts].concat();
        self.feed_observed(sequence, &tokens, Logits::Drafts, observer, go_on)?;
        sequence.stand_at(past + 1);
        Ok(())
    }

    /// Most tokens that a pass may run for a sequence, drafts included.
    pub(super) fn room(&self, sequence: &Sequence) -> usize {
        (sequence.context() - sequence.past()).min(self.batch).min(self.drafts + 1)
    }

    /// Gives each sequence what the last pass left of its rows.
    pub(super) fn leave_trails(&self, feeds: &mut [Feed<'_>]) {
        let embd = self.model.spec().embd;
        let mut rest = self.buffers.ends();
        for feed in feeds {
            let (own, others) = rest.split_at(feed.tokens.len() * embd);
            rest = others;
            let past = feed.sequence.past();
            if let Some(trail) = feed.sequence.trail() {
                trail.passed(past, own);
            }
        }
    }

    /// Has the block remember what a sequence has been fed, where that is much.
    pub(super) fn catch_up(&mut self, feed: &mut Feed<'_>) -> Result<(), EngineError> {
        let past = feed.sequence.past();
        let Some(trail) = feed.sequence.trail() else { return Ok(()) };
        // Drafts may be taken back.
        if feed.logits == Logits::Drafts || past - trail.filled() < MOST_BEHIND {
            return Ok(());
        }
        self.fill_block(feed.sequence, past)
    }

    /// Has the block remember the first `to` positions of a sequence.
    fn fill_block(&mut self, sequence: &mut Sequence, to: usize) -> Result<(), EngineError> {
        while let Some(trail) = sequence.trail() {
            let from = trail.filled();
            let n = (to - from).min(self.batch);
            if n == 0 {
                break;
            }
            let hidden = trail.before(from..from + n);
            let tokens = sequence.tokens()[from..from + n].to_vec();
            self.block_pass(sequence, (&tokens, from, Logits::None), &hidden, &mut NoObserver)?;
            if let Some(trail) = sequence.trail() {
                trail.fill(from + n);
            }
        }
        Ok(())
    }

    /// What the model's block of multi-token prediction expects behind `id`, which was drawn and has not been
    /// fed: `most` tokens, fewer where the context ends before or the block gives what is not finite, none
    /// where it is not loaded. What it expects depends on the text alone, not on how that was fed.
    ///
    /// # Errors
    /// Weights that cannot be read; no memory.
    pub fn draft(&mut self, sequence: &mut Sequence, id: u32, most: usize) -> Result<Vec<u32>, EngineError> {
        let past = sequence.past();
        if sequence.trail().is_some_and(|trail| past - trail.filled() >= self.batch) {
            self.fill_block(sequence, past)?;
        }
        let most = most.min(sequence.context() - past);
        let Some(trail) = sequence.trail().filter(|_| most > 0) else { return Ok(Vec::new()) };
        let from = trail.filled();
        let mut hidden = trail.before(from..past + 1);
        let mut tokens = sequence.tokens()[from..].to_vec();
        tokens.push(id);
        let mut drafts = Vec::with_capacity(most);
        let mut first_pos = from;
        loop {
            self.block_pass(sequence, (&tokens, first_pos, Logits::Last), &hidden, &mut NoObserver)?;
            let Some(trail) = sequence.trail() else { break };
            if drafts.is_empty() {
                trail.fill(past);
            }
            let Some(draft) = most_probable(self.buffers.logits()) else { break };
            drafts.push(draft);
            if drafts.len() == most {
                break;
            }
            // On with its own hidden row, until the trunk's is known.
            hidden = self.buffers.ends()[..self.model.spec().embd].to_vec();
            first_pos = past + drafts.len();
            tokens = vec![draft];
        }
        Ok(drafts)
    }

    /// Runs tokens of a new sequence, then the block over all of them under an observer, with the logits
    /// behind each.
    ///
    /// # Errors
    /// As [`Engine::feed`].
    ///
    /// # Panics
    /// Where the tokens do not fit a batch, or the block is not loaded.
    pub fn observe_block(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        observer: &mut dyn Observer,
    ) -> Result<(), EngineError> {
        assert!(tokens.len() <= self.batch && sequence.past() == 0, "one pass of a new sequence");
        self.feed(sequence, tokens, Logits::None)?;
        let embd = self.model.spec().embd;
        let mut hidden = vec![0.0; embd];
        // A pass that only fills what the block remembers has left them.
        hidden.extend_from_slice(&self.buffers.ends()[..(tokens.len() - 1) * embd]);
        self.block_pass(sequence, (tokens, 0, Logits::All), &hidden, observer)
    }

    /// A pass of the block. What is not finite in it is no error: it drafts no more.
    fn block_pass(
        &mut self,
        sequence: &mut Sequence,
        (tokens, first_pos, logits): (&[u32], usize, Logits),
        hidden: &[f32],
        observer: &mut dyn Observer,
    ) -> Result<(), EngineError> {
        let pass = Pass {
            kernels: self.kernels,
            buffers: &mut self.buffers,
            segments: vec![Segment { state: sequence.state_mut(), tokens, first_pos, logits }],
            guesses: Guesses::Off,
            rows: &[],
            ends: true,
            observer,
        };
        let model = self.model;
        match self.pools.beside(|| model.draft(pass, hidden)) {
            Ok(()) => Ok(()),
            Err(ForwardError::NotFinite { .. } | ForwardError::BeyondKv { .. }) => {
                if let Some(trail) = sequence.trail() {
                    trail.broken = true;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The token of the greatest logit, the lowest of equals; `None` where one is not finite.
fn most_probable(logits: &[f32]) -> Option<u32> {
    let finite = logits.iter().all(|logit| logit.is_finite());
    let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
    finite.then_some(best as u32)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::EngineOptions;
    use super::*;
    use crate::gguf::Gguf;
    use crate::model::{KvType, Model};

    /// A model of which the file has a block.
    fn load() -> Model {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hy_v3.gguf");
        Model::load_with_nextn(&Gguf::open(&path).expect("the fixture")).expect("it has a block")
    }

    fn engine(model: &Model) -> Engine<'_> {
        let options = EngineOptions {
            context: 200,
            batch: 64,
            kv: KvType::F32,
            threads: 1.into(),
            isa: None,
            drafts: 15,
            guesses: Guesses::Off,
        };
        Engine::new(model, &options).expect("an engine")
    }

    fn text(n: usize) -> Vec<u32> {
        (0..n).map(|i| (3 + 7919 * i as u32) % 100).collect()
    }

    /// The logits of the block behind a token, as bits.
    fn behind(engine: &mut Engine<'_>, sequence: &mut Sequence, id: u32) -> Vec<u32> {
        assert_eq!(engine.draft(sequence, id, 1).expect("drafts").len(), 1);
        engine.buffers.logits().iter().map(|logit| logit.to_bits()).collect()
    }

    /// Feeds the text up to `drafted`, drafts behind it in vain, feeds the rest token by token.
    fn drafted_in_vain(engine: &mut Engine<'_>, text: &[u32], drafted: usize) -> Sequence {
        let mut sequence = engine.sequence();
        engine.feed(&mut sequence, &text[..drafted], Logits::None).expect("the text");
        let drafts = engine.draft(&mut sequence, text[drafted], 4).expect("drafts");
        assert_ne!(drafts[..3], text[drafted + 1..drafted + 4]);
        for &id in &text[drafted..] {
            engine.feed(&mut sequence, &[id], Logits::Last).expect("a token");
        }
        sequence
    }

    #[test]
    fn what_the_block_remembers_of_drafts_is_written_over() {
        let model = load();
        let engine = &mut engine(&model);
        for (drafted, n) in [(20, 25), (5, 50), (126, 131)] {
            let text = text(n);
            let mut fresh = engine.sequence();
            engine.feed(&mut fresh, &text, Logits::None).expect("the text");
            let truth = behind(engine, &mut fresh, 7);
            let mut sequence = drafted_in_vain(engine, &text, drafted);
            assert_eq!(behind(engine, &mut sequence, 7), truth, "{drafted} of {n}");
        }
    }

    /// The comparison above sees rows of drafts that stand, and a hidden row of another position.
    #[test]
    fn what_is_remembered_wrongly_is_noticed() {
        let model = load();
        let engine = &mut engine(&model);
        let text = text(25);
        let mut fresh = engine.sequence();
        engine.feed(&mut fresh, &text, Logits::None).expect("the text");
        let truth = behind(engine, &mut fresh, 7);

        let mut stale = drafted_in_vain(engine, &text, 20);
        stale.trail().expect("a block").fill(25);
        assert_ne!(behind(engine, &mut stale, 7), truth, "rows of drafts");

        let mut shifted = fresh.fork();
        let trail = shifted.trail().expect("a block");
        let earlier = trail.before(24..25);
        trail.passed(24, &earlier);
        assert_ne!(behind(engine, &mut shifted, 7), truth, "another hidden row");
    }
}
