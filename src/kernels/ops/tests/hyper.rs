//! Hyper-connections and pooled rows: every instance gives the portable one's bits; the definitions, step by
//! step and against f64.

use super::*;

/// Elements of a stream: around the sixteen lanes, and long enough to be spread over threads.
const LENGTHS: [usize; 9] = [1, 3, 15, 16, 17, 31, 33, 100, 2050];
const BASE: usize = HYPER_GATES;

struct Case {
    n: usize,
    tokens: usize,
    streams: Vec<f32>,
    change: Vec<f32>,
    mixes: Vec<f32>,
    base: Vec<f32>,
    iterations: usize,
}

fn cases(values: impl Fn(&mut Random, usize) -> Vec<f32>) -> Vec<Case> {
    let mut random = Random(51);
    let mut case = |n: usize| {
        let tokens = if n > 1000 { 11 } else { 3 };
        let iterations = [1, 2, 20][n % 3];
        let mut values = |len: usize| values(&mut random, len);
        let (streams, change) = (values(tokens * n * STREAMS), values(tokens * n));
        let (mixes, base) = (values(tokens * HYPER_GATES), values(BASE));
        Case { n, tokens, streams, change, mixes, base, iterations }
    };
    LENGTHS.iter().map(|&n| case(n)).collect()
}

impl Case {
    fn gates(&self) -> HyperGates<'_> {
        HyperGates { scale: [0.7, 1.3, 2.1], base: &self.base, eps: 1e-3, iterations: self.iterations }
    }

    /// Gates, what a block takes, the streams behind it.
    fn run(&self, ops: &Ops) -> [Vec<f32>; 3] {
        let (mut gates, mut streams) = (self.mixes.clone(), self.streams.clone());
        ops.hyper_gates(&mut gates, &self.gates());
        let mut taken = vec![7.0; self.tokens * self.n];
        ops.join_streams(&streams, &gates, HYPER_GATES, &mut taken, self.n);
        ops.share_among_streams(&mut streams, &self.change, &gates, self.n);
        [gates, taken, streams]
    }
}

#[test]
fn instances_agree_to_the_last_bit() {
    for case in cases(|random, n| random.values(n, 2.0)).iter().chain(&cases(Random::extremes)) {
        let wanted = case.run(&SCALAR);
        in_pools(|threads| {
            for (name, ops) in instances() {
                for (got, wanted) in case.run(ops).iter().zip(&wanted) {
                    assert_same(got, wanted, &format!("{name}, streams of {}, {threads} threads", case.n));
                }
            }
        });
    }
}

/// The gates of a token in f64, with so many rounds.
fn gates_of(case: &Case, token: usize, iterations: usize) -> Vec<f64> {
    let HyperGates { scale, base, eps, .. } = case.gates();
    let eps = f64::from(eps);
    let x = |i: usize, kind: usize| {
        f64::from(case.mixes[token * HYPER_GATES + i]) * f64::from(scale[kind]) + f64::from(base[i])
    };
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let mut gates: Vec<f64> = (0..4).map(|i| sigmoid(x(i, 0)) + eps).collect();
    gates.extend((4..8).map(|i| 2.0 * sigmoid(x(i, 1))));
    let mut comb: Vec<f64> = (8..24).map(|i| x(i, 2).exp()).collect();
    let divide = |comb: &mut [f64], by_row: bool, eps: f64| {
        for one in 0..4 {
            let at = |other: usize| if by_row { one * 4 + other } else { other * 4 + one };
            let sum = eps + (0..4).map(|other| comb[at(other)]).sum::<f64>();
            (0..4).for_each(|other| comb[at(other)] /= sum);
        }
    };
    divide(&mut comb, true, 0.0);
    comb.iter_mut().for_each(|x| *x += eps);
    divide(&mut comb, false, eps);
    for _ in 1..iterations {
        divide(&mut comb, true, eps);
        divide(&mut comb, false, eps);
    }
    gates.extend(comb);
    gates
}

