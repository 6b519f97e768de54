//! Tiny models of the families with Mamba 2, short convolutions and lightning attention: sound ones, and parts
//! of them to spoil.

use super::gguf::{GgufBuilder, Kv, Rng, ty};
use super::tiny::tiny_model;

pub const EMBD: u64 = 32;
pub const FF: u64 = 16;
pub const EXPERTS: u64 = 4;
/// Elements of a head of attention.
pub const HEAD: u64 = 8;
/// Rows of Mamba 2's heads together, its heads and their groups, columns of its state, taps.
pub const INNER: u64 = 64;
pub const HEADS: u64 = 4;
pub const GROUPS: u64 = 2;
pub const STATE: u64 = 16;
pub const TAPS: u64 = 4;
/// Channels of its convolution.
pub const CHANNELS: u64 = INNER + 2 * GROUPS * STATE;

/// A name and a model for each of them.
pub fn all() -> Vec<(&'static str, GgufBuilder)> {
    vec![
        ("lfm2", lfm2()),
        ("lfm2moe", lfm2moe()),
        ("granitehybrid", granite_hybrid()),
        ("nemotron_h", nemotron_h()),
        ("nemotron_h_moe", nemotron_h_moe()),
        ("falcon-h1", falcon_h1()),
        ("mamba2", mamba2()),
        ("minimax-01", minimax_01()),
    ]
}

pub fn lfm2() -> GgufBuilder {
    of("lfm2", 3)
        .kv("lfm2.attention.head_count_kv", vec![0u32, 2, 0])
        .kv("lfm2.shortconv.l_cache", 3u32)
        .last_norm_of_lfm2()
        .norm("blk.0.attn_norm.weight")
        .short_conv(0)
        .network(0)
        .norm("blk.1.attn_norm.weight")
        .attention(1)
        .head_norms(1)
        .network(1)
        .norm("blk.2.attn_norm.weight")
        .short_conv(2)
        .network(2)
}

pub fn lfm2moe() -> GgufBuilder {
    of("lfm2moe", 2)
        .kv("lfm2moe.attention.head_count_kv", vec![0u32, 2])
        .kv("lfm2moe.shortconv.l_cache", 3u32)
        .kv("lfm2moe.leading_dense_block_count", 1u32)
        .kv("lfm2moe.expert_feed_forward_length", FF as u32)
        .kv("lfm2moe.expert_count", EXPERTS as u32)
        .kv("lfm2moe.expert_used_count", 2u32)
        .kv("lfm2moe.expert_gating_func", 2u32)
        .last_norm_of_lfm2()
        .norm("blk.0.attn_norm.weight")
        .short_conv(0)
        .network(0)
        .norm("blk.1.attn_norm.weight")
        .attention(1)
        .head_norms(1)
        .norm("blk.1.ffn_norm.weight")
        .weights("blk.1.ffn_gate_exps.weight", &[EMBD, FF, EXPERTS])
        .experts(1, EMBD)
}

pub fn granite_hybrid() -> GgufBuilder {
    of("granitehybrid", 2)
        .kv("granitehybrid.attention.head_count_kv", vec![0u32, 2])
        .kv("granitehybrid.embedding_scale", 2f32)
        .kv("granitehybrid.residual_scale", 0.5f32)
        .kv("granitehybrid.attention.scale", 0.25f32)
        .kv("granitehybrid.logit_scale", 4f32)
        .sizes_of_mamba()
        .norm("blk.0.attn_norm.weight")
        .mamba(0)
        .network(0)
        .norm("blk.1.attn_norm.weight")
        .attention(1)
        .network(1)
}

/// Mamba 2, attention, a network.
pub fn nemotron_h() -> GgufBuilder {
    nemotron("nemotron_h")
        .weights("blk.2.ffn_up.weight", &[EMBD, FF])
        .weights("blk.2.ffn_down.weight", &[FF, EMBD])
}

/// The same with experts on a narrower input.
pub fn nemotron_h_moe() -> GgufBuilder {
    nemotron("nemotron_h_moe")
        .kv("nemotron_h_moe.expert_count", EXPERTS as u32)
        .kv("nemotron_h_moe.expert_used_count", vec![0u32, 0, 2])
        .kv("nemotron_h_moe.expert_feed_forward_length", vec![0u32, 0, FF as u32])
        .kv("nemotron_h_moe.expert_shared_feed_forward_length", 24u32)
        .kv("nemotron_h_moe.expert_weights_norm", true)
        .kv("nemotron_h_moe.moe_latent_size", 16u32)
        .weights("blk.2.ffn_latent_down.weight", &[EMBD, 16])
        .weights("blk.2.ffn_latent_up.weight", &[16, EMBD])
        .experts(2, 16)
        .weights("blk.2.ffn_up_shexp.weight", &[EMBD, 24])
        .weights("blk.2.ffn_down_shexp.weight", &[24, EMBD])
}

