//! Runs a model on prompts and keeps every node of the graph, the logits and a greedy continuation.
//!
//! # Which nodes
//! Those that the graph's code names (`cb()` in llama.cpp), with four exceptions, see [`kept`]:
//! nodes that compute nothing (a view of another one's values; but `ffn_moe_topk` is kept, which is one), the score
//! matrices inside of attention (`kq`, `kq_soft_max`, `kqv`: attention is judged at `kqv_out`), a norm before its weight
//! (`norm`: judged at `attn_norm`, `ffn_norm`, `result_norm`), and nodes whose name ggml made up (`node_7`,
//! `cache_k_l0 (view)`).
//!
//! # The file
//! `{phase}/{name}-{layer}#{occurrence}`, layers left out where the node has none, phase `prefill` or `decode.{step}`.
//! A node's shape is [tokens, values a token]; F32, or I32 for `ffn_moe_topk` and `ffn_moe_argsort`. All prompt tokens
//! ask for logits, so that the last layer's nodes have as many rows as the others. Of a long prompt the rows may be
//! cut to those listed in `rows` ([`Rows::Edges`]); `Kcur` and `Vcur` are whole always, as attention needs them.
//! Besides: `prompt` (ids), `rows`, `greedy/ids`, `greedy/margins` (first minus second logit), `greedy/logits`
//! ([tokens, vocabulary]; row i is what id i was chosen from). Decode step i feeds greedy id i; one that ends texts is fed like
//! any other.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::{Value, json};

use crate::error::{Error, Result, read_json, refuse};
use crate::ffi::{
    self, Batch, Context, ContextOptions, Flash, KvType, Model, ModelOptions, Node, NodeValues,
};
use crate::tensors::Tensors;

/// Which rows of a prompt's nodes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Rows {
    /// Every token's.
    All,
    /// Of prompts over 32 tokens the first two rows, the two at each multiple of 16 and the last three: where tiles meet.
    Edges,
}

impl Rows {
    fn of(self, n: usize) -> Vec<usize> {
        let edge = |i: &usize| *i < 2 || *i + 3 >= n || matches!(i % 16, 0 | 15);
        (0..n).filter(|i| self == Rows::All || n <= 32 || edge(i)).collect()
    }
}

/// What to capture.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The model file
    #[arg(short, long)]
    model: PathBuf,
    /// A JSON file: an object of names and lists of token ids
    #[arg(long)]
    prompts: PathBuf,
    /// The folder for one safetensors file a prompt
    #[arg(long)]
    out: PathBuf,
    /// Only these prompts
    #[arg(long = "only")]
    only: Vec<String>,
    /// Added to the file's name
    #[arg(long, default_value = "")]
    suffix: String,
    /// Decode steps whose nodes are kept
    #[arg(long, default_value_t = 8)]
    steps: usize,
    /// Greedy tokens
    #[arg(long, default_value_t = 32)]
    greedy: usize,
    /// Type of the KV cache
    #[arg(long, default_value = "f32")]
    kv: KvType,
    /// Rows kept of a prompt's nodes
    #[arg(long, default_value = "all")]
    rows: Rows,
}

/// Captures all prompts of the file.
pub fn run(args: &Args) -> Result<()> {
    ffi::require_portable()?;
    if args.steps >= args.greedy {
        return refuse(format!("{} decode steps need more than {} greedy tokens", args.steps, args.greedy));
    }
    let prompts: BTreeMap<String, Vec<i32>> = read_json(&args.prompts)?;
    let model = Model::load(&args.model, ModelOptions { mmap: false })?;
    for (name, ids) in prompts.iter().filter(|(name, _)| args.only.is_empty() || args.only.contains(name)) {
        if ids.is_empty() || ids.iter().any(|&id| id < 0 || id as usize >= model.n_vocab()) {
            return refuse(format!("prompt {name}: its ids do not fit a vocabulary of {}", model.n_vocab()));
        }
        let path = args.out.join(format!("{name}{}.safetensors", args.suffix));
        capture(&model, args, ids, &path)?;
        eprintln!("{}", path.display());
    }
    Ok(())
}

