//! Loading: what families read their decoders with, and the sizes that all of them have.

use std::ops::Range;

use crate::gguf::Gguf;
use crate::kernels::ops::Window;
use crate::store::{Role, Store};

use super::cut::{Cut, Link, Place};
use super::keys::{Keys, MAX_LAYERS};
use super::parts::{Embedding, Head, Norm, NormKind};
use super::weights::{Linear, Matrix, WeightLoader};
use super::{MemorySpec, ModelError};

/// Most experts of all layers: each takes some memory, however few its weights are.
const MAX_EXPERTS: usize = 1 << 18;
const WINDOW_PATTERN: &str = "attention.sliding_window_pattern";

/// Keys and weights of a file, as they are asked for.
pub(super) struct Loader<'a> {
    pub keys: Keys<'a>,
    pub weights: WeightLoader<'a>,
    /// What sequences will remember, slot by slot.
    pub memories: Vec<MemorySpec>,
    /// Whether the block of multi-token prediction is wanted.
    pub nextn: bool,
    /// What layers take of earlier ones.
    pub links: Vec<Link>,
    /// All slots: whose each is, and where it is among those of a sequence, if it is wanted.
    slots: Vec<(Place, usize)>,
    /// The last layer that has chosen positions by itself.
    choice: Option<usize>,
}

impl<'a> Loader<'a> {
    pub fn new(
        gguf: &'a Gguf,
        architecture: &'a str,
        store: Store,
        wanted: Wanted,
    ) -> Result<Loader<'a>, ModelError> {
        let keys = Keys::new(gguf.metadata(), architecture);
        let mut weights = WeightLoader::new(gguf, store)?;
        weights.cut = wanted.layers.map(Cut::new);
        Ok(Loader {
            keys,
            weights,
            memories: Vec::new(),
            nextn: wanted.nextn,
            links: Vec::new(),
            slots: Vec::new(),
            choice: None,
        })
    }

    /// What is loaded from now on has this place in a pass.
    pub fn enter(&mut self, place: Place) {
        self.weights.place = place;
    }

    /// A slot for what a part remembers of a sequence; none that may be used where another stage has the part.
    pub fn remember(&mut self, memory: MemorySpec) -> usize {
        let place = self.weights.place;
        let slot = match self.weights.wants(place) {
            true => {
                self.memories.push(memory);
                self.memories.len() - 1
            }
            false => usize::MAX,
        };
        self.slots.push((place, slot));
        slot
    }

    /// The slot that was asked for as this one, of all, for a layer that looks into it.
    pub fn shared_slot(&mut self, number: usize) -> usize {
        let (place, slot) = self.slots[number];
        if let Place::Layer(from) = place {
            self.link(from, "the keys and values");
        }
        slot
    }

    /// The layer chooses the positions that it attends to, for others behind it too.
    pub fn chooses(&mut self, il: usize) {
        self.choice = Some(il);
    }

    /// The layer takes the choice of the last one that has made one.
    pub fn takes_choice(&mut self) {
        if let Some(from) = self.choice {
            self.link(from, "the choice of positions");
        }
    }

    fn link(&mut self, from: usize, what: &'static str) {
        if let Place::Layer(to) = self.weights.place {
            self.links.push(Link { from, to, what });
        }
    }
}

/// What is wanted of a file.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// These layers alone; all where not given.
    pub layers: Option<Range<usize>>,
    /// The block of multi-token prediction.
    pub nextn: bool,
}

/// The sizes that every decoder has. Every size is at least 1, but for the heads of layers without attention;
/// head counts divide.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    /// Layers of a pass, those of multi-token prediction left out.
    pub layers: usize,
    /// Blocks in the file.
    pub blocks: usize,
    pub embd: usize,
    pub vocab: usize,
    /// Context that the model was trained for.
    pub context: usize,
    /// Query heads, by block.
    pub heads: Vec<usize>,
    /// Heads of keys and values, by block; each divides the query heads.
    pub kv_heads: Vec<usize>,
    pub key_len: usize,
    pub value_len: usize,
    /// Hidden length of dense networks, by block; 0 where the file does not say.
    pub ff: Vec<usize>,
}

