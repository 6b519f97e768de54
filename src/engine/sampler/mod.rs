//! From logits to a token: a chain of filters, then a draw.
//!
//! Everything here is the same on every CPU: sums run in one order, the exponential is `libm`'s, the
//! generator is ChaCha8.

mod config;
mod filters;
mod logprobs;
mod past;
#[cfg(test)]
mod tests;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::EngineError;
use crate::text::{Constraint, TokenMask};
pub use config::{SamplerConfig, SamplerError};
use filters::{keep_top, probabilities};
pub use logprobs::{LogSoftmax, Logprobs, logprobs};
use past::Past;

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub id: u32,
    /// As the model gave it, after bias and penalties.
    pub logit: f32,
    /// Among the candidates that are left.
    pub probability: f64,
}

/// Chooses tokens; see [`SamplerConfig`].
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    rng: ChaCha8Rng,
    /// What the tokens so far say about the next one.
    past: Past,
    /// Never chosen (end tokens that are to be ignored).
    banned: Vec<u32>,
    /// What the answer has to be.
    constraint: Option<Constraint>,
    /// The logits as they are chosen by, where they are not the model's own: NaN where a token cannot be
    /// chosen.
    adjusted: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler at the start of its random sequence.
    ///
    /// # Errors
    /// As [`SamplerConfig::check`].
    pub fn new(config: SamplerConfig) -> Result<Sampler, SamplerError> {
        config.check()?;
        let rng = ChaCha8Rng::seed_from_u64(config.seed);
        let (past, banned, candidates) = (Past::default(), Vec::new(), Vec::new());
        Ok(Sampler { config, rng, past, banned, constraint: None, adjusted: Vec::new(), candidates })
    }

    /// Tokens that are never to be chosen.
    pub fn ban(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.banned.extend(ids);
    }

    /// What the answer that begins now has to be: nothing else is chosen any more, and an end of generation
    /// where it has ended.
    pub fn constrain(&mut self, constraint: Constraint) {
        self.constraint = Some(constraint);
    }

    /// Whether there is something that the answer has to be.
    pub fn is_constrained(&self) -> bool {
        self.constraint.is_some()
    }

    /// Computes what the next token may be before it is asked for. What goes wrong is told of then.
    pub fn prepare(&mut self) {
        if let Some(constraint) = &mut self.constraint {
            let _ = constraint.mask();
        }
    }

    /// Takes note of the prompt's tokens, for the repeat penalty alone.
    pub fn read(&mut self, ids: impl IntoIterator<Item = u32>) {
        ids.into_iter().for_each(|id| self.past.read(id, &self.config));
    }

    /// Takes note of a token of the answer, for the penalties and for what the answer has to be.
    ///
    /// # Errors
    /// A token that the constraint does not allow: it was not chosen by this sampler.
    pub fn accept(&mut self, id: u32) -> Result<(), EngineError> {
        self.past.accept(id, &self.config);
        Ok(self.constraint.as_mut().map_or(Ok(()), |constraint| constraint.accept(id))?)
    }

    /// Chooses a token.
    ///
    /// # Errors
    /// Where no token can be chosen, or the constraint fails.
    pub fn sample(&mut self, logits: &[f32]) -> Result<Candidate, EngineError> {
        let greedy = self.config.temperature <= 0.0;
        let top = if greedy { 1 } else { self.config.top_k };
        if self.adjust(logits)? {
            keep_top(&self.adjusted, top, &mut self.candidates);
        } else {
            keep_top(logits, top, &mut self.candidates);
        }
        if self.candidates.is_empty() {
            return Err(EngineError::NoToken);
        }
        if !greedy {
            probabilities(&mut self.candidates, 1.0);
            self.keep_top_p();
            self.keep_min_p();
        }
        probabilities(&mut self.candidates, if greedy { 1.0 } else { self.config.temperature });
        Ok(self.draw())
    }

    /// How much of its random sequence it has used.
    pub fn position(&self) -> u64 {
        self.rng.get_word_pos() as u64
    }

    /// Goes on where another sampler of this configuration stood in the random sequence.
    pub fn go_to(&mut self, position: u64) {
        self.rng.set_word_pos(position.into());
    }

    /// What was left to draw from at the last choice, most probable first.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Puts the logits into `adjusted`, as they are chosen by; `false` where those are the model's own.
    fn adjust(&mut self, logits: &[f32]) -> Result<bool, EngineError> {
        let plain = self.banned.is_empty() && self.constraint.is_none();
        if plain && self.config.bias.is_empty() && !Past::changes(&self.config) {
            return Ok(false);
        }
        self.adjusted.clear();
        self.adjusted.extend_from_slice(logits);
        for &(id, bias) in &self.config.bias {
            if let Some(logit) = self.adjusted.get_mut(id as usize) {
                *logit += bias;
            }
        }
        self.past.penalise(&self.config, &mut self.adjusted);
        for &id in &self.banned {
            if let Some(logit) = self.adjusted.get_mut(id as usize) {
                *logit = f32::NAN;
            }
        }
        if let Some(constraint) = &mut self.constraint {
            mask_out(constraint.mask()?, &mut self.adjusted);
        }
        Ok(true)
    }

    fn keep_top_p(&mut self) {
        if self.config.top_p >= 1.0 {
            return;
        }
        let mut sum = 0.0;
        let reached = self.candidates.iter().position(|c| {
            sum += c.probability;
            sum >= f64::from(self.config.top_p)
        });
        if let Some(last) = reached {
            self.candidates.truncate(last + 1);
        }
    }

    fn keep_min_p(&mut self) {
        let least = self.candidates[0].probability * f64::from(self.config.min_p);
        self.candidates.retain(|c| c.probability >= least);
    }

    fn draw(&mut self) -> Candidate {
        let best = self.candidates[0];
        if self.candidates.len() == 1 {
            return best;
        }
        // 53 random bits: a double in [0, 1).
        let mut left = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        for c in &self.candidates {
            if left < c.probability {
                return *c;
            }
            left -= c.probability;
        }
        best
    }
}

/// Makes NaN of the logits of tokens that are not allowed.
fn mask_out(mask: &TokenMask, logits: &mut [f32]) {
    let words = mask.words().iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in logits.chunks_mut(32).zip(words) {
        match word {
            u32::MAX => {}
            0 => logits.fill(f32::NAN),
            _ => {
                let barred = logits.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0);
                barred.for_each(|(_, logit)| *logit = f32::NAN);
            }
        }
    }
}
