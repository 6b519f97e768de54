//! Compares the nodes of a run with a reference as they come, and may put the reference in their place.

use std::collections::HashMap;

use crate::model::{Node, NodeId, Observer, Work};
use crate::quant::{ActivationRow, ActivationType, Activations};

use super::nodes::NodeGraph;
use super::reference::{Reference, Rows, Values};
use super::report::{Choices, CompareOptions, Flips, InputState, NodeReport};
use super::{Difference, VerifyError};

/// How a node stands once it is compared.
#[derive(Debug)]
struct NodeState {
    against: InputState,
    /// The tokens whose values its reference has; all where not given.
    rows: Option<Vec<usize>>,
}

/// Watches a run and compares each node with its reference.
///
/// Names of nodes live as long as `'n`: forever in a run, as long as the file where nodes come from one.
pub struct Comparer<'a, 'n, R> {
    graph: &'a NodeGraph<'n>,
    reference: R,
    options: CompareOptions,
    pass: String,
    states: HashMap<NodeId<'n>, NodeState>,
    reports: Vec<NodeReport<'n>>,
    /// What is allowed of nodes of this pass that the reference does not have: what is computed from them is
    /// judged together with them.
    unnamed: HashMap<NodeId<'n>, f64>,
    /// Nodes that the reference does not have.
    missing: Vec<String>,
    error: Option<VerifyError>,
    rounded: [Activations; 2],
    /// Values a token of the router's last node: before the choice, as many as there are experts.
    experts: usize,
}

impl<'a, 'n, R: Reference + Send> Comparer<'a, 'n, R> {
    /// A comparer with nothing seen yet.
    pub fn new(graph: &'a NodeGraph<'n>, reference: R, options: CompareOptions) -> Comparer<'a, 'n, R> {
        Comparer {
            graph,
            reference,
            options,
            pass: String::new(),
            states: HashMap::new(),
            reports: Vec::new(),
            unnamed: HashMap::new(),
            missing: Vec::new(),
            error: None,
            rounded: [Activations::new(), Activations::new()],
            experts: 0,
        }
    }

    /// The reports in the order of computation, and the nodes that the reference did not have.
    pub fn finish(self) -> (Vec<NodeReport<'n>>, Vec<String>, R) {
        (self.reports, self.missing, self.reference)
    }

    /// Compares a node of floats of this shape (that of a [`Node`]).
    ///
    /// # Errors
    /// A reference that cannot be had or is of another shape.
    pub(super) fn compare_floats(
        &mut self,
        id: NodeId<'n>,
        shape: [usize; 3],
        values: &mut [f32],
    ) -> Result<(), VerifyError> {
        let Some(reference) = self.reference.floats(&self.pass, &id)? else {
            self.unnamed.insert(id, self.allowed(&id));
            self.missing.push(format!("{}/{id}", self.pass));
            return Ok(());
        };
        let rows = self.rows(&id, shape, values.len(), &reference)?;
        let mut difference = Difference::default();
        for (row, reference) in rows.judged(&reference.values) {
            difference.add(reference, &values[row * rows.len..][..rows.len]);
        }
        let flips = match self.graph.rounded_to(&id) {
            Some(ty) if self.options.flips => self.flips(ty, shape, &rows, &reference.values, values),
            _ => None,
        };
        if self.options.isolate {
            rows.put(&reference.values, values);
        }
        self.report(shape, id, rows, difference, None, flips);
        Ok(())
    }

    /// The rows of a node that its reference has, and those of them that can be judged: where all nodes are
    /// to be computed from equal inputs, the rows that the inputs' references have as well.
    fn rows<T>(
        &self,
        id: &NodeId<'n>,
        shape: [usize; 3],
        values: usize,
        reference: &Values<T>,
    ) -> Result<Rows, VerifyError> {
        let mut rows = Rows::new(&self.pass, id, shape[0], values, reference)?;
        if self.options.isolate {
            let known =
                self.graph.inputs(id).iter().filter_map(|input| self.states.get(input)?.rows.as_ref());
            for known in known {
                rows.judged.retain(|row| known.binary_search(row).is_ok());
            }
        }
        Ok(rows)
    }

    /// Compares a node of indices.
    ///
    /// # Errors
    /// As [`Comparer::compare_floats`].
    pub(super) fn compare_indices(
        &mut self,
        id: NodeId<'n>,
        shape: [usize; 3],
        values: &mut [u32],
    ) -> Result<(), VerifyError> {
        let Some(reference) = self.reference.indices(&self.pass, &id)? else {
            self.missing.push(format!("{}/{id}", self.pass));
            return Ok(());
        };
        let rows = self.rows(&id, shape, values.len(), &reference)?;
        let mut difference = Difference::default();
        let mut choices = Choices::default();
        for (row, reference) in rows.judged(&reference.values) {
            let own = &values[row * rows.len..][..rows.len];
            let floats = |ids: &[u32]| ids.iter().map(|&id| id as f32).collect::<Vec<_>>();
            difference.add(&floats(reference), &floats(own));
            choices.tokens += 1;
            if own != reference {
                let sorted = |ids: &[u32]| {
                    let mut ids = ids.to_vec();
                    ids.sort_unstable();
                    ids
                };
                match sorted(own) == sorted(reference) {
                    true => choices.orders_differ += 1,
                    false => choices.sets_differ += 1,
                }
            }
        }
        if self.options.isolate {
            if let Some(&index) = reference.values.iter().find(|&&index| index as usize >= self.experts) {
                let (node, experts) = (format!("{}/{id}", self.pass), self.experts);
                return Err(VerifyError::Choice { node, index: index as i32, experts });
            }
            rows.put(&reference.values, values);
        }
        self.report(shape, id, rows, difference, Some(choices), None);
        Ok(())
    }

