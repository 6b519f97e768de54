//! Mamba 2's scan: all instances give the definition's bits, however the tokens are cut; the definition
//! against f64.

use super::super::recurrence::SelectiveScan;
use super::*;

/// Sizes, and the inputs of some tokens.
struct Case {
    heads: usize,
    head_len: usize,
    groups: usize,
    state_len: usize,
    a: Vec<f32>,
    d: Vec<f32>,
    xbc: Vec<f32>,
    dt: Vec<f32>,
    state: Vec<f32>,
}

impl Case {
    fn new([heads, head_len, groups, state_len]: [usize; 4], tokens: usize, seed: u64) -> Case {
        let mut random = Random(seed);
        let width = heads * head_len + 2 * groups * state_len;
        let positive = |values: Vec<f32>| values.into_iter().map(f32::abs).collect::<Vec<_>>();
        Case {
            heads,
            head_len,
            groups,
            state_len,
            a: positive(random.values(heads, 2.0)).iter().map(|a| -a).collect(),
            d: random.values(heads, 1.0),
            xbc: random.values(tokens * width, 1.0),
            dt: positive(random.values(tokens * heads, 1.0)),
            state: random.values(heads * head_len * state_len, 1.0),
        }
    }

    fn scan(&self) -> SelectiveScan<'_> {
        let &Case { head_len, groups, state_len, ref a, ref d, .. } = self;
        SelectiveScan { head_len, groups, state_len, a, d }
    }

    fn tokens(&self) -> usize {
        self.dt.len() / self.heads
    }

    /// Outputs and the state that is left, the tokens taken so many at a time.
    fn run(&self, ops: &Ops, at_once: usize) -> (Vec<f32>, Vec<f32>) {
        let scan = self.scan();
        let (mut out, mut state) = (vec![f32::NAN; self.tokens() * scan.inner_len()], self.state.clone());
        let parts = self.xbc.chunks(at_once * scan.input_len()).zip(self.dt.chunks(at_once * self.heads));
        for ((xbc, dt), out) in parts.zip(out.chunks_mut(at_once * scan.inner_len())) {
            let mut scratch = vec![f32::NAN; out.len()];
            ops.selective_scan(&scan, xbc, dt, &mut state, &mut scratch, out);
        }
        (out, state)
    }

    /// The definition, one number after another.
    fn spelled_out(&self) -> (Vec<f32>, Vec<f32>) {
        let (mut out, mut state) = (Vec::new(), self.state.clone());
        let scan = self.scan();
        let (inner, n) = (scan.inner_len(), self.state_len);
        for (row, dt) in self.xbc.chunks(scan.input_len()).zip(self.dt.chunks(self.heads)) {
            for (i, state) in state.chunks_mut(n).enumerate() {
                let head = i / self.head_len;
                let b = &row[inner + head / (self.heads / self.groups) * n..][..n];
                let c = &row[inner + (self.groups + head / (self.heads / self.groups)) * n..][..n];
                let (decay, xdt) = (exp(dt[head] * self.a[head]), row[i] * dt[head]);
                state.iter_mut().zip(b).for_each(|(s, b)| *s = s.mul_add(decay, b * xdt));
                out.push(dot16(state, c) + row[i] * self.d[head]);
            }
        }
        (out, state)
    }

    /// The formula in f64; `decays`, `gates` and `skips` leave a step out.
    fn exact(&self, decays: bool, gates: bool, skips: bool) -> Vec<f64> {
        let mut out = Vec::new();
        let mut state: Vec<f64> = self.state.iter().map(|&s| s.into()).collect();
        let scan = self.scan();
        let (inner, n) = (scan.inner_len(), self.state_len);
        for (row, dt) in self.xbc.chunks(scan.input_len()).zip(self.dt.chunks(self.heads)) {
            let row: Vec<f64> = row.iter().map(|&x| x.into()).collect();
            for (i, state) in state.chunks_mut(n).enumerate() {
                let head = i / self.head_len;
                let (a, d, dt) = (f64::from(self.a[head]), f64::from(self.d[head]), f64::from(dt[head]));
                let group = head / (self.heads / self.groups);
                let (b, c) = (&row[inner + group * n..], &row[inner + (self.groups + group) * n..]);
                let decay = if decays { (dt * a).exp() } else { 1.0 };
                let mut y = if skips { row[i] * d } else { 0.0 };
                for (j, s) in state.iter_mut().enumerate() {
                    *s = *s * decay + b[j] * row[i] * if gates { dt } else { 1.0 };
                    y += *s * c[j];
                }
                out.push(y);
            }
        }
        out
    }
}

/// Heads, their length, groups, the state's length.
const SIZES: [[usize; 4]; 8] = [
    [1, 1, 1, 1],
    [2, 3, 1, 15],
    [4, 4, 2, 16],
    [6, 5, 3, 17],
    [3, 7, 3, 31],
    [2, 64, 1, 128],
    [8, 9, 2, 100],
    [5, 6, 5, 33],
];

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
        for values in [&mut case.xbc, &mut case.dt, &mut case.state, &mut case.a, &mut case.d] {
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
    let case = Case::new([12, 16, 3, 64], 40, 7);
    assert!(case.state.len() * case.tokens() > 1 << 18, "enough for threads");
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
    let case = Case::new([4, 16, 2, 128], 50, 3);
    let (out, _) = case.run(scalar(), 50);
    let measured = error(&out, &case.exact(true, true, true));
    println!("scan: {measured:.1e}");
    // Measured: 1.3e-7.
    assert!(measured < 1.2e-6, "{measured}");
    // The canaries: no decay, inputs not weighted by dt, no part of the input passed on.
    for left_out in [[false, true, true], [true, false, true], [true, true, false]] {
        let [decays, gates, skips] = left_out;
        assert!(error(&out, &case.exact(decays, gates, skips)) > 1e-3, "{left_out:?}");
    }
}
