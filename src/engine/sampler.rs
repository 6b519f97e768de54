//! From logits to a token: a chain of filters, then a draw.
//!
//! Everything here is the same on every CPU: sums run in one order, the exponential is `libm`'s, the
//! generator is ChaCha8.

use std::cmp::Ordering;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::Serialize;
use thiserror::Error;

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

/// A number of a [`SamplerConfig`] that tokens cannot be chosen by.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{field} is {value}, where a number {wanted} is needed")]
pub struct SamplerError {
    pub field: &'static str,
    pub value: f32,
    pub wanted: &'static str,
}

impl SamplerConfig {
    /// Whether tokens can be chosen by it.
    ///
    /// # Errors
    /// The first number outside its range; none may be infinite or NaN.
    pub fn check(&self) -> Result<(), SamplerError> {
        let fraction = |value: f32| (0.0..=1.0).contains(&value);
        let checks = [
            ("repeat_penalty", self.repeat_penalty, "above 0", self.repeat_penalty > 0.0),
            ("top_p", self.top_p, "from 0 to 1", fraction(self.top_p)),
            ("min_p", self.min_p, "from 0 to 1", fraction(self.min_p)),
            ("temperature", self.temperature, "of at least 0", self.temperature >= 0.0),
        ];
        let wrong = checks.into_iter().find(|(_, value, _, fits)| !fits || !value.is_finite());
        wrong.map_or(Ok(()), |(field, value, wanted, _)| Err(SamplerError { field, value, wanted }))
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
    /// The logits after the penalty, where there is one, the banned ones NaN.
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
        let (history, banned) = (Vec::new(), Vec::new());
        Ok(Sampler { config, rng, history, banned, adjusted: Vec::new(), candidates: Vec::new() })
    }

    /// Tokens that are never to be chosen.
    pub fn ban(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.banned.extend(ids);
    }

    /// Takes note of a token of the text, for the penalty.
    pub fn accept(&mut self, id: u32) {
        if self.history.len() >= self.config.repeat_last.max(1).saturating_mul(2) {
            let keep = self.history.len() - self.config.repeat_last;
            self.history.drain(..keep);
        }
        self.history.push(id);
    }

    /// Chooses a token; `None` where no logit is a number.
    pub fn sample(&mut self, logits: &[f32]) -> Option<Candidate> {
        let greedy = self.config.temperature <= 0.0;
        let top = if greedy { 1 } else { self.config.top_k };
        if self.adjust(logits) {
            keep_top(&self.adjusted, top, &mut self.candidates);
        } else {
            keep_top(logits, top, &mut self.candidates);
        }
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

    /// Puts the logits into `adjusted`, penalised and without those that are banned; `false` where neither is
    /// asked for.
    fn adjust(&mut self, logits: &[f32]) -> bool {
        let (penalty, back) = (self.config.repeat_penalty, self.config.repeat_last);
        let penalised = penalty != 1.0 && back > 0;
        if !penalised && self.banned.is_empty() {
            return false;
        }
        self.adjusted.clear();
        self.adjusted.extend_from_slice(logits);
        if penalised {
            let mut recent = self.history[self.history.len().saturating_sub(back)..].to_vec();
            recent.sort_unstable();
            recent.dedup();
            for id in recent {
                if let Some(logit) = self.adjusted.get_mut(id as usize) {
                    *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                }
            }
        }
        for &id in &self.banned {
            if let Some(logit) = self.adjusted.get_mut(id as usize) {
                *logit = f32::NAN;
            }
        }
        true
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

/// Logits that are looked at together: if none of them is among the best so far, none is looked at again.
const STRETCH: usize = 64;

/// The `k` best logits (all for 0), sorted; equal ones by rising id, those that are not a number left out.
fn keep_top(logits: &[f32], k: usize, best: &mut Vec<Candidate>) {
    let order =
        |a: &Candidate, b: &Candidate| -> Ordering { b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)) };
    let keep = |best: &mut Vec<Candidate>| {
        if k > 0 && k < best.len() {
            best.select_nth_unstable_by(k - 1, order);
            best.truncate(k);
        }
    };
    best.clear();
    // What a logit has to be at least to be among the best.
    let mut least = f32::NEG_INFINITY;
    for (i, stretch) in logits.chunks(STRETCH).enumerate() {
        if !stretch.iter().fold(false, |any, &logit| any | (logit >= least)) {
            continue;
        }
        let ids = (i * STRETCH) as u32..;
        // Adding 0 makes 0 of -0: they are equal, and the lower id comes first.
        let candidate = |(id, &logit): (u32, &f32)| Candidate { id, logit: logit + 0.0, probability: 0.0 };
        let candidates = ids.zip(stretch).map(candidate);
        best.extend(candidates.filter(|c| c.logit >= least));
        // Seldom, for it costs more than to collect some that are too many.
        if k > 0 && best.len() / 2 >= k.max(STRETCH) {
            keep(best);
            least = best[k - 1].logit;
        }
    }
    keep(best);
    best.sort_unstable_by(order);
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
        let mut s = Sampler::new(SamplerConfig::greedy()).unwrap();
        assert_eq!(s.sample(&[f32::NAN, 1.0, 3.0, 3.0]).unwrap().id, 2);
        assert!(s.sample(&[f32::NAN, f32::NAN]).is_none());
        assert!(s.sample(&[]).is_none());
    }

