//! `bench --profile`: where the time of prefill and decode goes.

use std::io::Write;
use std::ops::ControlFlow;
use std::time::Duration;

use serde::Serialize;

use super::super::engine_args::Loaded;
use super::super::{CliError, output};
use super::prompt_id;
use crate::model::{Config, Logits};
use crate::session::{Session, SessionError};
use crate::verify::{NodeGraph, NodeId, NodeKind, Profiler};

/// Kinds of work, in the order of a pass. Sampling is not among them: `bench` takes the most probable token.
const KINDS: &[&str] = &[
    "embedding",
    "norms",
    "q, k, v",
    "RoPE",
    "attention",
    "attention output",
    "router and choice",
    "FFN gate, up",
    "SwiGLU",
    "FFN down",
    "sums",
    "logits",
];

/// What a node belongs to.
fn kind(graph: &NodeGraph, id: &NodeId<'_>) -> &'static str {
    match (graph.kind(id), id.name) {
        (Some(NodeKind::Lookup), _) => "embedding",
        (Some(NodeKind::RmsNorm), _) => "norms",
        (Some(NodeKind::Rope), _) => "RoPE",
        (Some(NodeKind::Attention), _) => "attention",
        (Some(NodeKind::SwiGlu), _) => "SwiGLU",
        (Some(NodeKind::Softmax | NodeKind::TopK), _) => "router and choice",
        (_, "Qcur" | "Kcur" | "Vcur") => "q, k, v",
        (_, "attn_out") => "attention output",
        (_, "ffn_out" | "ffn_moe_down") => "FFN down",
        (_, "ffn_gate" | "ffn_up" | "ffn_moe_gate" | "ffn_moe_up") => "FFN gate, up",
        (_, "result_output") => "logits",
        (_, name) if name.starts_with("ffn_moe_weights") || name == "ffn_moe_logits" => "router and choice",
        _ => "sums",
    }
}

/// A kind of work.
#[derive(Serialize)]
struct Row {
    kind: &'static str,
    /// Types of the weights, where there are any.
    types: Vec<String>,
    seconds: f64,
    share: f64,
    /// Weights read a second, each once a pass (of experts, the share that a token uses).
    #[serde(skip_serializing_if = "Option::is_none")]
    weights_gb_s: Option<f64>,
}

/// Where the time goes.
#[derive(Serialize)]
pub struct Profile {
    prefill: Vec<Row>,
    decode: Vec<Row>,
}

/// Runs prefill and decode once more under a profiler.
pub fn measure(
    loaded: &Loaded,
    session: &mut Session<'_>,
    prompt: &[u32],
    deep: &[u32],
    tokens: usize,
) -> Result<Profile, SessionError> {
    let config = loaded.model.config();
    let graph = NodeGraph::new(&loaded.gguf, config.layers);
    let mut profiler = Profiler::default();
    session.rewind(0);
    for chunk in prompt.chunks(session.batch()) {
        profiler.begin();
        session.feed_observed(chunk, Logits::Last, &mut profiler, |_| ControlFlow::Continue(()))?;
    }
    // What prefill reads of the experts depends on the tokens: no rate is given.
    let prefill = rows(&graph, &profiler, |_, _| None);

    let shared = prompt.len().min(deep.len());
    session.rewind(shared);
    session.feed(&deep[shared..], Logits::None)?;
    let mut profiler = Profiler::default();
    let mut id = prompt_id(0, config.vocab);
    for _ in 0..tokens {
        profiler.begin();
        session.feed_observed(&[id], Logits::Last, &mut profiler, |_| ControlFlow::Continue(()))?;
        id = session.argmax()?;
    }
    let decode = rows(&graph, &profiler, |id, bytes| Some(touched(config, id, bytes) * tokens as f64));
    Ok(Profile { prefill, decode })
}

/// Bytes of a weight that a token reads.
fn touched(config: &Config, id: &NodeId<'_>, bytes: u64) -> f64 {
    let of_experts = matches!(id.name, "ffn_moe_gate" | "ffn_moe_up" | "ffn_moe_down");
    match config.experts.filter(|_| of_experts) {
        Some(experts) => bytes as f64 * experts.used as f64 / experts.count as f64,
        None => bytes as f64,
    }
}

fn rows(graph: &NodeGraph, profiler: &Profiler, read: impl Fn(&NodeId<'_>, u64) -> Option<f64>) -> Vec<Row> {
    let total: Duration = profiler.times().map(|(_, time)| time).sum();
    let row = |&name: &&'static str| {
        let (mut time, mut types, mut bytes) = (Duration::ZERO, Vec::new(), None);
        for (id, spent) in profiler.times().filter(|(id, _)| kind(graph, id) == name) {
            time += spent;
            let product = graph.kind(id) == Some(NodeKind::Product);
            let Some((ty, size)) = graph.weight(id).filter(|_| product) else { continue };
            types.push(ty.to_string());
            bytes = read(id, size).map(|read| bytes.unwrap_or(0.0) + read).or(bytes);
        }
        types.sort();
        types.dedup();
        let seconds = time.as_secs_f64();
        Row {
            kind: name,
            types,
            seconds,
            share: seconds / total.as_secs_f64(),
            weights_gb_s: bytes.map(|bytes| bytes / seconds / 1e9),
        }
    };
    KINDS.iter().map(row).filter(|row| row.seconds > 0.0).collect()
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
