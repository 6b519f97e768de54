//! The models that are served: loaded when they are asked for, and those that were not used for the longest
//! time unloaded where memory is short.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tokio::sync::oneshot;

use super::error::{ApiError, ErrorKind};
use super::worker::{Opened, Worker, run};

/// Where models come from.
pub trait Models: Send + Sync {
    /// All that may be asked for.
    fn list(&self) -> Vec<Listed>;

    /// What the headers of a model's files say.
    ///
    /// # Errors
    /// Why they cannot be read.
    fn describe(&self, name: &str) -> Result<Described, String>;

    /// Bytes that a model would take, streamed as little as may be.
    fn bytes(&self, name: &str) -> u64;

    /// Bytes that all may take together.
    fn budget(&self) -> u64;

    /// Loads a model, where others take so many bytes, and runs it: returns when `run` does.
    ///
    /// # Errors
    /// Why it cannot be loaded.
    fn open(&self, name: &str, taken: u64, run: &mut dyn FnMut(Opened<'_>)) -> Result<(), NotOpened>;

    /// Something that its user should know.
    fn warn(&self, what: &str);
}

/// Why a model is not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotOpened {
    pub why: String,
    /// It may be opened where others take less.
    pub for_memory: bool,
}

/// A model that may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub file_bytes: u64,
    /// When its file was changed last, in seconds since 1970.
    pub created: u64,
}

/// What is known of a model without loading it.
#[derive(Clone, Debug, Default)]
pub struct Described {
    pub architecture: String,
    pub parameters: u64,
    /// The type of most of its weights, by its name.
    pub quantization: String,
    /// Positions that a sequence may have here.
    pub context: usize,
    /// The source of its chat template.
    pub template: Option<String>,
    /// Numbers, booleans and short texts of its metadata.
    pub metadata: Map<String, Value>,
}

/// See the module.
pub struct Registry {
    models: Arc<dyn Models>,
    /// Any name means the only model.
    any_name: bool,
    /// Requests that may wait for a model beside those that run.
    queue: usize,
    loaded: Mutex<HashMap<String, Loaded>>,
    /// Those that were asked for.
    described: Mutex<HashMap<String, Arc<Described>>>,
    /// One model is loaded at a time.
    loading: tokio::sync::Mutex<()>,
    closed: AtomicBool,
}

struct Loaded {
    worker: Worker,
    thread: thread::JoinHandle<()>,
    bytes: u64,
    used: Instant,
}

impl Registry {
    pub fn new(models: Arc<dyn Models>, any_name: bool, queue: usize) -> Registry {
        let (loaded, loading) = (Mutex::default(), tokio::sync::Mutex::default());
        let (described, closed) = (Mutex::default(), AtomicBool::new(false));
        Registry { models, any_name, queue, loaded, described, loading, closed }
    }

    pub fn list(&self) -> Vec<Listed> {
        self.models.list()
    }

    fn loaded(&self) -> MutexGuard<'_, HashMap<String, Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that are loaded, in the order of their names.
    pub fn workers(&self) -> Vec<Worker> {
        let mut workers: Vec<Worker> = self.loaded().values().map(|loaded| loaded.worker.clone()).collect();
        workers.sort_by(|a, b| a.facts.name.cmp(&b.facts.name));
        workers
    }

    /// What a client's name means.
    fn resolve(&self, asked: &str) -> Result<String, ApiError> {
        let list = self.models.list();
        // Ollama's clients add a tag.
        let names = [asked, asked.strip_suffix(":latest").unwrap_or(asked)];
        if let Some(listed) = list.iter().find(|listed| names.contains(&&*listed.name)) {
            return Ok(listed.name.clone());
        }
        match list.first() {
            Some(only) if self.any_name || (asked.is_empty() && list.len() == 1) => Ok(only.name.clone()),
            _ => {
                let message = format!("model: there is no {asked:?} here; /v1/models lists what there is");
                Err(ApiError {
                    field: Some("model".to_owned()),
                    ..ApiError::new(ErrorKind::NoModel, message)
                })
            }
        }
    }

    /// The model of this name, and what is known of it without loading it.
    ///
    /// # Errors
    /// Where there is none of this name, or its headers cannot be read.
    pub async fn describe(&self, asked: &str) -> Result<(Listed, Arc<Described>), ApiError> {
        let name = self.resolve(asked)?;
        let listed = self.models.list().into_iter().find(|listed| listed.name == name);
        let listed = listed.ok_or_else(|| ApiError::internal("the model has gone"))?;
        let described = || self.described.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = described().get(&name) {
            return Ok((listed, Arc::clone(known)));
        }
        let models = Arc::clone(&self.models);
        let read = tokio::task::spawn_blocking(move || models.describe(&name).map(|made| (name, made))).await;
        let (name, made) = read.map_err(ApiError::internal)?.map_err(ApiError::internal)?;
        let made = Arc::new(made);
        described().insert(name, Arc::clone(&made));
        Ok((listed, made))
    }