    #[test]
    fn filters_keep_what_they_say() {
        let logits = [0.5f32, 0.25, 0.125, 0.0625, 0.0625].map(f32::ln);
        let mut s = Sampler::new(SamplerConfig { top_k: 2, ..config() }).unwrap();
        s.sample(&logits).unwrap();
        assert_eq!(ids(&s), [0, 1]);
        let mut s = Sampler::new(SamplerConfig { top_p: 0.7, ..config() }).unwrap();
        s.sample(&logits).unwrap();
        assert_eq!(ids(&s), [0, 1]);
        let mut s = Sampler::new(SamplerConfig { min_p: 0.2, ..config() }).unwrap();
        s.sample(&logits).unwrap();
        assert_eq!(ids(&s), [0, 1, 2]);
        let mut s = Sampler::new(config()).unwrap();
        s.ban([0]);
        s.sample(&logits).unwrap();
        assert_eq!(ids(&s), [1, 2, 3, 4]);
    }

    #[test]
    fn the_best_of_many_are_those_of_a_full_sort() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut logits: Vec<f32> = (0..5000).map(|_| (rng.next_u32() % 700) as f32 - 350.0).collect();
        logits.extend([f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -0.0, 0.0, -f32::NAN]);
        let rising: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        for logits in [&logits[..], &logits[4990..], &rising, &[f32::NEG_INFINITY; 300], &[1.0; 300], &[]] {
            let mut sorted: Vec<u32> =
                (0..logits.len() as u32).filter(|&i| !logits[i as usize].is_nan()).collect();
            let logit = |i: u32| logits[i as usize];
            sorted.sort_by(|&a, &b| logit(b).partial_cmp(&logit(a)).unwrap().then(a.cmp(&b)));
            for k in [1, 2, 40, 64, 65, 1000, 4000, 10_000, usize::MAX / 2, 0] {
                let mut best = Vec::new();
                keep_top(logits, k, &mut best);
                let want = &sorted[..if k == 0 { sorted.len() } else { k.min(sorted.len()) }];
                assert_eq!(best.iter().map(|c| c.id).collect::<Vec<_>>(), want, "{k} of {}", logits.len());
            }
        }
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let logits = [0.7f32, 0.2, 0.1].map(f32::ln);
        let draw = |seed| {
            let mut s = Sampler::new(SamplerConfig { seed, ..config() }).unwrap();
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
            Sampler::new(SamplerConfig { repeat_penalty: 2.0, repeat_last: 2, ..SamplerConfig::greedy() })
                .unwrap();
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

    /// The same choice as [`Sequence::argmax`](super::super::Sequence::argmax): the lower id of equals.
    #[test]
    fn zero_and_minus_zero_are_equal() {
        let mut greedy = Sampler::new(SamplerConfig::greedy()).unwrap();
        assert_eq!(greedy.sample(&[-1.0, -0.0, 0.0]).unwrap().id, 1);
        assert_eq!(greedy.sample(&[-1.0, 0.0, -0.0]).unwrap().id, 1);
    }

    #[test]
    fn numbers_that_nothing_can_be_chosen_by_are_refused() {
        let wrong = |config: SamplerConfig| Sampler::new(config).unwrap_err().field;
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.5] {
            assert_eq!(wrong(SamplerConfig { temperature: value, ..config() }), "temperature");
            assert_eq!(wrong(SamplerConfig { top_p: value, ..config() }), "top_p");
            assert_eq!(wrong(SamplerConfig { min_p: value, ..config() }), "min_p");
            assert_eq!(wrong(SamplerConfig { repeat_penalty: value, ..config() }), "repeat_penalty");
        }
        let error = Sampler::new(SamplerConfig { repeat_penalty: 0.0, ..config() }).unwrap_err().to_string();
        assert_eq!(error, "repeat_penalty is 0, where a number above 0 is needed");
        // However far back: no overflow.
        let far =
            SamplerConfig { repeat_penalty: 2.0, repeat_last: usize::MAX, top_k: usize::MAX, ..config() };
        let mut sampler = Sampler::new(far).unwrap();
        (0..300).for_each(|_| sampler.accept(0));
        assert!(sampler.sample(&[1.0, 0.5]).is_some());
    }

    #[test]
    fn infinite_logits_do_not_make_nan() {
        let mut s = Sampler::new(config()).unwrap();
        assert_eq!(s.sample(&[f32::INFINITY, 1.0]).unwrap().id, 0);
        assert!(s.sample(&[f32::NEG_INFINITY; 3]).unwrap().probability > 0.3);
    }
}
