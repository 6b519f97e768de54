//! The best of the logits, and their probabilities.

use std::cmp::Ordering;

use super::Candidate;

/// Logits that are looked at together: if none of them is among the best so far, none is looked at again.
const STRETCH: usize = 64;

/// The `k` best logits (all for 0), sorted; equal ones by rising id, those that are not a number left out.
pub fn keep_top(logits: &[f32], k: usize, best: &mut Vec<Candidate>) {
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
pub fn probabilities(candidates: &mut [Candidate], temperature: f32) {
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
