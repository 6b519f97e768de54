//! F64 and the integers I8, I16, I32, I64: decoded to the nearest f32, not computed with.

use super::Decoder;
use crate::gguf::TensorType;

macro_rules! numbers {
    ($($ty:ident: $number:ty;)*) => {
        /// Tensor types that can be decoded only.
        pub(super) static NUMBERS: &[Decoder] = &[$(Decoder {
            ty: TensorType::$ty,
            decode: |bytes, out| {
                let (values, rest) = bytes.as_chunks();
                let whole = rest.is_empty() && values.len() == out.len();
                assert!(whole, "decode: bytes for as many elements as asked");
                for (value, out) in values.iter().zip(out) {
                    // Rounds to the nearest, halves to even; an f64 out of range becomes infinite.
                    *out = <$number>::from_le_bytes(*value) as f32;
                }
            },
        }),*];
    };
}

numbers! {
    I8: i8;
    I16: i16;
    I32: i32;
    I64: i64;
    F64: f64;
}
