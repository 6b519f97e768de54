//! A model's chat template: Jinja as transformers runs it, in `minijinja`.
//!
//! Templates come with the file and are not trusted: they see the conversation and nothing else, have no
//! loader, and run on fuel, which bounds how many instructions they run and how much text they make. It does
//! not bound all that a template can cost: deep expressions and values that hold themselves exhaust the
//! stack, lists of lists of lists can be compared for ever. Render an unknown template in a process of its
//! own that may take little ([`confine`](crate::store::confine)), as the command line does.
//!
//! - `source` rewrites what only Python's Jinja understands; `python` and `json` add its functions, methods
//!   and texts of values.
//! - `conversation` is what a template sees; `disguise` keeps what people say from becoming control tokens.

mod conversation;
mod disguise;
#[cfg(test)]
mod disguise_tests;
#[cfg(test)]
mod goldens;
mod json;
mod named;
mod python;
mod reasoning;
mod source;
#[cfg(test)]
mod tests;
mod transcript;

use jiff::Timestamp;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind};

pub use self::conversation::{Conversation, Message};
pub(in crate::text) use self::disguise::Disguise;
pub use self::disguise::Rendered;
pub use self::named::{named as template_named, names as template_names};
pub(in crate::text) use self::reasoning::{Kind, PAIRS, Splitter, is_mark, is_reserved, overlap};
pub use self::transcript::{Exchange, Transcript, TranscriptError};
use super::TextError;
use crate::gguf::Metadata;

const KEY: &str = "tokenizer.chat_template";
const NAME: &str = "chat_template";

/// Bytes of the longest template. The longest in use are some tens of kilobytes.
const MAX_TEMPLATE: usize = 1 << 20;

/// Fuel of a rendering: instructions, of which each also pays for 64 bytes of data, so that the memory a
/// template can fill is 32 MB at most. Real templates use some hundreds a message.
const FUEL: u64 = 500_000;

/// The template that turns a conversation into the text that the model was trained on.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
}

impl ChatTemplate {
    /// The model's template (`tokenizer.chat_template`), where it has one.
    ///
    /// # Errors
    /// A template over 1 MiB, or one that cannot be parsed.
    pub fn from_metadata(meta: &Metadata) -> Result<Option<ChatTemplate>, TextError> {
        ChatTemplate::source(meta)?.map(ChatTemplate::new).transpose()
    }

    /// The source of the model's template, where it has one.
    ///
    /// # Errors
    /// A key that is not a text.
    pub fn source(meta: &Metadata) -> Result<Option<&str>, TextError> {
        Ok(meta.str(KEY)?)
    }

    /// A template from its source.
    ///
    /// # Errors
    /// As [`from_metadata`](Self::from_metadata).
    pub fn new(source: &str) -> Result<ChatTemplate, TextError> {
        ChatTemplate::with_clock(source, Timestamp::now)
    }

    /// A template that takes the time from `now`.
    fn with_clock(source: &str, now: fn() -> Timestamp) -> Result<ChatTemplate, TextError> {
        if source.len() > MAX_TEMPLATE {
            return Err(TextError::TemplateTooLong { len: source.len(), max: MAX_TEMPLATE });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(failed)?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        python::extend(&mut environment, now);
        environment.add_template_owned(NAME, source::adapted(source)).map_err(failed)?;
        Ok(ChatTemplate { environment, source: source.to_owned() })
    }

    /// The conversation as text. [`render_apart`](Self::render_apart) makes what is to be tokenised.
    ///
    /// # Errors
    /// What the template raises, an error in it, or more work than it is allowed.
    pub fn render(&self, conversation: &Conversation) -> Result<String, TextError> {
        let template = self.environment.get_template(NAME).map_err(failed)?;
        template.render(conversation.values()).map_err(failed)
    }
}

/// The message of an error and of what caused it.
fn failed(error: Error) -> TextError {
    let mut message = match error.kind() {
        ErrorKind::OutOfFuel => "it takes too much time or memory".to_owned(),
        _ => error.to_string(),
    };
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    TextError::Template(message)
}
