//! What inspect shows people: tables cut to the width of the terminal, never wrapped.

use std::io::{self, Write};

use comfy_table::Table;

use super::summary::{PerLayer, Summary};
use super::totals::{self, Total};
use crate::cli::output::{self, bytes, count, cut_end, cut_middle, grouped};
use crate::cli::safe_text::escape;
use crate::cli::value_text::{preview, shape, type_name};
use crate::gguf::{Gguf, TensorInfo, Value};

/// Narrowest that a name is cut to for the sake of the other columns.
const LEAST_NAME: usize = 16;
/// Spaces between columns.
const GAP: usize = 2;
/// Rows of a table: more begin another, for each takes kilobytes while its table is laid out.
const ROWS: usize = 4096;

fn print(table: &Table, out: &mut impl Write) -> io::Result<()> {
    for line in table.lines() {
        writeln!(out, "  {}", line.trim_end())?;
    }
    Ok(())
}

/// The summary, a fact a line.
pub fn print_summary(gguf: &Gguf, summary: &Summary, width: usize, out: &mut impl Write) -> io::Result<()> {
    for part in &gguf.parts {
        writeln!(out, "{}", escape(&part.path.display().to_string()))?;
    }
    writeln!(out)?;
    for (name, value) in facts(gguf, summary) {
        writeln!(out, "  {name:<16}{}", cut_end(&escape(&value), width.saturating_sub(18)))?;
    }
    Ok(())
}

fn facts(gguf: &Gguf, s: &Summary) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let mut add = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
    let number = |n: Option<u64>| n.map(grouped);
    let first = &gguf.parts[0];
    let files = if gguf.parts.len() > 1 { format!(", {} files", gguf.parts.len()) } else { String::new() };
    add("format", Some(format!("GGUF version {}, alignment {}{files}", first.version, first.alignment)));
    add("architecture", Some(s.architecture.clone().unwrap_or_else(|| "unknown".to_owned())));
    add("name", s.name.clone());
    let parameters = match gguf.tensors.len() {
        0 => "none: there are no tensors".to_owned(),
        _ => format!("{} ({})", count(s.parameters), grouped(s.parameters)),
    };
    add("parameters", Some(parameters));
    add("size", Some(format!("{} ({} bytes)", bytes(s.file_bytes), grouped(s.file_bytes))));
    add("bits per weight", s.bits_per_weight.map(|b| format!("{b:.2}")));
    add("context", number(s.context_length));
    add("layers", number(s.layers));
    add("embedding", number(s.embedding_length));
    let heads = match (&s.heads, &s.kv_heads) {
        (Some(heads), Some(kv)) => Some(format!("{}, KV {}", per_layer(heads), per_layer(kv))),
        (Some(heads), None) => Some(per_layer(heads)),
        _ => None,
    };
    add("heads", heads);
    let experts = match (s.experts, s.experts_used) {
        (Some(all), Some(used)) => Some(format!("{used} of {all} used a token")),
        (Some(all), None) => Some(all.to_string()),
        _ => None,
    };
    add("experts", experts);
    let tokenizer = [&s.tokenizer, &s.pre_tokenizer].into_iter().flatten().cloned().collect::<Vec<_>>();
    let vocabulary = match (number(s.vocabulary), tokenizer.is_empty()) {
        (Some(n), false) => Some(format!("{n} tokens ({})", tokenizer.join(", "))),
        (Some(n), true) => Some(format!("{n} tokens")),
        (None, false) => Some(tokenizer.join(", ")),
        (None, true) => None,
    };
    add("vocabulary", vocabulary);
    add("chat template", Some(if s.chat_template { "yes" } else { "no" }.to_owned()));
    if s.tensor_bytes > 0 {
        let share = s.bytes_per_token as f64 * 100.0 / s.tensor_bytes as f64;
        let touched = format!("{} a token ({share:.1} % of the weights)", bytes(s.bytes_per_token));
        add("touched", Some(touched));
    }
    facts
}

fn per_layer(value: &PerLayer) -> String {
    match value {
        PerLayer::Same(n) => n.to_string(),
        PerLayer::Layers(all) => {
            let (least, most) = (all.iter().min(), all.iter().max());
            format!("{} to {} by layer", least.copied().unwrap_or(0), most.copied().unwrap_or(0))
        }
    }
}

/// The model's metadata.
pub fn print_metadata(gguf: &Gguf, width: usize, out: &mut impl Write) -> io::Result<()> {
    let metadata = gguf.metadata();
    writeln!(out, "\nMetadata ({} keys)\n", metadata.len())?;
    let pairs: Vec<(&str, &Value)> = metadata.iter().collect();
    pairs.chunks(ROWS).try_for_each(|pairs| print_pairs(pairs, width, out))
}

