//! Reference files: nodes of a run, captured from ggml or saved by a trace.
//!
//! `{pass}/{node}` holds a node ([`NodeId`] says how it is written) of shape [tokens, values a token]; where
//! only some tokens were kept, `rows` says which. Besides: `prompt` (ids), `greedy/ids` (the token fed in
//! each decode step), maybe `greedy/logits` ([steps, vocabulary]; row i is what id i was chosen from) and
//! `greedy/margins`.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::model::NodeId;

use super::nodes::{NodeDescription, NodeGraph};
use super::reference::{Reference, Values};
use super::{Element, TensorFile, VerifyError};

/// The header's description of a reference file, as JSON under `wayinfer`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Description {
    pub format: u32,
    /// Type of the KV cache.
    pub kv: String,
    /// Decode steps whose nodes are there.
    pub decode_steps: usize,
    /// Tokens in a pass; the whole prompt where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// The nodes in the order of computation, where known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<String>,
    /// What each node is computed from, where known: the same in every pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub graph: Vec<NodeDescription>,
}

impl Description {
    /// The header's key.
    pub const KEY: &'static str = "wayinfer";
    /// The version of the layout.
    pub const FORMAT: u32 = 1;
}

/// A reference file.
#[derive(Debug)]
pub struct Golden {
    file: TensorFile,
    description: Description,
    prompt: Vec<u32>,
    /// Tokens of the prompt that nodes were kept of, where not all.
    rows: Vec<usize>,
    greedy: Vec<u32>,
    /// `{pass}/{node}`
    names: Vec<String>,
}

impl Golden {
    /// Opens a reference file.
    ///
    /// # Errors
    /// Where it cannot be read or is no reference file.
    pub fn open(path: &Path) -> Result<Golden, VerifyError> {
        let file = TensorFile::open(path)?;
        let refuse = |problem: String| VerifyError::NotAReference { path: path.to_owned(), problem };
        let text = file
            .text(Description::KEY)
            .ok_or_else(|| refuse(format!("its header has no key {}", Description::KEY)))?;
        let description: Description = serde_json::from_str(text).map_err(|e| refuse(e.to_string()))?;
        if description.format != Description::FORMAT {
            return Err(refuse(format!("format {} is not known", description.format)));
        }
        let ids = |name: &str| -> Result<Vec<u32>, VerifyError> {
            let ids = file.tensor::<i32>(name)?.values;
            ids.into_iter()
                .map(|id| u32::try_from(id).map_err(|_| refuse(format!("{name} holds {id}"))))
                .collect()
        };
        let prompt = ids("prompt")?;
        if prompt.is_empty() {
            return Err(refuse("its prompt is empty".to_owned()));
        }
        let rows: Vec<usize> = match file.contains("rows") {
            true => ids("rows")?.into_iter().map(|row| row as usize).collect(),
            false => (0..prompt.len()).collect(),
        };
        if rows.is_empty() {
            return Err(refuse("it keeps no token of its prompt".to_owned()));
        }
        if rows.iter().any(|&row| row >= prompt.len()) || !rows.is_sorted_by(|a, b| a < b) {
            return Err(refuse("rows are not rising tokens of the prompt".to_owned()));
        }
        let greedy = if file.contains("greedy/ids") { ids("greedy/ids")? } else { Vec::new() };
        if greedy.len() < description.decode_steps {
            return Err(refuse(format!("{} steps, {} ids", description.decode_steps, greedy.len())));
        }
        NodeGraph::described(&description.graph).map_err(&refuse)?;
        let names = node_names(&file, &description.order);
        Ok(Golden { file, description, prompt, rows, greedy, names })
    }

    /// What it was made with.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The prompt's ids.
    pub fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// The tokens that followed, the most probable each time.
    pub fn greedy(&self) -> &[u32] {
        &self.greedy
    }

    /// The tensors themselves.
    pub fn tensors(&self) -> &TensorFile {
        &self.file
    }

    /// The names of all nodes: `{pass}/{node}`, in the order of computation where it is known; else by pass
    /// as they lie in the file.
    pub fn node_names(&self) -> &[String] {
        &self.names
    }

