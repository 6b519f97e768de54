//! What `diff` found, for people.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::json::element;
use super::{Comparison, Differing, TensorDiff, text};
use crate::cli::CliError;
use crate::cli::dequant::place;
use crate::cli::output::{self, cut_end, cut_middle, grouped};
use crate::cli::safe_text::escape;
use crate::cli::value_text::{preview, shape, type_name};
use crate::gguf::{Array, TensorInfo, TensorType, Value};
use crate::verify::files::{DataDiff, MetadataDiff, compare_array};
use crate::verify::{Difference, Place};

/// Elements of arrays that are shown.
const FIRST: usize = 3;
/// Texts that are longer, or have several lines, are compared line by line.
const LONG_TEXT: usize = 80;
/// Narrowest that a name is cut to for the sake of the other columns.
const LEAST_NAME: usize = 16;
/// Rows of a table: more begin another, for each takes kilobytes while its table is laid out.
const ROWS: usize = 4096;

/// Prints all of it.
pub fn print(comparison: &Comparison<'_>, out: &mut impl Write) -> Result<(), CliError> {
    let width = output::width();
    for (mark, side) in ["- A", "+ B"].iter().zip(&comparison.sides) {
        let parts = &side.gguf.parts;
        let bytes = parts.iter().map(|part| part.file_bytes).fold(0, u64::saturating_add);
        let files = if parts.len() > 1 { format!(", {} files", parts.len()) } else { String::new() };
        let path = side.path.display().to_string();
        writeln!(out, "{mark}  {} ({}{files})", escape(&path), output::bytes(bytes))?;
    }
    if let Some(diff) = &comparison.metadata {
        print_metadata(diff, width, out)?;
    }
    print_tensors(&comparison.tensors, width, out)?;
    let differing = [
        several(comparison.differing_keys(), "key of the metadata", "keys of the metadata"),
        several(comparison.tensors.differing(), "tensor", "tensors"),
    ];
    let differing: Vec<String> = differing.into_iter().flatten().collect();
    match differing.is_empty() {
        true => writeln!(out, "\nno differences")?,
        false => writeln!(out, "\nDIFFERS: {}", differing.join(", "))?,
    }
    Ok(())
}

fn several(n: usize, one: &str, many: &str) -> Option<String> {
    match n {
        0 => None,
        1 => Some(format!("1 {one}")),
        n => Some(format!("{} {many}", grouped(n as u64))),
    }
}

fn print_metadata(diff: &MetadataDiff<'_>, width: usize, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\nMetadata ({} keys the same)", diff.equal)?;
    if diff.only_first.len() + diff.only_second.len() + diff.changed.len() > 0 {
        writeln!(out)?;
    }
    for (mark, pairs) in [('-', &diff.only_first), ('+', &diff.only_second)] {
        for (key, value) in pairs {
            print_value(mark, key, value, width, out)?;
        }
    }
    for &(key, a, b) in &diff.changed {
        print_changed(key, a, b, width, out)?;
    }
    Ok(())
}

fn print_value(mark: char, key: &str, value: &Value, width: usize, out: &mut impl Write) -> io::Result<()> {
    let start = format!("  {mark} {}  {}  ", escape(key), type_name(value));
    let room = width.saturating_sub(start.chars().count()).max(LEAST_NAME);
    writeln!(out, "{start}{}", cut_end(&preview(value, room), room))
}

fn print_changed(key: &str, a: &Value, b: &Value, width: usize, out: &mut impl Write) -> io::Result<()> {
    let start = format!("  ~ {}  {}", escape(key), change(&type_name(a), &type_name(b)));
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => {
            let (a, b) = (a.to_lossy(), b.to_lossy());
            let is_long = |text: &str| text.len() > LONG_TEXT || text.contains('\n');
            if a == b {
                return writeln!(out, "{start}, of bytes that are no UTF-8");
            }
            if is_long(&a) || is_long(&b) {
                writeln!(out, "{start}, {} bytes", change(&a.len().to_string(), &b.len().to_string()))?;
                return print_text(&a, &b, out);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            if let Some(diff) = compare_array(a, b, FIRST) {
                let of = grouped(a.len().min(b.len()) as u64);
                writeln!(out, "{start}, {} of {of} elements differ", grouped(diff.differing as u64))?;
                return diff.first.iter().try_for_each(|&index| print_element(index, a, b, width, out));
            }
        }
        _ => {}
    }
    print_value('-', key, a, width, out)?;
    print_value('+', key, b, width, out)
}

/// `a`, or `a -> b`.
fn change(a: &str, b: &str) -> String {
    if a == b { a.to_owned() } else { format!("{a} -> {b}") }
}

fn print_element(index: usize, a: &Array, b: &Array, width: usize, out: &mut impl Write) -> io::Result<()> {
    let start = format!("      {index}: ");
    let room = (width.saturating_sub(start.len() + 4) / 2).max(LEAST_NAME);
    let shown = |array: &Array| {
        let value = element(array, index).map_or_else(String::new, |value| match &value {
            Value::Text(_) => format!("\"{}\"", preview(&value, room)),
            _ => preview(&value, room),
        });
        cut_end(&value, room).into_owned()
    };
    writeln!(out, "{start}{} -> {}", shown(a), shown(b))
}

