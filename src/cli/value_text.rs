//! Metadata values and shapes as people are shown them.

use super::safe_text::escape;
use crate::gguf::{Array, Value};

/// A value's type, of an array with its length: `u32`, `str[32000]`.
pub fn type_name(value: &Value) -> String {
    match value {
        Value::Array(a) => format!("{}[{}]", a.ty(), a.len()),
        other => other.ty().to_string(),
    }
}

/// A value, or the start of it, that fills `width` columns if it is that long; escaped.
pub fn preview(value: &Value, width: usize) -> String {
    match value {
        // Four bytes a character are the most; what is beyond is not looked at.
        Value::Text(text) => {
            let start = &text.0[..text.0.len().min(width * 4 + 4)];
            escape(&String::from_utf8_lossy(start)).into_owned()
        }
        Value::Array(Array::Texts(texts)) => list(
            texts.iter().map(|t| {
                let start = &t[..t.len().min(width * 4 + 4)];
                format!("\"{}\"", escape(&String::from_utf8_lossy(start)))
            }),
            width,
        ),
        Value::Array(Array::Packed(values)) => list(values.iter().map(|v| scalar(&v)), width),
        other => scalar(other),
    }
}

/// Items joined by commas, as many as fill the width.
fn list(items: impl Iterator<Item = String>, width: usize) -> String {
    let mut out = String::new();
    for item in items {
        if !out.is_empty() {
            out.push_str(", ");
        }
        out.push_str(&item);
        if out.len() > width * 4 {
            break;
        }
    }
    out
}

/// A value that is neither a string nor an array.
pub fn scalar(value: &Value) -> String {
    match value {
        Value::F32(v) => format!("{v:?}"),
        Value::F64(v) => format!("{v:?}"),
        Value::Bool(v) => v.to_string(),
        Value::U64(v) => v.to_string(),
        other => other.as_i64().map_or_else(String::new, |v| v.to_string()),
    }
}

/// Sizes, the fastest-moving first: `256 x 512`.
pub fn shape(dims: &[u64]) -> String {
    dims.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ")
}