fn nemotron(arch: &str) -> GgufBuilder {
    of(arch, 3)
        .set(&format!("{arch}.feed_forward_length"), vec![0u32, 0, FF as u32])
        .kv(format!("{arch}.attention.head_count_kv"), vec![0u32, 2, 0])
        .kv(format!("{arch}.attention.layer_norm_epsilon"), 1e-5f32)
        .sizes_of_mamba()
        .norm("blk.0.attn_norm.weight")
        .mamba(0)
        .norm("blk.1.attn_norm.weight")
        .attention(1)
        .norm("blk.2.attn_norm.weight")
}

pub fn falcon_h1() -> GgufBuilder {
    let layer = |model: GgufBuilder, il| {
        model
            .norm(&format!("blk.{il}.attn_norm.weight"))
            .attention(il)
            .mamba(il)
            .norm(&format!("blk.{il}.ffn_norm"))
            .weights(&format!("blk.{il}.ffn_gate.weight"), &[EMBD, FF])
            .weights(&format!("blk.{il}.ffn_up.weight"), &[EMBD, FF])
            .weights(&format!("blk.{il}.ffn_down.weight"), &[FF, EMBD])
    };
    (0..2).fold(of("falcon-h1", 2).kv("falcon-h1.attention.head_count_kv", 2u32).sizes_of_mamba(), layer)
}

/// As files say it: no heads of attention.
pub fn mamba2() -> GgufBuilder {
    of("mamba2", 2)
        .set("mamba2.attention.head_count", 0u32)
        .set("mamba2.feed_forward_length", 0u32)
        .without("mamba2.rope.freq_base")
        .sizes_of_mamba()
        .norm("blk.0.attn_norm.weight")
        .mamba(0)
        .norm("blk.1.attn_norm.weight")
        .mamba(1)
}

/// Lightning attention in the first and the last layer, attention between them; experts in all.
pub fn minimax_01() -> GgufBuilder {
    let model = of("minimax-01", 3)
        .key("attention.head_count_kv", 2u32)
        .key("full_attention_interval", 2u32)
        .key("residual_scale", 1.5f32)
        .key("expert_count", EXPERTS as u32)
        .key("expert_used_count", 2u32)
        .attention(1);
    let model = [0, 2].into_iter().fold(model, |model, il| {
        let name = |part: &str| format!("blk.{il}.{part}.weight");
        model
            .weights(&name("attn_qkv"), &[EMBD, 12 * HEAD])
            .weights(&name("attn_gate"), &[EMBD, 4 * HEAD])
            .weights(&name("attn_norm_2"), &[4 * HEAD])
            .weights(&name("attn_output"), &[4 * HEAD, EMBD])
    });
    (0..3).fold(model, |model, il| {
        let name = |part: &str| format!("blk.{il}.{part}.weight");
        model
            .norm(&name("attn_norm"))
            .norm(&name("ffn_norm"))
            .weights(&name("ffn_gate_exps"), &[EMBD, FF, EXPERTS])
            .experts(il, EMBD)
            .without_tensor(&format!("blk.{il}.exp_probs_b.bias"))
    })
}

/// The tiny model under the name of another architecture, without its layer.
pub fn of(arch: &str, layers: u32) -> GgufBuilder {
    let mut model = tiny_model().without("llama.attention.head_count_kv").set("general.architecture", arch);
    for pair in &mut model.pairs {
        if let Some(name) = pair.key.strip_prefix(b"llama.") {
            pair.key = [arch.as_bytes(), b".", name].concat();
        }
    }
    model.tensors.retain(|tensor| !tensor.name.starts_with(b"blk."));
    let key = |name: &str| format!("{arch}.{name}");
    model
        .set(&key("block_count"), layers)
        .set(&key("feed_forward_length"), FF as u32)
        .set(&key("context_length"), 1024u32)
}

/// What these models are made of, and what tests do to them; keys without the architecture.
pub trait StateSpaces: Sized {
    /// Gives a key another value, or adds it.
    fn key(self, key: &str, value: impl Into<Kv>) -> Self;
    fn no_key(self, key: &str) -> Self;
    /// A tensor that is there, of another shape.
    fn of_shape(self, name: &str, dims: &[u64]) -> Self;
    /// A tensor of values around 0.
    fn weights(self, name: &str, dims: &[u64]) -> Self;
    /// The weights of a norm over the embedding length.
    fn norm(self, name: &str) -> Self;
    fn last_norm_of_lfm2(self) -> Self;
    fn sizes_of_mamba(self) -> Self;
    fn mamba(self, il: usize) -> Self;
    fn short_conv(self, il: usize) -> Self;
    fn attention(self, il: usize) -> Self;
    fn head_norms(self, il: usize) -> Self;
    fn network(self, il: usize) -> Self;
    /// A router, its bias, and experts on an input of so many elements, without a gate.
    fn experts(self, il: usize, width: u64) -> Self;
}

