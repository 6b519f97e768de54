//! Bases that a perplexity is compared with: our own format, llama-perplexity's and arrays of logits. Rows are numbers, or
//! they are refused.
#![no_main]

mod common;

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use wayinfer::engine::LogSoftmax;
use wayinfer::verify::perplexity::{
    BaseHeader, BaseRow, BaseRows, BaseSource, BaseWriter, RowDivergence, WindowOptions, Windows,
};

const VOCAB: usize = 16;
const CONTEXT: usize = 8;

/// Three windows, of three rows that are scored each.
fn windows() -> Windows {
    let options = WindowOptions { context: CONTEXT, stride: None, most: None, bos: None };
    Windows::new((0..24u32).map(|i| i * 7 % VOCAB as u32).collect(), options).expect("three windows")
}

/// The header of a base of these windows.
fn header() -> &'static [u8] {
    static HEADER: OnceLock<Vec<u8>> = OnceLock::new();
    HEADER.get_or_init(|| {
        let path = common::path("header");
        let (model, settings) = (String::new(), String::new());
        let (vocab, context, stride, windows, top) = (VOCAB, CONTEXT, None, 3, 4);
        let mut writer = BaseWriter::create(&path, true).expect("a file");
        writer
            .begin(&BaseHeader { model, settings, vocab, context, stride, windows, top })
            .expect("a header");
        writer.finish().expect("a file");
        std::fs::read(&path).expect("it is there")
    })
}

/// The first byte says what the others are: a whole file; the rows of a window of ours, whose sums are put right; or what
/// follows the tokens in a file of llama-perplexity's.
fn file(data: &[u8], windows: &Windows) -> Option<Vec<u8>> {
    let (&kind, rest) = data.split_first()?;
    Some(match kind % 3 {
        0 => rest.to_vec(),
        1 => {
            let mut bytes = windows.hash(0).to_vec();
            bytes.extend(rest);
            let sum = blake3::hash(&bytes);
            [header(), &(rest.len() as u32).to_le_bytes(), &bytes, sum.as_bytes()].concat()
        }
        _ => {
            let sizes = [CONTEXT, VOCAB, windows.count()].map(|n| (n as i32).to_le_bytes());
            let tokens = windows.tokens().iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
            [b"_logits_", sizes.as_flattened(), &tokens, rest].concat()
        }
    })
}

fuzz_target!(|data: &[u8]| {
    let windows = windows();
    if let Some(bytes) = file(data, &windows) {
        run(&common::write("base", &bytes), &windows);
    }
});

fn run(path: &Path, windows: &Windows) {
    let Ok(mut base) = BaseSource::open(path) else { return };
    if base.check(windows, VOCAB).is_err() {
        return;
    }
    let logits = [0.5; VOCAB];
    let row = LogSoftmax::new(&logits);
    for i in 0..windows.count() {
        if base.begin(windows, i..i + 1).is_err() {
            return;
        }
        let Ok(rows) = base.rows(windows, [i, 0], 0..windows.rows()) else { return };
        for (at, &target) in windows.targets(i).iter().enumerate() {
            let of = |values: &[f32]| -> [f32; VOCAB] { *values.as_chunks().0.get(at).expect("a row") };
            let found = match &rows {
                BaseRows::Top(rows) => RowDivergence::new(&row, BaseRow::Top(&rows[at]), target),
                BaseRows::LnP(values) => RowDivergence::new(&row, BaseRow::LnP(&of(values)), target),
                BaseRows::Logits(values) => RowDivergence::new(&row, BaseRow::Logits(&of(values)), target),
            };
            assert!(!found.delta_p().is_nan(), "{found:?}");
        }
    }
}
