//! A model, a context that runs it, and the batches that go in.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::path::Path;
use std::ptr::NonNull;
use std::str::FromStr;

use llama_cpp_sys_2 as sys;

use super::{Node, init, path_string};
use crate::error::{Error, Result};

/// How a model is loaded: from the memory-mapped file, on the CPU, its weights as they stand in the file.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelOptions {
    /// Map the file instead of reading it.
    pub mmap: bool,
    /// Load the blocks of multi-token prediction.
    pub mtp: bool,
}

/// A loaded model.
pub struct Model {
    raw: NonNull<sys::llama_model>,
    vocab: NonNull<sys::llama_vocab>,
}

impl Model {
    /// Loads a model file.
    ///
    /// # Errors
    /// Where llama.cpp refuses; it says why on stderr.
    pub fn load(path: &Path, options: ModelOptions) -> Result<Self> {
        init();
        let name = path_string(path)?;
        // SAFETY: the path is NUL-terminated and lives for the call; the parameters are the defaults with plain values
        // replaced. The vocabulary belongs to the model.
        let (raw, vocab) = unsafe {
            let mut params = sys::llama_model_default_params();
            params.n_gpu_layers = 0;
            params.use_extra_bufts = false;
            params.load_mode =
                if options.mmap { sys::LLAMA_LOAD_MODE_MMAP } else { sys::LLAMA_LOAD_MODE_NONE };
            params.load_mtp = options.mtp;
            let raw = sys::llama_model_load_from_file(name.as_ptr(), params);
            let vocab = if raw.is_null() { std::ptr::null() } else { sys::llama_model_get_vocab(raw) };
            (raw, vocab.cast_mut())
        };
        let lost = || Error::Ggml(format!("{}: llama.cpp does not load it", path.display()));
        Ok(Self { raw: NonNull::new(raw).ok_or_else(lost)?, vocab: NonNull::new(vocab).ok_or_else(lost)? })
    }

    /// The number of tokens in the vocabulary, and of logits.
    pub fn n_vocab(&self) -> usize {
        // SAFETY: the vocabulary lives as long as the model.
        unsafe { sys::llama_vocab_n_tokens(self.vocab.as_ptr()) as usize }
    }

    /// The token ends a generation.
    pub fn ends(&self, id: i32) -> bool {
        // SAFETY: the vocabulary lives; ggml checks the id's range.
        unsafe { sys::llama_vocab_is_eog(self.vocab.as_ptr(), id) }
    }

    /// A text's tokens; `add_special` adds what the model begins and ends texts with, and special tokens written out
    /// in the text are parsed.
    pub fn tokenize(&self, text: &str, add_special: bool) -> Result<Vec<i32>> {
        self.tokenize_with(text, add_special, true)
    }

    /// What the model begins texts with, where it does.
    pub fn bos(&self) -> Option<i32> {
        // SAFETY: the vocabulary lives as long as the model.
        unsafe {
            let vocab = self.vocab.as_ptr();
            sys::llama_vocab_get_add_bos(vocab).then(|| sys::llama_vocab_bos(vocab))
        }
    }

    /// The same; `parse_special` says whether special tokens written out in the text are parsed.
    pub fn tokenize_with(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<i32>> {
        let mut ids = vec![0i32; text.len() + 8];
        // SAFETY: pointer and length of the text, pointer and capacity of the ids, all living for the call.
        let n = unsafe {
            sys::llama_tokenize(
                self.vocab.as_ptr(),
                text.as_ptr().cast(),
                text.len() as i32,
                ids.as_mut_ptr(),
                ids.len() as i32,
                add_special,
                parse_special,
            )
        };
        let n = usize::try_from(n).map_err(|_| Error::Ggml(format!("{text:?} does not tokenise: {n}")))?;
        ids.truncate(n);
        Ok(ids)
    }

    /// The text of tokens, special ones left out.
    pub fn detokenize(&self, ids: &[i32]) -> Result<String> {
        let mut bytes = vec![0u8; 16 + ids.len() * 64];
        // SAFETY: pointer and length of the ids, pointer and capacity of the bytes, all living for the call.
        let n = unsafe {
            sys::llama_detokenize(
                self.vocab.as_ptr(),
                ids.as_ptr(),
                ids.len() as i32,
                bytes.as_mut_ptr().cast(),
                bytes.len() as i32,
                false,
                false,
            )
        };
        let n = usize::try_from(n).map_err(|_| Error::Ggml(format!("{ids:?} does not detokenise: {n}")))?;
        Ok(String::from_utf8_lossy(&bytes[..n]).into_owned())
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: made by llama_model_load_from_file and freed once; contexts borrow the model and are gone.
        unsafe { sys::llama_model_free(self.raw.as_ptr()) }
    }
}

/// Types of the KV cache: one of both, or that of keys and that of values (`q8_0/q4_0`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvType {
    keys: &'static (&'static str, sys::ggml_type),
    values: &'static (&'static str, sys::ggml_type),
}

