//! Writes GGUF files for tests: sound ones, and ones in which exactly one field is spoiled.
//!
//! It shares no code and no constant with the crate's reader; sources are the GGUF specification and
//! `ggml-common.h`.

use std::fs;
use std::path::{Path, PathBuf};

/// A tensor type as the file and its sizes need it: id, elements a block, bytes a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ty(pub u32, pub u64, pub u64);

/// The types by name.
#[allow(non_upper_case_globals)]
pub mod ty {
    use super::Ty;
    macro_rules! types {
        ($($name:ident = $id:literal, $len:literal, $bytes:literal;)*) => {
            $(pub const $name: Ty = Ty($id, $len, $bytes);)*
            pub const ALL: &[(&str, Ty)] = &[$((stringify!($name), $name),)*];
        };
    }
    types! {
        F32 = 0, 1, 4;
        F16 = 1, 1, 2;
        Q4_0 = 2, 32, 18;
        Q4_1 = 3, 32, 20;
        Q5_0 = 6, 32, 22;
        Q5_1 = 7, 32, 24;
        Q8_0 = 8, 32, 34;
        Q8_1 = 9, 32, 36;
        Q2_K = 10, 256, 84;
        Q3_K = 11, 256, 110;
        Q4_K = 12, 256, 144;
        Q5_K = 13, 256, 176;
        Q6_K = 14, 256, 210;
        Q8_K = 15, 256, 292;
        IQ2_XXS = 16, 256, 66;
        IQ2_XS = 17, 256, 74;
        IQ3_XXS = 18, 256, 98;
        IQ1_S = 19, 256, 50;
        IQ4_NL = 20, 32, 18;
        IQ3_S = 21, 256, 110;
        IQ2_S = 22, 256, 82;
        IQ4_XS = 23, 256, 136;
        I8 = 24, 1, 1;
        I16 = 25, 1, 2;
        I32 = 26, 1, 4;
        I64 = 27, 1, 8;
        F64 = 28, 1, 8;
        IQ1_M = 29, 256, 56;
        BF16 = 30, 1, 2;
        TQ1_0 = 34, 256, 54;
        TQ2_0 = 35, 256, 66;
        MXFP4 = 39, 32, 17;
        NVFP4 = 40, 64, 36;
        Q1_0 = 41, 128, 18;
        Q2_0 = 42, 64, 18;
    }
}

