"""Kimi Linear: Kimi Delta Attention, and latent attention without any rotation in the layers that have a head
of keys."""
from .core import Family, shape
from .dots import draw_routing
from .qwen35 import decays


def draw(d):
    heads = d.of(1, 2, 3, 4, 6)
    kda = d.multiple(8, 32)
    latent = d.multiple(16, 64)
    rot, nope = d.of(4, 8, 16), d.multiple(8, 32)
    routing = draw_routing(d)
    routing.update(weights_norm=None, choice_bias=True)
    c = d.shape(heads=heads, head=latent + rot, value=latent, rot=rot, tied=False, scaling=None,
                latent=latent, nope=nope, value_mla=d.multiple(8, 32), kda=kda, taps=d.of(2, 3, 4, 4, 5),
                fused=d.maybe(0.2), shared=d.between(1, 2), four_sizes=d.maybe(), **routing)
    # llama.cpp wants both kinds of layers.
    kinds = [0, 1] + [d.between(0, 1) for _ in range(c.layers - 2)]
    d.rng.shuffle(kinds)
    return c.but(kv=[int(kind) for kind in kinds], dense_layers=d.of(None, 0, d.between(1, c.layers)))


def kda(b, c):
    inner = c.heads * c.kda
    if c.fused:
        b.matrix("attn_qkv", 3 * inner, c.embd)
    else:
        b.matrix("attn_q", inner, c.embd)
        b.matrix("attn_k", inner, c.embd)
        b.matrix("attn_v", inner, c.embd)
    for part in "qkv":
        b.vector(f"ssm_conv1d_{part}.weight", (inner, 1, c.taps), c.taps ** -0.5)
    b.matrix("ssm_f_a", c.kda, c.embd)
    b.matrix("ssm_f_b", inner, c.kda)
    b.matrix("ssm_g_a", c.kda, c.embd)
    b.matrix("ssm_g_b", inner, c.kda)
    b.matrix("ssm_beta", c.heads, c.embd)
    b.vector("ssm_dt.bias", inner)
    decays(b, (1, 1, c.heads, 1) if c.four_sizes else (c.heads, 1))
    b.norm("ssm_norm", c.kda)
    b.matrix("attn_output", c.embd, inner)


def latent(b, c):
    if c.get("rank"):
        b.matrix("attn_q_a", c.rank, c.embd)
        b.norm("attn_q_a_norm", c.rank)
        b.matrix("attn_q_b", c.heads * (c.nope + c.rot), c.rank)
    else:
        b.matrix("attn_q", c.heads * (c.nope + c.rot), c.embd)
    b.matrix("attn_kv_a_mqa", c.latent + c.rot, c.embd)
    b.norm("attn_kv_a_norm", c.latent)
    b.matrix("attn_k_b", c.latent, c.nope, experts=c.heads)
    b.matrix("attn_v_b", c.value_mla, c.latent, experts=c.heads)
    b.matrix("attn_output", c.embd, c.heads * c.value_mla)


def tensors(m, c):
    m.common()
    m.key("attention.kv_lora_rank", c.latent)
    m.key("attention.key_length_mla", c.nope + c.rot)
    m.key("attention.value_length_mla", c.value_mla)
    # Here they are no default: the keys have to be there.
    m.keys[f"{m.arch}.rope.dimension_count"] = c.rot
    m.keys[f"{m.arch}.attention.key_length"] = c.head
    m.key("ssm.conv_kernel", c.taps)
    m.key("kda.head_dim", c.kda)
    m.key("expert_feed_forward_length", c.expert_ff)
    for i, (b, heads) in enumerate(zip(m.blocks(), c.kv)):
        b.norm("attn_norm")
        latent(b, c) if heads else kda(b, c)
        b.norm("ffn_norm")
        if i < (c.dense_layers or 0):
            b.ffn()
        else:
            b.experts()
            b.vector("exp_probs_b.bias", c.experts, 0.2)
            b.ffn("_shexp", c.expert_ff * c.shared)


KIMI = shape(seed=421, layers=2, embd=32, heads=2, kv=[0, 1], head=20, value=16, rot=4, latent=16, nope=8,
             value_mla=8, kda=8, taps=4, fused=False, four_sizes=True, ff=32, dense_layers=1, experts=4,
             used=2, expert_ff=8, shared=1, gating=2, weights_norm=None, weights_scale=2.446)
FAMILIES = [Family("kimi-linear", draw, tensors, {"": (KIMI, "F32")})]
