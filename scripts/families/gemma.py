"""Gemma: a scaled embedding, GELU. Gemma 2 and 3: norms before and behind both parts of a layer, windows;
soft caps in one, norms of heads in the other."""
from .core import Family, scaling, shape


def draw_gemma(d):
    return d.shape(tied=True, scaling=d.scaling(None, "linear", "yarn"))


def gemma1(m, c):
    m.common(embd_std=2 * c.embd ** -0.5)
    for b in m.blocks():
        b.norm("attn_norm")
        b.qkv()
        b.attention_output()
        b.norm("ffn_norm")
        b.ffn()


def draw_gemma2(d):
    c = d.shape(tied=True, window=d.window(), base_swa=d.of(None, 5000.0),
                attn_cap=d.of(50.0, 3.0, 1.0), logit_cap=d.of(30.0, 2.0))
    return c.but(pattern=d.of(None, d.pattern(c.layers)))


def draw_gemma3(d):
    c = d.shape(window=d.of(0, d.window(), d.window(), d.window()), base_swa=d.of(None, 1e5), attn_cap=None,
                logit_cap=d.of(None, None, 30.0), scaling=d.scaling(None, "linear"))
    return c.but(pattern=d.of(None, d.pattern(c.layers)))


def gemma(m, c):
    # The embedding is multiplied by the root of its length.
    m.common(embd_std=2 * c.embd ** -0.5 if c.tied else 0.4 * c.embd ** -0.5)
    if c.window:
        m.key("attention.sliding_window", c.window)
        m.key("attention.sliding_window_pattern", c.pattern)
        m.key("rope.freq_base_swa", c.base_swa)
    m.key("attn_logit_softcapping", c.attn_cap, default=50.0)
    m.key("final_logit_softcapping", c.logit_cap, default=30.0 if m.arch == "gemma2" else None)
    for b in m.blocks():
        b.norm("attn_norm")
        b.qkv()
        if m.arch == "gemma3":
            b.norm("attn_q_norm", c.head)
            b.norm("attn_k_norm", c.head)
        b.attention_output()
        b.norm("post_attention_norm")
        b.norm("ffn_norm")
        b.ffn()
        b.norm("post_ffw_norm")


GEMMA = shape(tied=True, window=16, base_swa=None)
GEMMA2 = GEMMA.but(seed=131, pattern=None, attn_cap=3.0, logit_cap=4.0)
GEMMA3 = GEMMA.but(seed=132, layers=3, pattern=3, attn_cap=None, logit_cap=None, rope_base=1e6,
                   scaling=scaling("linear", 8.0))
FAMILIES = [
    Family("gemma", draw_gemma, gemma1, {"": (shape(seed=133, tied=True), "F32")}),
    Family("gemma2", draw_gemma2, gemma, {"": (GEMMA2, "F32")}),
    Family("gemma3", draw_gemma3, gemma, {"": (GEMMA3, "F32")}),
]
