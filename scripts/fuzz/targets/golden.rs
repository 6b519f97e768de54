//! Files of tensors and references in the safetensors format.
#![no_main]

mod common;

use libfuzzer_sys::fuzz_target;
use wayinfer::verify::{Golden, TensorFile};

fuzz_target!(|data: &[u8]| {
    let path = common::write("g.safetensors", data);
    if let Ok(file) = TensorFile::open(&path) {
        for name in file.names() {
            let elements = file.shape(&name).expect("it is there").iter().product::<usize>();
            let read = [
                file.tensor::<f32>(&name).map(|t| t.values.len()),
                file.tensor::<i32>(&name).map(|t| t.values.len()),
                file.tensor::<u32>(&name).map(|t| t.values.len()),
                file.tensor::<u8>(&name).map(|t| t.values.len()),
            ];
            assert!(read.into_iter().flatten().all(|n| n == elements));
        }
    }
    if let Ok(golden) = Golden::open(&path) {
        assert!(golden.rows().iter().all(|&row| row < golden.prompt().len()));
        let names = golden.node_names().to_vec();
        assert!(names.iter().all(|name| golden.tensors().contains(name)));
        assert_eq!(golden.reference().unseen().len(), names.len());
    }
});
