//! Keeps the nodes of a run: in a file, or as statistics.

use std::collections::HashSet;

use crate::model::{Node, NodeId, Observer};

use super::golden::Description;
use super::nodes::NodeDescription;
use super::report::NodeFilter;
use super::run::PassObserver;
use super::{Statistics, TensorWriter, VerifyError};

/// Writes the nodes of a run to a reference file as they come.
pub struct Recorder {
    writer: TensorWriter,
    filter: NodeFilter,
    pass: String,
    /// The nodes described so far.
    known: HashSet<NodeId<'static>>,
    graph: Vec<NodeDescription>,
    fed: Vec<i32>,
    error: Option<VerifyError>,
}

impl Recorder {
    /// A recorder of the wanted nodes.
    pub fn new(writer: TensorWriter, filter: NodeFilter) -> Recorder {
        Recorder {
            writer,
            filter,
            pass: String::new(),
            known: HashSet::new(),
            graph: Vec::new(),
            fed: Vec::new(),
            error: None,
        }
    }

    /// Writes the file; returns the number of nodes.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn finish(mut self, prompt: &[u32], kv: &str, batch: usize) -> Result<usize, VerifyError> {
        let order: Vec<String> = self.writer.names().map(str::to_owned).collect();
        let nodes = order.len();
        let prompt: Vec<i32> = prompt.iter().map(|&id| id as i32).collect();
        self.writer.add("prompt", &[prompt.len()], &prompt)?;
        self.writer.add("greedy/ids", &[self.fed.len()], &self.fed)?;
        let description = Description {
            format: Description::FORMAT,
            kv: kv.to_owned(),
            decode_steps: self.fed.len(),
            batch: Some(batch),
            order,
            graph: self.graph,
        };
        self.writer.text(Description::KEY, serde_json::to_string(&description)?);
        self.writer.finish()?;
        Ok(nodes)
    }

    fn keep<T: super::Element>(&mut self, node: &Node<'_>, values: &[T]) {
        let id = node.id;
        if self.error.is_none() && self.filter.wants(&id) {
            if self.known.insert(id) {
                self.graph.push(NodeDescription::of(node));
            }
            let tokens = node.shape[0];
            let shape = [tokens, values.len() / tokens.max(1)];
            let added = self.writer.add(&format!("{}/{id}", self.pass), &shape, values);
            self.error = added.err().map(VerifyError::from);
        }
    }
}

impl Observer for Recorder {
    fn active(&self) -> bool {
        true
    }

    fn node(&mut self, node: &Node<'_>, values: &mut [f32]) {
        self.keep(node, values);
    }

    fn indices(&mut self, node: &Node<'_>, values: &mut [u32]) {
        let ids: Vec<i32> = values.iter().map(|&id| id as i32).collect();
        self.keep(node, &ids);
    }
}

impl PassObserver for Recorder {
    fn begin(&mut self, pass: &str, _: usize) {
        pass.clone_into(&mut self.pass);
    }

    fn end(&mut self) -> Result<(), VerifyError> {
        self.error.take().map_or(Ok(()), Err)
    }

    fn next_token(&mut self, _: usize, own: u32) -> Result<u32, VerifyError> {
        self.fed.push(own as i32);
        Ok(own)
    }
}

/// What the values of a node look like.
#[derive(Clone, Debug)]
pub struct NodeStatistics {
    pub pass: String,
    pub id: NodeId<'static>,
    /// As in [`Node`].
    pub shape: [usize; 3],
    pub values: Statistics,
}

/// Watches a run and keeps the statistics of its nodes.
#[derive(Default)]
pub struct Statistician {
    filter: NodeFilter,
    pass: String,
    nodes: Vec<NodeStatistics>,
}

impl Statistician {
    /// A statistician of the wanted nodes.
    pub fn new(filter: NodeFilter) -> Statistician {
        Statistician { filter, ..Statistician::default() }
    }

    /// The statistics, in the order of computation.
    pub fn finish(self) -> Vec<NodeStatistics> {
        self.nodes
    }

    fn keep(&mut self, node: &Node<'_>, values: &[f32]) {
        let id = node.id;
        if !self.filter.wants(&id) {
            return;
        }
        let mut statistics = Statistics::default();
        statistics.add(values);
        let (pass, shape) = (self.pass.clone(), node.shape);
        self.nodes.push(NodeStatistics { pass, id, shape, values: statistics });
    }
}

impl Observer for Statistician {
    fn active(&self) -> bool {
        true
    }

    fn node(&mut self, node: &Node<'_>, values: &mut [f32]) {
        self.keep(node, values);
    }

    fn indices(&mut self, node: &Node<'_>, values: &mut [u32]) {
        self.keep(node, &values.iter().map(|&id| id as f32).collect::<Vec<_>>());
    }
}

impl PassObserver for Statistician {
    fn begin(&mut self, pass: &str, _: usize) {
        pass.clone_into(&mut self.pass);
    }
}