fn print_text(a: &str, b: &str, out: &mut impl Write) -> io::Result<()> {
    for (mark, line) in text::diff(a, b) {
        let line = escape(&line).into_owned();
        match mark {
            '@' => writeln!(out, "      @ {line}")?,
            mark => writeln!(out, "{}", format!("      {mark} {line}").trim_end())?,
        }
    }
    Ok(())
}

fn print_tensors(diff: &TensorDiff<'_>, width: usize, out: &mut impl Write) -> io::Result<()> {
    let data = if diff.with_data { "" } else { ", their data not compared" };
    writeln!(out, "\nTensors ({} the same{data})", grouped(diff.equal as u64))?;
    if diff.differing() > 0 {
        writeln!(out)?;
    }
    for (mark, tensors) in [('-', &diff.only_first), ('+', &diff.only_second)] {
        for tensor in tensors {
            let TensorInfo { name, ty, dims, .. } = tensor;
            writeln!(out, "  {mark} {}  {ty}  {}", escape(name), shape(dims))?;
        }
    }
    let only = !diff.only_first.is_empty() || !diff.only_second.is_empty();
    if only && !diff.differing.is_empty() {
        writeln!(out)?;
    }
    for rows in diff.differing.chunks(ROWS) {
        print_rows(rows, width, out)?;
    }
    print_by_type(&diff.differing, out)
}

/// The cells of a row, but for the name; with the place of the largest error where that is wanted.
fn cells(row: &Differing<'_>, with_place: bool) -> [String; 5] {
    let (a, b) = (row.first, row.second);
    let [differing, sqnr, largest] = match &row.data {
        None => ["", "", ""].map(str::to_owned),
        Some(DataDiff::Equal) => ["no byte".to_owned(), String::new(), String::new()],
        Some(DataDiff::Bytes { first: None }) => ["other type".to_owned(), String::new(), String::new()],
        Some(DataDiff::Bytes { first: Some(at) }) => {
            [format!("from byte {at}"), String::new(), String::new()]
        }
        Some(DataDiff::Values(d)) => values(d, with_place.then_some(&a.dims)),
    };
    [change(&shape(&a.dims), &shape(&b.dims)), change(a.ty.name(), b.ty.name()), differing, sqnr, largest]
}

fn values(d: &Difference, dims: Option<&Vec<u64>>) -> [String; 3] {
    if d.is_none() {
        return ["no value".to_owned(), "infinite".to_owned(), String::new()];
    }
    let share = d.differing as f64 * 100.0 / d.count.max(1) as f64;
    // One of many is not none.
    let share = if share < 0.01 { grouped(d.differing) } else { format!("{share:.2} %") };
    let at = d
        .largest_at
        .zip(dims)
        .map_or_else(String::new, |(at, dims)| format!(" at {}", place(Place::of(at, dims))));
    [share, format!("{:.2} dB", d.sqnr_db()), format!("{}{at}", output::significant(d.largest, 3))]
}

/// The tensors that differ. Where they do not fit, the places of errors give way, then names are cut.
fn print_rows(rows: &[Differing<'_>], width: usize, out: &mut impl Write) -> io::Result<()> {
    let headers = ["shape", "type", "differing", "SQNR", "largest error"];
    let names: Vec<_> = rows.iter().map(|row| escape(&row.first.name)).collect();
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let room = |cells: &[[String; 5]]| {
        let widest = |i: usize| cells.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
        let widths = (0..headers.len()).map(|i| widest(i).max(headers[i].len()) + 2);
        width.saturating_sub(2 + widths.sum::<usize>())
    };
    let mut cells: Vec<[String; 5]> = rows.iter().map(|row| self::cells(row, true)).collect();
    if room(&cells) < longest {
        cells = rows.iter().map(|row| self::cells(row, false)).collect();
    }
    let room = room(&cells).max(LEAST_NAME);
    let mut table = output::new_table(&[&["name"], &headers[..]].concat(), &[3, 4]);
    for (name, cells) in names.iter().zip(cells) {
        table.add_row(std::iter::once(cut_middle(name, room).into_owned()).chain(cells));
    }
    table.lines().try_for_each(|line| writeln!(out, "  {}", line.trim_end()))
}

/// The values of all tensors of two types together, where there are several tensors.
fn print_by_type(rows: &[Differing<'_>], out: &mut impl Write) -> io::Result<()> {
    let mut sums: BTreeMap<(TensorType, TensorType), (u64, Difference)> = BTreeMap::new();
    for row in rows {
        if let Some(DataDiff::Values(difference)) = &row.data {
            let (tensors, sum) = sums.entry((row.first.ty, row.second.ty)).or_default();
            *tensors += 1;
            sum.append(difference);
        }
    }
    if sums.values().all(|(tensors, _)| *tensors < 2) {
        return Ok(());
    }
    writeln!(out, "\nBy type, of the tensors that differ\n")?;
    let headers = ["type", "tensors", "values", "differing", "SQNR", "RMS error"];
    let mut table = output::new_table(&headers, &[1, 2, 3, 4, 5]);
    for ((a, b), (tensors, sum)) in &sums {
        let [differing, sqnr, _] = values(sum, None);
        let (tensors, count) = (tensors.to_string(), grouped(sum.count));
        let rms = output::significant(sum.rms(), 3);
        table.add_row([change(a.name(), b.name()), tensors, count, differing, sqnr, rms]);
    }
    table.lines().try_for_each(|line| writeln!(out, "  {}", line.trim_end()))
}
