//! From logits to a token: a chain of filters, then a draw.
//!
//! Everything here is the same on every CPU: sums run in one order, the exponential is `libm`'s, the
//! generator is ChaCha8.

use std::cmp::Ordering;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::Serialize;

/// How tokens are chosen. The chain runs in the order of the fields.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SamplerConfig {
    /// Tokens among the last [`SamplerConfig::repeat_last`] have positive logits divided and negative ones
    /// multiplied by this; 1 does nothing.
    pub repeat_penalty: f32,
    /// How far back the penalty looks, tokens.
    pub repeat_last: usize,
    /// Keeps the k most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach this; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the most probable; 0 keeps all.
    pub min_p: f32,
    /// Divides the logits before the draw; 0 takes the most probable token.
    pub temperature: f32,
    /// Of the generator.
    pub seed: u64,
}

impl SamplerConfig {
    /// The most probable token, always.
    pub fn greedy() -> SamplerConfig {
        SamplerConfig {
            repeat_penalty: 1.0,
            repeat_last: 64,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            temperature: 0.0,
            seed: 0,
        }
    }
}

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub id: u32,
    /// As the model gave it, after the penalty.
    pub logit: f32,
    /// Among the candidates that are left.
    pub probability: f64,
}

/// Chooses tokens; see [`SamplerConfig`].
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    rng: ChaCha8Rng,
    /// The last tokens, for the penalty.
    history: Vec<u32>,
    /// Never chosen (end tokens that are to be ignored).
    banned: Vec<u32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler at the start of its random sequence.
    pub fn new(config: SamplerConfig) -> Sampler {
        let rng = ChaCha8Rng::seed_from_u64(config.seed);
        Sampler { config, rng, history: Vec::new(), banned: Vec::new(), candidates: Vec::new() }
    }

    /// Tokens that are never to be chosen.
    pub fn ban(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.banned.extend(ids);
    }

    /// Takes note of a token of the text, for the penalty.
    pub fn accept(&mut self, id: u32) {
        if self.history.len() >= self.config.repeat_last.max(1) * 2 {
            let keep = self.history.len() - self.config.repeat_last;
            self.history.drain(..keep);
        }
        self.history.push(id);
    }

    /// Chooses a token; `None` where no logit is a number.
    pub fn sample(&mut self, logits: &[f32]) -> Option<Candidate> {
        self.collect(logits);
        self.penalise();
        let greedy = self.config.temperature <= 0.0;
        self.keep_top(if greedy { 1 } else { self.config.top_k });
        if self.candidates.is_empty() {
            return None;
        }
        if !greedy {
            probabilities(&mut self.candidates, 1.0);
            self.keep_top_p();
            self.keep_min_p();
        }
        probabilities(&mut self.candidates, if greedy { 1.0 } else { self.config.temperature });
        Some(self.draw())
    }

    /// What was left to draw from at the last choice, most probable first.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    fn collect(&mut self, logits: &[f32]) {
        self.candidates.clear();
        self.candidates.extend(
            (0u32..).zip(logits).filter(|(_, l)| !l.is_nan()).map(|(id, &logit)| Candidate {
                id,
                logit,
                probability: 0.0,
            }),
        );
        if !self.banned.is_empty() {
            let banned = &self.banned;
            self.candidates.retain(|c| !banned.contains(&c.id));
        }
    }

    fn penalise(&mut self) {
        let penalty = self.config.repeat_penalty;
        if penalty == 1.0 || self.config.repeat_last == 0 {
            return;
        }
        let recent = &self.history[self.history.len().saturating_sub(self.config.repeat_last)..];
        for c in self.candidates.iter_mut().filter(|c| recent.contains(&c.id)) {
            c.logit = if c.logit > 0.0 { c.logit / penalty } else { c.logit * penalty };
        }
    }

    /// Keeps the `k` best (all for 0), sorted; equal logits by rising id.
    fn keep_top(&mut self, k: usize) {
        let order =
            |a: &Candidate, b: &Candidate| -> Ordering { b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)) };
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, order);
            self.candidates.truncate(k);
        }
        self.candidates.sort_unstable_by(order);
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

