"""Ling 3: Kimi Delta Attention with bounded decays, and latent attention with a gate for each head in the
layers that have a head of keys; limits on SwiGLU."""
import numpy as np

from .core import Family, shape
from .dots import draw_routing
from .kimi_linear import latent


def draw(d):
    # Not fewer heads: their gates are products so few that sums near 0 would dominate the error.
    heads = d.of(4, 5, 6)
    layers, nextn = d.between(2, 5), d.of(0, 0, 0, 1)
    latent, rot = d.multiple(16, 64), d.of(4, 8, 16)
    # llama.cpp wants both kinds of layers.
    kinds = [0, 1] + [d.between(0, 1) for _ in range(layers - 2)]
    d.rng.shuffle(kinds)
    clamp, clamp_shared = (d.of(None, d.real(0.2, 2.0), [d.of(0.0, d.real(0.2, 2.0))
                                                         for _ in range(layers + nextn)]) for _ in range(2))
    part = max(rot // 8, 1)
    routing = draw_routing(d)
    routing.pop("choice_bias")
    return d.shape(
        layers=layers, heads=heads, kv=[int(kind) for kind in kinds] + [1] * nextn, head=latent + rot,
        value=latent, rot=rot, scaling=d.scaling(None, None, "linear", "yarn"), latent=latent,
        nope=d.multiple(8, 32), value_mla=d.multiple(8, 32), kda=d.multiple(8, 32), taps=d.of(2, 3, 4, 4, 5),
        rank=d.of(None, 0, d.multiple(16, 48)), bound=-d.real(0.5, 8.0), safe=d.of(None, True), nextn=nextn,
        sections=d.of(None, None, [0, 0, 0, 0], [2 * part, part, part, 0], [1, 1, 0, 1]),
        clamp=clamp, clamp_shared=clamp_shared, shared=d.between(1, 2),
        shared_ff=d.of(None, d.multiple(24, 96)), dense_layers=d.of(0, d.between(1, layers)), **routing)


def convolutions(b, inner, taps):
    for part in "qkv":
        b.matrix(f"attn_{part}", inner, b.config.embd)
        b.vector(f"ssm_conv1d_{part}.weight", (inner, 1, taps), taps ** -0.5)


def kda(b, c):
    inner = c.heads * c.kda
    convolutions(b, inner, c.taps)
    b.matrix("ssm_f_a", inner, c.embd)
    b.matrix("ssm_g_a", inner, c.embd)
    b.matrix("ssm_beta", c.heads, c.embd)
    b.vector("ssm_dt.bias", inner)
    name = b.prefix + "ssm_a"
    b.model.add(name, np.exp(b.model.rng(name).standard_normal((c.heads, 1)) - 0.5))
    b.norm("ssm_norm", c.kda)
    b.matrix("attn_output", c.embd, inner)


def keys(m, c):
    m.key("attention.q_lora_rank", c.rank)
    m.key("attention.kv_lora_rank", c.latent)
    m.key("attention.key_length_mla", c.nope + c.rot)
    m.key("attention.value_length_mla", c.value_mla)
    # Here they are no default: the keys have to be there.
    m.keys[f"{m.arch}.rope.dimension_count"] = c.rot
    m.keys[f"{m.arch}.attention.key_length"] = c.head
    m.key("ssm.conv_kernel", c.taps)
    m.key("kda.head_dim", c.kda)
    m.key("kda.gate_lower_bound", c.bound)
    m.key("expert_feed_forward_length", c.expert_ff)


def tensors(m, c):
    m.common()
    keys(m, c)
    m.key("kda.safe_gate", c.safe)
    m.key("rope.dimension_sections", c.sections)
    m.key("swiglu_clamp_exp", c.clamp)
    m.key("swiglu_clamp_shexp", c.clamp_shared)
    for i, b in enumerate(m.blocks_and_next(c.nextn)):
        b.norm("attn_norm")
        if c.kv[i]:
            latent(b, c)
            b.matrix("attn_gate", c.heads, c.embd)
        else:
            kda(b, c)
        b.norm("ffn_norm")
        if i < c.dense_layers:
            b.ffn()
        else:
            b.experts()
            b.vector("exp_probs_b.bias", c.experts, 0.2)
            b.ffn("_shexp", c.shared_ff or c.shared * c.expert_ff)
        if i >= c.layers:
            b.norm("layer_output_norm")


LING = shape(seed=423, layers=2, embd=24, heads=2, kv=[0, 1], head=12, value=8, rot=4, latent=8, nope=8,
             value_mla=8, kda=8, taps=4, rank=8, bound=-5.0, safe=None, nextn=0, sections=None, clamp=0.5,
             clamp_shared=0.7, shared=1, shared_ff=None, dense_layers=1, ff=16, experts=4, used=2, expert_ff=8, gating=2,
             weights_norm=True, weights_scale=2.5)
FAMILIES = [Family("bailingmoe3", draw, tensors, {"": (LING, "F32")})]
