//! Whole models, on the fixtures and on what is made of them.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::*;
use crate::gguf::{Gguf, TensorInfo};
use crate::quant;
use crate::verify::Difference;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn open(name: &str) -> Gguf {
    Gguf::open(&fixture(name)).unwrap()
}

const ALL: Covered = Covered { algorithms: Algorithms::BOTH, files: true, tensors: true };

/// Each hash is that of the bytes that it says, read whole.
#[test]
fn hashes_are_of_the_bytes_that_they_say() {
    for name in ["moe-q4_k_m.gguf", "dense-q8_0.gguf"] {
        let (gguf, bytes) = (open(name), std::fs::read(fixture(name)).unwrap());
        let digests = hash(&gguf, ALL, &|_| ()).unwrap();
        let sha = |bytes: &[u8]| Some(<[u8; 32]>::from(Sha256::digest(bytes)));
        let xxh = |bytes: &[u8]| Some(xxhash_rust::xxh3::xxh3_64(bytes));
        assert_eq!(digests.files[0].digests, Digests { xxh3: xxh(&bytes), sha256: sha(&bytes) });
        assert_eq!(digests.tensors.len(), gguf.tensors.len());
        for tensor in &digests.tensors {
            let info = &gguf.tensors[tensor.index];
            let data = &bytes[info.offset as usize..][..info.bytes as usize];
            assert_eq!(tensor.digests, Digests { xxh3: xxh(data), sha256: sha(data) }, "{}", info.name);
        }
        assert!(digests.tensors.is_sorted_by_key(|t| &gguf.tensors[t.index].name));
        // Without the files, tensors are read each on its own.
        let alone = hash(&gguf, Covered { files: false, ..ALL }, &|_| ()).unwrap();
        assert_eq!(alone, ModelDigests { files: Vec::new(), ..digests });
    }
}

/// Every tensor of one model with that of another, over parts of all sizes.
#[test]
fn values_are_compared_whole_and_in_order() {
    let (first, second) = (open("dense-f32.gguf"), open("dense-f16.gguf"));
    let bytes = ["dense-f32.gguf", "dense-f16.gguf"].map(|name| std::fs::read(fixture(name)).unwrap());
    let pairs: Vec<(&TensorInfo, &TensorInfo)> =
        first.tensors.iter().map(|a| (a, second.tensor(&a.name).unwrap())).collect();
    let diffs = compare_data(&first, &second, &pairs, &|_| ()).unwrap();
    let decoded = |tensor: &TensorInfo, bytes: &[u8]| {
        let mut values = vec![0.0; tensor.elements() as usize];
        let data = &bytes[tensor.offset as usize..][..tensor.bytes as usize];
        (quant::decoder(tensor.ty).unwrap().decode)(data, &mut values);
        values
    };
    let mut differing = 0;
    for ((a, b), diff) in pairs.iter().zip(&diffs) {
        let whole = Difference::of(&decoded(a, &bytes[0]), &decoded(b, &bytes[1]));
        match diff {
            DataDiff::Equal => assert!(a.ty == b.ty && whole.is_none(), "{}", a.name),
            DataDiff::Values(found) => {
                differing += 1;
                assert_eq!((found.count, found.differing), (whole.count, whole.differing), "{}", a.name);
                assert_eq!(found.largest_at, whole.largest_at, "{}", a.name);
                assert!((found.sqnr_db() / whole.sqnr_db() - 1.0).abs() < 1e-9, "{}", a.name);
            }
            DataDiff::Bytes { .. } => panic!("{}", a.name),
        }
    }
    assert!(differing > 3, "{differing}");
}
