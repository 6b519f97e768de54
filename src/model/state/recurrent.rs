//! The state of a recurrence, which cannot be cut back: copies of it are kept to go back to.
//!
//! Copies are taken at the ends of pages, where a pass of several tokens begins, and after each token of a
//! pass of drafts. They are shared by sequences that begin alike, as pages are.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::kernels::ops::PAGE;
use crate::store::{OutOfMemory, zeroed};

/// Copies at ends of pages that are kept: the last ones.
const PAGE_ENDS: usize = 2;

/// What a recurrence has come to.
#[derive(Debug, PartialEq)]
pub(super) struct State {
    /// A number that no other state has or had: as long as it is this one's, the values do not change.
    pub number: u64,
    pub values: Vec<f32>,
}

impl State {
    fn new(values: Vec<f32>) -> State {
        State { number: State::next_number(), values }
    }

    fn next_number() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }
}

/// A state after some positions.
#[derive(Clone, Debug)]
struct Copy {
    past: usize,
    state: Arc<State>,
}

/// The stretches of a pass's rows, of which the first is at position `first_pos`, that end where copies are
/// taken: at ends of pages, or after each of the rows where those behind the first are `drafts`.
pub(in crate::model) fn stretches(
    first_pos: usize,
    rows: usize,
    drafts: bool,
) -> impl Iterator<Item = Range<usize>> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let to_page_end = PAGE - (first_pos + done) % PAGE;
        let n = if drafts { 1 } else { to_page_end.min(rows - done) };
        (done < rows).then(|| {
            done += n;
            done - n..done
        })
    })
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Recurrent {
    floats: usize,
    /// Positions that the state has seen.
    past: usize,
    /// The state now; `None` where it has seen nothing: zeros.
    now: Option<Arc<State>>,
    /// In the order of their positions, the last at `past` at most.
    copies: VecDeque<Copy>,
}

impl Recurrent {
    pub fn new(floats: usize) -> Recurrent {
        Recurrent { floats, past: 0, now: None, copies: VecDeque::new() }
    }

    /// Bytes at most, of passes with up to so many drafts.
    pub fn most_bytes(&self, drafts: usize) -> u64 {
        // The state, where the pass began, ends of pages, drafts.
        ((self.floats * size_of::<f32>()) as u64).saturating_mul((2 + PAGE_ENDS + drafts) as u64)
    }

    /// Bytes held now; what is shared is counted whole.
    pub fn held_bytes(&self) -> u64 {
        let others = |copy: &&Copy| !self.now.as_ref().is_some_and(|now| Arc::ptr_eq(now, &copy.state));
        let states = usize::from(self.now.is_some()) + self.copies.iter().filter(others).count();
        (states * self.floats * size_of::<f32>()) as u64
    }

    /// The last position up to `pos` from which a pass can go on; 0 can always be had.
    pub fn last_before(&self, pos: usize) -> usize {
        if self.past <= pos {
            return self.past;
        }
        self.copies.iter().rev().map(|copy| copy.past).find(|&past| past <= pos).unwrap_or(0)
    }

    /// The state after so many positions, where it is still there.
    pub fn state_at(&self, past: usize) -> Option<&State> {
        if self.past == past {
            return self.now.as_deref();
        }
        self.copies.iter().find(|copy| copy.past == past).map(|copy| &*copy.state)
    }

    /// Floats of a state.
    pub fn floats(&self) -> usize {
        self.floats
    }

    /// Goes on from a state after so many positions, which it can go back to.
    pub fn resume(&mut self, past: usize, state: Vec<f32>) {
        debug_assert_eq!(state.len(), self.floats);
        *self = Recurrent { past, now: Some(Arc::new(State::new(state))), ..Recurrent::new(self.floats) };
        self.keep_copy();
    }

    /// Goes back to such a position.
    ///
    /// # Panics
    /// Where there is no copy of it: the engine's mistake.
    pub fn rewind(&mut self, past: usize) {
        while self.copies.back().is_some_and(|copy| copy.past > past) {
            self.copies.pop_back();
        }
        if past == self.past {
            return;
        }
        self.now = match (past, self.copies.back()) {
            (0, _) => None,
            (_, Some(copy)) if copy.past == past => Some(Arc::clone(&copy.state)),
            _ => panic!("a recurrent state cannot go back from position {} to {past}", self.past),
        };
        self.past = past;
    }

    /// Runs the recurrence over `rows` rows from position `first_pos` on: calls `step` with stretches of rows
    /// and the state to change. Where the rows behind the first are `drafts`, a copy is kept after each.
    ///
    /// # Errors
    /// Where there is no memory for the state.
    pub fn advance(
        &mut self,
        first_pos: usize,
        rows: usize,
        drafts: bool,
        mut step: impl FnMut(Range<usize>, &mut [f32]),
    ) -> Result<(), OutOfMemory> {
        self.rewind(first_pos);
        self.forget_copies();
        if rows > 1 {
            self.keep_copy();
        }
        for stretch in stretches(first_pos, rows, drafts) {
            step(stretch.clone(), self.state_mut()?);
            self.past += stretch.len();
            if self.past.is_multiple_of(PAGE) || drafts {
                self.keep_copy();
            }
        }
        Ok(())
    }

    /// Lets go of all copies but those at the last ends of pages.
    fn forget_copies(&mut self) {
        self.copies.retain(|copy| copy.past.is_multiple_of(PAGE));
        while self.copies.len() > PAGE_ENDS {
            self.copies.pop_front();
        }
    }