fn capture(model: &Model, args: &Args, ids: &[i32], path: &Path) -> Result<()> {
    let recorder = Rc::new(RefCell::new(Recorder::default()));
    let sink = Rc::clone(&recorder);
    let options = ContextOptions {
        n_ctx: (ids.len() + args.greedy).next_multiple_of(256),
        n_batch: Some(ids.len()),
        threads: 1,
        kv: args.kv,
        flash: Flash::Off,
    };
    let observer = Box::new(move |node: &Node| sink.borrow_mut().see(node));
    let mut context = Context::new(model, &options, Some(observer))?;

    let rows = args.rows.of(ids.len());
    recorder.borrow_mut().begin("prefill", ids.len(), &rows);
    context.decode(&mut Batch::new(ids, 0, true))?;
    let mut greedy = Greedy::default();
    let mut next = greedy.choose(context.logits(ids.len() as i32 - 1)?);
    for step in 0..args.greedy - 1 {
        match step < args.steps {
            true => recorder.borrow_mut().begin(&format!("decode.{step}"), 1, &[0]),
            false => recorder.borrow_mut().pause(),
        }
        context.decode(&mut Batch::new(&[next], ids.len() + step, true))?;
        next = greedy.choose(context.logits(0)?);
    }
    drop(context);

    let mut recorder = recorder.borrow_mut();
    if let Some(error) = recorder.error.take() {
        return Err(error);
    }
    let mut tensors = std::mem::take(&mut recorder.tensors);
    let rows: Vec<i32> = rows.iter().map(|&r| r as i32).collect();
    tensors.i32("prompt", &[ids.len()], ids);
    tensors.i32("rows", &[rows.len()], &rows);
    tensors.i32("greedy/ids", &[args.greedy], &greedy.ids);
    tensors.f32("greedy/margins", &[args.greedy], &greedy.margins);
    tensors.f32("greedy/logits", &[args.greedy, model.n_vocab()], &greedy.logits);
    let description = json!({
        "format": 1,
        "kv": args.kv.name(),
        "decode_steps": args.steps,
        "rows": if rows.len() == ids.len() { "all" } else { "some, but Kcur and Vcur whole" },
        "llama.cpp": ffi::version(),
        "nodes": recorder.nodes,
    });
    tensors.save(path, &description)
}

/// Greedy choices: the first id of the largest logit.
#[derive(Default)]
struct Greedy {
    ids: Vec<i32>,
    margins: Vec<f32>,
    logits: Vec<f32>,
}

impl Greedy {
    fn choose(&mut self, logits: &[f32]) -> i32 {
        let (id, margin) = argmax(logits);
        self.ids.push(id);
        self.margins.push(margin);
        self.logits.extend_from_slice(logits);
        id
    }
}

/// The first index of the largest value, and how far the second one lies below it.
pub fn argmax(logits: &[f32]) -> (i32, f32) {
    let (mut best, mut second) = (0, f32::NEG_INFINITY);
    for (i, &v) in logits.iter().enumerate().skip(1) {
        if v > logits[best] {
            (second, best) = (logits[best], i);
        } else if v > second {
            second = v;
        }
    }
    (best as i32, logits[best] - second)
}

/// The node belongs into the file.
fn kept(name: &str, is_view: bool) -> bool {
    let stem = name.rsplit_once('-').map_or(name, |(stem, _)| stem);
    let made_up =
        name.is_empty() || name.starts_with("node_") || name.starts_with("leaf_") || name.contains(" (");
    let half_done = ["kq", "kq_soft_max", "kqv", "norm"].contains(&stem);
    !made_up && !half_done && !stem.starts_with("cache_") && (!is_view || stem == "ffn_moe_topk")
}

