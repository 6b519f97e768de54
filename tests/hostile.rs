//! Broken and hostile files: each is refused with a clear error, without a panic and without
//! allocating beyond what the file's own size justifies.

mod common;
#[cfg(unix)]
#[path = "common/limits.rs"]
mod limits;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;

use common::gguf::{Data, GgufBuilder, Kv, Rng, Tensor, small_model, split_name, ty, write_split};
use tempfile::TempDir;
use wayinfer::gguf::{Gguf, GgufError, GgufErrorKind as Kind, Severity, TensorType};

// ---- The allocation gate -------------------------------------------------------------------------------------------

/// Counts what this thread holds, and the most that it held.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    let held = HELD.get() + change;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every call is handed to the system's allocator as it is; counting allocates nothing (constant
// thread-local cells without destructors).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The result, and by how many bytes what this thread held grew at most.
fn peak<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = run();
    (result, (PEAK.get() - before).max(0) as usize)
}

/// What reading needs whatever the file: the read buffer (128 KiB), paths, messages.
const SLACK: usize = 192 << 10;

#[test]
fn the_allocation_gate_trips() {
    let (_, grown) = peak(|| std::hint::black_box(Vec::<u8>::with_capacity(10 << 20)));
    assert!(grown >= 10 << 20, "{grown}");
    let (_, grown) = peak(|| {
        let mut v = std::hint::black_box(vec![0u8; 1 << 10]);
        v.reserve_exact(20 << 20);
        v
    });
    assert!(grown >= 20 << 20, "{grown}");
}

// ---- Opening ------------------------------------------------------------------------------------------------------

/// Opens and checks the file; both within the gate, and both of one mind.
fn open_path(path: &Path) -> Result<Gguf, GgufError> {
    let size = fs::metadata(path).map_or(0, |m| m.len() as usize);
    let (opened, grown) = peak(|| Gguf::open(path));
    assert!(grown <= size + SLACK, "{grown} bytes allocated for a file of {size}");
    let (report, grown) = peak(|| Gguf::check(path));
    assert!(grown <= size + SLACK, "{grown} bytes allocated to check a file of {size}");
    assert_eq!(report.gguf.is_some(), opened.is_ok(), "open and check differ: {:?}", report.findings);
    if let Err(error) = &opened {
        let first = report.findings.iter().find(|f| f.severity == Severity::Error).expect("a finding");
        assert_eq!(first.text, error.kind.to_string(), "check's first error is open's");
        assert_eq!((first.offset, &first.path), (error.offset, &error.path));
    }
    opened
}

fn open_bytes(bytes: &[u8]) -> Result<Gguf, GgufError> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("m.gguf");
    fs::write(&path, bytes).unwrap();
    open_path(&path)
}

fn open(builder: GgufBuilder) -> Result<Gguf, GgufError> {
    open_bytes(&builder.build())
}

/// Every way to read a model refuses it with the same words: those of the error, of the file by the name it has here.
fn refused_alike(files: &[(String, Vec<u8>)], error: &GgufError) {
    let folder = error.path.parent().map(|folder| format!("{}/", folder.display())).unwrap_or_default();
    let error = error.to_string().replace(&folder, "");
    // What a process has cost is told by Unix alone.
    #[cfg(unix)]
    {
        let dir = TempDir::new().unwrap();
        files.iter().for_each(|(name, bytes)| fs::write(dir.path().join(name), bytes).unwrap());
        let size = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        for command in limits::COMMANDS {
            let args: Vec<&str> =
                (command.iter()).map(|&arg| if arg == "m.gguf" { &files[0].0 } else { arg }).collect();
            let run = limits::wayinfer(dir.path(), size, &args);
            assert_eq!((run.status.code(), run.stdout.as_str()), (Some(1), ""), "{args:?}");
            assert_eq!(run.error(), format!("error: {error}"), "{args:?}");
        }
    }
    #[cfg(not(unix))]
    let _ = (files, error);
}

/// One test a file: the kind of error, and how its text starts or what it contains.
macro_rules! refused {
    ($($name:ident: $file:expr => $kind:pat, $text:literal;)*) => {$(
        #[test]
        fn $name() {
            let bytes = $file.build();
            let error = open_bytes(&bytes).expect_err("it is refused");
            assert!(matches!(error.kind, $kind), "another kind: {:?}", error.kind);
            assert!(error.to_string().contains($text), "another text: {error}");
            refused_alike(&[("m.gguf".to_owned(), bytes)], &error);
        }
    )*};
}

/// One test a file that is unusual, but sound.
macro_rules! accepted {
    ($($name:ident: $file:expr => $check:expr;)*) => {$(
        #[test]
        fn $name() {
            let gguf = open($file).expect("it is sound");
            let check: fn(&Gguf) = $check;
            check(&gguf);
        }
    )*};
}

