//! A conversation and what its lines do to it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::answer::{Answered, Answerer, Cost};
use super::command::{Command, HELP, KEYS, message};
use super::edit::edit;
use super::input::{Input, Typed};
use super::kept::{self, Kept};
use super::screen::Screen;
use super::settings::{Change, Settings};
use super::{Args, Template};
use crate::cli::engine_args::{self, Loaded};
use crate::cli::output::{cut_end, tell};
use crate::cli::prefix_cache::Cache;
use crate::cli::{CliError, InFile, placement, render_chat, safe_text};
use crate::engine::{Engine, EngineOptions};
use crate::text::{Constraint, Conversation, Exchange, Message, Rendered, Tokenizer, Transcript};

/// See the module.
pub struct Talk<'a> {
    args: &'a Args,
    template: Template,
    tokenizer: &'a Tokenizer,
    /// What each answer has to be.
    constraint: Option<Constraint>,
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

/// How a conversation was left.
pub enum Left {
    Ended,
    Interrupted,
    /// To go on in another context, of so many tokens.
    For(usize),
}

/// What follows a line.
enum Next {
    Line,
    Leave(Left),
}

impl<'a> Talk<'a> {
    /// A conversation that begins, or goes on.
    pub fn new(
        args: &'a Args,
        template: Template,
        tokenizer: &'a Tokenizer,
        constraint: Option<Constraint>,
        mut kept: Kept,
    ) -> Result<Talk<'a>, CliError> {
        let resumed = kept.transcript.take();
        let goes_on = resumed.as_ref().map(|transcript| transcript.exchanges.len());
        let sampler = args.sampling.config(args.model.is_demo());
        let mut talk = Talk {
            args,
            template,
            tokenizer,
            constraint,
            kept,
            transcript: resumed.unwrap_or_default(),
            settings: Settings { sampler, max_tokens: args.max_tokens, on_full: args.on_full },
            screen: Screen::new(false),
            terminal: false,
            last: None,
            attempt: 0,
        };
        if let Some(system) = &args.system {
            talk.set_system(system)?;
        }
        let name = safe_text::escape(talk.kept.name().unwrap_or_default());
        match goes_on {
            Some(n) => tell!("goes on with {name}: {n} exchanges"),
            None if args.resume.is_some() => tell!("begins {name}"),
            None => {}
        }
        talk.warn_of_system();
        Ok(talk)
    }

    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    pub(super) fn is_in_terminal(&self) -> bool {
        self.terminal
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

    /// An engine with a context of so many tokens, and what earlier runs have computed.
    pub fn engine<'m>(
        &self,
        loaded: &'m mut Loaded,
        context: usize,
        interrupted: &AtomicBool,
    ) -> Result<(Engine<'m>, Cache), CliError> {
        let trained = loaded.model.spec().context;
        if context > trained {
            tell!("warning: a context of {context} tokens, where the model was trained for {trained}");
        }
        let drafts = self.args.speculate.most(loaded.model.spec());
        let options = EngineOptions { drafts, ..self.args.engine.options(context) };
        placement::settle(loaded, &self.args.engine, std::slice::from_ref(&options), 1 + drafts)?;
        let store = loaded.model.store();
        if let Some(plan) = store.plan().filter(|plan| plan.is_placed()) {
            tell!("{}", placement::line(plan, store.reads_directly()));
        }
        let engine = engine_args::open_engine(loaded, &options)?;
        let args = &self.args.cache;
        let folder = args.cache.clone().or_else(|| self.prefixes()).filter(|_| !self.args.no_cache);
        let cache = Cache::open(folder.as_deref(), args.cache_size, (&loaded.gguf, &engine), interrupted);
        Ok((engine, cache))
    }

    /// Where what is computed is kept unless another folder is asked for: beside the conversations, where one
    /// is gone on with.
    fn prefixes(&self) -> Option<PathBuf> {
        self.args.resume.as_ref().and_then(|_| self.kept.prefixes())
    }

    /// Talks until the conversation is left.
    pub fn run(
        &mut self,
        (engine, cache): (Engine<'_>, Cache),
        input: &mut Input,
        interrupted: &AtomicBool,
    ) -> Result<Left, CliError> {
        let sequence = engine.sequence();
        let path = self.args.model.path();
        let speculation = self.args.speculate;
        let mut answerer = Answerer { engine, sequence, cache, interrupted, path, speculation };
        loop {
            // Nothing is under way that an interrupt could end: the next one ends the process. (Ctrl-C is a
            // key while a line is edited.)
            interrupted.store(true, Ordering::Relaxed);
            let typed = input.next()?;
            interrupted.store(false, Ordering::Relaxed);
            let Typed::Text(line) = typed else {
                self.say_how_to_resume();
                return Ok(Left::Ended);
            };
            match self.line(&line, &mut answerer) {
                Ok(Next::Leave(left)) => return Ok(left),
                Ok(Next::Line) if interrupted.load(Ordering::Relaxed) && !self.terminal => {
                    return Ok(Left::Interrupted);
                }
                Ok(Next::Line) => {}
                // Whoever sits there can do something about it.
                Err(error) if self.terminal => {
                    let _ = error.report();
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn say_how_to_resume(&self) {
        if let (true, Some(name), false) =
            (self.terminal, self.kept.name(), self.transcript.exchanges.is_empty())
        {
            self.screen.note(&format!("kept as {name}: wayinfer chat --resume=\"{name}\" goes on with it"));
        }
    }

    /// Does what a line asks for.
    fn line(&mut self, line: &str, answerer: &mut Answerer<'_, '_>) -> Result<Next, CliError> {
        match Command::parse(line).map_err(CliError::usage)? {
            Some(Command::Exit) => {
                self.say_how_to_resume();
                return Ok(Next::Leave(Left::Ended));
            }
            Some(Command::Set(Some((name, value)))) => {
                if let Change::Context(context) = self.settings.set(&name, &value).map_err(CliError::usage)? {
                    return Ok(Next::Leave(Left::For(context)));
                }
                tell!("{}", self.settings.line(answerer.engine.context()));
            }
            Some(Command::Read(file)) => {
                let text = crate::cli::input::Input::File(&file).text()?;
                self.ask_anew(&text, answerer)?;
            }
            Some(Command::Regenerate) => {
                let before = self.last_exchange()?;
                self.attempt += 1;
                self.ask_in_place_of(before.clone(), &before.user, answerer)?;
            }
            Some(Command::Edit) => {
                let before = self.last_exchange()?;
                let edited = self.edit(&before.user);
                match edited {
                    Ok(text) => {
                        self.attempt = 0;
                        self.ask_in_place_of(before, &text, answerer)?;
                    }
                    Err(error) => {
                        self.transcript.exchanges.push(before);
                        return Err(error);
                    }
                }
            }
            Some(other) => self.change(other, answerer)?,
            None if line.trim().is_empty() => {}
            None => self.ask_anew(message(line), answerer)?,
        }
        Ok(Next::Line)
    }

    /// Lets the user change a message, where there is a terminal to do it in.
    fn edit(&self, text: &str) -> Result<String, CliError> {
        match self.terminal {
            true => edit(text),
            false => Err(CliError::new("/edit needs a terminal")),
        }
    }

    /// The commands that ask the model for nothing.
    fn change(&mut self, command: Command, answerer: &Answerer<'_, '_>) -> Result<(), CliError> {
        match command {
            Command::Help => {
                HELP.iter().for_each(|(usage, what)| tell!("{usage:18} {what}"));
                tell!("{KEYS}");
            }
            Command::System(Some(text)) => {
                match text.as_str() {
                    "" => self.transcript.system = None,
                    text => self.set_system(text)?,
                }
                if !self.transcript.exchanges.is_empty() {
                    self.keep();
                }
            }
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
                self.drop_oldest(1);
                self.keep();
            }
            Command::Clear => {
                self.transcript.exchanges.clear();
                self.last = None;
                // What was kept of it stays under its name; what comes is another conversation.
                self.kept.begin_anew();
            }
            Command::Save(overwrite, file) => {
                let saved = kept::write(&file, overwrite, &self.model_name(), &self.transcript);
                saved
                    .map_err(|error| if overwrite { error } else { error.hint("/save! replaces a file") })?;
                tell!("saved to {}", safe_text::escape(&file.to_string_lossy()));
            }
            Command::Load(file) => {
                self.transcript = kept::read(&file)?;
                self.last = None;
                self.kept.begin_anew();
                tell!("{} exchanges", self.transcript.exchanges.len());
                self.warn_of_system();
            }
            Command::Set(_) => tell!("{}", self.settings.line(answerer.engine.context())),
            Command::Show => self.show(),
            Command::Stats => match &self.last {
                Some(cost) => tell!("{}", cost.lines(answerer)),
                None => tell!("nothing has been answered yet"),
            },
            Command::Exit | Command::Read(_) | Command::Regenerate | Command::Edit => {}
        }
        Ok(())
    }

    /// Takes the last exchange out.
    fn last_exchange(&mut self) -> Result<Exchange, CliError> {
        self.transcript.exchanges.pop().ok_or_else(|| CliError::new("nothing has been said yet"))
    }

    /// Takes the oldest exchanges away, and says so.
    pub(super) fn drop_oldest(&mut self, count: usize) {
        for exchange in self.transcript.exchanges.drain(..count) {
            tell!("dropped: {}", first_line(&exchange.user));
        }
    }

    fn ask_anew(&mut self, user: &str, answerer: &mut Answerer<'_, '_>) -> Result<(), CliError> {
        self.attempt = 0;
        self.ask(user, answerer).map(|_| ())
    }

    /// Asks in place of an exchange, which comes back where there is no answer.
    fn ask_in_place_of(
        &mut self,
        before: Exchange,
        user: &str,
        answerer: &mut Answerer<'_, '_>,
    ) -> Result<(), CliError> {
        let asked = self.ask(user, answerer);
        if !matches!(asked, Ok(true)) {
            self.transcript.exchanges.push(before);
        }
        asked.map(|_| ())
    }

    /// Whether there is an answer.
    fn ask(&mut self, user: &str, answerer: &mut Answerer<'_, '_>) -> Result<bool, CliError> {
        // Each answer has a seed of its own, the same whether the conversation was broken off or not.
        let seed = self.settings.sampler.seed.wrapping_add(self.transcript.exchanges.len() as u64);
        match self.answer(user, seed.wrapping_add(self.attempt << 32), answerer)? {
            Answered::NotBegun => Ok(false),
            Answered::So { exchange, cost } => {
                self.transcript.exchanges.push(exchange);
                if self.terminal {
                    self.screen.note(&cost.line(answerer));
                }
                self.last = Some(cost);
                self.keep();
                Ok(true)
            }
        }
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
        if !self.has_place_for(text)? {
            let error = CliError::new("the chat template leaves system messages out");
            return Err(error.in_file(self.args.model.path()));
        }
        self.transcript.system = Some(text.to_owned());
        Ok(())
    }

    /// Whether the template does something with a system message.
    fn has_place_for(&self, system: &str) -> Result<bool, CliError> {
        let user = Message::new("user", "?");
        Ok(self.render(&[Message::new("system", system), user.clone()])? != self.render(&[user])?)
    }

    /// A conversation may come from another model.
    fn warn_of_system(&self) {
        if let Some(system) = &self.transcript.system
            && self.has_place_for(system).is_ok_and(|has| !has)
        {
            tell!("warning: the chat template leaves the system message out");
        }
    }

    /// What the template makes of messages, with the beginning of an answer.
    pub(super) fn render(&self, messages: &[Message]) -> Result<Rendered, CliError> {
        let conversation = Conversation::new(messages, true, self.tokenizer);
        render_chat::render_apart(&self.template.source, &conversation, self.tokenizer)
            .in_file(self.args.model.path())
    }

    pub(super) fn tokenizer(&self) -> &'a Tokenizer {
        self.tokenizer
    }

    /// What an answer has to be, at its beginning.
    pub(super) fn constraint(&self) -> Option<Constraint> {
        self.constraint.clone()
    }

    /// What ends an answer beside end tokens.
    pub(super) fn stops(&self) -> &'static [&'static str] {
        self.template.stops
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
    cut_end(&safe_text::escape(line), 60).into_owned()
}
