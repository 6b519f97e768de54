//! What the families have in common: a stack of equal layers, of which a family says the rest.

use super::super::ModelError;
use super::super::cut::Place;
use super::super::decoder::{Decoder, FeedForward, Layer, Nextn};
use super::super::load::{ExpertCounts, Loader, Sizes};
use super::super::parts::{
    Activation, Attention, AttentionSpec, Dense, DenseAndExperts, DenseAndExpertsSpec, DenseNames, DenseSpec,
    Embedding, Experts, ExpertsSpec, Head, HyperConnections, HyperSpec, HyperStreams, LayerStreams, Mixer,
    NextnInput, Norm, NormKind, PerLayer, PerLayerNames, QkNorm, Rope, RopeSpec, SharedSpec, Streams, Tail,
};
use crate::kernels::ops::RopeKind;

/// The tensor of a router's bias on the choice, as most files name it.
pub(super) const EXP_PROBS_B: &str = "exp_probs_b.bias";

/// What a family says of a layer.
pub(super) struct LayerPlan {
    pub mixer: MixerPlan,
    pub ffn: FfnPlan,
    pub tail: Option<TailPlan>,
}

impl LayerPlan {
    /// A layer with attention.
    pub fn new(attention: AttentionSpec, ffn: FfnPlan) -> LayerPlan {
        LayerPlan { mixer: MixerPlan::Attention(Box::new(attention)), ffn, tail: None }
    }

    /// A layer with another mixing step.
    pub fn with(mixer: impl Mixer + 'static, ffn: FfnPlan) -> LayerPlan {
        LayerPlan { mixer: MixerPlan::Made(Box::new(mixer)), ffn, tail: None }
    }

    /// A network alone.
    pub fn network(ffn: FfnPlan) -> LayerPlan {
        LayerPlan { mixer: MixerPlan::Nothing, ffn, tail: None }
    }
}

/// The mixing step of a layer.
pub(super) enum MixerPlan {
    Attention(Box<AttentionSpec>),
    /// Another, already loaded.
    Made(Box<dyn Mixer>),
    /// None: the layer is a network alone.
    Nothing,
}

impl MixerPlan {
    fn load(
        self,
        l: &mut Loader<'_>,
        il: usize,
        sizes: &Sizes,
    ) -> Result<Option<Box<dyn Mixer>>, ModelError> {
        Ok(match self {
            MixerPlan::Attention(spec) => Some(Box::new(Attention::load(l, il, sizes.embd, *spec)?)),
            MixerPlan::Made(mixer) => Some(mixer),
            MixerPlan::Nothing => None,
        })
    }
}

/// Dense, experts, or both with norms of their own.
#[allow(clippy::large_enum_variant)] // made once a layer, as the model is loaded
pub(super) enum FfnPlan {
    Dense(DenseSpec),
    Experts(ExpertsSpec),
    Both(DenseAndExpertsSpec),
    /// None: the layer is a mixing step alone.
    Nothing,
}

impl FfnPlan {
    fn load(self, l: &mut Loader<'_>, il: usize, sizes: &Sizes) -> Result<Option<FeedForward>, ModelError> {
        Ok(match self {
            FfnPlan::Dense(spec) => Some(FeedForward::Dense(Box::new(Dense::load(l, il, sizes.embd, spec)?))),
            FfnPlan::Experts(spec) => {
                Some(FeedForward::Experts(Box::new(Experts::load(l, il, sizes.embd, spec)?)))
            }
            FfnPlan::Both(spec) => {
                Some(FeedForward::Both(Box::new(DenseAndExperts::load(l, il, sizes, spec)?)))
            }
            FfnPlan::Nothing => None,
        })
    }
}

/// What follows a layer's blocks.
#[derive(Clone, Copy)]
pub(super) struct TailPlan {
    /// Elements of the layer's own input; 0 without one.
    pub per_layer: usize,
    pub eps: f32,
    pub names: PerLayerNames,
}