fn empty() -> GgufBuilder {
    GgufBuilder::new()
}

fn one_key(value: impl Into<Kv>) -> GgufBuilder {
    empty().kv("some.key", value)
}

/// Two tensors, the second of which `change` spoils.
fn second_tensor(change: impl FnOnce(&mut Tensor)) -> GgufBuilder {
    empty()
        .tensor("first", ty::F32, &[8, 3], Data::Zero)
        .tensor("second", ty::F32, &[8, 3], Data::Zero)
        .tensor("third", ty::F32, &[8, 3], Data::Zero)
        .with(|b| change(&mut b.tensors[1]))
}

/// A header alone.
fn header(version: u32, n_tensors: u64, n_kv: u64) -> GgufBuilder {
    empty().with(|b| {
        b.version = version;
        b.n_tensors = Some(n_tensors);
        b.n_kv = Some(n_kv);
    })
}

// ---- The header ------------------------------------------------------------------------------------------------------

refused! {
    bad_magic: empty().with(|b| b.magic = *b"FUGU") => Kind::BadMagic { .. }, "m.gguf at byte 0: not a GGUF file: it starts with \"FUGU\"";
    magic_of_a_zip: empty().with(|b| b.magic = *b"PK\x03\x04") => Kind::BadMagic { .. }, "ZIP archive";
    magic_reversed: empty().with(|b| b.magic = *b"FUGG") => Kind::BadMagic { .. }, "reverse order";
    version_0: header(0, 0, 0) => Kind::UnsupportedVersion(0), "at byte 4: GGUF version 0 is not supported";
    version_1: header(1, 0, 0) => Kind::UnsupportedVersion(1), "GGUF version 1 is not supported; versions 2 and 3 are";
    version_4: header(4, 0, 0) => Kind::UnsupportedVersion(4), "GGUF version 4 is not supported";
    big_endian: header(3u32.swap_bytes(), 0, 0) => Kind::BigEndian { version: 3 }, "a big-endian GGUF file (version 3)";
    tensor_count_huge: header(3, u64::MAX, 0) => Kind::TooMany { .. }, "at byte 8: tensors: 18446744073709551615, where at most 131072";
    tensor_count_wraps: header(3, 1 << 61, 0) => Kind::TooMany { .. }, "at byte 8: tensors";
    tensor_count_beyond_file: header(3, 100, 0) => Kind::CountBeyondFile { .. }, "tensors: 100 would need at least 2400 bytes, 8 are left";
    key_count_huge: header(3, 0, u64::MAX) => Kind::TooMany { .. }, "at byte 16: metadata keys: 18446744073709551615";
    // A vector of so many entries would wrap to a small allocation.
    key_count_wraps: header(3, 0, u64::MAX / 32 + 2) => Kind::TooMany { .. }, "metadata keys";
    // 24 bytes that ask a reader that trusts its counts for gigabytes.
    key_count_beyond_file: header(3, 0, 65_536) => Kind::CountBeyondFile { .. }, "would need at least 917504 bytes, 0 are left";
    one_key_more_than_there_is: one_key(1u32).with(|b| b.n_kv = Some(2)) => Kind::CountBeyondFile { .. }, "metadata keys: 2";
}

accepted! {
    empty_model: empty() => |g| assert!(g.tensors.is_empty() && g.metadata().is_empty());
    version_2: small_model().version(2) => |g| assert_eq!((g.parts[0].version, g.tensors.len()), (2, 6));
    version_3: small_model() => |g| assert_eq!((g.parts[0].version, g.tensors.len()), (3, 6));
}

#[test]
fn a_file_of_24_bytes_is_not_given_61_gb() {
    let bytes = header(3, 0, 0x00ff_ffff_ffff).build();
    assert_eq!(bytes.len(), 24);
    let error = open_bytes(&bytes).unwrap_err();
    assert!(matches!(error.kind, Kind::TooMany { .. }), "{error}");
}

#[test]
fn paths_that_hold_no_model() {
    let dir = TempDir::new().unwrap();
    let error = open_path(dir.path()).unwrap_err();
    assert!(matches!(error.kind, Kind::NotAFile("a directory")), "{error}");
    let error = open_path(&dir.path().join("none.gguf")).unwrap_err();
    assert!(matches!(error.kind, Kind::Io(_)), "{error}");
    for bytes in [&b""[..], b"GG", b"GGUF"] {
        let error = open_bytes(bytes).unwrap_err();
        match bytes.len() {
            0 => assert!(matches!(error.kind, Kind::Empty), "{error}"),
            2 => assert!(matches!(error.kind, Kind::BadMagic { .. }), "{error}"),
            _ => assert!(matches!(error.kind, Kind::Truncated { .. }), "{error}"),
        }
        refused_alike(&[("m.gguf".to_owned(), bytes.to_vec())], &error);
    }
}

