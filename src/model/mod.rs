//! MODEL: what a forward pass is made of.
//!
//! - [`ModelSpec`]: the shape of a model, layer by layer.
//! - `parts/`: norms, RoPE, attention, feed-forward networks, experts. Each owns its weights, the names of
//!   its nodes and its step.
//! - `families/`: one file an architecture or a close family: keys and tensors, made into a `decoder` of
//!   parts.
//! - `state/`: what a sequence remembers, and the buffers of a pass.
//! - [`Observer`]: sees every node of a pass; [`Graph`] is what a pass over no tokens shows.

mod cut;
mod decoder;
mod families;
mod graph;
mod keys;
mod layer;
mod load;
mod observer;
mod on_device;
mod parts;
mod products;
mod run;
mod spec;
mod state;
mod weights;

use std::ops::Range;

use thiserror::Error;

use crate::gguf::{Gguf, Metadata, MetadataError};
use crate::kernels::Kernels;
use crate::quant::NonFinite;
use crate::store::{Guesses, OfDevice, OpenFile, OutOfMemory, Plan, Store, StoreError, open_file};

use families::Loaded;
pub use families::architectures;
pub use graph::{Graph, GraphNode};
use load::Wanted;
use observer::Label;
pub use observer::{NoObserver, Node, NodeId, NodeKind, NodeWeight, Observer, Work};
pub use spec::{
    ChoiceSizes, FeedForwardSpec, LayerSpec, MemorySpec, ModelSpec, RowSizes, ScoreSizes, ScratchSizes,
    SideSizes,
};
pub use state::{Buffers, KeptNeeds, KeptPart, KvElement, KvError, KvType, SequenceState, UnknownKv};
pub(crate) use weights::is_table;

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
    #[error("blocks of multi-token prediction of the architecture {architecture} cannot draft yet")]
    UnsupportedNextn { architecture: String },
    #[error("tensor {name} holds {value} at element {index}")]
    NotFinite { name: String, index: usize, value: f32 },
    #[error("tensor {name} holds {value} at element {index}, where 0 to {} make sense", .below - 1)]
    TableRange { name: String, index: usize, value: i32, below: usize },
    #[error("tensor {name} holds zeros alone: a norm lets nothing through with it")]
    ZeroNorm { name: String },
    #[error("layers {first} to {last} are no part of the {layers} that there are", last = .end.saturating_sub(1))]
    NoSuchLayers { first: usize, end: usize, layers: usize },
    #[error(
        "a model of the architecture {architecture} cannot be cut between layers {from} and {to}: the later one \
         takes {what} of the earlier"
    )]
    CannotCut { architecture: String, from: usize, to: usize, what: &'static str },
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// Why a forward pass stopped.
#[derive(Debug, Error)]
pub enum ForwardError {
    #[error("token {id} is outside the vocabulary of {vocab}")]
    TokenRange { id: u32, vocab: usize },
    #[error(
        "{node} of layer {layer} is not finite (token {token} of the batch, element {index}): the model's \
         weights hold NaN or infinities, or its arithmetic overflows"
    )]
    NotFinite { node: &'static str, layer: usize, token: usize, index: usize },
    #[error(
        "{node} of layer {layer} is {value} (token {token} of the batch, element {index}), which does not fit a \
         KV cache of {ty}: one of f32 holds it"
    )]
    BeyondKv { node: &'static str, layer: usize, token: usize, index: usize, value: f32, ty: KvElement },
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

/// Which logits a forward pass is to leave in [`Buffers::logits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: the pass only fills the KV cache.
    None,
    /// Those of the last token.
    Last,
    /// Those of every token.
    All,
    /// Those of every token, all but the first of which are drafts: they may be taken back one by one.
    Drafts,
}

/// The tokens of one sequence in a pass.
#[derive(Debug)]
pub struct Segment<'a> {
    /// What the sequence remembers of the positions before.
    pub state: &'a mut SequenceState,
    /// The tokens, one after another from position `first_pos` on.
    pub tokens: &'a [u32],
    pub first_pos: usize,
    pub logits: Logits,
}

