//! `wayinfer pull`: fetches a model of the hub; and the same for `-m hf:..`.

mod plan;
mod progress;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::interrupt::WhileFetching;
use super::output::tell;
use super::safe_text::escape;
use super::{CliError, output, safe_text};
use crate::hub::{Hub, HubError, ModelName, Pull};
use plan::Planned;
use progress::Progress;

/// Fetch a model of the hub into its cache, checked, and print where it is
///
/// USER/REPO is a repository of huggingface.co, as `-m hf:USER/REPO` names it too. Its headers come first:
/// what cannot run is refused before the rest is fetched, and where the weights would go on this machine is
/// shown. What has come stays when a fetch is broken off, and the same command goes on from there. Heeded are
/// HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HTTPS_PROXY and NO_PROXY.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// USER/REPO, USER/REPO:QUANT or USER/REPO/FILE.gguf, with @REVISION behind it where `main` is not meant.
    /// Without QUANT: Q4_K_M, or the only model that is there
    #[arg(value_name = "NAME")]
    name: String,

    /// Fetch the headers alone, and say what there is and how it would run
    #[arg(long)]
    dry_run: bool,

    /// Fetch it though this program cannot run it
    #[arg(long)]
    anyway: bool,

    /// One JSON object on one line
    #[arg(long)]
    json: bool,
}

