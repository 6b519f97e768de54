//! Residual streams, magnitudes and cuts: every instance gives the portable one's bits; the definition
//! against f64.

use super::*;

/// Elements of a stream: around the sixteen lanes, and long enough to be spread over threads.
const LENGTHS: [usize; 9] = [1, 3, 15, 16, 17, 31, 33, 100, 2050];

struct Case {
    n: usize,
    tokens: usize,
    streams: Vec<f32>,
    mix: Vec<f32>,
    change: Vec<f32>,
    correct: Vec<f32>,
}

fn cases(values: impl Fn(&mut Random, usize) -> Vec<f32>) -> Vec<Case> {
    let mut random = Random(21);
    let mut case = |n: usize| {
        let tokens = if n > 1000 { 11 } else { 3 };
        let mut values = |each: usize| values(&mut random, tokens * each);
        let (streams, mix) = (values(n * STREAMS), values(STREAMS * STREAMS));
        let (change, correct) = (values(n), values(STREAMS));
        Case { n, tokens, streams, mix, change, correct }
    };
    LENGTHS.iter().map(|&n| case(n)).collect()
}

/// Every operation's result.
fn results(ops: &Ops, case: &Case) -> [Vec<f32>; 5] {
    let Case { n, streams, mix, change, correct, .. } = case;
    let [mut mixed, mut corrected, mut cut] = [(); 3].map(|()| streams.clone());
    ops.mix_streams(&mut mixed, mix, *n);
    ops.correct_streams(&mut corrected, change, correct, *n);
    ops.cut_below(&mut cut, *n, 1.25);
    let mut rescaled = change.clone();
    ops.rescale(&mut rescaled, &streams[..change.len()], *n);
    let mut mean = change.clone();
    ops.mean_of_streams(streams, &mut mean, *n);
    [mixed, corrected, cut, rescaled, mean]
}

#[test]
fn instances_agree_to_the_last_bit() {
    for case in cases(|random, n| random.values(n, 2.0)).iter().chain(&cases(Random::extremes)) {
        let wanted = results(&SCALAR, case);
        in_pools(|threads| {
            for (name, ops) in instances() {
                for (got, wanted) in results(ops, case).iter().zip(&wanted) {
                    assert_same(got, wanted, &format!("{name}, streams of {}, {threads} threads", case.n));
                }
            }
        });
    }
}

#[test]
fn streams_are_mixed_and_corrected_as_the_definition_says() {
    for case in cases(|random, n| random.values(n, 2.0)) {
        let Case { n, tokens, ref streams, ref mix, ref change, ref correct } = case;
        let [mixed, corrected, ..] = results(scalar(), &case);
        let at = |token: usize, stream: usize, i: usize| streams[(token * STREAMS + stream) * n + i];
        for (token, stream, i) in
            (0..tokens).flat_map(|t| (0..STREAMS * n).map(move |at| (t, at / n, at % n)))
        {
            let place = (token * STREAMS + stream) * n + i;
            let terms: [f32; STREAMS] = std::array::from_fn(|from| {
                at(token, from, i) * mix[(token * STREAMS + stream) * STREAMS + from]
            });
            let wanted = ((terms[0] + terms[2]) + (terms[1] + terms[3])) + at(token, stream, i);
            assert_eq!(mixed[place], wanted, "streams of {n}, token {token}, stream {stream}, {i}");
            let wanted = at(token, stream, i) + correct[token * STREAMS + stream] * change[token * n + i];
            assert_eq!(corrected[place], wanted, "streams of {n}, token {token}, stream {stream}, {i}");
        }
    }
}

/// The mean, and what is taken over, of any number of streams.
#[test]
fn any_number_of_streams_works() {
    let (mut random, n, tokens) = (Random(24), 37, 3);
    for streams in [1, 2, 3, 5] {
        let x = random.values(tokens * streams * n, 2.0);
        let (change, by) = (random.values(tokens * n, 2.0), random.values(tokens * streams, 2.0));
        let at = |token: usize, stream: usize, i: usize| x[(token * streams + stream) * n + i];
        let (mut means, mut corrected) = (Vec::new(), Vec::new());
        for token in 0..tokens {
            for i in 0..n {
                let sum = (1..streams).fold(at(token, 0, i), |sum, stream| sum + at(token, stream, i));
                means.push(sum * (1.0 / streams as f32));
            }
            for (stream, i) in (0..streams * n).map(|at| (at / n, at % n)) {
                corrected.push(at(token, stream, i) + by[token * streams + stream] * change[token * n + i]);
            }
        }
        for (name, ops) in instances() {
            let (mut mean, mut all) = (vec![f32::NAN; tokens * n], x.clone());
            ops.mean_of_streams(&x, &mut mean, n);
            assert_same(&mean, &means, &format!("{name}, the mean of {streams}"));
            ops.correct_streams(&mut all, &change, &by, n);
            assert_same(&all, &corrected, &format!("{name}, {streams} corrected"));
        }
    }
}

