//! How a conversation looks: streamed text, dim reasoning, notes.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use crate::cli::{output, safe_text};
use crate::store::TerminalMode;
use crate::text::Part;

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Where answers go.
pub struct Screen {
    /// Whether somebody talks in a terminal: reasoning is shown then.
    terminal: bool,
    /// Whether a terminal shows the text: what would move its cursor is escaped.
    escapes: bool,
    colour: bool,
    /// The part under way and whether its last line has ended.
    part: Option<Part>,
    line_ended: bool,
}

impl Screen {
    /// Stdout, in a conversation in the terminal or not.
    pub fn new(terminal: bool) -> Screen {
        let escapes = io::stdout().is_terminal();
        Screen {
            terminal,
            escapes,
            colour: terminal && output::colours(escapes),
            part: None,
            line_ended: true,
        }
    }

    /// The next piece of an answer.
    pub fn put(&mut self, part: Part, text: &str) -> io::Result<()> {
        self.put_to(part, text, &mut io::stdout().lock())
    }

    fn put_to(&mut self, part: Part, text: &str, out: &mut impl Write) -> io::Result<()> {
        if text.is_empty() || (part == Part::Reasoning && !self.terminal) {
            return Ok(());
        }
        if self.part != Some(part) {
            if self.part == Some(Part::Reasoning) {
                self.end_dim(out)?;
                out.write_all(if self.line_ended { b"\n" } else { b"\n\n" })?;
            }
            if part == Part::Reasoning && self.colour {
                out.write_all(DIM.as_bytes())?;
            }
            self.part = Some(part);
        }
        let shown = if self.escapes { safe_text::escape_text(text) } else { Cow::Borrowed(text) };
        out.write_all(shown.as_bytes())?;
        self.line_ended = shown.ends_with('\n');
        out.flush()
    }

    /// The end of an answer.
    pub fn end(&mut self) -> io::Result<()> {
        self.end_to(&mut io::stdout().lock())
    }

    fn end_to(&mut self, out: &mut impl Write) -> io::Result<()> {
        let part = self.part.take();
        if part == Some(Part::Reasoning) {
            self.end_dim(out)?;
        }
        // An empty answer is a line as well, where lines are answered.
        let is_line = self.line_ended && (part.is_some() || self.terminal);
        self.line_ended = true;
        if !is_line {
            out.write_all(b"\n")?;
        }
        out.flush()
    }

    fn end_dim(&self, out: &mut impl Write) -> io::Result<()> {
        if self.colour { out.write_all(PLAIN.as_bytes()) } else { Ok(()) }
    }

    /// What is told beside the conversation, dim in a terminal.
    pub fn note(&self, text: &str) {
        let (on, off) = if self.colour && io::stderr().is_terminal() { (DIM, PLAIN) } else { ("", "") };
        crate::cli::output::tell!("{on}{}{off}", safe_text::escape_text(text));
    }
}

/// What a process does that ends while a line is edited: the terminal is set as it was, and pasted text comes
/// as any other.
pub fn restore() -> impl Fn() + Send + Sync + 'static {
    let mode = TerminalMode::now();
    move || {
        if let Some(mode) = &mode {
            mode.restore();
            if io::stdout().is_terminal() {
                let _ = io::stdout().lock().write_all(b"\x1b[?2004l\n");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Part::{Answer, Reasoning};

    fn shown(mut screen: Screen, pieces: &[(Part, &str)]) -> String {
        let mut out = Vec::new();
        for (part, text) in pieces {
            screen.put_to(*part, text, &mut out).unwrap();
        }
        screen.end_to(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn screen(terminal: bool, colour: bool) -> Screen {
        Screen { terminal, escapes: terminal, colour, part: None, line_ended: true }
    }

    #[test]
    fn reasoning_is_dim_in_a_terminal_and_left_out_elsewhere() {
        let pieces = [(Reasoning, "Hm"), (Reasoning, "."), (Answer, "Fo"), (Answer, "ur.")];
        assert_eq!(shown(screen(true, true), &pieces), "\x1b[2mHm.\x1b[0m\n\nFour.\n");
        assert_eq!(shown(screen(true, false), &pieces), "Hm.\n\nFour.\n");
        assert_eq!(shown(screen(false, false), &pieces), "Four.\n");
        assert_eq!(shown(screen(true, true), &pieces[..2]), "\x1b[2mHm.\x1b[0m\n", "it was broken off");
        assert_eq!(shown(screen(false, false), &pieces[..2]), "\n", "a line for each message");
    }

    #[test]
    fn every_answer_ends_its_line_once() {
        for (text, expected) in [("", "\n"), ("a", "a\n"), ("a\n", "a\n"), ("a\n\n", "a\n\n")] {
            assert_eq!(shown(screen(false, false), &[(Answer, text)]), expected, "{text:?}");
        }
        assert_eq!(shown(screen(true, true), &[]), "");
    }

    #[test]
    fn what_a_model_writes_cannot_move_the_cursor() {
        let hostile = "a\u{1b}]0;title\u{7}\u{9b}2J\rb\u{202e}\u{8}";
        for part in [Reasoning, Answer] {
            let text = shown(screen(true, false), &[(part, hostile)]);
            assert!(text.trim_end().chars().all(|c| !c.is_control() && c != '\u{202e}'), "{text:?}");
            assert!(text.contains("\\u{1b}]0;title\\u{7}"), "{text:?}");
        }
        // A program reads what was written.
        assert_eq!(shown(screen(false, false), &[(Answer, hostile)]), format!("{hostile}\n"));
    }
}
