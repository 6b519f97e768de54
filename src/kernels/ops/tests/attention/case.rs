//! A call of attention, what it must give to the last bit, and what in f64 and in ggml's order.

use std::ops::Range;

use super::*;

/// Deliberate faults of the reference: what the comparison must notice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    None,
    /// Query heads dealt out to KV heads in turn.
    WrongKvHead,
    /// One position more than the token may see.
    SeesTheNext,
    /// A window that is one position short.
    ShortWindow,
    /// The merge as a running rescale over all positions.
    OneChunk,
    /// With an f16 cache or quantised keys, queries not rounded.
    KeepsQueries,
    /// With quantised keys, queries not rotated.
    KeepsDirections,
    /// With an f16 cache, probabilities not rounded.
    KeepsProbabilities,
    NoSinks,
    NoCap,
}

/// How keys or values are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    F32,
    F16,
    Q8,
    Q4,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::F32, Kind::F16, Kind::Q8, Kind::Q4];

    pub fn is_quantised(self) -> bool {
        matches!(self, Kind::Q8 | Kind::Q4)
    }
}

/// Keys or values, `[page][kv_heads][PAGE][len]`, in every form that they may have.
#[derive(Default)]
struct Forms {
    halves: Vec<u16>,
    /// Quants with their signs, and the scales of every 32, row by row.
    quants: Vec<i8>,
    scales: Vec<u16>,
    /// As pages have them: keys in panels.
    page_scales: Vec<u16>,
    page_quants: Vec<i8>,
    nibbles: Vec<u8>,
}

impl Forms {
    /// Of values, which become what is kept of them.
    fn new(x: &mut [f32], len: usize, kind: Kind, keys: bool) -> Forms {
        let mut forms =
            Forms { halves: x.iter().map(|&x| f16::from_f32(x).to_bits()).collect(), ..Forms::default() };
        match kind {
            Kind::F32 => {}
            Kind::F16 => {
                x.iter_mut().zip(&forms.halves).for_each(|(x, &half)| *x = f16::from_bits(half).to_f32());
            }
            Kind::Q8 | Kind::Q4 => {
                forms.quantise(x, kind);
                if keys { forms.lay_out_keys(len) } else { forms.lay_out_values(len) }
            }
        }
        forms
    }

    fn quantise(&mut self, x: &mut [f32], kind: Kind) {
        for block in x.as_chunks_mut::<32>().0 {
            let mut quants = [0i8; 32];
            let scale = match kind {
                Kind::Q8 => quantize_q8_0(block, &mut quants),
                _ => {
                    let mut unsigned = [0; 32];
                    let scale = quantize_q4_0(block, &mut unsigned);
                    quants = unsigned.map(|q| q as i8 - 8);
                    scale
                }
            };
            for (x, q) in block.iter_mut().zip(quants) {
                *x = scale.to_f32() * f32::from(q);
            }
            self.quants.extend(quants);
            self.scales.push(scale.to_bits());
        }
    }

    fn lay_out_values(&mut self, len: usize) {
        (self.page_scales, self.page_quants) = (self.scales.clone(), self.quants.clone());
        let low = |q: i8| q.wrapping_add(8) as u8 & 15;
        for row in self.quants.chunks_exact(len) {
            for part in row.chunks(64) {
                let (a, b) = part.split_at(part.len() / 2);
                self.nibbles.extend(a.iter().zip(b).map(|(&a, &b)| low(a) | low(b) << 4));
            }
        }
    }

    /// Sixteen positions after the other, each block of them after the other.
    fn lay_out_keys(&mut self, len: usize) {
        let low = |q: i8| q.wrapping_add(8) as u8 & 15;
        let rows = self.quants.len() / len;
        for first in (0..rows).step_by(16) {
            for block in 0..len / 32 {
                let quant =
                    |position: usize, d: usize| self.quants[(first + position) * len + block * 32 + d];
                self.page_scales.extend((0..16).map(|i| self.scales[(first + i) * (len / 32) + block]));
                for four in 0..8 {
                    for position in 0..16 {
                        self.page_quants.extend((0..4).map(|d| quant(position, 4 * four + d)));
                    }
                }
                for four in 0..4 {
                    for position in 0..16 {
                        let byte = |d: usize| low(quant(position, d)) | low(quant(position, 16 + d)) << 4;
                        self.nibbles.extend((0..4).map(|d| byte(4 * four + d)));
                    }
                }
            }
        }
    }