#[test]
fn gates_are_as_the_definition_says() {
    let mut worst = 0f64;
    for case in cases(|random, n| random.values(n, 2.0)) {
        let [gates, ..] = case.run(scalar());
        for token in 0..case.tokens {
            let got = &gates[token * HYPER_GATES..][..HYPER_GATES];
            worst = worst.max(error(got, &gates_of(&case, token, case.iterations)));
            // The canary: a round more, as long as that makes a difference.
            if case.iterations < 3 {
                let other = gates_of(&case, token, case.iterations + 1);
                assert!(error(got, &other) > 1e-6, "streams of {}, token {token}", case.n);
            }
        }
    }
    println!("gates: {worst:.1e}");
    // Measured: 9.6e-8.
    assert!(worst < 9e-7, "{worst}");
}

#[test]
fn streams_are_joined_and_shared_as_the_definition_says() {
    for case in cases(|random, n| random.values(n, 2.0)) {
        let Case { n, tokens, ref streams, ref change, .. } = case;
        let [gates, taken, shared] = case.run(scalar());
        for (token, i) in (0..tokens).flat_map(|token| (0..n).map(move |i| (token, i))) {
            let x = |stream: usize| streams[(token * STREAMS + stream) * n + i];
            let gates = &gates[token * HYPER_GATES..][..HYPER_GATES];
            let wanted = (0..STREAMS).fold(0.0, |sum, j| sum + x(j) * gates[j]);
            assert_eq!(taken[token * n + i], wanted, "streams of {n}, token {token}, {i}");
            for j in 0..STREAMS {
                let own = change[token * n + i] * gates[4 + j];
                let wanted = (0..STREAMS).fold(own, |sum, from| sum + x(from) * gates[8 + from * 4 + j]);
                assert_eq!(shared[(token * STREAMS + j) * n + i], wanted, "token {token}, stream {j}, {i}");
            }
        }
    }
}

/// Values and scores of groups of rows.
struct Groups {
    n: usize,
    rows: usize,
    values: Vec<f32>,
    scores: Vec<f32>,
}

impl Groups {
    fn run(&self, ops: &Ops) -> Vec<f32> {
        let &Groups { n, rows, ref values, ref scores } = self;
        let mut out = vec![7.0; values.len() / rows];
        ops.pool(&mut out, n, rows, |group, pooled| {
            let all = values[group * rows * n..][..rows * n].chunks(n);
            let all = all.zip(scores[group * rows * n..].chunks(n));
            pooled.extend(all.map(|(values, scores)| PooledRow { values, scores }));
        });
        out
    }
}

fn groups(values: impl Fn(&mut Random, usize) -> Vec<f32>) -> Vec<Groups> {
    let mut random = Random(52);
    let mut of = |[n, rows, groups]: [usize; 3]| {
        let mut values = || values(&mut random, n * rows * groups);
        Groups { n, rows, values: values(), scores: values() }
    };
    [[1, 1, 1], [16, 8, 3], [17, 4, 2], [64, 128, 2], [40, 8, 70], [15, 9, 200]].map(&mut of).into()
}

#[test]
fn rows_are_pooled_alike_by_all_instances() {
    for case in groups(|random, n| random.values(n, 4.0)).iter().chain(&groups(Random::extremes)) {
        let wanted = case.run(&SCALAR);
        in_pools(|threads| {
            for (name, ops) in instances() {
                assert_same(&case.run(ops), &wanted, &format!("{name}, {} threads {threads}", case.n));
            }
        });
    }
}

#[test]
fn rows_are_pooled_by_their_scores() {
    for case in groups(|random, n| random.values(n, 4.0)) {
        let Groups { n, rows, ref values, ref scores } = case;
        let pooled = |skipped: usize| -> Vec<f64> {
            let of = |at: usize| {
                let row = |r: usize| (at / n * rows + r) * n + at % n;
                let p = |r: usize| f64::from(scores[row(r)]).exp();
                let sum: f64 = (skipped..rows).map(p).sum();
                (skipped..rows).map(|r| f64::from(values[row(r)]) * p(r)).sum::<f64>() / sum
            };
            (0..values.len() / rows).map(of).collect()
        };
        let measured = error(&case.run(scalar()), &pooled(0));
        println!("pool of {rows}: {measured:.1e}");
        // Measured: at most 3.2e-7.
        assert!(measured < 1e-6, "{measured}");
        // The canary: the first row left out.
        assert!(rows == 1 || error(&case.run(scalar()), &pooled(1)) > 1e-6);
    }
}
