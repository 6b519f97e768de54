//! The `llama` architecture: Llama 2 and 3, Mistral, and Mixtral with its experts.
//!
//! Nodes are named as in llama.cpp's graph for this architecture.

use crate::gguf::Gguf;
use crate::kernels::ops::RopeKind;
use crate::store::{Role, Store, WeightId};

use super::config::{Config, Experts, Reader, Rope};
use super::moe::Moe;
use super::run::Run;
use super::weights::{Linear, Matrix, WeightLoader};
use super::{Architecture, ForwardError, Logits, Model, ModelError, Pass};

/// Weights of a model.
#[derive(Debug)]
struct Llama {
    token_embd: Matrix,
    /// Factors that divide the rotary angles, `[head_dim / 2]` (Llama 3).
    rope_freqs: Option<Vec<f32>>,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    /// The embedding once more, where the file has no output matrix.
    output: Matrix,
}

/// Weights of a layer.
#[derive(Debug)]
struct Layer {
    attn_norm: Vec<f32>,
    q: Linear,
    k: Linear,
    v: Linear,
    attn_output: Linear,
    ffn_norm: Vec<f32>,
    ffn: Ffn,
}

#[derive(Debug)]
enum Ffn {
    Dense { gate: Linear, up: Linear, down: Linear },
    Moe(Moe),
}

/// Reads the configuration and finds the weights.
pub(super) fn load(gguf: &Gguf, store: Store) -> Result<Model, ModelError> {
    let mut weights = WeightLoader::new(gguf, store)?;
    let config = config(gguf, weights.rows_of("token_embd.weight")?)?;
    let token_embd = weights.matrix("token_embd.weight", config.embd, config.vocab, Role::Rows)?;
    // In the order of a pass.
    let rope_freqs = rope_freqs(&mut weights, &config)?;
    let layers = (0..config.layers).map(|il| layer(&mut weights, &config, il)).collect::<Result<_, _>>()?;
    let output_norm = weights.norm("output_norm.weight", config.embd)?;
    let output = match weights.contains("output.weight") {
        true => weights.matrix("output.weight", config.embd, config.vocab, Role::Always)?,
        false => weights.as_output(token_embd),
    };
    let llama = Llama { token_embd, rope_freqs, layers, output_norm, output };
    let store = weights.finish("llama")?;
    Ok(Model { config, store, architecture: Box::new(llama) })
}

fn rope_freqs(weights: &mut WeightLoader, c: &Config) -> Result<Option<Vec<f32>>, ModelError> {
    let name = "rope_freqs.weight";
    let factors = weights.optional_vector(name, c.rope.dims / 2)?;
    match factors.as_ref().and_then(|f| f.iter().position(|&f| f == 0.0)) {
        Some(index) => Err(ModelError::NotFinite { name: name.to_owned(), index, value: 0.0 }),
        None => Ok(factors),
    }
}

fn layer(weights: &mut WeightLoader, c: &Config, il: usize) -> Result<Layer, ModelError> {
    let name = |part: &str| format!("blk.{il}.{part}");
    // In the order of a pass.
    let attn_norm = weights.norm(&name("attn_norm.weight"), c.embd)?;
    let q = weights.linear(&name("attn_q"), c.embd, c.q_dim())?;
    let k = weights.linear(&name("attn_k"), c.embd, c.kv_dim())?;
    let v = weights.linear(&name("attn_v"), c.embd, c.kv_dim())?;
    let attn_output = weights.linear(&name("attn_output"), c.q_dim(), c.embd)?;
    let ffn_norm = weights.norm(&name("ffn_norm.weight"), c.embd)?;
    let ffn = match c.experts {
        Some(experts) => Ffn::Moe(Moe::load(weights, c, experts, il)?),
        None => Ffn::Dense {
            gate: weights.linear(&name("ffn_gate"), c.embd, c.ff)?,
            up: weights.linear(&name("ffn_up"), c.embd, c.ff)?,
            down: weights.linear(&name("ffn_down"), c.ff, c.embd)?,
        },
    };
    Ok(Layer { attn_norm, q, k, v, attn_output, ffn_norm, ffn })
}