#[test]
fn rows_get_the_magnitude_of_others() {
    let mut random = Random(22);
    let n = 4096;
    let (x, like) = (random.values(3 * n, 3.0), random.values(3 * n, 0.5));
    let mut out = x.clone();
    scalar().rescale(&mut out, &like, n);
    let magnitude = |row: &[f32]| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let rows = x.chunks(n).zip(like.chunks(n));
    let wanted: Vec<f64> = rows
        .flat_map(|(x, like)| {
            let by = magnitude(like) / magnitude(x);
            x.iter().map(move |&x| f64::from(x) * by)
        })
        .collect();
    let measured = error(&out, &wanted);
    println!("rescale: {measured:.1e}");
    // Measured: 1.1e-7.
    assert!(measured < 1e-6, "{measured}");
    // The canary: one row's magnitude for all.
    let by = magnitude(&like[..n]) / magnitude(&x[..n]);
    let other: Vec<f64> = x.iter().map(|&x| f64::from(x) * by).collect();
    assert!(error(&out, &other) > 1e-6);
}

#[test]
fn what_lies_below_the_cut_is_zero() {
    let mut random = Random(23);
    let n = 3000;
    // Not centred: the mean counts.
    let x: Vec<f32> = random.values(2 * n, 1.0).iter().map(|x| x + 5.0).collect();
    let cut = |row: &[f32], less: f64, deviations: f64| {
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let squares = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>();
        mean + deviations * (squares / (n as f64 - less)).sqrt()
    };
    let wanted = |less: f64, deviations: f64| -> Vec<f64> {
        let rows = x.chunks(n).map(|row| (row, cut(row, less, deviations)));
        rows.flat_map(|(row, cut)| row.iter().map(move |&x| (f64::from(x) - cut).max(0.0))).collect()
    };
    let mut out = x.clone();
    scalar().cut_below(&mut out, n, 1.25);
    let measured = error(&out, &wanted(1.0, 1.25));
    println!("cut_below: {measured:.1e}");
    // Measured: 1.6e-6, of differences of values near 6.
    assert!(measured < 1e-5, "{measured}");
    let zeros = out.iter().filter(|&&x| x == 0.0).count();
    assert!((n..2 * n).contains(&zeros), "{zeros} zeros");
    // The canary: another number of deviations.
    assert!(error(&out, &wanted(1.0, 1.2)) > 1e-5);
}

/// Scores and sums of three streams that lie in rows with room for four.
fn attended(ops: &Ops, case: &Case) -> [Vec<f32>; 2] {
    let &Case { n, tokens, ref streams, ref change, ref correct, .. } = case;
    let banked = Banked { data: streams, stride: n * STREAMS, count: STREAMS - 1, n };
    let mut scores = vec![0.0; tokens * STREAMS];
    ops.score_streams(&banked, change, &streams[..n], 1e-5, &mut scores);
    let mut sum = vec![0.0; change.len()];
    ops.sum_streams(&banked, change, correct, &mut sum);
    [scores, sum]
}

#[test]
fn instances_attend_to_streams_with_the_same_bits() {
    for case in cases(|random, n| random.values(n, 2.0)).iter().chain(&cases(Random::extremes)) {
        let wanted = attended(&SCALAR, case);
        in_pools(|threads| {
            for (name, ops) in instances() {
                for (got, wanted) in attended(ops, case).iter().zip(&wanted) {
                    assert_same(got, wanted, &format!("{name}, streams of {}, {threads} threads", case.n));
                }
            }
        });
    }
}

#[test]
fn streams_are_attended_to_as_the_definition_says() {
    for case in cases(|random, n| random.values(n, 2.0)) {
        let Case { n, tokens, ref streams, ref change, ref correct, .. } = case;
        let [scores, sum] = attended(scalar(), &case);
        for token in 0..tokens {
            let banked = streams[token * n * STREAMS..][..(STREAMS - 1) * n].chunks_exact(n);
            let own = &change[token * n..][..n];
            let shares = &correct[token * STREAMS..][..STREAMS];
            for ((row, score), i) in banked.clone().chain([own]).zip(&scores[token * STREAMS..]).zip(0..) {
                let square: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
                let by = 1.0 / (square / n as f64 + 1e-5).sqrt();
                let terms = row.iter().zip(streams).map(|(&v, &w)| f64::from(v) * by * f64::from(w));
                let (wanted, size) = terms.fold((0.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()));
                let error = (f64::from(*score) - wanted).abs() / size;
                // Measured: 1e-7.
                assert!(error < 5e-7, "streams of {n}, token {token}, stream {i}: {score}, {wanted}");
            }
            for i in 0..n {
                let values = banked.clone().chain([own]).map(|row| row[i]).zip(shares);
                let wanted = values.fold(0.0, |sum, (v, share)| sum + share * v);
                assert_eq!(sum[token * n + i], wanted, "streams of {n}, token {token}, {i}");
            }
        }
    }
}
