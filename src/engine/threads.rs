//! How many threads passes run on.
//!
//! Results do not depend on it, so that a run may change it under way: which number is the fastest is
//! measured on the passes themselves. More threads than a memory's bandwidth needs, and two on one core, may
//! be slower than fewer.

use std::time::{Duration, Instant};

use rayon::{ThreadPoolBuildError, ThreadPoolBuilder};

use super::awake::AwakePool;
use crate::store::Processors;

/// How many threads passes run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Threads {
    /// So many; at least 1.
    Fixed(usize),
    /// That of these numbers which is the fastest where it runs, found out while it does. The first one to
    /// begin with.
    Best(Vec<usize>),
}

impl Threads {
    /// Numbers to choose from on this machine. To begin with, one thread a core of the fastest kind.
    pub fn of_this_machine() -> Threads {
        Threads::among(&Processors::of_this_process())
    }

    fn among(found: &Processors) -> Threads {
        let mut numbers = vec![found.fast_cores];
        // Half of many cores may read all that the memory gives.
        let half = (found.fast_cores >= MANY).then_some(found.fast_cores / 2);
        for number in [found.cores, found.threads].into_iter().chain(half) {
            if !numbers.contains(&number) {
                numbers.push(number);
            }
        }
        Threads::Best(numbers)
    }

    /// The most that run at a time.
    pub fn most(&self) -> usize {
        self.numbers().into_iter().max().unwrap_or(1)
    }

    /// All that are started, of which some sleep.
    pub fn started(&self) -> usize {
        self.numbers().iter().sum()
    }

    /// The numbers to choose from; the first is begun with.
    pub fn numbers(&self) -> Vec<usize> {
        match self {
            Threads::Fixed(n) => vec![(*n).max(1)],
            Threads::Best(numbers) if numbers.is_empty() => vec![1],
            Threads::Best(numbers) => numbers.iter().map(|&n| n.max(1)).collect(),
        }
    }
}

impl From<usize> for Threads {
    fn from(n: usize) -> Threads {
        Threads::Fixed(n)
    }
}

/// From so many cores on, half of them may do as well.
const MANY: usize = 8;

/// Threads for passes, in pools of different sizes of which one is at work.
#[derive(Debug)]
pub(super) struct Pools {
    pools: Vec<AwakePool>,
    /// Passes of one token, which memory bounds, and full batches, which arithmetic does.
    single: Choice,
    full: Choice,
    batch: usize,
}

impl Pools {
    /// Starts the threads; a full pass has `batch` tokens.
    ///
    /// # Errors
    /// Where they cannot be started.
    pub fn new(threads: &Threads, batch: usize) -> Result<Pools, ThreadPoolBuildError> {
        let pool = |n| Ok(AwakePool::new(ThreadPoolBuilder::new().num_threads(n).build()?));
        let pools: Vec<AwakePool> = threads.numbers().into_iter().map(pool).collect::<Result<_, _>>()?;
        let choice = || Choice::new(pools.len());
        Ok(Pools { single: choice(), full: choice(), pools, batch })
    }

    /// Threads that passes of one token run on now.
    pub fn threads(&self) -> usize {
        self.pools[self.single.current()].threads()
    }

    /// Runs what is no pass, as one of a token.
    ///
    /// # Panics
    /// Where `work` does.
    pub fn beside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pools[self.single.current()].run(work)
    }

    /// Runs a pass of so many tokens.
    ///
    /// # Panics
    /// Where `pass` does.
    pub fn run<R: Send>(&mut self, tokens: usize, pass: impl FnOnce() -> R + Send) -> R {
        let (choice, counts) = if tokens < FEW {
            (&mut self.single, tokens == 1)
        } else {
            (&mut self.full, tokens == self.batch)
        };
        let began = Instant::now();
        let result = self.pools[choice.current()].run(pass);
        // What has another number of tokens takes another time.
        if counts {
            choice.took(began.elapsed());
        }
        result
    }
}

/// Passes of fewer tokens than this are like those of one.
const FEW: usize = 16;

/// A choice by time among some ways to do the same.
#[derive(Debug)]
struct Choice {
    /// The way that is taken unless others are tried.
    best: usize,
    /// The shortest time that each has taken, in this round of trials.
    shortest: Vec<Duration>,
    /// Times until the next round begins; within one, until it ends.
    left: usize,
    tries: bool,
    /// Times from round to round.
    pause: usize,
}

/// Times that each way is tried a round.
const TRIALS: usize = 3;
/// Times before the first round: memory is touched and caches are filled first.
const WARM: usize = 2;
/// Times until the second round; each pause is twice as long as the one before, up to a limit.
const FIRST_PAUSE: usize = 64;
const LONGEST_PAUSE: usize = 4096;
/// What another way must save for it to be taken: times differ by as much for no reason.
const WORTH: f64 = 0.97;

impl Choice {
    fn new(ways: usize) -> Choice {
        Choice { best: 0, shortest: vec![Duration::MAX; ways], left: WARM, tries: false, pause: FIRST_PAUSE }
    }

    /// The way to take next.
    fn current(&self) -> usize {
        // In turns: what slows all of them down for a while must not be taken for one's own time.
        if self.tries { self.left % self.shortest.len() } else { self.best }
    }

