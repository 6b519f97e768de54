//! `wayinfer render-chat`: a chat template of a file, run where it can do no harm. Not for users: `generate`
//! starts it.
//!
//! A template is a program that came with the model. Its process has little memory and time, and may end as
//! it likes.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::CliError;
use crate::server::Render;
use crate::store::confine;
use crate::text::{ChatTemplate, Conversation, Rendered, TextError, Tokenizer};

/// Time of its processor; real templates take some milliseconds.
const MOST_TIME: Duration = Duration::from_millis(600);
/// Memory beside that for the conversation.
const MOST_MEMORY: u64 = 28 << 20;
/// A conversation is there as it was sent, as it was read, as the template sees it, as text, and as copies of
/// those that the template makes.
const COPIES: u64 = 12;

/// Exit code where the template has failed and says so itself.
const FAILED: u8 = 3;

/// Render a chat template: source and conversation as JSON from standard input, the text or the error to
/// standard output
#[derive(clap::Args, Debug)]
pub struct Args {}

/// The process of the template.
pub fn run(_: &Args) -> Result<ExitCode, CliError> {
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input)?;
    confine(MOST_MEMORY + COPIES * input.len() as u64, MOST_TIME)?;
    let (source, conversation): (String, Conversation) = serde_json::from_str(&input)?;
    let rendered = ChatTemplate::new(&source).and_then(|template| template.render(&conversation));
    let (text, code) = match rendered {
        Ok(text) => (text, 0),
        Err(error) => (error.to_string(), FAILED),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(code.into())
}

/// The conversation as a template has it, with no text of it that becomes a control token.
pub fn render_apart(
    source: &str,
    conversation: &Conversation,
    tokenizer: &Tokenizer,
) -> Result<Rendered, CliError> {
    let text = render(None, source, &conversation.disguised(tokenizer, source))?;
    Ok(Rendered::new(text, tokenizer))
}

/// What a server renders by; the program is as [`render`] has it.
pub fn renderer(program: Option<PathBuf>) -> Render {
    Arc::new(move |source, conversation| {
        render(program.as_deref(), source, conversation).map_err(|error| error.message())
    })
}

/// The conversation as a template has it, which is run in a process of its own: of this program, or of
/// another where this one is not WayInfer's.
fn render(program: Option<&Path>, source: &str, conversation: &Conversation) -> Result<String, CliError> {
    let failed =
        |error: std::io::Error| CliError::new(format!("the chat template cannot be started: {error}"));
    let program =
        program.map_or_else(std::env::current_exe, |program| Ok(program.to_owned())).map_err(failed)?;
    let mut command = Command::new(program);
    // What it has to say of its end is for nobody.
    command
        .arg("render-chat")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    let input = serde_json::to_vec(&(source, conversation))?;
    // It reads all before it writes. Where it does not, its end tells why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(&input));
    let output = child.wait_with_output().map_err(failed)?;
    let text = String::from_utf8(output.stdout);
    match (output.status.code().map(u8::try_from), text) {
        (Some(Ok(0)), Ok(text)) => Ok(text),
        (Some(Ok(FAILED)), Ok(error)) => Err(CliError::new(error)),
        _ => Err(TextError::Template("it takes too much time or memory, or is nested too deeply".to_owned())
            .into()),
    }
}
