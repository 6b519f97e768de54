//! Requests without I/O: reads are done by hand, in any order.

use super::super::plan::{Role, WeightUse, plan};
use super::*;

const BLOCK: u64 = ALIGNMENT as u64;

/// Weights of whole blocks, one after another in one file.
fn state(roles: &[(Role, u64)], budget: u64) -> State {
    let (mut weights, mut uses, mut at) = (Vec::new(), Vec::new(), 0);
    for (position, &(role, blocks)) in roles.iter().enumerate() {
        let bytes = at..at + blocks * BLOCK;
        at = bytes.end;
        let (layer, share) = match role {
            Role::Expert { layer, count, used } => (layer, used as f32 / count as f32),
            _ => (0, 1.0),
        };
        uses.push(WeightUse { role, bytes: blocks * BLOCK, span: blocks * BLOCK });
        weights.push(Weight { part: 0, disk: 0, bytes, position: position as u64, layer, share });
    }
    let plan = plan(&uses, &vec![false; uses.len()], budget * BLOCK).unwrap_or_else(|e| panic!("{e}"));
    assert!(!plan.is_mapped());
    let mut state = State::new(weights, &plan, 1);
    state.begin();
    state
}

/// Does all reads there are, and says of which weights, in their order.
fn read_all(state: &mut State) -> Vec<usize> {
    let mut order = Vec::new();
    while let Some(piece) = state.next_piece(0) {
        order.push(piece.weight);
        state.finish_piece(&piece, Ok(()));
    }
    order.dedup();
    order
}

/// Holds one weight, reading as long as it is not there.
fn hold(state: &mut State, id: usize) {
    state.expect(id);
    while state.hold(&[id]).unwrap().is_empty() {
        let piece = state.next_piece(0).expect("something is being read");
        state.finish_piece(&piece, Ok(()));
    }
    state.expect_no_more(id);
}

fn dense(n: usize) -> Vec<(Role, u64)> {
    vec![(Role::Always, 10); n]
}

#[test]
fn a_stream_reads_each_weight_once_a_pass_and_ahead() {
    let mut state = state(&dense(20), 120);
    let streamed: Vec<usize> = state.cycle.clone();
    assert_eq!(streamed.len(), 13, "7 are pinned, the ring has room for 5");
    for pass in 1..=5 {
        state.begin_pass();
        for id in 0..20 {
            hold(&mut state, id);
            state.release(id);
        }
        read_all(&mut state);
        assert_eq!(state.stats.bytes_read / BLOCK / 10, 7 + 13 * pass + 5);
    }
    // Between passes the first of the stream wait already.
    assert!(streamed[..5].iter().all(|&id| state.is_ready(id)));
}

#[test]
fn a_pass_that_ends_early_does_not_stop_the_stream() {
    let mut state = state(&dense(20), 120);
    for last in [20, 3, 20, 11, 20] {
        state.begin_pass();
        for id in 0..last {
            hold(&mut state, id);
            state.release(id);
        }
    }
}

#[test]
fn two_runs_at_different_places_both_get_through() {
    let mut state = state(&dense(20), 120);
    state.begin_pass();
    let (mut a, mut b) = (0, 10);
    // Both wait all the time; what is read is read for one of them.
    [a, b].into_iter().for_each(|id| state.expect(id));
    for _ in 0..1000 {
        for at in [&mut a, &mut b].into_iter().filter(|at| **at < 20) {
            if !state.hold(&[*at]).unwrap().is_empty() {
                state.expect_no_more(*at);
                state.release(*at);
                *at += 1;
                if *at < 20 {
                    state.expect(*at);
                }
            }
        }
        if let Some(piece) = state.next_piece(0) {
            state.finish_piece(&piece, Ok(()));
        }
    }
    assert_eq!((a, b), (20, 20));
}

/// A layer of two matrices and four experts, of which a token uses two; twice.
fn experts() -> Vec<(Role, u64)> {
    let layer = |layer| {
        let expert = Role::Expert { layer, count: 4, used: 2 };
        [(Role::Always, 2), (Role::Always, 1), (expert, 10), (expert, 10), (expert, 10), (expert, 10)]
    };
    [layer(0), layer(1)].concat()
}

#[test]
fn what_is_needed_first_is_read_first() {
    let mut state = state(&experts(), 50);
    assert_eq!(read_all(&mut state), [0, 1, 6, 7]);
    state.begin_pass();
    hold(&mut state, 0);
    state.release(0);
    state.announce(&[8, 10, 3, 2]);
    assert_eq!(read_all(&mut state), [2, 3, 8, 10]);
    assert_eq!((state.stats.hits, state.stats.misses), (0, 4));
    state.begin_pass();
    state.announce(&[2, 4]);
    assert_eq!((state.stats.hits, state.stats.misses), (1, 5));
    assert_eq!(state.stats.miss_bytes, 50 * BLOCK);
}

