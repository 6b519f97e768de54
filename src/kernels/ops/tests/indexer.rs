//! The indexer of sparse attention.

use half::f16;

use super::*;

#[test]
fn hadamard_is_the_product_with_its_matrix() {
    let mut random = Random(31);
    for n in [1, 2, 16, 64, 128, 256] {
        let x = random.values(3 * n, 2.0);
        // An entry's sign is the parity of what row and column have in common.
        let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        let row = |x: &[f32], i: usize| {
            let terms = x.iter().enumerate().map(|(j, &x)| sign(i, j) * f64::from(x));
            terms.sum::<f64>() / (n as f64).sqrt()
        };
        let reference: Vec<f64> = x.chunks(n).flat_map(|x| (0..n).map(move |i| row(x, i))).collect();
        let mut wanted = x.clone();
        SCALAR.hadamard(&mut wanted, n);
        let measured = error(&wanted, &reference);
        // Measured: at most 1.7e-7.
        assert!(measured < 1e-6, "{n}: {measured}");
        for (name, ops) in instances() {
            let mut got = x.clone();
            ops.hadamard(&mut got, n);
            assert_same(&got, &wanted, &format!("{name}, {n}"));
        }
    }
}

/// Keys of pages, as f32 and f16, and queries behind them.
struct Case {
    heads: usize,
    len: usize,
    first_pos: usize,
    tokens: usize,
    keys: Vec<f32>,
    halves: Vec<u16>,
    q: Vec<f32>,
    weights: Vec<f32>,
}

impl Case {
    fn new(random: &mut Random, [heads, len, first_pos, tokens]: [usize; 4]) -> Case {
        let pages = (first_pos + tokens).div_ceil(PAGE);
        let keys = random.values(pages * PAGE * len, 1.0);
        let halves: Vec<u16> = keys.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
        let (q, weights) = (random.values(tokens * heads * len, 1.0), random.values(tokens * heads, 1.0));
        Case { heads, len, first_pos, tokens, keys, halves, q, weights }
    }

    fn pages(&self) -> usize {
        (self.first_pos + self.tokens).div_ceil(PAGE)
    }

    fn views(&self, half: bool) -> Vec<KvView<'_>> {
        let page = PAGE * self.len;
        match half {
            true => self.halves.chunks(page).map(KvView::F16).collect(),
            false => self.keys.chunks(page).map(KvView::F32).collect(),
        }
    }

    fn queries(&self) -> IndexQueries<'_> {
        let Case { heads, len, first_pos, ref q, ref weights, .. } = *self;
        IndexQueries { heads, len, q, weights, first_pos, per_key: 1 }
    }

    fn run(&self, ops: &Ops, half: bool) -> Vec<f32> {
        let kv = KvPages { first_page: 0, keys: &self.views(half), values: None };
        let mut out = vec![7.0; self.tokens * self.pages() * PAGE];
        ops.index_scores(&self.queries(), &kv, &mut out);
        out
    }

    fn blocks(&self, ops: &Ops, half: bool, block: usize) -> Vec<f32> {
        let kv = KvPages { first_page: 0, keys: &self.views(half), values: None };
        let blocks = (self.first_pos + self.tokens).div_ceil(block);
        let mut out = vec![7.0; self.tokens * self.heads * blocks];
        ops.block_scores(&IndexQueries { weights: &[], ..self.queries() }, &kv, block, &mut out);
        out
    }

    fn key(&self, j: usize, half: bool) -> Vec<f32> {
        let halves = &self.halves[j * self.len..][..self.len];
        match half {
            true => halves.iter().map(|&x| f16::from_bits(x).to_f32()).collect(),
            false => self.keys[j * self.len..][..self.len].to_vec(),
        }
    }

    /// The definition; what a token does not see is left as it was.
    fn defined(&self, half: bool) -> Vec<f32> {
        let Case { heads, len, first_pos, .. } = *self;
        let mut out = vec![7.0; self.tokens * self.pages() * PAGE];
        for (t, row) in out.chunks_mut(self.pages() * PAGE).enumerate() {
            for (j, out) in row[..first_pos + t + 1].iter_mut().enumerate() {
                let key = self.key(j, half);
                *out = (0..heads).fold(0.0, |sum, h| {
                    let dot = dot16(&self.q[(t * heads + h) * len..][..len], &key);
                    sum + if dot > 0.0 { dot } else { 0.0 } * self.weights[t * heads + h]
                });
            }
        }
        out
    }
}

