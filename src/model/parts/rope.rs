//! Rotary position embedding: what the angles depend on, with the kinds of scaling for longer contexts.

use super::super::load::Loader;
use super::super::{ModelError, keys::Keys};
use crate::kernels::ops::{RopeKind, RopeParams, Yarn};

/// What divides the angles, pair by pair.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::model) enum Factors {
    None,
    /// The same for every context: `rope_freqs`.
    Fixed(Vec<f32>),
    /// LongRoPE: short ones up to the original context, long ones beyond.
    ByContext {
        short: Vec<f32>,
        long: Vec<f32>,
        original: usize,
    },
}

impl Factors {
    /// The context beyond which they are others.
    pub fn step(&self) -> Option<usize> {
        match self {
            Factors::None | Factors::Fixed(_) => None,
            Factors::ByContext { original, .. } => Some(*original),
        }
    }

    /// Those of a sequence that may have so many positions.
    pub fn of_context(&self, context: usize) -> Option<&[f32]> {
        match self {
            Factors::None => None,
            Factors::Fixed(factors) => Some(factors),
            Factors::ByContext { short, long, original } => {
                Some(if context > *original { long } else { short })
            }
        }
    }
}

/// A rotation, ready for a pass.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::model) struct Rope {
    pub kind: RopeKind,
    pub params: RopeParams,
    pub factors: Factors,
}

/// What a family says of its rotation.
#[derive(Clone, Copy, Debug)]
pub(in crate::model) struct RopeSpec {
    pub kind: RopeKind,
    /// Elements of a head of keys.
    pub key_len: usize,
    /// Whether the tensors `rope_freqs`, `rope_factors_long` and `rope_factors_short` belong to the family.
    pub factors: bool,
    /// The context that the model was trained for.
    pub context: usize,
}

impl Rope {
    /// Reads the keys `rope.*` and the tensors of factors.
    pub fn load(l: &mut Loader<'_>, spec: RopeSpec) -> Result<Rope, ModelError> {
        Rope::load_with(l, spec, |keys, factor| {
            Ok(match keys.factor("rope.scaling.yarn_log_multiplier")? {
                Some(all) => yarn_gain(factor, 1.0) / yarn_gain(factor, all),
                None => yarn_gain(factor, 1.0),
            })
        })
    }

    /// The same with another gain on cosines and sines under YaRN, by the factor that the context is
    /// stretched by.
    pub fn load_with(
        l: &mut Loader<'_>,
        spec: RopeSpec,
        gain: impl FnOnce(&mut Keys<'_>, f32) -> Result<f32, ModelError>,
    ) -> Result<Rope, ModelError> {
        let dims = dims(&mut l.keys, "rope.dimension_count", spec.key_len, spec.key_len)?;
        let base = positive(&mut l.keys, "rope.freq_base", 10000.0)?;
        let scaling = Scaling::read(&mut l.keys, spec.context, gain)?;
        let factors = if spec.factors { factors(l, dims / 2, scaling.original)? } else { Factors::None };
        let params = RopeParams {
            n_dims: dims,
            base,
            freq_scale: scaling.freq_scale,
            attn_factor: scaling.attn_factor,
            yarn: scaling.yarn,
        };
        Ok(Rope { kind: spec.kind, params, factors })
    }

    /// The rotation of a text by a model that sees images too: each pair turns with one of four positions, so
    /// many pairs with each (`sections`, over again where there are more pairs). A text's first three
    /// positions are the same and the fourth is 0: as ggml has it, its pairs are not turned. `interleaved`:
    /// sections take turns pair by pair.
    pub fn of_text(mut self, sections: &[usize], interleaved: bool) -> Rope {
        let (pairs, all) = (self.params.n_dims / 2, sections.iter().sum::<usize>());
        let still = |pair: usize| match pair % all {
            at if interleaved => at >= 3 * sections[at % 3],
            at => at >= sections[..3].iter().sum(),
        };
        if (0..pairs).any(still) {
            // A pair that is divided by infinity stays as it is.
            let factor = |pair| if still(pair) { f32::INFINITY } else { 1.0 };
            self.factors = Factors::Fixed((0..pairs).map(factor).collect());
        }
        self
    }

    /// The rotation of layers with a window, whose keys have heads of `key_len`: its own base
    /// (`rope.freq_base_swa`, by default `base`) and dimensions, the frequencies unscaled unless `scaled`.
    pub fn windowed(
        l: &mut Loader<'_>,
        full: &Rope,
        key_len: usize,
        base: f32,
        scaled: bool,
    ) -> Result<Rope, ModelError> {
        let default = full.params.n_dims.min(key_len);
        let dims = dims(&mut l.keys, "rope.dimension_count_swa", default, key_len)?;
        let base = positive(&mut l.keys, "rope.freq_base_swa", base)?;
        let mut rope = full.clone();
        (rope.params.n_dims, rope.params.base) = (dims, base);
        if !scaled {
            rope.params.freq_scale = 1.0;
        }
        Ok(rope)
    }
}

impl Rope {
    /// The same frequencies as they were before any scaling.
    pub fn unscaled(&self) -> Rope {
        let params = RopeParams { freq_scale: 1.0, attn_factor: 1.0, yarn: None, ..self.params };
        Rope { kind: self.kind, params, factors: Factors::None }
    }

