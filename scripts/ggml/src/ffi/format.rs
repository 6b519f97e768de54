//! ggml's block formats: decoding, quantising, dots.

use std::ffi::c_void;

use llama_cpp_sys_2 as sys;

use super::{init, string};
use crate::error::{Error, Result};

/// ggml's number of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatId(pub(super) sys::ggml_type);

/// The formats by name.
pub mod ids {
    use super::{FormatId, sys};

    macro_rules! ids {
        ($($name:ident = $sys:ident),* $(,)?) => { $(pub const $name: FormatId = FormatId(sys::$sys);)* };
    }
    ids! {
        F32 = GGML_TYPE_F32, F16 = GGML_TYPE_F16, BF16 = GGML_TYPE_BF16,
        Q4_0 = GGML_TYPE_Q4_0, Q4_1 = GGML_TYPE_Q4_1, Q5_0 = GGML_TYPE_Q5_0, Q5_1 = GGML_TYPE_Q5_1,
        Q8_0 = GGML_TYPE_Q8_0,
        Q2_K = GGML_TYPE_Q2_K, Q3_K = GGML_TYPE_Q3_K, Q4_K = GGML_TYPE_Q4_K, Q5_K = GGML_TYPE_Q5_K,
        Q6_K = GGML_TYPE_Q6_K, Q8_K = GGML_TYPE_Q8_K,
        IQ2_XXS = GGML_TYPE_IQ2_XXS, IQ2_XS = GGML_TYPE_IQ2_XS, IQ2_S = GGML_TYPE_IQ2_S,
        IQ3_XXS = GGML_TYPE_IQ3_XXS, IQ3_S = GGML_TYPE_IQ3_S,
        IQ1_S = GGML_TYPE_IQ1_S, IQ1_M = GGML_TYPE_IQ1_M,
        IQ4_NL = GGML_TYPE_IQ4_NL, IQ4_XS = GGML_TYPE_IQ4_XS,
        TQ1_0 = GGML_TYPE_TQ1_0, TQ2_0 = GGML_TYPE_TQ2_0,
        MXFP4 = GGML_TYPE_MXFP4, NVFP4 = GGML_TYPE_NVFP4, Q1_0 = GGML_TYPE_Q1_0, Q2_0 = GGML_TYPE_Q2_0,
    }
}

/// A format's functions in this build of ggml.
#[derive(Clone, Copy)]
pub struct Format {
    id: FormatId,
    base: &'static sys::ggml_type_traits,
    cpu: &'static sys::ggml_type_traits_cpu,
}

impl Format {
    pub fn new(id: FormatId) -> Self {
        init();
        // SAFETY: FormatId is made from ggml's own numbers alone, so both tables have the row; they are static. The
        // first call of ggml_cpu_init fills the tables that the functions read.
        let (base, cpu) = unsafe {
            sys::ggml_cpu_init();
            (&*sys::ggml_get_type_traits(id.0), &*sys::ggml_get_type_traits_cpu(id.0))
        };
        Self { id, base, cpu }
    }

    /// ggml's name, such as `q4_K`.
    pub fn name(&self) -> String {
        // SAFETY: a static string of the table.
        unsafe { string(self.base.type_name) }
    }

    /// Values a block.
    pub fn block_len(&self) -> usize {
        self.base.blck_size as usize
    }

    /// Bytes of a row of `n` values.
    pub fn row_bytes(&self, n: usize) -> usize {
        assert_eq!(n % self.block_len(), 0, "{} values are no whole blocks of {}", n, self.name());
        n / self.block_len() * self.base.type_size
    }

    /// The format that activations take for a dot with this one.
    pub fn activation(&self) -> Format {
        Format::new(FormatId(self.cpu.vec_dot_type))
    }

