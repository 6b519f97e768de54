//! `wayinfer man`: the pages of the manual, which releases are packed with.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use super::{CliError, InFile};

/// Write the pages of the manual: wayinfer.1, and one for each subcommand
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder for the pages; it has to be there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// See [`Args`].
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    let folder = &args.folder;
    fs::read_dir(folder).in_file(folder)?;
    clap_mangen::generate_to(super::command().disable_help_subcommand(true), folder).in_file(folder)?;
    Ok(ExitCode::SUCCESS)
}
