//! A conversation and what its lines do to it.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::Args;
use super::answer::{Answered, Answerer, Cost};
use super::command::{Command, HELP, message};
use super::edit::edit;
use super::input::{Input, Typed};
use super::kept::{self, Kept};
use super::screen::Screen;
use super::settings::{Change, Settings};
use crate::cli::engine_args::Loaded;
use crate::cli::generate::open_engine;
use crate::cli::output::tell;
use crate::cli::{CliError, InFile, placement, render_chat, safe_text};
use crate::engine::EngineOptions;
use crate::text::{Conversation, Exchange, Message, Tokenizer, Transcript};

/// See the module.
pub struct Talk<'a> {
    args: &'a Args,
    /// Source of the chat template.
    template: String,
    tokenizer: &'a Tokenizer,
    kept: Kept,
    pub(super) transcript: Transcript,
    pub(super) settings: Settings,
    pub(super) screen: Screen,
    /// Whether somebody sits at a terminal.
    terminal: bool,
    /// What the last answer cost, in this conversation.
    last: Option<Cost>,
    /// How often the last message has been answered anew.
    attempt: u64,
}

/// How a line leaves the conversation.
enum Next {
    Goes,
    Ends,
    /// It goes on in another context, of so many tokens.
    In(usize),
}

impl<'a> Talk<'a> {
    /// A conversation that begins, or goes on.
    pub fn new(
        args: &'a Args,
        template: String,
        tokenizer: &'a Tokenizer,
        mut kept: Kept,
    ) -> Result<Talk<'a>, CliError> {
        let transcript = kept.transcript.take();
        let resumed = transcript.is_some();
        let sampler = args.sampling.config(args.model.is_demo());
        let mut talk = Talk {
            args,
            template,
            tokenizer,
            kept,
            transcript: transcript.unwrap_or_default(),
            settings: Settings { sampler, max_tokens: args.max_tokens, on_full: args.on_full },
            screen: Screen::new(false),
            terminal: false,
            last: None,
            attempt: 0,
        };
        if let Some(system) = &args.system {
            talk.set_system(system)?;
        }
        if resumed {
            let n = talk.transcript.exchanges.len();
            tell!("goes on with {}: {n} exchanges", talk.kept.name().unwrap_or_default());
        }
        Ok(talk)
    }

    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Says how it is spoken with.
    pub fn greet(&mut self, input: &Input) {
        self.terminal = input.is_terminal();
        self.screen = Screen::new(self.terminal);
        if self.terminal {
            self.screen.note("/help lists the commands, Ctrl-D leaves");
        } else if self.args.resume.is_none() {
            self.kept.forget();
        }
    }

    /// Talks in a context of so many tokens, until it ends or is to go on in another one.
    pub fn run(
        &mut self,
        loaded: &mut Loaded,
        context: usize,
        input: &mut Input,
        interrupted: &AtomicBool,
    ) -> Result<Option<usize>, CliError> {
        let trained = loaded.model.spec().context;
        if context > trained {
            tell!("warning: a context of {context} tokens, where the model was trained for {trained}");
        }
        let drafts = self.args.speculate.most(loaded.model.spec());
        let options = EngineOptions { drafts, ..self.args.engine.options(context) };
        placement::settle(loaded, &self.args.engine, std::slice::from_ref(&options), 1 + drafts)?;
        let model = &loaded.model;
        if let Some(plan) = model.store().plan().filter(|plan| !plan.is_mapped()) {
            tell!("{}", placement::line(plan, model.store().reads_directly()));
        }
        let engine = open_engine(model, &options)?;
        let sequence = engine.sequence();
        let path = self.args.model.path();
        let mut answerer = Answerer { engine, sequence, interrupted, path, speculation: self.args.speculate };
        loop {
            let Typed::Text(line) = input.next()? else {
                if self.terminal {
                    self.say_how_to_resume();
                }
                return Ok(None);
            };
            match self.line(&line, &mut answerer) {
                Ok(Next::Goes) => {}
                Ok(Next::Ends) => return Ok(None),
                Ok(Next::In(context)) => return Ok(Some(context)),
                // Whoever sits there can do something about it.
                Err(error) if self.terminal => {
                    let _ = error.report();
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn say_how_to_resume(&self) {
        if let (Some(name), false) = (self.kept.name(), self.transcript.exchanges.is_empty()) {
            self.screen.note(&format!("kept as {name}: wayinfer chat --resume=\"{name}\" goes on with it"));
        }
    }

    /// Does what a line asks for.
    fn line(&mut self, line: &str, answerer: &mut Answerer<'_, '_>) -> Result<Next, CliError> {
        let command = match Command::parse(line) {
            Ok(Some(command)) => command,
            Ok(None) if line.trim().is_empty() => return Ok(Next::Goes),
            Ok(None) => {
                self.attempt = 0;
                return self.ask(message(line).to_owned(), answerer);
            }
            Err(what) => return Err(CliError::usage(what)),
        };
        match command {
            Command::Exit => {
                self.say_how_to_resume();
                return Ok(Next::Ends);
            }
            Command::Set(Some((name, value))) => {
                match self.settings.set(&name, &value).map_err(CliError::usage)? {
                    Change::Settings => {}
                    Change::Context(context) => return Ok(Next::In(context)),
                }
            }
            Command::Set(None) => tell!("{}", self.settings.line(answerer.engine.context())),
            Command::Read(file) => {
                let text = crate::cli::input::Input::File(Path::new(&file)).text()?;
                self.attempt = 0;
                return self.ask(text, answerer);
            }
            Command::Regenerate => {
                let exchange = self.last_exchange()?;
                self.attempt += 1;
                return self.ask_again(exchange.user.clone(), exchange, answerer);
            }
            Command::Edit => {
                let exchange = self.last_exchange()?;
                let text =
                    edit(&exchange.user).inspect_err(|_| self.transcript.exchanges.push(exchange.clone()))?;
                self.attempt = 0;
                return self.ask_again(text, exchange, answerer);
            }
            other => self.change(other, answerer)?,
        }
        Ok(Next::Goes)
    }

    /// The commands that ask the model for nothing.
    fn change(&mut self, command: Command, answerer: &Answerer<'_, '_>) -> Result<(), CliError> {
        match command {
            Command::Help => HELP.iter().for_each(|(usage, what)| tell!("{usage:18} {what}")),
            Command::System(Some(text)) => self.set_system(&text)?,
            Command::System(None) => match &self.transcript.system {
                Some(text) => tell!("{}", safe_text::escape_text(text)),
                None => tell!("there is no system message"),
            },
            Command::Undo => {
                let exchange = self.last_exchange()?;
                tell!("taken back: {}", first_line(&exchange.user));
                self.keep();
            }
            Command::Drop => {
                if self.transcript.exchanges.is_empty() {
                    return Err(CliError::new("there is nothing to drop"));
                }
                self.drop_oldest();
                self.keep();
            }
            Command::Clear => {
                self.transcript.exchanges.clear();
                // What was kept of it stays under its name; what comes is another conversation.
                self.kept.begin_anew();
            }
            Command::Save(overwrite, file) => {
                kept::write(Path::new(&file), overwrite, &self.model_name(), &self.transcript).map_err(
                    |error| {
                        if overwrite { error } else { error.hint("/save! replaces a file") }
                    },
                )?;
                tell!("saved to {file}");
            }
            Command::Load(file) => {
                self.transcript = kept::read(Path::new(&file))?;
                self.kept.begin_anew();
                tell!("{} exchanges", self.transcript.exchanges.len());
            }
            Command::Show => self.show(),
            Command::Stats => match &self.last {
                Some(cost) => tell!("{}", cost.lines(answerer)),
                None => tell!("nothing has been answered yet"),
            },
            _ => {}
        }
        Ok(())
    }

    /// Takes the last exchange out.
    fn last_exchange(&mut self) -> Result<Exchange, CliError> {
        self.transcript.exchanges.pop().ok_or_else(|| CliError::new("nothing has been said yet"))
    }

    /// Takes the oldest exchange away, and says so.
    pub(super) fn drop_oldest(&mut self) {
        let oldest = self.transcript.exchanges.remove(0);
        tell!("dropped: {}", first_line(&oldest.user));
    }

    /// Asks in place of an exchange, which comes back where that fails.
    fn ask_again(
        &mut self,
        user: String,
        before: Exchange,
        answerer: &mut Answerer<'_, '_>,
    ) -> Result<Next, CliError> {
        let there = self.transcript.exchanges.len();
        let asked = self.ask(user, answerer);
        if self.transcript.exchanges.len() == there && !self.transcript.exchanges.contains(&before) {
            self.transcript.exchanges.push(before);
        }
        asked
    }

    fn ask(&mut self, user: String, answerer: &mut Answerer<'_, '_>) -> Result<Next, CliError> {
        let seed = self.settings.sampler.seed;
        // Each answer has a seed of its own, the same whether the conversation was broken off or not.
        let seed = seed.wrapping_add(self.transcript.exchanges.len() as u64).wrapping_add(self.attempt << 32);
        let answered = self.answer(&user, seed, answerer)?;
        match answered {
            Answered::Full | Answered::NotBegun => {}
            Answered::So { exchange, cost } => {
                self.transcript.exchanges.push(exchange);
                if self.terminal {
                    self.screen.note(&cost.line(answerer));
                }
                self.last = Some(cost);
                self.keep();
            }
        }
        let interrupted = answerer.interrupted.swap(false, std::sync::atomic::Ordering::Relaxed);
        if interrupted && !self.terminal {
            std::process::exit(130);
        }
        Ok(Next::Goes)
    }

    fn keep(&mut self) {
        let model = self.model_name();
        self.kept.keep(&model, &self.transcript);
    }

    fn model_name(&self) -> String {
        let path = self.args.model.path();
        path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
    }

    /// Another system message, which the template must have a place for.
    fn set_system(&mut self, text: &str) -> Result<(), CliError> {
        let user = Message::new("user", "?");
        let with = self.render(&[Message::new("system", text), user.clone()])?;
        if with == self.render(&[user])? {
            return Err(
                CliError::new("the chat template leaves system messages out").in_file(self.args.model.path())
            );
        }
        self.transcript.system = Some(text.to_owned());
        Ok(())
    }

    /// What the template makes of messages, with the beginning of an answer.
    pub(super) fn render(&self, messages: &[Message]) -> Result<String, CliError> {
        let conversation = Conversation::new(messages, true, self.tokenizer);
        render_chat::render(&self.template, &conversation).in_file(self.args.model.path())
    }

    pub(super) fn tokenizer(&self) -> &'a Tokenizer {
        self.tokenizer
    }

    fn show(&self) {
        if let Some(system) = &self.transcript.system {
            tell!("system: {}", safe_text::escape_text(system));
        }
        for Exchange { user, answer, .. } in &self.transcript.exchanges {
            tell!("> {}\n{}", safe_text::escape_text(user), safe_text::escape_text(answer));
        }
    }
}

/// The beginning of a text, on one line.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    crate::cli::output::cut_end(&safe_text::escape(line), 60).into_owned()
}
