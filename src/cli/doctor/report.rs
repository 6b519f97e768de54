//! What was found, for people.

use std::io::{self, Write};

use super::Report;
use super::disk::DiskSpeeds;
use super::machine::{Memory, Speeds};
use super::model::ModelReport;
use crate::cli::output::{self, binary_bytes};
use crate::cli::safe_text::escape;

fn rate(bytes_s: f64) -> String {
    format!("{}/s", output::bytes(bytes_s as u64))
}

fn unknown(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), binary_bytes)
}

/// Prints all of it.
pub fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "Kernels: {}", report.kernels.chosen)?;
    for why in &report.kernels.better {
        writeln!(out, "  {why}")?;
    }
    print_speeds(&report.speeds, out)?;
    print_memory(&report.memory, out)?;
    for disk in &report.disks {
        print_disk(disk, out)?;
    }
    if let Some(model) = &report.model {
        print_model(model, out)?;
    }
    writeln!(out, "\nOptions that help\n")?;
    for advice in &report.advice {
        writeln!(out, "  {}: {}", advice.options, advice.reason)?;
    }
    if report.advice.is_empty() {
        writeln!(out, "  none: nothing that was measured is better than the defaults")?;
    }
    writeln!(out, "\nmeasured in {:.1} s, on the machine as busy as it was", report.seconds)
}

fn print_speeds(speeds: &Speeds, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\nThreads, reading memory plainly and as {} weights\n", speeds.ty)?;
    let mut table = output::new_table(&["threads", "plainly", "weights"], &[0, 1, 2]);
    for speed in &speeds.threads {
        table.add_row([speed.threads.to_string(), rate(speed.read_bytes_s), rate(speed.weights_bytes_s)]);
    }
    table.lines().try_for_each(|line| writeln!(out, "  {}", line.trim_end()))?;
    let enough = speeds.enough_threads().threads;
    if enough < speeds.default_threads().threads {
        writeln!(out, "  enough for decoding: {enough}; prefill takes all")?;
    }
    for set in &speeds.sets[1..] {
        writeln!(out, "  {} reads weights at {}", set.isa, rate(set.weights_bytes_s))?;
    }
    writeln!(out, "  products with 64 tokens: {:.1} G multiplications/s", speeds.products_s / 1e9)
}

fn print_memory(memory: &Memory, out: &mut impl Write) -> io::Result<()> {
    let (total, available) = (unknown(memory.total_bytes), unknown(memory.available_bytes));
    writeln!(out, "\nMemory: {total}, {available} available")?;
    for limit in &memory.limits {
        writeln!(out, "  limited to {} by {}", binary_bytes(limit.bytes), escape(&limit.by))?;
    }
    match &memory.large_pages {
        Some(word) => writeln!(out, "  large pages: {}", escape(word)),
        None => Ok(()),
    }
}

fn print_disk(disk: &DiskSpeeds, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\nDisk of {}\n", escape(&disk.path))?;
    if disk.best().is_none() {
        return writeln!(out, "  too small a file to tell; --disk DIR measures a folder's disk");
    }
    let mut table = output::new_table(&["reads of 1 MiB", "at a time", "speed"], &[1, 2]);
    for way in &disk.ways {
        let kind = if way.direct { "direct" } else { "through the page cache" };
        let speed = way.bytes_s.map_or_else(|| "not possible".to_owned(), rate);
        table.add_row([kind, &way.readers.to_string(), &speed]);
    }
    table.lines().try_for_each(|line| writeln!(out, "  {}", line.trim_end()))
}

fn print_model(model: &ModelReport, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\nModel {}\n", escape(&model.path))?;
    writeln!(out, "  {}", model.placement)?;
    let budget = binary_bytes(model.budget_bytes);
    let other = binary_bytes(model.other_bytes);
    writeln!(out, "  budget {budget}, {other} of it for a context of {} and buffers", model.context)?;
    let tokens = |speed: Option<f64>, none: &str| match speed {
        Some(speed) => format!("at most {speed:.1} tok/s"),
        None => none.to_owned(),
    };
    let decode = tokens(model.decode_tok_s, "unknown, as the disk's speed is");
    writeln!(out, "  decode: {decode}, held back by the {}", model.held_back_by)?;
    let prefill = tokens(model.prefill_tok_s, "not reckoned, as weights are streamed");
    writeln!(out, "  prefill: {prefill}\n")?;
    let trained = format!("at {}", model.trained_context);
    let context = format!("at {}", model.context);
    let mut table = output::new_table(&["KV cache", "a token", &context, &trained], &[1, 2, 3]);
    for cost in &model.kv {
        table.add_row([
            cost.ty.to_owned(),
            output::bytes(cost.bytes_per_token as u64),
            binary_bytes(cost.context_bytes),
            binary_bytes(cost.trained_context_bytes),
        ]);
    }
    table.lines().try_for_each(|line| writeln!(out, "  {}", line.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::super::KernelsReport;
    use super::super::advice::Advice;
    use super::super::disk::WaySpeed;
    use super::super::machine::{Limit, SetSpeed, ThreadSpeed};
    use super::*;
    use crate::gguf::TensorType;
    use crate::kernels::Isa;

    #[test]
    fn a_machine_in_words() {
        let thread = |threads: usize, read_bytes_s, weights_bytes_s| ThreadSpeed {
            threads,
            read_bytes_s,
            weights_bytes_s,
        };
        let way = |direct, readers, bytes_s| WaySpeed { direct, readers, bytes_s };
        let report = Report {
            kernels: KernelsReport { chosen: "avx2", better: vec!["this CPU lacks x".to_owned()] },
            speeds: Speeds {
                ty: TensorType::Q4_K,
                threads: vec![thread(1, 10e9, 6e9), thread(2, 12e9, 11e9), thread(4, 12e9, 11.1e9)],
                default: 4,
                sets: vec![SetSpeed { isa: Isa::Avx2, weights_bytes_s: 11.1e9 }],
                products_s: 123.4e9,
            },
            memory: Memory {
                total_bytes: Some(32 << 30),
                available_bytes: None,
                limits: vec![Limit { by: "a\u{1b}group".to_owned(), bytes: 8 << 30 }],
                large_pages: Some("madvise".to_owned()),
            },
            disks: vec![DiskSpeeds {
                path: "m.gguf".to_owned(),
                ways: vec![way(false, 1, Some(1.5e9)), way(true, 6, None)],
            }],
            model: None,
            advice: vec![Advice { options: "-t 2".to_owned(), reason: "faster".to_owned() }],
            seconds: 3.21,
        };
        let mut out = Vec::new();
        print(&report, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines = [
            "Kernels: avx2\n  this CPU lacks x\n",
            "  threads    plainly    weights\n        1  10.0 GB/s  6.00 GB/s\n",
            "  enough for decoding: 2; prefill takes all\n",
            "  products with 64 tokens: 123.4 G multiplications/s\n",
            "Memory: 32.0 GiB, unknown available\n  limited to 8.0 GiB by a\\u{1b}group\n",
            "  large pages: madvise\n",
            "  through the page cache          1     1.50 GB/s\n",
            "  direct                          6  not possible\n",
            "Options that help\n\n  -t 2: faster\n",
        ];
        for line in lines {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
