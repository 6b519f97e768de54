//! Deliberate faults, each of which must trip the gate against ggml; the report must name the first node that
//! went wrong. A fault is put where it would be: in the weights that a kernel sees, in the configuration, or
//! between two nodes of the forward pass.

mod common;
#[path = "canaries/compressed.rs"]
mod compressed;
#[path = "canaries/delta_nets.rs"]
mod delta_nets;
#[path = "canaries/faults.rs"]
mod faults;
#[path = "canaries/gates_and_side_by_side.rs"]
mod gates_and_side_by_side;
#[path = "canaries/gemma.rs"]
mod gemma;
#[path = "canaries/hyper.rs"]
mod hyper;
#[path = "canaries/kimi_k3.rs"]
mod kimi_k3;
#[path = "canaries/kin.rs"]
mod kin;
#[path = "canaries/latent.rs"]
mod latent;
#[path = "canaries/lightning.rs"]
mod lightning;
#[path = "canaries/mamba.rs"]
mod mamba;
#[path = "canaries/qwen4.rs"]
mod qwen4;
#[path = "canaries/routers_and_scales.rs"]
mod routers_and_scales;
#[path = "canaries/state_spaces.rs"]
mod state_spaces;
#[path = "canaries/windows_and_images.rs"]
mod windows_and_images;

use std::fs;
use std::path::PathBuf;

use common::goldens::{Case, Loaded, case};
use common::runs::Run;
use tempfile::TempDir;
use wayinfer::gguf::{Gguf, TensorType};
use wayinfer::model::{Node, NodeId, Observer};
use wayinfer::verify::{Comparer, Divergence, GoldenReference, InputState, PassObserver, VerifyError, run};

/// A fault in the forward pass, by what it does to the values around a node.
trait Fault: Send {
    /// Values as the node's computation gives them.
    fn computed(&mut self, _: &NodeId<'_>, _: &Node<'_>, _: &mut [f32]) {}

    /// Values as the next computation takes them.
    fn taken(&mut self, _: &NodeId<'_>, _: &Node<'_>, _: &mut [f32]) {}

    /// Indices as chosen.
    fn chosen(&mut self, _: &Node<'_>, _: &mut [u32]) {}
}

struct NoFault;
impl Fault for NoFault {}

/// The gate with a fault before and behind it.
struct Faulty<'a, F> {
    gate: Comparer<'a, 'static, GoldenReference<'a>>,
    fault: F,
}

impl<F: Fault> Observer for Faulty<'_, F> {
    fn active(&self) -> bool {
        true
    }

    fn node(&mut self, node: &Node<'_>, values: &mut [f32]) {
        self.fault.computed(&node.id, node, values);
        self.gate.node(node, values);
        self.fault.taken(&node.id, node, values);
    }

    fn indices(&mut self, node: &Node<'_>, values: &mut [u32]) {
        self.fault.chosen(node, values);
        self.gate.indices(node, values);
    }
}

impl<F: Fault> PassObserver for Faulty<'_, F> {
    fn begin(&mut self, pass: &str, tokens: usize) {
        self.gate.begin(pass, tokens);
    }

    fn end(&mut self) -> Result<(), VerifyError> {
        self.gate.end()
    }

    fn next_token(&mut self, step: usize, own: u32) -> Result<u32, VerifyError> {
        self.gate.next_token(step, own)
    }
}

/// What the gate says of a run with a fault: the first node beyond its bound, in words.
fn gate(loaded: &Loaded, fault: impl Fault) -> Option<String> {
    let mut watched = Faulty { gate: loaded.comparer(true), fault };
    let steps = loaded.golden.description().decode_steps;
    let Run { engine, sequence } = &mut loaded.run(None, 2);
    run(engine, sequence, loaded.golden.prompt(), steps, &mut watched).expect("a run");
    let (reports, ..) = watched.gate.finish();
    let first = Divergence::first(&reports, &loaded.graph)?;
    // None: computed from the file alone, or from a node that ggml does not name.
    assert!(matches!(first.report.inputs, None | Some(InputState::Equal)), "{first}");
    Some(first.to_string())
}

fn trips(loaded: &Loaded, fault: impl Fault, words: &str) {
    let found = gate(loaded, fault);
    // Of a node that is computed from one to which ggml gives no name, the gate says that as well.
    let unnamed = words.replace("inputs equal: ", "inputs not compared: ") + ", or what went before";
    assert!(found.as_deref() == Some(words) || found.as_ref() == Some(&unnamed), "{found:?}, not {words}");
}

