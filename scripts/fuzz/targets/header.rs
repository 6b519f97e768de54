//! The header of a file: opened or refused, and checked, of one mind.
#![no_main]

mod common;

use libfuzzer_sys::fuzz_target;
use wayinfer::gguf::{Gguf, Severity, Source, StaticBytes};

fuzz_target!(|data: &[u8]| {
    let opened = common::with_model(data, |gguf| gguf.map(|gguf| read(&gguf, data.len())));
    // SAFETY: the report holds no bytes of the file beyond this call.
    let bytes: &'static [u8] = unsafe { std::mem::transmute(data) };
    let report = Gguf::check(Source::Memory { name: "fuzzed", bytes: StaticBytes(bytes) });
    assert_eq!(opened.is_ok(), report.gguf.is_some(), "{:?}", report.findings);
    if let Err(error) = opened {
        let first = report.findings.iter().find(|f| f.severity == Severity::Error).expect("a finding");
        assert_eq!(first.text, error.kind.to_string());
    }
});

/// What is promised of every model that was opened.
fn read(gguf: &Gguf, len: usize) {
    for (key, value) in gguf.metadata().iter() {
        assert!(!key.is_empty());
        let _ = (format!("{:?}", value.ty()), value.as_u64(), value.as_f64(), value.as_str());
    }
    for tensor in &gguf.tensors {
        assert!(!tensor.dims.is_empty() && tensor.dims.len() <= 4);
        assert!(tensor.offset.checked_add(tensor.bytes).is_some_and(|end| end <= len as u64));
        assert_eq!(tensor.ty.bytes_of(tensor.elements()), Some(tensor.bytes));
        assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
    }
}
