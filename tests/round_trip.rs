//! Any model that can be written is read as it was written: builder, parser, and a builder made of what was read give the
//! same bytes.

mod common;

use common::gguf::{Data, GgufBuilder, Kv, Ty, ty};
use common::rebuilt::rebuilt;
use proptest::collection::vec;
use proptest::prelude::*;
use wayinfer::gguf::Gguf;

/// A value of any type, arrays among them.
fn value() -> impl Strategy<Value = Kv> {
    fn numbers<T: std::fmt::Debug + Clone>(one: impl Strategy<Value = T> + Clone) -> impl Strategy<Value = Kv>
    where
        Kv: From<T> + From<Vec<T>>,
    {
        prop_oneof![one.clone().prop_map(Kv::from), vec(one, 0..20).prop_map(Kv::from)]
    }
    // Bits, so that NaN and its payload are among them.
    let f32s = any::<u32>().prop_map(f32::from_bits);
    let f64s = any::<u64>().prop_map(f64::from_bits);
    let bytes = vec(any::<u8>(), 0..40);
    let texts = vec(bytes.clone(), 0..20).prop_map(|texts| {
        let bytes = texts.iter().flat_map(|t| [&(t.len() as u64).to_le_bytes()[..], t].concat()).collect();
        Kv::array(8, texts.len() as u64, bytes)
    });
    prop_oneof![
        numbers(any::<u8>()),
        numbers(any::<i8>()),
        numbers(any::<u16>()),
        numbers(any::<i16>()),
        numbers(any::<u32>()),
        numbers(any::<i32>()),
        numbers(any::<u64>()),
        numbers(any::<i64>()),
        numbers(any::<bool>()),
        numbers(f32s),
        numbers(f64s),
        bytes.prop_map(|bytes| Kv::from(&bytes[..])),
        texts,
    ]
}

/// A type and one to four sizes, of which some may be zero.
fn shape() -> impl Strategy<Value = (Ty, Vec<u64>)> {
    let of_type = (0..ty::ALL.len()).prop_map(|i| ty::ALL[i].1);
    (of_type, 0..3u64, vec(0..4u64, 0..4)).prop_map(|(ty, blocks, others)| {
        let dims = [blocks * ty.1].into_iter().chain(others).collect();
        (ty, dims)
    })
}

fn model() -> impl Strategy<Value = GgufBuilder> {
    // Names and keys of any characters; the number keeps them apart.
    let name = "\\PC{0,8}";
    let pairs = vec((name, value()), 0..12);
    let tensors = vec((name, shape(), any::<u64>()), 0..12);
    (2..=3u32, proptest::option::of(3..13u32), pairs, tensors).prop_map(
        |(version, alignment, pairs, tensors)| {
            let mut model = GgufBuilder::new().version(version);
            if let Some(bits) = alignment {
                model = model.alignment(1 << bits);
            }
            for (i, (key, value)) in pairs.into_iter().enumerate() {
                model = model.kv(format!("{i}.{key}"), value);
            }
            for (i, (name, (ty, dims), seed)) in tensors.into_iter().enumerate() {
                model = model.tensor(format!("{i}.{name}"), ty, &dims, Data::Random(seed));
            }
            model
        },
    )
}

fn round(model: &GgufBuilder) -> (Vec<u8>, Vec<u8>) {
    let file = model.build();
    let dir = tempfile::TempDir::new().expect("a folder");
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, &file).expect("written");
    let gguf = Gguf::open(&path).unwrap_or_else(|e| panic!("{e}"));
    let rebuilt = rebuilt(&gguf, &file).build();
    (file, rebuilt)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read(model in model()) {
        let (written, rebuilt) = round(&model);
        prop_assert!(written == rebuilt);
    }
}

#[test]
fn a_difference_is_noticed() {
    let model = GgufBuilder::new().kv("a", 1u32).tensor("t", ty::F16, &[16], Data::Random(1));
    let spoiled: [fn(&mut GgufBuilder); 4] = [
        |b| b.pairs[0].value = 2u32.into(),
        |b| b.pairs[0].value = 1i32.into(),
        |b| b.tensors[0].data = Data::Random(2),
        |b| b.tensors[0].ty = ty::BF16,
    ];
    let (written, rebuilt) = round(&model);
    assert_eq!(written, rebuilt);
    for spoil in spoiled {
        assert_ne!(round(&model.clone().with(spoil)).1, written);
    }
}
