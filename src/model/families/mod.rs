//! The architectures, one file each or a close family: keys and tensors, made into a decoder of parts.
//!
//! A new architecture is a file here and a row in [`FAMILIES`].

mod afmoe;
mod bailing3;
mod cohere;
mod deepseek;
mod deepseek4;
mod deepseek_moe;
mod dots1;
mod ernie4_5;
mod exaone;
mod falcon_h1;
mod gemma;
mod gemma3n;
mod gemma4;
mod glm;
mod glm5_next;
mod gpt_oss;
mod granite;
mod hunyuan;
mod hy_v4;
mod kimi_k3;
mod kimi_linear;
mod lfm2;
mod llama;
mod llama4;
mod mamba;
mod mamba2;
mod mellum;
mod mimo2;
mod minicpm3;
mod minimax;
mod nemotron;
mod nemotron_h;
mod olmo;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen35;
mod qwen3next;
mod qwen4exp;
mod seed_oss;
mod smollm3;
mod stack;
mod starcoder2;
mod step35;

use crate::gguf::Gguf;
use crate::store::Store;

use super::cut::Link;
use super::decoder::Decoder;
use super::load::{Loader, Wanted};
use super::{Architecture, ModelError};

/// Reads the keys and finds the weights of a file of this architecture.
type Load = fn(&mut Loader<'_>) -> Result<Decoder, ModelError>;

/// By the name in `general.architecture`.
const FAMILIES: &[(&str, Load)] = &[
    ("llama", llama::load),
    ("mistral3", llama::load_mistral3),
    ("internlm2", llama::load),
    ("llama4", llama4::load),
    ("qwen", qwen2::load_1),
    ("qwen2", qwen2::load),
    ("qwen2moe", qwen2::load_experts),
    ("qwen3", qwen3::load),
    ("qwen3moe", qwen3::load_experts),
    ("qwen3vl", qwen3::load_vl),
    ("qwen3vlmoe", qwen3::load_vl_experts),
    ("qwen3next", qwen3next::load),
    ("kimi-k3", kimi_k3::load),
    ("kimi-linear", kimi_linear::load),
    ("qwen35", qwen35::load),
    ("qwen35moe", qwen35::load_experts),
    ("qwen4exp", qwen4exp::load),
    ("gpt-oss", gpt_oss::load),
    ("mellum", mellum::load),
    ("gemma", gemma::load_1),
    ("gemma2", gemma::load_2),
    ("gemma3", gemma::load_3),
    ("gemma3n", gemma3n::load),
    ("gemma4", gemma4::load),
    ("phi3", phi3::load),
    ("phimoe", phi3::load_experts),
    ("chatglm", glm::load_chat),
    ("glm4", glm::load_4),
    ("glm4moe", glm::load_4_moe),
    ("glm5-next", glm5_next::load),
    ("minimax-01", minimax::load_01),
    ("minimax-m2", minimax::load_m2),
    ("minimax-m3", minimax::load_m3),
    ("starcoder2", starcoder2::load),
    ("arcee", nemotron::load_arcee),
    ("nemotron", nemotron::load),
    ("jais2", nemotron::load_jais2),
    ("deepseek", deepseek_moe::load),
    ("bailingmoe", deepseek_moe::load_bailing),
    ("dots1", dots1::load),
    ("bailingmoe2", dots1::load_bailing),
    ("bailingmoe3", bailing3::load),
    ("ernie4_5", ernie4_5::load),
    ("ernie4_5-moe", ernie4_5::load_experts),
    ("hunyuan-dense", hunyuan::load_dense),
    ("hunyuan-moe", hunyuan::load_experts),
    ("hy_v3", hunyuan::load_v3),
    ("hy_v4", hy_v4::load),
    ("seed_oss", seed_oss::load),
    ("smollm3", smollm3::load),
    ("granite", granite::load),
    ("granitemoe", granite::load_experts),
    ("minicpm", granite::load_minicpm),
    ("olmo2", olmo::load_2),
    ("olmoe", olmo::load_experts),
    ("command-r", cohere::load_r),
    ("cohere2", cohere::load_2),
    ("cohere2moe", cohere::load_2_experts),
    ("exaone", exaone::load),
    ("exaone4", exaone::load_4),
    ("exaone-moe", exaone::load_experts),
    ("step35", step35::load),
    ("mimo2", mimo2::load),
    ("afmoe", afmoe::load),
    ("lfm2", lfm2::load),
    ("lfm2moe", lfm2::load_experts),
    ("granitehybrid", granite::load_hybrid),
    ("nemotron_h", nemotron_h::load),
    ("nemotron_h_moe", nemotron_h::load),
    ("falcon-h1", falcon_h1::load),
    ("mamba", mamba::load),
    ("jamba", mamba::load_jamba),
    ("mamba2", mamba2::load),
    ("deepseek2", deepseek::load_2),
    ("mistral4", deepseek::load_mistral4),
    ("deepseek32", deepseek::load_32),
    ("glm-dsa", deepseek::load_glm_dsa),
    ("deepseek4", deepseek4::load),
    ("minicpm3", minicpm3::load),
    ("plm", minicpm3::load_plm),
];

/// The names in `general.architecture` of the architectures that can be run.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|&(name, _)| name)
}

/// A model as it is loaded.
pub(super) struct Loaded {
    pub architecture: Box<dyn Architecture>,
    pub store: Store,
    /// What layers take of earlier ones.
    pub links: Vec<Link>,
}

/// The architecture of this name from a file, as far as it is wanted; what it does not use of the file is
/// refused by name.
pub(super) fn load(gguf: &Gguf, name: &str, wanted: Wanted) -> Result<Loaded, ModelError> {
    let Some((_, load)) = FAMILIES.iter().find(|(family, _)| *family == name) else {
        let supported = architectures().collect::<Vec<_>>().join(", ");
        return Err(ModelError::UnknownArchitecture { name: name.to_owned(), supported });
    };
    let nextn = wanted.nextn;
    let mut loader = Loader::new(gguf, name, Store::open(gguf)?, wanted)?;
    let decoder = load(&mut loader)?;
    if nextn && decoder.nextn.is_none() {
        return Err(ModelError::UnsupportedNextn { architecture: name.to_owned() });
    }
    let Loader { keys, weights, links, .. } = loader;
    keys.finish()?;
    Ok(Loaded { architecture: Box::new(decoder), store: weights.finish(name)?, links })
}
