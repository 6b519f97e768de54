//! Lines of a conversation: typed in a terminal, with editing and history, or read from standard input.
//!
//! The editor is rustyline: a text of several lines is edited in one buffer, what is pasted comes whole, and
//! the terminal is asked nothing. reedline does the first two as well, but asks the terminal before each
//! prompt where its cursor is, and waits for an answer that scripts and slow lines do not give in time.

use std::io::{self, BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{
    Cmd, ConditionalEventHandler, Config, Editor, Event, EventContext, EventHandler, Helper, KeyCode,
    KeyEvent, Modifiers, Movement, RepeatCount,
};

use crate::cli::CliError;
use crate::cli::output::tell;
use crate::store::os::make_private_folder;

/// Bytes of a line that is read from standard input at most.
const MAX_LINE: u64 = 16 << 20;
/// Lines of the history.
const HISTORY: usize = 1000;
/// A backslash and the line end that Enter made of it; the space without a width tells it from a pasted one.
const CONTINUED: &str = "\\\u{200b}\n";
/// Around a text of several lines.
const QUOTE: &str = "\"\"\"";

/// Where lines come from.
pub enum Input {
    Terminal(Box<Editor<Multiline, FileHistory>>, Option<PathBuf>),
    Lines(io::StdinLock<'static>),
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    Text(String),
    /// The end of input, or what the user leaves by.
    End,
}

impl Input {
    /// The terminal where standard input and output both are one, with the history of this file.
    pub fn open(history: Option<&Path>) -> Result<Input, CliError> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Ok(Input::Lines(io::stdin().lock()));
        }
        let config = Config::builder().max_history_size(HISTORY)?.auto_add_history(false).build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Multiline));
        let conditional = |handler| EventHandler::Conditional(handler);
        editor.bind_sequence(KeyEvent::ctrl('C'), conditional(Box::new(ClearOrLeave)));
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::NONE), conditional(Box::new(GoOn)));
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), Cmd::Newline);
        if let Some(path) = history {
            let folder = path.parent().map_or(Ok(()), make_private_folder).map_err(ReadlineError::from);
            let loaded = folder.and_then(|()| if path.exists() { editor.load_history(path) } else { Ok(()) });
            if let Err(error) = loaded {
                tell!("warning: {}: the history cannot be read: {error}", path.display());
            }
        }
        Ok(Input::Terminal(Box::new(editor), history.map(Path::to_owned)))
    }

    /// Whether somebody sits there.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal(..))
    }

    /// The next line, or text of several.
    ///
    /// # Errors
    /// What cannot be read, is not UTF-8 or longer than 16 MiB.
    pub fn next(&mut self) -> Result<Typed, CliError> {
        match self {
            Input::Lines(lines) => read_line(lines),
            Input::Terminal(editor, history) => {
                let text = match editor.readline("> ") {
                    Ok(text) => text.replace(CONTINUED, "\n"),
                    Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(Typed::End),
                    Err(error) => return Err(error.into()),
                };
                if !text.trim().is_empty()
                    && editor.add_history_entry(text.as_str())?
                    && let Some(path) = history
                {
                    // It is not what the conversation is for: what cannot be written is not kept.
                    let _ = editor.append_history(path);
                }
                Ok(Typed::Text(unquoted(&text).to_owned()))
            }
        }
    }
}

/// A line of standard input, without its end.
fn read_line(lines: &mut impl BufRead) -> Result<Typed, CliError> {
    let mut bytes = Vec::new();
    let read = lines.take(MAX_LINE + 1).read_until(b'\n', &mut bytes)?;
    if read == 0 {
        return Ok(Typed::End);
    }
    if read as u64 > MAX_LINE {
        return Err(CliError::new(format!("standard input: a line of over {MAX_LINE} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        CliError::new(format!("standard input: not UTF-8 at byte {at} of a line"))
    })?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Typed::Text(text.strip_suffix('\r').unwrap_or(text).to_owned()))
}

/// A text as it was meant: without the quotes around it.
fn unquoted(text: &str) -> &str {
    let inner = text.trim().strip_prefix(QUOTE).and_then(|rest| rest.strip_suffix(QUOTE));
    inner.map_or(text, |inner| inner.trim_matches('\n'))
}

/// Whether quotes have been opened and not closed.
fn is_open(text: &str) -> bool {
    text.trim_start().strip_prefix(QUOTE).is_some_and(|rest| !rest.trim_end().ends_with(QUOTE))
}

/// Texts of several lines.
pub struct Multiline;

impl Completer for Multiline {
    type Candidate = String;
}

impl Hinter for Multiline {
    type Hint = String;
}

impl Highlighter for Multiline {}

impl Helper for Multiline {}

/// Ctrl-C: takes away what has been typed; where there is nothing, it leaves.
struct ClearOrLeave;

impl ConditionalEventHandler for ClearOrLeave {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        (!context.line().is_empty()).then_some(Cmd::Kill(Movement::WholeBuffer))
    }
}

/// Enter: behind a backslash at the end the text goes on in the next line. Backslashes of a text that was
/// pasted stay.
struct GoOn;

impl ConditionalEventHandler for GoOn {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        let goes_on = context.pos() == context.line().len() && context.line().ends_with('\\');
        goes_on.then(|| Cmd::Insert(1, CONTINUED[1..].to_owned()))
    }
}

impl Validator for Multiline {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match is_open(context.input()) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_between_quotes() {
        for (text, open) in [
            ("a", false),
            ("a\\", false),
            ("\"\"\"a", true),
            ("\"\"\"", true),
            ("\"\"\"\na\n\"\"\"", false),
            ("a \"\"\"", false),
        ] {
            assert_eq!(is_open(text), open, "{text:?}");
        }
        assert_eq!(unquoted("a \\\n b"), "a \\\n b", "a shell's line as it was pasted");
        assert_eq!(unquoted("\"\"\"\na\n b\n\"\"\""), "a\n b");
        assert_eq!(unquoted("\"\"\"a\"\"\" b"), "\"\"\"a\"\"\" b");
    }

    #[test]
    fn lines_come_without_their_ends_until_there_are_no_more() {
        let mut lines: &[u8] = b"a\r\n\nlast";
        let all: Vec<Typed> = std::iter::from_fn(|| match read_line(&mut lines).unwrap() {
            Typed::End => None,
            text => Some(text),
        })
        .collect();
        assert_eq!(all, ["a", "", "last"].map(|text| Typed::Text(text.to_owned())));
        assert!(read_line(&mut b"a\xff\n".as_slice()).is_err());
        assert!(read_line(&mut io::BufReader::new(io::repeat(b'x'))).is_err());
    }
}