const KV_TYPES: &[(&str, sys::ggml_type)] = &[
    ("f32", sys::GGML_TYPE_F32),
    ("f16", sys::GGML_TYPE_F16),
    ("q8_0", sys::GGML_TYPE_Q8_0),
    ("q4_0", sys::GGML_TYPE_Q4_0),
];

impl KvType {
    pub fn name(self) -> String {
        let (keys, values) = (self.keys.0, self.values.0);
        if keys == values { keys.to_owned() } else { format!("{keys}/{values}") }
    }

    /// Whether llama.cpp has such values with flash attention alone.
    pub fn needs_flash(self) -> bool {
        self.values.0.starts_with('q')
    }
}

impl FromStr for KvType {
    type Err = String;

    fn from_str(names: &str) -> std::result::Result<KvType, String> {
        let (keys, values) = names.split_once('/').unwrap_or((names, names));
        let find = |name: &str| {
            let known = KV_TYPES.iter().find(|(known, _)| *known == name);
            known.ok_or_else(|| {
                format!(
                    "'{name}' is none of {}",
                    KV_TYPES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
                )
            })
        };
        Ok(KvType { keys: find(keys)?, values: find(values)? })
    }
}

/// Flash attention: never, or where llama.cpp finds it fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flash {
    Off,
    Auto,
}

/// How a context runs.
#[derive(Clone, Copy, Debug)]
pub struct ContextOptions {
    /// Positions; every batch must fit in one piece.
    pub n_ctx: usize,
    /// Tokens a piece: `n_batch` and `n_ubatch`, or llama.cpp's defaults.
    pub n_batch: Option<usize>,
    pub threads: usize,
    pub kv: KvType,
    pub flash: Flash,
    pub mtp: Mtp,
}

/// What a context does with multi-token prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mtp {
    #[default]
    Off,
    /// Hidden rows for a block are nodes of their own: `h_nextn`.
    Hidden,
    /// The first block runs in the place of the model.
    Block,
}

unsafe extern "C" {
    /// llama.cpp's `llama_set_embeddings_nextn`, of an extension that is C++ and has no bindings.
    #[link_name = "_Z26llama_set_embeddings_nextnP13llama_contextbb"]
    fn set_embeddings_nextn(context: *mut sys::llama_context, value: bool, masked: bool);
}

/// What is called with every computed node.
type Observer<'m> = Box<dyn FnMut(&Node) + 'm>;

/// A run's state: the KV cache and the last logits.
pub struct Context<'m> {
    raw: NonNull<sys::llama_context>,
    n_vocab: usize,
    /// Boxed twice: ggml holds the address of the inner box.
    _observer: Option<Box<Observer<'m>>>,
    _model: PhantomData<&'m Model>,
}

impl<'m> Context<'m> {
    /// Makes a context; `observer` sees every node as it is computed, one at a time, so that nothing is fused.
    pub fn new(model: &'m Model, options: &ContextOptions, observer: Option<Observer<'m>>) -> Result<Self> {
        let mut observer = observer.map(Box::new);
        // SAFETY: the model lives for 'm; the parameters are the defaults with plain values replaced, and the
        // observer's address, which stays while the context lives: it is boxed and owned by it.
        let raw = unsafe {
            let mut params = sys::llama_context_default_params();
            params.n_ctx = options.n_ctx as u32;
            if let Some(n) = options.n_batch {
                params.n_batch = n as u32;
                params.n_ubatch = n as u32;
            }
            params.n_threads = options.threads as i32;
            params.n_threads_batch = options.threads as i32;
            params.type_k = options.kv.keys.1;
            params.type_v = options.kv.values.1;
            params.flash_attn_type = match options.flash {
                Flash::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
                Flash::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            };
            if options.mtp == Mtp::Block {
                params.ctx_type = sys::LLAMA_CONTEXT_TYPE_MTP;
            }
            params.no_perf = true;
            if let Some(observer) = observer.as_deref_mut() {
                params.cb_eval = Some(show);
                params.cb_eval_user_data = std::ptr::from_mut(observer).cast();
            }
            sys::llama_init_from_model(model.raw.as_ptr(), params)
        };
        let raw = NonNull::new(raw).ok_or_else(|| Error::Ggml("llama.cpp makes no context".into()))?;
        if options.mtp == Mtp::Hidden {
            // SAFETY: the context has just been made; two plain values.
            unsafe { set_embeddings_nextn(raw.as_ptr(), true, false) }
        }
        Ok(Self { raw, n_vocab: model.n_vocab(), _observer: observer, _model: PhantomData })
    }

