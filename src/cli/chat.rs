//! `wayinfer chat`: a conversation, in the terminal or line by line.

mod answer;
mod command;
mod edit;
mod input;
mod kept;
mod room;
mod screen;
mod settings;
mod talk;

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::{Args as ClapArgs, ValueEnum};

use super::engine_args::{self, EngineArgs};
use super::grammar_args::GrammarArgs;
use super::model_arg::ModelArg;
use super::output::tell;
use super::prefix_cache::CacheArgs;
use super::sampling_args::SamplingArgs;
use super::tokenizer_arg::TokenizerArg;
use super::{CliError, InFile, interrupt};
use crate::engine::Speculation;
use crate::gguf::Gguf;
use crate::text::{ChatTemplate, template_named, template_names};
use input::Input;
use kept::Kept;
use talk::{Left, Talk};

/// Talk with a model.
///
/// In a terminal: text streams as it is made, reasoning dim; Ctrl-C stops the answer and keeps what is there,
/// Ctrl-C on an empty line or Ctrl-D leaves; a line that ends with a backslash goes on, and so does a text
/// between lines of """; Alt-Enter begins another line, and what is pasted stays one message; /help lists the
/// commands. Otherwise each line of standard input is a message (or a command), answered on stdout without
/// its reasoning, and the end of input ends the conversation.
///
/// Conversations in a terminal and the lines that were typed are kept in the user's data folder; those of a
/// script with --resume alone. Without a model it is the demo that answers.
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

    /// Go on with a conversation that was kept: the one of this name, which begins where there is none yet;
    /// without a name the last. (A model as argument comes before it)
    #[arg(long, value_name = "NAME", num_args = 0..=1)]
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
    #[arg(short = 'c', long, value_name = "N", allow_negative_numbers = true, env = "WAYINFER_CTX")]
    ctx: Option<NonZeroUsize>,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    grammar: GrammarArgs,

    /// Draft tokens and verify several in one pass, which changes no token: N, mtp, auto or off, as in
    /// generate
    #[arg(long, value_name = "MODE", default_value = "auto", allow_negative_numbers = true)]
    speculate: Speculation,

    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    cache: CacheArgs,

    /// Keep nothing of what is computed; with --resume it is kept in the user's data folder, or where --cache
    /// says
    #[arg(long, conflicts_with = "cache")]
    no_cache: bool,
}

/// What is done when the context is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnFull {
    Stop,
    Drop,
}

pub fn template_help() -> String {
    let names: Vec<&str> = template_names().collect();
    format!("Chat template instead of the model's own: a file, or one of {}", names.join(", "))
}

/// See [`Args`].
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    let grammar = args.grammar.read()?;
    let kept = Kept::open(args)?;
    let mut loaded = engine_args::load_to_draft(args.model.source(), args.speculate)?;
    if args.model.is_demo() {
        tell!("the demo answers, a small model that is part of wayinfer; -m MODEL runs another");
    }
    let tokenizer = args.tokenizer.tokenizer(&loaded.gguf)?;
    let template = Template::of(args, &loaded.gguf)?;
    let constraint = grammar.map(|grammar| grammar.constraint(&tokenizer, args.model.path())).transpose()?;
    let mut talk = Talk::new(args, template, &tokenizer, constraint, kept)?;
    let interrupted = interrupt::watch_to_leave(screen::restore())?;
    let mut input = Input::open(talk.kept().typed().as_deref())?;
    talk.greet(&input);
    let mut context = engine_args::context(args.ctx, loaded.model.spec().context);
    let mut former = None;
    // Another context takes another engine.
    loop {
        let engine = match talk.engine(&mut loaded, context, &interrupted) {
            Ok(engine) => engine,
            Err(error) => {
                // Somebody who asked for too much goes on with what there was.
                let Some(there) = former.take().filter(|_| input.is_terminal()) else { return Err(error) };
                let _ = error.report();
                context = there;
                continue;
            }
        };
        former = Some(context);
        match talk.run(engine, &mut input, &interrupted)? {
            Left::Ended => return Ok(ExitCode::SUCCESS),
            Left::Interrupted => return Ok(interrupt::INTERRUPTED.into()),
            Left::For(other) => context = other,
        }
    }
}

/// A chat template, and what ends an answer beside the model's own end tokens.
pub struct Template {
    pub source: String,
    pub stops: &'static [&'static str],
}

impl Template {
    /// The one that was asked for, or the model's own.
    fn of(args: &Args, gguf: &Gguf) -> Result<Template, CliError> {
        Template::named_or_own(args.template.as_deref(), gguf)?.ok_or_else(|| {
            let error = CliError::new("the model has no chat template");
            error.in_file(args.model.path()).hint(Template::hint())
        })
    }

    /// The same, where the model has one.
    pub fn named_or_own(name: Option<&str>, gguf: &Gguf) -> Result<Option<Template>, CliError> {
        if let Some(name) = name {
            if let Some((source, stops)) = template_named(name) {
                return Ok(Some(Template { source: source.to_owned(), stops }));
            }
            let file = super::input::Input::File(std::path::Path::new(name));
            let source = file.text().map_err(|error| error.hint(Template::hint()))?;
            return Ok(Some(Template { source, stops: &[] }));
        }
        let own = ChatTemplate::source(gguf.metadata()).in_file(&gguf.parts[0].path)?;
        Ok(own.map(|source| Template { source: source.to_owned(), stops: &[] }))
    }

    fn hint() -> String {
        let names: Vec<&str> = template_names().collect();
        format!("--template takes a file, or one of {}", names.join(", "))
    }
}
