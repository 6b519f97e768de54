//! A model that is open.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes};
use serde_json::json;

use super::errors::{Fault, caught};
use super::reply::Reply;
use super::session::Session;
use super::wait::{Left, apart, wait_for};
use super::{arrays, saved};
use crate::cli::embedded::{self, Kind};
use crate::engine::{Engine, EngineError, ModelId, Request, Scheduler};
use crate::gguf::Gguf;
use crate::model::Logits;
use crate::server::{Facts, Local};
use crate::text::EncodeOptions;
use crate::verify::perplexity::{WindowOptions, Windows, measure, text_tokens};
use crate::verify::{Selection, WeightRows};

/// What a model and its sessions share.
pub struct Core {
    local: Local,
    /// What it was opened by.
    pub path: PathBuf,
    /// Which model it is, once somebody has asked.
    pub id: Mutex<Option<ModelId>>,
    closing: Arc<AtomicBool>,
}

impl Core {
    /// What is known of it. A model whose engine has ended by a bug is loaded again.
    pub fn facts(&self, py: Python<'_>) -> PyResult<Arc<Facts>> {
        Ok(py.detach(|| self.local.facts()).map_err(Fault::from)?)
    }

    /// Has something done with the scheduler, between two of its passes, and waits for it.
    pub fn on_scheduler<R: Send + 'static>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Scheduler<'_>) -> Result<R, Fault> + Send + 'static,
    ) -> PyResult<R> {
        self.on_scheduler_until(py, work, || ())
    }

    fn on_scheduler_until<R: Send + 'static>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Scheduler<'_>) -> Result<R, Fault> + Send + 'static,
        leave: impl FnOnce(),
    ) -> PyResult<R> {
        let (sender, results) = channel();
        let work = Box::new(move |scheduler: &mut Scheduler<'_>| {
            let _ = sender.send(caught(|| work(scheduler)));
        });
        py.detach(|| self.local.with_scheduler(work)).map_err(Fault::from)?;
        wait_for(py, results, leave)
    }

    /// The same with the engine. `work` is told by a flag when nobody waits any more.
    pub fn on_engine<R: Send + 'static>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Engine<'_>, &Left) -> Result<R, Fault> + Send + 'static,
    ) -> PyResult<R> {
        let left = Left { model: Arc::clone(&self.closing), ..Left::default() };
        let caller = Arc::clone(&left.caller);
        let work = move |scheduler: &mut Scheduler<'_>| work(scheduler.engine_mut(), &left);
        self.on_scheduler_until(py, work, || caller.store(true, Ordering::Relaxed))
    }

    /// Hands a request to the scheduler; waits for nothing.
    pub fn go_on(&self, request: Request) -> Result<(), Fault> {
        Ok(self.local.go_on(request)?)
    }

    /// The headers, read anew: a model may be large, and they are asked for seldom.
    pub fn headers(&self) -> Result<Gguf, Fault> {
        Ok(embedded::headers(&self.path)?)
    }

    /// How the fields of a completion's request have a text continued.
    pub fn continuation(&self, py: Python<'_>, fields: &str) -> PyResult<crate::server::Continuation> {
        Ok(py.detach(|| self.local.continuation(fields.as_bytes())).map_err(Fault::from)?)
    }
}

/// Bytes of logits that a pass leaves at most.
const MOST_LOGITS: usize = 64 << 20;

/// See the module.
#[pyclass(frozen, module = "wayinfer._native")]
pub struct Model {
    core: Arc<Core>,
}

#[pymethods]
impl Model {
    /// Opens a model by its path and by options of `wayinfer serve`; `program` is WayInfer's own program.
    #[new]
    fn new(
        py: Python<'_>,
        path: String,
        options: Vec<(String, String)>,
        verbose: bool,
        program: PathBuf,
    ) -> PyResult<Model> {
        let mut args = vec![format!("--model={path}")];
        args.extend(options.into_iter().map(|(name, value)| format!("--{name}={value}")));
        let local = apart(py, move || Ok(embedded::open(&args, verbose, program)?))?;
        Ok(Model {
            core: Arc::new(Core { local, path: path.into(), id: Mutex::default(), closing: Arc::default() }),
        })
    }

    /// Asks as a client of the server would; waits for nothing.
    fn request(&self, method: &str, path: &str, body: &[u8]) -> PyResult<Reply> {
        let reply = self.core.local.ask(method, path, body.to_vec());
        let wrong = || Fault::usage(format!("{method} {path} is no request"));
        Ok(Reply::new(reply.ok_or_else(wrong)?, &self.core))
    }

    /// What is known of the model, as JSON.
    fn facts(&self, py: Python<'_>) -> PyResult<String> {
        let facts = self.core.facts(py)?;
        let tokenizer = &facts.tokenizer;
        let told = json!({
            "name": facts.name,
            "architecture": facts.architecture,
            "parameters": facts.parameters,
            "quantization": facts.quantization,
            "file_bytes": facts.file_bytes,
            "context": facts.context,
            "trained_context": facts.trained_context,
            "vocab": facts.vocab,
            "embd": facts.embd,
            "bos": tokenizer.bos(),
            "eos": tokenizer.eos(),
            "adds_bos": tokenizer.adds_bos(),
            "ends": &facts.ends[..],
            "template": facts.template.as_ref().map(|template| &template.source),
        });
        Ok(told.to_string())
    }