    /// The number of logits.
    pub fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    /// Computes a batch.
    pub fn decode(&mut self, batch: &mut Batch) -> Result<()> {
        // SAFETY: the batch's arrays have its number of tokens each and live for the call.
        match unsafe { sys::llama_decode(self.raw.as_ptr(), batch.raw()) } {
            0 => Ok(()),
            code => Err(Error::Ggml(format!("llama_decode failed with {code}"))),
        }
    }

    /// The logits of the last batch's token `i`, for which they were asked; -1 is the last such token.
    pub fn logits(&mut self, i: i32) -> Result<&[f32]> {
        // SAFETY: null for a token without logits, else n_vocab floats that stay until the next call of decode, which
        // needs the context mutably as this borrow does.
        unsafe {
            let at = sys::llama_get_logits_ith(self.raw.as_ptr(), i);
            if at.is_null() {
                return Err(Error::Ggml(format!("token {i} of the batch has no logits")));
            }
            Ok(std::slice::from_raw_parts(at, self.n_vocab))
        }
    }

    /// Forgets all positions from `from` on.
    pub fn forget(&mut self, from: usize) -> Result<()> {
        // SAFETY: the memory belongs to the context; sequence 0 from a position to the end.
        let done =
            unsafe { sys::llama_memory_seq_rm(sys::llama_get_memory(self.raw.as_ptr()), 0, from as i32, -1) };
        if done { Ok(()) } else { Err(Error::Ggml("the KV cache cannot be cut".into())) }
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: made by llama_init_from_model and freed once, before the observer that it points to.
        unsafe { sys::llama_free(self.raw.as_ptr()) }
    }
}

/// ggml's evaluation callback: asked first whether the node is wanted (each one is), then shown it computed.
unsafe extern "C" fn show(tensor: *mut sys::ggml_tensor, ask: bool, user: *mut c_void) -> bool {
    if !ask {
        // SAFETY: `user` is the observer that Context::new set, alive with the context, and nobody else uses it while
        // llama_decode runs; the tensor is a live node.
        unsafe { (*user.cast::<Observer>())(&Node::new(&*tensor)) }
    }
    true
}

/// Tokens of one sequence with their positions.
pub struct Batch {
    tokens: Vec<i32>,
    positions: Vec<i32>,
    counts: Vec<i32>,
    sequences: Vec<*mut i32>,
    wanted: Vec<i8>,
    sequence: Box<i32>,
    /// A row for each token, for a block of multi-token prediction; else empty.
    hidden: Vec<f32>,
}

impl Batch {
    /// `ids` from position `at` on, with the logits of all or of the last alone.
    pub fn new(ids: &[i32], at: usize, all_logits: bool) -> Self {
        let n = ids.len();
        Self {
            tokens: ids.to_vec(),
            positions: (at..at + n).map(|p| p as i32).collect(),
            counts: vec![1; n],
            sequences: vec![std::ptr::null_mut(); n],
            wanted: (0..n).map(|i| i8::from(all_logits || i + 1 == n)).collect(),
            sequence: Box::new(0),
            hidden: Vec::new(),
        }
    }

    /// The same with a hidden row for each token.
    pub fn with_hidden(ids: &[i32], hidden: Vec<f32>) -> Self {
        Self { hidden, ..Self::new(ids, 0, true) }
    }

    /// llama.cpp's view of it, valid while `self` is.
    fn raw(&mut self) -> sys::llama_batch {
        let sequence: *mut i32 = &mut *self.sequence;
        self.sequences.fill(sequence);
        sys::llama_batch {
            n_tokens: self.tokens.len() as i32,
            token: self.tokens.as_mut_ptr(),
            embd: if self.hidden.is_empty() { std::ptr::null_mut() } else { self.hidden.as_mut_ptr() },
            pos: self.positions.as_mut_ptr(),
            n_seq_id: self.counts.as_mut_ptr(),
            seq_id: self.sequences.as_mut_ptr(),
            logits: self.wanted.as_mut_ptr(),
        }
    }
}