impl Sizes {
    /// Reads the keys that all decoders have.
    pub fn read(l: &mut Loader<'_>) -> Result<Sizes, ModelError> {
        Sizes::read_with(l, true)
    }

    /// The same of a family in which layers without attention have no heads of keys and values, or none at
    /// all.
    pub fn read_mixed(l: &mut Loader<'_>) -> Result<Sizes, ModelError> {
        Sizes::read_with(l, false)
    }

    fn read_with(l: &mut Loader<'_>, all_attend: bool) -> Result<Sizes, ModelError> {
        let vocab = l.weights.rows_of("token_embd.weight")?;
        check_vocabulary(l, vocab)?;
        let keys = &mut l.keys;
        let embd = keys.required_size("embedding_length")?;
        let blocks = keys.required_size("block_count")?;
        if blocks > MAX_LAYERS {
            return Err(
                keys.problem("block_count", format!("is {blocks}, where 1 to {MAX_LAYERS} make sense"))
            );
        }
        let context = keys.required_size("context_length")?;
        let nextn = keys.count("nextn_predict_layers")?;
        if nextn >= blocks {
            return Err(
                keys.problem("nextn_predict_layers", format!("is {nextn}, where there are {blocks} blocks"))
            );
        }
        if l.nextn && nextn == 0 {
            let what = "is 0 or missing: the model has no block for multi-token prediction";
            return Err(keys.problem("nextn_predict_layers", what));
        }
        let layers = blocks - nextn;
        let heads = keys.heads("attention.head_count", blocks, all_attend)?;
        let heads = match all_attend {
            true => keys.metadata().required(&keys.full("attention.head_count"), heads)?,
            false => heads.unwrap_or_else(|| vec![0; blocks]),
        };
        let kv_heads = keys.heads("attention.head_count_kv", blocks, all_attend)?;
        let kv_heads = kv_heads.unwrap_or_else(|| heads.clone());
        check_heads(keys, &heads, &kv_heads)?;
        let key_length = keys.size("attention.key_length")?;
        let value_length = keys.size("attention.value_length")?;
        // Neither stands in for the other.
        let of_heads = |length: Option<usize>| match (length, heads[0]) {
            (Some(length), _) => Ok(length),
            (None, 0) => Ok(0),
            (None, n) if !embd.is_multiple_of(n) => {
                let what = format!("is {n}, which does not divide the embedding length of {embd}");
                Err(keys.problem("attention.head_count", what))
            }
            (None, n) => Ok(embd / n),
        };
        let (key_len, value_len) = (of_heads(key_length)?, of_heads(value_length)?);
        let ff = keys.counts("feed_forward_length", blocks)?.unwrap_or_else(|| vec![0; blocks]);
        l.weights.leave_blocks_aside(layers..blocks);
        if let Some(cut) = &mut l.weights.cut {
            cut.check(layers)?;
        }
        Ok(Sizes { layers, blocks, embd, vocab, context, heads, kv_heads, key_len, value_len, ff })
    }

    /// Hidden length of a layer's dense network.
    pub fn dense_ff(&self, keys: &Keys<'_>, il: usize) -> Result<usize, ModelError> {
        match self.ff[il] {
            0 => Err(keys.problem("feed_forward_length", format!("is 0 or missing for layer {il}"))),
            ff => Ok(ff),
        }
    }
}

fn check_heads(keys: &Keys<'_>, heads: &[usize], kv_heads: &[usize]) -> Result<(), ModelError> {
    let divide = |(heads, kv_heads): &(&usize, &usize)| **kv_heads == 0 || heads.is_multiple_of(**kv_heads);
    match heads.iter().zip(kv_heads).find(|pair| !divide(pair)) {
        Some((heads, kv_heads)) => {
            Err(keys
                .problem("attention.head_count_kv", format!("is {kv_heads}, which does not divide {heads}")))
        }
        None => Ok(()),
    }
}