    /// Reads the tensors of factors, which have `count` of them; this rotation takes the first.
    pub fn load_factors(
        &mut self,
        l: &mut Loader<'_>,
        count: usize,
        context: usize,
    ) -> Result<(), ModelError> {
        let original = original_context(&mut l.keys, context)?;
        let pairs = self.params.n_dims / 2;
        let first = |mut all: Vec<f32>| {
            all.truncate(pairs);
            all
        };
        self.factors = match factors(l, count, original)? {
            Factors::None => Factors::None,
            Factors::Fixed(all) => Factors::Fixed(first(all)),
            Factors::ByContext { short, long, original } => {
                Factors::ByContext { short: first(short), long: first(long), original }
            }
        };
        Ok(())
    }

    /// Refuses keys of a rotation of its own for layers with a window, unless it is the same as this one.
    pub fn is_of_windows_too(&self, l: &mut Loader<'_>) -> Result<(), ModelError> {
        l.keys.neutral("rope.freq_base_swa", &[f64::from(self.params.base)])?;
        l.keys.neutral("rope.dimension_count_swa", &[self.params.n_dims as f64])
    }
}

fn dims(keys: &mut Keys<'_>, name: &str, default: usize, most: usize) -> Result<usize, ModelError> {
    let named = keys.size(name)?;
    match named.unwrap_or(default) {
        dims if !dims.is_multiple_of(2) => {
            // Where the file does not say, all of a head is rotated.
            let name = if named.is_some() { name } else { "attention.key_length" };
            Err(keys.problem(name, format!("is {dims}, where RoPE needs an even size")))
        }
        dims if dims > most => Err(keys.problem(name, format!("is {dims}, where heads are {most}"))),
        dims => Ok(dims),
    }
}

fn positive(keys: &mut Keys<'_>, name: &str, default: f32) -> Result<f32, ModelError> {
    match keys.float(name)?.unwrap_or(default) {
        value if value > 0.0 => Ok(value),
        value => Err(keys.problem(name, format!("is {value}, where more than 0 is needed"))),
    }
}

/// The context before it was stretched.
fn original_context(keys: &mut Keys<'_>, context: usize) -> Result<usize, ModelError> {
    Ok(keys.size("rope.scaling.original_context_length")?.unwrap_or(context))
}

fn factors(l: &mut Loader<'_>, count: usize, original: usize) -> Result<Factors, ModelError> {
    let mut vector = |name: &str| {
        let name = format!("{name}.weight");
        let factors = l.weights.optional_vector(&name, count)?;
        match factors.as_ref().and_then(|f| f.iter().position(|&f| f == 0.0)) {
            Some(index) => Err(ModelError::NotFinite { name, index, value: 0.0 }),
            None => Ok(factors),
        }
    };
    if let Some(fixed) = vector("rope_freqs")? {
        return Ok(Factors::Fixed(fixed));
    }
    let (long, short) = (vector("rope_factors_long")?, vector("rope_factors_short")?);
    match (long, short) {
        (Some(long), Some(short)) => Ok(Factors::ByContext { short, long, original }),
        (None, None) => Ok(Factors::None),
        (long, _) => {
            let missing = if long.is_some() { "rope_factors_short" } else { "rope_factors_long" };
            Err(ModelError::MissingTensor { name: format!("{missing}.weight") })
        }
    }
}

/// What `rope.scaling.*` says.
#[derive(Clone, Copy, Debug)]
struct Scaling {
    freq_scale: f32,
    attn_factor: f32,
    yarn: Option<Yarn>,
    /// The context before it was stretched.
    original: usize,
}

impl Scaling {
    /// As llama.cpp reads it: linear where no kind is named.
    fn read(
        keys: &mut Keys<'_>,
        context: usize,
        gain: impl FnOnce(&mut Keys<'_>, f32) -> Result<f32, ModelError>,
    ) -> Result<Scaling, ModelError> {
        let kind = keys.str("rope.scaling.type")?.unwrap_or("linear");
        // The factor was `rope.scale_linear` in older files.
        let old = keys.factor("rope.scale_linear")?;
        let factor = keys.factor("rope.scaling.factor")?.or(old).unwrap_or(1.0);
        if factor < 0.0 {
            return Err(keys.problem("rope.scaling.factor", format!("is {factor}")));
        }
        let original = original_context(keys, context)?;
        let named = keys.factor("rope.scaling.attn_factor")?;
        let mut scaling =
            Scaling { freq_scale: 1.0 / factor, attn_factor: named.unwrap_or(1.0), yarn: None, original };
        match kind {
            "none" => scaling.freq_scale = 1.0,
            "linear" | "longrope" => {}
            "yarn" => {
                let gain = gain(keys, factor)?;
                scaling.stretch(keys, factor, gain)?;
            }
            kind => return Err(keys.unsupported("rope.scaling.type", kind)),
        }
        Ok(scaling)
    }

    /// YaRN, with the gain on cosines and sines that llama.cpp's context computes; RoPE's own gain,
    /// `1 + 0.1 ln(factor)`, is taken out of it beforehand.
    fn stretch(&mut self, keys: &mut Keys<'_>, factor: f32, net: f32) -> Result<(), ModelError> {
        // Written for other programs; llama.cpp computes it.
        if let Some(named) = keys.float("rope.scaling.yarn_attn_factor")?
            && ((named - net).abs() > 1e-3 * net || !net.is_finite())
        {
            return Err(keys.unsupported("rope.scaling.yarn_attn_factor", named));
        }
        self.attn_factor *= net * (1.0 / (1.0 + 0.1 * ln(factor)));
        self.yarn = Some(Yarn {
            ext_factor: keys.float("rope.scaling.yarn_ext_factor")?.unwrap_or(1.0),
            original_context: self.original,
            beta_fast: positive(keys, "rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: positive(keys, "rope.scaling.yarn_beta_slow", 1.0)?,
        });
        Ok(())
    }
}

/// YaRN's gain for a multiplier of the logarithm.
pub(in crate::model) fn yarn_gain(factor: f32, multiplier: f32) -> f32 {
    if factor <= 1.0 { 1.0 } else { 0.1 * multiplier * ln(factor) + 1.0 }
}

/// The logarithm in f64, rounded once: the same everywhere.
pub(in crate::model) fn ln(x: f32) -> f32 {
    libm::log(f64::from(x)) as f32
}
