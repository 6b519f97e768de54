//! Fetching a model into the cache.

use std::path::PathBuf;
use std::time::Duration;

use super::cache::Repo;
use super::client::{Client, Subject};
use super::heads::{self, Heads};
use super::listing::{self, Found, RemoteFile};
use super::name::{ModelName, Selector};
use super::partial::{CHUNK, Partial};
use super::{Hub, HubError};
use crate::gguf::{Gguf, GgufError};
use crate::store::os::{Os, System};

/// Tries in a row that bring nothing, of a request and of a file's bytes.
const TRIES: u32 = 3;
const FILE_TRIES: u32 = 8;
/// Longest pause between two, unless the host asks for one.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Longest pause that a host may ask for.
const MAX_ASKED: Duration = Duration::from_secs(120);

/// What happens while a model is fetched.
#[derive(Debug)]
pub enum Event<'a> {
    /// Another process fetches a file of it and is waited for.
    Waiting,
    /// A request failed and is made again after a pause.
    Again { why: &'a HubError, pause: Duration },
    /// What was there is read and hashed: bytes of that file.
    Checking { done: u64, total: u64 },
    /// Bytes that are there of all files.
    Fetched(u64),
    /// What was there has another hash: the file is fetched anew.
    Anew { file: &'a str },
}

/// Hears of events.
pub type Tell<'a> = &'a mut dyn FnMut(Event<'_>);

/// A model that is being fetched. What has come stays when this ends, for the next time.
pub struct Pull {
    client: Client,
    name: ModelName,
    repo: Repo,
    found: Found,
    parts: Vec<Part>,
    pause: Duration,
}

struct Part {
    file: RemoteFile,
    /// `None` where it is in the cache.
    partial: Option<Partial>,
}

impl Hub {
    /// Looks a model up on the hub and holds the locks of what is missing of it.
    ///
    /// # Errors
    /// No connection or none allowed, no such model, a cache that cannot be written.
    pub fn pull(&self, name: &ModelName, tell: Tell<'_>) -> Result<Pull, HubError> {
        if self.settings.offline {
            return Err(HubError::Offline { name: Box::new(name.clone()) });
        }
        let client = Client::new(&self.settings)?;
        let pause = self.settings.pause;
        let found = patiently(TRIES, pause, tell, &mut || listing::find(&client, name))?;
        let repo = self.cache.repo(&name.repo);
        let mut pull = Pull { client, name: name.clone(), repo, parts: Vec::new(), found, pause };
        for file in &pull.found.files {
            let partial = pull.begin(file, tell)?;
            pull.parts.push(Part { file: file.clone(), partial });
        }
        Ok(pull)
    }
}

impl Pull {
    /// What is there of a file that is missing.
    fn begin(&self, file: &RemoteFile, tell: Tell<'_>) -> Result<Option<Partial>, HubError> {
        let present = || self.repo.present(&self.found.commit, &file.path, &file.etag, file.bytes);
        if present().is_some() {
            return Ok(None);
        }
        self.repo.make_folders()?;
        let lock = self.repo.lock(&file.etag, &mut || tell(Event::Waiting))?;
        // Whoever held it may have fetched it.
        if present().is_some() {
            return Ok(None);
        }
        let path = self.repo.blobs().join(format!("{}.incomplete", file.etag));
        Partial::open(&path, file.bytes, lock).map(Some)
    }

    /// The model's name, by its quantisation where that is known.
    pub fn name(&self) -> ModelName {
        match (&self.name.selector, &self.found.quant) {
            (Selector::Default, Some(quant)) => self.name.with(Selector::Quant(quant.clone())),
            _ => self.name.clone(),
        }
    }

    /// The commit that its revision is.
    pub fn commit(&self) -> &str {
        &self.found.commit
    }

    /// Its files: paths within the repository, and their bytes.
    pub fn files(&self) -> impl ExactSizeIterator<Item = (&str, u64)> {
        self.parts.iter().map(|part| (&*part.file.path, part.file.bytes))
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.file.bytes).fold(0, u64::saturating_add)
    }

    /// Bytes that are still to be fetched.
    pub fn missing_bytes(&self) -> u64 {
        let missing =
            self.parts.iter().filter_map(|part| Some(part.file.bytes - part.partial.as_ref()?.bytes()));
        missing.fold(0, u64::saturating_add)
    }

    /// Bytes that are free where it is going, where the system says so.
    pub fn free_bytes(&self) -> Option<u64> {
        Os::free_disk_bytes(&self.repo.root)
    }

    /// Refuses what there is no room for.
    ///
    /// # Errors
    /// More bytes missing than are free.
    pub fn check_space(&self) -> Result<(), HubError> {
        let needed = self.missing_bytes();
        match self.free_bytes() {
            Some(free) if free < needed => {
                Err(HubError::Space { folder: self.repo.root.clone(), needed, free })
            }
            _ => Ok(()),
        }
    }

    /// Fetches the headers and no more, and checks that they are sound; `None` where all files are there.
    ///
    /// # Errors
    /// No connection, or headers that are no model's.
    pub fn heads(&mut self, tell: Tell<'_>) -> Result<Option<Heads>, HubError> {
        if self.parts.iter().all(|part| part.partial.is_none()) {
            return Ok(None);
        }
        match self.fetch_heads(tell) {
            // What is wrong may be what was there before.
            Err(HubError::Header(_)) if self.restart_resumed(tell)? => self.fetch_heads(tell).map(Some),
            heads => heads.map(Some),
        }
    }

    fn fetch_heads(&mut self, tell: Tell<'_>) -> Result<Heads, HubError> {
        // The folder is there only while nothing is waited for, but for headers that are longer than most.
        for i in 0..self.parts.len() {
            let wanted = heads::FIRST.min(self.parts[i].file.bytes);
            self.fetch_up_to(i, wanted, tell)?;
        }
        let mut heads = Heads::new(&self.repo.root)?;
        for i in 0..self.parts.len() {
            let RemoteFile { path, bytes, etag } = self.parts[i].file.clone();
            let present = self.repo.present(&self.found.commit, &path, &etag, bytes);
            heads.add(&path, bytes, &mut |wanted| {
                self.fetch_up_to(i, wanted, tell)?;
                let partial = self.parts[i].partial.as_ref().map(|partial| partial.path().to_owned());
                let there = partial.or_else(|| present.clone());
                there.ok_or_else(|| HubError::NotCached { name: Box::new(self.name.clone()) })
            })?;
        }
        Gguf::open(heads.path()).map_err(|error| self.renamed(error, &heads))?;
        Ok(heads)
    }

    /// Drops what was there before of all files; whether there was any.
    fn restart_resumed(&mut self, tell: Tell<'_>) -> Result<bool, HubError> {
        let mut any = false;
        for Part { file, partial } in &mut self.parts {
            if let Some(partial) = partial.as_mut().filter(|partial| partial.is_resumed()) {
                tell(Event::Anew { file: &file.path });
                partial.restart()?;
                any = true;
            }
        }
        Ok(any)
    }

    /// A failure about a header's file that names the file on the hub.
    fn renamed(&self, error: GgufError, heads: &Heads) -> HubError {
        let name = error.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // All files of a model lie in one folder.
        let path = match heads.path().parent() == error.path.parent() {
            true => self.parts[0].file.path.rsplit_once('/').map(|(folder, _)| format!("{folder}/{name}")),
            false => None,
        };
        let path = path.unwrap_or(name);
        GgufError { path: self.name.with(Selector::File(path)).to_string().into(), ..error }.into()
    }

    /// Fetches all that is missing, checks it and puts it in its place; returns the file to open.
    ///
    /// # Errors
    /// No connection, a full disk, or bytes that are not what the hub says they are.
    pub fn finish(mut self, tell: Tell<'_>) -> Result<PathBuf, HubError> {
        let mut first = None;
        for i in 0..self.parts.len() {
            self.fetch(i, tell)?;
            let RemoteFile { path, etag, .. } = &self.parts[i].file;
            let placed = self.repo.place(&self.found.commit, path, etag)?;
            first.get_or_insert(placed);
        }
        self.repo.note(self.name.revision(), &self.found.commit)?;
        first.ok_or_else(|| HubError::NotCached { name: Box::new(self.name.clone()) })
    }

    /// Removes what this has begun; what was there before stays.
    pub fn give_up(self) {
        let partials = self.parts.into_iter().filter_map(|part| part.partial);
        partials.filter(|partial| !partial.is_resumed()).for_each(Partial::remove);
    }

    /// Fetches a file whole.
    fn fetch(&mut self, i: usize, tell: Tell<'_>) -> Result<(), HubError> {
        let file = self.parts[i].file.clone();
        loop {
            let Some(partial) = &mut self.parts[i].partial else { return Ok(()) };
            let total = partial.bytes();
            if file.sha256().is_some() {
                partial.hash_what_is_there(&mut |done| tell(Event::Checking { done, total }))?;
            }
            self.fetch_up_to(i, file.bytes, tell)?;
            let Some(mut partial) = self.parts[i].partial.take() else { return Ok(()) };
            let found = partial.sha256()?;
            match file.sha256() {
                Some(wanted) if found != wanted => {
                    // Another program may have left something else there; what comes from the hub is told of.
                    if !partial.is_resumed() {
                        partial.remove();
                        let (file, wanted) = (file.path.clone(), wanted.to_owned());
                        return Err(HubError::Hash { file, found, wanted });
                    }
                    tell(Event::Anew { file: &file.path });
                    partial.restart()?;
                    self.parts[i].partial = Some(partial);
                }
                _ => return partial.place(&self.repo.blobs().join(&file.etag)),
            }
        }
    }

    /// Fetches a file's bytes up to there, as long as some come.
    fn fetch_up_to(&mut self, i: usize, upto: u64, tell: Tell<'_>) -> Result<(), HubError> {
        let mut tries = 0;
        loop {
            let before = self.part_bytes(i);
            if before >= upto {
                return Ok(());
            }
            let error = match self.fetch_once(i, upto, tell) {
                Ok(()) => HubError::Network {
                    host: self.name.repo.to_string(),
                    why: "the connection ended early".to_owned(),
                    is_transient: true,
                },
                Err(error) => error,
            };
            if self.part_bytes(i) >= upto {
                return Ok(());
            }
            // Where some came, the next may come at once.
            tries = if self.part_bytes(i) > before { 0 } else { tries + 1 };
            wait(tries, FILE_TRIES, self.pause, error, tell)?;
        }
    }

    fn part_bytes(&self, i: usize) -> u64 {
        self.parts[i].partial.as_ref().map_or(u64::MAX, Partial::bytes)
    }

    /// One request for a file's bytes, and what comes of it.
    fn fetch_once(&mut self, i: usize, upto: u64, tell: Tell<'_>) -> Result<(), HubError> {
        // What there is of all others.
        let others = self.bytes().saturating_sub(self.missing_bytes()).saturating_sub(self.part_bytes(i));
        let Part { file, partial } = &mut self.parts[i];
        let Some(partial) = partial else { return Ok(()) };
        let subject = Subject { repo: &self.name.repo, revision: &self.found.commit, file: Some(&file.path) };
        let mut bytes = self.client.bytes(subject, partial.bytes(), upto)?;
        if let Some(found) = bytes.total.filter(|&total| total != file.bytes) {
            return Err(HubError::Size { file: file.path.clone(), found, wanted: file.bytes });
        }
        let mut at = bytes.from;
        let mut buffer = vec![0; CHUNK];
        while at < upto {
            // What a host sends from the start though it was asked for a range is there up to some place.
            let to = if at < partial.bytes() { partial.bytes() } else { upto };
            let room = (to - at).min(CHUNK as u64) as usize;
            let n = match bytes.read(&mut buffer[..room])? {
                0 => break,
                n => n,
            };
            if at >= partial.bytes() {
                partial.append(&buffer[..n])?;
                tell(Event::Fetched(others + partial.bytes()));
            }
            at += n as u64;
        }
        Ok(())
    }
}

/// Makes a request until it goes well, as long as it may.
fn patiently<T>(
    most: u32,
    pause: Duration,
    tell: Tell<'_>,
    request: &mut dyn FnMut() -> Result<T, HubError>,
) -> Result<T, HubError> {
    let mut tries = 0;
    loop {
        match request() {
            Ok(answer) => return Ok(answer),
            Err(error) => {
                tries += 1;
                wait(tries, most, pause, error, tell)?;
            }
        }
    }
}

/// Waits before the next try, longer each time, or as long as the host asks for.
///
/// # Errors
/// What has failed, where no other try may go better.
fn wait(tries: u32, most: u32, pause: Duration, error: HubError, tell: Tell<'_>) -> Result<(), HubError> {
    if !error.is_transient() || tries >= most {
        return Err(error);
    }
    let own =
        tries.checked_sub(1).map_or(Duration::ZERO, |n| pause.saturating_mul(1 << n.min(16)).min(MAX_PAUSE));
    let pause = match error {
        HubError::Status { retry_after: Some(seconds), .. } => Duration::from_secs(seconds),
        _ => own,
    };
    if pause > MAX_ASKED {
        return Err(error);
    }
    tell(Event::Again { why: &error, pause });
    std::thread::sleep(pause);
    Ok(())
}
