//! How far values are from a reference.

/// Differences of values from their reference, added up as they come. Memory does not grow with their number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// Values compared.
    pub count: u64,
    /// Values whose bits differ (any NaN equals any NaN).
    pub differing: u64,
    /// The largest absolute difference; infinite where one side is not finite and the other is something
    /// else.
    pub largest: f64,
    /// Where the largest one was, counted in the order of comparison; the first of equals.
    pub largest_at: Option<u64>,
    /// The reference and the value there.
    pub largest_pair: Option<(f32, f32)>,
    error_squared: f64,
    reference_squared: f64,
    value_squared: f64,
    product: f64,
}

impl Difference {
    /// The differences of two equally long slices.
    pub fn of(reference: &[f32], values: &[f32]) -> Difference {
        let mut difference = Difference::default();
        difference.add(reference, values);
        difference
    }

    /// Compares more values.
    ///
    /// # Panics
    /// Where there are not as many of them as of references.
    pub fn add(&mut self, reference: &[f32], values: &[f32]) {
        assert_eq!(reference.len(), values.len(), "as many values as references");
        for (&r, &v) in reference.iter().zip(values) {
            let at = self.count;
            self.count += 1;
            let same = r.to_bits() == v.to_bits() || (r.is_nan() && v.is_nan());
            self.differing += u64::from(!same);
            let error = if same {
                0.0
            } else if r.is_finite() && v.is_finite() {
                f64::from(v) - f64::from(r)
            } else {
                f64::INFINITY
            };
            if error.abs() > self.largest || (!same && self.largest_at.is_none()) {
                self.largest = error.abs();
                self.largest_at = Some(at);
                self.largest_pair = Some((r, v));
            }
            self.error_squared += error * error;
            if r.is_finite() && v.is_finite() {
                let (r, v) = (f64::from(r), f64::from(v));
                self.reference_squared += r * r;
                self.value_squared += v * v;
                self.product += r * v;
            }
        }
    }

    /// Adds the differences of the values that come after these.
    pub fn append(&mut self, more: &Difference) {
        if more.largest_at.is_some() && (self.largest_at.is_none() || more.largest > self.largest) {
            self.largest = more.largest;
            self.largest_at = more.largest_at.map(|at| self.count + at);
            self.largest_pair = more.largest_pair;
        }
        self.count += more.count;
        self.differing += more.differing;
        self.error_squared += more.error_squared;
        self.reference_squared += more.reference_squared;
        self.value_squared += more.value_squared;
        self.product += more.product;
    }

    /// Whether all bits are the same.
    pub fn is_none(&self) -> bool {
        self.differing == 0
    }

    /// Normalised mean squared error: the energy of the error over that of the reference. 0 where nothing
    /// differs, infinite where the reference is all zeros and the values are not.
    pub fn nmse(&self) -> f64 {
        if self.error_squared == 0.0 { 0.0 } else { self.error_squared / self.reference_squared }
    }

    /// The cosine of the angle between values and reference; 1 where both are all zeros.
    pub fn cosine(&self) -> f64 {
        let lengths = (self.reference_squared * self.value_squared).sqrt();
        if lengths > 0.0 {
            (self.product / lengths).clamp(-1.0, 1.0)
        } else if self.reference_squared == self.value_squared {
            1.0
        } else {
            0.0
        }
    }

    /// Signal to quantisation noise in decibels: the reference's energy over the error's; infinite where
    /// nothing differs.
    pub fn sqnr_db(&self) -> f64 {
        -10.0 * self.nmse().log10()
    }

    /// Root mean square of the error.
    pub fn rms(&self) -> f64 {
        if self.count == 0 { 0.0 } else { (self.error_squared / self.count as f64).sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_of_a_known_error() {
        let d = Difference::of(&[3.0, 4.0, 0.0], &[3.0, 4.5, 0.0]);
        assert_eq!((d.count, d.differing, d.largest, d.largest_at), (3, 1, 0.5, Some(1)));
        assert_eq!(d.largest_pair, Some((4.0, 4.5)));
        assert_eq!(d.nmse(), 0.01);
        assert!((d.sqnr_db() - 20.0).abs() < 1e-12);
        assert!((d.cosine() - 27.0 / (5.0 * 29.25f64.sqrt())).abs() < 1e-15);
        assert!((d.rms() - (0.25f64 / 3.0).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn the_same_is_no_difference_whatever_it_is() {
        let odd = [f32::NAN, f32::INFINITY, -0.0, 0.0];
        let d = Difference::of(&odd, &odd);
        assert!(d.is_none());
        assert_eq!((d.nmse(), d.cosine(), d.sqnr_db()), (0.0, 1.0, f64::INFINITY));
    }

    #[test]
    fn what_is_not_finite_on_one_side_is_infinitely_far() {
        for (r, v) in
            [(1.0, f32::NAN), (f32::NAN, 1.0), (f32::INFINITY, f32::NEG_INFINITY), (f32::INFINITY, 3.0)]
        {
            let d = Difference::of(&[1.0, r], &[1.0, v]);
            assert_eq!((d.differing, d.largest, d.nmse()), (1, f64::INFINITY, f64::INFINITY), "{r} {v}");
        }
        assert_eq!(Difference::of(&[0.0], &[1.0]).nmse(), f64::INFINITY);
    }

    #[test]
    fn parts_add_up() {
        let (r, v) = ([1.0, 2.0, 3.0, 4.0, -0.0], [1.0, 2.5, 3.0, 4.5, 0.0]);
        for at in 0..=5 {
            let mut d = Difference::of(&r[..at], &v[..at]);
            d.append(&Difference::of(&r[at..], &v[at..]));
            assert_eq!(d, Difference::of(&r, &v), "{at}");
        }
    }

    #[test]
    fn the_sign_of_zero_differs_in_bits_only() {
        let d = Difference::of(&[0.0, 1.0], &[-0.0, 1.0]);
        assert_eq!((d.differing, d.largest, d.largest_at, d.nmse()), (1, 0.0, Some(0), 0.0));
    }
}