/// A metadata value: its type's id and its bytes.
#[derive(Clone, Debug)]
pub struct Kv {
    pub type_id: u32,
    pub bytes: Vec<u8>,
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

macro_rules! kv_from_number {
    ($($ty:ty = $id:literal),*) => {$(
        impl From<$ty> for Kv {
            fn from(v: $ty) -> Kv {
                Kv { type_id: $id, bytes: v.to_le_bytes().to_vec() }
            }
        }
        impl From<Vec<$ty>> for Kv {
            fn from(v: Vec<$ty>) -> Kv {
                Kv::array($id, v.len() as u64, v.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
        }
    )*};
}
kv_from_number!(u8 = 0, i8 = 1, u16 = 2, i16 = 3, u32 = 4, i32 = 5, f32 = 6, u64 = 10, i64 = 11, f64 = 12);

impl From<bool> for Kv {
    fn from(v: bool) -> Kv {
        Kv { type_id: 7, bytes: vec![v.into()] }
    }
}

impl From<Vec<bool>> for Kv {
    fn from(v: Vec<bool>) -> Kv {
        Kv::array(7, v.len() as u64, v.into_iter().map(u8::from).collect())
    }
}

impl From<&[u8]> for Kv {
    fn from(v: &[u8]) -> Kv {
        Kv { type_id: 8, bytes: string(v) }
    }
}

impl From<&str> for Kv {
    fn from(v: &str) -> Kv {
        v.as_bytes().into()
    }
}

impl From<Vec<&str>> for Kv {
    fn from(v: Vec<&str>) -> Kv {
        Kv::array(8, v.len() as u64, v.iter().flat_map(|t| string(t.as_bytes())).collect())
    }
}

impl Kv {
    /// An array whose length may be a lie.
    pub fn array(element: u32, len: u64, elements: Vec<u8>) -> Kv {
        let mut bytes = element.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(elements);
        Kv { type_id: 9, bytes }
    }
}

/// What a tensor's data is.
#[derive(Clone, Debug)]
pub enum Data {
    Zero,
    /// Any bytes, the same for the same seed.
    Random(u64),
    Bytes(Vec<u8>),
}

impl From<Vec<f32>> for Data {
    fn from(v: Vec<f32>) -> Data {
        Data::Bytes(v.iter().flat_map(|v| v.to_le_bytes()).collect())
    }
}

/// A key and its value; `key_len` overrides the length that is written.
#[derive(Clone, Debug)]
pub struct Pair {
    pub key: Vec<u8>,
    pub key_len: Option<u64>,
    pub value: Kv,
}

/// A tensor; each `Option` overrides what is written in its place.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: Vec<u8>,
    pub ty: Ty,
    pub dims: Vec<u64>,
    pub data: Data,
    pub name_len: Option<u64>,
    pub n_dims: Option<u32>,
    pub type_id: Option<u32>,
    pub offset: Option<u64>,
}

impl Tensor {
    /// Bytes of the data; 0 where the shape makes no sense.
    fn data_bytes(&self) -> u64 {
        let elements = self.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).unwrap_or(0);
        let bytes = (elements / self.ty.1).checked_mul(self.ty.2).unwrap_or(0);
        if bytes < 1 << 32 { bytes } else { 0 }
    }

    fn data(&self) -> Vec<u8> {
        match &self.data {
            Data::Zero => vec![0; self.data_bytes() as usize],
            Data::Random(seed) => {
                let mut rng = Rng(*seed);
                (0..self.data_bytes()).map(|_| rng.next() as u8).collect()
            }
            Data::Bytes(bytes) => bytes.clone(),
        }
    }
}

/// A file in the making. Fields are public so that a test may spoil any of them.
#[derive(Clone, Debug)]
pub struct GgufBuilder {
    pub magic: [u8; 4],
    pub version: u32,
    pub pairs: Vec<Pair>,
    pub tensors: Vec<Tensor>,
    /// Overrides of the counts in the header.
    pub n_tensors: Option<u64>,
    pub n_kv: Option<u64>,
    /// What data is padded to, whatever `general.alignment` says.
    pub padding: u64,
    /// Bytes after all else.
    pub trailer: Vec<u8>,
}

impl Default for GgufBuilder {
    fn default() -> Self {
        GgufBuilder::new()
    }
}

impl GgufBuilder {
    /// An empty file of version 3.
    pub fn new() -> GgufBuilder {
        GgufBuilder {
            magic: *b"GGUF",
            version: 3,
            pairs: Vec::new(),
            tensors: Vec::new(),
            n_tensors: None,
            n_kv: None,
            padding: 32,
            trailer: Vec::new(),
        }
    }

    /// Another version.
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Another alignment, with its key.
    pub fn alignment(mut self, alignment: u32) -> Self {
        self.padding = alignment.into();
        self.kv("general.alignment", alignment)
    }

    /// Adds a pair.
    pub fn kv(mut self, key: impl AsRef<[u8]>, value: impl Into<Kv>) -> Self {
        self.pairs.push(Pair { key: key.as_ref().to_vec(), key_len: None, value: value.into() });
        self
    }

    /// Adds a tensor; `dims` with the fastest-moving size first.
    pub fn tensor(mut self, name: impl AsRef<[u8]>, ty: Ty, dims: &[u64], data: impl Into<Data>) -> Self {
        self.tensors.push(Tensor {
            name: name.as_ref().to_vec(),
            ty,
            dims: dims.to_vec(),
            data: data.into(),
            name_len: None,
            n_dims: None,
            type_id: None,
            offset: None,
        });
        self
    }

