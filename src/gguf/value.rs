//! Metadata values, held as the file has them: strings as bytes, arrays packed.

use std::borrow::Cow;
use std::fmt;

/// A metadata value's type. Ids: the GGUF specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    const BY_ID: [ValueType; 13] = {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
    };

    /// The type with this id.
    pub fn from_id(id: u32) -> Option<ValueType> {
        Self::BY_ID.get(id as usize).copied()
    }

    /// The id that files have for it.
    pub fn id(self) -> u32 {
        self as u32 // as `BY_ID` lists them
    }

    /// The field's short name, such as `u32` or `str`.
    pub fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "str",
            ValueType::Array => "arr",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }

    /// Bytes of a value of fixed size; `None` for strings and arrays.
    pub fn fixed_bytes(self) -> Option<usize> {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => Some(1),
            ValueType::U16 | ValueType::I16 => Some(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(8),
            ValueType::String | ValueType::Array => None,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A string of the file; GGUF promises UTF-8, files do not always keep to it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Text(pub Box<[u8]>);

impl Text {
    /// The string where it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The string, with U+FFFD in place of what is not UTF-8.
    pub fn to_lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_lossy())
    }
}

/// Strings packed end to end: a vocabulary of 280,000 merges takes two allocations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextArray {
    pub(super) bytes: Vec<u8>,
    /// Where each string ends in `bytes`.
    pub(super) ends: Vec<u64>,
}

impl TextArray {
    /// Appends a string.
    pub fn push(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len() as u64);
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of string `i`.
    pub fn get(&self, i: usize) -> Option<&[u8]> {
        let end = *self.ends.get(i)? as usize;
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        Some(&self.bytes[start..end])
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> + Clone {
        (0..self.len()).map(|i| self.get(i).unwrap_or_default())
    }
}

/// Values of fixed size, as the file's little-endian bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedArray {
    pub(super) ty: ValueType,
    pub(super) bytes: Vec<u8>,
}

impl PackedArray {
    /// The elements' type.
    pub fn ty(&self) -> ValueType {
        self.ty
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.ty.fixed_bytes().unwrap_or(1)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements as the file has them: little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All elements in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Value> + '_ {
        let size = self.ty.fixed_bytes().unwrap_or(1);
        self.bytes.chunks_exact(size).map(|b| Value::from_fixed(self.ty, b))
    }
}

/// An array's elements. Arrays of arrays are refused when read.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    Texts(TextArray),
    Packed(PackedArray),
}

impl Array {
    /// The elements' type.
    pub fn ty(&self) -> ValueType {
        match self {
            Array::Texts(_) => ValueType::String,
            Array::Packed(p) => p.ty,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::Texts(t) => t.len(),
            Array::Packed(p) => p.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(Text),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// Reads a value of fixed size from its little-endian bytes.
    ///
    /// # Panics
    /// Where `bytes` is not as long as the type, or the type has no fixed size: the reader's
    /// mistake, never the file's.
    pub(super) fn from_fixed(ty: ValueType, bytes: &[u8]) -> Value {
        fn le<const N: usize>(bytes: &[u8]) -> [u8; N] {
            bytes.try_into().expect("as many bytes as the type has")
        }
        match ty {
            ValueType::U8 => Value::U8(bytes[0]),
            ValueType::I8 => Value::I8(bytes[0] as i8),
            ValueType::U16 => Value::U16(u16::from_le_bytes(le(bytes))),
            ValueType::I16 => Value::I16(i16::from_le_bytes(le(bytes))),
            ValueType::U32 => Value::U32(u32::from_le_bytes(le(bytes))),
            ValueType::I32 => Value::I32(i32::from_le_bytes(le(bytes))),
            ValueType::F32 => Value::F32(f32::from_le_bytes(le(bytes))),
            ValueType::Bool => Value::Bool(bytes[0] != 0),
            ValueType::U64 => Value::U64(u64::from_le_bytes(le(bytes))),
            ValueType::I64 => Value::I64(i64::from_le_bytes(le(bytes))),
            ValueType::F64 => Value::F64(f64::from_le_bytes(le(bytes))),
            ValueType::String | ValueType::Array => unreachable!("no fixed size"),
        }
    }

    /// Appends the value as a GGUF file has it, without its type.
    pub fn write(&self, out: &mut Vec<u8>) {
        let text = |bytes: &[u8], out: &mut Vec<u8>| {
            out.extend((bytes.len() as u64).to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Value::U8(v) => out.push(*v),
            Value::I8(v) => out.extend(v.to_le_bytes()),
            Value::U16(v) => out.extend(v.to_le_bytes()),
            Value::I16(v) => out.extend(v.to_le_bytes()),
            Value::U32(v) => out.extend(v.to_le_bytes()),
            Value::I32(v) => out.extend(v.to_le_bytes()),
            Value::F32(v) => out.extend(v.to_le_bytes()),
            Value::Bool(v) => out.push((*v).into()),
            Value::U64(v) => out.extend(v.to_le_bytes()),
            Value::I64(v) => out.extend(v.to_le_bytes()),
            Value::F64(v) => out.extend(v.to_le_bytes()),
            Value::Text(v) => text(&v.0, out),
            Value::Array(array) => {
                out.extend(array.ty().id().to_le_bytes());
                out.extend((array.len() as u64).to_le_bytes());
                match array {
                    Array::Packed(values) => out.extend(values.bytes()),
                    Array::Texts(texts) => texts.iter().for_each(|bytes| text(bytes, out)),
                }
            }
        }
    }

    /// The value's type.
    pub fn ty(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::Text(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The value where it is an integer (of any width) that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// The value where it is an integer of any width.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Value::U64(v) => v.try_into().ok(),
            Value::I8(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::I64(v) => Some(v),
            _ => self.as_u64().and_then(|v| v.try_into().ok()),
        }
    }

    /// The value where it is a float.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => None,
        }
    }

    /// The value where it is a boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// The value where it is a string of UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Text(t) => t.as_str(),
            _ => None,
        }
    }

    /// The value where it is an array.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(a) => Some(a),
            _ => None,
        }
    }

    /// The strings where it is an array of strings.
    pub fn as_texts(&self) -> Option<&TextArray> {
        match self {
            Value::Array(Array::Texts(t)) => Some(t),
            _ => None,
        }
    }

    /// The packed elements where it is an array of values of fixed size.
    pub fn as_packed(&self) -> Option<&PackedArray> {
        match self {
            Value::Array(Array::Packed(p)) => Some(p),
            _ => None,
        }
    }
}
