//! Sizes, counts and names for people.

use std::borrow::Cow;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

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
}