/// One pass over tokens of some sequences: what it reads and what it changes. Rows lie in the order of the
/// segments. Every row's bits are the same alone and among others.
pub struct Pass<'a> {
    pub kernels: &'static Kernels,
    pub buffers: &'a mut Buffers,
    pub segments: Vec<Segment<'a>>,
    /// Whether to guess the experts of the next layer and read them ahead; changes no result.
    pub guesses: Guesses,
    /// What the stage before left, `[rows][values]`, where the model is a stage that is not the first.
    pub rows: &'a [f32],
    /// Whether to leave what the residual stream ends in, of every row, in [`Buffers::ends`]: the block of
    /// multi-token prediction reads it, which must be loaded.
    pub ends: bool,
    pub observer: &'a mut dyn Observer,
}

/// What an architecture does.
trait Architecture: Send + Sync + std::fmt::Debug {
    /// Its shape.
    fn spec(&self, architecture: &str) -> ModelSpec;

    /// Values of a token that a stage hands over to the next one.
    fn border(&self) -> usize;

    /// Runs the tokens through these layers: from the tokens themselves where the first is among them, to
    /// logits where the last is. Runs on rayon's current pool.
    fn forward<'a>(&self, store: &'a Store, pass: Pass<'a>, layers: Range<usize>)
    -> Result<(), ForwardError>;

    /// Runs tokens through the block of multi-token prediction, which is loaded; `hidden`: `[T][E]`, what the
    /// position before each left.
    fn draft<'a>(&self, store: &'a Store, pass: Pass<'a>, hidden: &[f32]) -> Result<(), ForwardError>;
}

/// A loaded model: immutable, shared by all engines.
#[derive(Debug)]
pub struct Model {
    spec: ModelSpec,
    store: Store,
    architecture: Box<dyn Architecture>,
    /// Those that are loaded, of so many.
    layers: Range<usize>,
    all_layers: usize,
    /// Before which it can be cut.
    borders: Vec<usize>,
}

impl Model {
    /// Maps the weights of a model and checks that its architecture, metadata and tensors are all
    /// understood. Blocks of multi-token prediction are left aside.
    ///
    /// # Errors
    /// What is missing, of the wrong shape, or not supported, by name.
    pub fn load(gguf: &Gguf) -> Result<Model, ModelError> {
        Model::load_with(gguf, Wanted::default())
    }

    /// The same of these layers alone: a stage, which a pass goes through with others before and behind it.
    /// Of the file the headers and what these layers need are read: the embedding with the first, the output
    /// matrix with the last of all.
    ///
    /// # Errors
    /// As [`Model::load`]; layers that there are not; a cut between layers of which one takes more from the
    /// other than rows, by name.
    pub fn load_stage(gguf: &Gguf, layers: Range<usize>) -> Result<Model, ModelError> {
        Model::load_with(gguf, Wanted { layers: Some(layers), nextn: false })
    }

    /// The same with the first block of multi-token prediction, which drafts.
    ///
    /// # Errors
    /// Where the file has no such block, or the architecture's cannot draft yet, too.
    pub fn load_with_nextn(gguf: &Gguf) -> Result<Model, ModelError> {
        Model::load_with(gguf, Wanted { layers: None, nextn: true })
    }

    fn load_with(gguf: &Gguf, wanted: Wanted) -> Result<Model, ModelError> {
        let name = architecture_name(gguf.metadata())?;
        let Loaded { architecture, store, links } = families::load(gguf, name, wanted.clone())?;
        let mut spec = architecture.spec(name);
        let all_layers = spec.layers.len();
        let layers = wanted.layers.unwrap_or(0..all_layers);
        cut::check_links(&links, &layers, name)?;
        spec.layers = spec.layers.drain(layers.clone()).collect();
        if layers.end < all_layers {
            spec.side.border = architecture.border();
        }
        let borders = cut::borders(&links, all_layers);
        Ok(Model { spec, store, architecture, layers, all_layers, borders })
    }

