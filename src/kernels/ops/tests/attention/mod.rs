//! Attention and the writing of its pages.

mod case;

use half::f16;

use super::*;
use case::{Case, Fault, Kind};

use crate::quant::{quantize_q4_0, quantize_q8_0};

fn shape(
    head_dim: usize,
    group: usize,
    tokens: usize,
    first_pos: usize,
    window: Option<usize>,
) -> AttentionShape {
    AttentionShape {
        heads: 2 * group,
        kv_heads: 2,
        key_len: head_dim,
        value_len: head_dim,
        tokens,
        first_pos,
        window: window.map(Window::Sliding),
        scale: 1.0 / (head_dim as f32).sqrt(),
        soft_cap: None,
    }
}

/// Shapes around the edges of chunks, lanes, tiles and windows; each value of each axis, not every
/// combination.
fn shapes() -> Vec<AttentionShape> {
    let mut all = Vec::new();
    let positions = [0, 1, 126, 127, 128, 129, 130, 255, 256, 257, 258, 700];
    for (i, first_pos) in positions.into_iter().enumerate() {
        for (j, tokens) in [1, 2, 5, 33].into_iter().enumerate() {
            for (l, group) in [1, 3, 4].into_iter().enumerate() {
                let head_dim = [8, 24, 48, 64, 96, 128][(i + j + l) % 6];
                let window = [None, Some(1), Some(20), Some(128), Some(300)][(i + 2 * j + l) % 5];
                let plain = shape(head_dim, group, tokens, first_pos, None);
                let narrow = shape(head_dim, group, tokens, first_pos, window);
                all.extend([plain, narrow]);
                // Lengths that differ, stretches for windows, a cap.
                let value_len = [24, 64, 8, 48, 40, 16][(i + 2 * j + l) % 6];
                let window = [None, Some(1), Some(50), Some(128), Some(300)][(i + j + 2 * l) % 5];
                let window = window.map(Window::Chunked);
                let soft_cap = [None, Some(1.5)][(i + j) % 2];
                all.push(AttentionShape { value_len, window, soft_cap, ..plain });
            }
        }
    }
    all
}

#[test]
fn every_instance_gives_the_defined_bits() {
    let mut random = Random(11);
    let mut scratch = AttentionScratch::default();
    for (i, shape) in shapes().into_iter().enumerate() {
        let case = Case::new(&mut random, shape, i % 4 < 2);
        let case = if i % 5 < 2 { case.with_sinks(&mut random) } else { case };
        let wanted = case.defined(Fault::None);
        for (name, ops) in instances() {
            // Without FMA the portable instance is slow: a part of the cases.
            if name != "scalar" || i % 8 == 0 {
                assert_same(&case.run(ops, &mut scratch), &wanted, &format!("{name}, {shape:?}"));
            }
        }
    }
}

/// Every kind of keys with every kind of values, at lengths of whole and of half units.
#[test]
fn quantised_keys_and_values_give_the_defined_bits() {
    let mut random = Random(31);
    let mut scratch = AttentionScratch::default();
    let pairs = Kind::ALL.into_iter().flat_map(|k| Kind::ALL.map(|v| [k, v]));
    for (i, kinds) in pairs.filter(|[k, v]| k.is_quantised() || v.is_quantised() || k != v).enumerate() {
        for (j, first_pos) in [0, 1, 127, 129, 258, 700].into_iter().enumerate() {
            let (tokens, group) = ([1, 2, 5, 33][(i + j) % 4], [1, 3, 4, 9][(i + 2 * j) % 4]);
            let key_len = [32, 64, 96, 128, 160, 192][(i + j) % 6];
            let value_len = [64, 32, 128, 96, 160, 64][(i + 2 * j) % 6];
            let plain = shape(key_len, group, tokens, first_pos, [None, Some(20), Some(300)][(i + j) % 3]);
            let of = AttentionShape { value_len, soft_cap: [None, Some(1.5)][(i + j) % 2], ..plain };
            let mut case = Case::kept(&mut random, of, kinds);
            if j % 3 == 0 && first_pos < 700 && of.window.is_none() {
                case = case.choosing(&mut random, [1, 3, 9][i % 3], 1 + j % 2);
            }
            if j % 2 == 0 {
                case = case.with_sinks(&mut random);
            }
            let wanted = case.defined(Fault::None);
            for (name, ops) in instances() {
                assert_same(&case.run(ops, &mut scratch), &wanted, &format!("{name}, {kinds:?}, {of:?}"));
            }
        }
    }
}