    /// Pages of so many elements, from `first` on.
    fn pages<'a>(&'a self, x: &'a [f32], page: usize, first: usize, kind: Kind) -> Vec<KvView<'a>> {
        let scales = self.page_scales.chunks_exact((page / 32).max(1));
        let all: Vec<KvView<'a>> = match kind {
            Kind::F32 => x.chunks_exact(page).map(KvView::F32).collect(),
            Kind::F16 => self.halves.chunks_exact(page).map(KvView::F16).collect(),
            Kind::Q8 => {
                scales.zip(self.page_quants.chunks_exact(page)).map(|(d, q)| KvView::Q8_0(d, q)).collect()
            }
            Kind::Q4 => {
                scales.zip(self.nibbles.chunks_exact(page / 2)).map(|(d, q)| KvView::Q4_0(d, q)).collect()
            }
        };
        all[first..].to_vec()
    }
}

/// Pages of one layer, queries for a run of positions.
pub(super) struct Case {
    pub shape: AttentionShape,
    /// How keys and values are kept.
    pub kinds: [Kind; 2],
    pub sinks: Option<Vec<f32>>,
    /// The first page that is handed over: those before hold NaN.
    pub first_page: usize,
    pub q: Vec<f32>,
    /// `[page][kv_heads][PAGE][key_len]`
    pub k: Vec<f32>,
    /// `[page][kv_heads][PAGE][value_len]`
    pub v: Vec<f32>,
    k_forms: Forms,
    v_forms: Forms,
    /// Whether values are the beginnings of keys.
    latent: bool,
    /// Masks of chosen positions, `[tokens][lists][pages]`, and how many lists.
    chosen: Option<(Vec<u128>, usize)>,
    /// Whether rows are no positions: what is chosen is all that counts.
    among: bool,
}

impl Case {
    pub fn new(random: &mut Random, shape: AttentionShape, f16: bool) -> Self {
        Self::kept(random, shape, [if f16 { Kind::F16 } else { Kind::F32 }; 2])
    }

    /// With keys and values of these kinds.
    pub fn kept(random: &mut Random, shape: AttentionShape, kinds: [Kind; 2]) -> Self {
        let AttentionShape { kv_heads, key_len, value_len, first_pos, tokens, .. } = shape;
        let pages = (first_pos + tokens + 3).div_ceil(PAGE);
        let first_page = shape.window.map_or(0, |window| window.start(first_pos) / PAGE);
        let q = random.values(tokens * shape.heads * key_len, 3.0);
        // What is gone and what lies beyond the batch must not be looked at.
        let stored = first_page * PAGE..first_pos + tokens + 1;
        let mut fill = |len: usize| {
            let mut values = random.values(pages * kv_heads * PAGE * len, 1.0);
            for (i, row) in values.chunks_mut(len).enumerate() {
                if !stored.contains(&(i / (kv_heads * PAGE) * PAGE + i % PAGE)) {
                    row.fill(f32::NAN);
                }
            }
            values
        };
        let (k, v) = (fill(key_len), fill(value_len));
        let mut case = Self { kinds, first_page, q, k, v, ..Self::empty(shape) };
        case.sync();
        case
    }

    fn empty(shape: AttentionShape) -> Self {
        Self {
            shape,
            kinds: [Kind::F32; 2],
            sinks: None,
            first_page: 0,
            q: vec![],
            k: vec![],
            v: vec![],
            k_forms: Forms::default(),
            v_forms: Forms::default(),
            latent: false,
            chosen: None,
            among: false,
        }
    }

    /// With values that are the beginnings of keys.
    pub fn latent(self) -> Self {
        Self { latent: true, ..self }
    }

    /// With about one in so many of the positions chosen for each token, its own always: the same for all KV
    /// heads or one list for each.
    pub fn choosing(mut self, random: &mut Random, one_in: usize, lists: usize) -> Self {
        let pages = self.pages_held();
        let mut masks = vec![0u128; self.shape.tokens * lists * pages];
        for (i, mask) in masks.iter_mut().enumerate() {
            let pos = self.shape.first_pos + i / (lists * pages);
            for j in 0..PAGE {
                let own = i % pages * PAGE + j == pos;
                *mask |= u128::from(own || random.next().is_multiple_of(one_in as u64)) << j;
            }
        }
        self.chosen = Some((masks, lists));
        self
    }

    /// With about one in so many of the rows chosen for each token, whatever its position.
    pub fn choosing_among(mut self, random: &mut Random, one_in: usize) -> Self {
        // Everything that is held is there.
        self.k.iter_mut().chain(&mut self.v).filter(|x| x.is_nan()).for_each(|x| *x = random.value());
        self.sync();
        let rows = self.pages_held() * PAGE;
        let mut case = Self { among: true, ..self.choosing(random, one_in, 1) };
        case.shape.window = Some(Window::Sliding(rows));
        case
    }

