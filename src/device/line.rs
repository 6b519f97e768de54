//! What is under way in one queue, and the memory that its copies go through.

use std::collections::VecDeque;
use std::hint;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::backend::{Backend, Fault, Stage};

/// How long a wait looks again at once, then lets other threads run in between, then sleeps: a decode step
/// waits hundreds of times, most often briefly.
const SPINS: Duration = Duration::from_micros(100);
const YIELDS: Duration = Duration::from_millis(2);
const SLEEP: Duration = Duration::from_micros(100);

/// What counts of the time between two looks.
const LONGEST_LOOK: Duration = Duration::from_millis(100);

/// How much may be under way before what is done is looked for, and before it is waited for.
const LOOKS_FROM: usize = 64;
const MOST_UNDER_WAY: usize = 4096;

/// Why a wait ended early.
pub(super) enum Wait {
    Fault(Fault),
    Timeout,
}

impl From<Fault> for Wait {
    fn from(fault: Fault) -> Wait {
        Wait::Fault(fault)
    }
}

/// Something that was enqueued.
struct Step<A: Backend> {
    event: A::Event,
    /// Bytes of the stage that it holds.
    staged: usize,
    /// What was freed while it was the latest.
    freed: Vec<Arc<A::Buffer>>,
}

/// What is under way in a queue, in turn, and its stage, which is used round and round in the same order.
pub(super) struct Line<A: Backend> {
    steps: VecDeque<Step<A>>,
    stage: A::Stage,
    /// Where the stage's next part begins, and how many of its bytes are held.
    head: usize,
    held: usize,
    deadline: Duration,
}

/// A part of the stage, for a copy.
pub(super) struct Part {
    at: usize,
    pub bytes: usize,
    /// With what was left out at the stage's end.
    held: usize,
}

impl<A: Backend> Line<A> {
    /// `deadline` is how long one step may take.
    pub(super) fn new(stage: A::Stage, deadline: Duration) -> Line<A> {
        Line { steps: VecDeque::new(), stage, head: 0, held: 0, deadline }
    }

    /// The most bytes that one part may have.
    pub(super) fn most_staged(&self) -> usize {
        self.stage.bytes() / 2
    }

    /// Takes a part of the stage, of `bytes`, at most [`Self::most_staged`]; waits until as much is free.
    pub(super) fn take_part(&mut self, api: &A, bytes: usize) -> Result<Part, Wait> {
        let size = self.stage.bytes();
        if self.steps.is_empty() {
            self.head = 0;
        }
        let (at, left_out) = match self.head + bytes > size {
            true => (0, size - self.head),
            false => (self.head, 0),
        };
        while self.held + left_out + bytes > size {
            self.wait_for_first(api)?;
        }
        Ok(Part { at, bytes, held: left_out + bytes })
    }

    /// Where a part's bytes are.
    pub(super) fn start(&self, part: &Part) -> *mut u8 {
        // SAFETY: a part lies within its line's stage, see `take_part`.
        unsafe { self.stage.start().add(part.at) }
    }

    /// Something was enqueued, that holds a part of the stage.
    pub(super) fn push_copy(&mut self, part: &Part, event: A::Event) {
        self.head = part.at + part.bytes;
        self.held += part.held;
        self.steps.push_back(Step { event, staged: part.held, freed: Vec::new() });
    }

    /// Something was enqueued. Much that was and is done is forgotten.
    pub(super) fn push(&mut self, api: &A, event: A::Event) -> Result<(), Wait> {
        self.steps.push_back(Step { event, staged: 0, freed: Vec::new() });
        if self.steps.len() < LOOKS_FROM {
            return Ok(());
        }
        while self.steps.len() > MOST_UNDER_WAY {
            self.wait_for_first(api)?;
        }
        while let Some(first) = self.steps.front()
            && api.is_done(&first.event)?
        {
            self.forget_first();
        }
        Ok(())
    }

    /// Frees a buffer, once what is under way is done.
    pub(super) fn free(&mut self, buffer: Arc<A::Buffer>) {
        if let Some(last) = self.steps.back_mut() {
            last.freed.push(buffer);
        }
    }

    /// Waits for all that is under way.
    pub(super) fn wait(&mut self, api: &A) -> Result<(), Wait> {
        while !self.steps.is_empty() {
            self.wait_for_first(api)?;
        }
        Ok(())
    }

    fn wait_for_first(&mut self, api: &A) -> Result<(), Wait> {
        let Some(first) = self.steps.front() else { return Ok(()) };
        let (mut waited, mut looked) = (Duration::ZERO, Instant::now());
        while !api.is_done(&first.event)? {
            // While the whole process was stopped, nobody waited.
            let now = Instant::now();
            waited += (now - looked).min(LONGEST_LOOK);
            looked = now;
            if waited > self.deadline {
                return Err(Wait::Timeout);
            }
            if waited < SPINS {
                hint::spin_loop();
            } else if waited < YIELDS {
                thread::yield_now();
            } else {
                thread::sleep(SLEEP);
            }
        }
        self.forget_first();
        Ok(())
    }

    fn forget_first(&mut self) {
        if let Some(step) = self.steps.pop_front() {
            self.held -= step.staged;
        }
    }
}