fn check_vocabulary(l: &mut Loader<'_>, vocab: usize) -> Result<(), ModelError> {
    let tokens = l.keys.metadata().texts("tokenizer.ggml.tokens")?.map(|t| t.len());
    let named = [
        (l.keys.full("vocab_size"), l.keys.size("vocab_size")?),
        ("tokenizer.ggml.tokens".to_owned(), tokens),
    ];
    for (key, named) in named {
        if let Some(n) = named.filter(|&n| n != vocab) {
            let problem = format!("counts {n} tokens, where token_embd.weight has {vocab}");
            return Err(ModelError::Config { key, problem });
        }
    }
    Ok(())
}

/// How many experts there are and how many a token is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExpertCounts {
    pub count: usize,
    pub used: usize,
}

impl<'a> Loader<'a> {
    /// `attention.layer_norm_rms_epsilon`
    pub fn rms_eps(&mut self) -> Result<f32, ModelError> {
        self.keys.harmless(&["attention.layer_norm_epsilon"]);
        self.keys.epsilon("attention.layer_norm_rms_epsilon")
    }

    /// `attention.layer_norm_epsilon`
    pub fn layer_norm_eps(&mut self) -> Result<f32, ModelError> {
        self.keys.harmless(&["attention.layer_norm_rms_epsilon"]);
        self.keys.epsilon("attention.layer_norm_epsilon")
    }

    /// `expert_count` and `expert_used_count`; `None` where there are none.
    pub fn experts(&mut self, sizes: &Sizes) -> Result<Option<ExpertCounts>, ModelError> {
        let used = self.keys.count("expert_used_count")?;
        let Some(count) = self.expert_count(sizes)? else { return Ok(None) };
        if used >= 1 && used <= count {
            return Ok(Some(ExpertCounts { count, used }));
        }
        Err(self.keys.problem("expert_used_count", format!("is {used}, where there are {count} experts")))
    }

    /// The same of a family in which a token is sent to other numbers of experts from layer to layer: the
    /// count, and the number of each block, which may be 0.
    pub fn experts_by_layer(&mut self, sizes: &Sizes) -> Result<Option<(usize, Vec<usize>)>, ModelError> {
        let used = self.keys.counts("expert_used_count", sizes.blocks)?;
        let Some(count) = self.expert_count(sizes)? else { return Ok(None) };
        let used = used.unwrap_or_else(|| vec![0; sizes.blocks]);
        match used.iter().find(|&&used| used > count) {
            Some(used) => Err(self
                .keys
                .problem("expert_used_count", format!("is {used}, where there are {count} experts"))),
            None => Ok(Some((count, used))),
        }
    }

    /// `expert_count`, unless it is absent or 0.
    fn expert_count(&mut self, sizes: &Sizes) -> Result<Option<usize>, ModelError> {
        let count = self.keys.count("expert_count")?;
        if count.saturating_mul(sizes.blocks) > MAX_EXPERTS {
            let what = format!(
                "makes {} experts of {} layers, where at most {MAX_EXPERTS} make sense",
                count.saturating_mul(sizes.blocks),
                sizes.blocks
            );
            return Err(self.keys.problem("expert_count", what));
        }
        Ok(Some(count).filter(|&count| count > 0))
    }

    /// The same where a family cannot do without.
    pub fn required_experts(&mut self, sizes: &Sizes) -> Result<ExpertCounts, ModelError> {
        let found = self.experts(sizes)?;
        found.ok_or_else(|| self.keys.problem("expert_count", "is 0 or missing"))
    }

    /// Which layers see a window: an array with a truth value for each block, or every layer but each `n`th,
    /// n being `attention.sliding_window_pattern` or the family's own.
    pub fn window_pattern(&mut self, sizes: &Sizes, default: usize) -> Result<Vec<bool>, ModelError> {
        self.pattern(sizes, default, |il, n| il % n < n - 1)
    }

    /// The same where the first of every so many layers is the one without a window.
    pub fn window_pattern_full_first(
        &mut self,
        sizes: &Sizes,
        default: usize,
    ) -> Result<Vec<bool>, ModelError> {
        self.pattern(sizes, default, |il, n| il % n != 0)
    }

