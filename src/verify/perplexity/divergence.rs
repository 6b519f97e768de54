//! How far the probabilities of one run are from those of another, the base: the measures of
//! llama-perplexity's
//! `--kl-divergence`, over the same scored tokens.

use crate::engine::LogSoftmax;

use super::TopRow;
use super::measures::{Mean, Sums, covariance, percentile, share};

/// A row of a base.
#[derive(Clone, Copy, Debug)]
pub enum BaseRow<'b> {
    /// All logits.
    Logits(&'b [f32]),
    /// The logarithm of every token's probability, those of llama.cpp's own bases: in steps, and none below
    /// -16, which counts for nothing.
    LnP(&'b [f32]),
    Top(&'b TopRow),
}

/// Where llama.cpp's bases end.
const LEAST_LN_P: f32 = -16.0;

/// What a row and its base differ by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowDivergence {
    /// Of the token that came, in nats.
    pub nll: f64,
    pub base_nll: f64,
    /// Sum over all tokens of p (ln p - ln q), p being the base's probability, q the row's, in nats; it may
    /// be a little below 0 by rounding. 0 where all logits are the same.
    pub kld: f64,
    pub same_top: bool,
    /// Whether any logit is another one, where all are known.
    pub differs: Option<bool>,
    /// The base's probability of all tokens that it does not keep.
    pub rest: f64,
}

impl RowDivergence {
    /// Of a row of finite logits from a base of as many. A token that the base does not keep is as probable
    /// as all of these together.
    pub fn new(row: &LogSoftmax<'_>, base: BaseRow<'_>, target: u32) -> RowDivergence {
        let logits = row.logits();
        let nll = -row.ln_p(logits[target as usize]);
        match base {
            BaseRow::Logits(others) => {
                let base = LogSoftmax::new(others);
                let term = |(&logit, &other): (&f32, &f32)| {
                    let ln_p = base.ln_p(other);
                    libm::exp(ln_p) * (ln_p - row.ln_p(logit))
                };
                RowDivergence {
                    nll,
                    base_nll: -base.ln_p(others[target as usize]),
                    kld: logits.iter().zip(others).map(term).sum(),
                    same_top: row.top() == base.top(),
                    differs: Some(logits != others),
                    rest: 0.0,
                }
            }
            BaseRow::LnP(ln_ps) => {
                let term = |(&logit, &ln_p): (&f32, &f32)| {
                    let ln_p = f64::from(ln_p);
                    libm::exp(ln_p) * (ln_p - row.ln_p(logit))
                };
                let kept = logits.iter().zip(ln_ps).filter(|(_, ln_p)| **ln_p > LEAST_LN_P);
                let best = ln_ps.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let top = ln_ps.iter().position(|ln_p| *ln_p == best);
                RowDivergence {
                    nll,
                    base_nll: -f64::from(ln_ps[target as usize]),
                    kld: kept.map(term).sum(),
                    same_top: top == Some(row.top() as usize),
                    differs: None,
                    rest: 0.0,
                }
            }
            BaseRow::Top(base) => RowDivergence {
                nll,
                base_nll: -base.of(target).unwrap_or(f64::from(base.ln_rest())),
                kld: base.divergence(row),
                same_top: row.top() == base.top(),
                differs: None,
                rest: base.rest(),
            },
        }
    }

    /// How much more probable the token that came is than by the base.
    pub fn delta_p(&self) -> f64 {
        libm::exp(-self.nll) - libm::exp(-self.base_nll)
    }
}

/// A part of what is compared: a window, or a position over all windows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Part {
    pub base_nll: Sums,
    pub kld: Sums,
    pub same_top: u64,
}

impl Part {
    fn add(&mut self, row: &RowDivergence) {
        self.base_nll.add(row.base_nll);
        self.kld.add(row.kld);
        self.same_top += u64::from(row.same_top);
    }

    /// Adds what others have summed up.
    pub fn join(&mut self, other: &Part) {
        self.base_nll.join(&other.base_nll);
        self.kld.join(&other.kld);
        self.same_top += other.same_top;
    }
}

