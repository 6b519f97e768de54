//! A replay of the choices of a mixture of many experts, without I/O: what a token costs under the lock.

use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::super::plan::{Role, WeightUse, plan};
use super::super::replay::use_all;
use super::*;

/// The shape of a Qwen3-30B-A3B.
const LAYERS: usize = 48;
const EXPERTS: usize = 128;
const USED: usize = 8;
/// Bytes of gate and up of an expert at Q4_K, and of down at Q4_K and, in every other layer, Q6_K.
const GATE: u64 = 768 * 2048 / 256 * 144;
const DOWN: [u64; 2] = [GATE, 768 * 2048 / 256 * 210];
/// Tokens that fill the cache before any is counted.
const WARM_UP: usize = 60;

/// Weights of the model, and their ids by layer.
struct Shape {
    uses: Vec<WeightUse>,
    weights: Vec<Weight>,
    pinned: Vec<Vec<usize>>,
    /// Gates, ups and downs.
    experts: Vec<[Vec<usize>; 3]>,
}

impl Shape {
    fn new() -> Shape {
        let mut shape = Shape { uses: vec![], weights: vec![], pinned: vec![], experts: vec![] };
        for layer in 0..LAYERS {
            let pinned = [4_700_000, 590_000, 590_000, 4_700_000, 1_048_576];
            let pinned = pinned.map(|bytes| shape.add(Role::Always, bytes));
            shape.pinned.push(pinned.to_vec());
            let parts = [GATE, GATE, DOWN[layer % 2]].map(|bytes| {
                let role = |expert| Role::Expert { layer, expert, count: EXPERTS, used: USED };
                (0..EXPERTS).map(|expert| shape.add(role(expert), bytes)).collect()
            });
            shape.experts.push(parts);
        }
        shape
    }

    fn add(&mut self, role: Role, bytes: u64) -> usize {
        let id = self.weights.len();
        let span = bytes.next_multiple_of(4096);
        let start = self.weights.last().map_or(0, |w| w.bytes.end.next_multiple_of(4096));
        let (layer, share) = match role {
            Role::Expert { layer, count, used, .. } => (layer, used as f32 / count as f32),
            _ => (0, 1.0),
        };
        self.uses.push(WeightUse { role, bytes, span, device_bytes: None });
        let bytes = start..start + bytes;
        self.weights.push(Weight { part: 0, disk: 0, bytes, position: id as u64, layer, share });
        id
    }

    /// A state with room for what is pinned and a part of the experts.
    fn state(&self, fraction: f64) -> State {
        let spans = |always: bool| {
            let uses = self.uses.iter().filter(|w| (w.role == Role::Always) == always);
            uses.map(|w| w.span).sum::<u64>()
        };
        let budget = spans(true) + (spans(false) as f64 * fraction) as u64;
        let plan = plan(&self.uses, &vec![false; self.uses.len()], budget, None).unwrap();
        assert_eq!(plan.ring_bytes, 0);
        let mut state = State::new(self.weights.clone(), &plan, 1);
        state.begin();
        state
    }

    /// A token's way through the state, as the forward pass goes it, with the experts chosen in each layer.
    fn token(&self, state: &mut State, chosen: &[Vec<usize>]) {
        state.begin_pass();
        for ((chosen, pinned), [gate, up, down]) in chosen.iter().zip(&self.pinned).zip(&self.experts) {
            use_all(state, &pinned[..3]);
            use_all(state, &pinned[3..4]);
            use_all(state, &pinned[4..]);
            let of = |part: &[usize]| chosen.iter().map(|&e| part[e]).collect::<Vec<_>>();
            let (gate_up, down) = ([of(gate), of(up)].concat(), of(down));
            state.announce(&[&gate_up[..], &down[..]].concat());
            use_all(state, &gate_up);
            use_all(state, &down);
        }
    }
}

/// Choices of tokens: by Zipf's law over an order of each layer's own, and each fifth layer as in the token
/// before.
struct Choices {
    rng: ChaCha8Rng,
    orders: Vec<Vec<usize>>,
    now: Vec<Vec<usize>>,
}

impl Choices {
    fn new() -> Choices {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut order = || {
            let mut order: Vec<usize> = (0..EXPERTS).collect();
            (1..EXPERTS).for_each(|i| order.swap(i, rng.next_u32() as usize % (i + 1)));
            order
        };
        Choices { orders: (0..LAYERS).map(|_| order()).collect(), rng, now: vec![Vec::new(); LAYERS] }
    }

    fn next_token(&mut self) -> &[Vec<usize>] {
        let weight = |rank: usize| 1.0 / (rank as f64).powf(0.8);
        let total: f64 = (1..=EXPERTS).map(weight).sum();
        for (chosen, order) in self.now.iter_mut().zip(&self.orders) {
            if !chosen.is_empty() && self.rng.next_u32().is_multiple_of(5) {
                continue;
            }
            chosen.clear();
            while chosen.len() < USED {
                let mut at = total * f64::from(self.rng.next_u32()) / 4294967296.0;
                let rank = (1..EXPERTS).find(|&rank| {
                    at -= weight(rank);
                    at < 0.0
                });
                let expert = order[rank.unwrap_or(EXPERTS) - 1];
                if !chosen.contains(&expert) {
                    chosen.push(expert);
                }
            }
            chosen.sort_unstable();
        }
        &self.now
    }
}

/// Replays tokens: the mean time of one, and what came of them. Where it is `checked`, every victim is
/// compared with that of a scan.
fn replay(fraction: f64, tokens: usize, checked: bool) -> (Duration, ResidencyStats) {
    let (shape, mut choices) = (Shape::new(), Choices::new());
    let mut state = shape.state(fraction);
    state.experts.cache.checked = checked;
    for _ in 0..WARM_UP {
        shape.token(&mut state, choices.next_token());
    }
    state.stats = ResidencyStats::default();
    let mut time = Duration::ZERO;
    for _ in 0..tokens {
        let chosen = choices.next_token();
        let start = Instant::now();
        shape.token(&mut state, chosen);
        time += start.elapsed();
    }
    (time / tokens as u32, state.stats)
}

#[test]
fn replay_of_a_mixture_of_many_experts() {
    // The share of bytes that hit, as measured.
    for (fraction, hits) in [(0.15, 0.5473), (0.4, 0.7353)] {
        let (time, stats) = replay(fraction, 100, false);
        let rate = stats.hit_bytes as f64 / (stats.hit_bytes + stats.miss_bytes) as f64;
        println!(
            "{:.0} % of the experts cached: {:.3} ms a token under the lock, {:.4} of bytes hit",
            fraction * 100.0,
            time.as_secs_f64() * 1e3,
            rate,
        );
        assert_eq!(stats.hits + stats.misses, (100 * LAYERS * USED) as u64);
        assert_eq!(stats.bytes_read, stats.miss_bytes, "what is missing is read, and nothing else");
        assert!((rate - hits).abs() < 0.001, "{rate}");
        // The same choices as those of a scan of all slots.
        let (_, checked) = replay(fraction, 10, true);
        assert_eq!(checked.hits + checked.misses, (10 * LAYERS * USED) as u64);
    }
}