#[test]
fn latents_may_be_quantised() {
    let mut random = Random(32);
    let mut scratch = AttentionScratch::default();
    for kind in [Kind::Q8, Kind::Q4] {
        for (key_len, value_len, heads, tokens) in [(96, 64, 5, 3), (160, 128, 20, 1), (576, 512, 6, 2)] {
            let plain = shape(key_len, 1, tokens, 200, None);
            let of = AttentionShape { heads, kv_heads: 1, value_len, ..plain };
            let case = Case::kept(&mut random, of, [kind; 2]).latent();
            let wanted = case.defined(Fault::None);
            for (name, ops) in instances().split_off(1) {
                assert_same(&case.run(ops, &mut scratch), &wanted, &format!("{name}, {kind:?}, {of:?}"));
            }
        }
    }
}

/// Of quantised caches: the f64 formula of what is kept, and of queries as they are.
#[test]
fn quantised_attention_is_accurate_and_the_comparison_sees_faults() {
    let mut random = Random(33);
    let mut scratch = AttentionScratch::default();
    for kinds in [[Kind::Q8; 2], [Kind::Q4; 2], [Kind::Q8, Kind::Q4], [Kind::Q4, Kind::F16]] {
        let case = Case::kept(&mut random, shape(128, 3, 5, 400, None), kinds);
        let out = case.run(scalar(), &mut scratch);
        let measure = |fault: Fault| square_error(&out, &case.reference(fault));
        let measured = measure(Fault::None);
        println!("{kinds:?}: {measured:.1e}");
        assert!(measured < if kinds[1] == Kind::F16 { 1e-9 } else { 1e-12 }, "{kinds:?}: {measured}");
        for fault in [Fault::WrongKvHead, Fault::SeesTheNext, Fault::KeepsQueries, Fault::KeepsDirections] {
            let without = measure(fault);
            println!("{fault:?}: {without:.1e}");
            assert!(without > 1e-6, "{fault:?}: {without}");
            assert!(difference(&out, &case.defined(fault)).is_some(), "{fault:?}");
        }
    }
}

/// Many heads that share their keys, of which the values are the beginning: what latents are attended with.
#[test]
fn values_may_be_the_beginnings_of_keys() {
    let mut random = Random(19);
    let mut scratch = AttentionScratch::default();
    let sizes = [(24, 16, 4), (40, 24, 20), (96, 64, 5), (80, 80, 70), (576, 512, 66), (576, 512, 6)];
    for (i, (key_len, value_len, heads)) in sizes.into_iter().enumerate() {
        let places = [(1, 130), (3, 126), (1, 0), (1, 127), (1, 300), (2, 250)];
        for (tokens, first_pos) in places.into_iter().take(if key_len > 500 { 2 } else { 6 }) {
            let plain = shape(key_len, 1, tokens, first_pos, None);
            let case = AttentionShape { heads, kv_heads: 1, value_len, ..plain };
            let case = Case::new(&mut random, case, (i + tokens + first_pos) % 2 == 0).latent();
            let wanted = case.defined(Fault::None);
            for (name, ops) in instances().split_off(1) {
                let what = format!("{name}, {:?}", case.shape);
                assert_same(&case.run(ops, &mut scratch), &wanted, &what);
            }
        }
    }
}

#[test]
fn chosen_positions_are_attended_to_alone() {
    let mut random = Random(20);
    let mut scratch = AttentionScratch::default();
    for (i, first_pos) in [0, 1, 126, 128, 255, 400].into_iter().enumerate() {
        for (j, tokens) in [1, 2, 9].into_iter().enumerate() {
            let group = [1, 3, 24][(i + j) % 3];
            let of = shape([24, 64, 40][i % 3], group, tokens, first_pos, None);
            let of = AttentionShape { soft_cap: [None, Some(1.5)][(i + j) % 2], ..of };
            let case = Case::new(&mut random, of, (i + j) % 2 == 0);
            let case = if i % 2 == 0 { case.latent() } else { case };
            let case = case.choosing(&mut random, [1, 2, 9, 200][(i + j) % 4], 1 + (i + j) % 2);
            let case = if (i + j) % 3 == 1 { case.with_sinks(&mut random) } else { case };
            let wanted = case.defined(Fault::None);
            for (name, ops) in instances() {
                assert_same(&case.run(ops, &mut scratch), &wanted, &format!("{name}, {of:?}"));
            }
        }
    }
}