    fn pages_held(&self) -> usize {
        (self.shape.first_pos + self.shape.tokens + 3).div_ceil(PAGE)
    }

    /// The positions that a token attends to.
    fn attended(&self, token: usize, kv_head: usize, fault: Fault) -> Vec<usize> {
        let seen = match self.among {
            true => 0..self.pages_held() * PAGE,
            false => self.seen(token, fault),
        };
        let Some((masks, lists)) = &self.chosen else { return seen.collect() };
        let list = token * lists + if *lists == 1 { 0 } else { kv_head };
        let masks = &masks[list * self.pages_held()..];
        seen.filter(|j| masks[j / PAGE] >> (j % PAGE) & 1 == 1).collect()
    }

    pub fn with_sinks(mut self, random: &mut Random) -> Self {
        self.sinks = Some(random.values(self.shape.heads, 4.0));
        self
    }

    /// Makes what is kept from the f32 cache, and that from it.
    pub fn sync(&mut self) {
        let AttentionShape { key_len, value_len, .. } = self.shape;
        self.k_forms = Forms::new(&mut self.k, key_len, self.kinds[0], true);
        self.v_forms = Forms::new(&mut self.v, value_len, self.kinds[1], false);
    }

    /// Whether queries or probabilities are rounded to f16.
    fn rounds(&self, which: usize) -> bool {
        self.kinds[if self.latent { 0 } else { which }] == Kind::F16
    }

    pub fn run(&self, ops: &Ops, scratch: &mut AttentionScratch) -> Vec<f32> {
        self.run_part(ops, 0..self.shape.tokens, scratch)
    }

    /// Only some of the batch's tokens.
    pub fn run_part(&self, ops: &Ops, tokens: Range<usize>, scratch: &mut AttentionScratch) -> Vec<f32> {
        let AttentionShape { heads, key_len, value_len, .. } = self.shape;
        let (first_pos, count) = (self.shape.first_pos + tokens.start, tokens.len());
        let shape = AttentionShape { tokens: count, first_pos, ..self.shape };
        let q = &self.q[tokens.start * heads * key_len..tokens.end * heads * key_len];
        let mut out = vec![7.0; count * heads * value_len];
        let page = |len: usize| self.shape.kv_heads * PAGE * len;
        let keys = self.k_forms.pages(&self.k, page(key_len), self.first_page, self.kinds[0]);
        let values = self.v_forms.pages(&self.v, page(value_len), self.first_page, self.kinds[1]);
        let values = Some(&values[..]).filter(|_| !self.latent);
        let kv = KvPages { first_page: self.first_page, keys: &keys, values };
        match &self.chosen {
            None => ops.attention(&shape, q, &kv, self.sinks.as_deref(), &mut out, scratch),
            Some((masks, lists)) => {
                let row = lists * self.pages_held();
                let masks = &masks[tokens.start * row..tokens.end * row];
                let chosen = Chosen { masks, lists: *lists, pages: self.pages_held() };
                let sinks = self.sinks.as_deref();
                match self.among {
                    true => ops.attention_among(&shape, q, &kv, chosen, sinks, &mut out, scratch),
                    false => ops.attention_over(&shape, q, &kv, chosen, sinks, &mut out, scratch),
                }
            }
        }
        out
    }

    /// A value rounded to f16, if so.
    fn rounded(x: f32, rounds: bool) -> f32 {
        if rounds { f16::from_f32(x).to_f32() } else { x }
    }

    /// A token's query, as keys are multiplied with it.
    fn query(&self, token: usize, head: usize, fault: Fault) -> Vec<f32> {
        let at = (token * self.shape.heads + head) * self.shape.key_len;
        let q = &self.q[at..][..self.shape.key_len];
        if !self.kinds[0].is_quantised() {
            let rounds = self.rounds(0) && fault != Fault::KeepsQueries;
            return q.iter().map(|&q| Self::rounded(q, rounds)).collect();
        }
        let mut q = q.to_vec();
        if !self.latent && fault != Fault::KeepsDirections {
            scalar().hadamard(&mut q, key_rotation(self.shape.key_len));
        }
        if fault != Fault::KeepsQueries {
            Forms::default().quantise(&mut q, Kind::Q8);
        }
        q
    }

