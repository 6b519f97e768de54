//! What a repository holds, as the hub says it.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::HubError;
use super::choose::{Choice, choose, models};
use super::client::{Client, Facts, Subject};
use super::name::{ModelName, is_commit, is_safe_path, is_sha256};

/// Most bytes of an answer: repositories of a thousand files have well under 1 MiB.
const MAX_JSON: u64 = 16 << 20;

/// The parts of the answer that matter; it has many more.
#[derive(Deserialize)]
struct Revision {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    #[serde(alias = "oid")]
    sha256: Option<String>,
    size: Option<u64>,
}

/// A file of a model on the hub.
#[derive(Clone, Debug)]
pub struct RemoteFile {
    /// Its path within the repository: safe to join to a folder.
    pub path: String,
    pub bytes: u64,
    /// What its blob is called in the cache: its SHA-256, or the number that git gives a small file.
    pub etag: String,
}

impl RemoteFile {
    /// The SHA-256 that its bytes must have, where that is known.
    pub fn sha256(&self) -> Option<&str> {
        is_sha256(&self.etag).then_some(&*self.etag)
    }
}

/// A model on the hub.
#[derive(Clone, Debug)]
pub struct Found {
    pub commit: String,
    pub quant: Option<String>,
    pub files: Vec<RemoteFile>,
}

/// Asks what the hub says of a file: by its commit and its path.
type FileFacts<'f> = &'f dyn Fn(&str, &str) -> Result<Facts, HubError>;

/// Asks the hub for the model that a name means.
///
/// # Errors
/// No answer, one that makes no sense, or no such model.
pub fn find(client: &Client, name: &ModelName) -> Result<Found, HubError> {
    let subject = Subject { repo: &name.repo, revision: name.revision(), file: None };
    let json = client.listing(subject, MAX_JSON)?;
    let facts =
        |commit: &str, path: &str| client.facts(Subject { revision: commit, file: Some(path), ..subject });
    understood(&json, name, &facts)
}

/// What the hub's answer means; of a file whose size or hash it leaves out, `facts` of commit and path.
///
/// # Errors
/// An answer that makes no sense, or no such model.
pub fn understood(json: &[u8], name: &ModelName, facts: FileFacts<'_>) -> Result<Found, HubError> {
    let bad = |why: String| HubError::Answer { host: "the hub".to_owned(), why };
    let revision: Revision =
        serde_json::from_slice(json).map_err(|error| bad(format!("JSON that makes no sense: {error}")))?;
    if !is_commit(&revision.sha) {
        return Err(bad("no commit".to_owned()));
    }
    let (safe, unsafe_paths): (Vec<Sibling>, Vec<Sibling>) =
        revision.siblings.into_iter().partition(|sibling| is_safe_path(&sibling.rfilename));
    let choice = choose(name, models(safe.iter().map(|sibling| &*sibling.rfilename)));
    let Choice { quant, files, .. } = choice.map_err(|error| match error {
        HubError::NoGguf { repo, .. } => HubError::NoGguf { repo, aside: unsafe_paths.len() },
        error => error,
    })?;
    let of_file = |path: String| {
        let sibling = safe.iter().find(|sibling| sibling.rfilename == path);
        remote_file(&|path| facts(&revision.sha, path), path, sibling)
    };
    let files = files.into_iter().map(of_file).collect::<Result<Vec<_>, _>>()?;
    // Parts of a split differ: each has its number. The second would wait for the first one's lock.
    let hashes: BTreeSet<_> = files.iter().map(|file| &file.etag).collect();
    if hashes.len() < files.len() {
        return Err(bad("the same hash for two files of a split".to_owned()));
    }
    Ok(Found { commit: revision.sha, quant, files })
}

/// A file's size and name in the cache: where the listing leaves them out, the file itself is asked for.
fn remote_file(
    facts: &dyn Fn(&str) -> Result<Facts, HubError>,
    path: String,
    listed: Option<&Sibling>,
) -> Result<RemoteFile, HubError> {
    let large = listed.and_then(|sibling| sibling.lfs.as_ref());
    let sha256 = large.and_then(|large| large.sha256.clone());
    let etag = sha256.or_else(|| listed?.blob_id.clone().filter(|_| large.is_none()));
    let bytes = large.and_then(|large| large.size).or_else(|| listed?.size);
    let (bytes, etag) = match (bytes, etag) {
        (Some(bytes), Some(etag)) => (bytes, etag),
        _ => {
            let facts = facts(&path)?;
            let missing = |what: &str| HubError::Answer {
                host: "the hub".to_owned(),
                why: format!("no {what} of {path:?}"),
            };
            (facts.bytes.ok_or_else(|| missing("size"))?, facts.etag.ok_or_else(|| missing("hash"))?)
        }
    };
    // It becomes the name of a file.
    if !is_sha256(&etag) && !is_commit(&etag) {
        let why = format!("the hash {etag:?} of {path:?}");
        return Err(HubError::Answer { host: "the hub".to_owned(), why });
    }
    Ok(RemoteFile { path, bytes, etag })
}
