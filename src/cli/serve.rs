//! `wayinfer serve`: models behind HTTP, in the dialects that clients speak.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args as ClapArgs;

use super::model_arg::ModelArg;
use super::output::tell;
use super::shelf::{AtOnce, Chosen, RunArgs, Shelf};
use super::stage::parsed;
use super::{CliError, interrupt, render_chat};
use crate::server::{Access, Config, Local, Models, Render, serve};

/// Serve models over HTTP, in the dialects of OpenAI, Anthropic and Ollama.
///
/// An answer depends on the model, the request and its seed alone, not on what else is asked for at the time,
/// on what is cached, or on the machine. Without a model it is the demo that answers. At / there is a page to
/// chat in.
#[derive(ClapArgs, Debug)]
#[command(mut_group("model_arg", |group| group.required(false)))]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    /// Serve all GGUF files of this folder, each loaded when it is asked for; those not used for the longest
    /// time go where memory is short
    #[arg(long, value_name = "DIR", conflicts_with = "model_arg")]
    models: Option<PathBuf>,

    /// What clients call the model [default: its file's name]
    #[arg(long, value_name = "NAME", conflicts_with = "models")]
    alias: Option<String>,

    /// Address to listen at
    #[arg(long, value_name = "ADDRESS", env = "WAYINFER_HOST", default_value = "127.0.0.1")]
    host: IpAddr,

    /// Port to listen at; 0: any that is free, which is printed
    #[arg(long, value_name = "PORT", env = "WAYINFER_PORT", default_value_t = 8080)]
    port: u16,

    /// A name of this machine that clients may ask for, beside its addresses and localhost; may be given
    /// several times
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,

    /// Key that clients have to send; may be given several times
    #[arg(long, value_name = "KEY", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    #[arg(env = "WAYINFER_API_KEY", hide_env_values = true)]
    api_key: Vec<String>,

    /// File with keys, one a line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,

    /// Listen at an address that others can reach, without a key
    #[arg(long)]
    no_key: bool,

    /// Requests that run at a time
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::new(4).expect("4 is not 0"))]
    parallel: NonZeroUsize,

    /// Requests that may wait beside those that run; the next one is told to try again
    #[arg(long, value_name = "N", default_value_t = 256)]
    queue: usize,

    #[command(flatten)]
    run: RunArgs,

    /// How long running answers have to end once the server is asked to, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain: u64,
}

/// See [`Args`]. Ends when the process is asked to, with 0.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let keys = keys(&args)?;
    if !args.host.is_loopback() && keys.is_empty() && !args.no_key {
        let error = CliError::usage(format!("others can reach {}: it wants a key", args.host));
        return Err(error.hint("--api-key KEY asks for one, --no-key lets everybody in"));
    }
    let config = Config {
        address: SocketAddr::new(args.host, args.port),
        access: Access { keys, hosts: args.allow_host.clone() },
        queue: args.queue,
        any_name: args.models.is_none(),
        drain: Duration::from_secs(args.drain),
        render: render_chat::renderer(None),
    };
    let Args { model, models, alias, parallel, run, .. } = args;
    let shelf = Arc::new(Shelf::new(
        Chosen { model, models, alias, quiet: false },
        AtOnce::Fixed(parallel.get()),
        run,
    )?);
    interrupt::leave_to_others();
    let served = serve(config, shelf, |address| tell!("listening on http://{address}"));
    served.map_err(|error| CliError::new(error.to_string()))?;
    tell!("ended");
    Ok(ExitCode::SUCCESS)
}

/// A server without a socket, of the one model that these arguments name; it is loaded. Neither the
/// environment nor a file of settings adds to them: what a program asks for is what it gets.
///
/// # Errors
/// Arguments that make no sense, as they would be told of on the command line; a model that cannot be loaded.
pub fn local(args: &[String], verbose: bool, render: Render) -> Result<Local, CliError> {
    let Args { model, models, alias, parallel, run, .. } = parsed(args)?;
    let config = Config {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        access: Access::default(),
        // Nobody else's are among them.
        queue: MANY,
        any_name: true,
        drain: Duration::ZERO,
        render,
    };
    let chosen = Chosen { model, models, alias, quiet: !verbose };
    let shelf = Arc::new(Shelf::new(chosen, AtOnce::Fixed(parallel.get()), run)?);
    let local = Local::new(config, Arc::clone(&shelf) as Arc<dyn Models>)?;
    match local.facts() {
        Ok(_) => Ok(local),
        Err(error) => Err(shelf.take_failure().unwrap_or_else(|| CliError::new(error.message))),
    }
}

/// More requests than anybody makes at a time.
const MANY: usize = 1 << 20;

fn keys(args: &Args) -> Result<Vec<String>, CliError> {
    let mut keys = args.api_key.clone();
    if let Some(file) = &args.api_key_file {
        let text = super::input::Input::File(file).text()?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let before = keys.len();
        keys.extend(lines.map(str::to_owned));
        if keys.len() == before {
            return Err(CliError::new("the file holds no key").in_file(file));
        }
    }
    Ok(keys)
}
