//! Models so small that a test may make one for each case: sound ones, that generate, and parts of them to spoil.

use super::gguf::{Data, GgufBuilder, Kv, Rng, ty};

/// Tokens of [`tiny_model`].
pub const TOKENS: u64 = 16;
const EMBD: u64 = 32;
const FF: u64 = 64;

/// Values between -0.25 and 0.25.
fn random(seed: u64, n: u64) -> Vec<f32> {
    let mut rng = Rng(seed);
    (0..n).map(|_| (rng.next() >> 40) as f32 / (1 << 25) as f32 - 0.25).collect()
}

/// A model of one layer, 4 heads of 8 elements, of F32 throughout; a SentencePiece vocabulary that can write `a` and
/// `b`; a chat template.
pub fn tiny_model() -> GgufBuilder {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a"].map(str::to_owned).into();
    tokens.extend((tokens.len()..TOKENS as usize).map(|i| format!("word{i}")));
    let types: Vec<i32> = [2, 3, 3].into_iter().chain([1; TOKENS as usize - 3]).collect();
    GgufBuilder::new()
        .kv("general.architecture", "llama")
        .kv("tokenizer.ggml.model", "llama")
        .kv("tokenizer.ggml.tokens", tokens.iter().map(String::as_str).collect::<Vec<_>>())
        .kv("tokenizer.ggml.scores", (0..TOKENS).map(|i| -(i as f32)).collect::<Vec<f32>>())
        .kv("tokenizer.ggml.token_type", types)
        .kv("tokenizer.ggml.bos_token_id", 1u32)
        .kv("tokenizer.ggml.eos_token_id", 2u32)
        .kv("tokenizer.ggml.add_bos_token", true)
        .kv("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}")
        .layer()
}

/// The same with a byte-level vocabulary: `a`, `b`, the merge of both.
pub fn tiny_bpe() -> GgufBuilder {
    let tokens: Vec<String> = ["a", "b", "ab", "<end>"].map(str::to_owned).into();
    let more = (tokens.len()..TOKENS as usize).map(|i| format!("word{i}"));
    let tokens: Vec<String> = tokens.into_iter().chain(more).collect();
    let types: Vec<i32> = [1, 1, 1, 3].into_iter().chain([1; TOKENS as usize - 4]).collect();
    GgufBuilder::new()
        .kv("general.architecture", "llama")
        .kv("tokenizer.ggml.model", "gpt2")
        .kv("tokenizer.ggml.pre", "gpt-2")
        .kv("tokenizer.ggml.tokens", tokens.iter().map(String::as_str).collect::<Vec<_>>())
        .kv("tokenizer.ggml.token_type", types)
        .kv("tokenizer.ggml.merges", vec!["a b"])
        .kv("tokenizer.ggml.eos_token_id", 3u32)
        .layer()
}

/// The tiny model under the name of another architecture.
pub fn of(arch: &str) -> GgufBuilder {
    let mut model = tiny_model().set("general.architecture", arch);
    for pair in &mut model.pairs {
        if let Some(name) = pair.key.strip_prefix(b"llama.") {
            pair.key = [arch.as_bytes(), b".", name].concat();
        }
    }
    model
}

/// A key of the model's architecture, in full.
pub fn full(model: &GgufBuilder, key: &str) -> String {
    let arch = model.pairs.iter().find_map(|pair| pair.key.strip_suffix(b".block_count"));
    format!("{}.{key}", std::str::from_utf8(arch.expect("a count of blocks")).expect("text"))
}

/// As many layers as this, all like the first.
pub fn layers(mut model: GgufBuilder, n: u32) -> GgufBuilder {
    let first: Vec<_> = model.tensors.iter().filter(|t| t.name.starts_with(b"blk.0.")).cloned().collect();
    for layer in 1..n {
        for mut tensor in first.iter().cloned() {
            let part = tensor.name.split_off(b"blk.0.".len());
            tensor.name = [format!("blk.{layer}.").as_bytes(), &part].concat();
            model.tensors.push(tensor);
        }
    }
    let key = full(&model, "block_count");
    model.set(&key, n)
}