    fn running(&self, name: &str) -> Option<Worker> {
        let mut all = self.loaded();
        let loaded = all.get_mut(name)?;
        if loaded.thread.is_finished() {
            all.remove(name);
            return None;
        }
        loaded.used = Instant::now();
        Some(loaded.worker.clone())
    }

    /// The model of this name, where it is loaded; looking on is no use of it.
    ///
    /// # Errors
    /// Where there is none of this name.
    pub fn loaded_one(&self, asked: &str) -> Result<Option<Worker>, ApiError> {
        let name = self.resolve(asked)?;
        Ok(self.loaded().get(&name).map(|loaded| loaded.worker.clone()))
    }

    /// The model of this name, which is loaded where it is not yet.
    ///
    /// # Errors
    /// Where there is none of this name, or it cannot be loaded.
    pub async fn get(&self, asked: &str) -> Result<Worker, ApiError> {
        let name = self.resolve(asked)?;
        if let Some(worker) = self.running(&name) {
            return Ok(worker);
        }
        let _one = self.loading.lock().await;
        if let Some(worker) = self.running(&name) {
            return Ok(worker);
        }
        if self.closed.load(Ordering::Relaxed) {
            return Err(ApiError::new(ErrorKind::ShuttingDown, "the server is being shut down"));
        }
        let bytes = self.models.bytes(&name);
        self.make_room(bytes).await;
        loop {
            let taken = self.taken();
            let NotOpened { why, for_memory } = match self.load(&name, bytes, taken).await {
                Ok(worker) => return Ok(worker),
                Err(error) => error,
            };
            match self.oldest_idle().filter(|_| for_memory) {
                Some(idle) => self.unload(&idle).await,
                None => return Err(ApiError::internal(format!("model {name} cannot be loaded: {why}"))),
            }
        }
    }

    /// Bytes that the loaded ones take.
    fn taken(&self) -> u64 {
        self.loaded().values().map(|loaded| loaded.bytes).sum()
    }

    /// The one that has nothing to do and was used longest ago.
    fn oldest_idle(&self) -> Option<String> {
        let all = self.loaded();
        let idle = all.iter().filter(|(_, loaded)| loaded.worker.taken() == 0);
        idle.min_by_key(|(_, loaded)| loaded.used).map(|(name, _)| name.clone())
    }

    /// Unloads models until there is room, those that have nothing to do and were used longest ago first.
    async fn make_room(&self, bytes: u64) {
        while self.taken().saturating_add(bytes) > self.models.budget() {
            let Some(idle) = self.oldest_idle() else { return };
            self.unload(&idle).await;
        }
    }

    async fn unload(&self, name: &str) {
        let Some(loaded) = self.loaded().remove(name) else { return };
        loaded.worker.stop();
        while !loaded.thread.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Loads a model on a thread of its own.
    async fn load(&self, name: &str, bytes: u64, taken: u64) -> Result<Worker, NotOpened> {
        let (ready, loaded) = oneshot::channel();
        let (models, queue, of) = (Arc::clone(&self.models), self.queue, name.to_owned());
        let serve = move || {
            let mut ready = Some(ready);
            let opened = models.open(&of, taken, &mut |opened| {
                let Some(ready) = ready.take() else { return };
                let tell = |worker| {
                    let _ = ready.send(Ok(worker));
                };
                run(opened, queue, tell, &|what| models.warn(what));
            });
            if let (Err(error), Some(ready)) = (opened, ready) {
                let _ = ready.send(Err(error));
            }
        };
        let thread = thread::Builder::new().name("engine".to_owned()).spawn(serve);
        let failed = |why: String| NotOpened { why, for_memory: false };
        let thread = thread.map_err(|error| failed(format!("no thread: {error}")))?;
        let worker = loaded.await.map_err(|_| failed("its thread has ended".to_owned()))??;
        let entry = Loaded { worker: worker.clone(), thread, bytes, used: Instant::now() };
        self.loaded().insert(name.to_owned(), entry);
        Ok(worker)
    }

    /// Has all workers end, and loads none any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.loaded().values().for_each(|loaded| loaded.worker.stop());
    }

    /// Whether all workers have ended.
    pub fn is_quiet(&self) -> bool {
        self.loaded().values().all(|loaded| loaded.thread.is_finished())
    }
}