/// Of caches one behind another, with sinks: no row is behind the token's own.
#[test]
fn rows_that_are_no_positions_are_attended_to() {
    let mut random = Random(23);
    let mut scratch = AttentionScratch::default();
    for (i, first_pos) in [0, 126, 255, 400].into_iter().enumerate() {
        for (j, tokens) in [1, 2, 9].into_iter().enumerate() {
            let plain = shape([24, 64, 40][i % 3], 1, tokens, first_pos, None);
            let heads = [1, 3, 24, 70][(i + j) % 4];
            let of = AttentionShape { heads, kv_heads: 1, ..plain };
            let case = Case::new(&mut random, of, (i + j) % 2 == 0).latent().with_sinks(&mut random);
            let case = case.choosing_among(&mut random, [1, 2, 9, 200][(i + j) % 4]);
            let wanted = case.defined(Fault::None);
            for (name, ops) in instances() {
                assert_same(&case.run(ops, &mut scratch), &wanted, &format!("{name}, {of:?}"));
            }
            // The canary.
            let without = case.defined(Fault::NoSinks);
            assert!(difference(&without, &wanted).is_some());
        }
    }
}

#[test]
fn choosing_everything_changes_no_bit() {
    let mut random = Random(21);
    let mut scratch = AttentionScratch::default();
    for f16 in [false, true] {
        let case = Case::new(&mut random, shape(40, 3, 5, 253, None), f16);
        let wanted = case.run(scalar(), &mut scratch);
        let case = case.choosing(&mut random, 1, 1);
        for (name, ops) in instances() {
            assert_same(&case.run(ops, &mut scratch), &wanted, name);
        }
    }
}

/// Every instance but the first, which is slow.
fn check_head_sizes(f16: bool) {
    let mut random = Random(12);
    let mut scratch = AttentionScratch::default();
    for head_dim in [8, 16, 24, 48, 64, 80, 96, 128] {
        for tokens in [1, 7, 40] {
            let case = Case::new(&mut random, shape(head_dim, 2, tokens, 250, None), f16);
            let wanted = case.defined(Fault::None);
            for (name, ops) in instances().split_off(1) {
                let what = format!("{name}, {head_dim}, {tokens} tokens");
                assert_same(&case.run(ops, &mut scratch), &wanted, &what);
            }
        }
    }
}

#[test]
fn an_f32_cache_at_every_head_size() {
    check_head_sizes(false);
}

#[test]
fn an_f16_cache_at_every_head_size() {
    check_head_sizes(true);
}

#[test]
fn threads_and_batches_change_no_bit() {
    let mut random = Random(13);
    let window = |window| AttentionShape { window: Some(window), ..shape(64, 4, 90, 300, None) };
    let shapes = [
        shape(64, 4, 150, 0, None),
        window(Window::Sliding(140)),
        AttentionShape { value_len: 32, soft_cap: Some(2.0), ..window(Window::Chunked(48)) },
        shape(64, 4, 3, 2000, None),
        AttentionShape { key_len: 80, ..shape(64, 4, 1, 1500, None) },
        AttentionShape { heads: 70, kv_heads: 1, value_len: 32, ..shape(40, 1, 12, 120, None) },
        AttentionShape { heads: 70, kv_heads: 1, value_len: 32, ..shape(40, 1, 1, 700, None) },
    ];
    for (i, shape) in (0..2 * shapes.len()).map(|i| (i, shapes[i / 2])) {
        let AttentionShape { tokens, first_pos, .. } = shape;
        let case = Case::new(&mut random, shape, true);
        let case = if shape.kv_heads == 1 { case.latent() } else { case };
        let case = match i % 2 {
            0 => case.with_sinks(&mut random),
            _ if shape.window.is_some() || tokens > 20 => continue,
            _ => case.choosing(&mut random, 3, 1),
        };
        for (name, ops) in instances().split_off(1) {
            let mut scratch = AttentionScratch::default();
            let mut wanted = Vec::new();
            for token in 0..tokens {
                wanted.extend(case.run_part(ops, token..token + 1, &mut scratch));
            }
            in_pools(|threads| {
                let mut scratch = AttentionScratch::default();
                let what = format!("{name}, {tokens} tokens at {first_pos}, {threads} threads");
                assert_same(&case.run(ops, &mut scratch), &wanted, &what);
                let half = tokens / 2;
                let mut parts = case.run_part(ops, 0..half, &mut scratch);
                parts.extend(case.run_part(ops, half..tokens, &mut scratch));
                assert_same(&parts, &wanted, &format!("{what}, two batches"));
            });
        }
    }
}