/// The configuration; every key under `llama.` is used, known to change nothing, or refused.
fn config(gguf: &Gguf, vocab: usize) -> Result<Config, ModelError> {
    let meta = gguf.metadata();
    let mut keys = Reader::new(meta, "llama");
    let embd = keys.required_size("embedding_length")?;
    let heads = keys.required_size("attention.head_count")?;
    let kv_heads = keys.size("attention.head_count_kv")?.unwrap_or(heads);
    let key_length = keys.size("attention.key_length")?;
    let head_dim = key_length.unwrap_or(embd / heads);
    let value_dim = keys.size("attention.value_length")?.unwrap_or(head_dim);
    let rope_dims = keys.size("rope.dimension_count")?.unwrap_or(head_dim);
    let problem = |key: &str, problem: String| ModelError::Config { key: format!("llama.{key}"), problem };
    if key_length.is_none() && !embd.is_multiple_of(heads) {
        let what = format!("is {heads}, which does not divide the embedding length of {embd}");
        return Err(problem("attention.head_count", what));
    }
    if !heads.is_multiple_of(kv_heads) {
        return Err(problem(
            "attention.head_count_kv",
            format!("is {kv_heads}, which does not divide {heads}"),
        ));
    }
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(problem("attention.key_length", format!("is {head_dim}, where RoPE needs an even size")));
    }
    if value_dim != head_dim {
        let what = format!("is {value_dim}, where keys are {head_dim}: different sizes are not supported");
        return Err(problem("attention.value_length", what));
    }
    if rope_dims != head_dim {
        let what = format!("is {rope_dims}, where heads are {head_dim}: partial rotation is not supported");
        return Err(problem("rope.dimension_count", what));
    }
    let tokens = meta.texts("tokenizer.ggml.tokens")?.map(|t| t.len());
    for (key, named) in [("llama.vocab_size", keys.size("vocab_size")?), ("tokenizer.ggml.tokens", tokens)] {
        if named.is_some_and(|n| n != vocab) {
            let what = format!("counts {} tokens, where token_embd.weight has {vocab}", named.unwrap_or(0));
            return Err(ModelError::Config { key: key.to_owned(), problem: what });
        }
    }
    let experts = experts(&mut keys)?;
    let ff = keys.required_size("feed_forward_length")?;
    let expert_ff = keys.size("expert_feed_forward_length")?;
    let scale = keys.float("attention.scale")?.filter(|&s| s != 0.0);
    let config = Config {
        architecture: "llama".to_owned(),
        layers: keys.required_size("block_count")?,
        embd,
        heads,
        kv_heads,
        head_dim,
        ff: experts.and(expert_ff).unwrap_or(ff),
        vocab,
        context: keys.required_size("context_length")?,
        rms_eps: rms_eps(&mut keys)?,
        rope: rope(&mut keys, rope_dims)?,
        attn_scale: scale.unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt()),
        window: Some(keys.count("attention.sliding_window")?).filter(|&n| n > 0),
        experts,
    };
    let experts = config.experts.map_or(0, |experts| experts.count.saturating_mul(config.layers));
    if experts > MAX_EXPERTS {
        let what = format!(
            "makes {experts} experts of {} layers, where at most {MAX_EXPERTS} make sense",
            config.layers
        );
        return Err(problem("expert_count", what));
    }
    refuse_others(keys)?;
    Ok(config)
}

/// Most experts of all layers: each takes some memory, however few its weights are.
const MAX_EXPERTS: usize = 1 << 16;

fn experts(keys: &mut Reader) -> Result<Option<Experts>, ModelError> {
    let (count, used) = (keys.count("expert_count")?, keys.count("expert_used_count")?);
    match (count, used) {
        (0, _) => Ok(None),
        (count, used) if used >= 1 && used <= count => Ok(Some(Experts { count, used })),
        (count, used) => Err(ModelError::Config {
            key: "llama.expert_used_count".to_owned(),
            problem: format!("is {used}, where there are {count} experts"),
        }),
    }
}

fn rms_eps(keys: &mut Reader) -> Result<f32, ModelError> {
    let name = "attention.layer_norm_rms_epsilon";
    let problem =
        |problem: &str| ModelError::Config { key: format!("llama.{name}"), problem: problem.to_owned() };
    match keys.float(name)? {
        Some(eps) if eps >= 0.0 => Ok(eps),
        Some(_) => Err(problem("is negative")),
        None => Err(problem("is missing")),
    }
}

/// Rotary embedding: plain or linearly scaled; other kinds of scaling are refused by name.
fn rope(keys: &mut Reader, dims: usize) -> Result<Rope, ModelError> {
    let base = keys.float("rope.freq_base")?.unwrap_or(10000.0);
    let kind = keys.str("rope.scaling.type")?;
    // The factor was `rope.scale_linear` in older files.
    let old = keys.float("rope.scale_linear")?;
    let factor = keys.float("rope.scaling.factor")?.or(old).filter(|&f| f != 0.0).unwrap_or(1.0);
    keys.harmless(&["rope.scaling.original_context_length", "rope.scaling.finetuned"]);
    let freq_scale = match kind {
        None | Some("linear") => 1.0 / factor,
        Some("none") => 1.0,
        Some(kind) => {
            let key = "llama.rope.scaling.type".to_owned();
            return Err(ModelError::UnsupportedKey { key, value: kind.to_owned() });
        }
    };
    if base <= 0.0 || factor < 0.0 {
        let key = "llama.rope.freq_base".to_owned();
        return Err(ModelError::Config { key, problem: format!("is {base} with the factor {factor}") });
    }
    Ok(Rope { kind: RopeKind::Norm, base, freq_scale, dims })
}