const DENSE: &str = "dense-q4_k_m/long";
const MOE: &str = "moe-q4_k_m/long";

#[test]
fn without_a_fault_the_gate_stays_shut() {
    for name in [DENSE, MOE] {
        assert_eq!(gate(&Loaded::of(&case(name)), NoFault), None);
    }
}

/// A copy of a case's model with some bytes changed.
struct Spoilt {
    _dir: TempDir,
    path: PathBuf,
    case: Case,
}

impl Spoilt {
    fn new(name: &str, spoil: impl FnOnce(&Gguf, &mut [u8])) -> Spoilt {
        let case = case(name);
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("spoilt.gguf");
        let gguf = Gguf::open(&case.fixture).expect("a fixture");
        let mut bytes = fs::read(&case.fixture).expect("a fixture");
        let before = bytes.clone();
        spoil(&gguf, &mut bytes);
        assert!(bytes != before, "something is spoilt");
        fs::write(&path, bytes).expect("a copy");
        Spoilt { _dir: dir, path, case }
    }

    /// Every block of 144 bytes of the Q4_K matrices, the embedding left out.
    fn q4_k(name: &str, spoil: impl Fn(&mut [u8])) -> Spoilt {
        Spoilt::new(name, |gguf, bytes| {
            let layers =
                gguf.tensors.iter().filter(|t| t.ty == TensorType::Q4_K && t.name.starts_with("blk."));
            for tensor in layers {
                let start = tensor.offset as usize;
                bytes[start..start + tensor.bytes as usize].chunks_exact_mut(144).for_each(&spoil);
            }
        })
    }

    /// A number of the metadata.
    fn metadata(name: &str, key: &str, from: f32, to: f32) -> Spoilt {
        Spoilt::new(name, |_, bytes| {
            // A key's text is followed by its type, 6 for f32, and its value.
            let sought: Vec<u8> = key.bytes().chain(6u32.to_le_bytes()).chain(from.to_le_bytes()).collect();
            let at = bytes.windows(sought.len()).position(|w| w == sought).expect("the key with this value");
            let value = at + sought.len() - 4;
            bytes[value..value + 4].copy_from_slice(&to.to_le_bytes());
        })
    }

    fn trips(&self, words: &str) {
        trips(&Loaded::new(&self.path, &self.case.golden), NoFault, words);
    }
}

#[test]
fn mins_dropped() {
    // `dmin` is the second f16 of a block.
    let spoilt = Spoilt::q4_k(DENSE, |block| block[2..4].fill(0));
    spoilt.trips("first differs at blk 0 Qcur (prefill), inputs equal: suspect the Q4_K kernel");
}

#[test]
fn the_scale_of_a_wrong_sub_block() {
    // The scales of sub-blocks 0 and 1 are the low six bits of bytes 4 and 5.
    let spoilt = Spoilt::q4_k(MOE, |block| {
        let (a, b) = (block[4], block[5]);
        block[4] = (a & 0xc0) | (b & 0x3f);
        block[5] = (b & 0xc0) | (a & 0x3f);
    });
    spoilt.trips("first differs at blk 0 Qcur (prefill), inputs equal: suspect the Q4_K kernel");
}

#[test]
fn rope_base_off() {
    let spoilt = Spoilt::metadata(DENSE, "llama.rope.freq_base", 500_000.0, 500_100.0);
    spoilt.trips("first differs at blk 0 Qcur (2nd) (prefill), inputs equal: suspect RoPE");
}

#[test]
fn epsilon_wrong() {
    let spoilt = Spoilt::metadata(DENSE, "llama.attention.layer_norm_rms_epsilon", 1e-5, 1e-6);
    spoilt.trips("first differs at blk 0 attn_norm (prefill), inputs equal: suspect RMS norm");
}

/// Reorders the parts of each row by `order`: part `i` becomes what `order[i]` was.
fn permute(values: &mut [f32], row: usize, part: usize, order: &[usize]) {
    for row in values.chunks_exact_mut(row) {
        let old = row.to_vec();
        for (to, &from) in row.chunks_exact_mut(part).zip(order) {
            to.copy_from_slice(&old[from * part..][..part]);
        }
    }
}

