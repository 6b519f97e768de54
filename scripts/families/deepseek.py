"""What goes by DeepSeek's name with latent attention, absorbed or whole: experts in groups with a bias and a
network beside them, YaRN with its multiplier; with an indexer that chooses positions (V3.2, GLM 5); MiniCPM3
and PLM, whose latent attention is always whole."""
import numpy as np

from .core import Family, scaling, shape
from .dots import draw_routing

# A tenth of the multiplier stands in files.
MULTIPLIERS = (None, None, 0.1, 0.0707, 0.05)


def draw_latent(d, absorbed=None, direct=None, **changes):
    """Sizes of latent attention; what is quantised comes in whole blocks."""
    heads = d.of(1, 2, 3, 4, 8, 16)
    absorbed = d.maybe(0.75) if absorbed is None else absorbed
    latent, rope = d.multiple(16, 96), d.of(4, 8, 16, 32)
    nope, value = d.multiple(8, 48), d.multiple(8, 48)
    direct = d.maybe(0.3) if direct is None else direct
    c = d.shape(**{
        "heads": heads, "kv": 1 if absorbed else heads, "head": latent + rope if absorbed else nope + rope,
        "value": latent if absorbed else value, "rot": rope, "bare": False, "nope": nope, "v_mla": value,
        "absorbed": absorbed, "latent": latent, "q_rank": 0 if direct else d.multiple(16, 64),
        "scaling": d.scaling(None, "linear", "yarn", "yarn", "yarn"), "multiplier": d.of(*MULTIPLIERS),
        "nextn": d.between(0, 1), **changes})
    return c


def draw_networks(d, c, gatings):
    """Fields of dense layers and experts."""
    dense = d.of(None, 0, d.between(1, c.layers))
    return c.but(**draw_routing(d, gatings), shared=d.between(1, 2), dense_layers=dense, fused=d.maybe(0.2))


def draw_temperature(d):
    temperature = {"temp_scale": d.real(0.05, 0.5), "temp_length": d.of(8, 16, 40, 8192)}
    return temperature if d.maybe(0.3) else {"temp_scale": None, "temp_length": None}


def draw_2(d):
    return draw_networks(d, draw_latent(d, **draw_temperature(d)), (None, 1, 2, 2, 3))


def draw_indexed(d, **changes):
    c = draw_latent(d, absorbed=True, direct=False, temp_scale=None, temp_length=None,
                    index_heads=d.of(6, 8, 12, 16), index_len=d.of(64, 64, 128),
                    top_k=d.of(1, 2, 5, 16, 33, 64, 130), types=None, **changes)
    return draw_networks(d, c, (1, 2, 2, 3)).but(fused=False)


def draw_glm(d):
    c = draw_indexed(d, multiplier=None)
    types = [1] + [int(d.maybe()) for _ in range(c.layers - 1)]
    return c.but(types=d.of(None, 1, types, types), gating=d.of(None, 1, 2), unused=d.maybe(0.3),
                 index_bias=d.maybe(0.8), context=d.of(4096, 4096, 1 << 20))


def attention(m, b, c):
    """The tensors of latent attention."""
    rows = c.heads * (c.nope + c.rot)
    if c.q_rank:
        b.matrix("attn_q_a", c.q_rank, c.embd)
        b.norm("attn_q_a_norm", c.q_rank)
        b.matrix("attn_q_b", rows, c.q_rank)
    else:
        b.matrix("attn_q", rows, c.embd)
    b.matrix("attn_kv_a_mqa", c.latent + c.rot, c.embd)
    b.norm("attn_kv_a_norm", c.latent)
    if c.absorbed:
        # What is made of a normed latent; a head's queries come into its space with the same strength.
        b.matrix("attn_k_b", c.latent, c.nope, c.latent ** -0.5, experts=c.heads)
        b.matrix("attn_v_b", c.v_mla, c.latent, experts=c.heads)
    else:
        b.matrix("attn_kv_b", c.heads * (c.nope + c.v_mla), c.latent)
    b.matrix("attn_output", c.embd, c.heads * c.v_mla)


def low_rank_keys(m, c):
    m.key("attention.q_lora_rank", None if m.arch == "plm" else c.q_rank)
    m.key("attention.kv_lora_rank", c.latent)
    if c.absorbed:
        m.key("attention.key_length_mla", c.nope + c.rot)
        m.key("attention.value_length_mla", c.v_mla)
    if c.scaling:
        m.key("rope.scaling.yarn_log_multiplier", c.multiplier)


