//! The architectures, one file each or a close family: keys and tensors, made into a decoder of parts.
//!
//! A new architecture is a file here and a row in [`FAMILIES`].

mod afmoe;
mod cohere;
mod dots1;
mod ernie4_5;
mod exaone;
mod gemma;
mod glm;
mod gpt_oss;
mod granite;
mod hunyuan;
mod llama;
mod llama4;
mod mimo2;
mod minimax;
mod nemotron;
mod olmo;
mod phi3;
mod qwen2;
mod qwen3;
mod seed_oss;
mod smollm3;
mod stack;
mod starcoder2;
mod step35;

use crate::gguf::Gguf;
use crate::store::Store;

use super::decoder::Decoder;
use super::load::Loader;
use super::{Architecture, ModelError};

/// Reads the keys and finds the weights of a file of this architecture.
type Load = fn(&mut Loader<'_>) -> Result<Decoder, ModelError>;

/// By the name in `general.architecture`.
const FAMILIES: &[(&str, Load)] = &[
    ("llama", llama::load),
    ("mistral3", llama::load_mistral3),
    ("internlm2", llama::load),
    ("llama4", llama4::load),
    ("qwen2", qwen2::load),
    ("qwen2moe", qwen2::load_experts),
    ("qwen3", qwen3::load),
    ("qwen3moe", qwen3::load_experts),
    ("qwen3vl", qwen3::load_vl),
    ("qwen3vlmoe", qwen3::load_vl_experts),
    ("gpt-oss", gpt_oss::load),
    ("gemma", gemma::load_1),
    ("gemma2", gemma::load_2),
    ("gemma3", gemma::load_3),
    ("phi3", phi3::load),
    ("phimoe", phi3::load_experts),
    ("glm4", glm::load_4),
    ("glm4moe", glm::load_4_moe),
    ("minimax-m2", minimax::load_m2),
    ("starcoder2", starcoder2::load),
    ("arcee", nemotron::load_arcee),
    ("nemotron", nemotron::load),
    ("dots1", dots1::load),
    ("bailingmoe2", dots1::load_bailing),
    ("ernie4_5", ernie4_5::load),
    ("ernie4_5-moe", ernie4_5::load_experts),
    ("hunyuan-dense", hunyuan::load_dense),
    ("hunyuan-moe", hunyuan::load_experts),
    ("hy_v3", hunyuan::load_v3),
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
    ("exaone4", exaone::load_4),
    ("exaone-moe", exaone::load_experts),
    ("step35", step35::load),
    ("mimo2", mimo2::load),
    ("afmoe", afmoe::load),
];

/// The names in `general.architecture` of the architectures that can be run.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|&(name, _)| name)
}

/// The architecture of this name from a file; what it does not use of the file is refused by name.
pub(super) fn load(gguf: &Gguf, name: &str) -> Result<(Box<dyn Architecture>, Store), ModelError> {
    let Some((_, load)) = FAMILIES.iter().find(|(family, _)| *family == name) else {
        let supported = architectures().collect::<Vec<_>>().join(", ");
        return Err(ModelError::UnknownArchitecture { name: name.to_owned(), supported });
    };
    let mut loader = Loader::new(gguf, name, Store::open(gguf)?)?;
    let decoder = load(&mut loader)?;
    let Loader { keys, weights } = loader;
    keys.finish()?;
    Ok((Box::new(decoder), weights.finish(name)?))
}
