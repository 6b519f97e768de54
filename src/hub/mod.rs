//! HUB: models by name. The cache folder that the hub's own tools have, and what fetches into it.
//!
//! `hf:USER/REPO[:QUANT]` names a model (see [`ModelName`]). [`Hub::cached`] finds it in the cache, without a
//! connection; [`Hub::pull`] fetches it. The one file that opens connections is [`client`]; only the faces
//! stand above this layer, so that nothing which reads or runs a model can open one.

mod cache;
mod choose;
mod client;
mod error;
mod heads;
mod listing;
mod name;
mod partial;
mod pull;
mod remove;
mod settings;

pub use cache::{CachedModel, Unfinished};
pub use error::HubError;
pub use heads::Heads;
pub use name::{ModelName, RepoName, Selector};
pub use pull::{Event, Pull};
pub use remove::Removal;
pub use settings::Settings;

use cache::Cache;

/// What an answer of the hub means where nothing more can be asked, for fuzz targets: path, bytes and blob of
/// each file of a model.
///
/// # Errors
/// An answer that makes no sense, or no such model.
#[doc(hidden)]
pub fn understood(json: &[u8], name: &ModelName) -> Result<Vec<(String, u64, String)>, HubError> {
    let found = listing::understood(json, name, &|_, _| Err(HubError::NoHome))?;
    Ok(found.files.into_iter().map(|file| (file.path, file.bytes, file.etag)).collect())
}

/// The hub as this machine sees it: its address, its cache folder, the user's token.
#[derive(Debug)]
pub struct Hub {
    settings: Settings,
    cache: Cache,
}

impl Hub {
    /// By settings.
    pub fn new(settings: Settings) -> Hub {
        let cache = Cache::new(settings.cache.clone());
        Hub { settings, cache }
    }

    /// By the environment: see [`Settings::from_env`].
    ///
    /// # Errors
    /// A variable that makes no sense, or no home folder.
    pub fn from_env() -> Result<Hub, HubError> {
        Settings::from_env().map(Hub::new)
    }

    /// Whether no connection may be opened.
    pub fn is_offline(&self) -> bool {
        self.settings.offline
    }

    /// The address of a repository, for people.
    pub fn page(&self, repo: &RepoName) -> String {
        format!("{}/{repo}", self.settings.endpoint)
    }
}
