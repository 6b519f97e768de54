//! Strings from files and models, made safe to show. One policy for all that is printed: what would move the
//! cursor, change colours or the direction of text, or hide itself is written as an escape.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::Serialize;

/// Controls (C0, DEL, C1), marks that turn the direction of text, other line ends, what has no width: tags
/// among it, which can spell a whole text that nobody sees.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// The same but for what running text needs: line ends and tabs, and marks that scripts and emoji are written
/// with, which turn no direction beyond themselves.
fn is_unsafe_in_text(c: char) -> bool {
    let needed = matches!(c, '\n' | '\t' | '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}');
    is_unsafe(c) && !needed && !matches!(c, '\u{e0000}'..='\u{e0fff}')
}

fn escape_where(text: &str, is_unsafe: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            c if !is_unsafe(c) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32); // a String takes all that is written
            }
        }
    }
    Cow::Owned(out)
}

/// A name or a value, on one line.
pub fn escape(text: &str) -> Cow<'_, str> {
    escape_where(text, is_unsafe)
}

/// A text of several lines from a file: line ends and tabs stay.
pub fn escape_lines(text: &str) -> Cow<'_, str> {
    escape_where(text, |c| is_unsafe(c) && !matches!(c, '\n' | '\t'))
}

/// A text that a model wrote, for a terminal.
pub fn escape_text(text: &str) -> Cow<'_, str> {
    escape_where(text, is_unsafe_in_text)
}

/// The bytes of a token, on one line: backslashes and bytes that are no UTF-8 are escaped as well.
pub fn escape_bytes(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        out.push_str(&escape(&chunk.valid().replace('\\', "\\\\")));
        out.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    out
}

/// A value as JSON on one line.
///
/// # Errors
/// A value that is none in JSON.
pub fn json(value: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string(value).map(escape_json)
}

/// The same on many lines.
///
/// # Errors
/// As [`json`].
pub fn pretty_json(value: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string_pretty(value).map(escape_json)
}

/// The same JSON: what is unsafe stands in strings alone, apart from the line ends of the layout.
fn escape_json(text: String) -> String {
    let is_unsafe = |c: char| is_unsafe(c) && c != '\n';
    if !text.chars().any(is_unsafe) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            c if is_unsafe(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each of them must not let through.
    const UNSAFE: &str = "\x1b[31m\x07\x7f\u{9b}\u{202e}\u{2066}\r";

    #[test]
    fn no_control_reaches_the_terminal() {
        assert_eq!(escape("plain ▁é漢"), "plain ▁é漢");
        assert_eq!(
            escape("a\x1b[31mb\x07\u{9b}\u{202e}\r\n\t"),
            "a\\u{1b}[31mb\\u{7}\\u{9b}\\u{202e}\\r\\n\\t"
        );
        assert_eq!(escape_lines("a\x1b\n\tb\r\nc"), "a\\u{1b}\n\tb\\r\nc");
        assert_eq!(escape_text("a\x1b[2J\u{9b}\u{200d}\n\tb\r"), "a\\u{1b}[2J\\u{9b}\u{200d}\n\tb\\r");
        // A text that nobody sees; flags are written with its letters.
        assert_eq!(escape("a\u{e0041}\u{ad}\u{fff9}"), "a\\u{e0041}\\u{ad}\\u{fff9}");
        assert_eq!(escape_text("\u{1f3f4}\u{e0067}\u{fff9}"), "\u{1f3f4}\u{e0067}\\u{fff9}");
        let shown = [
            escape(UNSAFE).into_owned(),
            escape_lines(UNSAFE).into_owned(),
            escape_text(UNSAFE).into_owned(),
            escape_bytes(UNSAFE.as_bytes()),
            json(&UNSAFE).expect("JSON"),
        ];
        for text in shown {
            assert!(!text.chars().any(|c| UNSAFE.contains(c) && !c.is_ascii_graphic()), "{text:?}");
        }
    }

    #[test]
    fn tokens_stay_on_their_line() {
        assert_eq!(escape_bytes(b" a\n\t\\\x1b\xff\xe2\x82"), " a\\n\\t\\\\\\u{1b}\\xff\\xe2\\x82");
        assert_eq!(escape_bytes("é\u{2028}\u{202e}".as_bytes()), "é\\u{2028}\\u{202e}");
    }

    #[test]
    fn escaped_json_is_the_same_json() {
        let value = serde_json::json!({ UNSAFE: [UNSAFE, "é漢\n\"\\", "\u{e0041}"] });
        let text = json(&value).expect("JSON");
        assert!(text.contains("\\u007f\\u009b\\u202e") && text.contains("\\udb40\\udc41"), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), value);
        let pretty = pretty_json(&value).expect("JSON");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&pretty).expect("JSON"), value);
        assert!(pretty.lines().count() > 3);
    }
}