// ---- Metadata --------------------------------------------------------------------------------------------------------

refused! {
    key_length_beyond_file: one_key(1u32).with(|b| b.pairs[0].key_len = Some(1000)) => Kind::CountBeyondFile { .. }, "at byte 24: bytes of metadata key 0: 1000";
    key_length_huge: one_key(1u32).with(|b| b.pairs[0].key_len = Some(u64::MAX)) => Kind::TooMany { .. }, "where at most 65535 are allowed";
    key_length_negative: one_key(1u32).with(|b| b.pairs[0].key_len = Some(-1i32 as u32 as u64)) => Kind::TooMany { .. }, "4294967295";
    key_empty: empty().kv("first", 1u8).kv("", 1u32) => Kind::EmptyKey { index: 1 }, "at byte 42: metadata key 1 is empty";
    key_not_utf8: empty().kv(b"a\xff", 1u32) => Kind::KeyNotUtf8 { .. }, "not UTF-8";
    key_twice: empty().kv("some.key", 1u32).kv("some.key", 2u32) => Kind::DuplicateKey { .. }, "at byte 48: metadata key \"some.key\" is there twice";
    value_type_unknown: one_key(Kv { type_id: 13, bytes: vec![0; 8] }) => Kind::UnknownValueType { id: 13, .. }, "\"some.key\" has the unknown value type 13";
    value_type_huge: one_key(Kv { type_id: u32::MAX, bytes: vec![0; 8] }) => Kind::UnknownValueType { .. }, "4294967295";
    value_missing: one_key(Kv { type_id: 10, bytes: vec![0; 4] }) => Kind::Truncated { wanted: 8, left: 4, .. }, "the file ends within the value of metadata key \"some.key\"";
    text_length_beyond_file: one_key(Kv { type_id: 8, bytes: 1000u64.to_le_bytes().to_vec() }) => Kind::CountBeyondFile { .. }, "1000 would need at least 1000 bytes, 0 are left";
    text_length_huge: one_key(Kv { type_id: 8, bytes: u64::MAX.to_le_bytes().to_vec() }) => Kind::TooMany { .. }, "value of metadata key \"some.key\"";
    array_length_beyond_file: one_key(Kv::array(4, 1000, vec![0; 12])) => Kind::CountBeyondFile { .. }, "elements of metadata key \"some.key\": 1000 would need at least 4000 bytes, 12";
    array_length_huge: one_key(Kv::array(0, u64::MAX, vec![0; 12])) => Kind::TooMany { .. }, "18446744073709551615";
    array_length_wraps: one_key(Kv::array(10, 1 << 61, vec![0; 12])) => Kind::TooMany { .. }, "2305843009213693952";
    array_of_texts_beyond_file: one_key(Kv::array(8, 1 << 27, vec![0; 12])) => Kind::CountBeyondFile { .. }, "134217728 would need at least 1073741824";
    array_element_length: one_key(Kv::array(8, 2, [&0u64.to_le_bytes()[..], &99u64.to_le_bytes()].concat())) => Kind::CountBeyondFile { .. }, "bytes of element 1";
    array_element_length_negative: one_key(Kv::array(8, 1, (-1i32 as u32 as u64).to_le_bytes().to_vec())) => Kind::TooMany { .. }, "bytes of element 0";
    array_nested: one_key(Kv::array(9, 1, vec![0; 32])) => Kind::NestedArray { .. }, "array of arrays";
    array_type_unknown: one_key(Kv::array(99, 1, vec![0; 32])) => Kind::UnknownValueType { id: 99, .. }, "unknown value type 99";
    bool_of_2: one_key(Kv { type_id: 7, bytes: vec![2] }) => Kind::BadBool { byte: 2, .. }, "a boolean is 2";
    bool_in_array: one_key(Kv::array(7, 3, vec![1, 0, 255])) => Kind::BadBool { byte: 255, .. }, "at byte 58";
    alignment_0: small_model().kv("general.alignment", 0u32) => Kind::AlignmentValue { found: 0, .. }, "general.alignment is 0, where a power of two";
    alignment_13: small_model().kv("general.alignment", 13u32) => Kind::AlignmentValue { found: 13, .. }, "general.alignment is 13";
    alignment_huge: small_model().kv("general.alignment", 1u32 << 31) => Kind::AlignmentValue { .. }, "2147483648";
    alignment_below_8: small_model().kv("general.alignment", 4u32) => Kind::AlignmentValue { found: 4, .. }, "from 8";
    alignment_of_another_type: small_model().kv("general.alignment", 32u64) => Kind::AlignmentType { .. }, "general.alignment has type u64, where u32 is needed";
    alignment_a_text: small_model().kv("general.alignment", "32") => Kind::AlignmentType { .. }, "has type str";
    alignment_not_that_of_the_data: small_model().kv("general.alignment", 1024u32) => Kind::TensorOffset { .. }, "not a multiple of the alignment, 1024";
}

