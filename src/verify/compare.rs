//! Compares the nodes of a run with a reference as they come, and may put the reference in their place.

use std::collections::HashMap;

use crate::model::{Node, NodeId, Observer, Work};
use crate::quant::{ActivationRow, Activations};

use super::nodes::NodeGraph;
use super::reference::{Reference, Rows, Values};
use super::report::{Choices, CompareOptions, Flips, InputState, NodeReport, Substitute};
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
        let (flips, rounded_otherwise) = self.flips(&id, shape, &rows, &reference.values, values);
        let substituted = match self.options.substitute {
            Substitute::Nowhere => 0,
            Substitute::Roundings => {
                rows.put_where(&reference.values, values, |row| rounded_otherwise.binary_search(&row).is_ok())
            }
            Substitute::Everywhere => rows.put_where(&reference.values, values, |_| true),
        };
        self.report(shape, id, rows, Findings { difference, choices: None, flips, substituted });
        Ok(())
    }

    fn isolates(&self) -> bool {
        self.options.substitute == Substitute::Everywhere
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
        if self.isolates() {
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
        let (mut choices, mut chosen_otherwise) = (Choices::default(), Vec::new());
        for (row, reference) in rows.judged(&reference.values) {
            let own = &values[row * rows.len..][..rows.len];
            let floats = |ids: &[u32]| ids.iter().map(|&id| id as f32).collect::<Vec<_>>();
            difference.add(&floats(reference), &floats(own));
            choices.tokens += 1;
            if own != reference {
                chosen_otherwise.push(row);
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
        let mut substituted = 0;
        if self.options.substitute != Substitute::Nowhere {
            if let Some(&index) = reference.values.iter().find(|&&index| index as usize >= self.experts) {
                let (node, experts) = (format!("{}/{id}", self.pass), self.experts);
                return Err(VerifyError::Choice { node, index: index as i32, experts });
            }
            let everywhere = self.isolates();
            substituted = rows.put_where(&reference.values, values, |row| {
                everywhere || chosen_otherwise.binary_search(&row).is_ok()
            });
        }
        let choices = Some(choices);
        self.report(shape, id, rows, Findings { difference, choices, flips: None, substituted });
        Ok(())
    }

    /// The NMSE allowed of a node, that of the nodes without a reference that it is computed from included.
    fn allowed(&self, id: &NodeId<'n>) -> f64 {
        let own = self.options.tolerance.of(id, self.graph, self.options.kv, self.options.positions);
        let inputs = self.graph.inputs(id).iter();
        inputs.filter_map(|input| self.unnamed.get(input)).fold(own, |most, &allowed| most.max(allowed))
    }

    fn report(&mut self, shape: [usize; 3], id: NodeId<'n>, rows: Rows, findings: Findings) {
        let Findings { difference, choices, flips, substituted } = findings;
        let tolerance = self.allowed(&id);
        let beyond = match choices {
            // Scores that are within their tolerance come near a tie there.
            Some(_) if self.options.substitute == Substitute::Roundings => false,
            // On equal inputs the order of rank counts as well; else another order alone changes sums by a
            // rounding.
            Some(c) => c.sets_differ > 0 || (c.orders_differ > 0 && (self.isolates() || tolerance == 0.0)),
            None if tolerance == 0.0 => !difference.is_none(),
            None => difference.nmse() > tolerance,
        };
        let against = match (difference.is_none() || self.isolates(), beyond) {
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
            substituted,
            inputs,
            tolerance,
            beyond,
        });
    }

    /// Roundings to 8 bits that differ, where there are any, and the rows of which a rounding to any type
    /// does. What is not finite is not rounded.
    fn flips(
        &mut self,
        id: &NodeId<'n>,
        shape: [usize; 3],
        rows: &Rows,
        reference: &[f32],
        values: &[f32],
    ) -> (Option<Flips>, Vec<usize>) {
        let substitutes = self.options.substitute == Substitute::Roundings;
        let (mut all, mut flipped) = (None, Vec::new());
        if !substitutes && !self.options.flips {
            return (all, flipped);
        }
        let cols = if shape[2] > 1 { shape[2] } else { shape[1] };
        let [ours, theirs] = &mut self.rounded;
        for ty in self.graph.rounded_to(id, self.options.kv) {
            if !substitutes && !ty.is_quantised() {
                continue;
            }
            for (row, reference) in rows.judged(reference) {
                let own = ours.quantize(ty, &values[row * rows.len..][..rows.len], cols);
                if own.and_then(|()| theirs.quantize(ty, reference, cols)).is_err() {
                    continue;
                }
                let (flips, scales) = compare_roundings(ours, theirs);
                if ty.is_quantised() {
                    let all = all.get_or_insert_with(Flips::default);
                    (all.values, all.flipped) = (all.values + flips.values, all.flipped + flips.flipped);
                }
                if flips.flipped > 0 || scales {
                    flipped.push(row);
                }
            }
        }
        flipped.sort_unstable();
        (all, flipped)
    }
}

/// What a comparison finds in a node.
struct Findings {
    difference: Difference,
    choices: Option<Choices>,
    flips: Option<Flips>,
    substituted: usize,
}

/// Values rounded to one type that differ, and whether a scale or a sum that was rounded with them does.
fn compare_roundings(ours: &Activations, theirs: &Activations) -> (Flips, bool) {
    fn differing<T: PartialEq>(a: &[T], b: &[T]) -> u64 {
        a.iter().zip(b).filter(|(a, b)| a != b).count() as u64
    }
    let (mut flips, mut scales) = (Flips::default(), false);
    for row in 0..ours.rows() {
        flips.values += ours.cols() as u64;
        match (ours.row(row), theirs.row(row)) {
            (ActivationRow::Floats(_, a), ActivationRow::Floats(_, b)) => flips.flipped += differing(a, b),
            (ActivationRow::Q8K(a), ActivationRow::Q8K(b)) => flips.flipped += differing(a.qs, b.qs),
            (ActivationRow::Q8_0(a), ActivationRow::Q8_0(b))
            | (ActivationRow::Q8_1(a), ActivationRow::Q8_1(b)) => {
                flips.flipped += differing(a.qs, b.qs);
                scales |= differing(a.d, b.d) + differing(a.s, b.s) > 0;
            }
            _ => unreachable!("rows of one type"),
        }
    }
    (flips, scales)
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

#[cfg(test)]
mod tests {
    use super::super::nodes::NodeDescription;
    use super::super::run::PassObserver;
    use super::super::{NodeFilter, NodeKind, Tolerance};
    use super::*;
    use crate::model::KvType;

    /// The same values of every node; the same experts.
    struct Same(Vec<f32>, Vec<u32>);

    impl Reference for Same {
        fn floats(&mut self, _: &str, _: &NodeId<'_>) -> Result<Option<Values<f32>>, VerifyError> {
            Ok(Some(Values { rows: None, values: self.0.clone() }))
        }

        fn indices(&mut self, _: &str, _: &NodeId<'_>) -> Result<Option<Values<u32>>, VerifyError> {
            Ok(Some(Values { rows: None, values: self.1.clone() }))
        }

        fn token(&mut self, _: usize) -> Result<Option<u32>, VerifyError> {
            Ok(None)
        }
    }

    /// A node `x` that a product with weights of this type takes, and one `k` that attention does.
    fn described(weight: &str) -> Vec<NodeDescription> {
        let node = |node: &str, kind, weight: Option<&str>, inputs: &[&str]| NodeDescription {
            node: node.to_owned(),
            kind,
            weight: weight.map(str::to_owned),
            inputs: inputs.iter().map(|&input| input.to_owned()).collect(),
        };
        vec![
            node("x#0", NodeKind::Lookup, None, &[]),
            node("y#0", NodeKind::Product, Some(weight), &["x#0"]),
            node("k#0", NodeKind::Rope, None, &[]),
            node("a#0", NodeKind::Attention, None, &["k#0"]),
        ]
    }

    fn options(substitute: Substitute, kv: KvType) -> CompareOptions {
        let tolerance = Tolerance::Nmse(1e-2);
        CompareOptions {
            substitute,
            tolerance,
            kv,
            positions: 0,
            filter: NodeFilter::default(),
            flips: false,
        }
    }

    /// Two rows of 32 that are the reference's off by a little; in the second the rounding of a value to 8
    /// bits and that of another to f16 come out otherwise. Returns which rows are the reference's afterwards.
    fn put(weight: &str, node: &str, substitute: Substitute, kv: KvType) -> [bool; 2] {
        // The scale is 1: 2.5 lies between two integers, 1 + 2^-11 between two halves.
        let mut row = [127.0f32; 32];
        (row[1], row[2], row[3]) = (2.5 - 1e-6, 1.0 + 2f32.powi(-11) - 2e-7, 99.0);
        let values: Vec<f32> = row.repeat(2);
        let mut own = values.clone();
        own[3] += 1e-5;
        (own[33], own[34]) = (2.5 + 1e-6, 1.0 + 2f32.powi(-11) + 2e-7);
        let nodes = described(weight);
        let graph = NodeGraph::described(&nodes).expect("a graph");
        let mut comparer = Comparer::new(&graph, Same(values.clone(), vec![]), options(substitute, kv));
        comparer.begin("prefill", 2);
        let id = NodeId::parse(node).expect("a name");
        comparer.compare_floats(id, [2, 32, 1], &mut own).expect("a comparison");
        let (reports, ..) = comparer.finish();
        let same = [0, 1].map(|row| own[row * 32..][..32] == values[row * 32..][..32]);
        assert_eq!(reports[0].substituted, same.iter().filter(|&&same| same).count());
        assert_eq!(reports[0].difference.differing, 3, "what is put in place is compared before");
        same
    }

    #[test]
    fn the_reference_takes_the_place_of_rows_that_round_otherwise() {
        use Substitute::*;
        for weight in ["Q8_0", "Q4_1", "F16"] {
            assert_eq!(put(weight, "x#0", Roundings, KvType::F32), [false, true], "{weight}");
        }
        assert_eq!(put("F32", "x#0", Roundings, KvType::F16), [false, false]);
        assert_eq!(put("F32", "k#0", Roundings, KvType::F16), [false, true]);
        assert_eq!(put("Q8_0", "k#0", Roundings, KvType::F32), [false, false]);
        assert_eq!(put("Q8_0", "x#0", Everywhere, KvType::F32), [true, true]);
        assert_eq!(put("Q8_0", "x#0", Nowhere, KvType::F32), [false, false]);
    }

    #[test]
    fn the_reference_takes_the_place_of_other_experts() {
        let graph = NodeGraph::default();
        let mut own = vec![0u32, 1, 2, 3];
        let reference = Same(vec![], vec![0, 1, 2, 0]);
        let mut comparer = Comparer::new(&graph, reference, options(Substitute::Roundings, KvType::F32));
        comparer.begin("prefill", 2);
        comparer.experts = 4;
        let id = NodeId::parse("ffn_moe_topk-0#0").expect("a name");
        comparer.compare_indices(id, [2, 2, 1], &mut own).expect("a comparison");
        assert_eq!(own, [0, 1, 2, 0]);
        let (reports, ..) = comparer.finish();
        assert_eq!((reports[0].substituted, reports[0].beyond), (1, false));
        assert_eq!(reports[0].choices.map(|c| c.sets_differ), Some(1));
    }
}