    /// A query's dot with a position's key.
    fn dot(&self, q: &[f32], kv_head: usize, j: usize, fault: Fault) -> f32 {
        if !self.kinds[0].is_quantised() || fault == Fault::KeepsQueries {
            return dot16(q, self.key(kv_head, j));
        }
        let (len, row) = (self.shape.key_len, self.row(kv_head, j));
        let key = &self.k_forms.quants[row * len..][..len];
        let key_scales = &self.k_forms.scales[row * len / 32..];
        // What is rounded already rounds to itself.
        let mut query = Forms::default();
        query.quantise(&mut q.to_vec(), Kind::Q8);
        let mut acc = 0.0f32;
        for (block, (key_scale, scale)) in key_scales.iter().zip(&query.scales).enumerate() {
            let product = |i: usize| i32::from(key[i]) * i32::from(query.quants[i]);
            let sum: i32 = (32 * block..32 * (block + 1)).map(product).sum();
            let [a, b] = [key_scale, scale].map(|&d| f16::from_bits(d).to_f32());
            acc = (a * b).mul_add(sum as f32, acc);
        }
        acc
    }

    /// The row of a position in pages.
    pub fn row(&self, kv_head: usize, j: usize) -> usize {
        (j / PAGE * self.shape.kv_heads + kv_head) * PAGE + j % PAGE
    }

    fn key(&self, kv_head: usize, j: usize) -> &[f32] {
        let len = self.shape.key_len;
        &self.k[self.row(kv_head, j) * len..][..len]
    }

    fn value(&self, kv_head: usize, j: usize) -> &[f32] {
        let len = self.shape.value_len;
        if self.latent {
            return &self.key(kv_head, j)[..len];
        }
        &self.v[self.row(kv_head, j) * len..][..len]
    }

    fn kv_head(&self, head: usize, fault: Fault) -> usize {
        let group = self.shape.heads / self.shape.kv_heads;
        if fault == Fault::WrongKvHead { head % self.shape.kv_heads } else { head / group }
    }

    fn seen(&self, token: usize, fault: Fault) -> Range<usize> {
        let pos = self.shape.first_pos + token;
        let start = match self.shape.window {
            None => 0,
            Some(Window::Sliding(window)) => (pos + 1).saturating_sub(window),
            Some(Window::Chunked(window)) => pos - pos % window,
        };
        let start = start + usize::from(fault == Fault::ShortWindow && start > 0);
        start..pos + 1 + usize::from(fault == Fault::SeesTheNext)
    }

    fn cap(&self, fault: Fault) -> Option<f32> {
        self.shape.soft_cap.filter(|_| fault != Fault::NoCap)
    }

    fn sink(&self, head: usize, fault: Fault) -> Option<f32> {
        self.sinks.as_ref().filter(|_| fault != Fault::NoSinks).map(|sinks| sinks[head])
    }

    /// The definition, position by position.
    pub fn defined(&self, fault: Fault) -> Vec<f32> {
        let mut all = Vec::new();
        for token in 0..self.shape.tokens {
            for head in 0..self.shape.heads {
                all.extend(self.defined_row(token, head, fault));
            }
        }
        all
    }

    fn defined_row(&self, token: usize, head: usize, fault: Fault) -> Vec<f32> {
        let q = self.query(token, head, fault);
        let kv_head = self.kv_head(head, fault);
        let score = |j: usize| {
            let dot = self.dot(&q, kv_head, j, fault);
            match self.cap(fault) {
                None => dot * self.shape.scale,
                Some(cap) => tanh(dot * (self.shape.scale / cap)) * cap,
            }
        };
        let seen = self.attended(token, kv_head, fault);
        let chunks = seen.chunk_by(|i, j| fault == Fault::OneChunk || i / PAGE == j / PAGE);
        let merged = chunks.map(|seen| self.chunk(kv_head, seen, score, fault)).reduce(|left, right| {
            let max = if right.max > left.max { right.max } else { left.max };
            let (a, b) = (exp(left.max - max), exp(right.max - max));
            let weights = (left.weight * a, right.weight * b);
            let merged = left.out.iter().zip(&right.out);
            let out = merged.map(|(out, o)| out.mul_add(weights.0, o * weights.1)).collect();
            Part { max, sum: left.sum.mul_add(a, right.sum * b), weight: 1.0, out }
        });
        let Part { max, mut sum, mut weight, out } = merged.expect("a token sees itself");
        if let Some(sink) = self.sink(head, fault) {
            let top = if sink > max { sink } else { max };
            (sum, weight) = (sum.mul_add(exp(max - top), exp(sink - top)), weight * exp(max - top));
        }
        out.iter().map(|o| o * (weight / sum)).collect()
    }

