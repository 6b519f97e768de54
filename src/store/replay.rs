//! A replay of the experts that a run chose through the cache of a run, without I/O: what a policy is judged
//! by.

use super::ResidencyStats;
use super::plan::{Role, WeightUse, plan};
use super::requests::{State, Weight};

/// The experts that a run chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingTrace {
    /// Experts of a layer.
    pub experts: usize,
    /// Those of them that a token uses.
    pub used: usize,
    /// Of each pass, by layer: the experts that some token of the pass chose, each once.
    pub passes: Vec<Vec<Vec<usize>>>,
}

/// Bytes of an expert, all alike.
const EXPERT_BYTES: u64 = 4096;

impl RoutingTrace {
    /// What a cache that is empty at first, of so many slots for the experts of all layers, makes of it. It
    /// is the run's cache, asked as the forward pass asks it; guesses are left out.
    ///
    /// # Panics
    /// Where a pass names an expert that there is not, or there are less than two slots or one for every
    /// expert.
    pub fn replay(&self, slots: usize) -> ResidencyStats {
        let layers = self.passes.iter().map(Vec::len).max().unwrap_or(0);
        let id = |layer: usize, expert: usize| {
            assert!(expert < self.experts, "expert {expert} of {}", self.experts);
            layer * self.experts + expert
        };
        let mut state = self.state(layers, slots as u64 * EXPERT_BYTES);
        for pass in &self.passes {
            state.begin_pass();
            for (layer, chosen) in pass.iter().enumerate() {
                let ids: Vec<usize> = chosen.iter().map(|&expert| id(layer, expert)).collect();
                state.announce(&ids);
                use_all(&mut state, &ids);
            }
        }
        state.stats
    }

    /// A state of experts alone, with so many bytes for their cache.
    fn state(&self, layers: usize, budget: u64) -> State {
        let places = || (0..layers).flat_map(|layer| (0..self.experts).map(move |expert| (layer, expert)));
        let uses: Vec<WeightUse> = places()
            .map(|(layer, expert)| Role::Expert { layer, expert, count: self.experts, used: self.used })
            .map(|role| WeightUse { role, bytes: EXPERT_BYTES, span: EXPERT_BYTES, device_bytes: None })
            .collect();
        let weight = |(position, (layer, _)): (u64, (usize, usize))| Weight {
            part: 0,
            disk: 0,
            bytes: position * EXPERT_BYTES..(position + 1) * EXPERT_BYTES,
            position,
            layer,
            share: self.used as f32 / self.experts as f32,
        };
        let weights = (0..).zip(places()).map(weight).collect();
        let plan = plan(&uses, &vec![false; uses.len()], budget, None).expect("two slots and more");
        assert!(!plan.is_mapped(), "a slot for every expert");
        State::new(weights, &plan, 1)
    }
}

/// Holds weights as they come and lets go of them; reads are done where nothing has come.
pub(super) fn use_all(state: &mut State, ids: &[usize]) {
    let mut rest = ids.to_vec();
    while !rest.is_empty() {
        rest.iter().for_each(|&id| state.expect(id));
        let held = loop {
            let held = state.hold(&rest).expect("reads that do not fail");
            if !held.is_empty() {
                break held;
            }
            let piece = state.next_piece(0).expect("something is being read");
            state.finish_piece(&piece, Ok(()));
        };
        rest.iter().for_each(|&id| state.expect_no_more(id));
        held.iter().for_each(|held| state.release(rest[held.index]));
        let mut held = held.into_iter().map(|held| held.index).peekable();
        let mut at = 0..;
        rest.retain(|_| held.next_if_eq(&at.next().unwrap_or(usize::MAX)).is_none());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYERS: usize = 8;
    const EXPERTS: usize = 16;

    /// Every layer of a pass chooses the same.
    fn trace(passes: impl IntoIterator<Item = Vec<usize>>) -> RoutingTrace {
        let passes = passes.into_iter().map(|chosen| vec![chosen; LAYERS]).collect();
        RoutingTrace { experts: EXPERTS, used: 2, passes }
    }

    fn misses(trace: &RoutingTrace, slots: usize) -> u64 {
        let stats = trace.replay(slots);
        let asked: usize = trace.passes.iter().flatten().map(Vec::len).sum();
        assert_eq!(stats.hits + stats.misses, asked as u64);
        assert_eq!(
            stats.bytes_read,
            stats.misses * EXPERT_BYTES,
            "what is missing is read, and nothing else"
        );
        stats.misses
    }

    #[test]
    fn what_fits_is_missed_once() {
        let trace = trace((0..50).map(|i| vec![i % 3, 3]));
        assert_eq!(misses(&trace, 4 * LAYERS), 4 * LAYERS as u64);
    }

    /// A long prompt reads every expert once: those that answers go on to use keep their slots. An LRU cache
    /// of as many slots holds none of them then.
    #[test]
    fn a_prompt_does_not_evict_the_hot_experts() {
        let hot = |i: usize| vec![2 * (i % 2), 2 * (i % 2) + 1];
        let scanned = |scan: bool| {
            let scan = scan.then(|| (0..EXPERTS).collect());
            trace((0..40).map(hot).chain(scan).chain((40..44).map(hot)))
        };
        let slots = 6 * LAYERS;
        let before = misses(&scanned(false), slots);
        assert_eq!(before, 4 * LAYERS as u64);
        let cold = (EXPERTS - 4) * LAYERS;
        // What the scan itself brings, and no hot expert a second time.
        assert_eq!(misses(&scanned(true), slots), before + cold as u64);
    }

    #[test]
    #[should_panic(expected = "expert 16 of 16")]
    fn an_expert_that_there_is_not_is_named() {
        trace([vec![3, EXPERTS]]).replay(4);
    }
}
