//! `wayinfer completions`: what shells complete command lines with.

use std::io::Write;
use std::process::ExitCode;

use clap_complete::Shell;

use super::CliError;

/// Print what a shell completes command lines of wayinfer with
///
/// bash: `wayinfer completions bash > ~/.local/share/bash-completion/completions/wayinfer`; fish: the same
/// with ~/.config/fish/completions/wayinfer.fish; zsh: into a file _wayinfer in a folder of $fpath;
/// PowerShell: behind the rest of $PROFILE.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// See [`Args`].
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "wayinfer", &mut script);
    std::io::stdout().lock().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