accepted! {
    alignment_of_64: small_model().alignment(64) => |g| {
        assert_eq!(g.parts[0].alignment, 64);
        assert!(g.tensors.iter().all(|t| t.offset % 64 == 0));
    };
    value_that_is_not_utf8: one_key(&b"\xff\xfe"[..]) => |g| assert_eq!(g.metadata().len(), 1);
    arrays_that_are_empty: empty().kv("a", Vec::<u32>::new()).kv("b", Vec::<&str>::new()) => |g| assert_eq!(g.metadata().len(), 2);
}

// ---- Tensors ---------------------------------------------------------------------------------------------------------

refused! {
    name_length_beyond_file: second_tensor(|t| t.name_len = Some(60_000)) => Kind::CountBeyondFile { .. }, "bytes of the name of tensor 1: 60000";
    name_length_huge: second_tensor(|t| t.name_len = Some(u64::MAX)) => Kind::TooMany { .. }, "bytes of the name of tensor 1";
    name_of_64_bytes: second_tensor(|t| t.name = vec![b'n'; 64]) => Kind::TensorNameLength { found: 64, .. }, "has 64 bytes, where at most 63";
    name_not_utf8: second_tensor(|t| t.name = b"n\xc0".to_vec()) => Kind::TensorNameNotUtf8 { .. }, "not UTF-8";
    name_twice: second_tensor(|t| t.name = b"first".to_vec()) => Kind::DuplicateTensor { other: None, .. }, "tensor \"first\" is there twice";
    dims_5: second_tensor(|t| t.dims = vec![8, 3, 1, 1, 1]) => Kind::TensorDims { found: 5, .. }, "tensor \"second\" has 5 dimensions, where at most 4";
    dims_huge: second_tensor(|t| t.n_dims = Some(u32::MAX)) => Kind::TensorDims { .. }, "4294967295 dimensions";
    dim_negative: second_tensor(|t| t.dims = vec![8, (-3i64) as u64]) => Kind::TensorDim { dim: 1, .. }, "dimension 1 is 18446744073709551613";
    row_not_of_whole_blocks: second_tensor(|t| t.ty = ty::Q4_K) => Kind::TensorRow { columns: 8, ty: TensorType::Q4_K, .. }, "\"second\" has rows of 8 elements, not a whole number of Q4_K blocks of 256";
    elements_overflow: second_tensor(|t| t.dims = vec![1 << 32, 1 << 32]) => Kind::TensorElements { .. }, "tensor \"second\" of shape [4294967296, 4294967296]";
    elements_wrap_to_few: second_tensor(|t| t.dims = vec![1 << 32, 1 << 16, 1 << 16, 1 << 8]) => Kind::TensorElements { .. }, "over 2^63 - 1 elements";
    elements_overflow_before_a_zero: second_tensor(|t| t.dims = vec![1 << 62, 1 << 62, 0]) => Kind::TensorElements { .. }, "over 2^63 - 1";
    bytes_overflow: second_tensor(|t| t.dims = vec![i64::MAX as u64]) => Kind::TensorBytes { .. }, "over 2^64 - 1 bytes";
    padding_overflows: second_tensor(|t| { t.ty = ty::I16; t.dims = vec![i64::MAX as u64]; }) => Kind::DataOverflow { .. }, "over 2^64 - 1";
    sizes_sum_to_an_overflow: second_tensor(|t| { t.ty = ty::I8; t.dims = vec![i64::MAX as u64]; })
        .with(|b| {
            b.tensors[2].offset = Some(96 + (1 << 63));
            b.tensors[2].ty = ty::I8;
            b.tensors[2].dims = vec![i64::MAX as u64];
        }) => Kind::DataBeyondFile { .. }, "tensor \"second\": its data ends at byte";
    type_unknown: second_tensor(|t| t.type_id = Some(99)) => Kind::UnknownTensorType { id: 99, .. }, "tensor \"second\" has the unknown type 99";
    type_negative: second_tensor(|t| t.type_id = Some(u32::MAX)) => Kind::UnknownTensorType { .. }, "4294967295";
    type_withdrawn: second_tensor(|t| t.type_id = Some(4)) => Kind::UnknownTensorType { .. }, "the withdrawn type Q4_2 (4)";
    offset_not_aligned: second_tensor(|t| t.offset = Some(97)) => Kind::TensorOffset { .. }, "tensor \"second\" has data offset 97, where 96 is needed: it is not a multiple of the alignment, 32";
    offset_overlaps: second_tensor(|t| t.offset = Some(64)) => Kind::TensorOffset { found: 64, wanted: 96, .. }, "overlaps the data before it";
    offset_the_same: second_tensor(|t| t.offset = Some(0)) => Kind::TensorOffset { found: 0, wanted: 96, .. }, "overlaps";
    offset_leaves_a_gap: second_tensor(|t| t.offset = Some(128)) => Kind::TensorOffset { found: 128, wanted: 96, .. }, "leaves a gap";
    offset_huge: second_tensor(|t| t.offset = Some(u64::MAX - 31)) => Kind::TensorOffset { .. }, "18446744073709551584";
    offset_of_the_first: second_tensor(|_| ()).with(|b| b.tensors[0].offset = Some(32)) => Kind::TensorOffset { found: 32, wanted: 0, .. }, "tensor \"first\"";
    data_missing: second_tensor(|t| t.dims = vec![1 << 20, 1 << 20]).with(|b| b.tensors.truncate(2)) => Kind::DataBeyondFile { .. }, "tensor \"second\": its data ends at byte";
    // The fourth is read from the padding (an empty name, a scalar), and so all data starts later.
    tensor_count_above_those_there_are: second_tensor(|_| ()).with(|b| b.n_tensors = Some(4)) => Kind::DataBeyondFile { .. }, "tensor \"third\": its data ends at byte 480, the file at 448";
}

