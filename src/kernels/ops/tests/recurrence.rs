//! The short convolution and the delta rule: every instance, pool and cut of a text against the definition,
//! written plainly, to the last bit, and against f64 within a bound.

use super::*;

/// Lengths around what lanes and items of work take.
const LENGTHS: [usize; 7] = [1, 5, 8, 16, 24, 33, 64];

/// A convolution and what it works on.
struct Convolution {
    channels: usize,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    silu: bool,
    window: Vec<f32>,
    x: Vec<f32>,
}

impl Convolution {
    fn new(random: &mut Random, channels: usize, taps: usize, tokens: usize) -> Convolution {
        Convolution {
            channels,
            weight: random.values(taps * channels, 1.0),
            bias: channels.is_multiple_of(2).then(|| random.values(channels, 1.0)),
            silu: taps.is_multiple_of(2),
            window: random.values((taps - 1) * channels, 2.0),
            x: random.values(tokens * channels, 2.0),
        }
    }

    fn taps(&self) -> usize {
        self.weight.len() / self.channels
    }

    fn conv(&self) -> CausalConv<'_> {
        let Convolution { channels, weight, bias, silu, .. } = self;
        CausalConv { channels: *channels, weight, bias: bias.as_deref(), silu: *silu }
    }

    /// All inputs, the window's first.
    fn inputs(&self) -> Vec<f32> {
        [&self.window[..], &self.x].concat()
    }

    /// The outputs and the window behind them, taken in passes of so many tokens.
    fn run(&self, ops: &Ops, batch: usize) -> (Vec<f32>, Vec<f32>) {
        let (mut window, mut out) = (self.window.clone(), vec![f32::NAN; self.x.len()]);
        let batch = batch * self.channels;
        for (x, out) in self.x.chunks(batch).zip(out.chunks_mut(batch)) {
            ops.causal_conv(&self.conv(), x, &mut window, out);
        }
        (out, window)
    }

    /// The definition.
    fn plain(&self) -> (Vec<f32>, Vec<f32>) {
        let (n, inputs) = (self.channels, self.inputs());
        let at = |(i, _): (usize, &f32)| {
            let tap = |acc: f32, tap: usize| inputs[i + tap * n].mul_add(self.weight[tap * n + i % n], acc);
            let sum = (0..self.taps()).fold(0.0f32, tap);
            let y = self.bias.as_ref().map_or(sum, |bias| sum + bias[i % n]);
            if self.silu { y / (1.0 + exp(-y)) } else { y }
        };
        let out = self.x.iter().enumerate().map(at).collect();
        (out, inputs[self.x.len()..].to_vec())
    }
}

#[test]
fn a_convolution_has_the_same_bits_everywhere() {
    let mut random = Random(21);
    let mut convolutions = Vec::new();
    for channels in [1, 15, 16, 17, 100] {
        for taps in 2..=5 {
            for tokens in [1, 2, 7] {
                convolutions.push(Convolution::new(&mut random, channels, taps, tokens));
            }
        }
    }
    let mut extreme = Convolution::new(&mut random, 40, 4, 9);
    extreme.x = random.extremes(360);
    convolutions.extend([extreme, Convolution::new(&mut random, 2000, 4, 40)]);
    for case in &convolutions {
        let (out, window) = case.plain();
        for (name, ops) in instances() {
            let what = format!("{name}: {} channels, {} taps", case.channels, case.taps());
            for batch in [1, 2, 3, 100] {
                let got = case.run(ops, batch);
                assert_same(&got.0, &out, &what);
                assert_same(&got.1, &window, &what);
            }
            in_pools(|_| assert_same(&case.run(ops, 100).0, &out, &what));
        }
    }
}

/// SiLU within the convolution or behind it.
#[test]
fn silu_may_be_a_step_of_its_own() {
    let mut case = Convolution::new(&mut Random(22), 37, 4, 5);
    let (whole, _) = case.run(scalar(), 5);
    case.silu = false;
    let (mut apart, _) = case.run(scalar(), 5);
    scalar().silu(&mut apart);
    assert_same(&apart, &whole, "SiLU apart");
}

/// The delta rule and what it works on.
#[derive(Clone)]
struct Rule {
    tokens: usize,
    heads: usize,
    key_heads: usize,
    map: HeadMap,
    len: usize,
    /// `[tokens][queries, keys, values]`
    mixed: Vec<f32>,
    /// For each element of a key, or for each head.
    by_channel: bool,
    decay: Vec<f32>,
    beta: Vec<f32>,
    state: Vec<f32>,
}