    /// How long the present way took.
    fn took(&mut self, time: Duration) {
        let ways = self.shortest.len();
        if ways == 1 {
            return;
        }
        if self.tries {
            let way = self.current();
            self.shortest[way] = self.shortest[way].min(time);
        }
        self.left -= 1;
        if self.left > 0 {
            return;
        }
        if self.tries {
            self.choose();
            self.left = self.pause;
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        } else {
            self.shortest.fill(Duration::MAX);
            self.left = TRIALS * ways;
        }
        self.tries = !self.tries;
    }

    fn choose(&mut self) {
        let bound = self.shortest[self.best].mul_f64(WORTH);
        let others = (0..self.shortest.len()).filter(|&way| self.shortest[way] < bound);
        self.best = others.min_by_key(|&way| self.shortest[way]).unwrap_or(self.best);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(fast_cores: usize, cores: usize, threads: usize) -> Processors {
        Processors { fast_cores, cores, threads, nodes: Vec::new() }
    }

    #[test]
    fn numbers_to_choose_from() {
        let among = |found| Threads::among(&found).numbers();
        assert_eq!(among(found(2, 2, 2)), [2]);
        assert_eq!(among(found(4, 4, 8)), [4, 8]);
        assert_eq!(among(found(8, 16, 24)), [8, 16, 24, 4]);
        assert_eq!(among(found(64, 64, 64)), [64, 32]);
        assert_eq!(Threads::Best(vec![8, 16, 4]).most(), 16);
        assert_eq!(Threads::Best(vec![8, 16, 4]).started(), 28);
        assert_eq!((Threads::Best(vec![]).most(), Threads::from(0).most()), (1, 1));
    }

    /// Runs with ways of these times in microseconds; which were taken.
    fn taken(choice: &mut Choice, passes: usize, time: impl Fn(usize) -> u64) -> Vec<usize> {
        let mut taken = Vec::new();
        for _ in 0..passes {
            taken.push(choice.current());
            choice.took(Duration::from_micros(time(choice.current())));
        }
        taken
    }

    #[test]
    fn the_fastest_way_is_found_and_found_again() {
        let mut choice = Choice::new(3);
        let ways = taken(&mut choice, WARM + 3 * TRIALS, |way| [100, 90, 120][way]);
        assert_eq!(ways[..WARM], [0, 0]);
        for way in 0..3 {
            assert_eq!(ways[WARM..].iter().filter(|&&w| w == way).count(), TRIALS, "{way} is tried");
        }
        assert_eq!(taken(&mut choice, FIRST_PAUSE, |_| 90), [1; FIRST_PAUSE]);
        // Another has become the fastest by now; the next pause is longer.
        taken(&mut choice, 3 * TRIALS, |way| [100, 90, 50][way]);
        assert_eq!(taken(&mut choice, 2 * FIRST_PAUSE, |_| 50), [2; 2 * FIRST_PAUSE]);
    }

    #[test]
    fn what_saves_next_to_nothing_is_not_taken() {
        let mut choice = Choice::new(2);
        taken(&mut choice, WARM + 2 * TRIALS, |way| [1000, 980][way]);
        assert_eq!(choice.current(), 0);
        let mut choice = Choice::new(2);
        taken(&mut choice, WARM + 2 * TRIALS, |way| [1000, 960][way]);
        assert_eq!(choice.current(), 1);
    }

    /// A pass that something else held up is not what its way takes.
    #[test]
    fn a_slow_pass_changes_nothing() {
        let mut choice = Choice::new(2);
        let passes = std::cell::Cell::new(0);
        taken(&mut choice, WARM + 2 * TRIALS, |way| {
            passes.set(passes.get() + 1);
            if passes.get() % 4 == 0 { 90_000 } else { [100, 200][way] }
        });
        assert_eq!(choice.current(), 0);
    }

    /// Trials cost little in the long run, however slow the other ways are.
    #[test]
    fn trials_are_few() {
        let mut choice = Choice::new(4);
        let ways = taken(&mut choice, 10_000, |way| [100, 200, 300, 400][way]);
        assert!(ways.iter().filter(|&&way| way != 0).count() <= 9 * TRIALS * 3, "of 10,000");
    }

    #[test]
    fn one_way_is_always_taken() {
        let mut choice = Choice::new(1);
        assert_eq!(taken(&mut choice, 1000, |_| 5), [0; 1000]);
    }

    #[test]
    fn passes_run_on_pools_of_every_size() {
        let mut pools = Pools::new(&Threads::Best(vec![2, 1, 3]), 32).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..WARM + 3 * TRIALS {
            let threads = pools.threads();
            assert_eq!(pools.run(1, rayon::current_num_threads), threads);
            seen.insert(threads);
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
        // Others of few tokens go with those of one, the rest with full ones; neither counts.
        let threads = pools.threads();
        for tokens in [2, FEW - 1, FEW, 31] {
            let expected = if tokens < FEW { threads } else { 2 };
            assert!(
                (0..9).all(|_| pools.run(tokens, rayon::current_num_threads) == expected),
                "{tokens} tokens"
            );
        }
    }
}
