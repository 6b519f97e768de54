//! What subcommands share in printing: tables that fit the terminal, sizes and counts for people.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, IsTerminal, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Spaces between two columns.
const GAP: u16 = 2;

/// Columns to fit output into: the terminal's where stdout is one, else the variable `COLUMNS`, else 100.
pub fn width() -> usize {
    let columns = || std::env::var("COLUMNS").ok()?.trim().parse().ok().filter(|&n: &usize| n > 0);
    // What is wider is a mistake, and products with it should stay numbers.
    const WIDEST: usize = 10_000;
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.width().map(usize::from).or_else(columns).unwrap_or(100).clamp(40, WIDEST)
}

/// Whether to write colours to stdout or stderr, which may be a terminal: by `NO_COLOR`, `CLICOLOR_FORCE`,
/// `CLICOLOR` and `TERM`, in this order, as the parser of arguments does.
pub fn colours(is_terminal: bool) -> bool {
    wants_colours(is_terminal, |name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

fn wants_colours(is_terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let is = |name, value: &str| variable(name).is_some_and(|set| set == *value);
    let forced = variable("CLICOLOR_FORCE").is_some() && !is("CLICOLOR_FORCE", "0");
    let wanted = is_terminal && !is("CLICOLOR", "0") && !is("TERM", "dumb");
    variable("NO_COLOR").is_none() && (forced || wanted)
}

/// A table without borders, its cells in the width that they need: cut what may be long before.
/// `numbers` are the columns to align to the right.
pub fn new_table(header: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, GAP));
        if numbers.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Cuts at the end, with `…` for what is left out, to at most `width` columns.
pub fn cut_end(text: &str, width: usize) -> Cow<'_, str> {
    if text.width() <= width {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}…", prefix(text, width.saturating_sub(1))))
}

/// Cuts in the middle, with `…` for what is left out, to at most `width` columns.
pub fn cut_middle(text: &str, width: usize) -> Cow<'_, str> {
    if text.width() <= width {
        return Cow::Borrowed(text);
    }
    let room = width.saturating_sub(1);
    let head = prefix(text, room / 2);
    let mut tail = text.len();
    let mut left = room - head.width();
    for (at, c) in text.char_indices().rev() {
        match left.checked_sub(c.width().unwrap_or(0)) {
            Some(rest) => (left, tail) = (rest, at),
            None => break,
        }
    }
    Cow::Owned(format!("{head}…{}", &text[tail..]))
}

/// As much of the text as fits.
fn prefix(text: &str, width: usize) -> &str {
    let mut left = width;
    for (at, c) in text.char_indices() {
        match left.checked_sub(c.width().unwrap_or(0)) {
            Some(rest) => left = rest,
            None => return &text[..at],
        }
    }
    text
}

/// Writes a line to stderr, as `eprintln!` does; see [`tell`].
macro_rules! tell {
    ($($what:tt)*) => {
        $crate::cli::output::write_to_stderr(format_args!($($what)*))
    };
}
pub(super) use tell;

/// Writes a line to stderr, whole. Where nobody reads it any more the run goes on: what it tells is not what
/// it is for.
pub fn write_to_stderr(line: fmt::Arguments<'_>) {
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// What a line on stderr begins with while text goes to stdout: a line end, where both are the same terminal.
pub fn line_start() -> &'static str {
    if io::stdout().is_terminal() && io::stderr().is_terminal() { "\n" } else { "" }
}

