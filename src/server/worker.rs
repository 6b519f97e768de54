//! An engine on a thread of its own: takes requests on from all sides, runs passes, and tells how it does.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::error::{ApiError, ErrorKind};
use super::facts::Facts;
use super::residency::Seen;
use crate::engine::{
    Engine, Event, PrefixCache, Request, Sampler, Scheduler, SchedulerLimits, SchedulerStats, Sink,
};
use crate::store::ResidencyStats;

/// A model that is ready to run, as a worker takes it.
pub struct Opened<'m> {
    pub engine: Engine<'m>,
    pub cache: Option<PrefixCache>,
    pub limits: SchedulerLimits,
    pub facts: Facts,
}

/// Where requests for a model go. Dropped with all its clones, its worker ends.
#[derive(Clone)]
pub struct Worker {
    todo: Sender<Todo>,
    pub facts: Arc<Facts>,
    state: Arc<State>,
}

/// Something else to be done with the scheduler or its engine, between two passes.
pub type Work = Box<dyn for<'m> FnOnce(&mut Scheduler<'m>) + Send>;

/// What a worker is sent.
enum Todo {
    Answer(Box<Request>),
    Work(Work),
}

/// What a worker and those who ask it share.
struct State {
    /// Requests that wait or run.
    taken: AtomicUsize,
    /// Most of them.
    most: usize,
    stop: AtomicBool,
    status: Mutex<Status>,
    seen: Mutex<Seen>,
}

impl State {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a worker does.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub running: usize,
    pub waiting: usize,
    pub done: SchedulerStats,
    pub held_bytes: u64,
    /// Of these the bytes of kept texts.
    pub kept_bytes: u64,
    pub held_pages: usize,
    pub residency: ResidencyStats,
    /// In passes.
    pub busy: Duration,
}

/// One of what is asked for, before it has a place.
pub struct Choice {
    pub prompt: Vec<u32>,
    pub sampler: Sampler,
    pub max_tokens: usize,
    pub logprobs: Option<usize>,
    pub prompt_logprobs: Option<usize>,
}

/// What choices are told, by their numbers; once this is dropped they end.
pub struct Events {
    events: UnboundedReceiver<(usize, Event)>,
    /// Choices that are not wanted any more.
    left: Vec<Arc<AtomicBool>>,
}

impl Events {
    /// The next one; none where the worker has ended.
    pub async fn next(&mut self) -> Option<(usize, Event)> {
        self.events.recv().await
    }

    /// Ends a choice.
    pub fn leave(&self, choice: usize) {
        self.left[choice].store(true, Ordering::Relaxed);
    }
}