    /// The ids of a text's tokens.
    fn encode(
        &self,
        py: Python<'_>,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> PyResult<Vec<u32>> {
        let facts = self.core.facts(py)?;
        let options = EncodeOptions { add_special, parse_special };
        Ok(py.detach(|| facts.tokenizer.encode(text, options)).map_err(Fault::of)?)
    }

    /// The bytes that tokens stand for; those of control tokens where `special` is set.
    fn decode<'py>(&self, py: Python<'py>, ids: Vec<u32>, special: bool) -> PyResult<Bound<'py, PyBytes>> {
        let facts = self.core.facts(py)?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= facts.vocab) {
            let message = format!("token {id} is outside the vocabulary of {}", facts.vocab);
            return Err(Fault::usage(message).into());
        }
        let bytes = py.detach(|| facts.tokenizer.decode_bytes(&ids, special));
        Ok(PyBytes::new(py, &bytes))
    }

    /// What `wayinfer inspect --json` prints.
    fn inspect(&self, py: Python<'_>, arrays: bool) -> PyResult<String> {
        let core = Arc::clone(&self.core);
        apart(py, move || Ok(embedded::inspect(&core.headers()?, arrays)?))
    }

    /// The values of a tensor: little-endian f32.
    fn values<'py>(&self, py: Python<'py>, name: String) -> PyResult<Bound<'py, PyByteArray>> {
        let core = Arc::clone(&self.core);
        let values = apart(py, move || {
            let gguf = core.headers()?;
            let tensor = embedded::tensor(&gguf, &name);
            let tensor = tensor.map_err(|error| Fault::from(error).with_kind(Kind::Usage))?;
            let rows = WeightRows::open(&gguf, tensor, &Selection::default());
            let rows = rows.map_err(Fault::of)?;
            let mut values = arrays::room([rows.rows() as usize, rows.cols() as usize], "a tensor")?;
            for chunk in rows.chunks() {
                values.extend(chunk.map_err(Fault::of)?);
            }
            Ok(values)
        })?;
        arrays::bytes(py, &values)
    }

    /// The logits behind each token: `[tokens][vocabulary]`, little-endian f32.
    fn logits<'py>(&self, py: Python<'py>, tokens: Vec<u32>) -> PyResult<Bound<'py, PyByteArray>> {
        let logits = self.core.on_engine(py, move |engine, left| {
            let vocab = engine.model().spec().vocab;
            let rows = (MOST_LOGITS / size_of::<f32>() / vocab.max(1)).clamp(1, engine.batch());
            let mut sequence = engine.sequence();
            let (past, context) = (0, engine.context());
            if tokens.len() > context {
                return Err(EngineError::ContextFull { tokens: tokens.len(), past, context }.into());
            }
            let mut logits = arrays::room([tokens.len(), vocab], "logits")?;
            for tokens in tokens.chunks(rows) {
                if left.is_set() {
                    return Err(EngineError::Interrupted.into());
                }
                engine.feed(&mut sequence, tokens, Logits::All)?;
                logits.extend_from_slice(sequence.logits());
            }
            Ok(logits)
        })?;
        arrays::bytes(py, &logits)
    }

    /// Perplexity of a text, its standard error, tokens scored and windows; see `wayinfer perplexity`.
    fn perplexity(
        &self,
        py: Python<'_>,
        text: &str,
        window: usize,
        stride: Option<usize>,
        special: bool,
    ) -> PyResult<(f64, f64, u64, usize)> {
        let facts = self.core.facts(py)?;
        let cut = py.detach(|| {
            let (ids, bos) = text_tokens(&facts.tokenizer, text, special).map_err(Fault::of)?;
            let options = WindowOptions { context: window, stride, most: None, bos };
            Windows::new(ids, options).map_err(|error| Fault::usage(error.to_string()))
        });
        let windows = cut?;
        self.core.on_engine(py, move |engine, left| {
            let (window, context) = (windows.window(), engine.context());
            if window > context {
                let error = EngineError::ContextFull { tokens: window, past: 0, context };
                return Err(error.into());
            }
            let measured = measure(&windows, engine, None, None, &mut |_| left.flow());
            let perplexity = measured.map_err(Fault::of)?.perplexity;
            let mean = perplexity.perplexity();
            Ok((mean.mean, mean.error, perplexity.all.count, windows.count()))
        })
    }

    /// A sequence of its own, empty.
    fn session(&self, py: Python<'_>) -> PyResult<Session> {
        Session::empty(py, &self.core)
    }

    /// A sequence that was saved to a folder.
    fn load_session(&self, py: Python<'_>, folder: PathBuf) -> PyResult<Session> {
        saved::load(py, &self.core, folder)
    }

    /// Ends all requests and frees the memory.
    fn close(&self, py: Python<'_>) {
        self.core.closing.store(true, Ordering::Relaxed);
        py.detach(|| self.core.local.close());
    }
}

/// A folder as an error names it.
pub fn named(path: &Path, what: impl std::fmt::Display) -> String {
    format!("{}: {what}", path.display())
}