    fn pattern(
        &mut self,
        sizes: &Sizes,
        default: usize,
        windowed: impl Fn(usize, usize) -> bool,
    ) -> Result<Vec<bool>, ModelError> {
        if self.keys.is_array(WINDOW_PATTERN) {
            return self.required_window_pattern(sizes);
        }
        let n = self.keys.size(WINDOW_PATTERN)?.unwrap_or(default);
        // Blocks behind the layers have none.
        Ok((0..sizes.blocks).map(|il| il < sizes.layers && windowed(il, n)).collect())
    }

    /// The same for a family whose files say of each layer whether it sees a window.
    pub fn required_window_pattern(&mut self, sizes: &Sizes) -> Result<Vec<bool>, ModelError> {
        let flags = self.keys.layer_flags(WINDOW_PATTERN, sizes.layers, sizes.blocks)?;
        flags.ok_or_else(|| self.keys.problem(WINDOW_PATTERN, "is missing"))
    }

    /// `rope.dimension_sections`: how many pairs of a head turn with each of four positions, in files of
    /// models that see images too. Those of a text are all the same, so that only the order of pairs depends
    /// on it.
    pub fn rope_sections(&mut self) -> Result<Option<Vec<usize>>, ModelError> {
        let name = "rope.dimension_sections";
        let sections = self.keys.counts(name, 4)?;
        match &sections {
            Some(sections) if sections.iter().all(|&n| n == 0) => {
                Err(self.keys.problem(name, "holds zeros alone"))
            }
            _ => Ok(sections),
        }
    }

    /// `attention.sliding_window` as a sliding window; `None` where it is absent or 0.
    pub fn sliding_window(&mut self) -> Result<Option<Window>, ModelError> {
        let n = self.keys.count("attention.sliding_window")?;
        Ok(Some(n).filter(|&n| n > 0).map(Window::Sliding))
    }

    /// The same where a family cannot do without.
    pub fn required_window(&mut self) -> Result<Window, ModelError> {
        self.keys.required_size("attention.sliding_window").map(Window::Sliding)
    }

    /// Refuses tensors of a layer that the reference loads and leaves out of its graph, and that no published
    /// model has: what a file means with them can be held to nothing.
    pub fn refuse(&self, il: usize, tensors: &[&str]) -> Result<(), ModelError> {
        let mut names = tensors.iter().map(|tensor| format!("blk.{il}.{tensor}"));
        match names.find(|name| self.weights.contains(name)) {
            Some(name) => {
                Err(ModelError::UnknownTensor { name, architecture: self.keys.architecture().into() })
            }
            None => Ok(()),
        }
    }

    /// The embedding's matrix.
    pub fn token_embd(&mut self, sizes: &Sizes) -> Result<Matrix, ModelError> {
        self.weights.matrix("token_embd.weight", sizes.embd, sizes.vocab, Role::Rows)
    }

    /// A norm of a layer over the embedding length.
    pub fn norm(
        &mut self,
        il: usize,
        tensor: &str,
        name: &'static str,
        kind: NormKind,
        sizes: &Sizes,
        eps: f32,
    ) -> Result<Norm, ModelError> {
        Norm::load(self, &format!("blk.{il}.{tensor}"), name, kind, sizes.embd, eps)
    }

    /// The last norm and the output matrix, which is the embedding once more where the file has none.
    pub fn head(
        &mut self,
        sizes: &Sizes,
        embedding: &Embedding,
        tensor: &str,
        kind: NormKind,
        eps: f32,
    ) -> Result<Head, ModelError> {
        let norm = Some(Norm::load(self, tensor, "result_norm", kind, sizes.embd, eps)?);
        Ok(Head { norm, ..self.head_without_norm(sizes, embedding)? })
    }

    /// The output matrix alone.
    pub fn head_without_norm(&mut self, sizes: &Sizes, embedding: &Embedding) -> Result<Head, ModelError> {
        let output = match self.weights.contains("output.weight") {
            true => self.weights.linear("output", sizes.embd, sizes.vocab)?,
            false => {
                let matrix = self.weights.as_output(embedding.matrix)?;
                let bias = self.weights.optional_vector("output.bias", sizes.vocab)?;
                Linear { bias, ..Linear::plain(matrix) }
            }
        };
        Ok(Head { norm: None, output, scale: None, soft_cap: None })
    }
}