/// All rows.
#[derive(Clone, Debug, Default)]
pub struct Divergences {
    pub all: Part,
    pub windows: Vec<Part>,
    /// Of each scored position.
    pub positions: Vec<Part>,
    nll: Sums,
    /// Of both nlls, and how they differ.
    products: f64,
    ratio: Sums,
    delta: Sums,
    delta_squared: Sums,
    rest: Sums,
    /// Rows of which some logit is another one, where all are known.
    differing: Option<u64>,
    klds: Vec<f64>,
    deltas: Vec<f64>,
}

impl Divergences {
    /// Adds a window's scored tokens.
    pub fn add<'r>(&mut self, rows: impl IntoIterator<Item = &'r RowDivergence>) {
        let mut window = Part::default();
        for (at, row) in rows.into_iter().enumerate() {
            if at == self.positions.len() {
                self.positions.push(Part::default());
            }
            self.positions[at].add(row);
            window.add(row);
            self.all.add(row);
            self.nll.add(row.nll);
            self.products += row.nll * row.base_nll;
            self.ratio.add(row.nll - row.base_nll);
            let delta = row.delta_p();
            self.delta.add(delta);
            self.delta_squared.add(delta * delta);
            self.rest.add(row.rest);
            if let Some(differs) = row.differs {
                *self.differing.get_or_insert(0) += u64::from(differs);
            }
            self.klds.push(row.kld);
            self.deltas.push(delta);
        }
        self.windows.push(window);
    }

    /// What it comes to.
    pub fn summary(&self) -> DivergenceSummary {
        let count = self.nll.count;
        let [nll, base] = [self.nll.mean(), self.all.base_nll.mean()];
        let covariance = covariance(&self.nll, &self.all.base_nll, self.products);
        let ln_ratio = self.ratio.mean();
        let spreads = nll.error * base.error;
        let squared = self.delta_squared.mean();
        let rms = squared.mean.sqrt();
        let sorted = |values: &[f64]| {
            let mut values = values.to_vec();
            values.sort_unstable_by(f64::total_cmp);
            values
        };
        let (klds, deltas) = (sorted(&self.klds), sorted(&self.deltas));
        DivergenceSummary {
            base_perplexity: base.exp(),
            ln_ratio,
            ratio: ln_ratio.exp(),
            correlation: (spreads > 0.0).then(|| covariance / spreads),
            kld: self.all.kld.mean(),
            delta_p: self.delta.mean(),
            delta_p_rms: Mean { mean: rms, error: if rms > 0.0 { squared.error / (2.0 * rms) } else { 0.0 } },
            same_top: share(self.all.same_top, count),
            differing: self.differing,
            rest: self.rest.mean().mean,
            percentiles: PERCENTILES
                .iter()
                .map(|&percent| Percentile {
                    percent,
                    kld: percentile(&klds, percent / 100.0),
                    delta_p: percentile(&deltas, percent / 100.0),
                })
                .collect(),
        }
    }
}

/// Which percentiles are told.
const PERCENTILES: [f64; 13] = [100.0, 99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1, 0.0];

/// What so many percent of the rows are below.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percentile {
    pub percent: f64,
    pub kld: f64,
    pub delta_p: f64,
}

/// What the rows come to. Probabilities are parts of 1, logarithms are natural.
#[derive(Clone, Debug, PartialEq)]
pub struct DivergenceSummary {
    pub base_perplexity: Mean,
    /// ln(perplexity / base's); its error takes into account that both are of the same tokens.
    pub ln_ratio: Mean,
    pub ratio: Mean,
    /// Of the tokens' logarithms; `None` where they are all the same.
    pub correlation: Option<f64>,
    pub kld: Mean,
    pub delta_p: Mean,
    pub delta_p_rms: Mean,
    /// The share of rows whose most probable token is the base's.
    pub same_top: Mean,
    /// Rows of which some logit is another one; `None` where the base does not keep all.
    pub differing: Option<u64>,
    /// The mean probability that the base does not tell apart; 0 where it keeps all.
    pub rest: f64,
    pub percentiles: Vec<Percentile>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> (Vec<f32>, Vec<f32>) {
        let logits: Vec<f32> = (0..300).map(|i| ((i * 7919) % 613) as f32 / 60.0).collect();
        let other = logits.iter().enumerate().map(|(i, l)| l + ((i * 31) % 17) as f32 / 40.0).collect();
        (logits, other)
    }