accepted! {
    dim_of_zero: second_tensor(|t| t.dims = vec![8, 0]) => |g| {
        assert_eq!(g.tensors[1].bytes, 0);
        assert_eq!(g.tensors[1].offset, g.tensors[2].offset);
    };
    zero_before_large_dims: second_tensor(|t| t.dims = vec![0, 1 << 40, 1 << 20]) => |g| assert_eq!(g.tensors[1].elements(), 0);
    scalar: second_tensor(|t| t.dims = vec![]) => |g| assert_eq!((g.tensors[1].dims.as_slice(), g.tensors[1].bytes), (&[1][..], 4));
    four_dims: second_tensor(|t| t.dims = vec![2, 3, 2, 2]) => |g| assert_eq!(g.tensors[1].bytes, 96);
    name_of_63_bytes: second_tensor(|t| t.name = vec![b'n'; 63]) => |g| assert_eq!(g.tensors[1].name.len(), 63);
}

#[test]
fn data_cut_short_by_one_byte() {
    let whole = second_tensor(|_| ()).build();
    let error = open_bytes(&whole[..whole.len() - 1]).unwrap_err();
    assert!(matches!(&error.kind, Kind::DataBeyondFile { tensor, .. } if tensor == "third"), "{error}");
    refused_alike(&[("m.gguf".to_owned(), whole[..whole.len() - 1].to_vec())], &error);
}

#[test]
fn every_prefix_of_a_file_is_refused() {
    let whole = small_model().build();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("m.gguf");
    let data = open_bytes(&whole).unwrap().parts[0].data_offset as usize;
    // The last tensor's data has 2,048 bytes: no padding hides a byte that is missing.
    for len in (0..data + 64).chain([whole.len() - 2049, whole.len() - 1]) {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(open_path(&path).is_err(), "{len} bytes of {}", whole.len());
    }
}

#[test]
fn spoiled_bytes_never_panic_or_allocate_much() {
    let whole = small_model().build();
    let header = open_bytes(&whole).unwrap().parts[0].data_offset;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("m.gguf");
    let mut rng = Rng(7);
    let mut refused = 0;
    for _ in 0..4_000 {
        let mut bytes = whole.clone();
        for _ in 0..=rng.below(3) {
            let at = rng.below(header) as usize;
            bytes[at] = match rng.below(4) {
                0 => 0xff,
                1 => 0,
                2 => bytes[at] ^ (1 << rng.below(8)),
                _ => rng.next() as u8,
            };
        }
        fs::write(&path, &bytes).unwrap();
        refused += usize::from(open_path(&path).is_err());
    }
    assert!(refused > 1_000, "{refused} refused: the bytes were hardly spoiled");
}

