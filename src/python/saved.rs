//! Sessions in folders: the tokens in a file of JSON, and what the model remembers of their full pages in
//! files of a prefix cache. What is missing or damaged of the latter is computed anew from the tokens: the
//! bits are the same.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pyo3::prelude::*;
use serde::{Deserialize, Serialize};

use super::errors::Fault;
use super::model::{Core, named};
use super::session::Session;
use super::wait::{Left, apart, lock};
use crate::cli::embedded::{self, Kind};
use crate::engine::{Engine, EngineError, Keeper, ModelId, PrefixCache, PrefixFolder, Sequence};

/// The file of the tokens.
const TOKENS: &str = "session.json";
/// Bytes of it at most.
const LONGEST: u64 = 64 << 20;
/// Raised with every change of what it holds.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Saved {
    format: u32,
    /// A hash of the model's files.
    model: String,
    tokens: Vec<u32>,
}

fn broken(path: &Path, what: impl std::fmt::Display) -> Fault {
    Fault::new(Kind::File, named(path, what))
}

/// Tells a reader that nobody waits for it any more.
#[derive(Default)]
struct LeftBehind(Left);

impl Drop for LeftBehind {
    fn drop(&mut self) {
        self.0.caller.store(true, Ordering::Relaxed);
    }
}

/// Which model it is: a hash of its files, which are read whole for it, once: a record is kept in the user's
/// folder of caches.
pub fn model_id(py: Python<'_>, core: &Arc<Core>) -> PyResult<ModelId> {
    if let Some(id) = *lock(&core.id) {
        return Ok(id);
    }
    let left = LeftBehind::default();
    let (flag, of) = (left.0.clone(), Arc::clone(core));
    let id = apart(py, move || {
        let gguf = of.headers()?;
        let none = || Fault::new(Kind::File, "there is no home, hence no folder for what is known of models");
        let records = embedded::cache_folder().ok_or_else(none)?.join("models");
        let folder = PrefixFolder::open(&records).map_err(|error| broken(&records, error))?;
        let id = ModelId::of(&gguf, &folder, |_, _| flag.flow()).map_err(|error| broken(&of.path, error))?;
        Ok(id.0)
    })?;
    *lock(&core.id) = Some(id);
    Ok(id)
}

/// Writes a sequence to a folder, which is made where it is not there.
pub fn save(engine: &Engine<'_>, sequence: &Sequence, id: &ModelId, path: &Path) -> Result<(), Fault> {
    let folder = PrefixFolder::open(path).map_err(|error| broken(path, error))?;
    let mut cache = PrefixCache::new(folder.clone(), u64::MAX, *id, engine);
    cache.keep(sequence);
    if let Some(warning) = cache.take_warnings().into_iter().next() {
        return Err(broken(path, warning));
    }
    let saved = Saved { format: FORMAT, model: id.hex(), tokens: sequence.tokens().to_vec() };
    let text = serde_json::to_vec(&saved).map_err(Fault::of)?;
    folder.write(TOKENS, |out| out.write_all(&text)).map_err(|error| broken(path, error))
}

/// The tokens of a session in a folder, which is of this model.
fn read(path: &Path, id: &ModelId, vocab: usize) -> Result<Vec<u32>, Fault> {
    let file = path.join(TOKENS);
    let mut text = Vec::new();
    let opened = File::open(&file).and_then(|opened| opened.take(LONGEST + 1).read_to_end(&mut text));
    opened.map_err(|error| broken(&file, error))?;
    if text.len() as u64 > LONGEST {
        return Err(broken(&file, format!("longer than {LONGEST} bytes")));
    }
    let saved: Saved = serde_json::from_slice(&text)
        .map_err(|error| broken(&file, format!("not a session that was saved: {error}")))?;
    if saved.format != FORMAT {
        return Err(broken(&file, format!("of the format {}, where {FORMAT} is known", saved.format)));
    }
    if saved.model != id.hex() {
        return Err(broken(&file, "the session is of another model"));
    }
    match saved.tokens.iter().find(|&&id| id as usize >= vocab) {
        Some(id) => Err(broken(&file, format!("token {id} is outside the vocabulary of {vocab}"))),
        None => Ok(saved.tokens),
    }
}

/// A session from a folder: read back as far as there are pages, and run from there.
pub fn load(py: Python<'_>, core: &Arc<Core>, path: PathBuf) -> PyResult<Session> {
    let id = model_id(py, core)?;
    let vocab = core.facts(py)?.vocab;
    let tokens = py.detach(|| read(&path, &id, vocab))?;
    let text = core.on_scheduler(py, move |scheduler| {
        let mut text = scheduler.new_text();
        let (past, context) = (0, text.sequence().context());
        if tokens.len() > context {
            return Err(EngineError::ContextFull { tokens: tokens.len(), past, context }.into());
        }
        let folder = PrefixFolder::open(&path).map_err(|error| broken(&path, error))?;
        // Where there is no room for it now, it waits for room to be run in.
        if scheduler.make_room_for(tokens.len()) {
            let mut cache = PrefixCache::new(folder, u64::MAX, id, scheduler.engine());
            cache.restore(text.sequence_mut(), &tokens);
        }
        text.set_text(&tokens);
        Ok(Keeper::new(text))
    })?;
    let session = Session::new(core, text);
    session.run(py)?;
    Ok(session)
}