#[test]
fn attention_is_accurate_and_the_comparison_sees_faults() {
    let mut random = Random(14);
    let mut scratch = AttentionScratch::default();
    let plain = shape(64, 3, 5, 400, None);
    let shapes = [
        plain,
        shape(64, 3, 5, 400, Some(100)),
        AttentionShape { value_len: 40, window: Some(Window::Chunked(300)), ..plain },
        AttentionShape { key_len: 24, soft_cap: Some(1.5), ..plain },
    ];
    for (i, f16) in (0..shapes.len()).flat_map(|i| [(i, false), (i, true)]) {
        let mut case = Case::new(&mut random, shapes[i], f16);
        if i > 1 {
            case = case.with_sinks(&mut random);
        }
        let out = case.run(scalar(), &mut scratch);
        // Measured: at most 3.7e-7 of the greatest value; with an f16 cache 3.4e-10 of the squares, where a
        // probability may be rounded the other way, and without a rounding at least 4.0e-8.
        let bound = if f16 { 1e-9 } else { 2e-6 };
        let measure = |fault: Fault| {
            let reference = case.reference(fault);
            if f16 { square_error(&out, &reference) } else { error(&out, &reference) }
        };
        let measured = measure(Fault::None);
        println!("attention, f16 {f16}: {measured:.1e}");
        assert!(measured < bound, "{measured}");
        let mut faults = vec![Fault::WrongKvHead, Fault::SeesTheNext];
        if f16 {
            faults.extend([Fault::KeepsQueries, Fault::KeepsProbabilities]);
        }
        let applies = [
            (case.shape.window.is_some(), Fault::ShortWindow),
            (case.sinks.is_some(), Fault::NoSinks),
            (case.shape.soft_cap.is_some(), Fault::NoCap),
        ];
        faults.extend(applies.into_iter().filter_map(|(applies, fault)| applies.then_some(fault)));
        for fault in faults {
            let without = measure(fault);
            println!("{fault:?}: {without:.1e}");
            assert!(without > 2.0 * bound, "{fault:?}: {without}");
            assert!(difference(&out, &case.defined(fault)).is_some(), "{fault:?}");
        }
        // Another order of rounding is seen by the exact comparison alone.
        assert!(difference(&out, &case.defined(Fault::OneChunk)).is_some());
        assert!(difference(&out, &case.defined(Fault::None)).is_none());
    }
}

#[test]
fn sinks_that_weigh_nothing_change_no_bit_and_heavy_ones_take_all() {
    let mut random = Random(18);
    let mut scratch = AttentionScratch::default();
    let mut case = Case::new(&mut random, shape(48, 2, 4, 300, None), true);
    let plain = case.run(scalar(), &mut scratch);
    case.sinks = Some(vec![f32::NEG_INFINITY; case.shape.heads]);
    assert_same(&case.run(scalar(), &mut scratch), &plain, "sinks of -inf");
    case.sinks = Some(vec![1000.0; case.shape.heads]);
    assert!(case.run(scalar(), &mut scratch).iter().all(|&x| x == 0.0));
}

#[test]
fn windows_start_where_they_say() {
    let starts = |window: Window| [0, 4, 5, 6, 9, 10].map(|pos| window.start(pos));
    assert_eq!(starts(Window::Sliding(5)), [0, 0, 1, 2, 5, 6]);
    assert_eq!(starts(Window::Chunked(5)), [0, 0, 5, 5, 5, 10]);
    assert_eq!(starts(Window::Sliding(usize::MAX)), [0; 6]);
}

#[test]
fn no_tokens_are_no_work() {
    let shape = shape(64, 2, 0, 700, None);
    let (kv, mut scratch) =
        (KvPages { first_page: 0, keys: &[], values: Some(&[]) }, AttentionScratch::default());
    scalar().attention(&shape, &[], &kv, None, &mut [], &mut scratch);
}