    /// Keeps what the state is now: it is copied when it is next written to.
    fn keep_copy(&mut self) {
        let Some(now) = &self.now else { return };
        if self.copies.back().is_none_or(|copy| copy.past < self.past) {
            self.copies.push_back(Copy { past: self.past, state: Arc::clone(now) });
        }
        let ends = self.copies.iter().filter(|copy| copy.past.is_multiple_of(PAGE)).count();
        if ends > PAGE_ENDS {
            let oldest = self.copies.iter().position(|copy| copy.past.is_multiple_of(PAGE));
            oldest.map(|at| self.copies.remove(at));
        }
    }

    /// The state, to be changed: it gets another number.
    fn state_mut(&mut self) -> Result<&mut [f32], OutOfMemory> {
        let new = || zeroed::<f32>(&[self.floats], "the state of a recurrence");
        match &self.now {
            None => self.now = Some(Arc::new(State::new(new()?))),
            Some(now) if Arc::strong_count(now) > 1 => {
                let mut copy = new()?;
                copy.copy_from_slice(&now.values);
                self.now = Some(Arc::new(State::new(copy)));
            }
            Some(_) => {}
        }
        let now = self.now.as_mut().and_then(Arc::get_mut).expect("the state is not shared");
        now.number = State::next_number();
        Ok(&mut now.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A recurrence whose state tells its whole past.
    fn run(state: &mut Recurrent, first_pos: usize, rows: usize, drafts: bool) {
        let step = |part: Range<usize>, state: &mut [f32]| {
            for row in part {
                state[0] = (state[0] * 31.0 + (first_pos + row) as f32 + 1.0) % 65521.0;
                state[1] += 1.0;
            }
        };
        state.advance(first_pos, rows, drafts, step).expect("memory");
    }

    fn values(state: &Recurrent) -> Vec<f32> {
        state.now.as_ref().expect("filled").values.clone()
    }

    fn fresh(past: usize) -> Vec<f32> {
        let mut state = Recurrent::new(2);
        run(&mut state, 0, past, false);
        values(&state)
    }

    #[test]
    fn a_state_goes_back_to_every_position_by_a_replay() {
        let mut state = Recurrent::new(2);
        for (first, rows) in [(0, 100), (100, 1), (101, 199), (300, 1), (301, 1)] {
            run(&mut state, first, rows, false);
        }
        for past in (1..=302).rev() {
            let mut back = state.clone();
            let from = back.last_before(past);
            back.rewind(from);
            assert_eq!(from, if past >= 302 { 302 } else { past / PAGE * PAGE }, "{past}");
            run(&mut back, from, past - from, false);
            assert_eq!(values(&back), fresh(past), "{past}");
        }
        assert_eq!(values(&state), fresh(302), "a clone has its own");
    }

    #[test]
    fn a_pass_that_failed_goes_back_to_where_it_began() {
        let mut state = Recurrent::new(2);
        run(&mut state, 0, 10, false);
        run(&mut state, 10, 300, false);
        assert_eq!(state.last_before(10), 10);
        state.rewind(10);
        assert_eq!(values(&state), fresh(10));
    }

    #[test]
    fn drafts_can_be_taken_back_one_by_one() {
        for taken in 0..=6 {
            let mut state = Recurrent::new(2);
            run(&mut state, 0, 125, false);
            run(&mut state, 125, 7, true);
            assert_eq!(state.last_before(126 + taken), 126 + taken);
            run(&mut state, 126 + taken, 1, false);
            assert_eq!(values(&state), fresh(127 + taken));
            assert!(state.held_bytes() <= state.most_bytes(0), "copies are let go");
        }
    }

    /// Copies elsewhere are known by it.
    #[test]
    fn a_number_is_that_of_the_same_values_alone() {
        let mut state = Recurrent::new(2);
        let mut seen = std::collections::HashMap::new();
        let mut check = |state: &Recurrent| {
            let now = state.now.as_ref().expect("filled");
            let first = seen.entry(now.number).or_insert_with(|| now.values.clone());
            assert_eq!(*first, now.values);
            now.number
        };
        let mut past = 0;
        for rows in [100, 27, 1, 1, 130, 1] {
            run(&mut state, past, rows, false);
            past += rows;
            check(&state);
        }
        let (mut fork, last) = (state.clone(), check(&state));
        assert_eq!(check(&fork), last, "shared");
        run(&mut fork, past, 1, false);
        assert_ne!(check(&fork), last);
        run(&mut state, past, 2, false);
        check(&state);
        state.rewind(256);
        let at_page_end = check(&state);
        run(&mut state, 256, 4, false);
        check(&state);
        state.rewind(256);
        assert_eq!(check(&state), at_page_end);
        let again = values(&state);
        state.resume(256, again);
        assert_ne!(check(&state), at_page_end, "read anew");
    }

    #[test]
    fn memory_is_bounded() {
        let mut state = Recurrent::new(2);
        let mut past = 0;
        for rows in [1000, 1, 1, 127, 1, 128, 129, 16, 1, 600] {
            run(&mut state, past, rows, rows == 16);
            past += rows;
            let drafts = if rows == 16 { 16 } else { 0 };
            assert!(state.held_bytes() <= state.most_bytes(drafts), "{past}: {}", state.held_bytes());
        }
        state.rewind(0);
        assert_eq!(state.held_bytes(), 0);
    }
}
