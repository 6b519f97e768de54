//! What is where, what is wanted and what is to be read next: the state behind the lock of [`super::streamed`]. It
//! does no I/O and knows no time, so that it is tested without either.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::ResidencyStats;
use super::arena::Slot;
use super::cache::{Cache, Now};
use super::disk::ALIGNMENT;
use super::plan::{Place, Plan};
use super::ring::Ring;
use super::streamed::{cache_of, ring_of};

/// Bytes of a read, about: weights are read in equal pieces.
const PIECE: usize = 1 << 20;

/// A weight of the model: where it lies and when it is used.
#[derive(Clone, Debug)]
pub struct Weight {
    pub part: usize,
    /// The disk of its file, as an index.
    pub disk: usize,
    /// Bytes in the file.
    pub bytes: Range<u64>,
    /// Its place in the order of a pass.
    pub position: u64,
    /// Its layer and the share of tokens that read it, for an expert.
    pub layer: usize,
    pub share: f32,
}

impl Weight {
    /// Where the whole blocks begin that hold it.
    fn from(&self) -> u64 {
        self.bytes.start / ALIGNMENT as u64 * ALIGNMENT as u64
    }

    /// Bytes of the whole blocks that hold it.
    pub fn span(&self) -> usize {
        ((self.bytes.end - self.from()) as usize).next_multiple_of(ALIGNMENT)
    }
}

/// A read that failed.
#[derive(Debug)]
pub struct Fault {
    pub weight: usize,
    /// Of the read in its file.
    pub offset: u64,
    pub error: io::Error,
}

/// A part of a weight to be read.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    weight: usize,
    pub part: usize,
    pub offset: u64,
    pub slot: Slot,
    /// Bytes of the piece that must be in the file.
    pub needed: usize,
}

#[derive(Clone, Debug, Default)]
enum Status {
    #[default]
    Absent,
    Loading,
    Ready,
    Failed(Arc<Fault>),
}

#[derive(Clone, Debug, Default)]
struct Residence {
    status: Status,
    slot: Option<Slot>,
    /// The number of its entry in the ring.
    entry: u64,
    /// Bytes given out to readers, and pieces that they have not brought yet.
    given: usize,
    under_way: usize,
    fault: Option<Arc<Fault>>,
    /// Not wanted any more; its place is free when its reads have ended.
    abandoned: bool,
    /// When it is needed: the order of reads.
    key: u64,
    readers: u32,
    waiters: u32,
    /// The pass that announced it, and the last that asked for it.
    wanted: u64,
    seen: u64,
}

impl Residence {
    fn is_loading(&self) -> bool {
        matches!(self.status, Status::Loading)
    }

    fn is_ready(&self) -> bool {
        matches!(self.status, Status::Ready)
    }

    fn is_absent(&self) -> bool {
        matches!(self.status, Status::Absent)
    }

    fn in_use(&self) -> bool {
        self.readers > 0 || self.waiters > 0
    }
}

/// Bytes of the pieces of a weight of `len` bytes: equal but for the last, so that none is small.
fn piece_len(len: usize) -> usize {
    let pieces = ((len + PIECE / 2) / PIECE).max(1);
    len.div_ceil(pieces).next_multiple_of(ALIGNMENT)
}

/// See the module.
#[derive(Debug)]
pub struct State {
    weights: Vec<Weight>,
    places: Vec<Place>,
    residences: Vec<Residence>,
    /// Reads to be given out, by disk: the first needed first.
    queues: Vec<BTreeSet<(u64, usize)>>,
    news: Vec<bool>,
    cache: Cache,
    members: Vec<Option<usize>>,
    cached: Vec<usize>,
    /// Where the cache's classes begin, and the bytes of their slots.
    classes: Vec<(usize, usize)>,
    ring: Ring,
    cycle: Vec<usize>,
    /// Experts that were guessed before their layer has chosen.
    guesses: Vec<usize>,
    /// Announced experts that have no room yet.
    ahead: VecDeque<usize>,
    pass: u64,
    layer: usize,
    position: u64,
    pub stats: ResidencyStats,
    pub closing: bool,
}