#[test]
fn scores_have_the_defined_bits() {
    let mut random = Random(32);
    for sizes in [[1, 64, 0, 1], [2, 64, 126, 4], [3, 128, 127, 1], [5, 16, 255, 2], [8, 64, 300, 3]] {
        let mut case = Case::new(&mut random, sizes);
        if sizes[0] == 5 {
            case.q[3] = f32::NAN;
        }
        for half in [false, true] {
            let wanted = case.defined(half);
            for (name, ops) in instances() {
                assert_same(&case.run(ops, half), &wanted, &format!("{name}, {sizes:?}"));
            }
            in_pools(|_| assert_same(&case.run(scalar(), half), &wanted, "threads"));
        }
    }
}

/// Keys of several positions each: a token sees those that are whole.
#[test]
fn keys_of_several_positions_are_scored_once_they_are_whole() {
    let mut random = Random(35);
    for per_key in [2, 4, 100] {
        let mut case = Case::new(&mut random, [3, 16, 250, 7]);
        let single = case.defined(false);
        (case.first_pos, case.tokens) = (250 * per_key + per_key / 2, 7);
        let held = (case.first_pos + case.tokens) / per_key;
        assert!(held <= single.len() / case.tokens);
        let kv = KvPages { first_page: 0, keys: &case.views(false), values: None };
        let queries = IndexQueries { per_key, ..case.queries() };
        let mut out = vec![7.0; single.len()];
        for (name, ops) in instances() {
            ops.index_scores(&queries, &kv, &mut out);
            let row = single.len() / case.tokens;
            for (t, (got, single)) in out.chunks(row).zip(single.chunks(row)).enumerate() {
                let seen = (case.first_pos + t + 1) / per_key;
                // Of the same queries and keys, but for how many are seen.
                let both = seen.min(250 + t + 1);
                assert_same(&got[..both], &single[..both], &format!("{name}, {per_key}, {t}"));
                assert!(got[seen..].iter().all(|&x| x == 7.0), "{name}, {per_key}, {t}");
            }
            out.fill(7.0);
        }
    }
}

#[test]
fn blocks_have_the_greatest_dot_that_is_seen() {
    let mut random = Random(34);
    for (sizes, block) in
        [([1, 64, 0, 1], 4), ([2, 64, 126, 4], 16), ([3, 16, 250, 3], 64), ([4, 32, 90, 2], 100)]
    {
        let case = Case::new(&mut random, sizes);
        let [heads, len, first_pos, tokens] = sizes;
        let blocks = (first_pos + tokens).div_ceil(block);
        for half in [false, true] {
            let mut wanted = vec![f32::NEG_INFINITY; tokens * heads * blocks];
            for (i, best) in wanted.iter_mut().enumerate() {
                let (row, at) = (i / blocks, i % blocks);
                let end = ((at + 1) * block).min(first_pos + row / heads + 1);
                for j in at * block..end {
                    let dot = dot16(&case.q[row * len..][..len], &case.key(j, half));
                    *best = best.max(dot);
                }
            }
            for (name, ops) in instances() {
                let got = case.blocks(ops, half, block);
                assert_same(&got, &wanted, &format!("{name}, {sizes:?}"));
            }
            in_pools(|_| assert_same(&case.blocks(scalar(), half, block), &wanted, "threads"));
        }
    }
}

fn chosen(scores: &[f32], count: usize) -> Vec<usize> {
    let mut masks = vec![u128::MAX; scores.len().div_ceil(PAGE)];
    choose(scores, count, &mut masks, &mut Vec::new());
    (0..masks.len() * PAGE).filter(|j| masks[j / PAGE] >> (j % PAGE) & 1 == 1).collect()
}

#[test]
fn the_best_are_chosen_and_the_lower_of_equals() {
    assert_eq!(chosen(&[1.0, 3.0, 2.0, 3.0], 2), [1, 3]);
    assert_eq!(chosen(&[0.0, -0.0, 0.0, -1.0], 2), [0, 1]);
    assert_eq!(chosen(&[f32::NAN, -1e30, f32::NEG_INFINITY], 2), [1, 2]);
    assert_eq!(chosen(&[5.0, 1.0], 7), [0, 1]);
    assert_eq!(chosen(&[5.0], 0), [0; 0]);
    let mut random = Random(33);
    for count in [1, 2, 127, 128, 129, 300] {
        // Few values: many are equal.
        let scores: Vec<f32> = (0..400).map(|_| (random.next() % 9) as f32 - 4.0).collect();
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        let mut wanted = order[..count].to_vec();
        wanted.sort_unstable();
        assert_eq!(chosen(&scores, count), wanted, "{count}");
    }
}
