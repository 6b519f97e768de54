//! What a base keeps of a row of logits: the most probable tokens, the one that came, and the rest's mass.

use crate::engine::LogSoftmax;

/// Logarithms of probabilities, rounded to f32: of some tokens, and of all others together.
///
/// Whoever compares two rows by this sees the tokens outside as one: a divergence comes out lower than it is
/// by the rest's mass times the divergence within the rest, and never higher.
#[derive(Clone, Debug, PartialEq)]
pub struct TopRow {
    /// Rising.
    ids: Vec<u32>,
    ln_p: Vec<f32>,
    /// Minus infinity where there are no others.
    ln_rest: f32,
    /// The most probable token's place among the ids.
    top: usize,
}

impl TopRow {
    /// Of the `most` most probable tokens and the one that came.
    pub fn new(row: &LogSoftmax<'_>, target: u32, most: usize) -> TopRow {
        let mut ids = row.best(most.max(1));
        let top = ids.first().copied().unwrap_or(0);
        ids.push(target);
        ids.sort_unstable();
        ids.dedup();
        let top = ids.partition_point(|&id| id < top);
        let (ln_p, ln_rest) = parts(row, &ids);
        TopRow { ids, ln_p, ln_rest, top }
    }

    /// Parts that were kept, where they can be those of a row: in ids below `vocab`, all probabilities
    /// together about 1.
    pub fn from_parts(
        ids: Vec<u32>,
        ln_p: Vec<f32>,
        ln_rest: f32,
        top: usize,
        vocab: usize,
    ) -> Result<TopRow, &'static str> {
        if ids.len() != ln_p.len() || top >= ids.len() {
            return Err("its most probable token is not there");
        }
        if !ids.is_sorted_by(|a, b| a < b) || ids.last().is_some_and(|&id| id as usize >= vocab) {
            return Err("its tokens are not rising ids of the vocabulary");
        }
        // Rounding may make a sum a little more than 1, and a probability no more than that.
        let possible = |ln_p: f32| ln_p <= 0.0 && ln_p.is_finite();
        let has_rest = ids.len() < vocab;
        if !ln_p.iter().all(|&ln_p| possible(ln_p))
            || (has_rest && !possible(ln_rest))
            || (!has_rest && ln_rest != f32::NEG_INFINITY)
            || ln_p.iter().any(|&other| other > ln_p[top])
        {
            return Err("its probabilities are none");
        }
        let row = TopRow { ids, ln_p, ln_rest, top };
        let sum: f64 = row.ln_p.iter().chain([&row.ln_rest]).map(|&ln_p| libm::exp(f64::from(ln_p))).sum();
        if (sum - 1.0).abs() > 1e-3 {
            return Err("its probabilities are not 1 together");
        }
        Ok(row)
    }

    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub fn ln_p(&self) -> &[f32] {
        &self.ln_p
    }

    pub fn ln_rest(&self) -> f32 {
        self.ln_rest
    }

    /// The most probable token's place among the ids.
    pub fn top_place(&self) -> usize {
        self.top
    }

    /// The most probable token.
    pub fn top(&self) -> u32 {
        self.ids[self.top]
    }

    /// The logarithm of a token's probability, where it was kept.
    pub fn of(&self, id: u32) -> Option<f64> {
        let place = self.ids.binary_search(&id).ok()?;
        Some(f64::from(self.ln_p[place]))
    }

    /// The probability of all tokens that are not kept.
    pub fn rest(&self) -> f64 {
        libm::exp(f64::from(self.ln_rest))
    }

    /// The divergence of a row from this one, in nats: sum of p (ln p - ln q), the rest taken for one token.
    pub fn divergence(&self, row: &LogSoftmax<'_>) -> f64 {
        let (ln_q, ln_q_rest) = parts(row, &self.ids);
        let kept = self.ln_p.iter().chain([&self.ln_rest]).zip(ln_q.iter().chain([&ln_q_rest]));
        let term = |(&ln_p, &ln_q): (&f32, &f32)| {
            let (ln_p, ln_q) = (f64::from(ln_p), f64::from(ln_q));
            if ln_p == f64::NEG_INFINITY { 0.0 } else { libm::exp(ln_p) * (ln_p - ln_q) }
        };
        kept.map(term).sum()
    }
}

