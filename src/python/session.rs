//! A sequence that is kept: tokens, what the model remembers of them, and the logits behind the last.

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use super::errors::Fault;
use super::model::Core;
use super::wait::{Left, detached, lock};
use super::{arrays, saved};
use crate::engine::{Engine, EngineError, Sampler, Sequence, StopMatcher};
use crate::model::{Logits, NoObserver};
use crate::server::{Continuation, Facts};
use crate::text::Utf8Joiner;

/// What a session holds.
#[derive(Clone)]
pub struct State {
    pub sequence: Sequence,
    /// The last token that was drawn, which has not been run yet.
    pending: Option<u32>,
}

impl State {
    pub fn new(sequence: Sequence) -> State {
        State { sequence, pending: None }
    }

    /// All tokens, the last one drawn included.
    pub fn tokens(&self) -> Vec<u32> {
        self.sequence.tokens().iter().copied().chain(self.pending).collect()
    }

    /// Runs what has not been run, and these tokens. What is broken off stands behind the last whole pass.
    pub fn feed(&mut self, engine: &mut Engine<'_>, ids: &[u32], left: &Left) -> Result<(), Fault> {
        let tokens: Vec<u32> = self.pending.into_iter().chain(ids.iter().copied()).collect();
        if tokens.is_empty() {
            return Ok(());
        }
        let past = self.sequence.past();
        let (sequence, mut nobody) = (&mut self.sequence, NoObserver);
        let fed = engine.feed_observed(sequence, &tokens, Logits::Last, &mut nobody, |_| left.flow());
        if self.sequence.past() > past {
            self.pending = None;
        }
        Ok(fed?)
    }

    /// Goes back to the first tokens: with the logits behind the last of them.
    fn rewind(&mut self, engine: &mut Engine<'_>, to: usize, left: &Left) -> Result<(), Fault> {
        let tokens = self.tokens();
        if to > tokens.len() {
            let message = format!("there are {} tokens to go back in, not {to}", tokens.len());
            return Err(Fault::usage(message));
        }
        if to == tokens.len() {
            return Ok(());
        }
        self.pending = None;
        let there = self.sequence.rewind(to.saturating_sub(1));
        self.feed(engine, &tokens[there..to], left)
    }
}

/// See the module.
#[pyclass(frozen, module = "wayinfer._native")]
pub struct Session {
    core: Arc<Core>,
    /// None once it is dropped.
    state: Arc<Mutex<Option<State>>>,
}

impl Session {
    pub fn new(core: &Arc<Core>, state: State) -> Session {
        Session { core: Arc::clone(core), state: Arc::new(Mutex::new(Some(state))) }
    }

    pub fn empty(py: Python<'_>, core: &Arc<Core>) -> PyResult<Session> {
        let state = core.on_engine(py, |engine, _| Ok(State::new(engine.sequence())))?;
        Ok(Session::new(core, state))
    }

    /// Does something with it and the engine.
    fn with<R: Send + 'static>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Engine<'_>, &mut State, &Left) -> Result<R, Fault> + Send + 'static,
    ) -> PyResult<R> {
        let state = Arc::clone(&self.state);
        self.core.on_engine(py, move |engine, left| {
            let mut state = lock(&state);
            work(engine, state.as_mut().ok_or_else(dropped)?, left)
        })
    }

    /// Looks at it. A pass of its own may be under way, which is waited for.
    fn look<R: Send>(&self, py: Python<'_>, at: impl FnOnce(&State) -> R + Send) -> PyResult<R> {
        let seen = detached(py, || lock(&self.state).as_ref().map(at));
        Ok(seen.ok_or_else(dropped)?)
    }
}

fn dropped() -> Fault {
    Fault::usage("the session has been dropped")
}

