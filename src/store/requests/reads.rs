//! Reads of weights: which are under way, which come next, what has come of them, and who holds what has
//! come. A weight's place in memory is given to it; why it is read is not known here.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::super::arena::Slot;
use super::super::disk::ALIGNMENT;

/// Bytes of a read, about: weights are read in equal pieces.
pub(super) const PIECE: usize = 1 << 20;

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

    pub fn len(&self) -> u64 {
        self.bytes.end - self.bytes.start
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
    pub weight: usize,
    pub part: usize,
    pub offset: u64,
    pub slot: Slot,
    /// Bytes of the piece that must be in the file.
    pub needed: usize,
}

/// What the end of a read means for its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// More of it is to be read.
    UnderWay,
    /// It has come, or will not: those that wait for it should look.
    Settled,
    /// Nobody wants it any more: its place is free.
    Abandoned,
}

#[derive(Clone, Debug, Default)]
enum Status {
    #[default]
    Absent,
    Loading,
    Ready,
    /// Until those that wait for it have been told.
    Failed(Arc<Fault>),
}

#[derive(Clone, Debug, Default)]
struct Residence {
    status: Status,
    slot: Option<Slot>,
    /// Bytes given out to readers, and pieces that they have not brought yet.
    given: usize,
    under_way: usize,
    fault: Option<Arc<Fault>>,
    /// Whether somebody waited for it when its reads began. A read ahead that fails is forgotten: the
    /// weight is read again when it is wanted. So is the failure of a read for which nobody waits any more.
    demanded: bool,
    /// Not wanted any more; its place is free when its reads have ended.
    abandoned: bool,
    /// When it is needed: the order of reads.
    key: u64,
    readers: u32,
    waiters: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Reads {
    weights: Vec<Weight>,
    residences: Vec<Residence>,
    /// Reads to be given out, by disk: the first needed first.
    pub(super) queues: Vec<BTreeSet<(u64, usize)>>,
    news: Vec<bool>,
    /// Where the run is: how many passes have begun, and the place in the order of this one.
    pass: u64,
    position: u64,
}

/// Bytes of the pieces of a weight of `len` bytes: equal but for the last, so that none is small.
fn piece_len(len: usize) -> usize {
    let pieces = ((len + PIECE / 2) / PIECE).max(1);
    len.div_ceil(pieces).next_multiple_of(ALIGNMENT)
}

impl Reads {
    /// Nothing read, nothing to be read.
    pub fn new(weights: Vec<Weight>, disks: usize) -> Reads {
        Reads {
            residences: vec![Residence::default(); weights.len()],
            queues: vec![BTreeSet::new(); disks],
            news: vec![false; disks],
            pass: 0,
            position: 0,
            weights,
        }
    }

    pub fn weight(&self, id: usize) -> &Weight {
        &self.weights[id]
    }

    /// How many passes have begun.
    pub fn pass(&self) -> u64 {
        self.pass
    }

    /// Goes to the beginning of a pass.
    pub fn begin_pass(&mut self, pass: u64) {
        (self.pass, self.position) = (pass, 0);
    }

    /// Goes to a weight's place in the pass.
    pub fn go_to(&mut self, id: usize) {
        self.position = self.weights[id].position;
    }

    pub fn is_loading(&self, id: usize) -> bool {
        matches!(self.residences[id].status, Status::Loading)
    }

    pub fn is_ready(&self, id: usize) -> bool {
        matches!(self.residences[id].status, Status::Ready)
    }

    pub fn is_absent(&self, id: usize) -> bool {
        matches!(self.residences[id].status, Status::Absent)
    }

    /// Whether it is to be read and no read of it has begun.
    pub fn is_queued(&self, id: usize) -> bool {
        self.is_loading(id) && self.residences[id].given == 0
    }

    pub fn is_abandoned(&self, id: usize) -> bool {
        self.residences[id].abandoned
    }

    /// Whether somebody holds a weight or waits for it.
    pub fn in_use(&self, id: usize) -> bool {
        self.residences[id].readers > 0 || self.residences[id].waiters > 0
    }

    pub fn is_waited_for(&self, id: usize) -> bool {
        self.residences[id].waiters > 0
    }