    /// Decodes `n` values.
    pub fn decode(&self, bytes: &[u8], n: usize) -> Result<Vec<f32>> {
        assert_eq!(bytes.len(), self.row_bytes(n));
        let mut out = vec![0f32; n];
        match self.base.to_float {
            // SAFETY: the input holds whole blocks of `n` values, the output `n` floats; both are aligned for any
            // scalar type as `Aligned` and Vec<f32> are.
            Some(f) => unsafe { f(Aligned::from(bytes).ptr(), out.as_mut_ptr(), n as i64) },
            None if self.id == ids::F32 => {
                for (value, word) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *value = f32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                }
            }
            None => return Err(self.lacks("decoder")),
        }
        Ok(out)
    }

    /// Quantises a row with the function that ggml's matrix product uses on activations. What ggml leaves unwritten
    /// (Q8_K's sums of a block of zeros) comes out as zeros.
    pub fn quantise(&self, values: &[f32]) -> Result<Vec<u8>> {
        let f = self.cpu.from_float.ok_or_else(|| self.lacks("activation quantiser"))?;
        let mut out = Aligned::zeroed(self.row_bytes(values.len()));
        // SAFETY: the output holds the row's bytes, aligned; the input holds as many values as are named.
        unsafe { f(values.as_ptr(), out.ptr_mut(), values.len() as i64) };
        Ok(out.bytes().to_vec())
    }

    /// Quantises weights, a row of `n` values after another, with ggml's reference.
    ///
    /// # Panics
    /// Where the values are no whole rows.
    pub fn quantise_weights(&self, values: &[f32], n: usize) -> Vec<u8> {
        assert_eq!(values.len() % n, 0);
        let rows = values.len() / n;
        let mut out = Aligned::zeroed(self.row_bytes(n) * rows);
        let weight = vec![1f32; n];
        // SAFETY: sizes as above; the importance weights are one row, as ggml_quantize_chunk takes them.
        unsafe {
            sys::ggml_quantize_chunk(
                self.id.0,
                values.as_ptr(),
                out.ptr_mut(),
                0,
                rows as i64,
                n as i64,
                if sys::ggml_quantize_requires_imatrix(self.id.0) {
                    weight.as_ptr()
                } else {
                    std::ptr::null()
                },
            );
        }
        out.bytes().to_vec()
    }

    /// The dot of a row of weights with a row of quantised activations, `n` values each.
    pub fn dot(&self, weights: &[u8], activations: &[u8], n: usize) -> Result<f32> {
        let f = self.cpu.vec_dot.ok_or_else(|| self.lacks("dot"))?;
        assert_eq!(weights.len(), self.row_bytes(n));
        assert_eq!(activations.len(), self.activation().row_bytes(n));
        let (weights, activations) = (Aligned::from(weights), Aligned::from(activations));
        let mut out = 0f32;
        // SAFETY: both rows hold `n` values in the formats that the function was made for, aligned; one result.
        unsafe { f(n as i32, &mut out, 0, weights.ptr(), 0, activations.ptr(), 0, 1) };
        Ok(out)
    }

    fn lacks(&self, what: &str) -> Error {
        Error::Ggml(format!("{}: this build has no {what}", self.name()))
    }
}

/// Rows of one format.
pub struct Rows {
    bytes: Aligned,
    format: Format,
    cols: usize,
}

impl Rows {
    /// Rows of `cols` values each.
    ///
    /// # Panics
    /// Where the bytes are no whole rows.
    pub fn new(bytes: &[u8], format: &Format, cols: usize) -> Self {
        assert!(bytes.len().is_multiple_of(format.row_bytes(cols)));
        Self { bytes: Aligned::from(bytes), format: *format, cols }
    }

    /// The dots of each row with a row of quantised activations.
    pub fn dots(&self, x: &Rows, out: &mut [f32]) -> Result<()> {
        let f = self.format.cpu.vec_dot.ok_or_else(|| self.format.lacks("dot"))?;
        let (n, stride) = (self.cols, self.format.row_bytes(self.cols));
        assert!(out.len() * stride <= self.bytes.len);
        assert!(x.format.id == self.format.activation().id && x.bytes.len >= x.format.row_bytes(n));
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: both rows hold `n` values in the formats that the function was made for; one result.
            unsafe { f(n as i32, out, 0, self.bytes.ptr().byte_add(i * stride), 0, x.bytes.ptr(), 0, 1) };
        }
        Ok(())
    }
}

/// Bytes at an address that suits every type of a block's fields.
struct Aligned {
    words: Vec<u64>,
    len: usize,
}

impl Aligned {
    fn zeroed(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(8)], len }
    }

    fn from(bytes: &[u8]) -> Self {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut raw = [0u8; 8];
            raw[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(raw);
        }
        Self { words, len: bytes.len() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out: Vec<u8> = self.words.iter().flat_map(|w| w.to_le_bytes()).collect();
        out.truncate(self.len);
        out
    }

    fn ptr(&self) -> *const c_void {
        self.words.as_ptr().cast()
    }

    fn ptr_mut(&mut self) -> *mut c_void {
        self.words.as_mut_ptr().cast()
    }
}