    /// Changes anything.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The file's bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_kv.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        for pair in &self.pairs {
            out.extend(pair.key_len.unwrap_or(pair.key.len() as u64).to_le_bytes());
            out.extend(&pair.key);
            out.extend(pair.value.type_id.to_le_bytes());
            out.extend(&pair.value.bytes);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            out.extend(tensor.name_len.unwrap_or(tensor.name.len() as u64).to_le_bytes());
            out.extend(&tensor.name);
            out.extend(tensor.n_dims.unwrap_or(tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|d| d.to_le_bytes()));
            out.extend(tensor.type_id.unwrap_or(tensor.ty.0).to_le_bytes());
            out.extend(tensor.offset.unwrap_or(offset).to_le_bytes());
            offset += tensor.data().len() as u64;
            offset = offset.next_multiple_of(self.padding);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.padding as usize), 0);
            out.extend(tensor.data());
        }
        if !self.tensors.is_empty() {
            out.resize(out.len().next_multiple_of(self.padding as usize), 0);
        }
        out.extend(&self.trailer);
        out
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> PathBuf {
        fs::write(path, self.build()).expect("a test file can be written");
        path.to_owned()
    }

    /// The files of a split as llama-gguf-split makes them: all metadata in the first, tensors in order.
    pub fn split(&self, count: usize) -> Vec<GgufBuilder> {
        let each = self.tensors.len().div_ceil(count).max(1);
        (0..count)
            .map(|no| {
                let mut part = GgufBuilder { tensors: Vec::new(), ..self.clone() };
                if no > 0 {
                    part.pairs.clear();
                }
                part.tensors = self.tensors.iter().skip(no * each).take(each).cloned().collect();
                part.kv("split.no", no as u16)
                    .kv("split.count", count as u16)
                    .kv("split.tensors.count", self.tensors.len() as i32)
            })
            .collect()
    }
}

/// Writes the files of a split under their names.
pub fn write_split(parts: &[GgufBuilder], dir: &Path, name: &str) -> Vec<PathBuf> {
    let path = |no| dir.join(split_name(name, no, parts.len()));
    parts.iter().enumerate().map(|(no, part)| part.write(&path(no))).collect()
}

/// `NAME-00001-of-0000N.gguf` for part 0.
pub fn split_name(name: &str, no: usize, count: usize) -> String {
    format!("{name}-{:05}-of-{count:05}.gguf", no + 1)
}

/// SplitMix64: numbers that are the same everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A small model with everything that inspect shows: metadata of every kind, several tensor types, two layers.
pub fn small_model() -> GgufBuilder {
    GgufBuilder::new()
        .kv("general.architecture", "llama")
        .kv("general.name", "small")
        .kv("llama.block_count", 2u32)
        .kv("llama.context_length", 2048u32)
        .kv("llama.embedding_length", 256u32)
        .kv("llama.attention.head_count", 8u32)
        .kv("llama.attention.head_count_kv", 2u32)
        .kv("llama.attention.layer_norm_rms_epsilon", 1e-5f32)
        .kv("tokenizer.ggml.model", "llama")
        .kv("tokenizer.ggml.tokens", vec!["<unk>", "<s>", "</s>", "▁a"])
        .kv("tokenizer.ggml.scores", vec![0.0f32, 0.0, 0.0, -1.5])
        .kv("tokenizer.ggml.token_type", vec![2i32, 3, 3, 1])
        .kv("tokenizer.ggml.add_bos_token", true)
        .kv("tokenizer.chat_template", "{% for m in messages %}\n{{ m.content }}\n{% endfor %}")
        .tensor("token_embd.weight", ty::Q8_0, &[256, 4], Data::Random(1))
        .tensor("blk.0.attn_norm.weight", ty::F32, &[256], Data::Random(2))
        .tensor("blk.0.attn_q.weight", ty::Q4_K, &[256, 256], Data::Random(3))
        .tensor("blk.1.attn_norm.weight", ty::F32, &[256], Data::Random(4))
        .tensor("blk.1.attn_q.weight", ty::Q6_K, &[256, 256], Data::Random(5))
        .tensor("output.weight", ty::F16, &[256, 4], Data::Random(6))
}