impl GgufBuilder {
    /// The shape and tensors of the tiny models.
    fn layer(self) -> GgufBuilder {
        let matrix = |seed, cols, rows| Data::from(random(seed, cols * rows));
        let ones = || Data::from(vec![1.0f32; EMBD as usize]);
        self.kv("llama.block_count", 1u32)
            .kv("llama.context_length", 64u32)
            .kv("llama.embedding_length", EMBD as u32)
            .kv("llama.feed_forward_length", FF as u32)
            .kv("llama.attention.head_count", 4u32)
            .kv("llama.attention.head_count_kv", 2u32)
            .kv("llama.attention.layer_norm_rms_epsilon", 1e-5f32)
            .kv("llama.rope.freq_base", 10_000.0f32)
            .tensor("token_embd.weight", ty::F32, &[EMBD, TOKENS], matrix(1, EMBD, TOKENS))
            .tensor("blk.0.attn_norm.weight", ty::F32, &[EMBD], ones())
            .tensor("blk.0.attn_q.weight", ty::F32, &[EMBD, EMBD], matrix(2, EMBD, EMBD))
            .tensor("blk.0.attn_k.weight", ty::F32, &[EMBD, EMBD / 2], matrix(3, EMBD, EMBD / 2))
            .tensor("blk.0.attn_v.weight", ty::F32, &[EMBD, EMBD / 2], matrix(4, EMBD, EMBD / 2))
            .tensor("blk.0.attn_output.weight", ty::F32, &[EMBD, EMBD], matrix(5, EMBD, EMBD))
            .tensor("blk.0.ffn_norm.weight", ty::F32, &[EMBD], ones())
            .tensor("blk.0.ffn_gate.weight", ty::F32, &[EMBD, FF], matrix(6, EMBD, FF))
            .tensor("blk.0.ffn_up.weight", ty::F32, &[EMBD, FF], matrix(7, EMBD, FF))
            .tensor("blk.0.ffn_down.weight", ty::F32, &[FF, EMBD], matrix(8, FF, EMBD))
            .tensor("output_norm.weight", ty::F32, &[EMBD], ones())
            .tensor("output.weight", ty::F32, &[EMBD, TOKENS], matrix(9, EMBD, TOKENS))
    }

    /// Gives a key that is there another value, or adds it.
    pub fn set(mut self, key: &str, value: impl Into<Kv>) -> Self {
        match self.pairs.iter_mut().find(|pair| pair.key == key.as_bytes()) {
            Some(pair) => {
                pair.value = value.into();
                self
            }
            None => self.kv(key, value),
        }
    }

    /// Takes a key away.
    pub fn without(mut self, key: &str) -> Self {
        let keys = self.pairs.len();
        self.pairs.retain(|pair| pair.key != key.as_bytes());
        assert_eq!(self.pairs.len() + 1, keys, "{key} was there");
        self
    }

    /// Takes a tensor away.
    pub fn without_tensor(mut self, name: &str) -> Self {
        let tensors = self.tensors.len();
        self.tensors.retain(|tensor| tensor.name != name.as_bytes());
        assert_eq!(self.tensors.len() + 1, tensors, "{name} was there");
        self
    }

    /// Gives a tensor another type, shape and data.
    pub fn replace(mut self, name: &str, ty: super::gguf::Ty, dims: &[u64], data: impl Into<Data>) -> Self {
        let tensor =
            self.tensors.iter_mut().find(|t| t.name == name.as_bytes()).expect("the tensor is there");
        (tensor.ty, tensor.dims, tensor.data) = (ty, dims.to_vec(), data.into());
        self
    }

    /// Changes the values of an F32 tensor; a tensor of any other kind is the test's mistake.
    pub fn values(mut self, name: &str, change: impl FnOnce(&mut [f32])) -> Self {
        let tensor =
            self.tensors.iter_mut().find(|t| t.name == name.as_bytes()).expect("the tensor is there");
        let Data::Bytes(bytes) = &mut tensor.data else { panic!("{name} has values") };
        assert_eq!(tensor.ty, ty::F32);
        let mut values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        change(&mut values);
        *bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self
    }
}
