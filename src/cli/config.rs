//! Settings that nobody types: of a file, of the environment. They are handed to the parser as if they stood
//! on the command line before all that is typed there; what is typed goes first.

mod file;
mod keys;
mod settle;
mod show;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use etcetera::BaseStrategy;

use super::CliError;
use super::output::tell;
use file::ConfigFile;
pub use settle::without_environment;
use settle::{Setting, Settled};

/// What says where settings come from; these themselves stand in no file.
#[derive(Args, Debug)]
#[command(next_help_heading = "Configuration")]
pub struct ConfigArgs {
    /// File of settings to read (TOML) in the place of config.toml in the user's folder of configurations
    #[arg(long, global = true, value_name = "FILE", env = "WAYINFER_CONFIG")]
    config: Option<PathBuf>,

    /// Read no file of settings
    #[arg(long, global = true, conflicts_with = "config", env = "WAYINFER_NO_CONFIG")]
    no_config: bool,

    /// Print what holds for the subcommand, and where each setting comes from
    #[arg(long, global = true)]
    show_config: bool,
}

/// The ids of [`ConfigArgs`].
const OWN: [&str; 3] = ["config", "no_config", "show_config"];

/// A command line with all that holds.
pub struct Line {
    /// As it is to be parsed, once the environment is read.
    pub argv: Vec<OsString>,
    /// What was added.
    settings: Vec<Setting>,
}

impl Line {
    /// Says which settings were not typed, where the arguments cannot be meant together.
    pub fn tell_settings(&self) {
        if !self.settings.is_empty() {
            let all: Vec<String> = self.settings.iter().map(Setting::to_string).collect();
            tell!("note: not typed: {}", super::safe_text::escape(&all.join("; ")));
        }
    }
}

/// What becomes of a command line.
pub enum Outcome {
    Run(Line),
    /// It asked for its settings, which have been printed.
    Shown,
}

/// What a file sets, for whichever subcommand, as it is shown.
///
/// # Errors
/// What is no file of settings.
pub fn all_settings(path: &Path, command: &Command) -> Result<String, CliError> {
    let file = ConfigFile::read(path, command)?;
    let mut shown = show::file(&file, command);
    for (path, leaf) in keys::leaves(command) {
        let wanted = |entry: &file::Entry| entry.table.is_empty() || entry.table == path;
        file.settings(leaf, wanted).for_each(|setting| shown += &setting.to_string());
    }
    Ok(shown)
}

/// The command line with the settings of the environment and of the file.
///
/// # Errors
/// A file that cannot be read, is no TOML or sets what is not there; values that cannot be.
pub fn settings(command: &Command, argv: Vec<OsString>) -> Result<Outcome, CliError> {
    let lenient = settle::lenient(command.clone());
    let as_typed = |argv| Outcome::Run(Line { argv, settings: Vec::new() });
    // What is wrong with it, and texts of help, are the parser's to tell.
    let Ok(typed) = lenient.clone().try_get_matches_from(&argv) else { return Ok(as_typed(argv)) };
    let shows = typed.get_flag("show_config");
    let path = settle::path(&typed);
    let leaf = keys::leaf(command, &path);
    if !shows && (path.is_empty() || keys::of(leaf).next().is_none()) {
        return Ok(as_typed(argv));
    }
    let read = if typed.get_flag("no_config") { None } else { Source::of(typed.get_one("config")) };
    let file = read.as_ref().map(|source| source.read(command)).transpose()?.flatten();
    let place = |line: Option<&str>| show::head(read.as_ref().map(|source| &*source.path), line);
    if path.is_empty() {
        let told = file.as_ref().map_or_else(String::new, |file| show::file(file, command));
        show::print(&format!("{}{told}", place(file.is_none().then_some("it is not there"))))?;
        return Ok(Outcome::Shown);
    }
    let candidates = candidates(leaf, &path, command, file.as_ref());
    let settled = Settled::of(&lenient, &argv, &path, candidates)?;
    if shows {
        let table = show::table(leaf, &path, &settled);
        show::print(&format!("{}{table}", place(file.is_none().then_some("it is not there"))))?;
        return Ok(Outcome::Shown);
    }
    Ok(Outcome::Run(Line { argv: settled.argv, settings: settled.settings }))
}

/// What might hold, the first of a flag before the others.
fn candidates(leaf: &Command, path: &[String], command: &Command, file: Option<&ConfigFile>) -> Vec<Setting> {
    let mut all: Vec<Setting> = keys::of(leaf).filter_map(Setting::of_environment).collect();
    if let Some(file) = file {
        let common = keys::Common::of(command);
        all.extend(file.settings(leaf, |entry| entry.table == path));
        all.extend(file.settings(leaf, |entry| {
            entry.table.is_empty() && keys::of(leaf).any(|arg| common.holds(&entry.key, arg))
        }));
    }
    all
}

/// Where a file of settings is to be read from.
struct Source {
    path: PathBuf,
    /// Somebody named it: it has to be there.
    named: bool,
}

impl Source {
    /// The file that was typed, the environment's, or the user's own; none where there is no home.
    fn of(typed: Option<&PathBuf>) -> Option<Source> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let no = variable("WAYINFER_NO_CONFIG").is_some_and(|value| value != "0" && value != "false");
        if let Some(path) = typed {
            return Some(Source { path: path.clone(), named: true });
        }
        if no {
            return None;
        }
        if let Some(path) = variable("WAYINFER_CONFIG") {
            return Some(Source { path: path.into(), named: true });
        }
        let folder = etcetera::choose_base_strategy().ok()?.config_dir();
        Some(Source { path: folder.join("wayinfer").join("config.toml"), named: false })
    }

    fn read(&self, command: &Command) -> Result<Option<ConfigFile>, CliError> {
        if !self.named && !self.path.exists() && self.path.symlink_metadata().is_err() {
            return Ok(None);
        }
        ConfigFile::read(&self.path, command).map(Some)
    }
}

/// The name of a file for people.
fn shown_path(path: &Path) -> String {
    path.display().to_string()
}
