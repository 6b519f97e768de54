//! Which settings hold beside what is typed: the parser itself is asked, with each of them in turn.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;

use clap::builder::{OsStr as ClapStr, Resettable};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use super::shown_path;
use crate::cli::CliError;

/// A flag that is set somewhere else than on the command line.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The argument's.
    pub id: String,
    /// The flag's long name.
    pub long: String,
    pub value: Value,
    pub place: Place,
    /// Not to be shown.
    pub secret: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Flag(bool),
    Texts(Vec<OsString>),
}

/// Where a setting is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Environment(String),
    /// A line of a file, in the table of a subcommand or above all of them.
    File {
        path: PathBuf,
        line: usize,
        table: Vec<String>,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Environment(variable) => write!(f, "{variable}"),
            Place::File { path, line, .. } => write!(f, "{}, line {line}", shown_path(path)),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{} ({})", self.long, self.place)
    }
}

impl Setting {
    pub fn new(arg: &Arg, value: Value, place: Place) -> Setting {
        let long = arg.get_long().unwrap_or_default().to_owned();
        Setting { id: arg.get_id().to_string(), long, value, place, secret: arg.is_hide_env_values_set() }
    }

    /// What the environment says of an argument. An empty variable is none.
    pub fn of_environment(arg: &Arg) -> Option<Setting> {
        let name = arg.get_env()?;
        let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
        let place = Place::Environment(name.to_string_lossy().into_owned());
        Some(Setting::new(arg, Value::Texts(vec![value]), place))
    }

    /// As it would be typed.
    fn typed(&self) -> Vec<OsString> {
        match &self.value {
            Value::Flag(false) => Vec::new(),
            Value::Flag(true) => vec![format!("--{}", self.long).into()],
            Value::Texts(texts) => {
                let text = |text: &OsString| {
                    let mut typed = OsString::from(format!("--{}=", self.long));
                    typed.push(text);
                    typed
                };
                texts.iter().map(text).collect()
            }
        }
    }

    /// A value that the parser refuses.
    fn refused(&self, error: &clap::Error) -> CliError {
        let told = if self.secret { "the value cannot be".to_owned() } else { reason(error) };
        match &self.place {
            Place::Environment(variable) => CliError::usage(format!("{variable}: {told}")),
            Place::File { path, line, .. } => {
                CliError::new(format!("line {line}: {}: {told}", self.long)).in_file(path)
            }
        }
    }
}

