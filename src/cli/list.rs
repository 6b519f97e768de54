//! `wayinfer list`: the models in the hub's cache.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::pull::failed;
use super::safe_text::escape;
use super::{CliError, output, safe_text};
use crate::gguf::Gguf;
use crate::hub::{CachedModel, Hub, Unfinished};

/// List the models in the hub's cache: what `-m` finds them by, their sizes and where they are
///
/// The cache is the one that the hub's own tools have. When a model was last used is what the file system
/// keeps of it; many keep the day alone.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// One JSON object on one line
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    models: Vec<Model>,
    unfinished: Vec<Rest>,
}

#[derive(Serialize)]
struct Model {
    name: String,
    architecture: Option<String>,
    quant: Option<String>,
    bytes: u64,
    /// Seconds since 1970.
    used: Option<u64>,
    commit: String,
    files: Vec<PathBuf>,
    /// What is wrong with its header.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct Rest {
    name: String,
    bytes: u64,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    let hub = Hub::from_env().map_err(|error| failed(None, error))?;
    let (models, unfinished) = hub.list().map_err(|error| failed(Some(&hub), error))?;
    let report = Report {
        models: models.into_iter().map(model).collect(),
        unfinished: unfinished
            .into_iter()
            .map(|Unfinished { repo, bytes }| Rest { name: format!("hf:{repo}"), bytes })
            .collect(),
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        safe_text::write_json(&report, &mut out)?
    } else {
        print(&report, &mut out)?
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn model(cached: CachedModel) -> Model {
    let CachedModel { name, commit, quant, files, bytes, used } = cached;
    let header = Gguf::open(&files[0]);
    let architecture = header
        .as_ref()
        .ok()
        .and_then(|gguf| Some(gguf.metadata().str("general.architecture").ok()??.to_owned()));
    let used = used.and_then(|used| used.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs());
    let error = header.err().map(|error| error.to_string());
    Model { name: name.to_string(), architecture, quant, bytes, used, commit, files, error }
}

fn print(report: &Report, out: &mut impl Write) -> Result<(), CliError> {
    if report.models.is_empty() && report.unfinished.is_empty() {
        writeln!(out, "the cache has no models; `wayinfer pull USER/REPO` fetches one")?;
        return Ok(());
    }
    let mut table = output::new_table(&["name", "architecture", "size", "last used", "file"], &[2]);
    for model in &report.models {
        let architecture = model.architecture.as_deref().unwrap_or("?");
        let used =
            model.used.map_or_else(|| "?".to_owned(), |used| ago(UNIX_EPOCH + Duration::from_secs(used)));
        let file = model.files[0].display().to_string();
        table.add_row([
            escape(&model.name).into_owned(),
            escape(&output::cut_end(architecture, 24)).into_owned(),
            output::bytes(model.bytes),
            used,
            escape(&file).into_owned(),
        ]);
    }
    for rest in &report.unfinished {
        table.add_row([
            rest.name.clone(),
            "unfinished".to_owned(),
            output::bytes(rest.bytes),
            String::new(),
            String::new(),
        ]);
    }
    writeln!(out, "{}", table.trim_fmt())?;
    for model in &report.models {
        if let Some(error) = &model.error {
            writeln!(out, "{}: {}", escape(&model.name), escape(error))?;
        }
    }
    Ok(())
}

/// `3 days ago`.
fn ago(time: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(time).map_or(0, |age| age.as_secs());
    let (n, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_one_unit() {
        let told = |seconds| ago(SystemTime::now() - Duration::from_secs(seconds));
        let ages = [0, 59, 61, 7300, 86_400 * 3 + 5].map(told);
        assert_eq!(ages, ["just now", "just now", "1 minute ago", "2 hours ago", "3 days ago"]);
        assert_eq!(ago(SystemTime::now() + Duration::from_secs(1000)), "just now");
    }
}
