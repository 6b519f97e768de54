//! MODEL: configuration from metadata, handles of the weights, one file an architecture with its
//! forward pass, the observer that sees every node of it.

mod config;
mod llama;
mod moe;
mod observer;
mod run;
mod state;
mod weights;

use thiserror::Error;

use crate::gguf::{Gguf, Metadata, MetadataError};
use crate::kernels::Kernels;
use crate::quant::NonFinite;
use crate::store::{OpenFile, OutOfMemory, Plan, Store, StoreError, open_file};

pub use config::{Config, Experts, Rope};
pub use observer::{NoObserver, Node, Observer};
pub use state::{KvCache, KvType, RunState};

/// Why a model cannot be loaded.
#[derive(Debug, Error)]
pub enum ModelError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("architecture {name} is not supported (supported: {supported})")]
    UnknownArchitecture { name: String, supported: String },
    #[error("metadata key {key} {problem}")]
    Config { key: String, problem: String },
    #[error("metadata key {key} ({value}) asks for something that is not supported")]
    UnsupportedKey { key: String, value: String },
    #[error("tensor {name} is missing")]
    MissingTensor { name: String },
    #[error("tensor {name} has the shape {found}, where {wanted} is needed")]
    Shape { name: String, found: String, wanted: String },
    #[error("tensor {name} is of type {ty}, which is not supported yet (supported: {supported})")]
    UnsupportedType { name: String, ty: String, supported: String },
    #[error("tensor {name} is not part of the architecture {architecture} as it is supported")]
    UnknownTensor { name: String, architecture: String },
    #[error("tensor {name} holds {value} at element {index}")]
    NotFinite { name: String, index: usize, value: f32 },
    #[error("tensor {name} holds zeros alone: a norm lets nothing through with it")]
    ZeroNorm { name: String },
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// Why a forward pass stopped.
#[derive(Debug, Error)]
pub enum ForwardError {
    #[error("token {id} is outside the vocabulary of {vocab}")]
    TokenRange { id: u32, vocab: usize },
    #[error(
        "{node} of layer {layer} is not finite (token {token} of the batch, element {index}): the model's weights hold \
         NaN or infinities, or its arithmetic overflows"
    )]
    NotFinite { node: &'static str, layer: usize, token: usize, index: usize },
    #[error(
        "{node} of layer {layer} is {value} (token {token} of the batch, element {index}), which does not fit a KV cache of f16: \
         one of f32 holds it"
    )]
    BeyondF16 { node: &'static str, layer: usize, token: usize, index: usize, value: f32 },
    /// The observer wanted it.
    #[error("interrupted")]
    Interrupted,
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ForwardError {
    fn not_finite(node: &'static str, layer: usize) -> impl Fn(NonFinite) -> ForwardError {
        move |at| ForwardError::NotFinite { node, layer, token: at.row, index: at.index }
    }
}

/// Which logits a forward pass is to leave in [`RunState::logits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: the pass only fills the KV cache.
    None,
    /// Those of the last token.
    Last,
    /// Those of every token.
    All,
}

/// One pass over some tokens: what it reads and what it changes.
pub struct Pass<'a> {
    pub kernels: &'static Kernels,
    pub state: &'a mut RunState,
    pub kv: &'a mut KvCache,
    /// The tokens, one after another from position `first_pos` on.
    pub tokens: &'a [u32],
    pub first_pos: usize,
    pub logits: Logits,
    /// Whether to guess the experts of the next layer and read them ahead; changes no result.
    pub guess_experts: bool,
    pub observer: &'a mut dyn Observer,
}

/// What an architecture does.
trait Architecture: Send + Sync + std::fmt::Debug {
    /// Runs the tokens through all layers. Runs on rayon's current pool.
    fn forward<'a>(&self, config: &'a Config, store: &'a Store, pass: Pass<'a>) -> Result<(), ForwardError>;
}

type Loader = fn(&Gguf, Store) -> Result<Model, ModelError>;

/// The architectures, by the name in `general.architecture`.
const ARCHITECTURES: &[(&str, Loader)] = &[("llama", llama::load)];

/// The names in `general.architecture` of the architectures that can be run.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|&(name, _)| name)
}

/// A loaded model: immutable, shared by all sessions.
#[derive(Debug)]
pub struct Model {
    config: Config,
    store: Store,
    architecture: Box<dyn Architecture>,
}

impl Model {
    /// Maps the weights of a model and checks that its architecture, metadata and tensors are all
    /// understood.
    ///
    /// # Errors
    /// What is missing, of the wrong shape, or not supported, by name.
    pub fn load(gguf: &Gguf) -> Result<Model, ModelError> {
        let name = architecture_name(gguf.metadata())?;
        let Some((_, load)) = ARCHITECTURES.iter().find(|(n, _)| *n == name) else {
            let supported = architectures().collect::<Vec<_>>().join(", ");
            return Err(ModelError::UnknownArchitecture { name: name.to_owned(), supported });
        };
        load(gguf, Store::open(gguf)?)
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where its weights are.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Puts the weights where a plan says (see [`Store::plan_for`]); until then they are mapped.
    ///
    /// # Errors
    /// As [`Store::settle`].
    pub fn settle(&mut self, plan: Plan) -> Result<(), StoreError> {
        self.settle_reading(plan, &open_file)
    }

    /// The same with files that are opened in another way.
    ///
    /// # Errors
    /// As [`Store::settle`].
    pub fn settle_reading(&mut self, plan: Plan, open: OpenFile<'_>) -> Result<(), StoreError> {
        self.store.settle(plan, open)
    }

    /// Runs a pass; see [`Pass`]. Runs on rayon's current pool.
    ///
    /// # Errors
    /// A token outside the vocabulary; values that are not finite where they have to be quantised; weights that
    /// cannot be read.
    ///
    /// # Panics
    /// Where the tokens do not fit the state's batch or the KV cache: the session's mistake.
    pub fn forward<'a>(&'a self, pass: Pass<'a>) -> Result<(), ForwardError> {
        if let Some(&id) = pass.tokens.iter().find(|&&id| id as usize >= self.config.vocab) {
            return Err(ForwardError::TokenRange { id, vocab: self.config.vocab });
        }
        self.store.begin_pass();
        let passed = self.architecture.forward(&self.config, &self.store, pass);
        // First: what a file has lost may be the cause of any other error.
        self.store.check_mapped()?;
        passed
    }
}

fn architecture_name(meta: &Metadata) -> Result<&str, MetadataError> {
    let name = meta.str("general.architecture")?;
    meta.required("general.architecture", name)
}