impl Rule {
    fn new(
        random: &mut Random,
        [tokens, heads, key_heads, len]: [usize; 4],
        map: HeadMap,
        by_channel: bool,
    ) -> Rule {
        let share = |random: &mut Random, n| random.values(n, 0.5).iter().map(|v| v + 0.5).collect();
        let mut mixed = random.values(tokens * (heads + 2 * key_heads) * len, 1.0);
        let width = (heads + 2 * key_heads) * len;
        scalar().l2_norm(&mut mixed, width, 2 * key_heads * len, len, 1e-6);
        let decays = if by_channel { tokens * heads * len } else { tokens * heads };
        Rule {
            tokens,
            heads,
            key_heads,
            map,
            len,
            mixed,
            by_channel,
            decay: share(random, decays),
            beta: share(random, tokens * heads),
            state: random.values(heads * len * len, 1.0),
        }
    }

    fn width(&self) -> usize {
        (self.heads + 2 * self.key_heads) * self.len
    }

    /// Outputs and state after all tokens, in passes of so many.
    fn run(&self, ops: &Ops, batch: usize) -> (Vec<f32>, Vec<f32>) {
        let Rule { heads, key_heads, map, len, .. } = *self;
        let (width, keys, values) = (self.width(), key_heads * len, heads * len);
        let mut state = self.state.clone();
        let mut out = vec![f32::NAN; self.tokens * values];
        let mut scratch = vec![f32::NAN; batch * values];
        let decays = self.decay.len() / self.tokens;
        for (i, out) in out.chunks_mut(batch * values).enumerate() {
            let (from, tokens) = (i * batch, out.len() / values);
            let data = &self.mixed[from * width..(from + tokens) * width];
            let rows = |offset| StridedRows { data, stride: width, offset };
            let decay = &self.decay[from * decays..(from + tokens) * decays];
            let rule = DeltaRule {
                tokens,
                heads,
                key_heads,
                map,
                len,
                q: rows(0),
                k: rows(keys),
                v: rows(2 * keys),
                decay: if self.by_channel { Decay::Channel(decay) } else { Decay::Head(decay) },
                beta: &self.beta[from * heads..(from + tokens) * heads],
            };
            ops.delta_rule(&rule, &mut state, out, &mut scratch);
        }
        (out, state)
    }

    /// Calls `step` with each token and head of values: its query, key, values, decays and strength.
    fn each(&self, mut step: impl FnMut(usize, usize, [&[f32]; 4], f32)) {
        let (len, keys) = (self.len, self.key_heads * self.len);
        for t in 0..self.tokens {
            let row = &self.mixed[t * self.width()..][..self.width()];
            for h in 0..self.heads {
                let key_head = match self.map {
                    HeadMap::Tiled => h % self.key_heads,
                    HeadMap::Grouped => h / (self.heads / self.key_heads),
                };
                let of_head = t * self.heads + h;
                let decay = match self.by_channel {
                    true => self.decay[of_head * len..][..len].to_vec(),
                    false => vec![self.decay[of_head]; len],
                };
                let (q, k) = (&row[key_head * len..][..len], &row[keys + key_head * len..][..len]);
                step(t, h, [q, k, &row[2 * keys + h * len..][..len], &decay], self.beta[of_head]);
            }
        }
    }

    /// The definition.
    fn plain(&self) -> (Vec<f32>, Vec<f32>) {
        let len = self.len;
        let scale = 1.0 / (len as f32).sqrt();
        let mut state = self.state.clone();
        let mut out = Vec::new();
        self.each(|_, h, [q, k, v, decay], beta| {
            let state = &mut state[h * len * len..][..len * len];
            for (row, v) in state.chunks_exact_mut(len).zip(v) {
                row.iter_mut().zip(decay).for_each(|(m, d)| *m *= d);
                let learned = (v - dot16(row, k)) * beta;
                row.iter_mut().zip(k).for_each(|(m, k)| *m = learned.mul_add(*k, *m));
                out.push(dot16(row, q) * scale);
            }
        });
        (out, state)
    }

