//! Requests without I/O: reads are done by hand, in any order.

mod failures;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::super::cache::Standing;
use super::super::disk::ALIGNMENT;
use super::super::plan::{Role, WeightUse, plan};
use super::reads::PIECE;
use super::*;

const BLOCK: u64 = ALIGNMENT as u64;

/// Weights of whole blocks, one after another in one file.
fn state(roles: &[(Role, u64)], budget: u64) -> State {
    state_on_disks(roles, budget, |_| 0)
}

fn state_on_disks(roles: &[(Role, u64)], budget: u64, disk: impl Fn(usize) -> usize) -> State {
    let (mut weights, mut uses, mut at) = (Vec::new(), Vec::new(), 0);
    for (id, &(role, blocks)) in roles.iter().enumerate() {
        let bytes = at..at + blocks * BLOCK;
        at = bytes.end;
        let (layer, share) = match role {
            Role::Expert { layer, count, used, .. } => (layer, used as f32 / count as f32),
            _ => (0, 1.0),
        };
        uses.push(WeightUse { role, bytes: blocks * BLOCK, span: blocks * BLOCK, device_bytes: None });
        weights.push(Weight { part: 0, disk: disk(id), bytes, position: id as u64, layer, share });
    }
    let plan = plan(&uses, &vec![false; uses.len()], budget * BLOCK, None).unwrap_or_else(|e| panic!("{e}"));
    assert!(!plan.is_mapped());
    let disks = (0..roles.len()).map(|id| disk(id) + 1).max().unwrap();
    let mut state = State::new(weights, &plan, disks);
    state.experts.cache.checked = true;
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

fn hold_and_release(state: &mut State, id: usize) {
    hold(state, id);
    state.release(id);
}

fn dense(n: usize) -> Vec<(Role, u64)> {
    vec![(Role::Always, 10); n]
}

/// An embedding that is the output matrix as well: its rows are read at the beginning of a pass, its turn is
/// at the end.
#[test]
fn a_look_at_a_weight_moves_nothing() {
    let mut state = state(&dense(20), 120);
    state.begin_pass();
    read_all(&mut state);
    (0..3).for_each(|id| hold_and_release(&mut state, id));
    let ready: Vec<usize> = (0..20).filter(|&id| state.is_ready(id)).collect();
    assert!(ready.len() >= 10, "{ready:?}");
    let before = format!("{state:?}");
    for id in 0..20 {
        assert_eq!(state.place_of(id).is_some(), ready.contains(&id));
    }
    assert_eq!(format!("{state:?}"), before);
    // The canary: to hold one that is there moves the pass to it.
    hold_and_release(&mut state, *ready.last().unwrap());
    assert_ne!(format!("{state:?}"), before);
}

#[test]
fn a_stream_reads_each_weight_once_a_pass_and_ahead() {
    let mut state = state(&dense(20), 120);
    let streamed: Vec<usize> = state.stream.cycle.clone();
    assert_eq!(streamed.len(), 13, "7 are pinned, the ring has room for 5");
    for pass in 1..=5 {
        state.begin_pass();
        (0..20).for_each(|id| hold_and_release(&mut state, id));
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
        (0..last).for_each(|id| hold_and_release(&mut state, id));
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

fn role(layer: usize, expert: usize) -> Role {
    Role::Expert { layer, expert, count: 4, used: 2 }
}

/// A layer of two matrices and four experts of one matrix, of which a token uses two; twice.
fn experts() -> Vec<(Role, u64)> {
    let layer = |layer| {
        let experts = (0..4).map(move |expert| (role(layer, expert), 10));
        [(Role::Always, 2), (Role::Always, 1)].into_iter().chain(experts)
    };
    layer(0).chain(layer(1)).collect()
}

#[test]
fn what_is_needed_first_is_read_first() {
    let mut state = state(&experts(), 50);
    assert_eq!(read_all(&mut state), [0, 1, 6, 7]);
    state.begin_pass();
    hold_and_release(&mut state, 0);
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
    // 21 blocks are left for experts: two slots.
    let mut state = state(&experts(), 27);
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
    hold_and_release(&mut state, 3);
    // A new pass forgets what was announced.
    state.begin_pass();
    assert!(state.experts.ahead.is_empty());
}

/// Gates of 3, ups of 2 and downs of 5 blocks of four experts of two layers, as merged tensors have them,
/// behind a weight that is read always.
fn units() -> Vec<(Role, u64)> {
    let part = |layer, blocks| (0..4).map(move |expert| (role(layer, expert), blocks));
    let layer = |layer| part(layer, 3).chain(part(layer, 2)).chain(part(layer, 5));
    [(Role::Always, 1)].into_iter().chain(layer(0)).chain(layer(1)).collect()
}

/// The gate, up and down of an expert of [`units`].
fn parts(layer: usize, expert: usize) -> [usize; 3] {
    [0, 4, 8].map(|part| 1 + 12 * layer + part + expert)
}

#[test]
fn an_expert_is_read_kept_and_evicted_as_one() {
    let mut state = state(&units(), 21);
    read_all(&mut state);
    state.begin_pass();
    let [gate, up, down] = parts(0, 0);
    // Its gate can be used before the rest has come, which is read in the order of registration.
    hold(&mut state, gate);
    assert!(state.is_ready(gate) && !state.is_ready(up) && !state.is_ready(down));
    assert_eq!(read_all(&mut state), [up, down]);
    let [a, b, c] = [gate, up, down].map(|id| state.reads.location(id).0);
    assert_eq!((b.start - a.start, c.start - a.start), (3 * ALIGNMENT, 5 * ALIGNMENT));
    assert_eq!((state.stats.hits, state.stats.misses, state.stats.miss_bytes), (0, 1, 10 * BLOCK));
    // Of two slots one is free and one is in use: a third expert takes the second's.
    parts(0, 1).into_iter().for_each(|id| hold_and_release(&mut state, id));
    parts(0, 2).into_iter().for_each(|id| hold_and_release(&mut state, id));
    assert!(parts(0, 0).into_iter().chain(parts(0, 2)).all(|id| state.is_ready(id)));
    assert!(!parts(0, 1).into_iter().any(|id| state.is_ready(id)));
    state.release(gate);
    state.begin_pass();
    state.announce(&[parts(0, 0), parts(0, 2)].concat());
    assert_eq!((state.stats.hits, state.stats.misses), (2, 3));
    assert_eq!(state.stats.hit_bytes, 20 * BLOCK);
    assert_eq!(state.stats.bytes_read, 31 * BLOCK);
}

#[test]
fn an_expert_stays_until_all_that_was_announced_of_it_was_used() {
    let mut state = state(&units(), 21);
    read_all(&mut state);
    state.begin_pass();
    state.announce(&[parts(0, 0), parts(0, 1), parts(0, 2)].concat());
    let [gate, up, down] = parts(0, 0);
    hold_and_release(&mut state, gate);
    hold_and_release(&mut state, up);
    assert!(state.is_ready(gate) && !state.reads.is_loading(parts(0, 2)[0]), "its down was not used yet");
    hold_and_release(&mut state, down);
    assert!(!state.is_ready(gate) && state.reads.is_loading(parts(0, 2)[0]), "the third has its slot now");
}

#[test]
fn parts_of_an_expert_are_read_from_their_disks() {
    // Downs lie on another disk.
    let mut state = state_on_disks(&units(), 21, |id| usize::from(id % 12 == 0 || id % 12 >= 9));
    while let Some(piece) = state.next_piece(0).or_else(|| state.next_piece(1)) {
        state.finish_piece(&piece, Ok(()));
    }
    state.begin_pass();
    let [gate, up, down] = parts(1, 3);
    state.announce(&[gate, up, down]);
    let pieces = [state.next_piece(1), state.next_piece(0), state.next_piece(0)].map(Option::unwrap);
    assert_eq!(pieces.map(|piece| piece.weight), [down, gate, up]);
    assert!(state.finish_piece(&pieces[0], Ok(())) && state.is_ready(down) && !state.is_ready(gate));
}

#[test]
fn an_emptied_cache_reads_everything_again() {
    let mut state = state(&experts(), 50);
    read_all(&mut state);
    state.begin_pass();
    hold_and_release(&mut state, 2);
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
    let expert = |expert| Role::Expert { layer: 0, expert, count: 4, used: 1 };
    let experts = (0..4).map(|e| (expert(e), 1));
    let roles: Vec<_> = [(Role::Always, blocks)].into_iter().chain(experts).collect();
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
    state.guess(&[8, 9], Guesses::On);
    // What is certain comes first.
    let order = |state: &mut State| {
        state.next_piece(0).map(|piece| (piece.weight, state.finish_piece(&piece, Ok(()))))
    };
    assert_eq!(order(&mut state), Some((2, true)));
    assert_eq!(order(&mut state), Some((3, true)));
    [2, 3].into_iter().for_each(|id| hold_and_release(&mut state, id));
    state.announce(&[9, 10]);
    assert!(state.reads.is_absent(8), "8 was guessed, not chosen and not begun");
    assert_eq!(read_all(&mut state), [9, 10]);
    assert_eq!((state.stats.guesses, state.stats.right_guesses), (2, 1));
    // A guess never drives out what is certain.
    state.begin_pass();
    state.announce(&[2, 3, 4, 5]);
    let before = state.reads.queues[0].clone();
    state.guess(&[8, 11], Guesses::On);
    assert_eq!(state.reads.queues[0], before);
}

#[test]
fn what_has_been_read_of_a_wrong_guess_is_kept() {
    let mut state = state(&units(), 31);
    read_all(&mut state);
    state.begin_pass();
    let [gate, up, down] = parts(1, 0);
    state.guess(&[gate, up, down], Guesses::On);
    let piece = state.next_piece(0).unwrap();
    state.announce(&parts(1, 1));
    assert!(state.finish_piece(&piece, Ok(())));
    assert_eq!(read_all(&mut state), parts(1, 1));
    assert!(state.is_ready(gate) && state.reads.is_absent(up) && state.reads.is_absent(down));
    assert_eq!((state.stats.guesses, state.stats.right_guesses), (1, 0), "one expert, not three weights");
    // Only the rest is read when it is wanted after all.
    state.announce(&[gate, up, down]);
    assert_eq!(read_all(&mut state), [up, down]);
    assert_eq!((state.stats.misses, state.stats.miss_bytes), (2, 17 * BLOCK));
    assert_eq!((state.stats.hits, state.stats.hit_bytes), (0, 3 * BLOCK));
}

#[test]
fn guesses_on_trial_cost_no_read_until_they_are_mostly_right() {
    let mut state = state(&experts(), 30);
    read_all(&mut state);
    let mut read_ahead = 0;
    for _ in 0..200 {
        state.begin_pass();
        let absent = (8..12).find(|&id| !state.is_ready(id)).expect("the cache has not room for all");
        assert!(state.makes_guesses(Guesses::Auto));
        state.guess(&[absent], Guesses::Auto);
        let read = read_all(&mut state);
        assert!(read.is_empty() || read == [absent]);
        read_ahead += read.len() as u64;
        state.announce(&[absent]);
        read_all(&mut state);
    }
    assert_eq!(read_ahead, 200 - 64);
    assert_eq!((state.stats.guesses, state.stats.right_guesses), (read_ahead, read_ahead));
}

/// Three sessions, reads that end in any order or fail, announcements and guesses at random: what is held
/// is never written to or moved, what is read has a place of its own, and all get what they wait for.
#[test]
fn nothing_moves_while_it_is_held_or_read() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for round in 0..30 {
        let mut random = |n: usize| rng.next_u32() as usize % n;
        let mut state = state_on_disks(&units(), 21 + random(40) as u64, |id| id % 2);
        let (mut waiting, mut held) = (vec![Vec::new(); 3], Vec::<(usize, Slot)>::new());
        let mut reading: Vec<Piece> = Vec::new();
        for _ in 0..1500 {
            let chosen: Vec<usize> = (0..2).flat_map(|_| parts(random(2), random(4))).collect();
            let session = random(3);
            match random(16) {
                0 => state.begin_pass(),
                1 => state.announce(&chosen),
                2 => state.guess(&chosen, [Guesses::Auto, Guesses::On][random(2)]),
                3..=4 if waiting[session].is_empty() => {
                    waiting[session] = chosen.iter().copied().step_by(1 + random(3)).collect();
                    waiting[session].sort_unstable();
                    waiting[session].dedup();
                    waiting[session].iter().for_each(|&id| state.expect(id));
                }
                5..=8 if !waiting[session].is_empty() => {
                    let found = state.hold(&waiting[session]);
                    if !matches!(&found, Ok(found) if found.is_empty()) {
                        let ids = std::mem::take(&mut waiting[session]);
                        held.extend(found.into_iter().flatten().map(|h| (ids[h.index], h.slot)));
                        ids.iter().for_each(|&id| state.expect_no_more(id));
                    }
                }
                9..=11 if !held.is_empty() => {
                    let (id, _) = held.swap_remove(random(held.len()));
                    state.release(id);
                }
                12..=13 => reading.extend(state.next_piece(random(2))),
                _ if !reading.is_empty() => {
                    let piece = reading.swap_remove(random(reading.len()));
                    let read = if random(10) == 0 { Err(io::ErrorKind::Other.into()) } else { Ok(()) };
                    state.finish_piece(&piece, read);
                }
                _ => {}
            }
            check(&state, &held, &reading);
        }
        // All that is still waited for comes.
        held.drain(..).for_each(|(id, _)| state.release(id));
        for piece in reading.drain(..) {
            state.finish_piece(&piece, Ok(()));
        }
        while waiting.iter().any(|ids| !ids.is_empty()) {
            let mut moved = false;
            for ids in waiting.iter_mut().filter(|ids| !ids.is_empty()) {
                let Ok(found) = state.hold(ids) else {
                    ids.drain(..).for_each(|id| state.expect_no_more(id));
                    moved = true;
                    continue;
                };
                found.iter().for_each(|held| state.release(ids[held.index]));
                found.iter().rev().for_each(|held| state.expect_no_more(ids.remove(held.index)));
                moved |= !found.is_empty();
            }
            if let Some(piece) = state.next_piece(0).or_else(|| state.next_piece(1)) {
                state.finish_piece(&piece, Ok(()));
                moved = true;
            }
            assert!(moved, "round {round}: {waiting:?} never come");
        }
    }
}

fn check(state: &State, held: &[(usize, Slot)], reading: &[Piece]) {
    for &(id, slot) in held {
        assert!(state.is_ready(id) && state.reads.location(id).0 == slot);
    }
    let mut held: Vec<Slot> = held.iter().map(|&(_, slot)| slot).collect();
    held.sort_by_key(|slot| slot.start);
    held.dedup();
    let mut taken: Vec<Slot> = held.into_iter().chain(reading.iter().map(|piece| piece.slot)).collect();
    taken.sort_by_key(|slot| slot.start);
    assert!(taken.windows(2).all(|pair| pair[0].start + pair[0].len <= pair[1].start), "{taken:?}");
    for unit in 0..8 {
        if state.experts.cache.slot(unit).is_some() {
            let standing: Standing = state.experts.cache.standing(unit);
            assert_eq!(standing, state.experts.standing(&state.reads, unit));
        }
    }
}
