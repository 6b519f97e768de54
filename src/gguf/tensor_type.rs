//! The tensor types that GGUF files may hold, and how many bytes their blocks take.
//!
//! This is the file's view (enough to check sizes and to print a table); what the values mean is
//! the business of [`crate::quant`]. Ids and block sizes: `ggml.h` and `ggml-common.h`.

use std::fmt;

/// Declares [`TensorType`] and its table in one place: name, id, elements a block, bytes a block.
macro_rules! tensor_types {
    ($($variant:ident = $id:literal, $block_len:literal, $block_bytes:literal;)*) => {
        /// A tensor's element type as stored in a GGUF file.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(non_camel_case_types)] // the names are the field's own
        pub enum TensorType { $($variant = $id,)* }

        impl TensorType {
            /// Every type, in rising order of id.
            pub const ALL: &[TensorType] = &[$(TensorType::$variant,)*];

            /// The type with this id, if there is one today (ids of withdrawn types are unknown).
            pub fn from_id(id: u32) -> Option<TensorType> {
                match id { $($id => Some(TensorType::$variant),)* _ => None }
            }

            /// The field's name of the type, such as `Q4_K`.
            pub fn name(self) -> &'static str {
                match self { $(TensorType::$variant => stringify!($variant),)* }
            }

            /// Elements in a block.
            pub const fn block_len(self) -> u64 {
                match self { $(TensorType::$variant => $block_len,)* }
            }

            /// Bytes in a block.
            pub const fn block_bytes(self) -> u64 {
                match self { $(TensorType::$variant => $block_bytes,)* }
            }
        }
    };
}

tensor_types! {
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

impl TensorType {
    /// Bytes of `elements` elements, a whole number of blocks; `None` where it is not one or
    /// where the product does not fit.
    pub fn bytes_of(self, elements: u64) -> Option<u64> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (elements / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Bits an element takes, scales included.
    pub fn bits_per_weight(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
