//! Mamba's scan: all instances give the definition's bits, however the tokens are cut; the definition against
//! f64.

use super::super::recurrence::{ChannelRows, ChannelScan};
use super::*;

/// Sizes, and the inputs of some tokens.
#[derive(Clone)]
struct Case {
    state_len: usize,
    a: Vec<f32>,
    d: Vec<f32>,
    x: Vec<f32>,
    dt: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    state: Vec<f32>,
}

impl Case {
    fn new([channels, state_len]: [usize; 2], tokens: usize, seed: u64) -> Case {
        let mut random = Random(seed);
        let rates = random.values(channels * state_len, 2.0);
        Case {
            state_len,
            a: rates.iter().map(|a| -a.abs()).collect(),
            d: random.values(channels, 1.0),
            x: random.values(tokens * channels, 1.0),
            dt: random.values(tokens * channels, 1.0).iter().map(|dt| dt.abs()).collect(),
            b: random.values(tokens * state_len, 1.0),
            c: random.values(tokens * state_len, 1.0),
            state: random.values(channels * state_len, 1.0),
        }
    }

    /// Outputs and the state that is left, the tokens taken so many at a time.
    fn run(&self, ops: &Ops, at_once: usize) -> (Vec<f32>, Vec<f32>) {
        let (n, channels) = (self.state_len, self.d.len());
        let scan = ChannelScan { state_len: n, a: &self.a, d: &self.d };
        let (mut out, mut state) = (vec![f32::NAN; self.x.len()], self.state.clone());
        let wide = self.x.chunks(at_once * channels).zip(self.dt.chunks(at_once * channels));
        let rows = wide.zip(self.b.chunks(at_once * n).zip(self.c.chunks(at_once * n)));
        for (((x, dt), (b, c)), out) in rows.zip(out.chunks_mut(at_once * channels)) {
            let mut scratch = vec![f32::NAN; out.len()];
            ops.channel_scan(&scan, &ChannelRows { x, dt, b, c }, &mut state, &mut scratch, out);
        }
        (out, state)
    }

    /// Calls `each` with the token's channel, x and dt, and its rows of B and C.
    fn each(&self, mut each: impl FnMut(usize, [f32; 2], [&[f32]; 2])) {
        let (n, channels) = (self.state_len, self.d.len());
        for (at, (&x, &dt)) in self.x.iter().zip(&self.dt).enumerate() {
            let t = at / channels;
            each(at % channels, [x, dt], [&self.b[t * n..][..n], &self.c[t * n..][..n]]);
        }
    }

    /// The definition, one number after another.
    fn spelled_out(&self) -> (Vec<f32>, Vec<f32>) {
        let (n, mut out, mut state) = (self.state_len, Vec::new(), self.state.clone());
        self.each(|i, [x, dt], [b, c]| {
            let (state, a) = (&mut state[i * n..][..n], &self.a[i * n..][..n]);
            for ((s, a), b) in state.iter_mut().zip(a).zip(b) {
                *s = s.mul_add(exp(dt * a), b * (x * dt));
            }
            out.push(dot16(state, c) + x * self.d[i]);
        });
        (out, state)
    }

    /// The formula in f64.
    fn exact(&self) -> Vec<f64> {
        let (n, mut out) = (self.state_len, Vec::new());
        let mut state: Vec<f64> = self.state.iter().map(|&s| s.into()).collect();
        self.each(|i, [x, dt], [b, c]| {
            let (x, dt) = (f64::from(x), f64::from(dt));
            let mut y = x * f64::from(self.d[i]);
            for j in 0..n {
                let s = &mut state[i * n + j];
                *s = *s * (dt * f64::from(self.a[i * n + j])).exp() + f64::from(b[j]) * x * dt;
                y += *s * f64::from(c[j]);
            }
            out.push(y);
        });
        out
    }
}

/// Channels, the state's length.
const SIZES: [[usize; 2]; 8] = [[1, 1], [3, 15], [4, 16], [17, 17], [16, 4], [70, 16], [33, 33], [32, 100]];

#[test]
fn instances_give_the_definitions_bits_however_tokens_are_cut() {
    for (seed, sizes) in SIZES.into_iter().enumerate() {
        let case = Case::new(sizes, 11, seed as u64);
        let wanted = case.spelled_out();
        for (name, ops) in instances() {
            for at_once in [1, 2, 5, 11] {
                let got = case.run(ops, at_once);
                let what = format!("{name}, {sizes:?}, {at_once} at once");
                assert_same(&got.0, &wanted.0, &what);
                assert_same(&got.1, &wanted.1, &what);
            }
        }
    }
}

#[test]
fn values_of_every_kind_give_the_same_bits() {
    for (seed, sizes) in SIZES.into_iter().enumerate() {
        let mut case = Case::new(sizes, 3, seed as u64);
        let mut random = Random(90 + seed as u64);
        let Case { x, dt, b, c, state, a, d, .. } = &mut case;
        for values in [x, dt, b, c, state, a, d] {
            let extremes = random.extremes(values.len());
            values.iter_mut().zip(extremes).filter(|(_, e)| e.is_normal()).for_each(|(v, e)| *v = e);
        }
        let wanted = case.run(&SCALAR, 1);
        for (name, ops) in instances() {
            let got = case.run(ops, 3);
            assert_same(&got.0, &wanted.0, &format!("{name}, {sizes:?}"));
            assert_same(&got.1, &wanted.1, &format!("{name}, {sizes:?}"));
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let case = Case::new([300, 20], 40, 7);
    assert!(case.state.len() * 7 > 1 << 15, "enough for threads");
    let wanted = case.spelled_out();
    for (name, ops) in instances() {
        in_pools(|threads| {
            for at_once in [1, 7, 40] {
                let got = case.run(ops, at_once);
                let what = format!("{name}, {threads} threads, {at_once} at once");
                assert_same(&got.0, &wanted.0, &what);
                assert_same(&got.1, &wanted.1, &what);
            }
        });
    }
}

#[test]
fn the_scan_is_accurate() {
    let case = Case::new([64, 16], 50, 3);
    let (out, _) = case.run(scalar(), 50);
    let measured = error(&out, &case.exact());
    println!("scan: {measured:.1e}");
    // Measured: 1.6e-7.
    assert!(measured < 1.6e-6, "{measured}");
    // The canaries: no decay, steps of 1, no part of the input passed on, one rate for all of a channel.
    let mut one_rate = case.clone();
    one_rate.a.chunks_exact_mut(16).for_each(|a| a.fill(a[0]));
    let faults = [
        Case { a: vec![0.0; case.a.len()], ..case.clone() },
        Case { dt: vec![1.0; case.dt.len()], ..case.clone() },
        Case { d: vec![0.0; case.d.len()], ..case.clone() },
        one_rate,
    ];
    for fault in faults {
        assert!(error(&out, &fault.exact()) > 1e-3);
    }
}