pub fn random(name: &str, dims: &[u64], scale: f32, mean: f32) -> Vec<f32> {
    let mut rng = Rng(name.bytes().fold(7, |seed, byte| seed * 131 % (1 << 40) + u64::from(byte)));
    let value = |rng: &mut Rng| ((rng.next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale + mean;
    (0..dims.iter().product()).map(|_| value(&mut rng)).collect()
}

fn full(model: &GgufBuilder, key: &str) -> String {
    let arch = model.pairs.iter().find_map(|pair| pair.key.strip_suffix(b".block_count"));
    format!("{}.{key}", std::str::from_utf8(arch.expect("a count of blocks")).expect("text"))
}

impl StateSpaces for GgufBuilder {
    fn key(self, key: &str, value: impl Into<Kv>) -> Self {
        let key = full(&self, key);
        self.set(&key, value)
    }

    fn no_key(self, key: &str) -> Self {
        let key = full(&self, key);
        self.without(&key)
    }

    fn of_shape(self, name: &str, dims: &[u64]) -> Self {
        self.replace(name, ty::F32, dims, super::gguf::Data::Zero)
    }

    fn weights(self, name: &str, dims: &[u64]) -> Self {
        let scale = 1.7 / (dims[0] as f32).sqrt();
        self.tensor(name, ty::F32, dims, random(name, dims, scale, 0.0))
    }

    fn norm(self, name: &str) -> Self {
        self.tensor(name, ty::F32, &[EMBD], random(name, &[EMBD], 0.3, 1.0))
    }

    fn last_norm_of_lfm2(self) -> Self {
        self.without_tensor("output_norm.weight").norm("token_embd_norm.weight")
    }

    fn sizes_of_mamba(self) -> Self {
        self.key("ssm.conv_kernel", TAPS as u32)
            .key("ssm.inner_size", INNER as u32)
            .key("ssm.state_size", STATE as u32)
            .key("ssm.time_step_rank", HEADS as u32)
            .key("ssm.group_count", GROUPS as u32)
    }

    fn mamba(self, il: usize) -> Self {
        let name = |part: &str| format!("blk.{il}.{part}");
        let of = |part: &str, dims: &[u64], scale, mean| random(&name(part), dims, scale, mean);
        let norm = &[INNER / GROUPS, GROUPS];
        self.weights(&name("ssm_in.weight"), &[EMBD, INNER + CHANNELS + HEADS])
            .weights(&name("ssm_conv1d.weight"), &[TAPS, CHANNELS])
            .weights(&name("ssm_conv1d.bias"), &[CHANNELS])
            .tensor(name("ssm_dt.bias"), ty::F32, &[HEADS], of("ssm_dt.bias", &[HEADS], 1.0, -1.0))
            .tensor(name("ssm_a"), ty::F32, &[1, HEADS], of("ssm_a", &[HEADS], 0.5, -0.6))
            .tensor(name("ssm_d"), ty::F32, &[1, HEADS], of("ssm_d", &[HEADS], 0.5, 1.0))
            .tensor(name("ssm_norm.weight"), ty::F32, norm, of("ssm_norm", norm, 0.3, 1.0))
            .weights(&name("ssm_out.weight"), &[INNER, EMBD])
    }

    fn short_conv(self, il: usize) -> Self {
        self.weights(&format!("blk.{il}.shortconv.in_proj.weight"), &[EMBD, 3 * EMBD])
            .weights(&format!("blk.{il}.shortconv.conv.weight"), &[3, EMBD])
            .weights(&format!("blk.{il}.shortconv.out_proj.weight"), &[EMBD, EMBD])
    }

    fn attention(self, il: usize) -> Self {
        self.weights(&format!("blk.{il}.attn_q.weight"), &[EMBD, 4 * HEAD])
            .weights(&format!("blk.{il}.attn_k.weight"), &[EMBD, 2 * HEAD])
            .weights(&format!("blk.{il}.attn_v.weight"), &[EMBD, 2 * HEAD])
            .weights(&format!("blk.{il}.attn_output.weight"), &[4 * HEAD, EMBD])
    }

    fn head_norms(self, il: usize) -> Self {
        self.weights(&format!("blk.{il}.attn_q_norm.weight"), &[HEAD])
            .weights(&format!("blk.{il}.attn_k_norm.weight"), &[HEAD])
    }

    fn network(self, il: usize) -> Self {
        self.norm(&format!("blk.{il}.ffn_norm.weight"))
            .weights(&format!("blk.{il}.ffn_gate.weight"), &[EMBD, FF])
            .weights(&format!("blk.{il}.ffn_up.weight"), &[EMBD, FF])
            .weights(&format!("blk.{il}.ffn_down.weight"), &[FF, EMBD])
    }

    fn experts(self, il: usize, width: u64) -> Self {
        self.weights(&format!("blk.{il}.ffn_gate_inp.weight"), &[EMBD, EXPERTS])
            .weights(&format!("blk.{il}.exp_probs_b.bias"), &[EXPERTS])
            .weights(&format!("blk.{il}.ffn_up_exps.weight"), &[width, FF, EXPERTS])
            .weights(&format!("blk.{il}.ffn_down_exps.weight"), &[FF, width, EXPERTS])
    }
}