/// The place of a request among those that a worker takes on.
struct Place(Arc<State>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells those who have asked.
struct Teller {
    choice: usize,
    events: UnboundedSender<(usize, Event)>,
    left: Arc<AtomicBool>,
    _place: Place,
}

impl Sink for Teller {
    fn send(&mut self, event: Event) -> ControlFlow<()> {
        match self.events.send((self.choice, event)) {
            Ok(()) if !self.left.load(Ordering::Relaxed) => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }

    fn is_gone(&self) -> bool {
        self.left.load(Ordering::Relaxed) || self.events.is_closed()
    }
}

impl Worker {
    /// Hands choices to the worker, all or none.
    ///
    /// # Errors
    /// Where too many requests wait, or the worker has ended.
    pub fn submit(&self, choices: Vec<Choice>) -> Result<Events, ApiError> {
        let (state, n) = (&self.state, choices.len());
        let taken = state.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            Some(taken + n).filter(|&taken| taken <= state.most)
        });
        if taken.is_err() {
            return Err(ApiError::new(ErrorKind::Overloaded, "too many requests wait: try again later"));
        }
        let places: Vec<Place> = (0..n).map(|_| Place(Arc::clone(state))).collect();
        let (sender, events) = unbounded_channel();
        let mut left = Vec::with_capacity(n);
        for ((number, choice), place) in choices.into_iter().enumerate().zip(places) {
            let Choice { prompt, sampler, max_tokens, logprobs, prompt_logprobs } = choice;
            let flag = Arc::new(AtomicBool::new(false));
            left.push(Arc::clone(&flag));
            let sink = Teller { choice: number, events: sender.clone(), left: flag, _place: place };
            let ends = Arc::clone(&self.facts.ends);
            let sink = Box::new(sink);
            self.go_on(Request {
                prompt,
                text: None,
                sampler,
                max_tokens,
                ends,
                logprobs,
                prompt_logprobs,
                sink,
            })?;
        }
        Ok(Events { events, left })
    }

    /// Hands a request to the worker, whatever waits; its text is back where the worker ends.
    ///
    /// # Errors
    /// Where the worker has ended.
    pub fn go_on(&self, request: Request) -> Result<(), ApiError> {
        let gone = |_| ApiError::internal("the model's engine has ended");
        self.todo.send(Todo::Answer(Box::new(request))).map_err(gone)
    }

    /// Has something else done with the scheduler; where the worker has ended, it is dropped undone.
    pub fn with_scheduler(&self, work: Work) {
        let _ = self.todo.send(Todo::Work(work));
    }

    /// Most requests that may wait or run.
    pub fn most(&self) -> usize {
        self.state.most
    }

    /// Requests that wait or run.
    pub fn taken(&self) -> usize {
        self.state.taken.load(Ordering::Relaxed)
    }

    pub fn status(&self) -> Status {
        self.state.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What there is to tell of its residency.
    pub fn seen(&self) -> Seen {
        self.state.seen().clone()
    }

    /// Has it end all that it has, and itself.
    pub fn stop(&self) {
        self.state.stop.store(true, Ordering::Relaxed);
    }
}

/// How long an idle worker goes without looking whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// How often a busy worker tells how it does.
const TELL: Duration = Duration::from_millis(20);

/// Runs a model's requests until the worker, which `ready` is given, is dropped or stopped. Beside those that
/// run, `queue` requests may wait.
pub fn run(opened: Opened<'_>, queue: usize, ready: impl FnOnce(Worker), warn: &dyn Fn(&str)) {
    let Opened { engine, cache, limits, facts } = opened;
    let (sender, todo) = channel();
    let most = limits.sequences.saturating_add(queue);
    let mut scheduler = Scheduler::new(engine, limits, cache);
    let state = Arc::new(State {
        taken: AtomicUsize::new(0),
        most,
        stop: AtomicBool::new(false),
        status: Mutex::default(),
        seen: Mutex::new(Seen::new(&scheduler)),
    });
    ready(Worker { todo: sender, facts: Arc::new(facts), state: Arc::clone(&state) });
    let (mut busy, mut told) = (Duration::ZERO, Instant::now());
    while !state.stop.load(Ordering::Relaxed) && take_on(&mut scheduler, &todo).is_continue() {
        let (began, made) = (Instant::now(), scheduler.stats().made);
        let worked = scheduler.step();
        let time = began.elapsed();
        busy += time;
        if worked {
            state.seen().pass(&scheduler, (scheduler.stats().made - made) as usize, time);
        }
        // Passes of a small model are shorter than what there is to tell takes to count.
        if !worked || told.elapsed() >= TELL {
            tell(&scheduler, &state, busy);
            told = Instant::now();
        }
        scheduler.take_warnings().iter().for_each(|warning| warn(warning));
        if !worked {
            match todo.recv_timeout(LOOK) {
                Ok(todo) => take(&mut scheduler, todo),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
    }
    state.stop.store(true, Ordering::Relaxed);
    let _ = take_on(&mut scheduler, &todo);
    scheduler.stop();
}

/// Takes on what has come.
fn take_on(scheduler: &mut Scheduler<'_>, all: &Receiver<Todo>) -> ControlFlow<()> {
    loop {
        match all.try_recv() {
            Ok(todo) => take(scheduler, todo),
            Err(TryRecvError::Empty) => return ControlFlow::Continue(()),
            // What runs has nobody who listens either.
            Err(TryRecvError::Disconnected) => return ControlFlow::Break(()),
        }
    }
}

fn take(scheduler: &mut Scheduler<'_>, todo: Todo) {
    match todo {
        Todo::Answer(request) => scheduler.submit(*request),
        Todo::Work(work) => work(scheduler),
    }
}

fn tell(scheduler: &Scheduler<'_>, state: &State, busy: Duration) {
    let status = Status {
        running: scheduler.running(),
        waiting: scheduler.waiting(),
        done: scheduler.stats(),
        held_bytes: scheduler.held_bytes(),
        kept_bytes: scheduler.kept_bytes(),
        held_pages: scheduler.held_pages(),
        residency: scheduler.engine().model().store().stats(),
        busy,
    };
    let mut known = state.status.lock().unwrap_or_else(PoisonError::into_inner);
    let is_news = known.done.passes != status.done.passes;
    *known = status;
    drop(known);
    if is_news {
        state.seen().count(scheduler.expert_use());
    }
}
