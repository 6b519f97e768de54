//! `bench --profile`: where the time of prefill and decode goes.

use std::io::Write;
use std::ops::ControlFlow;
use std::time::Duration;

use serde::Serialize;

use super::super::{CliError, output};
use super::{prompt_id, stand_after};
use crate::engine::{Engine, EngineError, Sequence};
use crate::model::{Logits, Work};
use crate::verify::{Profiler, WorkTime};

/// A kind of work. Sampling is not among them: `bench` takes the most probable token.
#[derive(Serialize)]
pub struct Row {
    pub kind: &'static str,
    /// Types of the weights, where there are any.
    pub types: Vec<&'static str>,
    pub seconds: f64,
    pub share: f64,
    /// Weights read a second, each once a pass (of experts, the share that a token uses).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights_gb_s: Option<f64>,
}

/// Where the time goes.
#[derive(Serialize)]
pub struct Profile {
    pub prefill: Vec<Row>,
    pub decode: Vec<Row>,
}

/// Runs prefill and decode once more under a profiler.
pub fn measure(
    engine: &mut Engine<'_>,
    sequence: &mut Sequence,
    prompt: &[u32],
    deep: &[u32],
    tokens: usize,
) -> Result<Profile, EngineError> {
    let go_on = |_| ControlFlow::Continue(());
    let mut profiler = Profiler::default();
    sequence.rewind(0);
    for chunk in prompt.chunks(engine.batch()) {
        profiler.begin();
        engine.feed_observed(sequence, chunk, Logits::Last, &mut profiler, go_on)?;
    }
    // What prefill reads of the experts depends on the tokens: no rate is given.
    let prefill = rows(&profiler, false);

    stand_after(engine, sequence, deep)?;
    let mut profiler = Profiler::default();
    let mut id = prompt_id(0, engine.model().spec().vocab);
    for _ in 0..tokens {
        profiler.begin();
        engine.feed_observed(sequence, &[id], Logits::Last, &mut profiler, go_on)?;
        id = sequence.argmax()?;
    }
    Ok(Profile { prefill, decode: rows(&profiler, true) })
}

/// The kinds of work that took time; `rated` where each pass read the weights of one token.
fn rows(profiler: &Profiler, rated: bool) -> Vec<Row> {
    let total: Duration = profiler.times().map(|(_, work)| work.time).sum();
    let row = |(work, spent): (Work, &WorkTime)| {
        let seconds = spent.time.as_secs_f64();
        Row {
            kind: work.name(),
            types: spent.types.iter().copied().collect(),
            seconds,
            share: seconds / total.as_secs_f64(),
            weights_gb_s: (rated && spent.touched > 0).then(|| spent.touched as f64 / seconds / 1e9),
        }
    };
    profiler.times().map(row).filter(|row| row.seconds > 0.0).collect()
}

/// Prints both tables.
pub fn print(out: &mut impl Write, profile: &Profile) -> Result<(), CliError> {
    for (what, rows) in [("prefill", &profile.prefill), ("decode", &profile.decode)] {
        if rows.is_empty() {
            continue;
        }
        let mut table = output::new_table(&[what, "weights", "ms", "share", "GB/s"], &[2, 3, 4]);
        for row in rows {
            table.add_row([
                row.kind.to_owned(),
                row.types.join(", "),
                format!("{:.2}", row.seconds * 1e3),
                format!("{:.1} %", row.share * 100.0),
                row.weights_gb_s.map_or_else(String::new, |rate| format!("{rate:.1}")),
            ]);
        }
        writeln!(out, "\n{}", table.trim_fmt())?;
    }
    Ok(())
}
