//! Compares the nodes of a run with a reference as they come, and may put the reference in their place.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use globset::GlobMatcher;

use crate::model::{KvType, Node, Observer};
use crate::quant::{ActivationRow, ActivationType, Activations};

use super::bounds;
use super::nodes::{NodeCounter, NodeGraph, NodeId, NodeKind};
use super::{Difference, VerifyError};

/// Values of a node in the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Values<T> {
    /// The tokens of the pass that they are of; all where not given.
    pub rows: Option<Vec<usize>>,
    /// `[tokens or rows][values a token]`
    pub values: Vec<T>,
}

/// Where reference values come from.
pub trait Reference {
    /// A node of floats of this pass; `None` where the reference does not have it.
    ///
    /// # Errors
    /// Where it cannot be had.
    fn floats(&mut self, pass: &str, id: &NodeId<'_>) -> Result<Option<Values<f32>>, VerifyError>;

    /// A node of indices.
    ///
    /// # Errors
    /// Where it cannot be had.
    fn indices(&mut self, pass: &str, id: &NodeId<'_>) -> Result<Option<Values<u32>>, VerifyError>;

    /// The token that follows the pass, where the reference says which.
    ///
    /// # Errors
    /// Where it cannot be had.
    fn token(&mut self, step: usize) -> Result<Option<u32>, VerifyError>;
}

/// How far a node may be from its reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Not at all: every bit the same.
    SameBits,
    /// Up to this NMSE.
    Nmse(f64),
    /// Up to what [`bounds`] allows this node on equal inputs.
    Bounds,
}

impl Tolerance {
    fn of(self, id: &NodeId<'_>, graph: &NodeGraph, kv: KvType) -> f64 {
        match self {
            Tolerance::SameBits => 0.0,
            Tolerance::Nmse(nmse) => nmse,
            Tolerance::Bounds => {
                graph.kind(id).map_or(0.0, |kind| bounds::isolated(kind, graph.weight_type(id), kv))
            }
        }
    }
}

/// Which nodes are reported.
#[derive(Clone, Debug, Default)]
pub struct NodeFilter {
    pub layers: Option<RangeInclusive<usize>>,
    /// Of names without layer and occurrence.
    pub names: Option<GlobMatcher>,
}

impl NodeFilter {
    /// Whether a node is wanted. Nodes outside of layers are, unless layers are named.
    pub fn wants(&self, id: &NodeId<'_>) -> bool {
        let layer = self.layers.as_ref().is_none_or(|layers| id.layer.is_some_and(|l| layers.contains(&l)));
        layer && self.names.as_ref().is_none_or(|names| names.is_match(id.name))
    }
}

/// How to compare.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// Puts the reference in the place of each node once it is compared: all nodes are computed from equal inputs.
    pub isolate: bool,
    pub tolerance: Tolerance,
    /// Of the run, for [`Tolerance::Bounds`].
    pub kv: KvType,
    pub filter: NodeFilter,
    /// Counts roundings to 8 bits that come out otherwise.
    pub flips: bool,
}

/// Chosen experts against those of the reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// Tokens compared.
    pub tokens: usize,
    /// Tokens that other experts were chosen for.
    pub sets_differ: usize,
    /// Tokens of the same experts in another order.
    pub orders_differ: usize,
}

/// 8-bit roundings of a product's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flips {
    pub values: u64,
    pub flipped: u64,
}

/// The nodes that a node was computed from, as they stood against their reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InputState {
    /// The same bits (or the reference's own values were put there).
    Equal,
    /// Different, within tolerance.
    Within,
    /// Different beyond tolerance.
    Beyond,
}

/// How a node stands once it is compared.
#[derive(Debug)]
struct NodeState {
    against: InputState,
    /// The tokens whose values its reference has; all where not given.
    rows: Option<Vec<usize>>,
}

