//! Metadata under an architecture's prefix: read, checked, and refused where nobody asked for it.

use std::collections::HashSet;

use crate::gguf::{Array, Metadata, Value};

use super::ModelError;

/// Most of anything that metadata may count: more is a broken or hostile file.
const MAX_SIZE: u64 = 1 << 24;
/// Most layers: each takes some memory, however few its weights are.
pub(super) const MAX_LAYERS: usize = 1 << 12;
/// Most floats of a recurrence's state in a layer.
const MAX_STATE: usize = 1 << 26;

/// Reads keys and remembers which were asked for, so that those that nobody asked for can be refused.
pub(super) struct Keys<'a> {
    meta: &'a Metadata,
    arch: &'a str,
    seen: HashSet<String>,
}

impl<'a> Keys<'a> {
    pub fn new(meta: &'a Metadata, arch: &'a str) -> Keys<'a> {
        Keys { meta, arch, seen: HashSet::new() }
    }

    /// The name in `general.architecture`.
    pub fn architecture(&self) -> &'a str {
        self.arch
    }

    /// All metadata, for keys outside of the architecture's prefix.
    pub fn metadata(&self) -> &'a Metadata {
        self.meta
    }

    /// A key of this name, in full.
    pub fn full(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn key(&mut self, name: &str) -> String {
        let key = self.full(name);
        self.seen.insert(key.clone());
        key
    }

    /// The error of a key with a value that makes no sense.
    pub fn problem(&self, name: &str, problem: impl Into<String>) -> ModelError {
        ModelError::Config { key: self.full(name), problem: problem.into() }
    }

    /// The error of a key that asks for what is not supported.
    pub fn unsupported(&self, name: &str, value: impl ToString) -> ModelError {
        ModelError::UnsupportedKey { key: self.full(name), value: value.to_string() }
    }

    /// Refuses a length by which a recurrence's state, so many rows of it, would be too large.
    pub fn check_state(&self, name: &str, len: usize, rows: usize) -> Result<(), ModelError> {
        match rows.saturating_mul(len) {
            0..=MAX_STATE => Ok(()),
            floats => {
                let state = format!("which makes a state of {floats} numbers");
                Err(self.problem(name, format!("is {len}, {state}, where at most {MAX_STATE} make sense")))
            }
        }
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
        Ok(self.meta.required(&self.full(name), found)?)
    }

    /// A whole number that must be there and may be 0.
    pub fn required_count(&mut self, name: &str) -> Result<usize, ModelError> {
        let found = self.count(name)?;
        match self.meta.get(&self.full(name)) {
            Some(_) => Ok(found),
            None => Err(self.problem(name, "is missing")),
        }
    }

    /// An array of whole numbers, however long.
    pub fn numbers(&mut self, name: &str) -> Result<Option<Vec<u64>>, ModelError> {
        let key = self.key(name);
        let array = match self.meta.get(&key) {
            None => return Ok(None),
            Some(Value::Array(Array::Packed(array))) => array,
            Some(_) => return Err(self.problem(name, "is no array of whole numbers")),
        };
        let number = |v: Value| v.as_u64().ok_or_else(|| self.problem(name, "holds what is no whole number"));
        array.iter().map(number).collect::<Result<_, _>>().map(Some)
    }

    /// A count where absent and 0 mean the same.
    pub fn count(&mut self, name: &str) -> Result<usize, ModelError> {
        let key = self.key(name);
        let found = match self.meta.get(&key) {
            Some(Value::Array(array)) => Some(uniform(&key, array)?),
            _ => self.meta.u64(&key)?,
        };
        match found.unwrap_or(0) {
            n if n > MAX_SIZE => {
                Err(ModelError::Config { key, problem: format!("is {n}, at most {MAX_SIZE} make sense") })
            }
            n => Ok(n as usize),
        }
    }

    /// A count for each of so many blocks: one for all, or an array with one for each. 0 is for the caller to
    /// judge.
    pub fn counts(&mut self, name: &str, blocks: usize) -> Result<Option<Vec<usize>>, ModelError> {
        let key = self.key(name);
        let Some(Value::Array(array)) = self.meta.get(&key) else {
            return Ok(match self.meta.get(&key) {
                Some(_) => Some(vec![self.count(name)?; blocks]),
                None => None,
            });
        };
        let values = elements(&key, array, blocks)?;
        let count = |v: Value| match v.as_u64() {
            Some(n) if n <= MAX_SIZE => Ok(n as usize),
            Some(n) => Err(ModelError::Config {
                key: key.clone(),
                problem: format!("holds {n}, at most {MAX_SIZE} make sense"),
            }),
            None => {
                Err(ModelError::Config { key: key.clone(), problem: "holds what is no count".to_owned() })
            }
        };
        values.into_iter().map(count).collect::<Result<_, _>>().map(Some)
    }

    /// The same where every block needs at least 1.
    pub fn sizes(&mut self, name: &str, blocks: usize) -> Result<Option<Vec<usize>>, ModelError> {
        let counts = self.counts(name, blocks)?;
        match counts.as_ref().and_then(|counts| counts.iter().position(|&n| n == 0)) {
            Some(layer) => {
                Err(self.problem(name, format!("is 0 in layer {layer}, where at least 1 is needed")))
            }
            None => Ok(counts),
        }
    }

    /// A count for each of so many blocks, from an array that may go on behind them.
    pub fn leading_counts(&mut self, name: &str, blocks: usize) -> Result<Vec<usize>, ModelError> {
        let len = match self.meta.get(&self.full(name)) {
            Some(Value::Array(array)) if array.len() >= blocks => array.len(),
            Some(Value::Array(array)) => {
                let what = format!("has {} values, where {blocks} are needed", array.len());
                return Err(self.problem(name, what));
            }
            Some(_) => return Err(self.problem(name, "is no array with a count for each block")),
            None => return Err(self.problem(name, "is missing")),
        };
        let mut counts = self.counts(name, len)?.unwrap_or_default();
        counts.truncate(blocks);
        Ok(counts)
    }

    /// Heads of each block, which may be 0 unless all blocks have attention.
    pub fn heads(
        &mut self,
        name: &str,
        blocks: usize,
        all_attend: bool,
    ) -> Result<Option<Vec<usize>>, ModelError> {
        if all_attend { self.sizes(name, blocks) } else { self.counts(name, blocks) }
    }

    /// Whether a key holds an array.
    pub fn is_array(&self, name: &str) -> bool {
        matches!(self.meta.get(&self.full(name)), Some(Value::Array(_)))
    }

    /// The same from an array that may end with the layers of a pass: then the blocks behind them have none
    /// set.
    pub fn layer_flags(
        &mut self,
        name: &str,
        layers: usize,
        blocks: usize,
    ) -> Result<Option<Vec<bool>>, ModelError> {
        let key = self.key(name);
        let Some(Value::Array(array)) = self.meta.get(&key) else {
            return match self.meta.get(&key) {
                Some(_) => Err(self.problem(name, "is no array with a truth value for each layer")),
                None => Ok(None),
            };
        };
        let flag = |v: Value| match v {
            Value::Bool(b) => Ok(b),
            v => match v.as_u64() {
                Some(n @ (0 | 1)) => Ok(n == 1),
                _ => Err(ModelError::Config {
                    key: key.clone(),
                    problem: "holds what is no truth value".to_owned(),
                }),
            },
        };
        let given = if array.len() == layers { layers } else { blocks };
        let mut flags: Vec<bool> =
            elements(&key, array, given)?.into_iter().map(flag).collect::<Result<_, _>>()?;
        flags.resize(blocks, false);
        Ok(Some(flags))
    }

    /// A finite float for each block: one for all, or an array.
    pub fn floats(&mut self, name: &str, blocks: usize) -> Result<Option<Vec<f32>>, ModelError> {
        let key = self.key(name);
        let Some(Value::Array(array)) = self.meta.get(&key) else {
            return Ok(self.float(name)?.map(|v| vec![v; blocks]));
        };
        let float = |v: Value| match v.as_f64().map(|v| v as f32) {
            Some(v) if v.is_finite() => Ok(v),
            _ => Err(ModelError::Config {
                key: key.clone(),
                problem: "holds what is no finite number".to_owned(),
            }),
        };
        elements(&key, array, blocks)?.into_iter().map(float).collect::<Result<_, _>>().map(Some)
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

    /// A float where absent and 0 mean the same.
    pub fn factor(&mut self, name: &str) -> Result<Option<f32>, ModelError> {
        Ok(self.float(name)?.filter(|&v| v != 0.0))
    }

    /// An epsilon that must be there and not be negative.
    pub fn epsilon(&mut self, name: &str) -> Result<f32, ModelError> {
        match self.float(name)? {
            Some(eps) if eps >= 0.0 => Ok(eps),
            Some(_) => Err(self.problem(name, "is negative")),
            None => Err(self.problem(name, "is missing")),
        }
    }

    /// A truth value.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, ModelError> {
        let key = self.key(name);
        match self.meta.get(&key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(v) => match v.as_u64() {
                Some(n @ (0 | 1)) => Ok(Some(n == 1)),
                _ => Err(self.problem(name, "is no truth value")),
            },
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

    /// Refuses every key under the architecture's prefix that nobody asked for, but for those that no
    /// decoder's pass depends on, or that say what it does anyway.
    pub fn finish(mut self) -> Result<(), ModelError> {
        for (name, neutral) in ABSENT_OR {
            if !self.seen.contains(&self.full(name)) {
                self.neutral(name, neutral)?;
            }
        }
        self.harmless(HARMLESS);
        let prefix = self.full("");
        for (key, value) in self.meta.iter() {
            if key.starts_with(&prefix) && !self.seen.contains(key) {
                return Err(ModelError::UnsupportedKey {
                    key: key.to_owned(),
                    value: format!("of type {}", value.ty()),
                });
            }
        }
        Ok(())
    }
}

/// Keys that change no value of a pass.
const HARMLESS: &[&str] =
    &["tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.original_context_length"];

/// Keys that would change the pass, unless they have one of these values; a family that uses one has asked
/// for it.
const ABSENT_OR: &[(&str, &[f64])] = &[
    ("attention.causal", &[1.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attention.sliding_window", &[0.0]),
    ("attention.temperature_scale", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("expert_count", &[0.0]),
    ("expert_used_count", &[0.0]),
    ("expert_shared_count", &[0.0]),
    ("expert_shared_feed_forward_length", &[0.0]),
    ("expert_weights_scale", &[0.0, 1.0]),
    ("expert_group_count", &[0.0, 1.0]),
    ("expert_group_used_count", &[0.0, 1.0]),
    ("leading_dense_block_count", &[0.0]),
    ("interleave_moe_layer_step", &[0.0, 1.0]),
    ("nextn_predict_layers", &[0.0]),
    ("pooling_type", &[0.0]),
    ("use_parallel_residual", &[0.0]),
    ("rope.scaling.attn_factor", &[0.0, 1.0]),
];

/// The values of an array of so many.
fn elements(key: &str, array: &Array, n: usize) -> Result<Vec<Value>, ModelError> {
    let problem = |problem: String| ModelError::Config { key: key.to_owned(), problem };
    let Array::Packed(packed) = array else { return Err(problem("is an array of strings".to_owned())) };
    if packed.len() != n {
        return Err(problem(format!("has {} values, where {n} are needed", packed.len())));
    }
    Ok(packed.iter().collect())
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