def tensors(m, c):
    m.common()
    low_rank_keys(m, c)
    m.key("expert_feed_forward_length", c.expert_ff)
    m.key("attention.temperature_scale", c.temp_scale)
    m.key("attention.temperature_length", c.temp_length)
    if c.get("top_k"):
        m.key("attention.indexer.head_count", c.index_heads)
        m.key("attention.indexer.key_length", c.index_len)
        m.key("attention.indexer.top_k", c.top_k)
        m.key("attention.indexer.types", c.types)
    for i, b in enumerate(m.blocks_and_next(c.nextn)):
        b.norm("attn_norm")
        attention(m, b, c)
        if c.get("top_k"):
            indexer(b, c, i)
        b.norm("ffn_norm")
        if i < (c.dense_layers or 0):
            b.ffn()
        else:
            b.experts(fused=c.fused)
            if c.choice_bias:
                b.vector("exp_probs_b.bias", c.experts, 0.2)
            b.ffn("_shexp", c.shared * c.expert_ff)


def indexer(b, c, i):
    """An indexer of a layer that has one."""
    own = c.types[i] if isinstance(c.types, list) and i < len(c.types) else 1
    if c.types is None and c.context == 1 << 20:
        own = i < 2 or i % 4 == 2
    if not own and not c.unused:
        return
    b.norm("indexer.k_norm", c.index_len, bias=c.get("index_bias", True))
    b.matrix("indexer.proj", c.index_heads, c.embd)
    b.matrix("indexer.attn_k", c.index_len, c.embd)
    b.matrix("indexer.attn_q_b", c.index_heads * c.index_len, c.q_rank)


def draw_minicpm3(d):
    return draw_latent(d, absorbed=False, direct=False, multiplier=None, nextn=0, factors=d.maybe(0.4),
                       scaling=d.scaling(None, None, "linear", "yarn", "longrope"))


def tensors_minicpm3(m, c):
    m.common()
    low_rank_keys(m, c)
    if c.factors:
        for name, mean in (("long", 3.0), ("short", 1.2)):
            m.add(f"rope_factors_{name}.weight", mean + 0.1 * np.arange(c.rot // 2))
    for b in m.blocks():
        b.norm("attn_norm")
        attention(m, b, c)
        b.norm("ffn_norm")
        b.ffn()


def draw_plm(d):
    return draw_latent(d, absorbed=False, direct=True, multiplier=None, nextn=0, tied=True,
                       scaling=d.scaling(None, None, "linear", "yarn"))


def tensors_plm(m, c):
    m.common()
    low_rank_keys(m, c)
    for b in m.blocks():
        b.norm("attn_norm")
        attention(m, b, c)
        b.norm("ffn_norm")
        b.ffn(gate=False)


LATENT = shape(embd=32, layers=2, heads=2, kv=1, head=24, value=16, rot=8, nope=8, v_mla=8,
               absorbed=True, latent=16, q_rank=12, ff=24, experts=4, used=2, expert_ff=16, shared=1,
               dense_layers=1, gating=2, weights_norm=True, weights_scale=2.5, choice_bias=True, groups=2,
               groups_used=1, fused=False, nextn=0, multiplier=0.0707, temp_scale=None, temp_length=None,
               scaling=scaling("yarn", 8.0))
WHOLE = LATENT.but(absorbed=False, kv=2, head=16, value=8)
INDEXED = LATENT.but(index_heads=4, index_len=64, top_k=12, types=None, multiplier=0.1, groups=0,
                     groups_used=0)
DENSE = WHOLE.but(experts=0, groups=None, groups_used=None, gating=None, weights_norm=None,
                  weights_scale=None, shared=None, dense_layers=None, multiplier=None)
FAMILIES = [
    Family("deepseek2", draw_2, tensors, {
        "": (LATENT.but(seed=502), "F32"),
        "-lite": (WHOLE.but(seed=503, q_rank=0, gating=None, groups=0, groups_used=0,
                             choice_bias=False), "F32")}),
    Family("mistral4", draw_2, tensors, {
        "": (LATENT.but(seed=504, temp_scale=0.1, temp_length=16, multiplier=0.1), "F32")}),
    Family("deepseek32", draw_indexed, tensors, {"": (INDEXED.but(seed=535), "F32")}),
    Family("glm-dsa", draw_glm, tensors, {
        "": (INDEXED.but(seed=506, types=[1, 0], multiplier=None, unused=False, index_heads=8), "F32")}),
    Family("minicpm3", draw_minicpm3, tensors_minicpm3, {
        "": (DENSE.but(seed=507, factors=True, scaling=scaling("longrope", 4.0)), "F32")}),
    Family("plm", draw_plm, tensors_plm, {"": (DENSE.but(seed=508, q_rank=0, tied=True), "F32")}),
]
