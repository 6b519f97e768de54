//! Many requests on one engine: a pass runs the next token of each text under way and a chunk of the prompts
//! that are still to be read. What a request is answered with does not depend on the others.
//!
//! Memory for a sequence is set aside before its request starts: what runs is never thrown out. Sequences that
//! are over are remembered while there is room, and prompts that begin as they do go on from them.

mod idle;
mod job;
mod shares;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use super::expert_use::Watcher;
use super::{Engine, EngineError, ExpertUse, PrefixCache, Sampler, Sequence};
use crate::kernels::ops::PAGE;
use crate::model::SequenceState;

use idle::{Idle, common};
pub use job::{Drawn, End, Event, Request, Sink, Usage};
use job::{Job, ROWS};
use shares::shares;

/// What a scheduler may take.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerLimits {
    /// Requests that run at a time; at least 1, at most the engine's batch.
    pub sequences: usize,
    /// Tokens of prompts in a pass; at least 1.
    pub chunk: usize,
    /// Bytes of sequences; one of a full context is let in however large it is.
    pub sequence_bytes: u64,
}

/// Tokens that are worth waiting for until another text has read them.
const WORTH: usize = 16;

/// What a scheduler has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    pub passes: u64,
    /// Tokens of prompts that were run.
    pub prefilled: u64,
    /// Tokens of prompts that were remembered.
    pub cached: u64,
    /// Tokens that were drawn.
    pub made: u64,
}

/// See the module.
pub struct Scheduler<'m> {
    engine: Engine<'m>,
    limits: SchedulerLimits,
    waiting: VecDeque<Request>,
    /// In the order in which they have started.
    running: Vec<Job>,
    idle: Idle,
    cache: Option<PrefixCache>,
    stats: SchedulerStats,
    experts: ExpertUse,
}

impl<'m> Scheduler<'m> {
    /// A scheduler without requests. Full pages are kept in `cache`, too, and read back from it.
    pub fn new(engine: Engine<'m>, limits: SchedulerLimits, cache: Option<PrefixCache>) -> Scheduler<'m> {
        let limits = SchedulerLimits {
            sequences: limits.sequences.clamp(1, engine.batch()),
            chunk: limits.chunk.clamp(1, engine.batch()),
            ..limits
        };
        Scheduler {
            engine,
            limits,
            waiting: VecDeque::new(),
            running: Vec::new(),
            idle: Idle::default(),
            cache,
            stats: SchedulerStats::default(),
            experts: ExpertUse::default(),
        }
    }

    /// The engine that runs the passes.
    pub fn engine(&self) -> &Engine<'m> {
        &self.engine
    }

    /// The same, for what else is done with it between two passes.
    pub fn engine_mut(&mut self) -> &mut Engine<'m> {
        &mut self.engine
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Requests that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    pub fn stats(&self) -> SchedulerStats {
        self.stats
    }

    /// Which experts its passes have chosen, those over prompts included.
    pub fn expert_use(&self) -> &ExpertUse {
        &self.experts
    }

    /// Bytes of all sequences, those that are only remembered included; what they share is counted for each.
    pub fn held_bytes(&self) -> u64 {
        self.idle.bytes() + self.running.iter().map(|job| job.sequence.held_bytes()).sum::<u64>()
    }

    /// Pages of positions that sequences have, those that they share counted for each.
    pub fn held_pages(&self) -> usize {
        let running = self.running.iter().map(|job| &job.sequence);
        running.chain(self.idle.sequences()).map(|sequence| sequence.past().div_ceil(PAGE)).sum()
    }

    /// What the cache has to warn of.
    pub fn take_warnings(&mut self) -> Vec<String> {
        self.cache.as_mut().map(PrefixCache::take_warnings).unwrap_or_default()
    }

    /// Takes a request on; it starts when there is room.
    ///
    /// # Panics
    /// Where its prompt is empty or does not fit the context: the caller has checked that.
    pub fn submit(&mut self, request: Request) {
        assert!((1..=self.engine.context()).contains(&request.prompt.len()), "a prompt that fits");
        self.waiting.push_back(request);
    }

