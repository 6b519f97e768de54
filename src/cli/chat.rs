//! `wayinfer chat`: a conversation, in the terminal or line by line.

mod answer;
mod command;
mod edit;
mod input;
mod kept;
mod screen;
mod settings;
mod talk;

use std::num::NonZeroUsize;

use clap::{Args as ClapArgs, ValueEnum};

use super::engine_args::{self, EngineArgs};
use super::model_arg::ModelArg;
use super::output::tell;
use super::sampling_args::SamplingArgs;
use super::tokenizer_arg::TokenizerArg;
use super::{CliError, InFile, interrupt};
use crate::engine::Speculation;
use crate::gguf::Gguf;
use crate::text::{ChatTemplate, template_named, template_names};
use input::Input;
use kept::Kept;
use talk::Talk;

/// Talk with a model.
///
/// In a terminal: text streams as it is made, reasoning dim; Ctrl-C stops the answer and keeps what is there,
/// Ctrl-C on an empty line or Ctrl-D leaves; a line that ends with a backslash goes on, and so does a text
/// between lines of """; /help lists the commands. Otherwise each line of standard input is a message (or a
/// command), answered on stdout, and the end of input ends the conversation.
///
/// Without a model it is the demo that answers.
#[derive(ClapArgs, Debug)]
#[command(mut_group("model_arg", |group| group.required(false)))]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    /// System message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,

    #[arg(long, value_name = "NAME|FILE", help = template_help())]
    template: Option<String>,

    #[command(flatten)]
    tokenizer: TokenizerArg,

    /// Go on with a conversation that was kept: the one of this name, which begins where there is none yet, or
    /// the last
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true)]
    resume: Option<Option<String>>,

    /// Keep neither the conversation nor the lines that were typed
    #[arg(long, conflicts_with = "resume")]
    no_history: bool,

    /// When the context is full: stop and say so, or drop the oldest exchanges and say which
    #[arg(long, value_name = "WHAT", default_value = "stop")]
    on_full: OnFull,

    /// Tokens of an answer at most [default: until the model ends or the context is full]
    #[arg(short = 'n', long, value_name = "N", allow_negative_numbers = true)]
    max_tokens: Option<NonZeroUsize>,

    /// Context in tokens [default: the model's, at most 4096]
    #[arg(short = 'c', long, value_name = "N", allow_negative_numbers = true)]
    ctx: Option<NonZeroUsize>,

    #[command(flatten)]
    sampling: SamplingArgs,

    /// Draft tokens and verify several in one pass, which changes no token: N, mtp, auto or off, as in generate
    #[arg(long, value_name = "MODE", default_value = "auto", allow_negative_numbers = true)]
    speculate: Speculation,

    #[command(flatten)]
    engine: EngineArgs,
}

/// What is done when the context is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnFull {
    Stop,
    Drop,
}

fn template_help() -> String {
    let names: Vec<&str> = template_names().collect();
    format!("Chat template instead of the model's own: a file, or one of {}", names.join(", "))
}

/// See [`Args`].
pub fn run(args: &Args) -> Result<std::process::ExitCode, CliError> {
    let kept = Kept::open(args)?;
    let mut loaded = engine_args::load_to_draft(args.model.source(), args.speculate)?;
    if args.model.is_demo() {
        tell!("the demo answers, a small model that is part of wayinfer; -m MODEL runs another");
    }
    let tokenizer = args.tokenizer.tokenizer(&loaded.gguf)?;
    let template = template(args, &loaded.gguf)?;
    let mut talk = Talk::new(args, template, &tokenizer, kept)?;
    let interrupted = interrupt::watch()?;
    let mut input = Input::open(talk.kept().typed().as_deref())?;
    talk.greet(&input);
    // Another context takes another engine.
    let mut context = engine_args::context(args.ctx, loaded.model.spec().context);
    while let Some(other) = talk.run(&mut loaded, context, &mut input, &interrupted)? {
        context = other;
    }
    Ok(0.into())
}

/// The source of the chat template.
fn template(args: &Args, gguf: &Gguf) -> Result<String, CliError> {
    let path = args.model.path();
    if let Some(name) = &args.template {
        if let Some(source) = template_named(name) {
            return Ok(source.to_owned());
        }
        let file = std::path::Path::new(name);
        return super::input::Input::File(file).text();
    }
    let own = ChatTemplate::source(gguf.metadata()).in_file(path)?;
    own.map(str::to_owned).ok_or_else(|| {
        let names: Vec<&str> = template_names().collect();
        CliError::new("the model has no chat template")
            .in_file(path)
            .hint(format!("--template takes a file, or one of {}", names.join(", ")))
    })
}
