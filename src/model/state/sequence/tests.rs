//! Pages are taken as they are filled, shared until written to, and given up by windows.

use super::super::super::SideSizes;
use super::*;
use crate::kernels::Kernels;
use crate::kernels::ops::{KvView, PAGE, Window};

const WINDOW: usize = 150;

const WINDOWS: [Option<Window>; 3] = [None, Some(Window::Sliding(WINDOW)), Some(Window::Chunked(WINDOW))];

/// A slot that keeps everything, one with a sliding window, one with stretches; keys longer than values.
fn spec() -> ModelSpec {
    let memories =
        WINDOWS.map(|window| MemorySpec::Pages { kv_heads: 2, key_len: 6, value_len: 5, window }).to_vec();
    ModelSpec {
        architecture: "test".to_owned(),
        embd: 8,
        vocab: 3,
        context: 4096,
        layers: Vec::new(),
        nextn: None,
        trunk_memories: memories.len(),
        rope_steps: Vec::new(),
        memories,
        side: SideSizes::default(),
    }
}

/// Keys of a position: values that are exact in f16, different for a different text.
fn rows(text: usize, positions: std::ops::Range<usize>, len: usize) -> Vec<f32> {
    positions.flat_map(|pos| (0..2 * len).map(move |i| (text * 64 + pos * 4 % 61 + i) as f32)).collect()
}

fn fill(state: &mut SequenceState, text: usize, positions: std::ops::Range<usize>) {
    let ops = Kernels::detect_best().ops();
    for layer in 0..3 {
        let (keys, values) = (rows(text, positions.clone(), 6), rows(text, positions.clone(), 5));
        state.store(ops, layer, positions.start, &keys, &values).expect("memory");
    }
}

/// The key of a position in a layer, first head; `None` where it has been given up.
fn key(state: &SequenceState, layer: usize, pos: usize) -> Option<Vec<f32>> {
    state.with_pages(layer, |pages| {
        let page = (pos / PAGE).checked_sub(pages.first_page)?;
        let at = pos % PAGE * 6..pos % PAGE * 6 + 6;
        match pages.keys.get(page)? {
            KvView::F32(keys) => Some(keys[at].to_vec()),
            KvView::F16(keys) => Some(keys[at].iter().map(|&k| half::f16::from_bits(k).to_f32()).collect()),
            _ => panic!("another type"),
        }
    })
}

#[test]
fn what_tokens_see_is_there_in_both_types() {
    for ty in [KvType::F16, KvType::F32] {
        let mut state = SequenceState::new(&spec(), ty);
        let mut past = 0;
        for batch in [1, 100, 27, 1, 300, 1, 1, 90, 500, 1] {
            fill(&mut state, 1, past..past + batch);
            for (layer, window) in WINDOWS.iter().enumerate() {
                for pos in past..past + batch {
                    let first = window.map_or(0, |window| window.start(pos));
                    for seen in [first, (first + pos) / 2, pos] {
                        assert_eq!(
                            key(&state, layer, seen).as_deref(),
                            Some(&rows(1, seen..seen + 1, 6)[..6])
                        );
                    }
                }
            }
            past += batch;
        }
    }
}

#[test]
fn the_memory_of_a_window_is_flat_in_the_context() {
    let page = (PAGE * 2 * 11 * 2) as u64;
    let mut state = SequenceState::new(&spec(), KvType::F16);
    let mut windows = Vec::new();
    for pos in 0..4000 {
        fill(&mut state, 1, pos..pos + 1);
        windows.push(state.held_bytes() - (pos / PAGE + 1) as u64 * page);
    }
    let most = windows.iter().max().expect("positions");
    assert_eq!(windows[1000..].iter().max(), Some(most));
    let bound = SequenceState::bytes(&spec(), 4000, 1, 0, KvType::F16);
    assert!(most + 32 * page <= bound, "{most} and {bound}");
    assert!(*most <= 8 * page, "{most}: pages of two windows");
    assert!(windows[100] < *most, "pages are taken as they are filled");
}

#[test]
fn a_fork_keeps_what_the_other_overwrites() {
    let mut state = SequenceState::new(&spec(), KvType::F32);
    fill(&mut state, 1, 0..200);
    let mut fork = state.clone();
    assert_eq!(fork.rewind(150), 150);
    fill(&mut fork, 2, 150..160);
    for layer in 0..3 {
        assert_eq!(key(&state, layer, 155).as_deref(), Some(&rows(1, 155..156, 6)[..6]));
        assert_eq!(key(&fork, layer, 155).as_deref(), Some(&rows(2, 155..156, 6)[..6]));
        assert_eq!(key(&fork, layer, 149), key(&state, layer, 149));
        // A page that nobody has written to is one and the same.
        let first = |state: &SequenceState| {
            state.with_pages(layer, |pages| match pages.keys[0] {
                KvView::F32(keys) => keys.as_ptr(),
                _ => unreachable!("kept as f32"),
            })
        };
        assert_eq!(first(&state), first(&fork));
    }
}

#[test]
fn rewinding_ends_where_a_window_has_given_up_pages() {
    let mut state = SequenceState::new(&spec(), KvType::F16);
    fill(&mut state, 1, 0..1000);
    // In one batch nothing is given up: its first tokens see what lies before.
    assert_eq!(state.clone().rewind(3), 3);
    fill(&mut state, 1, 1000..1001);
    // A page more than is seen is kept, for drafts that are taken back.
    let mut near = state.clone();
    assert_eq!(near.rewind(920), 920);
    fill(&mut near, 2, 920..1000);
    assert_eq!(key(&near, 1, 999).as_deref(), Some(&rows(2, 999..1000, 6)[..6]));
    assert_eq!((state.rewind(300), state.held_bytes()), (0, 0));
    fill(&mut state, 2, 0..10);
    assert_eq!(key(&state, 1, 9).as_deref(), Some(&rows(2, 9..10, 6)[..6]));
}