    /// Runs a pass; `false` where there is nothing to do.
    pub fn step(&mut self) -> bool {
        self.let_go();
        self.admit();
        if self.running.is_empty() {
            return false;
        }
        let wanted: Vec<usize> = self.running.iter().map(Job::wanted).collect();
        let mut chunk = self.limits.chunk;
        if self.running.iter().any(Job::weighs) {
            // The logits are those of the last pass alone: all has to fit one.
            chunk = chunk.min(self.engine.batch().saturating_sub(self.running.len())).max(1);
        }
        let shares = shares(&wanted, chunk);
        let failed = self.pass(&shares);
        self.stats.passes += 1;
        self.go_on(&shares, failed);
        true
    }

    /// Ends all requests.
    pub fn stop(&mut self) {
        for job in self.running.drain(..) {
            job.finish(Ok(End::Stopped));
        }
        for request in self.waiting.drain(..) {
            refuse(request, End::Stopped);
        }
    }

    /// Ends the requests that nobody waits for any more.
    fn let_go(&mut self) {
        let (gone, here) = self.waiting.drain(..).partition(|request| request.sink.is_gone());
        self.waiting = here;
        let gone: VecDeque<Request> = gone;
        gone.into_iter().for_each(|request| refuse(request, End::Left));
        for at in (0..self.running.len()).rev() {
            if self.running[at].sink.is_gone() {
                self.end(at, Ok(End::Left));
            }
        }
    }

    /// Starts the requests that there is room for, in the order in which they came. One that begins as
    /// another's prompt does that is being read waits for it, and those behind it do not.
    fn admit(&mut self) {
        let mut at = 0;
        while at < self.waiting.len() && self.running.len() < self.limits.sequences {
            let weighs = self.waiting[at].prompt_logprobs.is_some();
            if !weighs && self.is_being_read(&self.waiting[at].prompt) {
                at += 1;
                continue;
            }
            let request = &self.waiting[at];
            let positions = request.prompt.len().saturating_add(request.max_tokens);
            let logits =
                if weighs { 2 * ROWS * self.engine.model().spec().vocab * size_of::<f32>() } else { 0 };
            let bytes = self.sequence_bytes(positions).saturating_add(logits as u64);
            if !self.make_room(bytes) {
                return;
            }
            let Some(request) = self.waiting.remove(at) else { return };
            // What is remembered has left no logits.
            let sequence = if weighs { self.engine.sequence() } else { self.sequence_for(&request.prompt) };
            self.stats.cached += sequence.past() as u64;
            self.running.push(Job::new(request, sequence, bytes));
        }
    }

    /// Bytes of a sequence of so many positions at most.
    fn sequence_bytes(&self, positions: usize) -> u64 {
        let Engine { model, batch, kv, context, .. } = &self.engine;
        SequenceState::bytes(model.spec(), positions.min(*context), *batch, 0, *kv)
    }

    /// Whether there are so many bytes, if need be once sequences that are only remembered are gone.
    fn make_room(&mut self, bytes: u64) -> bool {
        let taken: u64 = self.running.iter().map(|job| job.bytes).sum();
        if self.running.is_empty() && bytes > self.limits.sequence_bytes {
            while self.idle.forget_oldest() {}
            return true;
        }
        let Some(left) = self.limits.sequence_bytes.checked_sub(taken.saturating_add(bytes)) else {
            return false;
        };
        while self.idle.bytes() > left {
            self.idle.forget_oldest();
        }
        true
    }

    /// Whether a prompt that is being read begins as this one does, further than anything that is there
    /// already.
    fn is_being_read(&self, prompt: &[u32]) -> bool {
        let most = prompt.len() - 1;
        let jobs = || self.running.iter().map(|job| (common(&job.tokens, prompt).min(most), job));
        let there = jobs().map(|(same, job)| same.min(job.sequence.past())).max().unwrap_or(0);
        let read = jobs().filter(|(_, job)| job.reads()).map(|(same, _)| same).max().unwrap_or(0);
        // There are many more sequences that are only remembered: they are looked at where it matters.
        let is_ahead = |there: usize| read >= there + WORTH;
        is_ahead(there) && is_ahead(self.idle.longest(prompt).map_or(0, |(same, _)| same))
    }