impl State {
    /// Nothing read, nothing asked for.
    pub fn new(weights: Vec<Weight>, plan: &Plan, disks: usize) -> State {
        let (cache, members, cached) = cache_of(&weights, plan);
        let (ring, cycle) = ring_of(&weights, plan);
        let mut start = (plan.pinned_bytes + plan.ring_bytes) as usize;
        let classes = plan.classes.iter().map(|class| {
            let first = start;
            start += class.slots * class.slot_bytes as usize;
            (first, class.slot_bytes as usize)
        });
        State {
            classes: classes.collect(),
            places: plan.places.clone(),
            residences: vec![Residence::default(); weights.len()],
            queues: vec![BTreeSet::new(); disks],
            news: vec![false; disks],
            cache,
            members,
            cached,
            ring,
            cycle,
            guesses: Vec::new(),
            ahead: VecDeque::new(),
            pass: 0,
            layer: 0,
            position: 0,
            stats: ResidencyStats::default(),
            closing: false,
            weights,
        }
    }

    /// Asks for what every pass reads.
    pub fn begin(&mut self) {
        self.pass = 1;
        for id in 0..self.weights.len() {
            self.load_pinned(id);
        }
        self.fill_ring();
        self.pass = 0;
    }

    /// A pass begins: what the one before announced and did not use is forgotten.
    pub fn begin_pass(&mut self) {
        self.pass += 1;
        self.position = 0;
        self.ahead.clear();
        self.guesses.clear();
    }

    fn load_pinned(&mut self, id: usize) {
        if let (Place::Pinned { at }, true) = (self.places[id], self.residences[id].is_absent()) {
            let slot = Slot { start: at as usize, len: self.weights[id].span() };
            self.load(id, slot);
        }
    }

    /// When a weight is needed: in this pass, or in the next where its turn is over.
    fn key(&self, id: usize) -> u64 {
        let position = self.weights[id].position;
        // A pass is not left by a look ahead, only by going round.
        let behind = self.position.saturating_sub(position);
        let pass = if 2 * behind > self.weights.len() as u64 { self.pass + 1 } else { self.pass };
        pass * (self.weights.len() as u64 + 1) + position
    }

    fn load(&mut self, id: usize, slot: Slot) {
        let key = self.key(id);
        let residence = &mut self.residences[id];
        let kept = (residence.readers, residence.waiters, residence.wanted, residence.seen, residence.entry);
        *residence = Residence { status: Status::Loading, slot: Some(slot), key, ..Residence::default() };
        (residence.readers, residence.waiters, residence.wanted, residence.seen, residence.entry) = kept;
        let disk = self.weights[id].disk;
        self.queues[disk].insert((key, id));
        self.news[disk] = true;
    }

    /// Moves a read that is waited for to the front.
    fn hurry(&mut self, id: usize) {
        let key = self.key(id);
        let disk = self.weights[id].disk;
        let residence = &mut self.residences[id];
        if residence.key > key && self.queues[disk].remove(&(residence.key, id)) {
            residence.key = key;
            self.queues[disk].insert((key, id));
        }
    }

    /// Whether there is new work on a disk since this was asked last.
    pub fn take_news(&mut self, disk: usize) -> bool {
        std::mem::take(&mut self.news[disk])
    }

    /// The next read of a disk.
    pub fn next_piece(&mut self, disk: usize) -> Option<Piece> {
        let &(key, id) = self.queues[disk].first()?;
        let (weight, residence) = (&self.weights[id], &mut self.residences[id]);
        let slot = residence.slot?;
        let start = residence.given;
        let len = piece_len(slot.len).min(slot.len - start);
        residence.given += len;
        residence.under_way += 1;
        let whole = (weight.bytes.end - weight.from()) as usize;
        if residence.given >= whole {
            self.queues[disk].remove(&(key, id));
        }
        Some(Piece {
            weight: id,
            part: weight.part,
            offset: weight.from() + start as u64,
            slot: Slot { start: slot.start + start, len },
            needed: len.min(whole - start),
        })
    }

    /// Takes note of a read that has ended. Whether its weight has come, or will not.
    pub fn finish_piece(&mut self, piece: &Piece, read: io::Result<()>) -> bool {
        let id = piece.weight;
        let disk = self.weights[id].disk;
        let residence = &mut self.residences[id];
        residence.under_way -= 1;
        match read {
            Ok(()) => self.stats.bytes_read += piece.slot.len as u64,
            Err(error) => {
                self.queues[disk].remove(&(residence.key, id));
                let fault = Fault { weight: id, offset: piece.offset, error };
                residence.fault.get_or_insert(Arc::new(fault));
            }
        }
        if residence.under_way > 0 || self.queues[disk].contains(&(residence.key, id)) {
            return false;
        }
        residence.status = match residence.fault.take() {
            Some(fault) => Status::Failed(fault),
            None => Status::Ready,
        };
        if residence.abandoned {
            self.forget(id);
            self.fill_ring();
        }
        true
    }