#[pymethods]
impl Session {
    /// Tokens that it has.
    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.tokens(py)?.len())
    }

    /// Their ids.
    fn tokens(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        self.look(py, State::tokens)
    }

    /// Runs tokens behind those that it has.
    fn append(&self, py: Python<'_>, ids: Vec<u32>) -> PyResult<()> {
        self.with(py, move |engine, state, left| state.feed(engine, &ids, left))
    }

    /// The logits behind the last token: `[vocabulary]`, little-endian f32.
    fn logits<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyByteArray>> {
        let logits = self.with(py, |engine, state, left| {
            state.feed(engine, &[], left)?;
            let vocab = engine.model().spec().vocab;
            let last = state.sequence.logits().rchunks(vocab).next();
            Ok(last.ok_or(EngineError::NoLogits)?.to_vec())
        })?;
        arrays::bytes(py, &logits)
    }

    /// Goes on with it, as the fields of a completion's request say.
    fn generate(&self, py: Python<'_>, fields: &str) -> PyResult<Generation> {
        let facts = self.core.facts(py)?;
        let Continuation { mut sampler, max_tokens, stop } = self.core.continuation(py, fields)?;
        sampler.read(self.tokens(py)?);
        let run = Run {
            sampler,
            left: max_tokens.unwrap_or(usize::MAX),
            stops: StopMatcher::new(stop),
            bytes: Utf8Joiner::default(),
            over: false,
            facts,
        };
        let session = Session { core: Arc::clone(&self.core), state: Arc::clone(&self.state) };
        Ok(Generation { session, run: Arc::new(Mutex::new(run)) })
    }

    /// Draws a token, which it does not get.
    fn sample(&self, py: Python<'_>, fields: &str) -> PyResult<u32> {
        let mut sampler = self.core.continuation(py, fields)?.sampler;
        sampler.read(self.tokens(py)?);
        self.with(py, move |engine, state, left| {
            state.feed(engine, &[], left)?;
            let drawn = engine.generate(&mut state.sequence, &mut sampler).next();
            Ok(drawn.ok_or(EngineError::NoLogits)??.id)
        })
    }

    /// Another one with the same past.
    fn fork(&self, py: Python<'_>) -> PyResult<Session> {
        let state = self.look(py, State::clone)?;
        Ok(Session::new(&self.core, state))
    }

    /// Goes back to its first tokens.
    fn rewind(&self, py: Python<'_>, to: usize) -> PyResult<()> {
        self.with(py, move |engine, state, left| state.rewind(engine, to, left))
    }

    /// Writes it to a folder.
    fn save(&self, py: Python<'_>, folder: std::path::PathBuf) -> PyResult<()> {
        let id = saved::model_id(py, &self.core)?;
        self.with(py, move |engine, state, left| {
            state.feed(engine, &[], left)?;
            saved::save(engine, &state.sequence, &id, &folder)
        })
    }

    /// Frees its memory.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(lock(&self.state).take()));
    }
}

/// Draws tokens one after another.
struct Run {
    sampler: Sampler,
    /// Tokens that may still be drawn.
    left: usize,
    stops: StopMatcher,
    /// Bytes of a character that has not come whole.
    bytes: Utf8Joiner,
    over: bool,
    facts: Arc<Facts>,
}

/// A token (the last item may have none), the text that is certain with it, and why it ended where it did.
type Step = (Option<u32>, String, Option<&'static str>);

impl Run {
    /// The end: what was held back comes with it.
    fn end(&mut self, id: Option<u32>, reason: &'static str) -> Step {
        self.over = true;
        let rest = self.bytes.finish();
        let text = self.stops.push(&rest) + &self.stops.finish();
        (id, text, Some(reason))
    }

    fn step(
        &mut self,
        engine: &mut Engine<'_>,
        state: &mut State,
        left: &Left,
    ) -> Result<Option<Step>, Fault> {
        if self.over {
            return Ok(None);
        }
        let is_full = state.pending.is_some() && state.sequence.past() == state.sequence.context();
        if self.left == 0 || is_full {
            return Ok(Some(self.end(None, "length")));
        }
        state.feed(engine, &[], left)?;
        let drawn = engine.generate(&mut state.sequence, &mut self.sampler).next();
        let id = drawn.ok_or(EngineError::NoLogits)??.id;
        state.pending = Some(id);
        self.left -= 1;
        if self.facts.ends.contains(&id) {
            return Ok(Some(self.end(Some(id), "stop")));
        }
        let text = self.bytes.push(self.facts.tokenizer.piece(id, false).unwrap_or_default());
        let text = self.stops.push(&text);
        self.over = self.stops.stopped();
        Ok(Some((Some(id), text, self.over.then_some("stop"))))
    }
}

/// See [`Session::generate`].
#[pyclass(frozen, module = "wayinfer._native")]
pub struct Generation {
    session: Session,
    run: Arc<Mutex<Run>>,
}

#[pymethods]
impl Generation {
    /// The next token, the text that has come with it, and why it ended where it did; None behind that.
    fn step(&self, py: Python<'_>) -> PyResult<Option<Step>> {
        let run = Arc::clone(&self.run);
        self.session.with(py, move |engine, state, left| lock(&run).step(engine, state, left))
    }
}
