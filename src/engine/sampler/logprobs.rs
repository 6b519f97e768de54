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

/// The logarithm of a token's probability and those of the `top` most probable ones, computed in f64 in the
/// order of the ids. Logits that are no numbers count for nothing.
pub fn logprobs(logits: &[f32], id: u32, top: usize) -> Logprobs {
    let numbers = || logits.iter().filter(|logit| !logit.is_nan());
    let best = numbers().fold(f32::NEG_INFINITY, |best, &logit| best.max(logit));
    // An infinite best takes all; inf - inf would be NaN.
    let below = |logit: f32| if logit == best { 0.0 } else { f64::from(logit) - f64::from(best) };
    let sum = libm::log(numbers().map(|&logit| libm::exp(below(logit))).sum());
    let logprob = |logit: f32| (below(logit) - sum) as f32;
    let own = logits.get(id as usize).filter(|logit| !logit.is_nan());
    let mut candidates = Vec::new();
    if top > 0 {
        keep_top(logits, top, &mut candidates);
    }
    Logprobs {
        chosen: own.map_or(f32::NEG_INFINITY, |&logit| logprob(logit)),
        top: candidates.iter().map(|c| (c.id, logprob(c.logit))).collect(),
    }
}
