//! Compares two files of nodes.

use crate::model::{KvType, Node};

use super::VerifyError;
use super::compare::{CompareOptions, Comparer, NodeReport, Reference};
use super::golden::Golden;
use super::nodes::{NodeGraph, NodeId};
use super::run::PassObserver;

/// What two files have in common, compared, and what only one of them has.
#[derive(Debug)]
pub struct FileDiff {
    pub graph: NodeGraph,
    pub reports: Vec<NodeReport>,
    /// Nodes of the first file that were not compared: the second does not have them, or no architecture names them.
    pub only_first: Vec<String>,
    /// The same the other way round.
    pub only_second: Vec<String>,
}

/// Compares the nodes of `second` with those of `first`, which is the reference, in the order of computation.
///
/// # Errors
/// Tensors that cannot be read, nodes of different shapes; a second file that has only some tokens of its prompt, other
/// ones than the first.
pub fn diff(first: &Golden, second: &Golden, options: CompareOptions) -> Result<FileDiff, VerifyError> {
    let options = CompareOptions { isolate: false, flips: false, kv: KvType::F32, ..options };
    let names = second.node_names();
    let layers = names.iter().filter_map(|name| NodeId::parse(name.split_once('/')?.1)?.layer).max();
    let graph = NodeGraph::without_weights(layers.map_or(0, |last| last + 1));
    let reference = match first.rows() == second.rows() {
        true => first.reference_by_row(),
        false if second.rows().len() == second.prompt().len() => first.reference(),
        false => return Err(VerifyError::Rows { path: second.tensors().path().to_owned() }),
    };
    let mut comparer = Comparer::new(&graph, reference, options);
    let mut unknown = Vec::new();
    let mut pass = None;
    for name in &names {
        let Some((of, id)) = name.split_once('/') else { continue };
        if pass != Some(of) {
            comparer.begin(of, 0);
            pass = Some(of);
        }
        match NodeId::parse(id).and_then(|id| id.known()) {
            Some(id) => replay(&mut comparer, second, name, id)?,
            None => unknown.push(name.clone()),
        }
    }
    let (reports, mut only_second, reference) = comparer.finish();
    only_second.extend(unknown);
    let only_first = reference.unseen();
    Ok(FileDiff { graph, reports, only_first, only_second })
}

/// Shows a stored node to the comparer as if it were computed now.
fn replay(
    comparer: &mut Comparer<'_, impl Reference + Send>,
    file: &Golden,
    name: &str,
    id: NodeId<'static>,
) -> Result<(), VerifyError> {
    let tensors = file.tensors();
    let node = |shape: &[usize], values: usize| {
        let tokens = shape.first().copied().unwrap_or(0);
        Node { name: id.name, layer: id.layer, shape: [tokens, values / tokens.max(1), 1] }
    };
    if tensors.is::<i32>(name) {
        let tensor = tensors.tensor::<i32>(name)?;
        let mut values: Vec<u32> = tensor.values.into_iter().map(|v| v as u32).collect();
        comparer.compare_indices(id, node(&tensor.shape, values.len()), &mut values)
    } else {
        let mut tensor = tensors.tensor::<f32>(name)?;
        comparer.compare_floats(id, node(&tensor.shape, tensor.values.len()), &mut tensor.values)
    }
}
