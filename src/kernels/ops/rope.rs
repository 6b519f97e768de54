//! Rotary position embedding: a table of cosines and sines for the positions of a batch, and its application.

use rayon::prelude::*;

use super::{Ops, run};

/// Which values of a head form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeKind {
    /// Neighbours `(2i, 2i + 1)`: llama's order in GGUF.
    Norm,
    /// Halves of the rotated part `(i, i + n_dims/2)`: GPT-NeoX's.
    NeoX,
}

/// What the angles depend on besides the position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeParams {
    /// Rotated values of each head, even; the rest of the head is left as it is.
    pub n_dims: usize,
    /// `rope.freq_base`.
    pub base: f32,
    /// What positions are multiplied by: 1, or 1 / factor under linear scaling and YaRN.
    pub freq_scale: f32,
    /// What cosines and sines are multiplied by: 1 by default.
    pub attn_factor: f32,
    pub yarn: Option<Yarn>,
}

/// YaRN: fast pairs keep their angle, slow ones are scaled with the context, those between get a mix of both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// The weight of the unscaled angles: 1 by default; 0 switches YaRN off.
    pub ext_factor: f32,
    /// Context that the model was trained for before it was extended, tokens.
    pub original_context: usize,
    /// Turns within the original context from which a pair keeps its angle: 32 by default.
    pub beta_fast: f32,
    /// Turns up to which a pair is scaled: 1 by default.
    pub beta_slow: f32,
}

/// What YaRN makes of the angles of one set of parameters.
struct Mix {
    /// Pairs between which the unscaled angle's share falls from `ext_factor` to 0.
    low: f32,
    high: f32,
    ext_factor: f32,
}

impl Mix {
    /// ggml's `ggml_rope_yarn_corr_dims`.
    fn new(params: &RopeParams, yarn: &Yarn) -> Self {
        let (n_dims, context) = (params.n_dims as f32, yarn.original_context as f32);
        let pair = |turns: f32| {
            let turns = turns * 2.0 * std::f32::consts::PI;
            n_dims * ln(context / turns) / (2.0 * ln(params.base))
        };
        let low = pair(yarn.beta_fast).floor().max(0.0);
        let high = pair(yarn.beta_slow).ceil().min(n_dims - 1.0);
        Self { low, high, ext_factor: yarn.ext_factor }
    }

    /// The angle of a pair that is `unscaled` before scaling: ggml's `rope_yarn`.
    fn angle(&self, pair: usize, unscaled: f32, scaled: f32) -> f32 {
        let y = (pair as f32 - self.low) / (self.high - self.low).max(0.001);
        let share = (1.0 - y.clamp(0.0, 1.0)) * self.ext_factor;
        scaled * (1.0 - share) + unscaled * share
    }
}

/// The natural logarithm, in f64 and rounded once.
fn ln(x: f32) -> f32 {
    libm::log(f64::from(x)) as f32
}