    /// Why a weight that is waited for could not be read.
    pub fn fault(&self, id: usize) -> Option<&Arc<Fault>> {
        match &self.residences[id].status {
            Status::Failed(fault) => Some(fault),
            _ => None,
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

    /// Begins to read a weight that is absent into `start..` of the memory.
    pub fn load(&mut self, id: usize, start: usize) {
        let (key, disk) = (self.key(id), self.weights[id].disk);
        let slot = Slot { start, len: self.weights[id].span() };
        let residence = &mut self.residences[id];
        debug_assert_eq!(residence.under_way, 0, "reads of the time before are still under way");
        let Residence { readers, waiters, .. } = *residence;
        *residence = Residence {
            status: Status::Loading,
            slot: Some(slot),
            demanded: waiters > 0,
            key,
            readers,
            waiters,
            ..Residence::default()
        };
        self.queues[disk].insert((key, id));
        self.news[disk] = true;
    }

    /// Moves a read that is waited for to the front.
    pub fn hurry(&mut self, id: usize) {
        let (key, disk) = (self.key(id), self.weights[id].disk);
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

    /// Takes note of a read that has ended.
    pub fn finish_piece(&mut self, piece: &Piece, read: io::Result<()>) -> Ended {
        let id = piece.weight;
        let queue = &mut self.queues[self.weights[id].disk];
        let residence = &mut self.residences[id];
        residence.under_way -= 1;
        if let Err(error) = read {
            queue.remove(&(residence.key, id));
            residence.fault.get_or_insert(Arc::new(Fault { weight: id, offset: piece.offset, error }));
        }
        if residence.under_way > 0 || queue.contains(&(residence.key, id)) {
            return Ended::UnderWay;
        }
        let fault = residence.fault.take();
        if std::mem::take(&mut residence.abandoned) {
            residence.status = Status::Absent;
            return Ended::Abandoned;
        }
        residence.status = match fault {
            None => Status::Ready,
            Some(fault) if residence.demanded && residence.waiters > 0 => Status::Failed(fault),
            Some(_) => Status::Absent,
        };
        match residence.slot {
            // It was read ahead; now somebody waits for it.
            Some(Slot { start, .. })
                if residence.waiters > 0 && matches!(residence.status, Status::Absent) =>
            {
                self.load(id, start);
                Ended::UnderWay
            }
            _ => Ended::Settled,
        }
    }

    /// Gives up a weight. Whether its place is free at once, or when its reads have ended.
    pub fn abandon(&mut self, id: usize) -> bool {
        let residence = &mut self.residences[id];
        self.queues[self.weights[id].disk].remove(&(residence.key, id));
        let under_way = matches!(residence.status, Status::Loading) && residence.under_way > 0;
        if under_way {
            residence.abandoned = true;
        } else {
            residence.status = Status::Absent;
        }
        !under_way
    }

    /// Forgets a weight that is not being read: its place is free.
    pub fn forget(&mut self, id: usize) {
        debug_assert!(!self.is_loading(id), "a place is taken from a read");
        self.residences[id].status = Status::Absent;
    }

    /// Somebody waits for a weight.
    pub fn expect(&mut self, id: usize) {
        self.residences[id].waiters += 1;
    }

    /// Somebody does not wait for it any more. Whether the weight has failed, and all that waited have been
    /// told.
    pub fn expect_no_more(&mut self, id: usize) -> bool {
        let residence = &mut self.residences[id];
        residence.waiters -= 1;
        residence.waiters == 0 && matches!(residence.status, Status::Failed(_))
    }

    /// Holds a weight that is ready.
    pub fn hold(&mut self, id: usize) {
        self.residences[id].readers += 1;
    }

    /// Ends a hold. Whether it was the last.
    pub fn release(&mut self, id: usize) -> bool {
        self.residences[id].readers -= 1;
        self.residences[id].readers == 0
    }

    /// The place of a weight that is held, and its bytes in it.
    pub fn location(&self, id: usize) -> (Slot, Range<usize>) {
        let weight = &self.weights[id];
        let from = weight.from();
        let within = (weight.bytes.start - from) as usize..(weight.bytes.end - from) as usize;
        (self.residences[id].slot.unwrap_or(Slot { start: 0, len: 0 }), within)
    }
}