#[test]
fn announced_experts_wait_for_room_and_keep_it() {
    let mut state = state(&experts(), 27);
    assert_eq!(state.cache_slots(), 2);
    read_all(&mut state);
    state.begin_pass();
    state.announce(&[2, 3, 8]);
    assert_eq!(read_all(&mut state), [2, 3], "8 has no room");
    hold(&mut state, 2);
    assert!(state.next_piece(0).is_none(), "both slots are wanted");
    state.release(2);
    assert_eq!(read_all(&mut state), [8], "2 was used and may go");
    // One that is asked for goes before what is only announced.
    hold(&mut state, 4);
    assert!(!state.is_ready(8) || !state.is_ready(3));
    state.release(4);
    hold(&mut state, 3);
    state.release(3);
    // A new pass forgets what was announced.
    state.begin_pass();
    assert!(state.ahead.is_empty());
}

impl State {
    fn cache_slots(&self) -> usize {
        self.classes.len() * 2
    }
}

#[test]
fn a_failed_read_is_told_once_and_tried_again() {
    let mut state = state(&experts(), 50);
    read_all(&mut state);
    state.begin_pass();
    for id in [2, 0] {
        if id == 0 {
            state.residences[0].status = Status::Absent;
        }
        state.expect(id);
        assert!(state.hold(&[id]).unwrap().is_empty());
        let piece = state.next_piece(0).unwrap();
        assert!(state.finish_piece(&piece, Err(io::ErrorKind::UnexpectedEof.into())));
        let fault = state.hold(&[id]).unwrap_err();
        assert_eq!((fault.weight, fault.offset), (id, piece.offset));
        state.expect_no_more(id);
        hold(&mut state, id);
        state.release(id);
    }
}

#[test]
fn an_emptied_cache_reads_everything_again() {
    let mut state = state(&experts(), 50);
    read_all(&mut state);
    state.begin_pass();
    hold(&mut state, 2);
    state.release(2);
    assert!(state.is_cache_idle() && state.is_ready(2));
    state.empty_cache();
    assert!(!state.is_ready(2) && state.is_ready(0));
    assert_eq!(state.stats, ResidencyStats::default());
    hold(&mut state, 2);
    assert_eq!(state.stats.bytes_read, 10 * BLOCK);
}

#[test]
fn large_weights_are_read_in_pieces() {
    let blocks = (5 * PIECE / 2) as u64 / BLOCK;
    let expert = Role::Expert { layer: 0, count: 4, used: 1 };
    let roles = [(Role::Always, blocks), (expert, 1), (expert, 1), (expert, 1), (expert, 1)];
    let mut state = state(&roles, blocks + 2);
    let pieces: Vec<Piece> = std::iter::from_fn(|| state.next_piece(0)).collect();
    assert_eq!(pieces.iter().map(|p| p.slot.len).sum::<usize>(), 5 * PIECE / 2);
    assert!(pieces.iter().all(|p| p.slot.len.abs_diff(5 * PIECE / 6) <= 2 * ALIGNMENT));
    assert_eq!(pieces[1].offset, pieces[0].slot.len as u64);
    // In any order; the last one completes the weight.
    assert!(!state.finish_piece(&pieces[2], Ok(())));
    assert!(!state.finish_piece(&pieces[0], Ok(())));
    assert!(!state.is_ready(0));
    assert!(state.finish_piece(&pieces[1], Ok(())));
    assert!(state.is_ready(0));
}

#[test]
fn wrong_guesses_are_given_up_before_they_cost_a_read() {
    let mut state = state(&experts(), 50);
    read_all(&mut state);
    state.begin_pass();
    state.announce(&[2, 3]);
    state.guess(&[8, 9]);
    // What is certain comes first.
    let order = |state: &mut State| {
        state.next_piece(0).map(|piece| (piece.weight, state.finish_piece(&piece, Ok(()))))
    };
    assert_eq!(order(&mut state), Some((2, true)));
    assert_eq!(order(&mut state), Some((3, true)));
    [2, 3].into_iter().for_each(|id| hold(&mut state, id));
    [2, 3].into_iter().for_each(|id| state.release(id));
    state.announce(&[9, 10]);
    assert!(state.residences[8].is_absent(), "8 was guessed, not chosen and not begun");
    assert_eq!(read_all(&mut state), [9, 10]);
    assert_eq!((state.stats.guesses, state.stats.right_guesses), (2, 1));
    // A guess never drives out what is certain.
    state.begin_pass();
    state.announce(&[2, 3, 4, 5]);
    let before = state.queues[0].clone();
    state.guess(&[8, 11]);
    assert_eq!(state.queues[0], before);
}
