"""Mamba alone and in most layers of Jamba; Mamba 2 alone, beside attention in each layer (Falcon-H1), and in
layers of one block each (Nemotron-H)."""
import numpy as np

from .core import Family, shape


def draw_block(d, inner=None, steps=None):
    """Fields of Mamba 2's block, whose heads together may have to be of a given length."""
    if inner is None:
        heads = d.of(1, 2, 3, 4, 6, 8)
        lengths = [n for n in (3, 8, 12, 16, 32, 64, 128, 256) if heads * n % d.block == 0]
        inner = heads * d.of(*(lengths[:1] + [n for n in lengths if heads * n <= 256]))
    else:
        heads = d.of(*(n for n in (1, 2, 3, 4, 6, 8, 12, 16) if inner % n == 0))
    groups = d.of(*(n for n in (1, 1, 2, 3, 4) if heads % n == 0))
    state = d.of(1, 4, 15, 16, 24, 32, 64, 128)
    return {"inner": inner, "ssm_heads": heads, "ssm_groups": groups, "state": state,
            "taps": d.of(2, 3, 4, 4, 5)}


def keys(m, c):
    m.key("ssm.conv_kernel", c.taps)
    m.key("ssm.inner_size", c.inner)
    m.key("ssm.state_size", c.state)
    m.key("ssm.time_step_rank", c.ssm_heads)
    m.key("ssm.group_count", c.ssm_groups)


def convolution(b, name, channels, taps, bias):
    """Weights that stay floats, as all of a convolution do."""
    name = b.prefix + name
    b.model.add(name + ".weight", b.model.rng(name).standard_normal((channels, taps)) * taps ** -0.5)
    if bias:
        b.model.add(name + ".bias", 0.3 * b.model.rng(name + ".bias").standard_normal(channels))


