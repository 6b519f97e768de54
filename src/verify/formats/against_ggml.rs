//! A format's functions, and the kernel sets, against what ggml computed.

use std::fmt;

use super::activation_blocks::{self, OwnedRow};
use super::against_scalar::Matmul;
use super::goldens::digest;
use super::{DotSet, FormatGoldens, FormatUnderTest, dot_bound, same};
use crate::gguf::TensorType;
use crate::kernels::{Kernels, WeightMatrix};
use crate::quant::{Activations, Format, NonFinite};

/// The first thing that was wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    pub ty: TensorType,
    /// What was checked: `decode`, `activations`, `dot`, ..
    pub check: &'static str,
    /// Which case, and where in it.
    pub case: String,
    pub found: String,
    pub wanted: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { ty, check, case, found, wanted } = self;
        write!(f, "{ty} {check}, {case}: {found}, where {wanted} is needed")
    }
}

/// What a check that demands the same bits found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Values compared.
    pub compared: u64,
    /// Values that differ.
    pub differing: u64,
    pub first: Option<Mismatch>,
}

impl Tally {
    fn add(&mut self, same: bool, mismatch: impl FnOnce() -> Mismatch) {
        self.compared += 1;
        if !same {
            self.differing += 1;
            self.first.get_or_insert_with(mismatch);
        }
    }
}

/// How close dots are to ggml's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Closeness {
    /// Dots compared.
    pub compared: u64,
    /// The worst error in units in the last place of the sum of magnitudes.
    pub worst_ulp: f64,
    /// The worst error over the sum of magnitudes.
    pub worst_relative: f64,
    /// The first dot beyond the format's bound. A format without a bound has none.
    pub first: Option<Mismatch>,
}

/// A format against its goldens.
#[derive(Clone, Debug, Default)]
pub struct GgmlReport {
    /// Decoded values.
    pub decoded: Tally,
    /// Quantised activations, byte by byte.
    pub quantised: Tally,
    /// Activations that are not finite, which must be refused (let through by float formats).
    pub refused: Tally,
    /// Dots into which float rounding cannot enter.
    pub exact: Tally,
    /// Other dots.
    pub dots: Closeness,
}

impl GgmlReport {
    /// The first thing wrong in the order of the checks.
    pub fn first(&self) -> Option<&Mismatch> {
        [&self.decoded, &self.quantised, &self.refused, &self.exact]
            .into_iter()
            .find_map(|tally| tally.first.as_ref())
            .or(self.dots.first.as_ref())
    }
}

/// Holds a format's functions against ggml's results.
pub fn check_against_ggml(format: &FormatUnderTest, goldens: &FormatGoldens) -> GgmlReport {
    let mut report = GgmlReport { decoded: check_decode(format, goldens), ..GgmlReport::default() };
    check_quantise(format, goldens, &mut report.quantised);
    check_refusals(format, goldens, &mut report.refused);
    for set in goldens.dots.iter().chain(&goldens.exact) {
        check_dot_inputs(format, set, &mut report.quantised);
    }
    for set in &goldens.exact {
        add_exact(format.ty, "exact dot", set, &dots_of(format, set), &mut report.exact);
    }
    for set in &goldens.dots {
        add_close(format, set, &dots_of(format, set), &mut report.dots);
    }
    report
}

fn check_decode(format: &FormatUnderTest, goldens: &FormatGoldens) -> Tally {
    let mut tally = Tally::default();
    let n = goldens.case_len;
    let bytes = goldens.blocks.len() / goldens.decode_cases.len().max(1);
    let mut out = vec![0f32; n];
    let cases = || goldens.decode_cases.iter().zip(goldens.blocks.chunks(bytes.max(1)));
    for ((name, block), &wanted) in cases().zip(&goldens.digests) {
        (format.decode)(block, &mut out);
        let found = digest(&out);
        tally.compared += n as u64 - 1;
        tally.add(found == wanted, || Mismatch {
            ty: format.ty,
            check: "decode",
            case: format!("case \"{name}\", {n} values"),
            found: format!("digest {found:#018x}"),
            wanted: format!("{wanted:#018x}"),
        });
    }
    for ((name, block), wanted) in cases().zip(goldens.values.chunks(n)) {
        (format.decode)(block, &mut out);
        for (i, (&found, &wanted)) in out.iter().zip(wanted).enumerate() {
            tally.add(same(found, wanted), || Mismatch {
                ty: format.ty,
                check: "decode",
                case: format!("case \"{name}\", value {i}"),
                found: float(found),
                wanted: float(wanted),
            });
        }
    }
    tally
}

