//! Beginnings of texts whose pages are kept in a folder: another run that begins alike reads them back.
//!
//! The unit is a full page of 128 positions; what a sequence remembers of it lies in a file for each
//! [part](KeptPart). A file's name is a chained hash: of the model, of all settings that results depend on,
//! and of all tokens up to the page's end. States of recurrences are large: of a sequence the last one at a
//! page's end is kept. What was read back gives the bits of a run that computed it, on any CPU; a file that
//! is not what it has to be is not used.

mod folder;
mod format;
mod model_id;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io::ErrorKind;
use std::time::{Duration, Instant, SystemTime};

use super::{Engine, Sequence};
use crate::kernels::ops::PAGE;
use crate::model::{KeptNeeds, KeptPart, MemorySpec, SequenceState};

pub use folder::Folder as PrefixFolder;
use folder::{PAGE_ENDING, hex};
use format::{Checks, Hash, Header, Refused};
pub use model_id::{ModelId, RecordedId};

/// See the module.
pub struct PrefixCache {
    folder: PrefixFolder,
    /// Bytes that the folder may hold.
    limit: u64,
    model: ModelId,
    settings: Hash,
    parts: Vec<KeptPart>,
    /// Files that are there and are not to be used.
    refused: HashSet<String>,
    /// Nothing can be written any more.
    stopped: bool,
    /// It has been told that a text does not fit.
    small: bool,
    warnings: Vec<String>,
    checks: Checks,
}

/// What was read back.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Restored {
    /// Positions that a sequence has now and had not before.
    pub positions: usize,
    /// How far another run's text is the same, where that is further than a sequence can go on from: it can
    /// the next time, if it is kept there.
    pub parts_at: Option<usize>,
    /// Bytes read.
    pub bytes: u64,
    pub time: Duration,
}

/// A page of a part, as a file.
struct PageFile<'a> {
    part: &'a KeptPart,
    page: usize,
    name: String,
    header: Header,
}

/// Why a file cannot be read, and which it is.
type Failed = (String, Refused);

impl PrefixCache {
    /// The cache in a folder that may hold so many bytes, for sequences of an engine that runs this model.
    pub fn new(folder: PrefixFolder, limit: u64, model: ModelId, engine: &Engine<'_>) -> PrefixCache {
        PrefixCache {
            folder,
            limit,
            model,
            settings: settings(engine),
            parts: SequenceState::kept_parts(engine.model.spec()),
            refused: HashSet::new(),
            stopped: false,
            small: false,
            warnings: Vec::new(),
            checks: Checks::All,
        }
    }

    /// Whether a sequence can only go on from the ends of pages at which it was kept: it has a recurrence or
    /// a window.
    pub fn keeps_ends_alone(&self) -> bool {
        self.trunk().any(|part| part.needs != KeptNeeds::All)
    }