#[test]
fn random_models_are_read_as_they_were_written() {
    let mut rng = Rng(11);
    for _ in 0..100 {
        let mut builder = empty().version(2 + rng.below(2) as u32).alignment(8 << rng.below(6));
        for i in 0..rng.below(20) {
            builder = builder.kv(format!("key.{i}"), rng.next());
        }
        for i in 0..rng.below(20) {
            let (_, ty) = ty::ALL[rng.below(ty::ALL.len() as u64) as usize];
            let dims = [ty.1 * (1 + rng.below(3)), 1 + rng.below(4), 1 + rng.below(2)];
            builder = builder.tensor(format!("t.{i}"), ty, &dims, Data::Random(i));
        }
        let bytes = builder.build();
        let gguf = open_bytes(&bytes).unwrap();
        assert_eq!(gguf.tensors.len(), builder.tensors.len());
        for (read, written) in gguf.tensors.iter().zip(&builder.tensors) {
            assert_eq!((read.name.as_bytes(), &read.dims), (written.name.as_slice(), &written.dims));
            let Data::Random(seed) = written.data else { unreachable!() };
            let mut data = Rng(seed);
            let at = read.offset as usize;
            assert!(bytes[at..at + read.bytes as usize].iter().all(|&b| b == data.next() as u8));
        }
        for pair in builder.pairs.iter().skip(1) {
            let key = str::from_utf8(&pair.key).unwrap();
            let value = gguf.metadata().u64(key).unwrap().unwrap();
            assert_eq!(value.to_le_bytes().as_slice(), pair.value.bytes);
        }
    }
}

#[test]
fn types_have_the_sizes_of_the_specification() {
    let ours: Vec<_> = TensorType::ALL.iter().map(|t| (t.name(), t.block_len(), t.block_bytes())).collect();
    let theirs: Vec<_> = ty::ALL.iter().map(|&(name, t)| (name, t.1, t.2)).collect();
    assert_eq!(ours, theirs);
    assert!(ty::ALL.iter().all(|&(name, t)| TensorType::from_id(t.0).is_some_and(|t| t.name() == name)));
}

#[test]
fn what_is_held_is_of_the_order_of_the_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("m.gguf");
    // As many keys as are allowed, as small as can be.
    let mut keys = empty();
    for i in 0..65_536u32 {
        keys = keys.kv(format!("{i:x}"), 0u8);
    }
    // As many tensors as are allowed, without data.
    let mut tensors = empty();
    for i in 0..131_072u32 {
        tensors = tensors.tensor(format!("{i:x}"), ty::F32, &[0], Data::Zero);
    }
    let words: Vec<String> = (0..300_000).map(|i| format!("word{i}")).collect();
    let texts = one_key(words.iter().map(String::as_str).collect::<Vec<_>>());
    for (what, builder, most) in [("keys", keys, 14), ("tensors", tensors, 12), ("texts", texts, 2)] {
        let size = builder.write(&path).metadata().unwrap().len() as usize;
        let (gguf, grown) = peak(|| Gguf::open(&path));
        gguf.unwrap();
        assert!(grown <= most * size + SLACK, "{what}: {grown} bytes held for a file of {size}");
    }
}

// ---- Splits ----------------------------------------------------------------------------------------------------------

/// Three parts of the small model, of which `change` spoils one or several; opened from part `from`.
fn open_split(from: usize, change: impl FnOnce(&mut Vec<GgufBuilder>)) -> Result<Gguf, GgufError> {
    let mut parts = small_model().split(3);
    change(&mut parts);
    let dir = TempDir::new().unwrap();
    let paths = write_split(&parts, dir.path(), "m");
    let size: u64 = paths.iter().map(|p| p.metadata().unwrap().len()).sum();
    let (opened, grown) = peak(|| Gguf::open(&paths[from]));
    assert!(grown <= size as usize + SLACK, "{grown}");
    let report = Gguf::check(&paths[from]);
    assert_eq!(report.gguf.is_some(), opened.is_ok(), "{:?}", report.findings);
    opened
}

/// Sets a key of part `no` of a split.
fn set(parts: &mut [GgufBuilder], no: usize, key: &str, value: impl Into<Kv>) {
    let pair = parts[no].pairs.iter_mut().find(|p| p.key == key.as_bytes()).expect("the key is there");
    pair.value = value.into();
}

fn drop_key(part: &mut GgufBuilder, key: &str) {
    part.pairs.retain(|p| p.key != key.as_bytes());
}

#[test]
fn a_split_is_read_from_any_part() {
    for from in 0..3 {
        let gguf = open_split(from, |_| ()).unwrap();
        assert_eq!(gguf.parts.len(), 3);
        assert_eq!(gguf.metadata().str("general.name").unwrap(), Some("small"));
        let found: Vec<_> = gguf.tensors.iter().map(|t| (t.name.as_str(), t.part)).collect();
        let wanted = [
            ("token_embd.weight", 0),
            ("blk.0.attn_norm.weight", 0),
            ("blk.0.attn_q.weight", 1),
            ("blk.1.attn_norm.weight", 1),
            ("blk.1.attn_q.weight", 2),
            ("output.weight", 2),
        ];
        assert_eq!(found, wanted);
        assert_eq!(gguf.tensor("output.weight").unwrap().part, 2);
    }
}

