//! Means with their errors, percentiles, and the perplexity that they make.

use serde::Serialize;

/// A mean and its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Mean {
    pub mean: f64,
    pub error: f64,
}

impl Mean {
    /// The exponential of it, whose error is that of small errors.
    pub fn exp(self) -> Mean {
        let mean = libm::exp(self.mean);
        Mean { mean, error: mean * self.error }
    }
}

/// Values summed up in the order in which they come.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    pub count: u64,
    sum: f64,
    squares: f64,
}

impl Sums {
    /// Adds a value.
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.squares += value * value;
    }

    /// Of these values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Sums {
        let mut sums = Sums::default();
        values.into_iter().for_each(|value| sums.add(value));
        sums
    }

    /// Adds what others have summed up.
    pub fn join(&mut self, other: &Sums) {
        self.count += other.count;
        self.sum += other.sum;
        self.squares += other.squares;
    }

    /// The mean, 0 of nothing; its error is the root of (mean square - squared mean) / (count - 1), 0 of less
    /// than two values.
    pub fn mean(&self) -> Mean {
        if self.count == 0 {
            return Mean::default();
        }
        let count = self.count as f64;
        let mean = self.sum / count;
        let spread = self.squares / count - mean * mean;
        let error = if self.count > 1 && spread > 0.0 { (spread / (count - 1.0)).sqrt() } else { 0.0 };
        Mean { mean, error }
    }
}

/// The covariance of the means of two sorts of values.
pub fn covariance(a: &Sums, b: &Sums, products: f64) -> f64 {
    let count = a.count as f64;
    if a.count < 2 { 0.0 } else { (products / count - a.mean().mean * b.mean().mean) / (count - 1.0) }
}

/// The share of a count, with the error of a share.
pub fn share(of: u64, count: u64) -> Mean {
    let mean = if count == 0 { 0.0 } else { of as f64 / count as f64 };
    let error = if count < 2 { 0.0 } else { (mean * (1.0 - mean) / (count - 1) as f64).sqrt() };
    Mean { mean, error }
}

/// The value below which a fraction of the sorted values lies, in between two of them where it falls there; 0
/// of none.
pub fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = fraction.clamp(0.0, 1.0) * last as f64;
    let below = place as usize;
    let part = place - below as f64;
    if part == 0.0 { sorted[below] } else { (1.0 - part) * sorted[below] + part * sorted[below + 1] }
}

/// Negative logarithms of the probabilities of a text's tokens, in nats.
#[derive(Clone, Debug, Default)]
pub struct Perplexity {
    /// Of all scored tokens.
    pub all: Sums,
    /// Of each window.
    pub windows: Vec<Sums>,
    /// Of each scored position, over all windows.
    pub positions: Vec<Sums>,
}

impl Perplexity {
    /// Adds a window's scored tokens.
    pub fn add(&mut self, nlls: impl IntoIterator<Item = f64>) {
        let mut window = Sums::default();
        for (at, nll) in nlls.into_iter().enumerate() {
            if at == self.positions.len() {
                self.positions.push(Sums::default());
            }
            self.positions[at].add(nll);
            window.add(nll);
            self.all.add(nll);
        }
        self.windows.push(window);
    }

    /// exp of the mean, with its error.
    pub fn perplexity(&self) -> Mean {
        self.all.mean().exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_have_the_error_of_means() {
        let mean = Sums::of([1.0, 2.0, 3.0, 4.0]).mean();
        assert_eq!(mean.mean, 2.5);
        assert!((mean.error - (1.25f64 / 3.0).sqrt()).abs() < 1e-15);
        assert_eq!(Sums::default().mean(), Mean::default());
        assert_eq!(Sums::of([3.0]).mean(), Mean { mean: 3.0, error: 0.0 });
        let mut joined = Sums::of([1.0, 2.0]);
        joined.join(&Sums::of([3.0, 4.0]));
        assert_eq!(joined, Sums::of([1.0, 2.0, 3.0, 4.0]));
        // Of the same values, the covariance is the square of the error.
        let sums = Sums::of([1.0, 2.0, 4.0]);
        assert!((covariance(&sums, &sums, 21.0) - sums.mean().error.powi(2)).abs() < 1e-15);
        assert_eq!(share(1, 2), Mean { mean: 0.5, error: 0.5 });
        assert_eq!((share(0, 0), share(7, 7)), (Mean::default(), Mean { mean: 1.0, error: 0.0 }));
    }

    #[test]
    fn percentiles_lie_between() {
        let values = [1.0, 2.0, 4.0];
        let found = [0.0, 0.25, 0.5, 0.75, 1.0, 2.0].map(|fraction| percentile(&values, fraction));
        assert_eq!(found, [1.0, 1.5, 2.0, 3.0, 4.0, 4.0]);
        assert_eq!((percentile(&[], 0.5), percentile(&[7.0], 0.999)), (0.0, 7.0));
    }

    #[test]
    fn windows_and_positions_are_kept_apart() {
        let mut perplexity = Perplexity::default();
        perplexity.add([1.0, 2.0]);
        perplexity.add([3.0, 4.0]);
        let means = |sums: &[Sums]| sums.iter().map(|sums| sums.mean().mean).collect::<Vec<_>>();
        assert_eq!(means(&perplexity.windows), [1.5, 3.5]);
        assert_eq!(means(&perplexity.positions), [2.0, 3.0]);
        assert_eq!(perplexity.perplexity().mean, libm::exp(2.5));
    }
}