/// Bytes for people: `4.92 GB` (powers of ten, as disks and downloads are counted).
pub fn bytes(n: u64) -> String {
    scaled(n, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// Bytes of memory for people: `12.0 GiB` (powers of two, as memory is counted).
pub fn binary_bytes(n: u64) -> String {
    binary(n, f64::round)
}

/// The same, rounded up: so many are enough.
pub fn binary_bytes_up(n: u64) -> String {
    binary(n, f64::ceil)
}

fn binary(n: u64, round: fn(f64) -> f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (0..units.len() - 1).find(|&unit| n >> (10 * unit) < 1024).unwrap_or(units.len() - 1);
    match unit {
        0 => format!("{n} B"),
        _ => format!("{:.1} {}", round(n as f64 * 10.0 / (1u64 << (10 * unit)) as f64) / 10.0, units[unit]),
    }
}

/// Counts for people: `8.03 B` parameters.
pub fn count(n: u64) -> String {
    scaled(n, &["", "K", "M", "B", "T", "Q", "Qi"]).trim_end().to_owned()
}

/// A number in full, its digits in groups of three: `8,030,261,248`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number in this many significant digits, without an exponent where it needs none.
pub fn significant(value: f64, digits: usize) -> String {
    let digits = digits.max(1);
    let scientific = format!("{value:.*e}", digits - 1);
    match scientific.split_once('e').and_then(|(_, e)| e.parse::<i32>().ok()) {
        Some(e @ -4..6) => format!("{value:.*}", (digits as i32 - 1 - e).max(0) as usize),
        _ => scientific,
    }
}

fn scaled(n: u64, units: &[&str]) -> String {
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} {}", units[0]),
        _ if value < 9.995 => format!("{value:.2} {}", units[unit]),
        _ if value < 99.95 => format!("{value:.1} {}", units[unit]),
        _ => format!("{value:.0} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_as_the_variables_have_it() {
        let cases = [
            ("", true, true),
            ("", false, false),
            ("NO_COLOR=0 CLICOLOR_FORCE=1", true, false),
            ("CLICOLOR_FORCE=1", false, true),
            ("CLICOLOR_FORCE=0", false, false),
            ("CLICOLOR=0", true, false),
            ("TERM=dumb", true, false),
        ];
        for (set, is_terminal, colours) in cases {
            let pairs = || set.split(' ').filter_map(|pair| pair.split_once('='));
            let variable = |name: &str| pairs().find(|(set, _)| *set == name).map(|(_, value)| value.into());
            assert_eq!(wants_colours(is_terminal, variable), colours, "{set} {is_terminal}");
        }
    }

    #[test]
    fn sizes_keep_three_digits() {
        assert_eq!(binary_bytes(12 << 30), "12.0 GiB");
        assert_eq!(binary_bytes_up((12 << 30) + 1), "12.1 GiB");
        assert_eq!(binary_bytes_up(12 << 30), "12.0 GiB");
        assert_eq!(binary_bytes(1023), "1023 B");
        assert_eq!(binary_bytes(1536), "1.5 KiB");
        assert_eq!(binary_bytes(u64::MAX), "16.0 EiB");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_234), "1.23 kB");
        assert_eq!(bytes(28_400_000_000), "28.4 GB");
        assert_eq!(bytes(999_600), "1.00 MB");
        assert_eq!(count(7), "7");
        assert_eq!(count(8_030_000_000), "8.03 B");
        assert_eq!(
            ["7", "999", "1,000", "12,345,678"],
            [7, 999, 1_000, 12_345_678].map(grouped).each_ref().map(|s| s.as_str())
        );
    }

    #[test]
    fn significant_digits() {
        let four = |v| significant(v, 4);
        let plain = [0.0, 1.0, -2.03125, 0.000123, 99999.6].map(four);
        assert_eq!(plain, ["0.000", "1.000", "-2.031", "0.0001230", "100000"]);
        assert_eq!([1e-5, 3e38, f64::INFINITY, f64::NAN].map(four), ["1.000e-5", "3.000e38", "inf", "NaN"]);
    }

    #[test]
    fn cuts_are_as_wide_as_asked() {
        assert_eq!(cut_end("abcdef", 6), "abcdef");
        assert_eq!(cut_end("abcdef", 4), "abc…");
        assert_eq!(cut_middle("abcdefgh", 5), "ab…gh");
        assert_eq!(cut_middle("abcdefgh", 6), "ab…fgh");
        assert_eq!(cut_end("漢字漢字", 4), "漢…");
        assert_eq!(cut_middle("漢字漢字", 5), "漢…字");
    }

    #[test]
    fn tables_align_and_do_not_wrap() {
        let mut table = new_table(&["name", "bytes"], &[1]);
        table.add_row(["a", "1"]).add_row(["long name", "12345"]);
        assert_eq!(table.trim_fmt(), "name       bytes\na              1\nlong name  12345");
    }
}