impl TailPlan {
    /// With `layer_output_scale`, where there is one.
    fn load(self, l: &mut Loader<'_>, il: usize, sizes: &Sizes) -> Result<Tail, ModelError> {
        let per_layer = match self.per_layer {
            0 => None,
            len => Some(PerLayer::load(l, il, sizes, len, self.eps, self.names)?),
        };
        let scale = l.weights.optional_vector(&format!("blk.{il}.layer_output_scale.weight"), 1)?;
        Ok(Tail { per_layer, scale: scale.map(|scale| scale[0]) })
    }
}

/// A norm of a layer: the tensor's name and the node's.
pub(super) type Named = (&'static str, &'static str);

/// Where the norms of a layer stand.
#[derive(Clone, Copy)]
pub(super) struct Norms {
    pub kind: NormKind,
    pub eps: f32,
    pub attn: Option<Named>,
    pub attn_post: Option<Named>,
    pub ffn: Option<Named>,
    pub ffn_post: Option<Named>,
    /// Whether ggml numbers the last of them by its layer.
    pub ffn_post_numbered: bool,
    /// The tensor of the norm behind all layers.
    pub output: &'static str,
}

impl Norms {
    /// One before each block: `attn_norm` and `ffn_norm`.
    pub fn before(kind: NormKind, eps: f32) -> Norms {
        Norms {
            kind,
            eps,
            attn: Some(("attn_norm", "attn_norm")),
            attn_post: None,
            ffn: Some(("ffn_norm", "ffn_norm")),
            ffn_post: None,
            ffn_post_numbered: true,
            output: "output_norm",
        }
    }

    /// One alone before both blocks, which stand side by side: Cohere's.
    pub fn shared(kind: NormKind, eps: f32) -> Norms {
        Norms { ffn: None, ..Norms::before(kind, eps) }
    }

    /// One behind each block: OLMo 2 and EXAONE 4.
    pub fn behind(kind: NormKind, eps: f32) -> Norms {
        Norms { attn: None, ffn: None, ffn_post_numbered: false, ..Norms::around(kind, eps) }
    }

    /// One before and one behind each block: Gemma 2 and later.
    pub fn around(kind: NormKind, eps: f32) -> Norms {
        Norms {
            attn_post: Some(("post_attention_norm", "attn_post_norm")),
            ffn_post: Some(("post_ffw_norm", "ffn_post_norm")),
            ..Norms::before(kind, eps)
        }
    }

    fn load(
        &self,
        l: &mut Loader<'_>,
        il: usize,
        sizes: &Sizes,
        named: Option<Named>,
    ) -> Result<Option<Norm>, ModelError> {
        named.map(|(tensor, name)| l.norm(il, tensor, name, self.kind, sizes, self.eps)).transpose()
    }
}

/// The decoder of a family: `plan` says of each layer what is particular to it.
pub(super) fn decoder(
    l: &mut Loader<'_>,
    sizes: Sizes,
    ropes: Vec<Rope>,
    embedding: Embedding,
    norms: Norms,
    plan: impl FnMut(&mut Loader<'_>, usize) -> Result<LayerPlan, ModelError>,
) -> Result<Decoder, ModelError> {
    drafting_decoder(l, sizes, ropes, embedding, (norms, None), plan)
}

/// Which hidden rows a block of multi-token prediction reads and hands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HiddenRows {
    /// Those behind the last norm.
    Normed,
    /// The residual stream's.
    Plain,
}

