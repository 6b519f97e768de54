//! The state of a run: the KV cache and every buffer of the forward pass, with their shapes.
//!
//! T is the number of tokens of a pass, at most the batch; E the embedding length; H heads of D elements,
//! G of them for keys and values; F the hidden length; N experts of which U are used; V the vocabulary.

use std::fmt;
use std::str::FromStr;

use crate::kernels::ops::{AttentionScratch, KvView, KvViewMut, RopeTable};
use crate::quant::{ActivationType, Activations, NonFinite};
use crate::store::{OutOfMemory, zeroed};

use super::Config;

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// Half the memory; keys and values rounded to nearest even.
    #[default]
    F16,
    F32,
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            KvType::F16 => "f16",
            KvType::F32 => "f32",
        })
    }
}

impl FromStr for KvType {
    type Err = String;

    fn from_str(name: &str) -> Result<KvType, String> {
        match name {
            "f16" => Ok(KvType::F16),
            "f32" => Ok(KvType::F32),
            _ => Err("f16 and f32 are known".to_owned()),
        }
    }
}

/// Keys or values of a layer: `[G][context][D]`.
#[derive(Debug)]
enum KvBuffer {
    F16(Vec<u16>),
    F32(Vec<f32>),
}

impl KvBuffer {
    fn new(config: &Config, context: usize, ty: KvType) -> Result<KvBuffer, OutOfMemory> {
        let sizes = [config.kv_heads, context, config.head_dim];
        Ok(match ty {
            KvType::F16 => KvBuffer::F16(zeroed(&sizes, "the KV cache")?),
            KvType::F32 => KvBuffer::F32(zeroed(&sizes, "the KV cache")?),
        })
    }

    fn view(&self) -> KvView<'_> {
        match self {
            KvBuffer::F16(v) => KvView::F16(v),
            KvBuffer::F32(v) => KvView::F32(v),
        }
    }

    fn view_mut(&mut self) -> KvViewMut<'_> {
        match self {
            KvBuffer::F16(v) => KvViewMut::F16(v),
            KvBuffer::F32(v) => KvViewMut::F32(v),
        }
    }
}

/// Keys and values of all layers and positions.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(KvBuffer, KvBuffer)>,
    context: usize,
    ty: KvType,
}

impl KvCache {
    /// A cache of `context` positions. Pages are taken from the system as they are filled.
    ///
    /// # Errors
    /// Where there is no memory for it.
    pub fn new(config: &Config, context: usize, ty: KvType) -> Result<KvCache, OutOfMemory> {
        let layers = (0..config.layers)
            .map(|_| Ok((KvBuffer::new(config, context, ty)?, KvBuffer::new(config, context, ty)?)))
            .collect::<Result<_, OutOfMemory>>()?;
        Ok(KvCache { layers, context, ty })
    }

    /// Bytes of a cache.
    pub fn bytes(config: &Config, context: usize, ty: KvType) -> u64 {
        let element = match ty {
            KvType::F16 => size_of::<u16>(),
            KvType::F32 => size_of::<f32>(),
        };
        [2, config.layers, config.kv_heads, context, config.head_dim, element]
            .iter()
            .fold(1, saturating_product)
    }

    /// Positions there is room for.
    pub fn context(&self) -> usize {
        self.context
    }

    /// What keys and values are kept as.
    pub fn ty(&self) -> KvType {
        self.ty
    }

    /// Keys and values of a layer.
    pub(super) fn layer(&self, layer: usize) -> (KvView<'_>, KvView<'_>) {
        let (k, v) = &self.layers[layer];
        (k.view(), v.view())
    }

    /// The same to write to.
    pub(super) fn layer_mut(&mut self, layer: usize) -> (KvViewMut<'_>, KvViewMut<'_>) {
        let (k, v) = &mut self.layers[layer];
        (k.view_mut(), v.view_mut())
    }
}

/// One input of matrix products, rounded once for each activation type that its weights want.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    by_type: Vec<(ActivationType, Activations)>,
    used: usize,
}

impl Inputs {
    /// Rounds `x` (rows of `cols`) to the given types; what was there before is gone.
    pub fn prepare(
        &mut self,
        x: &[f32],
        cols: usize,
        types: impl IntoIterator<Item = ActivationType>,
    ) -> Result<(), NonFinite> {
        self.used = 0;
        for ty in types {
            if self.by_type[..self.used].iter().any(|(t, _)| *t == ty) {
                continue;
            }
            if self.used == self.by_type.len() {
                self.by_type.push((ty, Activations::new()));
            }
            let slot = &mut self.by_type[self.used];
            slot.0 = ty;
            slot.1.quantize(ty, x, cols)?;
            self.used += 1;
        }
        Ok(())
    }

    /// Takes rows of another input, in all its types.
    pub fn gather(&mut self, from: &Inputs, rows: &[usize]) {
        self.used = from.used;
        while self.by_type.len() < from.used {
            self.by_type.push((ActivationType::F32, Activations::new()));
        }
        for (to, (ty, x)) in self.by_type.iter_mut().zip(&from.by_type[..from.used]) {
            to.0 = *ty;
            x.gather_into(rows, &mut to.1);
        }
    }

    /// Whether the input was prepared as this type.
    pub fn has(&self, ty: ActivationType) -> bool {
        self.by_type[..self.used].iter().any(|(t, _)| *t == ty)
    }

    /// The input as this type.
    ///
    /// # Panics
    /// Where it was not prepared as such: the forward pass's mistake.
    pub fn get(&self, ty: ActivationType) -> &Activations {
        let found = self.by_type[..self.used].iter().find(|(t, _)| *t == ty);
        &found.expect("prepared as every type that the weights want").1
    }
}

