//! What a model comes to on this machine.

use std::collections::BTreeMap;

use serde::Serialize;

use super::disk::DiskSpeeds;
use super::machine::Speeds;
use crate::cli::engine_args::{self, Loaded};
use crate::cli::placement::{Budget, PlanReport, line};
use crate::cli::{CliError, InFile};
use crate::engine::{DEFAULT_BATCH, EngineOptions};
use crate::gguf::{Gguf, TensorType};
use crate::model::{KvElement, KvType, ModelSpec, SequenceState};
use crate::quant;
use crate::store::{Guesses, Plan, disk_seconds};

/// What a model comes to.
#[derive(Debug, Serialize)]
pub struct ModelReport {
    pub path: String,
    /// Tokens that a run has room for by default, and that the model was made for.
    pub context: usize,
    pub trained_context: usize,
    pub kv: Vec<KvCost>,
    pub budget_bytes: u64,
    pub other_bytes: u64,
    #[serde(flatten)]
    pub plan: PlanReport,
    #[serde(skip)]
    pub placement: String,
    /// At most, by what was measured; `null` where the disk's speed is not known.
    pub decode_tok_s: Option<f64>,
    pub held_back_by: &'static str,
    /// At most; `null` where weights are streamed.
    pub prefill_tok_s: Option<f64>,
    /// Contexts that need no streaming, by what was planned.
    #[serde(skip)]
    pub roomy: Vec<Roomy>,
}

/// A context and a KV cache with which all weights stay in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roomy {
    pub context: usize,
    pub kv: KvType,
    pub kv_bytes: u64,
}

/// What the KV cache takes with one type.
#[derive(Debug, Serialize)]
pub struct KvCost {
    #[serde(rename = "type")]
    pub ty: &'static str,
    /// For a token more, while no window is full.
    pub bytes_per_token: f64,
    pub context_bytes: u64,
    pub trained_context_bytes: u64,
}

/// The type of most bytes of matrices that are computed with.
pub fn main_type(gguf: &Gguf) -> Option<TensorType> {
    let mut sums: BTreeMap<TensorType, u64> = BTreeMap::new();
    for tensor in gguf.tensors.iter().filter(|t| t.dims.len() > 1 && quant::format(t.ty).is_some()) {
        let sum = sums.entry(tensor.ty).or_default();
        *sum = sum.saturating_add(tensor.bytes);
    }
    sums.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(ty, _)| ty)
}

fn options(context: usize, kv: KvType) -> EngineOptions {
    EngineOptions {
        context,
        batch: DEFAULT_BATCH,
        kv,
        threads: engine_args::threads(None),
        isa: None,
        drafts: 0,
        guesses: Guesses::Off,
    }
}

impl ModelReport {
    /// Plans for the memory that there is, and reckons with what was measured.
    pub fn of(loaded: &Loaded, speeds: &Speeds, disks: &[DiskSpeeds]) -> Result<ModelReport, CliError> {
        let Loaded { gguf, model, .. } = loaded;
        let spec = model.spec();
        let context = engine_args::context(None, spec.context);
        let budget = Budget::new(None, model, &[options(context, KvType::default())], 1);
        let plan = budget.plan(model, None).in_file(loaded.path())?;
        let disk_s = match plan.is_mapped() {
            true => Some(0.0),
            false => disks.first().and_then(DiskSpeeds::best).and_then(|speed| {
                // The disk of the largest file stands for all.
                disk_seconds([plan.disk_bytes], &[Some(speed)])
            }),
        };
        let weights_s = speeds.default_threads().weights_bytes_s;
        let bits = bits_per_weight(gguf);
        let products = plan.active_bytes * 8.0 / bits;
        Ok(ModelReport {
            path: loaded.path().display().to_string(),
            context,
            trained_context: spec.context,
            kv: kv_costs(spec, context),
            budget_bytes: budget.total(),
            other_bytes: budget.other(),
            decode_tok_s: disk_s.map(|disk_s| plan.tokens_per_second(disk_s, weights_s, None)),
            held_back_by: held_back_by(&plan, disk_s, speeds),
            prefill_tok_s: plan.is_mapped().then(|| speeds.products_s / products),
            placement: line(&plan, None),
            plan: PlanReport::new(&plan, None),
            roomy: roomy(loaded),
        })
    }
}

/// Of matrices, on average.
fn bits_per_weight(gguf: &Gguf) -> f64 {
    let matrices = gguf.tensors.iter().filter(|tensor| tensor.dims.len() > 1);
    let (bytes, elements) =
        matrices.fold((0.0, 0.0), |(b, e), t| (b + t.bytes as f64, e + t.elements() as f64));
    if elements > 0.0 { bytes * 8.0 / elements } else { 8.0 }
}

fn held_back_by(plan: &Plan, disk_s: Option<f64>, speeds: &Speeds) -> &'static str {
    /// Of what memory gives, more than kernels leave unused where memory is the limit.
    const MOST: f64 = 0.8;
    let speed = speeds.default_threads();
    match disk_s {
        None => "disk",
        Some(disk_s) if disk_s > plan.active_bytes / speed.weights_bytes_s => "disk",
        _ if speed.weights_bytes_s < MOST * speed.read_bytes_s => "kernels",
        _ => "memory",
    }
}

/// Costs of every type that the model can have.
fn kv_costs(spec: &ModelSpec, context: usize) -> Vec<KvCost> {
    let bytes = |context: usize, ty: KvType| SequenceState::bytes(spec, context, 1, 0, ty);
    let cost = |&(name, element): &(&'static str, KvElement)| {
        let ty = KvType { keys: element, values: element };
        SequenceState::check(spec, ty).ok()?;
        /// Whole pages, of which a token more or less makes no difference.
        const FEW: usize = 128;
        let step = bytes(2 * FEW, ty).saturating_sub(bytes(FEW, ty));
        Some(KvCost {
            ty: name,
            bytes_per_token: step as f64 / FEW as f64,
            context_bytes: bytes(context, ty),
            trained_context_bytes: bytes(spec.context, ty),
        })
    };
    KvElement::ALL.iter().filter_map(cost).collect()
}

/// For f16 and for q8_0 the longest context (the model's own, or a half of it, and so on) with which all
/// weights stay in memory.
fn roomy(loaded: &Loaded) -> Vec<Roomy> {
    let Loaded { model, .. } = loaded;
    let spec = model.spec();
    let longest = |kv: KvType| {
        SequenceState::check(spec, kv).ok()?;
        let contexts = std::iter::successors(Some(spec.context), |&n| (n > 256).then_some(n / 2));
        let fits = |&context: &usize| {
            let budget = Budget::new(None, model, &[options(context, kv)], 1);
            budget.plan(model, None).is_ok_and(|plan| plan.is_mapped())
        };
        let context = contexts.into_iter().find(fits)?;
        Some(Roomy { context, kv, kv_bytes: SequenceState::bytes(spec, context, 1, 0, kv) })
    };
    [KvType::F16, KvType::Q8_0].into_iter().filter_map(longest).collect()
}
