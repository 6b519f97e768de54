//! Attention and the writing of its cache.

use half::f16;

use super::*;

/// Deliberate faults of the reference: what the comparison must notice.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Query heads dealt out to KV heads in turn.
    WrongKvHead,
    /// One position more than the token may see.
    SeesTheNext,
    /// The merge as a running rescale over all positions.
    OneChunk,
}

/// A layer's cache as f32 and f16, `[kv_heads][ctx][head_dim]`, and queries for a run of positions.
struct Case {
    shape: AttentionShape,
    f16: bool,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    k16: Vec<u16>,
    v16: Vec<u16>,
}

impl Case {
    fn new(random: &mut Random, shape: AttentionShape, f16: bool) -> Self {
        let cache = shape.kv_heads * shape.ctx * shape.head_dim;
        let q = random.values(shape.tokens * shape.heads * shape.head_dim, 3.0);
        let (mut k, mut v) = (random.values(cache, 1.0), random.values(cache, 1.0));
        // What lies beyond the batch must not be looked at.
        let end = (shape.first_pos + shape.tokens + 1) * shape.head_dim;
        for head in k.chunks_mut(shape.ctx * shape.head_dim).chain(v.chunks_mut(shape.ctx * shape.head_dim)) {
            head[end.min(shape.ctx * shape.head_dim)..].fill(f32::NAN);
        }
        let mut case = Self { shape, f16, q, k, v, k16: vec![], v16: vec![] };
        case.sync();
        case
    }

    /// Makes the f16 cache from the f32 one, and where that is used the f32 one from it.
    fn sync(&mut self) {
        let narrow = |x: &[f32]| x.iter().map(|&x| f16::from_f32(x).to_bits()).collect::<Vec<_>>();
        (self.k16, self.v16) = (narrow(&self.k), narrow(&self.v));
        if self.f16 {
            let widen = |x: &[u16]| x.iter().map(|&x| f16::from_bits(x).to_f32()).collect::<Vec<_>>();
            (self.k, self.v) = (widen(&self.k16), widen(&self.v16));
        }
    }

    fn run(&self, ops: &Ops, scratch: &mut AttentionScratch) -> Vec<f32> {
        self.run_part(ops, 0..self.shape.tokens, scratch)
    }

    /// Only some of the batch's tokens.
    fn run_part(
        &self,
        ops: &Ops,
        tokens: std::ops::Range<usize>,
        scratch: &mut AttentionScratch,
    ) -> Vec<f32> {
        let token = self.shape.heads * self.shape.head_dim;
        let (first_pos, count) = (self.shape.first_pos + tokens.start, tokens.len());
        let shape = AttentionShape { tokens: count, first_pos, ..self.shape };
        let q = &self.q[tokens.start * token..tokens.end * token];
        let mut out = vec![7.0; q.len()];
        let (k, v) = match self.f16 {
            true => (KvView::F16(&self.k16), KvView::F16(&self.v16)),
            false => (KvView::F32(&self.k), KvView::F32(&self.v)),
        };
        ops.attention(&shape, q, k, v, &mut out, scratch);
        out
    }

    fn key_value(&self, kv_head: usize, j: usize) -> (&[f32], &[f32]) {
        let at = (kv_head * self.shape.ctx + j) * self.shape.head_dim;
        (&self.k[at..][..self.shape.head_dim], &self.v[at..][..self.shape.head_dim])
    }

    fn kv_head(&self, head: usize, fault: Fault) -> usize {
        let group = self.shape.heads / self.shape.kv_heads;
        if fault == Fault::WrongKvHead { head % self.shape.kv_heads } else { head / group }
    }

    fn seen(&self, token: usize, fault: Fault) -> std::ops::Range<usize> {
        let pos = self.shape.first_pos + token;
        let start = self.shape.window.map_or(0, |window| (pos + 1).saturating_sub(window));
        start..pos + 1 + usize::from(fault == Fault::SeesTheNext)
    }

