//! `wayinfer rm`: removes a model from the hub's cache.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use super::CliError;
use super::output::{self, tell};
use super::pull::failed;
use super::safe_text::escape;
use crate::hub::{Hub, ModelName, Removal};

/// Remove a model from the hub's cache
///
/// USER/REPO alone removes all GGUF files of that repository, those too that have not come whole. Nothing is
/// removed that something else in the cache uses.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A name as `wayinfer list` has it: USER/REPO, USER/REPO:QUANT or USER/REPO/FILE.gguf, each with
    /// @REVISION where only that is meant
    #[arg(value_name = "NAME")]
    name: String,

    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    let hub = Hub::from_env().map_err(|error| failed(None, error))?;
    let name: ModelName = args.name.parse().map_err(|error| failed(None, error))?;
    let removal = hub.removal(&name).map_err(|error| failed(Some(&hub), error))?;
    if !args.yes {
        if !io::stdin().is_terminal() {
            let error = CliError::usage("nobody can be asked: standard input is no terminal");
            return Err(error.hint("--yes removes without asking"));
        }
        show(&removal);
        if !asked(&format!("remove {} ({})? [y/N] ", name, output::bytes(removal.bytes())))? {
            tell!("nothing is removed");
            return Ok(ExitCode::FAILURE);
        }
    }
    let freed = output::bytes(removal.bytes());
    removal.remove().map_err(|error| failed(Some(&hub), error))?;
    tell!("{freed} are free again");
    Ok(ExitCode::SUCCESS)
}

fn show(removal: &Removal) {
    for file in removal.files() {
        tell!("{}", escape(&file.display().to_string()));
    }
    if removal.kept() > 0 {
        tell!("the bytes of {} of them stay: something else in the cache uses them", removal.kept());
    }
}

/// Whether the answer is yes.
fn asked(question: &str) -> Result<bool, CliError> {
    let mut stderr = io::stderr().lock();
    stderr.write_all(escape(question).as_bytes())?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
}