    /// Frees a weight's place.
    fn forget(&mut self, id: usize) {
        let residence = &mut self.residences[id];
        residence.status = Status::Absent;
        residence.abandoned = false;
        match self.places[id] {
            Place::Streamed => self.ring.done(residence.entry),
            Place::Cached { .. } => {
                if let Some(member) = self.members[id] {
                    self.cache.remove(member);
                }
            }
            _ => {}
        }
    }

    /// Somebody waits for a weight.
    pub fn expect(&mut self, id: usize) {
        self.residences[id].waiters += 1;
    }

    /// Nobody waits for it any more.
    pub fn expect_no_more(&mut self, id: usize) {
        self.residences[id].waiters -= 1;
    }

    /// Holds those weights that are in memory (as indices into `ids`) and asks for the others.
    ///
    /// # Errors
    /// Where one of them could not be read.
    pub fn hold(&mut self, ids: &[usize]) -> Result<Vec<usize>, Arc<Fault>> {
        for &id in ids {
            self.request(id)?;
        }
        let ready: Vec<usize> = (0..ids.len()).filter(|&i| self.residences[ids[i]].is_ready()).collect();
        ready.iter().for_each(|&i| self.residences[ids[i]].readers += 1);
        Ok(ready)
    }

    fn request(&mut self, id: usize) -> Result<(), Arc<Fault>> {
        if let Status::Failed(fault) = &self.residences[id].status {
            let fault = Arc::clone(fault);
            self.forget(id);
            return Err(fault);
        }
        self.position = self.weights[id].position;
        match self.places[id] {
            Place::Streamed => self.request_streamed(id),
            Place::Cached { .. } => self.request_cached(id),
            _ => self.load_pinned(id),
        }
        if self.residences[id].is_loading() {
            self.hurry(id);
        }
        Ok(())
    }

    /// The ring goes on to this weight: what it holds before it has been passed over.
    fn request_streamed(&mut self, id: usize) {
        let Ok(index) =
            self.cycle.binary_search_by_key(&self.weights[id].position, |&id| self.weights[id].position)
        else {
            return;
        };
        let number = self.ring.find(index).map(|entry| entry.number);
        let passed: Vec<usize> = self
            .ring
            .waiting()
            .take_while(|entry| Some(entry.number) != number)
            .map(|entry| self.cycle[entry.index])
            .filter(|&id| !self.residences[id].in_use() && !self.residences[id].abandoned)
            .collect();
        for id in passed {
            self.abandon(id);
        }
        if number.is_none() {
            self.ring.jump(index);
        }
        self.fill_ring();
    }

    fn abandon(&mut self, id: usize) {
        let disk = self.weights[id].disk;
        let residence = &mut self.residences[id];
        self.queues[disk].remove(&(residence.key, id));
        if residence.is_loading() && residence.under_way > 0 {
            residence.abandoned = true;
        } else {
            self.forget(id);
        }
    }

    fn fill_ring(&mut self) {
        while let Some(entry) = self.ring.push() {
            let id = self.cycle[entry.index];
            self.residences[id].entry = entry.number;
            self.load(id, entry.slot);
        }
    }

    /// Notes the first time that a pass asks for an expert.
    fn see(&mut self, id: usize) {
        let Some(member) = self.members[id] else { return };
        if self.residences[id].seen == self.pass {
            return;
        }
        self.residences[id].seen = self.pass;
        self.cache.touch(member, self.pass);
        let bytes = self.weights[id].bytes.end - self.weights[id].bytes.start;
        if self.residences[id].is_ready() {
            self.stats.hits += 1;
            self.stats.hit_bytes += bytes;
        } else {
            self.stats.misses += 1;
            self.stats.miss_bytes += bytes;
        }
    }

    fn request_cached(&mut self, id: usize) {
        self.layer = self.weights[id].layer;
        self.see(id);
        // What was only announced has to give way.
        let _ =
            self.residences[id].is_absent() && (self.place_cached(id, true) || self.place_cached(id, false));
    }