    /// The definition, position by position.
    fn defined(&self, fault: Fault) -> Vec<f32> {
        let exp = |x: f32| {
            let mut x = [x];
            SCALAR.exp(&mut x);
            x[0]
        };
        let mut all = Vec::new();
        for token in 0..self.shape.tokens {
            for head in 0..self.shape.heads {
                let q =
                    &self.q[(token * self.shape.heads + head) * self.shape.head_dim..][..self.shape.head_dim];
                let kv_head = self.kv_head(head, fault);
                let mut merged: Option<(f32, f32, Vec<f32>)> = None;
                let mut seen: Vec<usize> = self.seen(token, fault).collect();
                while !seen.is_empty() {
                    let chunk = seen[0] / CHUNK;
                    let rest = seen.iter().position(|j| j / CHUNK != chunk && fault != Fault::OneChunk);
                    let later = seen.split_off(rest.unwrap_or(seen.len()));
                    let scores: Vec<f32> = seen
                        .iter()
                        .map(|&j| SCALAR.dot_f32(q, self.key_value(kv_head, j).0) * self.shape.scale)
                        .collect();
                    let m = scores.iter().fold(f32::NEG_INFINITY, |m, &s| if s > m { s } else { m });
                    let mut lanes = [0.0f32; 16];
                    let mut o = vec![0.0f32; self.shape.head_dim];
                    for (&j, s) in seen.iter().zip(scores) {
                        let p = exp(s - m);
                        lanes[j % 16] += p;
                        let v = self.key_value(kv_head, j).1;
                        o.iter_mut().zip(v).for_each(|(o, v)| *o = p.mul_add(*v, *o));
                    }
                    // A dot with ones adds nothing but the tree.
                    let s = SCALAR.dot_f32(&lanes, &[1.0; 16]);
                    merged = Some(match merged {
                        None => (m, s, o),
                        Some((top, sum, mut out)) => {
                            let max = if m > top { m } else { top };
                            let (a, b) = (exp(top - max), exp(m - max));
                            out.iter_mut().zip(o).for_each(|(out, o)| *out = out.mul_add(a, o * b));
                            (max, sum.mul_add(a, s * b), out)
                        }
                    });
                    seen = later;
                }
                let (_, sum, out) = merged.expect("a token sees itself");
                all.extend(out.iter().map(|o| o * (1.0 / sum)));
            }
        }
        all
    }

    /// Softmax of the scores times the values, in f64.
    fn reference(&self, fault: Fault) -> Vec<f64> {
        let mut all = Vec::new();
        for token in 0..self.shape.tokens {
            for head in 0..self.shape.heads {
                let q =
                    &self.q[(token * self.shape.heads + head) * self.shape.head_dim..][..self.shape.head_dim];
                let kv_head = self.kv_head(head, fault);
                let dot =
                    |k: &[f32]| q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>();
                let p: Vec<f64> = self
                    .seen(token, fault)
                    .map(|j| (dot(self.key_value(kv_head, j).0) * f64::from(self.shape.scale)).exp())
                    .collect();
                let total: f64 = p.iter().sum();
                let mut out = vec![0.0; self.shape.head_dim];
                for (j, p) in self.seen(token, fault).zip(p) {
                    let v = self.key_value(kv_head, j).1;
                    out.iter_mut().zip(v).for_each(|(o, &v)| *o += p / total * f64::from(v));
                }
                all.extend(out);
            }
        }
        all
    }
}

fn shape(
    head_dim: usize,
    group: usize,
    tokens: usize,
    first_pos: usize,
    window: Option<usize>,
) -> AttentionShape {
    let (kv_heads, scale) = (2, 1.0 / (head_dim as f32).sqrt());
    let ctx = first_pos + tokens + 3;
    AttentionShape { heads: kv_heads * group, kv_heads, head_dim, ctx, tokens, first_pos, window, scale }
}