    /// What there is to warn of since it was last asked.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    fn trunk(&self) -> impl Iterator<Item = &KeptPart> {
        self.parts.iter().filter(|part| !part.drafts)
    }

    /// Brings a sequence, which has seen the first of these tokens or none, as far into them as files are
    /// there; the last of them is always left to be run. Where they take it no further it stays as it is.
    pub fn restore(&mut self, sequence: &mut Sequence, tokens: &[u32]) -> Restored {
        let started = Instant::now();
        let past = if tokens.starts_with(sequence.tokens()) { sequence.past() } else { 0 };
        let most = tokens.len().saturating_sub(1).min(sequence.context()) / PAGE;
        let keys = self.chain(&tokens[..most * PAGE]);
        let mut empty = sequence.state().clone();
        empty.rewind(0);
        // Another process may remove a file at any time.
        let mut gone = HashSet::new();
        loop {
            let (end, same) = self.longest(&empty, &keys, &gone);
            let parts_at = Some(same * PAGE).filter(|&at| at > past && same > end);
            if end * PAGE <= past {
                return Restored { parts_at, ..Restored::default() };
            }
            match self.read(&empty, &keys[..end], sequence, tokens) {
                Ok(bytes) => {
                    let positions = end * PAGE - past;
                    return Restored { positions, parts_at, bytes, time: started.elapsed() };
                }
                Err((name, Refused::Io(error))) if error.kind() == ErrorKind::NotFound => {
                    gone.insert(name);
                }
                // It would be so with every file.
                Err((_, Refused::Io(error))) if error.kind() == ErrorKind::OutOfMemory => {
                    self.warnings.push("no memory for what the cache holds: it is computed anew".to_owned());
                    return Restored::default();
                }
                Err((name, why)) => {
                    self.refuse(&name, &why);
                    gone.insert(name);
                }
            }
        }
    }

    /// Writes what a sequence remembers of its full pages and no file holds yet. Where that cannot be done,
    /// it is a warning, and nothing more is written.
    pub fn keep(&mut self, sequence: &Sequence) {
        if self.stopped {
            return;
        }
        let keys = self.chain(&sequence.tokens()[..sequence.past() / PAGE * PAGE]);
        let mut files = self.files_of(sequence, &keys);
        let small = self.fit(&mut files);
        let kept = self.write(sequence.state(), &files);
        let now = SystemTime::now();
        for PageFile { page, name, .. } in &files {
            // Of a text, what comes last goes first.
            self.folder.touch(name, now - Duration::from_micros(*page as u64));
        }
        if let Some(what) = small.filter(|_| !self.small) {
            self.small = true;
            self.warnings.push(what);
        }
        match kept {
            Ok(names) => names.iter().for_each(|name| {
                self.refused.remove(name);
            }),
            Err(error) => {
                let folder = self.folder.path().display();
                self.warnings.push(format!("{folder}: nothing more is kept in the cache: {error}"));
                self.stopped = true;
            }
        }
    }

    /// Leaves what fits the folder, where all of a text does not: its beginning, which is of use alone unless
    /// a sequence goes on from ends alone. What there is to tell of it.
    fn fit(&self, files: &mut Vec<PageFile<'_>>) -> Option<String> {
        let bytes: u64 = files.iter().map(|file| file.header.file_bytes()).sum();
        if bytes <= self.limit {
            return None;
        }
        files.sort_by_key(|file| file.page);
        let mut left = if self.keeps_ends_alone() { 0 } else { self.limit };
        let fits = |file: &&PageFile<'_>| match left.checked_sub(file.header.file_bytes()) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        };
        files.truncate(files.iter().take_while(fits).count());
        let (limit, kept) = (self.limit, files.last().map_or(0, |file| (file.page + 1) * PAGE));
        Some(format!("this text takes {bytes} bytes of a cache of {limit}: {kept} tokens of it are kept"))
    }

    /// A file that is there and is not what it has to be makes room for one that is.
    fn refuse(&mut self, name: &str, why: &Refused) {
        if self.refused.is_empty() {
            let path = self.folder.path().join(name);
            self.warnings.push(format!("{}: not used, and computed anew: {why}", path.display()));
        }
        self.refused.insert(name.to_owned());
        self.folder.remove(name);
    }

    /// The keys of all pages of these tokens.
    fn chain(&self, tokens: &[u32]) -> Vec<Hash> {
        let mut key = blake3::Hasher::new();
        key.update(&self.model.0).update(&self.settings);
        let mut key = *key.finalize().as_bytes();
        let next = |page: &[u32]| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&key);
            for token in page {
                hasher.update(&token.to_le_bytes());
            }
            key = *hasher.finalize().as_bytes();
            key
        };
        tokens.chunks_exact(PAGE).map(next).collect()
    }

    /// The file of a page of a part.
    fn file<'a>(&'a self, part: &'a KeptPart, page: usize, key: &Hash, bytes: u64) -> PageFile<'a> {
        let number = self.parts.iter().position(|other| other == part).unwrap_or_default();
        let header = Header {
            part: number as u32,
            page: page as u64,
            bytes,
            model: self.model.0,
            settings: self.settings,
            key: *key,
        };
        PageFile { part, page, name: format!("{}-{number}.{PAGE_ENDING}", hex(key)), header }
    }

    /// The most pages that all files are there for, and the most that an earlier text has begun with.
    fn longest(&self, state: &SequenceState, keys: &[Hash], gone: &HashSet<String>) -> (usize, usize) {
        let is_there = |part: &KeptPart, page: usize| {
            let name = self.file(part, page, &keys[page], state.kept_bytes(part, page)).name;
            !gone.contains(&name) && !self.refused.contains(&name) && self.folder.bytes(&name).is_some()
        };
        let all = |page: &usize| {
            self.trunk().filter(|part| part.needs == KeptNeeds::All).all(|part| is_there(part, *page))
        };
        let most = (0..keys.len()).take_while(all).count();
        let mut others = self.trunk().filter(|part| part.needs != KeptNeeds::All).collect::<Vec<_>>();
        // What a state is there for is soonest seen.
        others.sort_by_key(|part| part.needs != KeptNeeds::Last);
        let goes_on = |end: &usize| {
            others.iter().all(|part| part.needs.pages(*end).rev().all(|page| is_there(part, page)))
        };
        ((1..=most).rev().find(goes_on).unwrap_or(0), most)
    }

    /// Reads all parts at the end of so many pages and gives them to a sequence; returns the bytes read.
    fn read(
        &self,
        empty: &SequenceState,
        keys: &[Hash],
        sequence: &mut Sequence,
        tokens: &[u32],
    ) -> Result<u64, Failed> {
        let mut state = empty.clone();
        let mut bytes = 0;
        let mut used = Vec::new();
        for part in self.trunk() {
            self.read_part(&mut state, part, keys, &mut used)?;
        }
        // Without these the block does not draft.
        let mut block = true;
        for part in self.parts.iter().filter(|part| part.drafts) {
            if block && self.read_part(&mut state, part, keys, &mut used).is_err() {
                block = false;
            }
        }
        if !block {
            self.parts.iter().filter(|part| part.drafts).for_each(|part| state.forget_kept(part));
        }
        let now = SystemTime::now();
        for PageFile { page, name, header, .. } in used {
            bytes += header.file_bytes();
            self.folder.touch(&name, now - Duration::from_micros(page as u64));
        }
        sequence.resume(state, &tokens[..keys.len() * PAGE], block);
        Ok(bytes)
    }

    /// Reads what a sequence needs of a part to go on behind pages of these keys.
    fn read_part<'a>(
        &'a self,
        state: &mut SequenceState,
        part: &'a KeptPart,
        keys: &[Hash],
        used: &mut Vec<PageFile<'a>>,
    ) -> Result<(), Failed> {
        state.begin_kept(part, keys.len());
        for page in part.needs.pages(keys.len()) {
            let file = self.file(part, page, &keys[page], state.kept_bytes(part, page));
            let open = self.folder.read(&file.name).map_err(Refused::from);
            let read = open.and_then(|open| {
                format::read(&file.header, open, self.checks, |from| state.read_kept(part, page, from))
            });
            if let Err(error) = read {
                return Err((file.name, error));
            }
            used.push(file);
        }
        Ok(())
    }

    /// The files of what a sequence still has of its full pages.
    fn files_of(&self, sequence: &Sequence, keys: &[Hash]) -> Vec<PageFile<'_>> {
        let state = sequence.state();
        let mut files = Vec::new();
        for part in &self.parts {
            let filled = if part.drafts { sequence.drafts_from() / PAGE } else { keys.len() };
            let there = (0..filled.min(keys.len())).filter(|&page| state.has_kept(part, page));
            let first = match part.needs {
                KeptNeeds::Last => there.clone().next_back().unwrap_or(0),
                KeptNeeds::All | KeptNeeds::Window(_) => 0,
            };
            let file = |page| self.file(part, page, &keys[page], state.kept_bytes(part, page));
            files.extend(there.filter(|&page| page >= first).map(file));
        }
        files
    }

    /// Writes those files that are not there, and makes room for them before.
    fn write(&self, state: &SequenceState, files: &[PageFile<'_>]) -> std::io::Result<Vec<String>> {
        let is_new = |file: &&PageFile<'_>| {
            self.refused.contains(&file.name)
                || self.folder.bytes(&file.name) != Some(file.header.file_bytes())
        };
        let new: Vec<_> = files.iter().filter(is_new).collect();
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = new.iter().map(|file| file.header.file_bytes()).sum();
        let spared = files.iter().map(|file| file.name.as_str()).collect();
        self.folder.make_room(bytes, self.limit, &spared)?;
        for PageFile { part, page, name, header } in &new {
            self.folder
                .write(name, |out| format::write(header, out, |out| state.write_kept(part, *page, out)))?;
        }
        Ok(new.iter().map(|file| file.name.clone()).collect())
    }

    /// Uses files whatever their checksums say.
    #[cfg(test)]
    fn without_checksums(mut self) -> PrefixCache {
        self.checks = Checks::Header;
        self
    }
}

/// A hash of all that the bits of a sequence's memory depend on but the model and the tokens.
fn settings(engine: &Engine<'_>) -> Hash {
    let spec = engine.model.spec();
    settings_with(engine, &spec.memories[..spec.trunk_memories])
}

/// The same of what sequences remember in these slots.
pub(super) fn settings_with(engine: &Engine<'_>, memories: &[MemorySpec]) -> Hash {
    let spec = engine.model.spec();
    let ropes: Vec<bool> = spec.rope_steps.iter().map(|&step| engine.context > step).collect();
    let text = format!(
        "{}\npages of {PAGE}\n{}\nkv {}\n{memories:?}\n{ropes:?}",
        env!("CARGO_PKG_VERSION"),
        spec.architecture,
        engine.kv,
    );
    *blake3::hash(text.as_bytes()).as_bytes()
}
