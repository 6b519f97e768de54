//! Conversations as files: JSON lines, a header and then a message each, for people and programs to read.
//!
//! ```text
//! {"format":"wayinfer-chat","version":1,"model":"demo"}
//! {"role":"system","content":"Be brief."}
//! {"role":"user","content":"What is 2+2?"}
//! {"role":"assistant","content":"4."}
//! ```
//!
//! A file is not trusted: it is bounded, its fields are known, and it holds whole exchanges; no text of it is
//! a path or a command.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Message;

/// Bytes of the longest line, and of all lines.
const MAX_LINE: u64 = 16 << 20;
const MAX_BYTES: u64 = 64 << 20;

const FORMAT: &str = "wayinfer-chat";
const VERSION: u32 = 1;

/// A conversation: a system message or none, then exchanges of a user and the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    pub system: Option<String>,
    pub exchanges: Vec<Exchange>,
}

/// What the user said and what the model answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    pub user: String,
    pub answer: String,
    /// What it thought before, where it did.
    pub reasoning: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    User,
    Assistant,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    role: Role,
    content: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
}

/// Why a file is no transcript.
#[derive(Debug, Error)]
pub enum TranscriptError {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("line {line}: {what}")]
    Line { line: usize, what: String },
    #[error("it is no transcript: the first line has to be a header with \"format\": \"{FORMAT}\"")]
    NoHeader,
    #[error("version {0} is not known, {VERSION} is")]
    Version(u32),
    #[error("it has over {MAX_BYTES} bytes")]
    TooLong,
    #[error("it ends in the middle of an exchange")]
    Unanswered,
}

impl Transcript {
    /// The messages, for a template.
    pub fn messages(&self) -> Vec<Message> {
        self.messages_after(0)
    }

    /// The messages without so many of the oldest exchanges.
    pub fn messages_after(&self, dropped: usize) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        let exchanges = self.exchanges.iter().skip(dropped).flat_map(|exchange| {
            let answer = Message::new("assistant", &exchange.answer);
            let answer = match &exchange.reasoning {
                Some(reasoning) => answer.with("reasoning_content", reasoning.as_str()),
                None => answer,
            };
            [Message::new("user", &exchange.user), answer]
        });
        system.chain(exchanges).collect()
    }

    /// Reads a file.
    ///
    /// # Errors What cannot be read, is longer than 64 MiB or has a line over 16 MiB, and what is no
    /// transcript, with its line.
    pub fn read(file: impl BufRead) -> Result<Transcript, TranscriptError> {
        let mut lines = Lines { file, line: 0, left: MAX_BYTES, bytes: Vec::new() };
        let header: Header = match lines.next()? {
            Some(line) => serde_json::from_slice(line).map_err(|_| TranscriptError::NoHeader)?,
            None => return Err(TranscriptError::NoHeader),
        };
        if header.format != FORMAT {
            return Err(TranscriptError::NoHeader);
        }
        if header.version != VERSION {
            return Err(TranscriptError::Version(header.version));
        }
        let mut transcript = Transcript::default();
        let mut asked: Option<String> = None;
        while let Some(bytes) = lines.next()? {
            let read: Result<Line, _> = serde_json::from_slice(bytes);
            let line = lines.line;
            let wrong = |what: String| TranscriptError::Line { line, what };
            let Line { role, content, reasoning_content } = read.map_err(|error| wrong(error.to_string()))?;
            if reasoning_content.is_some() && role != Role::Assistant {
                return Err(wrong("only an assistant's message has reasoning".to_owned()));
            }
            match (role, asked.take()) {
                (Role::System, None) if transcript == Transcript::default() => {
                    transcript.system = Some(content)
                }
                (Role::User, None) => asked = Some(content),
                (Role::Assistant, Some(user)) => {
                    transcript.exchanges.push(Exchange {
                        user,
                        answer: content,
                        reasoning: reasoning_content,
                    });
                }
                _ => {
                    return Err(wrong(
                        "a system message may come first, then user and assistant in turns".to_owned(),
                    ));
                }
            }
        }
        if asked.is_some() {
            return Err(TranscriptError::Unanswered);
        }
        Ok(transcript)
    }

    /// Writes a file.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, model: &str, mut out: impl Write) -> io::Result<()> {
        let header = Header { format: FORMAT.to_owned(), version: VERSION, model: Some(model.to_owned()) };
        writeln!(out, "{}", serde_json::to_string(&header)?)?;
        let mut put = |line: Line| writeln!(out, "{}", serde_json::to_string(&line)?);
        let line = |role, content: &String, reasoning: Option<&String>| Line {
            role,
            content: content.clone(),
            reasoning_content: reasoning.cloned(),
        };
        if let Some(system) = &self.system {
            put(line(Role::System, system, None))?;
        }
        for Exchange { user, answer, reasoning } in &self.exchanges {
            put(line(Role::User, user, None))?;
            put(line(Role::Assistant, answer, reasoning.as_ref()))?;
        }
        Ok(())
    }
}

