//! How a conversation looks: streamed text, dim reasoning, notes.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use crate::cli::safe_text;
use crate::text::Part;

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Where answers go.
pub struct Screen {
    /// Whether somebody sees it as it comes: reasoning is shown then, and what would move the cursor is not.
    terminal: bool,
    colour: bool,
    /// The part under way and whether its last line has ended.
    part: Option<Part>,
    line_ended: bool,
}

impl Screen {
    /// Stdout, in a conversation in the terminal or not.
    pub fn new(terminal: bool) -> Screen {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = terminal && !no_colour && !dumb && io::stdout().is_terminal();
        Screen { terminal, colour, part: None, line_ended: true }
    }

    /// The next piece of an answer.
    pub fn put(&mut self, part: Part, text: &str) -> io::Result<()> {
        if text.is_empty() || (part == Part::Reasoning && !self.terminal) {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        if self.part != Some(part) {
            if self.part == Some(Part::Reasoning) {
                self.end_dim(&mut out)?;
                out.write_all(if self.line_ended { b"\n" } else { b"\n\n" })?;
            }
            if part == Part::Reasoning && self.colour {
                out.write_all(DIM.as_bytes())?;
            }
            self.part = Some(part);
        }
        let shown = if self.terminal { safe_text::escape_text(text) } else { Cow::Borrowed(text) };
        out.write_all(shown.as_bytes())?;
        self.line_ended = shown.ends_with('\n');
        out.flush()
    }

    /// The end of an answer.
    pub fn end(&mut self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.part.take() == Some(Part::Reasoning) {
            self.end_dim(&mut out)?;
        }
        if !std::mem::replace(&mut self.line_ended, true) {
            out.write_all(b"\n")?;
        } else if !self.terminal {
            // An empty answer is a line as well.
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
