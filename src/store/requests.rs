//! What is where, what is wanted and what is to be read next: the state behind the lock of
//! [`super::streamed`]. It does no I/O and knows no time, so that it is tested without either.
//!
//! A request goes by the weight's place: to the pinned part, which is here, to the ring ([`stream`]) or to
//! the cache ([`experts`]). All three have their reads done by [`reads`].

mod experts;
mod reads;
mod stream;
mod trust;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::ResidencyStats;
use super::arena::Slot;
use super::plan::{Place, Plan};
use experts::Experts;
use reads::{Ended, Reads};
pub use reads::{Fault, Piece, Weight};
use stream::Stream;
pub use trust::Guesses;

/// Why weights cannot be had.
#[derive(Clone, Debug)]
pub enum Failure {
    Read(Arc<Fault>),
    /// A reader panicked: nothing more is read for sure.
    Panicked,
}

/// A weight that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which of those that were asked for.
    pub index: usize,
    /// Its place, and its bytes in it.
    pub slot: Slot,
    pub within: Range<usize>,
}

/// See the module.
#[derive(Debug)]
pub struct State {
    places: Vec<Place>,
    reads: Reads,
    stream: Stream,
    experts: Experts,
    /// Whether a reader panicked.
    pub panicked: bool,
    pub stats: ResidencyStats,
    pub closing: bool,
}

impl State {
    /// Nothing read, nothing asked for.
    pub fn new(weights: Vec<Weight>, plan: &Plan, disks: usize) -> State {
        State {
            places: plan.places.clone(),
            stream: Stream::new(&weights, plan),
            experts: Experts::new(&weights, plan),
            reads: Reads::new(weights, disks),
            panicked: false,
            stats: ResidencyStats::default(),
            closing: false,
        }
    }

    /// Asks for what every pass reads.
    pub fn begin(&mut self) {
        // It is wanted by the first pass, which has not begun.
        self.reads.begin_pass(1);
        for id in 0..self.places.len() {
            self.load_pinned(id);
        }
        self.stream.fill(&mut self.reads);
        self.reads.begin_pass(0);
    }

    /// A pass begins: what the one before announced and did not use is forgotten.
    pub fn begin_pass(&mut self) {
        self.reads.begin_pass(self.reads.pass() + 1);
        self.experts.begin_pass(&self.reads);
    }

    fn load_pinned(&mut self, id: usize) {
        if let (Place::Pinned { at }, true) = (self.places[id], self.reads.is_absent(id)) {
            self.reads.load(id, at as usize);
        }
    }

    /// Whether there is new work on a disk since this was asked last.
    pub fn take_news(&mut self, disk: usize) -> bool {
        self.reads.take_news(disk)
    }

    /// The next read of a disk.
    pub fn next_piece(&mut self, disk: usize) -> Option<Piece> {
        self.reads.next_piece(disk)
    }

    /// Takes note of a read that has ended. Whether those that wait for weights should look again.
    pub fn finish_piece(&mut self, piece: &Piece, read: io::Result<()>) -> bool {
        if read.is_ok() {
            self.stats.note_read(self.reads.weight(piece.weight).disk, piece.slot.len as u64);
        }
        match self.reads.finish_piece(piece, read) {
            Ended::UnderWay => return false,
            Ended::Settled => self.experts.settled(&self.reads, piece.weight),
            Ended::Abandoned => self.end_streamed(piece.weight),
        }
        true
    }

    fn end_streamed(&mut self, id: usize) {
        self.stream.end(&self.reads, id);
        self.stream.fill(&mut self.reads);
    }

    /// Somebody waits for a weight.
    pub fn expect(&mut self, id: usize) {
        self.reads.expect(id);
        self.experts.changed(&self.reads, id);
    }

    /// Somebody does not wait for it any more.
    pub fn expect_no_more(&mut self, id: usize) {
        if self.reads.expect_no_more(id) {
            // It failed, and all that waited know.
            self.reads.forget(id);
            if self.places[id] == Place::Streamed {
                self.stream.end(&self.reads, id);
            }
        }
        self.experts.settled(&self.reads, id);
    }

    /// Holds those weights that are in memory and asks for the others. All are [expected](State::expect).
    ///
    /// # Errors
    /// Where one of them could not be read while it was waited for, or a reader panicked.
    pub fn hold(&mut self, ids: &[usize]) -> Result<Vec<Held>, Failure> {
        if self.panicked {
            return Err(Failure::Panicked);
        }
        for &id in ids {
            self.request(id)?;
        }
        let ready = (0..ids.len()).filter(|&i| self.reads.is_ready(ids[i]));
        let held = ready.map(|index| {
            let (slot, within) = self.reads.location(ids[index]);
            Held { index, slot, within }
        });
        let held: Vec<Held> = held.collect();
        held.iter().for_each(|held| self.reads.hold(ids[held.index]));
        Ok(held)
    }

    fn request(&mut self, id: usize) -> Result<(), Failure> {
        if let Some(fault) = self.reads.fault(id) {
            return Err(Failure::Read(Arc::clone(fault)));
        }
        self.reads.go_to(id);
        match self.places[id] {
            Place::Streamed => self.stream.request(&mut self.reads, id),
            Place::Cached { .. } => self.experts.request(&mut self.reads, &mut self.stats, id),
            _ => self.load_pinned(id),
        }
        if self.reads.is_loading(id) {
            self.reads.hurry(id);
        }
        Ok(())
    }

    /// Begins to read experts of this pass; those without room wait until there is some.
    pub fn announce(&mut self, ids: &[usize]) {
        self.experts.announce(&mut self.reads, &mut self.stats, ids);
    }

    /// Begins to read experts that the next layer may choose, where there is room that nothing certain needs.
    /// Where guesses are only on trial, they are noted.
    pub fn guess(&mut self, ids: &[usize], guesses: Guesses) {
        self.experts.guess(&mut self.reads, ids, guesses);
    }

    /// Whether guesses are to be made in this pass.
    pub fn makes_guesses(&self, guesses: Guesses) -> bool {
        self.experts.makes_guesses(&self.reads, guesses)
    }

    /// Ends a hold on a weight.
    pub fn release(&mut self, id: usize) {
        if !self.reads.release(id) {
            return;
        }
        match self.places[id] {
            // A second engine may be about to use it.
            Place::Streamed if !self.reads.is_waited_for(id) => {
                self.reads.forget(id);
                self.end_streamed(id);
            }
            Place::Cached { .. } => self.experts.release(&mut self.reads, id),
            _ => {}
        }
    }

    /// Whether a weight is in memory.
    pub fn is_ready(&self, id: usize) -> bool {
        self.reads.is_ready(id)
    }

    /// Where a weight that is in memory has its bytes; asking changes nothing.
    pub fn place_of(&self, id: usize) -> Option<(Slot, Range<usize>)> {
        self.reads.is_ready(id).then(|| self.reads.location(id))
    }

    /// Whether no read for the cache is under way or to be given out.
    pub fn is_cache_idle(&self) -> bool {
        self.experts.is_idle(&self.reads)
    }

    /// Empties the cache and the counters; what it has learned of the model's use is forgotten.
    pub fn empty_cache(&mut self) {
        self.experts.empty(&mut self.reads);
        self.stats = ResidencyStats::default();
    }
}

#[cfg(test)]
mod replay;
#[cfg(test)]
mod tests;