fn print_pairs(pairs: &[(&str, &Value)], width: usize, out: &mut impl Write) -> io::Result<()> {
    let rows: Vec<(String, String, &Value)> =
        pairs.iter().map(|&(key, value)| (escape(key).into_owned(), type_name(value), value)).collect();
    let types = rows.iter().map(|r| r.1.len()).max().unwrap_or(0).max("type".len());
    let longest = rows.iter().map(|r| r.0.chars().count()).max().unwrap_or(0);
    let room = width.saturating_sub(2 + types + 2 * GAP);
    let keys = longest.min(room * 3 / 5).max(LEAST_NAME);
    let values = room.saturating_sub(keys);
    let mut table = output::new_table(&["key", "type", "value"], &[]);
    for (key, ty, value) in rows {
        let shown = preview(value, values);
        table.add_row([&*cut_middle(&key, keys), &ty, &cut_end(&shown, values)]);
    }
    print(&table, out)
}

/// A column of the tensor table: its header, whether it holds numbers, its cells.
struct Column {
    header: &'static str,
    number: bool,
    cells: Vec<String>,
}

impl Column {
    fn new(header: &'static str, number: bool, cells: impl Iterator<Item = String>) -> Column {
        Column { header, number, cells: cells.collect() }
    }

    fn width(&self) -> usize {
        self.cells.iter().map(|c| c.chars().count()).max().unwrap_or(0).max(self.header.len())
    }
}

/// The tensors. Where they do not fit, the columns that can be had elsewhere give way (bits per weight follow
/// from the type), then names are cut in the middle.
pub fn print_tensors(
    gguf: &Gguf,
    tensors: &[&TensorInfo],
    width: usize,
    out: &mut impl Write,
) -> io::Result<()> {
    if tensors.len() == gguf.tensors.len() {
        writeln!(out, "\nTensors ({})\n", tensors.len())?;
    } else {
        writeln!(out, "\nTensors ({} of {})\n", tensors.len(), gguf.tensors.len())?;
    }
    tensors.chunks(ROWS).try_for_each(|tensors| print_rows(gguf, tensors, width, out))
}

fn print_rows(gguf: &Gguf, tensors: &[&TensorInfo], width: usize, out: &mut impl Write) -> io::Result<()> {
    let all = || tensors.iter();
    let mut columns = vec![
        Column::new("name", false, all().map(|t| escape(&t.name).into_owned())),
        Column::new("shape", false, all().map(|t| shape(&t.dims))),
        Column::new("type", false, all().map(|t| t.ty.to_string())),
        Column::new("bytes", true, all().map(|t| t.bytes.to_string())),
        Column::new("file", true, all().map(|t| (t.part + 1).to_string())),
        Column::new("offset", true, all().map(|t| t.offset.to_string())),
        Column::new("bpw", true, all().map(|t| format!("{:.2}", t.ty.bits_per_weight()))),
    ];
    let needed = |columns: &[Column]| 2 + columns.iter().map(|c| c.width() + GAP).sum::<usize>() - GAP;
    for header in ["bpw", "file"] {
        // Which of several files a tensor is in follows from nothing else.
        if needed(&columns) > width && (header != "file" || gguf.parts.len() == 1) {
            columns.retain(|c| c.header != header);
        }
    }
    let names = columns[0].width();
    let room = (width + names).saturating_sub(needed(&columns)).max(LEAST_NAME);
    for name in &mut columns[0].cells {
        *name = cut_middle(name, room).into_owned();
    }
    let headers: Vec<_> = columns.iter().map(|c| c.header).collect();
    let numbers: Vec<_> = (0..columns.len()).filter(|&i| columns[i].number).collect();
    let mut table = output::new_table(&headers, &numbers);
    for i in 0..tensors.len() {
        table.add_row(columns.iter().map(|c| c.cells[i].as_str()));
    }
    print(&table, out)
}

/// Totals by type and by layer.
pub fn print_totals(tensors: &[&TensorInfo], out: &mut impl Write) -> io::Result<()> {
    if tensors.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nBy type\n")?;
    let mut table = totals_table("type");
    for (ty, total) in totals::by_type(tensors) {
        add_total(&mut table, ty.name(), &total);
    }
    add_total(&mut table, "all", &Total::of(tensors.iter().copied()));
    print(&table, out)?;

    let layers = totals::by_layer(tensors);
    if layers.iter().all(|(layer, _)| layer.is_none()) {
        return Ok(());
    }
    writeln!(out, "\nBy layer\n")?;
    for layers in layers.chunks(ROWS) {
        let mut table = totals_table("layer");
        for (layer, total) in layers {
            let name = layer.map_or_else(|| "none".to_owned(), |(stack, n)| format!("{}.{n}", escape(stack)));
            add_total(&mut table, &cut_middle(&name, 30), total);
        }
        print(&table, out)?;
    }
    Ok(())
}

fn totals_table(of: &str) -> Table {
    output::new_table(&[of, "tensors", "parameters", "bytes", "bpw"], &[1, 2, 3, 4])
}

fn add_total(table: &mut Table, name: &str, total: &Total) {
    let bits = total.bits_per_weight().map_or_else(|| "-".to_owned(), |b| format!("{b:.2}"));
    table.add_row([
        name.to_owned(),
        total.tensors.to_string(),
        total.parameters.to_string(),
        total.bytes.to_string(),
        bits,
    ]);
}