/// The same of a family whose blocks of multi-token prediction can draft (all of them, or none without hidden
/// rows): where one is wanted, `plan` is asked for the first of them too, as for the layer behind the last.
pub(super) fn drafting_decoder(
    l: &mut Loader<'_>,
    sizes: Sizes,
    ropes: Vec<Rope>,
    embedding: Embedding,
    (norms, nextn): (Norms, Option<HiddenRows>),
    mut plan: impl FnMut(&mut Loader<'_>, usize) -> Result<LayerPlan, ModelError>,
) -> Result<Decoder, ModelError> {
    let mut layers = Vec::with_capacity(sizes.layers);
    for il in 0..sizes.layers {
        l.enter(Place::Layer(il));
        let plan = plan(l, il)?;
        layers.push(layer(l, il, &sizes, &norms, plan)?);
    }
    l.enter(Place::End);
    let head = l.head(&sizes, &embedding, norms.output, norms.kind, norms.eps)?;
    let nextn = match nextn.filter(|_| l.nextn) {
        Some(rows) => {
            let il = sizes.layers;
            l.enter(Place::Layer(il));
            let first_memory = l.memories.len();
            let input = NextnInput::load(l, il, &sizes, embedding.matrix, norms.kind, norms.eps)?;
            let plan = plan(l, il)?;
            let layer = layer(l, il, &sizes, &norms, plan)?;
            let head = nextn_head(l, il, &sizes, (&norms, rows), &head)?;
            Some(Nextn { input, layer, head, normed: rows == HiddenRows::Normed, first_memory })
        }
        None => None,
    };
    let memories = std::mem::take(&mut l.memories);
    Ok(Decoder {
        sizes,
        ropes,
        embedding,
        per_layer: None,
        streams: None,
        layers,
        mixture: None,
        head,
        nextn,
        memories,
    })
}

/// The same of a family with hyper-connections between several residual streams; `sums` are the nodes of the
/// streams behind each block of a layer. The output's matrix is never the embedding's.
pub(super) fn hyper_decoder(
    l: &mut Loader<'_>,
    sizes: Sizes,
    ropes: Vec<Rope>,
    embedding: Embedding,
    norms: Norms,
    (hyper, sums): (HyperSpec, [&'static str; 2]),
    mut plan: impl FnMut(&mut Loader<'_>, usize) -> Result<LayerPlan, ModelError>,
) -> Result<Decoder, ModelError> {
    let mut layers = Vec::with_capacity(sizes.layers);
    for il in 0..sizes.layers {
        l.enter(Place::Layer(il));
        // In the order of a pass: the plan has the mixing step.
        let mut streams = HyperConnections::load(l, il, &sizes, hyper)?;
        let plan = plan(l, il)?;
        streams.load_network(l, il)?;
        let layer = layer(l, il, &sizes, &norms, plan)?;
        let streams: Option<Box<dyn LayerStreams>> = Some(Box::new(streams));
        layers.push(Layer { middle: sums[0], out: sums[1].into(), streams, ..layer });
    }
    l.enter(Place::End);
    let streams: Option<Box<dyn Streams>> = Some(Box::new(HyperStreams::load(l, &sizes, hyper)?));
    if !l.weights.contains("output.weight") {
        return Err(ModelError::MissingTensor { name: "output.weight".to_owned() });
    }
    let head = l.head(&sizes, &embedding, norms.output, norms.kind, norms.eps)?;
    let memories = std::mem::take(&mut l.memories);
    Ok(Decoder {
        sizes,
        ropes,
        embedding,
        per_layer: None,
        streams,
        layers,
        mixture: None,
        head,
        nextn: None,
        memories,
    })
}

/// The weights of a layer, in the order of a pass.
fn layer(
    l: &mut Loader<'_>,
    il: usize,
    sizes: &Sizes,
    norms: &Norms,
    plan: LayerPlan,
) -> Result<Layer, ModelError> {
    // The one block of some layers has the first norm.
    let (before, between) = match plan {
        LayerPlan { mixer: MixerPlan::Nothing, .. } => (None, norms.attn),
        LayerPlan { ffn: FfnPlan::Nothing, .. } => (norms.attn, None),
        _ => (norms.attn, norms.ffn),
    };
    let attn_norm = norms.load(l, il, sizes, before)?;
    let mixer = plan.mixer.load(l, il, sizes)?;
    let attn_post_norm = norms.load(l, il, sizes, norms.attn_post)?;
    let ffn_norm = norms.load(l, il, sizes, between)?;
    let ffn = plan.ffn.load(l, il, sizes)?;
    let ffn_post_norm = norms.load(l, il, sizes, norms.ffn_post)?;
    let ffn_post_norm = match norms.ffn_post_numbered {
        true => ffn_post_norm,
        false => ffn_post_norm.map(Norm::unnumbered),
    };
    let tail = plan.tail.map(|tail| tail.load(l, il, sizes)).transpose()?;
    Ok(Layer {
        attn_norm,
        mixer,
        attn_post_norm,
        ffn_norm,
        ffn,
        ffn_post_norm,
        residual_scale: None,
        normed_residual: None,
        parallel: false,
        middle: "ffn_inp",
        out: "l_out".into(),
        tail,
        streams: None,
        earlier: None,
    })
}

/// `nextn.shared_head_norm` (or `layer_output_norm`) and `nextn.shared_head_head`; the trunk's where the file
/// has none.
fn nextn_head(
    l: &mut Loader<'_>,
    il: usize,
    sizes: &Sizes,
    (norms, rows): (&Norms, HiddenRows),
    trunk: &Head,
) -> Result<Head, ModelError> {
    let node = match rows {
        HiddenRows::Normed => "h_nextn",
        HiddenRows::Plain => "mtp_shared_head_norm",
    };
    let names = ["nextn.shared_head_norm", "layer_output_norm"].map(|part| format!("blk.{il}.{part}"));
    let norm = match names.iter().find(|name| l.weights.contains(&format!("{name}.weight"))) {
        Some(name) => Some(Norm::load(l, name, node, norms.kind, sizes.embd, norms.eps)?),
        None => trunk.norm.clone().map(|norm| norm.named(node)),
    };
    let name = format!("blk.{il}.nextn.shared_head_head");
    let output = match l.weights.contains(&format!("{name}.weight")) {
        true => l.weights.unbiased(&name, sizes.embd, sizes.vocab)?,
        false => trunk.output.clone(),
    };
    Ok(Head { norm, output, ..trunk.clone() })
}

/// The sizes of a layer's attention, rotated by the first kind of rotation.
pub(super) fn attention(sizes: &Sizes, il: usize) -> AttentionSpec {
    let spec = AttentionSpec::new(sizes.heads[il], sizes.kv_heads[il], sizes.key_len, sizes.value_len);
    AttentionSpec { rope: Some(0), ..spec }
}

/// The same of a family in which layers may have no heads: this one must.
pub(super) fn checked_attention(
    l: &Loader<'_>,
    sizes: &Sizes,
    il: usize,
) -> Result<AttentionSpec, ModelError> {
    for (key, n) in [
        ("attention.head_count", sizes.heads[il]),
        ("attention.head_count_kv", sizes.kv_heads[il]),
        ("attention.key_length", sizes.key_len),
        ("attention.value_length", sizes.value_len),
    ] {
        if n == 0 {
            return Err(l.keys.problem(key, format!("is 0 or missing, where layer {il} has attention")));
        }
    }
    Ok(attention(sizes, il))
}

/// Norms of each head's queries and keys before the rotation: `attn_q_norm`, `attn_k_norm`.
pub(super) fn head_norms(
    l: &mut Loader<'_>,
    il: usize,
    key_len: usize,
    eps: f32,
) -> Result<QkNorm, ModelError> {
    qk_norms(l, il, NormKind::Rms, [&[key_len], &[key_len]], eps)
}

/// That of the queries alone.
pub(super) fn query_norm(
    l: &mut Loader<'_>,
    il: usize,
    key_len: usize,
    eps: f32,
) -> Result<QkNorm, ModelError> {
    let name = format!("blk.{il}.attn_q_norm");
    let q = Norm::load(l, &name, "Qcur_normed", NormKind::Rms, key_len, eps)?;
    Ok(QkNorm { q, k: None, after_rope: false })
}

/// The same of other rows, as the shapes of both norms say: whole rows of queries and keys, or weights for
/// each head.
pub(super) fn qk_norms(
    l: &mut Loader<'_>,
    il: usize,
    kind: NormKind,
    [q, k]: [&[usize]; 2],
    eps: f32,
) -> Result<QkNorm, ModelError> {
    let mut norm = |tensor: &str, name, dims: &[usize]| {
        Norm::load_shaped(l, &format!("blk.{il}.{tensor}"), name, kind, dims, eps)
    };
    Ok(QkNorm {
        q: norm("attn_q_norm", "Qcur_normed", q)?,
        k: Some(norm("attn_k_norm", "Kcur_normed", k)?),
        after_rope: false,
    })
}

/// The rotation of a family that has one kind, scaled as the file says; the tensors of factors belong to it
/// or not.
pub(super) fn rope(
    l: &mut Loader<'_>,
    sizes: &Sizes,
    kind: RopeKind,
    factors: bool,
) -> Result<Rope, ModelError> {
    Rope::load(l, RopeSpec { kind, key_len: sizes.key_len, factors, context: sizes.context })
}

/// A dense network with SwiGLU, of the hidden length that the file says.
pub(super) fn swiglu(l: &Loader<'_>, sizes: &Sizes, il: usize) -> Result<FfnPlan, ModelError> {
    Ok(FfnPlan::Dense(DenseSpec::new(sizes.dense_ff(&l.keys, il)?, Activation::SwiGlu)))
}

/// Limits that are smaller count as none.
const LEAST_LIMIT: f32 = 1e-6;

/// SwiGLU of each block, its values limited where the file says so.
pub(super) fn limited_swiglu(
    l: &mut Loader<'_>,
    sizes: &Sizes,
    key: &str,
) -> Result<Vec<Activation>, ModelError> {
    let limits = l.keys.floats(key, sizes.blocks)?.unwrap_or_else(|| vec![0.0; sizes.blocks]);
    let of = |limit| match limit > LEAST_LIMIT {
        true => Activation::SwiGluClamped { limit },
        false => Activation::SwiGlu,
    };
    Ok(limits.into_iter().map(of).collect())
}

/// Whether a layer has experts, for families whose tensors alone say so.
pub(super) fn has_router(l: &Loader<'_>, il: usize) -> bool {
    l.weights.contains(&format!("blk.{il}.ffn_gate_inp.weight"))
}

/// Experts of a family that has them in every layer: how many there are, and the hidden length of each.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpertSizes {
    pub count: usize,
    pub used: usize,
    pub ff: usize,
}

/// Reads `expert_count`, `expert_used_count` and `expert_feed_forward_length`; without the latter the dense
/// network's length is shared by the experts used.
pub(super) fn expert_sizes(l: &mut Loader<'_>, sizes: &Sizes) -> Result<ExpertSizes, ModelError> {
    let ExpertCounts { count, used } = l.required_experts(sizes)?;
    let ff = match l.keys.size("expert_feed_forward_length")? {
        Some(ff) => ff,
        None => match sizes.dense_ff(&l.keys, 0)? / used {
            0 => return Err(l.keys.problem("feed_forward_length", "is less than the experts used")),
            ff => ff,
        },
    };
    Ok(ExpertSizes { count, used, ff })
}

/// The network that all tokens share beside the experts, ungated: its hidden length and the node of its
/// output.
pub(super) fn shared(ff: usize, output: &'static str) -> SharedSpec {
    let names = DenseNames { suffix: "_shexp", output, ..DenseNames::default() };
    let dense = DenseSpec { names, ..DenseSpec::new(ff, Activation::SwiGlu) };
    SharedSpec { dense, gate: None, sum: "ffn_out", scale: None }
}