    #[test]
    fn a_row_is_as_far_as_the_definition_says() {
        let (p, q) = ([1.0f32, 2.0, 3.0], [1.0f32, 2.0, 3.5]);
        let softmax = |logits: &[f32]| {
            let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
            logits.iter().map(|&l| f64::from(l).exp() / sum).collect::<Vec<_>>()
        };
        let (of_p, of_q) = (softmax(&p), softmax(&q));
        let wanted: f64 = of_p.iter().zip(&of_q).map(|(p, q)| p * (p / q).ln()).sum();
        let row = RowDivergence::new(&LogSoftmax::new(&q), BaseRow::Logits(&p), 1);
        assert!((row.kld - wanted).abs() < 1e-15, "{} {wanted}", row.kld);
        assert!((row.delta_p() - (of_q[1] - of_p[1])).abs() < 1e-15);
        assert_eq!((row.same_top, row.differs), (true, Some(true)));
        let kept = TopRow::new(&LogSoftmax::new(&p), 1, 3);
        let row = RowDivergence::new(&LogSoftmax::new(&q), BaseRow::Top(&kept), 1);
        assert!((row.kld - wanted).abs() < 1e-7, "{} {wanted}", row.kld);
        let kept = TopRow::new(&LogSoftmax::new(&p), 2, 1);
        assert_eq!((kept.of(1), kept.of(2).is_some()), (None, true));
        let ln_p: Vec<f32> = of_p.iter().map(|p| p.ln() as f32).collect();
        let row = RowDivergence::new(&LogSoftmax::new(&q), BaseRow::LnP(&ln_p), 1);
        assert!((row.kld - wanted).abs() < 1e-7, "{} {wanted}", row.kld);
    }

    /// The canary: one logit that is the next float is seen, and one that weighs something diverges.
    #[test]
    fn the_same_logits_are_exactly_0_and_no_others() {
        let (logits, _) = rows();
        let compare =
            |others: &[f32]| RowDivergence::new(&LogSoftmax::new(&logits), BaseRow::Logits(others), 7);
        let same = compare(&logits);
        assert_eq!((same.kld, same.delta_p(), same.differs), (0.0, 0.0, Some(false)));
        for at in [0, 7, 299] {
            let mut altered = logits.clone();
            altered[at] = altered[at].next_up();
            assert_eq!(compare(&altered).differs, Some(true), "{at}");
            altered[at] += 0.25;
            assert!(compare(&altered).kld > 0.0, "{at}");
        }
    }

    #[test]
    fn a_summary_is_of_all_rows() {
        let (logits, other) = rows();
        let row =
            |of: &[f32], target| RowDivergence::new(&LogSoftmax::new(of), BaseRow::Logits(&logits), target);
        let mut divergences = Divergences::default();
        divergences.add(&[row(&other, 1), row(&logits, 2)]);
        divergences.add(&[row(&other, 3), row(&other, 4)]);
        let found = divergences.summary();
        let klds: Vec<f64> = found.percentiles.iter().map(|p| p.kld).collect();
        assert!(klds.is_sorted_by(|a, b| a >= b) && klds.last() == Some(&0.0));
        let nlls = [(&other, 1), (&logits, 2), (&other, 3), (&other, 4)].map(|(of, t)| row(of, t));
        let mean = |of: fn(&RowDivergence) -> f64| nlls.iter().map(of).sum::<f64>() / 4.0;
        assert!((found.ln_ratio.mean - mean(|r| r.nll - r.base_nll)).abs() < 1e-12);
        assert!((found.kld.mean - mean(|r| r.kld)).abs() < 1e-15);
        assert_eq!(found.differing, Some(3));
        assert!(found.correlation.unwrap() > 0.9);
        assert_eq!((divergences.windows.len(), divergences.positions.len()), (2, 2));
        let mut joined = divergences.windows[0];
        joined.join(&divergences.windows[1]);
        assert_eq!(joined.kld.count, 4);
        let nothing = Divergences::default().summary();
        assert_eq!((nothing.kld, nothing.correlation, nothing.differing), (Mean::default(), None, None));
    }
}
