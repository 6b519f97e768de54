//! A text as it goes on, token by token.
//!
//! A request in the scheduler's passes draws a token when one is asked for. It runs that token without being
//! asked, so that the next one is all but there when the reader comes back, and nothing has to be taken back
//! where the reader does not: the text is the same whether its last token has been run or not. Where no other
//! token is asked for by then, or somebody else wants the text, the request is over; the next token is
//! another request's.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::errors::Fault;
use super::model::Core;
use super::session::dropped;
use super::wait::{lock, wait};
use crate::engine::{End, EngineError, Event, Keeper, Loan, Request, Sampler, Sink, StopMatcher, Wanted};
use crate::server::{Continuation, Facts};
use crate::text::Utf8Joiner;

/// A token (the last item may have none), the text that is certain with it, and why it ended where it did.
type Step = (Option<u32>, String, Option<&'static str>);

/// Makes steps of tokens.
struct Steps {
    /// Tokens that may still be drawn.
    left: usize,
    stops: StopMatcher,
    /// Bytes of a character that has not come whole.
    bytes: Utf8Joiner,
    over: bool,
    facts: Arc<Facts>,
}

impl Steps {
    /// The end: what was held back comes with it.
    fn end(&mut self, id: Option<u32>, reason: &'static str) -> Step {
        self.over = true;
        let rest = self.bytes.finish();
        let text = self.stops.push(&rest) + &self.stops.finish();
        (id, text, Some(reason))
    }

    fn step(&mut self, id: u32) -> Step {
        self.left = self.left.saturating_sub(1);
        if self.facts.ends.contains(&id) {
            return self.end(Some(id), "stop");
        }
        let text = self.bytes.push(self.facts.tokenizer.piece(id, false).unwrap_or_default());
        let text = self.stops.push(&text);
        self.over = self.stops.stopped();
        (Some(id), text, self.over.then_some("stop"))
    }
}

/// Tokens that are asked for and not drawn; none once no more are drawn.
struct Demand(Mutex<Option<usize>>);

impl Demand {
    /// Asks for more tokens; whether they will come.
    fn ask(&self, tokens: usize) -> bool {
        let mut asked = lock(&self.0);
        *asked = asked.map(|asked| asked.saturating_add(tokens));
        asked.is_some()
    }

    /// Whether a token is asked for, which is drawn then; where none is, no more are.
    fn take(&self) -> bool {
        let mut asked = lock(&self.0);
        *asked = asked.and_then(|asked| asked.checked_sub(1));
        asked.is_some()
    }

    /// No more tokens are drawn.
    fn close(&self) {
        *lock(&self.0) = None;
    }
}

/// What a request tells its reader.
enum Told {
    Step(Step),
    /// It is over, and the text may go on.
    Rests(Rest),
    Failed(Fault),
}

/// What goes on from one request to the next, beside the text.
struct Rest {
    sampler: Box<Sampler>,
    steps: Steps,
}

/// Tells a reader how its request goes.
struct Teller {
    /// None once it is over.
    steps: Option<Steps>,
    demand: Arc<Demand>,
    left: Arc<AtomicBool>,
    text: Arc<Keeper>,
    /// Whether a token was asked for. Each request draws one, so that all who want the text in turn get on.
    begun: bool,
    told: Sender<Told>,
}

impl Teller {
    fn end(&mut self, why: Result<End, EngineError>, sampler: Box<Sampler>) -> Option<Told> {
        let mut steps = self.steps.take().filter(|steps| !steps.over)?;
        Some(match why {
            Ok(End::Left | End::Waits) => Told::Rests(Rest { sampler, steps }),
            Ok(End::Stopped) => Told::Failed(Fault::ended()),
            Ok(End::MaxTokens | End::ContextFull | End::EndOfText) => Told::Step(steps.end(None, "length")),
            Err(error) => Told::Failed(error.into()),
        })
    }
}

impl Sink for Teller {
    fn send(&mut self, event: Event) -> ControlFlow<()> {
        let told = match event {
            Event::Token(drawn) => self.steps.as_mut().map(|steps| Told::Step(steps.step(drawn.id))),
            Event::End { why, sampler, .. } => {
                self.demand.close();
                self.end(why, sampler)
            }
            Event::Prefill { .. } | Event::Read(_) => None,
        };
        let is_heard = told.is_none_or(|told| self.told.send(told).is_ok());
        match is_heard && self.steps.as_ref().is_some_and(|steps| !steps.over) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    }

    fn wants_token(&mut self) -> bool {
        if self.begun && self.text.is_wanted() {
            self.demand.close();
        }
        self.begun = true;
        self.demand.take()
    }

    fn is_gone(&self) -> bool {
        self.left.load(Ordering::Relaxed) || self.text.has_given_up()
    }
}

/// A request under way. Dropped, it ends.
struct UnderWay {
    told: Receiver<Told>,
    demand: Arc<Demand>,
    /// Whether a token is asked for that has not come.
    asked: bool,
    left: Arc<AtomicBool>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.left.store(true, Ordering::Relaxed);
    }
}

/// Where it stands.
enum Stage {
    Rests(Rest),
    /// For the text.
    Waits(Rest, Wanted),
    Runs(UnderWay),
    Over,
}

/// See [`Session::generate`](super::session::Session). Dropped, it ends.
#[pyclass(frozen, module = "wayinfer._native")]
pub struct Generation {
    core: Arc<Core>,
    text: Arc<Keeper>,
    stage: Mutex<Stage>,
}

