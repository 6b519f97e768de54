//! FACE: the command line. One file a subcommand, each with its `Args` and a `run`; the only layer
//! that knows the terminal.
#![deny(clippy::print_stderr, clippy::print_stdout)] // they panic where nobody reads any more

mod batch;
mod bench;
mod byte_bar;
mod chat;
mod completions;
mod config;
mod dequant;
mod device_args;
mod devices;
mod diff;
mod doctor;
mod dot_check;
pub mod embedded;
mod engine_args;
mod error;
mod generate;
mod grammar_args;
mod habits;
mod hash;
mod input;
mod inspect;
mod interrupt;
mod list;
mod man;
mod model_arg;
mod number;
mod output;
mod output_file;
mod perplexity;
mod placement;
mod prefix_cache;
mod pull;
mod render_chat;
mod report;
mod rm;
mod safe_text;
mod sampling_args;
mod serve;
mod shelf;
pub mod stage;
mod status;
mod tensor_arg;
mod tokenize;
mod tokenizer_arg;
mod trace;
mod value_json;
mod value_text;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use error::{CliError, InFile, verdict};

/// Inspect, verify and run GGUF language models on a CPU, models larger than RAM included.
#[derive(Parser, Debug)]
#[command(name = "wayinfer", bin_name = "wayinfer", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    _config: config::ConfigArgs,
}

#[derive(Subcommand, Debug)]
enum Command {
    Inspect(inspect::Args),
    Tokenize(tokenize::Args),
    Generate(generate::Args),
    Chat(chat::Args),
    Serve(Box<serve::Args>),
    Batch(Box<batch::Args>),
    Bench(bench::Args),
    Trace(Box<trace::Args>),
    Perplexity(Box<perplexity::Args>),
    Dequant(dequant::Args),
    Diff(diff::Args),
    Hash(hash::Args),
    Doctor(doctor::Args),
    Devices(devices::Args),
    DotCheck(dot_check::Args),
    Pull(pull::Args),
    List(list::Args),
    Rm(rm::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    Man(man::Args),
    #[command(hide = true)]
    RenderChat(render_chat::Args),
}

/// All that can be typed. Help names variables of the environment, and never shows what they hold.
fn command() -> clap::Command {
    fn hidden(command: clap::Command) -> clap::Command {
        command.mut_subcommands(hidden).mut_args(|arg| arg.hide_env_values(true))
    }
    hidden(Cli::command())
}

/// What a file of settings comes to for each subcommand, and as it is shown, for fuzz targets.
///
/// # Errors
/// What is no file of settings.
#[doc(hidden)]
pub fn settings_of(path: &std::path::Path) -> Result<String, CliError> {
    config::all_settings(path, &Cli::command())
}

/// Parses a command line, with the settings of the environment and of the file of settings.
fn parse() -> Result<(Cli, config::Line), ExitCode> {
    let program = Cli::command();
    let line = habits::read(&program, std::env::args_os().collect());
    let line = match line.and_then(|argv| config::settings(&program, argv)) {
        Ok(config::Outcome::Run(line)) => line,
        Ok(config::Outcome::Shown) => return Err(ExitCode::SUCCESS),
        Err(error) => return Err(error.report()),
    };
    let told = |error: clap::Error| {
        line.tell_settings();
        error.exit()
    };
    let matches = match config::without_environment(program).try_get_matches_from(&line.argv) {
        Ok(matches) => matches,
        // Help tells of the environment.
        Err(error) if error.kind() == ErrorKind::DisplayHelp => command().get_matches_from(&line.argv),
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => told(error),
    };
    Ok((Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()), line))
}

/// Parses the arguments, runs the subcommand, reports what went wrong on stderr.
///
/// Exit codes: 0 success, 1 a failure (a bad file, a check with errors, ..), 2 wrong usage, 130 interrupted.
pub fn main() -> ExitCode {
    let (cli, line) = match parse() {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    let result: Result<ExitCode, CliError> = match cli.command {
        Command::Inspect(args) => inspect::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Serve(args) => serve::run(*args),
        Command::Batch(args) => batch::run(*args),
        Command::Bench(args) => bench::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Dequant(args) => dequant::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Hash(args) => hash::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::DotCheck(args) => dot_check::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::List(args) => list::run(&args),
        Command::Rm(args) => rm::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::RenderChat(args) => render_chat::run(&args),
    };
    result.unwrap_or_else(|error| {
        let code = error.report();
        if error.is_usage() {
            line.tell_settings();
        }
        code
    })
}
