//! The facts of a model that people ask for first. What the metadata does not say, or says in a
//! type that makes no sense, is left out: inspect works on any file.

use serde::Serialize;

use crate::gguf::{Gguf, Metadata, TensorInfo, Value};

/// A number, or one a layer where layers differ.
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum PerLayer {
    Same(u64),
    Layers(Vec<u64>),
}

/// The facts, in the order in which they are shown. Sizes in bytes.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub architecture: Option<String>,
    pub name: Option<String>,
    pub parameters: u64,
    /// Of all files.
    pub file_bytes: u64,
    pub tensor_bytes: u64,
    pub bits_per_weight: Option<f64>,
    pub context_length: Option<u64>,
    pub layers: Option<u64>,
    pub embedding_length: Option<u64>,
    pub heads: Option<PerLayer>,
    pub kv_heads: Option<PerLayer>,
    pub experts: Option<u64>,
    pub experts_used: Option<u64>,
    pub vocabulary: Option<u64>,
    pub tokenizer: Option<String>,
    pub pre_tokenizer: Option<String>,
    pub chat_template: bool,
    /// Weights read to compute one token: see [`bytes_per_token`].
    pub bytes_per_token: u64,
}

impl Summary {
    /// Gathers the facts.
    pub fn of(gguf: &Gguf) -> Summary {
        let metadata = gguf.metadata();
        let architecture = text(metadata, "general.architecture");
        let key = |name: &str| format!("{}.{name}", architecture.as_deref().unwrap_or_default());
        let number = |name: &str| metadata.u64(&key(name)).ok().flatten();
        let parameters = gguf.tensors.iter().map(TensorInfo::elements).fold(0, u64::saturating_add);
        // A file's data lies in it without overlap, but sparse files may be larger than any disk.
        let tensor_bytes = gguf.tensors.iter().map(|t| t.bytes).fold(0, u64::saturating_add);
        let embedding = gguf.tensor("token_embd.weight");
        let tokens = metadata.get("tokenizer.ggml.tokens").and_then(Value::as_array);
        let experts = number("expert_count").filter(|&n| n > 0);
        let experts_used = number("expert_used_count").filter(|&n| n > 0);
        Summary {
            name: text(metadata, "general.name"),
            parameters,
            file_bytes: gguf.parts.iter().map(|p| p.file_bytes).fold(0, u64::saturating_add),
            tensor_bytes,
            bits_per_weight: (parameters > 0).then(|| tensor_bytes as f64 * 8.0 / parameters as f64),
            context_length: number("context_length"),
            layers: number("block_count"),
            embedding_length: number("embedding_length"),
            heads: per_layer(metadata, &key("attention.head_count")),
            kv_heads: per_layer(metadata, &key("attention.head_count_kv")),
            experts,
            experts_used,
            vocabulary: tokens
                .map(|t| t.len() as u64)
                .or_else(|| number("vocab_size"))
                .or_else(|| embedding?.dims.get(1).copied()),
            tokenizer: text(metadata, "tokenizer.ggml.model"),
            pre_tokenizer: text(metadata, "tokenizer.ggml.pre"),
            chat_template: metadata.contains("tokenizer.chat_template"),
            bytes_per_token: bytes_per_token(gguf, experts, experts_used),
            architecture,
        }
    }
}

fn text(metadata: &Metadata, key: &str) -> Option<String> {
    metadata.str(key).ok().flatten().map(str::to_owned)
}

fn per_layer(metadata: &Metadata, key: &str) -> Option<PerLayer> {
    let value = metadata.get(key)?;
    let Some(values) = value.as_packed() else { return value.as_u64().map(PerLayer::Same) };
    let values = values.iter().map(|v| v.as_u64()).collect::<Option<Vec<u64>>>()?;
    match values.first() {
        Some(&first) if values.iter().all(|&v| v == first) => Some(PerLayer::Same(first)),
        _ => Some(PerLayer::Layers(values)),
    }
}

/// Bytes of weights that one token touches: all tensors; of tables looked up by row, one row; of experts, the
/// share that is used. An embedding that serves as output too (no `output.weight`) is read whole.
fn bytes_per_token(gguf: &Gguf, experts: Option<u64>, used: Option<u64>) -> u64 {
    let tied = gguf.tensor("output.weight").is_none();
    gguf.tensors
        .iter()
        .map(|tensor| match tensor.name.as_str() {
            "token_embd.weight" if tied => tensor.bytes,
            "token_embd.weight" | "position_embd.weight" | "per_layer_token_embd.weight" => {
                tensor.bytes / tensor.dims.get(1).copied().unwrap_or(1).max(1)
            }
            name if is_expert(name) => match (experts, used) {
                (Some(all), Some(used)) if used < all => {
                    let share = u128::from(tensor.bytes) * u128::from(used) / u128::from(all);
                    u64::try_from(share).unwrap_or(u64::MAX) // used < all: it is below `bytes`
                }
                _ => tensor.bytes,
            },
            _ => tensor.bytes,
        })
        .fold(0, u64::saturating_add)
}

/// Whether a tensor holds routed experts: all of a layer's (`ffn_gate_exps`) or one (`ffn_gate.3`).
fn is_expert(name: &str) -> bool {
    if name.contains("_exps") {
        return true;
    }
    let mut words = name.split('.');
    let number =
        |word: Option<&str>| word.is_some_and(|w| w.bytes().all(|b| b.is_ascii_digit()) && !w.is_empty());
    words.next() == Some("blk")
        && number(words.next())
        && matches!(words.next(), Some("ffn_gate" | "ffn_up" | "ffn_down"))
        && number(words.next())
        && words.next() == Some("weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_told_by_name() {
        for name in
            ["blk.0.ffn_gate_exps.weight", "blk.0.ffn_gate_up_exps.weight", "blk.11.ffn_down.7.weight"]
        {
            assert!(is_expert(name), "{name}");
        }
        for name in [
            "blk.0.ffn_gate.weight",
            "blk.0.ffn_gate_shexp.weight",
            "blk.0.ffn_gate_inp.weight",
            "blk.0.ffn_norm.0.weight",
            "output.weight",
        ] {
            assert!(!is_expert(name), "{name}");
        }
    }
}