/// Collects nodes as they are computed.
#[derive(Default)]
struct Recorder {
    /// The phase, while nodes are wanted.
    phase: Option<String>,
    n_tokens: usize,
    rows: Vec<usize>,
    seen: HashMap<String, usize>,
    tensors: Tensors,
    /// Name and occurrence without a layer -> operation and sizes of a token.
    nodes: BTreeMap<String, Value>,
    error: Option<Error>,
}

impl Recorder {
    fn begin(&mut self, phase: &str, n_tokens: usize, rows: &[usize]) {
        self.phase = Some(phase.into());
        self.n_tokens = n_tokens;
        self.rows = rows.to_vec();
        self.seen.clear();
    }

    fn pause(&mut self) {
        self.phase = None;
    }

    fn see(&mut self, node: &Node) {
        if self.error.is_none()
            && let Err(error) = self.record(node)
        {
            self.error = Some(error);
        }
    }

    fn record(&mut self, node: &Node) -> Result<()> {
        let name = node.name();
        let Some(phase) = self.phase.clone() else { return Ok(()) };
        if !kept(&name, node.is_view()) {
            return Ok(());
        }
        let sizes = node.sizes();
        let total: usize = sizes.iter().product();
        // The last dimension that is not 1 counts the tokens; with one token there is no telling, and no need.
        let tokens = sizes.iter().rev().copied().find(|&n| n != 1).unwrap_or(1);
        if self.n_tokens > 1 && tokens != self.n_tokens {
            return Err(Error::Ggml(format!(
                "{name}: {sizes:?} has no row for each of {} tokens",
                self.n_tokens
            )));
        }
        let count = self.seen.entry(name.clone()).or_default();
        let occurrence = *count;
        *count += 1;

        let width = total / self.n_tokens;
        let whole = name.starts_with("Kcur") || name.starts_with("Vcur");
        let all: Vec<usize> = (0..self.n_tokens).collect();
        let rows = if whole { &all } else { &self.rows };
        let key = format!("{phase}/{name}#{occurrence}");
        match node.values()? {
            NodeValues::F32(v) => self.tensors.f32(key, &[rows.len(), width], &select(&v, rows, width)),
            NodeValues::I32(v) => self.tensors.i32(key, &[rows.len(), width], &select(&v, rows, width)),
        }
        let stem = name.rsplit_once('-').map_or(name.as_str(), |(stem, _)| stem);
        if phase == "prefill" {
            let mut token = sizes.to_vec();
            while token.last() == Some(&1) {
                token.pop();
            }
            if self.n_tokens > 1 {
                token.pop();
            }
            let entry = json!({ "op": node.op(), "token_sizes": token });
            self.nodes.insert(format!("{stem}#{occurrence}"), entry);
        }
        Ok(())
    }
}

fn select<T: Copy>(values: &[T], rows: &[usize], width: usize) -> Vec<T> {
    rows.iter().flat_map(|&r| values[r * width..(r + 1) * width].iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::{Rows, argmax, kept};

    #[test]
    fn edges_are_kept_of_long_prompts_alone() {
        assert_eq!(Rows::Edges.of(7).len(), 7);
        let expected = [0, 1, 15, 16, 31, 32, 47, 48, 63, 64, 79, 80, 81, 82];
        assert_eq!(Rows::Edges.of(83), expected);
        assert_eq!(Rows::All.of(83).len(), 83);
    }

    #[test]
    fn views_scores_and_made_up_names_are_left_out() {
        assert!(kept("Qcur-0", false) && kept("ffn_moe_topk-1", true) && kept("result_norm", false));
        assert!(!kept("Qcur-0", true) && !kept("kq-0", false) && !kept("kq_soft_max-1", false));
        assert!(kept("attn_norm-0", false) && !kept("norm-0", false) && !kept("norm", false));
        assert!(
            !kept("node_12", false)
                && !kept("cache_k_l0 (view)", false)
                && !kept("ffn_moe_weighted-0 (view)", true)
        );
    }

    #[test]
    fn the_first_of_equal_logits_wins_with_no_margin() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]), (1, 0.0));
        assert_eq!(argmax(&[1.0, 2.0, 3.5]), (2, 1.5));
    }
}
