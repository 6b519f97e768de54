//! Weights that pass through the ring in the order of a pass: the next ones are read while there is room.

use super::super::arena::Slot;
use super::super::plan::{Place, Plan};
use super::super::ring::Ring;
use super::reads::{Reads, Weight};

/// The ring and what passes through it.
#[derive(Debug)]
pub struct Stream {
    ring: Ring,
    /// The weights in their order, and the number of each one's entry in the ring.
    pub(super) cycle: Vec<usize>,
    entries: Vec<u64>,
}

impl Stream {
    /// The ring that a plan asks for.
    pub fn new(weights: &[Weight], plan: &Plan) -> Stream {
        let streamed = |&id: &usize| plan.places[id] == Place::Streamed;
        let mut cycle: Vec<usize> = (0..weights.len()).filter(streamed).collect();
        cycle.sort_by_key(|&id| weights[id].position);
        let memory = Slot { start: plan.pinned_bytes as usize, len: plan.ring_bytes as usize };
        let sizes = cycle.iter().map(|&id| weights[id].span()).collect();
        Stream { ring: Ring::new(memory, sizes), entries: vec![0; cycle.len()], cycle }
    }

    /// Begins to read what comes next, as far as there is room.
    pub fn fill(&mut self, reads: &mut Reads) {
        while let Some(entry) = self.ring.push() {
            self.entries[entry.index] = entry.number;
            reads.load(self.cycle[entry.index], entry.slot.start);
        }
    }

    fn index(&self, reads: &Reads, id: usize) -> Option<usize> {
        let position = reads.weight(id).position;
        self.cycle.binary_search_by_key(&position, |&id| reads.weight(id).position).ok()
    }

    /// Goes on to a weight: what the ring holds before it has been passed over.
    pub fn request(&mut self, reads: &mut Reads, id: usize) {
        let Some(index) = self.index(reads, id) else { return };
        let found = self.ring.find(index).copied();
        let before = self.ring.waiting().take_while(|entry| Some(entry.number) != found.map(|f| f.number));
        let passed: Vec<usize> = before
            .map(|entry| self.cycle[entry.index])
            .filter(|&id| !reads.in_use(id) && !reads.is_abandoned(id))
            .collect();
        for id in passed {
            if reads.abandon(id) {
                self.end(reads, id);
            }
        }
        match found {
            // A read ahead that failed has left it its place.
            Some(entry) if reads.is_absent(id) => reads.load(id, entry.slot.start),
            Some(_) => {}
            None => self.ring.jump(index),
        }
        self.fill(reads);
    }

    /// Takes back the place of a weight that is not read and not needed any more.
    pub fn end(&mut self, reads: &Reads, id: usize) {
        if let Some(index) = self.index(reads, id) {
            self.ring.done(self.entries[index]);
        }
    }
}