fn check_quantise(format: &FormatUnderTest, goldens: &FormatGoldens, tally: &mut Tally) {
    let bytes = activation_blocks::row_bytes(format.activation, goldens.case_len);
    let cases = goldens.activation_cases.iter().zip(goldens.inputs.chunks(goldens.case_len));
    for ((name, input), wanted) in cases.zip(goldens.quantised.chunks(bytes)) {
        compare_quantised(format, || format!("case \"{name}\""), input, wanted, tally);
    }
}

/// The activations of a set of dots, row by row.
fn check_dot_inputs(format: &FormatUnderTest, set: &DotSet, tally: &mut Tally) {
    let bytes = activation_blocks::row_bytes(format.activation, set.cols);
    for (row, (input, wanted)) in set.inputs.chunks(set.cols).zip(set.quantised.chunks(bytes)).enumerate() {
        let case = || format!("row {row} of the dots of {}", set.cols);
        compare_quantised(format, case, input, wanted, tally);
    }
}

fn compare_quantised(
    format: &FormatUnderTest,
    case: impl Fn() -> String,
    input: &[f32],
    wanted: &[u8],
    tally: &mut Tally,
) {
    let mismatch = |place: String, found: String, wanted: String| Mismatch {
        ty: format.ty,
        check: "activations",
        case: format!("{}{place}", case()),
        found,
        wanted,
    };
    match (format.quantise)(format.activation, input) {
        Ok(found) if found.len() == wanted.len() => {
            for (at, (f, w)) in found.iter().zip(wanted).enumerate() {
                let place =
                    || format!(", {} (byte {at})", activation_blocks::field_at(format.activation, at));
                tally.add(f == w, || mismatch(place(), format!("{f:#04x}"), format!("{w:#04x}")));
            }
        }
        Ok(found) => tally.add(false, || {
            mismatch(String::new(), format!("{} bytes", found.len()), format!("{}", wanted.len()))
        }),
        Err(error) => tally.add(false, || mismatch(String::new(), error.to_string(), "a result".to_owned())),
    }
}

/// Quantised types refuse what is not finite, by its place.
fn check_refusals(format: &FormatUnderTest, goldens: &FormatGoldens, tally: &mut Tally) {
    let n = goldens.case_len;
    let quantised = format.activation.is_quantised();
    for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        for index in [0, n / 2, n - 1] {
            let mut input = vec![1.0; n];
            input[index] = bad;
            let found = (format.quantise)(format.activation, &input).map(|_| ());
            let wanted = if quantised { Err(NonFinite { row: 0, index }) } else { Ok(()) };
            tally.add(found == wanted, || Mismatch {
                ty: format.ty,
                check: "activations",
                case: format!("{bad} at {index}"),
                found: format!("{found:?}"),
                wanted: format!("{wanted:?}"),
            });
        }
    }
}

/// The dots of a set, by the format's own function on ggml's activations.
fn dots_of(format: &FormatUnderTest, set: &DotSet) -> Vec<f32> {
    let bytes = activation_blocks::row_bytes(format.activation, set.cols);
    let rows = set.weights.chunks(set.weights.len() / set.dots.len().max(1)).zip(set.quantised.chunks(bytes));
    rows.map(|(weights, x)| (format.dot)(weights, OwnedRow::parse(format.activation, x).row())).collect()
}

fn add_exact(ty: TensorType, check: &'static str, set: &DotSet, found: &[f32], tally: &mut Tally) {
    for (row, (&found, &wanted)) in found.iter().zip(&set.dots).enumerate() {
        // A sum of zero may have either sign.
        tally.add(found == wanted, || Mismatch {
            ty,
            check,
            case: format!("row {row} of {} values", set.cols),
            found: float(found),
            wanted: float(wanted),
        });
    }
}

