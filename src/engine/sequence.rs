//! A sequence: tokens, what the model remembers of them, and its last logits. A value that can be kept,
//! forked and dropped.

use crate::model::{KvType, ModelSpec, SequenceState};

use super::EngineError;
use super::trail::Trail;

/// See the module. Forks share the pages that are full until one of both is rewound and written to.
#[derive(Clone, Debug)]
pub struct Sequence {
    state: SequenceState,
    /// The tokens of the positions filled.
    tokens: Vec<u32>,
    /// `[tokens asked for][vocabulary]`, of the last pass.
    logits: Vec<f32>,
    /// The row of the logits that belongs to the last position; `None`: the last row.
    row: Option<usize>,
    /// Positions that there is room for.
    context: usize,
    vocab: usize,
    /// Where the model's block of multi-token prediction is loaded.
    trail: Option<Trail>,
}

impl Sequence {
    pub(super) fn new(spec: &ModelSpec, context: usize, kv: KvType) -> Sequence {
        Sequence {
            state: SequenceState::new(spec, kv),
            tokens: Vec::new(),
            logits: Vec::new(),
            row: None,
            context,
            vocab: spec.vocab,
            trail: spec.nextn.is_some().then(|| Trail::new(spec.embd)),
        }
    }

    /// Positions filled.
    pub fn past(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens of the positions filled.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Positions that there is room for.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Bytes of keys and values held; what is shared with forks is counted whole.
    pub fn held_bytes(&self) -> u64 {
        self.state.held_bytes()
    }

    /// The pages of keys and values that it holds: the number of each, which no other has, and its bytes.
    pub(super) fn pages_held(&self) -> Vec<(u64, u64)> {
        self.state.pages_held()
    }

    /// Those of them that the next position writes to.
    pub(super) fn open_pages(&self) -> Vec<(u64, u64)> {
        self.state.open_pages(self.past())
    }

    /// Goes back to the first `past` positions, or to none where a window has given up what they would see:
    /// returns how many are left, after which the tokens have to be fed again.
    pub fn rewind(&mut self, past: usize) -> usize {
        let past = self.state.rewind(past.min(self.past()));
        self.tokens.truncate(past);
        if let Some(trail) = &mut self.trail {
            trail.rewind(past);
        }
        self.clear_logits();
        past
    }

    /// Another sequence with the same past.
    pub fn fork(&self) -> Sequence {
        self.clone()
    }

    /// The logits of the last pass: `[tokens asked for][vocabulary]`. Under
    /// [`Logits::All`](crate::model::Logits::All) those of the last batch alone; after a generation those
    /// that its last token was drawn from.
    pub fn logits(&self) -> &[f32] {
        // A pass that failed has left none.
        let row = |row: usize| self.logits.get(row * self.vocab..(row + 1) * self.vocab);
        self.row.and_then(row).unwrap_or(&self.logits)
    }

    /// The most probable next token; the lower id of equals.
    ///
    /// # Errors
    /// Where a logit is not finite, all are the same, or no pass has left any.
    pub fn argmax(&self) -> Result<u32, EngineError> {
        let logits = self.usable_logits()?;
        let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        Ok(best as u32)
    }

    /// The logits of the last position, of which some differ.
    pub(super) fn usable_logits(&self) -> Result<&[f32], EngineError> {
        let last = self.logits().rchunks(self.vocab).next().ok_or(EngineError::NoLogits)?;
        let position = self.past().saturating_sub(1);
        if let Some(id) = last.iter().position(|l| !l.is_finite()) {
            return Err(EngineError::LogitsNotFinite { position, id });
        }
        match last {
            [value, others @ ..] if !others.is_empty() && others.iter().all(|l| l == value) => {
                Err(EngineError::LogitsEqual { position, value: *value })
            }
            _ => Ok(last),
        }
    }

    /// The logits of all that the last pass ran, which were these many tokens.
    pub(super) fn usable_rows(&self, tokens: usize) -> Result<&[f32], EngineError> {
        let rows = self.logits.get(..tokens * self.vocab).ok_or(EngineError::NoLogits)?;
        match rows.iter().position(|logit| !logit.is_finite()) {
            Some(at) => {
                let position = (self.past() + at / self.vocab).saturating_sub(tokens);
                Err(EngineError::LogitsNotFinite { position, id: at % self.vocab })
            }
            None => Ok(rows),
        }
    }

    pub(super) fn check_room(&self, tokens: usize) -> Result<(), EngineError> {
        let (past, context) = (self.past(), self.context);
        match tokens > context - past {
            true => Err(EngineError::ContextFull { tokens, past, context }),
            false => Ok(()),
        }
    }

    /// What it keeps for the block of multi-token prediction, where that is loaded and drafts.
    pub(super) fn trail(&mut self) -> Option<&mut Trail> {
        self.trail.as_mut().filter(|trail| !trail.broken)
    }

    pub(super) fn state_mut(&mut self) -> &mut SequenceState {
        &mut self.state
    }

    pub(super) fn state(&self) -> &SequenceState {
        &self.state
    }

    /// Positions that the block of multi-token prediction remembers, where it is loaded and drafts.
    pub(super) fn drafts_from(&self) -> usize {
        self.trail.as_ref().filter(|trail| !trail.broken).map_or(0, Trail::filled)
    }

    /// Stands after these tokens with what is remembered of them; whether the block of multi-token prediction
    /// remembers them too.
    pub(super) fn resume(&mut self, state: SequenceState, tokens: &[u32], block: bool) {
        self.state = state;
        self.tokens = tokens.to_vec();
        if let Some(trail) = &mut self.trail {
            trail.resume(tokens.len(), block);
        }
        self.clear_logits();
    }

    pub(super) fn clear_logits(&mut self) {
        self.logits.clear();
        self.row = None;
    }

    /// Forgets the logits, and gives their memory back.
    pub(super) fn drop_logits(&mut self) {
        self.logits = Vec::new();
        self.row = None;
    }

    /// A pass has run these tokens and left these logits, which are taken.
    pub(super) fn passed(&mut self, tokens: &[u32], logits: &mut Vec<f32>) {
        self.tokens.extend_from_slice(tokens);
        std::mem::swap(&mut self.logits, logits);
        self.row = None;
    }

    /// Stands after the first `past` positions of what has been run; the rest counts as drafts that may be
    /// taken by [`Sequence::move_on`]. The logits are those of all that the last pass ran.
    pub(super) fn stand_at(&mut self, past: usize) {
        self.tokens.truncate(past);
        self.row = Some(0);
    }

    /// Takes the next draft of the last pass for fed.
    pub(super) fn move_on(&mut self, id: u32) {
        self.tokens.push(id);
        self.row = self.row.map(|row| row + 1);
    }
}