    /// The definition's part of one chunk.
    fn chunk(&self, kv_head: usize, seen: &[usize], score: impl Fn(usize) -> f32, fault: Fault) -> Part {
        let scores: Vec<f32> = seen.iter().map(|&j| score(j)).collect();
        let max = scores.iter().fold(f32::NEG_INFINITY, |m, &s| if s > m { s } else { m });
        let mut lanes = [0.0f32; 16];
        let p: Vec<f32> = scores.iter().map(|s| exp(s - max)).collect();
        seen.iter().zip(&p).for_each(|(&j, p)| lanes[j % 16] += p);
        let sum = tree16(&lanes);
        let mut out = vec![0.0f32; self.shape.value_len];
        for (&j, p) in seen.iter().zip(p) {
            let p = if self.rounds(1) { p * (1.0 / sum) } else { p };
            let p = Self::rounded(p, self.rounds(1) && fault != Fault::KeepsProbabilities);
            out.iter_mut().zip(self.value(kv_head, j)).for_each(|(o, v)| *o = p.mul_add(*v, *o));
        }
        Part { max, sum, weight: if self.rounds(1) { sum } else { 1.0 }, out }
    }

    /// Softmax of the scores times the values, in f64; with an f16 cache queries are rounded to f16, and so
    /// are the probabilities within each chunk.
    pub fn reference(&self, fault: Fault) -> Vec<f64> {
        let mut all = Vec::new();
        for token in 0..self.shape.tokens {
            for head in 0..self.shape.heads {
                all.extend(self.reference_row(token, head, fault));
            }
        }
        all
    }

    fn reference_row(&self, token: usize, head: usize, fault: Fault) -> Vec<f64> {
        let q = self.query(token, head, fault);
        let kv_head = self.kv_head(head, fault);
        let score = |k: &[f32]| {
            let dot: f64 = q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
            let score = dot * f64::from(self.shape.scale);
            self.cap(fault).map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        };
        let p: Vec<(usize, f64)> =
            self.seen(token, fault).map(|j| (j, score(self.key(kv_head, j)).exp())).collect();
        let sink = self.sink(head, fault).map_or(0.0, |sink| f64::from(sink).exp());
        let total = sink + p.iter().map(|(_, p)| p).sum::<f64>();
        let mut out = vec![0.0; self.shape.value_len];
        for chunk in p.chunk_by(|(i, _), (j, _)| i / PAGE == j / PAGE) {
            let sum: f64 = chunk.iter().map(|(_, p)| p).sum();
            for (j, p) in chunk {
                let rounds = self.rounds(1) && fault != Fault::KeepsProbabilities;
                // By way of f32: without an instruction for it, the crate cuts f64 off before it rounds.
                let p = if rounds { f16::from_f32((p / sum) as f32).to_f64() } else { p / sum };
                let v = self.value(kv_head, *j);
                out.iter_mut().zip(v).for_each(|(o, &v)| *o += p * (sum / total) * f64::from(v));
            }
        }
        out
    }

    /// ggml's formula with an f16 cache, one f32 after the other: the product with f16 of queries rounded to
    /// f16, its softmax with the sum in f64, the product with f16 of that rounded to f16. And how many
    /// probabilities are denormal.
    pub fn of_ggml(&self, fault: Fault) -> (Vec<f32>, usize) {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0.0f32, |sum, (a, b)| sum + a * b);
        let (mut all, mut denormal) = (Vec::new(), 0);
        for token in 0..self.shape.tokens {
            for head in 0..self.shape.heads {
                let q = self.query(token, head, fault);
                let kv_head = self.kv_head(head, fault);
                let seen = self.seen(token, fault);
                let mut p: Vec<f32> =
                    seen.clone().map(|j| dot(&q, self.key(kv_head, j)) * self.shape.scale).collect();
                let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                p.iter_mut().for_each(|p| *p = f64::from(*p - max).exp() as f32);
                let by = (1.0 / p.iter().copied().map(f64::from).sum::<f64>()) as f32;
                for p in &mut p {
                    *p = Self::rounded(*p * by, fault != Fault::KeepsProbabilities);
                    denormal += usize::from(*p != 0.0 && *p < f16::MIN_POSITIVE.to_f32());
                }
                for d in 0..self.shape.value_len {
                    let v: Vec<f32> = seen.clone().map(|j| self.value(kv_head, j)[d]).collect();
                    all.push(dot(&p, &v));
                }
            }
        }
        (all, denormal)
    }
}

/// A chunk's, or several chunks', part of a row.
struct Part {
    max: f32,
    sum: f32,
    weight: f32,
    out: Vec<f32>,
}
