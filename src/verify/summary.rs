//! Where a run first parts from its reference, in words.

use std::fmt;

use crate::model::NodeId;

use super::nodes::NodeGraph;
use super::report::{InputState, NodeReport};

/// The first node that is beyond its tolerance.
#[derive(Clone, Debug)]
pub struct Divergence<'a> {
    pub report: &'a NodeReport<'a>,
    /// What computes the node, where that is known.
    pub suspect: Option<String>,
    /// Whether it is computed from other nodes.
    has_inputs: bool,
}

impl<'a> Divergence<'a> {
    /// The first of the reports, which are in the order of computation.
    pub fn first(reports: &'a [NodeReport<'a>], graph: &NodeGraph<'_>) -> Option<Divergence<'a>> {
        let report = reports.iter().find(|r| r.beyond)?;
        let has_inputs = !graph.inputs(&report.id).is_empty();
        Some(Divergence { report, suspect: graph.suspect(&report.id), has_inputs })
    }
}

/// `first differs at blk 3 ffn_moe_down (decode.2), inputs equal: suspect the Q6_K kernel`
impl fmt::Display for Divergence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NodeReport { pass, id, inputs, .. } = self.report;
        write!(f, "first differs at {} ({pass})", NodeLabel(id))?;
        let Some(suspect) = &self.suspect else { return Ok(()) };
        if !self.has_inputs {
            return write!(f, ", suspect {suspect}");
        }
        match inputs {
            Some(InputState::Equal) => write!(f, ", inputs equal: suspect {suspect}"),
            Some(InputState::Within) => {
                write!(f, ", inputs within tolerance but not equal: suspect {suspect}, or what went before")
            }
            Some(InputState::Beyond) => write!(f, ", inputs differ already: look at what went before"),
            None => write!(f, ", inputs not compared: suspect {suspect}, or what went before"),
        }
    }
}

/// A node as people say it: `blk 3 Qcur`, `blk 3 Qcur (2nd)`, `result_norm`.
pub struct NodeLabel<'a>(pub &'a NodeId<'a>);

impl fmt::Display for NodeLabel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(layer) = self.0.layer {
            write!(f, "blk {layer} ")?;
        }
        write!(f, "{}", self.0.name)?;
        match self.0.occurrence {
            0 => Ok(()),
            1 => write!(f, " (2nd)"),
            2 => write!(f, " (3rd)"),
            n => write!(f, " ({}th)", n + 1),
        }
    }
}
