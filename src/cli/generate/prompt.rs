//! What is to be continued: text, a file, ids, a chat.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::Args;
use crate::cli::input::Input;
use crate::cli::{CliError, InFile, render_chat};
use crate::text::{ChatTemplate, Conversation, EncodeOptions, Message, Tokenizer};

#[derive(ClapArgs, Debug)]
#[group(multiple = false)]
pub struct PromptArgs {
    /// The prompt
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,

    /// A file that is the prompt, final newline included
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// A file of little-endian 32-bit token ids, fed as they are
    #[arg(long, value_name = "FILE")]
    pub ids_file: Option<PathBuf>,
}

/// What there is to continue.
pub enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

pub fn read_prompt(args: &PromptArgs) -> Result<Prompt, CliError> {
    if let Some(text) = &args.prompt {
        return Ok(Prompt::Text(text.clone()));
    }
    if let Some(path) = &args.ids_file {
        return Ok(Prompt::Ids(Input::File(path).ids()?));
    }
    let missing =
        |why| CliError::usage(why).hint("give -p/--prompt, -f/--file, --ids-file or standard input");
    if args.file.is_none() && std::io::stdin().is_terminal() {
        return Err(missing("no prompt"));
    }
    let text = Input::of(args.file.as_ref()).text()?;
    // Nobody means an empty prompt by saying nothing.
    if args.file.is_none() && text.is_empty() {
        return Err(missing("no prompt: standard input is empty"));
    }
    Ok(Prompt::Text(text))
}

/// The ids of a prompt; in a chat, of the model's template around it.
pub fn encode(
    args: &Args,
    gguf: &crate::gguf::Gguf,
    tokenizer: &Tokenizer,
    prompt: Prompt,
) -> Result<Vec<u32>, CliError> {
    let path = args.model.path();
    let text = match prompt {
        Prompt::Ids(ids) => return Ok(ids),
        Prompt::Text(text) => text,
    };
    if !args.chats() {
        let options = EncodeOptions { add_special: true, parse_special: true };
        return tokenizer.encode(&text, options).in_file(path);
    }
    let template = ChatTemplate::source(gguf.metadata()).in_file(path)?.ok_or_else(|| {
        CliError::new("the model has no chat template")
            .in_file(path)
            .hint("without --chat the prompt goes in as given")
    })?;
    let render = |messages: &[Message]| {
        let conversation = Conversation::new(messages, true, tokenizer);
        render_chat::render_apart(template, &conversation, tokenizer).in_file(path)
    };
    let mut messages = vec![Message::new("user", &text)];
    let mut rendered = render(&messages)?;
    if let Some(system) = &args.system {
        messages.insert(0, Message::new("system", system));
        let without = std::mem::replace(&mut rendered, render(&messages)?);
        if rendered == without {
            let error = CliError::new("the chat template leaves system messages out");
            return Err(error.in_file(path).hint("leave --system out"));
        }
    }
    tokenizer.encode_chat(&rendered).in_file(path)
}