/// Softmax over logits divided by the temperature; sorted candidates, the best first.
fn probabilities(candidates: &mut [Candidate], temperature: f32) {
    let Some(best) = candidates.first().map(|c| c.logit) else { return };
    let mut sum = 0.0;
    for c in candidates.iter_mut() {
        // An infinite best takes all; inf - inf would be NaN.
        let below = if c.logit == best { 0.0 } else { f64::from(c.logit) - f64::from(best) };
        c.probability = libm::exp(below / f64::from(temperature));
        sum += c.probability;
    }
    for c in candidates {
        c.probability /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> SamplerConfig {
        SamplerConfig { temperature: 1.0, seed: 7, ..SamplerConfig::greedy() }
    }

    fn ids(sampler: &Sampler) -> Vec<u32> {
        sampler.candidates().iter().map(|c| c.id).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_skips_nan() {
        let mut s = Sampler::new(SamplerConfig::greedy());
        assert_eq!(s.sample(&[f32::NAN, 1.0, 3.0, 3.0]).unwrap().id, 2);
        assert!(s.sample(&[f32::NAN, f32::NAN]).is_none());
        assert!(s.sample(&[]).is_none());
    }

    #[test]
    fn filters_keep_what_they_say() {
        let logits = [0.5f32, 0.25, 0.125, 0.0625, 0.0625].map(f32::ln);
        let mut s = Sampler::new(SamplerConfig { top_k: 2, ..config() });
        s.sample(&logits).unwrap();
        assert_eq!(ids(&s), [0, 1]);
        let mut s = Sampler::new(SamplerConfig { top_p: 0.7, ..config() });
        s.sample(&logits).unwrap();
        assert_eq!(ids(&s), [0, 1]);
        let mut s = Sampler::new(SamplerConfig { min_p: 0.2, ..config() });
        s.sample(&logits).unwrap();
        assert_eq!(ids(&s), [0, 1, 2]);
        let mut s = Sampler::new(config());
        s.ban([0]);
        s.sample(&logits).unwrap();
        assert_eq!(ids(&s), [1, 2, 3, 4]);
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let logits = [0.7f32, 0.2, 0.1].map(f32::ln);
        let draw = |seed| {
            let mut s = Sampler::new(SamplerConfig { seed, ..config() });
            (0..20_000).map(|_| s.sample(&logits).unwrap().id).collect::<Vec<_>>()
        };
        let drawn = draw(1);
        assert_eq!(drawn, draw(1));
        assert_ne!(drawn, draw(2));
        for (id, p) in [0.7, 0.2, 0.1].into_iter().enumerate() {
            let share = drawn.iter().filter(|&&d| d == id as u32).count() as f64 / 20_000.0;
            // Three standard deviations of a binomial share at 20,000 draws are 0.0097.
            assert!((share - p).abs() < 0.0097, "{id}: {share} for {p}");
        }
    }

    #[test]
    fn the_penalty_looks_back_only_so_far() {
        let mut s =
            Sampler::new(SamplerConfig { repeat_penalty: 2.0, repeat_last: 2, ..SamplerConfig::greedy() });
        let logits = [3.0, 2.0, -1.0];
        for id in [0, 0, 0] {
            s.accept(id);
        }
        assert_eq!(s.sample(&logits).unwrap().id, 1);
        for id in [2, 2] {
            s.accept(id);
        }
        assert_eq!(s.sample(&logits).unwrap().id, 0);
    }

    #[test]
    fn infinite_logits_do_not_make_nan() {
        let mut s = Sampler::new(config());
        assert_eq!(s.sample(&[f32::INFINITY, 1.0]).unwrap().id, 0);
        assert!(s.sample(&[f32::NEG_INFINITY; 3]).unwrap().probability > 0.3);
    }
}