/// A row for so many positions: as many are left as were whole.
#[test]
fn compressed_rows_go_back_with_their_positions() {
    let (len, ratio) = (12, 4);
    let memories = vec![
        MemorySpec::Compressed { len, ratio },
        MemorySpec::Compressing { len: 2, scores: true, window: Window::Sliding(2 * ratio) },
    ];
    let spec = ModelSpec { memories, ..spec() };
    let mut state = SequenceState::new(&spec, KvType::F16);
    let ops = Kernels::detect_best().ops();
    let positions = 4 * (PAGE + 2) + 3;
    let rows = |rows: std::ops::Range<usize>| -> Vec<f32> {
        rows.flat_map(|row| (0..12).map(move |i| (row * 3 % 61 + i) as f32)).collect()
    };
    state.store(ops, 0, 0, &rows(0..positions / ratio), &[]).expect("memory");
    // What is still to be compressed is exact whatever the cache's type.
    let exact = vec![1.0 + f32::EPSILON; 2 * positions];
    state.store(ops, 1, 0, &exact, &exact).expect("memory");
    state.with_pages(1, |pages| {
        let (KvView::F32(values), Some(&[KvView::F32(scores), ..])) = (pages.keys[0], pages.values) else {
            panic!("another type")
        };
        assert_eq!((values[5], scores[5]), (exact[5], exact[5]));
    });
    let of_rows = 2 * (PAGE * 12 * 2) as u64;
    let pages = positions.div_ceil(PAGE) as u64;
    assert_eq!(state.held_bytes(), of_rows + pages * (PAGE * 4 * 4) as u64);
    assert!(state.held_bytes() <= SequenceState::bytes(&spec, positions, positions, 0, KvType::F16));
    // The last row of the first page is whole at position 512.
    for (past, left) in [(positions - 1, 2), (4 * PAGE + 3, 1), (4 * PAGE, 1), (3, 0)] {
        let mut back = state.clone();
        assert_eq!(back.rewind(past), past);
        assert_eq!(back.with_pages(0, |pages| pages.keys.len()), left, "back to {past}");
    }
    let mut back = state.clone();
    assert_eq!(back.rewind(4 * PAGE + 5), 4 * PAGE + 5);
    back.store(ops, 0, PAGE + 1, &rows(7..8), &[]).expect("memory");
    let row = |state: &SequenceState, at: usize| {
        state.with_pages(0, |pages| match pages.keys[at / PAGE] {
            KvView::F16(keys) => half::f16::from_bits(keys[at % PAGE * 12]).to_f32(),
            _ => panic!("another type"),
        })
    };
    assert_eq!(row(&back, PAGE + 1), 21.0);
    assert_eq!(row(&state, PAGE + 1), ((PAGE + 1) * 3 % 61) as f32, "a clone has its own");
}

/// Rows alone, of which values are the beginning, take the room of keys.
#[test]
fn rows_are_kept_once() {
    let spec = ModelSpec { memories: vec![MemorySpec::Latents { len: 12 }], ..spec() };
    let mut state = SequenceState::new(&spec, KvType::F32);
    let ops = Kernels::detect_best().ops();
    let row = |pos: usize| (0..12).map(move |i| (pos * 12 + i) as f32);
    state.store(ops, 0, 0, &(0..PAGE + 1).flat_map(row).collect::<Vec<_>>(), &[]).expect("memory");
    assert_eq!(state.held_bytes(), (2 * PAGE * 12 * 4) as u64);
    assert_eq!(SequenceState::bytes(&spec, PAGE + 1, 1, 0, KvType::F32), state.held_bytes());
    let mut fork = state.clone();
    fork.store(ops, 0, PAGE + 1, &row(0).collect::<Vec<_>>(), &[]).expect("memory");
    assert_eq!(state.rewind(PAGE - 1), PAGE - 1);
    assert_eq!((state.held_bytes(), fork.held_bytes()), ((PAGE * 12 * 4) as u64, (2 * PAGE * 12 * 4) as u64));
    fork.with_pages(0, |pages| {
        assert!(pages.values.is_none());
        let KvView::F32(last) = pages.keys[1] else { panic!("another type") };
        assert_eq!(last[..24], row(PAGE).chain(row(0)).collect::<Vec<_>>());
    });
}

/// What a copy of a page elsewhere goes by.
#[test]
fn a_page_is_another_where_rows_of_it_change() {
    let mut state = SequenceState::new(&spec(), KvType::F16);
    fill(&mut state, 1, 0..100);
    let first = state.page_ids(0);
    fill(&mut state, 1, 100..200);
    let both = state.page_ids(0);
    assert!(both.len() == 2 && both[0] == first[0] && both[0] != both[1]);
    // Going on where it ended, or getting ready to, changes nothing.
    state.reserve(0, 200, 100).expect("memory");
    assert_eq!(state.page_ids(0)[..2], both);
    assert_eq!(state.rewind(150), 150);
    assert_eq!(state.page_ids(0), both);
    state.reserve(0, 150, 1).expect("memory");
    let ready = state.page_ids(0);
    assert!(ready[0] == both[0] && ready[1] != both[1]);
    fill(&mut state, 2, 150..151);
    assert_eq!(state.page_ids(0), ready);
    let mut fork = state.clone();
    assert_eq!(fork.page_ids(0), ready);
    fill(&mut fork, 3, 151..152);
    assert!(fork.page_ids(0)[0] == ready[0] && fork.page_ids(0)[1] != ready[1]);
    assert_eq!(state.page_ids(0), ready);
}
