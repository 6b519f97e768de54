//! Logarithms of probabilities, for those who ask how sure the model was.

use super::filters::keep_top;

/// Logarithms of the probabilities that the model itself gives: of the softmax over its logits, before any
/// bias, penalty, grammar, filter or temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the token asked for; minus infinity where it has no logit.
    pub chosen: f32,
    /// The most probable tokens, the best first; the lower id of equals first.
    pub top: Vec<(u32, f32)>,
}

/// The softmax over logits, as logarithms: one arithmetic, in f64 in the order of the ids, the same on every
/// machine. Logits that are no numbers count for nothing.
#[derive(Clone, Copy, Debug)]
pub struct LogSoftmax<'l> {
    logits: &'l [f32],
    best: f32,
    /// The logarithm of the sum of exponentials, the best logit's being 1.
    ln_sum: f64,
}

impl<'l> LogSoftmax<'l> {
    /// Of one row.
    pub fn new(logits: &'l [f32]) -> LogSoftmax<'l> {
        let numbers = || logits.iter().filter(|logit| !logit.is_nan());
        let best = numbers().fold(f32::NEG_INFINITY, |best, &logit| best.max(logit));
        let sum = numbers().map(|&logit| libm::exp(below(best, logit))).sum();
        LogSoftmax { logits, best, ln_sum: libm::log(sum) }
    }

    /// The logits.
    pub fn logits(&self) -> &'l [f32] {
        self.logits
    }

    /// The logarithm of the probability of a token that has this logit.
    pub fn ln_p(&self, logit: f32) -> f64 {
        below(self.best, logit) - self.ln_sum
    }

    /// The most probable token; the lower id of equals.
    pub fn top(&self) -> u32 {
        self.logits.iter().position(|logit| *logit == self.best).unwrap_or(0) as u32
    }

    /// So many of the most probable tokens, the best first; the lower id of equals first.
    pub fn best(&self, count: usize) -> Vec<u32> {
        let mut candidates = Vec::new();
        if count > 0 {
            keep_top(self.logits, count, &mut candidates);
        }
        candidates.iter().map(|candidate| candidate.id).collect()
    }
}

/// How far below the best; an infinite best takes all, for inf - inf would be NaN.
fn below(best: f32, logit: f32) -> f64 {
    if logit == best { 0.0 } else { f64::from(logit) - f64::from(best) }
}

/// The logarithm of a token's probability and those of the `top` most probable ones.
pub fn logprobs(logits: &[f32], id: u32, top: usize) -> Logprobs {
    let row = LogSoftmax::new(logits);
    let logprob = |logit: f32| row.ln_p(logit) as f32;
    let own = logits.get(id as usize).filter(|logit| !logit.is_nan());
    let of = |id: u32| (id, logprob(logits[id as usize]));
    Logprobs {
        chosen: own.map_or(f32::NEG_INFINITY, |&logit| logprob(logit)),
        top: row.best(top).into_iter().map(of).collect(),
    }
}