/// The lines of a file, within bounds; empty ones are left out.
struct Lines<R> {
    file: R,
    /// Of the line last read, from 1.
    line: usize,
    /// Bytes that may still come.
    left: u64,
    bytes: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> Result<Option<&[u8]>, TranscriptError> {
        loop {
            self.bytes.clear();
            self.line += 1;
            let most = MAX_LINE.min(self.left) + 1;
            let read = io::Read::take(&mut self.file, most).read_until(b'\n', &mut self.bytes)? as u64;
            if read == 0 {
                return Ok(None);
            }
            if read > self.left {
                return Err(TranscriptError::TooLong);
            }
            if read > MAX_LINE {
                let what = format!("it has over {MAX_LINE} bytes");
                return Err(TranscriptError::Line { line: self.line, what });
            }
            self.left -= read;
            if !self.bytes.trim_ascii().is_empty() {
                return Ok(Some(self.bytes.trim_ascii()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "{\"format\":\"wayinfer-chat\",\"version\":1}\n";

    fn read(text: &str) -> Result<Transcript, String> {
        Transcript::read(text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_read_again() {
        let exchange = |user: &str, reasoning: Option<&str>| Exchange {
            user: user.to_owned(),
            answer: "4\n\u{1b}[2J\u{202e}".to_owned(),
            reasoning: reasoning.map(str::to_owned),
        };
        for system in [None, Some("Be brief.\n\"x\"".to_owned())] {
            let transcript = Transcript {
                system,
                exchanges: vec![exchange("2+2?", None), exchange("again", Some("Hm."))],
            };
            let mut file = Vec::new();
            transcript.write("demo", &mut file).unwrap();
            assert_eq!(Transcript::read(file.as_slice()).unwrap(), transcript);
        }
    }

    #[test]
    fn what_is_no_transcript_is_refused_with_its_line() {
        let user = r#"{"role":"user","content":"a"}"#;
        let answer = r#"{"role":"assistant","content":"b"}"#;
        let system = r#"{"role":"system","content":"c"}"#;
        let file = |lines: &[&str]| format!("{HEADER}{}\n", lines.join("\n"));
        assert_eq!(read(&file(&["", system, "  ", user, answer, ""])).unwrap().exchanges.len(), 1);
        assert_eq!(read(HEADER), Ok(Transcript::default()));
        assert_eq!(read(&HEADER.replace('}', r#","model":null}"#)), Ok(Transcript::default()));
        let header = |from: &str, to: &str| HEADER.replace(from, to);
        let headers = [
            (String::new(), "it is no transcript"),
            (user.to_owned(), "it is no transcript"),
            ("GGUF\u{0}\u{0}".to_owned(), "it is no transcript"),
            (format!("\u{feff}{HEADER}"), "it is no transcript"),
            (header("1", "2"), "version 2 is not known"),
            (header("1", "0"), "version 0 is not known"),
            (header("1", "-1"), "it is no transcript"),
            (header("1", "1.0"), "it is no transcript"),
            (header("1", "99999999999"), "it is no transcript"),
            (header("1", "\"1\""), "it is no transcript"),
            (header("wayinfer-chat", "other"), "it is no transcript"),
            (header("\"wayinfer-chat\"", "1"), "it is no transcript"),
            (header("\"version\":1", "\"version\":1,\"version\":1"), "it is no transcript"),
            (header("}", ",\"model\":1}"), "it is no transcript"),
            (header("}", ",\"x\":1}"), "it is no transcript"),
        ];
        for (text, expected) in headers {
            let error = read(&text).expect_err(&text);
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
        let turns = "a system message may come first, then user and assistant in turns";
        let order = [
            (&[answer][..], 2),
            (&[user, user], 3),
            (&[user, system], 3),
            (&[user, answer, system], 4),
            (&[user, answer, answer], 4),
            (&[system, system], 3),
            (&[system, answer], 3),
        ];
        for (lines, line) in order {
            assert_eq!(read(&file(lines)), Err(format!("line {line}: {turns}")), "{lines:?}");
        }
        assert_eq!(read(&file(&[user])), Err("it ends in the middle of an exchange".to_owned()));
        let fields = [
            (user.replace("user", "tool"), "unknown variant `tool`"),
            (user.replace("user", "User"), "unknown variant `User`"),
            (user.replace("\"user\"", "1"), "expected value"),
            (user.replace("\"user\"", "{\"user\":1}"), ""),
            (user.replace("\"a\"", "1"), "invalid type"),
            (user.replace("\"a\"", "null"), "invalid type: null"),
            (user.replace("\"a\"", "[\"a\"]"), "invalid type: sequence"),
            (user.replace("\"a\"", "\"\\ud800\""), "hex escape"),
            (user.replace('a', "\u{0}"), "control character"),
            (user.replace("content", "contents"), "unknown field `contents`"),
            (user.replace('}', ",\"content\":\"b\"}"), "duplicate field `content`"),
            (user.replace('}', ",\"path\":\"/etc/passwd\"}"), "unknown field `path`"),
            (r#"{"role":"user"}"#.to_owned(), "missing field `content`"),
            (r#"{"content":"a"}"#.to_owned(), "missing field `role`"),
            (user.replace('}', r#","reasoning_content":"r"}"#), "only an assistant's message"),
            (system.replace('}', r#","reasoning_content":"r"}"#), "only an assistant's message"),
            (format!("{user}{answer}"), "trailing characters"),
            (r#"["user","a","b","c"]"#.to_owned(), ""),
            ("{".to_owned(), "EOF"),
            ("[".repeat(100_000), ""),
            ("{\"role\":".repeat(100_000), ""),
        ];
        for (line, expected) in fields {
            let error = read(&file(&[&line])).expect_err(&line);
            let error = error.strip_prefix("line 2: ").unwrap_or_else(|| panic!("{line:?}: {error}"));
            assert!(error.contains(expected), "{line:?}: {error}");
        }
        for wrong in ["1", "[]", "{}"] {
            let line = answer.replace('}', &format!(",\"reasoning_content\":{wrong}}}"));
            let error = read(&file(&[user, &line])).unwrap_err();
            assert!(error.starts_with("line 3: invalid type"), "{line}: {error}");
        }
        let bytes = [HEADER.as_bytes(), b"{\"role\":\"user\",\"content\":\"\xff\"}\n"].concat();
        assert!(matches!(Transcript::read(bytes.as_slice()), Err(TranscriptError::Line { line: 2, .. })));
    }

    #[test]
    fn what_is_too_long_is_not_read_to_its_end() {
        struct Endless(u64);
        impl io::Read for Endless {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                out.fill(b'x');
                self.0 += out.len() as u64;
                Ok(out.len())
            }
        }
        let mut endless = Endless(0);
        let file = io::BufReader::new(io::Read::chain(HEADER.as_bytes(), &mut endless));
        let error = Transcript::read(file).unwrap_err();
        assert!(matches!(error, TranscriptError::Line { line: 2, .. }), "{error}");
        assert!(endless.0 < MAX_LINE + (1 << 20), "{}", endless.0);
        let line = format!("{}\n", " ".repeat(MAX_LINE as usize - 1));
        let error = read(&format!("{HEADER}{}", line.repeat(5))).unwrap_err();
        assert!(error.starts_with("it has over"), "{error}");
    }
}
