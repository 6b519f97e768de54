//! A text that is kept, with what the model remembers of it. Requests in the scheduler's passes run its
//! tokens, beside those of all others.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};

use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use super::errors::Fault;
use super::generation::Generation;
use super::model::Core;
use super::wait::{wait, wait_for};
use super::{arrays, saved};
use crate::engine::{End, EngineError, Event, Keeper, Loan, Request, Sampler, SamplerConfig, Sequence, Sink};

/// See the module.
#[pyclass(frozen, module = "wayinfer._native")]
pub struct Session {
    core: Arc<Core>,
    text: Arc<Keeper>,
}

impl Session {
    pub fn new(core: &Arc<Core>, text: Arc<Keeper>) -> Session {
        Session { core: Arc::clone(core), text }
    }

    pub fn empty(py: Python<'_>, core: &Arc<Core>) -> PyResult<Session> {
        let text = core.on_scheduler(py, |scheduler| Ok(Keeper::new(scheduler.new_text())))?;
        Ok(Session::new(core, text))
    }

    /// Waits for the text, which a request may have.
    fn lend(&self, py: Python<'_>) -> PyResult<Loan> {
        let mut wanted = self.text.ask();
        let loan = wait(py, |time| wanted.within(time), || ())?;
        Ok(loan.ok_or_else(dropped)?)
    }

    /// The same, once all of its tokens have been run.
    fn lend_run(&self, py: Python<'_>) -> PyResult<Loan> {
        loop {
            let loan = self.lend(py)?;
            if loan.rest().is_empty() {
                return Ok(loan);
            }
            self.read(py, loan, &[])?;
        }
    }

    /// Runs all of its tokens.
    pub fn run(&self, py: Python<'_>) -> PyResult<()> {
        self.lend_run(py).map(drop)
    }

    /// Has a request read these tokens behind those of the text. Of one that is broken off, the text has what
    /// was run.
    fn read(&self, py: Python<'_>, loan: Loan, ids: &[u32]) -> PyResult<()> {
        let tokens = loan.rest().len() + ids.len();
        let (past, context) = (loan.sequence().past(), loan.sequence().context());
        if tokens > context - past {
            return Err(Fault::from(EngineError::ContextFull { tokens, past, context }).into());
        }
        if tokens == 0 {
            return Ok(());
        }
        let (sender, results) = channel();
        let left = Arc::new(AtomicBool::new(false));
        let request = Request {
            prompt: [&loan.tokens()[..], ids].concat(),
            text: Some(loan),
            sampler: Sampler::new(SamplerConfig::greedy()).map_err(Fault::of)?,
            max_tokens: 0,
            ends: Arc::new([]),
            logprobs: None,
            prompt_logprobs: None,
            sink: Box::new(Reader { results: sender, left: Arc::clone(&left) }),
        };
        py.detach(|| self.core.go_on(request))?;
        wait_for(py, results, || left.store(true, Ordering::Relaxed))
    }
}

pub fn dropped() -> Fault {
    Fault::usage("the session has been dropped")
}

/// Whoever waits for tokens to be read.
struct Reader {
    results: Sender<Result<(), Fault>>,
    left: Arc<AtomicBool>,
}

impl Sink for Reader {
    fn send(&mut self, event: Event) -> ControlFlow<()> {
        if let Event::End { why, .. } = event {
            let result = match why {
                Ok(End::Left | End::Waits) => Err(EngineError::Interrupted.into()),
                Ok(End::Stopped) => Err(Fault::ended()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.into()),
            };
            // Nobody may listen any more.
            let _ = self.results.send(result);
        }
        ControlFlow::Continue(())
    }

    fn is_gone(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }
}

/// The logits behind the last token of a sequence.
fn last_logits(sequence: &Sequence, vocab: usize) -> Result<&[f32], Fault> {
    Ok(sequence.logits().rchunks(vocab).next().ok_or(EngineError::NoLogits)?)
}

#[pymethods]
impl Session {
    /// Tokens that it has.
    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.lend(py)?.len())
    }

    /// Their ids.
    fn tokens(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        Ok(self.lend(py)?.tokens())
    }

    /// Runs tokens behind those that it has.
    fn append(&self, py: Python<'_>, ids: Vec<u32>) -> PyResult<()> {
        let loan = self.lend(py)?;
        self.read(py, loan, &ids)
    }

    /// The logits behind the last token: `[vocabulary]`, little-endian f32.
    fn logits<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyByteArray>> {
        let vocab = self.core.facts(py)?.vocab;
        let loan = self.lend_run(py)?;
        arrays::bytes(py, last_logits(loan.sequence(), vocab)?)
    }

    /// Goes on with it, as the fields of a completion's request say.
    fn generate(&self, py: Python<'_>, fields: &str) -> PyResult<Generation> {
        let facts = self.core.facts(py)?;
        let mut how = self.core.continuation(py, fields)?;
        how.sampler.read(self.tokens(py)?);
        Ok(Generation::new(&self.core, &self.text, how, facts))
    }

    /// Draws a token, which it does not get.
    fn sample(&self, py: Python<'_>, fields: &str) -> PyResult<u32> {
        let mut sampler = self.core.continuation(py, fields)?.sampler;
        sampler.read(self.tokens(py)?);
        let mut loan = self.lend_run(py)?;
        self.core.on_engine(py, move |engine, _| {
            let drawn = engine.generate(loan.sequence_mut(), &mut sampler).next();
            Ok(drawn.ok_or(EngineError::NoLogits)??.id)
        })
    }

    /// Another one with the same past.
    fn fork(&self, py: Python<'_>) -> PyResult<Session> {
        Ok(Session::new(&self.core, Keeper::new(self.lend(py)?.fork())))
    }

    /// Goes back to its first tokens.
    fn rewind(&self, py: Python<'_>, to: usize) -> PyResult<()> {
        let mut loan = self.lend(py)?;
        let tokens = loan.len();
        if to > tokens {
            let message = format!("there are {tokens} tokens to go back in, not {to}");
            return Err(Fault::usage(message).into());
        }
        loan.rewind(to);
        Ok(())
    }

    /// Writes it to a folder.
    fn save(&self, py: Python<'_>, folder: std::path::PathBuf) -> PyResult<()> {
        let id = saved::model_id(py, &self.core)?;
        let loan = self.lend_run(py)?;
        self.core.on_engine(py, move |engine, _| saved::save(engine, loan.sequence(), &id, &folder))
    }

    /// Frees its memory.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.text.give_up());
    }
}
