//! `wayinfer batch`: a file of requests answered, as many at a time as memory allows.

mod output;
mod progress;
mod questions;

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args as ClapArgs;

use super::interrupt::{self, INTERRUPTED};
use super::model_arg::ModelArg;
use super::shelf::{AtOnce, Chosen, RunArgs, Shelf};
use super::{CliError, render_chat};
use crate::server::{Access, Config, Local, Models, batch};
use output::Output;
use progress::Progress;
use questions::Questions;

/// Answer the requests of a file, as OpenAI's batches have them
///
/// A line of IN asks: {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}; url
/// may be /v1/completions, /v1/responses and /v1/messages as well, and bodies are as `serve` takes them. A line
/// of OUT answers: {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}, in any
/// order. A request that makes no sense is answered with a line that says so, and the others go on; a line of
/// IN without a custom_id, or with that of another, ends the run before it begins.
///
/// Ctrl-C keeps what is answered, and so does whatever else ends the run: the same command goes on from there.
/// OUT is only ever added to, and has to be the same batch's where it is there. An answer depends on the model,
/// the request and its seed alone, not on what else is asked.
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// File of requests, one a line; `-`: standard input
    #[arg(value_name = "IN")]
    input: PathBuf,

    /// File that answers are added to, one a line; `-`: standard output
    #[arg(value_name = "OUT")]
    output: PathBuf,

    /// GGUF file; any one of a split model; `hf:USER/REPO[:QUANT]` for a model of the hub, which is fetched
    /// where it is not in the cache; `demo` for the model that is compiled in, which answers where none is given
    #[arg(short = 'm', long, value_name = "MODEL", env = "WAYINFER_MODEL")]
    model: Option<PathBuf>,

    /// Requests that run at a time [default: as many as memory has room for, at most 64]
    #[arg(long, value_name = "N")]
    parallel: Option<NonZeroUsize>,

    #[command(flatten)]
    run: RunArgs,
}

/// A pass of more rows takes so much longer that a request gains nothing by being among them.
const MOST_AT_ONCE: usize = 64;

/// See [`Args`].
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let questions = Questions::read(&args.input)?;
    let model = ModelArg::of(args.model);
    let gguf = model.open()?;
    let mut output = Output::open(&args.output, &args.input, &gguf)?;
    let interrupted = interrupt::watch_to_leave(|| {})?;
    let left = questions.without(&output)?;
    let mut progress = Progress::new(questions.len(), left.len());
    // What makes no sense needs no model.
    let mut sensible = Vec::with_capacity(left.len());
    for &number in &left {
        let (id, line) = questions.get(number);
        match batch::request(number, id, line) {
            Ok(_) => sensible.push(number),
            Err(refusal) => {
                output.add(&refusal)?;
                progress.answered(false, 0);
            }
        }
    }
    if !sensible.is_empty() {
        let (most, at_once) = match args.parallel {
            Some(n) => (n.get(), AtOnce::Fixed(n.get())),
            None => (MOST_AT_ONCE, AtOnce::AsRoomAllows(MOST_AT_ONCE)),
        };
        let chosen = Chosen { model, models: None, alias: None, quiet: false };
        let shelf = Arc::new(Shelf::new(chosen, at_once, args.run)?);
        let local = Local::new(config(), Arc::clone(&shelf) as Arc<dyn Models>)?;
        if let Err(error) = local.facts() {
            return Err(shelf.take_failure().unwrap_or_else(|| CliError::new(error.message)));
        }
        let asked = sensible.iter().filter_map(|&number| {
            let (id, line) = questions.get(number);
            batch::request(number, id, line).ok()
        });
        let mut written = Ok(());
        // As many again are made ready meanwhile.
        local.answer_all(most.saturating_mul(2), asked, |answered| {
            let tokens = local.tokens_made();
            match answered {
                Some(answered) => {
                    let (id, _) = questions.get(answered.number);
                    written = output.add(&batch::answer(id, &answered));
                    progress.answered(answered.status == 200, tokens);
                }
                None => progress.tick(tokens),
            }
            match written.is_ok() && !interrupted.load(Ordering::Relaxed) {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        progress.tick(local.tokens_made());
        progress.clear();
        written?;
    }
    output.finish()?;
    progress.tell(&output.name());
    match progress.is_done() {
        true => Ok(ExitCode::SUCCESS),
        false => Ok(ExitCode::from(INTERRUPTED)),
    }
}

fn config() -> Config {
    Config {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        access: Access::default(),
        // Requests wait for room however many there are.
        queue: usize::MAX,
        any_name: true,
        drain: Duration::ZERO,
        render: render_chat::renderer(None),
    }
}