/// The logarithms of the probabilities of these tokens and of all others together, rounded.
fn parts(row: &LogSoftmax<'_>, ids: &[u32]) -> (Vec<f32>, f32) {
    let logits = row.logits();
    let ln_p =
        ids.iter().map(|&id| row.ln_p(logits[id as usize]).clamp(f64::from(f32::MIN), 0.0) as f32).collect();
    if ids.len() == logits.len() {
        return (ln_p, f32::NEG_INFINITY);
    }
    let mut kept = ids.iter().copied().peekable();
    let mut sum = 0.0;
    for (id, &logit) in logits.iter().enumerate() {
        if kept.next_if_eq(&(id as u32)).is_none() {
            sum += libm::exp(row.ln_p(logit));
        }
    }
    // What is too small to be counted is not nothing.
    (ln_p, libm::log(sum.clamp(f64::MIN_POSITIVE, 1.0)) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_what_is_left() {
        let logits = [1.0, 4.0, 0.0, 3.0, 4.0, -90.0];
        let row = LogSoftmax::new(&logits);
        let kept = TopRow::new(&row, 2, 2);
        assert_eq!((kept.ids(), kept.top()), (&[1, 2, 4][..], 1));
        let sum: f64 = kept.ln_p().iter().map(|&ln_p| libm::exp(f64::from(ln_p))).sum();
        assert!((sum + kept.rest() - 1.0).abs() < 1e-6);
        assert_eq!(kept.of(3), None);
        assert_eq!(kept.of(2), Some(f64::from(row.ln_p(0.0) as f32)));
        let all = TopRow::new(&row, 0, 6);
        assert_eq!((all.ids().len(), all.rest()), (6, 0.0));
    }

    #[test]
    fn a_row_diverges_from_itself_by_nothing_and_less_is_seen_of_less() {
        let logits: Vec<f32> = (0..500).map(|i| ((i * 7919) % 613) as f32 / 60.0).collect();
        let mut other = logits.clone();
        other.iter_mut().enumerate().for_each(|(i, logit)| *logit += ((i * 31) % 17) as f32 / 20.0);
        let (p, q) = (LogSoftmax::new(&logits), LogSoftmax::new(&other));
        let kept = |most| TopRow::new(&p, 5, most);
        for most in [1, 10, 499, 500] {
            assert_eq!(kept(most).divergence(&p), 0.0, "{most}");
        }
        let divergences = [1, 10, 100, 500].map(|most| kept(most).divergence(&q));
        assert!(divergences.is_sorted() && divergences[0] > 0.0, "{divergences:?}");
    }

    #[test]
    fn extremes_stay_finite() {
        let logits = [0.0, f32::MAX, -1e30, f32::MIN];
        let row = LogSoftmax::new(&logits);
        for most in 1..4 {
            let kept = TopRow::new(&row, 1, most);
            assert!(kept.ln_p().iter().all(|p| p.is_finite()) && kept.ln_rest().is_finite(), "{kept:?}");
            assert_eq!(kept.divergence(&row), 0.0);
        }
    }

    #[test]
    fn parts_that_are_no_row_are_refused() {
        let half = 0.5f32.ln();
        let make = |ids: &[u32], ln_p: &[f32], rest, top| {
            TopRow::from_parts(ids.to_vec(), ln_p.to_vec(), rest, top, 10)
        };
        assert!(make(&[3, 9], &[half, half], -80.0, 0).is_ok());
        for (ids, ln_p, rest, top) in [
            (&[3, 10][..], &[half, half][..], -80.0, 0),
            (&[9, 3], &[half, half], -80.0, 0),
            (&[3, 3], &[half, half], -80.0, 0),
            (&[3, 9], &[half, f32::NAN], -80.0, 0),
            (&[3, 9], &[half, 0.1], -80.0, 0),
            (&[3, 9], &[half, half], f32::NAN, 0),
            (&[3, 9], &[half, half], f32::NEG_INFINITY, 0),
            (&[3, 9], &[half, half], half, 0),
            (&[3, 9], &[-9.0, half], half, 0),
            (&[3, 9], &[half], half, 0),
            (&[3, 9], &[half, half], -80.0, 2),
            (&[], &[], 0.0, 0),
        ] {
            assert!(make(ids, ln_p, rest, top).is_err(), "{ids:?} {ln_p:?} {rest} {top}");
        }
    }
}