fn add_close(format: &FormatUnderTest, set: &DotSet, found: &[f32], closeness: &mut Closeness) {
    let bytes = activation_blocks::row_bytes(format.activation, set.cols);
    let rows = set.weights.chunks(set.weights.len() / set.dots.len().max(1)).zip(set.quantised.chunks(bytes));
    let bound = dot_bound(format.ty).map(|b| b.bound);
    for (row, ((weights, x), (&found, &wanted))) in rows.zip(found.iter().zip(&set.dots)).enumerate() {
        let magnitude = sum_of_magnitudes(format, weights, x, set.cols);
        let error = if same(found, wanted) { 0.0 } else { (f64::from(found) - f64::from(wanted)).abs() };
        let ulp = in_units(error, ulp(magnitude));
        closeness.compared += 1;
        closeness.worst_ulp = closeness.worst_ulp.max(ulp);
        closeness.worst_relative = closeness.worst_relative.max(in_units(error, magnitude));
        if bound.is_some_and(|bound| ulp > bound) && closeness.first.is_none() {
            closeness.first = Some(Mismatch {
                ty: format.ty,
                check: "dot",
                case: format!("row {row} of {} values", set.cols),
                found: format!("{found:e}, {ulp:.3} ULP of the sum of magnitudes off"),
                wanted: format!("{wanted:e} within {} ULP", bound.unwrap_or_default()),
            });
        }
    }
}

/// An error in units: infinite where either is not finite, for NaN is above no bound.
fn in_units(error: f64, unit: f64) -> f64 {
    if error == 0.0 {
        0.0
    } else if error.is_finite() && unit.is_finite() {
        error / unit
    } else {
        f64::INFINITY
    }
}

/// `sum |w * a|` over the values that the weights and the activations decode to: of the real functions, not
/// of those under test.
fn sum_of_magnitudes(format: &FormatUnderTest, weights: &[u8], x: &[u8], cols: usize) -> f64 {
    let mut values = vec![0f32; cols];
    let decode = crate::quant::format(format.ty).map_or(format.decode, |real| real.decode);
    decode(weights, &mut values);
    let x = OwnedRow::parse(format.activation, x).exact_values();
    values.iter().zip(&x).map(|(&w, a)| (f64::from(w) * a).abs()).sum()
}

/// The distance from a positive value to the next f32.
fn ulp(value: f64) -> f64 {
    let value = value as f32;
    f64::from(value.next_up()) - f64::from(value)
}

fn float(value: f32) -> String {
    format!("{value:e} ({:#010x})", value.to_bits())
}

/// Rows of a product with as many rows of activations: memory grows with the square.
const ROWS_AT_ONCE: usize = 64;

/// Holds the kernels of a set against ggml's dots: exact dots, other dots. The products are of some rows with
/// as many rows of activations; ggml has those of equal number.
pub fn check_kernels_against_ggml(
    kernels: &'static Kernels,
    format: &Format,
    goldens: &FormatGoldens,
    matmul: Matmul,
) -> Result<(Tally, Closeness), NonFinite> {
    let (mut exact, mut close) = (Tally::default(), Closeness::default());
    let under_test = FormatUnderTest::of(format);
    let product = |set: &DotSet| -> Result<Vec<f32>, NonFinite> {
        let (mut x, mut dots) = (Activations::new(), Vec::with_capacity(set.dots.len()));
        let weights = set.weights.chunks(ROWS_AT_ONCE * format.row_bytes(set.cols));
        for (weights, inputs) in weights.zip(set.inputs.chunks(ROWS_AT_ONCE * set.cols)) {
            let (first, rows) = (dots.len(), inputs.len() / set.cols);
            x.quantize(format.activation, inputs, set.cols)
                .map_err(|bad| NonFinite { row: first + bad.row, ..bad })?;
            let mut out = vec![0f32; rows * rows];
            if let Some(weights) = WeightMatrix::new(format.ty, weights, rows, set.cols) {
                matmul(kernels, weights, &x, &mut out);
            }
            dots.extend(out.into_iter().step_by(rows + 1));
        }
        Ok(dots)
    };
    for set in &goldens.exact {
        add_exact(format.ty, "exact dot", set, &product(set)?, &mut exact);
    }
    for set in &goldens.dots {
        add_close(&under_test, set, &product(set)?, &mut close);
    }
    Ok((exact, close))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulps() {
        assert_eq!(ulp(1.0), 2f64.powi(-23));
        assert_eq!(ulp(1.999), 2f64.powi(-23));
        assert_eq!(ulp(2.0), 2f64.powi(-22));
        assert_eq!(ulp(0.0), f64::from(f32::from_bits(1)));
    }
}
