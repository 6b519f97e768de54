//! Many requests on one engine: a pass runs the next token of each text under way and a chunk of the prompts
//! that are still to be read. What a request is answered with does not depend on the others.
//!
//! Memory for a sequence is set aside before its request starts: what runs is never thrown out. Sequences
//! that are over are remembered while there is room, and prompts that begin as they do go on from them.
//!
//! A text that somebody keeps is lent to a request that goes on with it. Texts that are kept hold memory of
//! the same budget, and their requests take part in the same passes as others.

mod accounts;
mod idle;
mod job;
mod kept;
mod room;
mod shares;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use super::expert_use::Watcher;
use super::{Engine, EngineError, ExpertUse, PrefixCache, Sampler, Sequence};
use crate::kernels::ops::PAGE;

use accounts::Accounts;
use idle::{Idle, common};
pub use job::{Drawn, End, Event, Request, Sink, Usage};
use job::{Job, Reserve};
pub use kept::{Keeper, KeptText, Loan, Wanted};
use room::Room;
use shares::shares;

/// What a scheduler may take.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerLimits {
    /// Requests that run at a time, and as many that go on with kept texts; at least 1, at most the engine's
    /// batch.
    pub sequences: usize,
    /// Tokens of prompts in a pass; at least 1.
    pub chunk: usize,
    /// Bytes of sequences, those of kept texts included; where no text is kept, one of a full context is let
    /// in however large it is.
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
    /// Of kept texts, those that are lent included.
    accounts: Arc<Accounts>,
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
            accounts: Arc::default(),
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

    /// An empty text to be kept.
    pub fn new_text(&self) -> KeptText {
        KeptText::new(self.engine.sequence(), &self.accounts)
    }

    /// Bytes of all sequences, those that are only remembered included; what they share is counted for each,
    /// but for kept texts.
    pub fn held_bytes(&self) -> u64 {
        let grown = |job: &Job| job.sequence.held_bytes().saturating_sub(job.sequence.counted().0);
        self.idle.bytes() + self.accounts.bytes() + self.running.iter().map(grown).sum::<u64>()
    }

    /// Bytes of kept texts, what they share counted once; of those that are lent what they had before.
    pub fn kept_bytes(&self) -> u64 {
        self.accounts.bytes()
    }

    /// Pages of positions that sequences have, those that they share counted for each.
    pub fn held_pages(&self) -> usize {
        let grown = |job: &Job| pages(&job.sequence).saturating_sub(job.sequence.counted().1);
        let idle = self.idle.sequences().map(pages).sum::<usize>();
        idle + self.accounts.positions() + self.running.iter().map(grown).sum::<usize>()
    }

    /// What the cache has to warn of.
    pub fn take_warnings(&mut self) -> Vec<String> {
        self.cache.as_mut().map(PrefixCache::take_warnings).unwrap_or_default()
    }

    /// Takes a request on; it starts when there is room.
    ///
    /// # Panics
    /// Where its prompt is empty, does not fit the context or does not begin as the text that it goes on
    /// with: the caller has checked that.
    pub fn submit(&mut self, mut request: Request) {
        assert!((1..=self.engine.context()).contains(&request.prompt.len()), "a prompt that fits");
        if let Some(text) = &mut request.text {
            assert!(request.prompt.starts_with(&text.tokens()), "a prompt that goes on with its text");
            // The text may have been another scheduler's.
            text.count_in(&self.accounts);
        }
        self.waiting.push_back(request);
    }

    /// Runs a pass; `false` where there is nothing to do.
    pub fn step(&mut self) -> bool {
        self.let_go();
        self.admit();
        self.grow();
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
            refuse(request, Ok(End::Stopped));
        }
    }

    /// Ends the requests that nobody waits for any more.
    fn let_go(&mut self) {
        let (gone, here) = self.waiting.drain(..).partition(|request| request.sink.is_gone());
        self.waiting = here;
        let gone: VecDeque<Request> = gone;
        gone.into_iter().for_each(|request| refuse(request, Ok(End::Left)));
        for at in (0..self.running.len()).rev() {
            if self.running[at].sink.is_gone() {
                self.end(at, Ok(End::Left));
            }
        }
    }

    /// Starts the requests that there is room for, in the order in which they came. One that begins as
    /// another's prompt does that is being read waits for it, and those behind it do not. Those that go on
    /// with kept texts have places of their own.
    fn admit(&mut self) {
        let mut at = 0;
        let mut places = self.places();
        // For want of memory: those that go on with kept texts may do with less.
        let mut is_held_up = false;
        while at < self.waiting.len() && places != [0; 2] {
            let request = &self.waiting[at];
            let is_lent = request.text.is_some();
            let is_read = || request.prompt_logprobs.is_none() && self.is_being_read(&request.prompt);
            if places[usize::from(is_lent)] == 0 || (!is_lent && (is_held_up || is_read())) {
                at += 1;
                continue;
            }
            let room = self.room_for(at);
            if matches!(room, Room::Later) {
                if is_lent {
                    return;
                }
                (is_held_up, at) = (true, at + 1);
                continue;
            }
            let Some(request) = self.waiting.remove(at) else { return };
            match room {
                Room::There(reserve) => self.start(request, reserve),
                Room::Never(error) => refuse(request, Err(error)),
                Room::Later => {}
            }
            places = self.places();
        }
    }

    /// How many more requests may run, and how many more that go on with kept texts.
    fn places(&self) -> [usize; 2] {
        let lent = self.running.iter().filter(|job| job.is_lent()).count();
        [self.running.len() - lent, lent].map(|running| self.limits.sequences.saturating_sub(running))
    }

    fn start(&mut self, request: Request, reserve: Reserve) {
        // What is remembered has left no logits.
        let weighs = request.prompt_logprobs.is_some();
        let own = |prompt: &[u32]| if weighs { self.engine.sequence() } else { self.sequence_for(prompt) };
        let job = Job::new(request, own, reserve);
        if !job.is_lent() {
            self.stats.cached += job.usage.cached as u64;
        }
        let has_run = job.pending() == 0;
        self.running.push(job);
        if has_run {
            self.advance(self.running.len() - 1, 0, None);
        }
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
            self.advance(at, ran, error.map(|(_, error)| error));
        }
    }

    /// Lets a job go on that ran so many of its tokens, and ends it where it is over.
    fn advance(&mut self, at: usize, ran: usize, error: Option<EngineError>) {
        let job = &mut self.running[at];
        let (read, made) = (job.reads(), job.usage.made);
        let over = match error {
            Some(error) => Some(Err(error)),
            None => job.go_on(ran, &self.engine),
        };
        self.stats.prefilled += if read { ran as u64 } else { 0 };
        self.stats.made += (job.usage.made - made) as u64;
        if let Some(why) = over {
            self.end(at, why);
        }
    }

    /// Ends a job and remembers its sequence, unless that is somebody else's.
    fn end(&mut self, at: usize, why: Result<End, EngineError>) {
        let Some(sequence) = self.running.remove(at).finish(why) else { return };
        if let Some(cache) = &mut self.cache {
            cache.keep(&sequence);
        }
        self.idle.keep(sequence);
    }
}

/// Pages of a sequence's positions.
fn pages(sequence: &Sequence) -> usize {
    sequence.past().div_ceil(PAGE)
}

/// Runs a pass, and beside it what samplers can make ready for the tokens that come of it: which ones a
/// grammar allows is known before the logits are.
fn beside<R>(samplers: &mut [&mut Sampler], pass: impl FnOnce() -> R) -> R {
    if samplers.is_empty() {
        return pass();
    }
    std::thread::scope(|scope| {
        scope.spawn(|| samplers.iter_mut().for_each(|sampler| sampler.prepare()));
        pass()
    })
}

fn refuse(request: Request, why: Result<End, EngineError>) {
    let Request { prompt, text, sampler, mut sink, .. } = request;
    let usage = Usage { prompt: prompt.len(), ..Usage::default() };
    // It is back before its keeper knows.
    drop(text);
    let _ = sink.send(Event::End { why, usage, sampler: Box::new(sampler) });
}
