//! The numbers of a model, from its metadata; what the forward pass does not know is refused by name.

use crate::gguf::{Array, Metadata, Value};
use crate::kernels::ops::RopeKind;

use super::ModelError;

/// Experts of a mixture-of-experts model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// Experts a layer.
    pub count: usize,
    /// Experts that a token is sent to.
    pub used: usize,
}

/// Rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Which elements of a head make a pair.
    pub kind: RopeKind,
    /// Base of the frequencies.
    pub base: f32,
    /// Factor on every angle: 1 over the linear scaling factor.
    pub freq_scale: f32,
    /// Leading elements of a head that are rotated.
    pub dims: usize,
}

/// Immutable shape of a model. Every size is at least 1; head counts divide.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub architecture: String,
    pub layers: usize,
    /// Embedding length.
    pub embd: usize,
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head, the same for queries, keys and values.
    pub head_dim: usize,
    /// Hidden length of the feed-forward network (of one expert, where there are experts).
    pub ff: usize,
    /// Rows of the embedding; the number of logits.
    pub vocab: usize,
    /// Context that the model was trained for, tokens.
    pub context: usize,
    pub rms_eps: f32,
    pub rope: Rope,
    /// Factor on every query-key product.
    pub attn_scale: f32,
    /// Positions that a query sees, its own included, where that is limited.
    pub window: Option<usize>,
    pub experts: Option<Experts>,
}

impl Config {
    /// Elements of a position's keys (and of its values) in a layer.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Elements of a position's queries in a layer.
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// Most of anything that metadata may count: more is a broken or hostile file.
const MAX_SIZE: u64 = 1 << 24;

/// Reads keys under an architecture's prefix and remembers which were asked for, so that those that
/// nobody asked for can be refused.
pub(super) struct Reader<'a> {
    meta: &'a Metadata,
    arch: &'a str,
    seen: Vec<String>,
}

impl<'a> Reader<'a> {
    pub fn new(meta: &'a Metadata, arch: &'a str) -> Reader<'a> {
        Reader { meta, arch, seen: Vec::new() }
    }

    fn key(&mut self, name: &str) -> String {
        let key = format!("{}.{name}", self.arch);
        self.seen.push(key.clone());
        key
    }

    /// A size of at least 1; an array is taken where all its values are equal.
    pub fn size(&mut self, name: &str) -> Result<Option<usize>, ModelError> {
        let key = self.key(name);
        let found = match self.meta.get(&key) {
            Some(Value::Array(array)) => Some(uniform(&key, array)?),
            _ => self.meta.u64(&key)?,
        };
        match found {
            Some(n) if n == 0 || n > MAX_SIZE => {
                Err(ModelError::Config { key, problem: format!("is {n}, where 1 to {MAX_SIZE} make sense") })
            }
            n => Ok(n.map(|n| n as usize)),
        }
    }

    /// A size that must be there.
    pub fn required_size(&mut self, name: &str) -> Result<usize, ModelError> {
        let found = self.size(name)?;
        Ok(self.meta.required(&format!("{}.{name}", self.arch), found)?)
    }

    /// A count where absent and 0 mean the same.
    pub fn count(&mut self, name: &str) -> Result<usize, ModelError> {
        let key = self.key(name);
        match self.meta.u64(&key)?.unwrap_or(0) {
            n if n > MAX_SIZE => {
                Err(ModelError::Config { key, problem: format!("is {n}, at most {MAX_SIZE} make sense") })
            }
            n => Ok(n as usize),
        }
    }

    /// A finite float.
    pub fn float(&mut self, name: &str) -> Result<Option<f32>, ModelError> {
        let key = self.key(name);
        match self.meta.f32(&key)? {
            Some(v) if !v.is_finite() => {
                Err(ModelError::Config { key, problem: format!("is {v}, where a finite number is needed") })
            }
            v => Ok(v),
        }
    }

    /// A string.
    pub fn str(&mut self, name: &str) -> Result<Option<&'a str>, ModelError> {
        let key = self.key(name);
        Ok(self.meta.str(&key)?)
    }

    /// Takes note of keys that change nothing in the forward pass.
    pub fn harmless(&mut self, names: &[&str]) {
        for name in names {
            self.key(name);
        }
    }

    /// Refuses a key unless it is absent or holds one of the values that change nothing.
    pub fn neutral(&mut self, name: &str, neutral: &[f64]) -> Result<(), ModelError> {
        let key = self.key(name);
        let Some(value) = self.meta.get(&key) else { return Ok(()) };
        let number = match value {
            Value::Bool(b) => Some(f64::from(u8::from(*b))),
            v => v.as_f64().or_else(|| v.as_i64().map(|v| v as f64)),
        };
        match number {
            Some(n) if neutral.contains(&n) => Ok(()),
            Some(n) => Err(ModelError::UnsupportedKey { key, value: n.to_string() }),
            None => Err(ModelError::UnsupportedKey { key, value: format!("of type {}", value.ty()) }),
        }
    }

    /// Refuses every key under the architecture's prefix that nobody asked for.
    pub fn finish(self) -> Result<(), ModelError> {
        let prefix = format!("{}.", self.arch);
        for (key, value) in self.meta.iter() {
            if key.starts_with(&prefix) && !self.seen.iter().any(|s| s == key) {
                return Err(ModelError::UnsupportedKey {
                    key: key.to_owned(),
                    value: format!("of type {}", value.ty()),
                });
            }
        }
        Ok(())
    }
}

/// The one value of an array whose elements are all equal.
fn uniform(key: &str, array: &Array) -> Result<u64, ModelError> {
    let problem = |problem: &str| ModelError::Config { key: key.to_owned(), problem: problem.to_owned() };
    let Array::Packed(packed) = array else { return Err(problem("is an array of strings")) };
    let mut values = packed.iter().map(|v| v.as_u64());
    let first = values.next().flatten().ok_or_else(|| problem("is an array without a count in it"))?;
    if values.all(|v| v == Some(first)) {
        Ok(first)
    } else {
        Err(problem("differs from layer to layer, which is not supported"))
    }
}
