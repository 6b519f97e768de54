//! `inspect --report`: which types and which layers the bytes are of, as pictures.

use std::collections::BTreeMap;

use super::summary::Summary;
use super::totals::{self, Total};
use crate::cli::output;
use crate::gguf::{Gguf, TensorInfo, TensorType};
use crate::show::{Bar, Bars, LOOKS, Page, Segment};

/// Tensors that are told by name.
const LARGEST: usize = 20;

/// The page of these tensors.
pub fn page(gguf: &Gguf, tensors: &[&TensorInfo]) -> Page {
    let summary = Summary::of(gguf);
    let all = Total::of(tensors.iter().copied());
    let mut page = Page::new("Inspect");
    let text = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let bits =
        |total: &Total| total.bits_per_weight().map_or_else(|| "-".to_owned(), |bits| format!("{bits:.2}"));
    page.facts(&[
        ("file", gguf.parts[0].path.display().to_string()),
        ("name", text(summary.name.clone())),
        ("architecture", text(summary.architecture.clone())),
        ("layers", text(summary.layers.map(|layers| layers.to_string()))),
        ("tensors", format!("{} of {}", tensors.len(), gguf.tensors.len())),
        ("parameters", output::count(all.parameters)),
        ("bytes", output::bytes(all.bytes)),
        ("bits a weight", bits(&all)),
        ("weights read a token", output::bytes(summary.bytes_per_token)),
    ]);
    if tensors.is_empty() {
        page.paragraph("There are no tensors to draw.");
        return page;
    }
    let types = totals::by_type(tensors);
    let share = |bytes: u64| format!("{:.1} %", bytes as f64 * 100.0 / all.bytes.max(1) as f64);
    let look = |ty: &TensorType| types.iter().position(|(other, _)| other == ty).unwrap_or(0).min(LOOKS - 1);

    page.heading("Bytes by type");
    let bar = |(ty, total): &(TensorType, Total)| {
        let value =
            format!("{}, {}, {} bits a weight", output::bytes(total.bytes), share(total.bytes), bits(total));
        let title = format!("{ty}\n{value}\n{} tensors", total.tensors);
        let segments = vec![Segment { look: look(ty), value: total.bytes as f64, title }];
        Bar { label: ty.to_string(), value, segments }
    };
    page.bars(&Bars {
        title: "Bytes by type".to_owned(),
        looks: Vec::new(),
        bars: types.iter().map(bar).collect(),
    });

    page.heading("Bytes by layer and type");
    page.bars(&by_layer(tensors, &types, look, share));

    page.heading("The largest tensors");
    let mut largest = tensors.to_vec();
    largest.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    let row = |tensor: &&TensorInfo| {
        let dims: Vec<String> = tensor.dims.iter().map(u64::to_string).collect();
        let bytes = output::bytes(tensor.bytes);
        vec![
            output::cut_middle(&tensor.name, 80).into_owned(),
            tensor.ty.to_string(),
            dims.join(" x "),
            bytes,
            share(tensor.bytes),
        ]
    };
    let rows: Vec<Vec<String>> = largest.iter().take(LARGEST).map(row).collect();
    page.table(&["tensor", "type", "shape", "bytes", "share"], &rows, &[3, 4]);
    page
}

fn by_layer(
    tensors: &[&TensorInfo],
    types: &[(TensorType, Total)],
    look: impl Fn(&TensorType) -> usize,
    share: impl Fn(u64) -> String,
) -> Bars {
    let mut layers: BTreeMap<Option<(&str, u64)>, Vec<&TensorInfo>> = BTreeMap::new();
    for tensor in tensors {
        layers.entry(totals::layer(&tensor.name)).or_default().push(tensor);
    }
    let bar = |(layer, tensors): (&Option<(&str, u64)>, &Vec<&TensorInfo>)| {
        let label =
            layer.map_or_else(|| "no layer".to_owned(), |(stack, number)| format!("{stack} {number}"));
        let all = Total::of(tensors.iter().copied());
        let mut parts = totals::by_type(tensors);
        parts.sort_by_key(|(ty, _)| look(ty));
        let segment = |(ty, total): &(TensorType, Total)| {
            let title = format!("{label}, {ty}\n{}, {} tensors", output::bytes(total.bytes), total.tensors);
            Segment { look: look(ty), value: total.bytes as f64, title }
        };
        let value = format!("{}, {}", output::bytes(all.bytes), share(all.bytes));
        Bar { label: label.clone(), value, segments: parts.iter().map(segment).collect() }
    };
    let mut looks: Vec<String> = types.iter().map(|(ty, _)| ty.to_string()).collect();
    if looks.len() > LOOKS {
        looks.truncate(LOOKS - 1);
        looks.push("others".to_owned());
    }
    Bars { title: "Bytes by layer and type".to_owned(), looks, bars: layers.iter().map(bar).collect() }
}
