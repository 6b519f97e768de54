//! Counts, moments, a histogram, the first values.

use std::io::Write;

use serde::Serialize;

use super::{At, Header, Selected, place, print_json, shape};
use crate::cli::CliError;
use crate::cli::number::Number;
use crate::cli::output::{self, grouped};
use crate::cli::safe_text::escape;
use crate::verify::{Histogram, Statistics};

const BINS: usize = 16;
/// Values shown.
const FIRST: usize = 6;

/// Reads the values twice: the histogram's edges are not known before.
pub fn run(selected: &Selected<'_>, json: bool, out: &mut impl Write) -> Result<(), CliError> {
    let (mut statistics, mut first) = (Statistics::default(), Vec::new());
    for chunk in selected.rows.chunks() {
        let chunk = chunk?;
        first.extend(chunk.iter().take(FIRST - first.len()));
        statistics.add(&chunk);
    }
    let edges = statistics.min.zip(statistics.max);
    let mut histogram = edges.map(|((low, _), (high, _))| Histogram::new(low, high, BINS));
    if let Some(histogram) = &mut histogram {
        for chunk in selected.rows.chunks() {
            histogram.add(&chunk?);
        }
    }
    if json {
        return print_json(&report(selected, &statistics, histogram, &first), out);
    }
    print(selected, &statistics, &first, out)?;
    match histogram {
        Some(histogram) => print_histogram(&histogram, out),
        None => Ok(()),
    }
}

/// What is printed as JSON; `null` for what there is none of.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    header: Header,
    elements: u64,
    min: Option<Extreme>,
    max: Option<Extreme>,
    mean: Option<Number>,
    rms: Option<Number>,
    zeros: u64,
    nan: u64,
    infinite: u64,
    histogram: Option<Bins>,
    first: Vec<Number>,
}

#[derive(Serialize)]
struct Extreme {
    value: Number,
    #[serde(flatten)]
    at: At,
}

/// Bins of equal width.
#[derive(Serialize)]
struct Bins {
    low: Number,
    high: Number,
    counts: Vec<u64>,
}

fn report(selected: &Selected<'_>, s: &Statistics, histogram: Option<Histogram>, first: &[f32]) -> Report {
    let extreme = |value: Option<(f32, u64)>| {
        value.map(|(v, at)| Extreme { value: v.into(), at: selected.rows.place(at).into() })
    };
    Report {
        header: selected.header(),
        elements: s.count,
        min: extreme(s.min),
        max: extreme(s.max),
        mean: s.mean().map(Number::from),
        rms: s.rms().map(Number::from),
        zeros: s.zeros,
        nan: s.nan,
        infinite: s.infinite,
        histogram: histogram.map(|h| Bins { low: h.low.into(), high: h.high.into(), counts: h.counts }),
        first: first.iter().map(|&v| v.into()).collect(),
    }
}

fn print(
    selected: &Selected<'_>,
    s: &Statistics,
    first: &[f32],
    out: &mut impl Write,
) -> Result<(), CliError> {
    writeln!(out, "{}: {}\n", escape(&selected.path.display().to_string()), escape(selected.name))?;
    let extreme = |value: Option<(f32, u64)>| match value {
        Some((v, at)) => format!("{v:?} at {}", place(selected.rows.place(at))),
        None => "none".to_owned(),
    };
    let moment = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |v| output::significant(v, 7));
    let count = |n: u64| match n {
        0 => "0".to_owned(),
        n => format!("{} ({:.2} %)", grouped(n), n as f64 * 100.0 / s.count as f64),
    };
    let shown = first.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(" ");
    let mut table = output::new_table(&["type", selected.rows.ty().name()], &[]);
    table.add_row(["shape", &format!("{} (slowest first)", shape(&selected.rows.shape()))]);
    table.add_row(["elements", &grouped(s.count)]);
    table.add_row(["min", &extreme(s.min)]);
    table.add_row(["max", &extreme(s.max)]);
    table.add_row(["mean", &moment(s.mean())]);
    table.add_row(["RMS", &moment(s.rms())]);
    table.add_row(["zeros", &count(s.zeros)]);
    table.add_row(["NaN", &count(s.nan)]);
    table.add_row(["infinite", &count(s.infinite)]);
    table.add_row(["first", &output::cut_end(&shown, output::width().saturating_sub(12))]);
    for line in table.trim_fmt().lines() {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}

fn print_histogram(histogram: &Histogram, out: &mut impl Write) -> Result<(), CliError> {
    let most = histogram.counts.iter().copied().max().unwrap_or(0).max(1);
    let room = output::width().saturating_sub(46).clamp(10, 60);
    let mut table = output::new_table(&["from", "to", "values", ""], &[0, 1, 2]);
    for (i, &count) in histogram.counts.iter().enumerate() {
        // Rounded up: what is there is seen.
        let bar = (count as u128 * room as u128).div_ceil(u128::from(most)) as usize;
        let edge = |i| output::significant(histogram.edge(i), 5);
        table.add_row([edge(i), edge(i + 1), grouped(count), "#".repeat(bar)]);
    }
    writeln!(out)?;
    for line in table.trim_fmt().lines() {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}