/// Keys that would change the forward pass are refused unless they say what it does anyway.
fn refuse_others(mut keys: Reader) -> Result<(), ModelError> {
    const ABSENT_OR: &[(&str, &[f64])] = &[
        ("attention.causal", &[1.0]),
        ("attention.clamp_kqv", &[0.0]),
        ("attention.max_alibi_bias", &[0.0]),
        ("attention.temperature_scale", &[0.0]),
        ("attn_logit_softcapping", &[0.0]),
        ("final_logit_softcapping", &[0.0]),
        ("embedding_scale", &[0.0, 1.0]),
        ("residual_scale", &[0.0, 1.0]),
        ("logit_scale", &[0.0, 1.0]),
        ("expert_shared_count", &[0.0]),
        ("expert_shared_feed_forward_length", &[0.0]),
        ("expert_weights_scale", &[0.0, 1.0]),
        ("expert_weights_norm", &[1.0]),
        // 1 is softmax over all experts.
        ("expert_gating_func", &[0.0, 1.0]),
        ("expert_group_count", &[0.0, 1.0]),
        ("leading_dense_block_count", &[0.0]),
        ("interleave_moe_layer_step", &[0.0, 1.0]),
        ("pooling_type", &[0.0]),
        ("use_parallel_residual", &[0.0]),
        ("rope.scaling.attn_factor", &[0.0, 1.0]),
    ];
    for (name, neutral) in ABSENT_OR {
        keys.neutral(name, neutral)?;
    }
    keys.harmless(&["tensor_data_layout", "attention.layer_norm_epsilon"]);
    keys.finish()
}

impl Architecture for Llama {
    fn forward<'a>(&self, config: &'a Config, store: &'a Store, pass: Pass<'a>) -> Result<(), ForwardError> {
        let logits = pass.logits;
        let mut run = Run::new(config, store, pass);
        run.announce(self.layers[0].weights());
        run.embed(&self.token_embd)?;
        run.rotate_positions(self.rope_freqs.as_deref());
        for (il, layer) in self.layers.iter().enumerate() {
            if let Some(next) = self.layers.get(il + 1) {
                run.announce(next.weights());
                // Of the last layer, a pass without logits reads the keys and values alone.
                if il + 2 < self.layers.len() || logits != Logits::None {
                    run.announce(next.expected_experts(run.tokens));
                }
            }
            run.norm("attn_norm", il, &layer.attn_norm);
            run.queries_keys_values(il, &layer.q, &layer.k, &layer.v)?;
            let last = il + 1 == self.layers.len();
            if last && logits == Logits::None {
                return Ok(()); // the keys and values are all that was wanted
            }
            run.attend(il);
            if last && logits == Logits::Last {
                run.keep_last_token();
            }
            run.attention_output(il, &layer.attn_output)?;
            run.residual("ffn_inp", il)?;

            run.norm("ffn_norm", il, &layer.ffn_norm);
            match &layer.ffn {
                Ffn::Dense { gate, up, down } => run.dense_ffn(il, gate, up, down)?,
                Ffn::Moe(moe) => moe.forward(&mut run, il, self.layers.get(il + 1).and_then(Layer::moe))?,
            }
            run.residual("l_out", il)?;
        }
        run.logits(&self.output_norm, &self.output)
    }
}

impl Layer {
    /// Experts that are as good as sure to be used by so many tokens.
    fn expected_experts(&self, tokens: usize) -> impl Iterator<Item = WeightId> {
        self.moe().into_iter().flat_map(move |moe| moe.expected(tokens))
    }

    fn moe(&self) -> Option<&Moe> {
        if let Ffn::Moe(moe) = &self.ffn { Some(moe) } else { None }
    }

    /// What every token touches: all but the experts.
    fn weights(&self) -> impl Iterator<Item = WeightId> {
        let ffn = match &self.ffn {
            Ffn::Dense { gate, up, down } => vec![gate.id(), up.id(), down.id()],
            Ffn::Moe(moe) => vec![moe.router_id()],
        };
        [&self.q, &self.k, &self.v, &self.attn_output].map(Linear::id).into_iter().chain(ffn)
    }
}
