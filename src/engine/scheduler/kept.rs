//! Texts that somebody keeps from one request to the next.
//!
//! A [`Keeper`] has a text and lends it, to one at a time, in the order in which they ask. A request goes on
//! with a text that was lent to it, and the text is back before the request is told to be over, however it
//! ends. Which tokens it has is certain at all times; the next request runs those that have not been run.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use super::super::Sequence;
use super::accounts::{Accounts, Share};

/// A text, and what the model remembers of it.
#[derive(Debug)]
pub struct KeptText {
    sequence: Sequence,
    /// Tokens behind those of the sequence, which are still to be run.
    rest: Vec<u32>,
    share: Share,
}

impl KeptText {
    pub(super) fn new(sequence: Sequence, accounts: &Arc<Accounts>) -> KeptText {
        KeptText { sequence, rest: Vec::new(), share: Share::new(accounts) }
    }

    /// The tokens that have been run, and the logits behind the last where [`KeptText::rest`] is empty.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// The same to be changed; see [`KeptText::set_text`].
    pub fn sequence_mut(&mut self) -> &mut Sequence {
        &mut self.sequence
    }

    /// Tokens behind those of the sequence, which are still to be run.
    pub fn rest(&self) -> &[u32] {
        &self.rest
    }

    /// All of its tokens.
    pub fn tokens(&self) -> Vec<u32> {
        [self.sequence.tokens(), &self.rest].concat()
    }

    /// Tokens that it has.
    pub fn len(&self) -> usize {
        self.sequence.past() + self.rest.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Another one that reads the same.
    pub fn fork(&self) -> KeptText {
        KeptText { sequence: self.sequence.fork(), rest: self.rest.clone(), share: self.share.fork() }
    }

    /// Goes back to its first `to` tokens, of which the last ones may have to be run again.
    pub fn rewind(&mut self, to: usize) {
        match to.checked_sub(self.sequence.past()) {
            Some(rest) => self.rest.truncate(rest),
            None => self.take_back(to),
        }
    }

    /// Goes back to the first `to` tokens of the sequence, of which the last is run again for its logits.
    fn take_back(&mut self, to: usize) {
        let tokens = self.sequence.tokens()[..to].to_vec();
        let there = self.sequence.rewind(to.saturating_sub(1));
        self.rest = tokens[there..].to_vec();
    }

    /// All of its tokens are these, or those of its sequence where these are fewer: both begin alike.
    pub fn set_text(&mut self, tokens: &[u32]) {
        self.rest.clear();
        self.rest.extend_from_slice(tokens.get(self.sequence.past()..).unwrap_or_default());
    }

    /// Can be gone on from again, and holds what it holds.
    fn settle(&mut self) {
        if std::thread::panicking() {
            // A pass was broken off somewhere within.
            let tokens = self.tokens();
            self.sequence.rewind(0);
            self.rest = tokens;
        }
        // A pass that failed has left no logits, and one over the midst of a text neither.
        if self.rest.is_empty() && self.sequence.past() > 0 && self.sequence.logits().is_empty() {
            self.take_back(self.sequence.past());
        }
        self.share.update(&self.sequence);
    }

    /// Bytes and pages of positions that are counted as its own as long as it is lent.
    pub(super) fn counted(&self) -> (u64, usize) {
        (self.share.bytes(), self.share.positions())
    }

    /// Bytes of those that it need not get once more to go on: pages that it shares are copied when they are
    /// written to.
    pub(super) fn usable_bytes(&self) -> u64 {
        let open = self.sequence.open_pages();
        self.share.bytes().saturating_sub(self.share.shared(&open))
    }

    /// It is counted in these accounts.
    pub(super) fn count_in(&mut self, accounts: &Arc<Accounts>) {
        self.share.move_to(accounts);
    }
}

/// Has a text, and lends it to one at a time.
#[derive(Debug)]
pub struct Keeper {
    place: Mutex<Place>,
    changed: Condvar,
}

#[derive(Debug)]
struct Place {
    /// None while it is lent.
    text: Option<KeptText>,
    given_up: bool,
    /// Those who wait for it, by the numbers that they got.
    queue: VecDeque<u64>,
    next: u64,
}

impl Keeper {
    /// Keeps this text.
    pub fn new(text: KeptText) -> Arc<Keeper> {
        let place = Place { text: Some(text), given_up: false, queue: VecDeque::new(), next: 0 };
        Arc::new(Keeper { place: Mutex::new(place), changed: Condvar::new() })
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues for the text.
    pub fn ask(self: &Arc<Keeper>) -> Wanted {
        let mut place = self.place();
        let number = place.next;
        place.next += 1;
        place.queue.push_back(number);
        Wanted { keeper: Arc::clone(self), number }
    }

    /// Whether somebody waits for it.
    pub fn is_wanted(&self) -> bool {
        !self.place().queue.is_empty()
    }

    /// Drops the text, at once or when it comes back.
    pub fn give_up(&self) {
        let mut place = self.place();
        place.given_up = true;
        let text = place.text.take();
        drop(place);
        self.changed.notify_all();
        drop(text);
    }

    /// Whether it has none any more.
    pub fn has_given_up(&self) -> bool {
        self.place().given_up
    }

    fn put_back(&self, text: KeptText) {
        let mut place = self.place();
        if place.given_up {
            drop(place);
            drop(text);
            return;
        }
        place.text = Some(text);
        drop(place);
        self.changed.notify_all();
    }
}

/// A place in the queue for a text. Dropped, it is left.
#[derive(Debug)]
pub struct Wanted {
    keeper: Arc<Keeper>,
    number: u64,
}

impl Wanted {
    /// Waits for the text for so long; none where it was given up. It is had once.
    pub fn within(&mut self, time: Duration) -> Poll<Option<Loan>> {
        let place = self.keeper.place();
        let waits = |place: &mut Place| {
            !place.given_up && (place.text.is_none() || place.queue.front() != Some(&self.number))
        };
        let waited = self.keeper.changed.wait_timeout_while(place, time, waits);
        let (mut place, over) = waited.unwrap_or_else(PoisonError::into_inner);
        if place.given_up {
            return Poll::Ready(None);
        }
        if over.timed_out() {
            return Poll::Pending;
        }
        place.queue.pop_front();
        let text = place.text.take();
        drop(place);
        Poll::Ready(Some(Loan { text, keeper: Arc::clone(&self.keeper), changed: false }))
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.keeper.place().queue.retain(|&number| number != self.number);
        self.keeper.changed.notify_all();
    }
}

/// A text that is lent. Dropped, it goes back.
#[derive(Debug)]
pub struct Loan {
    /// There until it is dropped.
    text: Option<KeptText>,
    keeper: Arc<Keeper>,
    changed: bool,
}

impl Deref for Loan {
    type Target = KeptText;

    fn deref(&self) -> &KeptText {
        self.text.as_ref().expect("there until it is dropped")
    }
}

impl DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut KeptText {
        self.changed = true;
        self.text.as_mut().expect("there until it is dropped")
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let Some(mut text) = self.text.take() else { return };
        if self.changed {
            text.settle();
        }
        self.keeper.put_back(text);
    }
}