impl Generation {
    /// Goes on with a text; the sampler has read it.
    pub fn new(core: &Arc<Core>, text: &Arc<Keeper>, how: Continuation, facts: Arc<Facts>) -> Generation {
        let Continuation { sampler, max_tokens, stop } = how;
        let steps = Steps {
            left: max_tokens.unwrap_or(usize::MAX),
            stops: StopMatcher::new(stop),
            bytes: Utf8Joiner::default(),
            over: false,
            facts,
        };
        let stage = Stage::Rests(Rest { sampler: Box::new(sampler), steps });
        Generation { core: Arc::clone(core), text: Arc::clone(text), stage: Mutex::new(stage) }
    }

    /// Waits for a step for so long, where so many tokens are wanted; none behind the end.
    fn step_within(&self, tokens: usize, time: Duration) -> Poll<Result<Option<Step>, Fault>> {
        let mut stage = lock(&self.stage);
        loop {
            // Over, unless it is said to go on.
            match std::mem::replace(&mut *stage, Stage::Over) {
                Stage::Over => return Poll::Ready(Ok(None)),
                Stage::Rests(rest) => *stage = Stage::Waits(rest, self.text.ask()),
                Stage::Waits(rest, mut wanted) => match wanted.within(time) {
                    Poll::Pending => {
                        *stage = Stage::Waits(rest, wanted);
                        return Poll::Pending;
                    }
                    Poll::Ready(None) => return Poll::Ready(Err(dropped())),
                    Poll::Ready(Some(loan)) => match self.begin(rest, loan, tokens)? {
                        Began::Runs(request) => *stage = Stage::Runs(request),
                        Began::Full(step) => return Poll::Ready(Ok(Some(step))),
                    },
                },
                Stage::Runs(mut request) => {
                    // What one has told that is over is still to be read.
                    request.asked = request.asked || request.demand.ask(tokens);
                    match request.told.recv_timeout(time) {
                        Ok(Told::Step(step)) => {
                            if step.2.is_none() {
                                request.asked = false;
                                *stage = Stage::Runs(request);
                            }
                            return Poll::Ready(Ok(Some(step)));
                        }
                        Ok(Told::Rests(rest)) => *stage = Stage::Rests(rest),
                        Ok(Told::Failed(fault)) => return Poll::Ready(Err(fault)),
                        Err(RecvTimeoutError::Timeout) => {
                            *stage = Stage::Runs(request);
                            return Poll::Pending;
                        }
                        Err(RecvTimeoutError::Disconnected) => return Poll::Ready(Err(Fault::ended())),
                    }
                }
            }
        }
    }

    /// Has a request draw so many tokens behind those of the text.
    fn begin(&self, rest: Rest, loan: Loan, tokens: usize) -> Result<Began, Fault> {
        let Rest { sampler, mut steps } = rest;
        if loan.is_empty() {
            return Err(EngineError::NoLogits.into());
        }
        // The last token that was drawn may be one that cannot be run.
        if loan.len() > loan.sequence().context() {
            return Ok(Began::Full(steps.end(None, "length")));
        }
        let (sender, told) = channel();
        let demand = Arc::new(Demand(Mutex::new(Some(tokens))));
        let left = Arc::new(AtomicBool::new(false));
        let request = Request {
            prompt: loan.tokens(),
            text: Some(loan),
            sampler: *sampler,
            max_tokens: steps.left,
            ends: Arc::clone(&steps.facts.ends),
            logprobs: None,
            prompt_logprobs: None,
            sink: Box::new(Teller {
                steps: Some(steps),
                demand: Arc::clone(&demand),
                left: Arc::clone(&left),
                text: Arc::clone(&self.text),
                begun: false,
                told: sender,
            }),
        };
        self.core.go_on(request)?;
        Ok(Began::Runs(UnderWay { told, demand, asked: true, left }))
    }

    /// Nobody waits any more.
    fn leave(&self) {
        let mut stage = lock(&self.stage);
        match &*stage {
            Stage::Runs(request) => request.left.store(true, Ordering::Relaxed),
            Stage::Waits(..) => {
                if let Stage::Waits(rest, _) = std::mem::replace(&mut *stage, Stage::Over) {
                    *stage = Stage::Rests(rest);
                }
            }
            Stage::Rests(_) | Stage::Over => {}
        }
    }
}

/// What came of having it go on.
enum Began {
    Runs(UnderWay),
    /// The context is full.
    Full(Step),
}

#[pymethods]
impl Generation {
    /// The next token, the text that has come with it, and why it ended where it did; None behind that.
    fn step(&self, py: Python<'_>) -> PyResult<Option<Step>> {
        let step = wait(py, |time| self.step_within(1, time), || py.detach(|| self.leave()))?;
        Ok(step?)
    }

    /// All that is left: the text, and why it ended where it did.
    fn rest(&self, py: Python<'_>) -> PyResult<(String, Option<&'static str>)> {
        let (mut text, mut reason) = (String::new(), None);
        let read = |time: Duration| {
            let until = Instant::now() + time;
            loop {
                let time = until.saturating_duration_since(Instant::now());
                match self.step_within(usize::MAX, time) {
                    Poll::Ready(Ok(Some((_, piece, why)))) => {
                        text.push_str(&piece);
                        reason = why;
                    }
                    Poll::Ready(over) => return Poll::Ready(over.map(|_| ())),
                    Poll::Pending => return Poll::Pending,
                }
                // Interrupts are looked for, however fast it goes.
                if time.is_zero() {
                    return Poll::Pending;
                }
            }
        };
        wait::<Result<(), Fault>>(py, read, || py.detach(|| self.leave()))??;
        Ok((text, reason))
    }
}
