//! Statistics of values that come in parts.

/// Counts and moments. What is not finite is counted and otherwise left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// All values.
    pub count: u64,
    /// Of either sign.
    pub zeros: u64,
    pub nan: u64,
    pub infinite: u64,
    /// The least finite value and where it first was, counted in the order of adding.
    pub min: Option<(f32, u64)>,
    /// Likewise the largest.
    pub max: Option<(f32, u64)>,
    sum: f64,
    squares: f64,
}

impl Statistics {
    /// Adds values.
    pub fn add(&mut self, values: &[f32]) {
        for &value in values {
            let at = self.count;
            self.count += 1;
            if !value.is_finite() {
                self.nan += u64::from(value.is_nan());
                self.infinite += u64::from(value.is_infinite());
                continue;
            }
            self.zeros += u64::from(value == 0.0);
            if self.min.is_none_or(|(min, _)| value < min) {
                self.min = Some((value, at));
            }
            if self.max.is_none_or(|(max, _)| value > max) {
                self.max = Some((value, at));
            }
            self.sum += f64::from(value);
            self.squares += f64::from(value) * f64::from(value);
        }
    }

    /// Finite values.
    pub fn finite(&self) -> u64 {
        self.count - self.nan - self.infinite
    }

    /// Mean of the finite values; `None` where there are none.
    pub fn mean(&self) -> Option<f64> {
        (self.finite() > 0).then(|| self.sum / self.finite() as f64)
    }

    /// Root of the mean square of the finite values; `None` where there are none.
    pub fn rms(&self) -> Option<f64> {
        (self.finite() > 0).then(|| (self.squares / self.finite() as f64).sqrt())
    }
}

/// Finite values counted in bins of equal width.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Lower edge of the first bin.
    pub low: f32,
    /// Upper edge of the last bin, which is in it.
    pub high: f32,
    pub counts: Vec<u64>,
}

impl Histogram {
    /// Empty bins from `low` to `high`; where the two are equal, one bin.
    pub fn new(low: f32, high: f32, bins: usize) -> Histogram {
        Histogram { low, high, counts: vec![0; if low < high { bins.max(1) } else { 1 }] }
    }

    /// Adds the finite ones of these values; what is beyond the edges goes to the outer bins.
    pub fn add(&mut self, values: &[f32]) {
        let bins = self.counts.len();
        let (low, width) = (f64::from(self.low), f64::from(self.high) - f64::from(self.low));
        let factor = if width > 0.0 { bins as f64 / width } else { 0.0 };
        for &value in values.iter().filter(|v| v.is_finite()) {
            // Below 0 becomes 0.
            let bin = ((f64::from(value) - low) * factor) as usize;
            self.counts[bin.min(bins - 1)] += 1;
        }
    }

    /// The lower edge of bin `i`; of the number of bins, the upper edge of the last.
    pub fn edge(&self, i: usize) -> f64 {
        let (low, high) = (f64::from(self.low), f64::from(self.high));
        low + (high - low) * i as f64 / self.counts.len() as f64
    }
}

/// The middle value, or the mean of the two in the middle; `None` of no values.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let mid = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[mid]),
        _ => Some((values[mid - 1] + values[mid]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_moments() {
        let mut s = Statistics::default();
        assert_eq!((s.mean(), s.rms(), s.min), (None, None, None));
        s.add(&[3.0, -0.0, f32::NAN, -4.0]);
        s.add(&[f32::INFINITY, f32::NEG_INFINITY, -4.0, 3.0, 0.0]);
        assert_eq!((s.count, s.finite(), s.zeros, s.nan, s.infinite), (9, 6, 2, 1, 2));
        assert_eq!((s.min, s.max), (Some((-4.0, 3)), Some((3.0, 0))));
        assert_eq!(s.mean(), Some(-2.0 / 6.0));
        assert_eq!(s.rms(), Some((50.0f64 / 6.0).sqrt()));
    }

    #[test]
    fn bins() {
        let mut h = Histogram::new(-1.0, 1.0, 4);
        h.add(&[-1.0, -0.5, -0.1, 0.0, 0.4, 1.0, f32::NAN, f32::INFINITY, 2.0, -2.0]);
        assert_eq!(h.counts, [2, 2, 2, 2]);
        assert_eq!([0, 1, 4].map(|i| h.edge(i)), [-1.0, -0.5, 1.0]);
        let mut one = Histogram::new(2.5, 2.5, 16);
        one.add(&[2.5, 2.5]);
        assert_eq!(one.counts, [2]);
        let mut wide = Histogram::new(f32::MIN, f32::MAX, 2);
        wide.add(&[f32::MIN, f32::MAX, 0.0, -1.0]);
        assert_eq!(wide.counts, [1, 3]); // next to such a width, -1 is 0
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
