//! Reads that fail: ahead of their time, and while somebody waits.

use super::*;

fn fail(state: &mut State, piece: &Piece) -> bool {
    state.finish_piece(piece, Err(io::ErrorKind::UnexpectedEof.into()))
}

#[test]
fn a_failed_read_is_told_once_and_tried_again() {
    let mut state = state(&experts(), 50);
    read_all(&mut state);
    state.begin_pass();
    for id in [2, 0] {
        if id == 0 {
            state.reads.forget(0);
        }
        state.expect(id);
        assert!(state.hold(&[id]).unwrap().is_empty());
        let piece = state.next_piece(0).unwrap();
        assert!(fail(&mut state, &piece));
        let Failure::Read(fault) = state.hold(&[id]).unwrap_err() else { panic!("nobody panicked") };
        assert_eq!((fault.weight, fault.offset), (id, piece.offset));
        state.expect_no_more(id);
        assert!(state.reads.is_absent(id));
        hold_and_release(&mut state, id);
    }
}

#[test]
fn a_failed_read_ahead_is_tried_again_when_it_is_wanted() {
    let mut state = state(&units(), 21);
    // Pinned, announced, guessed: nobody waits for them.
    let fail_all = |state: &mut State| {
        while let Some(piece) = state.next_piece(0) {
            assert!(fail(state, &piece));
        }
    };
    fail_all(&mut state);
    state.begin_pass();
    hold_and_release(&mut state, 0);
    state.announce(&parts(0, 0));
    state.guess(&parts(1, 1), Guesses::On);
    fail_all(&mut state);
    assert_eq!(state.stats.bytes_read, BLOCK);
    let ids = [parts(0, 0), parts(1, 1)].concat();
    assert!(ids.iter().all(|&id| state.reads.is_absent(id)));
    ids.into_iter().for_each(|id| hold_and_release(&mut state, id));
    // A part alone that failed has its unit's slot still.
    state.begin_pass();
    let [gate, up, down] = parts(0, 2);
    state.announce(&[gate, up, down]);
    let pieces = [(); 3].map(|()| state.next_piece(0).unwrap());
    assert!(state.finish_piece(&pieces[0], Ok(())) && fail(&mut state, &pieces[1]));
    assert!(state.finish_piece(&pieces[2], Ok(())));
    assert!(state.is_ready(gate) && state.reads.is_absent(up) && state.is_ready(down));
    hold_and_release(&mut state, up);
    // Somebody comes to wait for it meanwhile: it is read once more, and only that failure is told.
    state.begin_pass();
    let [gate, ..] = parts(1, 3);
    state.announce(&[gate]);
    let piece = state.next_piece(0).unwrap();
    state.expect(gate);
    assert!(state.hold(&[gate]).unwrap().is_empty());
    assert!(!fail(&mut state, &piece));
    let again = state.next_piece(0).unwrap();
    assert_eq!((again.weight, again.offset), (gate, piece.offset));
    assert!(fail(&mut state, &again));
    assert!(state.hold(&[gate]).is_err());
    state.expect_no_more(gate);
    hold_and_release(&mut state, gate);
}

#[test]
fn a_stream_whose_reads_ahead_fail_goes_on() {
    let mut state = state(&dense(20), 120);
    for pass in 0..3 {
        while let Some(piece) = state.next_piece(0) {
            assert!(fail(&mut state, &piece));
        }
        state.begin_pass();
        for id in 0..20 {
            // In the second pass the reads that somebody waits for fail, too.
            if pass == 1 && !state.is_ready(id) {
                state.expect(id);
                while state.hold(&[id]).is_ok_and(|held| held.is_empty()) {
                    let piece = state.next_piece(0).unwrap();
                    fail(&mut state, &piece);
                }
                assert!(state.hold(&[id]).is_err());
                state.expect_no_more(id);
            }
            hold_and_release(&mut state, id);
        }
    }
}

#[test]
fn after_a_panic_nothing_is_given_out() {
    let mut state = state(&experts(), 50);
    read_all(&mut state);
    state.panicked = true;
    state.expect(0);
    assert!(matches!(state.hold(&[0]), Err(Failure::Panicked)));
}
