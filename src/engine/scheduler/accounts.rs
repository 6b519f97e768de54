//! What kept texts hold of the memory for sequences. A page that several of them have is counted once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::Sequence;
use crate::kernels::ops::PAGE;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Accounts(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    /// Texts that have a page of keys and values, by its number.
    users: HashMap<u64, usize>,
    bytes: u64,
    positions: usize,
}

/// What a sequence holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Holding {
    /// Numbers and bytes of its pages of keys and values.
    pages: Vec<(u64, u64)>,
    /// Bytes of what is in no page.
    other: u64,
    /// Pages of positions.
    positions: usize,
}

impl Holding {
    fn of(sequence: &Sequence) -> Holding {
        let pages = sequence.pages_held();
        let other = sequence.held_bytes() - pages.iter().map(|(_, bytes)| bytes).sum::<u64>();
        Holding { pages, other, positions: sequence.past().div_ceil(PAGE) }
    }

    fn bytes(&self) -> u64 {
        self.other + self.pages.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }
}

impl Counted {
    fn add(&mut self, holding: &Holding) {
        for &(page, bytes) in &holding.pages {
            let users = self.users.entry(page).or_default();
            self.bytes += if *users == 0 { bytes } else { 0 };
            *users += 1;
        }
        self.bytes += holding.other;
        self.positions += holding.positions;
    }

    fn remove(&mut self, holding: &Holding) {
        for (page, bytes) in &holding.pages {
            let Some(users) = self.users.get_mut(page) else { continue };
            *users -= 1;
            if *users == 0 {
                self.users.remove(page);
                self.bytes -= bytes;
            }
        }
        self.bytes -= holding.other;
        self.positions -= holding.positions;
    }
}

impl Accounts {
    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> u64 {
        self.counted().bytes
    }

    /// Pages of positions that are held, those that texts share counted for each.
    pub fn positions(&self) -> usize {
        self.counted().positions
    }
}

/// What of it a text holds. Dropped, it holds nothing.
#[derive(Debug)]
pub(super) struct Share {
    accounts: Arc<Accounts>,
    holding: Holding,
}

impl Share {
    /// Of a text that holds nothing.
    pub fn new(accounts: &Arc<Accounts>) -> Share {
        Share { accounts: Arc::clone(accounts), holding: Holding::default() }
    }

    /// Bytes that the text holds, shared ones included.
    pub fn bytes(&self) -> u64 {
        self.holding.bytes()
    }

    /// Pages of positions that it holds.
    pub fn positions(&self) -> usize {
        self.holding.positions
    }

    /// Bytes of those of some pages that other texts have as well.
    pub fn shared(&self, pages: &[(u64, u64)]) -> u64 {
        let counted = self.accounts.counted();
        let shared = |(page, _): &&(u64, u64)| counted.users.get(page).is_some_and(|&users| users > 1);
        pages.iter().filter(shared).map(|(_, bytes)| bytes).sum()
    }

    /// It holds what its sequence does now.
    pub fn update(&mut self, sequence: &Sequence) {
        let holding = Holding::of(sequence);
        if holding == self.holding {
            return;
        }
        let mut counted = self.accounts.counted();
        counted.add(&holding);
        counted.remove(&self.holding);
        drop(counted);
        self.holding = holding;
    }

    /// The same in these accounts.
    pub fn move_to(&mut self, accounts: &Arc<Accounts>) {
        if !Arc::ptr_eq(&self.accounts, accounts) {
            accounts.counted().add(&self.holding);
            *self = Share { accounts: Arc::clone(accounts), holding: self.holding.clone() };
        }
    }

    /// The share of a fork.
    pub fn fork(&self) -> Share {
        self.accounts.counted().add(&self.holding);
        Share { accounts: Arc::clone(&self.accounts), holding: self.holding.clone() }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.accounts.counted().remove(&self.holding);
    }
}
