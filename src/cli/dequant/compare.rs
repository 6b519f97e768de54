//! One tensor against another, of the same shape.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::{Args, At, Header, Selected, place, print_json, shape};
use crate::cli::number::Number;
use crate::cli::output::{self, grouped};
use crate::cli::safe_text::escape;
use crate::cli::{CliError, model_arg, tensor_arg};
use crate::gguf::TensorInfo;
use crate::verify::{Difference, RowsError, Selection, WeightRows};

/// Measures the selection against the same of `other`, the reference.
pub fn run(
    selected: &Selected<'_>,
    selection: &Selection,
    other: &Path,
    args: &Args,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let gguf = model_arg::open(model_arg::source(other))?;
    let name = args.other_name.as_deref().unwrap_or(selected.name);
    let tensor = tensor_arg::find(&gguf, name).map_err(|error| match args.other_name {
        None => error.hint("--as NAME gives the tensor's name there"),
        Some(_) => error,
    })?;
    // One expert may be a tensor of its own there.
    let own = selection.expert.filter(|_| tensor.dims.iter().skip(2).any(|&n| n > 1));
    let rows = WeightRows::open(&gguf, tensor, &Selection { expert: own, rows: selection.rows });
    let rows = scope_checked(selected, tensor, own, rows)?;
    let reference = Selected { gguf: &gguf, path: other, name: &tensor.name, rows };
    let mut difference = Difference::default();
    // Both come in parts of the same sizes.
    for (wanted, found) in reference.rows.chunks().zip(selected.rows.chunks()) {
        difference.add(&wanted?, &found?);
    }
    if args.json {
        return print_json(&report(selected, &reference, &difference), out);
    }
    print(selected, &reference, &difference, out)
}

/// The rows of the reference, where its shape is that of what is compared with it. A wrong shape is told
/// before rows that are not there because of it.
fn scope_checked(
    selected: &Selected<'_>,
    tensor: &TensorInfo,
    expert: Option<u64>,
    rows: Result<WeightRows, RowsError>,
) -> Result<WeightRows, CliError> {
    let size = |i: usize| tensor.dims.get(i).copied().unwrap_or(1);
    let experts = if expert.is_some() { 1 } else { size(2) * size(3) };
    let (wanted, found) = ([size(0), size(1), experts], selected.rows.scope());
    if wanted != found {
        let show = |sizes: [u64; 3]| shape(&sizes.into_iter().rev().collect::<Vec<_>>());
        return Err(CliError::new(format!(
            "\"{}\" is of shape {}, \"{}\" of the reference of {} (experts x rows x columns)",
            escape(selected.name),
            show(found),
            escape(&tensor.name),
            show(wanted)
        )));
    }
    Ok(rows?)
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    header: Header,
    reference: Header,
    elements: u64,
    differing: u64,
    nmse: Number,
    sqnr_db: Number,
    cosine: Number,
    rms_error: Number,
    /// `null` where nothing differs.
    largest_error: Option<Largest>,
}

#[derive(Serialize)]
struct Largest {
    error: Number,
    value: Number,
    reference: Number,
    #[serde(flatten)]
    at: At,
}

fn report(selected: &Selected<'_>, reference: &Selected<'_>, d: &Difference) -> Report {
    Report {
        header: selected.header(),
        reference: reference.header(),
        elements: d.count,
        differing: d.differing,
        nmse: d.nmse().into(),
        sqnr_db: d.sqnr_db().into(),
        cosine: d.cosine().into(),
        rms_error: d.rms().into(),
        largest_error: d.largest_at.zip(d.largest_pair).map(|(at, (reference, value))| Largest {
            error: d.largest.into(),
            value: value.into(),
            reference: reference.into(),
            at: selected.rows.place(at).into(),
        }),
    }
}

fn print(
    selected: &Selected<'_>,
    reference: &Selected<'_>,
    d: &Difference,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let line = |what: &Selected<'_>| {
        let path = what.path.display().to_string();
        format!("{}: {} ({})", escape(&path), escape(what.name), what.rows.ty())
    };
    writeln!(out, "{}\nagainst {}\n", line(selected), line(reference))?;
    let mut table = output::new_table(&["values", &grouped(d.count)], &[]);
    let share = d.differing as f64 * 100.0 / d.count.max(1) as f64;
    table.add_row(["differing", &format!("{} ({share:.2} %)", grouped(d.differing))]);
    table.add_row(["SQNR", &if d.is_none() { "infinite".into() } else { format!("{:.2} dB", d.sqnr_db()) }]);
    table.add_row(["NMSE", &output::significant(d.nmse(), 5)]);
    table.add_row(["cosine", &format!("{:.9}", d.cosine())]);
    table.add_row(["RMS error", &output::significant(d.rms(), 5)]);
    if let Some((at, (wanted, found))) = d.largest_at.zip(d.largest_pair) {
        table.add_row([
            "largest error",
            &format!("{} at {}", output::significant(d.largest, 5), place(selected.rows.place(at))),
        ]);
        table.add_row(["", &format!("{found:?}, reference {wanted:?}")]);
    }
    for line in table.trim_fmt().lines() {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}
