//! Text on its way to stdout.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;

use super::Args;
use crate::cli::{CliError, safe_text};
use crate::engine::StopMatcher;
use crate::text::{TokenStream, Tokenizer};

/// Puts text out as it comes, up to a stop string.
pub struct Printer<'a> {
    stream: TokenStream<'a>,
    stops: StopMatcher,
    /// Whether text is shown at once.
    live: bool,
    /// Whether a terminal shows it.
    terminal: bool,
    text: String,
}

impl<'a> Printer<'a> {
    pub fn new(tokenizer: &'a Tokenizer, args: &Args) -> Printer<'a> {
        Printer {
            stream: tokenizer.stream(false),
            stops: StopMatcher::new(args.stop.iter().cloned()),
            live: !args.json,
            terminal: std::io::stdout().is_terminal(),
            text: String::new(),
        }
    }

    pub fn push(&mut self, id: u32) -> Result<ControlFlow<()>, CliError> {
        let piece = self.stream.push(id);
        let piece = self.stops.push(&piece);
        self.put(&piece)?;
        Ok(if self.stops.stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn put(&mut self, piece: &str) -> Result<(), CliError> {
        if self.live && !piece.is_empty() {
            let shown = if self.terminal { safe_text::escape_text(piece) } else { Cow::Borrowed(piece) };
            let mut out = std::io::stdout().lock();
            out.write_all(shown.as_bytes())?;
            out.flush()?;
        }
        self.text.push_str(piece);
        Ok(())
    }

    /// The rest, a final newline on the terminal, and the whole text.
    pub fn finish(mut self) -> Result<String, CliError> {
        if !self.stops.stopped() {
            let end = self.stream.finish();
            let rest = self.stops.push(&end) + &self.stops.finish();
            self.put(&rest)?;
        }
        if self.live && !self.text.ends_with('\n') {
            writeln!(std::io::stdout())?;
        }
        Ok(self.text)
    }
}