    /// The NMSE allowed of a node, that of the nodes without a reference that it is computed from included.
    fn allowed(&self, id: &NodeId<'n>) -> f64 {
        let own = self.options.tolerance.of(id, self.graph, self.options.kv);
        let inputs = self.graph.inputs(id).iter();
        inputs.filter_map(|input| self.unnamed.get(input)).fold(own, |most, &allowed| most.max(allowed))
    }

    fn report(
        &mut self,
        shape: [usize; 3],
        id: NodeId<'n>,
        rows: Rows,
        difference: Difference,
        choices: Option<Choices>,
        flips: Option<Flips>,
    ) {
        let tolerance = self.allowed(&id);
        let beyond = match choices {
            // On equal inputs the order of rank counts as well; else another order alone changes sums by a
            // rounding.
            Some(c) => {
                c.sets_differ > 0 || (c.orders_differ > 0 && (self.options.isolate || tolerance == 0.0))
            }
            None if tolerance == 0.0 => !difference.is_none(),
            None => difference.nmse() > tolerance,
        };
        let against = match (difference.is_none() || self.options.isolate, beyond) {
            (true, _) => InputState::Equal,
            (false, false) => InputState::Within,
            (false, true) => InputState::Beyond,
        };
        let inputs =
            self.graph.inputs(&id).iter().filter_map(|input| Some(self.states.get(input)?.against)).max();
        let largest_at = difference.largest_at.map(|at| {
            let at = at as usize;
            (rows.judged[at / rows.len], at % rows.len)
        });
        self.states.insert(id, NodeState { against, rows: rows.rows });
        if !self.options.filter.wants(&id) {
            return;
        }
        if difference.count == 0 {
            self.missing.push(format!("{}/{id}", self.pass));
            return;
        }
        let pass = self.pass.clone();
        self.reports.push(NodeReport {
            pass,
            id,
            shape,
            difference,
            largest_at,
            choices,
            flips,
            inputs,
            tolerance,
            beyond,
        });
    }

    /// Roundings that differ; `None` where the type is no 8-bit one or a value is not finite.
    fn flips(
        &mut self,
        ty: ActivationType,
        shape: [usize; 3],
        rows: &Rows,
        reference: &[f32],
        values: &[f32],
    ) -> Option<Flips> {
        if !ty.is_quantised() {
            return None;
        }
        let cols = if shape[2] > 1 { shape[2] } else { shape[1] };
        let [ours, theirs] = &mut self.rounded;
        let mut flips = Flips::default();
        for (row, reference) in rows.judged(reference) {
            ours.quantize(ty, &values[row * rows.len..][..rows.len], cols).ok()?;
            theirs.quantize(ty, reference, cols).ok()?;
            for r in 0..ours.rows() {
                let (a, b) = (integers(ours.row(r)), integers(theirs.row(r)));
                flips.values += a.len() as u64;
                flips.flipped += a.iter().zip(b).filter(|(a, b)| a != b).count() as u64;
            }
        }
        Some(flips)
    }
}

fn integers(row: ActivationRow<'_>) -> &[i8] {
    match row {
        ActivationRow::Q8_0(row) | ActivationRow::Q8_1(row) => row.qs,
        ActivationRow::Q8K(row) => row.qs,
        ActivationRow::Floats(..) => &[],
    }
}

impl<R: Reference + Send> Observer for Comparer<'_, '_, R> {
    fn active(&self) -> bool {
        true
    }

    fn node(&mut self, node: &Node<'_>, values: &mut [f32]) {
        // The choice of experts is made of as many values as there are.
        if node.work == Work::Router {
            self.experts = node.shape[1];
        }
        if self.error.is_none() {
            self.error = self.compare_floats(node.id, node.shape, values).err();
        }
    }

    fn indices(&mut self, node: &Node<'_>, values: &mut [u32]) {
        if self.error.is_none() {
            self.error = self.compare_indices(node.id, node.shape, values).err();
        }
    }
}

impl<R: Reference + Send> super::run::PassObserver for Comparer<'_, '_, R> {
    fn begin(&mut self, pass: &str, _: usize) {
        pass.clone_into(&mut self.pass);
        self.states.clear();
        self.unnamed.clear();
    }

    fn end(&mut self) -> Result<(), VerifyError> {
        self.error.take().map_or(Ok(()), Err)
    }

    fn next_token(&mut self, step: usize, own: u32) -> Result<u32, VerifyError> {
        Ok(self.reference.token(step)?.unwrap_or(own))
    }
}
