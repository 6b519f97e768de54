"""gpt-oss: sinks, windows on every other layer, biases everywhere, experts chosen before their softmax."""
from .core import Family, scaling, shape


def draw(d):
    c = d.shape(window=d.window(), tied=False, ff=0, scaling=d.scaling(None, "yarn"),
                base_swa=d.of(None, 5000.0), **d.experts())
    return c.but(pattern=d.of(None, d.pattern(c.layers)))


def tensors(m, c):
    m.common()
    m.key("expert_feed_forward_length", c.expert_ff)
    m.key("attention.sliding_window", c.window)
    m.key("attention.sliding_window_pattern", c.pattern, default=2)
    m.key("rope.freq_base_swa", c.base_swa)
    for b in m.blocks():
        b.norm("attn_norm")
        b.qkv(bias=True)
        b.attention_output(bias=True)
        b.vector("attn_sinks.weight", c.heads)
        b.norm("post_attention_norm")
        b.experts(bias=True)


OSS = shape(ff=0, layers=3, experts=6, used=2, expert_ff=16, window=16, pattern=None, base_swa=None,
            rope_base=150000.0, scaling=scaling("yarn", 32.0))
FAMILIES = [Family("gpt-oss", draw, tensors, {
    "": (OSS.but(seed=121), "F32"),
    "-q": (OSS.but(seed=122, layers=2, embd=64, experts=12, used=4, expert_ff=32), "Q8_0:MXFP4"),
}, deep=True)]
