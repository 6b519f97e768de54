//! Where the time of a forward pass goes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::model::{Node, Observer};

use super::nodes::{NodeCounter, NodeId};

/// Times nodes: each gets what has passed since the node before it. Where one parallel region computes several (queries,
/// keys and values; gate and up), the first of them gets it all. Time between passes is nobody's.
#[derive(Debug)]
pub struct Profiler {
    last: Instant,
    counter: NodeCounter,
    times: HashMap<NodeId<'static>, Duration>,
}

impl Default for Profiler {
    fn default() -> Profiler {
        Profiler { last: Instant::now(), counter: NodeCounter::default(), times: HashMap::new() }
    }
}

impl Profiler {
    /// A pass begins.
    pub fn begin(&mut self) {
        self.counter.reset();
        self.last = Instant::now();
    }

    /// Time of every node, over all passes, in no order.
    pub fn times(&self) -> impl Iterator<Item = (&NodeId<'static>, Duration)> {
        self.times.iter().map(|(id, &time)| (id, time))
    }
}

impl Observer for Profiler {
    fn active(&self) -> bool {
        false
    }

    fn computed(&mut self, node: Node) {
        let now = Instant::now();
        *self.times.entry(self.counter.next(node)).or_default() += now - self.last;
        self.last = now;
    }

    fn node(&mut self, _: Node, _: &mut [f32]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_all_passes_add_up() {
        let mut profiler = Profiler::default();
        let started = Instant::now();
        for _ in 0..2 {
            profiler.begin();
            for (name, layer) in [("embd", None), ("Qcur", Some(0)), ("Qcur", Some(0)), ("Qcur", Some(1))] {
                std::thread::sleep(Duration::from_millis(1));
                profiler.computed(Node { name, layer, shape: [1, 1, 1] });
            }
        }
        let all: Duration = profiler.times().map(|(_, time)| time).sum();
        assert_eq!(profiler.times().count(), 4);
        assert!(all >= Duration::from_millis(8) && all <= started.elapsed());
        assert!(profiler.times().all(|(_, time)| time >= Duration::from_millis(2)));
    }
}
