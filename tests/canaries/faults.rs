//! Faults that several kinds of blocks can have.

use wayinfer::model::{Node, NodeId};

use super::common::gguf::Kv;
use super::common::goldens::{Loaded, case};
use super::{Fault, Spoilt, inverse, permute};

/// What is suspected of sums and products.
pub const SUMS: &str = "element-wise arithmetic";
/// Elements of a head in all fixtures of families.
pub const HEAD: usize = 16;

/// A model with a key of another value; keys without the architecture.
pub fn changed(name: &str, key: &str, from: impl Into<Kv>, to: impl Into<Kv>) -> Spoilt {
    let (from, to) = (from.into(), to.into());
    assert_eq!(from.bytes.len(), to.bytes.len());
    Spoilt::new(name, |gguf, bytes| {
        let family = gguf.metadata().str("general.architecture").expect("a text").expect("a family");
        let key = format!("{family}.{key}");
        let head: Vec<u8> = key.bytes().chain(from.type_id.to_le_bytes()).collect();
        let sought = [&head[..], &from.bytes].concat();
        let at = bytes.windows(sought.len()).position(|w| w == sought).expect("the key with this value");
        bytes[at + head.len()..][..to.bytes.len()].copy_from_slice(&to.bytes);
    })
}

/// A model with zeros in a tensor.
pub fn zeroed(name: &str, tensor: &str) -> Spoilt {
    Spoilt::new(name, |gguf, bytes| {
        let tensor = gguf.tensor(tensor).expect("the tensor");
        bytes[tensor.offset as usize..][..tensor.bytes as usize].fill(0);
    })
}

/// A model with one value throughout a tensor of F32.
pub fn filled(name: &str, tensor: &str, value: f32) -> Spoilt {
    Spoilt::new(name, |gguf, bytes| {
        let tensor = gguf.tensor(tensor).expect("the tensor");
        let bytes = &mut bytes[tensor.offset as usize..][..tensor.bytes as usize];
        bytes.chunks_exact_mut(4).for_each(|v| v.copy_from_slice(&value.to_le_bytes()));
    })
}

/// What the gate says of the first node that is not as it should be.
pub fn wrong(node: &str, suspect: &str) -> String {
    format!("first differs at {node} (prefill), inputs equal: suspect {suspect}")
}

pub fn sound(name: &str) -> Loaded {
    Loaded::of(&case(name))
}

/// Leaves a step out: what node `from` was is what node `at` becomes.
pub struct LeftOut {
    from: (&'static str, usize),
    pub at: &'static str,
    kept: Vec<f32>,
}

pub fn left_out(from: &'static str, occurrence: usize, at: &'static str) -> LeftOut {
    LeftOut { from: (from, occurrence), at, kept: Vec::new() }
}

impl Fault for LeftOut {
    fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if id.name == self.at {
            values.copy_from_slice(&self.kept);
        }
    }

    fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if (id.name, id.occurrence) == self.from {
            self.kept = values.to_vec();
        }
    }
}

/// Multiplies a node.
pub struct Scaled(pub &'static str, pub f32);

impl Fault for Scaled {
    fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if id.name == self.0 {
            values.iter_mut().for_each(|v| *v *= self.1);
        }
    }
}

/// A fault in layers that have experts.
pub struct AfterExperts(pub LeftOut);

impl Fault for AfterExperts {
    fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
        if id.name == self.0.at && !self.0.kept.is_empty() {
            self.0.computed(id, node, values);
            self.0.kept.clear();
        }
    }

    fn taken(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
        self.0.taken(id, node, values);
    }
}

/// Pairs the other elements of a head: the nodes before and behind the rotation, and the rotated elements.
pub struct OtherPairs {
    pub before: (&'static str, usize),
    pub after: (&'static str, usize),
    pub order: Vec<usize>,
}

/// Elements i and i + d/2 at 2i and 2i + 1, of the first d.
pub fn halves(d: usize) -> Vec<usize> {
    (0..d / 2).flat_map(|i| [i, i + d / 2]).chain(d..HEAD).collect()
}

impl Fault for OtherPairs {
    fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if (id.name, id.occurrence) == self.before {
            permute(values, HEAD, 1, &self.order);
        }
    }

    fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if (id.name, id.occurrence) == self.after {
            permute(values, HEAD, 1, &inverse(&self.order));
        }
    }
}

/// The norm of each head's queries, without weights, comes before it should.
pub struct Early;
impl Fault for Early {
    fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
        if (id.name, id.occurrence) == ("Qcur", 0) {
            for head in values.chunks_exact_mut(HEAD) {
                let square = head.iter().map(|v| v * v).sum::<f32>() / HEAD as f32;
                head.iter_mut().for_each(|v| *v /= (square + 1e-5).sqrt());
            }
        }
    }
}

/// Pairs of neighbours in the fourth layer's queries are turned by 90 degrees at odd positions.
pub struct Turned;
impl Fault for Turned {
    fn taken(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
        if id.name == "Qcur" && id.layer == Some(3) {
            let row = node.shape[1] * node.shape[2];
            for odd in values.chunks_exact_mut(row).skip(1).step_by(2) {
                odd.chunks_exact_mut(2).for_each(|pair| (pair[0], pair[1]) = (-pair[1], pair[0]));
            }
        }
    }
}

/// The weights are what experts are chosen by.
#[derive(Default)]
pub struct Biased {
    scores: Vec<f32>,
    experts: usize,
    chosen: Vec<u32>,
}
impl Fault for Biased {
    fn taken(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
        if id.name == "ffn_moe_probs_biased" {
            (self.scores, self.experts) = (values.to_vec(), node.shape[1]);
        }
    }

    fn chosen(&mut self, _: &Node<'_>, values: &mut [u32]) {
        self.chosen = values.to_vec();
    }

    fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
        if id.name == "ffn_moe_weights" {
            let used = node.shape[1];
            for (i, (weight, &expert)) in values.iter_mut().zip(&self.chosen).enumerate() {
                *weight = self.scores[i / used * self.experts + expert as usize];
            }
        }
    }
}
