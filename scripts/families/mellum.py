"""Mellum 2: norms of heads, experts, a window on most layers, whose rotation is not scaled."""
from .core import Family, scaling, shape


def draw(d):
    c = d.shape(tied=False, window=d.of(0, d.window(), d.window()), scaling=d.scaling(None, "linear", "yarn"),
                qkv_bias=d.maybe(0.2), **d.experts())
    return c.but(pattern=d.of(None, d.pattern(c.layers)))


def tensors(m, c):
    m.common()
    m.key("expert_feed_forward_length", c.expert_ff)
    if c.window:
        m.key("attention.sliding_window", c.window)
        m.key("attention.sliding_window_pattern", c.pattern)
    for b in m.blocks():
        b.norm("attn_norm")
        b.qkv(bias=c.qkv_bias)
        b.norm("attn_q_norm", c.head)
        b.norm("attn_k_norm", c.head)
        b.attention_output()
        b.norm("ffn_norm")
        b.experts()


MELLUM = shape(seed=431, embd=32, heads=2, kv=1, layers=2, ff=32, window=16, pattern=2,
               qkv_bias=False, experts=6, used=2, expert_ff=16, scaling=scaling("yarn", 16.0))
FAMILIES = [Family("mellum", draw, tensors, {"": (MELLUM, "F32")})]
