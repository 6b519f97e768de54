//! A builder of a model that was read, to write it again with a change.
#![allow(dead_code)] // each test file uses a part

use super::gguf::{Data, GgufBuilder, Kv, ty};
use wayinfer::gguf::{Array, Gguf, Value};

/// A builder of what was read, and of the tensors' bytes in the file.
pub fn rebuilt(gguf: &Gguf, file: &[u8]) -> GgufBuilder {
    let part = &gguf.parts[0];
    let mut model = GgufBuilder::new().version(part.version);
    model.padding = part.alignment;
    for (key, value) in part.metadata.iter() {
        model = model.kv(key, again(value));
    }
    for tensor in &gguf.tensors {
        let id = tensor.ty as u32;
        let ty = ty::ALL.iter().find(|(_, ty)| ty.0 == id).expect("a type that was written").1;
        let data = file[tensor.offset as usize..][..tensor.bytes as usize].to_vec();
        model = model.tensor(&tensor.name, ty, &tensor.dims, Data::Bytes(data));
    }
    model
}

fn again(value: &Value) -> Kv {
    match value {
        Value::U8(v) => (*v).into(),
        Value::I8(v) => (*v).into(),
        Value::U16(v) => (*v).into(),
        Value::I16(v) => (*v).into(),
        Value::U32(v) => (*v).into(),
        Value::I32(v) => (*v).into(),
        Value::F32(v) => (*v).into(),
        Value::Bool(v) => (*v).into(),
        Value::Text(v) => (&v.0[..]).into(),
        Value::U64(v) => (*v).into(),
        Value::I64(v) => (*v).into(),
        Value::F64(v) => (*v).into(),
        Value::Array(Array::Texts(texts)) => {
            let bytes =
                texts.iter().flat_map(|t| [&(t.len() as u64).to_le_bytes()[..], t].concat()).collect();
            Kv::array(8, texts.len() as u64, bytes)
        }
        Value::Array(Array::Packed(packed)) => {
            let elements: Vec<Kv> = packed.iter().map(|v| again(&v)).collect();
            // An empty array has its type all the same.
            let id = (0..13)
                .find(|&id| wayinfer::gguf::ValueType::from_id(id) == Some(packed.ty()))
                .expect("an id");
            Kv::array(id, packed.len() as u64, elements.into_iter().flat_map(|e| e.bytes).collect())
        }
    }
}