/// Cosines and sines, each `[positions][n_dims / 2]`; the buffers are kept from one batch to the next.
#[derive(Clone, Debug, Default)]
pub struct RopeTable {
    half: usize,
    positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Positions from which a table is filled by several threads.
const PARALLEL_POSITIONS: usize = 16;

impl RopeTable {
    /// Fills the table for these positions, one a token.
    ///
    /// The angle follows ggml's `ggml_rope_cache_init`: theta starts at the position and is multiplied by
    /// `base^(-2/n_dims)` from pair to pair in f32, divided by the pair's factor, multiplied by `freq_scale`.
    /// The power, cosine and sine are taken in f64 and rounded once, hence the same on every machine. YaRN
    /// mixes the angles with and without `freq_scale` and multiplies `attn_factor` by
    /// `1 + 0.1 ln(1 / freq_scale)`.
    ///
    /// `freq_factors`: `[n_dims / 2]`, the tensor `rope_freqs`, where the model has one.
    pub fn fill(
        &mut self,
        params: &RopeParams,
        positions: impl IntoIterator<Item = usize>,
        freq_factors: Option<&[f32]>,
    ) {
        assert!(params.n_dims > 0 && params.n_dims.is_multiple_of(2), "rope over {} values", params.n_dims);
        let half = params.n_dims / 2;
        if let Some(factors) = freq_factors {
            assert_eq!(factors.len(), half, "rope: frequency factors");
        }
        let exponent = f64::from(-2.0f32 / params.n_dims as f32);
        let theta_scale = libm::pow(f64::from(params.base), exponent) as f32;

        let yarn = params.yarn.filter(|yarn| yarn.ext_factor != 0.0);
        let gain = yarn
            .map_or(params.attn_factor, |_| params.attn_factor * (1.0 + 0.1 * ln(1.0 / params.freq_scale)));
        let mix = yarn.map(|yarn| Mix::new(params, &yarn));

        // The first cosine of each row holds the position until the row is filled.
        self.half = half;
        self.cos.clear();
        for position in positions {
            let first = self.cos.len();
            self.cos.resize(first + half, 0.0);
            self.cos[first] = position as f32;
        }
        self.positions = self.cos.len() / half;
        self.sin.resize(self.cos.len(), 0.0);

        let fill_row = |(cos, sin): (&mut [f32], &mut [f32])| {
            let mut theta = cos[0];
            for (i, (cos, sin)) in cos.iter_mut().zip(sin).enumerate() {
                let factor = freq_factors.map_or(1.0, |factors| factors[i]);
                let unscaled = theta / factor;
                let scaled = params.freq_scale * unscaled;
                let angle = f64::from(mix.as_ref().map_or(scaled, |mix| mix.angle(i, unscaled, scaled)));
                *cos = libm::cos(angle) as f32 * gain;
                *sin = libm::sin(angle) as f32 * gain;
                theta *= theta_scale;
            }
        };
        if self.positions < PARALLEL_POSITIONS {
            self.cos.chunks_exact_mut(half).zip(self.sin.chunks_exact_mut(half)).for_each(fill_row);
        } else {
            self.cos.par_chunks_exact_mut(half).zip(self.sin.par_chunks_exact_mut(half)).for_each(fill_row);
        }
    }

    /// Becomes the table that turns back what `other` turns.
    pub fn reverse(&mut self, other: &RopeTable) {
        self.clone_from(other);
        self.sin.iter_mut().for_each(|sin| *sin = -*sin);
    }

    /// How many positions the table holds.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Cosines and sines of all positions, `[positions][n_dims / 2]` each.
    pub fn angles(&self) -> [&[f32]; 2] {
        [&self.cos, &self.sin]
    }

    /// Cosines and sines of one position, `[n_dims / 2]` each.
    pub fn row(&self, index: usize) -> (&[f32], &[f32]) {
        let range = index * self.half..(index + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// Elements from which a batch is spread over threads.
const PARALLEL: usize = 1 << 15;

impl Ops {
    /// Rotates `x`: `[tokens][heads][head_dim]` in place, token t by row t of the table: for each pair
    /// `(x0 cos - x1 sin, x0 sin + x1 cos)`, products and sums rounded apart.
    pub fn rope(&self, kind: RopeKind, table: &RopeTable, x: &mut [f32], heads: usize, head_dim: usize) {
        self.rope_behind(kind, table, x, heads, head_dim, 0);
    }

    /// The same of the values behind the first `offset` of each head.
    pub fn rope_behind(
        &self,
        kind: RopeKind,
        table: &RopeTable,
        x: &mut [f32],
        heads: usize,
        head_dim: usize,
        offset: usize,
    ) {
        let n_dims = 2 * table.half;
        assert_eq!(x.len(), table.positions * heads * head_dim, "rope: input and table differ in tokens");
        assert!(offset + n_dims <= head_dim, "rope: {n_dims} values behind {offset} in heads of {head_dim}");
        if x.is_empty() {
            return;
        }
        let rotate = |(token, x): (usize, &mut [f32])| {
            let (cos, sin) = table.row(token);
            for head in x.chunks_exact_mut(head_dim) {
                let head = &mut head[offset..][..n_dims];
                match kind {
                    RopeKind::Norm => run!(self, rotate_pairs(head, cos, sin)),
                    RopeKind::NeoX => run!(self, rotate_halves(head, cos, sin)),
                }
            }
        };
        let token = heads * head_dim;
        if x.len() < PARALLEL {
            x.chunks_exact_mut(token).enumerate().for_each(rotate);
        } else {
            x.par_chunks_exact_mut(token).enumerate().for_each(rotate);
        }
    }
}
