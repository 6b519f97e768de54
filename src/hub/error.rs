//! What can go wrong with the hub and its cache.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::name::{ModelName, RepoName};
use crate::gguf::GgufError;

/// A failure. What comes from elsewhere (messages, names of files) is for the face to escape.
#[derive(Debug, Error)]
pub enum HubError {
    #[error("{name:?} is no name of a model on the hub: {why}")]
    Name { name: String, why: &'static str },
    #[error("{name}: {why}")]
    Setting { name: String, why: &'static str },
    #[error("there is no home folder, and HF_HOME does not say where the hub's cache is")]
    NoHome,

    #[error("{name} is not in the cache, and HF_HUB_OFFLINE keeps it from being fetched")]
    Offline { name: Box<ModelName> },
    #[error("{name} is not in the cache")]
    NotCached { name: Box<ModelName> },

    #[error("{repo}: there is no such repository, or it is private{}", said(message))]
    NoRepo { repo: RepoName, has_token: bool, message: String },
    #[error("{repo}: its owner gives it to those who have asked{}", said(message))]
    Gated { repo: RepoName, has_token: bool, message: String },
    #[error("{repo}: there is no revision {revision:?}")]
    NoRevision { repo: RepoName, revision: String },
    #[error("{repo}: there is no file {file:?}")]
    NoFile { repo: RepoName, file: String },
    #[error("{host} answers {status}{}", said(message))]
    Status { host: String, status: u16, message: String, retry_after: Option<u64> },
    #[error("{host}: {why}")]
    Network { host: String, why: String, is_transient: bool },
    #[error("{host} answers with {why}")]
    Answer { host: String, why: String },

    #[error("{repo}: there is no GGUF file{}", left_aside(*aside))]
    NoGguf { repo: RepoName, aside: usize },
    #[error("{name}: {}; there {}", not_found(wanted_quant.as_deref()), what_is_there(choices))]
    NoMatch { name: Box<ModelName>, wanted_quant: Option<String>, choices: Vec<String> },
    #[error("{name} may be any of {}", choices.join(", "))]
    Ambiguous { name: Box<ModelName>, choices: Vec<String> },
    #[error("{repo}: {file:?} is one of {count} files, of which part {part} is missing")]
    NoPart { repo: RepoName, file: String, part: usize, count: usize },
    #[error("{repo}: {file:?} is one of {count} files, where at most {most} are allowed")]
    Parts { repo: RepoName, file: String, count: usize, most: usize },

    #[error(
        "{}: {} are needed, {} are free",
        folder.display(), bytes(*needed), bytes(*free)
    )]
    Space { folder: PathBuf, needed: u64, free: u64 },
    #[error("{file}: what has come has another SHA-256 than the hub says: {found}, not {wanted}")]
    Hash { file: String, found: String, wanted: String },
    #[error("{file}: {found} bytes are there, where the hub says {wanted}")]
    Size { file: String, found: u64, wanted: u64 },
    #[error(transparent)]
    Header(#[from] GgufError),
    #[error("{file}: its header has not ended after {bytes} bytes")]
    LongHeader { file: String, bytes: u64 },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: a link, where a file or folder of the cache is needed", path.display())]
    Link { path: PathBuf },
    #[error("{name} is being fetched by another process")]
    InUse { name: Box<ModelName> },
}

impl HubError {
    /// What the system says of a file or folder.
    pub fn io(path: &Path, source: io::Error) -> HubError {
        HubError::Io { path: path.to_owned(), source }
    }

    /// Whether the same request may go well in a moment.
    pub fn is_transient(&self) -> bool {
        match self {
            HubError::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504),
            HubError::Network { is_transient, .. } => *is_transient,
            _ => false,
        }
    }
}

/// What the hub says itself, where it says anything.
fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" (it says: {message})") }
}

fn left_aside(aside: usize) -> String {
    match aside {
        0 => String::new(),
        n => format!(", but for {n} whose names are no safe paths"),
    }
}

fn not_found(quant: Option<&str>) -> String {
    match quant {
        Some(quant) => format!("nothing is called {quant:?}"),
        None => "there are several models and none is Q4_K_M".to_owned(),
    }
}

fn what_is_there(choices: &[String]) -> String {
    match choices {
        [one] => format!("is {one}"),
        several => format!("are {}", several.join(", ")),
    }
}

/// Powers of ten, as disks and downloads are counted.
fn bytes(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{n} bytes"),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}
