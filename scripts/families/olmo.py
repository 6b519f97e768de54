"""OLMo 2 and 3: norms behind both parts of a layer alone, norms of whole rows of queries and keys, windows
that were not stretched; OLMoE: the same norms of queries and keys, experts."""
from .core import Family, scaling, shape


def draw_olmo2(d):
    c = d.shape(**d.square(), tied=False, window=d.of(0, d.window(), d.window()), qkv_bias=d.maybe(0.2),
                fused=d.maybe(0.2), scaling=d.scaling(None, "linear", "yarn"))
    return c.but(pattern=d.of(None, d.pattern(c.layers)))


def draw_olmoe(d):
    c = d.shape(**d.square(grouped=False), tied=False, qkv_bias=d.maybe(0.2), fused=d.maybe(0.2),
                scaling=d.scaling(None, "linear", "yarn"))
    return c.but(**d.experts(expert_ff=c.ff))


def attention(b, c):
    b.fused_qkv(bias=c.qkv_bias) if c.fused else b.qkv(bias=c.qkv_bias)
    b.norm("attn_q_norm", c.heads * c.head)
    b.norm("attn_k_norm", c.kv * c.head)
    b.attention_output()


def olmo2(m, c):
    m.common()
    if c.window:
        m.key("attention.sliding_window", c.window)
        m.key("attention.sliding_window_pattern", c.pattern, default=4)
    for b in m.blocks():
        attention(b, c)
        b.norm("post_attention_norm")
        b.ffn()
        b.norm("post_ffw_norm")


def olmoe(m, c):
    m.common()
    for b in m.blocks():
        b.norm("attn_norm")
        attention(b, c)
        b.norm("ffn_norm")
        b.experts()


SQUARE = shape(embd=32, head=8, qkv_bias=False, fused=False)
OLMO3 = SQUARE.but(seed=301, layers=4, window=16, pattern=[True, True, True, False],
                   scaling=scaling("yarn", 8.0, attn_factor=1.1))
OLMOE = SQUARE.but(seed=302, kv=4, ff=16, experts=8, used=3, expert_ff=16)
FAMILIES = [
    Family("olmo2", draw_olmo2, olmo2, {"": (OLMO3, "F32")}),
    Family("olmoe", draw_olmoe, olmoe, {"": (OLMOE, "F32")}),
]