#[test]
fn split_counts_may_have_any_integer_type() {
    let gguf = open_split(1, |parts| {
        for no in 0..3 {
            set(parts, no, "split.no", no as u64);
            set(parts, no, "split.count", 3i8);
            set(parts, no, "split.tensors.count", 6u16);
        }
    });
    assert_eq!(gguf.unwrap().parts.len(), 3);
}

#[test]
fn split_of_one_is_a_file() {
    for count in [0u16, 1] {
        let gguf = open(small_model().kv("split.no", 0u16).kv("split.count", count)).unwrap();
        assert_eq!(gguf.parts.len(), 1);
    }
}

/// One test a split: spoiled how, opened from where, refused how.
macro_rules! split_refused {
    ($($name:ident: $from:literal, $change:expr => $kind:pat, $text:literal;)*) => {$(
        #[test]
        fn $name() {
            let error = open_split($from, $change).expect_err("it is refused");
            assert!(matches!(error.kind, $kind), "another kind: {:?}", error.kind);
            assert!(error.to_string().contains($text), "another text: {error}");
            let mut parts = small_model().split(3);
            let change: fn(&mut Vec<GgufBuilder>) = $change;
            change(&mut parts);
            let file = |no: usize| (split_name("m", no, 3), parts[no].build());
            // The part that is opened comes first.
            let files: Vec<_> = (0..3).map(|i| file(($from + i) % 3)).collect();
            refused_alike(&files, &error);
        }
    )*};
}

split_refused! {
    split_no_of_another: 0, |p| set(p, 1, "split.no", 0u16) => Kind::SplitValue { field: "no", found: 0, wanted: 1, .. }, "m-00002-of-00003.gguf at byte 24: split.no is 0, where 1 is needed";
    split_part_copied: 0, |p| p[2] = p[1].clone() => Kind::SplitValue { field: "no", found: 1, wanted: 2, .. }, "m-00003-of-00003.gguf";
    split_count_of_another: 2, |p| set(p, 1, "split.count", 4u16) => Kind::SplitValue { field: "count", found: 4, wanted: 3, .. }, "split.count is 4, where 3";
    split_count_not_the_name_s: 1, |p| for no in 0..3 { set(p, no, "split.count", 2u16) } => Kind::SplitValue { field: "count", found: 2, wanted: 3, .. }, "so the file's name says";
    split_no_missing: 0, |p| drop_key(&mut p[1], "split.no") => Kind::SplitKey { field: "no" }, "split.no is missing";
    split_count_missing_in_another: 0, |p| drop_key(&mut p[1], "split.count") => Kind::SplitKey { field: "count" }, "split.count is missing";
    split_no_a_text: 0, |p| set(p, 1, "split.no", "1") => Kind::SplitKey { field: "no" }, "split.no is missing or not";
    split_no_negative: 0, |p| set(p, 1, "split.no", -1i32) => Kind::SplitKey { field: "no" }, "split.no";
    split_count_a_text: 0, |p| set(p, 0, "split.count", "3") => Kind::SplitKey { field: "count" }, "split.count";
    split_foreign: 0, |p| p[2] = p[2].clone().kv("general.architecture", "gpt2") => Kind::SplitForeign { .. }, "general.architecture is \"gpt2\", that of the first part \"llama\"";
    split_tensor_count: 0, |p| for no in 0..3 { set(p, no, "split.tensors.count", 7i32) } => Kind::SplitTensors { found: 6, wanted: 7 }, "hold 6 tensors, split.tensors.count says 7";
    split_tensor_count_of_one: 0, |p| set(p, 1, "split.tensors.count", 2i32) => Kind::SplitTensors { found: 6, wanted: 2 }, "m-00002-of-00003.gguf";
    split_tensor_twice: 0, |p| p[2].tensors[0].name = b"token_embd.weight".to_vec() => Kind::DuplicateTensor { other: Some(_), .. }, "tensor \"token_embd.weight\" is there twice: in ";
    split_part_broken: 0, |p| p[1].magic = *b"????" => Kind::BadMagic { .. }, "m-00002-of-00003.gguf at byte 0";
}