fn inverse(order: &[usize]) -> Vec<usize> {
    (0..order.len()).map(|i| order.iter().position(|&o| o == i).expect("a permutation")).collect()
}

#[test]
fn rope_pairs_swapped() {
    /// Rotates elements i and i + d/2 where it should be 2i and 2i + 1.
    struct Halves;
    impl Fault for Halves {
        fn taken(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "Qcur" && id.occurrence == 0 {
                permute(values, node.shape[2], 1, &Halves::order(node.shape[2]));
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "Qcur" && id.occurrence == 1 {
                permute(values, node.shape[2], 1, &inverse(&Halves::order(node.shape[2])));
            }
        }
    }
    impl Halves {
        fn order(d: usize) -> Vec<usize> {
            (0..d / 2).flat_map(|i| [i, i + d / 2]).collect()
        }
    }
    let loaded = Loaded::of(&case(DENSE));
    trips(&loaded, Halves, "first differs at blk 0 Qcur (2nd) (prefill), inputs equal: suspect RoPE");
}

#[test]
fn kv_heads_mapped_wrong() {
    /// Head h takes KV head h % 2 where it should be h / 2: of four heads, the two in the middle change
    /// places.
    struct Modulo;
    const ORDER: [usize; 4] = [0, 2, 1, 3];
    impl Fault for Modulo {
        fn taken(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "Qcur" && id.occurrence == 1 {
                permute(values, node.shape[1] * node.shape[2], node.shape[2], &ORDER);
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "kqv_out" {
                permute(values, node.shape[1], node.shape[1] / 4, &inverse(&ORDER));
            }
        }
    }
    let loaded = Loaded::of(&case(DENSE));
    trips(&loaded, Modulo, "first differs at blk 0 kqv_out (prefill), inputs equal: suspect attention");
}

#[test]
fn expert_weights_not_normalised() {
    #[derive(Default)]
    struct Plain(Vec<f32>);
    impl Fault for Plain {
        fn taken(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "ffn_moe_weights" {
                self.0 = values.to_vec();
            }
        }

        fn computed(&mut self, id: &NodeId<'_>, _: &Node<'_>, values: &mut [f32]) {
            if id.name == "ffn_moe_weights_norm" {
                values.copy_from_slice(&self.0);
            }
        }
    }
    let words = "first differs at blk 0 ffn_moe_weights_norm (prefill), inputs equal: suspect element-wise arithmetic";
    trips(&Loaded::of(&case(MOE)), Plain::default(), words);
}

#[test]
fn top_2_in_the_wrong_order() {
    struct Swapped;
    impl Fault for Swapped {
        fn chosen(&mut self, _: &Node<'_>, values: &mut [u32]) {
            values.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
        }
    }
    let words = "first differs at blk 0 ffn_moe_topk (prefill), inputs equal: suspect the choice of experts";
    trips(&Loaded::of(&case(MOE)), Swapped, words);
}

#[test]
fn last_rows_of_a_thread_skipped() {
    /// The last three outputs of a product keep what was there before: zeros. In the last decode step only.
    #[derive(Default)]
    struct Skipped {
        passes: usize,
    }
    impl Fault for Skipped {
        fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            self.passes += usize::from(id.name == "embd");
            if id.name == "ffn_moe_down" && id.layer == Some(1) && self.passes == 3 {
                let row = node.shape[2];
                values.chunks_exact_mut(row).for_each(|row_values| row_values[row - 3..].fill(0.0));
            }
        }
    }
    let words = "first differs at blk 1 ffn_moe_down (decode.1), inputs equal: suspect the Q8_0 kernel";
    trips(&Loaded::of(&case(MOE)), Skipped::default(), words);
}

/// The values of one row of the batched path off by one part in 100,000.
#[test]
fn a_fault_in_the_last_places_of_one_row() {
    struct Nudged;
    impl Fault for Nudged {
        fn computed(&mut self, id: &NodeId<'_>, node: &Node<'_>, values: &mut [f32]) {
            if id.name == "ffn_up" && id.layer == Some(1) && node.shape[0] > 1 {
                let last = values.len() - node.shape[1];
                values[last..].iter_mut().for_each(|v| *v *= 1.0 + 1e-5);
            }
        }
    }
    let words = "first differs at blk 1 ffn_up (prefill), inputs equal: suspect the Q4_K kernel";
    trips(&Loaded::of(&case(DENSE)), Nudged, words);
}