    /// The layers that are loaded: all, or those of a stage.
    pub fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }

    /// Layers of the whole model.
    pub fn all_layers(&self) -> usize {
        self.all_layers
    }

    /// The layers before which the model can be cut into stages.
    pub fn borders(&self) -> &[usize] {
        &self.borders
    }

    /// Values of a token that stages pass on.
    pub fn border_row(&self) -> usize {
        self.architecture.border()
    }

    /// Whether passes end here in logits, and not in rows for another stage.
    pub fn is_last(&self) -> bool {
        self.layers.end == self.all_layers
    }

    /// Values of a token that come from the stage before; 0 where passes begin here.
    pub fn row_in(&self) -> usize {
        if self.layers.start == 0 { 0 } else { self.architecture.border() }
    }

    /// Values of a token that go to the next stage; 0 where passes end here.
    pub fn row_out(&self) -> usize {
        self.spec.side.border
    }

    /// The model's shape.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
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
        self.settle_with(plan, None)
    }

    /// The same with a device, for which the plan was made.
    ///
    /// # Errors
    /// As [`Store::settle`].
    pub fn settle_with(&mut self, plan: Plan, device: Option<OfDevice>) -> Result<(), StoreError> {
        self.store.settle(plan, &open_file, device)
    }

    /// The same with files that are opened in another way.
    ///
    /// # Errors
    /// As [`Store::settle`].
    pub fn settle_reading(&mut self, plan: Plan, open: OpenFile<'_>) -> Result<(), StoreError> {
        self.store.settle(plan, open, None)
    }

    /// Every node of a pass, in the order of computation: what a pass over no tokens shows. It reads no
    /// weights.
    ///
    /// # Errors
    /// Where there is no memory for it.
    pub fn graph(&self) -> Result<Graph, ForwardError> {
        let mut graph = Graph::default();
        let mut buffers = Buffers::new(&self.spec, 0, 0)?;
        let pass = Pass {
            kernels: Kernels::detect_best(),
            buffers: &mut buffers,
            segments: Vec::new(),
            guesses: Guesses::Off,
            rows: &[],
            ends: false,
            observer: &mut graph,
        };
        self.architecture.forward(&self.store, pass, self.layers())?;
        Ok(graph)
    }

    /// Runs a pass; see [`Pass`]. Runs on rayon's current pool.
    ///
    /// # Errors
    /// A token outside the vocabulary; values that are not finite where they have to be quantised; weights
    /// that cannot be read; no memory for another page of keys and values.
    ///
    /// # Panics
    /// Where the tokens do not fit the buffers, or the rows of the stage before are not those of the tokens:
    /// the engine's mistake.
    pub fn forward<'a>(&'a self, pass: Pass<'a>) -> Result<(), ForwardError> {
        let tokens: usize = pass.segments.iter().map(|segment| segment.tokens.len()).sum();
        assert_eq!(pass.rows.len(), tokens * self.row_in(), "rows of the stage before");
        self.passed(pass, |pass| self.architecture.forward(&self.store, pass, self.layers()))
    }

    /// Runs tokens through the block of multi-token prediction: the logits are those of the token behind
    /// each. `hidden`: `[T][E]`, the [ends](Buffers::ends) of the position before each token, zeros before
    /// the first. A pass of [`Logits::None`] only fills what the block remembers. The ends of the rows whose
    /// logits are wanted are left in [`Buffers::ends`], to go on with.
    ///
    /// # Errors
    /// As [`Model::forward`].
    ///
    /// # Panics
    /// Where the block is not loaded, or rows do not fit: the engine's mistake.
    pub fn draft<'a>(&'a self, pass: Pass<'a>, hidden: &[f32]) -> Result<(), ForwardError> {
        self.passed(pass, |pass| self.architecture.draft(&self.store, pass, hidden))
    }

    fn passed<'a>(
        &'a self,
        pass: Pass<'a>,
        run: impl FnOnce(Pass<'a>) -> Result<(), ForwardError>,
    ) -> Result<(), ForwardError> {
        let vocab = self.spec.vocab;
        let mut ids = pass.segments.iter().flat_map(|segment| segment.tokens);
        if let Some(&id) = ids.find(|&&id| id as usize >= vocab) {
            return Err(ForwardError::TokenRange { id, vocab });
        }
        self.store.begin_pass();
        let passed = run(pass);
        // First: what a file has lost may be the cause of any other error.
        self.store.check_mapped()?;
        passed
    }
}

fn architecture_name(meta: &Metadata) -> Result<&str, MetadataError> {
    let name = meta.str("general.architecture")?;
    meta.required("general.architecture", name)
}