def block(b, norm=True):
    c = b.config
    channels = c.inner + 2 * c.ssm_groups * c.state
    b.matrix("ssm_in", c.inner + channels + c.ssm_heads, c.embd)
    convolution(b, "ssm_conv1d", channels, c.taps, bias=True)
    # Steps from a few hundredths to a few units; states that fade within a few tokens, or within many.
    b.vector("ssm_dt.bias", c.ssm_heads, 1.5, -1.0)
    for name, values in (("ssm_a", lambda rng, n: -np.exp(rng.standard_normal(n))),
                         ("ssm_d", lambda rng, n: 1 + 0.5 * rng.standard_normal(n))):
        name = b.prefix + name
        b.model.add(name, values(b.model.rng(name), (c.ssm_heads, 1)))
    if norm:
        name = b.prefix + "ssm_norm.weight"
        size = (c.ssm_groups, c.inner // c.ssm_groups)
        b.model.add(name, 1 + 0.2 * b.model.rng(name).standard_normal(size))
    b.matrix("ssm_out", c.embd, c.inner)


# ---- mamba, jamba -----------------------------------------------------------------------------------------

def draw_first(d, least=1):
    """Fields of Mamba's block; no norm is over fewer than `least` values."""
    states, ranks = ([n for n in of if n >= least] for of in ((1, 4, 15, 16, 16, 17, 32), (1, 3, 8, 20)))
    return {"state": d.of(*states), "rank": d.of(*ranks) if d.block == 1 else d.block,
            "taps": d.of(2, 3, 4, 4, 5)}


def first_keys(m, c):
    m.key("ssm.conv_kernel", c.taps)
    m.key("ssm.inner_size", 2 * c.embd)
    m.key("ssm.state_size", c.state)
    m.key("ssm.time_step_rank", c.rank)


def first_block(b, norms=False):
    c, inner = b.config, 2 * b.config.embd
    b.matrix("ssm_in", 2 * inner, c.embd)
    convolution(b, "ssm_conv1d", inner, c.taps, bias=True)
    b.matrix("ssm_x", c.rank + 2 * c.state, inner, 2 * inner ** -0.5)
    if norms:
        b.norm("ssm_dt_norm", c.rank)
        b.norm("ssm_b_norm", c.state)
        b.norm("ssm_c_norm", c.state)
    b.matrix("ssm_dt", inner, c.rank)
    b.vector("ssm_dt.bias", inner, 1.5, -1.0)
    for name, size, values in (("ssm_a", (inner, c.state), lambda rng, n: -np.exp(rng.standard_normal(n))),
                               ("ssm_d", inner, lambda rng, n: 1 + 0.5 * rng.standard_normal(n))):
        name = b.prefix + name
        b.model.add(name, values(b.model.rng(name), size))
    b.matrix("ssm_out", c.embd, inner)


def draw_mamba(d):
    return d.shape(heads=0, kv=0, head=None, value=None, rot=0, ff=0, zeros=d.maybe(),
                   normed=d.of(None, None, False, True, True), **draw_first(d))


def tensors_mamba(m, c):
    m.common()
    if c.zeros:  # as converters write them
        m.key("feed_forward_length", 0)
    else:
        m.keys.pop("mamba.attention.head_count")
        m.keys.pop("mamba.attention.head_count_kv", None)
    first_keys(m, c)
    m.key("ssm.dt_b_c_rms", c.normed)
    for b in m.blocks():
        b.norm("attn_norm")
        first_block(b)


def draw_jamba(d):
    layers, square = d.between(2, 5), d.square()
    attends = [d.maybe(0.4) for _ in range(layers)]
    first, second = d.rng.permutation(layers)[:2]
    attends[first], attends[second] = True, False
    routed = [d.maybe() for _ in range(layers)] if d.maybe(0.7) else [False] * layers
    return d.shape(**{
        **square, "layers": layers, "rot": 0, "kv": [square["kv"] * attend for attend in attends],
        "qkv_bias": d.maybe(0.2), "fused": d.maybe(0.2), "routed": routed, **draw_first(d, least=3),
        **({**d.experts(), "expert_ff": 0} if any(routed) else {})})


def tensors_jamba(m, c):
    m.common()
    first_keys(m, c)
    for i, b in enumerate(m.blocks()):
        b.config = c.but(kv=c.kv[i])
        b.norm("attn_norm")
        if not c.kv[i]:
            first_block(b, norms=True)
        else:
            b.fused_qkv(bias=c.qkv_bias) if c.fused else b.qkv(bias=c.qkv_bias)
            b.attention_output()
        b.norm("ffn_norm")
        b.experts(ff=c.ff) if c.routed[i] else b.ffn()


# ---- mamba2 -----------------------------------------------------------------------------------------------

def draw_mamba2(d):
    return d.shape(heads=0, kv=0, head=None, value=None, rot=0, ff=0, zeros=d.maybe(), **draw_block(d))


def tensors_mamba2(m, c):
    m.common()
    if c.zeros:  # as converters write them
        m.key("feed_forward_length", 0)
    else:
        m.keys.pop("mamba2.attention.head_count")
        m.keys.pop("mamba2.attention.head_count_kv", None)
    keys(m, c)
    for b in m.blocks():
        b.norm("attn_norm")
        block(b)


# ---- Falcon-H1 --------------------------------------------------------------------------------------------

def draw_falcon(d):
    return d.shape(scaling=d.scaling(None, None, "linear", "yarn"), qkv_bias=d.maybe(0.3), output_bias=False,
                   ffn_bias=d.maybe(0.3), norm=d.maybe(), **draw_block(d))


def tensors_falcon(m, c):
    m.common()
    keys(m, c)
    for b in m.blocks():
        b.norm("attn_norm")
        b.qkv(bias=c.qkv_bias)
        b.attention_output(bias=c.output_bias)
        block(b, norm=c.norm)
        b.vector("ffn_norm", c.embd, 0.2, 1.0)
        b.ffn(bias=c.ffn_bias)


# ---- Nemotron-H -------------------------------------------------------------------------------------------

def draw_kinds(d, count):
    """What each layer is; one of them remembers a state and one keys and values."""
    kinds = [d.of("mamba", "mamba", "attention", "network") for _ in range(count)]
    first, second = d.rng.permutation(count)[:2]
    kinds[first], kinds[second] = "mamba", "attention"
    return kinds


def draw_nemotron(d):
    layers = d.between(3, 6)
    kinds = draw_kinds(d, layers)
    kv = d.of(1, 2, 3)
    ff = d.multiple(48, 200)
    return d.shape(
        layers=layers, kinds=kinds, heads=kv * d.of(1, 2, 3), rot=0, rope_keys=d.maybe(),
        kv=[kv if kind == "attention" else 0 for kind in kinds],
        ff=[ff if kind == "network" else 0 for kind in kinds],
        eps_rms=d.of(None, None, 1e-4), qkv_bias=d.maybe(0.3), output_bias=d.maybe(0.3),
        ffn_bias=d.maybe(0.3), latent=None, nextn=0, **draw_block(d))


def draw_nemotron_moe(d):
    c = draw_nemotron(d)
    if "network" not in c.kinds:
        c = c.but(layers=c.layers + 1, kinds=c.kinds + ["network"], kv=c.kv + [0], ff=c.ff + [0])
    nextn = d.of(0, 0, 0, 1)
    drawn = d.groups() if d.maybe(0.3) else d.experts()
    # Files that name no length of their own say that of the experts used together.
    by_layer = d.maybe(0.3)
    used = [d.between(1, drawn["used"]) if by_layer else drawn["used"] for _ in c.kinds]
    lengths = [d.multiple(24, 96) if by_layer else drawn["expert_ff"] for _ in c.kinds]
    named = d.maybe(0.7) or nextn > 0
    networks = [kind == "network" for kind in c.kinds]
    ff = [(1 if named else n * length) * network for n, length, network in zip(used, lengths, networks)]
    lengths = [length * network for length, network in zip(lengths, networks)]
    if nextn:
        used, lengths, networks = used + used[:1], lengths + [max(lengths)], networks + [True]
    return c.but(**{
        **drawn, "ff": ff + [max(lengths)] * nextn, "kv": c.kv + [max(c.kv)] * nextn, "nextn": nextn,
        "used": used if by_layer else drawn["used"], "expert_ff": lengths, "named": named,
        "by_layer": by_layer, "gating": d.of(None, 2), "weights_norm": d.of(None, True, False),
        "weights_scale": d.of(None, 1.0, d.real(0.5, 3.0)), "shared": d.of(None, 1),
        "shared_ff": d.multiple(24, 96),
        "latent": d.of(None, d.multiple(16, c.embd))})


def experts(m, b, c, ff):
    width = c.latent or c.embd
    b.matrix("ffn_gate_inp", c.experts, c.embd, 2 * c.embd ** -0.5, router=True)
    b.vector("exp_probs_b.bias", c.experts, 0.2)
    if c.latent:
        b.matrix("ffn_latent_down", width, c.embd)
        b.matrix("ffn_latent_up", c.embd, width)
    b.matrix("ffn_up_exps", ff, width, experts=c.experts)
    b.matrix("ffn_down_exps", width, ff, experts=c.experts)
    b.ffn("_shexp", c.shared_ff, gate=False)


def tensors_nemotron(m, c):
    m.common(eps="attention.layer_norm_epsilon")
    m.key("attention.layer_norm_rms_epsilon", c.eps_rms)
    if c.rope_keys:
        m.key("rope.dimension_count", c.head)
        m.key("rope.freq_base", c.rope_base)
    keys(m, c)
    m.key("moe_latent_size", c.latent)
    if c.experts and c.named:
        m.key("expert_feed_forward_length", c.expert_ff if c.by_layer else max(c.expert_ff))
    for i, b in enumerate(m.blocks_and_next(c.nextn)):
        kind = c.kinds[i] if i < c.layers else "next"
        b.config = c.but(kv=c.kv[i])
        b.norm("attn_norm")
        if kind == "mamba":
            block(b)
        if kind in ("attention", "next"):
            b.qkv(bias=c.qkv_bias)
            b.attention_output(bias=c.output_bias)
        if kind == "next":
            b.norm("post_attention_norm")
            b.norm("nextn.shared_head_norm")
        if kind in ("network", "next"):
            experts(m, b, c, c.expert_ff[i]) if c.experts else b.ffn(ff=c.ff[i], bias=c.ffn_bias, gate=False)


SMALL = {"embd": 32, "heads": 4, "kv": 2, "head": 8, "ff": 32, "inner": 64, "ssm_heads": 4, "ssm_groups": 2,
         "state": 16, "taps": 4}
NEMOTRON = shape(**{
    **SMALL, "layers": 4, "kinds": ["mamba", "attention", "network", "mamba"], "kv": [0, 2, 0, 0], "rot": 0,
    "ff": [0, 0, 32, 0], "rope_keys": True, "eps_rms": None, "qkv_bias": False, "output_bias": False,
    "ffn_bias": False, "latent": None, "nextn": 0})
FIRST = shape(embd=16, heads=2, kv=1, head=8, ff=8, state=8, rank=4, taps=4, layers=2, tied=True)
FAMILIES = [
    Family("mamba", draw_mamba, tensors_mamba, {
        "": (FIRST.but(seed=405, heads=0, kv=0, head=None, value=None, rot=0, ff=0, zeros=True, normed=True),
             "F32")}),
    Family("jamba", draw_jamba, tensors_jamba, {
        "": (FIRST.but(seed=406, kv=[0, 1], rot=0, qkv_bias=False, fused=False, routed=[False, True],
                       experts=4, used=2), "F32")}),
    Family("mamba2", draw_mamba2, tensors_mamba2, {
        "": (shape(**{**SMALL, "seed": 401, "heads": 0, "kv": 0, "head": None, "rot": 0, "ff": 0,
                      "zeros": True}), "F32")}),
    Family("falcon-h1", draw_falcon, tensors_falcon, {
        "": (shape(**{**SMALL, "seed": 402, "ff": 16, "qkv_bias": False, "output_bias": False,
                      "ffn_bias": False, "norm": True}), "F32")}),
    Family("nemotron_h", draw_nemotron, tensors_nemotron, {"": (NEMOTRON.but(seed=403), "F32")}),
    Family("nemotron_h_moe", draw_nemotron_moe, tensors_nemotron, {
        "": (NEMOTRON.but(
            seed=404, ff=[0, 0, 16, 0], experts=8, used=3, expert_ff=[0, 0, 16, 0], named=True,
            by_layer=False, gating=2, weights_norm=True, weights_scale=2.5, shared=1, shared_ff=24,
            latent=16, groups=4, groups_used=2), "F32")}),
]
