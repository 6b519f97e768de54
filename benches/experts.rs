//! What the cache of experts makes of recorded routing: hits by the room that it has.
//!
//! `cargo bench --bench experts -- TRACE SLOTS..`, for instance of `scripts/expert-replay.py`, which makes
//! traces and sets LRU's hits and the best possible ones beside these. For each number of slots a line:
//! slots, hits, and experts that were asked for.
//!
//! A trace is a text. Its first line has three numbers: layers, experts of a layer, and how many of them a
//! token uses. Each further line is a pass: the experts that it chose, by their numbers, each once; a `|`
//! stands between layers.

use std::process::ExitCode;

use wayinfer::store::RoutingTrace;

fn main() -> ExitCode {
    // Cargo adds one of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let Some((path, slots)) = arguments.split_first() else {
        println!("no trace is named: scripts/expert-replay.py makes some");
        return ExitCode::SUCCESS;
    };
    match replay(path, slots) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{path}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn replay(path: &str, slots: &[String]) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let (trace, layers) = parse(&text)?;
    for slots in slots {
        let all = layers * trace.experts;
        let slots = slots.parse().ok().filter(|slots| (2..all).contains(slots));
        let slots = slots.ok_or_else(|| format!("from 2 to {} slots can be had", all - 1))?;
        let stats = trace.replay(slots);
        println!("{slots} {} {}", stats.hits, stats.hits + stats.misses);
    }
    Ok(())
}

/// A trace and its number of layers.
fn parse(text: &str) -> Result<(RoutingTrace, usize), String> {
    let mut lines = text.lines().zip(1..);
    let (head, _) = lines.next().ok_or("empty")?;
    let [layers, experts, used] = numbers(head, usize::MAX)?[..] else {
        return Err("line 1: layers, experts and how many are used".to_owned());
    };
    let mut passes = Vec::new();
    for (line, number) in lines {
        let pass: Result<Vec<_>, _> = line.split('|').map(|chosen| numbers(chosen, experts)).collect();
        let pass = pass.map_err(|error| format!("line {number}: {error}"))?;
        if pass.len() != layers {
            return Err(format!("line {number}: {} layers of {layers}", pass.len()));
        }
        passes.push(pass);
    }
    Ok((RoutingTrace { experts, used, passes }, layers))
}

fn numbers(text: &str, below: usize) -> Result<Vec<usize>, String> {
    let number = |word: &str| word.parse().ok().filter(|&n| n < below).ok_or(format!("{word:?}"));
    text.split_whitespace().map(number).collect()
}
