//! How two texts differ, line by line.

use std::time::Duration;

use similar::{Algorithm, ChangeTag, TextDiff};

/// Texts over this many bytes are not looked at line by line.
const MOST_BYTES: usize = 1 << 20;
/// Lines that are shown; a template has a few hundred.
const MOST_LINES: usize = 1000;
/// Lines that are longer are taken apart, so that a template in one line shows where it was changed.
const LONG: usize = 120;
/// The longest part of a line without a place to take it apart.
const LONGEST: usize = 400;
/// Lines around a change.
const CONTEXT: usize = 2;
/// What comparing may take: then it goes on with what it has, and the result is longer than it could be.
const TIME: Duration = Duration::from_secs(1);

/// A part of a text, at most a line.
struct Part<'a> {
    text: &'a str,
    /// From 1.
    line: usize,
}

/// The lines of a diff, each with its mark (a blank, `-` or `+`; `@` before a new place) and not escaped.
pub fn diff<'a>(a: &'a str, b: &'a str) -> Vec<(char, String)> {
    if a.len() > MOST_BYTES || b.len() > MOST_BYTES {
        let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
        return vec![('@', format!("the first difference is at byte {same}"))];
    }
    let (a_parts, b_parts) = (parts(a), parts(b));
    let texts = |parts: &[Part<'a>]| parts.iter().map(|part| part.text).collect::<Vec<&'a str>>();
    let (old, new) = (texts(&a_parts), texts(&b_parts));
    let diff = TextDiff::configure().algorithm(Algorithm::Myers).timeout(TIME).diff_slices(&old, &new);
    let mut lines = Vec::new();
    let at = |parts: &[Part<'_>], index: usize| parts.get(index).or(parts.last()).map_or(1, |part| part.line);
    for group in diff.grouped_ops(CONTEXT) {
        let Some(first) = group.first() else { continue };
        let (old_line, new_line) =
            (at(&a_parts, first.old_range().start), at(&b_parts, first.new_range().start));
        lines.push(('@', format!("line {old_line} of A, line {new_line} of B")));
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let mark = match change.tag() {
                ChangeTag::Equal => ' ',
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
            };
            lines.push((mark, change.value().trim_end_matches('\n').to_owned()));
        }
    }
    for (text, other, name) in [(a, b, 'A'), (b, a, 'B')] {
        if !text.ends_with('\n') && other.ends_with('\n') {
            lines.push(('@', format!("no line end at the end of {name}")));
        }
    }
    if lines.len() > MOST_LINES {
        let more = lines.len() - MOST_LINES;
        lines.truncate(MOST_LINES);
        lines.push(('@', format!("and {more} lines more")));
    }
    lines
}

/// Lines, and of long ones parts: they end where templates and sentences do, wherever in the line that is.
fn parts(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let mut rest = line;
        while rest.len() > LONG {
            let end = part_end(rest);
            let (part, after) = rest.split_at(end);
            parts.push(Part { text: part, line: i + 1 });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part { text: rest, line: i + 1 });
        }
    }
    parts
}

/// Where the first part of a long text ends.
fn part_end(text: &str) -> usize {
    let ends = |pair: &[u8]| matches!(pair, b"%}" | b"}}" | b". " | b", " | b"\\n");
    let most =
        (0..=LONGEST.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    // Where both bytes are ASCII, a character ends behind them.
    text.as_bytes()[..most].windows(2).position(ends).map_or(most, |at| at + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(a: &str, b: &str) -> Vec<String> {
        diff(a, b).into_iter().map(|(mark, text)| format!("{mark}{text}")).collect()
    }

    #[test]
    fn lines_that_differ_are_shown_with_those_around() {
        let a: String = (1..=12).map(|n| format!("{n}\n")).collect();
        let b = a.replace("5\n", "5!\n") + "13";
        assert_eq!(
            shown(&a, &b),
            [
                "@line 3 of A, line 3 of B",
                " 3",
                " 4",
                "-5",
                "+5!",
                " 6",
                " 7",
                "@line 11 of A, line 11 of B",
                " 11",
                " 12",
                "+13",
                "@no line end at the end of B"
            ]
        );
        assert_eq!(
            shown("a\n", "a"),
            ["@line 1 of A, line 1 of B", "-a", "+a", "@no line end at the end of B"]
        );
        assert_eq!(shown("", "a"), ["@line 1 of A, line 1 of B", "+a", "@no line end at the end of B"][..2]);
    }

    #[test]
    fn a_change_in_a_long_line_is_found() {
        let part = |i: usize| format!("{{% if m.role == '{i}' %}}{{{{ m.content }}}}");
        let a: String = (0..50).map(part).collect();
        let b = a.replace("'25'", "'changed'");
        let lines = shown(&a, &b);
        assert!(lines.len() < 10, "{lines:?}");
        assert!(lines.contains(&"-{% if m.role == '25' %}".to_owned()), "{lines:?}");
        assert!(lines.contains(&"+{% if m.role == 'changed' %}".to_owned()), "{lines:?}");
        // No place to take it apart, and characters of several bytes.
        let parts = parts(&"é".repeat(1000)).iter().map(|part| part.text.len()).collect::<Vec<_>>();
        assert!(parts.iter().all(|&len| len <= LONGEST) && parts.iter().sum::<usize>() == 2000, "{parts:?}");
    }

    #[test]
    fn hostile_texts_take_little_time_and_room() {
        let started = std::time::Instant::now();
        let lines = |seed: usize| (0..100_000).map(|i| format!("{}\n", (i * seed) % 997)).collect::<String>();
        assert!(diff(&lines(3), &lines(7)).len() <= MOST_LINES + 1);
        let (a, b) = ("a".repeat(2 << 20), "a".repeat(3 << 20));
        assert_eq!(shown(&a, &b), ["@the first difference is at byte 2097152"]);
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }
}