#[test]
fn split_part_missing() {
    let parts = small_model().split(3);
    let dir = TempDir::new().unwrap();
    let paths = write_split(&parts, dir.path(), "m");
    fs::remove_file(&paths[1]).unwrap();
    for from in [0, 2] {
        let error = Gguf::open(&paths[from]).unwrap_err();
        assert!(matches!(error.kind, Kind::SplitMissing { part: 2, count: 3 }), "{error}");
        assert_eq!(error.path, paths[1]);
        let file = |no: usize| (split_name("m", no, 3), parts[no].build());
        refused_alike(&[file(from), file(2 - from)], &error);
    }
    fs::remove_file(&paths[0]).unwrap();
    let report = Gguf::check(&paths[2]);
    let missing = report.findings.iter().filter(|f| f.text.contains("is missing")).count();
    assert_eq!(missing, 2, "{:?}", report.findings);
}

#[test]
fn split_without_its_name() {
    let parts = small_model().split(2);
    let dir = TempDir::new().unwrap();
    let error = open_path(&parts[0].write(&dir.path().join("renamed.gguf"))).unwrap_err();
    assert!(matches!(error.kind, Kind::SplitName { count: 2 }), "{error}");
    refused_alike(&[("renamed.gguf".to_owned(), parts[0].build())], &error);
    let error = open_path(&parts[0].write(&dir.path().join("m-00001-of-00003.gguf"))).unwrap_err();
    assert!(matches!(error.kind, Kind::SplitValue { field: "count", .. }), "{error}");
}

#[test]
fn split_of_the_most_parts_is_looked_for_in_little_time() {
    let dir = TempDir::new().unwrap();
    let part = small_model().kv("split.no", 0u16).kv("split.count", 99_999u32);
    let path = part.write(&dir.path().join(split_name("m", 0, 99_999)));
    let report = Gguf::check(&path);
    assert_eq!((report.findings.len(), report.dropped), (1_000, 98_998));
}

// ---- Through the program ---------------------------------------------------------------------------------------------

#[test]
fn the_program_refuses_without_a_panic() {
    let dir = TempDir::new().unwrap();
    let files = [
        ("magic", empty().with(|b| b.magic = *b"GGML"), "error: m.gguf at byte 0: not a GGUF file"),
        ("counts", header(3, 0, 1 << 60), "error: m.gguf at byte 16: metadata keys: 1152921504606846976"),
        ("offset", second_tensor(|t| t.offset = Some(64)), "tensor \"second\" has data offset 64"),
        ("escape", empty().tensor("\x1b[31m", ty::F32, &[1 << 40], Data::Zero), "tensor \"\\u{1b}[31m\""),
    ];
    for (what, builder, text) in files {
        builder.write(&dir.path().join("m.gguf"));
        for args in [&["inspect", "m.gguf"][..], &["inspect", "-m", "m.gguf", "--json"]] {
            let output = common::wayinfer(dir.path(), 100, args);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{what}: {stderr}");
            assert!(output.stdout.is_empty(), "{what}");
            assert!(stderr.starts_with("error: m.gguf") && stderr.contains(text), "{what}: {stderr}");
            assert!(!stderr.contains("panicked") && !stderr.contains('\x1b'), "{what}: {stderr}");
        }
    }
}

#[test]
fn nothing_in_an_error_controls_the_terminal() {
    let dir = TempDir::new().unwrap();
    // Windows has no names with control characters.
    let (name, shown) = match cfg!(windows) {
        true => ("red\u{202e}.gguf", "error: red\\u{202e}.gguf"),
        false => ("\x1b[31mred\u{202e}.gguf", "error: \\u{1b}[31mred\\u{202e}.gguf"),
    };
    let evil = "\x1b]0;owned\x07\x1b[2J";
    let architecture = empty().kv("general.architecture", evil);
    let tokenizer = small_model().with(|b| {
        b.pairs.iter_mut().find(|p| p.key == b"tokenizer.ggml.model").unwrap().value = evil.into();
    });
    let tensor = small_model().tensor(evil, ty::F32, &[1], Data::Zero);
    let cases: [(&str, &[u8], &[&str]); 6] = [
        ("not a GGUF file", b"nothing", &["inspect"]),
        ("not a GGUF file", b"nothing", &["generate", "-p", "a"]),
        ("there is no metadata key", &architecture.build(), &["inspect", "--kv", evil]),
        ("architecture \\u{1b}]0;owned", &architecture.build(), &["generate", "-p", "a"]),
        ("tokenizer.ggml.model is \"\\u{1b}]0;owned", &tokenizer.build(), &["tokenize", "--text", "a"]),
        ("feed_forward_length is 0 or missing", &tensor.build(), &["bench"]),
    ];
    for (text, bytes, args) in cases {
        fs::write(dir.path().join(name), bytes).unwrap();
        let output = common::wayinfer(dir.path(), 100, &[args, &["-m", name]].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.starts_with(shown) && stderr.contains(text), "{args:?}: {stderr:?}");
        assert!(!stderr.contains(|c: char| c.is_control() && c != '\n'), "{args:?}: {stderr:?}");
    }
}
