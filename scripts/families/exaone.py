"""EXAONE 3.5: Llama of other pairs. EXAONE 4: norms behind both parts of a layer alone, norms of heads; with
64 layers there are windows, and only their layers are rotated. K-EXAONE: norms before both parts, experts
beside a shared network."""
from .core import Family, factors, shape
from .dots import draw_routing


def draw_exaone(d):
    return d.shape(factors=d.maybe(0.4), qkv_bias=d.maybe(0.2),
                   scaling=d.scaling(None, None, "linear", "yarn"))


def exaone(m, c):
    common(m, c)
    for b in m.blocks():
        b.norm("attn_norm")
        b.qkv(bias=c.qkv_bias)
        b.attention_output()
        b.norm("ffn_norm")
        b.ffn()


def draw_exaone4(d):
    windowed = d.maybe()
    c = d.shape(**d.square(), layers=64 if windowed else d.between(2, 5), factors=d.maybe(0.4),
                window=d.of(0, d.window()) if windowed else 0, qkv_bias=d.maybe(0.2), fused=d.maybe(0.2),
                nextn=d.of(0, 0, 0, 1), scaling=d.scaling(None, None, "linear", "yarn"))
    return c.but(pattern=d.of(None, d.pattern(c.layers)) if windowed else None)


def draw_exaone_moe(d):
    c = d.shape(tied=False, window=d.window(), factors=d.maybe(0.4), qkv_bias=d.maybe(0.2),
                fused=d.maybe(0.2), nextn=d.of(0, 0, 0, 1), scaling=d.scaling(None, None, "linear", "yarn"),
                shared=1, shared_ff=d.of(None, d.multiple(24, 96)), **draw_routing(d))
    # llama.cpp does not load such factors beside a block of multi-token prediction.
    return c.but(pattern=d.of(None, d.pattern(c.layers)), dense_layers=d.of(None, d.between(0, c.layers)),
                 factors=c.factors and not c.nextn)


def attention(b, c):
    b.fused_qkv(bias=c.qkv_bias) if c.fused else b.qkv(bias=c.qkv_bias)
    b.norm("attn_q_norm", c.head)
    b.norm("attn_k_norm", c.head)
    b.attention_output()


def common(m, c):
    m.common()
    if c.factors:
        m.add("rope_freqs.weight", factors(c.rot, c.rope_base, 8.0))


def exaone4(m, c):
    common(m, c)
    m.key("attention.sliding_window", c.window or None)
    m.key("attention.sliding_window_pattern", c.pattern, default=4)
    for b in m.blocks_and_next(c.nextn):
        attention(b, c)
        b.norm("post_attention_norm")
        b.ffn()
        b.norm("post_ffw_norm")


def exaone_moe(m, c):
    common(m, c)
    m.key("attention.sliding_window", c.window)
    m.key("attention.sliding_window_pattern", c.pattern, default=4)
    m.key("expert_feed_forward_length", c.expert_ff)
    for i, b in enumerate(m.blocks_and_next(c.nextn)):
        b.norm("attn_norm")
        attention(b, c)
        b.norm("ffn_norm")
        if i < (c.dense_layers or 0) or i >= c.layers:
            b.ffn()
            continue
        b.experts()
        if c.choice_bias:
            b.vector("exp_probs_b.bias", c.experts, 0.2)
        b.ffn("_shexp", c.shared_ff or c.expert_ff)


PLAIN = shape(qkv_bias=False, fused=False, factors=False, nextn=0, rope_base=1e6)
EXAONE4 = PLAIN.but(seed=321, layers=64, embd=16, heads=2, kv=1, head=8, rot=8, value=8, ff=16, window=16,
                    pattern=None, factors=True)
EXAONE_MOE = PLAIN.but(
    seed=322, layers=4, window=16, pattern=None, dense_layers=1, shared=1, shared_ff=None, choice_bias=True,
    experts=6, used=2, expert_ff=16, gating=2, weights_norm=True, weights_scale=2.5)
FAMILIES = [
    Family("exaone", draw_exaone, exaone, {
        "": (PLAIN.but(seed=323, embd=32, heads=2, kv=1, ff=32, factors=True), "F32")}),
    Family("exaone4", draw_exaone4, exaone4, {"": (EXAONE4, "F32")}),
    Family("exaone-moe", draw_exaone_moe, exaone_moe, {"": (EXAONE_MOE, "F32")}),
]
