//! Runs a model on prompts and keeps every node of the graph, the logits and a greedy continuation.
//!
//! # Which nodes
//! Those that the graph's code names (`cb()` in llama.cpp) and that have a row for each
//! token, each value once. No list of architectures or of their nodes decides, but rules, see [`named`] and
//! [`Recorder::wanted`]. Left out are
//! - what ggml named itself (`node_7`, `cache_k_l0 (view)`), and what belongs to the KV cache;
//! - views of a node that has a name itself: the values are there already. A view of a nameless node is
//!   kept: it alone names them (`ffn_moe_weights_softmax`); so is one of a sort, for it takes the sort's
//!   first, the chosen (`ffn_moe_topk`), and the sort itself is not kept;
//! - the inside of attention (`kq*`, `kqv`, `v_cont`: judged at `kqv_out`) and masks;
//! - a norm before its weight and bias (`norm`, `norm_w`: judged at the norm's own name);
//! - nodes without a row for each token (factors of RoPE, scores of groups), and types other than F32 and
//!   I32.
//!
//! Sums, quotients and concatenations of several streams that each have a row for each token, one stream
//! behind the other (Gemma 3n's), are kept token by token.
//!
//! A prompt of one token cannot tell rows, so what is kept is decided in the prefill, and decode steps keep
//! the same.
//!
//! # The file
//! `{phase}/{name}-{layer}#{occurrence}`, layers left out where the node has none, phase
//! `prefill` or `decode.{step}`. A node's shape is [tokens, values a token]; F32, or I32 for choices. All
//! prompt tokens ask for logits, so that the last layer's nodes have as many rows as the others. Of a long
//! prompt the rows may be cut to those listed in `rows` ([`Rows::Edges`]); what attention needs of every
//! token is whole: the nodes from which the KV cache is written, whatever their names, found by following
//! the writes back. Besides: `prompt` (ids), `rows`, `greedy/ids`, `greedy/margins` (first minus second
//! logit), `greedy/logits` ([tokens, vocabulary]; row i is what id i was chosen from). Decode step i feeds
//! greedy id i; one that ends texts is fed like any other. The header's `context` is the number of
//! positions that the run had room for: factors of longrope depend on it.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result, read_json, refuse};
use crate::ffi::{
    self, Batch, Context, ContextOptions, Flash, KvType, Model, ModelOptions, Mtp, Node, NodeValues,
};
use crate::tensors::Tensors;

/// Which rows of a prompt's nodes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Rows {
    /// Every token's.
    All,
    /// Of prompts over 32 tokens the first two rows, the two at each multiple of 16 and the last three:
    /// where tiles meet.
    Edges,
    /// Of such prompts the first two rows, the two at each multiple of 128 and the last three: where pages
    /// meet.
    Ends,
}

impl Rows {
    fn of(self, n: usize) -> Vec<usize> {
        let step = match self {
            Rows::All => 1,
            Rows::Edges => 16,
            Rows::Ends => 128,
        };
        let edge = |i: &usize| *i < 2 || *i + 3 >= n || i % step == 0 || i % step == step - 1;
        (0..n).filter(|i| n <= 32 || edge(i)).collect()
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
    /// With flash attention, without which llama.cpp leaves out some choices of positions
    #[arg(long)]
    flash: bool,
    /// Rows kept of a prompt's nodes
    #[arg(long, default_value = "all")]
    rows: Rows,
    /// The nodes of the first block of multi-token prediction too, as the pass `mtp` in NAME.mtp.safetensors:
    /// it runs the prompt, each token with the hidden row of the position before it, zeros before the first
    #[arg(long)]
    mtp: bool,
}

/// Captures all prompts of the file.
pub fn run(args: &Args) -> Result<()> {
    ffi::require_portable()?;
    if args.steps >= args.greedy {
        return refuse(format!("{} decode steps need more than {} greedy tokens", args.steps, args.greedy));
    }
    let prompts: BTreeMap<String, Vec<i32>> = read_json(&args.prompts)?;
    let model = Model::load(&args.model, ModelOptions { mmap: false, mtp: args.mtp })?;
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
        flash: if args.flash || args.kv.needs_flash() { Flash::Auto } else { Flash::Off },
        mtp: if args.mtp { Mtp::Hidden } else { Mtp::Off },
    };
    let observer = Box::new(move |node: &Node| sink.borrow_mut().see(node));
    let mut context = Context::new(model, &options, Some(observer))?;

