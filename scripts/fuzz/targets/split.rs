//! The files of a split, opened from any of them. The input: for each of three parts its length (3 bytes) and its bytes.
#![no_main]

mod common;

use libfuzzer_sys::fuzz_target;
use wayinfer::gguf::Gguf;

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    let mut paths = Vec::new();
    for no in 1..=3 {
        let path = common::path(&format!("m-{no:05}-of-00003.gguf"));
        let _ = std::fs::remove_file(&path);
        if let Some((len, after)) = rest.split_at_checked(3) {
            let len = u32::from_le_bytes([len[0], len[1], len[2], 0]) as usize;
            let (part, after) = after.split_at(len.min(after.len()));
            std::fs::write(&path, part).expect("a file can be written");
            (rest, paths) = (after, [paths, vec![path]].concat());
        }
    }
    let opened: Vec<_> = paths.iter().map(|path| Gguf::open(path.as_path())).collect();
    for (path, opened) in paths.iter().zip(&opened) {
        assert_eq!(Gguf::check(path.as_path()).gguf.is_some(), opened.is_ok());
        let Ok(gguf) = opened else { continue };
        assert!(gguf.parts.len() == 1 || gguf.parts.len() == 3);
        for tensor in &gguf.tensors {
            assert!(tensor.offset + tensor.bytes <= gguf.parts[tensor.part].file_bytes);
        }
    }
});