    /// A sequence that stands within a prompt, as far as that has been read before.
    fn sequence_for(&mut self, prompt: &[u32]) -> Sequence {
        // The last token is run for its logits.
        let most = &prompt[..prompt.len() - 1];
        let idle = self.idle.longest(most).map_or(0, |(same, _)| same);
        let jobs = self.running.iter().map(|job| (common(job.sequence.tokens(), most), job));
        let running = jobs.max_by_key(|(same, _)| *same).filter(|(same, _)| *same > idle);
        let sequence = match running {
            Some((same, job)) => {
                let mut fork = job.sequence.fork();
                fork.rewind(same);
                Some(fork)
            }
            None => self.idle.take(most),
        };
        let mut sequence = sequence.unwrap_or_else(|| self.engine.sequence());
        if let Some(cache) = &mut self.cache {
            cache.restore(&mut sequence, prompt);
        }
        sequence
    }

    /// Runs so many tokens of each job. Where that fails, each is run alone: which have failed, and why.
    fn pass(&mut self, shares: &[usize]) -> Vec<(usize, EngineError)> {
        let Scheduler { engine, running, experts, .. } = self;
        let mut watcher = Watcher { interrupted: None, experts: Some(experts) };
        let ends: Vec<usize> = running.iter().zip(shares).map(|(job, n)| job.sequence.past() + n).collect();
        let mut feeds = Vec::with_capacity(running.len());
        let mut samplers = Vec::new();
        for (job, &end) in running.iter_mut().zip(&ends) {
            let (feed, sampler) = job.feed(end);
            feeds.extend(feed);
            samplers.extend(Some(sampler).filter(|sampler| sampler.is_constrained()));
        }
        let alone = feeds.len() == 1;
        let passed = beside(&mut samplers, || engine.feed_all_watched(&mut feeds, &mut watcher));
        let Err(error) = passed else { return Vec::new() };
        if alone {
            return shares.iter().position(|&n| n > 0).map(|at| (at, error)).into_iter().collect();
        }
        let jobs = running.iter_mut().zip(&ends).enumerate();
        let feeds = jobs.filter_map(|(at, (job, &end))| Some((at, job.feed(end).0?)));
        let mut run = |mut feed| engine.feed_all_watched(std::slice::from_mut(&mut feed), &mut watcher);
        feeds.filter_map(|(at, feed)| Some((at, run(feed).err()?))).collect()
    }

    /// Lets each job that took part in a pass go on, and ends those that are over.
    fn go_on(&mut self, shares: &[usize], mut failed: Vec<(usize, EngineError)>) {
        for (at, &ran) in shares.iter().enumerate().rev() {
            if ran == 0 {
                continue;
            }
            let error = failed.pop_if(|(failed, _)| *failed == at);
            let job = &mut self.running[at];
            let (read, made) = (job.reads(), job.usage.made);
            let over = match error {
                Some((_, error)) => Some(Err(error)),
                None => job.go_on(ran, &self.engine),
            };
            self.stats.prefilled += if read { ran as u64 } else { 0 };
            self.stats.made += (job.usage.made - made) as u64;
            if let Some(why) = over {
                self.end(at, why);
            }
        }
    }

    /// Ends a job and remembers its sequence.
    fn end(&mut self, at: usize, why: Result<End, EngineError>) {
        let sequence = self.running.remove(at).finish(why);
        if let Some(cache) = &mut self.cache {
            cache.keep(&sequence);
        }
        self.idle.keep(sequence);
    }
}

/// Runs a pass, and beside it what samplers can make ready for the tokens that come of it: which ones a grammar
/// allows is known before the logits are.
fn beside<R>(samplers: &mut [&mut Sampler], pass: impl FnOnce() -> R) -> R {
    if samplers.is_empty() {
        return pass();
    }
    std::thread::scope(|scope| {
        scope.spawn(|| samplers.iter_mut().for_each(|sampler| sampler.prepare()));
        pass()
    })
}

fn refuse(mut request: Request, why: End) {
    let usage = Usage { prompt: request.prompt.len(), ..Usage::default() };
    let _ = request.sink.send(Event::End { why: Ok(why), usage });
}