    /// The same, where the file itself gives no order in that of a graph.
    pub(super) fn nodes_in_order(&self, graph: &NodeGraph<'_>) -> Vec<&str> {
        let mut names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        if self.description.order.is_empty() {
            names.sort_by_cached_key(|name| {
                let id = name.split_once('/').and_then(|(_, id)| NodeId::parse(id));
                (pass_of(name), id.and_then(|id| graph.rank(&id)).unwrap_or(usize::MAX))
            });
        }
        names
    }

    /// What the file says of its nodes; an empty graph where it says nothing.
    ///
    /// # Errors
    /// A description that names no nodes.
    pub(super) fn graph(&self) -> Result<NodeGraph<'_>, VerifyError> {
        let path = || self.file.path().to_owned();
        let refuse = |problem| VerifyError::NotAReference { path: path(), problem };
        NodeGraph::described(&self.description.graph).map_err(refuse)
    }

    /// The file as the reference of one run.
    pub fn reference(&self) -> GoldenReference<'_> {
        GoldenReference { golden: self, seen: HashSet::new(), cut: true }
    }

    /// The file as the reference of another file with the same tokens kept: row by row.
    pub(super) fn reference_by_row(&self) -> GoldenReference<'_> {
        GoldenReference { cut: false, ..self.reference() }
    }

    /// The tokens of the prompt that nodes were kept of.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }
}

/// A reference file as the reference of one run; it knows what the run has asked for.
#[derive(Debug)]
pub struct GoldenReference<'a> {
    golden: &'a Golden,
    seen: HashSet<String>,
    /// Whether nodes of some rows only are told apart by their tokens.
    cut: bool,
}

impl GoldenReference<'_> {
    /// Nodes of the file that the run did not have.
    pub fn unseen(&self) -> Vec<String> {
        self.golden.node_names().iter().filter(|name| !self.seen.contains(*name)).cloned().collect()
    }

    fn values<T: Element>(&mut self, pass: &str, id: &NodeId<'_>) -> Result<Option<Values<T>>, VerifyError> {
        let Golden { file, prompt, rows, .. } = self.golden;
        let name = format!("{pass}/{id}");
        if !file.contains(&name) {
            return Ok(None);
        }
        let tensor = file.tensor::<T>(&name)?;
        self.seen.insert(name);
        let tokens = tensor.shape.first().copied().unwrap_or(0);
        let cut = self.cut && pass == "prefill" && tokens != prompt.len() && tokens == rows.len();
        Ok(Some(Values { rows: cut.then(|| rows.clone()), values: tensor.values }))
    }
}

/// The names of a file's nodes: those of `order` first, then the others by pass, as they lie in the file.
fn node_names(file: &TensorFile, order: &[String]) -> Vec<String> {
    let mut seen = HashSet::new();
    let ordered = order.iter().filter(|name| file.contains(name) && seen.insert(name.as_str()));
    let mut names: Vec<String> = ordered.cloned().collect();
    let is_node = |name: &String| {
        name.split_once('/').is_some_and(|(pass, id)| pass != "greedy" && NodeId::parse(id).is_some())
    };
    let others = |name: &String| is_node(name) && !seen.contains(name.as_str());
    let mut others: Vec<String> = file.names().into_iter().filter(others).collect();
    others.sort_by_cached_key(|name| pass_of(name));
    names.extend(others);
    names
}

/// Where the pass of a node stands among passes: prefill, by position, before decode, by step.
fn pass_of(name: &str) -> (usize, usize) {
    let number = |text: &str| text.parse::<usize>().unwrap_or(0);
    let pass = name.split_once('/').map_or("", |(pass, _)| pass);
    match pass.split_once('.') {
        Some(("prefill", from)) => (0, number(from)),
        Some((_, step)) => (1, number(step)),
        None => (0, 0),
    }
}

impl Reference for GoldenReference<'_> {
    fn floats(&mut self, pass: &str, id: &NodeId<'_>) -> Result<Option<Values<f32>>, VerifyError> {
        self.values(pass, id)
    }

    fn indices(&mut self, pass: &str, id: &NodeId<'_>) -> Result<Option<Values<u32>>, VerifyError> {
        let Some(Values { rows, values }) = self.values::<i32>(pass, id)? else { return Ok(None) };
        // A negative index is none that we could have: it stays different.
        Ok(Some(Values { rows, values: values.into_iter().map(|id| id as u32).collect() }))
    }

    fn token(&mut self, step: usize) -> Result<Option<u32>, VerifyError> {
        Ok(self.golden.greedy.get(step).copied())
    }
}