#[test]
fn one_chunk_of_an_f16_cache_is_what_ggml_computes() {
    let mut random = Random(17);
    let mut scratch = AttentionScratch::default();
    for (sharpness, tokens, first_pos) in [(1.0, 100, 0), (10.0, 100, 0), (1.0, 28, 100), (10.0, 28, 100)] {
        let mut case = Case::new(&mut random, shape(64, 4, tokens, first_pos, None), true);
        case.q.iter_mut().for_each(|q| *q *= sharpness);
        let (wanted, denormal) = case.of_ggml(Fault::None);
        let out = case.run(scalar(), &mut scratch);
        let (same, nmse) = (rows_alike(&out, &wanted, 64), square_error(&out, &widened(&wanted)));
        println!("one chunk: {same:.3} of rows, NMSE {nmse:.1e}, {denormal} denormal");
        // The same probabilities give the same bits. A score or a sum added up in another order rounds a
        // probability the other way now and then. Measured: 0.964 to 0.994 of rows the same, NMSE 2.8e-14 to
        // 2.8e-11.
        assert!(same > 0.95 && nmse < 2e-10, "{same}, {nmse}");
        assert!(sharpness == 1.0 || denormal > 1000, "{denormal} denormal");
        // Measured without a rounding: at most 0.081 of rows, at least 2.3e-8.
        for fault in [Fault::KeepsQueries, Fault::KeepsProbabilities] {
            let (other, _) = case.of_ggml(fault);
            assert!(rows_alike(&out, &other, 64) < 0.5 && square_error(&out, &widened(&other)) > 2e-9);
        }
    }
}

/// The share of rows that have the same bits.
fn rows_alike(a: &[f32], b: &[f32], row: usize) -> f64 {
    let rows = a.chunks_exact(row).zip(b.chunks_exact(row));
    rows.filter(|(a, b)| difference(a, b).is_none()).count() as f64 / (a.len() / row) as f64
}

