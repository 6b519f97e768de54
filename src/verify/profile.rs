//! Where the time of a forward pass goes.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::model::{Node, NodeKind, Observer, Work};

/// What the nodes of one kind of work took, over all passes.
#[derive(Clone, Debug, Default)]
pub struct WorkTime {
    pub time: Duration,
    /// Types of the weights that products were computed with.
    pub types: BTreeSet<&'static str>,
    /// Bytes of their weights that a token reads, added up over the passes.
    pub touched: u64,
}

/// Times nodes: each gets what has passed since the node before it. Where one parallel region computes
/// several (queries, keys and values; gate and up), the first of them gets it all. Time between passes is
/// nobody's.
#[derive(Debug)]
pub struct Profiler {
    last: Instant,
    times: HashMap<Work, WorkTime>,
}

impl Default for Profiler {
    fn default() -> Profiler {
        Profiler { last: Instant::now(), times: HashMap::new() }
    }
}

impl Profiler {
    /// A pass begins.
    pub fn begin(&mut self) {
        self.last = Instant::now();
    }

    /// Every kind of work that was done, in the order of a pass.
    pub fn times(&self) -> impl Iterator<Item = (Work, &WorkTime)> {
        Work::ALL.iter().filter_map(|work| Some((*work, self.times.get(work)?)))
    }
}

impl Observer for Profiler {
    fn active(&self) -> bool {
        false
    }

    fn computed(&mut self, node: &Node<'_>) {
        let now = Instant::now();
        let work = self.times.entry(node.work).or_default();
        work.time += now - self.last;
        // Of an embedding, few rows are read.
        if let Some(weight) = node.weight.filter(|_| node.kind == NodeKind::Product) {
            work.types.insert(weight.ty.name());
            work.touched += weight.touched;
        }
        self.last = now;
    }

    fn node(&mut self, _: &Node<'_>, _: &mut [f32]) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::TensorType;
    use crate::model::{NodeId, NodeWeight};

    #[test]
    fn nodes_of_all_passes_add_up() {
        let mut profiler = Profiler::default();
        let started = Instant::now();
        let weight = |ty| Some(NodeWeight { ty, bytes: 100, touched: 25 });
        let nodes = [
            ("embd", Work::Embedding, None),
            ("Qcur", Work::Projections, weight(TensorType::Q4_K)),
            ("Kcur", Work::Projections, weight(TensorType::Q6_K)),
        ];
        for _ in 0..2 {
            profiler.begin();
            for (name, work, weight) in nodes {
                std::thread::sleep(Duration::from_millis(1));
                let id = NodeId { name, layer: None, occurrence: 0 };
                let kind = NodeKind::Product;
                profiler.computed(&Node { id, shape: [1, 1, 1], kind, work, weight, inputs: &[] });
            }
        }
        let times: Vec<_> = profiler.times().collect();
        let [(Work::Embedding, embedding), (Work::Projections, projections)] = times[..] else {
            panic!("{times:?}");
        };
        let all = embedding.time + projections.time;
        assert!(all >= Duration::from_millis(6) && all <= started.elapsed());
        assert!(projections.time >= Duration::from_millis(4));
        assert_eq!((embedding.touched, projections.touched), (0, 100));
        assert_eq!(projections.types, BTreeSet::from(["Q4_K", "Q6_K"]));
    }
}