    /// Begins to read an expert if there is room for it.
    fn place_cached(&mut self, id: usize, spare_announced: bool) -> bool {
        let Some(member) = self.members[id] else { return false };
        let (residences, cached, pass) = (&self.residences, &self.cached, self.pass);
        let may_go = |member: usize| {
            let residence = &residences[cached[member]];
            let spared = spare_announced && residence.wanted == pass;
            !(residence.in_use() || residence.is_loading() || spared)
        };
        let now = Now { pass, layer: self.layer };
        let Some((slot, evicted)) = self.cache.place(member, now, may_go) else { return false };
        if let Some(evicted) = evicted {
            self.residences[self.cached[evicted]].status = Status::Absent;
        }
        let Place::Cached { class } = self.places[id] else { return false };
        let (start, len) = self.classes[class];
        let slot = Slot { start: start + slot * len, len: self.weights[id].span() };
        self.load(id, slot);
        true
    }

    /// Begins to read experts of this pass; those without room wait until there is some.
    pub fn announce(&mut self, ids: &[usize]) {
        let cached = || ids.iter().copied().filter(|&id| self.members[id].is_some());
        let ids: Vec<usize> = cached().collect();
        self.settle_guesses(&ids);
        for &id in &ids {
            self.residences[id].wanted = self.pass;
        }
        for &id in &ids {
            self.see(id);
            if self.residences[id].is_absent() && !self.place_cached(id, true) {
                self.ahead.push_back(id);
            }
        }
    }

    /// Begins to read experts that the next layer may choose, after everything that is certain and only where there is
    /// room that nothing certain needs.
    pub fn guess(&mut self, ids: &[usize]) {
        for &id in ids {
            if self.members[id].is_some() && self.residences[id].is_absent() && self.place_cached(id, true) {
                self.residences[id].wanted = self.pass;
                self.guesses.push(id);
            }
        }
    }

    /// The layer of `chosen` has chosen: guesses that were wrong are given up where they have not been begun.
    fn settle_guesses(&mut self, chosen: &[usize]) {
        let Some(&first) = chosen.first() else { return };
        let layer = self.weights[first].layer;
        for id in std::mem::take(&mut self.guesses) {
            if self.weights[id].layer != layer {
                self.guesses.push(id);
                continue;
            }
            self.stats.guesses += 1;
            if chosen.contains(&id) {
                self.stats.right_guesses += 1;
                continue;
            }
            self.residences[id].wanted = 0;
            if self.residences[id].is_loading() && self.residences[id].given == 0 {
                self.abandon(id);
            }
        }
    }

    /// Ends a hold on a weight.
    pub fn release(&mut self, id: usize) {
        let residence = &mut self.residences[id];
        residence.readers -= 1;
        if residence.readers > 0 {
            return;
        }
        residence.wanted = 0;
        match self.places[id] {
            // A second session may be about to use it.
            Place::Streamed if residence.waiters == 0 => {
                self.forget(id);
                self.fill_ring();
            }
            Place::Cached { .. } => self.place_ahead(),
            _ => {}
        }
    }

    fn place_ahead(&mut self) {
        while let Some(&id) = self.ahead.front() {
            if self.residences[id].is_absent() && !self.place_cached(id, true) {
                return;
            }
            self.ahead.pop_front();
        }
    }

    /// The place of a weight that is held, and its bytes in it.
    pub fn location(&self, id: usize) -> (Slot, Range<usize>) {
        let weight = &self.weights[id];
        let from = weight.from();
        let within = (weight.bytes.start - from) as usize..(weight.bytes.end - from) as usize;
        (self.residences[id].slot.unwrap_or(Slot { start: 0, len: 0 }), within)
    }

    /// Whether a weight is in memory.
    pub fn is_ready(&self, id: usize) -> bool {
        self.residences[id].is_ready()
    }

    /// Whether no read for the cache is under way or to be given out.
    pub fn is_cache_idle(&self) -> bool {
        !self.cached.iter().any(|&id| self.residences[id].is_loading())
    }

    /// Empties the cache and the counters; what it has learned of the model's use is forgotten.
    pub fn empty_cache(&mut self) {
        for i in 0..self.cached.len() {
            let id = self.cached[i];
            if !self.residences[id].in_use() {
                self.forget(id);
            }
        }
        self.cache.forget_uses();
        self.stats = ResidencyStats::default();
    }
}

#[cfg(test)]
mod tests;