fn widened(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

/// The normalised mean square error.
fn square_error(a: &[f32], reference: &[f64]) -> f64 {
    let error: f64 = a.iter().zip(reference).map(|(&a, &b)| (f64::from(a) - b).powi(2)).sum();
    error / reference.iter().map(|x| x * x).sum::<f64>()
}

#[test]
fn extreme_values_agree_and_stay_where_they_are() {
    let mut random = Random(15);
    let mut scratch = AttentionScratch::default();
    for round in 0..30 {
        let mut case = Case::new(&mut random, shape(24 + 8 * (round % 2), 3, 9, 125, None), round % 3 == 0);
        let n = case.k.len();
        match round % 5 {
            0 => case.k = random.extremes(n),
            1 => case.v = random.extremes(n),
            2 => case.q = random.extremes(case.q.len()),
            // Scores of -inf throughout, and of +inf.
            3 => case.q.fill(f32::NEG_INFINITY),
            _ => case.k.fill(f32::MAX),
        }
        case.sync();
        let wanted = case.defined(Fault::None);
        for (name, ops) in instances() {
            assert_same(&case.run(ops, &mut scratch), &wanted, &format!("{name}, round {round}"));
        }
    }

    // What a token does not see cannot spoil it: a NaN at the last position reaches the last token alone.
    let mut case = Case::new(&mut random, shape(64, 4, 20, 120, None), false);
    let at = case.row(0, 139) * 64;
    (case.k[at], case.v[at]) = (f32::NAN, f32::NAN);
    let out = case.run(scalar(), &mut scratch);
    let last = 19 * 8 * 64;
    assert!(out[..last].iter().all(|x| x.is_finite()));
    assert!(out[last..last + 4 * 64].iter().all(|x| x.is_nan()));
    assert!(out[last + 4 * 64..].iter().all(|x| x.is_finite()));
}

#[test]
fn new_rows_go_to_their_places_in_a_page() {
    let mut random = Random(16);
    for (kv_heads, len, first, tokens) in [(3, 24, 5, 1), (3, 24, 124, 4), (20, 40, 0, 128), (2, 1, 127, 1)] {
        let rows = random.values(tokens * kv_heads * len, 100.0);
        let place = PlaceInPage { kv_heads, len, first, rotation: 1, keys: false };
        for (name, ops) in instances() {
            let size = kv_heads * PAGE * len;
            let (mut f32s, mut f16s) = (vec![-7.0; size], vec![9; size]);
            ops.store_kv(&rows, KvViewMut::F32(&mut f32s), place);
            ops.store_kv(&rows, KvViewMut::F16(&mut f16s), place);
            for (at, (&got, &got16)) in f32s.iter().zip(&f16s).enumerate() {
                let (head, pos, d) = (at / len / PAGE, at / len % PAGE, at % len);
                let stored = (first..first + tokens).contains(&pos);
                let wanted = stored.then(|| rows[((pos - first) * kv_heads + head) * len + d]);
                assert_eq!(got, wanted.unwrap_or(-7.0), "{name}");
                assert_eq!(got16, wanted.map_or(9, |x| f16::from_f32(x).to_bits()), "{name}");
            }
        }
    }
}

/// Where a page has an element of a position: its scale, its byte, its nibble.
fn place_of(keys: bool, position: usize, len: usize, d: usize) -> (usize, usize, (usize, bool)) {
    let (blocks, block) = (len / 32, d / 32);
    if keys {
        let panel = (position / 16 * blocks + block) * 16;
        let four = |i: usize, fours: usize| (panel / 16 * fours + i) * 64 + position % 16 * 4 + d % 4;
        let (scale, i) = (panel + position % 16, d % 32 / 4);
        return (scale, four(i, 8), (four(i % 4, 4), i > 3));
    }
    let row = position * len / 2 + d / 64 * 32;
    let nibble = match d / 64 * 64 + 64 <= len {
        true => (row + d % 32, d % 64 > 31),
        false => (row + d % 16, d % 32 > 15),
    };
    (position * blocks + block, position * len + d, nibble)
}

#[test]
fn new_rows_are_rotated_and_quantised_in_their_places() {
    let mut random = Random(34);
    let places = [(3, 96, 5, 1, 1), (2, 128, 124, 4, 128), (9, 64, 0, 128, 64), (1, 192, 127, 1, 64)];
    for (i, (kv_heads, len, first, tokens, rotation)) in (0..8).map(|i| (i, places[i / 2])) {
        let rows = random.values(tokens * kv_heads * len, 100.0);
        let place = PlaceInPage { kv_heads, len, first, rotation, keys: i % 2 == 0 };
        let elements = kv_heads * PAGE * len;
        let (mut wanted8, mut wanted4) = (vec![9i8; elements], vec![9u8; elements / 2]);
        let mut wanted = [vec![9; elements / 32], vec![9; elements / 32]];
        for (i, row) in rows.chunks_exact(len).enumerate() {
            let (token, head) = (i / kv_heads, i % kv_heads);
            let mut row = row.to_vec();
            scalar().hadamard(&mut row, rotation);
            for (b, block) in row.as_chunks().0.iter().enumerate() {
                let (mut eight, mut four) = ([0; 32], [0; 32]);
                let d = [quantize_q8_0(block, &mut eight), quantize_q4_0(block, &mut four)];
                for j in 0..32 {
                    let (scale, byte, (nibble, high)) =
                        place_of(place.keys, head * PAGE + first + token, len, 32 * b + j);
                    (wanted[0][scale], wanted[1][scale]) = (d[0].to_bits(), d[1].to_bits());
                    wanted8[byte] = eight[j];
                    let kept = wanted4[nibble] & if high { 15 } else { 240 };
                    wanted4[nibble] = kept | four[j] << if high { 4 } else { 0 };
                }
            }
        }
        for (name, ops) in instances() {
            let (mut scales8, mut quants8) = (vec![9; elements / 32], vec![9; elements]);
            let (mut scales4, mut quants4) = (vec![9; elements / 32], vec![9; elements / 2]);
            ops.store_kv(&rows, KvViewMut::Q8_0(&mut scales8, &mut quants8), place);
            ops.store_kv(&rows, KvViewMut::Q4_0(&mut scales4, &mut quants4), place);
            assert_eq!([&scales8, &scales4], [&wanted[0], &wanted[1]], "{name}, {place:?}");
            assert!(quants8 == wanted8 && quants4 == wanted4, "{name}, {place:?}");
        }
    }
}