    let rows = args.rows.of(ids.len());
    recorder.borrow_mut().begin("prefill", ids.len(), &rows);
    context.decode(&mut Batch::new(ids, 0, true))?;
    recorder.borrow_mut().end();
    let mut greedy = Greedy::default();
    let mut next = greedy.choose(context.logits(ids.len() as i32 - 1)?);
    for step in 0..args.greedy - 1 {
        if step < args.steps {
            recorder.borrow_mut().begin(&format!("decode.{step}"), 1, &[0]);
        }
        context.decode(&mut Batch::new(&[next], ids.len() + step, true))?;
        recorder.borrow_mut().end();
        next = greedy.choose(context.logits(0)?);
    }
    drop(context);
    if args.mtp {
        let hidden = std::mem::take(&mut recorder.borrow_mut().hidden);
        capture_block(
            model,
            &ContextOptions { mtp: Mtp::Block, ..options },
            ids,
            &hidden,
            &path.with_extension("mtp.safetensors"),
        )?;
    }

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
        "context": options.n_ctx,
        "rows": if rows.len() == ids.len() { "all" } else { "some; all of what the KV cache is written from" },
        "llama.cpp": ffi::version(),
        "nodes": recorder.nodes,
    });
    tensors.save(path, &description)
}

/// Keeps the nodes of the block; `hidden`: what each position of the prompt ended in.
fn capture_block(
    model: &Model,
    options: &ContextOptions,
    ids: &[i32],
    hidden: &[f32],
    path: &Path,
) -> Result<()> {
    let recorder = Rc::new(RefCell::new(Recorder::default()));
    let sink = Rc::clone(&recorder);
    let observer = Box::new(move |node: &Node| sink.borrow_mut().see(node));
    let mut context = Context::new(model, options, Some(observer))?;
    let row = hidden.len() / ids.len();
    let mut before = vec![0.0; row];
    before.extend_from_slice(&hidden[..hidden.len() - row]);
    let rows: Vec<usize> = (0..ids.len()).collect();
    recorder.borrow_mut().begin("prefill", ids.len(), &rows);
    context.decode(&mut Batch::with_hidden(ids, before))?;
    recorder.borrow_mut().end();
    drop(context);
    let mut recorder = recorder.borrow_mut();
    if let Some(error) = recorder.error.take() {
        return Err(error);
    }
    std::mem::take(&mut recorder.tensors).save(path, &json!({ "llama.cpp": ffi::version() }))
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

/// A name without its layer.
fn stem(name: &str) -> &str {
    name.rsplit_once('-').map_or(name, |(stem, _)| stem)
}

/// ggml made the name up.
fn made_up(name: &str) -> bool {
    name.is_empty() || name.starts_with("node_") || name.starts_with("leaf_") || name.contains(" (")
}

/// The name is one of the graph's code, and of a value that is judged at its own place.
fn named(name: &str) -> bool {
    let stem = stem(name);
    let inside = stem.starts_with("kq") && stem != "kqv_out" || ["v_cont", "norm", "norm_w"].contains(&stem);
    !made_up(name) && !inside && !stem.starts_with("cache_") && !stem.contains("mask")
}

/// The node sorts indices.
fn sorts(node: &Node) -> bool {
    node.op() == "ARGSORT"
}

/// A node's values during a pass.
struct Kept {
    key: String,
    width: usize,
    values: NodeValues,
    /// The KV cache is written from it.
    whole: bool,
}

/// Collects nodes as they are computed.
#[derive(Default)]
struct Recorder {
    /// The phase, while nodes are wanted.
    phase: Option<String>,
    n_tokens: usize,
    rows: Vec<usize>,
    seen: HashMap<String, usize>,
    /// The pass's nodes so far, and where each is by its address.
    pass: Vec<Kept>,
    places: HashMap<usize, usize>,
    /// Names and occurrences that the prefill kept.
    prefill: HashSet<String>,
    tensors: Tensors,
    /// Name and occurrence without a layer -> operation and sizes of a token, in the order of computation.
    nodes: Map<String, Value>,
    /// What the positions of the prompt ended in: `h_nextn`.
    hidden: Vec<f32>,
    error: Option<Error>,
}

impl Recorder {
    fn begin(&mut self, phase: &str, n_tokens: usize, rows: &[usize]) {
        self.phase = Some(phase.into());
        self.n_tokens = n_tokens;
        self.rows = rows.to_vec();
        self.seen.clear();
        self.places.clear();
    }

    /// Puts the pass's nodes into the file, cut to the rows.
    fn end(&mut self) {
        let all: Vec<usize> = (0..self.n_tokens).collect();
        for Kept { key, width, values, whole } in self.pass.drain(..) {
            let rows = if whole { &all } else { &self.rows };
            let shape = [rows.len(), width];
            match values {
                NodeValues::F32(v) => self.tensors.f32(key, &shape, &select(&v, rows, width)),
                NodeValues::I32(v) => self.tensors.i32(key, &shape, &select(&v, rows, width)),
            }
        }
        self.phase = None;
    }

    fn see(&mut self, node: &Node) {
        if self.error.is_none()
            && self.phase.is_some()
            && let Err(error) = self.record(node)
        {
            self.error = Some(error);
        }
    }

    fn record(&mut self, node: &Node) -> Result<()> {
        if writes_cache(node) {
            return self.keep_whole(node);
        }
        let name = node.name();
        if !self.wanted(node, &name) {
            return Ok(());
        }
        let count = self.seen.entry(name.clone()).or_default();
        let id = format!("{name}#{count}");
        let described = format!("{}#{count}", stem(&name));
        *count += 1;
        let phase = self.phase.clone().unwrap_or_default();
        if phase == "prefill" {
            let sizes = match self.streams(node) {
                Some(n) => vec![n, node.sizes()[2]],
                None => token_sizes(node, self.n_tokens),
            };
            let entry = || json!({ "op": node.op(), "token_sizes": sizes });
            self.nodes.entry(described).or_insert_with(entry);
            self.prefill.insert(id.clone());
        } else if !self.prefill.contains(&id) {
            return Ok(());
        }
        self.places.insert(node.address(), self.pass.len());
        let width = node.sizes().iter().product::<usize>() / self.n_tokens;
        let key = format!("{phase}/{id}");
        if phase == "prefill"
            && name == "h_nextn"
            && let NodeValues::F32(values) = node.values()?
        {
            self.hidden = values;
        }
        let values = match (self.streams(node), node.values()?) {
            (Some(n), NodeValues::F32(values)) => NodeValues::F32(by_token(&values, n, self.n_tokens)),
            (_, values) => values,
        };
        self.pass.push(Kept { key, width, values, whole: false });
        Ok(())
    }

    /// The length of a row, where the node is several streams of rows.
    fn streams(&self, node: &Node) -> Option<usize> {
        let sizes = node.sizes();
        let streams = ["ADD", "DIV", "CONCAT"].contains(&&node.op()[..])
            && sizes[1] == self.n_tokens
            && sizes[2] > 1
            && sizes[2] != self.n_tokens
            && sizes[3..].iter().all(|&n| n == 1);
        streams.then_some(sizes[0])
    }

    /// The node belongs into the file.
    fn wanted(&self, node: &Node, name: &str) -> bool {
        let shown = node.is_view().then(|| shown(node));
        let again = shown.is_some_and(|base| !made_up(&base.name()) && !sorts(&base));
        // The last size that is not 1 counts the tokens; with one token there is no telling.
        let tokens = node.sizes().iter().rev().copied().find(|&n| n != 1).unwrap_or(1);
        let by_row = self.n_tokens == 1 || tokens == self.n_tokens;
        let by_row = by_row || self.streams(node).is_some();
        named(name) && !again && !sorts(node) && by_row && node.is_readable()
    }

    /// Marks the node from which the KV cache is written here: the nearest one that is kept.
    fn keep_whole(&mut self, write: &Node) -> Result<()> {
        let Some(place) = write.sources().find_map(|source| self.kept_before(&source)) else {
            // States of other sequences are moved within their cache.
            if write.sources().next().is_some_and(|source| reads_cache(&source)) {
                return Ok(());
            }
            let cache = write.base().map_or_else(String::new, |base| base.name());
            return Err(Error::Ggml(format!("{cache}: no node is kept of what it is written from")));
        };
        self.pass[place].whole = true;
        Ok(())
    }

    /// Where the node is among those kept, or the nearest of those that it is computed from.
    fn kept_before(&self, node: &Node) -> Option<usize> {
        let here = self.places.get(&node.address()).copied();
        here.or_else(|| node.sources().find_map(|source| self.kept_before(&source)))
    }
}

/// The node stores values in the KV cache.
fn writes_cache(node: &Node) -> bool {
    ["SET_ROWS", "CPY"].contains(&&node.op()[..])
        && node.base().is_some_and(|base| base.name().starts_with("cache_"))
}

/// The node is a part of a cache, or rows of one.
fn reads_cache(node: &Node) -> bool {
    let name = node.base().map_or_else(|| node.name(), |base| base.name());
    name.starts_with("cache_") || node.sources().next().is_some_and(|source| reads_cache(&source))
}

/// What a view shows, through other views.
fn shown<'a>(view: &Node<'a>) -> Node<'a> {
    match view.sources().next() {
        Some(source) if source.is_view() => shown(&source),
        Some(source) => source,
        None => unreachable!("a view has a source"),
    }
}