/// What was fetched, or would be.
#[derive(Serialize)]
struct Report {
    name: String,
    commit: String,
    files: Vec<String>,
    bytes: u64,
    /// Of them, what was not there.
    missing_bytes: u64,
    /// `null` where nothing has been fetched but headers.
    path: Option<PathBuf>,
    /// `null` where no header was read, as all was there.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Planned>,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    let hub = Hub::from_env().map_err(|error| failed(None, error))?;
    let name: ModelName = args.name.parse().map_err(|error| failed(None, error))?;
    let _fetching = WhileFetching::begin()?;
    let mut fetch = Fetch::begin(&hub, &name)?;
    tell!("{}", fetch.summary());
    let planned = match fetch.plan() {
        Err(error) if args.anyway => {
            tell!("warning: {}", escape(&error.message()));
            None
        }
        Err(error) => {
            fetch.pull.give_up();
            return Err(error.hint("--anyway fetches it all the same"));
        }
        Ok(planned) => planned,
    };
    let mut report = Report {
        name: fetch.pull.name().to_string(),
        commit: fetch.pull.commit().to_owned(),
        files: fetch.pull.files().map(|(path, _)| path.to_owned()).collect(),
        bytes: fetch.pull.bytes(),
        missing_bytes: fetch.missing,
        path: None,
        plan: planned,
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if args.dry_run {
        fetch.pull.give_up();
    } else {
        if let Some(planned) = &report.plan {
            tell!("{}", planned.table());
        }
        report.path = Some(fetch.finish()?);
    }
    if args.json {
        safe_text::write_json(&report, &mut out)?;
    } else if let Some(path) = &report.path {
        writeln!(out, "{}", escape(&path.display().to_string()))?;
    } else if let Some(planned) = &report.plan {
        writeln!(out, "{}", planned.table())?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// The file of a model that `-m` names: of the cache, or fetched where it is not there.
///
/// # Errors
/// No such model, no way to fetch it, or one that cannot run.
pub fn cached_or_fetched(text: &str) -> Result<Option<PathBuf>, CliError> {
    let Some(name) = ModelName::of_argument(text) else { return Ok(None) };
    let name = name.map_err(|error| failed(None, error))?;
    let hub = Hub::from_env().map_err(|error| failed(None, error))?;
    match hub.cached(&name) {
        Ok(path) => return Ok(Some(path)),
        Err(error @ HubError::Ambiguous { .. }) => return Err(failed(Some(&hub), error)),
        // What is there says more than that nothing may be fetched.
        Err(error) if hub.is_offline() && !matches!(error, HubError::NotCached { .. }) => {
            return Err(failed(Some(&hub), error));
        }
        Err(_) => {}
    }
    let _fetching = WhileFetching::begin()?;
    let mut fetch = Fetch::begin(&hub, &name)?;
    tell!("{}", fetch.summary());
    if let Err(error) = fetch.plan() {
        fetch.pull.give_up();
        return Err(error);
    }
    fetch.finish().map(Some)
}

/// A fetch, and what it shows.
struct Fetch<'h> {
    hub: &'h Hub,
    pull: Pull,
    /// Bytes that were missing at first.
    missing: u64,
    progress: Progress,
}

impl<'h> Fetch<'h> {
    /// Looks the model up, and for room.
    fn begin(hub: &'h Hub, name: &ModelName) -> Result<Fetch<'h>, CliError> {
        let mut progress = Progress::new();
        let pull = hub.pull(name, &mut |event| progress.hear(&event));
        let pull = pull.map_err(|error| failed(Some(hub), error))?;
        pull.check_space().map_err(|error| failed(Some(hub), error))?;
        let missing = pull.missing_bytes();
        progress.expect(pull.bytes(), pull.bytes() - missing);
        Ok(Fetch { hub, pull, missing, progress })
    }

    /// What there is, and what is missing of it.
    fn summary(&self) -> String {
        let pull = &self.pull;
        let files = match pull.files().len() {
            1 => "1 file".to_owned(),
            n => format!("{n} files"),
        };
        let (name, commit) = (pull.name(), &pull.commit()[..12]);
        let mut line = format!("{name} at {commit}: {files}, {}", output::bytes(pull.bytes()));
        match (self.missing, pull.free_bytes()) {
            (0, _) => line.push_str(", all in the cache"),
            (missing, Some(free)) => {
                line += &format!(", {} to fetch, {} free", output::bytes(missing), output::bytes(free));
            }
            (missing, None) => line += &format!(", {} to fetch", output::bytes(missing)),
        }
        escape(&line).into_owned()
    }

    /// Fetches the headers and plans with them.
    fn plan(&mut self) -> Result<Option<Planned>, CliError> {
        let progress = &mut self.progress;
        let heads = self.pull.heads(&mut |event| progress.hear(&event));
        self.progress.pause();
        let Some(heads) = heads.map_err(|error| failed(Some(self.hub), error))? else { return Ok(None) };
        plan::of_heads(&heads, &self.pull.name()).map(Some)
    }

    /// Fetches the rest.
    fn finish(self) -> Result<PathBuf, CliError> {
        let Fetch { hub, pull, mut progress, .. } = self;
        let path = pull.finish(&mut |event| progress.hear(&event));
        progress.end(path.is_ok());
        path.map_err(|error| failed(Some(hub), error))
    }
}

/// A failure, and what the user can do about it.
pub fn failed(hub: Option<&Hub>, error: HubError) -> CliError {
    let kept = || Some("what has come stays: the same command goes on from there".to_owned());
    let hint = match &error {
        HubError::Name { .. } => {
            Some("hf:USER/REPO, hf:USER/REPO:QUANT and hf:USER/REPO/FILE.gguf are names".to_owned())
        }
        HubError::NoRepo { has_token: false, .. } => {
            Some("of a private one HF_TOKEN must be the token of someone who may read it".to_owned())
        }
        HubError::NoRepo { has_token: true, .. } => Some("the token may not be for it".to_owned()),
        HubError::Gated { repo, has_token, .. } => hub.map(|hub| {
            let token = if *has_token { "the token must be of who has asked" } else { "then set HF_TOKEN" };
            format!("ask for it at {}; {token}", hub.page(repo))
        }),
        HubError::NoMatch { .. } | HubError::Ambiguous { .. } => {
            Some("hf:USER/REPO:QUANT names one, hf:USER/REPO/FILE.gguf any file".to_owned())
        }
        HubError::Space { .. } => Some("HF_HUB_CACHE names another folder".to_owned()),
        HubError::NotCached { .. } => Some("`wayinfer list` shows what is there".to_owned()),
        HubError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => kept(),
        HubError::Network { why, .. } if why.contains("certificate") => {
            Some("trusted are the system's certificates, or those of the file SSL_CERT_FILE".to_owned())
        }
        HubError::Network { is_transient: true, .. } => kept(),
        HubError::Status { status: 429, .. } => {
            Some("with a token in HF_TOKEN more requests are allowed".to_owned())
        }
        _ => None,
    };
    match (CliError::from(error), hint) {
        (error, Some(hint)) => error.hint(hint),
        (error, None) => error,
    }
}
