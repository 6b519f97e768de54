//! Compares two files of nodes.

use crate::model::{KvType, NodeId};

use super::VerifyError;
use super::compare::Comparer;
use super::golden::Golden;
use super::nodes::NodeGraph;
use super::reference::Reference;
use super::report::{CompareOptions, NodeReport, Substitute};
use super::run::PassObserver;

/// What two files have in common, compared, and what only one of them has. Names are those of the files.
#[derive(Debug)]
pub struct FileDiff<'g> {
    /// What the second file says of its nodes, or else the first.
    pub graph: NodeGraph<'g>,
    pub reports: Vec<NodeReport<'g>>,
    /// Nodes of the first file that the second does not have.
    pub only_first: Vec<String>,
    /// The same the other way round.
    pub only_second: Vec<String>,
}

/// Compares the nodes of `second` with those of `first`, which is the reference, in the order of computation.
///
/// # Errors
/// Tensors that cannot be read, nodes of different shapes; a second file that has only some tokens of its
/// prompt, other ones than the first.
pub fn diff<'g>(
    first: &'g Golden,
    second: &'g Golden,
    options: CompareOptions,
) -> Result<FileDiff<'g>, VerifyError> {
    let options =
        CompareOptions { substitute: Substitute::Nowhere, flips: false, kv: KvType::F32, ..options };
    let graph = [second.graph()?, first.graph()?].into_iter().find(|graph| !graph.is_empty());
    let graph = graph.unwrap_or_default();
    let reference = match first.rows() == second.rows() {
        true => first.reference_by_row(),
        false if second.rows().len() == second.prompt().len() => first.reference(),
        false => return Err(VerifyError::Rows { path: second.tensors().path().to_owned() }),
    };
    let mut comparer = Comparer::new(&graph, reference, options);
    let mut pass = None;
    for name in second.nodes_in_order(&graph) {
        let Some((of, Some(id))) = name.split_once('/').map(|(of, id)| (of, NodeId::parse(id))) else {
            continue;
        };
        if pass != Some(of) {
            comparer.begin(of, 0);
            pass = Some(of);
        }
        replay(&mut comparer, second, name, id)?;
    }
    let (reports, only_second, reference) = comparer.finish();
    let only_first = reference.unseen();
    Ok(FileDiff { graph, reports, only_first, only_second })
}

/// Shows a stored node to the comparer as if it were computed now.
fn replay<'g>(
    comparer: &mut Comparer<'_, 'g, impl Reference + Send>,
    file: &Golden,
    name: &str,
    id: NodeId<'g>,
) -> Result<(), VerifyError> {
    let tensors = file.tensors();
    let shape = |shape: &[usize], values: usize| {
        let tokens = shape.first().copied().unwrap_or(0);
        [tokens, values / tokens.max(1), 1]
    };
    if tensors.is::<i32>(name) {
        let tensor = tensors.tensor::<i32>(name)?;
        let mut values: Vec<u32> = tensor.values.into_iter().map(|v| v as u32).collect();
        comparer.compare_indices(id, shape(&tensor.shape, values.len()), &mut values)
    } else {
        let mut tensor = tensors.tensor::<f32>(name)?;
        comparer.compare_floats(id, shape(&tensor.shape, tensor.values.len()), &mut tensor.values)
    }
}