/// The sizes of a token's values.
fn token_sizes(node: &Node, n_tokens: usize) -> Vec<usize> {
    let mut sizes = node.sizes().to_vec();
    while sizes.last() == Some(&1) {
        sizes.pop();
    }
    if n_tokens > 1 {
        sizes.pop();
    }
    sizes
}

/// `[streams][tokens][n]` as `[tokens][streams][n]`.
fn by_token(values: &[f32], n: usize, tokens: usize) -> Vec<f32> {
    let streams = values.len() / (n * tokens);
    let row = |token: usize, stream: usize| &values[(stream * tokens + token) * n..][..n];
    (0..tokens).flat_map(|token| (0..streams).flat_map(move |stream| row(token, stream))).copied().collect()
}

fn select<T: Copy>(values: &[T], rows: &[usize], width: usize) -> Vec<T> {
    rows.iter().flat_map(|&r| values[r * width..(r + 1) * width].iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::{Rows, argmax, by_token, named, stem};

    #[test]
    fn edges_are_kept_of_long_prompts_alone() {
        assert_eq!(Rows::Edges.of(7).len(), 7);
        let expected = [0, 1, 15, 16, 31, 32, 47, 48, 63, 64, 79, 80, 81, 82];
        assert_eq!(Rows::Edges.of(83), expected);
        assert_eq!(Rows::All.of(83).len(), 83);
        assert_eq!(Rows::Ends.of(140), [0, 1, 127, 128, 137, 138, 139]);
    }

    #[test]
    fn streams_are_kept_token_by_token() {
        let values: Vec<f32> = (0..12).map(|v| v as f32).collect();
        assert_eq!(by_token(&values, 2, 3), [0.0, 1.0, 6.0, 7.0, 2.0, 3.0, 8.0, 9.0, 4.0, 5.0, 10.0, 11.0]);
    }

    #[test]
    fn names_of_the_graph_are_kept_outside_of_attention() {
        let all = |names: &[&str], expected: bool| {
            for name in names {
                assert_eq!(named(name), expected, "{name}");
            }
        };
        all(
            &["Qcur-0", "ffn_moe_topk-1", "result_norm", "kqv_out-3", "attn_norm-0", "ffn_sqr(relu)-1"],
            true,
        );
        all(
            &["kq-0", "kq_soft_max-1", "kq_scaled_1-0", "kqv-2", "v_cont-0", "norm-0", "norm", "norm_w-1"],
            false,
        );
        all(&["node_12", "leaf_3", "", "cache_k_l0 (view)", "ffn_moe_weighted-0 (view)"], false);
        all(&["cache_k_l0", "ffn_moe_probs_masked-0"], false);
        assert_eq!((stem("ffn_norm-12"), stem("embd")), ("ffn_norm", "embd"));
    }

    #[test]
    fn the_first_of_equal_logits_wins_with_no_margin() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]), (1, 0.0));
        assert_eq!(argmax(&[1.0, 2.0, 3.5]), (2, 1.5));
    }
}