/// A node compared.
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// `prefill`, `decode.0`, ..
    pub pass: String,
    pub id: NodeId<'static>,
    /// As in [`Node`].
    pub shape: [usize; 3],
    /// Differences of floats, or of indices as floats.
    pub difference: Difference,
    /// Where the largest difference is: token of the pass, value of the token.
    pub largest_at: Option<(usize, usize)>,
    pub choices: Option<Choices>,
    pub flips: Option<Flips>,
    /// The worst of the inputs; `None` where none was compared.
    pub inputs: Option<InputState>,
    /// The NMSE allowed; 0 is the same bits.
    pub tolerance: f64,
    /// Whether the difference is more than that.
    pub beyond: bool,
}

/// Watches a run and compares each node with its reference.
pub struct Comparer<'a, R> {
    graph: &'a NodeGraph,
    reference: R,
    options: CompareOptions,
    pass: String,
    counter: NodeCounter,
    states: HashMap<NodeId<'static>, NodeState>,
    reports: Vec<NodeReport>,
    /// Nodes that the reference does not have.
    missing: Vec<String>,
    error: Option<VerifyError>,
    rounded: [Activations; 2],
    /// Experts of the layer at hand, as many as the router has outputs.
    experts: usize,
}

impl<'a, R: Reference + Send> Comparer<'a, R> {
    /// A comparer with nothing seen yet.
    pub fn new(graph: &'a NodeGraph, reference: R, options: CompareOptions) -> Comparer<'a, R> {
        Comparer {
            graph,
            reference,
            options,
            pass: String::new(),
            counter: NodeCounter::default(),
            states: HashMap::new(),
            reports: Vec::new(),
            missing: Vec::new(),
            error: None,
            rounded: [Activations::new(), Activations::new()],
            experts: 0,
        }
    }

    /// The reports in the order of computation, and the nodes that the reference did not have.
    pub fn finish(self) -> (Vec<NodeReport>, Vec<String>, R) {
        (self.reports, self.missing, self.reference)
    }

    /// Compares a node of floats of this [`Node`]'s shape.
    ///
    /// # Errors
    /// A reference that cannot be had or is of another shape.
    pub(super) fn compare_floats(
        &mut self,
        id: NodeId<'static>,
        node: Node,
        values: &mut [f32],
    ) -> Result<(), VerifyError> {
        if self.graph.kind(&id) == Some(NodeKind::Softmax) {
            self.experts = node.shape[1];
        }
        let Some(reference) = self.reference.floats(&self.pass, &id)? else {
            self.missing.push(format!("{}/{id}", self.pass));
            return Ok(());
        };
        let rows = self.rows(&id, node, values.len(), &reference)?;
        let mut difference = Difference::default();
        for (row, reference) in rows.judged(&reference.values) {
            difference.add(reference, &values[row * rows.len..][..rows.len]);
        }
        let flips = match self.graph.rounded_to(&id) {
            Some(ty) if self.options.flips => self.flips(ty, node, &rows, &reference.values, values),
            _ => None,
        };
        if self.options.isolate {
            rows.put(&reference.values, values);
        }
        self.report(node, id, rows, difference, None, flips);
        Ok(())
    }

    /// The rows of a node that its reference has, and those of them that can be judged: where all nodes are to be
    /// computed from equal inputs, the rows that the inputs' references have as well.
    fn rows<T>(
        &self,
        id: &NodeId<'static>,
        node: Node,
        values: usize,
        reference: &Values<T>,
    ) -> Result<Rows, VerifyError> {
        let mut rows = Rows::new(&self.pass, id, node, values, reference)?;
        if self.options.isolate {
            let known = self.graph.inputs(id).filter_map(|input| self.states.get(&input)?.rows.as_ref());
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
        id: NodeId<'static>,
        node: Node,
        values: &mut [u32],
    ) -> Result<(), VerifyError> {
        let Some(reference) = self.reference.indices(&self.pass, &id)? else {
            self.missing.push(format!("{}/{id}", self.pass));
            return Ok(());
        };
        let rows = self.rows(&id, node, values.len(), &reference)?;
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
        self.report(node, id, rows, difference, Some(choices), None);
        Ok(())
    }

    fn report(
        &mut self,
        node: Node,
        id: NodeId<'static>,
        rows: Rows,
        difference: Difference,
        choices: Option<Choices>,
        flips: Option<Flips>,
    ) {
        let tolerance = self.options.tolerance.of(&id, self.graph, self.options.kv);
        let beyond = match choices {
            // On equal inputs the order of rank counts as well; else another order alone changes sums by a rounding.
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
        let inputs = self.graph.inputs(&id).filter_map(|input| Some(self.states.get(&input)?.against)).max();
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
        let (pass, shape) = (self.pass.clone(), node.shape);
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
        node: Node,
        rows: &Rows,
        reference: &[f32],
        values: &[f32],
    ) -> Option<Flips> {
        if !ty.is_quantised() {
            return None;
        }
        let cols = if node.shape[2] > 1 { node.shape[2] } else { node.shape[1] };
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

impl<R: Reference + Send> Observer for Comparer<'_, R> {
    fn active(&self) -> bool {
        true
    }

    fn node(&mut self, node: Node, values: &mut [f32]) {
        let id = self.counter.next(node);
        if self.error.is_none() {
            self.error = self.compare_floats(id, node, values).err();
        }
    }

    fn indices(&mut self, node: Node, values: &mut [u32]) {
        let id = self.counter.next(node);
        if self.error.is_none() {
            self.error = self.compare_indices(id, node, values).err();
        }
    }
}

impl<R: Reference + Send> super::run::PassObserver for Comparer<'_, R> {
    fn begin(&mut self, pass: &str, _: usize) {
        pass.clone_into(&mut self.pass);
        self.counter.reset();
        self.states.clear();
    }

    fn end(&mut self) -> Result<(), VerifyError> {
        self.error.take().map_or(Ok(()), Err)
    }

    fn next_token(&mut self, step: usize, own: u32) -> Result<u32, VerifyError> {
        Ok(self.reference.token(step)?.unwrap_or(own))
    }
}

/// Which rows of a node its reference has.
struct Rows {
    rows: Option<Vec<usize>>,
    /// The tokens to judge, rising.
    judged: Vec<usize>,
    /// Values of a row.
    len: usize,
}

impl Rows {
    fn new<T>(
        pass: &str,
        id: &NodeId<'_>,
        node: Node,
        values: usize,
        reference: &Values<T>,
    ) -> Result<Rows, VerifyError> {
        let tokens = node.shape[0];
        let len = values / tokens.max(1);
        let rows = reference.rows.as_ref().map_or(tokens, Vec::len);
        let outside = reference.rows.iter().flatten().any(|&row| row >= tokens);
        if outside || reference.values.len() != rows * len || len == 0 {
            return Err(VerifyError::Shape {
                node: format!("{pass}/{id}"),
                found: values,
                wanted: reference.values.len(),
                tokens,
                rows,
            });
        }
        let judged = reference.rows.clone().unwrap_or_else(|| (0..tokens).collect());
        Ok(Rows { rows: reference.rows.clone(), judged, len })
    }

    /// The rows of the reference with their tokens.
    fn pairs<'r, T>(&'r self, reference: &'r [T]) -> impl Iterator<Item = (usize, &'r [T])> {
        let token = |n: usize| self.rows.as_ref().map_or(n, |rows| rows[n]);
        reference.chunks_exact(self.len).enumerate().map(move |(n, row)| (token(n), row))
    }

    /// Those of them that are to be judged.
    fn judged<'r, T>(&'r self, reference: &'r [T]) -> impl Iterator<Item = (usize, &'r [T])> {
        self.pairs(reference).filter(|(row, _)| self.judged.binary_search(row).is_ok())
    }

    /// Puts the reference in the place of the values that it has.
    fn put<T: Copy>(&self, reference: &[T], values: &mut [T]) {
        for (row, reference) in self.pairs(reference) {
            values[row * self.len..][..self.len].copy_from_slice(reference);
        }
    }
}