    /// The same in f64.
    fn exact(&self) -> Vec<f64> {
        let len = self.len;
        let mut state: Vec<f64> = self.state.iter().map(|&m| f64::from(m)).collect();
        let mut out = Vec::new();
        let dot = |a: &[f64], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum::<f64>();
        self.each(|_, h, [q, k, v, decay], beta| {
            let state = &mut state[h * len * len..][..len * len];
            for (row, v) in state.chunks_exact_mut(len).zip(v) {
                row.iter_mut().zip(decay).for_each(|(m, d)| *m *= f64::from(*d));
                let learned = (f64::from(*v) - dot(row, k)) * f64::from(beta);
                row.iter_mut().zip(k).for_each(|(m, k)| *m += learned * f64::from(*k));
                out.push(dot(row, q) / (len as f64).sqrt());
            }
        });
        out
    }
}

const MAPS: [HeadMap; 2] = [HeadMap::Tiled, HeadMap::Grouped];

#[test]
fn the_delta_rule_has_the_same_bits_everywhere() {
    let mut random = Random(23);
    let mut rules = Vec::new();
    for len in LENGTHS {
        for (heads, key_heads) in [(1, 1), (4, 2), (3, 1)] {
            let map = MAPS[rules.len() % 2];
            let by_channel = rules.len() % 3 == 2;
            rules.push(Rule::new(&mut random, [1 + rules.len() % 7, heads, key_heads, len], map, by_channel));
        }
    }
    let mut extreme = Rule::new(&mut random, [3, 2, 2, 16], HeadMap::Tiled, true);
    extreme.mixed = random.extremes(extreme.mixed.len());
    // Large enough for all threads.
    rules.extend([extreme, Rule::new(&mut random, [9, 4, 2, 96], HeadMap::Grouped, false)]);
    for rule in &rules {
        let (out, state) = rule.plain();
        for (name, ops) in instances() {
            let what = format!("{name}: {} heads of {}, {} tokens", rule.heads, rule.len, rule.tokens);
            for batch in [1, 2, 9] {
                let got = rule.run(ops, batch);
                assert_same(&got.0, &out, &what);
                assert_same(&got.1, &state, &what);
            }
            in_pools(|_| {
                let got = rule.run(ops, 9);
                assert_same(&got.0, &out, &what);
                assert_same(&got.1, &state, &what);
            });
        }
    }
}

#[test]
fn the_delta_rule_is_accurate() {
    let mut random = Random(24);
    for (map, by_channel) in [(HeadMap::Tiled, false), (HeadMap::Grouped, true)] {
        let rule = Rule::new(&mut random, [50, 4, 2, 64], map, by_channel);
        let (out, _) = rule.run(scalar(), 50);
        let measured = error(&out, &rule.exact());
        println!("delta rule: {measured:.1e}");
        // Measured: 1.1e-7.
        assert!(measured < 1e-6, "{measured}");
        // The canaries: the other map of heads, no decay, other strengths, another past.
        let other = if map == HeadMap::Tiled { HeadMap::Grouped } else { HeadMap::Tiled };
        let faults = [
            Rule { map: other, ..rule.clone() },
            Rule { decay: vec![1.0; rule.decay.len()], ..rule.clone() },
            Rule { beta: vec![1.0; rule.beta.len()], ..rule.clone() },
            Rule { state: vec![0.0; rule.state.len()], ..rule.clone() },
        ];
        for fault in faults {
            assert!(error(&out, &fault.exact()) > 1e-4);
        }
    }
}

#[test]
fn l2_norm_is_accurate() {
    let mut random = Random(25);
    // Two heads at the beginning of each row, and something behind them.
    let (stride, width, len) = (300, 256, 128);
    let x = random.values(5 * stride, 3.0);
    let mut out = x.clone();
    scalar().l2_norm(&mut out, stride, width, len, 1e-6);
    let of = |eps: f64| -> Vec<f64> {
        let mut all = Vec::new();
        for row in x.chunks(stride) {
            for head in row[..width].chunks(len) {
                let square: f64 = head.iter().map(|&x| f64::from(x).powi(2)).sum();
                all.extend(head.iter().map(|&x| f64::from(x) / (square + eps).sqrt()));
            }
            all.extend(row[width..].iter().map(|&x| f64::from(x)));
        }
        all
    };
    let measured = error(&out, &of(1e-6));
    println!("l2_norm: {measured:.1e}");
    // Measured: 8.2e-9.
    assert!(measured < 8e-8, "{measured}");
    assert!(error(&out, &of(1.0)) > 8e-8, "another epsilon");
    for (name, ops) in instances() {
        let mut again = x.clone();
        ops.l2_norm(&mut again, stride, width, len, 1e-6);
        assert_same(&again, &out, name);
    }
}