/// Shapes around the edges of chunks, lanes, tiles and windows; each value of each axis, not every combination.
fn shapes() -> Vec<AttentionShape> {
    let mut all = Vec::new();
    let positions = [0, 1, 126, 127, 128, 129, 130, 255, 256, 257, 258, 700];
    for (i, first_pos) in positions.into_iter().enumerate() {
        for (j, tokens) in [1, 2, 5, 33].into_iter().enumerate() {
            for (l, group) in [1, 3, 4].into_iter().enumerate() {
                let head_dim = [8, 24, 48, 64, 96, 128][(i + j + l) % 6];
                let window = [None, Some(1), Some(20), Some(128), Some(300)][(i + 2 * j + l) % 5];
                all.push(shape(head_dim, group, tokens, first_pos, None));
                all.push(shape(head_dim, group, tokens, first_pos, window));
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
        let wanted = case.defined(Fault::None);
        for (name, ops) in instances() {
            // Without FMA the portable instance is slow: a part of the cases.
            if name != "scalar" || i % 8 == 0 {
                assert_same(&case.run(ops, &mut scratch), &wanted, &format!("{name}, {shape:?}"));
            }
        }
    }
}

#[test]
fn both_kinds_of_cache_at_every_head_size() {
    let mut random = Random(12);
    let mut scratch = AttentionScratch::default();
    for head_dim in [8, 16, 24, 48, 64, 80, 96, 128] {
        for (tokens, f16) in [(1, false), (1, true), (7, false), (7, true), (40, true)] {
            let case = Case::new(&mut random, shape(head_dim, 2, tokens, 250, None), f16);
            let wanted = case.defined(Fault::None);
            for (name, ops) in instances().split_off(1) {
                assert_same(
                    &case.run(ops, &mut scratch),
                    &wanted,
                    &format!("{name}, {head_dim}, f16: {f16}"),
                );
            }
        }
    }
}

#[test]
fn threads_and_batches_change_no_bit() {
    let mut random = Random(13);
    for (first_pos, tokens, window) in
        [(0, 150, None), (300, 90, Some(140)), (2000, 3, None), (1500, 1, None)]
    {
        let case = Case::new(&mut random, shape(64, 4, tokens, first_pos, window), true);
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
    for window in [None, Some(100)] {
        let case = Case::new(&mut random, shape(64, 3, 5, 400, window), false);
        let out = case.run(scalar(), &mut scratch);
        let measured = error(&out, &case.reference(Fault::None));
        println!("attention: {measured:.1e}");
        // Measured: 3.8e-7 and 3.1e-7.
        assert!(measured < 2e-6, "{measured}");
        for fault in [Fault::WrongKvHead, Fault::SeesTheNext] {
            assert!(error(&out, &case.reference(fault)) > 2e-6);
            assert!(difference(&out, &case.defined(fault)).is_some());
        }
        // Another order of rounding is seen by the exact comparison alone.
        assert!(difference(&out, &case.defined(Fault::OneChunk)).is_some());
        assert!(difference(&out, &case.defined(Fault::None)).is_none());
    }
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
    let at = 139 * 64;
    (case.k[at], case.v[at]) = (f32::NAN, f32::NAN);
    let out = case.run(scalar(), &mut scratch);
    let last = 19 * 8 * 64;
    assert!(out[..last].iter().all(|x| x.is_finite()));
    assert!(out[last..last + 4 * 64].iter().all(|x| x.is_nan()));
    assert!(out[last + 4 * 64..].iter().all(|x| x.is_finite()));
}

#[test]
fn new_rows_go_to_their_places_in_the_cache() {
    let mut random = Random(16);
    let (kv_heads, head_dim, ctx, first_pos) = (3, 24, 900, 5);
    for tokens in [1, 4, 600] {
        let rows = random.values(tokens * kv_heads * head_dim, 100.0);
        for (name, ops) in instances() {
            let (mut f32s, mut f16s) =
                (vec![-7.0; kv_heads * ctx * head_dim], vec![9; kv_heads * ctx * head_dim]);
            ops.store_kv(&rows, KvViewMut::F32(&mut f32s), kv_heads, head_dim, ctx, first_pos);
            ops.store_kv(&rows, KvViewMut::F16(&mut f16s), kv_heads, head_dim, ctx, first_pos);
            for head in 0..kv_heads {
                for pos in 0..ctx {
                    for d in 0..head_dim {
                        let at = (head * ctx + pos) * head_dim + d;
                        let wanted = (first_pos..first_pos + tokens)
                            .contains(&pos)
                            .then(|| rows[((pos - first_pos) * kv_heads + head) * head_dim + d]);
                        assert_eq!(f32s[at], wanted.unwrap_or(-7.0), "{name}");
                        assert_eq!(f16s[at], wanted.map_or(9, |x| f16::from_f32(x).to_bits()), "{name}");
                    }
                }
            }
        }
    }
}
