//! A ring of memory through which weights pass in a fixed, cyclic order. It knows places, not bytes.

use std::collections::VecDeque;

use super::arena::Slot;

/// A weight that is in the ring, or on its way there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which: an index into the order.
    pub index: usize,
    /// How many have been put into the ring before it since it was made.
    pub number: u64,
    pub slot: Slot,
    done: bool,
}

/// Memory that is given out in the order of a cycle and taken back in the same order.
#[derive(Debug)]
pub struct Ring {
    memory: Slot,
    /// Bytes of each weight of the cycle.
    sizes: Vec<usize>,
    entries: VecDeque<Entry>,
    /// What comes next: an index into the order.
    next: usize,
    number: u64,
}

impl Ring {
    /// A ring in `memory` for a cycle of weights of `sizes` bytes.
    ///
    /// # Panics
    /// Where the largest does not fit: the plan's mistake.
    pub fn new(memory: Slot, sizes: Vec<usize>) -> Ring {
        assert!(sizes.iter().all(|&size| size <= memory.len), "a weight larger than the ring");
        Ring { memory, sizes, entries: VecDeque::new(), next: 0, number: 0 }
    }

    /// Takes room for the next weight of the cycle; `None` where there is none yet.
    pub fn push(&mut self) -> Option<Entry> {
        let &len = self.sizes.get(self.next)?;
        // A cycle shorter than the ring: the same weight twice would be one too many.
        if self.entries.iter().any(|entry| entry.index == self.next) {
            return None;
        }
        let start = self.room(len)?;
        let entry = Entry { index: self.next, number: self.number, slot: Slot { start, len }, done: false };
        self.entries.push_back(entry);
        self.next = (self.next + 1) % self.sizes.len();
        self.number += 1;
        Some(entry)
    }

    /// Where `len` bytes in one piece are free: behind the last entry, or at the beginning.
    fn room(&self, len: usize) -> Option<usize> {
        let (begin, end) = (self.memory.start, self.memory.start + self.memory.len);
        let (Some(first), Some(last)) = (self.entries.front(), self.entries.back()) else {
            return Some(begin);
        };
        let free = last.slot.start + last.slot.len;
        if last.slot.start >= first.slot.start {
            if end - free >= len {
                return Some(free);
            }
            return (first.slot.start - begin >= len).then_some(begin);
        }
        (first.slot.start - free >= len).then_some(free)
    }

    /// The entry of a weight.
    pub fn find(&self, index: usize) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.index == index && !entry.done)
    }

    /// Entries in their order, those that are done left out.
    pub fn waiting(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| !entry.done)
    }

    /// Says that a weight is not needed any more. Its room is free when all before it are done as well.
    pub fn done(&mut self, number: u64) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.number == number) {
            entry.done = true;
        }
        while self.entries.front().is_some_and(|entry| entry.done) {
            self.entries.pop_front();
        }
    }

    /// Goes on with another weight of the cycle than the one that would come next.
    pub fn jump(&mut self, index: usize) {
        self.next = index % self.sizes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(len: usize, sizes: &[usize]) -> Ring {
        Ring::new(Slot { start: 100, len }, sizes.to_vec())
    }

    #[test]
    fn weights_pass_in_their_order_and_never_overlap() {
        let mut ring = ring(100, &[30, 40, 20, 35, 10]);
        let mut held: VecDeque<Entry> = VecDeque::new();
        let mut order = Vec::new();
        while order.len() < 1000 {
            while let Some(entry) = ring.push() {
                let Slot { start, len } = entry.slot;
                assert!(start >= 100 && start + len <= 200);
                assert!(
                    held.iter().all(|e| e.slot.start + e.slot.len <= start || start + len <= e.slot.start)
                );
                order.push(entry.index);
                held.push_back(entry);
            }
            assert!(held.len() >= 2, "two at least fit at any place of this cycle");
            ring.done(held.pop_front().unwrap().number);
        }
        assert!(order.iter().enumerate().all(|(i, &index)| index == i % 5));
    }

    #[test]
    fn room_comes_back_in_order() {
        let mut ring = ring(100, &[50, 50, 50]);
        let (a, b) = (ring.push().unwrap(), ring.push().unwrap());
        assert_eq!(ring.push(), None);
        ring.done(b.number);
        assert_eq!(ring.push(), None, "the first still stands before it");
        assert_eq!(ring.find(1), None);
        ring.done(a.number);
        assert_eq!(ring.push().unwrap().index, 2);
        assert_eq!(ring.find(2).unwrap().slot, Slot { start: 100, len: 50 });
    }

    #[test]
    fn a_jump_goes_on_elsewhere() {
        let mut ring = ring(100, &[30, 30, 30, 30]);
        let entries: Vec<_> = std::iter::from_fn(|| ring.push()).collect();
        assert_eq!(entries.len(), 3);
        entries.iter().for_each(|entry| ring.done(entry.number));
        ring.jump(1);
        assert_eq!(ring.push().unwrap().index, 1);
        // The whole cycle in the ring: nothing more to come.
        let mut small = Ring::new(Slot { start: 0, len: 1000 }, vec![10, 10]);
        assert_eq!(std::iter::from_fn(|| small.push()).count(), 2);
        assert_eq!(Ring::new(Slot { start: 0, len: 10 }, Vec::new()).push(), None);
    }
}