/// Buffers of the mixture-of-experts feed-forward network. A slot is a (token, expert) pair; slots are
/// grouped by expert and lie within an expert in rising order of tokens.
#[derive(Debug, Default)]
pub(super) struct MoeState {
    /// Router `[T][N]`: logits, then probabilities.
    pub probs: Vec<f32>,
    /// Experts chosen `[T][U]`, the most probable first.
    pub chosen: Vec<u32>,
    /// Their weights `[T][U]`.
    pub weights: Vec<f32>,
    /// Hidden `[T*U][F]`, by slot.
    pub gate: Vec<f32>,
    /// Hidden `[T*U][F]`, by slot.
    pub up: Vec<f32>,
    /// What the experts gave `[T*U][E]`, by slot.
    pub down: Vec<f32>,
    /// Sums of the weights `[T]`.
    pub sums: Vec<f32>,
    /// Input of each expert `[N]`, for those in use.
    pub gathered: Vec<Inputs>,
    /// Tokens of each expert `[N]`.
    pub tokens: Vec<Vec<usize>>,
    /// Slots of each expert `[N]`.
    pub by_slot: Vec<Vec<usize>>,
    /// Slot of each (token, rank) `[T][U]`.
    pub slots: Vec<usize>,
    /// A node in the order (token, rank) for an observer.
    pub shown: Vec<f32>,
}

fn saturating_product(product: u64, &n: &usize) -> u64 {
    product.saturating_mul(n as u64)
}

/// Every buffer of a forward pass, reused from pass to pass.
#[derive(Debug)]
pub struct RunState {
    batch: usize,
    /// The residual stream `[T][E]`.
    pub(super) x: Vec<f32>,
    /// Normalised input of a block `[T][E]`; afterwards the block's output.
    pub(super) normed: Vec<f32>,
    /// Queries `[T][H][D]`.
    pub(super) q: Vec<f32>,
    /// Keys `[T][G][D]`.
    pub(super) k: Vec<f32>,
    /// Values `[T][G][D]`.
    pub(super) v: Vec<f32>,
    /// What attention gave `[T][H][D]`.
    pub(super) attn: Vec<f32>,
    /// Hidden `[T][F]`, of a dense feed-forward network.
    pub(super) gate: Vec<f32>,
    /// Hidden `[T][F]`.
    pub(super) up: Vec<f32>,
    pub(super) moe: MoeState,
    pub(super) inputs: Inputs,
    pub(super) rope: RopeTable,
    pub(super) attention: AttentionScratch,
    /// `[tokens asked for][V]`.
    pub(super) logits: Vec<f32>,
}

impl RunState {
    /// Buffers for passes of up to `batch` tokens.
    ///
    /// # Errors
    /// Where there is no memory for them.
    pub fn new(config: &Config, batch: usize) -> Result<RunState, OutOfMemory> {
        let buffer = |n: usize| zeroed::<f32>(&[batch, n], "the buffers of a batch");
        let mut moe = MoeState::default();
        let dense = match config.experts {
            None => config.ff,
            Some(experts) => {
                moe.probs = buffer(experts.count)?;
                moe.weights = buffer(experts.used)?;
                moe.chosen = zeroed(&[batch, experts.used], "the buffers of a batch")?;
                let slots = |n: usize| zeroed::<f32>(&[batch, experts.used, n], "the buffers of the experts");
                moe.gate = slots(config.ff)?;
                moe.up = slots(config.ff)?;
                moe.down = slots(config.embd)?;
                moe.sums = buffer(1)?;
                moe.gathered.resize_with(experts.count, Inputs::default);
                moe.tokens.resize(experts.count, Vec::new());
                moe.by_slot.resize(experts.count, Vec::new());
                0
            }
        };
        Ok(RunState {
            batch,
            x: buffer(config.embd)?,
            normed: buffer(config.embd)?,
            q: buffer(config.q_dim())?,
            k: buffer(config.kv_dim())?,
            v: buffer(config.kv_dim())?,
            attn: buffer(config.q_dim())?,
            gate: buffer(dense)?,
            up: buffer(dense)?,
            moe,
            inputs: Inputs::default(),
            rope: RopeTable::default(),
            attention: AttentionScratch::default(),
            logits: Vec::new(),
        })
    }

    /// Bytes that passes of up to `batch` tokens touch at most, the rounded inputs of products and so many rows of logits
    /// included.
    pub fn bytes(config: &Config, batch: usize, logits: usize) -> u64 {
        let (hidden, used) = match config.experts {
            None => (config.ff, 1),
            Some(experts) => (config.ff * experts.used, experts.used),
        };
        let floats = [
            2 * config.embd,
            2 * config.q_dim() + 2 * config.kv_dim(),
            2 * hidden,
            if config.experts.is_some() { used * config.embd } else { 0 },
        ];
        // An input may be kept in several types, and again by expert; few are as long as f32.
        let inputs = 2 * (config.embd * used).max(hidden).max(config.q_dim());
        let token = (floats.iter().sum::<usize>() + inputs) * size_of::<f32>();
        let logits = (logits as u64).saturating_mul((config.vocab * size_of::<f32>()) as u64);
        (batch as u64).saturating_mul(token as u64).saturating_add(logits)
    }

    /// Most tokens of a pass.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Forgets the logits: those of a pass that failed are nobody's.
    pub fn clear_logits(&mut self) {
        self.logits.clear();
    }

    /// The logits that the last pass was asked for: `[tokens][vocabulary]`.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }
}