/// What the parser says, without what it says of usage.
fn reason(error: &clap::Error) -> String {
    let told = error.render().to_string();
    let told = told.strip_prefix("error: ").unwrap_or(&told);
    let first = told.split("\n\n").next().unwrap_or_default();
    first.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// All that holds.
pub struct Settled {
    /// With all of it, as if typed.
    pub argv: Vec<OsString>,
    pub settings: Vec<Setting>,
    /// What is typed, and what the defaults are, of the subcommand.
    pub matches: ArgMatches,
    /// Of the arguments that are typed.
    pub typed: Vec<String>,
}

impl Settled {
    /// Adds to what is typed those settings that go with it, the first of a flag before the others. One that
    /// goes with another at the same place no more than with what is typed is an error.
    pub fn of(
        lenient: &Command,
        argv: &[OsString],
        path: &[String],
        candidates: Vec<Setting>,
    ) -> Result<Settled, CliError> {
        let at = behind(argv, path);
        let line = |settings: &[Setting]| {
            let added = settings.iter().flat_map(Setting::typed);
            argv[..at].iter().cloned().chain(added).chain(argv[at..].iter().cloned()).collect::<Vec<_>>()
        };
        let parse = |settings: &[Setting]| lenient.clone().try_get_matches_from(line(settings));
        let whole = parse(&[]).map_err(|error| CliError::usage(reason(&error)))?;
        let typed = typed(below(&whole, path));
        let mut settings: Vec<Setting> = Vec::new();
        let mut waiting: Vec<Setting> = candidates.into_iter().filter(|it| !typed.contains(&it.id)).collect();
        // What needs another flag is tried again once that one has come.
        loop {
            let (before, mut later) = (settings.len(), Vec::new());
            for candidate in waiting {
                if settings.iter().any(|held| held.id == candidate.id) {
                    continue;
                }
                let with = |settings: &[Setting]| [settings, std::slice::from_ref(&candidate)].concat();
                match parse(&with(&settings)) {
                    Ok(_) => settings.push(candidate),
                    Err(error) => match error.kind() {
                        ErrorKind::ArgumentConflict => {
                            let apart = |held: &&Setting| {
                                held.place.level() == candidate.place.level()
                                    && parse(&[(*held).clone(), candidate.clone()]).is_err()
                                    && parse(&with(&[])).is_ok()
                            };
                            if let Some(held) = settings.iter().find(apart) {
                                return Err(together(&candidate, held));
                            }
                        }
                        ErrorKind::MissingRequiredArgument => later.push(candidate),
                        _ => return Err(candidate.refused(&error)),
                    },
                }
            }
            waiting = later;
            if settings.len() == before {
                break;
            }
        }
        let argv = line(&settings);
        let matches = parse(&settings).map_err(|error| CliError::usage(reason(&error)))?;
        Ok(Settled { argv, matches: below(&matches, path).clone(), settings, typed })
    }
}

impl Place {
    /// What is at the same level is meant together.
    fn level(&self) -> (bool, &[String]) {
        match self {
            Place::Environment(_) => (true, &[]),
            Place::File { table, .. } => (false, table),
        }
    }
}

fn together(one: &Setting, other: &Setting) -> CliError {
    let what = format!("{} cannot be set beside {}, {}", one.long, other.long, other.place);
    match &one.place {
        Place::Environment(variable) => CliError::usage(format!("{variable}: {what}")),
        Place::File { path, line, .. } => CliError::new(format!("line {line}: {what}")).in_file(path),
    }
}

/// The names of the subcommands that are asked for.
pub fn path(matches: &ArgMatches) -> Vec<String> {
    let (mut path, mut matches) = (Vec::new(), matches);
    while let Some((name, below)) = matches.subcommand() {
        path.push(name.to_owned());
        matches = below;
    }
    path
}

fn below<'m>(matches: &'m ArgMatches, path: &[String]) -> &'m ArgMatches {
    path.iter().fold(matches, |matches, name| matches.subcommand_matches(name).unwrap_or(matches))
}

fn typed(matches: &ArgMatches) -> Vec<String> {
    let is_typed = |id: &&clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
    matches.ids().filter(is_typed).map(ToString::to_string).collect()
}

/// Where the arguments of a subcommand begin. Before its name stand flags of the whole program alone.
fn behind(argv: &[OsString], path: &[String]) -> usize {
    let mut at = 1;
    for name in path {
        while at < argv.len() && argv[at] != OsStr::new(name) {
            at += if argv[at] == "--config" { 2 } else { 1 };
        }
        at += 1;
    }
    at.min(argv.len())
}

/// A parser that asks for nothing and knows no environment: what it refuses is wrong whatever else is set.
pub fn lenient(command: Command) -> Command {
    let groups: Vec<_> = command.get_groups().map(|group| group.get_id().clone()).collect();
    let command = groups.into_iter().fold(without_environment(command), |command, group| {
        command.mut_group(group, |group| group.required(false))
    });
    let command = command.subcommand_required(false).arg_required_else_help(false);
    command.mut_args(|arg| arg.required(false)).mut_subcommands(lenient)
}

/// A parser that knows no environment: it has been read.
pub fn without_environment(command: Command) -> Command {
    let none = || Resettable::<ClapStr>::Reset;
    command.mut_args(|arg| arg.env(none())).mut_subcommands(without_environment)
}
